//! A fake mParticle that takes batches as the Events API v2 documents them, and fails the test on whatever it would refuse
//! or drop beyond what a test plans.
//!
//! Its rules are kept honest by the official client, whose requests it has to take (`tests/it/official_clients.rs`).

use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::upstream::{Gate, Received};
use super::{Answer, Setup, Upstream};

/// The input's key that the fake takes.
pub(crate) const API_KEY: &str = "us1-0123456789abcdef0123456789abcdef";
/// Its secret.
pub(crate) const SECRET: &str = "secret-0123456789abcdef0123456789abcdef0123456789abcdef";

/// Bytes in a request, batches in it, bytes in a batch, and UTF-16 units in an attribute (mParticle: "Default service
/// limits"; kB is read as the smaller of its two meanings).
const MOST: (usize, usize, usize, usize) = (256_000, 100, 128_000, 4_096);
const REFUSED: &[u8] = br#"{"errors":[{"code":"BAD_REQUEST","message":"made up"}]}"#;

/// The `user_identities` of the OpenAPI file, and `customerid`, which the official Python client writes.
const IDENTITIES: [&str; 23] = [
    "other",
    "customer_id",
    "customerid",
    "facebook",
    "twitter",
    "google",
    "microsoft",
    "yahoo",
    "email",
    "alias",
    "facebook_custom_audience_id",
    "other_id_2",
    "other_id_3",
    "other_id_4",
    "other_id_5",
    "other_id_6",
    "other_id_7",
    "other_id_8",
    "other_id_9",
    "other_id_10",
    "mobile_number",
    "phone_number_2",
    "phone_number_3",
];

/// The fake. Dropping it judges what it saw.
pub(crate) struct Mparticle {
    service: Upstream,
    shared: Arc<Mutex<Shared>>,
}

/// What is done with a request that is in order.
#[derive(Clone)]
pub(crate) enum Mood {
    /// It is taken.
    Takes,
    /// It gets this status, headers and text; nothing is taken.
    Answers(u16, Vec<(&'static str, &'static str)>, &'static str),
    /// It is taken, but 400 as a whole if an event has this `key`.
    Dislikes(&'static str),
    /// It is taken, and the answer comes when the gate opens.
    Hangs(Gate),
    /// It is taken, and the connection is closed instead of an answer.
    LosesAnswers,
    /// What it gets is no HTTP; nothing is taken.
    Garbles,
}

/// A batch as it came.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Batch {
    pub(crate) user_identities: Box<RawValue>,
    pub(crate) environment: String,
    pub(crate) source_request_id: String,
    pub(crate) events: Vec<Box<RawValue>>,
}

#[derive(Default)]
struct Shared {
    mood: Option<Mood>,
    /// The batches of each request that was taken.
    taken: Vec<Vec<String>>,
    refused: usize,
    complaints: Vec<String>,
}

impl Mparticle {
    /// Starts it with this mood.
    pub(crate) fn start(mood: Mood) -> Self {
        let service = Upstream::start();
        let shared = Arc::new(Mutex::new(Shared::default()));
        shared.lock().unwrap().mood = Some(mood);
        let answering = shared.clone();
        service.plan(move |call| Some(answering.lock().unwrap().answer(call)));
        Self { service, shared }
    }

    /// Returns where it is, for `endpoint`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.service.address())
    }

    /// Adds it to a configuration as the destination `mparticle`, beside the others.
    pub(crate) fn add_to(&self, setup: &mut Setup) {
        let names = setup.config["environments"][0]["destinations"].as_array_mut().unwrap();
        names.push(json!("mparticle"));
        setup.config["destinations"].as_array_mut().unwrap().push(json!({
            "name": "mparticle",
            "mparticle": {
                "api_key": API_KEY, "secret": SECRET, "environment": "development", "user_identity": "customer_id",
                "endpoint": self.url(),
            },
            "retry": { "initial": "20ms", "max": "200ms", "over": "500ms", "then": "keep" },
        }));
    }

    /// Changes what is done with later requests.
    pub(crate) fn be(&self, mood: Mood) {
        self.shared.lock().unwrap().mood = Some(mood);
    }

    /// Requests that break off are no failure in this test.
    pub(crate) fn tolerate_broken(&self) {
        self.service.tolerate_broken();
    }

    /// Returns the batches of each request that was taken.
    pub(crate) fn taken(&self) -> Vec<Vec<Batch>> {
        let taken = self.shared.lock().unwrap().taken.clone();
        let read = |batch: &String| serde_json::from_str(batch).unwrap();
        taken.iter().map(|request| request.iter().map(read).collect()).collect()
    }

    /// Returns every event that was taken.
    pub(crate) fn events(&self) -> Vec<Value> {
        let taken = self.shared.lock().unwrap().taken.clone();
        let read = |batch: &String| serde_json::from_str::<Value>(batch).unwrap();
        let events = taken.iter().flatten().map(|batch| read(batch)["events"].clone());
        events.flat_map(|events| events.as_array().unwrap().clone()).collect()
    }

    /// Returns how many requests were answered and not taken.
    pub(crate) fn refused(&self) -> usize {
        self.shared.lock().unwrap().refused
    }

    /// Returns and forgets what the fake has to say against the requests so far.
    pub(crate) fn complaints(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().unwrap().complaints)
    }
}

impl Drop for Mparticle {
    fn drop(&mut self) {
        let complaints = self.complaints();
        assert!(
            thread::panicking() || complaints.is_empty(),
            "mParticle would drop or refuse: {complaints:#?}"
        );
    }
}

impl Shared {
    fn answer(&mut self, call: &Received) -> Answer {
        let batches = match judge(call) {
            Ok(batches) => batches,
            Err(complaint) => {
                self.complaints.push(complaint);
                return Answer::full(400, &[], REFUSED);
            }
        };
        let accepted = Answer::status(202);
        let refused = match self.mood.clone().unwrap() {
            Mood::Takes => None,
            Mood::Answers(status, headers, text) => Some(Answer::full(status, &headers, text.as_bytes())),
            Mood::Garbles => Some(Answer::raw(b"\x00\x01 nonsense\r\n\r\n".as_slice()).and_close()),
            Mood::Dislikes(key) => {
                let is_it = |batch: &String| {
                    let batch: Value = serde_json::from_str(batch).unwrap();
                    let mut events = batch["events"].as_array().unwrap().iter();
                    events.any(|event| event["data"]["custom_attributes"]["key"] == key)
                };
                let bad = batches.iter().any(is_it);
                bad.then(|| Answer::full(400, &[], REFUSED))
            }
            Mood::Hangs(gate) => {
                self.taken.push(batches);
                return accepted.behind(&gate);
            }
            Mood::LosesAnswers => {
                self.taken.push(batches);
                return Answer::close();
            }
        };
        match refused {
            Some(answer) => {
                self.refused += 1;
                answer
            }
            None => {
                self.taken.push(batches);
                accepted
            }
        }
    }
}

/// Returns the batches in a request, or what is wrong with it.
fn judge(call: &Received) -> Result<Vec<String>, String> {
    let header = |name: &str| call.headers.get(name).unwrap_or_default();
    let line = (call.method.as_str(), call.target.as_str());
    if header("authorization") != format!("Basic {}", STANDARD.encode(format!("{API_KEY}:{SECRET}"))) {
        return Err("not the key and the secret".to_owned());
    }
    if header("content-type").split(';').next() != Some("application/json") {
        return Err(format!("content type {:?}", header("content-type")));
    }
    if call.body.len() > MOST.0 || call.headers.get("content-encoding").is_some() {
        return Err(format!("{} bytes, {:?}", call.body.len(), call.headers));
    }
    let batches: Vec<Box<RawValue>> = match line {
        ("POST", "/v2/events") => vec![serde_json::from_slice(&call.body).map_err(|error| error.to_string())?],
        ("POST", "/v2/bulkevents") => serde_json::from_slice(&call.body).map_err(|error| error.to_string())?,
        (method, target) => return Err(format!("{method} {target}")),
    };
    if !(1..=MOST.1).contains(&batches.len()) {
        return Err(format!("{} batches", batches.len()));
    }
    for batch in &batches {
        judge_batch(batch.get()).map_err(|what| format!("{what}: {batch}"))?;
    }
    Ok(batches.iter().map(|batch| batch.get().to_owned()).collect())
}

fn judge_batch(text: &str) -> Result<(), String> {
    if text.len() > MOST.2 {
        return Err(format!("batch of {} bytes", text.len()));
    }
    let batch: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    only(
        &batch,
        &[
            "events",
            "source_request_id",
            "environment",
            "ip",
            "schema_version",
            "device_info",
            "application_info",
            "user_attributes",
            "deleted_user_attributes",
            "user_identities",
            "mpid",
            "consent_state",
            "context",
            "timestamp_unixtime_ms",
            "integration_attributes",
        ],
    )?;
    let of = |name: &str| batch.get(name).unwrap_or(&Value::Null);
    if !matches!(of("environment").as_str(), Some("development" | "production")) {
        return Err(format!("environment {}", of("environment")));
    }
    let users = of("user_identities").as_object().filter(|users| !users.is_empty());
    let users = users.ok_or("nobody's batch, which is dropped")?;
    only(users, &IDENTITIES)?;
    if !users
        .values()
        .all(|key| key.as_str().is_some_and(|key| !key.is_empty()))
    {
        return Err("an identity without text".to_owned());
    }
    if !(of("source_request_id").is_string() || of("source_request_id").is_null()) {
        return Err("source_request_id is no string".to_owned());
    }
    let events = of("events").as_array().filter(|events| !events.is_empty());
    events.ok_or("no events")?.iter().try_for_each(judge_event)
}

fn judge_event(event: &Value) -> Result<(), String> {
    let event = event.as_object().ok_or("an event is no object")?;
    only(event, &["event_type", "data"])?;
    let data = event.get("data").and_then(Value::as_object).ok_or("no data")?;
    let text = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or_default();
    let own: &[&str] = match event.get("event_type").and_then(Value::as_str) {
        Some("custom_event") => &["event_name", "custom_event_type"],
        Some("screen_view") => &["screen_name"],
        other => return Err(format!("event type {other:?}")),
    };
    if let Some(missing) = own.iter().find(|name| text(name).is_empty()) {
        return Err(format!("no {missing}"));
    }
    let types = [
        "",
        "navigation",
        "location",
        "search",
        "transaction",
        "user_content",
        "user_preference",
        "social",
        "other",
        "media",
    ];
    if !types.contains(&text("custom_event_type")) {
        return Err(format!("custom_event_type {}", text("custom_event_type")));
    }
    let common = ["timestamp_unixtime_ms", "source_message_id", "custom_attributes"];
    only(data, &[&common[..], own].concat())?;
    for (name, right) in [
        ("timestamp_unixtime_ms", Value::is_i64 as fn(&Value) -> bool),
        ("source_message_id", Value::is_string),
        ("custom_attributes", Value::is_object),
    ] {
        if data.get(name).is_some_and(|value| !right(value)) {
            return Err(format!("{name} is of another type"));
        }
    }
    let attributes = data.get("custom_attributes").and_then(Value::as_object);
    for (name, value) in attributes.into_iter().flatten() {
        let length = value.as_str().map(|text| text.encode_utf16().count());
        if length.is_none_or(|length| length > MOST.3) {
            return Err(format!("attribute {name} is no string, or a long one"));
        }
    }
    Ok(())
}

fn only(object: &Map<String, Value>, names: &[&str]) -> Result<(), String> {
    match object.keys().find(|name| !names.contains(&name.as_str())) {
        Some(unknown) => Err(format!("unknown member {unknown}")),
        None => Ok(()),
    }
}
