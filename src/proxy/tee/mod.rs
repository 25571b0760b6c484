//! The copy: decides whether a forwarded batch is exported, selects its events and appends them to the queue.
//!
//! Runs after the upstream's answer is known and can never change it, unless `tee.on_failure: refuse` asks for a 503.
//! Every batch that comes in leaves in exactly one outcome, and every outcome is counted here.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use tokio::sync::Semaphore;

use crate::catalogue;
use crate::coverage;
use crate::export::selection::Selection;
use crate::inflate::{RATIO, RATIO_FREE_BYTES};
use crate::metrics::{self as inventory, Metrics};
use crate::notices::Notices;
use crate::platform::census::Census;
use crate::platform::{Batch, Captured, DecodeError, EventRoute, Fingerprint, Identity, Platform, Support};
use crate::proxy::{Judgement, When};
use crate::queue::{Appended, Entry, Mark, Queue};
use crate::record::{Origin, Record};

mod policy;
mod select;

pub use policy::{Policy, PolicySettings};
use select::{Selected, select};

/// The reasons not to tee a batch that are holes in the export, and no client's business.
pub const HOLES: [&str; 9] = [
    "inflates_too_far",
    "memory_budget",
    "no_space",
    "queue_full",
    "queue_unavailable",
    "record_too_large",
    "too_large",
    "too_many_events",
    "unknown_encoding",
];

/// One environment's share of the tee.
pub struct TeeEnvironment {
    /// Configured name.
    pub name: String,
    /// LaunchDarkly's project id; if empty, the one that LaunchDarkly's API tells is exported.
    pub project_id: String,
    /// LaunchDarkly's environment id; if empty, the one in the request's path or else in LaunchDarkly's API is exported.
    pub environment_id: String,
    /// What is exported.
    pub selection: Selection,
    /// What becomes of its flags.
    pub coverage: Arc<coverage::Environment>,
    /// The number of the goal under which they are counted.
    pub goal: u64,
    /// Where it goes.
    pub destinations: Vec<String>,
}

/// A batch that was forwarded.
pub struct Offer {
    /// What it is judged by.
    pub policy: Arc<Policy>,
    /// When the request was received, Unix milliseconds.
    pub received_ms: u64,
    /// The request's head.
    pub parts: Arc<Parts>,
    /// Its body as it came.
    pub body: Bytes,
    /// Its route.
    pub route: EventRoute,
    /// Whose it is.
    pub identity: Identity,
    /// How it is recognised when it comes again.
    pub fingerprint: Option<Fingerprint>,
    /// What the upstream made of it.
    pub judgement: Judgement,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable in the queue.
    Queued,
    /// Nothing in it is exported.
    Filtered,
    /// Was in the queue already.
    Duplicate,
    /// Passed through only, for this reason.
    NotTeed(&'static str),
    /// Passed through only because flagtap could not keep it; with `on_failure: refuse` the SDK is asked to retry.
    Failed(&'static str),
}

/// Appends what is to be exported to the queue.
pub struct Tee {
    policy: ArcSwap<Policy>,
    queue: Arc<dyn Queue>,
    metrics: Arc<Metrics>,
    census: Arc<Census>,
    /// What decoded batches may take until they are in the queue, in units of [`UNIT`]: a body grows when it is inflated
    /// and split, by far more than its own bytes.
    decoded: Semaphore,
    /// The same, bytes.
    decoded_bytes: usize,
    notices: Notices,
}

/// Label value for batches whose environment is not known.
const UNKNOWN: &str = "unknown";

// Above this, decoding takes longer than the half millisecond an async thread may be kept.
const DECODE_ON_THREAD: usize = 48 * 1024;

/// What [`Tee::decoded`] counts in, bytes.
const UNIT: usize = 1024;

/// How much a body may grow by being split into events: `[1,1,…]` is the worst.
const SPLITTING: usize = 48;

impl Tee {
    /// Returns a tee under `policy`. Decoded batches may take `decoded_bytes` in memory at once.
    pub fn new(policy: Policy, queue: Arc<dyn Queue>, decoded_bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            policy: ArcSwap::from_pointee(policy),
            queue,
            census: Arc::new(Census::new(Arc::clone(&metrics))),
            metrics,
            decoded: Semaphore::new(decoded_bytes / UNIT),
            decoded_bytes,
            notices: Notices::default(),
        }
    }

    /// Returns the policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Puts another policy in force for the requests to come.
    pub fn adopt(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
    }

    /// Returns who sends events.
    pub fn census(&self) -> Arc<Census> {
        Arc::clone(&self.census)
    }

    /// Counts a batch that was not captured.
    pub fn pass_by(&self, policy: &Policy, identity: Identity, reason: &'static str) {
        let name = match policy.environment(identity) {
            Some((environment, counters)) => {
                counters.batches_received.increment(1);
                &environment.name
            }
            None => {
                self.metrics
                    .counter(&inventory::BATCHES_RECEIVED, &[UNKNOWN])
                    .increment(1);
                UNKNOWN
            }
        };
        self.not_teed(name, reason);
    }

    /// Counts a batch that passed through without a copy, and says so once a minute and reason.
    fn not_teed(&self, environment: &str, reason: &'static str) {
        self.metrics
            .counter(&inventory::BATCHES_NOT_TEED, &[environment, reason])
            .increment(1);
        if let Some(batches) = self.notices.due(reason) {
            tracing::warn!(environment, reason, batches, "batches passed through without a copy");
        }
    }

    /// Takes a forwarded batch to its outcome. Runs to the end also when nobody waits for it.
    pub async fn offer(&self, offer: Offer) -> Outcome {
        let policy = Arc::clone(&offer.policy);
        if let Err(reason) = admit(policy.settings.when, offer.identity, offer.judgement) {
            self.pass_by(&policy, offer.identity, reason);
            return Outcome::NotTeed(reason);
        }
        let (Some((environment, counters)), Some(fingerprint)) =
            (policy.environment(offer.identity), offer.fingerprint)
        else {
            self.pass_by(&policy, offer.identity, "unknown_credential");
            return Outcome::NotTeed("unknown_credential");
        };
        let Offer {
            received_ms,
            parts,
            body,
            route,
            ..
        } = offer;
        let path_id = route.client_side_id.clone();
        // The semaphore is never closed; an error would only mean one batch more at once.
        let _share = self.decoded.acquire_many(self.weight(&parts, &body)).await.ok();
        let decoding = Decoding {
            platform: Arc::clone(&policy.platform),
            environment: Arc::clone(environment),
            received_ms,
            parts,
            body,
            route,
        };
        let (batch, selected) = match decoding.run().await {
            Ok(decoded) => decoded,
            Err(error) => {
                self.pass_by(&policy, offer.identity, error.metric_label());
                return Outcome::NotTeed(error.metric_label());
            }
        };
        counters.batches_received.increment(1);
        counters.events_received.increment(batch.events.len() as u64);
        let sdk = policy.platform.sdk(&batch.sdk);
        let sender = coverage::Sender {
            sdk: format!("{}/{}", sdk.name, sdk.version).trim_end_matches('/').to_owned(),
            too_old: sdk.support == Support::TooOld,
        };
        self.census.count(sdk, batch.events.len() as u64);
        let Selected {
            events,
            filtered,
            tally,
        } = selected;
        for (reason, count) in filtered {
            self.metrics
                .counter(&inventory::EVENTS_FILTERED, &[&environment.name, reason.as_str()])
                .increment(count);
        }
        let shown = |kept| (environment.coverage).add(tally, sender, received_ms, kept, environment.goal);
        if events.is_empty() {
            counters.batches_filtered.increment(1);
            shown(true);
            return Outcome::Filtered;
        }
        let count = events.len() as u64;
        let known = environment.coverage.known();
        let (project_id, environment_id) = ids(
            [&environment.project_id, &environment.environment_id],
            path_id.as_deref(),
            known.as_deref(),
        );
        let record = Record {
            received_ms,
            origin: Origin {
                environment: environment.name.clone(),
                project_id,
                environment_id,
                schema: batch.schema,
                sdk: batch.sdk,
                tags: batch.tags,
            },
            destinations: environment.destinations.clone(),
            id_seed: fingerprint.seed,
            given_up: false,
            events,
        };
        let window = if fingerprint.by_payload_id {
            policy.settings.payload_window
        } else {
            policy.settings.body_window
        };
        let appended = self
            .queue
            .append(Entry {
                record,
                mark: Mark {
                    key: fingerprint.key,
                    window,
                },
            })
            .await;
        match appended {
            Ok(Appended::Stored(_)) => {
                counters.batches_queued.increment(1);
                counters.events_queued.increment(count);
                shown(true);
                Outcome::Queued
            }
            Ok(Appended::Duplicate) => {
                counters.batches_duplicate.increment(1);
                counters.events_duplicate.increment(count);
                Outcome::Duplicate
            }
            Err(error) => {
                let reason = error.metric_label();
                shown(false);
                self.not_teed(&environment.name, reason);
                self.metrics
                    .counter(&inventory::EVENTS_NOT_TEED, &[&environment.name, reason])
                    .increment(count);
                tracing::debug!(environment = %environment.name, %error, "batch not teed");
                Outcome::Failed(reason)
            }
        }
    }

    /// Returns what a body may grow to, as a share of `decoded`.
    fn weight(&self, parts: &Parts, body: &Bytes) -> u32 {
        let most = self.decoded_bytes / 2;
        let bytes = if parts.headers.contains_key(http::header::CONTENT_ENCODING) {
            body.len().saturating_mul(RATIO).max(RATIO_FREE_BYTES)
        } else {
            body.len().saturating_mul(SPLITTING)
        };
        u32::try_from(bytes.min(most).div_ceil(UNIT)).unwrap_or(u32::MAX)
    }
}

/// Decides from credential and upstream's judgement alone; the error is the reason not to tee.
///
/// Without a judgement only a configured credential counts: otherwise whoever reaches the port could fill the
/// queue while the upstream is down.
fn admit(when: When, identity: Identity, judgement: Judgement) -> Result<(), &'static str> {
    match (judgement, identity, when) {
        (Judgement::Rejected, ..) => Err("rejected_by_upstream"),
        (_, Identity::Unknown, _) => Err("unknown_credential"),
        (Judgement::Accepted, ..) => Ok(()),
        (Judgement::None, _, When::Accepted) => Err("not_accepted_by_upstream"),
        (Judgement::None, Identity::Known(_), When::NotRejected) => Ok(()),
        (Judgement::None, Identity::Lone(_), When::NotRejected) => Err("not_accepted_by_upstream"),
    }
}

/// A body on its way to selected events.
struct Decoding {
    platform: Arc<dyn Platform>,
    environment: Arc<TeeEnvironment>,
    received_ms: u64,
    parts: Arc<Parts>,
    body: Bytes,
    route: EventRoute,
}

impl Decoding {
    /// Decodes and selects; a large body not on the async thread.
    async fn run(self) -> Result<(Batch, Selected), DecodeError> {
        let compressed = self.parts.headers.contains_key(http::header::CONTENT_ENCODING);
        if !compressed && self.body.len() <= DECODE_ON_THREAD {
            return self.run_here();
        }
        tokio::task::spawn_blocking(move || self.run_here())
            .await
            .unwrap_or(Err(DecodeError::BrokenEncoding))
    }

    fn run_here(&self) -> Result<(Batch, Selected), DecodeError> {
        let batch = self.platform.decode(&Captured {
            query: self.parts.uri.query(),
            headers: &self.parts.headers,
            body: &self.body,
            route: &self.route,
        })?;
        let selected = select(&self.environment, &batch, self.received_ms);
        Ok((batch, selected))
    }
}

/// Returns the project's id and the environment's as they are exported: those configured; an environment's that is not, from
/// the request's path; what is still missing, from LaunchDarkly's API.
pub fn ids(
    [project, environment]: [&str; 2],
    in_path: Option<&str>,
    known: Option<&catalogue::Environment>,
) -> (String, String) {
    let first = |candidates: [Option<&str>; 3]| {
        let given = candidates.into_iter().flatten().find(|id| !id.is_empty());
        given.unwrap_or_default().to_owned()
    };
    let in_path = in_path.filter(|id| is_id(id));
    (
        first([Some(project), None, known.map(|known| known.project_id.as_str())]),
        first([Some(environment), in_path, known.map(|known| known.id.as_str())]),
    )
}

/// Returns true for what can be a client-side id (24 hex digits today): a path can hold anything.
fn is_id(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests;
