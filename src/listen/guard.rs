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

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::unreadable::{Unreadable, own};

/// Requests under way on a connection; shared between its reads and its service.
pub(super) struct Activity {
    open: AtomicUsize,
    finished: AtomicU64,
    start: Instant,
    /// When the last request was finished, milliseconds from `start`.
    finished_ms: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            open: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            start: Instant::now(),
            finished_ms: AtomicU64::new(0),
        }
    }
}

/// One request under way; finished when dropped.
pub(super) struct InRequest(Arc<Activity>);

impl Activity {
    /// Notes that a request's head has arrived.
    pub(super) fn begin(self: &Arc<Self>) -> InRequest {
        self.open.fetch_add(1, Ordering::Relaxed);
        InRequest(Arc::clone(self))
    }

    /// Returns since when there is no request, if there is none.
    fn idle_since(&self) -> Option<Instant> {
        if self.open.load(Ordering::Acquire) > 0 {
            return None;
        }
        Some(self.start + Duration::from_millis(self.finished_ms.load(Ordering::Relaxed)))
    }
}

impl Drop for InRequest {
    fn drop(&mut self) {
        let since = self.0.start.elapsed().as_millis();
        self.0
            .finished_ms
            .store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.0.finished.fetch_add(1, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Release);
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
    /// Wakes the read to look whether the patience is over. Set anew when it fires, not with every request: hyper does
    /// not read again when a request is finished, and requests should not pay for a timer.
    timer: Pin<Box<Sleep>>,
    /// Value of `Activity::finished` when it was last looked at.
    seen: u64,
    waiting: Waiting,
    /// Runs while the client does not take what is written.
    stuck: Option<Pin<Box<Sleep>>>,
    unreadable: Option<Unreadable>,
    /// Value of `Activity::finished` when everything was written last.
    flushed: u64,
    /// What is still to go out in place of hyper's own answer.
    instead: Option<Bytes>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// For the first byte of a request.
    FirstByte,
    /// For the rest of its head, since the first byte came.
    Head(Instant),
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
            waiting: Waiting::FirstByte,
            stuck: None,
            unreadable: None,
            flushed: 0,
            instead: None,
        }
    }

    /// Has heads that cannot be read answered so.
    pub(super) fn answering(mut self, unreadable: Option<Unreadable>) -> Self {
        self.unreadable = unreadable;
        self
    }

    /// Whether there is no request, and every answer so far is written: what is written now answers a head that became none.
    fn is_between_requests(&self) -> bool {
        self.waiting != Waiting::Frames
            && self.activity.idle_since().is_some()
            && self.activity.finished.load(Ordering::Relaxed) == self.flushed
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

    /// Returns when the patience is over as things stand.
    fn deadline(&mut self) -> Instant {
        let finished = self.activity.finished.load(Ordering::Relaxed);
        let idle_since = self.activity.idle_since();
        if (idle_since.is_none() || finished != self.seen) && self.waiting != Waiting::Frames {
            self.waiting = Waiting::FirstByte;
        }
        self.seen = finished;
        match (idle_since, self.waiting) {
            // A request under way has all the time it needs; look again later.
            (None, _) => Instant::now() + self.patience.idle,
            (Some(_), Waiting::Head(since)) => since + self.patience.head,
            (Some(since), _) => since + self.patience.idle,
        }
    }

    /// Returns `Ready` when the patience is over.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut deadline = self.deadline();
        if deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
            deadline = self.deadline();
        }
        Poll::Pending
    }

    fn note_read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.waiting != Waiting::FirstByte || self.activity.idle_since().is_none() {
            // More of a head does not move its deadline: a client that sends a byte a second gets no further. Frames are
            // no activity: acknowledgements of our own pings come every half minute.
            return;
        }
        // "PRI" is the start of HTTP/2's preface and no method of HTTP/1.
        self.waiting = if bytes.starts_with(b"PRI") {
            Waiting::Frames
        } else {
            Waiting::Head(Instant::now())
        };
        self.seen = self.activity.finished.load(Ordering::Relaxed);
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    /// Whether another answer goes out in place of `buf`.
    fn replaces(&mut self, buf: &[u8]) -> bool {
        if self.instead.is_none()
            && self.is_between_requests()
            && let Some(unreadable) = &self.unreadable
            && let Some(own) = own(buf)
        {
            self.instead = Some(unreadable(&own));
        }
        self.instead.is_some()
    }

    /// Writes that answer; says that the `replaced` bytes are written when all of it is.
    fn poll_replace(&mut self, cx: &mut Context<'_>, replaced: usize) -> Poll<io::Result<usize>> {
        while let Some(rest) = self.instead.as_mut().filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.inner).poll_write(cx, rest) {
                Poll::Ready(Ok(count)) if count > 0 => rest.advance(count),
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                outcome => return self.written(cx, outcome),
            }
        }
        self.stuck = None;
        Poll::Ready(Ok(replaced))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = self.as_mut().get_mut();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Ready(result) => {
                this.note_read(&buf.filled()[before..]);
                // A deadline that has passed counts also when bytes keep coming.
                if let Waiting::Head(since) = this.waiting
                    && this.activity.idle_since().is_some()
                    && this.activity.finished.load(Ordering::Relaxed) == this.seen
                    && Instant::now() > since + this.patience.head
                {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Ready(result)
            }
            Poll::Pending => this.poll_patience(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(buf) {
            return self.poll_replace(cx, buf.len());
        }
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        if matches!(outcome, Poll::Ready(Ok(()))) && self.activity.idle_since().is_some() {
            self.flushed = self.activity.finished.load(Ordering::Relaxed);
        }
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
        // hyper's own answer is one piece.
        if let [buf] = bufs
            && self.replaces(buf)
        {
            return self.poll_replace(cx, buf.len());
        }
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
