//! One destination's reader: decides what to read next, reads on a blocking thread, and takes the outcome in.
//!
//! Cancel-safe: a read whose caller was called away is kept for when it comes back, and the ledger moves only in the step
//! that returns.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::{self, JoinHandle};

use super::generation::{Failure, Slot};
use super::reader::{self, End};
use super::{Horizon, Link, Message, Shared, State};
use crate::queue::{Boundary, ConsumeError, Consumer, DeadLetter, Limit, Loss, Position, Progress, UNKNOWN_LIMIT};
use crate::record::Record;

/// A reader with a durable cursor.
pub(super) struct SledConsumer {
    name: String,
    link: Link,
    horizon: watch::Receiver<Horizon>,
    /// The read that is under way or that nobody has fetched.
    reading: Option<Reading>,
}

struct Reading {
    plan: Plan,
    limit: Limit,
    task: JoinHandle<Result<Progress, Failure>>,
}

/// The next read.
#[derive(Clone)]
struct Plan {
    first: u64,
    slot: Arc<Slot>,
    from: u64,
    end: End,
}

impl SledConsumer {
    pub(super) fn new(name: &str, link: Link) -> Self {
        Self {
            name: name.to_owned(),
            horizon: link.shared.horizon.subscribe(),
            link,
            reading: None,
        }
    }

    async fn read(&mut self, plan: &Plan, limit: Limit) -> Result<Progress, Failure> {
        let fits = |reading: &Reading| {
            let same = reading.plan.from == plan.from && Arc::ptr_eq(&reading.plan.slot, &plan.slot);
            same && reading.limit.records <= limit.records && reading.limit.bytes <= limit.bytes
        };
        let kept = self.reading.take().filter(fits);
        let reading = self.reading.insert(kept.unwrap_or_else(|| {
            let (shared, name, plan) = (Arc::clone(&self.link.shared), self.name.clone(), plan.clone());
            Reading {
                plan: plan.clone(),
                limit,
                task: task::spawn_blocking(move || read(&shared, &name, &plan, limit)),
            }
        }));
        let read = (&mut reading.task).await;
        self.reading = None;
        read.unwrap_or_else(|error| Err(Failure::Damaged(format!("reading panicked: {error}"))))
    }
}

#[async_trait]
impl Consumer for SledConsumer {
    async fn next(&mut self, limit: Limit) -> Result<Vec<(Position, Record)>, ConsumeError> {
        loop {
            if self.horizon.borrow_and_update().closed {
                return Err(ConsumeError::Closed);
            }
            let plan = self.link.shared.lock().plan(&self.name);
            let Some(plan) = plan else {
                self.horizon.changed().await.map_err(|_| ConsumeError::Closed)?;
                continue;
            };
            match self.read(&plan, limit).await {
                Ok(progress) => {
                    let records = self.link.shared.lock().ledger.advance(&self.name, plan.from, progress);
                    if !records.is_empty() {
                        return Ok(records);
                    }
                }
                // Evicted while it was about to be read.
                Err(_) if self.link.shared.lock().ledger.next(&self.name) != Some(plan.from) => {}
                Err(Failure::Removed) => task::yield_now().await,
                Err(Failure::Passing(why)) => return Err(ConsumeError::Unavailable { why }),
                Err(failure @ (Failure::Damaged(_) | Failure::Stateless)) => {
                    let (first, why) = (plan.first, failure.to_string());
                    self.link.ask(|reply| Message::Quarantine { first, why, reply }).await?;
                }
            }
        }
    }

    async fn commit(&mut self, up_to: Option<Position>, note: &[u8]) -> Result<(), ConsumeError> {
        let (name, up_to, note) = (self.name.clone(), up_to.map(|position| position.0), note.to_vec());
        self.link
            .ask(|reply| Message::Commit {
                name,
                up_to,
                note,
                reply,
            })
            .await
    }

    fn note(&self) -> Vec<u8> {
        self.link.shared.lock().ledger.note(&self.name)
    }

    async fn bury(&mut self, letters: Vec<DeadLetter>) -> Result<(), ConsumeError> {
        let name = self.name.clone();
        self.link.ask(|reply| Message::Bury { name, letters, reply }).await
    }
}

impl Drop for SledConsumer {
    fn drop(&mut self) {
        let open = {
            let mut state = self.link.shared.lock();
            state.ledger.close(&self.name);
            state.reading.remove(&self.name)
        };
        if let Some((_, generation)) = open {
            // Closing touches the disk. Without a writer the queue is closed, and so is the generation.
            let _ = self.link.writer.send(Message::Release(generation));
        }
    }
}

impl State {
    /// Returns what the destination has to read next, or nothing if it has to wait. Steps over what holds nothing for it.
    fn plan(&mut self, name: &str) -> Option<Plan> {
        loop {
            let from = self.ledger.next(name)?;
            let Some((&first, part)) = self.generations.range(..=from).next_back() else {
                let (&first, part) = self.generations.first_key_value()?;
                let boundary = Boundary {
                    position: first,
                    counts: part.start.totals.of(name),
                    before_ms: part.start.newest_ms,
                };
                self.ledger.reach(name, &boundary, Loss::Evicted(UNKNOWN_LIMIT));
                continue;
            };
            if from == first {
                let boundary = Boundary {
                    position: first,
                    counts: part.start.totals.of(name),
                    before_ms: part.start.newest_ms,
                };
                self.ledger.reach(name, &boundary, Loss::Corrupt);
            }
            let following = self.generations.range(first + 1..).next();
            let (boundary, end) = match following {
                Some((&next, following)) => {
                    let boundary = Boundary {
                        position: next,
                        counts: following.start.totals.of(name),
                        before_ms: following.start.newest_ms,
                    };
                    let end = End {
                        position: part.end.unwrap_or(next),
                        exact: part.end.is_some(),
                    };
                    (boundary, end)
                }
                None => {
                    let boundary = Boundary {
                        position: self.ledger.tail,
                        counts: self.ledger.totals().of(name),
                        before_ms: self.ledger.newest_ms,
                    };
                    let end = End {
                        position: self.ledger.tail,
                        exact: true,
                    };
                    (boundary, end)
                }
            };
            if from >= end.position || self.ledger.has_counted(name, &boundary) {
                let newest = following.is_none();
                self.ledger.reach(name, &boundary, Loss::Corrupt);
                if newest {
                    return None;
                }
                continue;
            }
            return Some(Plan {
                first,
                slot: Arc::clone(&part.slot),
                from,
                end,
            });
        }
    }
}

fn read(shared: &Shared, name: &str, plan: &Plan, limit: Limit) -> Result<Progress, Failure> {
    let generation = plan.slot.get()?;
    let before = {
        let mut state = shared.lock();
        // After the consumer or the queue was closed nothing may keep a generation open.
        if state.ledger.is_open(name) && !shared.horizon.borrow().closed {
            let opened = (plan.first, Arc::clone(&generation));
            state.reading.insert(name.to_owned(), opened)
        } else {
            None
        }
    };
    // Closed here, on the blocking thread and without the lock.
    drop(before);
    reader::read(&generation, name, plan.from, plan.end, limit)
}
