//! Delivery: one task per destination takes events from the queue until each is acknowledged or given up for itself.
//!
//! Owns the loop `next -> encode -> pack -> send -> verdict per event -> settle`, its settings and its status.
//! Promises: an event leaves only as delivered, skipped or dead-lettered, or dropped where that is configured; what a
//! request came to is durably noted before another takes its place, so a crash repeats at most the requests under way
//! (one, if not configured otherwise) and takes no event's tries; a failing event holds back no others until the window
//! is full, and is then set aside, and a failing destination gets one request at a time, a small one if it is down.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::destination::{Destination, Limits};
use crate::metrics::Metrics;
use crate::queue::{Clock, ConsumeError, Consumer, Limit, Position};
use crate::record::Record;

mod answers;
mod breaker;
mod counts;
mod fate;
mod flights;
mod note;
mod pack;
mod redelivery;
mod retry;
mod service;
mod settings;
mod settling;
mod slot;
mod status;
#[cfg(test)]
mod tests;
mod window;

pub use breaker::Breaker;
pub use note::{Noted, noted};
pub use redelivery::{redeliver, requeue_transient};
pub use settings::Settings;
pub use status::{DrainStatus, Snapshot, State};

use counts::Counts;
use fate::Tries;
use flights::{Flights, Landed, Origin};
use service::Service;
use settling::recalled;
use status::Reporter;
use window::Window;

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
    /// The time, for what is kept: when an event was given up, and when one is to be tried again.
    pub clock: Clock,
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

struct Task {
    consumer: Box<dyn Consumer>,
    service: Arc<Service>,
    window: Window,
    flights: Flights,
    policy: retry::Policy,
    reporter: Reporter,
    clock: Clock,
    /// The queue is not read before.
    read_from: Instant,
    idle_at: Instant,
    /// When events that failed were last tried before their time to make room in the window.
    tried_early: Instant,
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
            clock,
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
            policy: retry::Policy::new(settings.retry, fastrand::Rng::new()),
            reporter: Reporter::new(name.clone(), status, counts.blocked(), counts.breaker()),
            clock,
            read_from: now,
            tried_early: now,
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
            let was_empty = self.window.is_empty();
            self.land();
            self.make_room();
            if self.window.is_dirty()
                && let Err(ending) = self.settle().await
            {
                return ending;
            }
            let now = Instant::now();
            if self.empty_at.is_none() && self.service.stop.soft.is_cancelled() {
                self.empty_at = Some(now + EMPTY_AFTER);
                self.policy.gate.hurry(now);
                self.window.hurry(now, |_| true);
            }
            if !was_empty || !self.window.is_empty() {
                // The queue may have had no chance to yield more: its time starts when nothing is held.
                self.empty_at = self.empty_at.map(|_| now + EMPTY_AFTER);
            } else if self.empty_at.is_some_and(|at| at <= now) {
                return Ending::Drained;
            }
            if self.window.is_empty() {
                self.reporter.idle();
            }
            let next = self.launch(now);
            if let Err(ending) = self.wait(now, next).await {
                return ending;
            }
        }
    }

    /// Returns when something is to be sent next, as far as the destination is not in trouble.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let due = self.window.next_due(now)?;
        Some(match self.policy.gate.trouble() {
            // One that is down is tried whether or not an event is due.
            Some(trouble) if trouble.until > now && self.policy.gate.state() == Breaker::Open => trouble.until,
            Some(trouble) => due.max(trouble.until),
            None => due,
        })
    }

    /// Has events tried before their time where that helps all of them. Returns when to ask again.
    fn try_early(&mut self, now: Instant, due: Instant, limits: Limits) -> Instant {
        if self.policy.gate.state() == Breaker::Open {
            self.window.hurry_one(now);
            return self.window.next_due(now).unwrap_or(due);
        }
        let is_crowded = self.window.room(self.service.settings.window(limits)).is_none();
        if !is_crowded || self.flights.count() > 0 {
            return due;
        }
        let at = self.tried_early + self.service.settings.retry.max;
        if at > now {
            return due.min(at);
        }
        self.tried_early = now;
        self.window
            .hurry(now, |tries| tries.asked.is_none_or(|asked| asked <= now));
        self.window.next_due(now).unwrap_or(due)
    }

    /// Starts the requests that are due. Returns when to look again, if not at an answer.
    fn launch(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let limits = self.policy.gate.narrow(self.limits());
            if self.flights.count() >= limits.requests {
                return None;
            }
            // Those that were sent before the trouble may hang for long; one that was sent since tells how it stands.
            let gate = &self.policy.gate;
            if gate.trouble().is_some() && self.flights.sent_knowing(gate.known()) > 0 {
                return None;
            }
            let mut due = self.next_due(now)?;
            if due > now && self.policy.gate.trouble().is_none_or(|trouble| trouble.until <= now) {
                due = self.try_early(now, due, limits);
            }
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
    }

    /// Returns what the destination takes when it works, in as many requests at once as configured.
    fn limits(&self) -> Limits {
        let limits = self.service.destination.limits();
        Limits {
            requests: self.service.settings.requests(limits),
            ..limits
        }
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
        let (service, known) = (Arc::clone(&self.service), self.policy.gate.known());
        self.flights.start(known, async move {
            let verdicts = service.send(&items, &tries).await;
            Landed {
                places,
                items,
                tries,
                sent: now,
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
        self.window.turned(self.reporter.turns());
        self.window.take_in(records);
    }

    /// Encodes some of the events that were read.
    fn encode(&mut self, limits: Limits) {
        let (service, now, mut events) = (&self.service, Instant::now(), 0);
        let (waits, clock) = (self.policy.waits(), &self.clock);
        // At the end everything is tried once more, also what failed in an earlier process and is read only now.
        let is_ending = self.empty_at.is_some();
        while events < ENCODED_AT_ONCE && self.window.has_unopened() {
            events += self.window.open(|record, event, failed| {
                let tries = failed.map_or_else(Tries::default, |failed| recalled(failed, waits, clock(), now));
                let due = tries.planned.filter(|_| !is_ending).unwrap_or(now);
                service.prepare(record, event, limits, tries, due)
            });
        }
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
