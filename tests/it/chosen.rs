//! Settings on recorded traffic of real SDKs: what is chosen, what coverage says of it, and what hostile settings do.

use std::collections::HashSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use flagtap::export::selection::Reason;
use serde_json::{Value, json};

use crate::replay;
use crate::support::command;
use crate::support::export::{event, inflate};
use crate::support::recording::{fixture, load};
use crate::support::{Relay, Setup, Upstream};

const BUILDS: [&str; 4] = ["node-server-9.13.7", "python-6.10.0", "js-3.9.5", "synthetic-php"];

/// Runs `flagtap` with a configuration and input; returns its exit code, output and errors.
fn flagtap(arguments: &[&str], config: &str, input: &[u8]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    fs::write(&path, config).unwrap();
    let said = command::run(command::binary().args(arguments).arg(&path), input);
    (said.code, said.out, said.error)
}

/// Returns the records that a build's recording would have sent with these settings.
fn sent(build: &str, export: &Value) -> Vec<String> {
    let mut environment = replay::environment(&load(build));
    environment["export"] = export.clone();
    let config = json!({
        "queue": { "sled": { "path": "./no-queue-here" } },
        "environments": [environment],
        "destinations": [{ "name": "archive", "file": { "path": "./out" } }],
    });
    let input = inflate(&fs::read(fixture(&format!("traffic/{build}.jsonl.gz"))).unwrap());
    let arguments = ["explain", "--output", "--destination", "archive", "--config"];
    let (code, output, said) = flagtap(&arguments, &config.to_string(), &input);
    assert_eq!(code, Some(0), "{build} {export}: {said}");
    output.lines().map(str::to_owned).collect()
}

fn is_feature(event: &Value) -> bool {
    event["kind"] == "feature"
}

fn in_experiment(event: &Value) -> bool {
    event["reason"]["inExperiment"] == true
}

/// A setting, and what it says of an event.
type Setting = (Value, Box<dyn Fn(&Value) -> bool>);

/// Returns settings about the flags, rules and names that occur in some records.
fn settings(records: &[String]) -> Vec<Setting> {
    let events: Vec<Value> = records.iter().map(|record| event(record)).collect();
    let first = |wanted: &dyn Fn(&Value) -> bool, of: &dyn Fn(&Value) -> Value| {
        events
            .iter()
            .find(|event| wanted(event))
            .map(of)
            .and_then(|value| Some(value.as_str()?.to_owned()))
    };
    let flag = first(&is_feature, &|event| event["key"].clone()).unwrap();
    let mut settings: Vec<Setting> = vec![
        (
            json!({ "kinds": ["feature", "custom"] }),
            Box::new(|event| is_feature(event) || event["kind"] == "custom"),
        ),
        (
            json!({ "flags": { "default": "hold" } }),
            Box::new(|event| !is_feature(event) || in_experiment(event)),
        ),
        (
            json!({ "flags": { "default": "new", "since": "2099-01-01T00:00:00Z" } }),
            Box::new(|event| !is_feature(event) || in_experiment(event)),
        ),
        (
            json!({ "experiments_only": true }),
            Box::new(|event| !is_feature(event) || in_experiment(event)),
        ),
        (json!({ "sdks": { "exclude": ["*"] } }), Box::new(|_| false)),
        (
            json!({ "custom_events": { "exclude": ["*"] } }),
            Box::new(|event| event["kind"] != "custom"),
        ),
    ];
    let (held, named) = (flag.clone(), flag.clone());
    settings.push((
        json!({ "flags": { "named": { &flag: { "export": "hold", "experiments": false } } } }),
        Box::new(move |event| !is_feature(event) || event["key"] != held),
    ));
    settings.push((
        json!({ "flags": { "default": "hold", "named": { &flag: "export" } } }),
        Box::new(move |event| !is_feature(event) || in_experiment(event) || event["key"] == named),
    ));
    if let Some(name) = first(&|event| event["kind"] == "custom", &|event| event["key"].clone()) {
        settings.push((
            json!({ "custom_events": { "include": [&name] } }),
            Box::new(move |event| event["kind"] != "custom" || event["key"] == name),
        ));
    }
    let by_rule = |event: &Value| is_feature(event) && event["reason"]["ruleId"].is_string();
    if let Some(rule) = first(&by_rule, &|event| event["reason"]["ruleId"].clone()) {
        let flag = first(&by_rule, &|event| event["key"].clone()).unwrap();
        settings.push((
            json!({ "flags": { "named": { &flag: { "rules": [&rule], "fallthrough": true } } } }),
            Box::new(move |event| {
                let reason = &event["reason"];
                let chosen =
                    (reason["kind"] == "RULE_MATCH" && reason["ruleId"] == rule) || reason["kind"] == "FALLTHROUGH";
                !is_feature(event) || event["key"] != flag || in_experiment(event) || chosen
            }),
        ));
    }
    settings
}

/// Scenario: recorded requests of four SDK builds, with each setting, about flags, rules and names that occur in them.
/// Guarantees: of what is exported without settings exactly that is exported which the setting says, byte for byte.
#[test]
fn recorded_traffic_is_chosen_as_each_setting_says() {
    let (mut some, mut by_rule) = (0, false);
    for build in BUILDS {
        let all = sent(build, &json!({}));
        assert!(all.len() > 3, "{build}");
        for (export, keeps) in settings(&all) {
            let expected: Vec<&String> = all.iter().filter(|record| keeps(&event(record))).collect();
            let got = sent(build, &export);
            assert_eq!(got.iter().collect::<Vec<_>>(), expected, "{build} {export}");
            some += usize::from(!expected.is_empty() && expected.len() < all.len());
            by_rule |= export.to_string().contains("fallthrough");
        }
    }
    assert!(some > 12 && by_rule, "the settings chose nothing: {some} {by_rule}");
}

/// A relay with a recording's environment, and what becomes of it.
struct Served {
    export: Value,
    /// What another destination gets.
    only: Option<Value>,
    /// The environment has no destination.
    nowhere: bool,
    /// The SDK's version is this one in place of the recorded one.
    version: Option<(&'static str, &'static str)>,
}

impl Served {
    fn with(export: Value) -> Self {
        Self {
            export,
            only: None,
            nowhere: false,
            version: None,
        }
    }

    /// Returns the events that a build's recording leaves in a destination's files, and the relay's table of coverage.
    fn run(self, build: &str) -> (Vec<Value>, String) {
        let mut recording = load(build);
        if let Some((recorded, other)) = self.version {
            let values = recording.iter_mut().flat_map(|request| request.headers.iter_mut());
            values.for_each(|(_, value)| *value = value.replace(recorded, other));
        }
        let upstream = Upstream::start();
        let mut setup = Setup::new(upstream.address());
        let mut environment = replay::environment(&recording);
        environment["export"] = self.export;
        if let Some(only) = self.only {
            let narrow = setup.queue().with_file_name("narrow");
            environment["destinations"] = json!(["archive", "narrow"]);
            let narrow = json!({ "name": "narrow", "only": only, "file": { "path": narrow } });
            setup.config["destinations"].as_array_mut().unwrap().push(narrow);
        }
        if self.nowhere {
            environment["destinations"] = json!([]);
        }
        setup.config["environments"] = json!([environment]);
        let relay = Relay::start(&setup);
        replay::replay(&recording, &upstream, relay.address(), true);
        relay.settle();
        let output = Command::new(env!("CARGO_BIN_EXE_flagtap"))
            .args(["coverage", "--address", &relay.telemetry_address().to_string()])
            .output()
            .unwrap();
        relay.stop();
        let table = String::from_utf8(output.stdout).unwrap();
        let table = table.lines().map(|line| without_times(line) + "\n").collect();
        (without_ids(&setup.exported()), table)
    }
}

/// Returns the records' events without their ids, which go by when a request was received.
fn without_ids(records: &[String]) -> Vec<Value> {
    let event = |record: &String| {
        let mut event = event(record);
        event.as_object_mut().unwrap().remove("id");
        event
    };
    records.iter().map(event).collect()
}

/// Scenario: the recorded requests of a build through a running relay, with each setting and with a sample.
/// Guarantees: of the golden export exactly that arrives which the setting says, in the same order; of a sampled flag all events of
/// a context or none, which say that they stand for more.
#[test]
fn a_running_relay_chooses_as_each_setting_says() {
    let build = "node-server-9.13.7";
    let golden = replay::golden(build);
    // The golden export has summaries, which are exported on request only.
    let mut all = without_ids(&golden);
    all.retain(|event| event["kind"] != "summary");
    for (export, keeps) in settings(&golden) {
        let (arrived, _) = Served::with(export.clone()).run(build);
        let expected: Vec<&Value> = all.iter().filter(|event| keeps(event)).collect();
        let first = arrived.iter().zip(&expected).find(|(one, other)| one != *other);
        assert!(
            first.is_none() && arrived.len() == expected.len(),
            "{export}: {} and {}, first {first:?}",
            arrived.len(),
            expected.len()
        );
    }
    let (arrived, _) = Served::with(json!({ "sample": { "flags": { "bool-tracked": 3 } } })).run(build);
    let (sampled, others): (Vec<Value>, Vec<Value>) = arrived
        .into_iter()
        .partition(|event| is_feature(event) && event["key"] == "bool-tracked");
    let is_sampled = |event: &&Value| is_feature(event) && event["key"] == "bool-tracked";
    assert!(others.iter().eq(all.iter().filter(|event| !is_sampled(event))));
    let whose = |event: &Value| event["context"].to_string();
    let kept: HashSet<String> = sampled.iter().map(whose).collect();
    let mut expected: Vec<Value> = all
        .iter()
        .filter(is_sampled)
        .filter(|event| kept.contains(&whose(event)))
        .cloned()
        .collect();
    expected.iter_mut().for_each(|event| event["samplingRatio"] = json!(3));
    assert!(sampled == expected && !sampled.is_empty());
    assert!(sampled.len() < all.iter().filter(is_sampled).count());
}

/// Returns golden tables: the name of each, the build whose recording it is of, and the relay.
fn tables() -> Vec<(&'static str, &'static str, Served)> {
    let held = || Served::with(json!({ "flags": { "default": "hold" } }));
    let every_reason = json!({
        "flags": {
            "default": "new",
            "since": "2099-01-01T00:00:00Z",
            "named": {
                "big-version": "export",
                "bool-tracked": { "rules": ["no-such-rule"], "fallthrough": true },
                "experiment": { "export": "hold", "experiments": false },
                "number-rules": { "rules": ["rule-segment"] },
                "off-flag": "hold",
                "sampled": "export",
                "prereq-child": "export",
            },
        },
        "sample": { "flags": { "sampled": 4, "prereq-child": 3 } },
    });
    let every_reason = Served {
        only: Some(json!({ "flags": ["big-*", "sampled"] })),
        ..Served::with(every_reason)
    };
    let too_old = Served {
        version: Some(("NodeClientSide/2.12.2", "NodeClientSide/1.0.0")),
        ..Served::with(json!({}))
    };
    let nowhere = Served {
        nowhere: true,
        ..Served::with(json!({}))
    };
    let other_kinds = Served {
        only: Some(json!({ "kinds": ["custom"] })),
        ..Served::with(json!({}))
    };
    vec![
        ("nowhere", "js-3.9.5", nowhere),
        ("other-kinds", "js-3.9.5", other_kinds),
        ("node-server-9.13.7", "node-server-9.13.7", held()),
        ("python-6.10.0", "python-6.10.0", held()),
        ("js-3.9.5", "js-3.9.5", held()),
        ("synthetic-php", "synthetic-php", held()),
        ("every-reason", "node-server-9.13.7", every_reason),
        ("another-kind", "js-3.9.5", Served::with(json!({ "kinds": ["custom"] }))),
        (
            "experiments-only",
            "python-6.10.0",
            Served::with(json!({ "experiments_only": true })),
        ),
        (
            "excluded-sdk",
            "js-3.9.5",
            Served::with(json!({ "sdks": { "exclude": ["*"] } })),
        ),
        ("too-old", "node-client-1.0.0", too_old),
    ]
}

/// Scenario: recorded traffic of SDK builds through the relay, with settings that hold events for every reason there is.
/// Guarantees: `flagtap coverage` prints the golden tables (`FLAGTAP_UPDATE_GOLDEN=1` writes them); times are left out. There
/// is a table for every reason that a flag can be held for.
#[test]
fn coverage_of_recorded_traffic_is_the_golden_table() {
    let mut all = String::new();
    for (name, build, served) in tables() {
        let (_, table) = served.run(build);
        let path = fixture(&format!("golden/coverage/{name}.txt"));
        if std::env::var_os("FLAGTAP_UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &table).unwrap();
        }
        assert_eq!(fs::read_to_string(path).unwrap_or_default(), table, "{name}");
        all += &table;
    }
    // Of these no flag's evaluation can be: they are about other kinds, or name no flag.
    let of_no_flag = [
        Reason::KindNotExportable,
        Reason::CustomEventNotIncluded,
        Reason::CustomEventExcluded,
        Reason::FlagUnknown,
    ];
    let held = Reason::ALL
        .iter()
        .filter(|reason| !of_no_flag.contains(reason))
        .map(|reason| reason.as_str());
    let more = [
        "detailed_events_for_some",
        "detailed_events_off",
        "narrow: only_other_flags",
        "narrow: only_other_kinds",
        "no_such_flag",
        "sdk_too_old",
    ];
    for reason in held.chain(more) {
        assert!(all.contains(&format!("{reason} (")), "no table has {reason}");
    }
}

/// Replaces each time by one that all have.
fn without_times(line: &str) -> String {
    let words = line.split(' ').map(
        |word| match word.trim_end_matches('Z').parse::<jiff::civil::DateTime>() {
            Ok(_) if word.ends_with('Z') => "2026-11-22T00:00:00Z",
            _ => word,
        },
    );
    words.collect::<Vec<_>>().join(" ")
}

/// Scenario: settings that are too large, that multiply themselves, that no flag has, or patterns made to be slow.
/// Guarantees: each is refused by `check` with its place, or costs no time that anybody notices.
#[test]
fn hostile_settings_are_refused_or_harmless() {
    let with = |export: &str| {
        format!(
            "environments:\n  - name: production\n    project_id: 5744c96707c9900708000004\n    environment_id: \
             578d1e02d2943862c52b9686\n    destinations: [archive]\n    export: {export}\ndestinations:\n  - name: archive\n    \
             file: {{ path: ./out }}\nqueue: {{ sled: {{ path: ./no-queue-here }} }}\n"
        )
    };
    let check = |config: &str| flagtap(&["check"], config, b"");
    let list = |count: usize, item: &str| vec![item; count].join(", ");
    let huge: String = (0..60_000)
        .map(|number| format!("\"flag-{number:020}\": hold, "))
        .collect();
    for (export, why) in [
        (
            format!("{{ custom_events: {{ exclude: [{}] }} }}", list(101, "\"a*\"")),
            "more than 100 patterns",
        ),
        (
            format!("{{ sdks: {{ exclude: [\"{}\"] }} }}", "*".repeat(257)),
            "is too long",
        ),
        (
            format!("{{ flags: {{ named: {{ \"{}\": hold }} }} }}", "k".repeat(257)),
            "no flag's key",
        ),
        (format!("{{ flags: {{ named: {{ {huge} }} }} }}"), ""),
        (
            "{ sample: { flags: { noisy: 0 } } }".to_owned(),
            "is not between 1 and 1000000",
        ),
        (
            "{ sample: { flags: { noisy: 99999999999999999999 } } }".to_owned(),
            "is too large",
        ),
        ("{ flags: { default: new } }".to_owned(), "without `since`"),
        (
            "{ flags: { named: { a: { rules: [x], export: hold } } } }".to_owned(),
            "together with `export`",
        ),
        ("&loop { flags: *loop }".to_owned(), ""),
        (
            "{ kinds: &a [feature], flags: { named: { x: { rules: &b [*a, *a, *a], fallthrough: *b } } } }".to_owned(),
            "",
        ),
    ] {
        let begin = Instant::now();
        let (code, said, _) = check(&with(&export));
        assert_eq!(code, Some(64), "{said}\n{}", &export[..export.len().min(200)]);
        assert!(said.contains(why), "{why}: {said}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{why}");
    }
    let unknown = with("{ flags: { default: hold, named: { \"no such flag\": export, \"*\": export } } }");
    assert_eq!(check(&unknown).0, Some(0));

    // Every pattern as bad as it can be, against names as long as they get: 2 x 100 patterns, 100 names of 100 kB.
    let slow = format!("\"{}b\"", "*a".repeat(120));
    let export = format!(
        "{{ custom_events: {{ include: [{}, \"*\"], exclude: [{}] }} }}",
        list(99, &slow),
        list(100, &slow)
    );
    let name = "a".repeat(100_000);
    let custom = json!({ "kind": "custom", "creationDate": 1, "key": name, "userKey": "u" });
    let events = json!(vec![custom; 100]).to_string();
    let begin = Instant::now();
    let (code, said, _) = flagtap(&["explain", "--config"], &with(&export), events.as_bytes());
    assert_eq!((code, said.matches("exports it").count()), (Some(0), 100));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}
