//! What a queue holds at the end.

use crate::queue::{ConsumerStats, Stats};

/// What a queue holds when nothing is delivered any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Events that wait for configured destinations.
    pub waiting: u64,
    /// Events that wait for others, by name.
    pub for_others: Vec<(String, u64)>,
    /// Dead letters by destination.
    pub dead_letters: Vec<(String, u64)>,
}

impl Left {
    pub(super) fn of(stats: &Stats) -> Self {
        Self {
            waiting: (stats.consumers.iter())
                .filter(|consumer| consumer.attached)
                .map(ConsumerStats::waiting_events)
                .sum(),
            for_others: for_others(stats),
            dead_letters: stats.dead_letters.clone(),
        }
    }

    /// Returns whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Returns how many events wait for destinations that are not configured, by name.
pub(super) fn for_others(stats: &Stats) -> Vec<(String, u64)> {
    let others = stats.consumers.iter().filter(|consumer| !consumer.attached);
    let others = others.map(|consumer| (consumer.name.clone(), consumer.waiting_events()));
    others.filter(|(_, events)| *events > 0).collect()
}
