//! The mutating admission webhook: adds the sidecar to pods that ask for it.
//!
//! Promises: whatever goes wrong in here, a review is answered with `allowed: true`; a pod that has the sidecar is not
//! touched; what a client may cost is bounded. It holds no state, and reaches for the API server only in [`keeper`], which
//! looks after a certificate of its own. `docs/injector.md` is its page.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tracing::{debug, info, warn};

use crate::listen::ConnectionLimits;
use crate::metrics::{INJECTOR_REVIEWS, Metrics};
use crate::notices::Notices;

mod certificate;
pub mod keeper;
mod kubernetes;
mod patch;
mod pod;
mod review;
mod template;
#[cfg(test)]
mod tests;

pub use template::{TemplateError, Templates};

use patch::{Change, Decision, decide};
use pod::Pod;

/// Asks for the sidecar; annotation or label.
const INJECT: &str = "flagtap.dev/inject";
/// Names of the variables that are set.
const ENV: &str = "flagtap.dev/env";
/// The containers in which they are.
const CONTAINERS: &str = "flagtap.dev/containers";
/// The answer.
const STATUS: &str = "flagtap.dev/status";
/// The pod's own annotations, which a template cannot set.
const ANNOTATIONS: [&str; 4] = [INJECT, ENV, CONTAINERS, STATUS];

/// Where the API server posts reviews.
pub const PATH: &str = "/mutate";

/// The largest body, bytes: the API server takes objects of up to 3 MiB, and a review has little more.
const MOST_BODY: usize = 4 << 20;
/// Bodies in memory at a time, bytes.
const MOST_BODIES: usize = 16 << 20;
/// For a body to arrive. The API server waits for ten seconds by default.
const BODY_PATIENCE: Duration = Duration::from_secs(5);

/// Bounds on the API servers' connections, which rest for longer than a relay's.
pub const LIMITS: ConnectionLimits = ConnectionLimits {
    connections: 256,
    headers: 64,
    header_bytes: 16 << 10,
    header_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(300),
};

/// The webhook.
pub struct Injector {
    templates: Arc<Templates>,
    metrics: Arc<Metrics>,
    notices: Notices,
    /// Bytes of bodies, taken as they arrive: who sends nothing holds nothing.
    budget: Semaphore,
    /// One review at a time: what it takes to look at one is bounded, and is not to be taken often at once.
    looking: Mutex<()>,
}

/// Why a body was not read, as a status for its sender.
enum Unread {
    TooLarge,
    TooSlow,
    TooMany,
    Broken,
}

impl Injector {
    /// Returns a webhook that counts what it answers.
    pub fn new(templates: Arc<Templates>, metrics: Arc<Metrics>) -> Self {
        for outcome in ["injected", "not_asked", "present", "refused", "failed"] {
            metrics.counter(&INJECTOR_REVIEWS, &[outcome]).increment(0);
        }
        Self {
            templates,
            metrics,
            notices: Notices::default(),
            budget: Semaphore::new(MOST_BODIES),
            looking: Mutex::default(),
        }
    }

    /// Answers one request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        if request.uri().path() != PATH {
            return text(StatusCode::NOT_FOUND, "reviews go to /mutate\n");
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "reviews are posted\n");
        }
        let mut held = None;
        let reading = tokio::time::timeout(BODY_PATIENCE, self.read(request.into_body(), &mut held));
        let body = match reading.await.unwrap_or(Err(Unread::TooSlow)) {
            Ok(body) => body,
            Err(why) => return self.unread(&why),
        };
        let answer = {
            let _looking = self.looking.lock().await;
            self.review(&body)
        };
        match answer {
            Ok(answer) => Response::builder()
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(answer.to_string())))
                .unwrap_or_default(),
            Err(why) => {
                self.count("failed");
                self.complain("no_review", &why);
                text(StatusCode::BAD_REQUEST, &format!("{why}\n"))
            }
        }
    }

    /// Reads a body piece by piece. `held` keeps the budget's share for as long as the caller needs the body.
    async fn read<'a, B>(&'a self, mut body: B, held: &mut Option<SemaphorePermit<'a>>) -> Result<Vec<u8>, Unread>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        if body.size_hint().lower() > MOST_BODY as u64 {
            return Err(Unread::TooLarge);
        }
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else {
                continue;
            };
            if read.len() + data.len() > MOST_BODY {
                return Err(Unread::TooLarge);
            }
            let share = u32::try_from(data.len()).map_err(|_| Unread::TooLarge)?;
            let share = self.budget.try_acquire_many(share).map_err(|_| Unread::TooMany)?;
            match held {
                Some(held) => held.merge(share),
                None => *held = Some(share),
            }
            read.extend_from_slice(&data);
        }
        Ok(read)
    }

    fn unread(&self, why: &Unread) -> Response<Full<Bytes>> {
        self.count("failed");
        let (status, words) = match why {
            Unread::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 4 MiB"),
            Unread::TooSlow => (StatusCode::REQUEST_TIMEOUT, "the body did not arrive in 5 seconds"),
            Unread::TooMany => (StatusCode::SERVICE_UNAVAILABLE, "too many bodies at a time"),
            Unread::Broken => (StatusCode::BAD_REQUEST, "the body broke off"),
        };
        self.complain("unread", words);
        text(status, &format!("{words}\n"))
    }

    /// Answers a review. The error says why the body is none.
    fn review(&self, body: &[u8]) -> Result<Value, String> {
        let request = review::Request::read(body)?;
        let template = self.templates.current();
        // A defect met by one pod must neither keep it from starting nor take the process along.
        let decided = catch_unwind(AssertUnwindSafe(|| {
            let pod = request.new_pod()?;
            let decision = decide(&template, &pod);
            Ok((pod, decision))
        }));
        let (pod, decision) = match decided.unwrap_or_else(|_panic| Err("a defect of the injector".to_owned())) {
            Ok(decided) => decided,
            Err(why) => {
                self.count("failed");
                self.complain("not_looked_at", &why);
                let warning = format!("flagtap could not look at this pod, and leaves it as it is: {why}");
                return Ok(review::admit(&request.uid, &[], &[warning]));
            }
        };
        let Change { patch, notes } = self.note(request.namespace.as_deref(), &pod, decision);
        Ok(review::admit(&request.uid, &patch, &notes))
    }

    /// Counts and logs a decision; returns the change that follows from it.
    fn note(&self, namespace: Option<&str>, pod: &Pod, decision: Decision) -> Change {
        let name = pod.metadata.name.as_deref().or(pod.metadata.generate_name.as_deref());
        let nothing = Change {
            patch: Vec::new(),
            notes: Vec::new(),
        };
        let (outcome, change) = match decision {
            Decision::NotAsked => ("not_asked", nothing),
            Decision::Present => ("present", nothing),
            Decision::Refused(change) => {
                warn!(namespace, pod = name, why = %change.notes.join("; "), "no sidecar for a pod that asks for it");
                ("refused", change)
            }
            Decision::Injected(change) => {
                if change.notes.is_empty() {
                    info!(namespace, pod = name, "sidecar added");
                } else {
                    warn!(namespace, pod = name, notes = %change.notes.join("; "), "sidecar added, not all as asked");
                }
                ("injected", change)
            }
        };
        debug!(namespace, pod = name, outcome, "reviewed");
        self.count(outcome);
        change
    }

    fn count(&self, outcome: &str) {
        self.metrics.counter(&INJECTOR_REVIEWS, &[outcome]).increment(1);
    }

    /// Anybody who reaches the port can cause these, so they are said once a minute.
    fn complain(&self, reason: &'static str, why: &str) {
        if let Some(times) = self.notices.due(reason) {
            warn!(%why, times, "a request to the webhook was not a review of a new pod");
        }
    }
}

fn text(status: StatusCode, words: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(words.as_bytes())));
    *response.status_mut() = status;
    response
}

/// Returns whether a name is one that Kubernetes gives to containers and volumes (RFC 1123 label).
fn plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 63 && name.chars().all(allowed) && !name.starts_with('-') && !name.ends_with('-')
}
