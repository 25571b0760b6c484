//! The fakes of Segment and mParticle against those services' own clients, and against what the services would not take.
//!
//! A fake that flagtap passes says little if the fake was written after flagtap. So the official clients have to pass it
//! too, and it has to notice each fault that it is there for.

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::mparticle::{self, API_KEY, Mparticle, SECRET};
use crate::support::recording::fixture;
use crate::support::segment::{self, Segment, WRITE_KEY};
use crate::support::{Connection, request, tools};

/// Scenario: Segment's Node client tracks, views a page and aliases.
/// Guarantees: the fake takes all of it.
#[test]
fn segments_node_client_is_taken() {
    let Some(packages) = tools::find("official clients: Segment, Node", "clients-node/node_modules") else {
        return;
    };
    let fake = Segment::start(segment::Mood::Takes);
    let mut command = Command::new("node");
    command
        .arg(fixture("clients/node/segment.js"))
        .env("NODE_PATH", packages);
    run(command.args([fake.url().as_str(), WRITE_KEY]));
    let messages = fake.messages();
    assert_eq!(messages.len(), 4);
    let own = messages
        .iter()
        .find(|message| message["messageId"] == "own-id")
        .unwrap();
    assert_eq!(own["timestamp"], "2024-01-13T02:09:06.120Z");
}

/// Scenario: Segment's Python client does the same, plain and gzipped.
/// Guarantees: the same.
#[test]
fn segments_python_client_is_taken() {
    let Some(python) = tools::find("official clients: Segment, Python", "clients-python/bin/python") else {
        return;
    };
    let fake = Segment::start(segment::Mood::Takes);
    run(python_script(&python, "segment.py").args([fake.url().as_str(), WRITE_KEY]));
    assert_eq!(fake.messages().len(), 8);
}

/// Scenario: mParticle's Python client uploads a batch and a bulk.
/// Guarantees: the fake takes both.
#[test]
fn mparticles_python_client_is_taken() {
    let Some(python) = tools::find("official clients: mParticle, Python", "clients-python/bin/python") else {
        return;
    };
    let fake = Mparticle::start(mparticle::Mood::Takes);
    run(python_script(&python, "mparticle_events.py").args([fake.url().as_str(), API_KEY, SECRET]));
    let sizes: Vec<usize> = fake.taken().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 2]);
    assert_eq!(fake.taken()[1][0].source_request_id, "request-two");
    assert_eq!(fake.events().len(), 6);
}

/// Scenario: requests with one fault each, to the fake Segment: all that Segment answers 200 to and drops, and all that
/// it refuses.
/// Guarantees: the fake complains of every one, and of no good one.
#[test]
fn the_fake_segment_notices_each_fault() {
    let fake = Segment::start(segment::Mood::Takes);
    let message = json!({
        "type": "track", "event": "feature", "messageId": "m", "userId": "u", "integrations": {},
        "timestamp": "2024-01-13T02:09:06.120Z",
        "properties": { "project": "p", "environment": "e", "eventId": "i", "key": "k", "version": 1, "value": "true" },
    });
    let batch = |messages: Vec<Value>| json!({ "batch": messages, "sentAt": "2024-01-13T02:09:06.120Z" }).to_string();
    let with = |pointer: &str, value: Value| {
        let mut message = message.clone();
        match pointer.rsplit_once('/').unwrap() {
            ("", name) => message[name] = value,
            (parent, name) => message.pointer_mut(parent).unwrap()[name] = value,
        }
        batch(vec![message])
    };
    let authorization = format!("Basic {}", STANDARD.encode(format!("{WRITE_KEY}:")));
    let post = |path: &str, authorization: &str, body: &str| {
        let headers = [("Authorization", authorization), ("Content-Type", "application/json")];
        let address = fake.url().trim_start_matches("http://").parse().unwrap();
        let request = request("POST", path, &headers, body.as_bytes());
        Connection::open(address).exchange(&request).unwrap();
        fake.complaints()
    };
    assert_eq!(
        post("/v1/batch", &authorization, &batch(vec![message.clone()])),
        [""; 0]
    );
    let good = batch(vec![message.clone()]);
    assert_eq!(post("/v1/track", &authorization, &good).len(), 1);
    assert_eq!(post("/v1/batch", "Basic d3Jvbmc6", &good).len(), 1);
    for (what, body) in [
        ("JSON", "{".to_owned()),
        ("no date of sending", json!({ "batch": [message] }).to_string()),
        ("nothing", batch(Vec::new())),
        ("too many", batch(vec![message.clone(); 2501])),
        ("no identity", with("/userId", Value::Null)),
        ("empty identity", with("/userId", json!(""))),
        ("identity of another type", with("/userId", json!(1))),
        ("no event name", with("/event", json!(""))),
        ("no id", with("/messageId", Value::Null)),
        ("long id", with("/messageId", json!("x".repeat(100)))),
        ("unknown type", with("/type", json!("feature"))),
        ("alias of nothing", with("/type", json!("alias"))),
        ("unknown member", with("/eventId", json!("i"))),
        ("date", with("/timestamp", json!(1705111746120_u64))),
        ("large message", with("/properties/value", json!("x".repeat(33_000)))),
        ("text for a number", with("/properties/flagVersion", json!("12"))),
        ("unknown property", with("/properties/data", json!({}))),
        ("no version", with("/properties/version", Value::Null)),
        ("large request", batch(vec![message.clone(); 2400])),
    ] {
        let complaints = post("/v1/batch", &authorization, &body);
        assert_eq!(complaints.len(), 1, "{what}");
    }
}

/// Scenario: requests with one fault each, to the fake mParticle.
/// Guarantees: the fake complains of every one, and of no good one.
#[test]
fn the_fake_mparticle_notices_each_fault() {
    let fake = Mparticle::start(mparticle::Mood::Takes);
    let batch = json!({
        "user_identities": { "customer_id": "u" }, "environment": "development", "source_request_id": "r",
        "events": [{ "event_type": "custom_event", "data": {
            "source_message_id": "m", "event_name": "feature", "custom_event_type": "other",
            "timestamp_unixtime_ms": 1_705_111_746_120_u64, "custom_attributes": { "key": "k" },
        } }],
    });
    let with = |parent: &str, name: &str, value: Value| {
        let mut batch = batch.clone();
        batch.pointer_mut(parent).unwrap()[name] = value;
        json!([batch]).to_string()
    };
    let authorization = format!("Basic {}", STANDARD.encode(format!("{API_KEY}:{SECRET}")));
    let post = |path: &str, authorization: &str, body: &str| {
        let headers = [("Authorization", authorization), ("Content-Type", "application/json")];
        let address = fake.url().trim_start_matches("http://").parse().unwrap();
        let request = request("POST", path, &headers, body.as_bytes());
        Connection::open(address).exchange(&request).unwrap();
        fake.complaints()
    };
    let good = json!([batch]).to_string();
    assert_eq!(post("/v2/bulkevents", &authorization, &good), [""; 0]);
    assert_eq!(post("/v1/bulkevents", &authorization, &good).len(), 1);
    assert_eq!(post("/v2/bulkevents", "Basic d3Jvbmc6", &good).len(), 1);
    let large = with("/events/0/data/custom_attributes", "key", json!("x".repeat(4097)));
    let data = "/events/0/data";
    for (what, body) in [
        ("JSON", "[".to_owned()),
        ("nothing", "[]".to_owned()),
        ("too many", json!(vec![&batch; 101]).to_string()),
        ("nobody", with("", "user_identities", json!({}))),
        ("empty key", with("/user_identities", "customer_id", json!(""))),
        ("unknown identity", with("/user_identities", "user", json!("u"))),
        ("environment", with("", "environment", json!("staging"))),
        ("unknown member", with("", "writeKey", json!("k"))),
        ("no events", with("", "events", json!([]))),
        ("event type", with("/events/0", "event_type", json!("CUSTOM-EVENT"))),
        ("member of an event", with("/events/0", "id", json!("i"))),
        ("no name", with(data, "event_name", Value::Null)),
        ("custom type", with(data, "custom_event_type", json!("feature"))),
        ("member of the data", with(data, "screen_name", json!("s"))),
        ("date", with(data, "timestamp_unixtime_ms", json!("1705111746120"))),
        (
            "number for a string",
            with("/events/0/data/custom_attributes", "version", json!(1)),
        ),
        ("long attribute", large),
        ("large batch", with("", "source_request_id", json!("x".repeat(128_000)))),
        (
            "large request",
            json!(vec![with("", "ip", json!("x".repeat(90_000))); 3]).to_string(),
        ),
    ] {
        let complaints = post("/v2/bulkevents", &authorization, &body);
        assert_eq!(complaints.len(), 1, "{what}");
    }
}

fn python_script(python: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(fixture("clients/python").join(name));
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
}
