//! When each flag was first seen, kept across restarts in the file `flags`.
//!
//! ```text
//! flagtap-flags 1 …                                         (the first line of crate::kept)
//! environment <name as a JSON string>\n
//! <Unix milliseconds> <flag key as a JSON string>\n        any number, of the environment above
//! ```
//!
//! Environments that are not configured are kept.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Environment, MAX_FLAGS};
use crate::kept::{Found, Kept};

/// When flags were first seen, Unix milliseconds, by key.
pub type Sightings = HashMap<String, u64>;

const KEPT: Kept = Kept {
    name: "flags",
    head: "flagtap-flags 1",
    // More than any number of environments that one relay serves fills.
    most_bytes: 256 * 1024 * 1024,
};

/// The sightings of each environment, by its name.
pub type Environments = BTreeMap<String, Sightings>;

/// Reads what is kept in `folder`. What cannot be read is reported, and damage put aside.
pub fn load(folder: &Path) -> Found<Environments> {
    KEPT.load(folder, parse)
}

/// Reads what is kept in `folder`, which may belong to a running relay: changes nothing. Empty if nothing can be read.
pub fn look(folder: &Path) -> Environments {
    KEPT.look(folder, parse).unwrap_or_default()
}

/// The environments of this process, and the folder that keeps their sightings.
pub struct Keeper {
    folder: Option<PathBuf>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    environments: BTreeMap<String, Arc<Environment>>,
    /// Sightings of environments that nobody asked for yet.
    others: Environments,
}

impl Keeper {
    /// Returns a keeper that goes on from the sightings that were loaded. Without a folder nothing is written.
    pub fn new(folder: Option<PathBuf>, loaded: Environments) -> Self {
        let table = Table {
            others: loaded,
            ..Table::default()
        };
        Self {
            folder,
            table: Mutex::new(table),
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

    fn lock(&self) -> MutexGuard<'_, Table> {
        // What is inserted is whole, so a panic elsewhere left nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(folder: &Path, environments: &Environments) -> io::Result<()> {
    KEPT.write(folder, &render(environments)?)
}

fn render(environments: &Environments) -> io::Result<String> {
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

fn parse(body: &str) -> Result<Environments, &'static str> {
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
    use std::fs;

    use super::*;

    fn kept(folder: &Path, environments: &[(&str, &[(&str, u64)])]) -> Environments {
        let all: Environments = environments
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
        assert_eq!(loaded.content.as_ref(), Some(&all));
        assert_eq!(look(folder.path()), all);
        assert!(!loaded.fresh && loaded.damage.is_empty());
    }

    #[test]
    fn lines_that_mean_nothing_are_damage() {
        for (body, what) in [
            ("environment\n", "a line without a name"),
            ("environment production\n", "a name that is no JSON string"),
            ("1 \"a\"\n", "a flag of no environment"),
            ("environment \"production\"\nsoon \"a\"\n", "a time that is no number"),
        ] {
            assert!(parse(body).unwrap_err().contains(what), "{body}");
        }
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
        assert_eq!(load(&path).content.unwrap()["gone"], others["gone"]);
    }
}
