//! Event Hubs against a hub that checks the token, the shape and the size of what it is sent.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::super::receiver::{Act, Received, Receiver, answer, status};
use super::super::{Settings as Kind, contract, read as read_kind};
use super::*;
use crate::event::Kind as EventKind;
use crate::section;

const KEY: &str = "c2VjcmV0LWtleS1vZi10aGUtcG9saWN5";

async fn started(script: Vec<Act>) -> (Receiver, Settings) {
    let receiver = Receiver::doing(script).await;
    let mut settings = Settings::to("ld-events", "flag-events", "send", Secret::new(KEY.to_owned()));
    settings.endpoint = Some(receiver.url.clone());
    (receiver, settings)
}

/// Fails unless this is a batch that the hub would take; returns its elements.
fn checked(request: &Received) -> Vec<Value> {
    assert_eq!(
        request.line,
        "POST /flag-events/messages?timeout=60&api-version=2014-01"
    );
    let content_type = request.header("content-type");
    assert_eq!(content_type, Some("application/vnd.microsoft.servicebus.json"));
    let token = request.header("authorization").unwrap();
    let fields: BTreeMap<&str, &str> = token
        .strip_prefix("SharedAccessSignature ")
        .unwrap()
        .split('&')
        .map(|field| field.split_once('=').unwrap())
        .collect();
    let decoded = |name: &str| percent_decode_str(fields[name]).decode_utf8().unwrap().into_owned();
    assert_eq!(fields.len(), 4);
    assert_eq!(decoded("sr"), "https://ld-events.servicebus.windows.net/flag-events");
    assert_eq!(decoded("skn"), "send");
    let expiry = SystemTime::UNIX_EPOCH + Duration::from_secs(fields["se"].parse().unwrap());
    let left = expiry.duration_since(SystemTime::now()).unwrap();
    assert!(
        left > Duration::from_secs(60) && left <= Duration::from_secs(3600),
        "{left:?}"
    );
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).unwrap();
    mac.update(format!("{}\n{}", fields["sr"], fields["se"]).as_bytes());
    assert_eq!(decoded("sig"), STANDARD.encode(mac.finalize().into_bytes()));

    assert!(request.body.len() <= 1_000_000);
    let elements: Vec<Value> = serde_json::from_slice(&request.body).unwrap();
    for element in &elements {
        for name in element.as_object().unwrap().keys() {
            assert!(
                ["Body", "BrokerProperties", "UserProperties"].contains(&name.as_str()),
                "{name}"
            );
        }
        assert!(element["Body"].is_string());
    }
    elements
}

#[tokio::test]
async fn keeps_the_contract() {
    let (receiver, settings) = started(vec![status(201)]).await;
    contract::holds(&EventHubs::open(&settings)).await;
    for request in receiver
        .received()
        .iter()
        .filter(|request| request.line.starts_with("POST"))
    {
        checked(request);
    }
    let (_receiver, settings) = started(vec![Act::Hang]).await;
    contract::ends_with_the_request(&EventHubs::open(&settings)).await;
}

#[tokio::test]
async fn a_batch_holds_each_record_as_text() {
    let (receiver, settings) = started(vec![status(201)]).await;
    let hub = EventHubs::open(&settings);
    let json = r#"{"kind":"custom","key":"é \"x\" \u00e9","data":[1e-07,9007199254740993]}"#;
    let event = contract::event(json, "63843c40b7e9d4001f0a9c11");
    let item = contract::encoded(&hub, &event);
    assert_eq!(item.size, item.body.len(), "what is counted is the escaped text");
    assert!(item.size > json.len() + 20);
    assert_eq!(hub.send(&[item.clone(), item]).await, vec![Verdict::Delivered; 2]);
    let elements = checked(&receiver.received()[0]);
    assert_eq!(elements.len(), 2);
    let record = String::from_utf8(settings.form.render(&event).unwrap()).unwrap();
    for element in elements {
        assert_eq!(element["Body"], record.as_str(), "byte by byte");
        assert_eq!(element.as_object().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn events_of_one_context_share_a_partition_if_asked_for() {
    let (receiver, mut settings) = started(vec![status(201)]).await;
    settings.partition_by = PartitionBy::ContextKey;
    settings.properties = true;
    let hub = EventHubs::open(&settings);
    assert_eq!(hub.limits().keys, 1);
    let long = "k".repeat(129);
    let keys = [("ann", "ann"), ("", ""), (long.as_str(), "")];
    for (sent, _) in keys {
        let json = format!(r#"{{"kind":"custom","contextKeys":{{"user":"{sent}"}}}}"#);
        let mut event = contract::event(&json, "63843c40b7e9d4001f0a9c11");
        event.kind = EventKind::Click;
        hub.send(&[contract::encoded(&hub, &event)]).await;
    }
    let received = receiver.received();
    let elements: Vec<Value> = received.iter().flat_map(checked).collect();
    let key = |place: usize| elements[place]["BrokerProperties"]["PartitionKey"].as_str();
    assert_eq!((key(0), key(1)), (Some("ann"), None));
    assert_eq!(key(2).unwrap().len(), 64, "a key that is too long is hashed");
    let properties = &elements[0]["UserProperties"];
    assert_eq!(properties["id"], "63843c40b7e9d4001f0a9c11");
    assert_eq!(
        (&properties["kind"], &properties["environment"]),
        (&"click".into(), &"production".into())
    );
    // The token is kept.
    assert_eq!(received[0].header("authorization"), received[1].header("authorization"));
}

async fn verdict(act: Act) -> Verdict {
    let (_receiver, settings) = started(vec![act]).await;
    let hub = EventHubs::open(&settings);
    hub.send(&contract::items(&hub, 1)).await.remove(0)
}

#[tokio::test]
async fn answers_mean_what_the_table_says() {
    for (act, setting) in [
        (status(401), "policy_key"),
        (status(403), "network rules"),
        (status(404), "`name`"),
        (status(410), "`name`"),
        (status(302), "endpoint"),
        (
            answer(
                401,
                &[],
                "<Error><Code>401</Code><Detail>InvalidSignature: The token has an invalid signature.",
            ),
            "not a key of the policy",
        ),
        (
            answer(
                401,
                &[],
                "<Detail>ExpiredToken: The token is expired. Expiration time: leak",
            ),
            "clock",
        ),
        (
            answer(401, &[], "40103: Invalid authorization token signature"),
            "not a key",
        ),
        (answer(401, &[], "InvalidAudience"), "namespace"),
    ] {
        let verdict = verdict(act).await;
        assert!(
            matches!(&verdict, Verdict::Blocked { why } if why.contains(setting) && !why.contains("leak")),
            "{setting}: {verdict:?}"
        );
    }
    for code in [200, 202, 408, 429, 500, 503, 504] {
        assert!(matches!(verdict(status(code)).await, Verdict::Retry { .. }), "{code}");
    }
    for code in [400, 413] {
        assert!(matches!(verdict(status(code)).await, Verdict::Reject { .. }), "{code}");
    }
    let wish = verdict(answer(503, &[("Retry-After", "10")], "ExpiredToken")).await;
    assert!(matches!(wish, Verdict::Retry { after: Some(after), .. } if after == Duration::from_secs(10)));
}

#[tokio::test]
async fn the_probe_asks_for_the_hub_and_sends_nothing() {
    for (act, expected) in [
        (status(200), Ok("the hub is there")),
        (status(401), Ok("only an event")),
        (status(404), Err("no such hub")),
        (answer(401, &[], "InvalidSignature"), Err("not a key")),
    ] {
        let (receiver, settings) = started(vec![act]).await;
        match (EventHubs::open(&settings).probe().await, expected) {
            (Ok(said), Ok(words)) => assert!(said.contains(words), "{said}"),
            (Err(error), Err(words)) => assert!(error.why.contains(words), "{error}"),
            (other, _) => panic!("{other:?} instead of {expected:?}"),
        }
        assert_eq!(receiver.received()[0].line, "GET /flag-events?api-version=2014-01");
    }
}

#[test]
fn a_full_request_is_no_larger_than_configured() {
    let mut settings = Settings::to("ld", "hub", "send", Secret::new(KEY.to_owned()));
    settings.max_request_bytes = LEAST_REQUEST_BYTES.as_usize();
    let limits = EventHubs::open(&settings).limits();
    let item = |size| Item {
        id: String::new(),
        body: vec![b'x'; size].into(),
        key: String::new(),
        size,
    };
    let many: Vec<Item> = (0..limits.items).map(|_| item(limits.bytes / limits.items)).collect();
    for items in [many, vec![item(limits.item_bytes)]] {
        assert!(batch(&items).len() <= settings.max_request_bytes);
    }
}

fn read_from(rest: &str) -> Result<Settings, String> {
    let reading = section::read(&format!("hub: {{ {rest} }}"), &|_| None, |root| {
        let read = |section: &mut Section<'_>| {
            section.take_camel_case();
            read_kind("azure_event_hubs", section)
        };
        root.section("hub", read).flatten()
    });
    match reading.value.flatten() {
        Some(Kind::AzureEventHubs(settings)) if !reading.problems.has_errors() => Ok(settings),
        _ => Err(reading.problems.render("config.yaml")),
    }
}

#[test]
fn settings_pasted_from_launchdarkly_work() {
    let expected = Settings::to("ld-events", "flag-events", "send", Secret::new(KEY.to_owned()));
    for keys in [["policy_name", "policy_key"], ["policyName", "policyKey"]] {
        let [name, key] = keys;
        let text = format!("namespace: ld-events, name: flag-events, {name}: send, {key}: '{KEY}'");
        assert_eq!(read_from(&text), Ok(expected.clone()));
    }
    let shown = format!("{expected:?}");
    assert!(!shown.contains(KEY), "{shown}");
    let other = read_from("namespace: LD.servicebus.usgovcloudapi.net, name: a, policy_name: b, policy_key: c");
    assert_eq!(other.unwrap().host, "ld.servicebus.usgovcloudapi.net");
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let good = "name: a, policy_name: b";
    for (rest, because) in [
        (format!("namespace: ld, {good}"), "needs `policy_key`"),
        (format!("{good}, policy_key: c"), "needs `namespace`"),
        (
            format!("namespace: 'https://ld', {good}, policy_key: c"),
            "must be a namespace's name",
        ),
        (
            "namespace: ld, name: a/b, policy_name: b, policy_key: c".to_owned(),
            "must be an event hub's name",
        ),
        (
            format!("namespace: ld, {good}, policy_key: c, max_request_bytes: 2MiB"),
            "max_request_bytes",
        ),
        (
            format!("namespace: ld, {good}, policy_key: c, endpoint: 'http://a.b'"),
            "must be https",
        ),
        (
            format!("namespace: ld, {good}, policy_key: c, endpoint: 'https://a.b/?c'"),
            "no query",
        ),
        (
            format!("namespace: ld, {good}, policy_key: c, partition_by: x"),
            "context_key",
        ),
    ] {
        let problems = read_from(&rest).unwrap_err();
        assert!(problems.contains(because), "{rest}: {problems}");
    }
}
