//! The telemetry port: `/livez`, `/readyz`, `/metrics`, `/status` and `/coverage`. No data but flag keys and what
//! LaunchDarkly's API tells of rules, no secrets, nothing that changes state.
//!
//! `/livez`   200 while the process serves at all.
//! `/readyz`  200 from the moment the relay listens until it is asked to stop. It does not depend on the upstream, the
//!            queue or a destination: in a sidecar our readiness is the application's.
//! `/metrics` Prometheus text, see `docs/metrics.md`.
//! `/status`  JSON for people: is the tee on, what waits, which destination is in trouble and why.
//! `/coverage` JSON: flags with what becomes of their events (see `coverage/report.rs`); `?environment=NAME` for one.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::coverage::Pieces;
use crate::metrics::Metrics;

/// What the telemetry port shows.
pub struct Telemetry {
    /// The process's metrics.
    pub metrics: Arc<Metrics>,
    /// The relay listens and was not asked to stop.
    pub ready: Arc<AtomicBool>,
    /// Brings gauges up to date; called before each scrape.
    pub sample: Box<dyn Fn() + Send + Sync>,
    /// Returns the status document.
    pub status: Box<dyn Fn() -> Value + Send + Sync>,
    /// Returns the coverage document, of one environment if its name is given.
    pub coverage: Box<CoverageOf>,
    /// Who may read coverage now: [`COVERAGE_READERS`].
    pub readers: Arc<Semaphore>,
}

/// Returns the coverage document of the environment with this name, of all without one, piece by piece.
pub type CoverageOf = dyn Fn(Option<&str>) -> Pieces + Send + Sync;

/// Readers of coverage at a time. Each holds a copy of the table, a few megabytes, until it has taken all.
pub const COVERAGE_READERS: usize = 2;

/// Returns what the telemetry port serves.
pub fn routes(telemetry: Arc<Telemetry>) -> Router {
    health()
        .route("/status", get(status))
        .route("/coverage", get(coverage))
        .with_state(telemetry)
}

/// Returns what the telemetry port of a process without a relay serves: `/livez`, `/readyz` and `/metrics`.
pub fn health_routes(metrics: Arc<Metrics>, ready: Arc<AtomicBool>) -> Router {
    health().with_state(Arc::new(Telemetry {
        metrics,
        ready,
        sample: Box::new(|| ()),
        status: Box::new(|| Value::Null),
        coverage: Box::new(|_| Box::new(std::iter::empty())),
        readers: Arc::new(Semaphore::new(COVERAGE_READERS)),
    }))
}

fn health() -> Router<Arc<Telemetry>> {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

async fn ready(State(telemetry): State<Arc<Telemetry>>) -> Response {
    if telemetry.ready.load(Ordering::Acquire) {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n").into_response()
    }
}

async fn metrics(State(telemetry): State<Arc<Telemetry>>) -> Response {
    (telemetry.sample)();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        telemetry.metrics.render(),
    )
        .into_response()
}

async fn status(State(telemetry): State<Arc<Telemetry>>) -> Response {
    let text = serde_json::to_string_pretty(&(telemetry.status)()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response()
}

async fn coverage(State(telemetry): State<Arc<Telemetry>>, uri: Uri) -> Response {
    // Names of environments need no escapes.
    let query = uri.query().unwrap_or_default().split('&');
    let environment = query.filter_map(|pair| pair.strip_prefix("environment=")).next_back();
    let Ok(turn) = Arc::clone(&telemetry.readers).try_acquire_owned() else {
        let retry = [(header::RETRY_AFTER, "1")];
        return (StatusCode::SERVICE_UNAVAILABLE, retry, "others are reading it\n").into_response();
    };
    let pieces = (telemetry.coverage)(environment).map(move |piece| {
        let _until_all_is_taken = &turn;
        Ok::<_, Infallible>(piece)
    });
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::metrics::QUEUE_AVAILABLE;

    async fn fetch(telemetry: &Arc<Telemetry>, path: &str) -> (StatusCode, String) {
        let answer = routes(Arc::clone(telemetry))
            .oneshot(Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_route_says_what_it_promises() {
        let metrics = Arc::new(Metrics::new());
        let sampled = Arc::clone(&metrics);
        let telemetry = Arc::new(Telemetry {
            metrics,
            ready: Arc::new(AtomicBool::new(false)),
            sample: Box::new(move || sampled.gauge(&QUEUE_AVAILABLE, &[]).set(1.0)),
            status: Box::new(|| serde_json::json!({ "tee": "on" })),
            coverage: Box::new(|environment| {
                let text = serde_json::json!({ "of": environment }).to_string();
                Box::new([text, "\n".to_owned()].into_iter())
            }),
            readers: Arc::new(Semaphore::new(1)),
        });
        assert_eq!(fetch(&telemetry, "/livez").await.0, StatusCode::OK);
        assert_eq!(fetch(&telemetry, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        telemetry.ready.store(true, Ordering::Release);
        assert_eq!(fetch(&telemetry, "/readyz").await.0, StatusCode::OK);
        assert!(
            fetch(&telemetry, "/metrics")
                .await
                .1
                .contains("flagtap_queue_available 1")
        );
        assert!(fetch(&telemetry, "/status").await.1.contains("\"tee\": \"on\""));
        assert_eq!(fetch(&telemetry, "/coverage").await.1, "{\"of\":null}\n");
        let slow = routes(Arc::clone(&telemetry)).oneshot(Request::get("/coverage").body(Body::empty()).unwrap());
        let slow = slow.await.unwrap();
        assert_eq!(fetch(&telemetry, "/coverage").await.0, StatusCode::SERVICE_UNAVAILABLE);
        drop(slow);
        let one = fetch(&telemetry, "/coverage?x&environment=a").await.1;
        assert!(one.contains("\"of\":\"a\""), "{one}");
        assert_eq!(fetch(&telemetry, "/anything").await.0, StatusCode::NOT_FOUND);
    }
}
