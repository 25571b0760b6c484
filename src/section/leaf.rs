//! What a single value of the configuration can be, and how its text is read.
//!
//! An error says what is wrong with the text and never repeats it: it could be a misplaced secret.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::schema::scalar;
use crate::units::{ByteSize, format_duration, parse_duration};

/// A value that is written as one scalar.
pub trait Leaf: Sized {
    /// Returns what is expected, with an example, to stand after "expected": `a duration such as 30s`.
    fn expected() -> String;

    /// Returns the type's short name for documentation: `duration`.
    fn noun() -> String {
        Self::expected()
    }

    /// Reads the text, or says what is wrong with it (to stand after the key): `has no unit`.
    fn parse(text: &str) -> Result<Self, String>;

    /// Returns the text that [`Leaf::parse`] reads back to the same value; the documentation shows defaults so.
    fn show(&self) -> String;

    /// Returns the JSON Schema of a value. What it takes, [`Leaf::parse`] takes too, up to limits of size.
    fn schema() -> Value {
        json!({ "type": "string", "minLength": 1 })
    }
}

impl Leaf for String {
    fn expected() -> String {
        "text".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("is empty".to_owned());
        }
        if text.chars().any(char::is_control) {
            return Err("has a line break or another control character".to_owned());
        }
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Leaf for bool {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("is neither true nor false".to_owned()),
        }
    }

    fn schema() -> Value {
        scalar("true|false", Some("boolean"))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! whole_number {
    ($($type:ty: $range:literal),*) => {$(
        impl Leaf for $type {
            fn expected() -> String {
                concat!("a whole number", $range, ", such as 100").to_owned()
            }

            fn noun() -> String {
                "number".to_owned()
            }

            fn parse(text: &str) -> Result<Self, String> {
                // `from_str` alone would take a leading plus.
                if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                    return Err("is not a whole number".to_owned());
                }
                text.parse().map_err(|_| "is too large".to_owned())
            }

                    fn schema() -> Value {
                let mut schema = scalar("[0-9]+", Some("integer"));
                schema["minimum"] = json!(0);
                schema
            }

    fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

whole_number!(u16: " up to 65535", u32: "", u64: "", usize: "");

impl Leaf for Duration {
    fn expected() -> String {
        "a duration with its unit, such as 500ms, 30s, 5m, 12h or 7d".to_owned()
    }

    fn noun() -> String {
        "duration".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        parse_duration(text).map_err(|error| error.to_string())
    }

    fn schema() -> Value {
        zero_or("[0-9]+(?:ms|[smhd])")
    }

    fn show(&self) -> String {
        format_duration(*self)
    }
}

impl Leaf for ByteSize {
    fn expected() -> String {
        "a size with its unit, such as 512KiB, 16MiB or 1GiB".to_owned()
    }

    fn noun() -> String {
        "size".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: crate::units::UnitError| error.to_string())
    }

    fn schema() -> Value {
        zero_or("[0-9]+(?:[KMGT]iB|[kMGT]?B)")
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Leaf for PathBuf {
    fn expected() -> String {
        "a path, such as /var/lib/flagtap".to_owned()
    }

    fn noun() -> String {
        "path".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        String::parse(text).map(Self::from)
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Leaf for http::Uri {
    fn expected() -> String {
        "a URL with its scheme, such as https://events.launchdarkly.com".to_owned()
    }

    fn noun() -> String {
        "URL".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let uri: Self = text.parse().map_err(|_| "is not a URL".to_owned())?;
        match (uri.scheme_str(), uri.host()) {
            (Some(_), Some(host)) if !host.is_empty() => Ok(uri),
            _ => Err("has no scheme or no host".to_owned()),
        }
    }

    fn schema() -> Value {
        scalar("[A-Za-z][A-Za-z0-9+.-]*://[^/?#\\s]\\S*", None)
    }

    fn show(&self) -> String {
        let text = self.to_string();
        // `Uri` writes an empty path as `/`.
        match text.strip_suffix('/') {
            Some(bare) if self.path() == "/" && self.query().is_none() => bare.to_owned(),
            _ => text,
        }
    }
}

impl Leaf for SocketAddr {
    fn expected() -> String {
        "an IP address and a port, such as 0.0.0.0:8030 or [::1]:8030".to_owned()
    }

    fn noun() -> String {
        "address and port".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "is not an address".to_owned())
    }

    fn schema() -> Value {
        scalar("[0-9.]+:[0-9]+|\\[[0-9A-Fa-f:.]+\\]:[0-9]+", None)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Returns the schema of a number with its unit, which only 0 can do without.
fn zero_or(pattern: &str) -> Value {
    let mut schema = scalar(&format!("0|{pattern}"), Some("integer"));
    schema["maximum"] = json!(0);
    schema["minimum"] = json!(0);
    schema
}

/// Declares an enum whose variants have one spelling each in the configuration, and its [`Leaf`].
///
/// ```
/// flagtap::choices! {
///     /// What happens when the queue is full.
///     pub enum WhenFull {
///         /// The oldest records make room.
///         DropOldest = "drop_oldest",
///         /// New records are refused.
///         DropNewest = "drop_newest",
///     }
/// }
/// assert_eq!(WhenFull::DropOldest.as_str(), "drop_oldest");
/// ```
#[macro_export]
macro_rules! choices {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $visibility enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// Returns the configuration's spelling.
            $visibility fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl $crate::section::Leaf for $name {
            fn expected() -> String {
                format!("one of {}", Self::noun())
            }

            fn noun() -> String {
                [$(concat!("`", $text, "`")),+].join(", ")
            }

            fn parse(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err($crate::section::not_a_choice(text, &[$($text),+])),
                }
            }

            fn schema() -> ::serde_json::Value {
                $crate::section::words(&[$($text),+])
            }

            fn show(&self) -> String {
                self.as_str().to_owned()
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused<T: Leaf + std::fmt::Debug>(text: &str) -> String {
        T::parse(text).unwrap_err()
    }

    #[test]
    fn only_true_and_false_are_booleans() {
        assert_eq!(bool::parse("true"), Ok(true));
        for text in ["yes", "on", "True", "1", "n"] {
            assert_eq!(refused::<bool>(text), "is neither true nor false");
        }
    }

    #[test]
    fn numbers_are_digits_within_range() {
        assert_eq!(u16::parse("8030"), Ok(8030));
        assert_eq!(refused::<u16>("70000"), "is too large");
        for text in ["+5", "-5", "1_000", "0x10", "1e3", ""] {
            assert_eq!(refused::<u32>(text), "is not a whole number");
        }
    }

    #[test]
    fn urls_need_scheme_and_host() {
        assert_eq!(
            http::Uri::parse("https://a.example").unwrap().show(),
            "https://a.example"
        );
        assert_eq!(
            http::Uri::parse("https://a.example/x/").unwrap().show(),
            "https://a.example/x/"
        );
        for text in ["a.example", "/bulk", "a.example:443"] {
            assert_eq!(refused::<http::Uri>(text), "has no scheme or no host");
        }
    }

    proptest! {
        #[test]
        fn a_refusal_never_repeats_the_text(text in "[a-zA-Z0-9_-]{6,40}") {
            let said = [
                Duration::parse(&text).err(), ByteSize::parse(&text).err(), bool::parse(&text).err(),
                u64::parse(&text).err(), http::Uri::parse(&text).err(), SocketAddr::parse(&text).err(),
            ];
            for message in said.into_iter().flatten() {
                prop_assert!(!message.contains(&text), "{message}");
            }
        }
    }
}
