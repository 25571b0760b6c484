//! A fake Segment that takes batches as the HTTP API documents them, and fails the test on all that Segment would answer
//! 200 to and drop: a wrong write key, a message without identity, an event without name, too many messages.
//!
//! Its rules are kept honest by the official clients, whose requests it has to take (`tests/it/official_clients.rs`).

use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::export::inflate;
use super::upstream::{Gate, Received};
use super::{Answer, Setup, Upstream};

/// The write key that the fake takes.
pub(crate) const WRITE_KEY: &str = "wk-0123456789abcdef0123456789abcd";

/// Bytes in a request, messages in it, and bytes in a message (Segment: "HTTP API", "Max request size"; the clients take
/// 32 kB for 32 KiB).
const MOST: (usize, usize, usize) = (500_000, 2_500, 32 * 1024);

/// The fake. Dropping it judges what it saw.
pub(crate) struct Segment {
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
    /// It is taken, but 400 if it holds a message with this `properties.key`: Segment finds no other fault with it.
    Dislikes(&'static str),
    /// It is taken, and the answer comes when the gate opens.
    Hangs(Gate),
    /// It is taken, and the connection is closed instead of an answer.
    LosesAnswers,
    /// What it gets is no HTTP; nothing is taken.
    Garbles,
}

#[derive(Default)]
struct Shared {
    mood: Option<Mood>,
    /// The messages of each request that was taken, as they came.
    taken: Vec<Vec<String>>,
    refused: usize,
    complaints: Vec<String>,
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    batch: Vec<&'a RawValue>,
}

impl Segment {
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

    /// Adds it to a configuration as the destination `segment`, beside the others.
    pub(crate) fn add_to(&self, setup: &mut Setup) {
        let names = setup.config["environments"][0]["destinations"].as_array_mut().unwrap();
        names.push(json!("segment"));
        setup.config["destinations"].as_array_mut().unwrap().push(json!({
            "name": "segment",
            "segment": {
                "write_key": WRITE_KEY, "endpoint": self.url(),
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

    /// Returns the messages of each request that was taken.
    pub(crate) fn taken(&self) -> Vec<Vec<String>> {
        self.shared.lock().unwrap().taken.clone()
    }

    /// Returns every message that was taken.
    pub(crate) fn messages(&self) -> Vec<Value> {
        let texts = self.taken().into_iter().flatten();
        texts.map(|text| serde_json::from_str(&text).unwrap()).collect()
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

impl Drop for Segment {
    fn drop(&mut self) {
        let complaints = self.complaints();
        assert!(
            thread::panicking() || complaints.is_empty(),
            "Segment would drop or refuse: {complaints:#?}"
        );
    }
}

impl Shared {
    fn answer(&mut self, call: &Received) -> Answer {
        let messages = match judge(call) {
            Ok(messages) => messages,
            Err(complaint) => {
                self.complaints.push(complaint);
                return Answer::full(400, &[], b"{}");
            }
        };
        let success = Answer::full(200, &[("Content-Type", "application/json")], br#"{"success":true}"#);
        let refused = match self.mood.clone().unwrap() {
            Mood::Takes => None,
            Mood::Answers(status, headers, text) => Some(Answer::full(status, &headers, text.as_bytes())),
            Mood::Garbles => Some(Answer::raw(b"\x00\x01 nonsense\r\n\r\n".as_slice()).and_close()),
            Mood::Dislikes(key) => {
                let is_it = |message: &String| {
                    let message: Value = serde_json::from_str(message).unwrap();
                    message["properties"]["key"] == key
                };
                let bad = messages.iter().any(is_it);
                bad.then(|| Answer::full(400, &[], br#"{"code":"invalid_request","message":"bad"}"#))
            }
            Mood::Hangs(gate) => {
                self.taken.push(messages);
                return success.behind(&gate);
            }
            Mood::LosesAnswers => {
                self.taken.push(messages);
                return Answer::close();
            }
        };
        match refused {
            Some(answer) => {
                self.refused += 1;
                answer
            }
            None => {
                self.taken.push(messages);
                success
            }
        }
    }
}

/// Returns the messages in a request, or what is wrong with it.
fn judge(call: &Received) -> Result<Vec<String>, String> {
    let header = |name: &str| call.headers.get(name).unwrap_or_default();
    if (call.method.as_str(), call.target.as_str()) != ("POST", "/v1/batch") {
        return Err(format!("{} {}", call.method, call.target));
    }
    if header("authorization") != format!("Basic {}", STANDARD.encode(format!("{WRITE_KEY}:"))) {
        return Err("not the write key".to_owned());
    }
    if header("content-type").split(';').next() != Some("application/json") {
        return Err(format!("content type {:?}", header("content-type")));
    }
    let body = match header("content-encoding") {
        "" => call.body.clone(),
        "gzip" => inflate(&call.body),
        other => return Err(format!("content encoding {other:?}")),
    };
    if body.len() > MOST.0 {
        return Err(format!("{} bytes", body.len()));
    }
    let text = String::from_utf8(body).map_err(|error| error.to_string())?;
    let envelope: Map<String, Value> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    only(&envelope, &["batch", "sentAt", "writeKey", "context", "integrations"])?;
    is_date(envelope.get("sentAt").ok_or("no sentAt")?)?;
    if envelope.get("writeKey").is_some_and(|key| key != WRITE_KEY) {
        return Err("another write key in the body".to_owned());
    }
    let batch: Batch<'_> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if !(1..=MOST.1).contains(&batch.batch.len()) {
        return Err(format!("{} messages", batch.batch.len()));
    }
    for message in &batch.batch {
        judge_message(message.get()).map_err(|what| format!("{what}: {message}"))?;
    }
    Ok(batch.batch.iter().map(|message| message.get().to_owned()).collect())
}

fn judge_message(text: &str) -> Result<(), String> {
    if text.len() > MOST.2 {
        return Err(format!("message of {} bytes", text.len()));
    }
    let message: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let of = |name: &str| message.get(name).unwrap_or(&Value::Null);
    let filled = |name: &str| of(name).as_str().is_some_and(|text| !text.is_empty());
    let common = [
        "type",
        "messageId",
        "userId",
        "anonymousId",
        "integrations",
        "timestamp",
        "context",
        "_metadata",
    ];
    let own: &[&str] = match of("type").as_str().unwrap_or_default() {
        "track" if !filled("event") => return Err("no event name".to_owned()),
        "track" => &["event", "properties"],
        "page" | "screen" => &["name", "category", "properties"],
        "identify" => &["traits"],
        "group" => &["groupId", "traits"],
        // LaunchDarkly's own alias has the two ids beside the identities.
        "alias" if filled("previousId") && filled("userId") => &["previousId", "project", "environment"],
        "alias" => return Err("an alias of nothing".to_owned()),
        other => return Err(format!("type {other:?}")),
    };
    only(&message, &[&common[..], own].concat())?;
    if !filled("userId") && !filled("anonymousId") {
        return Err("neither userId nor anonymousId".to_owned());
    }
    for name in ["userId", "anonymousId", "project", "environment", "name", "category"] {
        if !(of(name).is_string() || of(name).is_null()) {
            return Err(format!("{name} is no string"));
        }
    }
    let id = of("messageId").as_str().unwrap_or_default();
    if id.is_empty() || id.chars().count() >= 100 {
        return Err(format!("messageId of {} characters", id.chars().count()));
    }
    for name in ["integrations", "context", "_metadata", "properties", "traits"] {
        if !(of(name).is_object() || of(name).is_null()) {
            return Err(format!("{name} is no object"));
        }
    }
    if let Some(date) = message.get("timestamp") {
        is_date(date)?;
    }
    match of("properties").get("eventId") {
        Some(_) => judge_properties(of("properties").as_object().unwrap()),
        None => Ok(()),
    }
}

/// The properties that LaunchDarkly documents, with their types. `value` and `default` can be anything.
fn judge_properties(properties: &Map<String, Value>) -> Result<(), String> {
    for (name, value) in properties {
        let right = match name.as_str() {
            "project" | "environment" | "eventId" | "key" | "reasonKind" | "prereqOf" | "variationName" | "url"
            | "selector" => value.is_string(),
            "version" | "flagVersion" | "variation" | "metricValue" => value.is_number(),
            "inExperiment" => *value == true,
            "contextKeys" => value
                .as_object()
                .is_some_and(|keys| !keys.is_empty() && keys.values().all(Value::is_string)),
            "value" | "default" => true,
            _ => return Err(format!("property {name}")),
        };
        if !right {
            return Err(format!("property {name} is {value}"));
        }
    }
    let always = ["project", "environment", "eventId", "version"];
    match always.into_iter().find(|name| !properties.contains_key(*name)) {
        Some(missing) => Err(format!("no property {missing}")),
        None => Ok(()),
    }
}

fn only(object: &Map<String, Value>, names: &[&str]) -> Result<(), String> {
    match object.keys().find(|name| !names.contains(&name.as_str())) {
        Some(unknown) => Err(format!("unknown member {unknown}")),
        None => Ok(()),
    }
}

fn is_date(value: &Value) -> Result<(), String> {
    let date = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    date.map(|_| ()).ok_or_else(|| format!("{value} is no date"))
}
