//! Twilio Segment: one message per event, with the HTTP API's batch call.
//!
//! [`message`] has the mapping. Segment answers 200 to nearly everything, also to what it then drops without a word: a
//! write key nobody has, a message without identity. So what it would drop never leaves here: such events are skipped
//! or refused with a reason. It recognises repetitions by `messageId`, which is the same on every retry and replay.
//!
//! Source of all limits and answers: <https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/>.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::Client;
use serde_json::Value;

use super::answers::{Answer, Means, On, of_status};
use super::{Destination, Encoded, Item, Limits, ProbeError, Verdict, all};
use crate::export::ExportEvent;
use crate::export::form::DefaultMeans;
use crate::export::json::push_text;
use crate::secret::Secret;
use crate::section::Section;
use crate::web::{self, Reply};

mod message;
#[cfg(test)]
mod tests;

use message::Mapping;

/// Messages in one request.
const MOST_MESSAGES: usize = 2500;
/// Bytes in one request: 500 kB, in the smaller of the two readings.
const MOST_REQUEST_BYTES: usize = 500_000;
/// Bytes in one message: 32 kB, in the reading of Segment's own clients.
const MOST_MESSAGE_BYTES: usize = 32 * 1024;
/// What a request has besides messages: `{"batch":[],"sentAt":"2026-11-22T21:20:00.000Z"}` and a comma each.
const FRAME_BYTES: usize = 64 + MOST_MESSAGES;

/// The path of a request, whatever the region.
const PATH: &str = "/v1/batch";

crate::choices! {
    /// Where the workspace's data is kept.
    pub enum Region {
        /// Oregon.
        Us = "us",
        /// Dublin.
        Eu = "eu",
    }
}

crate::choices! {
    /// How `value` and `default` are written.
    pub enum Values {
        /// As text: `"true"`, `"{\"a\":1}"`.
        Text = "text",
        /// As the JSON value that the flag has.
        Json = "json",
    }
}

/// Which source, and how events become messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The source's write key.
    pub write_key: Secret,
    /// The kind of context whose key is the `userId`.
    pub user_id_context_kind: String,
    /// The kind of context whose key is the `anonymousId`.
    pub anonymous_id_context_kind: Option<String>,
    /// Where the workspace's data is kept.
    pub region: Region,
    /// Another address than Segment's, without the path.
    pub endpoint: Option<String>,
    /// How `value` and `default` are written.
    pub values: Values,
    /// What `default` says.
    pub default_means: DefaultMeans,
}

impl Settings {
    /// Returns the settings for a source with the defaults.
    pub fn to(write_key: Secret) -> Self {
        Self {
            write_key,
            user_id_context_kind: "user".to_owned(),
            anonymous_id_context_kind: None,
            region: Region::Us,
            endpoint: None,
            values: Values::Text,
            default_means: DefaultMeans::SdkValue,
        }
    }

    fn base(&self) -> &str {
        match (&self.endpoint, self.region) {
            (Some(endpoint), _) => endpoint,
            (None, Region::Us) => "https://api.segment.io",
            (None, Region::Eu) => "https://events.eu1.segmentapis.com",
        }
    }
}

/// Reads the settings.
pub fn read(section: &mut Section<'_>) -> Option<Settings> {
    let write_key = section.required_secret("write_key");
    let user_id_context_kind = section.or("user_id_context_kind", "user".to_owned());
    let anonymous_id_context_kind = section.optional("anonymous_id_context_kind");
    let region = section.or("region", Region::Us);
    let endpoint = web::read_base(section, "endpoint");
    let values = section.or("values", Values::Text);
    let default_means = section.or("default_means", DefaultMeans::SdkValue);
    Some(Settings {
        write_key: write_key?,
        user_id_context_kind,
        anonymous_id_context_kind,
        region,
        endpoint,
        values,
        default_means,
    })
}

/// Returns the destination.
pub async fn open(settings: &Settings) -> Arc<dyn Destination> {
    Arc::new(Segment::new(settings))
}

const API: &str = "https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/#errors";

/// What Segment's answers mean.
pub(super) const ANSWERS: &[Answer] = &[
    Answer {
        on: On::Status(200, 299),
        means: Means::Delivered,
        why: "taken; Segment says so of a wrong `write_key` too, so its source debugger has the last word",
        source: API,
    },
    Answer {
        on: On::Status(300, 399),
        means: Means::Blocked,
        why: "look at `endpoint`: it points elsewhere, and redirects are not followed",
        source: "HTTP",
    },
    Answer {
        on: On::Status(400, 400),
        means: Means::Isolate,
        why: "Segment finds the request too large or no valid JSON",
        source: API,
    },
    Answer {
        on: On::Status(401, 401),
        means: Means::Blocked,
        why: "look at `write_key`",
        source: "HTTP",
    },
    Answer {
        on: On::Status(403, 404),
        means: Means::Blocked,
        why: "look at `write_key`, `region` and `endpoint`",
        source: "HTTP",
    },
    Answer {
        on: On::Status(413, 413),
        means: Means::Isolate,
        why: "the request is too large for what stands in between",
        source: "HTTP",
    },
    Answer {
        on: On::Status(429, 429),
        means: Means::Retry,
        why: "over the rate limit; `Retry-After` or `X-RateLimit-Reset` say for how long",
        source: API,
    },
    Answer {
        on: On::Status(500, 599),
        means: Means::Retry,
        why: "Segment has trouble",
        source: API,
    },
];

/// The destination.
pub struct Segment {
    settings: Settings,
    mapping: Mapping,
    url: String,
}

impl Segment {
    /// Returns the destination.
    pub fn new(settings: &Settings) -> Self {
        Self {
            mapping: Mapping::new(settings),
            url: format!("{}{PATH}", settings.base()),
            settings: settings.clone(),
        }
    }
}

#[async_trait]
impl Destination for Segment {
    fn limits(&self) -> Limits {
        Limits {
            items: MOST_MESSAGES,
            bytes: MOST_REQUEST_BYTES - FRAME_BYTES,
            item_bytes: MOST_MESSAGE_BYTES,
            keys: usize::MAX,
            requests: usize::MAX,
        }
    }

    fn encode(&self, event: &ExportEvent<'_>) -> Encoded {
        match self.mapping.message(event) {
            Ok(body) => Encoded::Item(Item {
                id: event.id.to_owned(),
                size: body.len(),
                body: body.into(),
                key: String::new(),
            }),
            Err(reason) => Encoded::Skip(reason),
        }
    }

    async fn send(&self, items: &[Item]) -> Vec<Verdict> {
        let retry = |why| Verdict::Retry { after: None, why };
        let request = |client: &Client| {
            client
                .post(&self.url)
                .basic_auth(self.settings.write_key.expose(), Some(""))
                .header("content-type", "application/json")
                .body(batch(items, Timestamp::now()))
        };
        let verdict = match web::ask(request).await {
            Ok(reply) => verdict(&reply, items.len()),
            Err(why) => retry(why),
        };
        all(&verdict, items)
    }

    async fn probe(&self) -> Result<String, ProbeError> {
        let base = self.settings.base();
        super::reach(base, "`endpoint`").await?;
        Ok(format!(
            "{base} answers; whether `write_key` and `region` are right only the source's debugger can tell, since \
             Segment answers 200 to any"
        ))
    }
}

/// Returns the body of a request.
fn batch(items: &[Item], now: Timestamp) -> Vec<u8> {
    let size: usize = items.iter().map(|item| item.body.len() + 1).sum();
    let mut body = Vec::with_capacity(size + FRAME_BYTES - MOST_MESSAGES);
    body.extend_from_slice(b"{\"batch\":[");
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&item.body);
    }
    body.extend_from_slice(b"],\"sentAt\":");
    push_text(&mut body, &date(now));
    body.push(b'}');
    body
}

/// Returns a date as Segment writes them: ISO 8601, milliseconds, UTC.
fn date(date: Timestamp) -> String {
    format!("{date:.3}")
}

fn verdict(reply: &Reply, items: usize) -> Verdict {
    let Some(answer) = of_status(ANSWERS, reply.status) else {
        let why = format!("Segment answered {}", reply.status);
        return Means::Retry.verdict(items, why, reply.retry_after());
    };
    let wishes = [
        reply.retry_after(),
        reply.seconds("x-ratelimit-reset").filter(is_a_wait),
    ];
    let why = format!("Segment answered {}{}: {}", reply.status, code(&reply.text), answer.why);
    answer.means.verdict(items, why, wishes.into_iter().flatten().max())
}

// The header is documented in seconds, and other services put a date of that name there.
fn is_a_wait(wait: &Duration) -> bool {
    *wait < Duration::from_secs(24 * 3600)
}

// The error's code, if there is one: the message could quote an event.
fn code(text: &str) -> String {
    let answer: Value = serde_json::from_str(text).unwrap_or_default();
    match answer["code"].as_str() {
        Some(code) if code.len() <= 60 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
            format!(" {code}")
        }
        _ => String::new(),
    }
}
