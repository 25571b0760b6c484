//! What is looked at once a second: metrics that are states, and states that somebody should hear of.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::left::for_others;
use crate::metrics::{LOG_LINES_LOST, Metrics};
use crate::queue::observed::Observed;
use crate::queue::{Queue, Stats};

/// How often gauges are brought up to date and histograms folded without a scrape.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Brings the metrics up to date that are states.
pub(super) fn measure(queue: &Observed, metrics: &Metrics) {
    queue.sample();
    metrics.counter(&LOG_LINES_LOST, &[]).absolute(crate::log::lost());
}

/// Looks until it is stopped.
pub(super) async fn sample(queue: Arc<Observed>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut unavailable = false;
    let mut told = BTreeSet::new();
    while stop
        .run_until_cancelled(tokio::time::sleep(SAMPLE_INTERVAL))
        .await
        .is_some()
    {
        measure(&queue, &metrics);
        metrics.upkeep();
        let stats = queue.stats();
        tell_of_others(&stats, &mut told);
        match stats.unavailable {
            Some(why) if !unavailable => {
                unavailable = true;
                error!(%why, "the queue is not available: traffic passes, events are not kept");
            }
            None if unavailable => {
                unavailable = false;
                info!("the queue is available again");
            }
            _ => {}
        }
    }
}

/// Says of each destination once that it is not configured though events wait for it.
fn tell_of_others(stats: &Stats, told: &mut BTreeSet<String>) {
    let others = for_others(stats);
    told.retain(|name| others.iter().any(|(other, _)| other == name));
    for (name, events) in others {
        if !told.contains(&name) {
            warn!(
                destination = name,
                events,
                "events wait for a destination that is not in the configuration, until it is again or a limit removes them"
            );
            told.insert(name);
        }
    }
}
