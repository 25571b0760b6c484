//! The drain tasks: one per destination, restarted if one panics, ended together.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::destination::Destination;
use crate::drain::{Drain, DrainStatus, Settings, Stop};
use crate::metrics::{Metrics, TASK_PANICS};
use crate::queue::Queue;

// Long enough not to burn a core on a drain that panics at once, short enough not to matter to the backlog.
const RESTART_WAIT: Duration = Duration::from_secs(1);

/// One destination and how it is served.
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) destination: Arc<dyn Destination>,
    pub(super) settings: Settings,
}

/// The running drains.
pub(super) struct Drains {
    statuses: Vec<(String, Arc<DrainStatus>)>,
    stop: Stop,
    tasks: TaskTracker,
}

impl Drains {
    /// Starts one drain per destination; each waits for the queue to open.
    pub(super) fn start(specs: Vec<Spec>, queue: Arc<dyn Queue>, metrics: Arc<Metrics>) -> Self {
        let (stop, tasks) = (Stop::default(), TaskTracker::new());
        let mut statuses = Vec::with_capacity(specs.len());
        for spec in specs {
            let status = Arc::new(DrainStatus::default());
            statuses.push((spec.name.clone(), Arc::clone(&status)));
            tasks.spawn(keep_draining(
                spec,
                Arc::clone(&queue),
                Arc::clone(&metrics),
                status,
                stop.clone(),
            ));
        }
        Self { statuses, stop, tasks }
    }

    /// Returns each destination's status, in the order of the configuration.
    pub(super) fn statuses(&self) -> Vec<(String, Arc<DrainStatus>)> {
        self.statuses.clone()
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
    loop {
        let consumer = match stop.hard.run_until_cancelled(queue.consumer(&spec.name)).await {
            None => return,
            Some(Ok(consumer)) => consumer,
            Some(Err(error)) => {
                warn!(destination = %spec.name, %error, "cannot open the queue's cursor, will try again");
                if stop
                    .hard
                    .run_until_cancelled(tokio::time::sleep(RESTART_WAIT))
                    .await
                    .is_none()
                {
                    return;
                }
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
        };
        match tokio::spawn(drain.run()).await {
            Ok(_ending) => return,
            Err(_panicked) => {
                metrics.counter(&TASK_PANICS, &["drain"]).increment(1);
                error!(destination = %spec.name, "delivery stopped by a defect, starting it again from its cursor");
                tokio::time::sleep(RESTART_WAIT).await;
            }
        }
    }
}
