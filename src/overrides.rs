//! Settings of environments that were changed at run time, kept beside the queue until they are taken back.
//!
//! ```text
//! flagtap-settings 1 <CRC-32 of the rest, 8 hex digits> <length of the rest>\n
//! {"environment":"production","version":3,"time":"2026-…Z","settings":{…}}\n    one per environment that ever had some
//! {"change":{"time":"2026-…Z","environment":"production","version":3,"before":{…},"after":{…}}}\n    oldest first
//! ```
//!
//! Written as a whole, to `settings.new`, synced, and renamed to `settings`: after a crash it is the one before or the new
//! one, never without the change's own entry. Damage is put aside as `settings.damaged`, and nothing is known then. What
//! the settings mean is not known here.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

const HEAD: &str = "flagtap-settings 1";

/// The name of the file in the queue's folder.
const NAME: &str = "settings";

/// More than the settings of any number of environments that one relay serves fill.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// Changes that are kept, and the bytes of those before the last.
const CHANGES: (usize, usize) = (100, 4 * 1024 * 1024);

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    environments: BTreeMap<String, Override>,
    changes: VecDeque<Change>,
}

/// One environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The environment's name.
    pub environment: String,
    /// How often its settings were changed.
    pub version: u64,
    /// When that was last, RFC 3339.
    pub time: String,
    /// Its settings; nothing if the configuration file's hold again.
    pub settings: Option<Value>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When it was made, RFC 3339.
    pub time: String,
    /// The environment's name.
    pub environment: String,
    /// The version that it made.
    pub version: u64,
    /// The settings that held before.
    pub before: Value,
    /// The settings that hold since.
    pub after: Value,
    /// The configuration file's settings hold since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub back_to_file: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Change { change: Change },
    Override(Override),
}

impl Overrides {
    /// Reads what is kept in `folder`. Returns also what had to be put aside, for the log. Blocks on the disk.
    pub fn load(folder: &Path) -> (Self, Option<String>) {
        let path = folder.join(NAME);
        match read(&path) {
            Ok(overrides) => (overrides, None),
            Err(error) => {
                // What cannot be read at all may be readable again.
                if matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::InvalidData) {
                    // Not being able to put it aside is no reason to stop: it is overwritten later.
                    let _ = fs::rename(&path, folder.join(format!("{NAME}.damaged")));
                }
                (Self::default(), Some(format!("{}: {error}", path.display())))
            }
        }
    }

    /// Returns what is kept of an environment.
    pub fn of(&self, environment: &str) -> Option<&Override> {
        self.environments.get(environment)
    }

    /// Returns the environments that have settings of their own, with these.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &Value)> {
        let all = self.environments.values();
        all.filter_map(|one| Some((one.environment.as_str(), one.settings.as_ref()?)))
    }

    /// Returns the last changes, oldest first.
    pub fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.iter()
    }

    /// Returns what is to be kept after an environment was given `settings`, or the file's again, at `time`.
    #[must_use]
    pub fn changed(&self, environment: &str, settings: Option<Value>, before: Value, after: Value, time: &str) -> Self {
        let mut changed = self.clone();
        let version = self.of(environment).map_or(0, |one| one.version) + 1;
        let (environment, time) = (environment.to_owned(), time.to_owned());
        changed.changes.push_back(Change {
            time: time.clone(),
            environment: environment.clone(),
            version,
            before,
            after,
            back_to_file: settings.is_none(),
        });
        changed.bound();
        let new = Override {
            environment: environment.clone(),
            version,
            time,
            settings,
        };
        changed.environments.insert(environment, new);
        changed
    }

    /// Makes it durable. Blocks on the disk; after an error the file so far is still there.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let body = self.render()?;
        let head = format!("{HEAD} {:08x} {}\n", crc32fast::hash(body.as_bytes()), body.len());
        let new = folder.join(format!("{NAME}.new"));
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(head.as_bytes())?;
        file.write_all(body.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, folder.join(NAME))?;
        File::open(folder)?.sync_all()
    }

    /// Forgets the oldest changes, as many as there are too many.
    fn bound(&mut self) {
        let size = |change: &Change| change.before.to_string().len() + change.after.to_string().len();
        let mut bytes: usize = self.changes.iter().rev().skip(1).map(size).sum();
        while self.changes.len() > CHANGES.0 || (self.changes.len() > 1 && bytes > CHANGES.1) {
            bytes -= self.changes.pop_front().map_or(0, |change| size(&change));
        }
    }

    fn render(&self) -> io::Result<String> {
        let mut body = String::new();
        let overrides = self.environments.values().cloned().map(Line::Override);
        let changes = self.changes.iter().cloned().map(|change| Line::Change { change });
        for line in overrides.chain(changes) {
            body.push_str(&serde_json::to_string(&line)?);
            body.push('\n');
        }
        Ok(body)
    }
}

fn read(path: &Path) -> io::Result<Overrides> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_FILE_BYTES).read_to_string(&mut text)?,
        // The queue says what is wrong with a folder that is none.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Overrides::default());
        }
        Err(error) => return Err(error),
    };
    parse(&text).map_err(io::Error::other)
}

fn parse(text: &str) -> Result<Overrides, &'static str> {
    let (head, body) = text.split_once('\n').ok_or("has no first line")?;
    let rest = head.strip_prefix(HEAD).ok_or("is of another version")?;
    if rest != format!(" {:08x} {}", crc32fast::hash(body.as_bytes()), body.len()) {
        return Err("is damaged: its checksum does not match");
    }
    let mut overrides = Overrides::default();
    for line in body.lines() {
        match serde_json::from_str(line).map_err(|_| "has a line of another form")? {
            Line::Change { change } => overrides.changes.push_back(change),
            Line::Override(one) => drop(overrides.environments.insert(one.environment.clone(), one)),
        }
    }
    Ok(overrides)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn two_changes() -> Overrides {
        let first = Overrides::default().changed("production", Some(json!({ "kinds": [] })), json!(1), json!(2), "t1");
        first.changed("production", None, json!(2), json!(1), "t2")
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Overrides::load(folder.path()), (Overrides::default(), None));
        let given = Overrides::default().changed("a", Some(json!({ "kinds": ["x"] })), json!(1), json!(2), "t");
        for overrides in [given, two_changes()] {
            overrides.write(folder.path()).unwrap();
            assert_eq!(Overrides::load(folder.path()), (overrides, None));
        }
    }

    #[test]
    fn each_change_is_a_version_and_noted_with_before_and_after() {
        let overrides = two_changes();
        assert_eq!(overrides.of("production").unwrap().version, 2);
        assert_eq!(overrides.settings().count(), 0, "taken back");
        let changes: Vec<_> = overrides
            .changes()
            .map(|one| (one.version, &one.before, one.back_to_file))
            .collect();
        assert_eq!(changes, [(1, &json!(1), false), (2, &json!(2), true)]);
    }

    #[test]
    fn the_oldest_changes_are_forgotten() {
        let mut many = Overrides::default();
        for number in 0..150 {
            many = many.changed("a", None, json!(number), json!(number), "t");
        }
        assert_eq!(many.changes().count(), 100);
        assert_eq!(many.of("a").unwrap().version, 150);
        let large = json!("x".repeat(3 << 20));
        for number in 0..3 {
            many = many.changed("a", None, large.clone(), json!(number), "t");
        }
        assert_eq!(many.changes().count(), 2, "the last and what fits before it");
    }

    #[test]
    fn damage_is_put_aside_and_noticed_whatever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        two_changes().write(folder.path()).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let (overrides, damage) = Overrides::load(folder.path());
            assert_eq!(overrides, Overrides::default(), "{at}");
            assert!(damage.is_some() && !path.exists(), "{at}");
            assert_eq!(fs::read(folder.path().join("settings.damaged")).unwrap(), bytes);
        }
    }
}
