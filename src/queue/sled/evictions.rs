//! What limits cost, told once a minute by destination and limit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::error;

/// A queue that is full stays so for a while, and loses a generation every few moments.
const INTERVAL: Duration = Duration::from_secs(60);

/// Evicted events that the log does not tell of yet.
#[derive(Default)]
pub(super) struct Evictions {
    unsaid: BTreeMap<(String, &'static str), u64>,
    said: Option<Instant>,
}

impl Evictions {
    pub(super) fn add(&mut self, destination: String, limit: &'static str, events: u64) {
        if events > 0 {
            *self.unsaid.entry((destination, limit)).or_default() += events;
        }
    }

    /// Logs what is not told yet, if it is time.
    pub(super) fn tell(&mut self) {
        for ((destination, limit), events) in self.due(Instant::now()) {
            error!(
                destination,
                limit, events, "the queue dropped its oldest events, which were not delivered"
            );
        }
    }

    /// Logs what is not told yet, as nothing more will come.
    pub(super) fn tell_the_rest(&mut self) {
        self.said = None;
        self.tell();
    }

    fn due(&mut self, now: Instant) -> BTreeMap<(String, &'static str), u64> {
        let waits = self.said.is_some_and(|said| now.duration_since(said) < INTERVAL);
        if waits || self.unsaid.is_empty() {
            return BTreeMap::new();
        }
        self.said = Some(now);
        std::mem::take(&mut self.unsaid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_at_once_and_then_summed_up_once_a_minute() {
        let (mut evictions, start) = (Evictions::default(), Instant::now());
        assert!(evictions.due(start).is_empty());
        evictions.add("lake".to_owned(), "max_bytes", 7);
        evictions.add("cdp".to_owned(), "max_bytes", 0);
        let told = |told: BTreeMap<(String, &'static str), u64>| told.into_iter().collect::<Vec<_>>();
        assert_eq!(told(evictions.due(start)), [(("lake".to_owned(), "max_bytes"), 7)]);
        for _ in 0..3 {
            evictions.add("lake".to_owned(), "max_bytes", 2);
            assert!(evictions.due(start + INTERVAL / 2).is_empty());
        }
        evictions.add("lake".to_owned(), "max_age", 1);
        assert_eq!(
            told(evictions.due(start + INTERVAL)),
            [
                (("lake".to_owned(), "max_age"), 1),
                (("lake".to_owned(), "max_bytes"), 6)
            ]
        );
        assert!(evictions.due(start + 3 * INTERVAL).is_empty());
    }
}
