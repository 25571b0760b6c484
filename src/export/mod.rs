//! What is exported and how it is written: selection (pure) and the export record format (pure).

use crate::event::Kind;

pub mod envelope;
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
