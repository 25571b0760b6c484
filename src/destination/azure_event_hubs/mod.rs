//! Azure Event Hubs: one event of the hub per export record, in batches over HTTPS.
//!
//! ```text
//! POST https://<namespace>/<name>/messages?timeout=60&api-version=2014-01
//! Content-Type: application/vnd.microsoft.servicebus.json
//! [{"Body":"<the record as a JSON string>","BrokerProperties":{"PartitionKey":"…"},"UserProperties":{…}},…]
//! ```
//!
//! (<https://learn.microsoft.com/en-us/rest/api/eventhub/send-batch-events>.) A batch is taken whole or not at all: 201 is
//! the one acknowledgement. What the service writes in an answer is looked at and not repeated.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::Method;
use reqwest::{Client, RequestBuilder};
use sha2::{Digest, Sha256};

use super::answers::{Answer, Means, of_code, of_status};
use super::{Destination, Encoded, Item, Limits, ProbeError, Verdict, all};
use crate::export::form::Form;
use crate::export::{ExportEvent, envelope};
use crate::secret::Secret;
use crate::section::Section;
use crate::units::{ByteSize, hex};
use crate::web;

mod table;
#[cfg(test)]
mod tests;
mod token;

pub(super) use table::ANSWERS;
use token::Signer;

/// What a publication may have, but for the Basic tier, which takes 256 KB (Event Hubs quotas). Decimal, because the
/// quota does not say which.
const REQUEST_BYTES: ByteSize = ByteSize(1_000_000);
const LEAST_REQUEST_BYTES: ByteSize = ByteSize(16 * 1024);
const MOST_REQUEST_BYTES: ByteSize = ByteSize::mib(1);
/// No limit of the service's, which counts bytes alone.
const EVENTS: usize = 1000;
/// Characters in a partition key (Event Hubs quotas).
const KEY_CHARS: usize = 128;
/// Where a namespace lives that is given by its bare name.
const PUBLIC_CLOUD: &str = "servicebus.windows.net";

crate::choices! {
    /// What events of one partition share.
    pub enum PartitionBy {
        /// Nothing: the service spreads requests over the partitions.
        None = "none",
        /// The key of the event's user or context, so that its events stay in order.
        ContextKey = "context_key",
    }
}

/// Which hub, as whom, and with what limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The namespace's host name.
    pub host: String,
    /// The hub's name.
    pub name: String,
    /// The name of a shared access policy with the right to send.
    pub policy_name: String,
    /// One of its keys.
    pub policy_key: Secret,
    /// Another address than the namespace's: a gateway, an emulator.
    pub endpoint: Option<String>,
    /// What events of one partition share.
    pub partition_by: PartitionBy,
    /// Event id, kind and environment also stand beside the record.
    pub properties: bool,
    /// Bytes of one request's body.
    pub max_request_bytes: usize,
    /// The record's form.
    pub form: Form,
}

impl Settings {
    /// Returns the settings for a hub with the defaults. `namespace` without a dot is one of Azure's public cloud.
    pub fn to(namespace: &str, name: &str, policy_name: &str, policy_key: Secret) -> Self {
        let host = match namespace.contains('.') {
            true => namespace.to_owned(),
            false => format!("{namespace}.{PUBLIC_CLOUD}"),
        };
        Self {
            host: host.to_ascii_lowercase(),
            name: name.to_owned(),
            policy_name: policy_name.to_owned(),
            policy_key,
            endpoint: None,
            partition_by: PartitionBy::None,
            properties: false,
            max_request_bytes: REQUEST_BYTES.as_usize(),
            form: Form::default(),
        }
    }
}

/// Reads the settings.
pub fn read(section: &mut Section<'_>) -> Option<Settings> {
    let namespace = named(
        section,
        "namespace",
        b"-.",
        "must be a namespace's name such as ld-events, or its host name in another cloud",
    );
    let name = named(
        section,
        "name",
        b"-._",
        "must be an event hub's name: letters, digits, `.`, `-` and `_`",
    );
    let policy_name: Option<String> = section.required("policy_name");
    let policy_key = section.secret("policy_key");
    if policy_key.is_none() && !section.has("policy_key") && !section.has("policy_key_file") {
        section.problem(None, "needs `policy_key`: a key of the policy in `policy_name`");
    }
    let endpoint = web::read_url(section, "endpoint");
    if endpoint.as_ref().is_some_and(|endpoint| endpoint.query().is_some()) {
        section.problem(Some("endpoint"), "must have no query");
    }
    let max_request_bytes = section.or("max_request_bytes", REQUEST_BYTES);
    if !(LEAST_REQUEST_BYTES..=MOST_REQUEST_BYTES).contains(&max_request_bytes) {
        section.problem(
            Some("max_request_bytes"),
            "must be from 16KiB to 1MiB, which is Event Hubs' limit",
        );
    }
    let partition_by = section.or("partition_by", PartitionBy::None);
    let properties = section.or("properties", false);
    let form = Form::read(section);
    Some(Settings {
        endpoint: endpoint.map(|endpoint| endpoint.to_string().trim_end_matches('/').to_owned()),
        partition_by,
        properties,
        max_request_bytes: max_request_bytes.as_usize(),
        form,
        ..Settings::to(&namespace?, &name?, &policy_name?, policy_key?)
    })
}

// What stands in an address and in a token must be no more than a name.
fn named(section: &mut Section<'_>, key: &str, marks: &[u8], rule: &str) -> Option<String> {
    let name: String = section.required(key)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || marks.contains(&byte);
    if name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name.len() <= 256 && name.bytes().all(fits) {
        return Some(name);
    }
    section.problem(Some(key), rule);
    None
}

/// Returns the destination.
pub async fn open(settings: &Settings) -> Arc<dyn Destination> {
    Arc::new(EventHubs::open(settings))
}

/// The destination.
pub struct EventHubs {
    settings: Settings,
    hub: String,
    client: Result<Client, String>,
    signer: Mutex<Signer>,
    timeout: Duration,
}

impl EventHubs {
    /// Returns the destination.
    pub fn open(settings: &Settings) -> Self {
        let resource = format!("https://{}/{}", settings.host, settings.name);
        let hub = match &settings.endpoint {
            Some(endpoint) => format!("{endpoint}/{}", settings.name),
            None => resource.clone(),
        };
        Self {
            hub,
            client: web::client().cloned(),
            signer: Mutex::new(Signer::new(
                &resource,
                &settings.policy_name,
                settings.policy_key.clone(),
            )),
            timeout: web::TIMEOUT,
            settings: settings.clone(),
        }
    }

    fn request(&self, method: Method, rest: &str) -> Result<RequestBuilder, String> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let token = {
            // Nothing in there leaves half a token behind.
            let mut signer = self.signer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            signer.token(SystemTime::now())
        };
        let mut authorization = http::HeaderValue::from_str(&token).map_err(|error| error.to_string())?;
        authorization.set_sensitive(true);
        let request = client.request(method, format!("{}{rest}", self.hub));
        Ok(request.timeout(self.timeout).header("authorization", authorization))
    }

    async fn post(&self, items: &[Item]) -> Result<web::Reply, String> {
        let request = self.request(Method::POST, "/messages?timeout=60&api-version=2014-01")?;
        let request = request.header("content-type", "application/vnd.microsoft.servicebus.json");
        web::exchange(request.body(batch(items))).await
    }
}

#[async_trait]
impl Destination for EventHubs {
    fn limits(&self) -> Limits {
        // Room for the array's brackets and commas.
        let bytes = self.settings.max_request_bytes - EVENTS - 1;
        Limits {
            items: EVENTS,
            bytes,
            item_bytes: bytes,
            // One publication goes to one partition.
            keys: match self.settings.partition_by {
                PartitionBy::None => usize::MAX,
                PartitionBy::ContextKey => 1,
            },
            requests: usize::MAX,
        }
    }

    fn encode(&self, event: &ExportEvent<'_>) -> Encoded {
        let record = match self.settings.form.render(event) {
            Ok(record) => record,
            Err(reason) => return Encoded::Skip(reason),
        };
        let Ok(record) = String::from_utf8(record) else {
            return Encoded::Reject("an event that is not UTF-8 has no place in a JSON string".to_owned());
        };
        let key = match self.settings.partition_by {
            PartitionBy::None => String::new(),
            PartitionBy::ContextKey => partition_key(envelope::partition_key(event)),
        };
        let mut body = Vec::with_capacity(record.len() + record.len() / 4 + 64);
        body.extend_from_slice(b"{\"Body\":");
        push_text(&mut body, &record);
        if !key.is_empty() {
            body.extend_from_slice(b",\"BrokerProperties\":{\"PartitionKey\":");
            push_text(&mut body, &key);
            body.push(b'}');
        }
        if self.settings.properties {
            body.extend_from_slice(b",\"UserProperties\":{\"id\":");
            push_text(&mut body, event.id);
            body.extend_from_slice(b",\"kind\":");
            push_text(&mut body, event.kind.as_str());
            body.extend_from_slice(b",\"environment\":");
            push_text(&mut body, event.environment);
            body.push(b'}');
        }
        body.push(b'}');
        Encoded::Item(Item {
            id: event.id.to_owned(),
            size: body.len(),
            body: body.into(),
            key,
        })
    }

    async fn send(&self, items: &[Item]) -> Vec<Verdict> {
        let verdict = match self.post(items).await {
            Ok(reply) => {
                let (means, why) = meaning(&reply);
                means.verdict(items.len(), why, reply.retry_after())
            }
            Err(why) => Verdict::Retry { after: None, why },
        };
        all(&verdict, items)
    }

    async fn probe(&self) -> Result<String, ProbeError> {
        let failed = |why| ProbeError {
            why,
            remedy: "look at `namespace`, `name`, `policy_name`, `policy_key` and the network policy".to_owned(),
        };
        // Describing the hub takes a right that a policy for sending does not have, and should not.
        let request = self.request(Method::GET, "?api-version=2014-01").map_err(failed)?;
        let reply = web::exchange(request).await.map_err(failed)?;
        match (reply.status, code(&reply)) {
            (200..=299, _) => Ok("the hub is there and knows the policy".to_owned()),
            (300..=399 | 404 | 407, _) | (_, Some(_)) => Err(failed(meaning(&reply).1)),
            (status, None) => Ok(format!(
                "the namespace answers ({status} to a question that takes the right to manage); only an event shows \
                 whether the policy may send"
            )),
        }
    }
}

fn meaning(reply: &web::Reply) -> (Means, String) {
    let status = reply.status;
    match code(reply).or_else(|| of_status(ANSWERS, status)) {
        Some(answer) => (answer.means, format!("answered {status}: {}", answer.why)),
        None => (
            Means::Retry,
            format!("answered {status}: an answer that nobody expects"),
        ),
    }
}

/// Returns the line of the first code that stands in an answer which is no success.
fn code(reply: &web::Reply) -> Option<&'static Answer> {
    if reply.status != 401 && reply.status != 403 {
        return None;
    }
    let words = reply.text.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .filter(|word| !word.is_empty())
        .find_map(|word| of_code(ANSWERS, word))
}

fn batch(items: &[Item]) -> Vec<u8> {
    let size: usize = items.iter().map(|item| item.body.len() + 1).sum();
    let mut body = Vec::with_capacity(size + 1);
    for (place, item) in items.iter().enumerate() {
        body.push(if place == 0 { b'[' } else { b',' });
        body.extend_from_slice(&item.body);
    }
    body.push(b']');
    body
}

fn partition_key(key: String) -> String {
    if key.chars().nth(KEY_CHARS).is_none() {
        return key;
    }
    hex(&Sha256::digest(key.as_bytes()))
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}
