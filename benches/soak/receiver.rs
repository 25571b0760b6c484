//! A receiver of webhooks that flaps, lags or is dead, and remembers which events it has.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a flapping receiver is up, and then down.
pub(crate) const UP: Duration = Duration::from_secs(40);
pub(crate) const DOWN: Duration = Duration::from_secs(20);

/// What a receiver does with requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// Takes them.
    Accepts,
    /// Takes them for [`UP`], but for every tenth, which it refuses, takes without saying so or breaks off; then refuses
    /// everything for [`DOWN`].
    Flaps,
    /// Takes them, after 30 to 120 ms.
    Lags,
    /// Refuses them.
    Dies,
}

/// A server of its own. It ends with the process.
pub(crate) struct Receiver {
    pub(crate) port: u16,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    conduct: Conduct,
    since: Instant,
    ids: HashSet<u128>,
    repeated: usize,
}

impl Receiver {
    pub(crate) fn start(conduct: Conduct) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Mutex::new(Shared {
            conduct,
            since: Instant::now(),
            ids: HashSet::new(),
            repeated: 0,
        }));
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                thread::spawn(move || while serve(&stream, &shared).is_ok_and(|goes_on| goes_on) {});
            }
        });
        Self { port, shared }
    }

    /// Changes what is done with later requests.
    pub(crate) fn be(&self, conduct: Conduct) {
        lock(&self.shared).conduct = conduct;
    }

    /// Returns how many events arrived, by their id, and how many arrived once more.
    pub(crate) fn arrived(&self) -> (usize, usize) {
        let shared = lock(&self.shared);
        (shared.ids.len(), shared.repeated)
    }
}

/// Returns the id of the event in an export line, as a number.
pub(crate) fn id(line: &str) -> u128 {
    let line: Value = serde_json::from_str(line).expect("a line is JSON");
    let id = line["event"]["id"].as_str().expect("an event has an id");
    u128::from_str_radix(id, 16).expect("an id is hexadecimal")
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().expect("no thread panics")
}

/// Serves one request. Returns whether the connection goes on.
fn serve(stream: &TcpStream, shared: &Mutex<Shared>) -> io::Result<bool> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (status, takes, tells) = {
        let shared = lock(shared);
        let flapped = shared.since.elapsed().as_millis() % (UP + DOWN).as_millis();
        match shared.conduct {
            Conduct::Dies => (503, false, true),
            Conduct::Flaps if flapped >= UP.as_millis() => (503, false, true),
            Conduct::Flaps => match fastrand::u8(..30) {
                0 => (429, false, true),
                1 => (202, true, false),
                2 => (202, false, false),
                _ => (202, true, true),
            },
            Conduct::Accepts | Conduct::Lags => (202, true, true),
        }
    };
    if lock(shared).conduct == Conduct::Lags {
        thread::sleep(Duration::from_millis(fastrand::u64(30..120)));
    }
    // What the SDKs' posts hold is not export lines: the upstream is one of these, too.
    if takes && body.starts_with(b"{") {
        let text = String::from_utf8(body).map_err(io::Error::other)?;
        let ids: Vec<u128> = text.lines().map(id).collect();
        let mut shared = lock(shared);
        for id in ids {
            let is_new = shared.ids.insert(id);
            shared.repeated += usize::from(!is_new);
        }
    }
    if !tells {
        stream.shutdown(Shutdown::Both)?;
        return Ok(false);
    }
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n")?;
    Ok(true)
}
