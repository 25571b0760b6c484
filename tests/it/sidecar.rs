//! The sidecar as the chart renders it, run as a kubelet would: its arguments, environment, configuration, user, paths.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::command::signal;
use crate::support::export::{event, read_lines};
use crate::support::pod::{golden, in_a_pod, inside, make_root, make_volumes, of_kind, started, texts};
use crate::support::recording::fixture;
use crate::support::{SDK_KEY, Upstream, tools};

/// Scenario: a pod with the native sidecar ends: TERM to the application, which flushes; when it has ended, TERM to flagtap.
/// Guarantees: flagtap runs as its user, without capabilities, writes below /data alone, and ends in time; every event
/// arrives at the destination, those after TERM too.
#[test]
fn the_last_events_of_an_application_arrive_through_the_native_sidecar() {
    if tools::find("sidecar: native", PYTHON).is_none() {
        return;
    }
    in_a_pod(
        "sidecar::the_last_events_of_an_application_arrive_through_the_native_sidecar",
        || {
            let pod = Pod::start("application-tried");
            assert_eq!(pod.spec["initContainers"][0]["restartPolicy"], "Always");
            pod.assert_confined();
            pod.application(0.0).end();
            pod.end_and_count();
        },
    );
}

/// Scenario: the same with an ordinary container: TERM to the application and the preStop hook of flagtap at once; the
/// application takes a second to flush.
/// Guarantees: the same; the hook outlasts the application.
#[test]
fn the_last_events_of_an_application_arrive_through_an_ordinary_container() {
    if tools::find("sidecar: ordinary", PYTHON).is_none() {
        return;
    }
    in_a_pod(
        "sidecar::the_last_events_of_an_application_arrive_through_an_ordinary_container",
        || {
            let pod = Pod::start("application-tried-fallback");
            pod.assert_confined();
            let application = pod.application(1.0);
            let hook = texts(&pod.container["lifecycle"]["preStop"]["exec"]["command"]);
            let mut hook = pod.inside(&hook).spawn().unwrap();
            application.end();
            assert!(
                hook.try_wait().unwrap().is_none(),
                "the hook ended before the application"
            );
            assert!(hook.wait().unwrap().success());
            pod.end_and_count();
        },
    );
}

/// What runs the application.
const PYTHON: &str = "python-sdk/bin/python";

/// A pod of the example chart: its spec, flagtap's container in it, and the process that this is.
struct Pod {
    spec: Value,
    container: Value,
    folder: TempDir,
    flagtap: Child,
    upstream: Upstream,
}

impl Pod {
    fn start(case: &str) -> Self {
        let objects = golden(case);
        let spec = of_kind(&objects, "Deployment")["spec"]["template"]["spec"].clone();
        let lists = ["initContainers", "containers"].map(|list| spec[list].as_array().cloned().unwrap_or_default());
        let mut containers = lists.concat().into_iter();
        let container = containers.find(|each| each["name"] == "flagtap").unwrap();

        let upstream = Upstream::accepting();
        let folder = tempfile::tempdir().unwrap();
        let secret = BTreeMap::from([
            ("LD_SDK_KEY", SDK_KEY.to_owned()),
            ("UPSTREAM_URL", format!("http://{}", upstream.address())),
        ]);
        let config = of_kind(&objects, "ConfigMap")["data"]["config.yaml"].as_str();
        make_volumes(folder.path(), config.unwrap(), &secret);
        let root = folder.path().join("root");
        make_root(folder.path(), &root, &container);

        let log = File::create(folder.path().join("log")).unwrap();
        let arguments = [vec!["/flagtap".to_owned()], texts(&container["args"])].concat();
        let mut command = inside(&root, &container, &secret, &arguments);
        let flagtap = command.stderr(log).spawn().unwrap();
        started(&container);
        Self {
            spec,
            container,
            folder,
            flagtap,
            upstream,
        }
    }

    /// Returns what runs a command in flagtap's container.
    fn inside(&self, arguments: &[String]) -> Command {
        inside(
            &self.folder.path().join("root"),
            &self.container,
            &BTreeMap::new(),
            arguments,
        )
    }

    /// Asserts that the process has no more rights than the container gives it.
    fn assert_confined(&self) {
        let security = &self.container["securityContext"];
        let process = fs::read_to_string(format!("/proc/{}/status", self.flagtap.id())).unwrap();
        let line = |name: &str| process.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let four = |id: &Value| [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join("\t");
        assert_eq!(line("Uid:"), format!("Uid:\t{}", four(&security["runAsUser"])));
        assert_eq!(line("Gid:"), format!("Gid:\t{}", four(&security["runAsGroup"])));
        assert_eq!(line("CapEff:"), "CapEff:\t0000000000000000");
        assert_eq!(line("CapBnd:"), "CapBnd:\t0000000000000000");
        assert_eq!(line("NoNewPrivs:"), "NoNewPrivs:\t1");
        let touch = |path: &str| {
            self.inside(&["/usr/bin/touch".to_owned(), path.to_owned()])
                .stderr(Stdio::null())
                .status()
        };
        for path in ["/x", "/etc/flagtap/x", "/run/secrets/flagtap/x", "/usr/x"] {
            assert!(!touch(path).unwrap().success(), "{path} can be written");
        }
        assert!(touch("/data/x").unwrap().success());
    }

    /// Starts an application with a real SDK, which knows its events URI as the pod gives it.
    fn application(&self, delay: f64) -> Application {
        let containers = self.spec["containers"].as_array().unwrap();
        let application = containers.iter().find(|each| each["name"] == "application").unwrap();
        let variables = application["env"].as_array().unwrap();
        let events = variables.iter().find(|each| each["name"] == "LD_EVENTS_URI").unwrap()["value"].as_str();
        let mut child = Command::new(tools::find("sidecar", PYTHON).unwrap())
            .arg(fixture("sdks/python/ends_on_term.py"))
            .args([events.unwrap(), SDK_KEY, &delay.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "running\n");
        Application(child)
    }

    /// Sends TERM to flagtap and compares what the destination has with what the application sent.
    fn end_and_count(mut self) {
        let grace = self.spec["terminationGracePeriodSeconds"].as_u64().unwrap();
        let told = Instant::now();
        signal(&self.flagtap, "TERM");
        let status = self.flagtap.wait().unwrap();
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
        assert!(status.success() && !log.contains("\"ERROR\""), "{status}: {log}");
        assert!(told.elapsed() < Duration::from_secs(grace), "{:?}", told.elapsed());
        let lines = read_lines(&self.folder.path().join("flagtap-data/export"));
        let custom = lines
            .iter()
            .map(|line| event(line))
            .filter(|event| event["kind"] == "custom");
        let mut keys: Vec<String> = custom.map(|event| event["key"].as_str().unwrap().to_owned()).collect();
        keys.sort();
        assert_eq!(keys, ["first", "last", "second"], "{log}");
        assert!(self.upstream.take().len() >= 2);
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.flagtap.kill();
        let _ = self.flagtap.wait();
    }
}

struct Application(Child);

impl Application {
    /// Sends TERM and waits for the end.
    fn end(mut self) {
        signal(&self.0, "TERM");
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
