//! The real binary with a generated configuration, its log and its metrics.
//!
//! The binary binds port 0 and says where it listens in its log: `listening` with the fields `relay` and `telemetry`.
//! A test fails on any ERROR in the log, and on any panic, that it did not announce with [`Relay::tolerate`].

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::command::signal;
use super::eventually::eventually;
use super::metrics::Scrape;
use super::raw::{Connection, Response, request};
use super::{CLIENT_SIDE_ID, MOBILE_KEY, PROJECT_ID, SDK_KEY, export};

/// What would send the relay's requests elsewhere, or as somebody else, if the shell of the one who runs the tests has
/// it.
pub(crate) const FOREIGN_VARIABLES: [&str; 12] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "https_proxy",
    "http_proxy",
    "no_proxy",
];

/// A configuration and the folder it lives in; relays started from it one after the other share the queue.
pub(crate) struct Setup {
    folder: TempDir,
    /// The configuration file's content. JSON is YAML too.
    pub(crate) config: Value,
    /// Environment variables for the binary.
    pub(crate) variables: Vec<(String, String)>,
}

/// A running binary.
pub(crate) struct Relay {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    address: SocketAddr,
    telemetry: SocketAddr,
    tolerated: Vec<String>,
}

impl Setup {
    /// One environment with all three credentials, one `file` destination named `archive`, the upstream at `address`.
    pub(crate) fn new(upstream: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let config = json!({
            "listen": "127.0.0.1:0",
            "telemetry": "127.0.0.1:0",
            "admin": { "listen": "127.0.0.1:0" },
            "log": { "level": "info", "format": "json" },
            // Short, because each test ends its relay; what waits is settled before.
            "shutdown": { "grace": "1s", "reserve": "800ms" },
            "upstream": { "url": format!("http://{upstream}"), "connect_timeout": "2s", "timeout": "10s" },
            // What is answered is in the queue, also where the disk takes its time.
            "tee": { "append_timeout": "20s" },
            "queue": { "max_bytes": "1GiB", "sled": { "path": path("queue") } },
            "environments": [{
                "name": "production",
                "project_id": PROJECT_ID,
                "environment_id": CLIENT_SIDE_ID,
                "credentials": {
                    "sdk_keys": [SDK_KEY], "mobile_keys": [MOBILE_KEY], "client_side_ids": [CLIENT_SIDE_ID],
                },
                "destinations": ["archive"],
            }],
            "destinations": [{ "name": "archive", "file": { "path": path("export") } }],
        });
        Self {
            folder,
            config,
            variables: Vec::new(),
        }
    }

    /// Returns the lines of the `archive` destination, oldest first.
    pub(crate) fn exported(&self) -> Vec<String> {
        export::read_lines(&self.folder.path().join("export"))
    }

    /// Returns where the queue is to be.
    pub(crate) fn queue(&self) -> PathBuf {
        self.folder.path().join("queue")
    }

    /// Returns the configuration file's path after writing it.
    pub(crate) fn write(&self) -> PathBuf {
        let path = self.folder.path().join("config.yaml");
        fs::write(&path, serde_json::to_vec_pretty(&self.config).unwrap()).unwrap();
        path
    }
}

impl Relay {
    /// Starts the binary and waits until it is ready.
    pub(crate) fn start(setup: &Setup) -> Self {
        Self::start_from(setup, &setup.write())
    }

    /// Starts the binary with the configuration at `path` and waits until it is ready.
    pub(crate) fn start_from(setup: &Setup, path: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flagtap"));
        command
            .args(["serve", "--config"])
            .arg(path)
            .envs(setup.variables.iter().map(|(name, value)| (name, value)));
        let mut relay = Self::launch(command);
        relay.serves("relay");
        relay
    }

    /// Starts a command of the binary that serves, without waiting for it. [`Relay::serves`] comes next.
    pub(crate) fn launch(mut command: Command) -> Self {
        let given: Vec<OsString> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        for name in FOREIGN_VARIABLES {
            if !given.iter().any(|given| given == name) {
                command.env_remove(name);
            }
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, kept) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| kept.lock().unwrap().push(line))
        });
        let unbound = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            child,
            log,
            address: unbound,
            telemetry: unbound,
            tolerated: Vec::new(),
        }
    }

    /// Waits until it is ready; the log calls its address `field`.
    pub(crate) fn serves(&mut self, field: &str) {
        (self.address, self.telemetry) = eventually("the line `listening` in the log", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("it ended at once with {status}:\n{}", self.log_text());
            }
            let fields = self.find_log("listening")?;
            let address = |name: &str| fields[name].as_str().and_then(|text| text.parse().ok());
            Some((address(field)?, address("telemetry")?))
        });
        eventually("/readyz to answer 200", || {
            (self.telemetry("/readyz")?.status == 200).then_some(())
        });
    }

    /// Returns where SDKs connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where probes and metrics are answered.
    pub(crate) fn telemetry_address(&self) -> SocketAddr {
        self.telemetry
    }

    /// Returns where people ask and decide.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        let fields = self.find_log("listening").unwrap();
        let address = fields["admin"].as_str().and_then(|text| text.parse().ok());
        address.unwrap_or_else(|| panic!("no admin port: {fields}"))
    }

    /// Returns a new connection to the relay.
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    /// Sends one request on a connection of its own.
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Response {
        self.connect()
            .exchange(bytes)
            .unwrap_or_else(|error| panic!("no answer: {error}\n{}", self.log_text()))
    }

    /// Posts events to `/bulk` as a Go SDK of schema 4 does.
    pub(crate) fn post(&self, payload_id: &str, events: &Value) -> Response {
        self.exchange(&bulk(payload_id, events))
    }

    /// Returns what the telemetry port answers; `None` if it does not.
    pub(crate) fn telemetry(&self, path: &str) -> Option<Response> {
        Connection::try_open(self.telemetry)
            .ok()?
            .exchange(&request("GET", path, &[], b""))
            .ok()
    }

    /// Returns the metrics.
    pub(crate) fn metrics(&self) -> Scrape {
        let response = self.telemetry("/metrics").expect("/metrics answers");
        assert_eq!(response.status, 200);
        Scrape::parse(&String::from_utf8(response.body).unwrap())
    }

    /// Waits until nothing is on its way to the queue or waits for a destination and every conservation equation holds; returns
    /// those metrics.
    pub(crate) fn settle(&self) -> Scrape {
        let mut last = String::new();
        let settled = super::eventually::within(super::eventually::patience() * 3, || {
            let scrape = self.metrics();
            let waiting = scrape.sum("flagtap_destination_events_waiting", &[]);
            last = scrape
                .imbalance()
                .unwrap_or_else(|| format!("{waiting} events still wait"));
            let on_their_way = scrape.sum("flagtap_in_flight_bytes", &[]);
            (waiting + on_their_way == 0.0 && scrape.imbalance().is_none()).then_some(scrape)
        });
        settled.unwrap_or_else(|| panic!("the relay does not settle: {last}\n{}", self.log_text()))
    }

    /// ERROR lines that contain `text` are expected in this test.
    pub(crate) fn tolerate(&mut self, text: &str) {
        self.tolerated.push(text.to_owned());
    }

    /// Returns the fields of the first log line with this message.
    pub(crate) fn find_log(&self, message: &str) -> Option<Value> {
        let log = self.log.lock().unwrap();
        let lines = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .map(|line| line["fields"].clone())
            .find(|fields| fields["message"] == message)
    }

    /// Waits for this text in the log, which comes a moment after what it tells of.
    pub(crate) fn await_log(&self, text: &str) {
        super::eventually(&format!("{text:?} in the log"), || {
            self.log_text().contains(text).then_some(())
        });
    }

    /// Returns the log so far.
    pub(crate) fn log_text(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Returns the process's id.
    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the most memory the binary ever had resident, MiB.
    pub(crate) fn peak_memory_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kibibytes / 1024
    }

    /// Stops the binary where it is, and returns when each of its threads stands still.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        eventually("every thread to stand still", || {
            let mut threads = fs::read_dir(&tasks).unwrap();
            threads
                .all(|thread| {
                    let state = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
                    // "pid (name) state ..."; a thread that has just ended has no file.
                    state
                        .rsplit(") ")
                        .next()
                        .is_none_or(|rest| rest.is_empty() || rest.starts_with('T'))
                })
                .then_some(())
        });
    }

    /// Ends the binary as a crash does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the binary to end and waits for it; fails the test unless it ends with success and a clean log.
    pub(crate) fn stop(mut self) {
        self.terminate();
        let status = self.wait();
        assert!(status.success(), "the relay ended with {status}:\n{}", self.log_text());
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for the binary's end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the relay to end", || self.child.try_wait().unwrap())
    }

    fn complaints(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        let bad = log.iter().filter(|line| {
            let level = serde_json::from_str::<Value>(line)
                .ok()
                .map(|line| line["level"].clone());
            level.is_some_and(|level| level == "ERROR") || line.contains("panicked at")
        });
        bad.filter(|line| !self.tolerated.iter().any(|text| line.contains(text)))
            .cloned()
            .collect()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !thread::panicking() {
            // The reading thread may be a moment behind the end of the process.
            let complaints = super::eventually::within(Duration::from_millis(50), || {
                Some(self.complaints()).filter(|complaints| !complaints.is_empty())
            });
            assert!(complaints.is_none(), "the relay logged errors: {complaints:#?}");
        }
    }
}

/// Returns a destination's `retry` for tests in which it fails for as long as it pleases: nothing is given up.
pub(crate) fn keep_trying(initial: &str, max: &str) -> Value {
    json!({ "initial": initial, "max": max, "attempts": 1, "over": max, "then": "keep" })
}

/// Returns a post to `/bulk` with the test environment's SDK key.
pub(crate) fn bulk(payload_id: &str, events: &Value) -> Vec<u8> {
    let headers = [
        ("Authorization", SDK_KEY),
        ("Content-Type", "application/json"),
        ("User-Agent", "GoClient/7.0.0"),
        ("X-LaunchDarkly-Event-Schema", "4"),
        ("X-LaunchDarkly-Payload-ID", payload_id),
    ];
    request("POST", "/bulk", &headers, events.to_string().as_bytes())
}

/// Returns a `custom` event by which a test recognises it in the export: its key.
pub(crate) fn marked(marker: &str) -> Value {
    json!({
        "kind": "custom", "creationDate": 1_700_000_000_000_u64, "key": marker,
        "context": { "kind": "user", "key": "test-user" },
    })
}
