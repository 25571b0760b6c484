//! What is known of an event in the window: how it ended, or what its tries came to.

use tokio::time::Instant;

use crate::queue::Position;

/// How an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    Delivered,
    Skipped(&'static str),
    /// Kept as a dead letter.
    Dead,
    /// Out of tries, and gone as configured.
    Dropped,
}

/// What is noted of an event beside the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Ended(Fate),
    /// It failed so often and is to be tried again at this time, Unix milliseconds.
    Failed {
        failures: u32,
        due_ms: u64,
    },
}

/// What is noted of one record; nothing of an event that was never tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) position: Position,
    pub(super) marks: Vec<Option<Mark>>,
}

/// What an event's earlier tries came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tries {
    /// Requests it was in.
    pub(super) sent: u32,
    /// Failed tries. A request before its time is no try, nor is one whose failure is flagtap's configuration.
    pub(super) failures: u32,
    /// The last time the destination as a whole failed.
    pub(super) by_destination: bool,
    /// When the next try is due by its schedule, however soon it is sent.
    pub(super) planned: Option<Instant>,
    /// The service wants it no sooner.
    pub(super) asked: Option<Instant>,
}
