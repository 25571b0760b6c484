//! The keys about traffic: `listen`, `upstream`, `limits` and `tee`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::{must_open, positive};
use crate::section::Section;
use crate::units::ByteSize;

/// Where SDKs connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// IP address and port.
    pub address: SocketAddr,
    /// Certificates, where clients speak TLS.
    pub tls: Option<Tls>,
}

/// Files for TLS towards SDKs, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificate authorities whose client certificates are required.
    pub client_ca: Option<PathBuf>,
}

/// LaunchDarkly's events service, or whatever stands in for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Scheme, host, and perhaps port and base path.
    pub url: Uri,
    /// Time to open a connection, TLS included.
    pub connect_timeout: Duration,
    /// Time from the request's end to the answer's head, event routes only.
    pub timeout: Duration,
    /// More certificate authorities to trust, PEM.
    pub ca_file: Option<PathBuf>,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Idle connections kept.
    pub max_idle: usize,
}

/// What a client may take of connections, headers and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Size of a request's head.
    pub header_bytes: ByteSize,
    /// Headers of a request.
    pub headers: usize,
    /// Time for a request's head to arrive.
    pub header_timeout: Duration,
    /// Time that a connection may rest between requests.
    pub idle_timeout: Duration,
    /// Time that a request's body may rest between two pieces.
    pub body_timeout: Duration,
}

/// How events are copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tee {
    /// Largest body that is copied, as it comes over the wire.
    pub max_body: ByteSize,
    /// Captured bodies held in memory at a time.
    pub max_in_flight: ByteSize,
    /// Which batches are copied, by what the upstream answered.
    pub when: When,
    /// What the SDK sees if its batch could not be copied.
    pub on_failure: OnFailure,
    /// Largest body that is copied, inflated.
    pub max_decompressed: ByteSize,
    /// Time for the queue to make a batch durable.
    pub append_timeout: Duration,
}

crate::choices! {
    /// Which batches are copied, by what the upstream answered.
    pub enum When {
        /// Accepted ones, and those without a judgement: upstream unreachable, timeout, 408, 429 or 5xx.
        NotRejected = "not_rejected",
        /// Only those answered 2xx.
        Accepted = "accepted",
    }
}

crate::choices! {
    /// What the SDK sees if its batch could not be copied.
    pub enum OnFailure {
        /// The upstream's answer; the batch is counted as not teed.
        Pass = "pass",
        /// 503, so that the SDK sends the batch again.
        Refuse = "refuse",
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8030),
            tls: None,
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            url: Uri::from_static("https://events.launchdarkly.com"),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            ca_file: None,
            idle_timeout: Duration::from_secs(55),
            max_idle: 64,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            header_bytes: ByteSize::kib(64),
            headers: 128,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            body_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Tee {
    fn default() -> Self {
        Self {
            max_body: ByteSize::mib(16),
            max_in_flight: ByteSize::mib(64),
            when: When::NotRejected,
            on_failure: OnFailure::Pass,
            max_decompressed: ByteSize::mib(32),
            append_timeout: Duration::from_secs(3),
        }
    }
}

/// Reads `listen`: an address, or a mapping with the address and TLS files.
pub(super) fn read_listen(root: &mut Section<'_>) -> Listen {
    let default = Listen::default();
    if !root.has("listen") || root.is_scalar("listen") {
        return Listen {
            address: root.or("listen", default.address),
            tls: None,
        };
    }
    let read = |section: &mut Section<'_>| Listen {
        address: section.or("address", default.address),
        tls: section.section("tls", read_tls).flatten(),
    };
    root.section("listen", read).unwrap_or_default()
}

fn read_tls(section: &mut Section<'_>) -> Option<Tls> {
    let certificate: Option<PathBuf> = section.required("certificate");
    let key: Option<PathBuf> = section.required("key");
    let client_ca: Option<PathBuf> = section.optional("client_ca");
    for (name, path) in [("certificate", &certificate), ("key", &key), ("client_ca", &client_ca)] {
        if let Some(path) = path {
            must_open(section, name, path);
        }
    }
    Some(Tls {
        certificate: certificate?,
        key: key?,
        client_ca,
    })
}

/// Reads `upstream`.
pub(super) fn read_upstream(section: &mut Section<'_>) -> Upstream {
    let default = Upstream::default();
    let upstream = Upstream {
        url: section.or("url", default.url),
        connect_timeout: positive(section, "connect_timeout", default.connect_timeout),
        timeout: positive(section, "timeout", default.timeout),
        ca_file: section.optional("ca_file"),
        idle_timeout: section.or("idle_timeout", default.idle_timeout),
        max_idle: section.or("max_idle", default.max_idle),
    };
    if let Some(path) = &upstream.ca_file {
        must_open(section, "ca_file", path);
    }
    if upstream.connect_timeout > upstream.timeout {
        let key = if section.has("connect_timeout") {
            "connect_timeout"
        } else {
            "timeout"
        };
        section.problem(
            Some(key),
            "makes `connect_timeout` longer than `timeout`, which would always come first",
        );
    }
    check_url(section, &upstream.url);
    upstream
}

fn check_url(section: &Section<'_>, url: &Uri) {
    let key = Some("url");
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        section.problem(key, "has a scheme other than http and https");
    }
    if url
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        section.problem(
            key,
            "holds a user name or password; SDK requests bring their own credential, remove it",
        );
    }
    if url.query().is_some() {
        section.problem(key, "has a query (`?…`); requests bring their own, remove it");
    }
    let local = url
        .host()
        .is_some_and(|host| host == "localhost" || host == "127.0.0.1" || host == "[::1]");
    if url.scheme_str() == Some("http") && !local {
        section.warn(key, "is http: SDK keys and events cross the network in plain text");
    }
}

/// Reads `limits`.
pub(super) fn read_limits(section: &mut Section<'_>) -> Limits {
    let default = Limits::default();
    let limits = Limits {
        connections: section.or("connections", default.connections),
        header_bytes: section.or("header_bytes", default.header_bytes),
        headers: section.or("headers", default.headers),
        header_timeout: positive(section, "header_timeout", default.header_timeout),
        idle_timeout: positive(section, "idle_timeout", default.idle_timeout),
        body_timeout: positive(section, "body_timeout", default.body_timeout),
    };
    if limits.connections == 0 {
        section.problem(Some("connections"), "is zero: nobody could connect");
    }
    // hyper's HTTP/1 buffer has 8192 bytes as its minimum; SDKs send about 15 headers.
    if !(ByteSize::kib(8)..=ByteSize::mib(1)).contains(&limits.header_bytes) {
        section.problem(Some("header_bytes"), "is out of range; expected 8KiB to 1MiB");
    }
    if !(32..=1024).contains(&limits.headers) {
        section.problem(Some("headers"), "is out of range; expected 32 to 1024");
    }
    limits
}

/// Reads `tee`.
pub(super) fn read_tee(section: &mut Section<'_>) -> Tee {
    let default = Tee::default();
    Tee {
        max_body: section.or("max_body", default.max_body),
        max_in_flight: section.or("max_in_flight", default.max_in_flight),
        when: section.or("when", default.when),
        on_failure: section.or("on_failure", default.on_failure),
        max_decompressed: section.or("max_decompressed", default.max_decompressed),
        append_timeout: positive(section, "append_timeout", default.append_timeout),
    }
}
