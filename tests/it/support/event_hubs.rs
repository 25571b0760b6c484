//! A fake Event Hubs that verifies tokens, content type, shape and size of every batch, and answers by script.
//!
//! What the service would refuse, or silently do something else with, is unexpected and fails the test.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use sha2::Sha256;

use super::upstream::Received;
use super::{Answer, Upstream};

const KEY: &str = "q0Zx/4Jb+Zr3mD1uK8fVhT2yWc5nLg7sPe9aRi6oXwE=";
const POLICY: &str = "send only";
/// The Basic tier's, the smallest there is.
const MOST_BYTES: usize = 256_000;

/// The fake. Dropping it judges what it saw, as [`Upstream`] does.
pub(crate) struct EventHubs {
    service: Upstream,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    script: VecDeque<(Answer, bool)>,
    batches: Vec<Vec<Value>>,
}

impl EventHubs {
    /// Starts a hub that takes everything.
    pub(crate) fn start() -> Self {
        let service = Upstream::start();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let answering = shared.clone();
        service.plan(move |request| match read(request) {
            Ok(batch) => Some(answering.lock().unwrap().answer(batch)),
            Err(why) => {
                eprintln!("{why}");
                None
            }
        });
        Self { service, shared }
    }

    /// Adds an answer to the script. `takes`: the batch is stored.
    pub(crate) fn then(&self, answer: Answer, takes: bool) {
        self.shared.lock().unwrap().script.push_back((answer, takes));
    }

    /// Returns a destination's settings that lead here.
    pub(crate) fn settings(&self) -> Value {
        json!({
            "namespace": "ld-events", "name": "flag-events", "policyName": POLICY, "policyKey": KEY,
            "endpoint": format!("http://{}", self.service.address()), "max_request_bytes": "256kB",
        })
    }

    /// Returns the batches that were taken, in order.
    pub(crate) fn batches(&self) -> Vec<Vec<Value>> {
        self.shared.lock().unwrap().batches.clone()
    }

    /// Returns every record that was taken, in order.
    pub(crate) fn records(&self) -> Vec<String> {
        let batches = self.batches();
        let events = batches.iter().flatten();
        events.map(|event| event["Body"].as_str().unwrap().to_owned()).collect()
    }

    /// Returns how many answers of the script are left.
    pub(crate) fn planned(&self) -> usize {
        self.shared.lock().unwrap().script.len()
    }

    /// Fails if a text holds the policy's key.
    pub(crate) fn assert_no_secrets_in(text: &str) {
        assert!(!text.contains(KEY) && !text.contains("SharedAccessSignature"), "{text}");
    }
}

impl Shared {
    fn answer(&mut self, batch: Vec<Value>) -> Answer {
        let (answer, takes) = self.script.pop_front().unwrap_or((Answer::full(201, &[], b""), true));
        if takes {
            self.batches.push(batch);
        }
        answer
    }
}

fn read(request: &Received) -> Result<Vec<Value>, String> {
    let check = |what: &str, good: bool| {
        if good {
            Ok(())
        } else {
            Err(format!("{what}: {request:?}"))
        }
    };
    let target = "/flag-events/messages?timeout=60&api-version=2014-01";
    check("request line", request.method == "POST" && request.target == target)?;
    let content_type = request.headers.all("content-type");
    check(
        "content type",
        content_type == ["application/vnd.microsoft.servicebus.json"],
    )?;
    check("token", request.headers.all("authorization").len() == 1)?;
    verify(request.headers.get("authorization").unwrap_or_default())?;
    check("size", request.body.len() <= MOST_BYTES)?;
    let batch: Vec<Value> = serde_json::from_slice(&request.body).map_err(|error| error.to_string())?;
    check("no events", !batch.is_empty())?;
    for event in &batch {
        let names: Vec<&String> = event.as_object().into_iter().flat_map(|event| event.keys()).collect();
        check("an event is a text", names == ["Body"] && event["Body"].is_string())?;
    }
    Ok(batch)
}

fn verify(token: &str) -> Result<(), String> {
    let fields = token.strip_prefix("SharedAccessSignature ").ok_or("scheme")?;
    let fields: BTreeMap<&str, &str> = fields.split('&').filter_map(|field| field.split_once('=')).collect();
    let raw = |name: &str| fields.get(name).copied().ok_or(format!("no {name} in the token"));
    let decoded = |name: &str| raw(name).map(|text| percent_decode_str(text).decode_utf8_lossy().into_owned());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let expiry: u64 = raw("se")?.parse().map_err(|_| "expiry")?;
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).unwrap();
    mac.update(format!("{}\n{expiry}", raw("sr")?).as_bytes());
    let good = fields.len() == 4
        && decoded("sr")? == "https://ld-events.servicebus.windows.net/flag-events"
        && decoded("skn")? == POLICY
        && (now + 1..=now + 3600).contains(&expiry)
        && decoded("sig")? == STANDARD.encode(mac.finalize().into_bytes());
    if good {
        Ok(())
    } else {
        Err("a token that the service refuses".to_owned())
    }
}
