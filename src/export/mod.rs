//! What is exported and how it is written: selection (pure) and the export record format (pure).
//!
//! Owns [`ExportEvent`], the view of an event that destinations encode, and [`Members`], the byte-preserving look into
//! an event's JSON that everything here and in the destinations shares. Nothing here re-encodes an SDK's value.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::Kind;
use crate::record::{Record, RecordEvent};

pub mod envelope;
pub mod form;
pub mod id;
pub mod selection;

/// An event as destinations see it: the SDK's bytes and all that the export envelope adds.
#[derive(Clone, Copy, Debug)]
pub struct ExportEvent<'a> {
    /// LaunchDarkly's project id.
    pub project_id: &'a str,
    /// LaunchDarkly's environment id.
    pub environment_id: &'a str,
    /// The environment's configured name.
    pub environment: &'a str,
    /// Envelope version: 1 for user-based SDKs, 2 for context-based ones.
    pub version: u8,
    /// PHP form: the private fields `trackEvents`, `debugEventsUntilDate` and `excludeFromSummaries` are left out.
    pub strip_private: bool,
    /// Stable id, 24 hex digits.
    pub id: &'a str,
    /// The event's kind.
    pub kind: Kind,
    /// The event's JSON object as the SDK sent it.
    pub json: &'a [u8],
}

/// Returns the stable ids of a record's events, in their order: 24 lower-case hex digits each.
pub fn event_ids(record: &Record) -> Vec<String> {
    record.events.iter().map(|event| event_id(record, event)).collect()
}

/// Returns one event of a record as destinations see it. `id` is the event's own from [`event_ids`].
pub fn export_event<'a>(record: &'a Record, event: &'a RecordEvent, id: &'a str) -> ExportEvent<'a> {
    ExportEvent {
        project_id: &record.origin.project_id,
        environment_id: &record.origin.environment_id,
        environment: &record.origin.environment,
        version: record.origin.schema.envelope_version(),
        strip_private: record.origin.schema.sends_every_evaluation(),
        id,
        kind: event.kind,
        json: &event.json,
    }
}

/// Returns the stable id of one of a record's events: 24 lower-case hex digits.
pub fn event_id(record: &Record, event: &RecordEvent) -> String {
    let members = std::str::from_utf8(&event.json)
        .ok()
        .and_then(Members::of)
        .unwrap_or_default();
    id::event_id(&record.id_seed, event.index, id::seconds(&members, record.received_ms))
}

/// Returns the kinds of a context with their keys, both as the JSON text they were written as.
///
/// `None` if the context is not well formed: a `kind` that is no string, a kind without `key`, a `multi` of nothing.
pub fn contexts(json: &str) -> Option<Vec<(&str, &str)>> {
    let members = Members::of(json)?;
    let kind = members.get("kind").filter(|kind| kind.starts_with('"'))?;
    if kind != "\"multi\"" {
        return Some(vec![(kind, members.get("key")?)]);
    }
    let contexts: Vec<_> = members
        .iter()
        .filter(|member| !member.is("kind"))
        .map(|member| Some((member.name, Members::of(member.value)?.get("key")?)))
        .collect::<Option<_>>()?;
    (!contexts.is_empty()).then_some(contexts)
}

/// The top-level members of a JSON object, each as the bytes it was written with.
///
/// Values are not parsed, only checked and spanned, so any number, depth or escape is as good as another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members<'a> {
    members: Vec<Member<'a>>,
}

/// One member of a JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The name as written, quotes and escapes included.
    pub name: &'a str,
    /// The value as written, without whitespace around it.
    pub value: &'a str,
}

impl<'a> Members<'a> {
    /// Returns the members of the object that `json` is; `None` if it is no object or no valid JSON.
    pub fn of(json: &'a str) -> Option<Self> {
        // Said first because the visitor would otherwise be asked to make sense of a number or an array.
        if !json.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
            return None;
        }
        serde_json::from_str(json).ok()
    }

    /// Returns the value with this name as it was written. Of duplicates the last counts, as for most JSON readers.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.members
            .iter()
            .rfind(|member| member.is(name))
            .map(|member| member.value)
    }

    /// Returns all members in their order, duplicates included.
    pub fn iter(&self) -> std::slice::Iter<'_, Member<'a>> {
        self.members.iter()
    }
}

impl Member<'_> {
    /// Returns true if this member's name is `name`, however it was escaped.
    pub fn is(&self, name: &str) -> bool {
        let quoted = self.name.get(1..self.name.len() - 1).unwrap_or_default();
        if quoted.contains('\\') {
            serde_json::from_str::<String>(self.name).is_ok_and(|text| text == name)
        } else {
            quoted == name
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        // SDKs' events have up to a dozen members.
        let mut members = Vec::with_capacity(12);
        while let Some((name, value)) = map.next_entry::<&'de RawValue, &'de RawValue>()? {
            members.push(Member {
                name: name.get(),
                value: value.get(),
            });
        }
        Ok(Members { members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_the_bytes_of_names_and_values() {
        let json = "{ \"a\\u0062\" : 1e-07 ,\n\"c\":{\"d\" :[ 9007199254740993 ] }, \"e\":\"\\ud800\" }";
        let members = Members::of(json).unwrap();
        let texts: Vec<_> = members.iter().map(|member| (member.name, member.value)).collect();
        assert_eq!(
            texts,
            [
                ("\"a\\u0062\"", "1e-07"),
                ("\"c\"", "{\"d\" :[ 9007199254740993 ] }"),
                ("\"e\"", "\"\\ud800\""),
            ]
        );
        assert_eq!(members.get("ab"), Some("1e-07"));
        assert_eq!(members.get("b"), None);
    }

    #[test]
    fn the_last_of_duplicate_members_counts() {
        assert_eq!(Members::of(r#"{"a":1,"a":2}"#).unwrap().get("a"), Some("2"));
    }

    #[test]
    fn only_a_whole_object_has_members() {
        for json in [
            "",
            "[]",
            "1",
            "null",
            "\"{}\"",
            "{",
            "{}x",
            "{\"a\"}",
            "{\"a\":01}",
            "{a:1}",
        ] {
            assert_eq!(Members::of(json), None, "{json}");
        }
        assert_eq!(Members::of(" {} "), Some(Members::default()));
    }
}
