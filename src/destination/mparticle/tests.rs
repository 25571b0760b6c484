use std::time::Duration;

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::super::receiver::{Act, Receiver, answer, status};
use super::super::{Destination, Encoded, Verdict, contract};
use super::*;
use crate::event::Kind;
use crate::section;

const ID: &str = "63843c40b7e9d4001f0a9c11";

fn settings() -> Settings {
    Settings {
        api_key: Secret::new("api-key".to_owned()),
        secret: Secret::new("api-secret".to_owned()),
        environment: Environment::Production,
        identities: Identities {
            kinds: vec![("user".to_owned(), Identity::CustomerId)],
            anonymous: None,
        },
        pod: Pod::Us1,
        endpoint: None,
        event_name_case: NameCase::Lower,
        default_means: DefaultMeans::SdkValue,
    }
}

fn mparticle(fake: &Receiver) -> Mparticle {
    Mparticle::new(&Settings {
        endpoint: Some(fake.url.clone()),
        ..settings()
    })
}

async fn verdict(count: usize, act: Act) -> Verdict {
    let fake = Receiver::doing(vec![act]).await;
    let mparticle = mparticle(&fake);
    let verdicts = mparticle.send(&contract::items(&mparticle, count)).await;
    assert_eq!(verdicts, vec![verdicts[0].clone(); count]);
    verdicts[0].clone()
}

fn encode(settings: &Settings, kind: Kind, version: u8, json: &str) -> Encoded {
    let event = ExportEvent {
        kind,
        version,
        ..contract::event(json, ID)
    };
    Mparticle::new(settings).encode(&event)
}

fn item(settings: &Settings, kind: Kind, version: u8, json: &str) -> (String, String) {
    match encode(settings, kind, version, json) {
        Encoded::Item(item) => (item.key, String::from_utf8(item.body.to_vec()).unwrap()),
        other => panic!("{other:?}: {json}"),
    }
}

#[tokio::test]
async fn keeps_the_contract() {
    let taken = || status(202);
    let fake = Receiver::doing(vec![taken(), taken(), taken(), taken(), taken(), status(404), taken()]).await;
    contract::holds(&mparticle(&fake)).await;
    let received = fake.received();
    assert_eq!(received[5].line, "HEAD /");
    assert_eq!(received.len(), 7);
}

#[tokio::test]
async fn a_service_that_hangs_ends_with_the_request() {
    let fake = Receiver::doing(vec![Act::Hang]).await;
    contract::ends_with_the_request(&mparticle(&fake)).await;
}

#[tokio::test]
async fn a_request_is_a_list_of_batches_with_key_and_secret() {
    let fake = Receiver::doing(vec![status(202)]).await;
    let mparticle = mparticle(&fake);
    let items = contract::items(&mparticle, 2);
    mparticle.send(&items).await;
    let request = fake.received().remove(0);
    assert_eq!(request.line, "POST /v2/bulkevents");
    assert_eq!(request.header("authorization"), Some("Basic YXBpLWtleTphcGktc2VjcmV0"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    let batches: Vec<&RawValue> = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(batches.len(), 2, "one for each user");
    for (batch, item) in batches.iter().zip(&items) {
        let (user, event) = (&item.key, std::str::from_utf8(&item.body).unwrap());
        let head = format!(r#"{{"user_identities":{user},"environment":"production","source_request_id":""#);
        assert!(batch.get().starts_with(&head), "{batch}");
        assert!(batch.get().ends_with(&format!(r#"","events":[{event}]}}"#)), "{batch}");
    }
}

#[test]
fn every_kind_has_its_event() {
    let ids = r#""project":"5744c96707c9900708000004","environment":"578d1e02d2943862c52b9686""#;
    let json = r#"{"kind":"feature","creationDate":1705111746120.5,"key":"new-checkout","userKey":"u-17","value":{"a":1e-07},"default":null,"version":12,"variation":0,"prereqOf":"outer","reason":{"kind":"RULE_MATCH"}}"#;
    let expected = format!(
        "{}{}{}",
        r#"{"event_type":"custom_event","data":{"source_message_id":"63843c40b7e9d4001f0a9c11","event_name":"feature","custom_event_type":"other","timestamp_unixtime_ms":1705111746120,"custom_attributes":{"#,
        ids,
        r#","version":"1","key":"new-checkout","value":"{\"a\":1e-07}","flag_version":"12","default":"null","reason_kind":"RULE_MATCH","prerequisite_of":"outer"}}}"#
    );
    let (user, event) = item(&settings(), Kind::Feature, 1, json);
    assert_eq!((user.as_str(), event), (r#"{"customer_id":"u-17"}"#, expected));

    let json =
        r#"{"kind":"custom","key":"order","contextKeys":{"user":"u-17"},"data":{"secret":1},"metricValue":41.50}"#;
    let (_, custom) = item(&settings(), Kind::Custom, 2, json);
    assert!(
        custom.contains(r#""event_name":"custom","custom_event_type":"other","custom_attributes""#),
        "{custom}"
    );
    assert!(
        custom.ends_with(r#""version":"2","key":"order","metric_value":"41.50"}}}"#),
        "{custom}"
    );

    let json = r##"{"kind":"click","key":"goal","url":"https://a.example/?q=1","selector":"#a","userKey":"u-17"}"##;
    let (_, click) = item(&settings(), Kind::Click, 1, json);
    assert!(
        click.contains(r#""event_name":"click","custom_event_type":"navigation""#),
        "{click}"
    );
    assert!(
        click.ends_with(r##""url":"https://a.example/?q=1","selector":"#a"}}}"##),
        "{click}"
    );

    let json = r##"{"kind":"pageview","key":"goal","url":"https://a.example/?q=1","selector":"#a","userKey":"u-17"}"##;
    let (_, page) = item(&settings(), Kind::Pageview, 1, json);
    let head = r#"{"event_type":"screen_view","data":{"source_message_id":"63843c40b7e9d4001f0a9c11","screen_name":"https://a.example/","custom_attributes":"#;
    assert!(page.starts_with(head), "{page}");
    assert!(
        page.ends_with(r#""key":"goal","url":"https://a.example/?q=1"}}}"#),
        "{page}"
    );
}

#[test]
fn the_page_shows_what_arrives() {
    let page = include_str!("../../../docs/destinations/mparticle.md");
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
            r#""key":"new-checkout","value":true,"default":false,"version":12,"prereqOf":"outer","reason":{"kind":"RULE_MATCH"}"#,
        ),
        (
            Kind::Custom,
            2,
            r#""key":"order","data":{"items":3},"metricValue":41.5"#,
        ),
        (
            Kind::Click,
            1,
            r##""key":"goal","url":"https://a.example/?q=1","selector":"#buy""##,
        ),
        (Kind::Pageview, 1, r#""key":"goal","url":"https://a.example/?q=1""#),
    ];
    let items = events.map(|(kind, version, rest)| {
        let json = format!("{{{common},{rest}}}");
        match encode(&settings(), kind, version, &json) {
            Encoded::Item(item) => item,
            other => panic!("{other:?}"),
        }
    });
    let mut arrives = items
        .clone()
        .map(|item| serde_json::from_slice::<Value>(&item.body).unwrap());
    let request = bulk::request(&items[..1], Environment::Production);
    arrives[0] = serde_json::from_slice::<Value>(&request).unwrap()[0].take();
    assert_eq!(shown, arrives);
}

#[test]
fn names_can_be_capitalized_and_a_default_can_be_a_fact() {
    let settings = Settings {
        event_name_case: NameCase::Capitalized,
        default_means: DefaultMeans::FallbackUsed,
        ..settings()
    };
    for (json, fact) in [
        (r#"{"userKey":"u","default":"x","variation":1}"#, "false"),
        (r#"{"userKey":"u","default":"x"}"#, "true"),
    ] {
        let (_, event) = item(&settings, Kind::Feature, 1, json);
        assert!(event.contains(r#""event_name":"Feature""#), "{event}");
        assert!(event.contains(&format!(r#""default":"{fact}""#)), "{event}");
    }
}

#[test]
fn what_mparticle_does_not_get_is_skipped_or_refused() {
    let json = r#"{"context":{"kind":"user","key":"u"},"userKey":"u","key":"u","previousKey":"a"}"#;
    for kind in [
        Kind::Index,
        Kind::Identify,
        Kind::Summary,
        Kind::Debug,
        Kind::Alias,
        Kind::Other,
    ] {
        assert_eq!(
            encode(&settings(), kind, 2, json),
            Encoded::Skip("kind_not_in_mparticle")
        );
    }
    for nobodys in [
        r#"{"key":"order"}"#,
        r#"{"userKey":""}"#,
        r#"{"contextKeys":{"org":"o"}}"#,
    ] {
        assert_eq!(
            encode(&settings(), Kind::Custom, 2, nobodys),
            Encoded::Skip("no_identity")
        );
    }
    let nameless = encode(&settings(), Kind::Pageview, 2, r#"{"userKey":"u","url":""}"#);
    assert!(matches!(nameless, Encoded::Reject(why) if why.contains("without a URL")));
}

#[test]
fn settings_say_which_context_is_which_identity() {
    let settings = Settings {
        identities: Identities {
            kinds: vec![
                ("user".to_owned(), Identity::CustomerId),
                ("org".to_owned(), Identity::OtherId2),
            ],
            anonymous: Some(Identity::Other),
        },
        ..settings()
    };
    for (json, user) in [
        (r#"{"userKey":"u"}"#, r#"{"customer_id":"u"}"#),
        (r#"{"userKey":17,"contextKind":"anonymousUser"}"#, r#"{"other":"17"}"#),
        (
            r#"{"contextKeys":{"org":"o","user":"u"}}"#,
            r#"{"customer_id":"u","other_id_2":"o"}"#,
        ),
        (
            r#"{"context":{"kind":"org","key":"o","anonymous":true}}"#,
            r#"{"other_id_2":"o"}"#,
        ),
        (
            r#"{"context":{"kind":"user","key":"u","anonymous":true}}"#,
            r#"{"other":"u"}"#,
        ),
    ] {
        assert_eq!(item(&settings, Kind::Custom, 2, json).0, user, "{json}");
    }
}

#[test]
fn an_attribute_is_cut_where_mparticle_would_drop_it() {
    let json = format!(r#"{{"userKey":"u","value":"{}","key":"k"}}"#, "é".repeat(5000));
    let (_, event) = item(&settings(), Kind::Feature, 1, &json);
    assert!(
        event.contains(&format!(r#""value":"{}"}}"#, "é".repeat(4096))),
        "{}",
        event.len()
    );
    let json = format!(r#"{{"userKey":"u","value":["{}"],"key":"k"}}"#, "x".repeat(5000));
    let (_, event) = item(&settings(), Kind::Feature, 1, &json);
    assert!(event.contains(&format!(r#""value":"[\"{}"}}"#, "x".repeat(4094))));
}

#[tokio::test]
async fn answers_mean_what_the_table_says() {
    assert_eq!(verdict(3, status(202)).await, Verdict::Delivered);
    assert_eq!(verdict(3, status(400)).await, Verdict::Split);
    assert_eq!(verdict(3, status(413)).await, Verdict::Split);
    let text = r#"{"errors":[{"code":"BAD_REQUEST","message":"customer_id u-17 is bad"},{"code":"no code"}]}"#;
    let Verdict::Reject { why } = verdict(1, answer(400, &[], text)).await else {
        panic!("one bad event is refused")
    };
    assert!(
        why.starts_with("mParticle answered 400 BAD_REQUEST: ") && !why.contains("u-17"),
        "{why}"
    );
    for (blocked, setting) in [(302, "endpoint"), (401, "secret"), (403, "pod"), (404, "endpoint")] {
        let verdict = verdict(2, status(blocked)).await;
        assert!(
            matches!(&verdict, Verdict::Blocked { why } if why.contains(setting)),
            "{verdict:?}"
        );
    }
    let headers = [("retry-after", "7"), ("x-mp-rate-limit-exceeded", "batches per second")];
    let Verdict::Retry { after, why } = verdict(2, answer(429, &headers, "")).await else {
        panic!("throttling passes")
    };
    assert_eq!(after, Some(Duration::from_secs(7)));
    assert!(why.ends_with("(batches per second)"), "{why}");
    for retried in [status(500), status(503), status(418), Act::SayAndClose(Vec::new())] {
        assert!(matches!(verdict(2, retried).await, Verdict::Retry { after: None, .. }));
    }
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

const REQUIRED: &str = "api_key: api-key, secret: api-secret, environment: production";

#[test]
fn settings_are_read_in_terraforms_and_in_the_apis_spelling() {
    let least = format!("{{ {REQUIRED}, user_identity: customer_id }}");
    assert_eq!(read_yaml(&least), Ok(settings()));
    let all = Settings {
        environment: Environment::Development,
        identities: Identities {
            kinds: vec![
                ("user".to_owned(), Identity::CustomerId),
                ("org".to_owned(), Identity::OtherId10),
            ],
            anonymous: Some(Identity::Other),
        },
        pod: Pod::Eu1,
        event_name_case: NameCase::Capitalized,
        default_means: DefaultMeans::FallbackUsed,
        ..settings()
    };
    let terraform = r#"{ api_key: api-key, secret: api-secret, environment: development, user_identity: customer_id,
        anonymous_user_identity: other, pod: eu1, event_name_case: capitalized, default_means: fallback_used,
        user_identities: '[{"ldContextKind":"org","mparticleUserIdentity":"other_id_10"}]' }"#;
    let api = r#"{ apiKey: api-key, secret: api-secret, environment: development, userIdentity: customer_id,
        anonymousUserIdentity: other, pod: eu1, eventNameCase: capitalized, defaultMeans: fallback_used,
        userIdentities: [{ ldContextKind: org, mparticleUserIdentity: other_id_10 }] }"#;
    for yaml in [terraform, api] {
        assert_eq!(read_yaml(yaml), Ok(all.clone()));
    }
    assert_eq!(Mparticle::new(&all).url, "https://s2s.eu1.mparticle.com/v2/bulkevents");
    let proxied = Settings {
        endpoint: Some("https://proxy.example/mp".to_owned()),
        ..all
    };
    assert_eq!(Mparticle::new(&proxied).url, "https://proxy.example/mp/v2/bulkevents");
}

#[test]
fn a_kind_that_is_listed_says_more_than_the_identity_of_users() {
    let yaml = format!(
        "{{ {REQUIRED}, user_identity: email, user_identities: [{{ ld_context_kind: user, mparticle_user_identity: other }}] }}"
    );
    let kinds = read_yaml(&yaml).unwrap().identities.kinds;
    assert_eq!(kinds, [("user".to_owned(), Identity::Other)]);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let pair =
        |kind: &str, identity: &str| format!(r#"{{"ldContextKind":"{kind}","mparticleUserIdentity":"{identity}"}}"#);
    let listed = |pairs: &[String]| format!("{REQUIRED}, user_identities: '[{}]'", pairs.join(","));
    for (yaml, because) in [
        ("user_identity: email".to_owned(), "needs `api_key` or `api_key_file`"),
        (REQUIRED.to_owned(), "needs `user_identity` or `user_identities`"),
        (format!("{REQUIRED}, user_identity: phone"), "`customer_id`"),
        (
            format!("{REQUIRED}, user_identities: 'org=email'"),
            "is not the JSON of a list",
        ),
        (listed(&[pair("org", "phone")]), "does not know"),
        (listed(&["1".to_owned()]), "no object"),
        (
            listed(&[r#"{"ldContextKind":"org"}"#.to_owned()]),
            "without `mparticleUserIdentity`",
        ),
        (listed(&[pair("org", "email"), pair("org", "other")]), "two to one"),
        (listed(&[pair("org", "email"), pair("user", "email")]), "two to one"),
        (
            format!(
                "{}, anonymous_user_identity: email",
                listed(&[pair("user", "other"), pair("org", "email")])
            ),
            "two to one",
        ),
        (
            format!("{}, anonymous_user_identity: email", listed(&[pair("org", "other")])),
            "means nothing",
        ),
    ] {
        let said = read_yaml(&format!("{{ {yaml} }}")).unwrap_err();
        assert!(said.contains(because), "{yaml}: {said}");
    }
}

proptest! {
    /// Whatever an SDK sent, the event is JSON whose attributes are strings of a length that mParticle keeps.
    #[test]
    fn any_event_is_an_event_or_skipped(
        key in ".{0,8}", value in "(-?[1-9][0-9]{0,30}(\\.[0-9]{1,20})?(e-?[0-9]{1,2})?|null|\\[1, 2\\]|\"[a-zé🏴\\\\n]{0,5000}\")",
    ) {
        let key = Value::String(key);
        let json = format!(r#"{{"contextKeys":{{"user":{key}}},"key":{value},"value":{value},"version":{value}}}"#);
        if serde_json::from_str::<Value>(&json).is_err() {
            return Ok(());
        }
        match encode(&settings(), Kind::Feature, 2, &json) {
            Encoded::Item(item) => {
                let event: Value = serde_json::from_slice(&item.body).unwrap();
                let attributes = event["data"]["custom_attributes"].as_object().unwrap();
                for (name, value) in attributes {
                    let units = value.as_str().map(|value| value.encode_utf16().count());
                    prop_assert!(units.is_some_and(|units| units <= 4096), "{name}");
                }
                let user: Value = serde_json::from_str(&item.key).unwrap();
                prop_assert_eq!(&user["customer_id"], &key);
            }
            skipped => prop_assert_eq!(skipped, Encoded::Skip("no_identity")),
        }
    }
}
