//! LaunchDarkly's events protocol, as its SDKs of 2018 and later speak it.
//!
//! Owns what is LaunchDarkly's alone: routes, credentials, headers, the two carriers of a batch and how a repetition is
//! known. It reads and never changes: what is forwarded upstream does not come through here. Facts are from the SDKs'
//! own sources, LaunchDarkly's SDK test harness and ld-relay; each file names what it rests on.

use std::fmt;

use http::{HeaderMap, Method};

use crate::inflate::InflateLimits;
use crate::platform::{Batch, Captured, DecodeError, EventRoute, Fingerprint, Identity, Platform, Route, Sdk};

mod beacon;
mod credentials;
mod decode;
mod fingerprint;
mod headers;
mod routes;
mod sdks;

pub use self::credentials::EnvironmentCredentials;
use self::credentials::Keyring;

/// How much of a body is looked into. A body beyond a limit is forwarded all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// How far a gzipped body may inflate.
    pub inflate: InflateLimits,
    /// Events in one batch. SDKs keep 10,000 at most by default.
    pub events: usize,
}

impl Default for DecodeLimits {
    /// Returns the defaults of [`InflateLimits`] and 100,000 events.
    fn default() -> Self {
        Self {
            inflate: InflateLimits::default(),
            events: 100_000,
        }
    }
}

/// LaunchDarkly, with the environments that are configured.
pub struct LaunchDarkly {
    keyring: Keyring,
    limits: DecodeLimits,
}

impl LaunchDarkly {
    /// Returns the platform for these environments; [`Identity`] counts them from 0 in this order.
    pub fn new(environments: Vec<EnvironmentCredentials>, limits: DecodeLimits) -> Self {
        Self {
            keyring: Keyring::new(environments),
            limits,
        }
    }
}

impl Platform for LaunchDarkly {
    fn classify(&self, method: &Method, path: &str) -> Route {
        routes::classify(method, path)
    }

    fn identify(&self, route: &EventRoute, headers: &HeaderMap) -> Identity {
        self.keyring.identify(route, headers)
    }

    fn decode(&self, captured: &Captured<'_>) -> Result<Batch, DecodeError> {
        decode::decode(captured, self.limits)
    }

    fn sdk(&self, text: &str) -> Sdk {
        sdks::sdk(text)
    }

    fn fingerprint(&self, captured: &Captured<'_>, environment: usize) -> Fingerprint {
        fingerprint::fingerprint(captured, self.keyring.name(environment))
    }
}

impl fmt::Debug for LaunchDarkly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaunchDarkly")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
