//! Writes JSON objects from JSON text, for destinations whose records are not the export record.
//!
//! A *token* is a value as the SDK wrote it. Tokens are copied, never parsed and written anew, so numbers keep their
//! digits (`1e-07`, 9007199254740993) and strings their escapes. Order is the caller's; nothing is indented.

use std::borrow::Cow;

/// An object that is being written.
#[derive(Debug)]
pub struct Object<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

impl<'o> Object<'o> {
    /// Begins an object at the end of `out`.
    pub fn open(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    /// Adds a member with this token.
    pub fn token(&mut self, name: &str, token: &str) {
        self.bytes(name, token.as_bytes());
    }

    /// Adds a member with this value, JSON.
    pub fn bytes(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.out.extend_from_slice(value);
    }

    /// Adds a string.
    pub fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        push_text(self.out, text);
    }

    /// Adds an object; the outer one goes on when the inner one is closed.
    pub fn object(&mut self, name: &str) -> Object<'_> {
        self.name(name);
        Object::open(self.out)
    }

    /// Adds a member whose name is a token too.
    pub fn member(&mut self, name: &str, token: &str) {
        self.separate();
        for part in [name, ":", token] {
            self.out.extend_from_slice(part.as_bytes());
        }
    }

    /// Ends the object.
    pub fn close(self) {
        self.out.push(b'}');
    }

    fn name(&mut self, name: &str) {
        self.separate();
        push_text(self.out, name);
        self.out.push(b':');
    }

    fn separate(&mut self) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
    }
}

/// Appends a string.
pub fn push_text(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// Returns a token as the token of a string: a string as it is, any other value's JSON as text.
pub fn as_string(token: &str) -> Cow<'_, str> {
    if token.starts_with('"') {
        return Cow::Borrowed(token);
    }
    let mut text = Vec::with_capacity(token.len() + 2);
    push_text(&mut text, token);
    Cow::Owned(String::from_utf8(text).unwrap_or_default())
}

/// Returns a string's token with at most `most` UTF-16 code units of its text. No escape and no pair is cut in two.
pub fn cut(token: &str, most: usize) -> Cow<'_, str> {
    let inner = token.get(1..token.len() - 1).unwrap_or_default();
    // No unit takes less than a byte.
    if inner.len() <= most {
        return Cow::Borrowed(token);
    }
    let (mut end, mut units) = (0, 0);
    while let Some((bytes, more)) = next_character(&inner[end..]) {
        units += more;
        if units > most {
            return Cow::Owned(format!("\"{}\"", &inner[..end]));
        }
        end += bytes;
    }
    Cow::Borrowed(token)
}

// The length of the first character of a string's inner text: bytes as written, and UTF-16 code units.
fn next_character(inner: &str) -> Option<(usize, usize)> {
    let first = inner.chars().next()?;
    if first != '\\' {
        return Some((first.len_utf8(), first.len_utf16()));
    }
    let unit = |at: usize| {
        let digits = inner.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    Some(match (unit(0), unit(6)) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, 2),
        (Some(_), _) => (6, 1),
        (None, _) => (2, 1),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_object_keeps_the_callers_order_and_the_tokens_bytes() {
        let mut out = Vec::new();
        let mut object = Object::open(&mut out);
        object.text("b", "x\"y");
        object.token("a", "1e-07");
        let mut inner = object.object("inner");
        inner.member("\"k\\u00e9\"", "[ 9007199254740993 ]");
        inner.close();
        object.object("empty").close();
        object.close();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"b":"x\"y","a":1e-07,"inner":{"k\u00e9":[ 9007199254740993 ]},"empty":{}}"#
        );
    }

    #[test]
    fn any_value_has_a_text() {
        for (token, text) in [
            (r#""a\u00e9""#, r#""a\u00e9""#),
            ("1e-07", "\"1e-07\""),
            ("null", "\"null\""),
            (r#"{ "a":"b" }"#, r#""{ \"a\":\"b\" }""#),
        ] {
            assert_eq!(as_string(token), text);
        }
    }

    #[test]
    fn a_string_is_cut_between_characters() {
        for (token, most, expected) in [
            (r#""abc""#, 3, r#""abc""#),
            (r#""abc""#, 2, r#""ab""#),
            (r#""a\n\"b""#, 3, r#""a\n\"""#),
            (r#""\u00e9\u00e9""#, 1, r#""\u00e9""#),
            (r#""a\ud83d\ude00""#, 2, r#""a""#),
            (r#""a\ud83d\ude00b""#, 3, r#""a\ud83d\ude00""#),
            (r#""\ud83dabc""#, 2, r#""\ud83da""#),
            ("\"é🏴x\"", 2, "\"é\""),
            ("\"é🏴x\"", 3, "\"é🏴\""),
        ] {
            assert_eq!(cut(token, most), expected, "{token} to {most}");
        }
    }

    proptest! {
        #[test]
        fn a_cut_string_is_the_beginning_of_the_string(text: String, most in 0usize..20) {
            let token = serde_json::to_string(&text).unwrap();
            let short: String = serde_json::from_str(&cut(&token, most)).unwrap();
            prop_assert!(text.starts_with(&short));
            prop_assert!(short.encode_utf16().count() <= most);
            let next = text[short.len()..].chars().next();
            let units = short.encode_utf16().count() + next.map_or(usize::MAX / 2, char::len_utf16);
            prop_assert!(units > most, "one more would have fitted");
        }
    }
}
