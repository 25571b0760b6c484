//! The commands beside `serve`, as a shell or a probe sees them: what they print and their exit codes.

use std::fs;
use std::process::{Command, Output};

use serde_json::json;

use crate::support::export::read_lines;
use crate::support::letters::large;
use crate::support::relay::marked;
use crate::support::{Answer, NOBODY, Relay, Setup, Upstream, eventually};

fn flagtap(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flagtap"))
        .args(arguments)
        .env_remove("FLAGTAP_CONFIG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Scenario: `flagtap demo` in an empty folder.
/// Guarantees: it ends with 0; its last line of progress says that everything exported is delivered and nothing waits,
/// and so many events are in the file it names.
#[test]
fn the_demo_delivers_every_event_it_exports() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("demo");
    let output = flagtap(&["demo", "--dir", folder.to_str().unwrap()]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}\n{}", text(&output.stderr));
    let done = printed.lines().find(|line| line.trim_end().ends_with("done"));
    let words: Vec<&str> = done.unwrap_or_else(|| panic!("{printed}")).split_whitespace().collect();
    let before = |word: &str| words[words.iter().position(|other| *other == word).unwrap() - 1];
    assert_eq!(before("waiting"), "0", "{words:?}");
    let delivered: usize = before("delivered").parse().unwrap();
    assert!(delivered > 0);
    // `<n> events exported`
    assert_eq!(
        words[words.iter().position(|word| *word == "exported").unwrap() - 2],
        before("delivered")
    );
    assert!(
        printed.contains(&format!(" {delivered} are in the export")),
        "{printed}"
    );
    let lines = read_lines(&folder.join("run-1/flagtap-export"));
    assert_eq!(lines.len(), delivered);
}

/// Scenario: `flagtap check` on a file that can be used, on one that cannot, on none; `flagtap serve` on the bad one.
/// Guarantees: 0 for the good one; 64 for the others, with the place of the problem, and nothing is started.
#[test]
fn check_says_by_its_exit_code_whether_a_file_can_be_used() {
    let upstream = Upstream::start();
    let mut setup = Setup::new(upstream.address());
    let path = setup.write();
    let path = path.to_str().unwrap();
    let good = flagtap(&["check", path]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stdout));
    assert!(text(&good.stdout).contains("is valid: 1 environment, 1 destination"));
    setup.config["listne"] = json!("127.0.0.1:0");
    setup.write();
    let bad = flagtap(&["check", path]);
    assert_eq!(bad.status.code(), Some(64), "{}", text(&bad.stdout));
    assert!(text(&bad.stdout).contains("listne"), "{}", text(&bad.stdout));
    let served = flagtap(&["serve", "--config", path]);
    assert_eq!(served.status.code(), Some(64));
    assert!(text(&served.stderr).contains("listne"), "{}", text(&served.stderr));
    assert!(!setup.queue().exists());
    fs::remove_file(path).unwrap();
    assert_eq!(flagtap(&["check", path]).status.code(), Some(64));

    // What the file says well, and its environment does not.
    setup.config["listen"] = setup.config.as_object_mut().unwrap().remove("listne").unwrap();
    setup.config["upstream"]["url"] = json!("https://events.launchdarkly.com");
    let authorities = setup.queue().with_file_name("authorities.pem");
    fs::write(&authorities, "no certificate").unwrap();
    setup.config["upstream"]["ca_file"] = json!(authorities);
    let file = setup.write();
    for command in [&["check"][..], &["serve", "--config"]] {
        let output = flagtap(&[command, &[file.to_str().unwrap()]].concat());
        assert!(!output.status.success(), "{command:?}");
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains("authorities.pem"), "{command:?}: {said}");
    }
}

/// Scenario: `flagtap probe` before, during and at the end of a relay's life.
/// Guarantees: `ready` is 0 only while it serves and was not asked to end, else 1 with the reason; `live` stays 0 to the
/// end.
#[test]
fn probes_answer_by_their_exit_code() {
    let nobody = flagtap(&["probe", "ready", "--telemetry", NOBODY]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains(NOBODY));
    let upstream = Upstream::start();
    let mut setup = Setup::new(upstream.address());
    setup.config["shutdown"] = json!({ "grace": "1m", "reserve": "1s" });
    let mut relay = Relay::start(&setup);
    let telemetry = relay.telemetry_address().to_string();
    let probe = |what: &str| flagtap(&["probe", what, "--telemetry", &telemetry]);
    // A probe has less than a second, which a busy machine may need for more than one try.
    eventually("the relay to be ready", || {
        probe("ready").status.success().then_some(())
    });
    eventually("the relay to be live", || probe("live").status.success().then_some(()));
    // A client that stays keeps the relay from ending early.
    let staying = relay.connect();
    relay.terminate();
    let not_ready = eventually("the relay to be not ready", || {
        // A probe that ran out of its own time says nothing of the relay.
        Some(probe("ready")).filter(|output| text(&output.stderr).contains("answered 503"))
    });
    assert_eq!(not_ready.status.code(), Some(1));
    eventually("the relay to be live", || probe("live").status.success().then_some(()));
    drop(staying);
    let status = relay.wait();
    assert!(status.success(), "{status}");
}

/// Scenario: `flagtap --version`, no command, and an unknown one.
/// Guarantees: the version of the package with 0; where help is with 2.
#[test]
fn the_version_is_printed_and_wrong_arguments_are_refused() {
    let version = flagtap(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(
        text(&version.stdout),
        format!("flagtap {}\n", env!("CARGO_PKG_VERSION"))
    );
    for arguments in [&[][..], &["sreve"], &["probe", "happy"]] {
        let wrong = flagtap(arguments);
        assert_eq!(wrong.status.code(), Some(2), "{arguments:?}");
        assert!(text(&wrong.stderr).contains("--help"), "{}", text(&wrong.stderr));
    }
}

/// Scenario: a relay that ends while its destination cannot be written to; `flagtap drain` before and after that is put
/// right, and beside a relay that has the queue open.
/// Guarantees: 1 while events wait, 0 once all are delivered, 1 with the reason beside the relay.
#[test]
fn drain_delivers_what_a_relay_left_behind() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let blocked = setup.queue().with_file_name("export");
    // A file where the folder is to be.
    fs::write(&blocked, "").unwrap();
    let mut relay = Relay::start(&setup);
    relay.tolerate("archive");
    assert_eq!(relay.post("a", &json!([marked("left")])).status, 202);
    eventually("the event to wait", || {
        (relay.metrics().sum("flagtap_destination_events_waiting", &[]) == 1.0).then_some(())
    });
    relay.kill();
    setup.config["shutdown"] = json!({ "grace": "1s", "reserve": "500ms" });
    let path = setup.write();
    let drain = |within: &str| flagtap(&["drain", "--config", path.to_str().unwrap(), "--within", within]);
    let output = drain("2s");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("1 events still wait"),
        "{}",
        text(&output.stderr)
    );
    fs::remove_file(&blocked).unwrap();
    let output = drain("30s");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(setup.exported().len(), 1);

    let relay = Relay::start(&setup);
    let output = drain("1s");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("is open in another process"),
        "{}",
        text(&output.stderr)
    );
    relay.stop();
}

/// Scenario: an event that is out of tries, one that was refused for itself, and one that waits for a destination which left the
/// configuration; `flagtap drain`, and again when the configuration has it back and the dead letter is discarded.
/// Guarantees: what goes out again by itself is delivered, and stays a dead letter while its destination is paused; 1 while anything is
/// left, and it is named; then 0.
#[test]
fn drain_says_what_is_left_besides_what_waits() {
    let upstream = Upstream::accepting();
    let hook = Upstream::start();
    hook.plan(|request| {
        let large = request.body.len() > 2000;
        Some(Answer::status(if large { 413 } else { 503 }))
    });
    let mut setup = Setup::new(upstream.address());
    let url = format!("http://{}/", hook.address());
    let blocked = setup.queue().with_file_name("export");
    fs::write(&blocked, "").unwrap();
    let other = json!({ "name": "other", "file": { "path": blocked } });
    let destinations =
        json!([{ "name": "hook", "webhook": { "url": url }, "retry": { "attempts": 1, "over": "1s" } }, other]);
    setup.config["destinations"] = destinations.clone();
    setup.config["environments"][0]["destinations"] = json!(["hook", "other"]);
    let mut relay = Relay::start(&setup);
    relay.tolerate("other");
    assert_eq!(relay.post("a", &json!([marked("tried")])).status, 202);
    assert_eq!(relay.post("b", &json!([large("b")])).status, 202);
    eventually("both to be given up", || {
        (relay.metrics().sum("flagtap_queue_dead_letters", &[]) == 2.0).then_some(())
    });
    relay.kill();
    hook.forget_plans();
    hook.take();
    hook.plan(|_| Some(Answer::status(204)));
    setup.config["destinations"].as_array_mut().unwrap().pop();
    setup.config["environments"][0]["destinations"] = json!(["hook"]);
    let path = setup.write();
    let drain = || {
        let output = flagtap(&["drain", "--config", path.to_str().unwrap(), "--within", "20s"]);
        (output.status.code(), text(&output.stderr))
    };
    setup.config["destinations"][0]["paused"] = json!(true);
    setup.write();
    let (code, said) = drain();
    assert!(code == Some(1) && said.contains("2 dead letters of hook"), "{said}");
    assert_eq!(hook.count(), 0, "it is paused");
    setup.config["destinations"][0]["paused"] = json!(false);
    setup.write();
    let (code, said) = drain();
    assert_eq!(code, Some(1), "{said}");
    for part in [
        "2 events wait for other, which is not in this configuration",
        "1 dead letters of hook",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(hook.take().len(), 1, "what was out of tries");
    let discard = [
        "queue",
        "dead-letters",
        "discard",
        "--yes",
        "--config",
        path.to_str().unwrap(),
    ];
    assert!(flagtap(&discard).status.success());
    fs::remove_file(&blocked).unwrap();
    setup.config["destinations"] = destinations;
    setup.config["environments"][0]["destinations"] = json!(["hook", "other"]);
    setup.write();
    let (code, said) = drain();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(setup.exported().len(), 2);

    fs::write(setup.queue().join("FORMAT"), "flagtap-queue 1\n").unwrap();
    let (code, said) = drain();
    assert!(
        code == Some(1) && said.contains("Use the version that wrote it"),
        "{said}"
    );
    setup.config["queue"] = json!("memory");
    setup.write();
    let (code, said) = drain();
    assert!(code == Some(1) && said.contains("is in memory"), "{said}");
}

/// Scenario: a relay started without settings for the allocator, and one whose user chose some.
/// Guarantees: the process that was started runs with flagtap's own, so that its memory stays bounded while it delivers a
/// large backlog; what the user chose is left alone.
#[test]
fn serve_gives_itself_the_allocators_settings_unless_there_are_some() {
    let upstream = Upstream::start();
    let mut setup = Setup::new(upstream.address());
    let environment = |relay: &Relay| text(&fs::read(format!("/proc/{}/environ", relay.process_id())).unwrap());
    let relay = Relay::start(&setup);
    let own = environment(&relay);
    assert!(own.contains("MALLOC_MMAP_THRESHOLD_=1048576\0"), "{own}");
    assert!(own.contains("MALLOC_ARENA_MAX="), "{own}");
    relay.stop();
    setup.variables.push(("MALLOC_ARENA_MAX".to_owned(), "7".to_owned()));
    let relay = Relay::start(&setup);
    let chosen = environment(&relay);
    assert!(chosen.contains("MALLOC_ARENA_MAX=7\0"), "{chosen}");
    assert!(!chosen.contains("MALLOC_MMAP_THRESHOLD_"), "{chosen}");
    relay.stop();
}
