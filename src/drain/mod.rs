//! Delivery: one task per destination takes events from the queue until each is acknowledged or given up for itself.
//!
//! Owns the loop `next -> encode -> pack -> send -> verdict per event -> settle`, its settings and its status.
//! Promises: an event leaves only as delivered, skipped or dead-lettered; what a request came to is durably noted before
//! another takes its place, so a crash repeats at most the requests under way (one, if not configured otherwise); a
//! failing event holds back no others until the window is full, and a failing destination gets one request at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::destination::{Destination, Limits, Verdict};
use crate::metrics::Metrics;
use crate::queue::{ConsumeError, Consumer, Limit, Position, now_ms};
use crate::record::Record;

mod counts;
mod flights;
mod note;
mod pack;
mod retry;
mod service;
mod settings;
mod status;
#[cfg(test)]
mod tests;
mod window;

pub use settings::Settings;
pub use status::{DrainStatus, Snapshot, State};

use counts::Counts;
use flights::{Flights, Landed, Origin};
use service::Service;
use status::{Failure, Reporter};
use window::{Slot, Waiting, Window};

/// How often a destination that gets nothing to send may look after itself ([`Destination::idle`]).
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// The wait before a queue that failed is asked again.
const QUEUE_WAIT: Duration = Duration::from_secs(1);

/// A queue that yields nothing for this long during a soft stop is empty.
const EMPTY_AFTER: Duration = Duration::from_millis(500);

/// How long after a hard stop the answers to the requests under way are still awaited: every answer that arrives saves
/// the destination a duplicate.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// How long events wait beside a request under way for others to fill a request with. Where nothing is under way they
/// do not wait.
const LINGER: Duration = Duration::from_millis(100);

/// Events encoded between two looks at everything else: a fraction of a millisecond.
const ENCODED_AT_ONCE: usize = 64;

/// The two ways to end a drain. The caller cancels `soft` once nothing is appended any more, and `hard` when the time
/// left is only enough to note what was delivered (it takes up to a second for an answer, and a commit).
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Deliver what waits (failed events get one try at once), then end.
    pub soft: CancellationToken,
    /// End now: undelivered events stay in the queue for the next start.
    pub hard: CancellationToken,
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

struct Task {
    consumer: Box<dyn Consumer>,
    service: Arc<Service>,
    window: Window,
    flights: Flights,
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
            flights: Flights::default(),
            schedule: retry::Schedule::new(settings.retry, fastrand::Rng::new()),
            reporter: Reporter::new(name.clone(), status, counts.blocked()),
            read_from: now,
            idle_at: now + IDLE_INTERVAL,
            empty_at: None,
            service: Arc::new(Service {
                name,
                destination,
                counts,
                settings,
                stop,
            }),
        }
    }

    async fn work(&mut self) -> Ending {
        loop {
            if self.service.stop.hard.is_cancelled() {
                return Ending::Stopped;
            }
            self.land();
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
            let next = self.launch(now);
            if let Err(ending) = self.wait(now, next).await {
                return ending;
            }
        }
    }

    /// Returns when the next event is due, as far as the destination is not in trouble.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let due = self.window.next_due(now)?;
        Some(self.schedule.trouble().map_or(due, |trouble| due.max(trouble.until)))
    }

    /// Starts the requests that are due. Returns when to look again, if not at an answer.
    fn launch(&mut self, now: Instant) -> Option<Instant> {
        let limits = self.service.destination.limits();
        while self.flights.count() < self.service.settings.requests(limits) {
            // Those that were sent before the trouble may hang for long; one that was sent since tells how it stands.
            if self.schedule.trouble().is_some() && self.flights.sent_knowing(self.schedule.known()) > 0 {
                return None;
            }
            let due = self.next_due(now)?;
            if due > now {
                return Some(due);
            }
            let loads = self.window.due(now).map(|waiting| pack::Load {
                size: waiting.item.size,
                most: waiting.most,
                key: &waiting.item.key,
            });
            let request = pack::fill(loads, limits);
            if !request.full && self.window.has_unopened() {
                return None;
            }
            if !request.full && self.flights.count() > 0 {
                let first = self.window.due(now).map(|waiting| waiting.due).min();
                let lingered = first.map(|first| first + LINGER);
                if lingered.is_some_and(|until| until > now) {
                    return lingered;
                }
            }
            self.send(now, request.count);
        }
        None
    }

    /// Starts a request with the first `count` events that are due.
    fn send(&mut self, now: Instant, count: usize) {
        let (mut places, mut items, mut tries) = (
            Vec::with_capacity(count),
            Vec::with_capacity(count),
            Vec::with_capacity(count),
        );
        for (place, waiting) in self.window.take(now, count) {
            places.push(Origin {
                place,
                most: waiting.most,
                due: waiting.due,
            });
            items.push(waiting.item);
            tries.push(waiting.tries);
        }
        self.reporter.sending();
        self.idle_at = now + IDLE_INTERVAL;
        let (service, known) = (Arc::clone(&self.service), self.schedule.known());
        self.flights.start(known, async move {
            let verdicts = service.send(&items, &tries).await;
            Landed {
                places,
                items,
                tries,
                known,
                verdicts,
            }
        });
    }

    /// Waits for an answer, for new events, until `next`, or for the end.
    async fn wait(&mut self, now: Instant, next: Option<Instant>) -> Result<(), Ending> {
        if self.idle_at <= now && self.flights.count() == 0 {
            self.idle(false).await;
        }
        let limits = self.service.destination.limits();
        let room = self
            .window
            .room(self.service.settings.window(limits))
            .filter(|_| self.read_from <= now);
        let limit = room.map_or(Limit { records: 1, bytes: 1 }, |room| Limit {
            records: room.records.min(limits.items).max(1),
            bytes: room.bytes.min(limits.bytes).max(1),
        });
        let later = Some(self.read_from).filter(|at| *at > now);
        let times = [next, later, self.empty_at, Some(self.idle_at)];
        let wake = times.into_iter().flatten().filter(|at| *at > now).min();
        let stop = &self.service.stop;
        tokio::select! {
            biased;
            () = stop.hard.cancelled() => {}
            () = stop.soft.cancelled(), if self.empty_at.is_none() => {}
            () = self.flights.answered() => {}
            () = tokio::time::sleep_until(wake.unwrap_or(now + IDLE_INTERVAL)) => {}
            read = self.consumer.next(limit), if room.is_some() => match read {
                Ok(records) => self.take_in(records),
                Err(ConsumeError::Closed) => return Err(Ending::QueueClosed),
                Err(ConsumeError::Unavailable { why }) => self.queue_failed(&why),
            },
            // Last, so that answers are heard and the next records are read while these are encoded.
            () = tokio::task::yield_now(), if self.window.has_unopened() => self.encode(limits),
        }
        Ok(())
    }

    fn take_in(&mut self, records: Vec<(Position, Record)>) {
        self.reporter.queue_works();
        if records.is_empty() {
            // A consumer waits for records; one that returns without any must not be asked in a busy loop.
            self.read_from = Instant::now() + Duration::from_millis(10);
        }
        self.window.take_in(records);
    }

    /// Encodes some of the events that were read.
    fn encode(&mut self, limits: Limits) {
        let (service, now, mut events) = (&self.service, Instant::now(), 0);
        while events < ENCODED_AT_ONCE && self.window.has_unopened() {
            events += self
                .window
                .open(|record, event| service.prepare(record, event, limits, now));
        }
    }

    /// Brings the answers that have come into the window.
    fn land(&mut self) {
        while let Some(landed) = self.flights.take() {
            let Landed {
                places,
                items,
                tries,
                known,
                verdicts,
            } = landed;
            let now = Instant::now();
            let verdicts = verdicts.unwrap_or_default();
            let delivered = verdicts.contains(&Verdict::Delivered);
            let why = verdicts.iter().find_map(retry::failure).map(str::to_owned);
            let next = self.schedule.judge(now, known, &tries, verdicts);
            let halved = items.len().div_ceil(2);
            let mut next = next.into_iter();
            for ((Origin { place, most, due }, item), tries) in places.into_iter().zip(items).zip(tries) {
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
    }

    fn report(&mut self, now: Instant, delivered: bool, why: Option<String>) {
        if delivered {
            self.reporter.delivered();
        }
        let events = self.window.failed();
        let wait = self.next_due(now).map_or(Duration::ZERO, |at| at.duration_since(now));
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
                () = self.flights.meanwhile(tokio::time::sleep(QUEUE_WAIT)) => {}
            }
        }
    }

    async fn try_settle(&mut self) -> Result<(), ConsumeError> {
        let letters = self.window.letters(&self.service.name, now_ms());
        if let Some(last) = letters.last() {
            let (events, why) = (letters.len(), last.why.clone());
            self.flights.meanwhile(self.consumer.bury(letters)).await?;
            self.window.buried();
            self.reporter.buried(events, &why);
        }
        let beyond = self.window.settled_beyond();
        let note = note::encode(beyond.iter().map(|entry| (entry.position, entry.fates.as_slice())));
        let commit = self.consumer.commit(self.window.settled_to(), &note);
        self.flights.meanwhile(commit).await?;
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
        let Service { destination, stop, .. } = &*self.service;
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
        if self.service.stop.hard.is_cancelled() {
            self.flights.all_answered().await;
            self.land();
        }
        let settled =
            !self.window.is_dirty() || matches!(tokio::time::timeout(LAST_ANSWER, self.try_settle()).await, Ok(Ok(())));
        // A file that is completed while its last events are not noted as delivered would get them again.
        if settled && self.flights.count() == 0 {
            self.idle(true).await;
        }
        self.reporter.stopped();
    }
}
