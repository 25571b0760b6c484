//! `variationName`: the name of the variation that an evaluation gave.
//!
//! LaunchDarkly adds it to the events that it exports; it is in no SDK's event. The name is that of the variation at the
//! place `variation` says, and only if that variation's value is the event's: after variations were moved or replaced a
//! name would be another one's.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Environment, Variation};
use crate::event::{Event, Kind};
use crate::export::Members;

const NAME: &str = "variationName";

impl Variation {
    /// Returns a variation with this name and value.
    pub fn new(name: Option<String>, value: &Value) -> Self {
        Self {
            name: super::short(name),
            value: meaning(value),
        }
    }
}

/// Returns an evaluation's JSON (`json`, which may say more than the event's own) with its variation's name behind
/// `variation`. As it was if it has a name, if none is known, and for other kinds of event.
pub fn named(json: Bytes, event: &Event, environment: &Environment) -> Bytes {
    if !matches!(event.kind, Kind::Feature | Kind::Debug) {
        return json;
    }
    let flag = event.key().and_then(|key| environment.flags.get(&*key));
    let Some((flag, text)) = flag.zip(std::str::from_utf8(&json).ok()) else {
        return json;
    };
    match name(text, &flag.variations) {
        Some((at, name)) => {
            let (head, tail) = text.split_at(at);
            Bytes::from(format!("{head},\"{NAME}\":{name}{tail}"))
        }
        None => json,
    }
}

/// Returns the name as a JSON string, and where it belongs.
fn name<'a>(json: &str, variations: &'a [Variation]) -> Option<(usize, Cow<'a, str>)> {
    let members = Members::of(json)?;
    if members.get(NAME).is_some() {
        return None;
    }
    let place = members.get("variation")?;
    let variation = variations.get(place.strip_suffix(".0").unwrap_or(place).parse::<usize>().ok()?)?;
    let name = variation.name.as_ref()?;
    let value: Value = serde_json::from_str(members.get("value")?).ok()?;
    if meaning(&value) != variation.value {
        return None;
    }
    let end = place.as_ptr().addr() - json.as_ptr().addr() + place.len();
    Some((end, Value::from(name.as_str()).to_string().into()))
}

/// Returns a number that values of the same meaning have: 64 bits of a hash. The order of members does not matter, nor
/// how a number is written.
fn meaning(value: &Value) -> u64 {
    let mut hash = Sha256::new();
    feed(&mut hash, value);
    let digest = hash.finalize();
    u64::from_be_bytes(std::array::from_fn(|index| digest[index]))
}

// No deeper than the parser goes.
fn feed(hash: &mut Sha256, value: &Value) {
    let mut text = |tag: &[u8], text: &str| {
        hash.update(tag);
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    match value {
        Value::Null => hash.update(b"null"),
        Value::Bool(true) => hash.update(b"true"),
        Value::Bool(false) => hash.update(b"false"),
        Value::Number(number) => {
            hash.update(b"number");
            // Adding 0 makes one of the two zeros.
            hash.update((number.as_f64().unwrap_or(f64::NAN) + 0.0).to_bits().to_be_bytes());
        }
        Value::String(string) => text(b"string", string),
        Value::Array(items) => {
            hash.update(b"[");
            items.iter().for_each(|item| feed(hash, item));
            hash.update(b"]");
        }
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            hash.update(b"{");
            for (name, value) in sorted {
                hash.update((name.len() as u64).to_be_bytes());
                hash.update(name);
                feed(hash, value);
            }
            hash.update(b"}");
        }
    }
}
