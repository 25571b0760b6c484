//! Counts what a queue does: a decorator around any engine, so that engines hold no metrics code.
//!
//! Appends are timed as they happen; everything else is sampled from [`Stats`], once a second and before each scrape.
//! Counters are the engine's own numbers: a missed sample loses nothing, and an append whose caller hung up before the
//! answer is counted like any other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;

use crate::metrics::{self, Metrics};
use crate::queue::{
    AppendError, Appended, Clock, ConsumeError, Consumer, ConsumerStats, DeadLetter, Entry, Position, Queue, Stats,
    Wanted,
};

/// A queue whose doings are counted.
pub struct Observed {
    inner: Arc<dyn Queue>,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// Labels of gauges that were set, so that they go back to 0 when the engine has nothing more to say of them.
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    waiting: BTreeSet<(String, String)>,
    dead: BTreeSet<String>,
}

impl Observed {
    /// Returns a queue that does what `inner` does and counts it.
    pub fn new(inner: Arc<dyn Queue>, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self {
            inner,
            metrics,
            clock,
            shown: Mutex::default(),
        }
    }

    /// Sets every metric that is a state of the queue. Cheap: no disk access.
    pub fn sample(&self) {
        let stats = self.inner.stats();
        let metrics = &self.metrics;
        let available = if stats.unavailable.is_none() { 1.0 } else { 0.0 };
        metrics.gauge(&metrics::QUEUE_AVAILABLE, &[]).set(available);
        metrics.gauge(&metrics::QUEUE_BYTES, &[]).set(stats.bytes as f64);
        metrics
            .gauge(&metrics::QUEUE_QUARANTINE_BYTES, &[])
            .set(stats.quarantine_bytes() as f64);
        metrics
            .counter(&metrics::QUEUE_CORRUPT_RECORDS, &[])
            .absolute(stats.corrupt_records);
        metrics
            .counter(&metrics::QUEUE_QUARANTINED, &[])
            .absolute(stats.quarantined);
        self.reset_gauges(&stats);
        for (name, letters) in &stats.dead_letters {
            metrics
                .gauge(&metrics::QUEUE_DEAD_LETTERS, &[name])
                .set(*letters as f64);
        }
        let unconfigured = stats.consumers.iter().filter(|consumer| !consumer.attached).count();
        metrics
            .gauge(&metrics::QUEUE_UNCONFIGURED_CURSORS, &[])
            .set(unconfigured as f64);
        let now_ms = (self.clock)();
        for consumer in &stats.consumers {
            let name = consumer.name.as_str();
            let age_ms = consumer.oldest_waiting_ms.map_or(0, |ms| now_ms.saturating_sub(ms));
            metrics
                .gauge(&metrics::DESTINATION_OLDEST_WAITING, &[name])
                .set(age_ms as f64 / 1000.0);
            for (definition, counts) in [
                (&metrics::DESTINATION_RECOVERED, &consumer.recovered),
                (&metrics::DESTINATION_QUEUED, &consumer.queued),
                (&metrics::DESTINATION_REQUEUED, &consumer.requeued),
                (&metrics::DESTINATION_EVICTED, &consumer.evicted),
                (&metrics::DESTINATION_CORRUPT, &consumer.corrupt),
            ] {
                for (environment, events) in counts {
                    metrics.counter(definition, &[environment, name]).absolute(*events);
                }
            }
            for (limit, events) in &consumer.limits {
                metrics
                    .counter(&metrics::DESTINATION_LIMITED, &[name, limit])
                    .absolute(*events);
            }
            for (environment, events) in &consumer.waiting {
                let gauge = metrics.gauge(&metrics::DESTINATION_WAITING, &[environment, name]);
                gauge.set(*events as f64);
            }
        }
    }

    fn reset_gauges(&self, stats: &Stats) {
        let now = Shown {
            dead: stats.dead_letters.iter().map(|(name, _)| name.clone()).collect(),
            waiting: waiting(stats).collect(),
        };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for name in shown.dead.difference(&now.dead) {
            self.metrics.gauge(&metrics::QUEUE_DEAD_LETTERS, &[name]).set(0.0);
        }
        for (environment, name) in shown.waiting.difference(&now.waiting) {
            let labels = [environment.as_str(), name.as_str()];
            self.metrics.gauge(&metrics::DESTINATION_WAITING, &labels).set(0.0);
        }
        *shown = now;
    }
}

fn waiting(stats: &Stats) -> impl Iterator<Item = (String, String)> {
    let of = |consumer: &ConsumerStats| {
        let name = consumer.name.clone();
        let environments = consumer.waiting.clone().into_iter();
        environments.map(move |(environment, _)| (environment, name.clone()))
    };
    stats.consumers.iter().flat_map(of)
}

#[async_trait]
impl Queue for Observed {
    async fn append(&self, entry: Entry) -> Result<Appended, AppendError> {
        let start = Instant::now();
        let outcome = self.inner.append(entry).await;
        if let Ok(Appended::Stored(_)) = outcome {
            let seconds = start.elapsed().as_secs_f64();
            self.metrics
                .histogram(&metrics::QUEUE_APPEND_SECONDS, &[])
                .record(seconds);
        }
        outcome
    }

    async fn consumer(&self, name: &str) -> Result<Box<dyn Consumer>, ConsumeError> {
        self.inner.consumer(name).await
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    async fn close(&self) {
        self.inner.close().await;
    }

    async fn dead_letters(&self, name: &str, limit: usize) -> Result<Vec<DeadLetter>, ConsumeError> {
        self.inner.dead_letters(name, limit).await
    }

    async fn find_dead_letters(
        &self,
        name: &str,
        limit: usize,
        wanted: Wanted,
    ) -> Result<Vec<DeadLetter>, ConsumeError> {
        self.inner.find_dead_letters(name, limit, wanted).await
    }

    async fn requeue_dead_letters(&self, name: &str, letters: &[(Position, u32)]) -> Result<u64, ConsumeError> {
        self.inner.requeue_dead_letters(name, letters).await
    }

    async fn remove_dead_letters(&self, name: &str, letters: &[(Position, u32)]) -> Result<(), ConsumeError> {
        self.inner.remove_dead_letters(name, letters).await
    }

    async fn configure(&self, names: &[String]) -> Result<(), ConsumeError> {
        self.inner.configure(names).await
    }

    async fn remove_cursor(&self, name: &str) -> Result<(), ConsumeError> {
        self.inner.remove_cursor(name).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::queue::contract::{LAKE, Rig, commit, consumer, letter, store, take};
    use crate::queue::memory::MemoryQueue;
    use crate::queue::{Position, Settings};

    async fn observed(settings: Settings) -> (Rig, Arc<Observed>, Arc<dyn Queue>, Arc<Metrics>) {
        let mut rig =
            Rig::new(|settings, destinations, clock| Arc::new(MemoryQueue::start(settings, destinations, clock)));
        rig.settings = settings;
        let metrics = Arc::new(Metrics::new());
        let now_ms = rig.now_ms() + 4000;
        let clock: Clock = Arc::new(move || now_ms);
        let observed = Arc::new(Observed::new(rig.open().await, Arc::clone(&metrics), clock));
        let queue: Arc<dyn Queue> = Arc::clone(&observed) as Arc<dyn Queue>;
        (rig, observed, queue, metrics)
    }

    fn value(metrics: &Metrics, line: &str) -> Option<f64> {
        let text = metrics.render();
        let found = text.lines().find_map(|candidate| candidate.strip_prefix(line))?;
        found.trim().parse().ok()
    }

    #[tokio::test]
    async fn what_waits_goes_back_to_zero() {
        let (rig, observed, queue, metrics) = observed(Settings::default()).await;
        let waiting = "flagtap_destination_events_waiting{environment=\"a\",destination=\"lake\"}";
        let oldest = "flagtap_destination_oldest_waiting_seconds{destination=\"lake\"}";
        let queued = "flagtap_destination_events_queued_total{environment=\"a\",destination=\"lake\"}";
        let mut lake = consumer(&queue, LAKE).await;
        let position = store(&queue, rig.entry("a", &[LAKE], 3)).await;
        observed.sample();
        assert_eq!(value(&metrics, waiting), Some(3.0));
        assert_eq!(value(&metrics, oldest), Some(4.0));
        take(&mut lake, 1).await;
        commit(&mut lake, position).await;
        observed.sample();
        observed.sample();
        assert_eq!(value(&metrics, waiting), Some(0.0));
        assert_eq!(value(&metrics, oldest), Some(0.0));
        assert_eq!(value(&metrics, queued), Some(3.0));
        assert_eq!(value(&metrics, "flagtap_queue_append_seconds_count"), Some(1.0));
    }

    #[tokio::test]
    async fn losses_dead_letters_and_availability_are_shown() {
        let settings = Settings {
            max_age: Duration::from_secs(1),
            ..Settings::default()
        };
        let (rig, observed, queue, metrics) = observed(settings).await;
        store(&queue, rig.entry("a", &[LAKE], 2)).await;
        rig.pass(Duration::from_secs(2));
        consumer(&queue, LAKE)
            .await
            .bury(vec![letter(Position(1), 0)])
            .await
            .unwrap();
        observed.sample();
        let evicted = "flagtap_destination_events_evicted_total{environment=\"a\",destination=\"lake\"}";
        let dead = "flagtap_queue_dead_letters{destination=\"lake\"}";
        assert_eq!(value(&metrics, evicted), Some(2.0));
        let limited = "flagtap_destination_events_limited_total{destination=\"lake\",limit=\"max_age\"}";
        assert_eq!(value(&metrics, limited), Some(2.0));
        assert_eq!(value(&metrics, dead), Some(1.0));
        assert_eq!(value(&metrics, "flagtap_queue_available"), Some(1.0));
        queue.remove_dead_letters(LAKE, &[(Position(1), 0)]).await.unwrap();
        queue.close().await;
        observed.sample();
        assert_eq!(value(&metrics, dead), Some(0.0));
        assert_eq!(value(&metrics, "flagtap_queue_available"), Some(0.0));
    }
}
