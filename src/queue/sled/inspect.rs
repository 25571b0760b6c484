//! A queue's directory seen from outside: what waits for whom, what was given up, what was set aside.
//!
//! Reads a stopped directory, and one that a process has open, and never writes to it: generations are opened as copies,
//! one at a time. Beside a running process the answer is that of a moment ago.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::acknowledged::{self, Acknowledged, Known};
use super::dead_letters;
use super::directory::{self, disk_bytes, is_of_another_version};
use super::generation::{Failure, Generation, Loaded, Start};
use super::layout::parse_record_key;
use super::open::ledger;
use super::scratch::Scratch;
use crate::queue::{ConsumerStats, DeadLetter, PartStats, SetAside};
use crate::record::Record;
use crate::record::codec::{DecodeError, Decoder, Header, peek};

/// Why a directory cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is no queue.
    #[error("there is no queue at {path}: {why}")]
    NoQueue {
        /// Where it was looked for.
        path: String,
        /// What is there instead.
        why: String,
    },
    /// Only a stopped directory can be changed.
    #[error("the queue at {path} is open in another process")]
    InUse {
        /// Where it is.
        path: String,
    },
    /// The file system refused, or the engine did.
    #[error("cannot read the queue at {path}: {why}")]
    Failed {
        /// Where it is.
        path: String,
        /// What was said.
        why: String,
    },
}

/// Everything about a queue but its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// A process has it open.
    pub in_use: bool,
    /// Bytes on disk.
    pub bytes: u64,
    /// The position that the next record gets.
    pub tail: u64,
    /// Its parts, oldest first, each with what is wrong with it as far as that shows without reading its records.
    pub parts: Vec<(PartStats, Option<String>)>,
    /// What waits for whom.
    pub consumers: Vec<ConsumerStats>,
    /// Dead letters by destination, and how many of them have a reason that may pass.
    pub dead_letters: Vec<(String, u64, u64)>,
    /// Dead letters that cannot be read.
    pub damaged_letters: u64,
    /// What was set aside, by name.
    pub quarantine: Vec<SetAside>,
}

/// A queue's directory.
pub struct Inspection {
    pub(super) root: PathBuf,
    pub(super) in_use: bool,
    pub(super) scratch: Scratch,
    /// What each generation's `start` file says, or why it says nothing.
    pub(super) starts: BTreeMap<u64, Result<Start, String>>,
    /// What the newest generation that can be read says, and what was acknowledged beyond it.
    pub(super) loaded: Loaded,
    /// That generation.
    pub(super) newest: Option<u64>,
    /// Newer ones, with what is wrong with them.
    pub(super) broken: BTreeMap<u64, String>,
    /// Damage that the next open mends.
    pub(super) mended: Vec<(Option<u64>, String)>,
    /// How far the log got.
    pub(super) known: Known,
}

impl Inspection {
    /// Looks at the directory `root`. Copies its newest generation.
    pub fn open(root: &Path) -> Result<Self, InspectError> {
        let path = || root.display().to_string();
        let failed = |error: io::Error| InspectError::Failed {
            path: path(),
            why: error.to_string(),
        };
        let no_queue = |why: &str| InspectError::NoQueue {
            path: path(),
            why: why.to_owned(),
        };
        match fs::read(root.join("FORMAT")) {
            Ok(format) if is_of_another_version(&format) => {
                let format = String::from_utf8_lossy(&format);
                let why = "this version does not read. Use the version that wrote it";
                return Err(no_queue(&format!(
                    "it has the format {:?}, which {why}",
                    format.trim_end()
                )));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(no_queue("it has no file FORMAT"));
            }
            Err(error) => return Err(failed(error)),
        }
        // Before anything else: beside a running process it then says less than is there, never more.
        let known = Acknowledged::look(&root.join(acknowledged::FILE)).map_err(failed)?;
        let scratch = Scratch::new().map_err(|error| InspectError::Failed {
            path: path(),
            why: format!("cannot make a temporary folder for copies (see TMPDIR): {error}"),
        })?;
        let (mut starts, mut mended) = (BTreeMap::new(), Vec::new());
        for first in directory::generations(root).map_err(failed)? {
            let path = directory::generation(root, first);
            let read = || Start::read(&path).and_then(|start| start.check(first));
            let damage = match read() {
                Ok(start) => {
                    starts.insert(first, Ok(start));
                    continue;
                }
                Err(damage) => damage,
            };
            let restored = scratch.start(&path, first);
            // Beside a running process it got its name, or all of it was removed, while it was looked at.
            match (read(), restored) {
                _ if !path.exists() => {}
                (Ok(start), _) => drop(starts.insert(first, Ok(start))),
                (Err(_), Ok(start)) => {
                    mended.push((Some(first), format!("{damage}, and is written anew by the next start")));
                    starts.insert(first, Ok(start));
                }
                (Err(_), Err(failure)) if Start::never_written(&path, &failure) && known.tail <= first => {}
                (Err(_), Err(_)) => drop(starts.insert(first, Err(damage.to_string()))),
            }
        }
        let mut inspection = Self {
            in_use: directory::is_in_use(root).map_err(failed)?,
            root: root.to_owned(),
            scratch,
            starts,
            loaded: Loaded::default(),
            newest: None,
            broken: BTreeMap::new(),
            mended,
            known,
        };
        inspection.load_newest().map_err(|failure| InspectError::Failed {
            path: path(),
            why: failure.to_string(),
        })?;
        Ok(inspection)
    }

    /// Returns whether a process has the queue open.
    pub fn in_use(&self) -> bool {
        self.in_use
    }

    /// Returns the state of everything.
    pub fn overview(&self) -> io::Result<Overview> {
        let letters = dead_letters::summary(&self.dead_letters_path())?;
        let parts = self.starts.iter().map(|(first, start)| {
            let part = PartStats {
                first: *first,
                end: self.end(*first),
                bytes: disk_bytes(&self.generation_path(*first)),
                created_ms: start.as_ref().map_or(0, |start| start.created_ms),
            };
            let problem = self.broken.get(first).or(start.as_ref().err()).cloned();
            (part, problem)
        });
        Ok(Overview {
            in_use: self.in_use,
            bytes: disk_bytes(&self.root),
            tail: self.loaded.state.tail,
            parts: parts.collect(),
            consumers: self.consumers(),
            dead_letters: (letters.letters.into_iter())
                .map(|(name, count)| (name, count.letters, count.transient))
                .collect(),
            damaged_letters: letters.damaged,
            quarantine: self.quarantine()?,
        })
    }

    /// Returns what waits for whom.
    pub fn consumers(&self) -> Vec<ConsumerStats> {
        let starts: BTreeMap<u64, Start> = (self.starts.iter())
            .filter_map(|(first, start)| Some((*first, start.as_ref().ok()?.clone())))
            .collect();
        let oldest = starts.first_key_value().map(|(_, start)| start.clone());
        let mut left = starts;
        left.retain(|first, _| !self.broken.contains_key(first));
        ledger(&self.loaded, &left, oldest.as_ref(), &[]).stats()
    }

    /// Hands each record that waits for `name` (for anybody, without one) to `each` until it returns false, oldest first.
    /// Returns what could not be read.
    ///
    /// A record waits as a whole: some of its events may be delivered already.
    pub fn waiting(
        &self,
        name: Option<&str>,
        mut each: impl FnMut(&Record) -> io::Result<bool>,
    ) -> Result<Vec<String>, InspectError> {
        let cursors: BTreeMap<String, u64> = (self.consumers().into_iter())
            .filter(|consumer| name.is_none_or(|name| name == consumer.name))
            .map(|consumer| (consumer.name, consumer.position))
            .collect();
        let Some(from) = cursors.values().min().copied() else {
            return Ok(Vec::new());
        };
        let waits = |position: u64, record: &Record| {
            let mut names = record.destinations.iter();
            names.any(|name| cursors.get(name).is_some_and(|cursor| *cursor <= position))
        };
        let mut unread = Vec::new();
        let mut outcome = Ok(true);
        for first in self.starts.keys() {
            if self.end(*first).is_some_and(|end| end <= from) {
                continue;
            }
            let read = self.scratch.open(&self.generation_path(*first), self.in_use);
            let read = read.and_then(|copied| {
                read_records(copied.generation()?, from, |found| {
                    match found {
                        Found::Record(position, record) if waits(position, &record) => outcome = each(&record),
                        Found::Record(..) => {}
                        Found::Damaged { position, .. } => unread.push(format!("the record {position} is damaged")),
                    }
                    matches!(outcome, Ok(true))
                })
            });
            match read {
                Ok(()) | Err(Failure::Removed) => {}
                Err(failure) => unread.push(format!("the part {first} cannot be read: {failure}")),
            }
            match outcome {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(unread)
    }

    /// Hands each dead letter, with its destination, to `each` until it returns false.
    pub fn dead_letters(&self, each: impl FnMut(String, DeadLetter) -> bool) -> Result<(), InspectError> {
        dead_letters::read(&self.dead_letters_path(), each).map_err(|error| self.failed(&error))
    }

    pub(super) fn generation_path(&self, first: u64) -> PathBuf {
        directory::generation(&self.root, first)
    }

    pub(super) fn dead_letters_path(&self) -> PathBuf {
        self.root.join(dead_letters::FILE)
    }

    /// Returns the position after the last record of a generation, if anything says so.
    pub(super) fn end(&self, first: u64) -> Option<u64> {
        let mut following = self.starts.range(first + 1..);
        if let Some((_, Ok(next))) = following.next() {
            return (next.previous_first == first).then_some(next.previous_end);
        }
        (self.newest == Some(first)).then_some(self.loaded.state.tail)
    }

    pub(super) fn failed(&self, error: &dyn std::error::Error) -> InspectError {
        InspectError::Failed {
            path: self.root.display().to_string(),
            why: error.to_string(),
        }
    }

    fn load_newest(&mut self) -> Result<(), Failure> {
        let firsts: Vec<u64> = self.starts.keys().rev().copied().collect();
        for first in firsts {
            let copied = self.scratch.open(&self.generation_path(first), self.in_use);
            match copied.and_then(|copied| copied.generation()?.load()) {
                Ok(loaded) => {
                    (self.newest, self.loaded) = (Some(first), loaded);
                    break;
                }
                Err(Failure::Removed) => drop(self.starts.remove(&first)),
                // Its first write never got to the disk.
                Err(Failure::Stateless) if self.known.tail <= first => drop(self.starts.remove(&first)),
                Err(failure @ (Failure::Damaged(_) | Failure::Stateless)) => {
                    self.broken.insert(first, failure.to_string());
                }
                Err(failure @ Failure::Passing(_)) => return Err(failure),
            }
        }
        self.loaded.miss(&self.known);
        Ok(())
    }

    pub(super) fn quarantine(&self) -> io::Result<Vec<SetAside>> {
        directory::set_aside(&self.root)
    }
}

/// What stands at a place of the log.
pub(super) enum Found {
    /// A whole record.
    Record(u64, Record),
    /// Bytes that are no record, with their header if that is whole.
    Damaged {
        position: u64,
        header: Option<Header>,
        error: DecodeError,
    },
}

/// Hands everything from `from` on to `each` until it returns false.
pub(super) fn read_records(
    generation: &Generation,
    from: u64,
    mut each: impl FnMut(Found) -> bool,
) -> Result<(), Failure> {
    let mut decoder = Decoder::default();
    let mut found = |position: u64, encoded: &[u8]| {
        each(match decoder.decode(encoded) {
            Ok(record) => Found::Record(position, record),
            Err(error) => Found::Damaged {
                position,
                header: peek(encoded).ok(),
                error,
            },
        })
    };
    let mut encoded = Vec::new();
    let mut current = None;
    let mut next_part = 0;
    for piece in generation.pieces(from, u64::MAX)? {
        let (key, value) = piece?;
        let Some((position, part)) = parse_record_key(&key) else {
            continue;
        };
        if current != Some(position) {
            if let Some(position) = current.replace(position)
                && !found(position, &encoded)
            {
                return Ok(());
            }
            encoded.clear();
            next_part = 0;
        }
        // A piece that is missing leaves a record whose checksum is wrong.
        if part == next_part {
            encoded.extend_from_slice(&value);
            next_part += 1;
        }
    }
    if let Some(position) = current {
        found(position, &encoded);
    }
    Ok(())
}
