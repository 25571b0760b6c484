//! A typed look at an event, for destinations that map events to records of their own.
//!
//! Answers with JSON text as the SDK wrote it (see [`crate::export::json`]), and with nothing where the member is absent
//! or of another type than documented: an event can hold anything. Whose event it is comes from the members alone, not
//! from the schema: PHP sends contexts under the number of an older one.

use std::ops::RangeInclusive;

use crate::event::Kind;
use crate::export::{ExportEvent, Member, Members, contexts};

/// The dates that RFC 3339 can write: years of four digits, Unix milliseconds.
const DATES: RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// An event's members.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    kind: Kind,
    members: Members<'a>,
    reason: Members<'a>,
}

/// Whose event it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A user of an SDK that knows no contexts: the key.
    User(&'a str),
    /// Contexts: kind and key of each.
    Contexts(Vec<Member<'a>>),
    /// Nobody's.
    Nobody,
}

impl<'a> Fields<'a> {
    /// Returns the members of an event; `None` if it is no JSON object (a decoded event always is one).
    pub fn of(event: &ExportEvent<'a>) -> Option<Self> {
        let members = Members::of(std::str::from_utf8(event.json).ok()?)?;
        let reason = members.get("reason").and_then(Members::of).unwrap_or_default();
        Some(Self {
            kind: event.kind,
            members,
            reason,
        })
    }

    /// Returns a member of any type, also null.
    pub fn any(&self, name: &str) -> Option<&'a str> {
        self.members.get(name)
    }

    /// Returns a string.
    pub fn string(&self, name: &str) -> Option<&'a str> {
        self.any(name).filter(|token| is_string(token))
    }

    /// Returns a number.
    pub fn number(&self, name: &str) -> Option<&'a str> {
        self.any(name).filter(|token| is_number(token))
    }

    /// Returns the date of creation, Unix milliseconds. A fraction, which some SDKs write, is cut off.
    pub fn created_ms(&self) -> Option<i64> {
        let token = self.number("creationDate")?;
        let whole = token.parse().ok();
        // The cast is exact where the date counts, and saturates elsewhere.
        let date = whole.or_else(|| Some(token.parse::<f64>().ok()?.floor() as i64))?;
        DATES.contains(&date).then_some(date)
    }

    /// Returns the kind of the evaluation's reason, a string.
    pub fn reason_kind(&self) -> Option<&'a str> {
        self.reason.get("kind").filter(|token| is_string(token))
    }

    /// Returns true if the reason says that the evaluation was part of an experiment.
    pub fn in_experiment(&self) -> bool {
        self.reason.get("inExperiment") == Some("true")
    }

    /// Returns true if the application got its fallback value: the evaluation failed or gave no variation.
    pub fn fell_back(&self) -> bool {
        let without_variation = self.any("variation").is_none_or(|token| token == "null");
        without_variation || self.reason_kind() == Some("\"ERROR\"")
    }

    /// Returns whose event it is. Keys are tokens of strings or numbers that say something, see [`key`].
    pub fn subject(&self) -> Subject<'a> {
        let user = || Members::of(self.any("user")?)?.get("key");
        let alias = || self.any("key").filter(|_| self.kind == Kind::Alias);
        let user_key = self.any("userKey").and_then(key);
        if let Some(key) = user_key
            .or_else(|| user().and_then(key))
            .or_else(|| alias().and_then(key))
        {
            return Subject::User(key);
        }
        let by_key = self.any("contextKeys").and_then(Members::of);
        let by_key = by_key.map(|members| members.iter().copied().collect::<Vec<_>>());
        let whole = || contexts(self.any("context")?).map(|contexts| contexts.into_iter().map(member).collect());
        let contexts = by_key.filter(|contexts| !contexts.is_empty()).or_else(whole);
        let mut contexts: Vec<Member<'a>> = contexts.unwrap_or_default();
        contexts.retain(|context| key(context.value).is_some());
        if contexts.is_empty() {
            Subject::Nobody
        } else {
            Subject::Contexts(contexts)
        }
    }

    /// Returns true if the event says that its user, or its context of kind `user`, is anonymous. An event that holds
    /// keys alone does not say.
    pub fn user_is_anonymous(&self) -> bool {
        let says = |object: Option<&str>| {
            let members = object.and_then(Members::of).unwrap_or_default();
            members.get("anonymous") == Some("true")
        };
        let context = self.any("context").and_then(Members::of).unwrap_or_default();
        let inner = match context.get("kind") {
            Some(r#""user""#) => self.any("context"),
            Some(r#""multi""#) => context.get("user"),
            _ => None,
        };
        self.any("contextKind") == Some(r#""anonymousUser""#) || says(self.any("user")) || says(inner)
    }
}

impl<'a> Subject<'a> {
    /// Returns the key of the context of this kind. A user is one of kind `user`.
    pub fn key(&self, kind: &str) -> Option<&'a str> {
        match self {
            Self::User(key) => Some(*key).filter(|_| kind == "user"),
            Self::Contexts(contexts) => {
                let context = contexts.iter().rfind(|context| context.is(kind))?;
                Some(context.value)
            }
            Self::Nobody => None,
        }
    }
}

/// Returns a key that can stand for somebody: a string that is not empty, or a number, which some applications pass.
pub fn key(token: &str) -> Option<&str> {
    Some(token).filter(|token| (is_string(token) && *token != "\"\"") || is_number(token))
}

fn member<'a>((kind, key): (&'a str, &'a str)) -> Member<'a> {
    Member { name: kind, value: key }
}

fn is_string(token: &str) -> bool {
    token.starts_with('"')
}

fn is_number(token: &str) -> bool {
    token.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(kind: Kind, json: &str) -> Fields<'_> {
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
        Fields::of(&event).unwrap()
    }

    fn subject(json: &str) -> Subject<'_> {
        fields(Kind::Custom, json).subject()
    }

    #[test]
    fn values_are_the_senders_text_and_of_the_asked_type() {
        let fields = fields(
            Kind::Custom,
            r#"{"key":"\u00e9","metricValue":1e-07,"value":null,"url":5}"#,
        );
        assert_eq!(fields.string("key"), Some(r#""\u00e9""#));
        assert_eq!(fields.number("metricValue"), Some("1e-07"));
        assert_eq!(fields.any("value"), Some("null"));
        assert_eq!((fields.number("value"), fields.string("url")), (None, None));
    }

    #[test]
    fn a_date_is_a_number_of_milliseconds() {
        let date = |date: &str| fields(Kind::Custom, &format!(r#"{{"creationDate":{date}}}"#)).created_ms();
        assert_eq!(date("1669610559830"), Some(1_669_610_559_830));
        assert_eq!(date("1669610559830.75"), Some(1_669_610_559_830));
        assert_eq!(date("1.66961055983e12"), Some(1_669_610_559_830));
        assert_eq!(date("-1"), Some(-1));
        for none in ["null", "\"1669610559830\"", "1e300", "99999999999999999999", "{}"] {
            assert_eq!(date(none), None, "{none}");
        }
    }

    #[test]
    fn a_user_is_found_by_key_or_inline() {
        assert_eq!(subject(r#"{"userKey":"u"}"#), Subject::User("\"u\""));
        assert_eq!(subject(r#"{"userKey":null,"user":{"key":17}}"#), Subject::User("17"));
        assert_eq!(subject(r#"{"userKey":""}"#), Subject::Nobody);
        assert_eq!(subject(r#"{"key":"order"}"#), Subject::Nobody);
        let alias = fields(Kind::Alias, r#"{"key":"u","previousKey":"a"}"#);
        assert_eq!(alias.subject().key("user"), Some("\"u\""));
    }

    #[test]
    fn contexts_are_found_by_key_or_whole() {
        let of = |json, kind| subject(json).key(kind);
        assert_eq!(of(r#"{"contextKeys":{"user":"u","org":"o"}}"#, "org"), Some("\"o\""));
        assert_eq!(of(r#"{"context":{"kind":"org","key":"o"}}"#, "org"), Some("\"o\""));
        let multi = r#"{"context":{"kind":"multi","org":{"key":"o"},"\u0075ser":{"key":"u"}}}"#;
        assert_eq!(of(multi, "user"), Some("\"u\""));
        assert_eq!(of(multi, "device"), None);
        assert_eq!(
            of(r#"{"contextKeys":{},"context":{"kind":"org","key":"o"}}"#, "org"),
            Some("\"o\"")
        );
        for nobody in [
            "{}",
            r#"{"contextKeys":{"user":""}}"#,
            r#"{"contextKeys":{"user":null}}"#,
            r#"{"context":{"kind":"multi"}}"#,
            r#"{"context":"x"}"#,
        ] {
            assert_eq!(subject(nobody), Subject::Nobody, "{nobody}");
        }
    }

    #[test]
    fn a_user_is_anonymous_if_the_event_says_so() {
        for (json, expected) in [
            (r#"{"contextKind":"anonymousUser","userKey":"u"}"#, true),
            (r#"{"contextKind":"user","userKey":"u"}"#, false),
            (r#"{"user":{"key":"u","anonymous":true}}"#, true),
            (r#"{"user":{"key":"u","anonymous":false}}"#, false),
            (r#"{"context":{"kind":"user","key":"u","anonymous":true}}"#, true),
            (r#"{"context":{"kind":"org","key":"u","anonymous":true}}"#, false),
            (
                r#"{"context":{"kind":"multi","user":{"key":"u","anonymous":true},"org":{"key":"o"}}}"#,
                true,
            ),
            (
                r#"{"context":{"kind":"multi","user":{"key":"u"},"org":{"key":"o","anonymous":true}}}"#,
                false,
            ),
            (r#"{"contextKeys":{"user":"u"}}"#, false),
        ] {
            assert_eq!(fields(Kind::Custom, json).user_is_anonymous(), expected, "{json}");
        }
    }

    #[test]
    fn an_evaluation_says_how_it_went() {
        let json = r#"{"variation":0,"reason":{"kind":"FALLTHROUGH","inExperiment":true}}"#;
        let tracked = fields(Kind::Feature, json);
        assert_eq!(tracked.reason_kind(), Some("\"FALLTHROUGH\""));
        assert!(tracked.in_experiment() && !tracked.fell_back());
        let failed = fields(Kind::Feature, r#"{"variation":null,"reason":null}"#);
        assert!(fields(Kind::Feature, r#"{"variation":0,"reason":{"kind":"ERROR"}}"#).fell_back());
        assert!(failed.fell_back() && !failed.in_experiment() && failed.reason_kind().is_none());
    }
}
