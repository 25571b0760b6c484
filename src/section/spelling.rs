//! The spellings of keys: our own, other names of a key, and the camelCase of LaunchDarkly's REST API.

use super::Section;
use super::tree::{self, Entry};
use crate::problems::Place;

impl Section<'_> {
    /// Takes keys here and below also as LaunchDarkly's REST API spells them: `streamName` for `stream_name`,
    /// `userIDContextKind` for `user_id_context_kind`.
    pub fn take_camel_case(&mut self) {
        self.camel_case = true;
    }

    /// Takes other names of keys (the first of each pair) for the keys.
    pub fn take_aliases(&mut self, aliases: &'static [(&'static str, &'static str)]) {
        self.aliases = aliases;
    }

    /// Reports the keys that are given in two spellings.
    pub(super) fn report_two_spellings(&self, keys: &[&str]) {
        for key in keys {
            let mut given = self.entries.iter().filter(|entry| self.names(entry, key));
            let first = given.next().map(|entry| entry.key.as_str());
            // The same spelling twice is an error of the YAML.
            for second in given.filter(|entry| Some(entry.key.as_str()) != first) {
                let place = Place {
                    path: tree::join(&self.place.path, &tree::printable_key(&second.key)),
                    line: second.line,
                    column: second.column,
                };
                self.problem_at(
                    place,
                    format!("is another spelling of `{key}`, which is given too; keep one"),
                );
            }
        }
    }

    /// Returns true if an entry is the one that a reader means by `key`.
    pub(super) fn names(&self, entry: &Entry, key: &str) -> bool {
        entry.key == key
            || self.aliases.contains(&(entry.key.as_str(), key))
            || (self.camel_case && is_camel_case_of(&entry.key, key))
    }
}

fn is_camel_case_of(spelled: &str, key: &str) -> bool {
    let letters = || key.bytes().filter(|letter| *letter != b'_');
    spelled.starts_with(|letter: char| letter.is_ascii_lowercase())
        && spelled.len() == letters().count()
        && spelled
            .bytes()
            .zip(letters())
            .all(|(one, other)| one.eq_ignore_ascii_case(&other))
}

/// Returns what LaunchDarkly calls `key`: `stream_name` is `streamName`; an id is written `Id` or `ID`.
pub(super) fn camel_case_of(key: &str) -> [String; 2] {
    ["Id", "ID"].map(|id| {
        let parts = key.split('_').enumerate().map(|(at, part)| match (at, part) {
            (0, first) => first.to_owned(),
            (_, "id") => id.to_owned(),
            (_, part) => {
                let mut letters = part.chars();
                let first = letters.next().map(|first| first.to_ascii_uppercase());
                first.into_iter().chain(letters).collect()
            }
        });
        parts.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_camel_case_is_recognised() {
        for key in ["stream_name", "user_id_context_kind", "url", "ld_context_kind"] {
            for camel in camel_case_of(key) {
                assert!(is_camel_case_of(&camel, key), "{camel}");
            }
        }
        assert_eq!(
            camel_case_of("user_id_context_kind"),
            ["userIdContextKind", "userIDContextKind"]
        );
    }
}
