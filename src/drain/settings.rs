//! How one destination is served: its waits, its bounds, and what follows from them for the memory it takes.

use std::time::Duration;

use crate::attempts::Retry;
use crate::destination::Limits;
use crate::export::narrow::Narrow;
use crate::queue::Limit;

/// Bounds of the window that is derived from the concurrency: a window smaller than the first has little to pack, and
/// one larger than the second takes too much memory (events are held as they were read and as they are sent).
const WINDOW_BYTES: (usize, usize) = (4 * 1024 * 1024, 16 * 1024 * 1024);
const WINDOW_EVENTS: usize = 1000;

/// How one destination is served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How failed deliveries are repeated.
    pub retry: Retry,
    /// The most requests under way at a time, within the destination's own [`Limits::requests`]. 1.
    pub concurrency: usize,
    /// Bound of one request; its events are sent again when it passes. 60 s.
    pub timeout: Duration,
    /// Events (`records`) and bytes of event JSON held in memory. Reading stops at either and can overshoot it by one
    /// read, of a request's size. `None`: as many events as one request more than the concurrency can hold, 1000 at
    /// least, and 4 MiB per request under way, 16 MiB at most.
    pub window: Option<Limit>,
    /// What this destination gets of the events addressed to it. All of them, whole.
    pub narrow: Narrow,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry: Retry::DEFAULT,
            concurrency: 1,
            timeout: Duration::from_secs(60),
            window: None,
            narrow: Narrow::default(),
        }
    }
}

impl Settings {
    /// Returns the most requests at a time.
    pub(super) fn requests(&self, limits: Limits) -> usize {
        self.concurrency.min(limits.requests).max(1)
    }

    /// Returns the most that is held in memory.
    pub(super) fn window(&self, limits: Limits) -> Limit {
        let requests = self.requests(limits);
        self.window.unwrap_or(Limit {
            records: limits.items.saturating_mul(requests + 1).max(WINDOW_EVENTS),
            bytes: WINDOW_BYTES.0.saturating_mul(requests).min(WINDOW_BYTES.1),
        })
    }
}
