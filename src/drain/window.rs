//! The events a drain holds in memory: read from the queue and not yet behind the durable cursor.
//!
//! Owns each event's state and the order. Promises: what is offered for sending is in the queue's order, an event is
//! handed out once until it is put back, and the settled prefix never passes an event that is not settled. Knows
//! nothing of time but to compare, nothing of formats, and does no I/O. Counts as it goes and steps over whole records:
//! a window has thousands of events and is asked several times per request.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::fate::{Entry, Fate, Mark, Tries};
use super::slot::{Death, Held, Slot, Waiting};
use super::status::is_working;
use crate::queue::{DeadLetter, Limit, Position};
use crate::record::{Record, RecordEvent};

/// What an event that is settled, but cannot leave the window yet, takes of the room of one that waits: no more than its
/// fate is held, and noted.
const SETTLED_IN_ROOM_OF_ONE: usize = 8;

/// A window is held up if no more than one in so many of its events is not settled.
const HELD_UP: usize = 8;

/// Where an event of the window is; good until the event is settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The record's number, counted from the first one ever held.
    record: usize,
    event: usize,
}

/// What the records take of a window's room.
#[derive(Debug, Default)]
struct Used {
    /// Events of records that are not settled.
    events: usize,
    /// Bytes of their JSON.
    bytes: usize,
    /// Events of records that are settled.
    settled: usize,
}

impl Used {
    fn take_in(&mut self, record: &Record) {
        self.events += record.events.len();
        self.bytes += bytes(record);
    }

    /// Lets go of what a record that is settled needs no more.
    fn settle(&mut self, held: &mut Held) {
        if held.unsettled == 0 {
            self.events -= held.slots.len();
            self.bytes -= held.bytes;
            self.settled += held.slots.len();
            held.record.events = Vec::new();
        }
    }

    fn of_settled(&self) -> usize {
        self.settled / SETTLED_IN_ROOM_OF_ONE
    }
}

/// The window.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Read after all that is held, and not looked at yet.
    unopened: VecDeque<(Position, Record)>,
    held: VecDeque<Held>,
    /// The number of the first record held.
    first: usize,
    // What the note of the last run says of records that have not been read again yet.
    remembered: BTreeMap<Position, Vec<Option<Mark>>>,
    used: Used,
    again: usize,
    dying: usize,
    dirty: bool,
    /// How often the destination began or ceased to work so far.
    turns: u64,
}

impl Window {
    /// Returns an empty window that will honour what an earlier run settled.
    pub(super) fn remembering(entries: Vec<Entry>) -> Self {
        Self {
            remembered: entries.into_iter().map(|entry| (entry.position, entry.marks)).collect(),
            ..Self::default()
        }
    }

    /// Takes in records, to be [`open`](Self::open)ed one by one.
    pub(super) fn take_in(&mut self, records: Vec<(Position, Record)>) {
        for (_, record) in &records {
            self.used.take_in(record);
        }
        self.unopened.extend(records);
    }

    /// Takes in how often the destination began or ceased to work so far.
    pub(super) fn turned(&mut self, turns: u64) {
        self.turns = turns;
    }

    /// Returns true while records are not opened.
    pub(super) fn has_unopened(&self) -> bool {
        !self.unopened.is_empty()
    }

    /// Opens the next record; `state` is asked for the state of each event that an earlier run did not settle, with how
    /// often it failed then and when it was due (Unix milliseconds). Returns how many events it has.
    pub(super) fn open(&mut self, mut state: impl FnMut(&Record, &RecordEvent, Option<(u32, u64)>) -> Slot) -> usize {
        let Some((position, record)) = self.unopened.pop_front() else {
            return 0;
        };
        // Positions only grow: what is remembered of earlier ones was evicted or has become unreadable.
        let marks = if self.remembered.is_empty() {
            Vec::new()
        } else {
            self.remembered = self.remembered.split_off(&position);
            self.remembered.remove(&position).unwrap_or_default()
        };
        let known = |event: usize| (marks.len() == record.events.len()).then(|| marks[event]).flatten();
        let slots: Vec<Slot> = (record.events.iter().enumerate())
            .map(|(place, event)| match known(place) {
                Some(Mark::Ended(fate)) => Slot::Settled(fate),
                Some(Mark::Failed { failures, due_ms }) => state(&record, event, Some((failures, due_ms))),
                None => state(&record, event, None),
            })
            .collect();
        let count = |is: fn(&Slot) -> bool| slots.iter().filter(|slot| is(slot)).count();
        let waiting = count(|slot| matches!(slot, Slot::Waiting(_)));
        let dying = count(|slot| matches!(slot, Slot::Dying { .. }));
        self.again += count(|slot| matches!(slot, Slot::Waiting(waiting) if waiting.tries.sent > 0));
        self.dirty |= waiting < slots.len() || slots.is_empty();
        self.dying += dying;
        let events = slots.len();
        let mut held = Held {
            position,
            bytes: bytes(&record),
            record,
            slots,
            waiting,
            unsettled: waiting + dying,
            turns: self.turns,
        };
        self.used.settle(&mut held);
        self.held.push_back(held);
        events
    }

    /// Returns how much may be read now: up to `limit` in all, nothing once it is reached.
    pub(super) fn room(&self, limit: Limit) -> Option<Limit> {
        // A record counts as many as it has events: it is the number of events that costs memory and note.
        let events = self.used.events + self.used.of_settled();
        let records = limit.records.checked_sub(events).filter(|records| *records > 0)?;
        let bytes = limit.bytes.checked_sub(self.used.bytes).filter(|bytes| *bytes > 0)?;
        Some(Limit { records, bytes })
    }

    /// Sets the events of the oldest record aside for which `which` is true, if nearly all that is held is settled and held
    /// by it.
    pub(super) fn set_aside(&mut self, which: impl Fn(&Tries) -> bool) {
        let unsettled: usize = self.held.iter().map(|held| held.unsettled).sum();
        let all: usize = self.held.iter().map(|held| held.slots.len()).sum();
        if HELD_UP * unsettled > all {
            return;
        }
        let Some(first) = self.held.iter_mut().find(|held| held.unsettled > 0) else {
            return;
        };
        for slot in &mut first.slots {
            let Slot::Waiting(Waiting { tries, .. }) = slot else {
                continue;
            };
            if which(tries) {
                let why = format!("failed {} times and held up the events after it", tries.failures);
                self.again -= usize::from(tries.sent > 0);
                first.waiting -= 1;
                self.dying += 1;
                self.dirty = true;
                *slot = Slot::Dying {
                    why,
                    death: Death::SetAside,
                };
            }
        }
    }

    /// Returns true while nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.unopened.is_empty()
    }

    /// Returns how many events were sent before and are not settled.
    pub(super) fn failed(&self) -> usize {
        self.again
    }

    /// Returns when the next event is due, any time up to `now` if one is due already; `None` if none waits.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for waiting in self.waiting() {
            if waiting.due <= now {
                return Some(waiting.due);
            }
            next = Some(next.map_or(waiting.due, |next| next.min(waiting.due)));
        }
        next
    }

    /// Returns the events that are due, in order.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = &Waiting> {
        self.waiting().filter(move |waiting| waiting.due <= now)
    }

    /// Makes waiting events due for which `which` is true.
    pub(super) fn hurry(&mut self, now: Instant, which: impl Fn(&Tries) -> bool) {
        for slot in self.held.iter_mut().flat_map(|held| &mut held.slots) {
            if let Slot::Waiting(waiting) = slot
                && which(&waiting.tries)
            {
                waiting.due = waiting.due.min(now);
            }
        }
    }

    /// Lets events that are repeated in smaller requests be in requests of twice the size; of any size from `items` on.
    pub(super) fn grow(&mut self, items: usize) {
        for slot in self.held.iter_mut().flat_map(|held| &mut held.slots) {
            if let Slot::Waiting(waiting) = slot
                && waiting.most < usize::MAX
            {
                let most = waiting.most.saturating_mul(2);
                waiting.most = if most < items { most } else { usize::MAX };
            }
        }
    }

    /// Makes the first event due that waits because the destination as a whole failed.
    pub(super) fn hurry_one(&mut self, now: Instant) {
        let slots = self.held.iter_mut().flat_map(|held| &mut held.slots);
        let first = slots.filter_map(|slot| match slot {
            Slot::Waiting(waiting) if waiting.tries.by_destination => Some(waiting),
            _ => None,
        });
        if let Some(waiting) = first.into_iter().next() {
            waiting.due = waiting.due.min(now);
        }
    }

    /// Hands out the first `count` events that are due. Each must be [`put`](Self::put) back.
    pub(super) fn take(&mut self, now: Instant, count: usize) -> Vec<(Place, Waiting)> {
        let mut taken = Vec::with_capacity(count);
        let holding = (self.first..).zip(&mut self.held).filter(|(_, held)| held.waiting > 0);
        for (record, held) in holding {
            for (event, slot) in held.slots.iter_mut().enumerate() {
                if taken.len() == count {
                    return taken;
                }
                let tries = match slot {
                    Slot::Waiting(waiting) if waiting.due <= now => waiting.tries,
                    _ => continue,
                };
                if let Slot::Waiting(waiting) = std::mem::replace(slot, Slot::Sending(tries)) {
                    held.waiting -= 1;
                    taken.push((Place { record, event }, waiting));
                }
            }
        }
        taken
    }

    /// Gives an event its state after a request.
    pub(super) fn put(&mut self, place: Place, slot: Slot) {
        let held = place
            .record
            .checked_sub(self.first)
            .and_then(|at| self.held.get_mut(at));
        let Some(held) = held else { return };
        let Some(old) = held.slots.get_mut(place.event) else {
            return;
        };
        let before = match old {
            Slot::Sending(tries) => *tries,
            _ => Tries::default(),
        };
        self.again -= usize::from(before.sent > 0);
        match &slot {
            Slot::Waiting(next) => {
                held.waiting += 1;
                self.again += usize::from(next.tries.sent > 0);
                self.dirty |= next.tries.failures != before.failures;
            }
            Slot::Dying { .. } => {
                self.dying += 1;
                self.dirty = true;
            }
            Slot::Settled(_) => {
                held.unsettled -= 1;
                self.dirty = true;
            }
            Slot::Sending(tries) => self.again += usize::from(tries.sent > 0),
        }
        *old = slot;
        self.used.settle(held);
    }

    /// Returns true if something changed that the queue does not know yet.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Returns a dead letter for each event that was given up and is not yet kept.
    pub(super) fn letters(&self, destination: &str, dead_ms: u64) -> Vec<DeadLetter> {
        let mut letters = Vec::with_capacity(self.dying);
        if self.dying == 0 {
            return letters;
        }
        for held in self.held.iter().filter(|held| held.unsettled > 0) {
            let is_down = held.turns == self.turns && !is_working(self.turns);
            letters.extend(held.letters(destination, dead_ms, is_down));
        }
        letters
    }

    /// Notes that the dead letters are kept.
    pub(super) fn buried(&mut self) {
        let unsettled = self.held.iter_mut().filter(|held| held.unsettled > 0);
        for held in unsettled {
            for slot in &mut held.slots {
                if matches!(slot, Slot::Dying { .. }) {
                    *slot = Slot::Settled(Fate::Dead);
                    held.unsettled -= 1;
                }
            }
            self.used.settle(held);
        }
        self.dying = 0;
    }

    /// Returns the last record up to which everything is settled.
    pub(super) fn settled_to(&self) -> Option<Position> {
        self.settled().last().map(|held| held.position)
    }

    /// Returns what is to be noted of the events after [`settled_to`](Self::settled_to), and of what is still remembered
    /// of an earlier run. `to_ms` turns the time of a next try into Unix milliseconds.
    pub(super) fn marks(&self, to_ms: impl Fn(Instant) -> u64) -> Vec<Entry> {
        let beyond = self.held.iter().skip(self.settled().count());
        let held = beyond
            .filter(|held| self.again > 0 || held.unsettled < held.slots.len())
            .map(|held| Entry {
                position: held.position,
                marks: held.slots.iter().map(|slot| slot.mark(&to_ms)).collect(),
            })
            .filter(|entry| entry.marks.iter().any(Option::is_some));
        let remembered = self.remembered.iter().map(|(position, marks)| Entry {
            position: *position,
            marks: marks.clone(),
        });
        held.chain(remembered).collect()
    }

    /// Lets go of the settled prefix, which the queue now knows, and returns how many of its events ended how, by
    /// environment.
    pub(super) fn release(&mut self) -> BTreeMap<(String, Fate), u64> {
        let mut ended = BTreeMap::new();
        let count = self.settled().count();
        let mut run: Option<(String, Fate, u64)> = None;
        for held in self.held.drain(..count) {
            self.used.settled -= held.slots.len();
            for fate in held.slots.iter().filter_map(Slot::fate) {
                // Nearly all end alike: a name is copied where that changes, not per event.
                match &mut run {
                    Some((environment, last, events))
                        if *last == fate && *environment == held.record.origin.environment =>
                    {
                        *events += 1;
                    }
                    _ => {
                        let next = (held.record.origin.environment.clone(), fate, 1);
                        add_up(&mut ended, run.replace(next));
                    }
                }
            }
        }
        add_up(&mut ended, run);
        self.first += count;
        self.dirty = false;
        ended
    }

    fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        let holding = self.held.iter().filter(|held| held.waiting > 0);
        holding.flat_map(|held| &held.slots).filter_map(|slot| match slot {
            Slot::Waiting(waiting) => Some(waiting),
            _ => None,
        })
    }

    fn settled(&self) -> impl Iterator<Item = &Held> {
        self.held.iter().take_while(|held| held.unsettled == 0)
    }
}

fn add_up(ended: &mut BTreeMap<(String, Fate), u64>, run: Option<(String, Fate, u64)>) {
    if let Some((environment, fate, events)) = run {
        *ended.entry((environment, fate)).or_insert(0) += events;
    }
}

fn bytes(record: &Record) -> usize {
    record.events.iter().map(|event| event.json.len()).sum()
}
