//! Log lines that repeat: said at once, then at most once a minute with the number of times it happened.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_secs(60);

/// What was said when. Reasons are few and fixed, so this stays small.
#[derive(Default)]
pub struct Notices {
    said: Mutex<Vec<Notice>>,
}

struct Notice {
    reason: &'static str,
    at: Instant,
    unsaid: u64,
}

impl Notices {
    /// Notes that `reason` happened. Returns how often it did since it was last said, if it is time to say it again.
    pub fn due(&self, reason: &'static str) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let Some(notice) = said.iter_mut().find(|notice| notice.reason == reason) else {
            said.push(Notice {
                reason,
                at: now,
                unsaid: 0,
            });
            return Some(1);
        };
        notice.unsaid += 1;
        if now.duration_since(notice.at) < INTERVAL {
            return None;
        }
        notice.at = now;
        Some(std::mem::take(&mut notice.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_reason_is_said_at_once_and_then_once_a_minute() {
        let notices = Notices::default();
        assert_eq!(notices.due("too_large"), Some(1));
        assert_eq!(notices.due("too_large"), None);
        assert_eq!(notices.due("queue_full"), Some(1));
        tokio::time::advance(INTERVAL).await;
        assert_eq!(notices.due("too_large"), Some(2));
        assert_eq!(notices.due("too_large"), None);
    }
}
