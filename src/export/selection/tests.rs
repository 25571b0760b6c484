//! The table of judgements, and what no change of a setting may do.

use proptest::prelude::*;

use super::*;
use crate::export::made::event;
use crate::section::Leaf;

const ORDINARY: Schema = Schema {
    number: 4,
    unsummarized: false,
};
const PHP: [Schema; 2] = [
    Schema {
        number: 2,
        unsummarized: false,
    },
    Schema {
        number: 4,
        unsummarized: true,
    },
];
const SINCE: u64 = 1_700_000_000_000;

/// Flags whose key begins with `old` were created before [`SINCE`], `new` at it; of others nothing is known.
struct ByName;

impl Creation for ByName {
    fn created_ms(&self, flag: &str) -> Option<u64> {
        match flag {
            _ if flag.starts_with("old") => Some(SINCE - 1),
            _ if flag.starts_with("new") => Some(SINCE),
            _ => None,
        }
    }
}

fn evaluation(flag: &str, reason: &str) -> Event {
    let json =
        format!(r#"{{"kind":"feature","key":"{flag}","context":{{"kind":"user","key":"u"}},"reason":{reason}}}"#);
    event(Kind::Feature, &json)
}

fn judged(settings: &Settings, event: &Event) -> Judgement {
    Selection::new(settings.clone())
        .judge(ORDINARY, "GoClient/7.0.0", &ByName)
        .event(event)
}

/// Returns the metric label of what is left out, `""` for what is exported.
fn label(settings: &Settings, event: &Event) -> &'static str {
    match judged(settings, event) {
        Judgement::Keep { .. } => "",
        Judgement::Drop(reason) => reason.as_str(),
    }
}

fn named(choice: Choice) -> Flag {
    Flag {
        choice,
        experiments: true,
    }
}

fn rules(ids: &[&str], fallthrough: bool) -> Choice {
    Choice::Rules {
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        fallthrough,
    }
}

fn globs(patterns: &[&str]) -> Vec<Glob> {
    patterns.iter().map(|pattern| Glob::parse(pattern).unwrap()).collect()
}

fn flags(default: FlagDefault) -> Settings {
    let mut settings = Settings::default();
    settings.flags.default = default;
    let named = [
        ("exported", named(Choice::Export)),
        ("held", named(Choice::Hold)),
        ("by-rule", named(rules(&["r1", "r2"], false))),
        ("by-rule-or-none", named(rules(&["r1"], true))),
        (
            "held-always",
            Flag {
                choice: Choice::Hold,
                experiments: false,
            },
        ),
    ];
    settings.flags.named = named.into_iter().map(|(key, flag)| (key.to_owned(), flag)).collect();
    settings
}

#[test]
fn exports_by_default_all_documented_kinds_but_summary() {
    for kind in Kind::EXPORTABLE {
        let expected = if kind == Kind::Summary { "kind_not_selected" } else { "" };
        assert_eq!(label(&Settings::default(), &event(kind, "{}")), expected, "{kind}");
    }
}

#[test]
fn never_exports_an_undocumented_kind() {
    let everything = Settings {
        kinds: Kind::EXPORTABLE.into_iter().chain([Kind::Other]).collect(),
        ..Settings::default()
    };
    assert_eq!(label(&everything, &event(Kind::Other, "{}")), "kind_not_exportable");
}

#[test]
fn exports_only_tracked_evaluations_of_php() {
    let selection = Selection::new(Settings::default());
    for schema in PHP {
        let judge = selection.judge(schema, "", &ByName);
        let tracked = judge.event(&event(Kind::Feature, r#"{"trackEvents":true}"#));
        assert!(matches!(tracked, Judgement::Keep { .. }));
        let not_tracked = judge.event(&event(Kind::Feature, "{}"));
        assert_eq!(not_tracked, Judgement::Drop(Reason::NotTracked));
        for kind in [Kind::Identify, Kind::Custom, Kind::Debug] {
            let judgement = judge.event(&event(kind, "{}"));
            assert!(matches!(judgement, Judgement::Keep { .. }), "{kind}");
        }
    }
}

#[test]
fn exports_untracked_evaluations_of_sdks_without_summaries() {
    let schema = Schema {
        number: 1,
        unsummarized: false,
    };
    let selection = Selection::new(Settings::default());
    let judgement = selection.judge(schema, "", &ByName).event(&event(Kind::Feature, "{}"));
    assert!(matches!(judgement, Judgement::Keep { .. }));
}

#[test]
fn a_flags_own_setting_wins_over_the_default() {
    use FlagDefault::{Export, Hold, New};
    let new = New { since_ms: SINCE };
    let reason = r#"{"kind":"OFF"}"#;
    for (default, flag, expected) in [
        (Export, "any", ""),
        (Export, "exported", ""),
        (Export, "held", "flag_held"),
        (Hold, "any", "held_by_default"),
        (Hold, "exported", ""),
        (Hold, "held", "flag_held"),
        (new, "old-flag", "flag_created_before"),
        (new, "new-flag", ""),
        (new, "nobody-knows", "flag_unknown"),
        (new, "exported", ""),
        (new, "held", "flag_held"),
    ] {
        assert_eq!(
            label(&flags(default), &evaluation(flag, reason)),
            expected,
            "{default:?} {flag}"
        );
    }
    let keyless = event(Kind::Feature, r#"{"key":7}"#);
    for (default, expected) in [(Export, ""), (Hold, "held_by_default"), (new, "flag_unknown")] {
        assert_eq!(label(&flags(default), &keyless), expected, "{default:?}");
    }
}

#[test]
fn a_choice_of_rules_keeps_what_matched_them() {
    for (flag, reason, expected) in [
        (
            "by-rule",
            r#"{"kind":"RULE_MATCH","ruleIndex":0,"ruleId":"r1"}"#,
            Ok(Grounds::Rule),
        ),
        (
            "by-rule",
            r#"{ "ruleId" : "\u0072\u0032", "kind" : "RULE_MATCH" }"#,
            Ok(Grounds::Rule),
        ),
        (
            "by-rule",
            r#"{"kind":"RULE_MATCH","ruleId":"r3"}"#,
            Err(Reason::RuleNotSelected),
        ),
        (
            "by-rule",
            r#"{"kind":"RULE_MATCH","ruleIndex":0}"#,
            Err(Reason::RuleNotSelected),
        ),
        // An id beside another kind of reason is no match.
        (
            "by-rule",
            r#"{"kind":"TARGET_MATCH","ruleId":"r1"}"#,
            Err(Reason::RuleNotSelected),
        ),
        ("by-rule", r#"{"kind":"FALLTHROUGH"}"#, Err(Reason::RuleNotSelected)),
        ("by-rule-or-none", r#"{"kind":"FALLTHROUGH"}"#, Ok(Grounds::Fallthrough)),
        ("by-rule-or-none", r#"{"kind":"OFF"}"#, Err(Reason::RuleNotSelected)),
        ("by-rule", "null", Err(Reason::NoReasonGiven)),
        ("by-rule", "{}", Err(Reason::NoReasonGiven)),
        ("by-rule", "7", Err(Reason::NoReasonGiven)),
    ] {
        let expected = match expected {
            Ok(by) => Judgement::Keep { by, ratio: 1 },
            Err(reason) => Judgement::Drop(reason),
        };
        assert_eq!(
            judged(&flags(FlagDefault::Export), &evaluation(flag, reason)),
            expected,
            "{flag} {reason}"
        );
    }
}

#[test]
fn an_evaluation_in_an_experiment_is_exported_unless_the_flag_says_otherwise() {
    let inside = r#"{"kind":"FALLTHROUGH","inExperiment":true}"#;
    let outside = r#"{"kind":"FALLTHROUGH","inExperiment":false}"#;
    let settings = flags(FlagDefault::Hold);
    for (flag, held) in [
        ("any", "held_by_default"),
        ("held", "flag_held"),
        ("by-rule", "rule_not_selected"),
    ] {
        let expected = Judgement::Keep {
            by: Grounds::Experiment,
            ratio: 1,
        };
        assert_eq!(judged(&settings, &evaluation(flag, inside)), expected, "{flag}");
        assert_eq!(label(&settings, &evaluation(flag, outside)), held, "{flag}");
    }
    assert_eq!(label(&settings, &evaluation("held-always", inside)), "flag_held");
    let without_features = Settings {
        kinds: [Kind::Custom].into(),
        ..settings.clone()
    };
    assert_eq!(
        label(&without_features, &evaluation("any", inside)),
        "kind_not_selected"
    );
    let only = Settings {
        experiments_only: true,
        ..flags(FlagDefault::Export)
    };
    for flag in ["any", "exported", "held"] {
        assert_eq!(label(&only, &evaluation(flag, inside)), "", "{flag}");
        assert_eq!(label(&only, &evaluation(flag, outside)), "not_in_experiment", "{flag}");
    }
    assert_eq!(label(&only, &event(Kind::Custom, "{}")), "");
}

#[test]
fn settings_of_flags_concern_evaluations_alone() {
    let settings = flags(FlagDefault::Hold);
    for kind in Kind::EXPORTABLE {
        if ![Kind::Feature, Kind::Summary].contains(&kind) {
            assert_eq!(label(&settings, &event(kind, r#"{"key":"held"}"#)), "", "{kind}");
        }
    }
}

#[test]
fn custom_events_are_chosen_by_name() {
    let settings = Settings {
        custom_events: Names {
            include: globs(&["checkout-*", "$ld:*"]),
            exclude: globs(&["$ld:telemetry:*", "*-test"]),
        },
        ..Settings::default()
    };
    for (json, expected) in [
        (r#"{"key":"checkout-done"}"#, ""),
        (r#"{"key":"checkout\u002ddone"}"#, ""),
        (r#"{"key":"login"}"#, "custom_event_not_included"),
        (r#"{}"#, "custom_event_not_included"),
        (r#"{"key":"$ld:ai:tokens"}"#, ""),
        (r#"{"key":"$ld:telemetry:error"}"#, "custom_event_excluded"),
        (r#"{"key":"checkout-test"}"#, "custom_event_excluded"),
    ] {
        assert_eq!(label(&settings, &event(Kind::Custom, json)), expected, "{json}");
    }
    assert_eq!(label(&settings, &event(Kind::Click, r#"{"key":"login"}"#)), "");
}

#[test]
fn an_excluded_sdk_exports_nothing() {
    let settings = Settings {
        excluded_sdks: globs(&["GoClient/6.*", "JSClient/*"]),
        ..Settings::default()
    };
    let selection = Selection::new(settings);
    for (sdk, expected) in [("GoClient/6.1.0", false), ("GoClient/7.0.0", true), ("", true)] {
        let judge = selection.judge(ORDINARY, sdk, &ByName);
        for kind in [Kind::Feature, Kind::Custom, Kind::Index] {
            let kept = matches!(judge.event(&event(kind, "{}")), Judgement::Keep { .. });
            assert_eq!(kept, expected, "{sdk} {kind}");
        }
    }
}

#[test]
fn a_sample_holds_a_context_for_good_and_says_so_in_the_event() {
    let settings = Settings {
        samples: [("noisy".to_owned(), 10)].into(),
        ..Settings::default()
    };
    let of = |flag: &str, user: usize| {
        let json = format!(r#"{{"kind":"feature","key":"{flag}","userKey":"user-{user}","value":true}}"#);
        event(Kind::Feature, &json)
    };
    let held: Vec<usize> = (0..2000)
        .filter(|user| label(&settings, &of("noisy", *user)).is_empty())
        .collect();
    assert!((140..260).contains(&held.len()), "{}", held.len());
    // Computed with Python's hashlib: the sample is a promise to whoever reads the export.
    assert_eq!(held[..4], [3, 15, 17, 29]);
    assert_eq!(label(&settings, &of("noisy", 0)), "sampled");
    let first = of("noisy", held[0]);
    let kept = judged(&settings, &first).json(&first).unwrap();
    assert!(kept.ends_with(br#""value":true,"samplingRatio":10}"#), "{kept:?}");
    let other = of("quiet", 0);
    assert_eq!(judged(&settings, &other).json(&other).unwrap(), other.json);
    // Whatever form the same context comes in, it is in the sample or not.
    let user = format!("user-{}", held[0]);
    for context in [
        format!(r#""user":{{"key":"{user}"}}"#),
        format!(r#""context":{{"kind":"user","key":"{user}"}}"#),
        format!(r#""contextKeys":{{"org":"o","user":"{user}"}}"#),
    ] {
        let json = format!(r#"{{"key":"noisy",{context}}}"#);
        assert_eq!(label(&settings, &event(Kind::Feature, &json)), "", "{json}");
    }
}

#[test]
fn without_a_destination_nothing_is_exported() {
    let kept = judged(&Settings::default(), &evaluation("a", "null"));
    assert_eq!(kept.to(&["archive".to_owned()]), kept);
    assert_eq!(kept.to(&[]), Judgement::Drop(Reason::NoDestination));
}

#[test]
fn every_reason_has_a_label_of_its_own_and_a_remedy() {
    let labels: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(labels.len(), Reason::ALL.len());
    assert!(Reason::ALL.iter().all(|reason| !reason.remedy().is_empty()));
}

fn any_flag() -> impl Strategy<Value = Flag> {
    let choice = prop_oneof![
        Just(Choice::Export),
        Just(Choice::Hold),
        (any::<bool>(), prop::sample::subsequence(vec!["r1", "r2"], 0..3))
            .prop_map(|(fallthrough, ids)| rules(&ids, fallthrough)),
    ];
    (choice, any::<bool>()).prop_map(|(choice, experiments)| Flag { choice, experiments })
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let key = prop::sample::select(vec!["old-a", "new-b", "c", "d"]).prop_map(str::to_owned);
    let default = prop::sample::select(vec![
        FlagDefault::Export,
        FlagDefault::Hold,
        FlagDefault::New { since_ms: SINCE },
    ]);
    let named = prop::collection::btree_map(key.clone(), any_flag(), 0..4);
    let samples = prop::collection::btree_map(key, 1u32..4, 0..3);
    (default, named, samples, any::<bool>()).prop_map(|(default, named, samples, experiments_only)| Settings {
        flags: Flags { default, named },
        samples,
        experiments_only,
        ..Settings::default()
    })
}

fn any_evaluation() -> impl Strategy<Value = Event> {
    let reason = prop::sample::select(vec![
        "null",
        r#"{"kind":"RULE_MATCH","ruleId":"r1"}"#,
        r#"{"kind":"FALLTHROUGH"}"#,
        r#"{"kind":"FALLTHROUGH","inExperiment":true}"#,
        r#"{"kind":"OFF"}"#,
    ]);
    (prop::sample::select(vec!["old-a", "new-b", "c", "d"]), 0..20, reason).prop_map(|(flag, user, reason)| {
        let json = format!(r#"{{"kind":"feature","key":"{flag}","userKey":"{user}","reason":{reason}}}"#);
        event(Kind::Feature, &json)
    })
}

proptest! {
    #[test]
    fn a_change_of_one_flags_settings_affects_no_other_flag(
        before in any_settings(), flag in any_flag(), ratio in 1u32..5, events in prop::collection::vec(any_evaluation(), 1..20),
    ) {
        let mut after = before.clone();
        after.flags.named.insert("c".to_owned(), flag);
        after.samples.insert("c".to_owned(), ratio);
        for event in events.iter().filter(|event| event.key().as_deref() != Some("c")) {
            prop_assert_eq!(judged(&before, event), judged(&after, event));
        }
    }

    #[test]
    fn what_is_exported_is_the_senders_bytes_but_for_the_ratio(settings in any_settings(), event in any_evaluation()) {
        let judgement = judged(&settings, &event);
        let ratio = settings.samples.get(event.key().unwrap().as_ref()).copied().unwrap_or(1);
        match judgement.json(&event) {
            None => prop_assert!(matches!(judgement, Judgement::Drop(_))),
            Some(json) => {
                let json = String::from_utf8(json.to_vec()).unwrap();
                let stamped = format!(r#","samplingRatio":{ratio}}}"#);
                let before = if ratio == 1 { json } else { json.replace(&stamped, "}") };
                prop_assert_eq!(before.as_bytes(), &event.json[..]);
            }
        }
    }
}
