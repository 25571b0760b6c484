//! The writer's side of the queue: one write per round for everything that is pending, and the change of generations.
//!
//! Positions are given here, so that none can land behind a generation's end. A write that fails costs its generation the
//! role of the newest: nothing of it was acknowledged, and the next write goes to a new one.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use super::acknowledged::{Acknowledged, Known};
use super::dead_letters::DeadLetters;
use super::directory::Directory;
use super::evictions::Evictions;
use super::generation::{Failure, Generation, Slot, Start};
use super::layout::{self, Writes};
use super::{Part, Reply, Shared, unavailable};
use crate::queue::{AppendError, Appended, ConsumeError, Entry, Marks, Position, Seen, no_cursor};
use crate::record::Record;
use crate::record::codec::{self, EncodeError, Encoder, Header};

/// How long to leave the disk alone after a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// Bytes on disk that a generation may take at the least if it holds no records: notes, one a request at the most.
const NOTES_BYTES: u64 = 16 << 20;

/// Bytes of event JSON of the dead letters that are appended again in one go: appends wait that long.
const REQUEUED_BYTES: u64 = 4 << 20;

pub(super) struct Store {
    pub(super) shared: Arc<Shared>,
    pub(super) directory: Directory,
    pub(super) current: Option<Current>,
    /// New generations begin here or later: a damaged one may have held records up to it.
    pub(super) floor: u64,
    pub(super) retry_at: Instant,
    pub(super) marks: Marks,
    pub(super) encoder: Encoder,
    pub(super) dead_letters: DeadLetters,
    pub(super) acknowledged: Acknowledged,
    pub(super) evictions: Evictions,
}

/// The newest generation.
pub(super) struct Current {
    pub(super) first: u64,
    pub(super) created_ms: u64,
    pub(super) payload: u64,
    /// Bytes its database took on disk when it was begun, and takes now.
    pub(super) disk: (u64, u64),
    pub(super) next_block: u32,
    pub(super) generation: Arc<Generation>,
}

/// One round's work, and who waits for it.
#[derive(Default)]
pub(super) struct Round {
    records: Vec<Staged>,
    duplicates: Vec<oneshot::Sender<Result<Appended, AppendError>>>,
    commits: Vec<Reply<()>>,
    removed: Vec<String>,
    writes: Writes,
}

struct Staged {
    header: Header,
    /// A dead letter that is appended again has none.
    seen: Option<Seen>,
    reply: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Round {
    pub(super) fn bytes(&self) -> u64 {
        self.writes.bytes
    }

    /// Answers `reply` when the round is durable.
    pub(super) fn commit(&mut self, reply: Reply<()>) {
        self.commits.push(reply);
    }

    /// Takes a cursor away, and answers when that is durable.
    pub(super) fn remove_cursor(&mut self, name: String, reply: Reply<()>) {
        self.writes.remove_cursor(&name);
        self.removed.push(name);
        self.commits.push(reply);
    }

    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.duplicates.is_empty() && self.commits.is_empty()
    }

    /// Tells everybody that nothing was done.
    fn fail(self, marks: &mut Marks, why: &str) {
        for staged in self.records {
            if let Some(seen) = staged.seen {
                marks.withdraw(&seen);
            }
            let _ = staged.reply.send(Err(unavailable(why)));
        }
        for reply in self.duplicates {
            let _ = reply.send(Err(unavailable(why)));
        }
        for reply in self.commits {
            let _ = reply.send(Err(ConsumeError::Unavailable { why: why.to_owned() }));
        }
    }
}

impl Store {
    /// Takes a record into the round, or answers at once.
    pub(super) fn append(
        &mut self,
        round: &mut Round,
        entry: &Entry,
        reply: oneshot::Sender<Result<Appended, AppendError>>,
    ) {
        let now_ms = self.shared.now_ms();
        if self.marks.contains(&entry.mark.key, now_ms) {
            // The first sight may be in this very round: then its fate is the repetition's.
            let is_pending = |staged: &Staged| staged.seen.is_some_and(|seen| seen.key == entry.mark.key);
            if round.records.iter().any(is_pending) {
                round.duplicates.push(reply);
            } else {
                let _ = reply.send(Ok(Appended::Duplicate));
            }
            return;
        }
        let limit = self.shared.settings.max_record_bytes;
        let (encoded, header) = match self.encode(&entry.record, limit) {
            Ok(encoded) => encoded,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if let Some(error) = self.refusal(round.bytes() + encoded.len() as u64) {
            return drop(reply.send(Err(error)));
        }
        let position = self.shared.lock().ledger.tail + round.records.len() as u64;
        round.writes.record(position, &encoded);
        let seen = Some(self.marks.insert(&entry.mark, now_ms));
        round.records.push(Staged { header, seen, reply });
    }

    /// Appends dead letters of a destination again, durably, and then removes them: as many as one round takes. Returns
    /// which; none if none of them is there.
    pub(super) fn requeue(
        &mut self,
        name: &str,
        letters: &[(Position, u32)],
    ) -> Result<Vec<(Position, u32)>, ConsumeError> {
        if self.shared.lock().ledger.next(name).is_none() {
            return Err(no_cursor(name));
        }
        let room = self
            .room_for_letters()
            .map_err(|why| ConsumeError::Unavailable { why })?;
        let found = (self.dead_letters)
            .take(name, letters, REQUEUED_BYTES.min(room))
            .map_err(failed)?;
        let mut round = Round::default();
        let mut replies = Vec::with_capacity(found.len());
        for letter in &found {
            let mut record = letter.record.clone();
            record.destinations = vec![name.to_owned()];
            let (encoded, header) = self.encode(&record, u64::MAX).map_err(failed)?;
            if let Some(error) = self.refusal(round.bytes() + encoded.len() as u64) {
                return Err(failed(error));
            }
            let position = self.shared.lock().ledger.tail + round.records.len() as u64;
            round.writes.record(position, &encoded);
            let (reply, answer) = oneshot::channel();
            round.records.push(Staged {
                header,
                seen: None,
                reply,
            });
            replies.push(answer);
        }
        self.finish(round);
        for mut answer in replies {
            if let Ok(Err(error)) = answer.try_recv() {
                return Err(failed(error));
            }
        }
        let requeued: Vec<(Position, u32)> = found.iter().map(|letter| (letter.position, letter.index)).collect();
        if !requeued.is_empty() {
            self.expect_no_letters();
            self.dead_letters.remove(name, &requeued).map_err(failed)?;
        }
        Ok(requeued)
    }

    /// Makes the round durable and answers everybody.
    pub(super) fn finish(&mut self, mut round: Round) {
        let mut dirty = self.shared.lock().ledger.dirty();
        dirty.retain(|name| !round.removed.contains(name));
        if round.is_empty() && dirty.is_empty() {
            return;
        }
        if !round.removed.is_empty() {
            // Here first: a cursor that is missed later counts as lost.
            let mut known = self.acknowledged.known().clone();
            known.names.retain(|name| !round.removed.contains(name));
            self.take_back(known);
        }
        let Some(current) = &mut self.current else {
            let why = self.why_unavailable();
            return round.fail(&mut self.marks, &why);
        };
        let seen: Vec<Seen> = round.records.iter().filter_map(|staged| staged.seen).collect();
        let next_block = round.writes.marks(current.next_block, &seen);
        let now_ms = self.shared.now_ms();
        let state = {
            let state = self.shared.lock();
            let ledger = &state.ledger;
            for name in &dirty {
                if let Some(cursor) = ledger.cursor(name) {
                    round.writes.cursor(name, &cursor);
                }
            }
            let mut after = layout::State {
                tail: ledger.tail + round.records.len() as u64,
                newest_ms: ledger.newest_ms,
                payload: current.payload + round.writes.bytes,
                totals: ledger.totals().clone(),
                oldest_ms: ledger.oldest_ms(),
            };
            for Staged { header, seen, .. } in &round.records {
                after.totals.add(header);
                after.newest_ms = after.newest_ms.max(header.received_ms);
                if seen.is_none() {
                    after.newest_ms = after.newest_ms.max(now_ms);
                }
                for name in &header.destinations {
                    if !after.oldest_ms.iter().any(|(known, _)| known == name) {
                        after.oldest_ms.push((name.clone(), header.received_ms));
                    }
                }
            }
            after
        };
        round.writes.state(&state);
        if let Err(failure) = current.generation.write(std::mem::take(&mut round.writes)) {
            let why = failure.to_string();
            self.abandon(&why);
            return round.fail(&mut self.marks, &why);
        }
        current.payload = state.payload;
        current.next_block = next_block;
        let before = std::mem::replace(&mut current.disk.1, current.generation.disk_bytes());
        let (first, grown) = (current.first, current.disk.1.saturating_sub(before));
        let position = {
            let mut state = self.shared.lock();
            // A caller that ran out of patience may have said otherwise.
            state.unavailable = None;
            let position = state.ledger.tail;
            for staged in &round.records {
                match staged.seen {
                    Some(_) => state.ledger.append(&staged.header),
                    None => state.ledger.requeue(&staged.header, now_ms),
                }
            }
            state.ledger.written(&dirty);
            for name in &round.removed {
                state.ledger.remove(name);
            }
            if let Some(part) = state.generations.get_mut(&first) {
                part.bytes += grown;
            }
            position
        };
        self.acknowledge();
        if !round.records.is_empty() {
            self.shared.changed();
        }
        for (position, staged) in (position..).zip(round.records) {
            let _ = staged.reply.send(Ok(Appended::Stored(Position(position))));
        }
        for reply in round.duplicates {
            let _ = reply.send(Ok(Appended::Duplicate));
        }
        for reply in round.commits {
            let _ = reply.send(Ok(()));
        }
    }

    /// Begins a new generation if the newest one is full, or if there is none.
    pub(super) fn ensure_current(&mut self) -> Result<(), String> {
        let is_empty = |first| self.shared.lock().ledger.tail == first;
        match &self.current {
            Some(current) if !self.is_full(current) => Ok(()),
            // Only notes filled it. A generation after an empty one has to skip its position.
            Some(current) if current.disk.1 < NOTES_BYTES && is_empty(current.first) => Ok(()),
            Some(_) => self.rotate(),
            None if Instant::now() < self.retry_at => Err(self.why_unavailable()),
            None => self.rotate(),
        }
    }

    /// Begins a new generation and carries over what must not go with an old one: cursors, notes, marks, totals.
    pub(super) fn rotate(&mut self) -> Result<(), String> {
        let outcome = self.begin_generation();
        if let Err(failure) = &outcome {
            self.abandon(&failure.to_string());
        }
        outcome.map_err(|failure| failure.to_string())
    }

    fn begin_generation(&mut self) -> Result<(), Failure> {
        let now_ms = self.shared.now_ms();
        let (mut start, names) = {
            let state = self.shared.lock();
            let first = state.ledger.tail.max(self.floor);
            let start = Start {
                first,
                previous_first: state.generations.last_key_value().map_or(first, |(first, _)| *first),
                previous_end: state.ledger.tail,
                newest_ms: state.ledger.newest_ms,
                created_ms: now_ms,
                totals: state.ledger.totals().clone(),
            };
            (start, state.ledger.names())
        };
        // A generation whose first write failed stands here; a position less costs nothing.
        while self.directory.generation(start.first).exists() {
            start.first += 1;
        }
        let mut writes = Writes::default();
        let marks: Vec<Seen> = self.marks.live(now_ms).collect();
        let next_block = writes.marks(0, &marks);
        let mut state = layout::State {
            tail: start.first,
            newest_ms: start.newest_ms,
            payload: 0,
            totals: start.totals.clone(),
            oldest_ms: Vec::new(),
        };
        {
            let shared = self.shared.lock();
            for name in &names {
                if let Some(cursor) = shared.ledger.cursor(name) {
                    writes.cursor(name, &cursor);
                }
            }
            state.oldest_ms = shared.ledger.oldest_ms();
        }
        writes.start(&start.encode());
        // What is carried over does not count as payload: many marks must not fill a generation.
        writes.state(&state);
        let generation = Arc::new(self.create(&start, writes)?);
        let path = self.directory.generation(start.first);
        let mut shared = self.shared.lock();
        let newest = shared.generations.values_mut().next_back();
        if let Some(part) = newest.filter(|part| part.end.is_none()) {
            part.close(start.previous_end);
        }
        shared.ledger.tail = start.first;
        shared.ledger.written(&names);
        shared.unavailable = None;
        let disk = generation.disk_bytes();
        let part = Part {
            slot: Slot::opened(path, &generation),
            end: None,
            closed: None,
            bytes: disk,
            start: start.clone(),
        };
        shared.generations.insert(start.first, part);
        drop(shared);
        let before = self.current.replace(Current {
            first: start.first,
            created_ms: now_ms,
            payload: 0,
            disk: (disk, disk),
            next_block,
            generation,
        });
        drop(before);
        self.acknowledge();
        self.measure();
        Ok(())
    }

    /// Keeps what is durable, apart from what it is about.
    pub(super) fn acknowledge(&mut self) {
        let letters = self.dead_letters.count();
        let known = {
            let state = self.shared.lock();
            Known {
                tail: state.ledger.tail,
                newest_ms: state.ledger.newest_ms,
                totals: state.ledger.totals().clone(),
                names: state.ledger.names(),
                letters,
            }
        };
        if let Err(error) = self.acknowledged.keep(known) {
            // Nothing is lost by it, and the next round tries again.
            debug!(%error, "cannot keep how far the queue got");
        }
    }

    /// Before dead letters are removed: those that are missed later would count as lost.
    pub(super) fn expect_no_letters(&mut self) {
        let known = Known {
            letters: 0,
            ..self.acknowledged.known().clone()
        };
        self.take_back(known);
    }

    fn take_back(&mut self, known: Known) {
        if let Err(error) = self.acknowledged.keep(known).and_then(|()| self.acknowledged.sync()) {
            warn!(%error, "what is removed now may count as lost later");
        }
    }

    /// Makes a generation with its first write, or leaves nothing behind.
    fn create(&self, start: &Start, writes: Writes) -> Result<Generation, Failure> {
        let path = self.directory.generation(start.first);
        let created = Generation::create(&path, start).and_then(|generation| match generation.write(writes) {
            Ok(()) => Ok(generation),
            Err(failure) => {
                close_aside(generation);
                Err(failure)
            }
        });
        let synced = |generation| match self.directory.sync_generations() {
            Ok(()) => Ok(generation),
            Err(error) => Err(Failure::Passing(error.to_string())),
        };
        let created = created.and_then(synced);
        if created.is_err() {
            // Best effort: what stays is recognised as never used when the queue is opened.
            let _ = self.directory.remove(start.first);
        }
        created
    }

    /// Gives the newest generation up after a failed write. Its acknowledged records stay readable.
    fn abandon(&mut self, why: &str) {
        let mut state = self.shared.lock();
        // It is tried every second, and a full disk stays full for hours.
        if state.unavailable.as_deref() != Some(why) {
            error!(error = why, "the queue cannot write, and tries again");
        }
        state.unavailable = Some(why.to_owned());
        let tail = state.ledger.tail;
        if let Some(current) = self.current.take() {
            if let Some(part) = state.generations.get_mut(&current.first) {
                part.close(tail);
            }
            drop(state);
            close_aside(current.generation);
        }
        self.retry_at = Instant::now() + RETRY;
    }

    /// Tries to write again once it was left alone for a while.
    pub(super) fn recover(&mut self) {
        if self.current.is_none() && Instant::now() >= self.retry_at && self.rotate().is_ok() {
            info!("the queue can write again");
        }
    }

    pub(super) fn why_unavailable(&self) -> String {
        let why = self.shared.lock().unavailable.clone();
        why.unwrap_or_else(|| "the last write failed".to_owned())
    }

    fn encode(&mut self, record: &Record, limit: u64) -> Result<(Vec<u8>, Header), AppendError> {
        let encoded = self.encoder.encode(record).map_err(|error| match error {
            EncodeError::TooLarge { bytes } => AppendError::TooLarge { bytes, limit },
            EncodeError::Compress(error) => unavailable(&error.to_string()),
        })?;
        let bytes = encoded.len() as u64;
        if bytes > limit {
            return Err(AppendError::TooLarge { bytes, limit });
        }
        let header = codec::peek(&encoded).map_err(|error| unavailable(&error.to_string()))?;
        Ok((encoded, header))
    }
}

fn failed(error: impl std::error::Error) -> ConsumeError {
    ConsumeError::Unavailable { why: error.to_string() }
}

/// sled may hang as it closes a database it could not write; that must not take the writer along.
fn close_aside(generation: impl Send + 'static) {
    let closer = thread::Builder::new().name("queue-closer".to_owned());
    // Without a thread it is closed here, as the closure is dropped.
    let _ = closer.spawn(move || drop(generation));
}
