//! The relay: a request's life from the SDK to the upstream and back.
//!
//! Original traffic comes first. Whatever the tee does, the upstream gets the client's bytes and the client gets the
//! upstream's answer; only `tee.on_failure: refuse` and the relay's own failures (502, 503, 504) are exceptions.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceBuilder};

use crate::metrics::{IN_FLIGHT_BYTES, Metrics, REQUEST_SECONDS, REQUESTS, TASK_PANICS};
use crate::notices::Notices;
use crate::platform::{self, EventRoute, Identity, Route};
use crate::queue::now_ms;

mod answer;
mod body;
mod capture;
mod detached;
mod failure;
pub mod forward;
pub mod tee;

pub use answer::unreadable;
pub use body::{Outbound, Pause, Reply};
pub use failure::{Failure, Fault};

use answer::AnswerLayer;
use capture::{Cap, Captured, Held, capture};
use detached::Detached;
use forward::Upstream;
use tee::{Offer, Outcome, Policy, Tee};

/// What the upstream made of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// 2xx.
    Accepted,
    /// 4xx other than 408 and 429: the batch or its credential is bad.
    Rejected,
    /// No answer, or one that says nothing of the batch: 408, 429, 3xx, 5xx.
    None,
}

impl Judgement {
    /// Returns what a status says of a batch.
    pub fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Self::None,
            status if status.is_success() => Self::Accepted,
            status if status.is_client_error() => Self::Rejected,
            _ => Self::None,
        }
    }
}

/// `tee.when`: which batches are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Accepted ones, and those of configured credentials on which the upstream gave no judgement.
    NotRejected,
    /// Accepted ones only.
    Accepted,
}

/// `tee.on_failure`: what the SDK gets when the copy could not be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// The upstream's answer.
    Pass,
    /// 503, so that it sends the batch again.
    Refuse,
}

/// The upstream and the client that reaches it.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// `upstream.url`.
    pub url: Uri,
    /// Until the head of an answer to a captured request.
    pub timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// How many unused connections are kept.
    pub max_idle: usize,
    /// Headers in an answer.
    pub max_headers: usize,
    /// Bytes of an answer's head.
    pub max_head_bytes: usize,
}

/// What requests on event routes may take, whatever the policy.
#[derive(Clone, Copy, Debug)]
pub struct RelaySettings {
    /// `tee.max_in_flight`, bytes.
    pub max_in_flight: usize,
    /// How long a client may pause within a body.
    pub body_timeout: Duration,
    /// Batches at once, and as many other requests; more are shed with 503.
    pub requests: usize,
}

/// How many pauses a captured body may take in all.
const SLOWEST_BODY: u32 = 6;

/// The relay with all its layers.
pub type Stack = BoxCloneSyncService<Request<Incoming>, Response<Reply>, BoxError>;

/// Returns the relay with its layers; the order from the outside in, each with its reason.
pub fn stack(relay: Relay, requests: usize, metrics: &Arc<Metrics>) -> Stack {
    BoxCloneSyncService::new(
        ServiceBuilder::new()
            // Outermost: whatever fails further in, shedding included, becomes an answer with `x-flagtap-error`.
            .layer(AnswerLayer::new(Arc::clone(metrics)))
            // Around the limit: a request that would have to wait for a place is refused at once. Waiting in an
            // unbounded line would spend the SDK's own timeout and the memory of this process.
            .layer(LoadShedLayer::new())
            // Requests at once, over all connections. A place is held until the answer's head, so that streams that
            // live for hours do not use up the limit. The timeout of captured requests is a layer around the
            // upstream client (`forward`): a timeout out here would also end streams.
            .layer(GlobalConcurrencyLimitLayer::new(requests * 2))
            .service(relay),
    )
}

/// Forwards requests and offers the batches among them to the tee.
#[derive(Clone)]
pub struct Relay {
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Upstream,
    tee: Arc<Tee>,
    cap: Cap,
    /// Batches without an outcome.
    places: Arc<Semaphore>,
    /// Requests that are passed through without an answer: they may wait for hours, and must not take the batches' places.
    others: Arc<Semaphore>,
    settings: RelaySettings,
    batches: TaskTracker,
    notices: Notices,
    metrics: Arc<Metrics>,
}

impl Relay {
    /// Returns a relay. `batches` counts the captured batches that have no outcome yet.
    pub fn new(
        upstream: Upstream,
        tee: Arc<Tee>,
        settings: RelaySettings,
        batches: TaskTracker,
        metrics: Arc<Metrics>,
    ) -> Self {
        let cap = Cap {
            budget: Arc::new(Semaphore::new(settings.max_in_flight.min(Semaphore::MAX_PERMITS))),
            pause: settings.body_timeout,
            whole: settings.body_timeout * SLOWEST_BODY,
            shown: metrics.gauge(&IN_FLIGHT_BYTES, &[]),
        };
        Self {
            shared: Arc::new(Shared {
                upstream,
                tee,
                cap,
                places: Arc::new(Semaphore::new(settings.requests)),
                others: Arc::new(Semaphore::new(settings.requests)),
                settings,
                batches,
                notices: Notices::default(),
                metrics,
            }),
        }
    }
}

impl Service<Request<Incoming>> for Relay {
    type Response = Response<Reply>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Reply>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let started = Instant::now();
            let (parts, body) = request.into_parts();
            let policy = shared.tee.policy();
            let route = policy.platform.classify(&parts.method, parts.uri.path());
            let template = match &route {
                Route::Events(route) => route.template,
                Route::PassThrough => "other",
            };
            let mut unanswered = Unanswered {
                shared: Arc::clone(&shared),
                template: Some(template),
                started,
            };
            let answering = async {
                match route {
                    Route::PassThrough => shared.pass_through(parts, body).await,
                    Route::Events(route) => Arc::clone(&shared).events(policy, route, parts, body).await,
                }
            };
            // A defect met by one request must not take the others on its connection along.
            let answer = AssertUnwindSafe(answering)
                .catch_unwind()
                .await
                .unwrap_or_else(|_panic| {
                    shared.metrics.counter(&TASK_PANICS, &["request"]).increment(1);
                    tracing::error!(route = template, "a defect ended a request");
                    Err(Failure::Internal)
                });
            unanswered.template = None;
            shared.count(template, answer.as_ref().map(Response::status), started.elapsed());
            Ok(answer?.map(Reply::Upstream))
        })
    }
}

impl Shared {
    async fn pass_through(&self, parts: Parts, body: Incoming) -> Result<Response<Incoming>, Failure> {
        let _place = self.others.try_acquire().map_err(|_| Failure::Overloaded)?;
        let body = Outbound::streaming(body, self.settings.body_timeout);
        self.upstream.stream(&parts, body).await
    }

    async fn events(
        self: Arc<Self>,
        policy: Arc<Policy>,
        route: EventRoute,
        parts: Parts,
        body: Incoming,
    ) -> Result<Response<Incoming>, Failure> {
        let received_ms = now_ms();
        let identity = policy.platform.identify(&route, &parts.headers);
        if identity == Identity::Unknown {
            // Nothing of it can be exported, so it takes no memory either.
            self.tee.pass_by(&policy, identity, "unknown_credential");
            return self.pass_through(parts, body).await;
        }
        // Held to the batch's outcome, also when its client is gone: hanging up must not be a way around the limit.
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(Failure::Overloaded);
        };
        match capture(body, head_bytes(&parts), policy.settings.max_body, &self.cap).await? {
            Captured::Whole(body, held) => {
                let batch = CapturedBatch {
                    policy,
                    received_ms,
                    identity,
                    route,
                    parts: Arc::new(parts),
                    body,
                    held,
                    place,
                };
                let shared = Arc::clone(&self);
                // A client that hangs up now takes its answer's future along, but not the batch.
                Detached::new(shared.carry(batch), &self.batches).await
            }
            Captured::Stream { first, rest, why } => {
                self.tee.pass_by(&policy, identity, why);
                if why == "memory_budget" && policy.settings.on_failure == OnFailure::Refuse {
                    return Err(Failure::NotKept);
                }
                let pause = Pause::new(self.settings.body_timeout);
                self.upstream
                    .stream(&parts, Outbound::Stream { first, rest, pause })
                    .await
            }
        }
    }

    /// Takes a captured batch through forward, decide and tee; returns its answer.
    async fn carry(self: Arc<Self>, batch: CapturedBatch) -> Result<Response<Incoming>, Failure> {
        let CapturedBatch {
            policy,
            received_ms,
            identity,
            route,
            parts,
            body,
            held,
            place,
        } = batch;
        let fingerprint = match identity {
            Identity::Known(environment) | Identity::Lone(environment) => {
                let captured = platform::Captured {
                    query: parts.uri.query(),
                    headers: &parts.headers,
                    body: &body,
                    route: &route,
                };
                Some(policy.platform.fingerprint(&captured, environment))
            }
            Identity::Unknown => None,
        };
        let repeatable = fingerprint.is_some_and(|fingerprint| fingerprint.by_payload_id);
        let answer = self.upstream.send(&parts, &body, repeatable).await;
        let judgement = answer
            .as_ref()
            .map_or(Judgement::None, |answer| Judgement::of(answer.status()));
        let settings = policy.settings;
        let offer = Offer {
            policy,
            received_ms,
            parts,
            body,
            route,
            identity,
            fingerprint,
            judgement,
        };
        let shared = Arc::clone(&self);
        let mut teeing = Box::pin(async move {
            let outcome = shared.tee.offer(offer).await;
            drop((held, place));
            outcome
        });
        // The copy is durable before the SDK gets its answer, unless the queue takes longer than the SDK should wait.
        let failed = match tokio::time::timeout(settings.append_timeout, &mut teeing).await {
            Ok(outcome) => matches!(outcome, Outcome::Failed(_)),
            Err(_elapsed) => {
                if let Some(answers) = self.notices.due("slow_copy") {
                    tracing::warn!(
                        answers,
                        "the copy took longer than tee.append_timeout; answers did not wait for it"
                    );
                }
                self.batches.spawn(teeing);
                true
            }
        };
        if failed && settings.on_failure == OnFailure::Refuse {
            return Err(Failure::NotKept);
        }
        answer
    }

    fn count(&self, route: &'static str, status: Result<StatusCode, &Failure>, took: Duration) {
        let class = match status.map(|status| status.as_u16() / 100) {
            Ok(1) => "1xx",
            Ok(2) => "2xx",
            Ok(3) => "3xx",
            Ok(4) => "4xx",
            // Nobody is there to be answered.
            Err(Failure::BodyAborted) => "none",
            _ => "5xx",
        };
        self.ended(route, class, took);
    }

    fn ended(&self, route: &'static str, class: &str, took: Duration) {
        self.metrics.counter(&REQUESTS, &[route, class]).increment(1);
        self.metrics
            .histogram(&REQUEST_SECONDS, &[route])
            .record(took.as_secs_f64());
    }
}

/// Counts a request whose client has gone before it had an answer: hyper drops the future of such a one.
struct Unanswered {
    shared: Arc<Shared>,
    /// Its route; nothing once it is counted otherwise.
    template: Option<&'static str>,
    started: Instant,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(route) = self.template {
            self.shared.ended(route, "none", self.started.elapsed());
        }
    }
}

struct CapturedBatch {
    policy: Arc<Policy>,
    received_ms: u64,
    identity: Identity,
    route: EventRoute,
    parts: Arc<Parts>,
    body: Bytes,
    held: Held,
    place: OwnedSemaphorePermit,
}

/// Returns about what a request's head takes.
fn head_bytes(parts: &Parts) -> usize {
    let uri = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let headers = parts.headers.iter();
    uri + headers
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum::<usize>()
}

#[cfg(test)]
mod tests;
