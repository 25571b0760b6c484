//! What one destination gets of what an environment exports: fewer events (`only`), fewer attributes (`redact`).
//!
//! Pure, and applied when an event is encoded for its destination, so a change of these settings also concerns what waits in
//! the queue.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::event::Kind;
use crate::export::redact::Redact;
use crate::export::{ExportEvent, Members};
use crate::glob::Glob;
use crate::section::Section;

/// Why an event is not for a destination: values of the metric label `reason`.
const OTHER_KIND: &str = "only_other_kinds";
const OTHER_FLAG: &str = "only_other_flags";

/// Patterns in one list. Each costs a comparison per event.
const MAX_PATTERNS: usize = 100;

/// What a destination gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrow {
    /// Only these kinds; `None` means all.
    kinds: Option<BTreeSet<Kind>>,
    /// Of events about one flag (`feature`, `debug`), only those whose flag's key matches; none means all.
    flags: Vec<Glob>,
    redact: Option<Redact>,
}

impl Narrow {
    /// Reads the keys `only` and `redact` of a destination.
    pub fn read(section: &mut Section<'_>) -> Self {
        let mut narrow = section.section("only", read_only).unwrap_or_default();
        narrow.redact = section.section("redact", Redact::read);
        narrow
    }

    /// Returns the event's JSON as the destination gets it; the error is why it does not get the event, a value of the metric
    /// label `reason`.
    pub fn apply<'a>(&self, event: &ExportEvent<'a>) -> Result<Cow<'a, [u8]>, &'static str> {
        if !self.takes_kind(event.kind) {
            return Err(OTHER_KIND);
        }
        if !self.flags.is_empty() && matches!(event.kind, Kind::Feature | Kind::Debug) {
            let key = flag(event.json);
            if !key.is_some_and(|key| self.takes_flag(&key)) {
                return Err(OTHER_FLAG);
            }
        }
        match &self.redact {
            Some(redact) => redact.apply(event.json),
            None => Ok(Cow::Borrowed(event.json)),
        }
    }

    /// Returns why no evaluation of this flag is for the destination, if none is: a value of the metric label `reason`.
    pub fn leaves_out(&self, flag: &str) -> Option<&'static str> {
        match (self.takes_kind(Kind::Feature), self.takes_flag(flag)) {
            (false, _) => Some(OTHER_KIND),
            (true, false) => Some(OTHER_FLAG),
            (true, true) => None,
        }
    }

    fn takes_kind(&self, kind: Kind) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind))
    }

    fn takes_flag(&self, key: &str) -> bool {
        self.flags.is_empty() || self.flags.iter().any(|pattern| pattern.matches(key))
    }
}

/// Returns the setting, as its path below a destination, that leaves an event out for this reason.
pub fn setting(reason: &str) -> Option<&'static str> {
    match reason {
        OTHER_KIND => Some("only.kinds"),
        OTHER_FLAG => Some("only.flags"),
        crate::export::redact::NOT_REDACTABLE => Some("redact"),
        _ => None,
    }
}

fn read_only(section: &mut Section<'_>) -> Narrow {
    let kinds: Option<Vec<Kind>> = section.list("kinds");
    let flags: Vec<Glob> = section.list("flags").unwrap_or_default();
    if flags.len() > MAX_PATTERNS {
        let message = format!("has more than {MAX_PATTERNS} patterns; each is compared with every event");
        section.problem(Some("flags"), message);
    }
    for key in ["kinds", "flags"] {
        if section.is_empty(key) {
            section.problem(
                Some(key),
                "is empty; list what the destination is to get, or remove the key",
            );
        }
    }
    Narrow {
        kinds: kinds.map(|kinds| kinds.into_iter().collect()),
        flags,
        redact: None,
    }
}

fn flag(json: &[u8]) -> Option<String> {
    let members = Members::of(std::str::from_utf8(json).ok()?)?;
    serde_json::from_str(members.get("key")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section;

    fn narrow(yaml: &str) -> Narrow {
        let reading = section::read(yaml, &|_| None, Narrow::read);
        assert_eq!(reading.problems.render("f"), "");
        reading.value.unwrap()
    }

    fn applied(narrow: &Narrow, kind: Kind, json: &str) -> Result<String, &'static str> {
        let event = ExportEvent {
            project_id: "",
            environment_id: "",
            environment: "",
            version: 2,
            strip_private: false,
            id: "",
            kind,
            json: json.as_bytes(),
        };
        narrow
            .apply(&event)
            .map(|json| String::from_utf8(json.into_owned()).unwrap())
    }

    #[test]
    fn a_destination_gets_only_what_it_is_for() {
        let narrow = narrow("only: { kinds: [feature, custom, debug], flags: [\"checkout-*\", pricing] }");
        for (kind, json, expected) in [
            (Kind::Feature, r#"{"key":"checkout-new"}"#, Ok(())),
            (Kind::Feature, r#"{"key":"pri\u0063ing"}"#, Ok(())),
            (Kind::Debug, r#"{"key":"other"}"#, Err(OTHER_FLAG)),
            (Kind::Feature, r#"{"key":7}"#, Err(OTHER_FLAG)),
            (Kind::Custom, r#"{"key":"other"}"#, Ok(())),
            (Kind::Index, "{}", Err(OTHER_KIND)),
        ] {
            assert_eq!(applied(&narrow, kind, json).map(|_| ()), expected, "{json}");
        }
    }

    #[test]
    fn a_flag_is_left_out_as_its_evaluations_are() {
        for (only, flag, expected) in [
            ("only: { flags: [\"checkout-*\"] }", "checkout-new", None),
            ("only: { flags: [\"checkout-*\"] }", "pricing", Some(OTHER_FLAG)),
            (
                "only: { kinds: [custom], flags: [pricing] }",
                "pricing",
                Some(OTHER_KIND),
            ),
            ("only: { kinds: [feature] }", "pricing", None),
            ("{}", "pricing", None),
        ] {
            let narrow = narrow(only);
            assert_eq!(narrow.leaves_out(flag), expected, "{only}");
            let json = format!(r#"{{"key":"{flag}"}}"#);
            assert_eq!(applied(&narrow, Kind::Feature, &json).err(), expected, "{only}");
        }
    }

    #[test]
    fn without_settings_every_event_is_as_it_was() {
        let json = r#"{"context":{"kind":"user","key":"k","email":"e"}}"#;
        for kind in Kind::EXPORTABLE {
            assert_eq!(applied(&Narrow::default(), kind, json).as_deref(), Ok(json));
        }
    }

    #[test]
    fn attributes_are_redacted_from_what_is_left() {
        let narrow = narrow("redact: { attributes: { email: drop } }");
        let json = r#"{"context":{"kind":"user","key":"k","email":"e"}}"#;
        let redacted = applied(&narrow, Kind::Index, json).unwrap();
        assert!(
            !redacted.contains("\"e\"") && redacted.contains("redactedAttributes"),
            "{redacted}"
        );
        assert_eq!(applied(&narrow, Kind::Index, r#"{"user":1}"#), Err("not_redactable"));
    }
}
