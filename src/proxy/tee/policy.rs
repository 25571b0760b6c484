//! What batches are judged by: whose they are, what of them is exported, where it goes, and what follows from a failure.
//!
//! Immutable. A request takes the policy in force when its head has arrived and keeps it to its end, so that it is judged
//! by one configuration whatever is changed meanwhile: an environment's number means nothing under another policy.

use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;

use crate::metrics::{self as inventory, Metrics};
use crate::platform::{Identity, Platform};
use crate::proxy::tee::TeeEnvironment;
use crate::proxy::{OnFailure, When};

/// How batches are captured, judged and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicySettings {
    /// `tee.when`.
    pub when: When,
    /// `tee.on_failure`.
    pub on_failure: OnFailure,
    /// `tee.max_body`, bytes.
    pub max_body: usize,
    /// How long an answer waits for the copy.
    pub append_timeout: Duration,
    /// How long a payload id is remembered.
    pub payload_window: Duration,
    /// How long the hash of a body without a payload id is remembered.
    pub body_window: Duration,
}

/// One configuration, as batches are judged by it.
pub struct Policy {
    pub(in crate::proxy) platform: Arc<dyn Platform>,
    pub(in crate::proxy) settings: PolicySettings,
    environments: Vec<(Arc<TeeEnvironment>, Counters)>,
}

/// Where an environment's batches are counted.
pub(super) struct Counters {
    pub(super) batches_received: Counter,
    pub(super) batches_filtered: Counter,
    pub(super) batches_duplicate: Counter,
    pub(super) batches_queued: Counter,
    pub(super) events_received: Counter,
    pub(super) events_duplicate: Counter,
    pub(super) events_queued: Counter,
}

impl Policy {
    /// Returns a policy over `environments`, in the order that the platform's identities refer to.
    pub fn new(
        platform: Arc<dyn Platform>,
        environments: Vec<TeeEnvironment>,
        settings: PolicySettings,
        metrics: &Metrics,
    ) -> Self {
        let environments = environments.into_iter().map(|environment| {
            let counter = |definition| metrics.counter(definition, &[&environment.name]);
            let counters = Counters {
                batches_received: counter(&inventory::BATCHES_RECEIVED),
                batches_filtered: counter(&inventory::BATCHES_FILTERED),
                batches_duplicate: counter(&inventory::BATCHES_DUPLICATE),
                batches_queued: counter(&inventory::BATCHES_QUEUED),
                events_received: counter(&inventory::EVENTS_RECEIVED),
                events_duplicate: counter(&inventory::EVENTS_DUPLICATE),
                events_queued: counter(&inventory::EVENTS_QUEUED),
            };
            (Arc::new(environment), counters)
        });
        Self {
            platform,
            settings,
            environments: environments.collect(),
        }
    }

    pub(super) fn environment(&self, identity: Identity) -> Option<&(Arc<TeeEnvironment>, Counters)> {
        match identity {
            Identity::Known(index) | Identity::Lone(index) => self.environments.get(index),
            Identity::Unknown => None,
        }
    }
}
