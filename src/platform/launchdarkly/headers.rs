//! The headers of an event post, read within bounds.
//!
//! Names and meanings are those of the SDKs' own event senders. What cannot be read counts as absent: a header never
//! makes a batch fail. The case of the names varies between SDKs, which `HeaderMap` does not see.

use http::HeaderMap;

use crate::event::Schema;

const SCHEMA: &str = "x-launchdarkly-event-schema";
const UNSUMMARIZED: &str = "x-launchdarkly-unsummarized";
const PAYLOAD_ID: &str = "x-launchdarkly-payload-id";
const LAUNCHDARKLY_USER_AGENT: &str = "x-launchdarkly-user-agent";
const USER_AGENT: &str = "user-agent";
const TAGS: &str = "x-launchdarkly-tags";

// SDKs send a UUID. A longer one is no payload id of an SDK's, and would be kept in the duplicate window.
const MAX_PAYLOAD_ID_BYTES: usize = 128;
const MAX_SDK_BYTES: usize = 128;
const MAX_TAGS_BYTES: usize = 1024;

/// Returns the payload's schema; `inferred` is its number where the header is absent.
///
/// A number that cannot be read counts as 1, as if the header were absent from an ordinary post. One above 4 is kept:
/// what a later schema adds to contexts is exported as contexts are.
pub(super) fn schema(headers: &HeaderMap, inferred: u8) -> Schema {
    let number = match headers.get(SCHEMA) {
        None => inferred,
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(1)
            .max(1),
    };
    Schema {
        number,
        unsummarized: headers.contains_key(UNSUMMARIZED),
    }
}

/// Returns the SDK's payload id.
pub(super) fn payload_id(headers: &HeaderMap) -> Option<&str> {
    printable(headers, PAYLOAD_ID).filter(|id| id.len() <= MAX_PAYLOAD_ID_BYTES)
}

/// Returns the SDK's name and version, cut to 128 bytes: a browser's own user agent can be longer.
pub(super) fn sdk(headers: &HeaderMap) -> &str {
    let text = printable(headers, LAUNCHDARKLY_USER_AGENT)
        .or_else(|| printable(headers, USER_AGENT))
        .unwrap_or_default();
    text.get(..MAX_SDK_BYTES).unwrap_or(text)
}

/// Returns the application tags. Beyond 1 KiB, far above what SDKs allow, all are left out: half a tag would be a lie.
pub(super) fn tags(headers: &HeaderMap) -> &str {
    printable(headers, TAGS)
        .filter(|tags| tags.len() <= MAX_TAGS_BYTES)
        .unwrap_or_default()
}

fn printable<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let text = headers.get(name)?.to_str().ok()?.trim();
    (!text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))).then_some(text)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_bytes(value).unwrap()))
            .collect()
    }

    #[test]
    fn reads_the_schema() {
        for (value, number) in [
            (&b"1"[..], 1),
            (b"2", 2),
            (b"3", 3),
            (b" 4 ", 4),
            (b"5", 5),
            (b"0", 1),
            (b"", 1),
            (b"-3", 1),
            (b"300", 1),
            (b"\xff", 1),
            (b"three", 1),
        ] {
            assert_eq!(schema(&headers(&[(SCHEMA, value)]), 1).number, number, "{value:?}");
        }
        assert_eq!(schema(&headers(&[]), 1).number, 1);
        assert_eq!(schema(&headers(&[]), 3).number, 3);
    }

    #[test]
    fn unsummarized_counts_by_its_presence() {
        for value in [&b"true"[..], b"false", b""] {
            assert!(schema(&headers(&[(UNSUMMARIZED, value)]), 1).unsummarized);
        }
        assert!(!schema(&headers(&[]), 1).unsummarized);
    }

    #[test]
    fn an_odd_payload_id_counts_as_absent() {
        let id = "a3f1c9d0-6a1e-4d1b-9a57-0d9d0c6b7a11";
        assert_eq!(payload_id(&headers(&[(PAYLOAD_ID, id.as_bytes())])), Some(id));
        for odd in [&b""[..], b"  ", b"a\tb", b"\xff", &[b'a'; 129]] {
            assert_eq!(payload_id(&headers(&[(PAYLOAD_ID, odd)])), None, "{odd:?}");
        }
    }

    #[test]
    fn prefers_launchdarklys_own_user_agent_header() {
        let both = headers(&[
            (USER_AGENT, b"Mozilla/5.0"),
            (LAUNCHDARKLY_USER_AGENT, b"JSClient/2.14.1"),
        ]);
        assert_eq!(sdk(&both), "JSClient/2.14.1");
        assert_eq!(
            sdk(&headers(&[(USER_AGENT, b"PythonClient/9.18.2")])),
            "PythonClient/9.18.2"
        );
        assert_eq!(sdk(&headers(&[(USER_AGENT, &[b'a'; 500])])).len(), 128);
        assert_eq!(sdk(&headers(&[])), "");
    }

    #[test]
    fn tags_are_whole_or_absent() {
        let text = "application-id/checkout application-version/1.0";
        assert_eq!(tags(&headers(&[(TAGS, text.as_bytes())])), text);
        assert_eq!(tags(&headers(&[(TAGS, &[b'a'; 1025])])), "");
    }
}
