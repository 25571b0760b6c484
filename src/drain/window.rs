//! The events a drain holds in memory: read from the queue and not yet behind the durable cursor.
//!
//! Owns each event's state and the order. Promises: what is offered for sending is in the queue's order, an event is
//! handed out once until it is put back, and the settled prefix never passes an event that is not settled. Knows
//! nothing of time but to compare, nothing of formats, and does no I/O.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::{Entry, Fate, Tries};
use crate::destination::Item;
use crate::queue::{DeadLetter, Limit, Position};
use crate::record::{Record, RecordEvent};

/// An event's state.
#[derive(Debug)]
pub(super) enum Slot {
    /// To be sent when it is due.
    Waiting(Waiting),
    /// In a request.
    Sending,
    /// Given up for this reason, but not yet kept as a dead letter.
    Dying(String),
    /// Needs nothing more.
    Settled(Fate),
}

/// An event to be sent.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) item: Item,
    pub(super) tries: Tries,
    /// The most items a request with this event may hold.
    pub(super) most: usize,
    pub(super) due: Instant,
}

/// Where an event of the window is; good until the next [`Window::release`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    record: usize,
    event: usize,
}

#[derive(Debug)]
struct Held {
    position: Position,
    record: Record,
    slots: Vec<Slot>,
    bytes: usize,
}

/// The window.
#[derive(Debug, Default)]
pub(super) struct Window {
    held: VecDeque<Held>,
    // What the note of the last run says of records that have not been read again yet.
    remembered: BTreeMap<Position, Vec<Option<Fate>>>,
    bytes: usize,
    dirty: bool,
}

impl Window {
    /// Returns an empty window that will honour what an earlier run settled.
    pub(super) fn remembering(entries: Vec<Entry>) -> Self {
        Self {
            remembered: entries.into_iter().map(|entry| (entry.position, entry.fates)).collect(),
            ..Self::default()
        }
    }

    /// Takes in a record; `state` is asked for the state of each event that an earlier run did not settle.
    pub(super) fn take_in(
        &mut self,
        position: Position,
        record: Record,
        mut state: impl FnMut(usize, &Record, &RecordEvent) -> Slot,
    ) {
        // Positions only grow: what is remembered of earlier ones was evicted or has become unreadable.
        self.remembered = self.remembered.split_off(&position);
        let fates = self.remembered.remove(&position).unwrap_or_default();
        let known = |event: usize| (fates.len() == record.events.len()).then(|| fates[event]).flatten();
        let slots: Vec<Slot> = record
            .events
            .iter()
            .enumerate()
            .map(|(place, event)| known(place).map_or_else(|| state(place, &record, event), Slot::Settled))
            .collect();
        let bytes = record.events.iter().map(|event| event.json.len()).sum();
        self.dirty |= slots
            .iter()
            .any(|slot| matches!(slot, Slot::Settled(_) | Slot::Dying(_)));
        self.dirty |= slots.is_empty();
        self.bytes += bytes;
        self.held.push_back(Held {
            position,
            record,
            slots,
            bytes,
        });
    }

    /// Returns how much may be read now: up to `limit` in all, nothing once it is reached.
    pub(super) fn room(&self, limit: Limit) -> Option<Limit> {
        // A record counts as many as it has events: it is the number of events that costs memory and note.
        let records = limit
            .records
            .checked_sub(self.events())
            .filter(|records| *records > 0)?;
        let bytes = limit.bytes.checked_sub(self.bytes).filter(|bytes| *bytes > 0)?;
        Some(Limit { records, bytes })
    }

    /// Returns true while nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Returns how many events are held, settled ones included.
    pub(super) fn events(&self) -> usize {
        self.held.iter().map(|held| held.slots.len()).sum()
    }

    /// Returns how many events were sent before and wait to be sent again.
    pub(super) fn failed(&self) -> usize {
        self.waiting().filter(|waiting| waiting.tries.sent > 0).count()
    }

    /// Returns when the next event is due; `None` if none waits.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting().map(|waiting| waiting.due).min()
    }

    /// Returns the events that are due, in order.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = &Waiting> {
        self.waiting().filter(move |waiting| waiting.due <= now)
    }

    /// Makes every waiting event due.
    pub(super) fn hurry(&mut self, now: Instant) {
        for slot in self.held.iter_mut().flat_map(|held| &mut held.slots) {
            if let Slot::Waiting(waiting) = slot {
                waiting.due = waiting.due.min(now);
            }
        }
    }

    /// Hands out the first `count` events that are due. Each must be [`put`](Self::put) back.
    pub(super) fn take(&mut self, now: Instant, count: usize) -> Vec<(Place, Waiting)> {
        let mut taken = Vec::with_capacity(count);
        for (record, held) in self.held.iter_mut().enumerate() {
            for (event, slot) in held.slots.iter_mut().enumerate() {
                if taken.len() == count {
                    return taken;
                }
                if matches!(slot, Slot::Waiting(waiting) if waiting.due <= now)
                    && let Slot::Waiting(waiting) = std::mem::replace(slot, Slot::Sending)
                {
                    taken.push((Place { record, event }, waiting));
                }
            }
        }
        taken
    }

    /// Gives an event its state after a request.
    pub(super) fn put(&mut self, place: Place, slot: Slot) {
        self.dirty |= matches!(slot, Slot::Settled(_) | Slot::Dying(_));
        if let Some(old) = self
            .held
            .get_mut(place.record)
            .and_then(|held| held.slots.get_mut(place.event))
        {
            *old = slot;
        }
    }

    /// Returns true if something changed that the queue does not know yet.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Returns a dead letter for each event that was given up and is not yet kept.
    pub(super) fn letters(&self, destination: &str, dead_ms: u64) -> Vec<DeadLetter> {
        let mut letters = Vec::new();
        for held in &self.held {
            for (slot, event) in held.slots.iter().zip(&held.record.events) {
                if let Slot::Dying(why) = slot {
                    letters.push(letter(held, event, destination, dead_ms, why));
                }
            }
        }
        letters
    }

    /// Notes that the dead letters are kept.
    pub(super) fn buried(&mut self) {
        for slot in self.held.iter_mut().flat_map(|held| &mut held.slots) {
            if matches!(slot, Slot::Dying(_)) {
                *slot = Slot::Settled(Fate::Dead);
            }
        }
    }

    /// Returns the last record up to which everything is settled.
    pub(super) fn settled_to(&self) -> Option<Position> {
        self.settled().last().map(|held| held.position)
    }

    /// Returns the settled events after [`settled_to`](Self::settled_to), and what is still remembered of an earlier run.
    pub(super) fn settled_beyond(&self) -> Vec<Entry> {
        let held = self.held.iter().skip(self.settled().count()).filter_map(|held| {
            let fates: Vec<Option<Fate>> = held.slots.iter().map(fate).collect();
            fates.iter().any(Option::is_some).then_some(Entry {
                position: held.position,
                fates,
            })
        });
        let remembered = self.remembered.iter().map(|(position, fates)| Entry {
            position: *position,
            fates: fates.clone(),
        });
        held.chain(remembered).collect()
    }

    /// Lets go of the settled prefix, which the queue now knows, and returns how many of its events ended how, by
    /// environment.
    pub(super) fn release(&mut self) -> BTreeMap<(String, Fate), u64> {
        let mut ended = BTreeMap::new();
        let count = self.settled().count();
        for held in self.held.drain(..count) {
            self.bytes -= held.bytes;
            for fate in held.slots.iter().filter_map(fate) {
                *ended.entry((held.record.origin.environment.clone(), fate)).or_insert(0) += 1;
            }
        }
        self.dirty = false;
        ended
    }

    fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.held
            .iter()
            .flat_map(|held| &held.slots)
            .filter_map(|slot| match slot {
                Slot::Waiting(waiting) => Some(waiting),
                _ => None,
            })
    }

    fn settled(&self) -> impl Iterator<Item = &Held> {
        self.held
            .iter()
            .take_while(|held| held.slots.iter().all(|slot| matches!(slot, Slot::Settled(_))))
    }
}

fn fate(slot: &Slot) -> Option<Fate> {
    match slot {
        Slot::Settled(fate) => Some(*fate),
        _ => None,
    }
}

fn letter(held: &Held, event: &RecordEvent, destination: &str, dead_ms: u64, why: &str) -> DeadLetter {
    DeadLetter {
        position: held.position,
        index: event.index,
        dead_ms,
        why: why.to_owned(),
        // The batch's seed and the event's index: delivered from here, the event has the id it always had.
        record: Record {
            received_ms: held.record.received_ms,
            origin: held.record.origin.clone(),
            destinations: vec![destination.to_owned()],
            id_seed: held.record.id_seed,
            events: vec![event.clone()],
        },
    }
}
