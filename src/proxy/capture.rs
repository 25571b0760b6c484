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
use tokio::time::timeout;

use crate::proxy::Failure;

/// What one body may take.
pub(super) struct Cap {
    /// `tee.max_body`, bytes.
    pub(super) body: usize,
    /// `tee.max_in_flight`, bytes shared by all requests.
    pub(super) budget: Arc<Semaphore>,
    /// How long the client may pause.
    pub(super) pause: Duration,
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
    _share: Option<OwnedSemaphorePermit>,
    bytes: usize,
    shown: Gauge,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shown.decrement(self.bytes as f64);
    }
}

/// Reads `body` whole if it fits.
///
/// Fails if the client aborts or pauses for longer than the cap allows; then nothing goes to the upstream, which
/// would get a broken request.
pub(super) async fn capture(mut body: Incoming, cap: &Cap) -> Result<Captured, Failure> {
    if body.size_hint().lower() > cap.body as u64 {
        return Ok(Captured::Stream {
            first: VecDeque::new(),
            rest: body,
            why: "too_large",
        });
    }
    let mut held: Option<OwnedSemaphorePermit> = None;
    let mut frames: VecDeque<Bytes> = VecDeque::new();
    let mut length = 0;
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
        length += bytes.len();
        let permit = Arc::clone(&cap.budget).try_acquire_many_owned(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        frames.push_back(bytes);
        if length > cap.body {
            return Ok(Captured::Stream {
                first: frames,
                rest: body,
                why: "too_large",
            });
        }
        match (permit, &mut held) {
            (Ok(permit), Some(held)) => held.merge(permit),
            (Ok(permit), held) => *held = Some(permit),
            (Err(_), _) => {
                return Ok(Captured::Stream {
                    first: frames,
                    rest: body,
                    why: "memory_budget",
                });
            }
        }
    }
    cap.shown.increment(length as f64);
    let held = Held {
        _share: held,
        bytes: length,
        shown: cap.shown.clone(),
    };
    Ok(Captured::Whole(joined(frames, length), held))
}

fn joined(mut frames: VecDeque<Bytes>, length: usize) -> Bytes {
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
