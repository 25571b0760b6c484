//! The trouble of a destination as a whole: how it is tried while it is down, and how it comes back.
//!
//! Closed, it gets all it takes. A request that fails as a whole opens a wait in which it gets nothing; after
//! [`OPENS_AFTER`] such in a row the breaker is open, and it gets single events at growing waits: what else there is
//! keeps its tries. An answer half-opens it if the outage was long: requests grow from a few events to the full size,
//! then in number. A request of which most was taken counts as taken: where a service always refuses some events
//! (throttled shards), those wait for themselves, and all others must not crawl. Of several requests under way when
//! trouble begins, the answers of the others tell nothing new: they neither end it nor count as more of it. Decides
//! nothing about events.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::destination::Limits;

/// Failed requests in a row after which only single events are tried. Fewer would mistake a lost connection for an
/// outage; each one more costs the events of a whole request a try.
const OPENS_AFTER: u32 = 3;

/// An outage that was shorter leaves no backlog that a service would have to be spared: it gets all it takes at once.
/// One that fails and works in turns would otherwise never get beyond the first small requests.
const RAMPS_AFTER: Duration = Duration::from_secs(10);

/// Events of the first request after an outage.
const RAMP_ITEMS: usize = 2;

/// How many times larger the next request is: from two events to the 500 of Kinesis in five requests.
const RAMP_GROWTH: usize = 4;

/// How much a destination gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Breaker {
    /// As much as it takes.
    #[default]
    Closed,
    /// More with every request that it takes: it comes back from an outage.
    HalfOpen,
    /// Single events: it is down.
    Open,
}

/// The destination as a whole fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Failed requests in a row.
    pub(super) streak: u32,
    /// When the first of them failed.
    since: Instant,
    /// Nothing is sent before.
    pub(super) until: Instant,
    /// It refuses flagtap's configuration.
    pub(super) blocked: bool,
    /// What it said last.
    pub(super) why: String,
}

/// What was known of the destination when a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known(u64);

/// How much a destination that comes back gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ramp {
    items: usize,
    requests: usize,
}

/// One destination's breaker.
#[derive(Debug)]
pub(super) struct Gate {
    pace: Backoff,
    trouble: Option<Trouble>,
    ramp: Option<Ramp>,
    /// Requests so far that failed as a whole.
    failures: u64,
}

impl Gate {
    pub(super) fn new(pace: Backoff) -> Self {
        Self {
            pace,
            trouble: None,
            ramp: None,
            failures: 0,
        }
    }

    /// Returns what is known now; to be kept with a request and given back with its answer.
    pub(super) fn known(&self) -> Known {
        Known(self.failures)
    }

    /// Returns true if a request that was sent knowing this says nothing new.
    pub(super) fn is_outdated(&self, known: Known) -> bool {
        self.trouble.is_some() && known != self.known()
    }

    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Returns true while a request of which nothing was taken means that the destination fails.
    pub(super) fn is_suspicious(&self) -> bool {
        self.trouble.is_some() || self.ramp.is_some()
    }

    pub(super) fn state(&self) -> Breaker {
        match &self.trouble {
            Some(trouble) if trouble.streak >= OPENS_AFTER => Breaker::Open,
            _ if self.ramp.is_some() => Breaker::HalfOpen,
            _ => Breaker::Closed,
        }
    }

    /// Returns what one request may hold now, and how many there may be, of what the destination takes.
    pub(super) fn narrow(&self, limits: Limits) -> Limits {
        let (items, requests) = match (self.state(), self.ramp) {
            (Breaker::Open, _) => (1, 1),
            (_, Some(ramp)) => (ramp.items, ramp.requests),
            (_, None) => return limits,
        };
        Limits {
            items: limits.items.min(items),
            requests: limits.requests.min(requests),
            ..limits
        }
    }

    /// Ends the wait that is under way, without forgetting the trouble.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some(trouble) = &mut self.trouble {
            trouble.until = trouble.until.min(now);
        }
    }

    /// It answered for an event. Returns true if this ends an outage.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        let was_open = self.state() == Breaker::Open;
        let since = self.trouble.take().map_or(now, |trouble| trouble.since);
        if was_open && now.saturating_duration_since(since) >= RAMPS_AFTER {
            self.ramp = Some(Ramp {
                items: RAMP_ITEMS,
                requests: 1,
            });
        }
        was_open
    }

    /// It took most of a request. `limits`: what it takes when it works.
    pub(super) fn took_most(&mut self, limits: Limits) {
        if let Some(ramp) = &mut self.ramp {
            if ramp.items < limits.items {
                ramp.items = ramp.items.saturating_mul(RAMP_GROWTH);
            } else {
                ramp.requests = ramp.requests.saturating_mul(RAMP_GROWTH);
            }
            if ramp.items >= limits.items && ramp.requests >= limits.requests {
                self.ramp = None;
            }
        }
    }

    /// It did not take most of a request, for reasons of its own.
    pub(super) fn slow_down(&mut self) {
        if let Some(ramp) = &mut self.ramp {
            *ramp = Ramp {
                items: (ramp.items / 2).max(RAMP_ITEMS),
                requests: 1,
            };
        }
    }

    /// Returns the wait after a request that failed as a whole.
    pub(super) fn wait(&self, random: &mut fastrand::Rng) -> Duration {
        let streak = self.trouble.as_ref().map_or(0, |trouble| trouble.streak);
        self.pace.wait(streak.saturating_add(1), random)
    }

    /// A request failed as a whole.
    pub(super) fn failed(&mut self, now: Instant, until: Instant, blocked: bool, why: &str) {
        self.failures += 1;
        self.slow_down();
        let (streak, since) = self
            .trouble
            .as_ref()
            .map_or((0, now), |trouble| (trouble.streak, trouble.since));
        self.trouble = Some(Trouble {
            streak: streak.saturating_add(1),
            since,
            until,
            blocked,
            why: why.to_owned(),
        });
        if self.state() == Breaker::Open {
            self.ramp = None;
        }
    }

    /// A request failed as a whole that was sent before the trouble was known.
    pub(super) fn failed_too(&mut self, until: Instant) {
        // It may have asked for a longer wait.
        if let Some(trouble) = &mut self.trouble {
            trouble.until = trouble.until.max(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        items: 500,
        bytes: 1 << 20,
        item_bytes: 1 << 20,
        keys: usize::MAX,
        requests: 4,
    };

    fn open() -> Gate {
        let mut gate = Gate::new(Backoff {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(60),
        });
        let now = Instant::now();
        for failures in 1..=OPENS_AFTER {
            assert_eq!(gate.state(), Breaker::Closed);
            gate.failed(now, now, false, "down");
            assert_eq!(gate.trouble().unwrap().streak, failures);
        }
        gate
    }

    fn sizes(gate: &Gate) -> (usize, usize) {
        let limits = gate.narrow(LIMITS);
        (limits.items, limits.requests)
    }

    #[test]
    fn opens_after_three_failed_requests_in_a_row_and_lets_single_events_pass() {
        let (mut gate, now) = (open(), Instant::now());
        assert_eq!((gate.state(), sizes(&gate)), (Breaker::Open, (1, 1)));
        gate.failed(now, now, false, "down");
        assert_eq!((gate.state(), sizes(&gate)), (Breaker::Open, (1, 1)));
        assert!(gate.answered(now));
    }

    #[test]
    fn an_answer_in_between_begins_the_count_anew() {
        let (mut gate, now) = (open(), Instant::now());
        assert!(gate.answered(now));
        let mut gate = Gate::new(gate.pace);
        for _ in 0..10 {
            gate.failed(now, now, false, "slow");
            gate.failed(now, now, false, "slow");
            assert!(!gate.answered(now));
            assert_eq!((gate.state(), sizes(&gate)), (Breaker::Closed, (500, 4)));
        }
    }

    #[test]
    fn comes_back_at_once_after_a_moment() {
        let mut gate = open();
        assert!(gate.answered(Instant::now()));
        assert_eq!((gate.state(), sizes(&gate)), (Breaker::Closed, (500, 4)));
    }

    #[test]
    fn comes_back_in_growing_requests_and_then_in_more_of_them() {
        let mut gate = open();
        assert!(gate.answered(Instant::now() + RAMPS_AFTER));
        let mut seen = Vec::new();
        while gate.state() == Breaker::HalfOpen {
            seen.push(sizes(&gate));
            gate.took_most(LIMITS);
        }
        assert_eq!(seen, [2, 8, 32, 128, 500].map(|items| (items, 1)));
        assert_eq!((gate.state(), sizes(&gate)), (Breaker::Closed, (500, 4)));
    }

    #[test]
    fn a_throttle_on_the_way_back_halves_and_an_outage_opens_again() {
        let mut gate = open();
        let now = Instant::now() + RAMPS_AFTER;
        gate.answered(now);
        (0..2).for_each(|_| gate.took_most(LIMITS));
        assert_eq!(sizes(&gate), (32, 1));
        gate.failed(now, now, false, "throttled");
        assert_eq!((gate.state(), sizes(&gate)), (Breaker::HalfOpen, (16, 1)));
        assert!(!gate.answered(now), "no new outage ends");
        assert_eq!(sizes(&gate), (16, 1));
        gate.slow_down();
        assert_eq!(sizes(&gate), (8, 1));
        (0..OPENS_AFTER).for_each(|_| gate.failed(now, now, false, "down"));
        assert_eq!((gate.state(), sizes(&gate)), (Breaker::Open, (1, 1)));
        assert!(gate.answered(now + RAMPS_AFTER));
        assert_eq!(sizes(&gate), (RAMP_ITEMS, 1));
    }

    #[test]
    fn a_wait_ends_early_without_ending_the_trouble() {
        let mut gate = open();
        let now = Instant::now();
        gate.failed(now, now + Duration::from_secs(60), false, "down");
        gate.hurry(now);
        assert_eq!(gate.trouble().unwrap().until, now);
        assert_eq!(gate.state(), Breaker::Open);
    }
}
