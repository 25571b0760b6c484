//! The ports beside the relay's own: telemetry, for probes and scrapers, and admin, for people.
//!
//! Owns how they are served: few connections, small heads, no patience with slow ones. What they answer is in
//! [`telemetry`] and [`api`]. Neither is in the way of traffic.

mod answer;
pub mod api;
pub mod letters;
pub mod settings;
pub mod settle;
pub mod telemetry;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Connections at once: probes, a scraper or two, a person. More wait.
const CONNECTIONS: usize = 256;

/// For a request's head, and between two requests.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the telemetry port takes no new request after this, and is cut after as long again: a client that takes
/// nothing of its answer must not keep a probe's place.
pub const LIFE: Duration = Duration::from_secs(30);

/// Serves a port until `stop`; each connection no longer than twice `life`.
pub async fn serve(listener: TcpListener, routes: Router, life: Option<Duration>, stop: CancellationToken) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some(Ok(seat)) = stop.run_until_cancelled(Arc::clone(&seats).acquire_owned()).await {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else {
            return;
        };
        let Ok((stream, _)) = accepted else {
            // Out of files, or the client is gone already; either passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (routes, stop) = (TowerToHyperService::new(routes.clone()), stop.clone());
        tokio::spawn(async move {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(16 * 1024);
            let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), routes));
            // A client that leaves is nobody's problem here.
            let served = async {
                let Some(life) = life else {
                    let _ = serving.await;
                    return;
                };
                if timeout(life, &mut serving).await.is_err() {
                    serving.as_mut().graceful_shutdown();
                    let _ = timeout(life, serving).await;
                }
            };
            let _ = stop.run_until_cancelled(served).await;
            drop(seat);
        });
    }
}
