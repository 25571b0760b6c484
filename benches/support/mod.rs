//! What the benches share: processes that end with the bench, free ports, wrk, and the body of a real event post.
#![allow(dead_code, reason = "each bench uses its part")]

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The SDK key that the relay's configuration knows.
pub(crate) const KNOWN: &str = "sdk-bench-0000-known";
/// One it does not know.
pub(crate) const UNKNOWN: &str = "sdk-bench-0000-unknown";

/// A process that is ended when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // nginx's master takes its workers along only if it is asked nicely.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts `command`, with its output thrown away.
    pub(crate) fn start(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
    }

    /// Returns a line of `/proc/<pid>/status` in kilobytes, such as `VmRSS` and `VmHWM`.
    pub(crate) fn memory_kb(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("the process lives");
        let value = status
            .lines()
            .find_map(|text| text.strip_prefix(line))
            .expect("the line is there");
        value
            .trim_start_matches(':')
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number")
    }
}

/// Returns a port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// Waits until `port` accepts.
pub(crate) fn wait_for(port: u16) {
    wait_until("the port accepts", Duration::from_secs(20), || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
}

/// Waits for a condition.
pub(crate) fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Leaves the bench with a word if a program it compares with is not installed.
pub(crate) fn need(program: &str) {
    if Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
    {
        return;
    }
    println!("skipped: {program} is not installed (scripts/setup-bench.sh installs it on Debian)");
    std::process::exit(0);
}

/// Returns the body of a recorded event post: 6.9 kB, 13 events of the Node server SDK 9.13.7.
pub(crate) fn body() -> Vec<u8> {
    include_bytes!("body.json").to_vec()
}

/// nginx as the stand-in for LaunchDarkly's events service.
pub(crate) fn upstream(dir: &Path) -> (Running, u16) {
    let port = free_port();
    let server = format!("server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 202; }} }}");
    (nginx(dir, "upstream", &server), port)
}

/// nginx as a peer: the same job without a tee.
pub(crate) fn nginx_proxy(dir: &Path, upstream: u16) -> (Running, u16) {
    let port = free_port();
    let server = format!(
        "upstream events {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000; }}
         server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
           proxy_pass http://events; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}"
    );
    let running = nginx(dir, "proxy", &server);
    wait_for(port);
    (running, port)
}

fn nginx(dir: &Path, name: &str, servers: &str) -> Running {
    let home = dir.join(name);
    fs::create_dir_all(home.join("tmp")).expect("a folder");
    let config = format!(
        "daemon off; master_process on; worker_processes 2; pid {home}/pid; error_log {home}/error.log;
         events {{ worker_connections 4096; }}
         http {{ access_log off; keepalive_requests 1000000; client_body_buffer_size 64k;
           client_body_temp_path {home}/tmp; proxy_temp_path {home}/tmp; fastcgi_temp_path {home}/tmp;
           uwsgi_temp_path {home}/tmp; scgi_temp_path {home}/tmp; {servers} }}",
        home = home.display()
    );
    let path = home.join("nginx.conf");
    fs::write(&path, config).expect("the configuration is written");
    Running::start(
        Command::new("nginx")
            .arg("-e")
            .arg(home.join("start.log"))
            .arg("-c")
            .arg(path),
    )
}

/// Starts flagtap with `destinations` (YAML list items) and returns it with its two ports.
pub(crate) fn flagtap(dir: &Path, upstream: u16, queue: &str, destinations: &str) -> (Running, u16, u16) {
    let (port, telemetry) = (free_port(), free_port());
    let config = format!(
        "listen: 127.0.0.1:{port}\ntelemetry: 127.0.0.1:{telemetry}\nupstream: {{ url: \"http://127.0.0.1:{upstream}\" }}\n\
         log: {{ level: warn }}\nqueue:\n  max_bytes: 64GiB\n{queue}\nenvironments:\n  - name: bench\n    credentials: {{ sdk_keys: [{KNOWN}] }}\n    \
         destinations: [out]\ndestinations:\n  - name: out\n{destinations}\n"
    );
    let path = dir.join("flagtap.yaml");
    fs::write(&path, config).expect("the configuration is written");
    let running = Running::start(
        Command::new(env!("CARGO_BIN_EXE_flagtap"))
            .arg("serve")
            .arg("--config")
            .arg(path),
    );
    wait_for(port);
    wait_for(telemetry);
    (running, port, telemetry)
}

/// What wrk measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Answers a second.
    pub(crate) rate: f64,
    /// Median latency, milliseconds.
    pub(crate) p50: f64,
    /// 99th percentile, milliseconds.
    pub(crate) p99: f64,
    /// Answers that were not 2xx, and socket errors.
    pub(crate) errors: u64,
}

/// Writes the wrk script that posts `body` with a payload id of its own per request.
pub(crate) fn post_script(dir: &Path, body: &[u8], path: &str, key: &str) -> PathBuf {
    let file = dir.join("body");
    fs::write(&file, body).expect("the body is written");
    // The request is put together by concatenation: wrk's own formatting would cost more than the relay under test.
    let script = format!(
        "local file = io.open('{file}', 'rb'); local body = file:read('*a'); file:close()
         local threads = 0
         function setup(thread) thread:set('number', threads); threads = threads + 1 end
         local count = 0
         local head = 'POST {path} HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nContent-Type: application/json\\r\\nAuthorization: {key}\\r\\n'
           .. 'User-Agent: NodeJSClient/9.13.7\\r\\nX-LaunchDarkly-Event-Schema: 4\\r\\nX-LaunchDarkly-Payload-ID: {run}-'
         local tail = '\\r\\nContent-Length: ' .. #body .. '\\r\\n\\r\\n' .. body
         function request()
           count = count + 1
           return head .. number .. '-' .. count .. tail
         end
         function done(summary, latency)
           io.write(string.format('RESULT %d %f %f %f %d\\n', summary.requests, summary.duration / 1e6,
             latency:percentile(50) / 1000, latency:percentile(99) / 1000,
             summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout))
         end",
        file = file.display(),
        run = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |now| now.as_nanos() % 1_000_000_007),
    );
    let lua = dir.join(format!("{key}-{}.lua", free_port()));
    fs::write(&lua, script).expect("the script is written");
    lua
}

/// Runs wrk against `port`.
pub(crate) fn wrk(port: u16, connections: usize, seconds: u64, script: &Path) -> Load {
    let output = Command::new("wrk")
        .args(["-t2", &format!("-c{connections}"), &format!("-d{seconds}s"), "-s"])
        .arg(script)
        .arg(format!("http://127.0.0.1:{port}/"))
        .output()
        .expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("RESULT "))
        .unwrap_or_else(|| panic!("wrk said {text}"));
    let numbers: Vec<f64> = line
        .split(' ')
        .map(|number| number.parse().expect("a number"))
        .collect();
    Load {
        rate: numbers[0] / numbers[1],
        p50: numbers[2],
        p99: numbers[3],
        errors: numbers[4] as u64,
    }
}

/// Returns the median of values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the sum of a metric over its labels.
pub(crate) fn metric(telemetry: u16, name: &str) -> f64 {
    use std::io::Write;
    let mut stream = TcpStream::connect(("127.0.0.1", telemetry)).expect("the telemetry port accepts");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("the request is written");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the metrics are read");
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
