//! Dead letters as people ask for them and as they are shown: the same on the admin port and on the command line.
//!
//! A filter selects by what is known of a letter; every part that is given has to hold. Times are RFC 3339 or how long
//! ago (`2h`). A letter is shown with its event's bytes as the SDK sent them.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::Kind;
use crate::export::{Members, event_ids};
use crate::queue::{DeadLetter, Wanted};
use crate::units::parse_duration;

/// The longest text in a filter, bytes.
const MAX_TEXT: usize = 1024;

/// Which dead letters are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// The destination's name; all of them without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Given up at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Given up before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// The event's kind, as the configuration spells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The flag's key (`feature` and `debug` events).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flag: Option<String>,
    /// Text in the reason, whatever its case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The event's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Filter {
    /// Returns whether it leaves nothing out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the test of one letter, whatever its destination. `now_ms`: Unix milliseconds. The error says which part
    /// is wrong and what would be right.
    pub fn test(&self, now_ms: u64) -> Result<Wanted, String> {
        let texts = [&self.destination, &self.flag, &self.reason, &self.id];
        if texts.into_iter().flatten().any(|text| text.len() > MAX_TEXT) {
            return Err(format!("a text is over {MAX_TEXT} bytes"));
        }
        let time = |name: &str, text: &Option<String>| match text {
            Some(text) => time_ms(text, now_ms).map(Some).map_err(|why| format!("`{name}` {why}")),
            None => Ok(None),
        };
        let (since, until) = (time("since", &self.since)?, time("until", &self.until)?);
        let kind = self.kind.as_deref().map(kind).transpose()?;
        let reason = self.reason.as_ref().map(|reason| reason.to_lowercase());
        let (flag, id) = (self.flag.clone(), self.id.clone());
        Ok(Arc::new(move |letter| {
            since.is_none_or(|since| letter.dead_ms >= since)
                && until.is_none_or(|until| letter.dead_ms < until)
                && kind.is_none_or(|kind| kind_of(letter) == kind)
                && (reason.as_ref()).is_none_or(|reason| letter.why.to_lowercase().contains(reason))
                && (flag.as_ref()).is_none_or(|flag| flag_of(letter).as_ref() == Some(flag))
                && (id.as_ref()).is_none_or(|id| id_of(letter).eq_ignore_ascii_case(id))
        }))
    }
}

/// A dead letter as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Whose it is.
    pub destination: String,
    /// When it was given up, RFC 3339.
    pub time: String,
    /// The environment it is from.
    pub environment: String,
    /// The event's kind.
    pub kind: &'static str,
    /// The flag's key (`feature` and `debug` events).
    pub flag: Option<String>,
    /// The event's id.
    pub id: String,
    /// The reason, in the destination's words.
    pub reason: String,
    /// It goes out again by itself once its destination works.
    pub transient: bool,
    /// SDK name and version as its user agent says.
    pub sdk: String,
    /// When the SDK's request was received, RFC 3339.
    pub received: String,
    /// The event as the SDK sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Box<RawValue>>,
}

impl Shown {
    /// Returns what is shown of a letter, with its event or without.
    pub fn of(destination: &str, letter: &DeadLetter, with_event: bool) -> Self {
        let event = letter.record.events.first().filter(|_| with_event);
        let json = event.and_then(|event| String::from_utf8(event.json.to_vec()).ok());
        Self {
            destination: destination.to_owned(),
            time: timestamp(letter.dead_ms),
            environment: letter.record.origin.environment.clone(),
            kind: kind_of(letter).as_str(),
            flag: flag_of(letter),
            id: id_of(letter),
            reason: letter.why.clone(),
            transient: letter.transient,
            sdk: letter.record.origin.sdk.clone(),
            received: timestamp(letter.record.received_ms),
            event: json.and_then(|json| RawValue::from_string(json).ok()),
        }
    }
}

/// Returns a time in Unix milliseconds as RFC 3339, to the second.
pub fn timestamp(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).ok();
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "unknown".to_owned(), |time| time.to_string())
}

fn kind_of(letter: &DeadLetter) -> Kind {
    letter.record.events.first().map_or(Kind::Other, |event| event.kind)
}

fn id_of(letter: &DeadLetter) -> String {
    event_ids(&letter.record).into_iter().next().unwrap_or_default()
}

fn flag_of(letter: &DeadLetter) -> Option<String> {
    let event = letter.record.events.first()?;
    if !matches!(event.kind, Kind::Feature | Kind::Debug) {
        return None;
    }
    let members = Members::of(std::str::from_utf8(&event.json).ok()?)?;
    serde_json::from_str(members.get("key")?).ok()
}

fn kind(text: &str) -> Result<Kind, String> {
    let known = Kind::EXPORTABLE.map(Kind::as_str);
    match Kind::of(text) {
        Kind::Other => Err(format!("`kind` is none of {}", known.join(", "))),
        kind => Ok(kind),
    }
}

fn time_ms(text: &str, now_ms: u64) -> Result<u64, String> {
    if let Ok(ago) = parse_duration(text) {
        return Ok(now_ms.saturating_sub(millis(ago)));
    }
    let time: Result<jiff::Timestamp, _> = text.parse();
    time.ok()
        .and_then(|time| u64::try_from(time.as_millisecond()).ok())
        .ok_or_else(|| "is no time; give one such as 2026-08-01T12:00:00Z, or how long ago, such as 2h".to_owned())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::Schema;
    use crate::queue::Position;
    use crate::record::{Origin, Record, RecordEvent};

    const NOW: u64 = 1_800_000_000_000;

    fn letter(kind: Kind, json: &str) -> DeadLetter {
        DeadLetter {
            position: Position(3),
            index: 0,
            dead_ms: NOW - 60_000,
            why: "Record too LARGE for the stream".to_owned(),
            transient: false,
            record: Record {
                received_ms: NOW - 90_000,
                origin: Origin {
                    environment: "production".to_owned(),
                    project_id: String::new(),
                    environment_id: String::new(),
                    schema: Schema {
                        number: 4,
                        unsummarized: false,
                    },
                    sdk: "GoClient/7.0.0".to_owned(),
                    tags: String::new(),
                },
                destinations: vec!["lake".to_owned()],
                id_seed: [1; 16],
                given_up: false,
                events: vec![RecordEvent {
                    index: 0,
                    kind,
                    json: Bytes::copy_from_slice(json.as_bytes()),
                }],
            },
        }
    }

    fn matches(change: impl FnOnce(&mut Filter), letter: &DeadLetter) -> bool {
        let mut filter = Filter::default();
        change(&mut filter);
        filter.test(NOW).unwrap_or_else(|why| panic!("{why}"))(letter)
    }

    #[test]
    fn every_part_that_is_given_has_to_hold() {
        let feature = letter(Kind::Feature, r#"{"kind":"feature","key":"new-\u0063heckout"}"#);
        let id = Shown::of("lake", &feature, false).id;
        let text = |text: &str| Some(text.to_owned());
        assert!(matches(|_| {}, &feature));
        assert!(matches(|filter| filter.flag = text("new-checkout"), &feature));
        assert!(!matches(|filter| filter.flag = text("new"), &feature));
        assert!(matches(|filter| filter.kind = text("feature"), &feature));
        assert!(!matches(|filter| filter.kind = text("custom"), &feature));
        assert!(matches(|filter| filter.reason = text("too large"), &feature));
        assert!(!matches(|filter| filter.reason = text("denied"), &feature));
        assert!(matches(|filter| filter.id = text(&id.to_uppercase()), &feature));
        assert!(!matches(|filter| filter.id = text("0"), &feature));
        assert!(matches(|filter| filter.since = text("2m"), &feature));
        assert!(!matches(|filter| filter.since = text("30s"), &feature));
        assert!(matches(|filter| filter.until = text("30s"), &feature));
        assert!(!matches(|filter| filter.until = text("2m"), &feature));
        assert!(matches(|filter| filter.since = text("2027-01-15T07:58:00Z"), &feature));
        let both = |filter: &mut Filter| {
            filter.kind = text("feature");
            filter.flag = text("other");
        };
        assert!(!matches(both, &feature));
    }

    #[test]
    fn the_key_of_a_custom_event_is_no_flag() {
        let custom = letter(Kind::Custom, r#"{"kind":"custom","key":"purchase"}"#);
        assert!(!matches(|filter| filter.flag = Some("purchase".to_owned()), &custom));
        assert_eq!(Shown::of("lake", &custom, false).flag, None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_would_be_right() {
        let refused = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.test(NOW).err().unwrap()
        };
        assert!(refused(|filter| filter.kind = Some("features".to_owned())).contains("feature, custom"));
        assert!(refused(|filter| filter.since = Some("yesterday".to_owned())).contains("`since` is no time"));
        assert!(refused(|filter| filter.id = Some("x".repeat(2000))).contains("1024 bytes"));
        assert!(serde_json::from_str::<Filter>(r#"{"destinatoin":"lake"}"#).is_err());
    }

    #[test]
    fn an_event_is_shown_with_the_bytes_of_the_sdk() {
        let json = r#"{"kind":"custom","value":1.50e+02,"big":9007199254740993}"#;
        let shown = Shown::of("lake", &letter(Kind::Custom, json), true);
        assert!(serde_json::to_string(&shown).unwrap().contains(json));
        assert_eq!(shown.time, "2027-01-15T07:59:00Z");
        let broken = Shown::of("lake", &letter(Kind::Custom, "no json"), true);
        assert!(broken.event.is_none());
    }
}
