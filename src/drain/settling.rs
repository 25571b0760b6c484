//! What has come of events, made durable: dead letters first, then the cursor and the note beside it.
//!
//! Owns the way to the note and back, with the one use of the wall clock. Promises that nothing counts as ended before
//! the queue has noted it.

use std::time::Duration;

use tokio::time::Instant;

use super::fate::Tries;
use super::{EMPTY_AFTER, Ending, QUEUE_WAIT, Task, note};
use crate::attempts::{Then, Waits};
use crate::queue::ConsumeError;

/// Failures of an event that holds up all others after which it is set aside.
const SET_ASIDE_AFTER: u32 = 2;

impl Task {
    /// Makes durable what is settled; repeats until the queue has taken it.
    pub(super) async fn settle(&mut self) -> Result<(), Ending> {
        loop {
            match self.try_settle().await {
                Ok(()) => return Ok(()),
                Err(ConsumeError::Closed) => return Err(Ending::QueueClosed),
                Err(ConsumeError::Unavailable { why }) => self.queue_failed(&why),
            }
            tokio::select! {
                () = self.service.stop.hard.cancelled() => return Err(Ending::Stopped),
                () = self.flights.meanwhile(tokio::time::sleep(QUEUE_WAIT)) => {}
            }
        }
    }

    /// Sets events aside that failed for themselves and hold up all others: they would do so until their last try.
    pub(super) fn make_room(&mut self) {
        let settings = &self.service.settings;
        let is_full = || {
            self.window
                .room(settings.window(self.service.destination.limits()))
                .is_none()
        };
        if settings.retry.then == Then::DeadLetter && is_full() {
            self.window
                .set_aside(|tries| tries.failures >= SET_ASIDE_AFTER && !tries.by_destination);
        }
    }

    pub(super) async fn try_settle(&mut self) -> Result<(), ConsumeError> {
        self.window.turned(self.reporter.turns());
        let letters = self.window.letters(&self.service.name, (self.clock)());
        if !letters.is_empty() {
            let told: [Vec<String>; 2] = [false, true].map(|is| {
                (letters.iter())
                    .filter(|letter| letter.transient == is)
                    .map(|letter| letter.why.clone())
                    .collect()
            });
            self.flights.meanwhile(self.consumer.bury(letters)).await?;
            self.window.buried();
            let [refused, given_up] = told;
            refused
                .last()
                .into_iter()
                .for_each(|why| self.reporter.buried(refused.len(), why));
            given_up
                .last()
                .into_iter()
                .for_each(|why| self.reporter.gave_up(given_up.len(), why));
        }
        let (now, now_ms) = (Instant::now(), (self.clock)());
        let note = note::encode(
            &self
                .window
                .marks(|due| now_ms + milliseconds(due.saturating_duration_since(now))),
        );
        let commit = self.consumer.commit(self.window.settled_to(), &note);
        self.flights.meanwhile(commit).await?;
        self.reporter.queue_works();
        let ended = self.window.release();
        self.service.counts.ended(&ended);
        Ok(())
    }

    pub(super) fn queue_failed(&mut self, why: &str) {
        self.reporter.queue_failed(why);
        let now = Instant::now();
        self.read_from = now + QUEUE_WAIT;
        // A queue that cannot be read is not known to be empty.
        self.empty_at = self.empty_at.map(|_| self.read_from + EMPTY_AFTER);
    }
}

/// Returns what an event's tries came to in an earlier run. Of the wall clock, which may have jumped meanwhile, it takes
/// no more than the wait that the schedule has at this point.
pub(super) fn recalled((failures, due_ms): (u32, u64), waits: &Waits, now_ms: u64, now: Instant) -> Tries {
    let wait = Duration::from_millis(due_ms.saturating_sub(now_ms));
    let longest = waits.longest(failures).unwrap_or(Duration::ZERO);
    Tries {
        sent: failures,
        failures,
        planned: Some(now + wait.min(longest)),
        ..Tries::default()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
