//! Google's Pub/Sub emulator, started on a free port and ended with the test.
//!
//! It is looked for where Debian's package `google-cloud-cli-pubsub-emulator` puts it, and needs Java 17. Used by the
//! unit tests too.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::tools;

/// How long a Java program may take to listen.
const START: Duration = Duration::from_secs(60);

/// A running emulator.
pub(crate) struct Emulator {
    child: Child,
    address: SocketAddr,
}

impl Emulator {
    /// Starts it and waits until it answers; `None` after announcing that `test` is skipped.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let Some(jar) = jar().filter(|_| Command::new("java").arg("-version").output().is_ok()) else {
            tools::skip(
                test,
                "Google's Pub/Sub emulator is missing; install google-cloud-cli-pubsub-emulator and Java 17",
            );
            return None;
        };
        let address = tools::free_address();
        let child = Command::new("java")
            .args(["-Xmx256m", "-jar", &jar, "--host=127.0.0.1"])
            .arg(format!("--port={}", address.port()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let emulator = Self { child, address };
        let started = Instant::now();
        while !answers(address) {
            assert!(started.elapsed() < START, "the emulator does not answer");
            thread::sleep(Duration::from_millis(50));
        }
        Some(emulator)
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where it is, as an endpoint.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a topic of the project `my-project`.
    pub(crate) fn create_topic(&self, topic: &str) {
        let path = format!("/v1/projects/my-project/topics/{topic}");
        let answer = exchange(self.address, "PUT", &path);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn jar() -> Option<String> {
    let listed = Command::new("dpkg")
        .args(["-L", "google-cloud-cli-pubsub-emulator"])
        .output()
        .ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut lines = listed.lines();
    lines
        .find(|line| line.contains("emulator") && line.ends_with("all.jar"))
        .map(str::to_owned)
}

fn answers(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok() && exchange(address, "GET", "/").starts_with("HTTP/1.1 200")
}

// What is needed before a destination can be, in the simplest way: the first bytes of the answer, which hold its status.
// The emulator keeps connections open, so there is no end to read to.
fn exchange(address: SocketAddr, method: &str, path: &str) -> String {
    let mut answer = [0; 256];
    let mut length = 0;
    if let Ok(mut stream) = TcpStream::connect(address) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        let _ = stream.set_read_timeout(Some(START));
        let _ = stream.write_all(request.as_bytes());
        length = stream.read(&mut answer).unwrap_or_default();
    }
    String::from_utf8_lossy(&answer[..length]).into_owned()
}
