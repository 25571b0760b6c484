//! Accepts client connections and serves HTTP/1.1 and prior-knowledge HTTP/2 on them, with or without TLS.
//!
//! Bounds: connections at once (further ones wait in the kernel's backlog), TLS handshake time, header count and
//! size, head and idle time (see `guard`), HTTP/2 streams and frames.

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
use tower::{BoxError, Service, ServiceExt};

use crate::metrics::{CONNECTIONS, CONNECTIONS_ACCEPTED, Metrics};
use crate::notices::Notices;

mod guard;
pub mod tls;
mod unreadable;

use guard::{Activity, Guarded, InRequest, Patience};
use tls::Tls;
pub use unreadable::{Own, Unreadable};

/// Bounds on client connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// At once.
    pub connections: usize,
    /// Headers in a request.
    pub headers: usize,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// From a request's first byte to the end of its head; also for the TLS handshake.
    pub header_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Duration,
}

/// How a listener is served and ended.
pub struct Listening {
    /// TLS settings, where clients speak TLS.
    pub tls: Option<Arc<Tls>>,
    /// Bounds on each connection.
    pub limits: ConnectionLimits,
    /// What is answered to a head that cannot be read; without, what hyper answers.
    pub unreadable: Option<Unreadable>,
    /// Connections open now.
    pub open: Arc<AtomicUsize>,
    /// Ends the accepting.
    pub stop: CancellationToken,
    /// How long open connections may take to finish after that.
    pub grace: Duration,
}

/// Serves connections with `service` until told to stop, then lets open ones finish. `service` answers its own failures:
/// an error of it ends the connection.
pub async fn serve<S, B>(listener: TcpListener, service: S, listening: Listening, metrics: Arc<Metrics>)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let Listening {
        tls,
        limits,
        unreadable,
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
        let (service, builder, tls) = (service.clone(), Arc::clone(&builder), tls.clone());
        let unreadable = unreadable.clone();
        let (watcher, open, shown) = (graceful.watcher(), Arc::clone(&open), shown.clone());
        tasks.spawn(async move {
            let activity = Arc::new(Activity::default());
            let patience = Patience {
                head: limits.header_timeout,
                idle: limits.idle_timeout,
            };
            match tls {
                None => {
                    let guarded = Guarded::new(stream, Arc::clone(&activity), patience).answering(unreadable);
                    connection(guarded, service, activity, &builder, watcher).await;
                }
                Some(tls) => {
                    let handshake = tokio::time::timeout(limits.header_timeout, tls.acceptor().accept(stream));
                    match handshake.await {
                        Ok(Ok(stream)) => {
                            let guarded = Guarded::new(stream, Arc::clone(&activity), patience).answering(unreadable);
                            connection(guarded, service, activity, &builder, watcher).await;
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

async fn connection<T, S, B>(
    stream: Guarded<T>,
    service: S,
    activity: Arc<Activity>,
    builder: &auto::Builder<TokioExecutor>,
    watcher: hyper_util::server::graceful::Watcher,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let under_way = activity.begin();
        let service = service.clone();
        async move {
            let answer = service.oneshot(request).await?;
            Ok::<_, S::Error>(answer.map(|body| Tracked {
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
struct Tracked<B> {
    body: B,
    _under_way: InRequest,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Tracked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
