//! Delivery: one task per destination takes events from the queue until each is acknowledged or given up for itself.
//!
//! Owns the loop `next -> encode -> pack -> send -> verdict per event -> settle`, its settings and its status.
//! Promises: an event leaves only as delivered, skipped or dead-lettered; what the destination acknowledged is durably
//! noted before the next request, so a crash repeats at most the request in flight; a failing event holds back no
//! others until the window is full. Trusts no destination: it bounds, counts and survives what they do.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::backoff::Backoff;
use crate::destination::{Destination, Encoded, Item, Limits, Verdict};
use crate::export;
use crate::metrics::Metrics;
use crate::queue::{ConsumeError, Consumer, Limit, Position, now_ms};
use crate::record::{Record, RecordEvent};

mod counts;
mod note;
mod pack;
mod retry;
mod status;
#[cfg(test)]
mod tests;
mod window;

pub use status::{DrainStatus, Snapshot, State};

use counts::Counts;
use status::{Failure, Reporter};
use window::{Slot, Waiting, Window};

/// How often a destination that gets nothing to send may look after itself ([`Destination::idle`]).
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// The wait before a queue that failed is asked again.
const QUEUE_WAIT: Duration = Duration::from_secs(1);

/// A queue that yields nothing for this long during a soft stop is empty.
const EMPTY_AFTER: Duration = Duration::from_millis(500);

/// How long after a hard stop the answer to the request in flight is still awaited: every answer that arrives saves
/// the destination a duplicate.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// The two ways to end a drain. The caller cancels `soft` once nothing is appended any more, and `hard` when the time
/// left is only enough to note what was delivered (it takes up to a second for an answer, and a commit).
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Deliver what waits (failed events get one try at once), then end.
    pub soft: CancellationToken,
    /// End now: undelivered events stay in the queue for the next start.
    pub hard: CancellationToken,
}

/// How one destination is served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Waits between tries (`retry: { initial, max }`); 1 s to 60 s.
    pub retry: Backoff,
    /// Bound of one request; its events are sent again when it passes. 60 s.
    pub timeout: Duration,
    /// Events (`records`) and bytes of event JSON held in memory. Reading stops at either and can overshoot it by one
    /// read, of a request's size. 1000 events, 4 MiB.
    pub window: Limit,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry: Backoff {
                initial: Duration::from_secs(1),
                max: Duration::from_secs(60),
            },
            timeout: Duration::from_secs(60),
            window: Limit {
                records: 1000,
                bytes: 4 * 1024 * 1024,
            },
        }
    }
}

/// Why a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Soft stop: nothing waits for this destination any more.
    Drained,
    /// Hard stop: what waits stays in the queue.
    Stopped,
    /// The queue was closed under it.
    QueueClosed,
}

/// One destination's delivery, ready to [`run`](Self::run).
pub struct Drain {
    /// The destination's configured name: metric label, log field and dead letters.
    pub name: String,
    /// The destination's cursor.
    pub consumer: Box<dyn Consumer>,
    /// Where events go.
    pub destination: Arc<dyn Destination>,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// How to serve it.
    pub settings: Settings,
    /// Where to say how it goes.
    pub status: Arc<DrainStatus>,
    /// How it is told to end.
    pub stop: Stop,
}

impl Drain {
    /// Delivers until it is told to stop. Ends early only if the queue is closed.
    pub async fn run(self) -> Ending {
        let mut task = Task::of(self);
        let ending = task.work().await;
        task.end().await;
        ending
    }
}

/// How an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Delivered,
    Skipped(&'static str),
    Dead,
}

/// What is settled of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    position: Position,
    fates: Vec<Option<Fate>>,
}

/// What an event's earlier tries came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tries {
    /// Requests it was in.
    sent: u32,
    /// How often it failed while the destination as a whole did not.
    failed_alone: u32,
}

/// All of a [`Drain`] but the consumer: what can be shared while a request is under way.
struct Service {
    name: String,
    destination: Arc<dyn Destination>,
    counts: Counts,
    settings: Settings,
    stop: Stop,
}

struct Task {
    consumer: Box<dyn Consumer>,
    service: Service,
    window: Window,
    schedule: retry::Schedule,
    reporter: Reporter,
    /// The queue is not read before.
    read_from: Instant,
    idle_at: Instant,
    /// Set by a soft stop: when a queue that yields nothing counts as empty.
    empty_at: Option<Instant>,
}

impl Task {
    fn of(drain: Drain) -> Self {
        let Drain {
            name,
            consumer,
            destination,
            metrics,
            settings,
            status,
            stop,
        } = drain;
        let entries = note::decode(&consumer.note()).unwrap_or_else(|| {
            warn!(
                destination = name,
                "note beside the cursor is not readable, delivered events may be sent again"
            );
            Vec::new()
        });
        let counts = Counts::new(name.clone(), metrics);
        let now = Instant::now();
        Self {
            consumer,
            window: Window::remembering(entries),
            schedule: retry::Schedule::new(settings.retry, fastrand::Rng::new()),
            reporter: Reporter::new(name.clone(), status, counts.blocked()),
            read_from: now,
            idle_at: now + IDLE_INTERVAL,
            empty_at: None,
            service: Service {
                name,
                destination,
                counts,
                settings,
                stop,
            },
        }
    }

    async fn work(&mut self) -> Ending {
        loop {
            if self.service.stop.hard.is_cancelled() {
                return Ending::Stopped;
            }
            if self.window.is_dirty()
                && let Err(ending) = self.settle().await
            {
                return ending;
            }
            let now = Instant::now();
            if self.empty_at.is_none() && self.service.stop.soft.is_cancelled() {
                self.empty_at = Some(now + EMPTY_AFTER);
                self.schedule.hurry(now);
                self.window.hurry(now);
            }
            if !self.window.is_empty() {
                // The queue may have had no chance to yield more: its time starts when nothing is held.
                self.empty_at = self.empty_at.map(|_| now + EMPTY_AFTER);
            } else if self.empty_at.is_some_and(|at| at <= now) {
                return Ending::Drained;
            } else {
                self.reporter.idle();
            }
            if self.next_send().is_some_and(|at| at <= now) {
                self.send_next(now).await;
            } else if let Err(ending) = self.wait(now).await {
                return ending;
            }
        }
    }

    /// Returns when the next request is due.
    fn next_send(&self) -> Option<Instant> {
        let due = self.window.next_due()?;
        Some(self.schedule.trouble().map_or(due, |trouble| due.max(trouble.until)))
    }

    /// Waits for new events, until the next request is due, or for the end.
    async fn wait(&mut self, now: Instant) -> Result<(), Ending> {
        if self.idle_at <= now {
            self.idle(false).await;
        }
        let limits = self.service.destination.limits();
        let room = self
            .window
            .room(self.service.settings.window)
            .filter(|_| self.read_from <= now);
        let limit = room.map_or(Limit { records: 1, bytes: 1 }, |room| Limit {
            records: room.records.min(limits.items).max(1),
            bytes: room.bytes.min(limits.bytes).max(1),
        });
        let later = Some(self.read_from).filter(|at| *at > now);
        let times = [self.next_send(), later, self.empty_at, Some(self.idle_at)];
        let wake = times.into_iter().flatten().filter(|at| *at > now).min();
        let stop = &self.service.stop;
        tokio::select! {
            biased;
            () = stop.hard.cancelled() => {}
            () = stop.soft.cancelled(), if self.empty_at.is_none() => {}
            () = tokio::time::sleep_until(wake.unwrap_or(self.idle_at)) => {}
            read = self.consumer.next(limit), if room.is_some() => match read {
                Ok(records) => self.take_in(records, limits).await,
                Err(ConsumeError::Closed) => return Err(Ending::QueueClosed),
                Err(ConsumeError::Unavailable { why }) => self.queue_failed(&why),
            },
        }
        Ok(())
    }

    async fn take_in(&mut self, records: Vec<(Position, Record)>, limits: Limits) {
        self.reporter.queue_works();
        let now = Instant::now();
        if records.is_empty() {
            // A consumer waits for records; one that returns without any must not be asked in a busy loop.
            self.read_from = now + Duration::from_millis(10);
            return;
        }
        for (position, record) in records {
            let ids = export::event_ids(&record);
            let service = &self.service;
            self.window.take_in(position, record, |place, record, event| {
                let id = ids.get(place).map_or("", String::as_str);
                service.prepare(record, event, id, limits, now)
            });
            // Encoding is quick, but a read can hold thousands of events.
            tokio::task::yield_now().await;
        }
    }

    async fn send_next(&mut self, now: Instant) {
        let limits = self.service.destination.limits();
        let loads = self.window.due(now).map(|waiting| pack::Load {
            size: waiting.item.size,
            most: waiting.most,
        });
        let count = pack::fill(loads, limits);
        let taken = self.window.take(now, count);
        let (mut places, mut items, mut tries) = (Vec::new(), Vec::new(), Vec::new());
        for (place, waiting) in taken {
            places.push((place, waiting.most, waiting.due));
            items.push(waiting.item);
            tries.push(waiting.tries);
        }
        self.reporter.sending();
        self.idle_at = now + IDLE_INTERVAL;
        let answer = self.service.send(&items, &tries).await;
        let now = Instant::now();
        let verdicts = answer.unwrap_or_default();
        let delivered = verdicts.contains(&Verdict::Delivered);
        let why = verdicts.iter().find_map(retry::failure).map(str::to_owned);
        let next = self.schedule.judge(now, &tries, verdicts);
        let halved = items.len().div_ceil(2);
        let mut next = next.into_iter();
        for (((place, most, due), item), tries) in places.into_iter().zip(items).zip(tries) {
            let waiting = |tries, most, due| Slot::Waiting(Waiting { item, tries, most, due });
            let slot = match next.next() {
                Some(retry::Next::Delivered) => Slot::Settled(Fate::Delivered),
                Some(retry::Next::Dead(why)) => Slot::Dying(why),
                Some(retry::Next::Again { tries, due }) => waiting(tries, most, due),
                Some(retry::Next::Halve) => waiting(tries, halved, now),
                None => waiting(tries, most, due),
            };
            self.window.put(place, slot);
        }
        self.report(now, delivered, why);
    }

    fn report(&mut self, now: Instant, delivered: bool, why: Option<String>) {
        if delivered {
            self.reporter.delivered();
        }
        let events = self.window.failed();
        let wait = self.next_send().map_or(Duration::ZERO, |at| at.duration_since(now));
        let trouble = self
            .schedule
            .trouble()
            .map(|trouble| (trouble.why.clone(), trouble.blocked));
        match trouble.or(why.map(|why| (why, false))) {
            Some((why, blocked)) => self.reporter.failing(Failure {
                why,
                blocked,
                wait,
                events,
            }),
            None if events == 0 => self.reporter.recovered(),
            None => {}
        }
    }

    /// Makes durable what is settled; repeats until the queue has taken it.
    async fn settle(&mut self) -> Result<(), Ending> {
        loop {
            match self.try_settle().await {
                Ok(()) => return Ok(()),
                Err(ConsumeError::Closed) => return Err(Ending::QueueClosed),
                Err(ConsumeError::Unavailable { why }) => self.queue_failed(&why),
            }
            tokio::select! {
                () = self.service.stop.hard.cancelled() => return Err(Ending::Stopped),
                () = tokio::time::sleep(QUEUE_WAIT) => {}
            }
        }
    }

    async fn try_settle(&mut self) -> Result<(), ConsumeError> {
        let letters = self.window.letters(&self.service.name, now_ms());
        if let Some(last) = letters.last() {
            let (events, why) = (letters.len(), last.why.clone());
            self.consumer.bury(letters).await?;
            self.window.buried();
            self.reporter.buried(events, &why);
        }
        let beyond = self.window.settled_beyond();
        let note = note::encode(beyond.iter().map(|entry| (entry.position, entry.fates.as_slice())));
        self.consumer.commit(self.window.settled_to(), &note).await?;
        self.reporter.queue_works();
        let ended = self.window.release();
        self.service.counts.ended(&ended);
        Ok(())
    }

    fn queue_failed(&mut self, why: &str) {
        self.reporter.queue_failed(why);
        let now = Instant::now();
        self.read_from = now + QUEUE_WAIT;
        // A queue that cannot be read is not known to be empty.
        self.empty_at = self.empty_at.map(|_| self.read_from + EMPTY_AFTER);
    }

    async fn idle(&mut self, last: bool) {
        let Service { destination, stop, .. } = &self.service;
        let idle = self.service.guarded(async { destination.idle(last).await });
        let idle = tokio::select! {
            idle = idle => idle,
            () = stop.hard.cancelled(), if !last => return,
        };
        if let Err(why) = idle {
            warn!(destination = self.service.name, why, "destination did not come to rest");
        }
        self.idle_at = Instant::now() + IDLE_INTERVAL;
    }

    async fn end(&mut self) {
        let settled =
            !self.window.is_dirty() || matches!(tokio::time::timeout(LAST_ANSWER, self.try_settle()).await, Ok(Ok(())));
        // A file that is completed while its last events are not noted as delivered would get them again.
        if settled {
            self.idle(true).await;
        }
        self.reporter.stopped();
    }
}

impl Service {
    /// Returns a new event's state.
    fn prepare(&self, record: &Record, event: &RecordEvent, id: &str, limits: Limits, now: Instant) -> Slot {
        let event = export::export_event(record, event, id);
        let encoded = catch_unwind(AssertUnwindSafe(|| self.destination.encode(&event))).unwrap_or_else(|_| {
            self.panicked();
            Encoded::Reject("encoding panicked".to_owned())
        });
        match encoded {
            Encoded::Skip(reason) => Slot::Settled(Fate::Skipped(reason)),
            Encoded::Reject(why) => Slot::Dying(why),
            Encoded::Item(item) => match pack::oversize(item.size, limits) {
                Some(why) => Slot::Dying(why),
                None => Slot::Waiting(Waiting {
                    item,
                    tries: Tries::default(),
                    most: usize::MAX,
                    due: now,
                }),
            },
        }
    }

    /// Sends one request; `None` if a hard stop came before the answer.
    async fn send(&self, items: &[Item], tries: &[Tries]) -> Option<Vec<Verdict>> {
        let again = tries.iter().filter(|tries| tries.sent > 0).count();
        self.counts.retried(again);
        let started = Instant::now();
        let hard_stop = async {
            self.stop.hard.cancelled().await;
            tokio::time::sleep(LAST_ANSWER).await;
        };
        let verdicts = tokio::select! {
            biased;
            answer = self.guarded(async { self.destination.send(items).await }) => match answer {
                Ok(verdicts) => retry::one_per_item(verdicts, items.len()),
                Err(why) => retry::retry_all(items.len(), &why),
            },
            () = hard_stop => return None,
        };
        self.counts.request(retry::outcome(&verdicts), started.elapsed());
        Some(verdicts)
    }

    /// Bounds a destination's work in time and catches its panics.
    async fn guarded<T>(&self, work: impl Future<Output = T>) -> Result<T, String> {
        let guarded = AssertUnwindSafe(work).catch_unwind();
        match tokio::time::timeout(self.settings.timeout, guarded).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => {
                self.panicked();
                Err("destination panicked".to_owned())
            }
            Err(_) => Err(format!("no answer within {:?}", self.settings.timeout)),
        }
    }

    fn panicked(&self) {
        self.counts.panic();
        error!(destination = self.name, "panic in a destination, delivery goes on");
    }
}
