//! What the tables hold, what the document says of it, and that both stay bounded.

use serde_json::Value;

use super::*;
use crate::event::{Event, Kind};
use crate::export::made::event;
use crate::export::narrow::Narrow;
use crate::export::selection::{self, Choice, FlagDefault, Grounds, Judgement, MAX_FLAG_KEY, Reason, Settings};
use crate::section;

const NOW: u64 = 1_700_000_000_000;

/// The document as it is read.
fn document<'a>(environments: impl IntoIterator<Item = &'a Environment>, only: Option<&str>) -> Value {
    let text: String = super::document(environments, only).collect();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Versions before 5 are too old.
fn sender(sdk: &str) -> Sender {
    Sender {
        sdk: sdk.to_owned(),
        too_old: sdk.contains("/4."),
    }
}

const KEPT: Judgement = Judgement::Keep {
    by: Grounds::Default,
    ratio: 1,
};

fn evaluation(flag: &str) -> Event {
    event(Kind::Feature, &format!(r#"{{"key":"{flag}"}}"#))
}

fn summary(flags: &[(&str, u64)]) -> Event {
    let features: Vec<String> = flags
        .iter()
        .map(|(flag, count)| format!(r#""{flag}":{{"counters":[{{"count":{count}}}]}}"#))
        .collect();
    event(Kind::Summary, &format!(r#"{{"features":{{{}}}}}"#, features.join(",")))
}

fn tally(events: &[(Event, Judgement)]) -> Tally {
    let mut tally = Tally::default();
    for (event, judgement) in events {
        tally.note(event, *judgement);
    }
    tally
}

fn shown(environment: &Environment, flag: &str) -> Value {
    let document = document([environment], None);
    let flags = document["environments"][0]["flags"].as_array().unwrap();
    flags
        .iter()
        .find(|shown| shown["flag"] == flag)
        .cloned()
        .unwrap_or_default()
}

fn reasons(shown: &Value) -> Vec<(&str, u64)> {
    let list = shown["not_exported"].as_array().unwrap().iter();
    list.map(|why| (why["reason"].as_str().unwrap(), why["events"].as_u64().unwrap()))
        .collect()
}

#[test]
fn counts_what_becomes_of_each_flag() {
    let environment = Environment::new("production", Sightings::new());
    let held = Judgement::Drop(Reason::FlagHeld);
    let sampled = Judgement::Drop(Reason::Sampled);
    let dropped = Judgement::Drop(Reason::KindNotSelected);
    let batch = tally(&[
        (evaluation("a"), KEPT),
        (evaluation("a"), sampled),
        (evaluation("b"), held),
        (evaluation("b"), held),
        (summary(&[("a", 40), ("b", 2), ("c", 7)]), dropped),
        (event(Kind::Debug, r#"{"key":"d"}"#), KEPT),
        (event(Kind::Custom, r#"{"key":"no-flag"}"#), KEPT),
    ]);
    environment.add(batch, sender("GoClient/4.10.0"), NOW, true, 0);
    environment.add(
        tally(&[(evaluation("a"), KEPT)]),
        sender("PythonClient/9.0.0"),
        NOW + 5000,
        true,
        0,
    );
    environment.add(
        tally(&[(evaluation("a"), KEPT)]),
        sender("PythonClient/9.0.0"),
        NOW + 4000,
        false,
        0,
    );
    let a = shown(&environment, "a");
    assert_eq!(a["evaluations"], 40);
    assert_eq!(
        (&a["received"], &a["exported"], &a["not_kept"]),
        (&4.into(), &2.into(), &1.into())
    );
    assert_eq!(a["sdks"], serde_json::json!(["GoClient/4.10.0", "PythonClient/9.0.0"]));
    assert_eq!(a["first_seen"], "2023-11-14T22:13:20Z");
    assert_eq!(a["last_seen"], "2023-11-14T22:13:25Z");
    assert_eq!(
        reasons(&a),
        [("sampled", 1), ("not_kept", 1), ("detailed_events_for_some", 36)]
    );
    let b = shown(&environment, "b");
    assert_eq!(reasons(&b), [("flag_held", 2)]);
    assert_eq!(b["not_exported"][0]["setting"], "export.flags.named");
    let c = shown(&environment, "c");
    assert_eq!(reasons(&c), [("detailed_events_off", 7), ("sdk_too_old", 7)]);
    let rest = c["not_exported"][0]["rest"].as_str().unwrap();
    assert!(
        rest.contains("/flags/$PROJECT_KEY/c\"") && rest.contains("trackEvents"),
        "{rest}"
    );
    assert!(
        c["not_exported"][1]["remedy"]
            .as_str()
            .unwrap()
            .contains("docs/sdks.md")
    );
    assert_eq!(reasons(&shown(&environment, "d")), []);
    assert_eq!(shown(&environment, "no-flag"), Value::Null);
}

fn goal(export: Settings) -> Goal {
    Goal {
        export,
        destinations: vec![("lake".to_owned(), Narrow::default())],
    }
}

#[test]
fn counting_begins_anew_with_other_settings() {
    let environment = Environment::new("production", Sightings::from([("a".to_owned(), 5)]));
    let kinds = |kind: Kind| {
        goal(Settings {
            kinds: [kind].into(),
            ..Settings::default()
        })
    };
    let count = |number: u64, sdk: &str| {
        let batch = tally(&[
            (evaluation("a"), Judgement::Drop(Reason::NotTracked)),
            (evaluation("b"), KEPT),
        ]);
        environment.add(batch, sender(sdk), NOW, true, number);
    };
    let first = environment.aims_at(kinds(Kind::Custom), NOW);
    count(first, "GoClient/4.1.0");
    assert_eq!(environment.aims_at(kinds(Kind::Custom), NOW + 7000), first);
    assert_eq!(
        reasons(&shown(&environment, "a")),
        [("not_tracked", 1), ("sdk_too_old", 1)]
    );
    let second = environment.aims_at(kinds(Kind::Feature), NOW + 9000);
    assert_eq!(shown(&environment, "a"), Value::Null, "not seen since");
    // A batch that was judged before is no part of what counts now.
    count(first, "GoClient/4.1.0");
    assert_eq!(shown(&environment, "a"), Value::Null);
    count(second, "GoClient/7.0.0");
    let fresh = shown(&environment, "a");
    assert_eq!(
        (reasons(&fresh), &fresh["received"]),
        (vec![("not_tracked", 1)], &Value::from(1))
    );
    assert_eq!(fresh["sdks"], serde_json::json!(["GoClient/7.0.0"]));
    assert_eq!(fresh["first_seen"], "1970-01-01T00:00:00Z");
    let document = document([&environment], None);
    assert_eq!(document["environments"][0]["since"], "2023-11-14T22:13:29Z");
}

#[test]
fn a_flag_that_no_sdk_knows_is_told_from_one_that_sends_nothing() {
    let environment = Environment::new("production", Sightings::new());
    let json = r#"{"features":{
        "gone":{"counters":[{"count":3,"unknown":true}]},
        "fresh":{"counters":[{"count":3,"unknown":true},{"count":4,"version":1}]},
        "sent":{"counters":[{"count":3,"unknown":true}]}}}"#;
    let batch = tally(&[(event(Kind::Summary, json), KEPT), (evaluation("sent"), KEPT)]);
    environment.add(batch, sender(""), NOW, true, 0);
    assert_eq!(reasons(&shown(&environment, "gone")), [("no_such_flag", 3)]);
    let fresh = shown(&environment, "fresh");
    assert_eq!(reasons(&fresh), [("sdk_without_flag", 3), ("detailed_events_off", 4)]);
    assert_eq!(reasons(&shown(&environment, "sent")), [("sdk_without_flag", 3)]);
}

#[test]
fn what_would_hold_a_flag_is_told_before_anybody_turns_its_events_on() {
    let named = |choice: Choice| {
        let flag = selection::Flag {
            choice,
            experiments: true,
        };
        let flags = selection::Flags {
            named: [("a".to_owned(), flag)].into(),
            ..selection::Flags::default()
        };
        Settings {
            flags,
            ..Settings::default()
        }
    };
    let by_default = |default: FlagDefault| {
        let flags = selection::Flags {
            default,
            ..selection::Flags::default()
        };
        Settings {
            flags,
            ..Settings::default()
        }
    };
    let only_custom = Settings {
        kinds: [Kind::Custom].into(),
        ..Settings::default()
    };
    let experiments = Settings {
        experiments_only: true,
        ..Settings::default()
    };
    let rules = Choice::Rules {
        ids: ["r".to_owned()].into(),
        fallthrough: false,
    };
    for (export, expected) in [
        (Settings::default(), None),
        (named(Choice::Export), None),
        (named(rules), None),
        (named(Choice::Hold), Some("flag_held")),
        (by_default(FlagDefault::Hold), Some("held_by_default")),
        (
            by_default(FlagDefault::New { since_ms: NOW + 1 }),
            Some("flag_created_before"),
        ),
        (by_default(FlagDefault::New { since_ms: NOW }), None),
        (only_custom, Some("kind_not_selected")),
        (experiments, Some("not_in_experiment")),
    ] {
        let environment = Environment::new("production", Sightings::new());
        let number = environment.aims_at(goal(export.clone()), NOW);
        environment.add(tally(&[(summary(&[("a", 7)]), KEPT)]), sender(""), NOW, true, number);
        let shown = shown(&environment, "a");
        let told: Vec<&str> = reasons(&shown).into_iter().map(|(reason, _)| reason).collect();
        let expected: Vec<&str> = ["detailed_events_off"].into_iter().chain(expected).collect();
        assert_eq!(told, expected, "{export:?}");
    }
}

#[test]
fn events_that_were_not_kept_and_destinations_that_do_not_take_them_are_reasons() {
    let environment = Environment::new("production", Sightings::new());
    let narrow = |only: &str| section::read(only, &|_| None, Narrow::read).value.unwrap();
    let goal = Goal {
        export: Settings::default(),
        destinations: vec![
            ("lake".to_owned(), Narrow::default()),
            ("cdp".to_owned(), narrow("only: { kinds: [custom] }")),
            ("bus".to_owned(), narrow("only: { flags: [b] }")),
        ],
    };
    let number = environment.aims_at(goal, NOW);
    for kept in [true, false] {
        environment.add(tally(&[(evaluation("a"), KEPT)]), sender(""), NOW, kept, number);
    }
    let shown = shown(&environment, "a");
    let expected = [("not_kept", 1), ("only_other_kinds", 1), ("only_other_flags", 1)];
    assert_eq!(reasons(&shown), expected);
    let remedies = shown["not_exported"]
        .as_array()
        .unwrap()
        .iter()
        .map(|why| why["remedy"].as_str().unwrap());
    let remedies: Vec<&str> = remedies.skip(1).collect();
    assert_eq!(
        remedies,
        [
            "add the kind feature to only.kinds of the destination cdp",
            "add the flag's key to only.flags of the destination bus"
        ]
    );
}

#[test]
fn sdks_beyond_those_that_are_told_apart_are_the_others() {
    let environment = Environment::new("production", Sightings::new());
    let drop = Judgement::Drop(Reason::NotTracked);
    for version in 0..100 {
        let age = if version % 2 == 0 { 4 } else { 7 };
        let sdk = format!("GoClient/{age}.{version}.0");
        environment.add(tally(&[(evaluation("a"), drop)]), sender(&sdk), NOW, true, 0);
    }
    let a = shown(&environment, "a");
    assert_eq!(a["sdks"].as_array().unwrap().len(), MAX_SDKS);
    assert_eq!(reasons(&a), [("not_tracked", 100), ("sdk_too_old", 100)]);
    let what = a["not_exported"][1]["what"].as_str().unwrap();
    assert!(what.contains("GoClient/4.8.0 and 27 more cannot"), "{what}");
}

#[test]
fn a_key_that_no_flag_can_have_makes_no_command() {
    let environment = Environment::new("production", Sightings::new());
    for flag in ["$(rm)", "a b", "-X", "é", ".", ".."] {
        let batch = tally(&[(summary(&[(flag, 1)]), KEPT)]);
        environment.add(batch, sender(""), NOW, true, 0);
        let shown = shown(&environment, flag);
        assert_eq!(reasons(&shown), [("detailed_events_off", 1)], "{flag}");
        assert_eq!(shown["not_exported"][0].get("rest"), None, "{flag}");
    }
}

#[test]
fn a_flag_is_as_old_as_its_first_sight() {
    let seen = Sightings::from([("kept".to_owned(), 5)]);
    let environment = Environment::new("production", seen);
    assert!(!environment.new_sights());
    environment.add(tally(&[(summary(&[("counted", 1)]), KEPT)]), sender(""), 100, true, 0);
    assert!(environment.new_sights());
    assert!(!environment.new_sights());
    environment.add(tally(&[(evaluation("counted"), KEPT)]), sender(""), 200, true, 0);
    assert!(!environment.new_sights());
    let sights = environment.first_sights(300);
    assert_eq!(sights.created_ms("kept"), Some(5));
    assert_eq!(sights.created_ms("counted"), Some(100));
    assert_eq!(sights.created_ms("never"), Some(300));
    // What was seen before this start only is no part of the coverage since.
    assert_eq!(shown(&environment, "kept"), Value::Null);
}

#[test]
fn traffic_of_any_shape_fills_no_more_than_the_table() {
    let environment = Environment::new("production", Sightings::new());
    for batch in 0..30 {
        let keys: Vec<String> = (0..1000).map(|n| format!("{:0>240}", batch * 1000 + n)).collect();
        let counts: Vec<(&str, u64)> = keys.iter().map(|key| (key.as_str(), 1)).collect();
        let sdk = format!("Client{batch}/{}", "9".repeat(50));
        environment.add(tally(&[(summary(&counts), KEPT)]), sender(&sdk), NOW, true, 0);
    }
    let long = "k".repeat(MAX_FLAG_KEY + 1);
    environment.add(
        tally(&[(evaluation(&long), KEPT), (evaluation(""), KEPT)]),
        sender(""),
        NOW,
        true,
        0,
    );
    let document = document([&environment], None);
    assert_eq!(document["environments"][0]["flags_followed"], MAX_FLAGS);
    assert_eq!(document["environments"][0]["flags_beyond"], 10_002);
    let table = environment.lock();
    assert!(table.sdks.len() <= MAX_SDKS);
    let per_flag = size_of::<(Box<str>, Flag)>() + MAX_FLAG_KEY + 4 * size_of::<(Reason, u64)>();
    assert!(per_flag < 600, "{per_flag}");
}

#[test]
fn one_environment_can_be_asked_for() {
    let environments = ["a", "b"].map(|name| Environment::new(name, Sightings::new()));
    let document = document(&environments, Some("b"));
    assert_eq!(document["environments"].as_array().unwrap().len(), 1);
    assert_eq!(document["environments"][0]["name"], "b");
}

#[test]
fn a_full_document_comes_in_pieces_and_is_whole() {
    let environment = Environment::new("production", Sightings::new());
    let flags: Vec<String> = (0..300).map(|n| format!("flag-{n:03}")).collect();
    let seen: Vec<(Event, Judgement)> = flags.iter().map(|flag| (evaluation(flag), KEPT)).collect();
    environment.add(tally(&seen), sender("GoClient/7.0.0"), NOW, true, 0);
    let pieces: Vec<String> = super::document([&environment], None).collect();
    assert!(pieces.len() >= 300 / 64 && pieces.iter().all(|piece| piece.len() < 64 * 1024));
    let document = document([&environment, &environment], None);
    for one in document["environments"].as_array().unwrap() {
        let shown = one["flags"].as_array().unwrap().iter();
        assert!(
            shown.map(|flag| flag["flag"].as_str().unwrap()).eq(flags.iter()),
            "in order, each once"
        );
    }
}
