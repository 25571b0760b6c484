use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::super::receiver::{Act, Receiver, answer, status};
use super::super::{Destination, Encoded, Verdict, contract};
use super::*;
use crate::event::Kind;
use crate::section;

const ID: &str = "63843c40b7e9d4001f0a9c11";

fn settings() -> Settings {
    Settings::to(Secret::new("write-key".to_owned()))
}

fn segment(fake: &Receiver) -> Segment {
    Segment::new(&Settings {
        endpoint: Some(fake.url.clone()),
        ..settings()
    })
}

fn taken() -> Act {
    answer(200, &[], r#"{"success":true}"#)
}

async fn verdict(count: usize, act: Act) -> Verdict {
    let fake = Receiver::doing(vec![act]).await;
    let segment = segment(&fake);
    let verdicts = segment.send(&contract::items(&segment, count)).await;
    assert_eq!(verdicts, vec![verdicts[0].clone(); count]);
    verdicts[0].clone()
}

fn encode(settings: &Settings, kind: Kind, version: u8, json: &str) -> Encoded {
    let event = ExportEvent {
        kind,
        version,
        ..contract::event(json, ID)
    };
    Segment::new(settings).encode(&event)
}

fn message_with(settings: &Settings, kind: Kind, version: u8, json: &str) -> String {
    match encode(settings, kind, version, json) {
        Encoded::Item(item) => String::from_utf8(item.body.to_vec()).unwrap(),
        other => panic!("{other:?}: {json}"),
    }
}

fn message(kind: Kind, version: u8, json: &str) -> String {
    message_with(&settings(), kind, version, json)
}

const HEAD: &str = r#""messageId":"578d1e02d2943862c52b9686-63843c40b7e9d4001f0a9c11-9a7ac94eebad","userId":"u-17","integrations":{},"#;
const IDS: &str = r#""project":"5744c96707c9900708000004","environment":"578d1e02d2943862c52b9686""#;

#[tokio::test]
async fn keeps_the_contract() {
    let fake = Receiver::doing(vec![taken(), taken(), taken(), taken(), taken(), status(404), taken()]).await;
    contract::holds(&segment(&fake)).await;
    let received = fake.received();
    assert_eq!(received[5].line, "HEAD /");
    assert_eq!(received.len(), 7);
}

#[tokio::test]
async fn a_service_that_hangs_ends_with_the_request() {
    let fake = Receiver::doing(vec![Act::Hang]).await;
    contract::ends_with_the_request(&segment(&fake)).await;
}

#[tokio::test]
async fn a_request_is_a_batch_with_the_write_key_as_user() {
    let fake = Receiver::doing(vec![taken()]).await;
    let segment = segment(&fake);
    let items = contract::items(&segment, 2);
    segment.send(&items).await;
    let request = fake.received().remove(0);
    assert_eq!(request.line, "POST /v1/batch");
    assert_eq!(request.header("authorization"), Some("Basic d3JpdGUta2V5Og=="));
    assert_eq!(request.header("content-type"), Some("application/json"));
    let bodies = items.iter().map(|item| std::str::from_utf8(&item.body).unwrap());
    let head = format!("{{\"batch\":[{}],\"sentAt\":\"20", bodies.collect::<Vec<_>>().join(","));
    let body = String::from_utf8(request.body).unwrap();
    assert!(body.starts_with(&head) && body.ends_with("Z\"}"), "{body}");
}

#[test]
fn every_kind_has_its_message() {
    let json = r#"{"kind":"feature","creationDate":1705111746120,"key":"new-checkout","userKey":"u-17","value":true,"default":false,"version":12,"variation":0,"prereqOf":"outer","reason":{"kind":"RULE_MATCH","inExperiment":true}}"#;
    let expected = format!(
        "{}{}{}{}{}",
        r#"{"type":"track","event":"feature","#,
        HEAD,
        r#""timestamp":"2024-01-13T02:09:06.120Z","properties":{"#,
        IDS,
        r#","eventId":"63843c40b7e9d4001f0a9c11","key":"new-checkout","version":1,"value":"true","flagVersion":12,"default":"false","reasonKind":"RULE_MATCH","inExperiment":true,"prereqOf":"outer","variation":0}}"#
    );
    assert_eq!(message(Kind::Feature, 1, json), expected);

    let json = r#"{"kind":"custom","creationDate":1,"key":"order","contextKeys":{"org":"o","user":"u-17"},"data":{"secret":1},"metricValue":1e-07}"#;
    let custom = message(Kind::Custom, 2, json);
    assert!(
        custom.starts_with(&format!(r#"{{"type":"track","event":"custom",{HEAD}"#)),
        "{custom}"
    );
    let tail = r#""key":"order","version":2,"contextKeys":{"org":"o","user":"u-17"},"metricValue":1e-07}}"#;
    assert!(custom.ends_with(tail), "{custom}");

    let json = r##"{"kind":"click","key":"goal","url":"https://a.example/?q=1","selector":"#a","data":null,"userKey":"u-17"}"##;
    let click = message(Kind::Click, 1, json);
    let tail = r##""key":"goal","version":1,"url":"https://a.example/?q=1","selector":"#a"}}"##;
    assert!(
        click.starts_with(r#"{"type":"track","event":"click","#) && click.ends_with(tail),
        "{click}"
    );
    assert!(!click.contains("timestamp"), "{click}");

    let json = r#"{"kind":"pageview","key":"goal","url":"https://a.example/?q=1","userKey":"u-17"}"#;
    let page = message(Kind::Pageview, 1, json);
    assert!(page.starts_with(&format!(r#"{{"type":"page",{HEAD}"#)), "{page}");
    assert!(
        page.ends_with(r#""version":1,"url":"https://a.example/?q=1"}}"#),
        "{page}"
    );

    let json = r#"{"kind":"alias","creationDate":1600376029000,"key":"u-17","contextKind":"user","previousKey":"anon-9","previousContextKind":"anonymousUser"}"#;
    let expected = format!(
        "{}{}{}{}}}",
        r#"{"type":"alias","#,
        HEAD.replacen(r#""integrations""#, r#""previousId":"anon-9","integrations""#, 1),
        r#""timestamp":"2020-09-17T20:53:49.000Z","#,
        IDS
    );
    assert_eq!(message(Kind::Alias, 1, json), expected);
}

#[test]
fn the_page_shows_what_arrives() {
    let page = include_str!("../../../docs/destinations/segment.md");
    let blocks = page
        .split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let shown: Vec<Value> = blocks.map(|block| serde_json::from_str(block).unwrap()).collect();
    let common = r#""creationDate":1705111746120,"userKey":"u-17""#;
    let events = [
        (
            Kind::Feature,
            1,
            r#""key":"new-checkout","value":true,"default":false,"version":12,"variation":0,"prereqOf":"outer","reason":{"kind":"RULE_MATCH","inExperiment":true}"#,
        ),
        (
            Kind::Custom,
            2,
            r#""key":"order","data":{"items":3},"metricValue":41.5,"userKey":null,"contextKeys":{"org":"o-2","user":"u-17"}"#,
        ),
        (
            Kind::Click,
            1,
            r##""key":"goal","url":"https://a.example/?q=1","selector":"#buy""##,
        ),
        (Kind::Pageview, 1, r#""key":"goal","url":"https://a.example/?q=1""#),
        (Kind::Alias, 1, r#""key":"u-17","previousKey":"anon-9""#),
    ];
    let arrives = events.map(|(kind, version, rest)| message(kind, version, &format!("{{{common},{rest}}}")));
    let arrives = arrives.map(|message| serde_json::from_str::<Value>(&message).unwrap());
    assert_eq!(shown, arrives);
}

#[test]
fn what_segment_does_not_get_is_skipped() {
    let json = r#"{"context":{"kind":"user","key":"u"},"userKey":"u"}"#;
    for kind in [Kind::Index, Kind::Identify, Kind::Summary, Kind::Debug, Kind::Other] {
        assert_eq!(encode(&settings(), kind, 2, json), Encoded::Skip("kind_not_in_segment"));
    }
    for (kind, json) in [
        (Kind::Custom, r#"{"key":"order"}"#),
        (Kind::Custom, r#"{"userKey":""}"#),
        (Kind::Feature, r#"{"contextKeys":{"org":"o"}}"#),
        (Kind::Alias, r#"{"key":"u"}"#),
        (Kind::Alias, r#"{"previousKey":"u"}"#),
    ] {
        assert_eq!(
            encode(&settings(), kind, 2, json),
            Encoded::Skip("no_identity"),
            "{json}"
        );
    }
}

#[test]
fn settings_say_which_context_is_which_id() {
    let settings = Settings {
        user_id_context_kind: "org".to_owned(),
        anonymous_id_context_kind: Some("device".to_owned()),
        ..settings()
    };
    let identity = |json| {
        let message: Value = serde_json::from_str(&message_with(&settings, Kind::Custom, 2, json)).unwrap();
        (message["userId"].clone(), message["anonymousId"].clone())
    };
    let both = r#"{"context":{"kind":"multi","org":{"key":"o"},"user":{"key":"u"},"device":{"key":"d"}}}"#;
    assert_eq!(identity(both), ("o".into(), "d".into()));
    assert_eq!(identity(r#"{"contextKeys":{"device":7}}"#), (Value::Null, "7".into()));
    // A user of an older SDK has no kind that a setting could name.
    assert_eq!(
        identity(r#"{"userKey":"u","contextKind":"anonymousUser"}"#),
        ("u".into(), Value::Null)
    );
}

#[test]
fn values_are_text_or_json_and_a_default_is_a_value_or_a_fact() {
    let json = r#"{"userKey":"u","value":{"a":[1,"é"]},"default":null,"variation":null,"reason":null}"#;
    let feature = message(Kind::Feature, 1, json);
    assert!(
        feature.ends_with(r#""value":"{\"a\":[1,\"é\"]}","default":"null"}}"#),
        "{feature}"
    );
    let values = Settings {
        values: Values::Json,
        ..settings()
    };
    let feature = message_with(&values, Kind::Feature, 1, json);
    assert!(
        feature.ends_with(r#""value":{"a":[1,"é"]},"default":null}}"#),
        "{feature}"
    );
    let mut fact = Settings {
        default_means: DefaultMeans::FallbackUsed,
        ..settings()
    };
    assert!(message_with(&fact, Kind::Feature, 1, json).contains(r#""default":"true""#));
    fact.values = Values::Json;
    let json = r#"{"userKey":"u","value":"x","default":"y","variation":0}"#;
    assert!(message_with(&fact, Kind::Feature, 1, json).contains(r#""default":false"#));
}

#[test]
fn a_message_id_is_unique_to_environment_and_source_and_short() {
    let id = |key: &str, environment: &str| {
        let mapping = Mapping::new(&Settings::to(Secret::new(key.to_owned())));
        let event = ExportEvent {
            environment_id: environment,
            ..contract::event(r#"{"userKey":"u"}"#, ID)
        };
        let message: Value = serde_json::from_slice(&mapping.message(&event).unwrap()).unwrap();
        message["messageId"].as_str().unwrap().to_owned()
    };
    let long = "e".repeat(200);
    let ids = [
        id("one", "a"),
        id("two", "a"),
        id("one", "b"),
        id("one", ""),
        id("one", &long),
    ];
    for (place, one) in ids.iter().enumerate() {
        assert!(one.contains(ID) && one.len() < 100, "{one}");
        assert!(ids[..place].iter().all(|other| other != one));
    }
    assert!(!ids[0].contains("one"));
    assert_eq!(ids[0], id("one", "a"), "the same on every retry");
}

#[tokio::test]
async fn answers_mean_what_the_table_says() {
    assert_eq!(verdict(3, taken()).await, Verdict::Delivered);
    assert_eq!(verdict(3, status(400)).await, Verdict::Split);
    assert_eq!(verdict(3, status(413)).await, Verdict::Split);
    let bad = answer(400, &[], r#"{"code":"invalid_request","message":"at u-17"}"#);
    let why = "Segment answered 400 invalid_request: Segment finds the request too large or no valid JSON".to_owned();
    assert_eq!(verdict(1, bad).await, Verdict::Reject { why });
    for blocked in [301, 401, 403, 404] {
        let verdict = verdict(2, status(blocked)).await;
        assert!(
            matches!(&verdict, Verdict::Blocked { why } if why.contains("look at `")),
            "{verdict:?}"
        );
    }
    let after = Some(Duration::from_secs(7));
    for header in ["retry-after", "x-ratelimit-reset"] {
        let verdict = verdict(2, answer(429, &[(header, "7")], "")).await;
        assert!(
            matches!(&verdict, Verdict::Retry { after: wish, .. } if *wish == after),
            "{verdict:?}"
        );
    }
    let date = answer(429, &[("x-ratelimit-reset", "1705111746")], "");
    assert!(matches!(verdict(2, date).await, Verdict::Retry { after: None, .. }));
    for retried in [status(500), status(503), status(418), Act::SayAndClose(Vec::new())] {
        assert!(matches!(verdict(2, retried).await, Verdict::Retry { after: None, .. }));
    }
}

#[tokio::test]
async fn a_probe_says_what_it_cannot_tell() {
    let fake = Receiver::doing(vec![status(404), Act::SayAndClose(Vec::new())]).await;
    let segment = segment(&fake);
    assert!(segment.probe().await.unwrap().contains("answers 200 to any"));
    let error = segment.probe().await.unwrap_err();
    assert!(
        error.why.contains("cannot be reached") && error.remedy.contains("HTTPS_PROXY"),
        "{error:?}"
    );
}

fn read_yaml(yaml: &str) -> Result<Settings, String> {
    let reading = section::read(yaml, &|_| None, |root| {
        root.take_camel_case();
        read(root)
    });
    match reading.value.flatten() {
        Some(settings) if !reading.problems.has_errors() => Ok(settings),
        _ => Err(reading.problems.render("config.yaml")),
    }
}

#[test]
fn settings_are_read_in_terraforms_and_in_the_apis_spelling() {
    assert_eq!(read_yaml("write_key: write-key"), Ok(settings()));
    let all = Settings {
        user_id_context_kind: "org".to_owned(),
        anonymous_id_context_kind: Some("device".to_owned()),
        region: Region::Eu,
        values: Values::Json,
        default_means: DefaultMeans::FallbackUsed,
        endpoint: Some("https://proxy.example/segment".to_owned()),
        ..settings()
    };
    let rest = "region: eu, values: json, endpoint: 'https://proxy.example/segment/'";
    let terraform = "write_key: write-key, user_id_context_kind: org, anonymous_id_context_kind: device, default_means: fallback_used";
    let api =
        "writeKey: write-key, userIDContextKind: org, anonymousIDContextKind: device, defaultMeans: fallback_used";
    for names in [terraform, api] {
        assert_eq!(read_yaml(&format!("{{ {names}, {rest} }}")), Ok(all.clone()));
    }
    assert_eq!(Segment::new(&all).url, "https://proxy.example/segment/v1/batch");
    let eu = Settings { endpoint: None, ..all };
    assert_eq!(Segment::new(&eu).url, "https://events.eu1.segmentapis.com/v1/batch");
    assert_eq!(Segment::new(&settings()).url, "https://api.segment.io/v1/batch");
    for (yaml, because) in [
        ("{}", "needs `write_key` or `write_key_file`"),
        ("{ write_key: a, region: asia }", "`us`, `eu`"),
        ("{ write_key: a, endpoint: 'http://proxy.example' }", "https"),
        ("{ write_key: a, endpoint: 'https://proxy.example/?a=b' }", "query"),
    ] {
        let said = read_yaml(yaml).unwrap_err();
        assert!(said.contains(because), "{yaml}: {said}");
    }
}

proptest! {
    /// Whatever an SDK sent, the message is one JSON object with an identity, and the numbers keep their digits.
    #[test]
    fn any_event_is_a_message_or_skipped(
        key in ".{0,8}", value in "(-?[1-9][0-9]{0,30}(\\.[0-9]{1,20})?(e-?[0-9]{1,2})?|null|\\[1, 2\\])", date: i64,
    ) {
        let json = format!(
            r#"{{"creationDate":{date},"contextKeys":{{"user":{}}},"value":{value},"version":{value}}}"#,
            Value::String(key.clone())
        );
        match encode(&settings(), Kind::Feature, 2, &json) {
            Encoded::Item(item) => {
                let text = std::str::from_utf8(&item.body).unwrap();
                let parsed: Value = serde_json::from_str(text).unwrap();
                prop_assert_eq!(&parsed["userId"], &Value::String(key));
                prop_assert_eq!(&parsed["properties"]["value"], &Value::String(value.clone()));
                let is_number = !value.starts_with(['n', '[']);
                let version = format!("\"flagVersion\":{value}}}");
                prop_assert_eq!(text.contains(&version), is_number);
            }
            skipped => {
                prop_assert_eq!(skipped, Encoded::Skip("no_identity"));
                prop_assert!(key.is_empty());
            }
        }
    }

    /// Full requests keep Segment's limits to the byte.
    #[test]
    fn a_request_within_the_limits_is_within_segments(sizes in prop::collection::vec(0usize..32_000, 1..40), small in 0usize..2500) {
        let limits = Segment::new(&settings()).limits();
        let sizes = sizes.into_iter().chain(std::iter::repeat_n(150, small));
        let (mut items, mut bytes) = (Vec::new(), 0);
        for size in sizes {
            if bytes + size <= limits.bytes && items.len() < limits.items {
                let body = bytes::Bytes::from(vec![b'x'; size]);
                items.push(Item { id: String::new(), size, body, key: String::new() });
                bytes += size;
            }
        }
        prop_assert!(batch(&items, Timestamp::now()).len() <= 500_000);
    }
}
