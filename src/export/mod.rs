//! What is exported and how it is written: selection (pure) and the export record format (pure).
//!
//! Owns [`ExportEvent`], the view of an event that destinations encode, and [`Members`], the byte-preserving look into
//! an event's JSON that everything here and in the destinations shares. Nothing here re-encodes an SDK's value.

use crate::event::Kind;
use crate::record::{Record, RecordEvent};

pub mod envelope;
pub mod fields;
pub mod form;
pub mod id;
pub mod json;
#[cfg(test)]
pub(crate) mod made;
mod members;
pub mod narrow;
pub mod redact;
pub mod selection;

pub use self::members::{Member, Members};

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
