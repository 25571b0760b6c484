//! Patterns for names: `*` stands for any run of characters, everything else for itself.
//!
//! Nothing more, so that matching takes time in proportion to the name however the pattern is made: names come from
//! traffic. A pattern is at most [`MAX_BYTES`] long.

use crate::section::Leaf;

/// Longest pattern, bytes. Flag and event keys are shorter.
pub const MAX_BYTES: usize = 256;

/// A pattern for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
}

impl Glob {
    /// Returns true if all of `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.text.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(last) = parts.next_back() else {
            return name == first;
        };
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        // Leftmost is as good as any: it leaves the most for the parts behind.
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        rest.ends_with(last)
    }

    /// Returns the pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Leaf for Glob {
    fn expected() -> String {
        format!("a name of up to {MAX_BYTES} characters in which `*` stands for any others, such as checkout-*")
    }

    fn noun() -> String {
        "pattern".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let text = String::parse(text)?;
        if text.len() > MAX_BYTES {
            return Err("is too long".to_owned());
        }
        Ok(Self { text })
    }

    fn show(&self) -> String {
        self.text.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Glob::parse(pattern).unwrap().matches(name)
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, name, expected) in [
            ("checkout-*", "checkout-done", true),
            ("checkout-*", "checkout-", true),
            ("checkout-*", "a-checkout-done", false),
            ("*-done", "checkout-done", true),
            ("*-done", "checkout-done-2", false),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("ab*ba", "abba", true),
            ("*", "", true),
            ("**", "x", true),
            ("$ld:*", "$ld:ai:tokens", true),
            ("a.c", "abc", false),
            ("[a]?", "[a]?", true),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_is_short_and_not_empty() {
        assert!(Glob::parse("").is_err());
        assert!(Glob::parse(&"a".repeat(MAX_BYTES + 1)).is_err());
        assert!(Glob::parse(&"*".repeat(MAX_BYTES)).is_ok());
    }

    /// The plain definition, which takes exponential time.
    fn defined(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=name.len()).any(|from| defined(rest, &name[from..])),
            ([one, rest @ ..], [other, name @ ..]) => one == other && defined(rest, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_as_defined(pattern in "[ab*]{1,7}", name in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &name), defined(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
