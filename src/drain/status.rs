//! How a delivery is going, for people: the status page, the log and the gauges of a destination in trouble.
//!
//! Owns the words and the rhythm: a WARN when delivery begins to fail and once a minute while it does, an INFO when it
//! recovers. Never says anything of an event's content. Decides nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::Gauge;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::breaker::Breaker;

const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What a drain is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing waits.
    #[default]
    Idle,
    /// Events are on their way.
    Delivering,
    /// Events failed and are sent again; new ones may be delivered meanwhile.
    Retrying {
        /// What the destination or the network said last.
        why: String,
        /// When delivery began to fail.
        since: SystemTime,
        /// When the next try is made.
        next: SystemTime,
    },
    /// The destination refuses flagtap's configuration: somebody has to correct it. Nothing is lost meanwhile.
    Blocked {
        /// What the destination said.
        why: String,
        /// When delivery began to fail.
        since: SystemTime,
        /// When the next try is made.
        next: SystemTime,
    },
    /// The drain has ended.
    Stopped,
}

/// What [`DrainStatus::get`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What the drain is doing.
    pub state: State,
    /// How much the destination gets.
    pub breaker: Breaker,
    /// When the destination last acknowledged an event, since the start.
    pub last_delivered: Option<SystemTime>,
    /// Why the queue could not be read or committed to, while it cannot.
    pub queue_error: Option<String>,
}

/// The status of one drain, shared between the drain and whoever shows it.
#[derive(Debug, Default)]
pub struct DrainStatus {
    snapshot: Mutex<Snapshot>,
    turns: watch::Sender<u64>,
}

impl DrainStatus {
    /// Returns the status now.
    pub fn get(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Returns how often the destination began or ceased to work since the start: it works while the number is odd.
    pub(super) fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    fn turn(&self, works: bool) {
        self.turns.send_if_modified(|turns| {
            let turned = works != is_working(*turns);
            *turns += u64::from(turned);
            turned
        });
    }

    // A snapshot is written field by field with whole values, so it is good even if a writer panicked.
    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether the destination works, after so many turns.
pub(super) fn is_working(turns: u64) -> bool {
    turns % 2 == 1
}

/// Delivery that fails, as it stands after a request.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the destination or the network said.
    pub(super) why: String,
    /// The destination refuses flagtap's configuration.
    pub(super) blocked: bool,
    /// Until the next try.
    pub(super) wait: Duration,
    /// Events that wait to be sent again.
    pub(super) events: usize,
}

/// Keeps the status and writes the log.
#[derive(Debug)]
pub(super) struct Reporter {
    destination: String,
    status: Arc<DrainStatus>,
    blocked: Gauge,
    breaker: Gauge,
    failing_since: Option<SystemTime>,
    warned: bool,
    failure_logged: Option<Instant>,
    queue_logged: Option<Instant>,
    dead: Losses,
    given_up: Losses,
    dropped: Losses,
    opened_logged: Option<Instant>,
}

/// Events to be told of once a minute.
#[derive(Debug, Default)]
struct Losses {
    logged: Option<Instant>,
    unsaid: usize,
}

impl Losses {
    /// Returns how many there were since this last returned any, if it is time to tell.
    fn add(&mut self, events: usize) -> Option<usize> {
        self.unsaid += events;
        (self.unsaid > 0 && due(&mut self.logged)).then(|| std::mem::take(&mut self.unsaid))
    }
}

impl Reporter {
    pub(super) fn new(destination: String, status: Arc<DrainStatus>, blocked: Gauge, breaker: Gauge) -> Self {
        blocked.set(0.0);
        breaker.set(0.0);
        status.turn(false);
        Self {
            destination,
            status,
            blocked,
            breaker,
            failing_since: None,
            warned: false,
            failure_logged: None,
            queue_logged: None,
            dead: Losses::default(),
            given_up: Losses::default(),
            dropped: Losses::default(),
            opened_logged: None,
        }
    }

    /// Events are being sent. A failing delivery keeps its state until the answer is known.
    pub(super) fn sending(&self) {
        if self.failing_since.is_none() {
            self.status.lock().state = State::Delivering;
        }
    }

    /// Nothing is left to send.
    pub(super) fn idle(&self) {
        if self.failing_since.is_none() {
            self.status.lock().state = State::Idle;
        }
    }

    /// The destination acknowledged at least one event.
    pub(super) fn delivered(&self) {
        self.status.lock().last_delivered = Some(SystemTime::now());
    }

    /// Returns how often the destination began or ceased to work so far.
    pub(super) fn turns(&self) -> u64 {
        *self.status.turns.borrow()
    }

    /// The destination works, or fails as a whole.
    pub(super) fn works(&self, works: bool) {
        self.status.turn(works);
    }

    /// The destination gets so much now.
    pub(super) fn breaker(&mut self, breaker: Breaker) {
        let before = std::mem::replace(&mut self.status.lock().breaker, breaker);
        if before == breaker {
            return;
        }
        self.breaker.set(match breaker {
            Breaker::Closed => 0.0,
            Breaker::HalfOpen => 1.0,
            Breaker::Open => 2.0,
        });
        let destination = &self.destination;
        match breaker {
            Breaker::Open if due(&mut self.opened_logged) => {
                self.warned = true;
                warn!(
                    destination,
                    "destination is down, single events are tried until it answers"
                );
            }
            Breaker::HalfOpen if self.warned => info!(destination, "destination answers again, what waits follows"),
            _ => {}
        }
    }

    /// The destination works; events that failed wait until `wait` is over.
    pub(super) fn waiting(&mut self, wait: Duration) {
        self.blocked.set(0.0);
        let mut snapshot = self.status.lock();
        if let State::Retrying { why, since, .. } | State::Blocked { why, since, .. } = &snapshot.state {
            snapshot.state = State::Retrying {
                why: why.clone(),
                since: *since,
                next: SystemTime::now() + wait,
            };
        }
    }

    /// Events failed and wait to be sent again.
    pub(super) fn failing(&mut self, failure: Failure) {
        let now = SystemTime::now();
        let since = *self.failing_since.get_or_insert(now);
        let Failure {
            why,
            blocked,
            wait,
            events,
        } = failure;
        if due(&mut self.failure_logged) {
            self.warned = true;
            let destination = &self.destination;
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            if blocked {
                warn!(
                    destination,
                    why, events, wait_ms, "destination refuses the configuration, events are kept"
                );
            } else {
                warn!(destination, why, events, wait_ms, "delivery failed, will retry");
            }
        }
        self.blocked.set(f64::from(u8::from(blocked)));
        let next = now + wait;
        self.status.lock().state = if blocked {
            State::Blocked { why, since, next }
        } else {
            State::Retrying { why, since, next }
        };
    }

    /// No event waits to be sent again.
    pub(super) fn recovered(&mut self) {
        let Some(since) = self.failing_since.take() else {
            return;
        };
        self.blocked.set(0.0);
        self.status.lock().state = State::Delivering;
        if std::mem::take(&mut self.warned) {
            let failed_seconds = since.elapsed().unwrap_or_default().as_secs();
            info!(destination = self.destination, failed_seconds, "delivery recovered");
        }
    }

    /// Events were kept as dead letters: refused for themselves.
    pub(super) fn buried(&mut self, events: usize, why: &str) {
        if let Some(events) = self.dead.add(events) {
            let destination = &self.destination;
            warn!(destination, why, events, "events refused, kept as dead letters");
        }
    }

    /// Events were kept as dead letters: out of tries.
    pub(super) fn gave_up(&mut self, events: usize, why: &str) {
        if let Some(events) = self.given_up.add(events) {
            let destination = &self.destination;
            warn!(destination, why, events, "events out of tries, kept as dead letters");
        }
    }

    /// Events are gone: out of tries.
    pub(super) fn dropped(&mut self, events: usize) {
        if let Some(events) = self.dropped.add(events) {
            let destination = &self.destination;
            error!(destination, events, "events out of tries, dropped as configured");
        }
    }

    /// The queue cannot be read or committed to.
    pub(super) fn queue_failed(&mut self, why: &str) {
        self.status.lock().queue_error = Some(why.to_owned());
        if due(&mut self.queue_logged) {
            warn!(destination = self.destination, why, "delivery waits for the queue");
        }
    }

    /// The queue can be used.
    pub(super) fn queue_works(&mut self) {
        if self.status.lock().queue_error.take().is_some() {
            info!(destination = self.destination, "queue is available again");
        }
    }

    /// The drain has ended.
    pub(super) fn stopped(&self) {
        self.status.lock().state = State::Stopped;
    }
}

fn due(logged: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let due = logged.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL);
    if due {
        *logged = Some(now);
    }
    due
}
