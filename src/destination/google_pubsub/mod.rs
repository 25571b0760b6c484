//! Google Cloud Pub/Sub: one message per event, with Google's own client over gRPC.
//!
//! A message's data is the export record; attributes and an ordering key are settings, off as in LaunchDarkly's own
//! export. Credentials are Application Default Credentials (variable, gcloud's file, metadata server with workload
//! identity) or those of a file; plain HTTP, which is for an emulator on loopback, goes without any.
//! Promises: at most `max_messages` and `max_request_bytes` are with the client at a time for each request, and a
//! request is over when each of its messages has an answer. Order within a context is kept as far as nothing has to
//! be sent again. `PUBSUB_EMULATOR_HOST` is not looked at: a variable left behind must not send events elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use google_cloud_pubsub::model::Message;
use sha2::{Digest, Sha256};

use super::{Destination, Encoded, Item, Limits, ProbeError, Verdict, all, on_one_line};
use crate::export::{ExportEvent, envelope};
use crate::units::hex;

#[cfg(test)]
mod access;
mod connection;
#[cfg(test)]
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../../../tests/it/support/pubsub_emulator.rs"]
mod emulator;
#[cfg(test)]
#[path = "../../../tests/it/support/pubsub_fake.rs"]
mod fake;
mod probe;
#[cfg(test)]
mod reading;
mod settings;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../../../tests/it/support/tools.rs"]
mod tools;
mod verdict;

pub use settings::{Attribute, Ordering, Settings, read};
pub(super) use verdict::ANSWERS;

use connection::Connection;

/// How long a request may take with all that it needs. Below the drain's own bound, so that the error says what took so
/// long.
const PATIENCE: Duration = Duration::from_secs(50);
/// Bytes in an ordering key (<https://cloud.google.com/pubsub/quotas#resource_limits>).
const KEY_BYTES: usize = 1024;
/// Ordering keys in one request; each is an RPC of its own. As many as the client has under way at once.
const MOST_KEYS: usize = 100;
/// What frames a message in a request: field numbers and lengths of the message, its data and its ordering key
/// (`google.pubsub.v1.PubsubMessage`).
const MESSAGE_FRAME: usize = 16;
/// What frames an attribute.
const ATTRIBUTE_FRAME: usize = 10;

/// Returns the destination.
pub async fn open(settings: &Settings) -> Arc<dyn Destination> {
    Arc::new(GooglePubsub::new(settings))
}

/// The destination.
///
/// The body of an [`Item`] is the values of the attributes, in the order of the settings and each with a line feed, and
/// then the message's data. No value has a line feed: kinds and names are words.
pub struct GooglePubsub {
    settings: Settings,
    connection: Connection,
}

impl GooglePubsub {
    /// Returns the destination. Connects when it is first used.
    pub fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            connection: Connection::new(settings),
        }
    }

    async fn publish(&self, items: &[Item]) -> Vec<Verdict> {
        let open = match self.connection.open(&self.settings).await {
            Ok(open) => open,
            Err(trouble) => return all(&verdict::of_trouble(trouble), items),
        };
        // Asked before the client does, which waits for a token without end.
        if let Err(trouble) = open.headers().await {
            return all(&verdict::of_trouble(trouble), items);
        }
        let messages = items.iter().map(|item| self.message(item)).collect();
        let answers = self.connection.publish(&open, messages).await;
        let mut sharing: HashMap<&str, usize> = HashMap::new();
        for item in items {
            *sharing.entry(&item.key).or_default() += 1;
        }
        let sharing = items.iter().map(|item| sharing[item.key.as_str()]);
        answers
            .iter()
            .zip(sharing)
            .map(|(answer, messages)| verdict::of_message(answer, messages))
            .collect()
    }

    fn message(&self, item: &Item) -> Message {
        let mut data = item.body.clone();
        let mut message = Message::new().set_ordering_key(&item.key);
        for attribute in &self.settings.attributes {
            let end = data.iter().position(|byte| *byte == b'\n').unwrap_or_default();
            let value = data.split_to(end);
            let value = String::from_utf8_lossy(&value).into_owned();
            message.attributes.insert(attribute.as_str().to_owned(), value);
            data = data.slice(1..);
        }
        message.set_data(data)
    }

    fn attribute<'a>(event: &ExportEvent<'a>, attribute: Attribute) -> &'a str {
        match attribute {
            Attribute::EventId => event.id,
            Attribute::Kind => event.kind.as_str(),
            Attribute::Environment => event.environment,
        }
    }
}

#[async_trait]
impl Destination for GooglePubsub {
    fn limits(&self) -> Limits {
        let ordered = self.settings.ordering != Ordering::None;
        let bytes = self.settings.max_request_bytes - self.settings.topic_name().len() - MESSAGE_FRAME;
        Limits {
            items: self.settings.max_messages,
            bytes,
            item_bytes: bytes,
            keys: if ordered { MOST_KEYS } else { usize::MAX },
            requests: if ordered { 1 } else { usize::MAX },
        }
    }

    fn encode(&self, event: &ExportEvent<'_>) -> Encoded {
        let mut data = match self.settings.form.render(event) {
            Ok(record) => record,
            Err(reason) => return Encoded::Skip(reason),
        };
        if self.settings.newline {
            data = on_one_line(data);
        }
        let mut size = data.len() + MESSAGE_FRAME;
        let mut values = Vec::new();
        for attribute in &self.settings.attributes {
            let value = Self::attribute(event, *attribute);
            size += attribute.as_str().len() + value.len() + ATTRIBUTE_FRAME;
            values.extend_from_slice(value.as_bytes());
            values.push(b'\n');
        }
        let key = match self.settings.ordering {
            Ordering::None => String::new(),
            Ordering::ContextKey => ordering_key(envelope::partition_key(event)),
        };
        let body = match values.is_empty() {
            true => Bytes::from(data),
            false => [values, data].concat().into(),
        };
        Encoded::Item(Item {
            id: event.id.to_owned(),
            size: size + key.len(),
            body,
            key,
        })
    }

    async fn send(&self, items: &[Item]) -> Vec<Verdict> {
        let Ok(verdicts) = tokio::time::timeout(PATIENCE, self.publish(items)).await else {
            self.connection.forget().await;
            return all(&verdict::retry(verdict::NO_ANSWER), items);
        };
        if verdicts.iter().any(is_of_the_connection) {
            self.connection.forget().await;
        }
        verdicts
    }

    async fn probe(&self) -> Result<String, ProbeError> {
        probe::run(&self.settings, &self.connection).await
    }
}

// Credentials can be mended in place, and a connection that the network has forgotten never says so.
fn is_of_the_connection(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Blocked { .. } => true,
        Verdict::Retry { why, .. } => why == verdict::NO_ANSWER,
        _ => false,
    }
}

fn ordering_key(key: String) -> String {
    if key.len() <= KEY_BYTES {
        return key;
    }
    hex(&Sha256::digest(key.as_bytes()))
}
