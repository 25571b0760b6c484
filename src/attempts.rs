//! How often and when one event is tried, and what becomes of it then. Pure.
//!
//! Promises: the waits between tries grow, and end as long after the first failure as configured; there are never more
//! of them than configured. The source of chance is passed in, so a test can repeat a schedule. Knows nothing of
//! destinations: what counts as a try is the drain's affair.

use std::time::Duration;

use crate::backoff::Backoff;

crate::choices! {
    /// What becomes of an event that is out of tries.
    pub enum Then {
        /// It is kept, goes out again by itself once its destination works, and can be replayed.
        DeadLetter = "dead_letter",
        /// It is gone, and counted.
        Drop = "drop",
        /// It is tried on, at the last wait.
        Keep = "keep",
    }
}

/// How failed deliveries are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries of an event after its first.
    pub attempts: u32,
    /// From an event's first failure to its last try.
    pub over: Duration,
    /// What becomes of it after that.
    pub then: Then,
    /// The wait before an event's second try; bound of the first wait of a destination that fails as a whole.
    pub initial: Duration,
    /// The longest wait between two tries of a destination that fails as a whole.
    pub max: Duration,
}

/// The waits of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// Before each further try.
    base: Vec<Duration>,
    then: Then,
}

impl Retry {
    /// LaunchDarkly's "5 more tries over 30 minutes", but that nothing is lost after them. Most failures are over within
    /// seconds, and a destination that was down for an hour is tried again within a minute.
    pub const DEFAULT: Self = Self {
        attempts: 5,
        over: Duration::from_secs(30 * 60),
        then: Then::DeadLetter,
        initial: Duration::from_secs(1),
        max: Duration::from_secs(60),
    };

    /// Returns the waits of a destination that fails as a whole.
    pub fn pace(&self) -> Backoff {
        Backoff {
            initial: self.initial,
            max: self.max,
        }
    }

    /// Returns the waits of one event: a geometric series that begins with `initial` and adds up to `over`. Where there
    /// is no such series (`initial` is too long, or there is one wait only) they are equal.
    pub fn waits(&self) -> Waits {
        let count = self.attempts;
        let (first, over) = (
            self.initial.max(Duration::from_millis(1)).as_secs_f64(),
            self.over.as_secs_f64(),
        );
        let ratio = ratio(first, over, count);
        let mut base = Vec::with_capacity(count as usize);
        let mut left = self.over;
        for number in 1..=count {
            let wait = match ratio {
                _ if number == count => left,
                Some(ratio) => seconds(first * ratio.powi(number as i32 - 1)).min(left),
                None => self.over / count,
            };
            left -= wait;
            base.push(wait);
        }
        Waits { base, then: self.then }
    }
}

/// Returns the ratio of the series of `count` numbers from `first` that adds up to `sum`, if it grows.
fn ratio(first: f64, sum: f64, count: u32) -> Option<f64> {
    let adds_up_to = |ratio: f64| (0..count).map(|power| first * ratio.powi(power as i32)).sum::<f64>();
    if count < 2 || adds_up_to(1.0) >= sum {
        return None;
    }
    let (mut low, mut high) = (1.0, sum / first);
    // Each step halves the error; this many leave less than a float can tell.
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if adds_up_to(middle) > sum {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(low)
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

impl Waits {
    /// A wait is this much longer or shorter at random: relays that failed together do not come back together.
    const JITTER: f64 = 0.1;

    /// Returns the wait before the next try of an event that failed so often (1 at least), without jitter; nothing if it
    /// is out of tries.
    pub fn base(&self, failures: u32) -> Option<Duration> {
        let place = failures.saturating_sub(1) as usize;
        let last = self.base.last().filter(|_| self.then == Then::Keep);
        self.base.get(place).or(last).copied()
    }

    /// Returns the wait, made longer or shorter by `chance`, from 0 to 1.
    pub fn wait(&self, failures: u32, chance: f64) -> Option<Duration> {
        let factor = 1.0 + Self::JITTER * (2.0 * chance - 1.0);
        self.base(failures).map(|wait| seconds(wait.as_secs_f64() * factor))
    }

    /// Returns how long that wait can be.
    pub fn longest(&self, failures: u32) -> Option<Duration> {
        self.wait(failures, 1.0)
    }

    /// Returns the number of failures after which more make no difference.
    pub fn most_failures(&self) -> u32 {
        self.base.len() as u32 + u32::from(self.then != Then::Keep)
    }

    /// Returns what becomes of an event that is out of tries.
    pub fn then(&self) -> Then {
        self.then
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retry(attempts: u32, over: u64, then: Then) -> Retry {
        Retry {
            attempts,
            over: Duration::from_secs(over),
            then,
            ..Retry::DEFAULT
        }
    }

    #[test]
    fn five_more_tries_over_thirty_minutes() {
        let waits = Retry::DEFAULT.waits();
        let seconds: Vec<u64> = (1..=5)
            .map(|failures| waits.base(failures).unwrap().as_secs())
            .collect();
        assert_eq!(seconds, [1, 6, 38, 242, 1511]);
        assert_eq!(waits.base(6), None);
        assert_eq!(waits.most_failures(), 6);
    }

    #[test]
    fn one_try_comes_at_the_end_and_none_never() {
        assert_eq!(
            retry(1, 60, Then::DeadLetter).waits().base(1),
            Some(Duration::from_secs(60))
        );
        assert_eq!(retry(0, 60, Then::Drop).waits().base(1), None);
    }

    #[test]
    fn what_is_kept_is_tried_on_at_the_last_wait() {
        let waits = retry(2, 60, Then::Keep).waits();
        assert_eq!(waits.base(2), Some(Duration::from_secs(59)));
        assert_eq!(waits.base(3), waits.base(2));
        assert_eq!(waits.base(u32::MAX), waits.base(2));
        assert_eq!(waits.most_failures(), 2);
    }

    proptest! {
        #[test]
        fn waits_grow_and_add_up_whatever_is_configured(
            attempts in 1u32..=100, over_ms in 1u64..10_000_000_000, initial_ms in 0u64..1_000_000_000,
        ) {
            let retry = Retry {
                attempts,
                over: Duration::from_millis(over_ms),
                initial: Duration::from_millis(initial_ms),
                ..Retry::DEFAULT
            };
            let waits = retry.waits();
            let base: Vec<Duration> = (1..=attempts).map(|failures| waits.base(failures).unwrap()).collect();
            prop_assert_eq!(base.iter().sum::<Duration>(), retry.over);
            let slack = Duration::from_micros(1);
            prop_assert!(base.windows(2).all(|pair| pair[0] <= pair[1] + slack), "{base:?}");
            prop_assert_eq!(waits.base(attempts + 1), None);
        }

        #[test]
        fn with_jitter_the_last_try_still_comes_at_about_the_end(
            attempts in 1u32..=100, over_ms in 1000u64..10_000_000, seed: u64,
        ) {
            let retry = Retry { attempts, over: Duration::from_millis(over_ms), ..Retry::DEFAULT };
            let (waits, mut random) = (retry.waits(), fastrand::Rng::with_seed(seed));
            let mut sum = Duration::ZERO;
            for failures in 1..=attempts {
                let wait = waits.wait(failures, random.f64()).unwrap();
                prop_assert!(wait <= waits.longest(failures).unwrap());
                sum += wait;
            }
            prop_assert!(sum >= retry.over.mul_f64(0.899) && sum <= retry.over.mul_f64(1.101), "{sum:?}");
        }
    }
}
