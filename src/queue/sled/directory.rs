//! The queue's directory: its format file, its lock and the places of its parts.
//!
//! ```text
//! FORMAT              "flagtap-queue 2\n"; any other content is refused, and nothing is touched
//! lock                held while a process has the queue open
//! generations/<n>/    one sled database per generation, named by its first position (20 digits)
//! quarantine/         parts that could not be opened, moved here as they were
//! trash-<n>/          a generation on its way out; removed at the next open if the process ended meanwhile
//! acknowledged        how far the log got (see the file of that name)
//! dead-letters        events that were given up
//! ```
//!
//! Names never derive from input. Directories are made with mode 0700, files with 0600; a name is synced with its
//! directory before anything relies on it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use tracing::warn;

use crate::queue::SetAside;

const FORMAT: &str = "flagtap-queue 2\n";

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    /// Made by a version of flagtap that stores otherwise. Only a person can decide what to do.
    #[error(
        "the queue at {path} has an unknown format ({found}); this version reads \"flagtap-queue 2\". \
             Deliver what it holds with the version that wrote it, or move it aside"
    )]
    UnknownFormat { path: String, found: String },
    /// Another process has it open.
    #[error("the queue at {path} is open in another process")]
    Locked { path: String },
    /// The file system refused.
    #[error("cannot open the queue at {path}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// The directory, locked for this process.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    _lock: File,
}

impl Directory {
    /// Opens the directory, or makes it.
    pub(super) fn open(root: &Path) -> Result<Self, DirectoryError> {
        let path = || root.display().to_string();
        let failed = |source| DirectoryError::Io { path: path(), source };
        make_directory(root).map_err(failed)?;
        let format = root.join("FORMAT");
        let found = match fs::read(&format) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        if is_of_another_version(&found) {
            let found = String::from_utf8_lossy(&found).trim().to_owned();
            return Err(DirectoryError::UnknownFormat { path: path(), found });
        }
        let lock = open_file(&root.join("lock"), OpenOptions::new().create(true).write(true)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DirectoryError::Locked { path: path() }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if found != FORMAT.as_bytes() {
            if !found.is_empty() {
                warn!("the file FORMAT of the queue was damaged and is written anew");
            }
            replace_file(&format, FORMAT.as_bytes()).map_err(failed)?;
        }
        for part in ["generations", "quarantine"] {
            make_directory(&root.join(part)).map_err(failed)?;
        }
        sync_directory(root).map_err(failed)?;
        let directory = Self {
            root: root.to_owned(),
            _lock: lock,
        };
        directory.empty_trash().map_err(failed)?;
        Ok(directory)
    }

    /// Returns the first positions of the generations, in order.
    pub(super) fn generations(&self) -> io::Result<Vec<u64>> {
        generations(&self.root)
    }

    pub(super) fn generation(&self, first: u64) -> PathBuf {
        generation(&self.root, first)
    }

    pub(super) fn acknowledged(&self) -> PathBuf {
        self.root.join(super::acknowledged::FILE)
    }

    pub(super) fn dead_letters(&self) -> PathBuf {
        self.root.join(super::dead_letters::FILE)
    }

    /// Makes the names inside `generations` durable.
    pub(super) fn sync_generations(&self) -> io::Result<()> {
        sync_directory(&self.root.join("generations"))
    }

    /// Removes a generation. A crash half way leaves nothing that looks like one.
    pub(super) fn remove(&self, first: u64) -> io::Result<()> {
        let trash = self.root.join(format!("trash-{first:020}"));
        fs::rename(self.generation(first), &trash)?;
        fs::remove_dir_all(trash)
    }

    /// Moves a generation aside and returns where to.
    pub(super) fn quarantine(&self, first: u64) -> io::Result<PathBuf> {
        let place = self.free_place(&format!("generation-{first:020}"));
        fs::rename(self.generation(first), &place)?;
        self.sync_generations()?;
        sync_directory(&self.root.join("quarantine"))?;
        Ok(place)
    }

    /// Returns a path in the quarantine that is not taken.
    pub(super) fn free_place(&self, name: &str) -> PathBuf {
        let quarantine = self.root.join("quarantine");
        let mut place = quarantine.join(name);
        let mut number = 1;
        while place.exists() {
            number += 1;
            place = quarantine.join(format!("{name}-{number}"));
        }
        place
    }

    /// Returns what is in the quarantine.
    pub(super) fn set_aside(&self) -> Vec<SetAside> {
        // What cannot be read is no part of the queue any more.
        set_aside(&self.root).unwrap_or_default()
    }

    /// Removes what was moved aside longest ago. Returns false if there is nothing.
    pub(super) fn remove_oldest_quarantined(&self) -> io::Result<bool> {
        let entries = fs::read_dir(self.root.join("quarantine"))?.collect::<Result<Vec<_>, _>>()?;
        let changed = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let Some(oldest) = entries.into_iter().map(|entry| entry.path()).min_by_key(changed) else {
            return Ok(false);
        };
        if oldest.is_dir() {
            fs::remove_dir_all(oldest)?;
        } else {
            fs::remove_file(oldest)?;
        }
        Ok(true)
    }

    /// Returns the bytes that are free on the volume for this process.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(&self.root)
    }

    fn empty_trash(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with("trash-"))
            {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Returns whether a file FORMAT was written by another version: a whole line as FORMAT's with another number. Anything else
/// is damage, which need not be believed, because every part of the queue has a checksum of its own.
pub(super) fn is_of_another_version(found: &[u8]) -> bool {
    let name = FORMAT
        .trim_end_matches(|c: char| c.is_ascii_digit() || c == '\n')
        .as_bytes();
    let number = found.strip_prefix(name).and_then(|rest| rest.strip_suffix(b"\n"));
    found != FORMAT.as_bytes()
        && number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

/// Returns the first positions of a queue's generations, in order.
pub(super) fn generations(root: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for entry in fs::read_dir(root.join("generations"))? {
        let name = entry?.file_name();
        match name
            .to_str()
            .filter(|name| name.len() == 20)
            .and_then(|name| name.parse().ok())
        {
            Some(first) => firsts.push(first),
            None => warn!(?name, "not a part of the queue, left alone"),
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// Returns what is in a queue's quarantine, by name; nothing if there is none. The folder itself takes no bytes.
pub(super) fn set_aside(root: &Path) -> io::Result<Vec<SetAside>> {
    let entries = match fs::read_dir(root.join("quarantine")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut parts = Vec::new();
    for entry in entries {
        let entry = entry?;
        let changed = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let since = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        parts.push(SetAside {
            name: entry.file_name().to_string_lossy().into_owned(),
            bytes: disk_bytes(&entry.path()),
            changed_ms: since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        });
    }
    parts.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(parts)
}

/// Returns the place of a generation.
pub(super) fn generation(root: &Path, first: u64) -> PathBuf {
    root.join("generations").join(format!("{first:020}"))
}

/// Returns whether a process has the queue open. Writes nothing, and holds the lock for no longer than the question takes.
pub(super) fn is_in_use(root: &Path) -> io::Result<bool> {
    match File::open(root.join("lock")) {
        Ok(lock) => match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a directory that only this user can enter, and its parents.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a file that only this user can read.
pub(super) fn open_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.mode(0o600).open(path)
}

/// Makes the names inside a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a file so that after a power cut it has the old content or the new one.
pub(super) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = open_file(&draft, OpenOptions::new().create(true).write(true).truncate(true))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Returns the bytes that are free for this process on the volume of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(path)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// Returns the bytes that the files below `path` take on disk, 0 for what is not there.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}
