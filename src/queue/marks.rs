//! The window of duplicate marks: by which an SDK's retry of a batch is recognised.
//!
//! Owns the lookup, the expiry and the bound. Does not write: an engine stores the marks it inserted with the record
//! and loads them in order when it opens.

use std::collections::{HashMap, VecDeque};

use crate::queue::Mark;

/// Marks in the order in which they were first seen.
#[derive(Debug)]
pub(crate) struct Marks {
    expiry: HashMap<[u8; 16], u64>,
    order: VecDeque<Seen>,
    entries: usize,
}

/// One mark and the time after which its key counts as new, Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) key: [u8; 16],
    pub(crate) until_ms: u64,
}

impl Marks {
    /// Returns an empty window of at most `entries` marks.
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            expiry: HashMap::new(),
            order: VecDeque::new(),
            entries: entries.max(1),
        }
    }

    /// Returns whether the key was seen within its window.
    pub(crate) fn contains(&self, key: &[u8; 16], now_ms: u64) -> bool {
        self.expiry.get(key).is_some_and(|until_ms| now_ms < *until_ms)
    }

    /// Takes a mark in at its first sight and forgets the oldest over the bound. Returns what has to be stored.
    pub(crate) fn insert(&mut self, mark: &Mark, now_ms: u64) -> Seen {
        let window = u64::try_from(mark.window.as_millis()).unwrap_or(u64::MAX);
        let seen = Seen {
            key: mark.key,
            until_ms: now_ms.saturating_add(window),
        };
        self.restore(seen);
        self.forget(now_ms);
        seen
    }

    /// Takes in a stored mark.
    pub(crate) fn restore(&mut self, seen: Seen) {
        self.expiry.insert(seen.key, seen.until_ms);
        self.order.push_back(seen);
        while self.order.len() > self.entries {
            self.pop();
        }
    }

    /// Takes back a mark whose record could not be stored.
    pub(crate) fn withdraw(&mut self, seen: &Seen) {
        if self.expiry.get(&seen.key) == Some(&seen.until_ms) {
            self.expiry.remove(&seen.key);
        }
    }

    /// Returns the marks that still count, oldest first.
    pub(crate) fn live(&self, now_ms: u64) -> impl Iterator<Item = Seen> {
        self.order
            .iter()
            .copied()
            .filter(move |seen| now_ms < seen.until_ms && self.expiry.get(&seen.key) == Some(&seen.until_ms))
    }

    fn forget(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|seen| seen.until_ms <= now_ms) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        // The key may have been seen again since: then its newer place in the order speaks for it.
        if let Some(seen) = self.order.pop_front() {
            self.withdraw(&seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn mark(key: u8, seconds: u64) -> Mark {
        Mark {
            key: [key; 16],
            window: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn a_key_counts_until_its_window_ends() {
        let mut marks = Marks::new(8);
        marks.insert(&mark(1, 10), 1_000);
        assert!(marks.contains(&[1; 16], 10_999));
        assert!(!marks.contains(&[1; 16], 11_000));
        assert!(!marks.contains(&[2; 16], 1_000));
    }

    #[test]
    fn a_key_seen_again_outlives_its_first_entry() {
        let mut marks = Marks::new(8);
        marks.insert(&mark(1, 1), 0);
        marks.insert(&mark(1, 1), 2_000);
        marks.insert(&mark(2, 1), 2_500);
        assert!(marks.contains(&[1; 16], 2_900));
    }

    #[test]
    fn the_oldest_are_forgotten_over_the_bound() {
        let mut marks = Marks::new(2);
        for key in 1..=3 {
            marks.insert(&mark(key, 100), 0);
        }
        assert!(!marks.contains(&[1; 16], 1));
        assert!(marks.contains(&[2; 16], 1) && marks.contains(&[3; 16], 1));
        assert_eq!(marks.live(1).count(), 2);
    }

    #[test]
    fn a_withdrawn_mark_does_not_count() {
        let mut marks = Marks::new(2);
        let seen = marks.insert(&mark(1, 100), 0);
        marks.withdraw(&seen);
        assert!(!marks.contains(&[1; 16], 1));
        assert_eq!(marks.live(1).count(), 0);
    }
}
