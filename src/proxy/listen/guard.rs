//! Bounds on one client connection: how long a request's head may take, how long the connection may idle, and how
//! long an answer may wait to be taken.
//!
//! A wrapper around the connection's reads, because hyper's own header timeout also runs while a kept-alive
//! connection waits for its next request: SDKs flush every 5 to 30 seconds and would find their connection closed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Requests under way on a connection; shared between its reads and its service.
#[derive(Default)]
pub(super) struct Activity {
    open: AtomicUsize,
    finished: AtomicU64,
    /// The read that waits while a request is under way. hyper does not read again when its request is finished, so
    /// the idle time would never begin.
    reading: AtomicWaker,
}

/// One request under way; finished when dropped.
pub(super) struct InRequest(Arc<Activity>);

impl Activity {
    /// Notes that a request's head has arrived.
    pub(super) fn begin(self: &Arc<Self>) -> InRequest {
        self.open.fetch_add(1, Ordering::Relaxed);
        InRequest(Arc::clone(self))
    }
}

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.finished.fetch_add(1, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.reading.wake();
    }
}

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From a request's first byte to the end of its head.
    pub(super) head: Duration,
    /// Without any request.
    pub(super) idle: Duration,
}

/// A client connection that ends its reads and writes with `TimedOut` when the client has used up the patience.
pub(super) struct Guarded<S> {
    inner: S,
    activity: Arc<Activity>,
    patience: Patience,
    timer: Pin<Box<Sleep>>,
    /// Value of `Activity::finished` for which `deadline` was set.
    seen: u64,
    deadline: Option<Instant>,
    waiting: Waiting,
    /// Runs while the client does not take what is written.
    stuck: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// For the first byte of a request.
    FirstByte,
    /// For the rest of its head.
    Head,
    /// HTTP/2: frames come at any time, only the time without a request is bounded.
    Frames,
}

impl<S> Guarded<S> {
    /// Wraps `inner`.
    pub(super) fn new(inner: S, activity: Arc<Activity>, patience: Patience) -> Self {
        Self {
            inner,
            activity,
            patience,
            timer: Box::pin(tokio::time::sleep(patience.idle)),
            seen: 0,
            deadline: None,
            waiting: Waiting::FirstByte,
            stuck: None,
        }
    }

    /// Bounds how long a client may leave an answer untaken: a stream may be silent for hours, but not full for minutes.
    fn written<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stuck = None;
            return outcome;
        }
        let patience = self.patience.idle;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match stuck.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => outcome,
        }
    }

    /// Sets or clears the deadline for the state the connection is in.
    fn set_deadline(&mut self) {
        if self.activity.open.load(Ordering::Relaxed) > 0 {
            self.deadline = None;
            if self.waiting != Waiting::Frames {
                self.waiting = Waiting::FirstByte;
            }
            return;
        }
        let finished = self.activity.finished.load(Ordering::Relaxed);
        if self.deadline.is_some() && finished == self.seen {
            return;
        }
        if finished != self.seen && self.waiting == Waiting::Head {
            self.waiting = Waiting::FirstByte;
        }
        self.seen = finished;
        let limit = if self.waiting == Waiting::Head {
            self.patience.head
        } else {
            self.patience.idle
        };
        let deadline = Instant::now() + limit;
        self.deadline = Some(deadline);
        self.timer.as_mut().reset(deadline);
    }

    fn note_read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.activity.open.load(Ordering::Relaxed) > 0 {
            return;
        }
        match self.waiting {
            // "PRI" is the start of HTTP/2's preface and no method of HTTP/1.
            Waiting::FirstByte if bytes.starts_with(b"PRI") => {
                self.waiting = Waiting::Frames;
                self.deadline = None;
            }
            Waiting::FirstByte => {
                self.waiting = Waiting::Head;
                self.deadline = None;
            }
            // More of the head does not move its deadline: a client that sends a byte a second gets no further.
            Waiting::Head => {}
            // Not activity: acknowledgements of our own pings come every half minute.
            Waiting::Frames => {}
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(result) => {
                let this = self.as_mut().get_mut();
                this.note_read(&buf.filled()[before..]);
                // A deadline that has passed counts also when bytes keep coming.
                if this.waiting == Waiting::Head && this.deadline.is_some_and(|deadline| Instant::now() > deadline) {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                let this = self.as_mut().get_mut();
                // Before the look at the requests under way, so that none can finish unseen in between.
                this.activity.reading.register(cx.waker());
                this.set_deadline();
                if this.deadline.is_some() && this.timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.written(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(120),
    };

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_is_cut_off_at_its_deadline() {
        let (mut client, server) = duplex(64);
        let mut guarded = Guarded::new(server, Arc::new(Activity::default()), PATIENCE);
        let start = Instant::now();
        let dripping = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let mut buf = [0; 8];
        let error = loop {
            if let Err(error) = guarded.read(&mut buf).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((10..=11).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        drop(guarded);
        dripping.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_lives_for_the_idle_patience_after_its_last_request() {
        let (mut client, server) = duplex(64);
        let activity = Arc::new(Activity::default());
        let mut guarded = Guarded::new(server, Arc::clone(&activity), PATIENCE);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut buf = [0; 64];
        assert_eq!(guarded.read(&mut buf).await.unwrap(), 18);
        let request = activity.begin();
        // A request under way has no deadline here, however long it takes.
        let waiting = tokio::time::timeout(Duration::from_secs(3600), guarded.read(&mut buf)).await;
        assert!(waiting.is_err());
        drop(request);
        let start = Instant::now();
        let error = guarded.read(&mut buf).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 120);
    }

    #[tokio::test(start_paused = true)]
    async fn the_idle_patience_begins_although_nobody_reads_again() {
        let (_client, server) = duplex(64);
        let activity = Arc::new(Activity::default());
        let mut guarded = Guarded::new(server, Arc::clone(&activity), PATIENCE);
        let request = activity.begin();
        let start = Instant::now();
        let reading = tokio::spawn(async move { guarded.read(&mut [0; 8]).await.unwrap_err() });
        tokio::task::yield_now().await;
        // The only wake-up that the reading task gets before its deadline.
        drop(request);
        let error = tokio::time::timeout(Duration::from_secs(3600), reading).await;
        assert_eq!(error.unwrap().unwrap().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (_client, server) = duplex(8);
        let mut guarded = Guarded::new(server, Arc::new(Activity::default()), PATIENCE);
        let start = Instant::now();
        let error = guarded.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 120);
    }

    #[tokio::test(start_paused = true)]
    async fn http2_frames_without_a_request_do_not_keep_a_connection() {
        let (mut client, server) = duplex(64);
        let mut guarded = Guarded::new(server, Arc::new(Activity::default()), PATIENCE);
        client.write_all(b"PRI * HTTP/2.0").await.unwrap();
        let mut buf = [0; 64];
        assert_eq!(guarded.read(&mut buf).await.unwrap(), 14);
        let start = Instant::now();
        let pinging = tokio::spawn(async move {
            while client.write_all(b"ping").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
        });
        while guarded.read(&mut buf).await.is_ok() {}
        assert!(
            (119..=121).contains(&start.elapsed().as_secs()),
            "{:?}",
            start.elapsed()
        );
        drop(guarded);
        pinging.await.unwrap();
    }
}
