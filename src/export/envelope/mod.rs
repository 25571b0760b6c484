//! The export record: the SDK's event in LaunchDarkly's Data Export envelope.
//!
//! ```text
//! {"project":"<id>","environment":"<id>","event":<the SDK's bytes, edited as below>,"version":<1|2>}
//! ```
//!
//! Compact, one event a record, no newline. The event keeps its bytes, inner whitespace and member order included; this
//! is all that is done to it:
//!
//! - `"id":"<24 hex>"` goes behind `kind` where `kind` is the first member (as in LaunchDarkly's own records), else to
//!   the front. No SDK sends an `id` with an exportable event; one that is there is left out, since readers disagree
//!   about which of two equal names counts and consumers join on this one.
//! - PHP's private members are left out if the event says so ([`ExportEvent::strip_private`]).
//! - `"contextKeys":{…}` goes to the end of a version 2 event of a kind documented to have it, if the SDK sent only the
//!   full `context`. Kinds and keys are the SDK's bytes. A context that is not well formed is left as it is.

use std::ops::Range;

use crate::event::Kind;
use crate::export::{ExportEvent, Member, Members, contexts};

mod partition_key;

pub use self::partition_key::partition_key;

// `{"project":"","environment":"","event":,"version":2}` and `,"id":"<24 hex>"`.
const ENVELOPE_BYTES: usize = 52 + 32;
const PRIVATE: [&str; 3] = ["trackEvents", "debugEventsUntilDate", "excludeFromSummaries"];

/// Returns the export record of an event: one JSON object, no newline.
///
/// Pure: the same event gives the same bytes on every retry. Bytes that are not a JSON object (a decoded event always
/// is one) are put into the envelope as they are.
pub fn render(event: &ExportEvent<'_>) -> Vec<u8> {
    let ids = event.project_id.len() + event.environment_id.len();
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + ids + event.json.len() + 64);
    out.extend_from_slice(b"{\"project\":");
    push_text(&mut out, event.project_id);
    out.extend_from_slice(b",\"environment\":");
    push_text(&mut out, event.environment_id);
    out.extend_from_slice(b",\"event\":");
    let object = std::str::from_utf8(event.json)
        .ok()
        .and_then(|json| Some((json, Members::of(json)?)));
    match object {
        Some((json, members)) => push_event(&mut out, event, json, &members),
        None => push_unseen(&mut out, event),
    }
    out.extend_from_slice(b",\"version\":");
    out.extend_from_slice(if event.version >= 2 { b"2}" } else { b"1}" });
    out
}

fn push_event(out: &mut Vec<u8>, event: &ExportEvent<'_>, json: &str, members: &Members<'_>) {
    let left_out =
        |member: &Member<'_>| member.is("id") || (event.strip_private && PRIVATE.iter().any(|name| member.is(name)));
    let Some(head) = members.iter().next() else {
        out.push(b'{');
        push_id(out, event.id);
        out.push(b'}');
        return;
    };
    let bytes = json.as_bytes();
    let mut copied = span(json, head).start;
    out.extend_from_slice(&bytes[..copied]);
    let mut first = true;
    for member in members.iter() {
        let Range { start, end } = span(json, member);
        if !left_out(member) {
            // What stands before a member holds its comma; the first one kept needs none.
            match (first, member.is("kind")) {
                (true, true) => {
                    out.extend_from_slice(&bytes[start..end]);
                    out.push(b',');
                    push_id(out, event.id);
                }
                (true, false) => {
                    push_id(out, event.id);
                    out.push(b',');
                    out.extend_from_slice(&bytes[start..end]);
                }
                (false, _) => out.extend_from_slice(&bytes[copied..end]),
            }
            first = false;
        }
        copied = end;
    }
    if first {
        push_id(out, event.id);
    }
    if let Some(contexts) = missing_context_keys(event, members) {
        push_context_keys(out, &contexts);
    }
    out.extend_from_slice(&bytes[copied..]);
}

/// Adds an event that has too many members to be looked into: as it is, with its id.
fn push_unseen(out: &mut Vec<u8>, event: &ExportEvent<'_>) {
    match event.json.strip_prefix(b"{") {
        Some(rest) => {
            out.push(b'{');
            push_id(out, event.id);
            out.push(b',');
            out.extend_from_slice(rest);
        }
        None => out.extend_from_slice(event.json),
    }
}

fn push_id(out: &mut Vec<u8>, id: &str) {
    out.extend_from_slice(b"\"id\":");
    push_text(out, id);
}

fn push_context_keys(out: &mut Vec<u8>, contexts: &[(&str, &str)]) {
    out.extend_from_slice(b",\"contextKeys\":{");
    for (place, (kind, key)) in contexts.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        out.extend_from_slice(kind.as_bytes());
        out.push(b':');
        out.extend_from_slice(key.as_bytes());
    }
    out.push(b'}');
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

// Where a member of the object `json` stands in it. Names and values are slices of it.
fn span(json: &str, member: &Member<'_>) -> Range<usize> {
    let offset = |part: &str| part.as_ptr() as usize - json.as_ptr() as usize;
    offset(member.name)..offset(member.value) + member.value.len()
}

fn missing_context_keys<'a>(event: &ExportEvent<'_>, members: &Members<'a>) -> Option<Vec<(&'a str, &'a str)>> {
    let documented = matches!(
        event.kind,
        Kind::Feature | Kind::Debug | Kind::Custom | Kind::Click | Kind::Pageview
    );
    if event.version < 2 || !documented || members.get("contextKeys").is_some() {
        return None;
    }
    let contexts = contexts(members.get("context")?)?;
    contexts.iter().all(|(_, key)| key.starts_with('"')).then_some(contexts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const ID: &str = "63843c40b7e9d4001f0a9c11";

    fn event(kind: Kind, version: u8, json: &str) -> ExportEvent<'_> {
        ExportEvent {
            project_id: "5744c96707c9900708000004",
            environment_id: "578d1e02d2943862c52b9686",
            environment: "production",
            version,
            strip_private: false,
            id: ID,
            kind,
            json: json.as_bytes(),
        }
    }

    fn rendered(event: &ExportEvent<'_>) -> String {
        String::from_utf8(render(event)).unwrap()
    }

    // The event within its envelope.
    fn exported(event: &ExportEvent<'_>) -> String {
        let record = rendered(event);
        let head = r#"{"project":"5744c96707c9900708000004","environment":"578d1e02d2943862c52b9686","event":"#;
        let tail = format!(r#","version":{}}}"#, event.version);
        record
            .strip_prefix(head)
            .unwrap()
            .strip_suffix(&tail)
            .unwrap()
            .to_owned()
    }

    #[test]
    fn writes_the_envelope_of_the_one_public_sample() {
        let json = r#"{"kind":"feature","userKey":"u-17","creationDate":1669610559830,"key":"new-checkout","value":true,"default":false,"version":12,"variation":0}"#;
        assert_eq!(
            rendered(&event(Kind::Feature, 1, json)),
            concat!(
                r#"{"project":"5744c96707c9900708000004","environment":"578d1e02d2943862c52b9686","#,
                r#""event":{"kind":"feature","id":"63843c40b7e9d4001f0a9c11","userKey":"u-17","creationDate":1669610559830,"#,
                r#""key":"new-checkout","value":true,"default":false,"version":12,"variation":0},"version":1}"#
            )
        );
    }

    #[test]
    fn puts_the_id_to_the_front_where_kind_is_not_first() {
        let json = r#"{ "startDate":1,"features":{},"kind":"summary" }"#;
        assert_eq!(
            exported(&event(Kind::Summary, 1, json)),
            r#"{ "id":"63843c40b7e9d4001f0a9c11","startDate":1,"features":{},"kind":"summary" }"#
        );
        assert_eq!(
            exported(&event(Kind::Custom, 1, "{}")),
            r#"{"id":"63843c40b7e9d4001f0a9c11"}"#
        );
    }

    #[test]
    fn escapes_configured_names() {
        let mut event = event(Kind::Custom, 1, "{}");
        event.project_id = "a\"b";
        assert!(rendered(&event).starts_with(r#"{"project":"a\"b","#));
    }

    #[test]
    fn keeps_numbers_and_escapes_byte_for_byte() {
        // Python 9.18.2 and Rust 3.2.0 write such numbers, Python the escapes and JavaScript the lone surrogate.
        let inner =
            r#""data":[9007199254740993,1e-07,1.7976931348623157e+308,-3.0,"\u00e9\ud800",0.0],"metricValue":1e+21"#;
        let json = format!(r#"{{"kind":"custom",{inner}}}"#);
        assert_eq!(
            exported(&event(Kind::Custom, 2, &json)),
            format!(r#"{{"kind":"custom","id":"{ID}",{inner}}}"#)
        );
    }

    #[test]
    fn an_id_of_the_senders_own_gives_way() {
        for json in [
            r#"{"kind":"custom","id":{"x":1},"key":"k"}"#,
            r#"{"id":7,"kind":"custom","key":"k"}"#,
            r#"{"kind":"custom","key":"k","\u0069d":null}"#,
        ] {
            let expected = format!(r#"{{"kind":"custom","id":"{ID}","key":"k"}}"#);
            assert_eq!(exported(&event(Kind::Custom, 1, json)), expected);
        }
        assert_eq!(
            exported(&event(Kind::Custom, 1, r#"{"id":7}"#)),
            format!(r#"{{"id":"{ID}"}}"#)
        );
    }

    #[test]
    fn leaves_out_phps_private_members() {
        let json = r#"{"trackEvents":true, "kind":"feature", "debugEventsUntilDate":null,"key":"f", "excludeFromSummaries":true}"#;
        let mut event = event(Kind::Feature, 1, json);
        event.strip_private = true;
        assert_eq!(
            exported(&event),
            format!(r#"{{"kind":"feature","id":"{ID}","key":"f"}}"#)
        );
        event.strip_private = false;
        assert!(exported(&event).contains("trackEvents"));
    }

    #[test]
    fn derives_context_keys_from_a_context() {
        let single = r#"{"kind":"feature","context":{"kind":"org","key":"o\u002d2","name":"x"}}"#;
        let expected = format!(
            r#"{{"kind":"feature","id":"{ID}","context":{{"kind":"org","key":"o\u002d2","name":"x"}},"contextKeys":{{"org":"o\u002d2"}}}}"#
        );
        assert_eq!(exported(&event(Kind::Feature, 2, single)), expected);
        let multi = r#"{"kind":"custom","context":{"kind":"multi","user":{"key":"u"},"org":{"name":1,"key":"o"}} }"#;
        let expected = r#","contextKeys":{"user":"u","org":"o"} }"#;
        assert!(exported(&event(Kind::Custom, 2, multi)).ends_with(expected));
    }

    #[test]
    fn derives_no_context_keys_where_none_belong() {
        let with_context = r#"{"kind":"feature","context":{"kind":"org","key":"o"}}"#;
        let with_both = r#"{"kind":"feature","context":{"kind":"org","key":"o"},"contextKeys":{"org":"o"}}"#;
        for (kind, version, json) in [
            (Kind::Feature, 1, with_context),
            (Kind::Index, 2, with_context),
            (Kind::Identify, 2, with_context),
            (Kind::Summary, 2, with_context),
            (Kind::Feature, 2, with_both),
            (Kind::Feature, 2, r#"{"kind":"feature","userKey":"u"}"#),
        ] {
            let expected = json.replacen(r#""feature","#, &format!(r#""feature","id":"{ID}","#), 1);
            assert_eq!(exported(&event(kind, version, json)), expected, "{kind}");
        }
    }

    #[test]
    fn leaves_a_malformed_context_as_it_is() {
        for context in [
            "null",
            "[]",
            "{}",
            r#"{"key":"k"}"#,
            r#"{"kind":"user"}"#,
            r#"{"kind":5,"key":"k"}"#,
            r#"{"kind":"user","key":5}"#,
            r#"{"kind":"multi"}"#,
            r#"{"kind":"multi","user":"u"}"#,
            r#"{"kind":"multi","user":{"key":"u"},"org":{}}"#,
        ] {
            let json = format!(r#"{{"kind":"feature","context":{context}}}"#);
            let expected = format!(r#"{{"kind":"feature","id":"{ID}","context":{context}}}"#);
            assert_eq!(exported(&event(Kind::Feature, 2, &json)), expected);
        }
    }

    fn space() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "", "", " ", "\n\t", "\r "])
    }

    // JSON text, not a parsed value: whitespace, escapes, odd numbers and duplicate names are the point.
    fn value() -> impl Strategy<Value = String> {
        let scalars = vec![
            "null",
            "true",
            "-0",
            "1e-07",
            "9007199254740993",
            "1.7976931348623157e+308",
            "-3.0",
            r#""""#,
            r#""\"},{\"id\":1""#,
            r#""\u2028\ud800""#,
            "\"\u{2028}é🏴\"",
            "{}",
            "[ ]",
        ];
        prop::sample::select(scalars)
            .prop_map(str::to_owned)
            .prop_recursive(3, 24, 4, |inner| {
                prop_oneof![
                    object_text(vec![r#""key""#, r#""kind""#, r#""""#, r#""a\"b""#], inner.clone()),
                    (space(), prop::collection::vec(inner, 1..4), space()).prop_map(|(before, items, after)| format!(
                        "[{before}{}{after}]",
                        items.join(&format!("{after},"))
                    )),
                ]
            })
    }

    fn object_text(names: Vec<&'static str>, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        let member = (space(), prop::sample::select(names), space(), space(), value, space())
            .prop_map(|(a, name, b, c, value, d)| format!("{a}{name}{b}:{c}{value}{d}"));
        (space(), prop::collection::vec(member, 0..7)).prop_map(|(empty, members)| match members.is_empty() {
            true => format!("{{{empty}}}"),
            false => format!("{{{}}}", members.join(",")),
        })
    }

    const ORDINARY: [&str; 6] = [
        r#""kind""#,
        r#""context""#,
        r#""contextKeys""#,
        r#""value""#,
        r#""user""#,
        r#""""#,
    ];
    const REMOVABLE: [&str; 4] = [
        r#""id""#,
        r#""\u0069d""#,
        r#""trackEvents""#,
        r#""debugEventsUntilDate""#,
    ];

    fn event_text(names: Vec<&'static str>) -> impl Strategy<Value = String> {
        let contexts = vec![
            r#"{"kind":"user","key":"u"}"#,
            r#"{ "kind" : "multi" , "user" : { "key" : "u" } , "org" : { "key" : "o" } }"#,
        ];
        let contexts = prop::sample::select(contexts).prop_map(str::to_owned);
        object_text(names, prop_oneof![3 => value(), 1 => contexts])
    }

    proptest! {
        #[test]
        fn what_is_added_can_be_taken_away_again(
            json in event_text([&ORDINARY[..], &REMOVABLE[..]].concat()), strip_private: bool, version in 1u8..3,
        ) {
            let mut event = event(Kind::Feature, version, &json);
            event.strip_private = strip_private;
            let out = exported(&event);
            let sent = Members::of(&json).unwrap();
            let got = Members::of(&out).unwrap();
            prop_assert_eq!(got.get("id").map(str::to_owned), Some(format!("\"{ID}\"")));
            prop_assert_eq!(got.iter().filter(|member| member.is("id")).count(), 1);
            let derived = version == 2 && sent.get("contextKeys").is_none();
            let expected: Vec<_> = sent.iter()
                .filter(|member| !member.is("id"))
                .filter(|member| !strip_private || !PRIVATE.iter().any(|name| member.is(name)))
                .collect();
            let rest: Vec<_> = got.iter()
                .filter(|member| !(member.is("id") || derived && member.is("contextKeys")))
                .collect();
            prop_assert_eq!(rest, expected);
        }

        #[test]
        fn only_the_id_is_inserted_into_an_ordinary_event(json in event_text(ORDINARY.to_vec()), strip_private: bool) {
            prop_assume!(Members::of(&json) != Some(Members::default()));
            let mut event = event(Kind::Feature, 1, &json);
            event.strip_private = strip_private;
            let out = exported(&event);
            let behind = format!(",\"id\":\"{ID}\"");
            let before = format!("\"id\":\"{ID}\",");
            let taken = if out.contains(&behind) { out.replacen(&behind, "", 1) } else { out.replacen(&before, "", 1) };
            prop_assert_eq!(taken, json);
        }
    }

    #[test]
    fn records_are_json_for_a_strict_reader_too() {
        let json = r#"{"kind":"feature","creationDate":1,"context":{"kind":"user","key":"u"},"value":[1,{"a":null}]}"#;
        let record: Value = serde_json::from_slice(&render(&event(Kind::Feature, 2, json))).unwrap();
        assert_eq!(record["event"]["contextKeys"]["user"], "u");
        assert_eq!(record["version"], 2);
    }
}
