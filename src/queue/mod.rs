//! The durable queue between the relay and the destinations: one log, one durable cursor per destination.
//!
//! Owns the two traits and the values they exchange. Engines are one file (or folder) each and must pass the suite in
//! `queue/contract`; they hold no metrics code, [`observed`] counts. An engine never blocks the traffic: an append
//! that cannot be made durable is refused with a reason.

#[cfg(test)]
mod contract;
mod counts;
mod ledger;
mod marks;
pub mod memory;
pub mod observed;
pub mod sled;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

use crate::record::Record;

// Both engines count with the same ledger and recognise repetitions with the same window.
pub(crate) use self::counts::{Counts, Totals, add, difference, list, subtract};
pub(crate) use self::ledger::{Boundary, Cursor, Ledger, Loss, Passed, Progress, UNKNOWN_LIMIT};
pub(crate) use self::marks::{Marks, Seen};

/// The present time in Unix milliseconds; passed in so that tests can move it.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Returns the clock of the operating system.
pub fn system_clock() -> Clock {
    Arc::new(now_ms)
}

/// Returns the operating system's time in Unix milliseconds.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What happens to an append when `max_bytes` is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest records go, settled or not, and are counted as evicted.
    #[default]
    DropOldest,
    /// New records are refused with [`AppendError::Full`].
    DropNewest,
}

/// An engine's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of the queue; not used by an engine without a disk.
    pub path: PathBuf,
    /// Bytes on disk (in memory, for an engine without a disk). Under 16 MiB an engine on disk has little room to work.
    pub max_bytes: u64,
    /// Records older than this are evicted.
    pub max_age: Duration,
    /// What gives way when `max_bytes` is used up.
    pub when_full: WhenFull,
    /// Free bytes that are left to others on the volume; appends are refused below it.
    pub headroom_bytes: u64,
    /// Bytes of records per generation, at the most: the unit in which disk space is given back.
    pub generation_bytes: u64,
    /// Bytes of one encoded record.
    pub max_record_bytes: u64,
    /// Duplicate marks kept; the oldest are forgotten first.
    pub mark_entries: usize,
}

impl Settings {
    /// Returns how many duplicate marks are kept: with a small `max_bytes` fewer than are asked for, since each generation begins
    /// with all of them, at 24 bytes each.
    pub fn marks(&self) -> usize {
        let most = usize::try_from(self.max_bytes / 32 / 24).unwrap_or(usize::MAX);
        self.mark_entries.min(most.max(1024))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: PathBuf::from("./flagtap-data"),
            max_bytes: 1 << 30,
            max_age: Duration::from_secs(7 * 24 * 60 * 60),
            when_full: WhenFull::DropOldest,
            headroom_bytes: 64 << 20,
            generation_bytes: 16 << 20,
            max_record_bytes: 32 << 20,
            mark_entries: 65_536,
        }
    }
}

/// A record's place in the log. Grows by one per record over the queue's whole life, across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is appended: a record, and the mark by which a repetition of the same batch is recognised.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The batch.
    pub record: Record,
    /// Its duplicate mark.
    pub mark: Mark,
}

/// Recognises an SDK's retry of a batch. Written in the same transaction as the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Truncated SHA-256 of environment and payload id, or of credential and body.
    pub key: [u8; 16],
    /// For how long after the first sight the same key is a duplicate.
    pub window: Duration,
}

/// The outcome of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// On disk (for a durable engine) at this position.
    Stored(Position),
    /// The mark's key was seen within its window: the batch is already in the queue or was delivered.
    Duplicate,
}

/// Why a record was not appended. Nothing of it was stored.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Larger than the engine takes in one record; the other records are not affected.
    #[error("record of {bytes} bytes is over the queue's limit of {limit} bytes")]
    TooLarge {
        /// Encoded size.
        bytes: u64,
        /// What the engine takes.
        limit: u64,
    },
    /// `max_bytes` is used up and `when_full` is `drop_newest`.
    #[error("queue is full ({bytes} of {limit} bytes on disk)")]
    Full {
        /// Bytes on disk.
        bytes: u64,
        /// `queue.max_bytes`.
        limit: u64,
    },
    /// The volume has less free space than the headroom kept for others.
    #[error("volume has {free} bytes free, less than the headroom of {headroom} bytes")]
    NoSpace {
        /// Free bytes.
        free: u64,
        /// Headroom.
        headroom: u64,
    },
    /// Not open yet, or the last write failed; the engine tries again by itself.
    #[error("queue is not available: {why}")]
    Unavailable {
        /// What the engine is waiting for or failed at.
        why: String,
    },
}

impl AppendError {
    /// Returns the value of the metric label `reason`.
    pub fn metric_label(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "record_too_large",
            Self::Full { .. } => "queue_full",
            Self::NoSpace { .. } => "no_space",
            Self::Unavailable { .. } => "queue_unavailable",
        }
    }
}

/// Why a consumer could not read, commit or bury. The consumer stays usable: the caller waits a little and repeats.
#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    /// The engine is not open, or its last write failed; it tries again by itself.
    #[error("queue is not available: {why}")]
    Unavailable {
        /// What the engine is waiting for or failed at.
        why: String,
    },
    /// The queue was closed; nothing more will come.
    #[error("queue is closed")]
    Closed,
}

/// How much [`Consumer::next`] returns at the most. At least one record is returned whatever its size.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Records.
    pub records: usize,
    /// Bytes of event JSON.
    pub bytes: usize,
}

/// An event that was given up, kept with the bytes it was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The record that held the event.
    pub position: Position,
    /// The event's place in the SDK's payload.
    pub index: u32,
    /// When it was given up, Unix milliseconds.
    pub dead_ms: u64,
    /// Why, in the destination's words. Holds no event data.
    pub why: String,
    /// It goes out again by itself once its destination works: it was out of tries for the first time. False for an event
    /// that was refused for itself, and for one that was out of tries again.
    pub transient: bool,
    /// A one-event record from which the event can be delivered again with the same id.
    pub record: Record,
}

/// A log of records with one cursor per destination.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Appends a record; when this returns `Stored`, a durable engine has it on disk.
    ///
    /// Dropping the future does not undo an append that is under way.
    async fn append(&self, entry: Entry) -> Result<Appended, AppendError>;

    /// Returns the consumer of the destination `name`, at its durable cursor.
    ///
    /// A name seen for the first time starts at the end of the log. Opening the same name twice at once is an error
    /// of the caller and gives `Unavailable`. Waits until the queue is open, because the note has to be right from the
    /// first moment: call it from the destination's own task. Dropping the consumer forgets what it had returned but
    /// not committed; the next one is given it again.
    async fn consumer(&self, name: &str) -> Result<Box<dyn Consumer>, ConsumeError>;

    /// Returns what the queue holds now. Cheap: no disk access.
    fn stats(&self) -> Stats;

    /// Makes everything durable and releases the engine's files. Later appends are refused.
    async fn close(&self);

    /// Returns up to `limit` dead letters of the destination `name`, oldest first.
    async fn dead_letters(&self, name: &str, limit: usize) -> Result<Vec<DeadLetter>, ConsumeError> {
        let _ = (name, limit);
        Err(not_kept())
    }

    /// Returns up to `limit` dead letters of the destination `name` for which `wanted` is true, oldest first.
    async fn find_dead_letters(
        &self,
        name: &str,
        limit: usize,
        wanted: Wanted,
    ) -> Result<Vec<DeadLetter>, ConsumeError> {
        let _ = (name, limit, wanted);
        Err(not_kept())
    }

    /// Durably appends dead letters of the destination `name` again, each by its position and index and for this
    /// destination only, and then durably removes them. Returns how many there were.
    ///
    /// Their event ids stay, and no duplicate mark is in their way. A crash between the two steps may have an event
    /// sent twice, and loses none. An error may come after a part of the letters was requeued: those are removed.
    async fn requeue_dead_letters(&self, name: &str, letters: &[(Position, u32)]) -> Result<u64, ConsumeError> {
        let _ = (name, letters);
        Err(not_kept())
    }

    /// Durably removes dead letters of the destination `name`, each by its position and index.
    async fn remove_dead_letters(&self, name: &str, letters: &[(Position, u32)]) -> Result<(), ConsumeError> {
        let _ = (name, letters);
        Err(not_kept())
    }

    /// Makes `names` the configured destinations: when this returns `Ok`, each has a durable cursor, a new one at the end
    /// of the log, so that whatever is appended for it from then on is kept for it. Cursors of other names stay, and are
    /// listed as without a destination.
    ///
    /// A queue that is not open yet takes the names in place of those it was started with.
    async fn configure(&self, names: &[String]) -> Result<(), ConsumeError> {
        let _ = names;
        Err(not_kept())
    }

    /// Durably forgets the cursor `name` and what waits for it. Refused while the name is configured or open.
    async fn remove_cursor(&self, name: &str) -> Result<(), ConsumeError> {
        let _ = name;
        Err(not_kept())
    }
}

fn no_cursor(name: &str) -> ConsumeError {
    ConsumeError::Unavailable {
        why: format!("the queue has no cursor for {name}: nobody would ever read what is appended for it"),
    }
}

/// Says of a dead letter whether it is wanted. Called on a thread that may block.
pub type Wanted = Arc<dyn Fn(&DeadLetter) -> bool + Send + Sync>;

fn not_kept() -> ConsumeError {
    ConsumeError::Unavailable {
        why: "this engine does not offer it".to_owned(),
    }
}

/// One destination's reader.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for records addressed to this destination after the last one returned, and returns them in order.
    ///
    /// Cancel-safe: dropping the future loses nothing. A lone record is returned at once. Records that cannot be
    /// read any more (corrupt, evicted) are left out and appear in [`Stats`].
    async fn next(&mut self, limit: Limit) -> Result<Vec<(Position, Record)>, ConsumeError>;

    /// Durably records that everything up to and including `up_to` is settled, and keeps `note` beside the cursor.
    ///
    /// The note is the drain's own (which later events are settled already, retry state): at most 64 KiB, opaque to
    /// the engine. `up_to: None` leaves the cursor and replaces the note.
    async fn commit(&mut self, up_to: Option<Position>, note: &[u8]) -> Result<(), ConsumeError>;

    /// Returns the note of the last commit, also across restarts; empty if there was none.
    fn note(&self) -> Vec<u8>;

    /// Durably keeps events that were given up. They count as settled only after a later [`Consumer::commit`].
    async fn bury(&mut self, letters: Vec<DeadLetter>) -> Result<(), ConsumeError>;
}

/// What a queue holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Empty when the engine takes appends, else why it does not.
    pub unavailable: Option<String>,
    /// Bytes on disk (in memory, for an engine without a disk).
    pub bytes: u64,
    /// Records that could not be read since the start: corrupt ones, and those of quarantined files where countable.
    pub corrupt_records: u64,
    /// Files or generations set aside since the start because they could not be opened.
    pub quarantined: u64,
    /// What was set aside and is on disk now, by name.
    pub quarantine: Arc<[SetAside]>,
    /// The parts that the log has on disk, oldest first; none for an engine without a disk.
    pub parts: Vec<PartStats>,
    /// The position that the next record gets.
    pub next_position: u64,
    /// Events kept as dead letters, by destination.
    pub dead_letters: Vec<(String, u64)>,
    /// How many of them go out again by themselves.
    pub transient_letters: Vec<(String, u64)>,
    /// Dead letters that cannot be read.
    pub damaged_letters: u64,
    /// One entry per known cursor, also those whose destination is no longer configured.
    pub consumers: Vec<ConsumerStats>,
}

impl Stats {
    /// What `unavailable` says while the engine has not yet tried.
    pub const OPENING: &'static str = "opening";

    /// Returns true until the engine has opened or has failed to.
    pub fn is_opening(&self) -> bool {
        self.unavailable.as_deref() == Some(Self::OPENING)
    }

    /// Returns the bytes on disk of what was set aside.
    pub fn quarantine_bytes(&self) -> u64 {
        self.quarantine.iter().map(|part| part.bytes).sum()
    }
}

/// A part of the queue that was set aside because it could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Its name in the folder `quarantine`.
    pub name: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was last written to, Unix milliseconds.
    pub changed_ms: u64,
}

/// One part of the log on disk (a generation of the engine `sled`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartStats {
    /// Position of its first record.
    pub first: u64,
    /// The position after its last record; unknown for the newest part.
    pub end: Option<u64>,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was begun, Unix milliseconds.
    pub created_ms: u64,
}

/// What a destination's cursor has ahead of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsumerStats {
    /// The destination's name.
    pub name: String,
    /// The destination is configured, or a consumer is open. False for a cursor whose destination left the
    /// configuration.
    pub attached: bool,
    /// The durable cursor: everything before it is settled.
    pub position: u64,
    /// The note beside the cursor, in the drain's words: what is settled behind it, the state of retries.
    pub note: Vec<u8>,
    /// Events found waiting when the queue was opened, by environment.
    pub recovered: Vec<(String, u64)>,
    /// Events appended for this destination since then, by environment; also those whose caller did not wait for the
    /// answer.
    pub queued: Vec<(String, u64)>,
    /// Dead letters appended for this destination again since then, by environment.
    pub requeued: Vec<(String, u64)>,
    /// Events not settled, by environment name. Events of partly settled records count as waiting.
    pub waiting: Vec<(String, u64)>,
    /// Receipt of the oldest record not settled, Unix milliseconds.
    pub oldest_waiting_ms: Option<u64>,
    /// Events that a limit removed before they were settled, by environment, since the start.
    pub evicted: Vec<(String, u64)>,
    /// The same events, by the limit that removed them: `max_bytes`, `max_age`, or `unknown` if that was in an earlier run.
    pub limits: Vec<(&'static str, u64)>,
    /// Events lost to corruption before they were settled, by environment, since the start.
    pub corrupt: Vec<(String, u64)>,
}

impl ConsumerStats {
    /// Returns how many events are not settled.
    pub fn waiting_events(&self) -> u64 {
        self.waiting.iter().map(|(_, events)| events).sum()
    }
}
