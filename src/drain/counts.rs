//! What a drain counts. Destinations and consumers count nothing themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::Gauge;

use super::fate::Fate;
use crate::metrics::{self, Metrics};

/// The counters of one destination.
pub(super) struct Counts {
    destination: String,
    metrics: Arc<Metrics>,
}

impl Counts {
    pub(super) fn new(destination: String, metrics: Arc<Metrics>) -> Self {
        Self { destination, metrics }
    }

    /// Returns the gauge of a refused configuration.
    pub(super) fn blocked(&self) -> Gauge {
        self.metrics.gauge(&metrics::DESTINATION_BLOCKED, &[&self.destination])
    }

    /// Returns the gauge of the breaker.
    pub(super) fn breaker(&self) -> Gauge {
        self.metrics.gauge(&metrics::DESTINATION_BREAKER, &[&self.destination])
    }

    /// Counts events that are sent again.
    pub(super) fn retried(&self, events: usize) {
        let counter = self
            .metrics
            .counter(&metrics::DESTINATION_RETRIED, &[&self.destination]);
        counter.increment(events as u64);
    }

    /// Counts a request that came to an outcome.
    pub(super) fn request(&self, outcome: &str, took: Duration) {
        let labels = [self.destination.as_str(), outcome];
        self.metrics
            .counter(&metrics::DESTINATION_REQUESTS, &labels)
            .increment(1);
        let seconds = self
            .metrics
            .histogram(&metrics::DESTINATION_REQUEST_SECONDS, &labels[..1]);
        seconds.record(took.as_secs_f64());
    }

    /// Counts a destination's panic.
    pub(super) fn panic(&self) {
        self.metrics.counter(&metrics::TASK_PANICS, &["drain"]).increment(1);
    }

    /// Counts events that ended, by environment. Called when the queue has noted it and not before: so the counters
    /// agree with what still waits in the queue, also after a crash.
    pub(super) fn ended(&self, ended: &BTreeMap<(String, Fate), u64>) {
        for ((environment, fate), events) in ended {
            let labels = [environment.as_str(), self.destination.as_str()];
            let counter = match fate {
                Fate::Delivered => self.metrics.counter(&metrics::DESTINATION_DELIVERED, &labels),
                Fate::Dead => self.metrics.counter(&metrics::DESTINATION_DEAD, &labels),
                Fate::Dropped => self.metrics.counter(&metrics::DESTINATION_DROPPED, &labels),
                Fate::Skipped(reason) => {
                    let labels = [labels[0], labels[1], *reason];
                    self.metrics.counter(&metrics::DESTINATION_SKIPPED, &labels)
                }
            };
            counter.increment(*events);
        }
    }
}
