//! The evaluation counts in a `summary` event: `{"features":{<flag>:{"counters":[{"count":n,"unknown":true,…},…],…},…},…}`;
//! `unknown` is there if the SDK found no such flag.
//!
//! The event itself need not be exported for this. A counter's `count` that is no number counts 0; a summary of another
//! shape says nothing.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::export::Members;

/// Calls `each` with every flag of a summary, how often it was evaluated, and how often of these the SDK did not know it. Returns false if the event has no such shape;
/// flags before the odd place have been called all the same.
pub(super) fn evaluations(json: &[u8], each: &mut dyn FnMut(&str, u64, u64)) -> bool {
    let members = std::str::from_utf8(json).ok().and_then(Members::of);
    let Some(features) = members.as_ref().and_then(|members| members.get("features")) else {
        return false;
    };
    let mut deserializer = serde_json::Deserializer::from_str(features);
    Features(each).deserialize(&mut deserializer).is_ok()
}

struct Features<'f>(&'f mut dyn FnMut(&str, u64, u64));

impl<'de> DeserializeSeed<'de> for Features<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Features<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("flags with their counters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(flag)) = map.next_key()? {
            let Feature { counters } = map.next_value()?;
            let sum = |only_unknown: bool| {
                let counted = counters.iter().filter(|one| !only_unknown || one.is_unknown());
                counted.fold(0u64, |sum, counter| sum.saturating_add(counter.count()))
            };
            (self.0)(&flag, sum(false), sum(true));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Feature<'a> {
    #[serde(borrow, default)]
    counters: Vec<Counter<'a>>,
}

#[derive(Deserialize)]
struct Counter<'a> {
    #[serde(borrow, default)]
    count: Option<&'a RawValue>,
    #[serde(borrow, default)]
    unknown: Option<&'a RawValue>,
}

impl Counter<'_> {
    fn is_unknown(&self) -> bool {
        self.unknown.is_some_and(|json| json.get() == "true")
    }

    fn count(&self) -> u64 {
        let text = self.count.map_or("0", RawValue::get);
        // Some SDKs write whole numbers as floating-point ones.
        text.strip_suffix(".0").unwrap_or(text).parse().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> (Vec<(String, u64, u64)>, bool) {
        let mut found = Vec::new();
        let whole = evaluations(json.as_bytes(), &mut |flag, count, unknown| {
            found.push((flag.to_owned(), count, unknown));
        });
        (found, whole)
    }

    #[test]
    fn sums_up_the_counters_of_each_flag() {
        let json = r#"{"kind":"summary","startDate":1,"features":{
            "a":{"default":{"deep":[1]},"counters":[{"value":true,"count":3,"version":1},{"count":2.0,"unknown":true}],"contextKinds":["user"]},
            "\u0062":{"counters":[]}, "c":{"default":null}, "d":{"counters":[{"count":"7"},{"count":-1},{}]}
        },"endDate":2}"#;
        let expected = [("a", 5, 2), ("b", 0, 0), ("c", 0, 0), ("d", 0, 0)];
        let expected = expected.map(|(flag, count, unknown)| (flag.to_owned(), count, unknown));
        assert_eq!(read(json), (expected.to_vec(), true));
    }

    #[test]
    fn a_count_too_large_to_add_stays_the_largest() {
        let json = r#"{"features":{"a":{"counters":[{"count":18446744073709551615},{"count":5}]}}}"#;
        assert_eq!(read(json), (vec![("a".to_owned(), u64::MAX, 0)], true));
    }

    #[test]
    fn another_shape_says_nothing() {
        for json in [
            "{}",
            "[]",
            r#"{"features":7}"#,
            r#"{"features":{"a":7}}"#,
            r#"{"features":{"\ud800":{}}}"#,
            r#"{"features":{"a":{"counters":{}}}}"#,
        ] {
            assert_eq!(read(json), (Vec::new(), false), "{json}");
        }
    }
}
