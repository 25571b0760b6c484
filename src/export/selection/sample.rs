//! Sampling: which contexts are in a flag's sample, and how an event says so.
//!
//! A context is in the sample of 1 in N if the first eight bytes of SHA-256(flag key, 0x00, context key), read as a
//! big-endian number, are divisible by N. So it is in or out for good, on every relay and in every release, and anybody
//! can compute it; different flags have different samples.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::event::Event;
use crate::export::envelope::partition_key;
use crate::export::{ExportEvent, Members};

/// The member that says for how many evaluations an event stands.
const RATIO: &str = "samplingRatio";

/// Returns true if the event is in its flag's sample of 1 in `ratio`. The context's key is the one that partitions go by;
/// an event without one is judged by all of its bytes.
pub(super) fn holds(flag: &str, event: &Event, ratio: u32) -> bool {
    let key = partition_key(&ExportEvent {
        project_id: "",
        environment_id: "",
        environment: "",
        version: 0,
        strip_private: false,
        id: "",
        kind: event.kind,
        json: &event.json,
    });
    let key = if key.is_empty() {
        &event.json[..]
    } else {
        key.as_bytes()
    };
    let hash = Sha256::new()
        .chain_update(flag)
        .chain_update([0])
        .chain_update(key)
        .finalize();
    let head: [u8; 8] = std::array::from_fn(|index| hash[index]);
    u64::from_be_bytes(head).is_multiple_of(u64::from(ratio.max(1)))
}

/// Returns an event's JSON that says it stands for `ratio` times as many evaluations as before: `samplingRatio` is
/// multiplied, or added at the end if it is not there. A `samplingRatio` that is no positive whole number counts as 1. No
/// other byte changes.
pub(super) fn stamp(json: &Bytes, ratio: u32) -> Bytes {
    let Some((text, members)) = std::str::from_utf8(json)
        .ok()
        .and_then(|text| Some((text, Members::of(text)?)))
    else {
        return json.clone();
    };
    let stamped = match members.get(RATIO) {
        Some(written) => {
            let before = written.parse::<u64>().unwrap_or(1).max(1);
            let at = written.as_ptr().addr() - text.as_ptr().addr();
            let (head, tail) = (&text[..at], &text[at + written.len()..]);
            format!("{head}{}{tail}", before.saturating_mul(u64::from(ratio)))
        }
        None => {
            let end = text.rfind('}').unwrap_or(text.len());
            let (head, tail) = text.split_at(end);
            let comma = if members.iter().next().is_some() { "," } else { "" };
            format!("{head}{comma}\"{RATIO}\":{ratio}{tail}")
        }
    };
    Bytes::from(stamped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ratio_changes() {
        for (json, expected) in [
            (r#"{"kind":"feature"}"#, r#"{"kind":"feature","samplingRatio":10}"#),
            (
                r#"{ "a": "}", "b": 1e2 } "#,
                r#"{ "a": "}", "b": 1e2 ,"samplingRatio":10} "#,
            ),
            ("{}", r#"{"samplingRatio":10}"#),
            (
                r#"{"samplingRatio" : 3, "a":{"samplingRatio":2}}"#,
                r#"{"samplingRatio" : 30, "a":{"samplingRatio":2}}"#,
            ),
            (r#"{"sampling\u0052atio":3}"#, r#"{"sampling\u0052atio":30}"#),
            (
                r#"{"samplingRatio":2,"samplingRatio":3}"#,
                r#"{"samplingRatio":2,"samplingRatio":30}"#,
            ),
            (r#"{"samplingRatio":null}"#, r#"{"samplingRatio":10}"#),
            (r#"{"samplingRatio":-3}"#, r#"{"samplingRatio":10}"#),
            (
                r#"{"samplingRatio":18446744073709551615}"#,
                r#"{"samplingRatio":18446744073709551615}"#,
            ),
        ] {
            assert_eq!(stamp(&Bytes::from_static(json.as_bytes()), 10), expected, "{json}");
        }
        assert_eq!(stamp(&Bytes::from_static(b"7"), 10), "7");
    }
}
