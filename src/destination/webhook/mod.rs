//! A webhook: export records posted to an HTTP server of the user's own, as a JSON array or as lines.
//!
//! A request is acknowledged by its status alone; bodies of answers are not looked at, redirects not followed. The same
//! events in the same request have the same `idempotency-key`, whenever they are sent. With a signing secret each request is
//! signed with its time (`signature`). Headers' values are secrets and never printed, nor is the URL: both can hold tokens.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Method};
use reqwest::{Client, RequestBuilder};
use sha2::{Digest, Sha256};

use super::{Destination, Encoded, Item, Limits, ProbeError, Verdict, all, answers, on_one_line};
use crate::export::ExportEvent;
use crate::export::form::Form;
use crate::secret::Secret;
use crate::section::Section;
use crate::units::{ByteSize, hex};
use crate::web;

mod headers;
mod signature;
mod table;
#[cfg(test)]
mod tests;

pub use headers::Headers;
pub(super) use table::ANSWERS;

/// Enough to be quick, few enough for a function that has to answer within seconds.
const EVENTS: u16 = 500;
const MOST_EVENTS: u16 = 10_000;
/// What most servers and API gateways take without being asked to.
const REQUEST_BYTES: ByteSize = ByteSize::mib(1);
const LEAST_REQUEST_BYTES: ByteSize = ByteSize(64 * 1024);
const MOST_REQUEST_BYTES: ByteSize = ByteSize::mib(64);

/// The header that is equal for requests with the same events.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The header with the time and the signature.
const SIGNATURE: &str = "flagtap-signature";

crate::choices! {
    /// How records stand in a request's body.
    pub enum Format {
        /// One JSON array.
        JsonArray = "json_array",
        /// One record per line.
        Ndjson = "ndjson",
    }
}

/// Where requests go and what they look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The address to post to.
    pub url: Secret,
    /// Further headers.
    pub headers: Headers,
    /// The body's format.
    pub format: Format,
    /// Bodies are gzipped.
    pub gzip: bool,
    /// What requests are signed with.
    pub signing_secret: Option<Secret>,
    /// Records in one request.
    pub max_events: usize,
    /// Bytes of one request's body, before gzip.
    pub max_request_bytes: usize,
    /// The record's form.
    pub form: Form,
}

impl Settings {
    /// Returns the settings for an address with the defaults.
    pub fn to(url: &str) -> Self {
        Self {
            url: Secret::new(url.to_owned()),
            headers: Headers::default(),
            format: Format::JsonArray,
            gzip: false,
            signing_secret: None,
            max_events: usize::from(EVENTS),
            max_request_bytes: REQUEST_BYTES.as_usize(),
            form: Form::default(),
        }
    }
}

/// Reads the settings.
pub fn read(section: &mut Section<'_>) -> Option<Settings> {
    let url = web::require_url(section, "url");
    let max_events = section.or("max_events", EVENTS);
    if !(1..=MOST_EVENTS).contains(&max_events) {
        section.problem(Some("max_events"), "must be from 1 to 10000");
    }
    let max_request_bytes = section.or("max_request_bytes", REQUEST_BYTES);
    if !(LEAST_REQUEST_BYTES..=MOST_REQUEST_BYTES).contains(&max_request_bytes) {
        section.problem(Some("max_request_bytes"), "must be from 64KiB to 64MiB");
    }
    let settings = Settings {
        headers: headers::read(section),
        format: section.or("format", Format::JsonArray),
        gzip: section.or("gzip", false),
        signing_secret: section.secret("signing_secret"),
        max_events: usize::from(max_events),
        max_request_bytes: max_request_bytes.as_usize(),
        form: Form::read(section),
        ..Settings::to("")
    };
    Some(Settings {
        url: Secret::new(url?.to_string()),
        ..settings
    })
}

/// Returns the destination.
pub async fn open(settings: &Settings) -> Arc<dyn Destination> {
    Arc::new(Webhook::open(settings))
}

/// The destination.
pub struct Webhook {
    settings: Settings,
    headers: HeaderMap,
    client: Result<Client, String>,
    timeout: Duration,
}

impl Webhook {
    /// Returns the destination.
    pub fn open(settings: &Settings) -> Self {
        let content_type = match settings.format {
            Format::JsonArray => "application/json",
            Format::Ndjson => "application/x-ndjson",
        };
        let mut headers = settings.headers.map();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
        if settings.gzip {
            headers.insert(CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
        }
        Self {
            settings: settings.clone(),
            headers,
            client: web::client().cloned(),
            timeout: web::TIMEOUT,
        }
    }

    /// Returns the body of a request, and its bytes as they are sent.
    async fn body(&self, items: &[Item]) -> std::io::Result<Vec<u8>> {
        let body = join(items, self.settings.format);
        if !self.settings.gzip {
            return Ok(body);
        }
        // A MiB takes some milliseconds, which other tasks of this thread shall not wait for.
        tokio::task::spawn_blocking(move || {
            let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
            encoder.write_all(&body)?;
            encoder.finish()
        })
        .await
        .map_err(std::io::Error::other)
        .flatten()
    }

    fn request(&self, method: Method) -> Result<RequestBuilder, String> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let request = client.request(method, self.settings.url.expose()).timeout(self.timeout);
        Ok(request.headers(self.headers.clone()))
    }

    async fn post(&self, items: &[Item]) -> Result<web::Reply, String> {
        let body = self.body(items).await.map_err(|error| error.to_string())?;
        let mut request = self.request(Method::POST)?.header(IDEMPOTENCY_KEY, delivery_id(items));
        if let Some(secret) = &self.settings.signing_secret {
            request = request.header(SIGNATURE, signature::of(secret, SystemTime::now(), &body));
        }
        web::exchange_heads(request.body(body)).await
    }
}

#[async_trait]
impl Destination for Webhook {
    fn limits(&self) -> Limits {
        // Room for an array's brackets and commas; lines have their line feeds with them.
        let room = match self.settings.format {
            Format::JsonArray => self.settings.max_events + 1,
            Format::Ndjson => 0,
        };
        let bytes = self.settings.max_request_bytes - room;
        Limits {
            items: self.settings.max_events,
            bytes,
            item_bytes: bytes,
            keys: usize::MAX,
            requests: usize::MAX,
        }
    }

    fn encode(&self, event: &ExportEvent<'_>) -> Encoded {
        let body = match (self.settings.form.render(event), self.settings.format) {
            (Ok(record), Format::JsonArray) => record,
            (Ok(record), Format::Ndjson) => on_one_line(record),
            (Err(reason), _) => return Encoded::Skip(reason),
        };
        Encoded::Item(Item {
            id: event.id.to_owned(),
            size: body.len(),
            body: body.into(),
            key: String::new(),
        })
    }

    async fn send(&self, items: &[Item]) -> Vec<Verdict> {
        let verdict = match self.post(items).await {
            Ok(reply) => judge(&reply, items.len()),
            Err(why) => Verdict::Retry { after: None, why },
        };
        all(&verdict, items)
    }

    async fn probe(&self) -> Result<String, ProbeError> {
        let failed = |why| ProbeError {
            why,
            remedy: "look at `url`, at the network policy and, for TLS, at the authorities that are trusted".to_owned(),
        };
        let request = self.request(Method::HEAD).map_err(failed)?;
        let reply = web::exchange_heads(request).await.map_err(failed)?;
        let status = reply.status;
        Ok(format!(
            "the server answers {status} to a HEAD request; only an event shows whether it takes events"
        ))
    }
}

// The text of an answer is the receiver's: it could quote events or headers, so only the status is told.
fn judge(reply: &web::Reply, items: usize) -> Verdict {
    let status = reply.status;
    let (means, why) = match answers::of_status(ANSWERS, status) {
        Some(answer) => (answer.means, answer.why),
        None => (answers::Means::Retry, "an answer that nobody expects"),
    };
    means.verdict(items, format!("answered {status}: {why}"), reply.retry_after())
}

fn join(items: &[Item], format: Format) -> Vec<u8> {
    let size: usize = items.iter().map(|item| item.body.len() + 1).sum();
    let mut body = Vec::with_capacity(size + 1);
    for (place, item) in items.iter().enumerate() {
        match (format, place) {
            (Format::Ndjson, _) => {}
            (Format::JsonArray, 0) => body.push(b'['),
            (Format::JsonArray, _) => body.push(b','),
        }
        body.extend_from_slice(&item.body);
    }
    if format == Format::JsonArray {
        body.push(b']');
    }
    body
}

/// Returns what requests with the same events in the same order share: 32 hex digits.
fn delivery_id(items: &[Item]) -> String {
    let mut hash = Sha256::new();
    for item in items {
        hash.update(item.id.as_bytes());
        hash.update(b"\n");
    }
    hex(&hash.finalize()[..16])
}
