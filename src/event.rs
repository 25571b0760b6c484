//! An SDK's analytics event as flagtap sees it: its kind and its bytes.
//!
//! Events are never re-encoded: `json` is the slice of the request body that held the event, so numbers, key order
//! and escapes reach the destination as the SDK wrote them.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

/// What an event says it is (`kind`).
///
/// The list is open: SDKs and ld-relay send kinds that no export schema documents, and new ones will come. All are
/// forwarded; only [`Kind::EXPORTABLE`] can be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// One flag evaluation that LaunchDarkly's settings asked to track.
    Feature = 0,
    /// One flag evaluation of a flag in debugging mode.
    Debug = 1,
    /// The first sight of a context by a server SDK.
    Index = 2,
    /// An `identify` call.
    Identify = 3,
    /// A `track` call.
    Custom = 4,
    /// A click goal in a browser.
    Click = 5,
    /// A page view goal in a browser.
    Pageview = 6,
    /// Two user keys declared to be one person (SDKs of 2021 and 2022).
    Alias = 7,
    /// Evaluation counts of a flush interval.
    Summary = 8,
    /// Everything else: `migration_op`, `click_pageview`, `relayMetrics`, `diagnostic*` and kinds not yet invented.
    Other = 9,
}

impl Kind {
    /// The kinds that LaunchDarkly's export schemas document, in the order of `config.example.yaml`.
    pub const EXPORTABLE: [Self; 9] = [
        Self::Feature,
        Self::Custom,
        Self::Identify,
        Self::Click,
        Self::Pageview,
        Self::Alias,
        Self::Index,
        Self::Debug,
        Self::Summary,
    ];

    /// Returns the kind as events and configuration spell it; `other` for what is not exportable.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Feature => "feature",
            Self::Debug => "debug",
            Self::Index => "index",
            Self::Identify => "identify",
            Self::Custom => "custom",
            Self::Click => "click",
            Self::Pageview => "pageview",
            Self::Alias => "alias",
            Self::Summary => "summary",
            Self::Other => "other",
        }
    }

    /// Returns the kind that `text` names, `Other` for any text outside [`Kind::EXPORTABLE`].
    pub fn of(text: &str) -> Self {
        Self::EXPORTABLE
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .unwrap_or(Self::Other)
    }

    /// Returns the kind with this wire number (see [`crate::record`]), `Other` for a number not in use.
    pub fn from_wire(number: u8) -> Self {
        Self::EXPORTABLE
            .into_iter()
            .find(|kind| *kind as u8 == number)
            .unwrap_or(Self::Other)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event of a batch, with the facts that selection needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Place in the SDK's payload, from 0; part of the event's stable id.
    pub index: u32,
    /// What the event says it is.
    pub kind: Kind,
    /// `trackEvents: true` was present. Only PHP SDKs send it; for all others its absence means nothing.
    pub track_events: bool,
    /// Where the string `key` stands: the flag's key, or the name of a custom event.
    pub key: Option<Span>,
    /// Where `reason` stands, if it is an object.
    pub reason: Option<Span>,
    /// The event's JSON object, byte for byte as the SDK sent it.
    pub json: Bytes,
}

impl Event {
    /// Returns the text of `key`. `None` if there is none, or none that is valid Unicode.
    pub fn key(&self) -> Option<Cow<'_, str>> {
        let written = self.text(self.key?)?;
        let quoted = written.get(1..written.len().checked_sub(1)?)?;
        if quoted.contains('\\') {
            serde_json::from_str(written).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(quoted))
        }
    }

    /// Returns `reason` as it was written: a JSON object.
    pub fn reason(&self) -> Option<&str> {
        self.text(self.reason?)
    }

    fn text(&self, span: Span) -> Option<&str> {
        let bytes = self.json.get(span.start as usize..span.end as usize)?;
        std::str::from_utf8(bytes).ok()
    }
}

/// A piece of an event's JSON, by the bytes where it begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Returns the place of `part` within `whole`, which it must be a slice of. `None` if it is not, or lies beyond
    /// 4 GiB.
    pub fn of(part: &str, whole: &str) -> Option<Self> {
        let start = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
        let end = start.checked_add(part.len())?;
        (end <= whole.len()).then_some(())?;
        Some(Self {
            start: u32::try_from(start).ok()?,
            end: u32::try_from(end).ok()?,
        })
    }
}

/// The `X-LaunchDarkly-Event-Schema` of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// 1 to 4; an absent header means 1, a gif beacon is inferred.
    pub number: u8,
    /// `X-LaunchDarkly-Unsummarized` was present: PHP's form of schema 4, with one event per evaluation.
    pub unsummarized: bool,
}

impl Schema {
    /// Returns the export envelope's `version`: 2 for SDKs that know contexts (schema 4), else 1.
    pub fn envelope_version(self) -> u8 {
        if self.number >= 4 { 2 } else { 1 }
    }

    /// Returns true where every evaluation is sent raw (PHP), so that only `trackEvents: true` is exported.
    pub fn sends_every_evaluation(self) -> bool {
        self.number == 2 || self.unsummarized
    }
}
