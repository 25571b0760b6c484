//! Programs that some tests need beside Rust: installed into `.tools` by `scripts/setup-tests.sh`.
//!
//! A test without its tool does not pass silently: it says `SKIPPED`, appends a line to `.tools/skipped` for the
//! closing line of `make test`, and with `FLAGTAP_REQUIRE_TOOLS=1` it fails.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Returns a tool's path under `.tools`; `None` after announcing that `test` is skipped.
pub(crate) fn find(test: &str, path: &str) -> Option<PathBuf> {
    let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools");
    let tool = tools.join(path);
    if tool.exists() {
        return Some(tool);
    }
    skip(test, &format!(".tools/{path} is missing; run scripts/setup-tests.sh"));
    None
}

/// Announces that `test` is skipped, or fails it where nothing may be skipped.
pub(crate) fn skip(test: &str, why: &str) {
    let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools");
    let why = format!("{test}: {why}");
    assert!(env::var_os("FLAGTAP_REQUIRE_TOOLS").is_none(), "{why}");
    eprintln!("SKIPPED {why}");
    if tools.is_dir() {
        let file = OpenOptions::new().create(true).append(true).open(tools.join("skipped"));
        // One short write per line: lines of tests in other processes do not mix.
        file.unwrap().write_all(format!("{why}\n").as_bytes()).unwrap();
    }
}

/// Returns an address for a server that cannot choose one, each time another: below the ports that the system gives out, so that
/// nobody gets it in between.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    let ports = (0..1000).map(|_| 20_000 + (process * 16 + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000);
    let addresses = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port as u16)));
    let mut free = addresses.filter(|address| TcpListener::bind(address).is_ok());
    free.next().expect("a free port")
}
