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

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections at once: probes, a scraper or two, a person. More wait.
const CONNECTIONS: usize = 64;

/// For a request's head, and between two requests.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves a port until `stop`.
pub async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
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
            let serving = builder.serve_connection(TokioIo::new(stream), routes);
            // A client that leaves is nobody's problem here.
            let _ = stop.run_until_cancelled(serving).await;
            drop(seat);
        });
    }
}
