//! What decoding promises, on bodies that SDKs sent and on bodies that none should.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::event::Schema;
use crate::inflate::InflateLimits;
use crate::platform::EventRoute;

fn decode_with(
    pairs: &[(&'static str, &str)],
    query: Option<&str>,
    body: &[u8],
    limits: DecodeLimits,
) -> Result<Batch, DecodeError> {
    let headers = pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect();
    let route = EventRoute {
        template: "/bulk",
        carrier: if query.is_some() { Carrier::Query } else { Carrier::Body },
        client_side_id: None,
    };
    let captured = Captured {
        query,
        headers: &headers,
        body: &Bytes::copy_from_slice(body),
        route: &route,
    };
    decode(&captured, limits)
}

fn decoded(body: &str) -> Result<Vec<(Kind, String)>, DecodeError> {
    let batch = decode_with(&[], None, body.as_bytes(), DecodeLimits::default())?;
    for (place, event) in batch.events.iter().enumerate() {
        assert_eq!(event.index as usize, place);
    }
    Ok(batch
        .events
        .into_iter()
        .map(|event| (event.kind, String::from_utf8(event.json.to_vec()).unwrap()))
        .collect())
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn reads_what_python_6_sends() {
    let body = r#"[{"kind": "identify", "creationDate": 1795337568577, "key": "bob-key", "user": {"key": "bob-key", "name": "Rule Two", "secondary": "bob-2nd"}}]"#;
    let headers = [
        ("x-launchdarkly-event-schema", "3"),
        ("user-agent", "PythonClient/6.10.0"),
    ];
    let batch = decode_with(&headers, None, body.as_bytes(), DecodeLimits::default()).unwrap();
    assert_eq!(batch.events[0].key().as_deref(), Some("bob-key"));
    let json = &body[1..body.len() - 1];
    assert_eq!(
        batch,
        Batch {
            schema: Schema {
                number: 3,
                unsummarized: false,
            },
            payload_id: None,
            sdk: "PythonClient/6.10.0".to_owned(),
            tags: String::new(),
            events: vec![Event {
                index: 0,
                kind: Kind::Identify,
                track_events: false,
                key: Span::of(&json[59..68], json),
                reason: None,
                json: Bytes::copy_from_slice(json.as_bytes()),
            }],
        }
    );
}

#[test]
fn finds_key_and_reason_however_they_are_written() {
    let found = |event: &str| {
        let body = format!("[ {event}]");
        let batch = decode_with(&[], None, body.as_bytes(), DecodeLimits::default()).unwrap();
        let event = &batch.events[0];
        (event.key().map(String::from), event.reason().map(str::to_owned))
    };
    let pair = |key: &str, reason: &str| (Some(key.to_owned()), Some(reason.to_owned()));
    let reason = r#"{ "kind":"OFF" }"#;
    assert_eq!(
        found(&format!(r#"{{"key" : "a","x":{{"key":"b"}},"reason": {reason} }}"#)),
        pair("a", reason)
    );
    assert_eq!(
        found(r#"{"\u006bey":"\u0061\"","reason":{},"key":"last"}"#),
        pair("last", "{}")
    );
    assert_eq!(found(r#"{"key":"\u00e9\"","reason":{}}"#), pair("é\"", "{}"));
    for event in [
        r#"{"key":7,"reason":null}"#,
        r#"{"key":"a","key":null,"reason":"{}"}"#,
        r#"{"key":"\ud800"}"#,
        "7",
    ] {
        assert_eq!(found(event), (None, None), "{event}");
    }
}

#[test]
fn reads_what_an_edge_sdk_sends() {
    let body = br#"[{"kind":"identify","creationDate":1795338109484,"context":{"name":"Rule Two","key":"bob-key","kind":"user"}}]"#;
    let headers = [
        ("x-launchdarkly-payload-id", "9d985c3d-8bc1-4814-bbc5-c5983d5f660c"),
        ("x-launchdarkly-event-schema", "4"),
        ("x-launchdarkly-tags", "application-id/shop"),
        ("user-agent", "VercelEdgeSDK/1.3.55"),
    ];
    let batch = decode_with(&headers, None, body, DecodeLimits::default()).unwrap();
    assert_eq!(batch.schema.number, 4);
    assert_eq!(
        batch.payload_id.as_deref(),
        Some("9d985c3d-8bc1-4814-bbc5-c5983d5f660c")
    );
    assert_eq!(batch.tags, "application-id/shop");
    assert_eq!(batch.events[0].kind, Kind::Identify);
}

#[test]
fn keeps_every_events_bytes() {
    let events = [
        r#"{"kind":"custom","data":{"n":[9007199254740993,1e-07,1.7976931348623157e+308,-3.0,1e+21,1e999,-0]}}"#,
        r#"{ "kind" : "feature" , "key":"\u00e9\ud800" , "value" : "]},{" }"#,
        "{\"startDate\":1,\"features\":{\"\u{2028}\":{\"kind\":\"x\"}},\"kind\":\"summary\"}",
        "{}",
    ];
    let body = format!(
        "\r\n [ {} ,\t{},\n{},{}] \n",
        events[0], events[1], events[2], events[3]
    );
    let expected = [Kind::Custom, Kind::Feature, Kind::Summary, Kind::Other];
    let expected: Vec<_> = expected.into_iter().zip(events.map(str::to_owned)).collect();
    assert_eq!(decoded(&body).unwrap(), expected);
}

#[test]
fn events_are_slices_of_the_body() {
    let body = Bytes::from_static(b"[{\"kind\":\"index\"}]");
    let events = split(&body, 1).unwrap().events;
    assert_eq!(events[0].json.as_ptr(), body[1..].as_ptr());
}

#[test]
fn says_other_where_the_kind_is_missing_or_odd() {
    for event in [
        "{}",
        r#"{"kind":null}"#,
        r#"{"kind":["feature"]}"#,
        r#"{"kind":"Feature"}"#,
        r#"{"kind":"migration_op"}"#,
        r#"{"kind":"\ud800"}"#,
        r#"{"KIND":"feature"}"#,
        r#"{"context":{"kind":"feature"}}"#,
        r#"{"kind":"feature","kind":7}"#,
    ] {
        assert_eq!(decoded(&format!("[{event}]")).unwrap()[0].0, Kind::Other, "{event}");
    }
}

#[test]
fn the_last_of_duplicate_names_counts_however_it_is_written() {
    for event in [
        r#"{"kind":"custom","kind":"feature"}"#,
        r#"{"kind":"custom","k\u0069nd":"feature"}"#,
        r#"{"kind":7,"kind":"f\u0065ature"}"#,
    ] {
        assert_eq!(decoded(&format!("[{event}]")).unwrap()[0].0, Kind::Feature, "{event}");
    }
}

#[test]
fn tracked_means_the_literal_true() {
    let body = br#"[{"trackEvents":true},{"trackEvents": false},{"trackEvents":"true"},{"trackEvents":1},{},
        {"trackEvents":true,"trackEvents":null},{"value":{"trackEvents":true}}]"#;
    let batch = decode_with(&[], None, body, DecodeLimits::default()).unwrap();
    let tracked: Vec<_> = batch.events.iter().map(|event| event.track_events).collect();
    assert_eq!(tracked, [true, false, false, false, false, false, false]);
}

#[test]
fn keeps_the_place_of_elements_that_are_no_objects() {
    let body = r#"[1e999 , "a,]\"" ,null,[{"kind":"custom"}],true, {"kind":"click"}]"#;
    let kinds: Vec<_> = decoded(body).unwrap().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [[Kind::Other; 5].as_slice(), &[Kind::Click]].concat());
}

#[test]
fn an_empty_array_is_a_batch_without_events() {
    for body in ["[]", " [ \n] "] {
        assert_eq!(decoded(body).unwrap(), []);
    }
}

#[test]
fn a_retried_diagnostic_is_not_an_array() {
    // js-core's EventSender.ts posts the retry of a diagnostic to the analytics route.
    for body in [r#"{"kind":"diagnostic","id":{}}"#, "\"[]\"", "1", "null"] {
        assert_eq!(decoded(body), Err(DecodeError::NotAnArray), "{body}");
    }
}

#[test]
fn broken_json_gives_no_events_at_all() {
    for body in [
        "",
        " ",
        "[",
        "[{}",
        "[{}}",
        "[{},]",
        "[,{}]",
        "[{} {}]",
        "[{}]]",
        "[{}] x",
        "[{\"kind\":\"custom\"]",
        "[01]",
        "[nul]",
        "[{\"a\":+1}]",
        "[{\"a\":\"\n\"}]",
        "[{'a':1}]",
        "[{a:1}]",
        "[{\"a\"}]",
        "{",
        "\u{feff}[]",
        "[{}]\0",
        "// x\n[]",
        // Values are not read as strings, so only a name can be refused for this.
        r#"[{"\ud800":1}]"#,
    ] {
        assert_eq!(decoded(body), Err(DecodeError::BrokenJson), "{body}");
    }
    let invalid = decode_with(&[], None, b"[\"\xff\"]", DecodeLimits::default());
    assert_eq!(invalid, Err(DecodeError::BrokenJson));
}

#[test]
fn depth_costs_no_stack() {
    let deep = 1_000_000;
    let body = format!(
        "[{{\"kind\":\"custom\",\"data\":{}{}}}]",
        "[".repeat(deep),
        "]".repeat(deep)
    );
    assert_eq!(decoded(&body).unwrap()[0].0, Kind::Custom);
    assert_eq!(decoded(&"[".repeat(deep)), Err(DecodeError::BrokenJson));
    assert_eq!(decoded(&"{\"a\":".repeat(deep)), Err(DecodeError::BrokenJson));
}

#[test]
fn reads_gzip_however_it_is_called() {
    let body = gzip(br#"[{"kind":"custom"}]"#);
    for name in ["gzip", "GZIP", " x-gzip "] {
        let batch = decode_with(&[("content-encoding", name)], None, &body, DecodeLimits::default()).unwrap();
        assert_eq!(batch.events[0].kind, Kind::Custom);
    }
    for name in ["identity", "Identity", ""] {
        assert!(decode_with(&[("content-encoding", name)], None, b"[]", DecodeLimits::default()).is_ok());
    }
}

#[test]
fn refuses_other_encodings_and_several() {
    for names in [&["br"][..], &["deflate"], &["gzip, gzip"], &["gzip", "gzip"]] {
        let headers: Vec<_> = names.iter().map(|name| ("content-encoding", *name)).collect();
        let outcome = decode_with(&headers, None, &gzip(b"[]"), DecodeLimits::default());
        assert_eq!(outcome, Err(DecodeError::UnknownEncoding), "{names:?}");
    }
}

#[test]
fn refuses_what_is_not_gzip_or_inflates_too_far() {
    let headers = [("content-encoding", "gzip")];
    let broken = decode_with(&headers, None, b"[]", DecodeLimits::default());
    assert_eq!(broken, Err(DecodeError::BrokenEncoding));
    let limits = DecodeLimits {
        inflate: InflateLimits { bytes: 100, ratio: 200 },
        events: 1,
    };
    let outcome = decode_with(&headers, None, &gzip(&[b' '; 101]), limits);
    assert_eq!(outcome, Err(DecodeError::InflatesTooFar));
}

#[test]
fn refuses_more_events_than_a_batch_may_hold() {
    let limits = DecodeLimits {
        events: 2,
        ..DecodeLimits::default()
    };
    assert_eq!(decode_with(&[], None, b"[{},{}]", limits).unwrap().events.len(), 2);
    assert_eq!(
        decode_with(&[], None, b"[{},{},{}]", limits),
        Err(DecodeError::TooManyEvents)
    );
}

#[test]
fn reads_the_beacon_of_an_old_browser() {
    // launchdarkly-js-client-sdk 2.15.0 in Chromium.
    let query = "d=W3sia2luZCI6ImN1c3RvbSIsImtleSI6ImRhdGEtYW5kLW1ldHJpYyIsInVybCI6Imh0dHA6Ly8xMjcuMC4wLjE6NDY1NjMvcGFnZS5odG1sP3E9MSZzZWNyZXQ9czNjcjN0I2ZyYWciLCJjcmVhdGlvbkRhdGUiOjE3OTUzMzc5NzIyMTMsImRhdGEiOnsicHJpY2UiOjk5Ljk5fSwibWV0cmljVmFsdWUiOjk5Ljk5LCJ1c2VyS2V5IjoiYW5uLWtleSJ9LHsia2luZCI6ImN1c3RvbSIsImtleSI6ImVtb2ppLfCfjokiLCJ1cmwiOiJodHRwOi8vMTI3LjAuMC4xOjQ2NTYzL3BhZ2UuaHRtbD9xPTEmc2VjcmV0PXMzY3IzdCNmcmFnIiwiY3JlYXRpb25EYXRlIjoxNzk1MzM3OTcyMjE1LCJkYXRhIjp7IsOpIjoi5ryiIn0sInVzZXJLZXkiOiJhbm4ta2V5In1d";
    let batch = decode_with(&[], Some(query), b"", DecodeLimits::default()).unwrap();
    assert_eq!(batch.schema.number, 3);
    assert_eq!(batch.payload_id, None);
    assert_eq!(batch.events.len(), 2);
    let second = "{\"kind\":\"custom\",\"key\":\"emoji-🎉\",\"url\":\"http://127.0.0.1:46563/page.html?q=1&secret=s3cr3t#frag\",\"creationDate\":1795337972215,\"data\":{\"é\":\"漢\"},\"userKey\":\"ann-key\"}";
    assert_eq!(batch.events[1].json, second.as_bytes());
}

#[test]
fn infers_a_beacons_schema_from_its_events() {
    // [{"kind":"custom","contextKeys":{}}] and [{"context":{}}]
    for query in [
        "d=W3sia2luZCI6ImN1c3RvbSIsImNvbnRleHRLZXlzIjp7fX1d",
        "d=W3siY29udGV4dCI6e319XQ",
    ] {
        let batch = decode_with(&[], Some(query), b"", DecodeLimits::default()).unwrap();
        assert_eq!(batch.schema.number, 4);
    }
    assert_eq!(
        decode_with(&[], Some("x=1"), b"", DecodeLimits::default()),
        Err(DecodeError::BrokenEncoding)
    );
}

proptest! {
    #[test]
    fn never_panics_and_agrees_with_a_strict_reader(body in r#"[\[\]{}",:a1\\ .eE+\-]{0,24}"#) {
        let decoded = decoded(&format!("[{body}]"));
        // Accepts what serde_json accepts, give or take strings and numbers that have no Rust value.
        if let Ok(serde_json::Value::Array(values)) = serde_json::from_str(&format!("[{body}]")) {
            prop_assert_eq!(decoded.as_ref().map(Vec::len), Ok(values.len()));
        }
        if let Ok(events) = decoded {
            for (_, json) in events {
                prop_assert!(serde_json::from_str::<IgnoredAny>(&json).is_ok());
            }
        }
    }

    #[test]
    fn joined_events_come_apart_again(
        parts in prop::collection::vec(r#"\{( ?"[a-z]{1,3}": ?("[^"\\\x00-\x1f]{0,5}"|-?[1-9]{1,3}(\.[0-9]e-[1-9])?|\[\]|null))? ?\}"#, 0..9)
    ) {
        let events = decoded(&format!("[ {} ]", parts.join(" ,"))).unwrap();
        let texts: Vec<_> = events.into_iter().map(|(_, json)| json).collect();
        prop_assert_eq!(texts, parts);
    }
}
