//! Accepts client connections and serves HTTP/1.1 and prior-knowledge HTTP/2 on them, with or without TLS.
//!
//! Bounds: connections at once (further ones wait in the kernel's backlog), TLS handshake time, header count and
//! size, head and idle time (see `guard`), HTTP/2 streams and frames.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::metrics::{CONNECTIONS, CONNECTIONS_ACCEPTED, Metrics};
use crate::proxy::{ConnectionLimits, Notices, Reply, Stack};

mod guard;
pub mod tls;

use guard::{Activity, Guarded, InRequest, Patience};
use tls::Tls;

/// How a listener is served and ended.
pub struct Listening {
    /// TLS settings, where clients speak TLS.
    pub tls: Option<Arc<Tls>>,
    /// Bounds on each connection.
    pub limits: ConnectionLimits,
    /// Connections open now.
    pub open: Arc<AtomicUsize>,
    /// Ends the accepting.
    pub stop: CancellationToken,
    /// How long open connections may take to finish after that.
    pub grace: Duration,
}

/// Serves connections until told to stop, then lets open ones finish.
pub async fn serve(listener: TcpListener, stack: Stack, listening: Listening, metrics: Arc<Metrics>) {
    let Listening {
        tls,
        limits,
        open,
        stop,
        grace,
    } = listening;
    let builder = Arc::new(builder(&limits));
    let seats = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let tasks = TaskTracker::new();
    let notices = Notices::default();
    let accepted = metrics.counter(&CONNECTIONS_ACCEPTED, &[]);
    let shown = metrics.gauge(&CONNECTIONS, &[]);
    while let Some(Ok(seat)) = stop.run_until_cancelled(Arc::clone(&seats).acquire_owned()).await {
        let Some((stream, _)) = stop.run_until_cancelled(accept(&listener, &notices)).await else {
            break;
        };
        accepted.increment(1);
        open.fetch_add(1, Ordering::Relaxed);
        // Added to, not set: two that end at once could set their numbers in the wrong order.
        shown.increment(1.0);
        let (stack, builder, tls) = (stack.clone(), Arc::clone(&builder), tls.clone());
        let (watcher, open, shown) = (graceful.watcher(), Arc::clone(&open), shown.clone());
        tasks.spawn(async move {
            let activity = Arc::new(Activity::default());
            let patience = Patience {
                head: limits.header_timeout,
                idle: limits.idle_timeout,
            };
            match tls {
                None => {
                    let guarded = Guarded::new(stream, Arc::clone(&activity), patience);
                    connection(guarded, stack, activity, &builder, watcher).await;
                }
                Some(tls) => {
                    let handshake = tokio::time::timeout(limits.header_timeout, tls.acceptor().accept(stream));
                    match handshake.await {
                        Ok(Ok(stream)) => {
                            let guarded = Guarded::new(stream, Arc::clone(&activity), patience);
                            connection(guarded, stack, activity, &builder, watcher).await;
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                        Err(_elapsed) => tracing::debug!("TLS handshake timed out"),
                    }
                }
            }
            open.fetch_sub(1, Ordering::Relaxed);
            shown.decrement(1.0);
            drop(seat);
        });
    }
    drop(listener);
    tasks.close();
    let finish = async {
        graceful.shutdown().await;
        tasks.wait().await;
    };
    if tokio::time::timeout(grace, finish).await.is_err() {
        tracing::info!("connections still open at the end of the grace period are cut");
    }
}

/// Returns a bound listener. The address may have port 0.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn accept(listener: &TcpListener, notices: &Notices) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Small answers must not wait for an acknowledgement.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) => {
                // Out of file descriptors, or the client is gone already; either passes.
                if let Some(times) = notices.due("accept") {
                    tracing::warn!(%error, times, "cannot accept a connection");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn builder(limits: &ConnectionLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The guard's timeouts stand in for this one, which would also count idle time.
        .header_read_timeout(None)
        .preserve_header_case(true)
        .max_headers(limits.headers)
        .max_buf_size(limits.header_bytes.max(8192))
        // A client that leaves must be noticed while a stream to it is silent.
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_frame_size(16 * 1024)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(256 * 1024)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(256)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: Guarded<S>,
    stack: Stack,
    activity: Arc<Activity>,
    builder: &auto::Builder<TokioExecutor>,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let under_way = activity.begin();
        let stack = stack.clone();
        async move {
            // The stack's outermost layer answers every error; what is left cannot happen.
            let answer = stack
                .oneshot(request)
                .await
                .unwrap_or_else(|_| Response::new(Reply::Own(None)));
            Ok::<_, Infallible>(answer.map(|body| Tracked {
                body,
                _under_way: under_way,
            }))
        }
    });
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = pin!(watcher.watch(serving.into_owned())).await {
        tracing::debug!(%error, "client connection ended");
    }
}

/// An answer's body that keeps its connection from counting as idle until it is sent.
struct Tracked {
    body: Reply,
    _under_way: InRequest,
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
