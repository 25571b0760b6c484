//! Events that tests make up.

use bytes::Bytes;

use super::Members;
use crate::event::{Event, Kind, Span};

/// Returns the event as the protocol's reader would: with the places of its key and reason.
pub(crate) fn event(kind: Kind, json: &str) -> Event {
    let members = Members::of(json).unwrap();
    let place = |name: &str, first: char| {
        let value = members.get(name).filter(|value| value.starts_with(first))?;
        Span::of(value, json)
    };
    Event {
        index: 0,
        kind,
        track_events: members.get("trackEvents") == Some("true"),
        key: place("key", '"'),
        reason: place("reason", '{'),
        json: Bytes::copy_from_slice(json.as_bytes()),
    }
}
