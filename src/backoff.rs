//! Exponential backoff with full jitter: how long to wait before the next try.
//!
//! Owns the arithmetic only. The source of chance is passed in, so a test can repeat a schedule. Full jitter (a wait
//! drawn evenly between nothing and the bound) spreads the retries of many sidecars that failed at the same moment;
//! see "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

/// An exponential schedule: the bound doubles with every failure until it reaches `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Bound of the wait after the first failure.
    pub initial: Duration,
    /// Bound that no wait exceeds.
    pub max: Duration,
}

impl Backoff {
    /// Returns the longest wait after `failures` failures in a row. One failure, and none, give `initial`.
    pub fn bound(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.initial.saturating_mul(1 << doublings).min(self.max)
    }

    /// Returns the wait after `failures` failures in a row: even chance for each between zero and [`Self::bound`].
    pub fn wait(&self, failures: u32, random: &mut fastrand::Rng) -> Duration {
        self.bound(failures).mul_f64(random.f64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff = Backoff {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(60),
    };

    #[test]
    fn the_bound_doubles_until_the_maximum() {
        let bounds: Vec<u64> = (0..9).map(|failures| BACKOFF.bound(failures).as_secs()).collect();
        assert_eq!(bounds, [1, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(BACKOFF.bound(u32::MAX), BACKOFF.max);
    }

    #[test]
    fn waits_use_the_whole_range() {
        let mut random = fastrand::Rng::with_seed(1);
        let waits: Vec<Duration> = (0..1000).map(|_| BACKOFF.wait(4, &mut random)).collect();
        assert!(waits.iter().any(|wait| *wait < Duration::from_millis(400)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_millis(7_600)));
        let mean = waits.iter().sum::<Duration>() / 1000;
        assert!((3_600..4_400).contains(&mean.as_millis()), "{mean:?}");
    }

    proptest! {
        #[test]
        fn a_wait_is_never_over_its_bound(
            initial_ms in 0u64..100_000, max_ms in 0u64..10_000_000, failures: u32, seed: u64,
        ) {
            let backoff = Backoff {
                initial: Duration::from_millis(initial_ms),
                max: Duration::from_millis(max_ms),
            };
            let wait = backoff.wait(failures, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(wait <= backoff.bound(failures));
            prop_assert!(backoff.bound(failures) <= backoff.max);
            prop_assert!(backoff.bound(failures) <= backoff.bound(failures.saturating_add(1)));
        }
    }
}
