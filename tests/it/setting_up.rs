//! The commands for the person who sets a destination up: `flagtap check --probe` and `flagtap send-test-event`.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::export::{event, read_lines};
use crate::support::moto::{Caller, Moto};
use crate::support::relay::{FOREIGN_VARIABLES, marked};
use crate::support::{Answer, CLIENT_SIDE_ID, NOBODY, PROJECT_ID, Relay, Setup, Upstream};

const TEST_KEY: &str = "LaunchDarklyDataExportTestEvent";

fn flagtap(arguments: &[&str], variables: &[(String, String)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flagtap"));
    for name in FOREIGN_VARIABLES {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } = command
        .args(arguments)
        .env_remove("FLAGTAP_CONFIG")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
    (status.code(), text)
}

fn check(setup: &Setup, variables: &[(String, String)]) -> (Option<i32>, String) {
    flagtap(&["check", "--probe", setup.write().to_str().unwrap()], variables)
}

fn send(setup: &Setup, destination: &str, more: &[&str], variables: &[(String, String)]) -> (Option<i32>, String) {
    let path = setup.write();
    let mut arguments = vec![
        "send-test-event",
        "--config",
        path.to_str().unwrap(),
        "--destination",
        destination,
    ];
    arguments.extend(more);
    flagtap(&arguments, variables)
}

/// Returns an upstream that is asked for nothing but its root.
fn upstream() -> Upstream {
    let upstream = Upstream::start();
    upstream.always("GET", "/", Answer::status(404));
    upstream
}

/// Returns a setup with these destinations.
fn setup(upstream: &Upstream, destinations: Value) -> Setup {
    let mut setup = Setup::new(upstream.address());
    let names: Vec<Value> = destinations
        .as_array()
        .unwrap()
        .iter()
        .map(|known| known["name"].clone())
        .collect();
    setup.config["environments"][0]["destinations"] = json!(names);
    setup.config["destinations"] = destinations;
    setup
}

fn lake(moto: &Moto, stream: &str) -> Value {
    json!({ "region": "eu-west-1", "stream_name": stream, "endpoint": moto.url() })
}

/// Scenario: a folder that can be written to, one whose path is a file, standard output, and a file that is wrong.
/// Guarantees: the upstream and each destination are named with what was found; 1 if one does not work, with the remedy; 0 if all do; 64
/// if the file cannot be used, without a probe. No event and no queue appears.
#[test]
fn a_probe_says_which_destination_works_and_what_to_do_about_the_others() {
    let upstream = upstream();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("taken"), "").unwrap();
    let mut setup = setup(
        &upstream,
        json!([
            { "name": "archive", "file": { "path": path("export") } },
            { "name": "broken", "file": { "path": path("taken").join("export") } },
            { "name": "console", "stdout": {} },
        ]),
    );
    let (code, text) = check(&setup, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("is valid: 1 environment, 3 destinations"), "{text}");
    for found in [
        "  archive: works: the folder can be written to\n",
        "  console: works: ",
        "  broken: does not work: ",
    ] {
        assert!(text.contains(found), "{found}: {text}");
    }
    assert!(text.contains("    remedy: look at `path`"), "{text}");
    assert!(read_lines(&path("export")).is_empty());
    assert!(!setup.queue().exists());

    setup.config["environments"][0]["destinations"] = json!(["archive", "console"]);
    setup.config["destinations"].as_array_mut().unwrap().remove(1);
    let (code, text) = check(&setup, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("  upstream: works: it answers 404"), "{text}");
    assert!(upstream.take().iter().all(|request| request.body.is_empty()));

    let there = setup.config["upstream"]["url"].take();
    setup.config["upstream"]["url"] = json!(format!("http://{NOBODY}"));
    let (code, text) = check(&setup, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("  upstream: does not work: ") && text.contains("Connection refused"),
        "{text}"
    );
    setup.config["upstream"]["url"] = there;

    setup.config["destinations"][0]["file"]["pth"] = json!("x");
    let (code, text) = check(&setup, &[]);
    assert_eq!(code, Some(64), "{text}");
    assert!(!text.contains("probing"), "{text}");
}

/// Scenario: a stream that is there, one that is not, and no credentials at all.
/// Guarantees: works; the wrong stream and the missing credentials come with what to look at on each platform; the
/// stream stays empty.
#[test]
fn a_probe_of_kinesis_tells_a_wrong_stream_from_missing_credentials() {
    let upstream = upstream();
    let Some(moto) = Moto::start("setting_up") else { return };
    let caller = Caller::default();
    moto.make_stream(&caller, "ld-events", 2);
    let right = setup(
        &upstream,
        json!([{ "name": "lake", "kinesis": lake(&moto, "ld-events") }]),
    );
    let (code, text) = check(&right, &caller.variables());
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("lake: works: the stream is ACTIVE, 2 open shards"),
        "{text}"
    );
    assert!(moto.read_all(&caller, "ld-events").is_empty());

    let (code, text) = check(&right, &[]);
    assert_eq!(code, Some(1), "{text}");
    for place in ["AWS_WEB_IDENTITY_TOKEN_FILE", "pod identity", "the instance's role"] {
        assert!(text.contains(place), "{place}: {text}");
    }

    let wrong = setup(
        &upstream,
        json!([{ "name": "lake", "kinesis": lake(&moto, "ld-event") }]),
    );
    let (code, text) = check(&wrong, &caller.variables());
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("lake: does not work: ResourceNotFoundException"),
        "{text}"
    );
    assert!(
        text.contains("remedy: there is no such stream: look at `stream_name`"),
        "{text}"
    );
}

/// Scenario: a test event to a folder, to standard output and to a stream.
/// Guarantees: each receives one feature event, whose flag and user have LaunchDarkly's test key, in the envelope of the
/// environment and of contexts; the command says that it was delivered and ends with 0.
#[test]
fn a_test_event_is_one_feature_event_with_launchdarklys_test_key() {
    let upstream = upstream();
    let folder = tempfile::tempdir().unwrap();
    let export = folder.path().join("export");
    let mut setup = setup(
        &upstream,
        json!([
            { "name": "archive", "file": { "path": export } },
            { "name": "console", "stdout": {} },
        ]),
    );
    let (code, text) = send(&setup, "archive", &[], &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("delivered: archive has acknowledged it"), "{text}");
    let lines = read_lines(&export);
    assert_eq!(lines.len(), 1);
    assert_is_the_test_event(&lines[0]);

    let (code, text) = send(&setup, "console", &[], &[]);
    assert_eq!(code, Some(0), "{text}");
    let line: Vec<&str> = text.lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(line.len(), 1, "{text}");
    assert_is_the_test_event(line[0]);
    assert!(!setup.queue().exists());

    let Some(moto) = Moto::start("setting_up") else { return };
    let caller = Caller::default();
    moto.make_stream(&caller, "ld-events", 1);
    setup.config["destinations"][1] = json!({ "name": "console", "kinesis": lake(&moto, "ld-events") });
    let (code, text) = send(&setup, "console", &[], &caller.variables());
    assert_eq!(code, Some(0), "{text}");
    let records = moto.read_all(&caller, "ld-events");
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].key, TEST_KEY);
    assert_is_the_test_event(&records[0].data);

    let (code, text) = send(&setup, "console", &[], &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("not delivered: ") && text.contains("AWS_WEB_IDENTITY_TOKEN_FILE"),
        "{text}"
    );
    assert_eq!(moto.read_all(&caller, "ld-events").len(), 1);
}

fn assert_is_the_test_event(line: &str) {
    let record: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&record["project"], &record["environment"], &record["version"]),
        (&json!(PROJECT_ID), &json!(CLIENT_SIDE_ID), &json!(2))
    );
    let event = event(line);
    assert_eq!((&event["kind"], &event["key"]), (&json!("feature"), &json!(TEST_KEY)));
    assert_eq!(event["contextKeys"], json!({ "user": TEST_KEY }));
    assert_eq!(event["id"].as_str().map(str::len), Some(24));
}

/// Scenario: a test event to a folder that a running relay writes to; to a destination that is not there; to one that
/// several environments or none use; with a file that cannot be used.
/// Guarantees: 1 and the reason, with what to choose from; 64 for the file; nothing is written.
#[test]
fn a_test_event_that_cannot_be_sent_says_why() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("first", &json!([marked("a")])).status, 202);
    relay.settle();
    let (code, text) = send(&setup, "archive", &[], &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("another flagtap writes to this folder"), "{text}");
    relay.stop();
    assert_eq!(setup.exported().len(), 1);

    let (code, text) = send(&setup, "lake", &[], &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("lake is not the name of a destination; there are: archive"),
        "{text}"
    );
    let mut other = setup.config["environments"][0].clone();
    other["name"] = json!("staging");
    other["credentials"] = json!({ "sdk_keys": ["sdk-of-staging"] });
    setup.config["environments"].as_array_mut().unwrap().push(other);
    let (code, text) = send(&setup, "archive", &[], &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("--environment: production, staging"), "{text}");
    let (code, text) = send(&setup, "archive", &["--environment", "testing"], &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("there are: production, staging"), "{text}");
    let (code, text) = send(&setup, "archive", &["--environment", "staging"], &[]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(setup.exported().len(), 2);

    setup.config["listne"] = json!(1);
    assert_eq!(send(&setup, "archive", &[], &[]).0, Some(64));
}
