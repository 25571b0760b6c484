//! mParticle: events in batches of one user each, with the Events API's bulk call.
//!
//! [`event`] has the mapping, [`identity`] says whose an event is, [`bulk`] puts requests together. A batch is for one
//! user, so an item's key is its user's identities and [`Limits::keys`] bounds the batches. A request is taken or refused as
//! a whole. mParticle promises nothing about repetitions; `source_message_id` is the event's id and `source_request_id` a hash
//! of the batch's ids, so both are the same whenever the same is sent again.
//!
//! Source of all limits and answers: <https://docs.mparticle.com/developers/server/http/> and mParticle's OpenAPI file.

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Client;
use serde_json::Value;

use super::answers::{Answer, Means, On, of_status};
use super::{Destination, Encoded, Item, Limits, ProbeError, Verdict, all};
use crate::export::ExportEvent;
use crate::export::fields::Fields;
use crate::export::form::DefaultMeans;
use crate::secret::Secret;
use crate::section::Section;
use crate::web::{self, Reply, short};

mod bulk;
mod event;
mod identity;
#[cfg(test)]
mod tests;

use event::Unfit;
pub use identity::{Identities, Identity};

const PATH: &str = "/v2/bulkevents";

crate::choices! {
    /// mParticle's own environment, of every batch.
    pub enum Environment {
        /// Counts, and is forwarded to the outputs of production.
        Production = "production",
        /// For trying things out.
        Development = "development",
    }
}

crate::choices! {
    /// Which of mParticle's data centres the account is in.
    pub enum Pod {
        /// United States, the first.
        Us1 = "us1",
        /// United States, the second.
        Us2 = "us2",
        /// Europe.
        Eu1 = "eu1",
        /// Australia.
        Au1 = "au1",
    }
}

crate::choices! {
    /// How `event_name` is spelled.
    pub enum NameCase {
        /// `feature`, as in LaunchDarkly's example.
        Lower = "lower",
        /// `Feature`, as in its schema reference.
        Capitalized = "capitalized",
    }
}

/// Which input, and how events become mParticle's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The input's key.
    pub api_key: Secret,
    /// The input's secret.
    pub secret: Secret,
    /// mParticle's own environment.
    pub environment: Environment,
    /// Whose an event is.
    pub identities: Identities,
    /// The account's data centre.
    pub pod: Pod,
    /// Another address than mParticle's, without the path.
    pub endpoint: Option<String>,
    /// How `event_name` is spelled.
    pub event_name_case: NameCase,
    /// What `default` says.
    pub default_means: DefaultMeans,
}

impl Settings {
    fn base(&self) -> String {
        let own = || format!("https://s2s.{}.mparticle.com", self.pod.as_str());
        self.endpoint.clone().unwrap_or_else(own)
    }
}

/// Reads the settings.
pub fn read(section: &mut Section<'_>) -> Option<Settings> {
    let api_key = section.required_secret("api_key");
    let secret = section.required_secret("secret");
    let environment = section.required("environment");
    let identities = identity::read(section);
    let pod = section.or("pod", Pod::Us1);
    let endpoint = web::read_base(section, "endpoint");
    let event_name_case = section.or("event_name_case", NameCase::Lower);
    let default_means = section.or("default_means", DefaultMeans::SdkValue);
    Some(Settings {
        api_key: api_key?,
        secret: secret?,
        environment: environment?,
        identities: identities?,
        pod,
        endpoint,
        event_name_case,
        default_means,
    })
}

/// Returns the destination.
pub async fn open(settings: &Settings) -> Arc<dyn Destination> {
    Arc::new(Mparticle::new(settings))
}

const API: &str = "https://docs.mparticle.com/developers/server/http/#response-codes";

/// What mParticle's answers mean.
pub(super) const ANSWERS: &[Answer] = &[
    Answer {
        on: On::Status(200, 299),
        means: Means::Delivered,
        why: "accepted (202)",
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
        why: "mParticle finds a batch malformed, and refuses all of the request for it",
        source: API,
    },
    Answer {
        on: On::Status(401, 401),
        means: Means::Blocked,
        why: "look at `api_key` and `secret`",
        source: API,
    },
    Answer {
        on: On::Status(403, 403),
        means: Means::Blocked,
        why: "look at `api_key` and `pod`: the key is not valid there, or its input is not active",
        source: API,
    },
    Answer {
        on: On::Status(404, 404),
        means: Means::Blocked,
        why: "look at `endpoint`",
        source: "HTTP",
    },
    Answer {
        on: On::Status(413, 413),
        means: Means::Isolate,
        why: "the request is too large for mParticle or for what stands in between",
        source: "HTTP",
    },
    Answer {
        on: On::Status(429, 429),
        means: Means::Retry,
        why: "over a rate limit; `Retry-After` says for how long, `X-mp-rate-limit-exceeded` which one",
        source: API,
    },
    Answer {
        on: On::Status(500, 599),
        means: Means::Retry,
        why: "mParticle has trouble",
        source: API,
    },
];

/// The destination.
pub struct Mparticle {
    settings: Settings,
    url: String,
}

impl Mparticle {
    /// Returns the destination.
    pub fn new(settings: &Settings) -> Self {
        Self {
            url: format!("{}{PATH}", settings.base()),
            settings: settings.clone(),
        }
    }

    fn item(&self, event: &ExportEvent<'_>) -> Result<Item, Unfit> {
        let fields = Fields::of(event).ok_or(Unfit::Reject("not a JSON object"))?;
        let Settings {
            event_name_case: case,
            default_means,
            ..
        } = self.settings;
        let body = event::render(event, &fields, case, default_means)?;
        let key = self.settings.identities.of(&fields);
        let key = key.ok_or(Unfit::Skip("no_identity"))?;
        Ok(Item {
            id: event.id.to_owned(),
            size: body.len() + key.len(),
            body: body.into(),
            key,
        })
    }
}

#[async_trait]
impl Destination for Mparticle {
    fn limits(&self) -> Limits {
        bulk::LIMITS
    }

    fn encode(&self, event: &ExportEvent<'_>) -> Encoded {
        match self.item(event) {
            Ok(item) => Encoded::Item(item),
            Err(Unfit::Skip(reason)) => Encoded::Skip(reason),
            Err(Unfit::Reject(why)) => Encoded::Reject(why.to_owned()),
        }
    }

    async fn send(&self, items: &[Item]) -> Vec<Verdict> {
        let retry = |why| Verdict::Retry { after: None, why };
        let Settings { api_key, secret, .. } = &self.settings;
        let request = |client: &Client| {
            client
                .post(&self.url)
                .basic_auth(api_key.expose(), Some(secret.expose()))
                .header("content-type", "application/json")
                .body(bulk::request(items, self.settings.environment))
        };
        let verdict = match web::ask(request).await {
            Ok(reply) => verdict(&reply, items.len()),
            Err(why) => retry(why),
        };
        all(&verdict, items)
    }

    async fn probe(&self) -> Result<String, ProbeError> {
        let base = self.settings.base();
        super::reach(&base, "`pod` and `endpoint`").await?;
        Ok(format!(
            "{base} answers; whether `api_key`, `secret` and `pod` are right only an event can tell, since mParticle \
             has no call that checks them"
        ))
    }
}

fn verdict(reply: &Reply, items: usize) -> Verdict {
    let Some(answer) = of_status(ANSWERS, reply.status) else {
        let why = format!("mParticle answered {}", reply.status);
        return Means::Retry.verdict(items, why, reply.retry_after());
    };
    let mut why = format!(
        "mParticle answered {}{}: {}",
        reply.status,
        codes(&reply.text),
        answer.why
    );
    let limit = reply.headers.get("x-mp-rate-limit-exceeded");
    if let Some(limit) = limit.and_then(|limit| limit.to_str().ok()) {
        why = format!("{why} ({})", short(limit));
    }
    answer.means.verdict(items, why, reply.retry_after())
}

// The errors' codes: their messages could quote an event.
fn codes(text: &str) -> String {
    let answer: Value = serde_json::from_str(text).unwrap_or_default();
    let errors = answer["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let codes = errors.iter().filter_map(|error| error["code"].as_str());
    let plain = |code: &&str| code.len() <= 60 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    codes.filter(plain).take(3).map(|code| format!(" {code}")).collect()
}
