//! Redaction from a destination's point of view: what it gets, whatever kind it is.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use crate::support::command;

/// Occurs nowhere but in what is to be redacted.
const SECRET: &str = "s3cr3t-value";
/// Occurs in what is not.
const PLAIN: &str = "pl41n-value";

/// Returns a value of any shape with the secret in it.
fn secret(rng: &mut Rng) -> Value {
    match rng.u8(..6) {
        0 => json!({ "deep": [1, { "deeper": SECRET }] }),
        1 => json!([SECRET, null]),
        2 => json!({ SECRET: true }),
        3 => json!(format!("\"}},{{{SECRET}")),
        _ => json!(SECRET),
    }
}

/// Returns a context of one kind, with secrets in any of the places that the settings name.
fn context(rng: &mut Rng, kind: Option<&str>) -> Value {
    let mut context = Map::new();
    if let Some(kind) = kind {
        context.insert("kind".to_owned(), json!(kind));
    }
    context.insert("key".to_owned(), json!(format!("key-{}", rng.u8(..9))));
    context.insert("plan".to_owned(), json!(PLAIN));
    for name in ["email", "name"] {
        if rng.bool() {
            context.insert(name.to_owned(), secret(rng));
        }
    }
    match rng.u8(..4) {
        0 => drop(context.insert("address".to_owned(), json!({ "street": secret(rng), "city": PLAIN }))),
        1 => drop(context.insert("address".to_owned(), json!([{ "street": secret(rng) }]))),
        _ => {}
    }
    if rng.bool() {
        context.insert("anonymous".to_owned(), json!(rng.bool()));
    }
    if rng.bool() {
        context.insert("_meta".to_owned(), json!({ "redactedAttributes": ["secondary"] }));
    }
    Value::Object(context)
}

fn user(rng: &mut Rng) -> Value {
    let mut user = context(rng, None);
    let members = user.as_object_mut().unwrap();
    members.remove("_meta");
    let address = members.remove("address");
    let mut custom = json!({ "plan": PLAIN });
    if let Some(address) = address {
        custom["address"] = address;
    }
    if rng.bool() {
        custom["email"] = secret(rng);
    }
    members.insert("custom".to_owned(), custom);
    user
}

fn event(rng: &mut Rng) -> Value {
    let kinds = ["feature", "custom", "identify", "index", "debug"];
    let kind = kinds[rng.usize(..kinds.len())];
    let mut event = json!({ "kind": kind, "creationDate": 1_700_000_000_000_u64 });
    if matches!(kind, "feature" | "custom" | "debug") {
        event["key"] = json!("checkout");
    }
    if matches!(kind, "feature" | "debug") {
        event["value"] = json!(true);
        event["variation"] = json!(1);
        event["version"] = json!(7);
    }
    match rng.u8(..4) {
        0 => event["user"] = user(rng),
        1 => {
            event["context"] = json!({ "kind": "multi", "user": context(rng, None), "org": context(rng, None) });
        }
        2 => event["context"] = context(rng, Some("org")),
        _ => event["context"] = context(rng, Some("user")),
    }
    event
}

fn destinations() -> Vec<(&'static str, Value)> {
    vec![
        ("file", json!({ "path": "./out" })),
        ("stdout", json!({})),
        ("kinesis", json!({ "region": "eu-west-1", "stream_name": "events" })),
        ("google_pubsub", json!({ "project": "my-project", "topic": "events" })),
        (
            "azure_event_hubs",
            json!({ "namespace": "hub", "name": "events", "policy_name": "send", "policy_key": "cG9saWN5" }),
        ),
        ("webhook", json!({ "url": "https://collector.internal/flags" })),
        ("segment", json!({ "write_key": "write-key" })),
        (
            "mparticle",
            json!({
                "api_key": "api-key", "secret": "secret", "environment": "production", "user_identity": "customer_id",
                "user_identities": [{ "ld_context_kind": "org", "mparticle_user_identity": "other" }],
            }),
        ),
    ]
}

/// Scenario: 400 events of any kind, with users, contexts and several contexts in one, and with what is to be redacted in any
/// of its places and shapes, to each kind of destination and with each way to say what is redacted.
/// Guarantees: the bytes that are sent never hold a redacted value, and still hold what was not redacted.
#[test]
fn no_destination_gets_a_redacted_value() {
    let seed = fastrand::u64(..);
    let mut rng = Rng::with_seed(seed);
    let events: String = (0..400).map(|_| event(&mut rng).to_string() + "\n").collect();
    assert!(events.matches(SECRET).count() > 300);
    let key = "a-key-of-16-characters";
    let named = |action: &str| json!({ "/email": action, "/name": action, "/address/street": action });
    let ways = [
        json!({ "attributes": named("drop") }),
        json!({ "attributes": named("hash"), "hash_key": key }),
        json!({ "attributes": "hash", "allow": ["/plan"], "hash_key": key }),
        json!({ "allow": ["/plan", "/address/city"] }),
    ];
    for (kind, settings) in destinations() {
        for redact in &ways {
            let config = json!({
                "queue": { "sled": { "path": "./no-queue-here" } },
                "environments": [{
                    "name": "production", "credentials": { "sdk_keys": ["sdk-key"] }, "destinations": ["it"],
                }],
                "destinations": [{ "name": "it", "redact": redact, kind: settings }],
            });
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.yaml");
            std::fs::write(&path, config.to_string()).unwrap();
            let explain = ["explain", "--output", "--config"];
            let said = command::run(command::binary().args(explain).arg(&path), events.as_bytes());
            assert_eq!(said.code, Some(0), "{kind} {redact}: {}", said.error);
            for line in said.out.lines() {
                assert!(!line.contains(SECRET), "seed {seed}, {kind} {redact}: {line}");
            }
            // Segment and mParticle get no attributes at all.
            let left = if ["segment", "mparticle"].contains(&kind) {
                "\"checkout\""
            } else {
                PLAIN
            };
            assert!(
                said.out.matches(left).count() > 100,
                "{kind} {redact}: nothing is left to see\n{}",
                said.error
            );
            assert!(
                !said.error.contains(SECRET),
                "seed {seed}, {kind} {redact}: it is explained"
            );
        }
    }
}
