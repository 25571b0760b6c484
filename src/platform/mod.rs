//! The seam to the flag platform: which requests carry events, whose they are, and how a body becomes events.
//!
//! Owns the trait and its values. Implementations are one folder each; [`launchdarkly`] is the first.

use bytes::Bytes;
use http::{HeaderMap, Method};

use crate::event::{Event, Schema};

pub mod census;
pub mod launchdarkly;

/// What a request is to the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Carries events: captured, forwarded, teed.
    Events(EventRoute),
    /// Anything else: streams both ways.
    PassThrough,
}

/// A request that carries events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRoute {
    /// The route's template, safe as a metric label: `/bulk`, `/mobile/events/bulk`, `/events/bulk/{id}` …
    pub template: &'static str,
    /// Where the events are.
    pub carrier: Carrier,
    /// The client-side id in the path, if the route has one.
    pub client_side_id: Option<String>,
}

/// Where a request has its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// In the body, perhaps gzipped.
    Body,
    /// In the query parameter `d`, base64url (the gif beacon of old browsers).
    Query,
}

/// Whose request it is, from its credential alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The credential belongs to the configured environment with this index.
    Known(usize),
    /// A lone environment without credentials: takes whatever the upstream accepts, but nothing on trust.
    Lone(usize),
    /// No configured environment has this credential.
    Unknown,
}

/// A captured request. Everything is borrowed or reference-counted: capturing copies nothing.
#[derive(Debug)]
pub struct Captured<'a> {
    /// The request's query string, without `?`.
    pub query: Option<&'a str>,
    /// The request's headers as they came.
    pub headers: &'a HeaderMap,
    /// The body as it came, still compressed if it was.
    pub body: &'a Bytes,
    /// The route that [`Platform::classify`] gave.
    pub route: &'a EventRoute,
}

/// A decoded batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// The payload's schema.
    pub schema: Schema,
    /// The SDK's payload id: the same for the retry of a payload, absent from PHP and from SDKs of 2019.
    pub payload_id: Option<String>,
    /// SDK name and version as its user agent says; empty if not given.
    pub sdk: String,
    /// Application tags as sent; empty if not given.
    pub tags: String,
    /// The events, in payload order. May be empty.
    pub events: Vec<Event>,
}

/// An SDK as its user agent names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sdk {
    /// Its name, from a closed list; `unknown` for what is not in it.
    pub name: &'static str,
    /// Its version, digits and dots; empty if not known.
    pub version: String,
    /// Whether the export works with it.
    pub support: Support,
}

/// Whether the export works with an SDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Support {
    /// It does.
    Supported,
    /// Older than the platform's own export asks for.
    TooOld,
    /// Its name or version cannot be read.
    Unknown,
}

impl Support {
    /// Returns the value of the metric label `support`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::TooOld => "too_old",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a captured body gave no batch. The request was forwarded all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or broken JSON.
    #[error("body is not valid JSON")]
    BrokenJson,
    /// JSON, but not an array. A js-core SDK's retried diagnostic looks so on `/bulk`.
    #[error("body is not a JSON array")]
    NotAnArray,
    /// Broken gzip, or broken base64 in the beacon.
    #[error("body does not decode")]
    BrokenEncoding,
    /// A content encoding other than gzip.
    #[error("content encoding is not gzip")]
    UnknownEncoding,
    /// Inflates to more than the limits on size or ratio allow.
    #[error("body inflates beyond the limit")]
    InflatesTooFar,
    /// More events than one batch may hold.
    #[error("body has too many events")]
    TooManyEvents,
}

impl DecodeError {
    /// Returns the value of the metric label `reason`.
    pub fn metric_label(self) -> &'static str {
        match self {
            Self::BrokenJson => "broken_json",
            Self::NotAnArray => "not_an_array",
            Self::BrokenEncoding => "broken_encoding",
            Self::UnknownEncoding => "unknown_encoding",
            Self::InflatesTooFar => "inflates_too_far",
            Self::TooManyEvents => "too_many_events",
        }
    }
}

/// A flag platform's events protocol.
pub trait Platform: Send + Sync {
    /// Returns what a request is, from method and path. Pure, and next to free for what is not an event route.
    fn classify(&self, method: &Method, path: &str) -> Route;

    /// Returns whose request it is. Looks at the credential only; never fails.
    fn identify(&self, route: &EventRoute, headers: &HeaderMap) -> Identity;

    /// Returns the batch in a captured request. Pure.
    fn decode(&self, captured: &Captured<'_>) -> Result<Batch, DecodeError>;

    /// Returns which SDK [`Batch::sdk`] names.
    fn sdk(&self, text: &str) -> Sdk;

    /// Returns the key by which a repetition of this request is recognised, and whether it is the SDK's payload id
    /// (true) or a hash of credential and body (false).
    fn fingerprint(&self, captured: &Captured<'_>, environment: usize) -> Fingerprint;
}

/// Identifies a batch: an SDK's retry has the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Key of the duplicate window: includes the credential where there is no payload id.
    pub key: [u8; 16],
    /// Seed of the event ids: environment and payload id, or environment and body.
    pub seed: [u8; 16],
    /// The key comes from the SDK's payload id, so it identifies the batch for ever; else from the bytes, which is
    /// trusted for seconds only.
    pub by_payload_id: bool,
}
