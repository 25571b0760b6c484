//! What is exported by which settings, and what `coverage` and `explain` say of it.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::replay;
use crate::support::command;
use crate::support::export::{self, inflate, markers, read_lines};
use crate::support::raw::request;
use crate::support::recording::{fixture, load};
use crate::support::{Relay, Setup, Upstream, eventually};

/// Runs `flagtap explain`, and returns what it prints on standard output and on standard error.
fn explain(config: &str, arguments: &[&str], input: &[u8]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    fs::write(&path, config).unwrap();
    let mut command = command::binary();
    command
        .args(["explain", "--config", path.to_str().unwrap()])
        .args(arguments);
    let said = command::run(&mut command, input);
    assert_eq!(said.code, Some(0), "{said:?}\n{config}");
    (said.out, said.error)
}

/// Scenario: each example of docs/selection.md: settings, an event, what is said of it and, in some, what is sent.
/// Guarantees: `flagtap explain` says and prints exactly that. `FLAGTAP_UPDATE_GOLDEN=1` writes the page's answers.
#[test]
fn the_examples_of_the_documentation_are_true() {
    let page = fixture("../docs/selection.md");
    let text = fs::read_to_string(&page).unwrap();
    let mut parts: Vec<String> = text.split("```").map(str::to_owned).collect();
    let (mut frame, mut config) = (String::new(), String::new());
    let (mut event, mut examples) = (String::new(), 0);
    for part in parts.iter_mut().skip(1).step_by(2) {
        let (language, content) = part.split_once('\n').unwrap();
        match language {
            "yaml" if frame.is_empty() => content.clone_into(&mut frame),
            "yaml" => config = with_settings(&frame, content),
            "json" => event = content.to_owned(),
            "text" => {
                let (said, _) = explain(&config, &[], event.as_bytes());
                examples += 1;
                if std::env::var_os("FLAGTAP_UPDATE_GOLDEN").is_some() {
                    *part = format!("text\n{said}");
                } else {
                    assert_eq!(content, said, "settings:\n{config}\nevent:\n{event}");
                }
            }
            "ndjson" => {
                let (sent, _) = explain(&config, &["--output"], event.as_bytes());
                if std::env::var_os("FLAGTAP_UPDATE_GOLDEN").is_some() {
                    *part = format!("ndjson\n{sent}");
                } else {
                    assert_eq!(content, sent, "settings:\n{config}\nevent:\n{event}");
                }
            }
            _ => {}
        }
    }
    assert!(examples >= 16, "{examples}");
    if std::env::var_os("FLAGTAP_UPDATE_GOLDEN").is_some() {
        fs::write(page, parts.join("```")).unwrap();
    }
}

/// Returns the page's frame with these settings of an environment (`export`) or of a destination in their place; a whole
/// configuration as it is.
fn with_settings(frame: &str, settings: &str) -> String {
    if settings.starts_with("environments:") {
        return format!("queue: {{ sled: {{ path: ./no-queue-here }} }}\n{settings}");
    }
    let place = match settings.starts_with("export:") {
        true => "    # `export` stands here.\n",
        false => "    # `only` and `redact` stand here.\n",
    };
    assert!(frame.contains(place), "{frame}");
    let indented: String = settings.lines().map(|line| format!("    {line}\n")).collect();
    frame.replace(place, &indented)
}

/// Scenario: the recorded requests of a few SDK builds are explained with `--output`.
/// Guarantees: the bytes that would be sent are those that the relay exports, ids included.
#[test]
fn explain_sends_what_the_relay_exports() {
    for build in ["node-server-9.13.7", "python-6.10.0", "js-2.15.0", "synthetic-php"] {
        let recording = load(build);
        let config = json!({
            "environments": [replay::environment(&recording)],
            "destinations": [{ "name": "archive", "file": { "path": "./out" } }],
        });
        let input = inflate(&fs::read(fixture(&format!("traffic/{build}.jsonl.gz"))).unwrap());
        let (output, said) = explain(&config.to_string(), &["--output", "--destination", "archive"], &input);
        let golden = replay::golden(build);
        assert!(golden.len() > 3, "{build}");
        let lines: std::collections::BTreeSet<&str> = output.lines().collect();
        for line in &golden {
            assert!(lines.contains(line.as_str()), "{build}: {line}\n{said}");
        }
    }
}

/// Scenario: input that is no event, an environment and a destination that are not there.
/// Guarantees: exit code 1 and a reason, and nothing on standard output.
#[test]
fn explain_refuses_what_it_cannot_explain() {
    for (arguments, input) in [
        (&[][..], "not json"),
        (&[], "7"),
        (&[], r#"{"method":"POST","path":"/bulk","body":7}"#),
        (&["--environment", "test"], "[]"),
        (&["--destination", "lake"], "[]"),
        (&[], " \n"),
    ] {
        let said = command::run(command::binary().arg("explain").args(arguments), input.as_bytes());
        assert_eq!(said.code, Some(1), "{arguments:?} {input}");
        assert!(said.out.is_empty() && !said.error.is_empty(), "{arguments:?} {input}");
    }
}

fn evaluation(flag: &str, user: &str, reason: Value) -> Value {
    json!({
        "kind": "feature", "creationDate": 1_700_000_000_000_u64, "key": flag, "value": true, "reason": reason,
        "context": { "kind": "user", "key": user, "email": "ada@example.com" },
    })
}

fn summary(flags: &[(&str, u64)]) -> Value {
    let counted = flags.iter().map(|(flag, count)| {
        let counters = json!([{ "value": true, "version": 1, "count": count }]);
        ((*flag).to_owned(), json!({ "default": false, "counters": counters }))
    });
    let features: serde_json::Map<String, Value> = counted.collect();
    json!({ "kind": "summary", "startDate": 1, "endDate": 2, "features": features })
}

fn post(relay: &Relay, sdk_key: &str, sdk: &str, events: &Value) {
    let headers = [
        ("Authorization", sdk_key),
        ("User-Agent", sdk),
        ("X-LaunchDarkly-Event-Schema", "4"),
    ];
    let response = relay.exchange(&request("POST", "/bulk", &headers, events.to_string().as_bytes()));
    assert_eq!(response.status, 202);
}

/// Scenario: one environment for each setting; the same events are posted to all.
/// Guarantees: each exports what its setting says, in order, and counts the rest with its reason; the events balance.
#[test]
fn every_setting_is_kept_by_the_relay() {
    let table = [
        (json!({}), "old rule other-rule experiment checkout-done $ld:x", ""),
        (
            json!({ "flags": "all" }),
            "old rule other-rule experiment checkout-done $ld:x",
            "",
        ),
        (
            json!({ "flags": { "default": "hold", "named": { "old": "export" } } }),
            "old experiment checkout-done $ld:x",
            "held_by_default",
        ),
        (
            json!({ "flags": { "named": { "old": "hold", "experiment": { "export": "hold", "experiments": false } } } }),
            "rule other-rule checkout-done $ld:x",
            "flag_held",
        ),
        (
            json!({ "flags": { "named": { "rule": { "rules": ["r1"] }, "other-rule": { "rules": ["r1"] }, "old": { "rules": ["r1"] } } } }),
            "rule experiment checkout-done $ld:x",
            "no_reason_given rule_not_selected",
        ),
        (
            json!({ "flags": { "default": "new", "since": "2099-01-01T00:00:00Z" } }),
            "experiment checkout-done $ld:x",
            "flag_created_before",
        ),
        (
            json!({ "experiments_only": true }),
            "experiment checkout-done $ld:x",
            "not_in_experiment",
        ),
        (
            json!({ "custom_events": { "include": ["checkout-*"] } }),
            "old rule other-rule experiment checkout-done",
            "custom_event_not_included",
        ),
        (
            json!({ "custom_events": { "exclude": ["$ld:*"] } }),
            "old rule other-rule experiment checkout-done",
            "custom_event_excluded",
        ),
        (
            json!({ "kinds": ["custom"] }),
            "checkout-done $ld:x",
            "kind_not_selected",
        ),
        (json!({ "sdks": { "exclude": ["GoClient/7.*"] } }), "", "sdk_excluded"),
        // Context `u` is not in the sample of 1 in 1000 of this flag.
        (
            json!({ "sample": { "flags": { "old": 1000 } } }),
            "rule other-rule experiment checkout-done $ld:x",
            "sampled",
        ),
    ];
    let custom =
        |name: &str| json!({ "kind": "custom", "key": name, "creationDate": 1, "contextKeys": { "user": "u" } });
    let events = json!([
        evaluation("old", "u", Value::Null),
        evaluation(
            "rule",
            "u",
            json!({ "kind": "RULE_MATCH", "ruleIndex": 0, "ruleId": "r1" })
        ),
        evaluation(
            "other-rule",
            "u",
            json!({ "kind": "RULE_MATCH", "ruleIndex": 1, "ruleId": "r2" })
        ),
        evaluation(
            "experiment",
            "u",
            json!({ "kind": "FALLTHROUGH", "inExperiment": true })
        ),
        custom("checkout-done"),
        custom("$ld:x"),
    ]);
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let folder = setup.queue().with_file_name("exports");
    let name = |index: usize| format!("setting-{index}");
    let environments = table.iter().enumerate().map(|(index, (settings, ..))| {
        json!({ "name": name(index), "credentials": { "sdk_keys": [format!("sdk-key-{index}")] },
            "export": settings, "destinations": [name(index)] })
    });
    let destinations =
        (0..table.len()).map(|index| json!({ "name": name(index), "file": { "path": folder.join(name(index)) } }));
    setup.config["environments"] = environments.collect();
    setup.config["destinations"] = destinations.collect();
    let relay = Relay::start(&setup);
    for index in 0..table.len() {
        post(&relay, &format!("sdk-key-{index}"), "GoClient/7.0.0", &events);
    }
    let metrics = relay.settle();
    for (index, (settings, exported, reasons)) in table.iter().enumerate() {
        let lines = read_lines(&folder.join(name(index)));
        assert_eq!(markers(&lines).join(" "), *exported, "{settings}");
        for reason in reasons.split_whitespace() {
            let labels = [("environment", name(index)), ("reason", reason.to_owned())];
            let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
            let counted = metrics.sum("flagtap_events_filtered_total", &labels);
            assert!(counted > 0.0, "{settings} {reason}");
        }
    }
    relay.stop();
}

/// Scenario: 200 contexts evaluate a flag that is sampled 1 in 10.
/// Guarantees: those in the sample are exported with `samplingRatio`, and otherwise as they came.
#[test]
fn a_sampled_flag_says_so_in_what_is_exported() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["environments"][0]["export"] = json!({ "sample": { "flags": { "noisy": 10 } } });
    let relay = Relay::start(&setup);
    let events: Vec<Value> = (0..200)
        .map(|user| evaluation("noisy", &format!("user-{user}"), Value::Null))
        .collect();
    relay.post("payload", &json!(events));
    relay.settle();
    relay.stop();
    let exported = setup.exported();
    assert!((5..60).contains(&exported.len()), "{}", exported.len());
    for line in &exported {
        let mut event = export::event(line);
        assert_eq!(event["samplingRatio"], 10, "{line}");
        for added in ["id", "samplingRatio", "contextKeys"] {
            event.as_object_mut().unwrap().remove(added);
        }
        assert!(events.contains(&event), "{line}");
    }
}

/// Scenario: a flag is only ever counted in a summary; the relay ends; it starts again with `default: new` since now.
/// Guarantees: that flag is old and one that comes now is new, also after a crash and another start.
#[test]
fn a_flag_that_was_counted_before_the_switch_is_old() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["shutdown"] = json!({ "grace": "10s", "reserve": "8s" });
    let relay = Relay::start(&setup);
    relay.post("first", &json!([summary(&[("old", 3)])]));
    relay.stop();
    assert!(setup.queue().join("flags").exists());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let since = jiff::Timestamp::from_millisecond(i64::try_from(now).unwrap()).unwrap();
    setup.config["environments"][0]["export"] = json!({ "flags": { "default": "new", "since": since.to_string() } });
    let relay = Relay::start(&setup);
    relay.post(
        "second",
        &json!([evaluation("old", "u", Value::Null), evaluation("new", "u", Value::Null)]),
    );
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["new"]);
    eventually("the new flag to be kept", || {
        let kept = fs::read_to_string(setup.queue().join("flags")).unwrap_or_default();
        kept.contains("\"new\"").then_some(())
    });
    relay.kill();
    let relay = Relay::start(&setup);
    relay.post(
        "third",
        &json!([evaluation("old", "u", Value::Null), evaluation("new", "v", Value::Null)]),
    );
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["new", "new"]);
    assert!(!relay.log_text().contains("nothing is known of flags"));
    relay.stop();
}

/// Scenario: a flag that is exported, one that is held, one that SDKs only count; `flagtap coverage` as table and JSON.
/// Guarantees: each line says why and what to do; no key or attribute of a context is in either.
#[test]
fn coverage_says_why_a_flag_is_not_exported() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["environments"][0]["export"] = json!({ "flags": { "named": { "held": "hold" } } });
    let key = setup.config["environments"][0]["credentials"]["sdk_keys"][0]
        .as_str()
        .unwrap()
        .to_owned();
    let relay = Relay::start(&setup);
    let counted = summary(&[("exported", 12), ("held", 4), ("counted", 30)]);
    let events = json!([
        evaluation("exported", "secret-user", Value::Null),
        evaluation("held", "secret-user", Value::Null),
        counted
    ]);
    post(&relay, &key, "GoClient/4.10.0 (secret-machine)", &events);
    relay.settle();
    let address = relay.telemetry_address().to_string();
    let coverage = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_flagtap"))
            .args(["coverage", "--address", &address])
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, table) = coverage(&[]);
    assert_eq!(code, Some(0));
    let row = |flag: &str| {
        let line = table
            .lines()
            .find(|line| line.starts_with(flag))
            .unwrap_or_else(|| panic!("{table}"));
        let mut words: Vec<&str> = line.split_whitespace().collect();
        words.remove(4);
        words.join(" ")
    };
    assert_eq!(row("exported"), "exported 12 1 1 detailed_events_for_some (11)");
    assert_eq!(row("held"), "held 4 1 0 flag_held (1)");
    assert_eq!(
        row("counted"),
        "counted 30 0 0 detailed_events_off (30), sdk_too_old (30)"
    );
    assert!(table.contains("/api/v2/flags/$PROJECT_KEY/counted"), "{table}");
    let (code, text) = coverage(&["--json", "--environment", "production"]);
    assert_eq!(code, Some(0));
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["environments"][0]["flags"][0]["flag"], "counted");
    assert!(!format!("{table}{text}").contains("secret"), "{text}");
    assert_eq!(coverage(&["--environment", "none"]).0, Some(1));
    relay.stop();
}

/// Scenario: an environment without a destination; then it gets one, which takes another flag only; then that is taken back.
/// Guarantees: coverage says each time why nothing arrives, and counts anew once the settings are others, so that what was
/// mended is no longer shown.
#[test]
fn coverage_tells_what_is_so_now() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["environments"][0]["destinations"] = json!([]);
    let relay = Relay::start(&setup);
    let shown = |payload: &str, received: u64| {
        relay.post(payload, &json!([evaluation("a", "u", Value::Null)]));
        relay.settle();
        let document: Value = serde_json::from_slice(&relay.telemetry("/coverage").unwrap().body).unwrap();
        let flag = document["environments"][0]["flags"][0].clone();
        assert_eq!(
            (&flag["flag"], &flag["received"]),
            (&json!("a"), &json!(received)),
            "{document}"
        );
        let why = flag["not_exported"].as_array().unwrap().iter();
        let why: Vec<String> = why
            .map(|why| format!("{}{}", why["reason"].as_str().unwrap(), why["destination"]))
            .collect();
        (flag["exported"].as_u64().unwrap(), why)
    };
    let reload = |setup: &Setup, times: f64| {
        setup.write();
        relay.signal("HUP");
        let applied = [("outcome", "applied")];
        eventually("the reload", || {
            let reloads = relay.metrics().sum("flagtap_configuration_reloads_total", &applied);
            (reloads == times).then_some(())
        });
    };
    assert_eq!(shown("first", 1), (0, vec!["no_destinationnull".to_owned()]));
    assert_eq!(shown("second", 2), (0, vec!["no_destinationnull".to_owned()]));
    setup.config["environments"][0]["destinations"] = json!(["archive"]);
    setup.config["destinations"][0]["only"] = json!({ "flags": ["b"] });
    reload(&setup, 1.0);
    assert_eq!(shown("third", 1), (1, vec!["only_other_flags\"archive\"".to_owned()]));
    setup.config["destinations"][0].as_object_mut().unwrap().remove("only");
    reload(&setup, 2.0);
    assert_eq!(shown("fourth", 1), (1, vec![]));
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["a"]);
}

/// Scenario: a destination that gets `custom` events only, without e-mail addresses, beside one that gets everything.
/// Guarantees: `only` and `redact` hold for what is delivered, and for their own destination alone.
#[test]
fn a_destination_gets_only_what_it_is_to_see() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let narrow = setup.queue().with_file_name("narrow");
    setup.config["environments"][0]["destinations"] = json!(["archive", "narrow"]);
    setup.config["destinations"].as_array_mut().unwrap().push(json!({
        "name": "narrow",
        "only": { "kinds": ["custom"] },
        "redact": { "attributes": { "/email": "drop" } },
        "file": { "path": narrow },
    }));
    let relay = Relay::start(&setup);
    let context = json!({ "kind": "user", "key": "ann", "email": "ann@example.com", "plan": "pro" });
    let events = json!([
        { "kind": "custom", "creationDate": 1_700_000_000_000_u64, "key": "bought", "context": context },
        { "kind": "identify", "creationDate": 1_700_000_000_000_u64, "context": context },
    ]);
    relay.post("narrowed", &events);
    relay.settle();
    relay.stop();
    let lines = read_lines(&narrow);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(!lines[0].contains("ann@example.com"), "{lines:?}");
    let event = export::event(&lines[0]);
    assert_eq!(
        (&event["key"], &event["context"]["plan"]),
        (&json!("bought"), &json!("pro"))
    );
    assert_eq!(event["context"]["_meta"]["redactedAttributes"], json!(["email"]));
    let whole = setup.exported();
    assert_eq!(whole.len(), 2);
    assert!(whole.iter().all(|line| line.contains("ann@example.com")));
}
