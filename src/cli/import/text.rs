//! Texts from elsewhere in a configuration: quoted, in comments, as names and as variables.

use std::collections::BTreeSet;

/// Longest name in the configuration.
const MAX_NAME: usize = 63;

/// Returns a YAML scalar with this text. What would be taken for a variable is not.
pub(super) fn quoted(text: &str) -> String {
    quoted_key(text).replace("${", "$${")
}

/// Returns a YAML scalar for a mapping's key, in which no variables are looked for.
pub(super) fn quoted_key(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    // YAML takes JSON's strings, but not every character that JSON leaves as it is.
    json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)))
            }
            _ => out.push(c),
        }
        out
    })
}

/// Returns a text that stays in its comment.
pub(super) fn comment(text: &str) -> String {
    let harmless = |c: char| match c {
        '\u{2028}' | '\u{2029}' | '\u{feff}' => ' ',
        c if c.is_control() => ' ',
        c => c,
    };
    text.chars().map(harmless).take(200).collect()
}

/// Names that are all different.
#[derive(Default)]
pub(super) struct Names(BTreeSet<String>);

impl Names {
    /// Returns a name for the configuration that is close to `text`.
    pub(super) fn name(&mut self, text: &str, otherwise: &str) -> String {
        let allowed = |c: char| match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.') => c,
            _ => '-',
        };
        let name: String = text.chars().map(allowed).take(MAX_NAME).collect();
        let name = name.trim_matches(['-', '_', '.']);
        self.different(if name.is_empty() { otherwise } else { name }, "-", MAX_NAME)
    }

    /// Returns a name for a variable: upper-case letters, digits and underscores.
    pub(super) fn variable(&mut self, text: &str) -> String {
        let allowed = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        };
        let name: String = text.chars().map(allowed).collect();
        self.different(&name, "_", usize::MAX)
    }

    fn different(&mut self, name: &str, joint: &str, most: usize) -> String {
        let mut candidate = name.to_owned();
        let mut number = 1;
        while !self.0.insert(candidate.clone()) {
            number += 1;
            let tail = format!("{joint}{number}");
            let head: String = name.chars().take(most.saturating_sub(tail.len())).collect();
            candidate = head + &tail;
        }
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_and_all_different() {
        let mut names = Names::default();
        for (text, expected) in [
            ("Production EU", "production-eu"),
            ("production-eu", "production-eu-2"),
            ("--", "kinesis"),
            ("Größe", "gr--e"),
        ] {
            assert_eq!(names.name(text, "kinesis"), expected);
        }
        let long = "a".repeat(100);
        assert_eq!(names.name(&long, "").len(), 63);
        assert!(names.name(&long, "").ends_with("a-2"));
        assert_eq!(names.variable("LD_SDK_KEY_production.eu"), "LD_SDK_KEY_PRODUCTION_EU");
        assert_eq!(names.variable("LD_SDK_KEY_production-eu"), "LD_SDK_KEY_PRODUCTION_EU_2");
    }

    #[test]
    fn no_text_leaves_its_quotes_or_its_comment() {
        assert_eq!(quoted("a\"b\n${HOME}\u{85}"), r#""a\"b\n$${HOME}\u0085""#);
        assert_eq!(comment("a\nb: c\r\u{2028}d"), "a b: c  d");
    }
}
