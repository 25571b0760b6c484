//! From a captured request to a batch: the content encoding, the array and what each event says it is.
//!
//! The body is checked to be UTF-8 once, then every event is scanned once, in place: nothing is parsed that is not
//! looked at, and an event's `json` is a slice of the body. Scanning does not recurse, so depth costs memory in
//! proportion to the body and no stack. SDKs differ in spacing, escapes and member order; none of it matters here.

use std::fmt;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{Event, Kind, Span};
use crate::inflate::{InflateError, gunzip};
use crate::platform::launchdarkly::{DecodeLimits, beacon, headers};
use crate::platform::{Batch, Captured, Carrier, DecodeError};

/// Returns the batch in a captured request.
pub(super) fn decode(captured: &Captured<'_>, limits: DecodeLimits) -> Result<Batch, DecodeError> {
    let body = match captured.route.carrier {
        Carrier::Body => content(captured, limits)?,
        Carrier::Query => Bytes::from(
            captured
                .query
                .and_then(beacon::body)
                .ok_or(DecodeError::BrokenEncoding)?,
        ),
    };
    let split = split(&body, limits.events)?;
    let inferred = match captured.route.carrier {
        Carrier::Body => 1,
        Carrier::Query if split.contexts => 4,
        Carrier::Query => 3,
    };
    Ok(Batch {
        schema: headers::schema(captured.headers, inferred),
        payload_id: headers::payload_id(captured.headers).map(str::to_owned),
        sdk: headers::sdk(captured.headers).to_owned(),
        tags: headers::tags(captured.headers).to_owned(),
        events: split.events,
    })
}

fn content(captured: &Captured<'_>, limits: DecodeLimits) -> Result<Bytes, DecodeError> {
    if !is_gzip(captured.headers)? {
        return Ok(captured.body.clone());
    }
    match gunzip(captured.body, limits.inflate) {
        Ok(content) => Ok(Bytes::from(content)),
        Err(InflateError::Broken) => Err(DecodeError::BrokenEncoding),
        Err(InflateError::TooLarge) => Err(DecodeError::InflatesTooFar),
    }
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, DecodeError> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let encoding = match (values.next(), values.next()) {
        (None, _) => return Ok(false),
        (Some(value), None) => value.to_str().unwrap_or("?").trim(),
        (Some(_), Some(_)) => return Err(DecodeError::UnknownEncoding),
    };
    if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") {
        Ok(false)
    } else if encoding.eq_ignore_ascii_case("gzip") || encoding.eq_ignore_ascii_case("x-gzip") {
        // RFC 9110 section 8.4.1.3: x-gzip is gzip.
        Ok(true)
    } else {
        Err(DecodeError::UnknownEncoding)
    }
}

struct Split {
    events: Vec<Event>,
    // An event has `context` or `contextKeys`, as only schema 4 does.
    contexts: bool,
}

fn split(body: &Bytes, limit: usize) -> Result<Split, DecodeError> {
    let text = std::str::from_utf8(body).map_err(|_| DecodeError::BrokenJson)?;
    let mut at = skip_space(text, 0);
    if byte(text, at) != Some(b'[') {
        // A js-core SDK's retry of a diagnostic: one object, on a route for events.
        return Err(match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => DecodeError::NotAnArray,
            Err(_) => DecodeError::BrokenJson,
        });
    }
    let mut split = Split {
        events: Vec::new(),
        contexts: false,
    };
    at = skip_space(text, at + 1);
    if byte(text, at) == Some(b']') {
        return end(text, at + 1).map(|()| split);
    }
    loop {
        let index = split.events.len();
        if index >= limit {
            return Err(DecodeError::TooManyEvents);
        }
        let rest = &text[at..];
        let (head, length) = scan(rest)?;
        let place = |part: Option<&str>| part.and_then(|part| Span::of(part, rest));
        split.contexts |= head.contexts;
        split.events.push(Event {
            index: u32::try_from(index).map_err(|_| DecodeError::TooManyEvents)?,
            kind: head.kind,
            track_events: head.track_events,
            key: place(head.key),
            reason: place(head.reason),
            json: body.slice(at..at + length),
        });
        at = skip_space(text, at + length);
        match byte(text, at) {
            Some(b',') => at = skip_space(text, at + 1),
            Some(b']') => return end(text, at + 1).map(|()| split),
            _ => return Err(DecodeError::BrokenJson),
        }
    }
}

fn end(text: &str, at: usize) -> Result<(), DecodeError> {
    if skip_space(text, at) == text.len() {
        Ok(())
    } else {
        Err(DecodeError::BrokenJson)
    }
}

fn byte(text: &str, at: usize) -> Option<u8> {
    text.as_bytes().get(at).copied()
}

fn skip_space(text: &str, at: usize) -> usize {
    let rest = text.as_bytes().get(at..).unwrap_or_default();
    at + rest
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
        .count()
}

// What the element at the beginning of `text` says it is, and its length.
fn scan(text: &str) -> Result<(Head<'_>, usize), DecodeError> {
    let deserializer = serde_json::Deserializer::from_str(text);
    if text.starts_with('{') {
        let mut elements = deserializer.into_iter::<Head<'_>>();
        match elements.next() {
            Some(Ok(head)) => Ok((head, elements.byte_offset())),
            _ => Err(DecodeError::BrokenJson),
        }
    } else {
        // Kept in its place, so that the events behind it keep their index; never exported.
        let mut elements = deserializer.into_iter::<IgnoredAny>();
        match elements.next() {
            Some(Ok(_)) => Ok((Head::default(), elements.byte_offset())),
            _ => Err(DecodeError::BrokenJson),
        }
    }
}

struct Head<'a> {
    kind: Kind,
    track_events: bool,
    // As written, quotes included; only a string.
    key: Option<&'a str>,
    // As written; only an object.
    reason: Option<&'a str>,
    contexts: bool,
}

impl Default for Head<'_> {
    fn default() -> Self {
        Self {
            kind: Kind::Other,
            track_events: false,
            key: None,
            reason: None,
            contexts: false,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Head<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeadVisitor)
    }
}

struct HeadVisitor;

impl<'de> Visitor<'de> for HeadVisitor {
    type Value = Head<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Head<'de>, A::Error> {
        let mut head = Head::default();
        // Values are taken raw: one that is no valid string (a lone surrogate) is no reason to lose a batch.
        // Of duplicates the last counts, as for those who read the export.
        while let Some(name) = map.next_key::<Name>()? {
            match name {
                Name::Kind => head.kind = kind(map.next_value::<&RawValue>()?.get()),
                Name::TrackEvents => head.track_events = map.next_value::<&RawValue>()?.get() == "true",
                Name::Key => head.key = beginning_with(map.next_value::<&'de RawValue>()?, '"'),
                Name::Reason => head.reason = beginning_with(map.next_value::<&'de RawValue>()?, '{'),
                Name::Context => {
                    map.next_value::<IgnoredAny>()?;
                    head.contexts = true;
                }
                Name::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(head)
    }
}

// The members of an event that are looked at.
enum Name {
    Kind,
    TrackEvents,
    Key,
    Reason,
    Context,
    Other,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(match name {
            "kind" => Name::Kind,
            "trackEvents" => Name::TrackEvents,
            "key" => Name::Key,
            "reason" => Name::Reason,
            "context" | "contextKeys" => Name::Context,
            _ => Name::Other,
        })
    }
}

fn beginning_with(value: &RawValue, first: char) -> Option<&str> {
    Some(value.get()).filter(|json| json.starts_with(first))
}

fn kind(json: &str) -> Kind {
    match json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        None => Kind::Other,
        Some(text) if text.contains('\\') => {
            serde_json::from_str::<String>(json).map_or(Kind::Other, |text| Kind::of(&text))
        }
        Some(text) => Kind::of(text),
    }
}

#[cfg(test)]
mod tests;
