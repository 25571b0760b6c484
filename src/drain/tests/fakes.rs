//! A queue in memory and a destination that follows a script, both keeping a log of what was asked of them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::{Drain, DrainStatus, Ending, Settings, Stop};
use crate::destination::{Destination, Encoded, Item, Limits, ProbeError, Verdict};
use crate::event::{Kind, Schema};
use crate::export::{ExportEvent, event_ids};
use crate::metrics::Metrics;
use crate::queue::{Clock, ConsumeError, Consumer, DeadLetter, Limit, Position};
use crate::record::{Origin, Record, RecordEvent};

/// The queue: what is stored survives every consumer.
#[derive(Clone, Default)]
pub(super) struct FakeQueue {
    state: Arc<Mutex<Stored>>,
    appended: Arc<Notify>,
}

#[derive(Default)]
pub(super) struct Stored {
    pub(super) records: Vec<(Position, Record)>,
    pub(super) cursor: Option<Position>,
    pub(super) note: Vec<u8>,
    pub(super) letters: Vec<DeadLetter>,
    pub(super) commits: usize,
    pub(super) closed: bool,
    started: Option<Instant>,
    /// How far the wall clock has jumped ahead, milliseconds.
    pub(super) clock_ahead_ms: i64,
    /// The next calls of `next`, `bury` or `commit` fail as often.
    pub(super) next_fails: usize,
    pub(super) bury_fails: usize,
    pub(super) commit_fails: usize,
}

impl FakeQueue {
    /// Appends one batch with an event per name.
    pub(super) fn append(&self, names: &[&str]) {
        let mut state = self.lock();
        let position = Position(3 * state.records.len() as u64 + 1);
        state.records.push((position, record(position.0, names)));
        self.appended.notify_one();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Stored> {
        self.state.lock().unwrap()
    }

    /// Names of the dead letters.
    pub(super) fn dead(&self) -> Vec<String> {
        let text = |letter: &DeadLetter| String::from_utf8(letter.record.events[0].json.to_vec()).unwrap();
        self.lock().letters.iter().map(text).collect()
    }

    /// Returns true if the cursor is behind the last record.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.lock();
        state.cursor == state.records.last().map(|(position, _)| *position)
    }

    /// A wall clock that goes with the paused time, as far ahead as `clock_ahead_ms` says.
    fn clock(&self) -> Clock {
        let state = Arc::clone(&self.state);
        Arc::new(move || {
            let mut state = state.lock().unwrap();
            let passed = state.started.get_or_insert_with(Instant::now).elapsed().as_millis() as i64;
            (1_800_000_000_000 + state.clock_ahead_ms + passed) as u64
        })
    }

    /// Events of records behind the cursor, and of all.
    fn waiting(&self) -> (u64, u64) {
        let state = self.lock();
        let events = |(_, record): &(Position, Record)| record.events.len() as u64;
        let waiting = state
            .records
            .iter()
            .filter(|(position, _)| Some(*position) > state.cursor);
        (waiting.map(events).sum(), state.records.iter().map(events).sum())
    }

    fn consumer(&self) -> Box<dyn Consumer> {
        let cursor = self.lock().cursor;
        Box::new(FakeConsumer {
            queue: self.clone(),
            read_to: cursor,
        })
    }
}

pub(super) fn record(seed: u64, names: &[&str]) -> Record {
    let event = |(index, name): (usize, &&str)| RecordEvent {
        index: index as u32,
        kind: Kind::Custom,
        json: Bytes::copy_from_slice(name.as_bytes()),
    };
    Record {
        received_ms: 1_700_000_000_000,
        origin: Origin {
            environment: "production".to_owned(),
            project_id: String::new(),
            environment_id: String::new(),
            schema: Schema {
                number: 4,
                unsummarized: false,
            },
            sdk: String::new(),
            tags: String::new(),
        },
        destinations: vec!["lake".to_owned(), "other".to_owned()],
        id_seed: u128::from(seed).to_be_bytes(),
        given_up: false,
        events: names.iter().enumerate().map(event).collect(),
    }
}

struct FakeConsumer {
    queue: FakeQueue,
    read_to: Option<Position>,
}

fn unavailable(left: &mut usize) -> Result<(), ConsumeError> {
    if *left == 0 {
        return Ok(());
    }
    *left -= 1;
    Err(ConsumeError::Unavailable {
        why: "disk is full".to_owned(),
    })
}

#[async_trait]
impl Consumer for FakeConsumer {
    async fn next(&mut self, limit: Limit) -> Result<Vec<(Position, Record)>, ConsumeError> {
        loop {
            let appended = self.queue.appended.notified();
            {
                let mut state = self.queue.lock();
                if state.closed {
                    return Err(ConsumeError::Closed);
                }
                unavailable(&mut state.next_fails)?;
                let after = |position: Position| self.read_to.is_none_or(|read| position > read);
                let mut bytes = 0;
                let found: Vec<_> = state
                    .records
                    .iter()
                    .filter(|(position, _)| after(*position))
                    .take(limit.records)
                    .take_while(|(_, record)| {
                        let first = bytes == 0;
                        bytes += record.events.iter().map(|event| event.json.len()).sum::<usize>();
                        first || bytes <= limit.bytes
                    })
                    .cloned()
                    .collect();
                if let Some((last, _)) = found.last() {
                    self.read_to = Some(*last);
                    return Ok(found);
                }
            }
            appended.await;
        }
    }

    async fn commit(&mut self, up_to: Option<Position>, note: &[u8]) -> Result<(), ConsumeError> {
        let mut state = self.queue.lock();
        unavailable(&mut state.commit_fails)?;
        assert!(note.len() <= 64 * 1024);
        assert!(up_to.is_none() || up_to > state.cursor, "the cursor only moves forward");
        state.cursor = up_to.or(state.cursor);
        state.note = note.to_vec();
        state.commits += 1;
        Ok(())
    }

    fn note(&self) -> Vec<u8> {
        self.queue.lock().note.clone()
    }

    async fn bury(&mut self, letters: Vec<DeadLetter>) -> Result<(), ConsumeError> {
        let mut state = self.queue.lock();
        unavailable(&mut state.bury_fails)?;
        state.letters.extend(letters);
        Ok(())
    }
}

/// What the service does with a request.
pub(super) enum Answer {
    Verdicts(Vec<Verdict>),
    Hang,
    Panic,
    /// The service has the events; nobody hears of it.
    TakenUnheard,
    /// The service has the events; what is heard is an error.
    TakenGarbled,
}

type Script = Box<dyn FnMut(&[String]) -> Answer + Send>;

/// How long a request takes, by the name of its first event.
type Latency = Box<dyn Fn(&str) -> Duration + Send + Sync>;

/// A destination whose service follows a script. An event's name is its JSON; `skip…`, `reject…` and `panic…` decide
/// how it is encoded.
pub(super) struct FakeDestination {
    limits: Limits,
    latency: Latency,
    script: Mutex<Script>,
    under_way: Arc<Mutex<usize>>,
    most_under_way: Mutex<usize>,
    requests: Mutex<VecDeque<(Instant, Vec<String>)>>,
    delivered: Mutex<Vec<(String, String)>>,
    last_idle: Mutex<bool>,
}

impl FakeDestination {
    pub(super) fn new(script: impl FnMut(&[String]) -> Answer + Send + 'static) -> Self {
        Self {
            limits: Limits {
                items: 10,
                bytes: 200,
                item_bytes: 50,
                keys: usize::MAX,
                requests: 1,
            },
            latency: Box::new(|_| Duration::ZERO),
            script: Mutex::new(Box::new(script)),
            under_way: Arc::default(),
            most_under_way: Mutex::default(),
            requests: Mutex::default(),
            delivered: Mutex::default(),
            last_idle: Mutex::default(),
        }
    }

    /// A service that judges every event by its name.
    pub(super) fn judging(mut judge: impl FnMut(&str) -> Verdict + Send + 'static) -> Self {
        Self::new(move |names| Answer::Verdicts(names.iter().map(|name| judge(name)).collect()))
    }

    pub(super) fn with_items(mut self, items: usize) -> Self {
        self.limits.items = items;
        self
    }

    pub(super) fn with_requests(mut self, requests: usize) -> Self {
        self.limits.requests = requests;
        self
    }

    pub(super) fn with_keys(mut self, keys: usize) -> Self {
        self.limits.keys = keys;
        self
    }

    pub(super) fn with_latency(self, latency: Duration) -> Self {
        self.with_latency_of(move |_| latency)
    }

    /// A request takes as long as its first event says.
    pub(super) fn with_latency_of(mut self, latency: impl Fn(&str) -> Duration + Send + Sync + 'static) -> Self {
        self.latency = Box::new(latency);
        self
    }

    /// The most requests that were under way at a time, since this was last asked.
    pub(super) fn most_under_way(&self) -> usize {
        std::mem::take(&mut *self.most_under_way.lock().unwrap())
    }

    /// Names in each request so far.
    pub(super) fn requests(&self) -> Vec<Vec<String>> {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .map(|(_, names)| names.clone())
            .collect()
    }

    /// When each request came.
    pub(super) fn times(&self) -> Vec<Instant> {
        self.requests.lock().unwrap().iter().map(|(at, _)| *at).collect()
    }

    /// Names of the events acknowledged, in order.
    pub(super) fn delivered(&self) -> Vec<String> {
        self.delivered
            .lock()
            .unwrap()
            .iter()
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// Ids of the events acknowledged, in order.
    pub(super) fn delivered_ids(&self) -> Vec<String> {
        self.delivered
            .lock()
            .unwrap()
            .iter()
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn take(&self, items: &[Item], names: &[String], taken: impl Fn(usize) -> bool) {
        let taken = items.iter().zip(names).enumerate().filter(|(at, _)| taken(*at));
        let mut log = self.delivered.lock().unwrap();
        log.extend(taken.map(|(_, (item, name))| (item.id.clone(), name.clone())));
    }

    // Given back when the request ends, however it does.
    fn seat(&self) -> Seat {
        let mut under_way = self.under_way.lock().unwrap();
        *under_way += 1;
        assert!(*under_way <= self.limits.requests);
        let mut most = self.most_under_way.lock().unwrap();
        *most = (*most).max(*under_way);
        Seat(Arc::clone(&self.under_way))
    }

    pub(super) fn came_to_rest(&self) -> bool {
        *self.last_idle.lock().unwrap()
    }
}

struct Seat(Arc<Mutex<usize>>);

impl Drop for Seat {
    fn drop(&mut self) {
        *self.0.lock().unwrap() -= 1;
    }
}

#[async_trait]
impl Destination for FakeDestination {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn encode(&self, event: &ExportEvent<'_>) -> Encoded {
        let name = std::str::from_utf8(event.json).unwrap();
        if name.starts_with("skip") {
            return Encoded::Skip("kind");
        }
        if name.starts_with("reject") {
            return Encoded::Reject("cannot be written".to_owned());
        }
        assert!(!name.starts_with("panic"), "a panic that a test asked for");
        Encoded::Item(Item {
            id: event.id.to_owned(),
            body: Bytes::copy_from_slice(event.json),
            key: name.chars().next().map(String::from).unwrap_or_default(),
            size: event.json.len(),
        })
    }

    async fn send(&self, items: &[Item]) -> Vec<Verdict> {
        let names: Vec<String> = items
            .iter()
            .map(|item| String::from_utf8(item.body.to_vec()).unwrap())
            .collect();
        assert!(!items.is_empty() && items.len() <= self.limits.items);
        assert!(items.iter().map(|item| item.size).sum::<usize>() <= self.limits.bytes);
        let keys: BTreeSet<&str> = items.iter().map(|item| item.key.as_str()).collect();
        assert!(keys.len() <= self.limits.keys);
        self.requests.lock().unwrap().push_back((Instant::now(), names.clone()));
        let _seat = self.seat();
        tokio::time::sleep((self.latency)(&names[0])).await;
        let answer = (self.script.lock().unwrap())(&names);
        match answer {
            Answer::Verdicts(verdicts) => {
                self.take(items, &names, |at| verdicts.get(at) == Some(&Verdict::Delivered));
                verdicts
            }
            Answer::TakenUnheard => {
                self.take(items, &names, |_| true);
                std::future::pending().await
            }
            Answer::TakenGarbled => {
                self.take(items, &names, |_| true);
                vec![super::retry(); items.len()]
            }
            Answer::Hang => std::future::pending().await,
            Answer::Panic => panic!("a panic that a test asked for"),
        }
    }

    async fn probe(&self) -> Result<String, ProbeError> {
        Ok(String::new())
    }

    async fn idle(&self, last: bool) {
        *self.last_idle.lock().unwrap() |= last;
    }
}

/// A drain that runs.
pub(super) struct Running {
    pub(super) destination: Arc<FakeDestination>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) status: Arc<DrainStatus>,
    pub(super) stop: Stop,
    pub(super) task: tokio::task::JoinHandle<Ending>,
}

impl Running {
    pub(super) fn start(queue: &FakeQueue, destination: FakeDestination) -> Self {
        Self::start_with(queue, Arc::new(destination), Settings::default())
    }

    pub(super) fn start_with(queue: &FakeQueue, destination: Arc<FakeDestination>, settings: Settings) -> Self {
        let (metrics, status, stop) = (
            Arc::new(Metrics::new()),
            Arc::new(DrainStatus::default()),
            Stop::default(),
        );
        let drain = Drain {
            name: "lake".to_owned(),
            consumer: queue.consumer(),
            destination: destination.clone(),
            metrics: metrics.clone(),
            settings,
            status: status.clone(),
            stop: stop.clone(),
            clock: queue.clock(),
        };
        Self {
            destination,
            metrics,
            status,
            stop,
            task: tokio::spawn(drain.run()),
        }
    }

    /// Delivers what waits and ends.
    pub(super) async fn drained(self) -> Arc<FakeDestination> {
        self.stop.soft.cancel();
        assert_eq!(self.task.await.unwrap(), Ending::Drained);
        self.destination
    }

    /// Ends as a SIGKILL would.
    pub(super) async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Holds what was counted against what the test put in and what the destination and the dead letters have. For a
    /// drain that saw everything from the start.
    pub(super) fn assert_balance(&self, queue: &FakeQueue) {
        let term = |what: &str| self.counter(&format!("flagtap_destination_events_{what}_total"));
        let [delivered, skipped, dead, dropped] = ["delivered", "skipped", "dead", "dropped"].map(term);
        let (waiting, all) = queue.waiting();
        assert_eq!(all, delivered + skipped + dead + dropped + waiting);
        if waiting == 0 {
            let mut known: BTreeSet<String> = self.destination.delivered_ids().into_iter().collect();
            known.extend(queue.lock().letters.iter().flat_map(|letter| event_ids(&letter.record)));
            assert_eq!(known.len() as u64, delivered + dead);
            assert_eq!(queue.lock().letters.len() as u64, dead);
        }
    }

    pub(super) fn counter(&self, metric: &str) -> u64 {
        let text = self.metrics.render();
        let of = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok());
        let name = |line: &str| line.split(['{', ' ']).next() == Some(metric);
        text.lines().filter(|line| name(line)).filter_map(of).sum::<u64>()
    }
}

/// Waits for a condition, at most a (paused) day. Looks often at first and seldom later, so a day is soon over.
pub(super) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        let waited = start.elapsed();
        assert!(waited < Duration::from_secs(86_400), "never came: {what}");
        tokio::time::sleep((waited / 100).max(Duration::from_millis(1))).await;
    }
}
