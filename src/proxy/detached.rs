//! A future that goes on by itself when nobody waits for it any more.
//!
//! A captured batch must reach its outcome although its client hung up, and hyper drops the future of a client that
//! did. A task per batch would do too, but costs every batch two hand-overs between threads for the sake of the few.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TrackedFuture;

/// Ends where it is polled, or else in a task of its own.
pub(super) struct Detached<F: Future<Output: Send + 'static> + Send + 'static> {
    future: Option<Pin<Box<TrackedFuture<F>>>>,
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Detached<F> {
    /// Returns `future`, counted by `tracker` until it ends.
    pub(super) fn new(future: F, tracker: &TaskTracker) -> Self {
        Self {
            future: Some(Box::pin(tracker.track_future(future))),
        }
    }
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Future for Detached<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = &mut self.future else {
            return Poll::Pending;
        };
        let outcome = future.as_mut().poll(cx);
        if outcome.is_ready() {
            self.future = None;
        }
        outcome
    }
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Drop for Detached<F> {
    fn drop(&mut self) {
        // A panic came out of it: there is nothing to go on with. Without a runtime the process is ending.
        if std::thread::panicking() {
            return;
        }
        if let (Some(future), Ok(runtime)) = (self.future.take(), Handle::try_current()) {
            runtime.spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn ends_although_it_was_dropped() {
        let (tracker, go, done) = (
            TaskTracker::new(),
            Arc::new(Notify::new()),
            Arc::new(AtomicBool::new(false)),
        );
        let (waits, sets) = (Arc::clone(&go), Arc::clone(&done));
        let mut detached = Detached::new(
            async move {
                waits.notified().await;
                sets.store(true, Ordering::Release);
            },
            &tracker,
        );
        assert!(futures_util::poll!(&mut detached).is_pending());
        drop(detached);
        assert_eq!(tracker.len(), 1);
        go.notify_one();
        tracker.close();
        tracker.wait().await;
        assert!(done.load(Ordering::Acquire));
    }

    #[tokio::test]
    async fn ends_where_it_is_awaited() {
        let tracker = TaskTracker::new();
        assert_eq!(Detached::new(async { 7 }, &tracker).await, 7);
        assert!(tracker.is_empty());
    }
}
