//! Bodies on their way through the relay: what goes to the upstream and what goes back to the SDK.
//!
//! Both are plain enums over hyper's own body, so that a stream is handed on frame by frame without a copy or a box.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tower::BoxError;

use crate::proxy::Failure;

/// A request body on its way to the upstream.
pub enum Outbound {
    /// Captured whole.
    Whole(Option<Bytes>),
    /// What was read while it seemed to fit the cap, then the rest as it comes.
    Stream {
        /// Frames already read.
        first: VecDeque<Bytes>,
        /// The rest.
        rest: Incoming,
        /// How long the client may pause.
        pause: Pause,
    },
}

/// Ends a body that makes no progress.
pub struct Pause {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Pause {
    /// Returns a pause limit that starts now.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            timer: Box::pin(tokio::time::sleep(limit)),
        }
    }
}

impl Outbound {
    /// Returns a body that hands on `body` as it comes and ends when the client pauses for longer than `pause`.
    pub fn streaming(body: Incoming, pause: Duration) -> Self {
        Self::Stream {
            first: VecDeque::new(),
            rest: body,
            pause: Pause::new(pause),
        }
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Self::Stream { first, rest, pause } => {
                if let Some(bytes) = first.pop_front() {
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                match Pin::new(rest).poll_frame(cx) {
                    Poll::Ready(frame) => {
                        pause.timer.as_mut().reset(Instant::now() + pause.limit);
                        Poll::Ready(frame.map(|result| result.map_err(Into::into)))
                    }
                    Poll::Pending => {
                        ready!(pause.timer.as_mut().poll(cx));
                        Poll::Ready(Some(Err(Failure::BodyStalled.into())))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream { first, rest, .. } => first.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream { first, rest, .. } => {
                let read: u64 = first.iter().map(|bytes| bytes.len() as u64).sum();
                let hint = rest.size_hint();
                let mut total = SizeHint::new();
                total.set_lower(read + hint.lower());
                if let Some(upper) = hint.upper() {
                    total.set_upper(read + upper);
                }
                total
            }
        }
    }
}

/// An answer's body on its way to the SDK.
pub enum Reply {
    /// The upstream's, as it comes.
    Upstream(Incoming),
    /// The relay's own words.
    Own(Option<Bytes>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream(body) => body.is_end_stream(),
            Self::Own(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Upstream(body) => body.size_hint(),
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}
