//! The writer thread: opens the queue, then answers requests in rounds until it is closed.
//!
//! Everything that waits when a round begins is made durable by one write (group commit), up to a size. A panic ends the
//! round, whose callers are told, and not the thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::open::OpenError;
use super::store::{Round, Store};
use super::{Message, Shared, unavailable};
use crate::queue::ConsumeError;

/// What one round writes, at the most (and one record more): bounds the memory of a batch and the wait for it.
const ROUND_BYTES: u64 = 4 << 20;
const ROUND_MESSAGES: usize = 1024;

const TIDY: Duration = Duration::from_secs(1);

/// The first wait after a failed open, and the longest.
const REOPEN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

type Closing = Option<oneshot::Sender<()>>;

/// Runs until the queue is closed or nobody holds it any more.
pub(super) fn run(shared: Arc<Shared>, messages: &Receiver<Message>, destinations: Vec<String>) {
    let closing = match open(&shared, messages, destinations) {
        Ok(store) => serve(store, messages),
        Err(closing) => closing,
    };
    let reading = {
        let mut state = shared.lock();
        state.unavailable = Some("the queue is closed".to_owned());
        std::mem::take(&mut state.reading)
    };
    shared.horizon.send_modify(|horizon| horizon.closed = true);
    drop(reading);
    drop(shared);
    if let Some(done) = closing {
        let _ = done.send(());
    }
}

fn open(shared: &Arc<Shared>, messages: &Receiver<Message>, mut destinations: Vec<String>) -> Result<Store, Closing> {
    let mut wait = REOPEN.0;
    let mut told = String::new();
    loop {
        let opened = catch_unwind(AssertUnwindSafe(|| Store::open(shared, &destinations)));
        let failure = match opened {
            Ok(Ok(store)) => {
                shared.horizon.send_modify(|horizon| {
                    horizon.open = true;
                    horizon.change += 1;
                });
                info!(path = %shared.settings.path.display(), "queue is open");
                return Ok(store);
            }
            Ok(Err(failure)) => failure,
            Err(_) => OpenError::Failed("opening the queue panicked".to_owned()),
        };
        let why = failure.to_string();
        if why != told {
            error!(error = %why, "cannot open the queue");
            told.clone_from(&why);
        }
        shared.lock().unavailable = Some(why.clone());
        let deadline = match failure {
            OpenError::Refused(_) => None,
            OpenError::Failed(_) => Some(Instant::now() + wait),
        };
        wait = (wait * 2).min(REOPEN.1);
        refuse_until(deadline, messages, &why, &mut destinations)?;
    }
}

/// Refuses what is asked until the deadline, but for other `destinations`. Returns how to end if the queue is closed
/// before.
fn refuse_until(
    deadline: Option<Instant>,
    messages: &Receiver<Message>,
    why: &str,
    destinations: &mut Vec<String>,
) -> Result<(), Closing> {
    loop {
        let message = match deadline {
            None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => messages.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        };
        match message {
            Ok(Message::Close(done)) => return Err(Some(done)),
            Ok(Message::Configure { names, reply }) => {
                // Nothing is appended before the queue is open, and then they have their cursors.
                *destinations = names;
                let _ = reply.send(Ok(()));
            }
            Ok(message) => message.refuse(why),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(None),
        }
    }
}

fn serve(mut store: Store, messages: &Receiver<Message>) -> Closing {
    let mut tidy_at = Instant::now() + TIDY;
    loop {
        let first = messages.recv_timeout(tidy_at.saturating_duration_since(Instant::now()));
        let first = match first {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                finish(store);
                return None;
            }
        };
        let mut closing = None;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            if let Some(first) = first {
                closing = round(&mut store, first, messages);
            }
            if Instant::now() >= tidy_at {
                store.tidy();
            }
        }));
        if ended.is_err() {
            // The message is in the log already; what was asked in the round was refused as it unwound.
            warn!("a round of the queue's writer panicked");
        }
        if Instant::now() >= tidy_at {
            tidy_at = Instant::now() + TIDY;
        }
        if let Some(done) = closing {
            finish(store);
            return Some(done);
        }
    }
}

fn finish(mut store: Store) {
    store.finish(Round::default());
    store.evictions.tell_the_rest();
    let closed = catch_unwind(AssertUnwindSafe(|| drop(store)));
    if closed.is_err() {
        warn!("closing the queue panicked");
    }
}

fn round(store: &mut Store, first: Message, messages: &Receiver<Message>) -> Closing {
    let mut round = Round::default();
    let mut closing = None;
    let first_writes = first.writes();
    let mut message = Some(first);
    let mut taken = 0;
    let usable = match first_writes {
        true => store.ensure_current(),
        false => Ok(()),
    };
    while let Some(next) = message.take() {
        match (&usable, next) {
            (_, Message::Close(done)) => {
                closing = Some(done);
                break;
            }
            (Ok(()), next) => take(store, &mut round, next),
            (Err(why), next) => next.refuse(why),
        }
        taken += 1;
        if taken < ROUND_MESSAGES && round.bytes() < ROUND_BYTES {
            message = messages.try_recv().ok();
        }
    }
    store.finish(round);
    store.sweep();
    store.evict_over_budget();
    closing
}

fn take(store: &mut Store, round: &mut Round, message: Message) {
    let failed = |error: std::io::Error| ConsumeError::Unavailable { why: error.to_string() };
    match message {
        Message::Append { entry, reply, .. } => store.append(round, &entry, reply),
        Message::Commit {
            name,
            up_to,
            note,
            reply,
        } => {
            store.shared.lock().ledger.settle(&name, up_to, &note);
            round.commit(reply);
        }
        Message::Register { name, reply } => {
            store.shared.lock().ledger.register(&name, false);
            round.commit(reply);
        }
        Message::Configure { names, reply } => {
            store.shared.lock().ledger.configure(&names);
            round.commit(reply);
        }
        Message::RemoveCursor { name, reply } => {
            if store.shared.lock().ledger.is_removable(&name) {
                round.remove_cursor(name, reply);
            } else {
                let why = format!("the cursor {name} is in use or unknown");
                let _ = reply.send(Err(ConsumeError::Unavailable { why }));
            }
        }
        Message::Bury { name, letters, reply } => {
            // Dead letters have no limit of their own; the volume's headroom is one for everybody.
            if let Some(refused) = store.lacks_space(0) {
                let why = refused.to_string();
                return drop(reply.send(Err(ConsumeError::Unavailable { why })));
            }
            let Store {
                dead_letters, encoder, ..
            } = store;
            let outcome = dead_letters.append(&name, &letters, encoder).map_err(failed);
            publish_letters(store);
            let _ = reply.send(outcome);
        }
        Message::RequeueLetters { name, letters, reply } => {
            // What is staged has its positions before these.
            store.finish(std::mem::take(round));
            let outcome = store.requeue(&name, &letters);
            publish_letters(store);
            let _ = reply.send(outcome);
        }
        Message::RemoveLetters { name, letters, reply } => {
            store.expect_no_letters();
            let outcome = store.dead_letters.remove(&name, &letters).map_err(failed);
            publish_letters(store);
            let _ = reply.send(outcome);
        }
        Message::Quarantine { first, why, reply } => {
            // It may begin a generation, and what is staged has its positions in this one.
            store.finish(std::mem::take(round));
            let _ = reply.send(store.quarantine(first, &why));
        }
        Message::Release(generation) => drop(generation),
        Message::Close(done) => drop(done),
    }
}

fn publish_letters(store: &mut Store) {
    store.acknowledge();
    store.shared.lock().dead_letters = store.dead_letters.counts().clone();
}

impl Message {
    fn writes(&self) -> bool {
        !matches!(self, Self::Release(_) | Self::Close(_))
    }

    fn refuse(self, why: &str) {
        let refusal = || ConsumeError::Unavailable { why: why.to_owned() };
        match self {
            Self::Append { reply, .. } => drop(reply.send(Err(unavailable(why)))),
            Self::Commit { reply, .. }
            | Self::Register { reply, .. }
            | Self::Configure { reply, .. }
            | Self::RemoveCursor { reply, .. }
            | Self::Bury { reply, .. }
            | Self::RemoveLetters { reply, .. }
            | Self::Quarantine { reply, .. } => drop(reply.send(Err(refusal()))),
            Self::RequeueLetters { reply, .. } => drop(reply.send(Err(refusal()))),
            Self::Release(_) | Self::Close(_) => {}
        }
    }
}
