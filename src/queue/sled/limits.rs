//! What leaves the disk, and what is not let onto it: settled generations, `max_bytes`, `max_age`, the volume's headroom.
//!
//! Space is given back by whole generations only. Every event that a limit removes before it was settled is counted, for
//! each destination and environment, before its generation goes.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, warn};

use super::directory::disk_bytes;
use super::generation::SEGMENT_BYTES;
use super::store::{Current, Round, Store};
use crate::queue::{AppendError, Boundary, ConsumeError, Loss, WhenFull};

/// Bytes on disk per byte written, at the most, once sled has rewritten its leaves.
const AMPLIFICATION: u64 = 3;

/// Bytes of a usual round: with less room the queue goes on to refuse most of what comes, and says so.
const USUAL_ROUND: u64 = 64 << 10;

/// Bytes on disk below which a generation is not worth its beginning, whatever `max_bytes` is.
const LEAST_GENERATION: u64 = SEGMENT_BYTES as u64;

/// The part of `max_bytes` that is left free when dead letters are appended again: they are safe where they are, and what is evicted
/// for them, or of them, is not.
const REQUEUE_SPARES: u64 = 4;

/// How long a generation that was the newest until now is kept for those that read it, though the queue is over `max_bytes`,
/// and by which part of `max_bytes` it may be over meanwhile. Whoever keeps up needs a moment only, and loses nothing.
const GRACE: Duration = Duration::from_secs(2);
const GRACE_PART: u64 = 8;

impl Store {
    /// Whether the newest generation has had its share: of payload, or of the disk. Mostly what is written takes up to three
    /// times its size on disk, but up to ten times where destinations commit often and little is appended.
    pub(super) fn is_full(&self, current: &Current) -> bool {
        let (begun, disk) = current.disk;
        // What was carried over, of which much can be needed, must not fill a generation.
        let share = self.generation_disk_bytes().max(begun.saturating_mul(2));
        // The last round ends below a whole number of segments, mostly, by which it is charged.
        current.payload >= self.shared.settings.generation_bytes || disk >= share - share / 8
    }

    /// Returns the bytes on disk that one generation takes: about an eighth of `max_bytes`, as that is what an eviction takes.
    fn generation_disk_bytes(&self) -> u64 {
        (self.shared.settings.max_bytes / 8).max(LEAST_GENERATION)
    }

    /// Returns why a round may not grow to `pending` bytes.
    pub(super) fn refusal(&self, pending: u64) -> Option<AppendError> {
        let settings = &self.shared.settings;
        let growth = pending.saturating_mul(AMPLIFICATION);
        if let Some(error) = self.lacks_space(growth) {
            self.refuse(Some(error.to_string()));
            return Some(error);
        }
        let (bytes, limit) = (self.shared.lock().charged(), settings.max_bytes);
        if settings.when_full == WhenFull::DropNewest && bytes.saturating_add(growth) > limit {
            self.refuse(Some(format!("queue is full ({bytes} of {limit} bytes on disk)")));
            return Some(AppendError::Full { bytes, limit });
        }
        None
    }

    /// Returns how many bytes of event JSON may be appended again; the error says why none.
    pub(super) fn room_for_letters(&self) -> Result<u64, String> {
        let limit = self.shared.settings.max_bytes;
        let bytes = self.shared.lock().charged();
        match (limit - limit / REQUEUE_SPARES).saturating_sub(bytes) / AMPLIFICATION {
            0 => Err(format!(
                "the queue has no room for dead letters ({bytes} of {limit} bytes on disk); they stay where they are"
            )),
            room => Ok(room),
        }
    }

    /// Returns an error if writing `growth` bytes would take what the volume keeps free for others.
    pub(super) fn lacks_space(&self, growth: u64) -> Option<AppendError> {
        let headroom = self.shared.settings.headroom_bytes;
        let free = self.directory.free_bytes().ok()?;
        (free < headroom.saturating_add(growth)).then_some(AppendError::NoSpace { free, headroom })
    }

    /// Keeps the house in order: once a second, and after rounds that wrote much.
    pub(super) fn tidy(&mut self) {
        self.recover();
        if self.current.is_some() {
            // A caller that ran out of patience may have said otherwise; the writer is here.
            self.shared.lock().unavailable = None;
        }
        // What readers stepped over is not worth a write of its own, but must not be forgotten for long.
        self.finish(Round::default());
        self.rotate_settled();
        self.sweep();
        self.measure();
        self.evict_old();
        self.evict_over_budget();
        self.evictions.tell();
        let refused = self.shared.lock().refusing.is_some();
        if refused && self.refusal(USUAL_ROUND).is_none() {
            self.refuse(None);
        }
    }

    /// Removes every generation that no destination needs any more.
    pub(super) fn sweep(&mut self) {
        let settled: Vec<u64> = {
            let state = self.shared.lock();
            let following = state.generations.iter().skip(1);
            let pairs = state.generations.iter().zip(following);
            pairs
                .filter(|((_, part), (next, following))| {
                    !state
                        .ledger
                        .needs(&part.start.totals, (**next, &following.start.totals))
                })
                .map(|((first, _), _)| *first)
                .collect()
        };
        for first in settled {
            self.remove(first);
        }
    }

    /// Evicts the oldest generations while the queue takes more than `max_bytes`.
    pub(super) fn evict_over_budget(&mut self) {
        let limit = self.shared.settings.max_bytes;
        let mut rotated = false;
        while self.shared.lock().charged() > limit {
            // What was set aside is lost to the destinations already.
            match self.directory.remove_oldest_quarantined() {
                Ok(true) => {
                    warn!("removed a part of the queue from the quarantine to stay below max_bytes");
                    self.measure();
                    continue;
                }
                Ok(false) => {}
                Err(error) => warn!(%error, "cannot remove from the quarantine"),
            }
            if self.shared.settings.when_full == WhenFull::DropNewest {
                return;
            }
            if self.in_grace(limit) {
                return;
            }
            if !self.evict_oldest("max_bytes") {
                let holds_records = self.current.as_ref().is_some_and(|current| current.payload > 0);
                if rotated || !holds_records || self.rotate().is_err() {
                    return;
                }
                rotated = true;
            }
        }
    }

    /// Whether the oldest generation was the newest a moment ago, and the queue not much over its `limit`.
    fn in_grace(&self, limit: u64) -> bool {
        let state = self.shared.lock();
        let closed = state.generations.values().next().and_then(|oldest| oldest.closed);
        closed.is_some_and(|closed| closed.elapsed() < GRACE) && state.charged() <= limit + limit / GRACE_PART
    }

    /// Moves a generation that cannot be read aside. What it held is lost, and counted.
    pub(super) fn quarantine(&mut self, first: u64, why: &str) -> Result<(), ConsumeError> {
        let is_newest = self.current.as_ref().is_some_and(|current| current.first == first);
        if is_newest {
            self.rotate().map_err(|why| ConsumeError::Unavailable { why })?;
        }
        let Some(slot) = self
            .shared
            .lock()
            .generations
            .get(&first)
            .map(|part| Arc::clone(&part.slot))
        else {
            return Ok(());
        };
        slot.retire(true);
        let place = self.directory.quarantine(first).map_err(|error| {
            slot.retire(false);
            ConsumeError::Unavailable {
                why: format!("cannot set a damaged generation aside: {error}"),
            }
        })?;
        let readers = {
            let mut state = self.shared.lock();
            let part = state.generations.remove(&first);
            let end = part.and_then(|part| part.end).unwrap_or(first);
            state.ledger.lose_records(first..end);
            state.quarantined += 1;
            state.take_readers(first)
        };
        drop(readers);
        error!(error = why, place = %place.display(), "a part of the queue is damaged and was set aside");
        self.step_over(first, Loss::Corrupt);
        self.measure();
        self.shared.changed();
        Ok(())
    }

    /// Looks at what the disk really holds.
    pub(super) fn measure(&mut self) {
        let set_aside = self.directory.set_aside();
        let letters_bytes = self.dead_letters.disk_bytes();
        let firsts: Vec<u64> = self.shared.lock().generations.keys().copied().collect();
        let sizes: Vec<(u64, u64)> = firsts
            .into_iter()
            .map(|first| (first, disk_bytes(&self.directory.generation(first))))
            .collect();
        let mut state = self.shared.lock();
        state.other_bytes = set_aside.iter().map(|part| part.bytes).sum();
        state.set_aside = set_aside.into();
        state.letters_bytes = letters_bytes;
        for (first, bytes) in sizes {
            if let Some(part) = state.generations.get_mut(&first) {
                part.bytes = bytes;
            }
        }
    }

    /// Rotates a newest generation that is settled but large, so that an idle queue takes little space.
    fn rotate_settled(&mut self) {
        let Some(current) = &self.current else {
            return;
        };
        let settled = {
            let state = self.shared.lock();
            let end = (state.ledger.tail, state.ledger.totals());
            let part = state.generations.get(&current.first);
            part.is_some_and(|part| !state.ledger.needs(&part.start.totals, end))
        };
        let grown = current.disk.1.saturating_sub(current.disk.0);
        let is_large =
            current.payload > self.shared.settings.generation_bytes / 4 || grown > self.generation_disk_bytes() / 2;
        if settled && is_large {
            // A failure is dealt with where it happens.
            let _ = self.rotate();
        }
    }

    fn evict_old(&mut self) {
        let max_age = u64::try_from(self.shared.settings.max_age.as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.shared.now_ms();
        if let Some(current) = &self.current {
            let newest_ms = self.shared.lock().ledger.newest_ms;
            let is_old = newest_ms.saturating_add(max_age) < now_ms;
            // Eight generations per `max_age` at the least, so that what is evicted is hardly younger than it.
            let has_lived = current.created_ms.saturating_add(max_age / 8) < now_ms;
            if current.payload > 0 && (is_old || has_lived) && self.holds_records() && self.rotate().is_err() {
                return;
            }
        }
        loop {
            let newest_of_oldest = {
                let state = self.shared.lock();
                state
                    .generations
                    .values()
                    .nth(1)
                    .map(|following| following.start.newest_ms)
            };
            if newest_of_oldest.is_none_or(|ms| ms.saturating_add(max_age) >= now_ms) || !self.evict_oldest("max_age") {
                return;
            }
        }
    }

    fn holds_records(&self) -> bool {
        let tail = self.shared.lock().ledger.tail;
        self.current.as_ref().is_some_and(|current| tail > current.first)
    }

    /// Evicts the oldest generation. Returns false if it is the newest too.
    fn evict_oldest(&mut self, limit: &'static str) -> bool {
        let oldest = {
            let state = self.shared.lock();
            if state.generations.len() < 2 {
                return false;
            }
            state.generations.first_key_value().map(|(first, _)| *first)
        };
        let Some(first) = oldest else {
            return false;
        };
        for (destination, events) in self.step_over(first, Loss::Evicted(limit)) {
            self.evictions.add(destination, limit, events);
        }
        self.evictions.tell();
        self.shared.changed();
        let removed = self.remove(first);
        // So that the next process knows what is counted already.
        self.finish(Round::default());
        removed
    }

    /// Moves every reader that is in or before the generation `first` (before: only for an eviction) behind it. Returns
    /// how many events this cost whom.
    fn step_over(&mut self, first: u64, loss: Loss) -> Vec<(String, u64)> {
        let mut state = self.shared.lock();
        let Some((&position, following)) = state.generations.range(first + 1..).next() else {
            return Vec::new();
        };
        let (totals, before_ms) = (following.start.totals.clone(), following.start.newest_ms);
        let mut lost = Vec::new();
        for name in state.ledger.names() {
            // A reader that is further back meets the gap, and counts it, when it gets there.
            let lags = loss == Loss::Corrupt && state.ledger.next(&name).is_some_and(|next| next < first);
            if !lags {
                let counts = totals.of(&name);
                let boundary = Boundary {
                    position,
                    counts,
                    before_ms,
                };
                let events = state.ledger.reach(&name, &boundary, loss);
                lost.push((name, events));
            }
        }
        lost
    }

    fn remove(&mut self, first: u64) -> bool {
        let (part, readers) = {
            let mut state = self.shared.lock();
            (state.generations.remove(&first), state.take_readers(first))
        };
        if let Some(part) = part {
            part.slot.retire(true);
        }
        // An idle reader would keep the files, and their space, for as long as nothing new comes.
        drop(readers);
        if let Err(error) = self.directory.remove(first) {
            error!(%error, generation = first, "cannot remove a generation of the queue");
        }
        let mut state = self.shared.lock();
        if let Some(oldest) = state.generations.first_key_value().map(|(first, _)| *first) {
            state.ledger.forget_corrupt(oldest);
        }
        true
    }

    fn refuse(&self, why: Option<String>) {
        self.shared.lock().refusing = why;
    }
}
