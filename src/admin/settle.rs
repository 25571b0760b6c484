//! Replays or discards the dead letters that a filter selects.
//!
//! What is meant is settled before anything is done: a letter that is buried meanwhile, perhaps one of those just
//! replayed, is not touched. Only keys are held, so the number of letters does not matter.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::letters::Filter;
use crate::queue::{ConsumeError, DeadLetter, Position, Queue};

/// Letters handed to the queue at once.
const BATCH: usize = 10_000;

/// What becomes of the letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They are appended to the queue again, with the ids they had.
    Replay,
    /// They are removed for good.
    Discard,
}

impl Action {
    /// Returns the action as the admin port's path names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Discard => "discard",
        }
    }
}

/// The body of `POST /api/dead-letters/replay` and `/discard`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// Which letters.
    pub filter: Filter,
    /// Every letter is meant: what a filter without any part needs.
    pub all: bool,
    /// At most so many, the oldest of each destination first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Letters replayed or discarded.
    pub letters: u64,
}

/// Why not everything was done.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The filter means nothing.
    #[error("{0}")]
    Filter(String),
    /// The queue refused.
    #[error("after {done} dead letters: {source}")]
    Queue {
        /// Letters done before.
        done: u64,
        /// What the queue said.
        #[source]
        source: ConsumeError,
    },
}

/// Does it, for up to `limit` letters.
pub async fn settle(
    queue: &dyn Queue,
    filter: &Filter,
    limit: u64,
    action: Action,
    now_ms: u64,
) -> Result<Settled, SettleError> {
    let mut done = 0;
    let names: Vec<String> = match &filter.destination {
        Some(name) => vec![name.clone()],
        None => queue.stats().dead_letters.into_iter().map(|(name, _)| name).collect(),
    };
    for name in names {
        let keys = keys(queue, &name, filter, limit - done, now_ms).await?;
        for keys in keys.chunks(BATCH) {
            let outcome = match action {
                Action::Replay => queue.requeue_dead_letters(&name, keys).await,
                Action::Discard => (queue.remove_dead_letters(&name, keys).await).map(|()| keys.len() as u64),
            };
            let letters = outcome.map_err(|source| SettleError::Queue { done, source })?;
            done += letters;
            match action {
                Action::Replay => info!(destination = name, letters, "dead letters replayed"),
                Action::Discard => warn!(destination = name, letters, "dead letters discarded"),
            }
        }
    }
    Ok(Settled { letters: done })
}

async fn keys(
    queue: &dyn Queue,
    name: &str,
    filter: &Filter,
    limit: u64,
    now_ms: u64,
) -> Result<Vec<(Position, u32)>, SettleError> {
    let wanted = filter.test(now_ms).map_err(SettleError::Filter)?;
    let keys: Arc<Mutex<Vec<(Position, u32)>>> = Arc::default();
    let found = Arc::clone(&keys);
    let note = move |letter: &DeadLetter| {
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        if (found.len() as u64) < limit && wanted(letter) {
            found.push((letter.position, letter.index));
        }
        // The key is all that is needed: the letter is not to be collected.
        false
    };
    let read = queue.find_dead_letters(name, 1, Arc::new(note)).await;
    read.map_err(|source| SettleError::Queue { done: 0, source })?;
    let mut keys = std::mem::take(&mut *keys.lock().unwrap_or_else(PoisonError::into_inner));
    // A crash between burying and committing leaves a letter twice.
    keys.sort_unstable();
    keys.dedup();
    Ok(keys)
}
