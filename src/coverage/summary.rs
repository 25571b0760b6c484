//! The evaluation counts in a `summary` event: `{"features":{<flag>:{"counters":[{"count":n,"unknown":true,…},…],…},…},…}`;
//! `unknown` is there if the SDK found no such flag.
//!
//! The event itself need not be exported for this. A counter's `count` that is no number counts 0; a summary of another
//! shape says nothing.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
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
        while let Some(Text(flag)) = map.next_key()? {
            let sums: Sums = map.next_value()?;
            (self.0)(&flag, sums.all, sums.unknown);
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The sums of a flag's counters, added up as they are read: a sender can have one in three bytes of JSON.
#[derive(Clone, Copy, Default)]
struct Sums {
    all: u64,
    unknown: u64,
}

impl<'de> Deserialize<'de> for Sums {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Flag;
        impl<'de> Visitor<'de> for Flag {
            type Value = Sums;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a flag with its counters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Sums, A::Error> {
                let mut sums = Sums::default();
                while let Some(Text(name)) = map.next_key()? {
                    if name == "counters" {
                        sums = map.next_value_seed(Counters)?;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(sums)
            }
        }
        deserializer.deserialize_map(Flag)
    }
}

struct Counters;

impl<'de> DeserializeSeed<'de> for Counters {
    type Value = Sums;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Sums, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counters {
    type Value = Sums;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counters")
    }

    fn visit_unit<E>(self) -> Result<Sums, E> {
        Ok(Sums::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Sums, A::Error> {
        let mut sums = Sums::default();
        while let Some(counter) = list.next_element::<Counter<'_>>()? {
            let count = counter.count();
            sums.all = sums.all.saturating_add(count);
            if counter.is_unknown() {
                sums.unknown = sums.unknown.saturating_add(count);
            }
        }
        Ok(sums)
    }
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
        let whole = || text.parse::<f64>().ok().filter(|count| count.fract() == 0.0);
        // Some SDKs write whole numbers as floating-point ones. What is negative becomes 0.
        text.parse()
            .ok()
            .or_else(|| whole().map(|count| count as u64))
            .unwrap_or(0)
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
            "\u0062":{"counters":[]}, "c":{"default":null}, "d":{"counters":[{"count":"7"},{"count":-1},{"count":1.5},{}]},
            "e":{"counters":null}, "f":{"counters":[{"count":1}],"counters":[{"count":2e3}]}
        },"endDate":2}"#;
        let expected = [
            ("a", 5, 2),
            ("b", 0, 0),
            ("c", 0, 0),
            ("d", 0, 0),
            ("e", 0, 0),
            ("f", 2000, 0),
        ];
        let expected = expected.map(|(flag, count, unknown)| (flag.to_owned(), count, unknown));
        assert_eq!(read(json), (expected.to_vec(), true));
    }

    #[test]
    fn a_count_too_large_to_add_stays_the_largest() {
        let json = r#"{"features":{"a":{"counters":[{"count":18446744073709551615},{"count":5}]}}}"#;
        assert_eq!(read(json), (vec![("a".to_owned(), u64::MAX, 0)], true));
    }

    #[test]
    fn a_million_counters_are_added_up_one_by_one() {
        let counters = vec![r#"{"count":1}"#; 1_000_000].join(",");
        let json = format!(r#"{{"features":{{"a":{{"counters":[{counters},{{"unknown":true,"count":3}}]}}}}}}"#);
        assert_eq!(read(&json), (vec![("a".to_owned(), 1_000_003, 3)], true));
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
