//! Redaction of every form in which SDKs send users and contexts, and that nothing redacted is left.

use proptest::prelude::*;

use super::*;
use crate::section;

const KEY: &str = "0123456789abcdef";

fn read(yaml: &str) -> (Redact, String) {
    let reading = section::read(yaml, &|_| None, Redact::read);
    (reading.value.unwrap(), reading.problems.render("f"))
}

fn redact(yaml: &str) -> Redact {
    let (redact, problems) = read(yaml);
    assert_eq!(problems, "");
    redact
}

fn applied(redact: &Redact, json: &str) -> String {
    let applied = redact.apply(json.as_bytes()).unwrap();
    String::from_utf8(applied.into_owned()).unwrap()
}

#[test]
fn named_attributes_go_and_are_listed() {
    let redact = redact("attributes: { /email: drop, /address/street: drop, name: drop, /a~1b: drop }");
    for (json, expected) in [
        (
            r#"{"kind":"index", "context":{"kind":"user","key":"k","email":"e@x","age": 7}}"#,
            r#"{"kind":"index", "context":{"kind":"user","key":"k","age": 7,"_meta":{"redactedAttributes":["email"]}}}"#,
        ),
        (
            r#"{"context":{"kind":"user","key":"k","address":{"street":"s","city":"c"},"a/b":1,"_meta":{"redactedAttributes":["name"]}}}"#,
            r#"{"context":{"kind":"user","key":"k","address":{"city":"c"},"_meta":{"redactedAttributes":["name","/address/street","/a~1b"]}}}"#,
        ),
        (
            r#"{"context":{"kind":"multi","user":{"key":"k","\u0065mail":"e@x"},"org":{"key":"o","email":"f@x","plan":"p"}}}"#,
            r#"{"context":{"kind":"multi","user":{"key":"k","_meta":{"redactedAttributes":["email"]}},"org":{"key":"o","plan":"p","_meta":{"redactedAttributes":["email"]}}}}"#,
        ),
        (
            r#"{"user":{"key":"k","email":"e@x","email":"f@x","custom":{"email":"g@x","age":7,"address":{"street":"s"}}}}"#,
            r#"{"user":{"key":"k","custom":{"age":7,"address":{}},"privateAttrs":["email","/address/street"]}}"#,
        ),
        (
            r#"{"user":{"privateAttrs":[ "avatar" ],"key":"k","name":"n"}}"#,
            r#"{"user":{"privateAttrs":[ "avatar" ,"name"],"key":"k"}}"#,
        ),
        (
            r#"{"context":{"email":"e@x","_meta":null,"key":"k"}}"#,
            r#"{"context":{"_meta":{"redactedAttributes":["email"]},"key":"k"}}"#,
        ),
    ] {
        assert_eq!(applied(&redact, json), expected);
    }
}

#[test]
fn what_holds_nothing_to_redact_keeps_every_byte() {
    let redact = redact("attributes: { /email: drop, /kind-of: drop }");
    for json in [
        r#"{ "kind" : "custom","data":{"email":"not an attribute"} , "userKey":"u" }"#,
        r#"{"context":{"kind":"user","key":"email","emails":1e-07}}"#,
        r#"{"context":null,"user":null}"#,
        r#"{"contextKeys":{"email":"a key"}}"#,
    ] {
        let kept = redact.apply(json.as_bytes()).unwrap();
        assert!(matches!(kept, Cow::Borrowed(_)));
        assert_eq!(&kept[..], json.as_bytes());
    }
}

#[test]
fn only_what_is_allowed_leaves() {
    let redact = redact("allow: [/plan, /address/city]");
    let json = r#"{"context":{"kind":"org","key":"o","anonymous":true,"plan":{"a":1},"x":1,"address":{"city":"c","street":"s"},"_meta":{"secondary":"s"}}}"#;
    assert_eq!(
        applied(&redact, json),
        r#"{"context":{"kind":"org","key":"o","anonymous":true,"plan":{"a":1},"address":{"city":"c"},"_meta":{"redactedAttributes":["x","/address/street"]}}}"#
    );
    let json = r#"{"user":{"key":"u","ip":"1.2.3.4","custom":{"plan":"p","y":2}}}"#;
    assert_eq!(
        applied(&redact, json),
        r#"{"user":{"key":"u","custom":{"plan":"p"},"privateAttrs":["ip","y"]}}"#
    );
}

#[test]
fn an_allowed_attribute_may_hold_one_that_is_not() {
    let redact = redact("attributes: { /address/street: drop }\nallow: [address]");
    let json = r#"{"context":{"kind":"user","key":"k","address":{"city":"c","street":"s"},"email":"e"}}"#;
    assert_eq!(
        applied(&redact, json),
        r#"{"context":{"kind":"user","key":"k","address":{"city":"c"},"_meta":{"redactedAttributes":["/address/street","email"]}}}"#
    );
}

#[test]
fn the_secondary_key_is_redacted_where_contexts_have_it() {
    let drop = redact("attributes: { secondary: drop }");
    assert_eq!(
        applied(
            &drop,
            r#"{"context":{"kind":"user","key":"k","_meta":{"secondary":"s","redactedAttributes":["x"]}}}"#
        ),
        r#"{"context":{"kind":"user","key":"k","_meta":{"redactedAttributes":["x","secondary"]}}}"#
    );
    assert_eq!(
        applied(&drop, r#"{"user":{"key":"k","secondary":"s"}}"#),
        r#"{"user":{"key":"k","privateAttrs":["secondary"]}}"#
    );
    let hash = redact(&format!("attributes: {{ secondary: hash }}\nhash_key: {KEY}"));
    let hashed = applied(
        &hash,
        r#"{"context":{"kind":"user","key":"k","_meta":{"secondary":"s3cr3t"}}}"#,
    );
    assert!(
        !hashed.contains("s3cr3t") && hashed.contains(r#""redactedAttributes":["secondary"]"#),
        "{hashed}"
    );
}

#[test]
fn a_list_in_place_of_an_attribute_that_holds_others_goes_whole() {
    let redact = redact("attributes: { /address/street: drop }");
    assert_eq!(
        applied(
            &redact,
            r#"{"context":{"kind":"user","key":"k","address":[{"street":"s"}],"plan":["p"]}}"#
        ),
        r#"{"context":{"kind":"user","key":"k","plan":["p"],"_meta":{"redactedAttributes":["address"]}}}"#
    );
}

#[test]
fn hashes_are_hmac_sha256_of_the_text() {
    let redact = redact(&format!("attributes: {{ email: hash, age: hash }}\nhash_key: {KEY}"));
    // Computed with Python's hmac: whoever has the key can find an address again.
    assert_eq!(
        applied(
            &redact,
            r#"{"context":{"kind":"user","key":"k","email":"ada\u0040x.y","age":7}}"#
        ),
        r#"{"context":{"kind":"user","key":"k","email":"9cc192b725fd38736c835782f570458b59f0c5dae025a612e3bd5e80144953b0","age":"f69cf4852626eee19b92af564b9413e44aa526cc9e726ab9b8972af1d3b39092","_meta":{"redactedAttributes":["email","age"]}}}"#
    );
    let json = r#"{"context":{"kind":"user","key":"k","email":null}}"#;
    assert_eq!(applied(&redact, json), json);
}

#[test]
fn an_event_of_another_shape_is_not_sent() {
    let redact = redact("attributes: { email: drop }");
    for json in [
        "[]",
        r#"{"context":"e@x"}"#,
        r#"{"context":[{"email":"e@x"}]}"#,
        r#"{"context":{"kind":"multi","user":"e@x"}}"#,
        r#"{"context":{"kind":"user","key":"k","_meta":7,"email":"e@x"}}"#,
        r#"{"context":{"kind":"user","key":"k","\ud800":"e@x"}}"#,
        r#"{"user":7}"#,
        r#"{"user":{"key":"k","custom":["e@x"]}}"#,
        r#"{"Context":{"kind":"user","key":"k","email":"e@x"}}"#,
        r#"{"contexts":[{"kind":"user","key":"k","email":"e@x"}]}"#,
        r#"{"\u0055ser":{"key":"k","email":"e@x"}}"#,
        r#"{"context":{"kind":"user","key":{"email":"e@x"}}}"#,
        r#"{"context":{"kind":"user","key":"k","anonymous":["e@x"]}}"#,
        r#"{"context":{"kind":"user","key":"k","_meta":{"redactedAttributes":[{"email":"e@x"}]}}}"#,
        r#"{"user":{"key":["e@x"]}}"#,
        r#"{"context":{"k\u0069nd":{"email":"e@x"},"kind":"multi","user":{"key":"u"}}}"#,
        r#"{"context":{"kind":["e@x"],"kind":"multi","user":{"key":"u"}}}"#,
        r#"{"userKey":{"email":"e@x"}}"#,
        r#"{"contextKeys":{"user":{"email":"e@x"}}}"#,
        r#"{"contextKeys":"e@x"}"#,
        r#"{"kind":"alias","previousKey":["e@x"]}"#,
        r#"{"user":{"key":"k","privateAttrs":{"email":"e@x"}}}"#,
    ] {
        assert_eq!(redact.apply(json.as_bytes()), Err(NOT_REDACTABLE), "{json}");
    }
}

#[test]
fn settings_that_redact_nothing_or_weakly_are_refused() {
    for (yaml, problem) in [
        ("{}", "redacts nothing"),
        ("attributes: hash", "needs `hash_key`"),
        ("attributes: { email: hash }", "needs `hash_key`"),
        ("attributes: { email: hash }\nhash_key: short", "is shorter than 16"),
        ("attributes: { email: remove }", "is not a known value"),
        ("attributes: { /a~2: drop }", "is no attribute reference"),
        ("attributes: { key: drop }", "cannot be redacted"),
        ("allow: [/kind]", "cannot be redacted"),
        ("allow: drop", "expected a list"),
    ] {
        let (_, problems) = read(yaml);
        assert!(problems.contains(problem), "{yaml}: {problems}");
    }
}

/// A value that is nowhere else, in every form that JSON has.
fn secret_value() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        r#""s3cr3t""#,
        r#"{"deep":["s3cr3t"]}"#,
        r#"[{"s3cr3t":1}]"#,
        r#" { "x" : "s3cr3t" } "#,
        r#""\"}},{\"s3cr3t""#,
    ])
    .prop_map(str::to_owned)
}

/// Members of a context or user, with secrets under `email` and `/address/street` however they are spelled.
fn attributes() -> impl Strategy<Value = String> {
    let secret = secret_value().prop_flat_map(|value| {
        prop::sample::select(vec![
            format!(r#""email":{value}"#),
            format!(r#" "\u0065mail" :{value}"#),
            format!(r#""address":{{"street":{value},"city":"c"}}"#),
            format!(r#""address":[{{"street":{value}}},"c"]"#),
            format!(r#""address": {{ "city":"c" , "stre\u0065t" : {value} }}"#),
        ])
    });
    let plain = prop::sample::select(vec![
        r#""plan":"p""#,
        r#""_meta":{"redactedAttributes":["x"]}"#,
        r#""_meta":{}"#,
        r#""address":"plain""#,
        r#""privateAttrs":[]"#,
        r#""anonymous":true"#,
    ]);
    prop::collection::vec(prop_oneof![secret, plain.prop_map(str::to_owned)], 0..6)
        .prop_map(|members| members.join(","))
}

fn with_key(members: &str) -> String {
    let comma = if members.is_empty() { "" } else { "," };
    format!(r#"{{"key":"k"{comma}{members}}}"#)
}

fn event() -> impl Strategy<Value = String> {
    let single = attributes().prop_map(|members| format!(r#""context":{}"#, with_key(&members)));
    let odd = prop::sample::select(vec![
        r#""context":{"kind":{"email":"s3cr3t"},"kind":"multi","user":{"key":"k"}}"#,
        r#""userKey":{"email":"s3cr3t"}"#,
        r#""contextKeys":{"user":{"email":"s3cr3t"}}"#,
        r#""contexts":{"user":{"key":"k","email":"s3cr3t"}}"#,
    ])
    .prop_map(str::to_owned);
    let multi = (attributes(), attributes()).prop_map(|(one, other)| {
        let (one, other) = (with_key(&one), with_key(&other));
        format!(r#""context":{{"kind":"multi","user":{one}, "org" : {other} }}"#)
    });
    let user = (attributes(), attributes()).prop_map(|(one, other)| {
        format!(
            r#""user":{{"key":"u","custom":{{{other}}}{}{one}}}"#,
            if one.is_empty() { "" } else { "," }
        )
    });
    let who = prop::collection::vec(prop_oneof![3 => single, 3 => multi, 3 => user, 1 => odd], 1..3);
    who.prop_map(|who| format!(r#"{{"kind":"feature",{},"value":1e-07}}"#, who.join(",")))
}

proptest! {
    #[test]
    fn a_redacted_value_appears_nowhere(json in event()) {
        let hash_key = format!("hash_key: {KEY}");
        for settings in [
            "attributes: { /email: drop, /address/street: drop }".to_owned(),
            format!("attributes: {{ /email: hash, /address/street: hash }}\n{hash_key}"),
            format!("attributes: hash\nallow: [plan]\n{hash_key}"),
            "attributes: drop".to_owned(),
            "allow: [/plan, /address/city]".to_owned(),
        ] {
            let redact = redact(&settings);
            // What has an odd shape is not sent.
            let Ok(redacted) = redact.apply(json.as_bytes()) else {
                prop_assert!(json.contains("s3cr3t"));
                continue;
            };
            let redacted = String::from_utf8(redacted.into_owned()).unwrap();
            prop_assert!(!redacted.contains("s3cr3t"), "{settings}: {redacted}");
            let whole: serde_json::Value = serde_json::from_str(&redacted).unwrap();
            prop_assert_eq!(&whole["kind"], "feature");
            let kept = redacted.ends_with(r#","value":1e-07}"#);
            prop_assert!(kept, "{redacted}");
            for who in ["context", "user"] {
                if let Some(list) = whole[who]["_meta"].get("redactedAttributes").or(whole[who].get("privateAttrs")) {
                    prop_assert!(list.is_array());
                }
            }
        }
    }
}
