//! A fake LaunchDarkly events service that keeps every request byte by byte and answers by plan.
//!
//! A request that no rule expects is answered 599 and fails the test when the fake is dropped, and so does a planned
//! answer that nobody asked for and a request that broke off (unless the test tolerates those).

use std::collections::VecDeque;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use super::eventually::{eventually, patience};
use super::http1::{self, Framing, Headers};

/// A `Date` that no clock would give, so that a test sees whose it is.
pub(crate) const DATE: &str = "Tue, 04 Aug 2020 10:20:30 GMT";

/// The fake service. Dropping it judges what it saw.
pub(crate) struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: String,
    /// Path and query as sent.
    pub(crate) target: String,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

/// What to do with one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    steps: Vec<Step>,
    close: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    Wait(Gate),
    Rest(Duration),
}

/// Holds an answer back until the test opens it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

type Plan = Box<dyn FnMut(&Received) -> Option<Answer> + Send>;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    plans: Vec<Plan>,
    /// Answers to be given once each, before any plan is asked: method, path, answer.
    once: VecDeque<(String, String, Answer)>,
    received: Vec<Received>,
    unexpected: Vec<String>,
    broken: Vec<String>,
    tolerates_broken: bool,
    streams: Vec<TcpStream>,
}

impl Answer {
    /// An answer with this status, a `Date` and an empty body.
    pub(crate) fn status(status: u16) -> Self {
        Self::full(status, &[], b"")
    }

    /// What LaunchDarkly answers to an event post.
    pub(crate) fn accepted() -> Self {
        Self::status(202)
    }

    /// An answer with these headers and body, framed by `Content-Length`.
    pub(crate) fn full(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = head(status, headers);
        if status != 204 && status != 304 {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        Self::raw(bytes)
    }

    /// These bytes and nothing else.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            steps: vec![Step::Send(bytes.into())],
            close: false,
        }
    }

    /// The head of a chunked answer; continue with [`Answer::then`].
    pub(crate) fn chunked(status: u16, headers: &[(&str, &str)]) -> Self {
        Self::raw(format!("{}Transfer-Encoding: chunked\r\n\r\n", head(status, headers)))
    }

    /// The connection is closed without an answer.
    pub(crate) fn close() -> Self {
        Self {
            steps: Vec::new(),
            close: true,
        }
    }

    /// Sends these bytes next.
    pub(crate) fn then(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Send(bytes.into()));
        self
    }

    /// Waits for the gate next.
    pub(crate) fn wait(mut self, gate: &Gate) -> Self {
        self.steps.push(Step::Wait(gate.clone()));
        self
    }

    /// The same answer, given only when the gate opens.
    pub(crate) fn behind(mut self, gate: &Gate) -> Self {
        self.steps.insert(0, Step::Wait(gate.clone()));
        self
    }

    /// The same answer, given after this time.
    pub(crate) fn after(mut self, time: Duration) -> Self {
        self.steps.insert(0, Step::Rest(time));
        self
    }

    /// Closes the connection after the last step.
    pub(crate) fn and_close(mut self) -> Self {
        self.close = true;
        self
    }
}

impl Gate {
    /// Lets every answer behind the gate go on.
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let closed = self.0.0.lock().unwrap();
        // A gate that the test never opens must not hold the thread for ever.
        drop(
            self.0
                .1
                .wait_timeout_while(closed, patience() * 3, |open| !*open)
                .unwrap(),
        );
    }
}

impl Upstream {
    /// Starts a fake that expects nothing yet.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = accepting.clone();
                shared.lock().streams.extend(stream.try_clone());
                thread::spawn(move || shared.serve(stream));
            }
        });
        Self { address, shared }
    }

    /// Starts a fake that accepts every event and diagnostic post.
    pub(crate) fn accepting() -> Self {
        let upstream = Self::start();
        upstream.plan(|request| {
            let path = request.target.split('?').next().unwrap_or_default();
            let events = ["/bulk", "/mobile", "/events/", "/diagnostic"]
                .iter()
                .any(|start| path.starts_with(start));
            (request.method == "POST" && events).then(Answer::accepted)
        });
        upstream
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers by `plan` whatever no earlier plan answers; `None` leaves the request to the next plan.
    pub(crate) fn plan(&self, plan: impl FnMut(&Received) -> Option<Answer> + Send + 'static) {
        self.shared.lock().plans.push(Box::new(plan));
    }

    /// Answers every `method path` request so.
    pub(crate) fn always(&self, method: &str, path: &str, answer: Answer) {
        let (method, path) = (method.to_owned(), path.to_owned());
        self.plan(move |request| (request.method == method && request.path() == path).then(|| answer.clone()));
    }

    /// Answers the next `method path` request so, before any plan is asked.
    pub(crate) fn once(&self, method: &str, path: &str, answer: Answer) {
        self.shared
            .lock()
            .once
            .push_back((method.to_owned(), path.to_owned(), answer));
    }

    /// Forgets all plans.
    pub(crate) fn forget_plans(&self) {
        self.shared.lock().plans.clear();
    }

    /// Requests that break off are no failure in this test.
    pub(crate) fn tolerate_broken(&self) {
        self.shared.lock().tolerates_broken = true;
    }

    /// Returns how many requests came and have not been taken.
    pub(crate) fn count(&self) -> usize {
        self.shared.lock().received.len()
    }

    /// Returns and forgets the requests that came so far.
    pub(crate) fn take(&self) -> Vec<Received> {
        std::mem::take(&mut self.shared.lock().received)
    }

    /// Waits for a request, and returns and forgets the first.
    pub(crate) fn next(&self) -> Received {
        eventually("a request at the upstream", || {
            let mut state = self.shared.lock();
            (!state.received.is_empty()).then(|| state.received.remove(0))
        })
    }
}

impl Received {
    /// Returns the target without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn serve(&self, stream: TcpStream) {
        self.converse(&stream);
        // The list of streams holds a handle, so the end of this thread alone would not close the connection.
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn converse(&self, stream: &TcpStream) {
        let (mut reader, mut writer) = (BufReader::new(stream.try_clone().unwrap()), stream.try_clone().unwrap());
        loop {
            let request = match read_request(&mut reader, &mut writer) {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(error) => {
                    if !self.stopped.load(Ordering::SeqCst) {
                        self.lock().broken.push(error.to_string());
                    }
                    return;
                }
            };
            let answer = self.decide(request);
            for step in answer.steps {
                match step {
                    Step::Send(bytes) => {
                        if writer.write_all(&bytes).and_then(|()| writer.flush()).is_err() {
                            return;
                        }
                    }
                    Step::Wait(gate) => gate.pass(),
                    Step::Rest(time) => thread::sleep(time),
                }
            }
            if answer.close {
                return;
            }
        }
    }

    fn decide(&self, request: Received) -> Answer {
        let mut state = self.lock();
        let planned = state
            .once
            .iter()
            .position(|(method, path, _)| *method == request.method && path == request.path());
        let answer = match planned.and_then(|index| state.once.remove(index)) {
            Some((_, _, answer)) => Some(answer),
            None => state.plans.iter_mut().find_map(|plan| plan(&request)),
        };
        if answer.is_none() {
            state.unexpected.push(format!("{} {}", request.method, request.target));
        }
        state.received.push(request);
        answer.unwrap_or_else(|| Answer::status(599))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread so that it sees the flag and frees the port.
        let _ = TcpStream::connect(self.address);
        let mut state = self.shared.lock();
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if thread::panicking() {
            return;
        }
        let unused: Vec<String> = state
            .once
            .iter()
            .map(|(method, path, _)| format!("{method} {path}"))
            .collect();
        let broken = if state.tolerates_broken {
            Vec::new()
        } else {
            std::mem::take(&mut state.broken)
        };
        let unexpected = std::mem::take(&mut state.unexpected);
        drop(state);
        assert!(
            unexpected.is_empty(),
            "the upstream got requests it did not expect: {unexpected:?}"
        );
        assert!(
            unused.is_empty(),
            "the upstream never got the requests it was to answer: {unused:?}"
        );
        assert!(
            broken.is_empty(),
            "the upstream got requests that broke off: {broken:?}"
        );
    }
}

fn head(status: u16, headers: &[(&str, &str)]) -> String {
    let reason = match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        413 => "Payload Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Made Up",
    };
    let mut text = format!("HTTP/1.1 {status} {reason}\r\nDate: {DATE}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text
}

fn read_request(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> io::Result<Option<Received>> {
    let (line, headers) = match http1::read_head(reader) {
        Ok(Some(head)) => head,
        // A pooled connection that the relay drops between requests is no broken request.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Ok(None) => return Ok(None),
        Err(error) => return Err(error),
    };
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else {
        return Err(io::Error::other(format!("request line {line:?}")));
    };
    if headers
        .get("expect")
        .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let framing = match (
        headers.all("transfer-encoding").len(),
        headers.all("content-length").len(),
    ) {
        (0, 0) => Framing::None,
        (1, 0) => Framing::Chunked,
        (0, 1) => Framing::Length,
        _ => return Err(io::Error::other(format!("ambiguous framing: {headers:?}"))),
    };
    let mut body = Vec::new();
    match framing {
        Framing::Chunked => body = http1::read_chunked(reader)?.0,
        Framing::Length => {
            let size = headers.get("content-length").and_then(|text| text.parse().ok());
            let size = size.ok_or_else(|| io::Error::other("bad content-length"))?;
            http1::read_exactly(reader, size, &mut body)?;
        }
        Framing::None | Framing::Close => {}
    }
    let (method, target) = (method.to_owned(), target.to_owned());
    Ok(Some(Received {
        method,
        target,
        headers,
        body,
    }))
}
