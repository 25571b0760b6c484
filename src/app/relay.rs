//! From the configuration to what the relay is made of.
//!
//! Each part of the process has settings of its own and does not know the configuration; here one becomes the other.

use std::sync::Arc;

use anyhow::Context;

use crate::app::flags::Flags;
use crate::config::{self, Config, Environment};
use crate::export::selection::Selection;
use crate::inflate::InflateLimits;
use crate::listen::ConnectionLimits;
use crate::listen::tls::{Tls, TlsFiles};
use crate::metrics::Metrics;
use crate::platform::launchdarkly::{DecodeLimits, EnvironmentCredentials, LaunchDarkly};
use crate::proxy::forward::Upstream;
use crate::proxy::forward::connect::connector;
use crate::proxy::tee::{Policy, PolicySettings, TeeEnvironment};
use crate::proxy::{OnFailure, RelaySettings, UpstreamSettings, When};
use crate::units::ByteSize;

/// Returns the platform with the configured environments, in their order.
pub(crate) fn platform(config: &Config) -> LaunchDarkly {
    let limits = DecodeLimits {
        inflate: InflateLimits {
            bytes: bytes(config.tee.max_decompressed),
            ..InflateLimits::default()
        },
        ..DecodeLimits::default()
    };
    LaunchDarkly::new(config.environments.iter().map(credentials).collect(), limits)
}

fn credentials(environment: &Environment) -> EnvironmentCredentials {
    let named = EnvironmentCredentials::new(&environment.name);
    let Some(credentials) = &environment.credentials else {
        return named;
    };
    let keys = credentials.sdk_keys.iter().chain(&credentials.mobile_keys);
    let with_keys = keys.fold(named, |named, key| named.with_key(key.expose()));
    credentials
        .client_side_ids
        .iter()
        .fold(with_keys, |named, id| named.with_client_side_id(id))
}

/// Returns what batches are judged by.
pub(super) fn policy(config: &Config, flags: &Flags, metrics: &Metrics) -> Policy {
    let environments = config.environments.iter();
    let environments = environments.map(|environment| {
        let (coverage, goal) = flags.of(environment, config);
        TeeEnvironment {
            name: environment.name.clone(),
            project_id: environment.project_id.clone(),
            environment_id: environment.environment_id.clone(),
            selection: Selection::new(environment.export.clone()),
            coverage,
            goal,
            destinations: environment.destinations.clone(),
        }
    });
    let settings = PolicySettings {
        when: match config.tee.when {
            config::When::NotRejected => When::NotRejected,
            config::When::Accepted => When::Accepted,
        },
        on_failure: match config.tee.on_failure {
            config::OnFailure::Pass => OnFailure::Pass,
            config::OnFailure::Refuse => OnFailure::Refuse,
        },
        max_body: bytes(config.tee.max_body),
        append_timeout: config.tee.append_timeout,
        payload_window: config.dedupe.window,
        body_window: config.dedupe.body_window,
    };
    Policy::new(Arc::new(platform(config)), environments.collect(), settings, metrics)
}

/// Returns what decoded batches may take in memory at once, bytes: two of the largest.
pub(super) fn decoded_bytes(config: &Config) -> usize {
    bytes(config.tee.max_decompressed).saturating_mul(2)
}

fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

/// Returns the relay's bounds.
pub(super) fn relay_settings(config: &Config) -> RelaySettings {
    RelaySettings {
        max_in_flight: bytes(config.tee.max_in_flight),
        body_timeout: config.limits.body_timeout,
        // An HTTP/1.1 connection has one request at a time; the limit bites only for HTTP/2's many streams.
        requests: config.limits.connections,
    }
}

/// Returns what a connection may take, of which there are at most `seats`.
pub(super) fn connection_limits(config: &Config, seats: usize) -> ConnectionLimits {
    ConnectionLimits {
        connections: seats,
        headers: config.limits.headers,
        header_bytes: bytes(config.limits.header_bytes),
        header_timeout: config.limits.header_timeout,
        idle_timeout: config.limits.idle_timeout,
    }
}

/// Sets up what leads to the upstream, and connects to nothing: the authorities that are trusted, the egress proxy.
///
/// Fails on what a person must put right: `upstream.ca_file` without a certificate, a proxy that is none for HTTP.
pub fn connection_to_upstream(config: &Config) -> anyhow::Result<Upstream> {
    const FAILED: &str = "cannot set up the connection to the upstream";
    let settings = UpstreamSettings {
        url: config.upstream.url.clone(),
        timeout: config.upstream.timeout,
        idle_timeout: config.upstream.idle_timeout,
        max_idle: config.upstream.max_idle,
        max_headers: config.limits.headers,
        max_head_bytes: bytes(config.limits.header_bytes),
    };
    let ca_file = config.upstream.ca_file.as_deref();
    let connector = connector(&settings.url, config.upstream.connect_timeout, ca_file).context(FAILED)?;
    Upstream::new(&settings, connector).context(FAILED)
}

/// Returns TLS towards SDKs.
pub(super) fn tls(files: &config::Tls) -> anyhow::Result<Tls> {
    let files = TlsFiles {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        client_ca: files.client_ca.clone(),
    };
    Tls::load(files).context("cannot set up TLS (`listen.tls`)")
}
