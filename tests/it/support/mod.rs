//! What the integration tests stand on: a fake LaunchDarkly, a raw HTTP client, and the real binary under test.
//!
//! Everything here is blocking and owns its threads, so that a test reads from top to bottom and nothing it measures
//! shares an executor with it. Fakes fail the test at its end on anything they did not expect.

pub(crate) mod command;
pub(crate) mod event_hubs;
pub(crate) mod eventually;
pub(crate) mod export;
pub(crate) mod http1;
pub(crate) mod kinesis;
pub(crate) mod kubernetes;
pub(crate) mod launchdarkly_api;
pub(crate) mod letters;
pub(crate) mod load;
pub(crate) mod metrics;
pub(crate) mod moto;
pub(crate) mod mparticle;
pub(crate) mod oracle;
pub(crate) mod pod;
#[cfg(feature = "pubsub")]
pub(crate) mod pubsub_emulator;
#[cfg(feature = "pubsub")]
#[allow(dead_code, reason = "the unit tests use the rest")]
pub(crate) mod pubsub_fake;
pub(crate) mod raw;
pub(crate) mod recording;
pub(crate) mod relay;
pub(crate) mod segment;
pub(crate) mod tls;
pub(crate) mod tools;
pub(crate) mod upstream;
pub(crate) mod volume;
pub(crate) mod webhook;

pub(crate) use eventually::eventually;
pub(crate) use raw::{Connection, request};
pub(crate) use relay::{Relay, Setup};
pub(crate) use upstream::{Answer, Upstream};

/// Where nobody listens.
pub(crate) const NOBODY: &str = "127.0.0.1:1";

/// The SDK key of the environment that [`Setup`] configures.
pub(crate) const SDK_KEY: &str = "sdk-11111111-2222-4333-8444-555555555555";
/// Its mobile key.
pub(crate) const MOBILE_KEY: &str = "mob-66666666-7777-4888-8999-aaaaaaaaaaaa";
/// Its client-side id, which is also its environment id in the export.
pub(crate) const CLIENT_SIDE_ID: &str = "578d1e02d2943862c52b9686";
/// Its project id in the export.
pub(crate) const PROJECT_ID: &str = "5744c96707c9900708000004";
