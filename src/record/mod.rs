//! A queue record: one batch of events that are to be exported, as it is kept on disk.
//!
//! Owns the shape and the byte format ([`codec`]). Knows nothing of engines or destinations. A record holds the raw
//! event JSON, where it belongs and where it goes; it never holds a credential.

pub mod codec;
pub(crate) mod wire;

use bytes::Bytes;

use crate::event::{Kind, Schema};

/// One batch on its way to its destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the request was received, Unix milliseconds.
    pub received_ms: u64,
    /// Where the events come from.
    pub origin: Origin,
    /// Names of the destinations this batch goes to, as configured when it arrived. A destination added later does
    /// not get it: like LaunchDarkly's, an export starts when its destination is created.
    pub destinations: Vec<String>,
    /// Seed of the event ids: a hash of environment and payload id, or of environment and body where the SDK sent no
    /// payload id. The same for an SDK's retry.
    pub id_seed: [u8; 16],
    /// Its event was out of tries before and has come back from the dead letters: given up again, it stays there until
    /// a person replays it.
    pub given_up: bool,
    /// The selected events in the order of the payload. Never empty.
    pub events: Vec<RecordEvent>,
}

/// Where a batch comes from: what the export envelope and later selection need to know of its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The environment's configured name.
    pub environment: String,
    /// LaunchDarkly's project id (24 hex digits); empty if not configured.
    pub project_id: String,
    /// LaunchDarkly's environment id (24 hex digits); empty if neither configured nor in the request's path.
    pub environment_id: String,
    /// The payload's schema.
    pub schema: Schema,
    /// SDK name and version as its user agent says, e.g. `PythonClient/9.18.2`; empty if not given.
    pub sdk: String,
    /// `X-LaunchDarkly-Tags` as sent; empty if not given.
    pub tags: String,
}

impl Record {
    /// Returns the bytes of event JSON, as [`crate::queue::Limit`] counts them.
    pub fn json_bytes(&self) -> u64 {
        self.events.iter().map(|event| event.json.len() as u64).sum()
    }
}

/// One selected event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordEvent {
    /// Place in the SDK's payload, from 0.
    pub index: u32,
    /// The event's kind.
    pub kind: Kind,
    /// The event's JSON object as the SDK sent it.
    pub json: Bytes,
}
