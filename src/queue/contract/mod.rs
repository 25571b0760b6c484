//! What every engine promises, as tests. `volatile!` lists what holds without a disk, `durable!` what needs one.
//!
//! Knows the traits only. A test gets a [`Rig`]: an engine in a directory of its own, with a clock that it moves.

mod letters;
mod model;
mod promises;
mod reopening;

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::event::{Kind, Schema};
use crate::queue::{
    Appended, Clock, Consumer, ConsumerStats, DeadLetter, Entry, Limit, Mark, Position, Queue, Settings, Stats,
};
use crate::record::{Origin, Record, RecordEvent};

pub(crate) use self::letters::*;
pub(crate) use self::model::*;
pub(crate) use self::promises::*;
pub(crate) use self::reopening::*;

/// Starts an engine.
pub(crate) type Start = fn(Settings, &[String], Clock) -> Arc<dyn Queue>;

macro_rules! contract {
    ($start:expr; $($name:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            crate::queue::contract::$name(crate::queue::contract::Rig::new($start)).await;
        })*
    };
}
pub(crate) use contract;

/// The tests for every engine.
macro_rules! volatile {
    ($start:expr) => {
        crate::queue::contract::contract! { $start;
            records_come_whole_and_in_order
            a_lone_record_is_delivered_at_once
            next_waits_for_an_append
            next_is_cancel_safe
            next_keeps_to_its_limit_but_gives_one_record
            consumers_are_independent
            a_record_is_given_only_to_its_destinations
            a_new_consumer_starts_at_the_end
            a_configured_destination_gets_what_came_before_its_consumer
            a_dropped_consumer_gives_back_what_was_not_committed
            a_name_is_open_only_once
            an_oversized_record_is_refused_alone
            a_repetition_within_the_window_is_a_duplicate
            a_repetition_at_the_same_moment_is_a_duplicate
            a_full_queue_drops_the_oldest_and_counts_them
            what_waits_since_when_is_right_after_an_eviction
            who_keeps_up_loses_nothing_to_who_lags
            what_was_returned_is_not_counted_as_evicted
            a_full_queue_refuses_the_newest_if_told_so
            records_over_the_age_are_evicted
            space_returns_after_commit
            a_destination_without_records_holds_nothing_back
            the_note_is_kept_with_and_without_a_position
            waiting_counts_what_is_not_settled
            dead_letters_are_kept_until_removed
            dead_letters_are_found_by_what_they_are
            a_requeued_dead_letter_is_delivered_again_with_its_id
            a_requeued_dead_letter_is_counted_apart
            requeueing_what_is_not_there_does_nothing
            a_letter_that_is_requeued_twice_at_once_is_delivered_once
            a_requeued_dead_letter_is_not_too_old_at_once
            a_cursor_in_use_is_not_removed
            a_destination_configured_later_gets_what_comes_from_then_on
            a_destination_that_left_keeps_its_cursor
            a_closed_queue_refuses
            does_what_the_model_does
            loses_to_its_limits_only_what_it_counts
        }
    };
}
pub(crate) use volatile;

/// The tests for engines with a disk.
macro_rules! durable {
    ($start:expr) => {
        crate::queue::contract::contract! { $start;
            what_was_stored_is_there_after_reopening
            the_uncommitted_is_redelivered_after_reopening
            the_committed_is_never_redelivered
            stats_equal_the_contents_after_reopening
            recovered_is_what_waited_at_the_open
            positions_go_on_after_reopening
            a_smaller_cap_still_opens
            restarts_alone_evict_nothing
            what_was_evicted_is_not_counted_again_after_reopening
            letters_that_find_no_room_stay_where_they_are
            a_repetition_is_a_duplicate_after_reopening
            a_repetition_is_a_duplicate_after_rotation
            the_note_survives_reopening_and_rotation
            dead_letters_survive_reopening
            what_was_requeued_is_there_after_reopening
            a_cursor_without_a_destination_is_listed_and_kept
            an_unconfigured_cursor_can_be_removed
            does_what_the_model_does_across_reopens
            loses_to_its_limits_only_what_it_counts_across_reopens
        }
    };
}
pub(crate) use durable;

/// An engine under test.
pub(crate) struct Rig {
    pub(crate) directory: TempDir,
    pub(crate) settings: Settings,
    pub(crate) destinations: Vec<String>,
    clock: Arc<AtomicU64>,
    start: Start,
    marks: AtomicU64,
}

pub(crate) const LAKE: &str = "lake";
pub(crate) const CDP: &str = "cdp";
pub(crate) const ALL: Limit = Limit {
    records: 1000,
    bytes: usize::MAX,
};
const PATIENCE: Duration = Duration::from_secs(20);

impl Rig {
    pub(crate) fn new(start: Start) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            path: directory.path().join("queue"),
            headroom_bytes: 0,
            ..Settings::default()
        };
        Self {
            directory,
            settings,
            destinations: vec![LAKE.to_owned(), CDP.to_owned()],
            clock: Arc::new(AtomicU64::new(1_000_000)),
            start,
            marks: AtomicU64::new(1),
        }
    }

    /// Keeps the queue's files in memory where there is much of it: for tests that sync thousands of times and do not ask
    /// anything of a disk.
    pub(crate) fn in_memory(mut self) -> Self {
        const ROOM: u64 = 4 << 30;
        let shared = Path::new("/dev/shm");
        let free = rustix::fs::statvfs(shared).map_or(0, |volume| volume.f_bavail * volume.f_frsize);
        if free > ROOM
            && let Ok(directory) = tempfile::tempdir_in(shared)
        {
            self.settings.path = directory.path().join("queue");
            self.directory = directory;
        }
        self
    }

    pub(crate) fn path(&self) -> &Path {
        &self.settings.path
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.clock.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }

    /// Starts the engine without waiting for it.
    pub(crate) fn start(&self) -> Arc<dyn Queue> {
        let clock = Arc::clone(&self.clock);
        let clock: Clock = Arc::new(move || clock.load(Ordering::Relaxed));
        (self.start)(self.settings.clone(), &self.destinations, clock)
    }

    pub(crate) async fn open(&self) -> Arc<dyn Queue> {
        let queue = self.start();
        eventually(|| queue.stats().unavailable.is_none()).await;
        queue
    }

    pub(crate) async fn reopen(&self, queue: Arc<dyn Queue>) -> Arc<dyn Queue> {
        queue.close().await;
        drop(queue);
        self.open().await
    }

    /// Returns an entry of `events` events that nobody has seen yet.
    pub(crate) fn entry(&self, environment: &str, destinations: &[&str], events: u32) -> Entry {
        self.sized(environment, destinations, events, 20)
    }

    pub(crate) fn sized(&self, environment: &str, destinations: &[&str], events: u32, json_bytes: usize) -> Entry {
        let number = self.marks.fetch_add(1, Ordering::Relaxed);
        let mut key = [0; 16];
        key[..8].copy_from_slice(&number.to_be_bytes());
        Entry {
            record: record(self.now_ms(), environment, destinations, events, json_bytes, number),
            mark: Mark {
                key,
                window: Duration::from_secs(300),
            },
        }
    }
}

pub(crate) fn record(
    received_ms: u64,
    environment: &str,
    destinations: &[&str],
    events: u32,
    json_bytes: usize,
    seed: u64,
) -> Record {
    // What does not compress, so that sizes on disk are what the test says.
    let mut random = fastrand::Rng::with_seed(seed);
    let event = |index| {
        let mut json = vec![0; json_bytes];
        random.fill(&mut json);
        RecordEvent {
            index,
            kind: Kind::Custom,
            json: Bytes::from(json),
        }
    };
    Record {
        received_ms,
        origin: Origin {
            environment: environment.to_owned(),
            project_id: String::new(),
            environment_id: String::new(),
            schema: Schema {
                number: 4,
                unsummarized: false,
            },
            sdk: "PythonClient/9.18.2".to_owned(),
            tags: String::new(),
        },
        destinations: destinations.iter().map(|name| (*name).to_owned()).collect(),
        id_seed: [7; 16],
        given_up: false,
        events: (0..events).map(event).collect(),
    }
}

/// Waits for a future that must end.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("the queue does not answer")
}

/// Waits until a condition holds.
pub(crate) async fn eventually(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Appends, and returns the position.
pub(crate) async fn store(queue: &Arc<dyn Queue>, entry: Entry) -> Position {
    match within(queue.append(entry)).await.expect("an append was refused") {
        Appended::Stored(position) => position,
        Appended::Duplicate => panic!("taken for a duplicate"),
    }
}

pub(crate) async fn consumer(queue: &Arc<dyn Queue>, name: &str) -> Box<dyn Consumer> {
    within(queue.consumer(name)).await.expect("no consumer")
}

/// Returns exactly the next `count` records.
pub(crate) async fn take(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<(Position, Record)> {
    let mut records = Vec::new();
    while records.len() < count {
        let limit = Limit {
            records: count - records.len(),
            bytes: usize::MAX,
        };
        records.extend(within(consumer.next(limit)).await.expect("next failed"));
    }
    records
}

pub(crate) async fn commit(consumer: &mut Box<dyn Consumer>, up_to: Position) {
    within(consumer.commit(Some(up_to), b""))
        .await
        .expect("a commit failed");
}

/// Checks that nothing more comes.
pub(crate) async fn nothing_comes(consumer: &mut Box<dyn Consumer>) {
    let waited = timeout(Duration::from_millis(60), consumer.next(ALL)).await;
    assert!(waited.is_err(), "{waited:?}");
}

pub(crate) fn of(stats: &Stats, name: &str) -> ConsumerStats {
    let found = stats.consumers.iter().find(|consumer| consumer.name == name);
    found.cloned().expect("no such consumer")
}

pub(crate) fn sum(counts: &[(String, u64)]) -> u64 {
    counts.iter().map(|(_, count)| count).sum()
}

pub(crate) fn counts(environment: &str, events: u64) -> Vec<(String, u64)> {
    vec![(environment.to_owned(), events)]
}

/// Copies a directory that may be changing, as a snapshot of the volume would. Files before folders, so that what says how far
/// the log got is not newer than the log; of the generations the newest first: what is older does not change any more.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let entries = match fs::read_dir(from) {
        Ok(entries) => entries,
        // A generation that is being removed.
        Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", from.display()),
    };
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort_by_key(|path| (path.is_dir(), std::cmp::Reverse(path.clone())));
    for path in entries {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_directory(&path, &target);
        } else if let Err(error) = fs::copy(&path, &target) {
            // The draft of a start file gets its name meanwhile.
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", path.display());
        }
    }
}

pub(crate) fn letter(position: Position, index: u32) -> DeadLetter {
    DeadLetter {
        position,
        index,
        dead_ms: 5,
        why: "refused".to_owned(),
        transient: index % 2 == 1,
        record: record(1, "production", &[LAKE], 1, 10, 1),
    }
}
