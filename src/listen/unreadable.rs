//! What a client is told whose request's head cannot be read.
//!
//! hyper answers such a head by itself, with 400 or 431, and asks nobody. SDKs stop sending events for good after most 4xx
//! answers (docs/guarantees.md), so what is written between two requests is looked at: an answer that is hyper's own goes out
//! as another.

use std::sync::Arc;

use bytes::Bytes;

/// Returns the answer in place of hyper's own, whole.
pub type Unreadable = Arc<dyn Fn(&Own<'_>) -> Bytes + Send + Sync>;

/// What hyper answers to a head that it cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own<'a> {
    /// The head has too many bytes or headers; else it is no HTTP.
    pub too_large: bool,
    /// The value of its header `Date`.
    pub date: &'a str,
}

/// Returns what `written` says if it is hyper's own answer to a head that it cannot read.
///
/// A whole answer with a 4xx, without a body and with no other header than hyper's: an upstream's is given on with what it
/// came with, and never between two requests.
pub(super) fn own(written: &[u8]) -> Option<Own<'_>> {
    let text = std::str::from_utf8(written).ok().filter(|text| text.len() < 300)?;
    let head = text.strip_suffix("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?;
    let names = ["connection", "content-length", "date"];
    let (mut seen, mut date) = (0, "");
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let place = names.iter().position(|known| name.eq_ignore_ascii_case(known))?;
        let fits = match place {
            0 => value.trim() == "close",
            1 => value.trim() == "0",
            _ => {
                date = value.trim();
                true
            }
        };
        seen |= u8::from(fits) << place;
    }
    let too_large = status == "431" || status == "414";
    (seen == 0b111 && status.starts_with('4')).then_some(Own { too_large, date })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_hyper_says_by_itself_is_its_own() {
        let date = "Fri, 27 Nov 2026 06:00:00 GMT";
        let answer = |status: &str| {
            format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\ndate: {date}\r\n\r\n")
        };
        for (status, too_large) in [
            ("431 Request Header Fields Too Large", true),
            ("414 URI Too Long", true),
            ("400 Bad Request", false),
        ] {
            assert_eq!(own(answer(status).as_bytes()), Some(Own { too_large, date }));
        }
        for other in [
            answer("503 Service Unavailable"),
            answer("400 Bad Request").replace("close", "keep-alive"),
            answer("400 Bad Request").replace(": 0", ": 5") + "wrong",
            answer("401 Unauthorized").replace("date:", "server: x\r\ndate:"),
            answer("401 Unauthorized").replace(&format!("date: {date}\r\n"), ""),
            answer("400 Bad Request") + "x",
            "HTTP/1.1 4".to_owned(),
            String::new(),
        ] {
            assert_eq!(own(other.as_bytes()), None, "{other:?}");
        }
    }
}
