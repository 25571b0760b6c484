//! How a delivery is going, for people: the status page, the log and the gauge of a refused configuration.
//!
//! Owns the words and the rhythm: a WARN when delivery begins to fail and once a minute while it does, an INFO when it
//! recovers. Never says anything of an event's content. Decides nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::Gauge;
use tokio::time::Instant;
use tracing::{info, warn};

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
    /// When the destination last acknowledged an event, since the start.
    pub last_delivered: Option<SystemTime>,
    /// Why the queue could not be read or committed to, while it cannot.
    pub queue_error: Option<String>,
}

/// The status of one drain, shared between the drain and whoever shows it.
#[derive(Debug, Default)]
pub struct DrainStatus {
    snapshot: Mutex<Snapshot>,
}

impl DrainStatus {
    /// Returns the status now.
    pub fn get(&self) -> Snapshot {
        self.lock().clone()
    }

    // A snapshot is written field by field with whole values, so it is good even if a writer panicked.
    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    failing_since: Option<SystemTime>,
    warned: bool,
    failure_logged: Option<Instant>,
    queue_logged: Option<Instant>,
    dead_logged: Option<Instant>,
    dead_unsaid: usize,
}

impl Reporter {
    pub(super) fn new(destination: String, status: Arc<DrainStatus>, blocked: Gauge) -> Self {
        blocked.set(0.0);
        Self {
            destination,
            status,
            blocked,
            failing_since: None,
            warned: false,
            failure_logged: None,
            queue_logged: None,
            dead_logged: None,
            dead_unsaid: 0,
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

    /// Events were kept as dead letters.
    pub(super) fn buried(&mut self, events: usize, why: &str) {
        self.dead_unsaid += events;
        if due(&mut self.dead_logged) {
            let events = std::mem::take(&mut self.dead_unsaid);
            warn!(
                destination = self.destination,
                why, events, "events refused, kept as dead letters"
            );
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
