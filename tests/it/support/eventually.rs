//! Waiting for a condition instead of for a time.
//!
//! `RUST_TEST_PATIENCE_MS` (default 20000) is how long a condition may take before the test fails; slow machines raise
//! it. A condition that holds costs at most ten milliseconds more than it took.

use std::env;
use std::thread;
use std::time::{Duration, Instant};

/// Returns how long a condition may take.
pub(crate) fn patience() -> Duration {
    let milliseconds = env::var("RUST_TEST_PATIENCE_MS")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_millis(milliseconds.unwrap_or(20_000))
}

/// Returns what `condition` gives once it gives something; panics naming `what` when patience runs out.
pub(crate) fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(patience(), condition).unwrap_or_else(|| panic!("waited {:?} in vain for {what}", patience()))
}

/// Returns what `condition` gives within `limit`, `None` if it gave nothing.
pub(crate) fn within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
