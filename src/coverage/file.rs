//! When each flag was first seen, kept across restarts.
//!
//! ```text
//! flagtap-flags 1 <CRC-32 of the rest, 8 hex digits> <length of the rest>\n
//! environment <name as a JSON string>\n
//! <Unix milliseconds> <flag key as a JSON string>\n        any number, of the environment above
//! ```
//!
//! Written as a whole: to `flags.new`, synced, then the file so far becomes `flags.previous` and the new one `flags`. A
//! crash at any point leaves one of the two whole; damage to one leaves the other, which is a write older. Environments
//! that are not configured are kept.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Environment, MAX_FLAGS};

/// When flags were first seen, Unix milliseconds, by key.
pub type Sightings = HashMap<String, u64>;

const HEAD: &str = "flagtap-flags 1";

/// More than any number of environments that one relay serves fills.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// What was read at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The sightings of each environment.
    pub environments: BTreeMap<String, Sightings>,
    /// Nothing was there: no flag was ever seen here.
    pub fresh: bool,
    /// What had to be passed over, for the log.
    pub damage: Vec<String>,
}

/// Reads what is kept in `folder`. What cannot be read is reported, and damage put aside as `<name>.damaged`.
pub fn load(folder: &Path) -> Loaded {
    let mut loaded = Loaded {
        fresh: true,
        ..Loaded::default()
    };
    for name in ["flags", "flags.previous"] {
        let path = folder.join(name);
        match read(&path) {
            Ok(None) => {}
            Ok(Some(environments)) => {
                loaded.environments = environments;
                loaded.fresh = false;
                return loaded;
            }
            Err(error) => {
                loaded.fresh = false;
                loaded.damage.push(format!("{}: {error}", path.display()));
                // What cannot be read at all may be readable again. Not being able to put damage aside is no reason to
                // stop: it is overwritten later.
                if matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::InvalidData) {
                    let _ = fs::rename(&path, folder.join(format!("{name}.damaged")));
                }
            }
        }
    }
    loaded
}

/// Reads what is kept in `folder`, which may belong to a running relay: changes nothing. Empty if nothing can be read.
pub fn look(folder: &Path) -> BTreeMap<String, Sightings> {
    let kept = ["flags", "flags.previous"].into_iter();
    kept.filter_map(|name| read(&folder.join(name)).ok().flatten())
        .next()
        .unwrap_or_default()
}

/// The environments of this process, and the folder that keeps their sightings.
pub struct Keeper {
    folder: Option<PathBuf>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    environments: BTreeMap<String, Arc<Environment>>,
    /// Sightings of environments that nobody asked for yet.
    others: BTreeMap<String, Sightings>,
}

impl Keeper {
    /// Returns a keeper that goes on from the sightings that were loaded. Without a folder nothing is written.
    pub fn new(folder: Option<PathBuf>, loaded: BTreeMap<String, Sightings>) -> Self {
        let kept = Kept {
            others: loaded,
            ..Kept::default()
        };
        Self {
            folder,
            kept: Mutex::new(kept),
        }
    }

    /// Returns the environment with this name, always the same one, and whether it was known before.
    pub fn environment(&self, name: &str) -> (Arc<Environment>, bool) {
        let mut kept = self.lock();
        if let Some(environment) = kept.environments.get(name) {
            return (Arc::clone(environment), true);
        }
        let seen = kept.others.remove(name);
        let known = seen.is_some();
        let environment = Arc::new(Environment::new(name, seen.unwrap_or_default()));
        kept.environments.insert(name.to_owned(), Arc::clone(&environment));
        (environment, known)
    }

    /// Writes the file if a flag was seen for the first time since it was last written. Blocks on the disk. After an error
    /// the next call tries again.
    pub fn keep(&self) -> io::Result<bool> {
        let Some(folder) = &self.folder else {
            return Ok(false);
        };
        let (environments, mut all) = {
            let kept = self.lock();
            let environments: Vec<_> = kept.environments.values().cloned().collect();
            (environments, kept.others.clone())
        };
        // Every environment is asked, since asking takes the mark away.
        let grown: Vec<bool> = environments
            .iter()
            .map(|environment| environment.new_sights())
            .collect();
        if !grown.contains(&true) {
            return Ok(false);
        }
        for environment in &environments {
            all.insert(environment.name().to_owned(), environment.sights());
        }
        let written = write(folder, &all);
        if written.is_err() {
            for environment in &environments {
                environment.lock().grown = true;
            }
        }
        written.map(|()| true)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // What is inserted is whole, so a panic elsewhere left nothing half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(folder: &Path, environments: &BTreeMap<String, Sightings>) -> io::Result<()> {
    let body = render(environments)?;
    let head = format!("{HEAD} {:08x} {}\n", crc32fast::hash(body.as_bytes()), body.len());
    let (new, current) = (folder.join("flags.new"), folder.join("flags"));
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(head.as_bytes())?;
    file.write_all(body.as_bytes())?;
    file.sync_all()?;
    match fs::rename(&current, folder.join("flags.previous")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(&new, &current)?;
    File::open(folder)?.sync_all()
}

fn render(environments: &BTreeMap<String, Sightings>) -> io::Result<String> {
    let mut body = String::new();
    for (name, sightings) in environments {
        body.push_str(&format!("environment {}\n", serde_json::to_string(name)?));
        let sorted: BTreeMap<&String, &u64> = sightings.iter().collect();
        for (key, first_seen_ms) in sorted {
            body.push_str(&format!("{first_seen_ms} {}\n", serde_json::to_string(key)?));
        }
    }
    Ok(body)
}

/// Returns what a file holds; `None` if there is none.
fn read(path: &Path) -> io::Result<Option<BTreeMap<String, Sightings>>> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_FILE_BYTES).read_to_string(&mut text)?,
        // The queue says what is wrong with a folder that is none.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    parse(&text).map(Some).map_err(io::Error::other)
}

fn parse(text: &str) -> Result<BTreeMap<String, Sightings>, &'static str> {
    let (head, body) = text.split_once('\n').ok_or("has no first line")?;
    let rest = head.strip_prefix(HEAD).ok_or("is of another version")?;
    let expected = format!(" {:08x} {}", crc32fast::hash(body.as_bytes()), body.len());
    if rest != expected {
        return Err("is damaged: its checksum does not match");
    }
    let mut environments = BTreeMap::new();
    let mut sightings: Option<&mut Sightings> = None;
    for line in body.lines() {
        let (word, name) = line.split_once(' ').ok_or("has a line without a name")?;
        let name: String = serde_json::from_str(name).map_err(|_| "has a name that is no JSON string")?;
        if word == "environment" {
            sightings = Some(environments.entry(name).or_default());
        } else {
            let first_seen_ms = word.parse().map_err(|_| "has a time that is no number")?;
            let sightings = sightings.as_mut().ok_or("has a flag of no environment")?;
            if sightings.len() < MAX_FLAGS {
                sightings.insert(name, first_seen_ms);
            }
        }
    }
    Ok(environments)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(folder: &Path, environments: &[(&str, &[(&str, u64)])]) -> BTreeMap<String, Sightings> {
        let all: BTreeMap<String, Sightings> = environments
            .iter()
            .map(|(name, flags)| {
                let flags = flags.iter().map(|(key, ms)| ((*key).to_owned(), *ms));
                ((*name).to_owned(), flags.collect())
            })
            .collect();
        write(folder, &all).unwrap();
        all
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).fresh);
        let all = kept(
            folder.path(),
            &[("production", &[("a", 1), ("odd \"key\"\n é", 2)]), ("test", &[])],
        );
        let loaded = load(folder.path());
        assert_eq!(loaded.environments, all);
        assert_eq!(look(folder.path()), all);
        assert!(!loaded.fresh && loaded.damage.is_empty());
    }

    #[test]
    fn damage_to_the_file_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let first = kept(folder.path(), &[("production", &[("a", 1)])]);
        kept(folder.path(), &[("production", &[("a", 1), ("b", 2)])]);
        let path = folder.path().join("flags");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(look(folder.path()), first);
        assert!(!folder.path().join("flags.damaged").exists());
        let loaded = load(folder.path());
        assert_eq!(loaded.environments, first);
        assert_eq!(loaded.damage.len(), 1);
        assert!(folder.path().join("flags.damaged").exists());
    }

    #[test]
    fn a_folder_that_is_none_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");
        fs::write(&path, "no folder").unwrap();
        let loaded = load(&path);
        assert!(loaded.fresh && loaded.damage.is_empty(), "{loaded:?}");
    }

    #[test]
    fn a_crash_between_the_renames_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let first = kept(folder.path(), &[("production", &[("a", 1)])]);
        fs::rename(folder.path().join("flags"), folder.path().join("flags.previous")).unwrap();
        fs::write(folder.path().join("flags.new"), "flagtap-fl").unwrap();
        assert_eq!(load(folder.path()).environments, first);
    }

    #[test]
    fn a_failed_write_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not-yet");
        let others = BTreeMap::from([("gone".to_owned(), Sightings::from([("x".to_owned(), 9)]))]);
        let keeper = Keeper::new(Some(path.clone()), others.clone());
        let (environment, known) = keeper.environment("production");
        assert!(!known && keeper.environment("production").1);
        assert!(!keeper.keep().unwrap());
        environment.lock().grown = true;
        assert!(keeper.keep().is_err());
        fs::create_dir(&path).unwrap();
        assert!(keeper.keep().unwrap());
        assert!(!keeper.keep().unwrap());
        assert_eq!(load(&path).environments["gone"], others["gone"]);
    }

    proptest! {
        /// Whatever one change does to the file, it is noticed, or means the same as before.
        #[test]
        fn no_change_of_a_byte_goes_unnoticed(at in 0usize..200, byte: u8) {
            let flags = Sightings::from([("a".to_owned(), 1_700_000_000_000), ("b".to_owned(), 2)]);
            let all = BTreeMap::from([("production".to_owned(), flags)]);
            let body = render(&all).unwrap();
            let whole = format!("{HEAD} {:08x} {}\n{body}", crc32fast::hash(body.as_bytes()), body.len());
            let mut bytes = whole.into_bytes();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            let read = String::from_utf8(bytes).ok().and_then(|text| parse(&text).ok());
            prop_assert_eq!(read, None);
        }
    }
}
