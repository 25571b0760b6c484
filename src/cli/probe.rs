//! `flagtap probe live|ready`: one request to the telemetry port, answered by the exit code.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::{Probe, say};

// Kubernetes gives a probe one second by default.
const PATIENCE: Duration = Duration::from_millis(900);

/// Asks and returns 0 for a 200, else 1 with the reason on standard error.
pub(super) fn run(what: Probe, telemetry: &str) -> ExitCode {
    let path = match what {
        Probe::Live => "/livez",
        Probe::Ready => "/readyz",
    };
    match ask(telemetry, path) {
        Ok(200) => ExitCode::SUCCESS,
        Ok(status) => {
            say(format_args!("http://{telemetry}{path} answered {status}\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            say(format_args!("http://{telemetry}{path}: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn ask(telemetry: &str, path: &str) -> std::io::Result<u16> {
    let address = telemetry
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| std::io::Error::other("the address resolves to nothing"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {telemetry}\r\nConnection: close\r\n\r\n"
    )?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    std::str::from_utf8(&head)
        .ok()
        .and_then(|head| head.strip_prefix("HTTP/1.1 "))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| std::io::Error::other("the answer is not HTTP/1.1"))
}
