//! What LaunchDarkly's REST API adds: names of variations, dates of creation, rules, ids; and that nothing depends on it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually::{patience, within};
use crate::support::export::{self, markers};
use crate::support::launchdarkly_api::{Api, Mood, TOKEN};
use crate::support::{CLIENT_SIDE_ID, PROJECT_ID, Relay, SDK_KEY, Setup, Upstream, eventually};

/// 2023-11-14.
const CREATED: u64 = 1_700_000_000_000;

/// An account with another project before the one that is configured, more environments and flags than fit into a page.
fn account(api: &Api, name: &str) {
    api.clear();
    api.project("5744c96707c9900708000009", "other");
    api.environment("578d1e02d2943862c52b9600", "production", "sdk-of-another", false);
    api.project(PROJECT_ID, "shop.web");
    api.environment("578d1e02d2943862c52b9601", "test", "sdk-of-test", true);
    api.environment("578d1e02d2943862c52b9602", "staging", "sdk-of-staging", true);
    api.environment(CLIENT_SIDE_ID, "production", SDK_KEY, false);
    let on_off = [("on", json!(true)), ("off", json!(false))];
    for number in 0..3 {
        api.flag(&format!("filler-{number}"), CREATED, &on_off, &json!({}));
    }
    api.flag("old", CREATED, &on_off, &json!({ "trackEvents": true }));
    let rules = json!([{ "_id": "r1", "description": "beta users", "trackEvents": true, "clauses": [], "variation": 0 },
        { "_id": "r2", "clauses": [], "variation": 1 }]);
    let variations = [(name, json!({ "price": 10, "tags": ["a", "b"] })), ("", json!(7))];
    api.flag("pricing", CREATED + 1000, &variations, &json!({ "rules": rules }));
    api.publish();
}

/// A relay that knows its environment by its SDK key alone.
fn setup(api: &Api, upstream: &Upstream) -> Setup {
    let mut setup = Setup::new(upstream.address());
    setup.config["launchdarkly"] = api.section();
    let environment = &mut setup.config["environments"][0];
    for key in ["project_id", "environment_id"] {
        environment.as_object_mut().unwrap().remove(key);
    }
    environment["credentials"] = json!({ "sdk_keys": [SDK_KEY] });
    setup
}

fn evaluation(flag: &str, variation: u64, value: &Value) -> Value {
    json!({ "kind": "feature", "creationDate": CREATED, "key": flag, "variation": variation, "value": value, "default": null,
        "context": { "kind": "user", "key": "u" }, "reason": { "kind": "RULE_MATCH", "ruleIndex": 0, "ruleId": "r1" } })
}

fn wait_for_a_read(relay: &Relay, reads: f64) {
    eventually("the API to be read", || {
        let read = relay
            .metrics()
            .sum("flagtap_catalogue_reads_total", &[("outcome", "read")]);
        (read >= reads).then_some(())
    });
}

fn status(relay: &Relay) -> Value {
    serde_json::from_slice(&relay.telemetry("/status").unwrap().body).unwrap()
}

/// Scenario: an account of several pages, an environment that is configured by its SDK key alone, `default: new`; then the
/// API is down and the relay starts again; then the copy on disk is damaged and the API is back.
/// Guarantees: exported evaluations have their variation's name and the ids of project and environment, dates decide what is
/// new; all of it also from the copy, which holds no key; damage is put aside and what it held is read anew.
#[test]
fn names_dates_and_ids_come_from_the_api_or_from_its_copy() {
    let (api, upstream) = (Api::start(), Upstream::accepting());
    account(&api, "the cheap one");
    api.pages_of(2);
    let mut setup = setup(&api, &upstream);
    // Between the two flags.
    setup.config["environments"][0]["export"] =
        json!({ "flags": { "default": "new", "since": "2023-11-14T22:13:20.500Z" } });
    let events = json!([
        evaluation("old", 0, &json!(true)),
        evaluation("pricing", 0, &json!({ "tags": ["a", "b"], "price": 10.0 })),
        evaluation("pricing", 1, &json!(7)),
        evaluation("pricing", 0, &json!("another value")),
        evaluation("nobody-knows", 0, &json!(true)),
    ]);
    let expected = [Some("the cheap one"), None, None, None];
    let check = |lines: &[String]| {
        assert_eq!(markers(lines), ["pricing", "pricing", "pricing", "nobody-knows"]);
        for (line, name) in lines.iter().zip(expected) {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(
                (&record["project"], &record["environment"]),
                (&json!(PROJECT_ID), &json!(CLIENT_SIDE_ID))
            );
            assert_eq!(record["event"]["variationName"].as_str(), name, "{line}");
        }
        assert!(
            lines[0].contains(r#""variation":0,"variationName":"the cheap one","#),
            "{}",
            lines[0]
        );
    };
    let relay = Relay::start(&setup);
    wait_for_a_read(&relay, 1.0);
    relay.post("first", &events);
    relay.settle();
    check(&setup.exported());
    let shown = &status(&relay)["launchdarkly"];
    assert_eq!(
        shown["environments"][0],
        json!({ "project": "shop.web", "environment": "production", "flags": 5, "has_more_flags": false })
    );
    assert_eq!(
        (&shown["trouble"], shown["read"].is_string()),
        (&Value::Null, true),
        "{shown}"
    );
    let seen = api.seen();
    assert!(
        seen.iter()
            .all(|path| !path.contains("flags/other") && !path.contains("env=test")),
        "{seen:?}"
    );
    relay.stop();
    let copy = fs::read_to_string(setup.queue().join("catalogue")).unwrap();
    assert!(
        !copy.contains(SDK_KEY) && !copy.contains("mob-of") && !copy.contains(TOKEN),
        "{copy}"
    );

    api.tolerate_broken();
    api.be(Mood::Fails(usize::MAX, 503, vec![]));
    let relay = Relay::start(&setup);
    relay.post("second", &events);
    relay.settle();
    check(&setup.exported()[4..]);
    relay.kill();

    for name in ["catalogue", "catalogue.previous"] {
        let path = setup.queue().join(name);
        if path.exists() {
            fs::write(path, copy.replace("cheap", "dear")).unwrap();
        }
    }
    api.be(Mood::Answers);
    let relay = Relay::start(&setup);
    wait_for_a_read(&relay, 1.0);
    relay.await_log("reading them anew");
    assert!(setup.queue().join("catalogue.damaged").exists());
    relay.post("third", &events);
    relay.settle();
    check(&setup.exported()[8..]);
    relay.stop();
}

/// Scenario: an evaluation waits for a destination that is down; its variation gets another name; the relay starts again.
/// Guarantees: what is sent then has the name of when it was received, as all that was sent before under its id.
#[test]
fn what_is_sent_again_has_the_name_it_had() {
    let (api, upstream) = (Api::start(), Upstream::accepting());
    let segment = crate::support::segment::Segment::start(crate::support::segment::Mood::Answers(503, vec![], ""));
    account(&api, "first name");
    let mut setup = setup(&api, &upstream);
    segment.add_to(&mut setup);
    segment.tolerate_broken();
    let event = evaluation("pricing", 0, &json!({ "price": 10, "tags": ["a", "b"] }));
    let relay = Relay::start(&setup);
    wait_for_a_read(&relay, 1.0);
    relay.post("payload", &json!([event]));
    eventually("the destination to refuse it", || (segment.refused() > 0).then_some(()));
    account(&api, "second name");
    let reads = relay
        .metrics()
        .sum("flagtap_catalogue_reads_total", &[("outcome", "read")]);
    wait_for_a_read(&relay, reads + 2.0);
    api.tolerate_broken();
    relay.kill();
    segment.be(crate::support::segment::Mood::Takes);
    let relay = Relay::start(&setup);
    wait_for_a_read(&relay, 1.0);
    relay.post("another", &json!([event]));
    relay.settle();
    let names: Vec<Value> = segment
        .messages()
        .iter()
        .map(|message| message["properties"]["variationName"].clone())
        .collect();
    assert_eq!(names, ["first name", "second name"]);
    let exported = setup.exported();
    let names: Vec<Value> = exported
        .iter()
        .map(|line| export::event(line)["variationName"].clone())
        .collect();
    assert_eq!(names, ["first name", "second name"]);
    relay.stop();
}

/// Scenario: LaunchDarkly asks for patience in each of its ways: 429 with `Retry-After`, and limits that are used up.
/// Guarantees: no request comes before it may (the fake fails on it), and all is read in the end.
#[test]
fn limits_of_the_api_are_waited_out() {
    let upstream = Upstream::accepting();
    for mood in [
        Mood::Fails(2, 429, vec![("Retry-After", "1")]),
        Mood::Exhausted("X-Ratelimit-Auth-Token-Remaining", Duration::from_millis(400)),
        Mood::Exhausted("X-Ratelimit-Route-Remaining", Duration::from_millis(400)),
        Mood::Exhausted("X-Ratelimit-Global-Remaining", Duration::from_millis(400)),
    ] {
        let api = Api::start();
        account(&api, "name");
        api.be(mood.clone());
        api.tolerate_broken();
        let begin = Instant::now();
        let setup = setup(&api, &upstream);
        let relay = Relay::start(&setup);
        wait_for_a_read(&relay, 1.0);
        assert!(begin.elapsed() >= Duration::from_millis(400), "{mood:?}");
        assert_eq!(api.complaints(), Vec::<String>::new(), "{mood:?}");
        relay.stop();
    }
}

/// Scenario: a token that is refused, answers that are not what is documented, a next page on another host, a list without
/// an end, a page without one.
/// Guarantees: traffic and export go on as without a token; status, metrics and log say what is wrong, without the token,
/// and nothing is sent to the other host.
#[test]
fn trouble_with_the_api_changes_nothing_else() {
    let (upstream, elsewhere) = (Upstream::accepting(), Upstream::start());
    let next = json!({ "items": [], "_links": { "next": { "href": format!("http://{}/api/v2/projects", elsewhere.address()) } } });
    let endless = json!({ "items": [], "_links": { "next": { "href": "/api/v2/projects?limit=20&offset=20" } } });
    for (mood, outcome) in [
        (Mood::Fails(usize::MAX, 401, vec![]), "refused"),
        (Mood::Says("<html>".to_owned()), "strange"),
        (Mood::Says(r#"{"items":[{"key":7}]}"#.to_owned()), "strange"),
        (Mood::Says(next.to_string()), "strange"),
        (Mood::Says(endless.to_string()), "strange"),
        (Mood::Says(" ".repeat(33 << 20)), "unreachable"),
    ] {
        let api = Api::start();
        account(&api, "name");
        api.be(mood);
        let setup = setup(&api, &upstream);
        let relay = Relay::start(&setup);
        // A thousand pages, or five tries of 33 MB with growing waits between.
        let failed = within(patience() * 3, || {
            let failed = relay
                .metrics()
                .sum("flagtap_catalogue_reads_total", &[("outcome", outcome)]);
            (failed > 0.0).then_some(())
        });
        failed.expect("the read to fail");
        relay.post("payload", &json!([evaluation("old", 0, &json!(true))]));
        relay.settle();
        let exported = setup.exported();
        assert_eq!(markers(&exported), ["old"]);
        assert!(!exported[0].contains("variationName"));
        assert!(status(&relay)["launchdarkly"]["trouble"].is_string());
        relay.await_log("will try again");
        assert!(!relay.log_text().contains(TOKEN));
        relay.stop();
    }
    assert_eq!(elsewhere.count(), 0);
}

/// Scenario: two flags of which SDKs only count evaluations, one of them with detailed events on, and one that is exported; the
/// API tells of all.
/// Guarantees: coverage says that events are off for the first and not seen yet for the second, names project, environment and rules, and the call that turns detailed events on is ready to be
/// made; explain says when the flag was created and which rule matched, and shows the bytes that are sent.
#[test]
fn coverage_and_explain_tell_what_the_api_tells() {
    let (api, upstream) = (Api::start(), Upstream::accepting());
    account(&api, "the cheap one");
    let setup = setup(&api, &upstream);
    let relay = Relay::start(&setup);
    wait_for_a_read(&relay, 1.0);
    let counters = json!([{ "value": 7, "version": 1, "count": 30 }]);
    let event = evaluation("pricing", 0, &json!({ "price": 10, "tags": ["a", "b"] }));
    relay.post(
        "payload",
        &json!([event, { "kind": "summary", "startDate": 1, "endDate": 2,
            "features": { "filler-1": { "default": 0, "counters": counters }, "old": { "default": 0, "counters": counters } } }]),
    );
    relay.settle();
    let document: Value = serde_json::from_slice(&relay.telemetry("/coverage").unwrap().body).unwrap();
    let flags = document["environments"][0]["flags"].as_array().unwrap();
    let why = &flags[0]["not_exported"][0];
    assert_eq!(
        (&flags[0]["flag"], &why["reason"]),
        (&json!("filler-1"), &json!("detailed_events_off"))
    );
    let call = why["rest"].as_str().unwrap();
    assert!(
        call.contains("/api/v2/flags/shop.web/filler-1\"") && call.contains("/environments/production/trackEvents"),
        "{call}"
    );
    assert!(
        why["terraform"].as_str().unwrap().contains("shop.web/filler-1"),
        "{why}"
    );
    let why = &flags[1]["not_exported"];
    assert_eq!(
        (&flags[1]["flag"], &why[0]["reason"], why.as_array().unwrap().len()),
        (&json!("old"), &json!("detailed_events_not_seen"), 1),
        "LaunchDarkly says that its detailed events are on"
    );
    let told = &flags[2]["launchdarkly"];
    assert_eq!(
        (&told["created"], &told["detailed_events"]),
        (&json!("2023-11-14T22:13:21Z"), &json!("by rule"))
    );
    assert_eq!(
        told["rules"][0],
        json!({ "id": "r1", "description": "beta users", "detailed_events": true })
    );
    relay.stop();

    let input = setup.queue().with_file_name("event.json");
    fs::write(&input, event.to_string()).unwrap();
    let explained = Command::new(env!("CARGO_BIN_EXE_flagtap"))
        .args(["explain", "--output", "--config"])
        .arg(setup.write())
        .arg(&input)
        .output()
        .unwrap();
    let said = String::from_utf8(explained.stderr).unwrap();
    assert!(
        said.contains("LaunchDarkly: the flag was created 2023-11-14T22:13:21Z; rule r1: beta users"),
        "{said}"
    );
    let without_id = |line: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        record["event"].as_object_mut().unwrap().remove("id");
        record
    };
    let shown = String::from_utf8(explained.stdout).unwrap();
    assert_eq!(without_id(&shown), without_id(&setup.exported()[0]));
}
