//! A log that cannot be written: it costs lines, and nothing else.

use std::fs::OpenOptions;
use std::io::{PipeReader, Write, pipe};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::command::{Process, signal};
use crate::support::export::markers;
use crate::support::metrics::Scrape;
use crate::support::relay::{bulk, marked};
use crate::support::tools::free_address;
use crate::support::{Answer, Connection, NOBODY, Setup, Upstream, eventually, request};

/// Scenario: standard error is a full disk, a pipe whose reader has gone, or one whose reader stalls. A batch comes that is no
/// JSON, one with an unknown key, one that the upstream leaves without an answer, and one as it should be; a destination is not
/// there; the configuration is read again; TERM.
/// Guarantees: every request is answered as otherwise, what is to be exported is, no task panics, and the relay ends with success.
#[test]
fn a_log_that_cannot_be_written_harms_nothing() {
    for what in ["full", "closed", "stalled"] {
        let upstream = Upstream::accepting();
        upstream.once("POST", "/broken", Answer::close());
        let mut setup = Setup::new(upstream.address());
        let (relay, telemetry) = (free_address(), free_address());
        setup.config["listen"] = json!(relay.to_string());
        setup.config["telemetry"] = json!(telemetry.to_string());
        setup.config["admin"] = json!("off");
        setup.config["log"]["level"] = json!("debug");
        setup.config["shutdown"] = json!({ "grace": "2s", "reserve": "1s" });
        let retry = json!({ "initial": "100ms", "max": "200ms" });
        let gone = json!({ "name": "gone", "webhook": { "url": format!("http://{NOBODY}/") }, "retry": retry });
        setup.config["destinations"].as_array_mut().unwrap().push(gone);
        setup.config["environments"][0]["destinations"] = json!(["archive", "gone"]);
        let (stderr, _reader) = broken(what);
        let mut command = Command::new(env!("CARGO_BIN_EXE_flagtap"));
        command.args(["serve", "--config"]).arg(setup.write()).stderr(stderr);
        let mut process = Process(command.spawn().unwrap());
        drop(command);
        let metrics = || {
            let answer = Connection::try_open(telemetry).ok()?;
            let answer = { answer }.exchange(&request("GET", "/metrics", &[], b"")).ok()?;
            Some(Scrape::parse(std::str::from_utf8(&answer.body).unwrap()))
        };
        eventually("the relay to serve", metrics);

        let mut proxy = Connection::open(relay);
        let mut sent = |bytes: &[u8]| proxy.exchange(bytes).map(|answer| answer.status).unwrap_or(0);
        let good = bulk("good", &json!([marked("good")]));
        let text = String::from_utf8(good.clone()).unwrap();
        let length = |body: &str| format!("Content-Length: {}", body.len());
        let body = json!([marked("good")]).to_string();
        let no_json = text
            .replace(&length(&body), &length("no json"))
            .replace(&body, "no json");
        assert_eq!(sent(no_json.as_bytes()), 202, "{what}");
        let stranger = text.replace(crate::support::SDK_KEY, "sdk-99999999-0000-4000-8000-000000000000");
        assert_eq!(sent(stranger.as_bytes()), 202, "{what}");
        assert_eq!(sent(&request("POST", "/broken", &[], b"")), 502, "{what}");
        assert_eq!(sent(&good), 202, "{what}");
        signal(&process.0, "HUP");
        let scrape = eventually("the configuration to be read, and the destination to fail", || {
            let scrape = metrics()?;
            let read = scrape.sum("flagtap_configuration_reloads_total", &[]) > 0.0;
            let failed = scrape.sum("flagtap_destination_breaker", &[("destination", "gone")]) == 2.0;
            (read && failed).then_some(scrape)
        });
        assert_eq!(scrape.sum("flagtap_task_panics_total", &[]), 0.0, "{what}");
        let lost = scrape.sum("flagtap_log_lines_lost_total", &[]);
        assert_eq!(lost > 0.0, what != "stalled", "{what}: {lost} lines lost");

        signal(&process.0, "TERM");
        let ended = eventually("the relay to end", || process.0.try_wait().unwrap());
        assert!(ended.success(), "{what}: {ended}");
        assert_eq!(markers(&setup.exported()), ["good"], "{what}");
    }
}

/// Returns a standard error of this kind, and what keeps it so.
fn broken(what: &str) -> (Stdio, Option<PipeReader>) {
    if what == "full" {
        return (OpenOptions::new().write(true).open("/dev/full").unwrap().into(), None);
    }
    let (reader, mut writer) = pipe().unwrap();
    if what == "closed" {
        return (writer.into(), None);
    }
    // As much as a pipe takes.
    writer.write_all(&[b'x'; 64 << 10]).unwrap();
    (writer.into(), Some(reader))
}

/// Scenario: commands print into a pipe whose reader has gone, or onto a full disk.
/// Guarantees: they end without a panic.
#[test]
fn nobody_who_reads_is_no_reason_to_panic() {
    for arguments in [
        &["schema"][..],
        &["metrics"],
        &["destinations"],
        &["explain"],
        &["check", "/nowhere.yaml"],
        &["serve", "--config", "/nowhere.yaml"],
        &["probe", "live", "--telemetry", NOBODY],
    ] {
        for what in ["full", "closed"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_flagtap"));
            let command = command.args(arguments).stdin(Stdio::null());
            let status = command.stdout(broken(what).0).stderr(broken(what).0).status().unwrap();
            assert!(
                [0, 1, 64].contains(&status.code().unwrap()),
                "{arguments:?}, {what}: {status}"
            );
        }
    }
}
