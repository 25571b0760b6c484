//! Settings of environments that were changed at run time, kept beside the queue until they are taken back.
//!
//! ```text
//! {"environment":"production","version":3,"time":"2026-…Z","settings":{…}}\n    one per environment that ever had some
//! {"change":{"time":"2026-…Z","environment":"production","version":3,"before":{…},"after":{…}}}\n    oldest first
//! ```
//!
//! These are the lines of a [`Kept`] file: after a crash it is the one before or the new one, never without the change's own
//! entry; where it is damaged the settings before the last change are known. What the settings mean is not known here.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kept::Kept;

/// The file, in the queue's folder.
const KEPT: Kept = Kept {
    name: "settings",
    head: "flagtap-settings 1",
    // The settings of any number of environments that one relay serves are less.
    most_bytes: 256 * 1024 * 1024,
};

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
        let found = KEPT.load(folder, parse);
        let damage = (!found.damage.is_empty()).then(|| found.damage.join("; "));
        (found.content.unwrap_or_default(), damage)
    }

    /// Reads like [`Overrides::load`] in a folder that may belong to a running relay: changes nothing.
    pub fn look(folder: &Path) -> Self {
        KEPT.look(folder, parse).unwrap_or_default()
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
        KEPT.write(folder, &self.render()?)
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

fn parse(body: &str) -> Result<Overrides, &'static str> {
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
    use std::fs;

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
    fn damage_leaves_what_held_before_the_last_change() {
        let folder = tempfile::tempdir().unwrap();
        let first = Overrides::default().changed("a", Some(json!({ "kinds": ["x"] })), json!(1), json!(2), "t");
        first.write(folder.path()).unwrap();
        first
            .changed("a", None, json!(2), json!(1), "t")
            .write(folder.path())
            .unwrap();
        let path = folder.path().join("settings");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 4;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (overrides, damage) = Overrides::load(folder.path());
        assert_eq!(overrides, first);
        assert!(damage.unwrap().contains("settings: is damaged"));
        assert_eq!(fs::read(folder.path().join("settings.damaged")).unwrap(), bytes);
    }

    #[test]
    fn a_line_of_another_form_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        KEPT.write(folder.path(), "{\"environment\":7}\n").unwrap();
        let (overrides, damage) = Overrides::load(folder.path());
        assert_eq!(overrides, Overrides::default());
        assert!(damage.unwrap().contains("has a line of another form"));
    }
}
