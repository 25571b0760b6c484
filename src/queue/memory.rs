//! The queue in memory: for tests, and for `queue: memory` where losing what waits at a restart is acceptable.
//!
//! Promises everything that `queue/contract` asks for but durability. Bounded by `max_bytes` of event JSON, and by
//! `max_age`, which is looked at with every append and every call of `stats`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::queue::{
    AppendError, Appended, Boundary, Clock, ConsumeError, Consumer, DeadLetter, Entry, Ledger, Limit, Loss, Marks,
    Passed, Position, Progress, Queue, Settings, Stats, Totals, UNKNOWN_LIMIT, Wanted, WhenFull, no_cursor,
};
use crate::record::Record;
use crate::record::codec::Header;

/// What one record costs beside its JSON, roughly.
const OVERHEAD: u64 = 256;

/// A queue in memory.
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    clock: Clock,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

struct State {
    closed: bool,
    ledger: Ledger,
    marks: Marks,
    log: VecDeque<Stored>,
    bytes: u64,
    /// What was counted before the first record of `log`.
    before: Totals,
    dead: BTreeMap<String, Vec<DeadLetter>>,
}

struct Stored {
    position: u64,
    header: Header,
    record: Record,
    bytes: u64,
}

impl MemoryQueue {
    /// Returns an empty queue with a cursor for each of `destinations`.
    pub fn start(settings: Settings, destinations: &[String], clock: Clock) -> Self {
        let mut ledger = Ledger::default();
        for name in destinations {
            ledger.register(name, true);
        }
        let state = State {
            closed: false,
            ledger,
            marks: Marks::new(settings.mark_entries),
            log: VecDeque::new(),
            bytes: 0,
            before: Totals::default(),
            dead: BTreeMap::new(),
        };
        let shared = Shared {
            settings,
            clock,
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn append(&self, entry: Entry) -> Result<Appended, AppendError> {
        let (settings, now_ms) = (&self.shared.settings, (self.shared.clock)());
        let mut state = self.shared.lock();
        if state.closed {
            return Err(AppendError::Unavailable {
                why: "the queue is closed".to_owned(),
            });
        }
        if state.marks.contains(&entry.mark.key, now_ms) {
            return Ok(Appended::Duplicate);
        }
        let json_bytes = entry.record.json_bytes();
        let limit = settings
            .max_record_bytes
            .min(settings.max_bytes.saturating_sub(OVERHEAD));
        if json_bytes > limit {
            return Err(AppendError::TooLarge {
                bytes: json_bytes,
                limit,
            });
        }
        let bytes = json_bytes + OVERHEAD;
        state.evict_old(settings, now_ms);
        while state.bytes + bytes > settings.max_bytes {
            if settings.when_full == WhenFull::DropNewest {
                return Err(AppendError::Full {
                    bytes: state.bytes,
                    limit: settings.max_bytes,
                });
            }
            state.evict_first("max_bytes");
        }
        state.marks.insert(&entry.mark, now_ms);
        let position = state.ledger.tail;
        let header = header(&entry.record);
        state.ledger.append(&header);
        state.bytes += bytes;
        state.log.push_back(Stored {
            position,
            header,
            record: entry.record,
            bytes,
        });
        state.drop_settled();
        drop(state);
        self.shared.changed.send_modify(|change| *change += 1);
        Ok(Appended::Stored(Position(position)))
    }

    async fn consumer(&self, name: &str) -> Result<Box<dyn Consumer>, ConsumeError> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(ConsumeError::Closed);
        }
        state.ledger.register(name, false);
        if !state.ledger.open(name) {
            return Err(ConsumeError::Unavailable {
                why: format!("the consumer {name} is open already"),
            });
        }
        Ok(Box::new(MemoryConsumer {
            name: name.to_owned(),
            shared: Arc::clone(&self.shared),
            changed: self.shared.changed.subscribe(),
        }))
    }

    fn stats(&self) -> Stats {
        let mut state = self.shared.lock();
        state.evict_old(&self.shared.settings, (self.shared.clock)());
        let dead = state.dead.iter().filter(|(_, letters)| !letters.is_empty());
        Stats {
            unavailable: state.closed.then(|| "the queue is closed".to_owned()),
            bytes: state.bytes,
            corrupt_records: 0,
            quarantined: 0,
            quarantine: Arc::default(),
            parts: Vec::new(),
            next_position: state.ledger.tail,
            dead_letters: dead
                .map(|(name, letters)| (name.clone(), letters.len() as u64))
                .collect(),
            transient_letters: (state.dead.iter())
                .map(|(name, letters)| {
                    (
                        name.clone(),
                        letters.iter().filter(|letter| letter.transient).count() as u64,
                    )
                })
                .filter(|(_, letters)| *letters > 0)
                .collect(),
            damaged_letters: 0,
            consumers: state.ledger.stats(),
        }
    }

    async fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.send_modify(|change| *change += 1);
    }

    async fn dead_letters(&self, name: &str, limit: usize) -> Result<Vec<DeadLetter>, ConsumeError> {
        self.find_dead_letters(name, limit, Arc::new(|_| true)).await
    }

    async fn find_dead_letters(
        &self,
        name: &str,
        limit: usize,
        wanted: Wanted,
    ) -> Result<Vec<DeadLetter>, ConsumeError> {
        let state = self.shared.lock();
        let letters = state.dead.get(name).into_iter().flatten();
        Ok(letters.filter(|letter| wanted(letter)).take(limit).cloned().collect())
    }

    async fn requeue_dead_letters(&self, name: &str, letters: &[(Position, u32)]) -> Result<u64, ConsumeError> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(ConsumeError::Closed);
        }
        if state.ledger.next(name).is_none() {
            return Err(no_cursor(name));
        }
        let now_ms = (self.shared.clock)();
        let wanted = |letter: &mut DeadLetter| letters.contains(&(letter.position, letter.index));
        let kept = state.dead.entry(name.to_owned()).or_default();
        let found: Vec<DeadLetter> = kept.extract_if(.., wanted).collect();
        let count = found.len() as u64;
        for letter in found {
            state.requeue(name, letter.record, now_ms);
        }
        drop(state);
        self.shared.changed.send_modify(|change| *change += 1);
        Ok(count)
    }

    async fn remove_dead_letters(&self, name: &str, letters: &[(Position, u32)]) -> Result<(), ConsumeError> {
        if let Some(kept) = self.shared.lock().dead.get_mut(name) {
            kept.retain(|letter| !letters.contains(&(letter.position, letter.index)));
        }
        Ok(())
    }

    async fn configure(&self, names: &[String]) -> Result<(), ConsumeError> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(ConsumeError::Closed);
        }
        state.ledger.configure(names);
        Ok(())
    }

    async fn remove_cursor(&self, name: &str) -> Result<(), ConsumeError> {
        let mut state = self.shared.lock();
        if !state.ledger.remove(name) {
            return Err(ConsumeError::Unavailable {
                why: format!("the cursor {name} is in use or unknown"),
            });
        }
        state.drop_settled();
        Ok(())
    }
}

struct MemoryConsumer {
    name: String,
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self, limit: Limit) -> Result<Vec<(Position, Record)>, ConsumeError> {
        loop {
            self.changed.borrow_and_update();
            {
                let mut state = self.shared.lock();
                if state.closed {
                    return Err(ConsumeError::Closed);
                }
                let records = state.read(&self.name, limit);
                if !records.is_empty() {
                    return Ok(records);
                }
            }
            if self.changed.changed().await.is_err() {
                return Err(ConsumeError::Closed);
            }
        }
    }

    async fn commit(&mut self, up_to: Option<Position>, note: &[u8]) -> Result<(), ConsumeError> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(ConsumeError::Closed);
        }
        state.ledger.settle(&self.name, up_to.map(|position| position.0), note);
        state.drop_settled();
        Ok(())
    }

    fn note(&self) -> Vec<u8> {
        self.shared.lock().ledger.note(&self.name)
    }

    async fn bury(&mut self, letters: Vec<DeadLetter>) -> Result<(), ConsumeError> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(ConsumeError::Closed);
        }
        state.dead.entry(self.name.clone()).or_default().extend(letters);
        Ok(())
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.shared.lock().ledger.close(&self.name);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read(&mut self, name: &str, limit: Limit) -> Vec<(Position, Record)> {
        // A place behind the first record was left by records that nobody needed, so nothing is lost by the step.
        if let Some(first) = self.log.front().map(|stored| stored.position)
            && self.ledger.next(name).is_some_and(|next| next < first)
        {
            self.reach_front(name, first, UNKNOWN_LIMIT);
        }
        let Some(from) = self.ledger.next(name) else {
            return Vec::new();
        };
        let mut progress = Progress {
            next: from,
            ..Progress::default()
        };
        let mut json_bytes = 0_usize;
        let skip = self.log.partition_point(|stored| stored.position < from);
        for stored in self.log.iter().skip(skip) {
            if stored.header.destinations.iter().any(|destination| destination == name) {
                let more = stored.header.json_bytes as usize;
                let full =
                    progress.records.len() >= limit.records.max(1) || json_bytes.saturating_add(more) > limit.bytes;
                if full && !progress.records.is_empty() {
                    progress.next_ms = Some(stored.header.received_ms);
                    break;
                }
                json_bytes = json_bytes.saturating_add(more);
                progress.passed.push(Passed {
                    position: stored.position,
                    environment: stored.header.environment.clone(),
                    events: u64::from(stored.header.events),
                    received_ms: stored.header.received_ms,
                    loss: None,
                });
                progress
                    .records
                    .push((Position(stored.position), stored.record.clone()));
            }
            progress.next = stored.position + 1;
        }
        let records = self.ledger.advance(name, from, progress);
        self.drop_settled();
        records
    }

    fn requeue(&mut self, name: &str, mut record: Record, now_ms: u64) {
        record.destinations = vec![name.to_owned()];
        let header = Header {
            // The age in the queue; the record keeps its time of receipt.
            received_ms: now_ms,
            ..header(&record)
        };
        let bytes = record.json_bytes() + OVERHEAD;
        let position = self.ledger.tail;
        self.ledger.requeue(&header, now_ms);
        self.bytes += bytes;
        self.log.push_back(Stored {
            position,
            header,
            record,
            bytes,
        });
    }

    fn evict_old(&mut self, settings: &Settings, now_ms: u64) {
        let max_age = u64::try_from(settings.max_age.as_millis()).unwrap_or(u64::MAX);
        let is_old = |stored: &Stored| stored.header.received_ms.saturating_add(max_age) < now_ms;
        while self.log.front().is_some_and(is_old) {
            self.evict_first("max_age");
        }
    }

    fn evict_first(&mut self, limit: &'static str) {
        if let Some(stored) = self.take_first() {
            for name in self.ledger.names() {
                self.reach_front(&name, stored.position + 1, limit);
            }
        }
    }

    fn reach_front(&mut self, name: &str, position: u64, limit: &'static str) {
        let boundary = Boundary {
            position,
            counts: self.before.of(name),
            before_ms: self.log.front().map_or(0, |next| next.header.received_ms),
        };
        self.ledger.reach(name, &boundary, Loss::Evicted(limit));
    }

    fn drop_settled(&mut self) {
        while let Some(stored) = self.log.front() {
            let mut after = self.before.clone();
            after.add(&stored.header);
            if self.ledger.needs(&self.before, (stored.position + 1, &after)) {
                break;
            }
            self.take_first();
        }
    }

    fn take_first(&mut self) -> Option<Stored> {
        let stored = self.log.pop_front()?;
        self.before.add(&stored.header);
        self.bytes -= stored.bytes;
        Some(stored)
    }
}

fn header(record: &Record) -> Header {
    Header {
        received_ms: record.received_ms,
        environment: record.origin.environment.clone(),
        destinations: record.destinations.clone(),
        events: record.events.len() as u32,
        json_bytes: u32::try_from(record.json_bytes()).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::contract;

    contract::volatile!(|settings, destinations, clock| Arc::new(MemoryQueue::start(settings, destinations, clock)));
}
