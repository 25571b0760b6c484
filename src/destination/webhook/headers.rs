//! The headers that a user adds to a webhook's requests: names are free but for those that belong to flagtap or to the
//! connection, values are secrets.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{IDEMPOTENCY_KEY, SIGNATURE};
use crate::secret::Secret;
use crate::section::Section;

/// What HTTP needs for itself, or flagtap sets.
const FORBIDDEN: [&str; 18] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    IDEMPOTENCY_KEY,
    SIGNATURE,
];

/// Names with their values, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(HeaderName, Secret)>);

impl Headers {
    /// Returns the headers as a request has them.
    pub(super) fn map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.0.len() + 2);
        for (name, value) in &self.0 {
            // What cannot be a value was refused when it was read.
            if let Ok(mut value) = HeaderValue::from_bytes(value.expose().as_bytes()) {
                value.set_sensitive(true);
                map.insert(name, value);
            }
        }
        map
    }
}

/// Reads the key `headers`.
pub(super) fn read(section: &mut Section<'_>) -> Headers {
    let mut headers = Headers::default();
    for (text, value, place) in section.secret_mapping("headers") {
        let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
            section.problem_at(place, "is not the name of a header");
            continue;
        };
        if FORBIDDEN.contains(&name.as_str()) {
            section.problem_at(place, "is a header that flagtap or HTTP itself sets");
        } else if headers.0.iter().any(|(other, _)| *other == name) {
            section.problem_at(place, "is given twice (the case of a header's name does not matter)");
        } else if HeaderValue::from_bytes(value.expose().as_bytes()).is_err() {
            section.problem_at(place, "has a character that no header can hold");
        } else {
            headers.0.push((name, value));
        }
    }
    headers
}
