//! Opening: what is on the disk becomes a [`Store`].
//!
//! Only the newest generation is opened; the others are known by their `start` files and opened when somebody reads them. A
//! newest generation that cannot be opened is set aside and the one before speaks: its cursors are older, so events may be
//! delivered again, but none is passed over.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use tracing::{error, warn};

use super::acknowledged::{Acknowledged, Known};
use super::dead_letters::DeadLetters;
use super::directory::{Directory, DirectoryError, disk_bytes};
use super::evictions::Evictions;
use super::generation::{Failure, Generation, Loaded, Slot, Start};
use super::store::{Current, Store};
use super::{Part, Shared, State};
use crate::queue::{Boundary, Counts, Cursor, Ledger, Loss, Marks, Totals, UNKNOWN_LIMIT};
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

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.to_string())
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
    /// Where the log began before anything was set aside.
    oldest: Option<Start>,
}

impl Store {
    /// Opens the queue and publishes its state.
    pub(super) fn open(shared: &Arc<Shared>, destinations: &[String]) -> Result<Self, OpenError> {
        let settings = &shared.settings;
        let directory = Directory::open(&settings.path)?;
        let dead_letters = DeadLetters::open(directory.dead_letters(), &directory.free_place("dead-letters"))?;
        let acknowledged = Acknowledged::open(&directory.acknowledged())?;
        let mut found = find(&directory, &acknowledged)?;
        let fresh = Loaded {
            state: super::layout::State {
                // What is known beside counts on from here; where to write next is a matter of the floor.
                totals: found.totals.clone(),
                ..super::layout::State::default()
            },
            ..Loaded::default()
        };
        let mut loaded = found.loaded.take().unwrap_or(fresh);
        let fell_back = loaded.miss(acknowledged.known());
        let current = found.current.take().filter(|_| !fell_back);
        let ledger = ledger(&loaded, &found.starts, found.oldest.as_ref(), destinations);
        let damaged_letters = damaged_letters(&dead_letters, acknowledged.known());
        let mut marks = Marks::new(settings.marks());
        for seen in &loaded.marks {
            marks.restore(*seen);
        }
        let mut store = Self {
            shared: Arc::clone(shared),
            current: current.as_ref().map(|(first, generation)| {
                let disk = generation.disk_bytes();
                Current {
                    first: *first,
                    created_ms: found.starts.get(first).map_or(0, |start| start.created_ms),
                    payload: loaded.state.payload,
                    disk: (disk, disk),
                    next_block: loaded.next_block,
                    generation: Arc::clone(generation),
                }
            }),
            directory,
            floor: found.floor,
            retry_at: Instant::now(),
            marks,
            encoder: Encoder::new()?,
            dead_letters,
            acknowledged,
            evictions: Evictions::default(),
        };
        {
            let mut state = shared.lock();
            *state = State {
                unavailable: state.unavailable.take(),
                generations: parts(&store.directory, found.starts, current),
                ledger,
                quarantined: state.quarantined + found.quarantined,
                damaged_letters,
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

impl Loaded {
    /// Takes in what was acknowledged and is not here. Returns whether the end of the log is among it: then nothing may be
    /// written behind what is left.
    pub(super) fn miss(&mut self, known: &Known) -> bool {
        for name in &known.names {
            let found = self.cursors.iter().map(|(name, _)| name).chain(&self.broken);
            if !found.into_iter().any(|found| found == name) {
                error!(
                    destination = name,
                    "a cursor of the queue is lost; all that is left is delivered again"
                );
                self.broken.push(name.clone());
            }
        }
        let fell_back = known.tail > self.state.tail;
        if fell_back {
            let records = known.tail - self.state.tail;
            error!(records, "the newest records of the queue are lost");
            self.state.tail = known.tail;
            self.state.newest_ms = known.newest_ms;
            self.state.totals = known.totals.clone();
        }
        fell_back
    }
}

fn find(directory: &Directory, acknowledged: &Acknowledged) -> Result<Found, OpenError> {
    let mut found = Found {
        starts: BTreeMap::new(),
        loaded: None,
        current: None,
        floor: 0,
        quarantined: 0,
        totals: Totals::default(),
        oldest: None,
    };
    for first in directory.generations()? {
        let path = directory.generation(first);
        match Start::read(&path).and_then(|start| start.check(first)) {
            Ok(start) => found.begin(first, start),
            Err(failure @ (Failure::Passing(_) | Failure::Removed)) => return Err(failure.into()),
            Err(damage) => match Start::restore(&path, first) {
                Ok(start) => {
                    warn!(error = %damage, generation = first, "a start file of the queue is written anew");
                    found.begin(first, start);
                }
                Err(failure @ (Failure::Passing(_) | Failure::Removed)) => return Err(failure.into()),
                // The process ended, or the power went, while it was begun.
                Err(failure) if Start::never_written(&path, &failure) && !acknowledged.reaches_into(first) => {
                    directory.remove(first)?;
                }
                Err(_) => found.set_aside(directory, first, &damage.to_string())?,
            },
        }
    }
    let mut is_newest = found.quarantined == 0;
    while let Some((&first, start)) = found.starts.last_key_value() {
        let totals = start.totals.clone();
        let slot = Slot::new(directory.generation(first));
        let opened = slot.get().and_then(|generation| Ok((generation.load()?, generation)));
        match opened {
            Ok((loaded, generation)) => {
                found.loaded = Some(loaded);
                // Nothing is written behind a generation that was set aside.
                found.current = is_newest.then_some((first, generation));
                break;
            }
            // Its first write never got to the disk, so nothing in it was acknowledged.
            Err(Failure::Stateless) if !acknowledged.reaches_into(first) => {
                directory.remove(first)?;
                found.starts.remove(&first);
                found.floor = found.floor.max(first);
            }
            Err(failure @ (Failure::Passing(_) | Failure::Removed)) => return Err(failure.into()),
            Err(failure @ (Failure::Damaged(_) | Failure::Stateless)) => {
                found.set_aside(directory, first, &failure.to_string())?;
                found.starts.remove(&first);
                found.totals = totals;
                is_newest = false;
            }
        }
    }
    Ok(found)
}

impl Found {
    fn begin(&mut self, first: u64, start: Start) {
        if self.oldest.is_none() {
            self.oldest = Some(start.clone());
        }
        self.starts.insert(first, start);
    }

    fn set_aside(&mut self, directory: &Directory, first: u64, why: &str) -> Result<(), OpenError> {
        let place = directory.quarantine(first)?;
        error!(error = why, place = %place.display(), "a part of the queue is damaged and was set aside");
        self.quarantined += 1;
        self.floor = self.floor.max(first.saturating_add(SKIPPED_POSITIONS));
        Ok(())
    }
}

/// Returns the ledger of a queue with the generations `starts`; the log began with `oldest` before any was set aside.
pub(super) fn ledger(
    loaded: &Loaded,
    starts: &BTreeMap<u64, Start>,
    oldest: Option<&Start>,
    destinations: &[String],
) -> Ledger {
    let state = &loaded.state;
    // If damage took the state further back than a cursor, positions would be given twice and passed over.
    let tail = loaded.cursors.iter().map(|(_, cursor)| cursor.position).max();
    let tail = tail.unwrap_or(0).max(state.tail);
    let mut ledger = Ledger::new(tail, state.newest_ms, state.totals.clone());
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
            settled: oldest.map_or(&state.totals, |start| &start.totals).of(name),
            lost: Counts::new(),
            note: Vec::new(),
        };
        ledger.restore(name, cursor, oldest_ms(name));
    }
    for name in destinations {
        ledger.register(name, true);
    }
    // What lies before the oldest that is left went with a limit, or was set aside just now.
    let (position, totals, before_ms) = match starts.first_key_value() {
        Some((first, start)) => (*first, &start.totals, start.newest_ms),
        None => (tail, &state.totals, state.newest_ms),
    };
    let loss = match oldest.is_some_and(|start| start.first < position) {
        true => Loss::Corrupt,
        false => Loss::Evicted(UNKNOWN_LIMIT),
    };
    for name in ledger.names() {
        if ledger.next(&name).is_some_and(|next| next <= position) {
            let counts = totals.of(&name);
            let boundary = Boundary {
                position,
                counts,
                before_ms,
            };
            let events = ledger.reach(&name, &boundary, loss);
            if events > 0 {
                warn!(
                    destination = name,
                    events, "events that waited are not in the queue any more"
                );
            }
        }
    }
    ledger
}

/// Returns how many dead letters cannot be read or are not there any more.
fn damaged_letters(letters: &DeadLetters, known: &Known) -> u64 {
    let left = letters.damaged() + letters.count();
    let gone = known.letters.saturating_sub(left);
    if gone > 0 {
        error!(letters = gone, "dead letters are lost");
    }
    letters.damaged() + gone
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
            closed: None,
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
