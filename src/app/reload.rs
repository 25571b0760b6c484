//! When the configuration file is read again: on SIGHUP, and when it or a file with a secret has changed.
//!
//! The files are looked at once a second, through every symbolic link on the way: Kubernetes changes a mounted ConfigMap by
//! leading `..data` elsewhere, which changes no file and no folder that a path names. A file that somebody is writing is
//! left alone until it has been the same at two looks. While what was read is refused, it is read at every look: a missing
//! secret or a full volume may be what is wrong.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::app::live::{Live, SetLevel};
use crate::config::{Config, process_environment};
use crate::problems::{Place, Problems};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Where the configuration comes from, and what else a change of it reaches.
pub struct Source {
    /// The file; without one there is nothing to read again.
    pub file: Option<PathBuf>,
    /// Asks for the file to be read again.
    pub asked: Arc<Notify>,
    /// Sets the log's level.
    pub set_level: SetLevel,
}

impl Source {
    /// Returns the source of a configuration that never changes.
    pub fn fixed() -> Self {
        Self {
            file: None,
            asked: Arc::default(),
            set_level: Box::new(|_| {}),
        }
    }
}

/// What files look like: equal for equal files, and different after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look(Vec<Option<[i64; 7]>>);

impl Look {
    /// Looks at files. Blocks on the disk.
    fn at<'a>(files: impl Iterator<Item = &'a Path>) -> Self {
        let one = |path: &Path| {
            let of = fs::metadata(path).ok()?;
            let (times, changes) = ((of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec()));
            // Numbers of files and devices are compared, so a wrap does not matter.
            let numbers = (of.dev() as i64, of.ino() as i64, of.len() as i64);
            Some([numbers.0, numbers.1, numbers.2, times.0, times.1, changes.0, changes.1])
        };
        Self(files.map(one).collect())
    }
}

/// Reads the file. A pipe in its place would keep the reader waiting, and with it every later change.
fn load(path: &Path) -> Result<(Config, Problems), Problems> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(Problems::one(Place::default(), "is no regular file"));
    }
    Config::load(path, &process_environment)
}

/// Has `live` take the file in whenever there is reason to, until `stop`.
pub(super) async fn watch(live: Arc<Live>, file: Option<PathBuf>, asked: Arc<Notify>, stop: CancellationToken) {
    let Some(file) = file else {
        while stop.run_until_cancelled(asked.notified()).await.is_some() {
            info!("there is no configuration file to read again");
        }
        return;
    };
    // What was seen last, and what is in force of it. Nothing at first: the file may have changed since the start read it.
    let (mut seen, mut settled) = (None, None);
    loop {
        let is_asked = tokio::select! {
            () = stop.cancelled() => return,
            () = asked.notified() => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        let files = files(&file, &live.shown().config);
        let looked = tokio::task::spawn_blocking(move || Look::at(files.iter().map(PathBuf::as_path))).await;
        let look = looked.ok();
        let steady = seen == look;
        seen.clone_from(&look);
        if !is_asked && (!steady || settled == look) {
            continue;
        }
        let path = file.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || load(&path)).await else {
            continue;
        };
        let before = files_named(&live.shown().config);
        let taken = live.take(read, &file.display().to_string(), is_asked).await;
        // Other files than those that were looked at are not known yet.
        let same = before == files_named(&live.shown().config);
        settled = look.filter(|_| taken && same);
    }
}

fn files(file: &Path, config: &Config) -> Vec<PathBuf> {
    let mut files = vec![file.to_owned()];
    files.extend(config.secret_files.iter().cloned());
    files
}

fn files_named(config: &Config) -> Vec<PathBuf> {
    config.secret_files.clone()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_change_behind_a_symbolic_link_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (version, text) in [("1", "a: 1"), ("2", "a: 2")] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("config.yaml"), text).unwrap();
        }
        symlink("1", path("..data")).unwrap();
        symlink("..data/config.yaml", path("config.yaml")).unwrap();
        let look = || Look::at([path("config.yaml"), path("secret")].iter().map(PathBuf::as_path));
        let first = look();
        assert_eq!(first, look());
        symlink("2", path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        assert_ne!(first, look());
        let second = look();
        fs::write(path("secret"), "s").unwrap();
        assert_ne!(second, look());
    }
}
