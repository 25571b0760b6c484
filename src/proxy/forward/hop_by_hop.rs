//! Which headers belong to one connection only (RFC 9110 §7.6.1) and are not passed on.
//!
//! The fixed list, and what `Connection` names; but a client cannot use `Connection` to take away what the events
//! service needs to know whose events these are and to recognise a retry.

use http::header::{
    self, ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, DATE, HOST,
    HeaderMap, HeaderName, ORIGIN, TRANSFER_ENCODING, USER_AGENT,
};

const FIXED: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    TRANSFER_ENCODING,
    header::UPGRADE,
];

// `Connection: Authorization` would turn an accepted batch into a 401, after which most SDKs send nothing any more.
const PROTECTED: [HeaderName; 10] = [
    ACCEPT,
    AUTHORIZATION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    COOKIE,
    DATE,
    HOST,
    ORIGIN,
    USER_AGENT,
];

/// Returns a copy of `headers` without the hop-by-hop ones, in the same order.
///
/// Built anew instead of by removal: `HeaderMap::remove` would move the last header into the gap.
pub(super) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    let mut passed = HeaderMap::with_capacity(headers.len() + 1);
    // With both, the length is not that of the content (RFC 9112 §6.3), and a reader that believed it would cut it off.
    let misleading_length = headers.contains_key(TRANSFER_ENCODING);
    for (name, value) in headers {
        if misleading_length && name == CONTENT_LENGTH {
            continue;
        }
        if !FIXED.contains(name) && !named.contains(name) {
            passed.append(name.clone(), value.clone());
        }
    }
    passed
}

/// Returns true if the content has a transfer coding besides `chunked`: the coding is this connection's, and nobody undid
/// it.
pub(super) fn is_coded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| !coding.trim().is_empty() && !coding.trim().eq_ignore_ascii_case("chunked"))
}

/// Returns true if some header would stay behind.
pub(super) fn any(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| FIXED.contains(name))
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .filter(|name| !PROTECTED.contains(name) && !is_platform_header(name))
        .collect()
}

fn is_platform_header(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-launchdarkly-") || name.as_str().starts_with("access-control-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pairs: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, http::HeaderValue::from_static(value));
        }
        passed_on(&headers)
            .keys()
            .map(|name| name.as_str().to_owned())
            .collect()
    }

    #[test]
    fn fixed_and_named_headers_stay_behind_and_order_is_kept() {
        let kept = names(&[
            ("accept", "*/*"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic eA=="),
            ("user-agent", "GoClient/7"),
            ("x-site", "1"),
        ]);
        assert_eq!(kept, ["accept", "user-agent", "x-site"]);
    }

    #[test]
    fn connection_cannot_name_away_what_the_service_needs() {
        let kept = names(&[
            (
                "connection",
                "Authorization, X-LaunchDarkly-Payload-ID, X-LaunchDarkly-Event-Schema, Content-Encoding",
            ),
            ("authorization", "sdk-1"),
            ("x-launchdarkly-payload-id", "p"),
            ("x-launchdarkly-event-schema", "4"),
            ("content-encoding", "gzip"),
        ]);
        assert_eq!(
            kept,
            [
                "authorization",
                "x-launchdarkly-payload-id",
                "x-launchdarkly-event-schema",
                "content-encoding"
            ]
        );
    }

    #[test]
    fn a_length_beside_a_transfer_coding_is_not_believed() {
        let kept = names(&[
            ("content-length", "2"),
            ("transfer-encoding", "chunked"),
            ("x-site", "1"),
        ]);
        assert_eq!(kept, ["x-site"]);
    }

    #[test]
    fn only_chunked_is_undone_here() {
        let coded = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.append(TRANSFER_ENCODING, http::HeaderValue::from_static(value));
            is_coded(&headers)
        };
        assert!(!coded("chunked") && !coded("Chunked"));
        assert!(coded("gzip, chunked") && coded("gzip"));
        assert!(!is_coded(&HeaderMap::new()));
    }

    #[test]
    fn a_connection_header_that_is_not_text_names_nothing() {
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, http::HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        headers.append("x-site", http::HeaderValue::from_static("1"));
        assert_eq!(passed_on(&headers).len(), 1);
    }
}
