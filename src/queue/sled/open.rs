//! Opening: what is on the disk becomes a [`Store`].
//!
//! Only the newest generation is opened; the others are known by their `start` files and opened when somebody reads them. A
//! newest generation that cannot be opened is set aside and the one before speaks: its cursors are older, so events may be
//! delivered again, but none is passed over.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use tracing::error;

use super::dead_letters::DeadLetters;
use super::directory::{Directory, DirectoryError, disk_bytes};
use super::generation::{Failure, Generation, Loaded, Slot, Start};
use super::store::{Current, Store};
use super::{Part, Shared, State};
use crate::queue::{Boundary, Cursor, Ledger, Loss, Marks, Totals};
use crate::record::codec::Encoder;

/// Positions left out after a newest generation that cannot be opened, more than one can hold: none is given twice.
const SKIPPED_POSITIONS: u64 = 1 << 24;

/// Why the queue is not open.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// Trying again makes no sense.
    #[error("{0}")]
    Refused(String),
    /// Trying again may help.
    #[error("{0}")]
    Failed(String),
}

impl From<DirectoryError> for OpenError {
    fn from(error: DirectoryError) -> Self {
        match error {
            DirectoryError::UnknownFormat { .. } => Self::Refused(error.to_string()),
            DirectoryError::Locked { .. } => Self::Failed(error.to_string()),
            DirectoryError::Io { path, source } => Self::Failed(format!("cannot open the queue at {path}: {source}")),
        }
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

struct Found {
    starts: BTreeMap<u64, Start>,
    loaded: Option<Loaded>,
    current: Option<(u64, Arc<Generation>)>,
    floor: u64,
    quarantined: u64,
    /// Totals of a generation that was set aside, if nothing better is left.
    totals: Totals,
}

impl Store {
    /// Opens the queue and publishes its state.
    pub(super) fn open(shared: &Arc<Shared>, destinations: &[String]) -> Result<Self, OpenError> {
        let settings = &shared.settings;
        let directory = Directory::open(&settings.path)?;
        let dead_letters = DeadLetters::open(directory.dead_letters(), &directory.free_place("dead-letters"))?;
        let found = find(&directory)?;
        let fresh = Loaded {
            state: super::layout::State {
                tail: found.floor,
                totals: found.totals.clone(),
                ..super::layout::State::default()
            },
            ..Loaded::default()
        };
        let loaded = found.loaded.unwrap_or(fresh);
        let ledger = ledger(&loaded, &found.starts, destinations);
        let mut marks = Marks::new(settings.mark_entries);
        for seen in &loaded.marks {
            marks.restore(*seen);
        }
        let mut store = Self {
            shared: Arc::clone(shared),
            current: found.current.as_ref().map(|(first, generation)| Current {
                first: *first,
                created_ms: found.starts.get(first).map_or(0, |start| start.created_ms),
                payload: loaded.state.payload,
                next_block: loaded.next_block,
                generation: Arc::clone(generation),
            }),
            directory,
            floor: found.floor,
            retry_at: Instant::now(),
            marks,
            encoder: Encoder::new()?,
            dead_letters,
        };
        {
            let mut state = shared.lock();
            *state = State {
                unavailable: state.unavailable.take(),
                generations: parts(&store.directory, found.starts, found.current),
                ledger,
                quarantined: state.quarantined + found.quarantined,
                damaged_letters: store.dead_letters.damaged(),
                dead_letters: store.dead_letters.counts().clone(),
                ..State::default()
            };
        }
        if store.current.is_none() {
            store.rotate().map_err(OpenError::Failed)?;
        }
        store.tidy();
        if store.current.is_none() {
            return Err(OpenError::Failed(store.why_unavailable()));
        }
        shared.lock().unavailable = None;
        Ok(store)
    }
}

fn find(directory: &Directory) -> Result<Found, OpenError> {
    let mut found = Found {
        starts: BTreeMap::new(),
        loaded: None,
        current: None,
        floor: 0,
        quarantined: 0,
        totals: Totals::default(),
    };
    for first in directory.generations()? {
        match Start::read(&directory.generation(first)) {
            Ok(start) => {
                found.starts.insert(first, start);
            }
            Err(failure @ (Failure::Passing(_) | Failure::Removed)) => {
                return Err(OpenError::Failed(failure.to_string()));
            }
            // A process that ended while it began a generation leaves a directory without anything in it.
            Err(Failure::Damaged(_)) if !directory.generation(first).join("db").exists() => directory.remove(first)?,
            Err(Failure::Damaged(why)) => found.set_aside(directory, first, &why)?,
        }
    }
    let mut is_newest = found.quarantined == 0;
    while let Some((&first, start)) = found.starts.last_key_value() {
        let totals = start.totals.clone();
        let slot = Slot::new(directory.generation(first));
        let opened = slot.get().and_then(|generation| Ok((generation.load()?, generation)));
        match opened {
            Ok((Some(loaded), generation)) => {
                found.loaded = Some(loaded);
                // Nothing is written behind a generation that was set aside.
                found.current = is_newest.then_some((first, generation));
                break;
            }
            // Its first write never got to the disk, so nothing in it was acknowledged.
            Ok((None, generation)) => {
                drop(generation);
                directory.remove(first)?;
                found.starts.remove(&first);
                found.floor = found.floor.max(first);
            }
            Err(failure @ (Failure::Passing(_) | Failure::Removed)) => {
                return Err(OpenError::Failed(failure.to_string()));
            }
            Err(Failure::Damaged(why)) => {
                found.set_aside(directory, first, &why)?;
                found.starts.remove(&first);
                found.totals = totals;
                is_newest = false;
            }
        }
    }
    Ok(found)
}

impl Found {
    fn set_aside(&mut self, directory: &Directory, first: u64, why: &str) -> Result<(), OpenError> {
        let place = directory.quarantine(first)?;
        error!(error = why, place = %place.display(), "a part of the queue is damaged and was set aside");
        self.quarantined += 1;
        self.floor = self.floor.max(first.saturating_add(SKIPPED_POSITIONS));
        Ok(())
    }
}

fn ledger(loaded: &Loaded, starts: &BTreeMap<u64, Start>, destinations: &[String]) -> Ledger {
    let state = &loaded.state;
    // If damage took the state further back than a cursor, positions would be given twice and passed over.
    let tail = loaded.cursors.iter().map(|(_, cursor)| cursor.position).max();
    let tail = tail.unwrap_or(0).max(state.tail);
    let mut ledger = Ledger::new(tail, state.newest_ms, state.totals.clone());
    let oldest = starts.first_key_value().map(|(_, start)| start);
    let oldest_ms = |name: &str| {
        let of_name = state.oldest_ms.iter().find(|(known, _)| known == name);
        of_name.map(|(_, ms)| *ms)
    };
    for (name, cursor) in &loaded.cursors {
        ledger.restore(name, cursor.clone(), oldest_ms(name));
    }
    for name in &loaded.broken {
        // Everything that is left is delivered again: better twice than never.
        let cursor = Cursor {
            position: oldest.map_or(tail, |start| start.first),
            settled: oldest
                .map_or_else(Totals::default, |start| start.totals.clone())
                .of(name),
            note: Vec::new(),
        };
        ledger.restore(name, cursor, oldest_ms(name));
    }
    for name in destinations {
        ledger.register(name, true);
    }
    if let Some(start) = oldest {
        for name in ledger.names() {
            if ledger.next(&name).is_some_and(|next| next < start.first) {
                let counts = start.totals.of(&name);
                let position = start.first;
                ledger.reach(&name, &Boundary { position, counts }, Loss::Evicted);
            }
        }
    }
    ledger
}

fn parts(
    directory: &Directory,
    starts: BTreeMap<u64, Start>,
    current: Option<(u64, Arc<Generation>)>,
) -> BTreeMap<u64, Part> {
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    for start in starts.values().filter(|start| start.previous_first < start.first) {
        ends.insert(start.previous_first, start.previous_end);
    }
    let current = current.as_ref();
    let part = |(first, start): (u64, Start)| {
        let path = directory.generation(first);
        let newest = current.filter(|(newest, _)| *newest == first);
        let part = Part {
            end: ends.get(&first).copied().filter(|_| newest.is_none()),
            bytes: disk_bytes(&path),
            slot: match newest {
                Some((_, generation)) => Slot::opened(path, generation),
                None => Slot::new(path),
            },
            start,
        };
        (first, part)
    };
    starts.into_iter().map(part).collect()
}
