//! The queue on disk, with sled: rotated generations, one writer thread, one durable cursor per destination.
//!
//! Promises that an append which returned `Stored` survives a power cut, that a record leaves only by every
//! destination's commit or by a counted limit, and that damage and a full disk never need a person and never block the
//! traffic. `generation` holds what was done so that sled keeps these promises; `layout` and `directory` document
//! the bytes.
//!
//! A thread of its own does all writing and opening (`writer`); readers share its open generations and the state
//! below. Files are let go of when the queue is closed, not when it is dropped.

mod acknowledged;
mod consumer;
mod dead_letters;
mod directory;
mod evictions;
mod generation;
pub mod inspect;
mod layout;
mod limits;
mod open;
mod reader;
pub mod repair;
mod scratch;
mod store;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task;
use tokio::time::timeout;

use self::consumer::SledConsumer;
use self::generation::{Generation, SEGMENT_BYTES, Slot, Start};
use crate::queue::{
    AppendError, Appended, Clock, ConsumeError, Consumer, DeadLetter, Entry, Ledger, PartStats, Position, Queue,
    SetAside, Settings, Stats, Wanted,
};

/// Appends that wait for the writer at once; more wait their turn.
const PENDING_APPENDS: usize = 1024;

/// What a generation takes beside its database, bytes at the most.
const SMALL_FILES: u64 = 64 << 10;

/// How long the disk may take before the queue says that it is not available. sled can hang for good on a disk that
/// fills up. How long a request waits for its append is the caller's decision.
const PATIENCE: Duration = Duration::from_secs(5);

/// The queue on disk.
pub struct SledQueue {
    link: Link,
    appends: Arc<Semaphore>,
}

/// A way to the writer. It ends when the last of these is gone.
#[derive(Clone)]
struct Link {
    shared: Arc<Shared>,
    writer: Sender<Message>,
}

struct Shared {
    settings: Settings,
    clock: Clock,
    horizon: watch::Sender<Horizon>,
    state: Mutex<State>,
}

/// What readers wait for.
#[derive(Clone, Copy, Debug, Default)]
struct Horizon {
    open: bool,
    closed: bool,
    /// Grows with every change that gives a reader something to do.
    change: u64,
}

/// What the writer and the readers share. No lock is held while the disk is touched.
#[derive(Default)]
struct State {
    /// Why appends are refused: not open yet, or the last write failed.
    unavailable: Option<String>,
    /// Why appends are refused though the queue works: no space.
    refusing: Option<String>,
    ledger: Ledger,
    generations: BTreeMap<u64, Part>,
    /// The generation that each consumer has open.
    reading: BTreeMap<String, (u64, Arc<Generation>)>,
    set_aside: Arc<[SetAside]>,
    /// Bytes it takes on disk.
    other_bytes: u64,
    letters_bytes: u64,
    quarantined: u64,
    damaged_letters: u64,
    dead_letters: BTreeMap<String, dead_letters::Count>,
}

/// One generation as all know it.
struct Part {
    start: Start,
    /// Where it ends; unknown for the newest, and where the generation behind it is missing.
    end: Option<u64>,
    /// When it stopped being the newest, if this process saw it.
    closed: Option<Instant>,
    slot: Arc<Slot>,
    bytes: u64,
}

/// A request to the writer.
enum Message {
    Append {
        entry: Box<Entry>,
        reply: oneshot::Sender<Result<Appended, AppendError>>,
        _permit: OwnedSemaphorePermit,
    },
    Commit {
        name: String,
        up_to: Option<u64>,
        note: Vec<u8>,
        reply: Reply<()>,
    },
    Register {
        name: String,
        reply: Reply<()>,
    },
    Configure {
        names: Vec<String>,
        reply: Reply<()>,
    },
    RemoveCursor {
        name: String,
        reply: Reply<()>,
    },
    Bury {
        name: String,
        letters: Vec<DeadLetter>,
        reply: Reply<()>,
    },
    RequeueLetters {
        name: String,
        letters: Vec<(Position, u32)>,
        reply: Reply<Vec<(Position, u32)>>,
    },
    RemoveLetters {
        name: String,
        letters: Vec<(Position, u32)>,
        reply: Reply<()>,
    },
    /// A reader found the generation damaged.
    Quarantine {
        first: u64,
        why: String,
        reply: Reply<()>,
    },
    /// Closes the generation away from the async threads.
    Release(Arc<Generation>),
    Close(oneshot::Sender<()>),
}

type Reply<T> = oneshot::Sender<Result<T, ConsumeError>>;

impl SledQueue {
    /// Starts to open the queue at `settings.path` and returns at once.
    ///
    /// Until it is open, appends are refused and consumers wait; an open that fails is tried again, and
    /// [`Stats::unavailable`] says why. `destinations` are the configured ones: each has a cursor when the queue is
    /// open, so that what is appended before its consumer comes is kept for it.
    pub fn start(settings: Settings, destinations: &[String], clock: Clock) -> Self {
        let (writer, messages) = mpsc::channel();
        let shared = Arc::new(Shared {
            settings,
            clock,
            horizon: watch::Sender::new(Horizon::default()),
            state: Mutex::new(State {
                unavailable: Some(Stats::OPENING.to_owned()),
                ..State::default()
            }),
        });
        let destinations = destinations.to_vec();
        let of_writer = Arc::clone(&shared);
        let spawned = thread::Builder::new()
            .name("queue-writer".to_owned())
            .spawn(move || writer::run(of_writer, &messages, destinations));
        if let Err(error) = spawned {
            shared.lock().unavailable = Some(format!("cannot start the writer thread: {error}"));
        }
        Self {
            link: Link { shared, writer },
            appends: Arc::new(Semaphore::new(PENDING_APPENDS)),
        }
    }

    /// Returns whether another process has the queue at `path` open; the error says why no process of this version can. Touches
    /// nothing; a queue that is not there is neither.
    pub fn is_open_elsewhere(path: &Path) -> Result<bool, String> {
        let failed = |error: io::Error| format!("cannot look at the queue at {}: {error}", path.display());
        match fs::read(path.join("FORMAT")) {
            Ok(format) if directory::is_of_another_version(&format) => Err(format!(
                "the queue at {} has the format {:?}, which this version does not read. Use the version that wrote it",
                path.display(),
                String::from_utf8_lossy(&format).trim_end()
            )),
            Ok(_) => directory::is_in_use(path).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    async fn submit(&self, entry: Entry) -> Result<Appended, AppendError> {
        let permit = Arc::clone(&self.appends).acquire_owned().await;
        let Ok(permit) = permit else {
            return Err(unavailable("the queue is closed"));
        };
        let (reply, answer) = oneshot::channel();
        let message = Message::Append {
            entry: Box::new(entry),
            reply,
            _permit: permit,
        };
        if self.link.writer.send(message).is_err() {
            return Err(unavailable("the queue is closed"));
        }
        answer
            .await
            .unwrap_or_else(|_| Err(unavailable("the write was abandoned")))
    }
}

#[async_trait]
impl Queue for SledQueue {
    async fn append(&self, entry: Entry) -> Result<Appended, AppendError> {
        if let Some(why) = &self.link.shared.lock().unavailable {
            return Err(unavailable(why));
        }
        let mut submitting = pin!(self.submit(entry));
        if let Ok(outcome) = timeout(PATIENCE, &mut submitting).await {
            return outcome;
        }
        // Whoever comes next is refused at once; the writer takes this back when it is through. What was handed to the
        // writer may still be written, so only its answer says what became of it.
        self.link.shared.lock().unavailable = Some("the disk does not answer".to_owned());
        submitting.await
    }

    async fn consumer(&self, name: &str) -> Result<Box<dyn Consumer>, ConsumeError> {
        let mut horizon = self.link.shared.horizon.subscribe();
        let state = *horizon
            .wait_for(|horizon| horizon.open || horizon.closed)
            .await
            .map_err(|_| ConsumeError::Closed)?;
        if state.closed {
            return Err(ConsumeError::Closed);
        }
        let known = self.link.shared.lock().ledger.next(name).is_some();
        if !known {
            let name = name.to_owned();
            self.link.ask(|reply| Message::Register { name, reply }).await?;
        }
        if !self.link.shared.lock().ledger.open(name) {
            return Err(ConsumeError::Unavailable {
                why: format!("the consumer {name} is open already"),
            });
        }
        Ok(Box::new(SledConsumer::new(name, self.link.clone())))
    }

    fn stats(&self) -> Stats {
        let state = self.link.shared.lock();
        let letters = |of: fn(&dead_letters::Count) -> u64| {
            let counts = state.dead_letters.iter().map(|(name, count)| (name.clone(), of(count)));
            counts.filter(|(_, letters)| *letters > 0).collect()
        };
        Stats {
            unavailable: state.unavailable.clone().or_else(|| state.refusing.clone()),
            bytes: state.bytes() + state.letters_bytes,
            corrupt_records: state.ledger.corrupt_records() + state.damaged_letters,
            quarantined: state.quarantined,
            quarantine: Arc::clone(&state.set_aside),
            parts: state
                .generations
                .iter()
                .map(|(first, part)| part.stats(*first))
                .collect(),
            next_position: state.ledger.tail,
            dead_letters: letters(|count| count.letters),
            transient_letters: letters(|count| count.transient),
            damaged_letters: state.damaged_letters,
            consumers: state.ledger.stats(),
        }
    }

    async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.link.writer.send(Message::Close(reply)).is_ok() {
            // A writer that hangs in sled keeps nothing back that was acknowledged.
            let _ = timeout(PATIENCE, done).await;
        }
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
        let path = self.link.shared.settings.path.join(dead_letters::FILE);
        let name = name.to_owned();
        // Beside the writer: a long file must not keep appends waiting.
        let read = task::spawn_blocking(move || dead_letters::find(&path, &name, limit, &*wanted)).await;
        read.map_err(io::Error::other)
            .flatten()
            .map_err(|error| ConsumeError::Unavailable {
                why: format!("cannot read the dead letters: {error}"),
            })
    }

    async fn requeue_dead_letters(&self, name: &str, letters: &[(Position, u32)]) -> Result<u64, ConsumeError> {
        let mut pending: HashSet<(Position, u32)> = letters.iter().copied().collect();
        let mut requeued = 0;
        while !pending.is_empty() {
            let (name, letters) = (name.to_owned(), pending.iter().copied().collect());
            let done = self
                .link
                .ask(|reply| Message::RequeueLetters { name, letters, reply })
                .await?;
            if done.is_empty() {
                break;
            }
            requeued += done.len() as u64;
            for letter in &done {
                pending.remove(letter);
            }
        }
        Ok(requeued)
    }

    async fn remove_dead_letters(&self, name: &str, letters: &[(Position, u32)]) -> Result<(), ConsumeError> {
        let (name, letters) = (name.to_owned(), letters.to_vec());
        self.link
            .ask(|reply| Message::RemoveLetters { name, letters, reply })
            .await
    }

    async fn configure(&self, names: &[String]) -> Result<(), ConsumeError> {
        let names = names.to_vec();
        self.link.ask(|reply| Message::Configure { names, reply }).await
    }

    async fn remove_cursor(&self, name: &str) -> Result<(), ConsumeError> {
        let name = name.to_owned();
        self.link.ask(|reply| Message::RemoveCursor { name, reply }).await
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    /// Wakes the readers.
    fn changed(&self) {
        self.horizon.send_modify(|horizon| horizon.change += 1);
    }
}

impl Link {
    /// Sends a request to the writer and waits for its answer.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Message) -> Result<T, ConsumeError> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(request(reply)).map_err(|_| ConsumeError::Closed)?;
        answer.await.unwrap_or_else(|_| {
            Err(ConsumeError::Unavailable {
                why: "the write was abandoned".to_owned(),
            })
        })
    }
}

impl Part {
    /// It is no longer the newest, and ends here.
    fn close(&mut self, end: u64) {
        self.end = Some(end);
        self.closed = Some(Instant::now());
    }

    fn stats(&self, first: u64) -> PartStats {
        PartStats {
            first,
            end: self.end,
            bytes: self.bytes,
            created_ms: self.start.created_ms,
        }
    }
}

impl State {
    /// Takes the generation `first` from the consumers that have it open.
    fn take_readers(&mut self, first: u64) -> Vec<Arc<Generation>> {
        let reading = self.reading.extract_if(.., |_, (of, _)| *of == first);
        reading.map(|(_, (_, generation))| generation).collect()
    }

    /// Returns the bytes on disk, without dead letters.
    fn bytes(&self) -> u64 {
        self.other_bytes + self.generations.values().map(|part| part.bytes).sum::<u64>()
    }

    /// Returns what counts against `max_bytes`: generations as they are once they are opened again, so that nothing is over the
    /// limit because somebody reads it. Dead letters do not count: nothing but a person removes them, so they would push out events
    /// that can still be delivered.
    fn charged(&self) -> u64 {
        // Beside its segments a generation has folders and small files.
        let whole =
            |part: &Part| (part.bytes.saturating_sub(SMALL_FILES)).next_multiple_of(SEGMENT_BYTES as u64) + SMALL_FILES;
        self.other_bytes + self.generations.values().map(whole).sum::<u64>()
    }
}

fn unavailable(why: &str) -> AppendError {
    AppendError::Unavailable { why: why.to_owned() }
}
