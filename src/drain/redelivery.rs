//! Dead letters that ran out of tries go out again by themselves when their destination works.
//!
//! Owns the pace and which letters are meant: those with [`DeadLetter::transient`], oldest first. The queue moves them in
//! one step and only if they are still there, so a person's replay at the same moment does not have them delivered twice.
//! Holds keys only, and at most [`MOST`] of them. Delivers nothing: what is requeued waits like other events.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use super::DrainStatus;
use super::status::is_working;
use crate::queue::{ConsumeError, DeadLetter, Position, Queue};

/// Letters that are requeued at once.
const MOST: usize = 1000;

/// The wait between two rounds: with [`MOST`], slow enough to leave the destination and `max_bytes` to new events.
const PACE: Duration = Duration::from_secs(10);

/// How often one letter is requeued while nothing else waits by which the destination could be tried.
const PROBE: Duration = Duration::from_secs(60);

/// Requeues letters of the destination `name` whenever it begins to work, and one at a time to find out; never ends. Dropping it
/// loses nothing.
pub async fn redeliver(name: &str, queue: &dyn Queue, status: &DrainStatus) {
    let mut turns = status.turns();
    let mut failed = false;
    loop {
        let working = async { turns.wait_for(|turns| is_working(*turns)).await.map(|turn| *turn) };
        let turn = match tokio::time::timeout(PROBE, working).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return,
            Err(_) => {
                if nothing_waits(name, queue) && matches!(round(name, queue, 1).await, Err(ConsumeError::Closed)) {
                    return;
                }
                continue;
            }
        };
        let mut left = true;
        while left && *turns.borrow() == turn {
            match round(name, queue, MOST).await {
                Ok(letters) => {
                    left = letters > 0;
                    failed = false;
                    if left {
                        info!(
                            destination = name,
                            letters, "destination works, dead letters are sent again"
                        );
                    }
                }
                Err(ConsumeError::Closed) => return,
                Err(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        warn!(destination = name, %error, "dead letters cannot be sent again yet");
                    }
                }
            }
            // Also after the last round: a destination that flaps must not have the file read all the time.
            tokio::time::sleep(PACE).await;
        }
        if turns.wait_for(|now| *now != turn).await.is_err() {
            return;
        }
    }
}

/// Requeues every letter of the destination `name` that goes out again by itself. Returns how many.
///
/// Fails if the queue does, or has no room; those that were requeued before are.
pub async fn requeue_transient(name: &str, queue: &dyn Queue) -> Result<u64, ConsumeError> {
    let mut letters = 0;
    loop {
        match round(name, queue, MOST).await? {
            0 => return Ok(letters),
            more => letters += more,
        }
    }
}

fn nothing_waits(name: &str, queue: &dyn Queue) -> bool {
    let stats = queue.stats();
    let of_name = stats.consumers.iter().find(|consumer| consumer.name == name);
    of_name.is_some_and(|consumer| consumer.waiting.is_empty())
}

/// Requeues letters, `most` of them. Returns how many.
async fn round(name: &str, queue: &dyn Queue, most: usize) -> Result<u64, ConsumeError> {
    if !queue
        .stats()
        .dead_letters
        .iter()
        .any(|(of, letters)| of == name && *letters > 0)
    {
        return Ok(0);
    }
    let keys: Arc<Mutex<Vec<(Position, u32)>>> = Arc::default();
    let found = Arc::clone(&keys);
    let note = move |letter: &DeadLetter| {
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        if letter.transient {
            found.push((letter.position, letter.index));
        }
        // The keys are all that is needed; a letter that is wanted ends the search.
        found.len() >= most
    };
    queue.find_dead_letters(name, 1, Arc::new(note)).await?;
    let mut keys = std::mem::take(&mut *keys.lock().unwrap_or_else(PoisonError::into_inner));
    // A crash between burying and committing leaves a letter twice.
    keys.sort_unstable();
    keys.dedup();
    if keys.is_empty() {
        return Ok(0);
    }
    queue.requeue_dead_letters(name, &keys).await
}
