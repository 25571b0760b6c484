//! A record in the window, the state of each of its events, and the dead letter that an event can become.
//!
//! Decides nothing: [`Window`](super::window::Window) moves events from state to state.

use tokio::time::Instant;

use super::fate::{Fate, Mark, Tries};
use crate::destination::Item;
use crate::queue::{DeadLetter, Position};
use crate::record::{Record, RecordEvent};

/// An event's state.
#[derive(Debug)]
pub(super) enum Slot {
    /// To be sent when it is due.
    Waiting(Waiting),
    /// In a request; what its earlier ones came to.
    Sending(Tries),
    /// Given up for this reason, but not yet kept as a dead letter.
    Dying { why: String, death: Death },
    /// Needs nothing more.
    Settled(Fate),
}

/// How an event becomes a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// The destination refuses it for itself: somebody has to look at it.
    Refused,
    /// It is out of tries. It goes out again by itself, once.
    OutOfTries,
    /// It has tries left, but held up all others. It goes out again by itself.
    SetAside,
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

/// A record that was read and opened.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) position: Position,
    pub(super) record: Record,
    pub(super) slots: Vec<Slot>,
    /// Of its events' JSON.
    pub(super) bytes: usize,
    /// Events that are to be sent.
    pub(super) waiting: usize,
    /// Events that still need something.
    pub(super) unsettled: usize,
    /// How often its destination had begun or ceased to work when it was opened.
    pub(super) turns: u64,
}

impl Slot {
    /// Returns how the event ended.
    pub(super) fn fate(&self) -> Option<Fate> {
        match self {
            Self::Settled(fate) => Some(*fate),
            _ => None,
        }
    }

    /// Returns what is to be noted of the event. `to_ms` turns the time of a next try into Unix milliseconds.
    pub(super) fn mark(&self, to_ms: impl Fn(Instant) -> u64) -> Option<Mark> {
        match self {
            Self::Settled(fate) => Some(Mark::Ended(*fate)),
            Self::Waiting(Waiting { tries, .. }) | Self::Sending(tries) => {
                let planned = tries.planned.filter(|_| tries.failures > 0)?;
                Some(Mark::Failed {
                    failures: tries.failures,
                    due_ms: to_ms(planned),
                })
            }
            Self::Dying { .. } => None,
        }
    }
}

impl Held {
    /// Returns the dead letters of its events that were given up and are not yet kept. `is_down`: their destination took nothing
    /// since they were opened.
    pub(super) fn letters<'a>(
        &'a self,
        destination: &'a str,
        dead_ms: u64,
        is_down: bool,
    ) -> impl Iterator<Item = DeadLetter> + 'a {
        let events = self.slots.iter().zip(&self.record.events);
        events.filter_map(move |(slot, event)| match slot {
            Slot::Dying { why, death } => Some(self.letter(event, destination, (dead_ms, is_down), (why, *death))),
            _ => None,
        })
    }

    fn letter(
        &self,
        event: &RecordEvent,
        destination: &str,
        (dead_ms, is_down): (u64, bool),
        (why, death): (&str, Death),
    ) -> DeadLetter {
        DeadLetter {
            position: self.position,
            index: event.index,
            dead_ms,
            why: why.to_owned(),
            // An event that came back once has to wait for a person: otherwise one that never succeeds would go round. Unless its
            // destination did not work in all its time.
            transient: death != Death::Refused && (!self.record.given_up || is_down),
            // The batch's seed and the event's index: delivered from here, the event has the id it always had.
            record: Record {
                received_ms: self.record.received_ms,
                origin: self.record.origin.clone(),
                destinations: vec![destination.to_owned()],
                id_seed: self.record.id_seed,
                given_up: self.record.given_up || death == Death::OutOfTries,
                events: vec![event.clone()],
            },
        }
    }
}
