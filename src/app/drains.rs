//! The drain tasks: one per destination that is not paused, with the one that has its dead letters sent again; restarted
//! if one panics, ended one by one or together.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::destination::Destination;
use crate::drain::{Drain, DrainStatus, Settings, Stop, redeliver};
use crate::metrics::{DESTINATION_BLOCKED, DESTINATION_BREAKER, Metrics, TASK_PANICS};
use crate::queue::{Queue, system_clock};

// Long enough not to burn a core on a drain that panics at once, short enough not to matter to the backlog.
const RESTART_WAIT: Duration = Duration::from_secs(1);

/// One destination and how it is served.
pub(super) struct Spec {
    pub(super) name: String,
    /// The folder that it alone may write to, if it needs one.
    pub(super) folder: Option<PathBuf>,
    pub(super) destination: Arc<dyn Destination>,
    pub(super) settings: Settings,
}

/// The drains, those that are told to end included.
pub(super) struct Drains {
    queue: Arc<dyn Queue>,
    metrics: Arc<Metrics>,
    stop: Stop,
    running: Vec<Running>,
    tasks: TaskTracker,
}

struct Running {
    name: String,
    folder: Option<PathBuf>,
    status: Arc<DrainStatus>,
    stop: Stop,
    /// It was told to end.
    leaving: bool,
    /// Cancelled when it has ended.
    ended: CancellationToken,
}

impl Drains {
    /// Returns no drain yet. Each that is started waits for the queue to open.
    pub(super) fn new(queue: Arc<dyn Queue>, metrics: Arc<Metrics>) -> Self {
        Self {
            queue,
            metrics,
            stop: Stop::default(),
            running: Vec::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Starts a drain. If one of this name, or one with the same folder, is on its way out, the new one waits for its
    /// end: two must not share a cursor or a file.
    pub(super) fn start(&mut self, spec: Spec) {
        self.running.retain(|drain| !drain.ended.is_cancelled());
        let shares =
            |drain: &&Running| drain.name == spec.name || (drain.folder.is_some() && drain.folder == spec.folder);
        let before = self.running.iter().filter(shares).map(|drain| drain.ended.clone());
        let before: Vec<CancellationToken> = before.collect();
        let running = Running {
            name: spec.name.clone(),
            folder: spec.folder.clone(),
            status: Arc::new(DrainStatus::default()),
            stop: Stop {
                soft: self.stop.soft.child_token(),
                hard: self.stop.hard.child_token(),
            },
            leaving: false,
            ended: CancellationToken::new(),
        };
        let (queue, metrics) = (Arc::clone(&self.queue), Arc::clone(&self.metrics));
        let (status, stop) = (Arc::clone(&running.status), running.stop.clone());
        // Cancelled also if the task is dropped.
        let ended = running.ended.clone().drop_guard();
        self.running.push(running);
        self.tasks.spawn(async move {
            for earlier in before {
                earlier.cancelled().await;
            }
            keep_draining(spec, queue, metrics, status, stop).await;
            drop(ended);
        });
    }

    /// Tells the drain of this name to end at once: what is not delivered stays in the queue. Does not wait for it.
    pub(super) fn end(&mut self, name: &str) {
        for drain in self.running.iter_mut().filter(|drain| drain.name == name) {
            drain.leaving = true;
            drain.stop.hard.cancel();
        }
    }

    /// Returns the status of the drain of this name, if one is running.
    pub(super) fn status(&self, name: &str) -> Option<Arc<DrainStatus>> {
        let found = self.running.iter().find(|drain| drain.name == name && !drain.leaving);
        found.map(|drain| Arc::clone(&drain.status))
    }

    /// Has the drains deliver what waits until `soft_end`, then end by `end`; each notes what was delivered. To be
    /// called when nothing is appended any more.
    pub(super) async fn stop(self, soft_end: Instant, end: Instant) {
        self.stop.soft.cancel();
        self.tasks.close();
        if timeout_at(soft_end, self.tasks.wait()).await.is_ok() {
            return;
        }
        self.stop.hard.cancel();
        if timeout_at(end, self.tasks.wait()).await.is_err() {
            warn!("a destination did not end in time; what it was sent last may be sent again");
        }
    }
}

async fn keep_draining(spec: Spec, queue: Arc<dyn Queue>, metrics: Arc<Metrics>, status: Arc<DrainStatus>, stop: Stop) {
    while !stop.hard.is_cancelled() {
        let consumer = match stop.hard.run_until_cancelled(queue.consumer(&spec.name)).await {
            None => break,
            Some(Ok(consumer)) => consumer,
            Some(Err(error)) => {
                warn!(destination = %spec.name, %error, "cannot open the queue's cursor, will try again");
                let _ = stop.hard.run_until_cancelled(tokio::time::sleep(RESTART_WAIT)).await;
                continue;
            }
        };
        let drain = Drain {
            name: spec.name.clone(),
            consumer,
            destination: Arc::clone(&spec.destination),
            metrics: Arc::clone(&metrics),
            settings: spec.settings.clone(),
            status: Arc::clone(&status),
            stop: stop.clone(),
            clock: system_clock(),
        };
        let (name, letters, shown) = (spec.name.clone(), Arc::clone(&queue), Arc::clone(&status));
        let soft = stop.soft.clone();
        let running = async move {
            let mut delivery = pin!(drain.run());
            tokio::select! {
                ending = &mut delivery => return ending,
                // Once nothing is appended any more, letters are not either.
                _ = soft.run_until_cancelled(redeliver(&name, &*letters, &shown)) => {}
            }
            delivery.await
        };
        match tokio::spawn(running).await {
            Ok(_ending) => break,
            Err(_panicked) => {
                metrics.counter(&TASK_PANICS, &["drain"]).increment(1);
                error!(destination = %spec.name, "delivery stopped by a defect, starting it again from its cursor");
                tokio::time::sleep(RESTART_WAIT).await;
            }
        }
    }
    // Whoever comes next finds out for itself.
    for gauge in [&DESTINATION_BLOCKED, &DESTINATION_BREAKER] {
        metrics.gauge(gauge, &[&spec.name]).set(0.0);
    }
}
