//! Reads the body of an event route once, up to the cap and within the memory budget.
//!
//! What does not fit is not refused: the frames read so far and the rest of the stream go on to the upstream, and only
//! the copy is given up. The budget is taken as bytes arrive, never on the word of a `Content-Length`.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use hyper::body::Incoming;
use metrics::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::proxy::Failure;

/// What bodies may take.
pub(super) struct Cap {
    /// `tee.max_in_flight`, bytes shared by all requests.
    pub(super) budget: Arc<Semaphore>,
    /// How long the client may pause.
    pub(super) pause: Duration,
    /// How long the whole body may take; one that takes longer goes on as a stream and gives its share back.
    pub(super) whole: Duration,
    /// Shows what is held.
    pub(super) shown: Gauge,
}

/// A body that was read.
pub(super) enum Captured {
    /// The whole body.
    Whole(Bytes, Held),
    /// Not captured, for this reason; goes on as a stream.
    Stream {
        /// Frames already read.
        first: VecDeque<Bytes>,
        /// The rest.
        rest: Incoming,
        /// Value of the metric label `reason`.
        why: &'static str,
    },
}

/// A body's share of the memory budget, given back when dropped.
pub(super) struct Held {
    /// Never read: its own drop gives the share back.
    _share: OwnedSemaphorePermit,
    bytes: usize,
    shown: Gauge,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shown.decrement(self.bytes as f64);
    }
}

/// What a batch takes beside its body and head: tasks, buffers, the connection to the upstream. Without it a flood of
/// empty bodies would weigh nothing.
const FLOOR: usize = 4096;

/// Frames below this are copied together: each kept by itself would cost far more than its bytes.
const SMALL: usize = 4096;

/// Reads `body` whole if it fits into `most` bytes and the budget, with a request's head of `head` bytes.
///
/// Fails if the client aborts or pauses for longer than the cap allows; then nothing goes to the upstream, which
/// would get a broken request.
pub(super) async fn capture(mut body: Incoming, head: usize, most: usize, cap: &Cap) -> Result<Captured, Failure> {
    if body.size_hint().lower() > most as u64 {
        return Ok(passing(Frames::default(), body, "too_large"));
    }
    let Some(mut share) = cap.share(head + FLOOR) else {
        return Ok(passing(Frames::default(), body, "memory_budget"));
    };
    let mut frames = Frames::default();
    let deadline = Instant::now() + cap.whole;
    while !body.is_end_stream() {
        let next = timeout(cap.pause, poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)));
        let frame = match next.await {
            Err(_elapsed) => return Err(Failure::BodyStalled),
            Ok(None) => break,
            Ok(Some(Err(_error))) => return Err(Failure::BodyAborted),
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers of a request are nothing an SDK sends; they end the body.
        let Ok(bytes) = frame.into_data() else { break };
        let more = cap.share(bytes.len());
        frames.push(bytes);
        if frames.length > most {
            return Ok(passing(frames, body, "too_large"));
        }
        match more {
            Some(more) => share.merge(more),
            None => return Ok(passing(frames, body, "memory_budget")),
        }
        if Instant::now() > deadline {
            return Ok(passing(frames, body, "slow_body"));
        }
    }
    let held = Held {
        _share: share,
        bytes: frames.length,
        shown: cap.shown.clone(),
    };
    held.shown.increment(held.bytes as f64);
    Ok(Captured::Whole(frames.joined(), held))
}

fn passing(frames: Frames, rest: Incoming, why: &'static str) -> Captured {
    Captured::Stream {
        first: frames.all(),
        rest,
        why,
    }
}

impl Cap {
    fn share(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.budget).try_acquire_many_owned(bytes).ok()
    }
}

/// What was read of a body.
#[derive(Default)]
struct Frames {
    whole: VecDeque<Bytes>,
    /// Small frames that came after those, as one.
    small: BytesMut,
    length: usize,
}

impl Frames {
    fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        if bytes.len() < SMALL && !(self.whole.is_empty() && self.small.is_empty()) {
            self.small.extend_from_slice(&bytes);
            return;
        }
        if !self.small.is_empty() {
            self.whole.push_back(self.small.split().freeze());
        }
        self.whole.push_back(bytes);
    }

    fn all(mut self) -> VecDeque<Bytes> {
        if !self.small.is_empty() {
            self.whole.push_back(self.small.freeze());
        }
        self.whole
    }

    fn joined(self) -> Bytes {
        let length = self.length;
        let mut frames = self.all();
        // The usual body of a few kilobytes is one frame: no copy.
        if frames.len() <= 1 {
            return frames.pop_front().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity(length);
        for frame in frames {
            whole.extend_from_slice(&frame);
        }
        whole.freeze()
    }
}
