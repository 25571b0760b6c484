//! An upstream that answers badly, without end, too early or not at all: what the SDK sees, what is exported, and that the
//! relay neither hangs nor grows.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually::patience;
use crate::support::export::markers;
use crate::support::http1::read_head;
use crate::support::metrics::Scrape;
use crate::support::oracle;
use crate::support::relay::{bulk, marked};
use crate::support::upstream::Gate;
use crate::support::{Answer, Relay, Setup, Upstream, eventually, request};

/// What the relay may take at the most, MiB, whatever the upstream sends.
const MEMORY: u64 = 150;

/// Checks that the relay ends well, exported exactly these events, each once, and counts them so.
fn exported(relay: Relay, setup: &Setup, expected: &[String]) -> Scrape {
    let metrics = relay.settle();
    let peak = relay.peak_memory_mib();
    relay.stop();
    let (mut exported, mut expected) = (markers(&setup.exported()), expected.to_vec());
    exported.sort();
    expected.sort();
    assert_eq!(exported, expected);
    oracle::assert_delivered(&metrics, "archive", expected.len());
    assert!(peak < MEMORY, "the relay used {peak} MiB");
    metrics
}

/// Scenario: answers that are no HTTP, break off within the head, contradict themselves, ask for another protocol, have too
/// many or too large headers, or a transfer coding that nobody asked for.
/// Guarantees: the SDK gets a 502 that names the upstream, with a `Date`, each time and not later; its events are exported,
/// because an upstream that cannot be understood gave no judgement.
#[test]
fn an_answer_that_cannot_be_understood_becomes_a_502() {
    let many: String = (0..500).map(|number| format!("X-{number}: y\r\n")).collect();
    let large = format!("X-Large: {}\r\n", "y".repeat(200_000));
    let accepted = |rest: &str| format!("HTTP/1.1 202 Accepted\r\n{rest}\r\n");
    let answers = [
        ("no HTTP", "SSH-2.0-OpenSSH_9.6\r\n".to_owned()),
        ("another version", "HTTP/7.0 202 Accepted\r\n\r\n".to_owned()),
        ("no status", "HTTP/1.1 ok fine\r\n\r\n".to_owned()),
        ("half a head", "HTTP/1.1 202 Accepted\r\nContent-Le".to_owned()),
        ("two lengths", accepted("Content-Length: 1\r\nContent-Length: 2\r\n")),
        ("a negative length", accepted("Content-Length: -1\r\n")),
        ("a bad header", accepted("no colon\r\n")),
        ("a coding", accepted("Transfer-Encoding: gzip, chunked\r\n")),
        (
            "another protocol",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_owned(),
        ),
        ("many headers", accepted(&format!("Content-Length: 0\r\n{many}"))),
        ("large headers", accepted(&format!("Content-Length: 0\r\n{large}"))),
    ];
    let upstream = Upstream::start();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let mut expected = Vec::new();
    for (what, answer) in answers {
        upstream.once("POST", "/bulk", Answer::raw(answer).and_close());
        let started = Instant::now();
        let response = relay.post(what, &json!([marked(what)]));
        assert_eq!(response.status, 502, "{what}");
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{what}: {:?}",
            started.elapsed()
        );
        let error = response.headers.get("x-flagtap-error").unwrap_or_default();
        assert!(error.starts_with("upstream; "), "{what}: {error}");
        assert!(response.headers.get("date").is_some(), "{what}");
        expected.push(what.to_owned());
    }
    exported(relay, &setup, &expected);
}

/// Scenario: interim answers without end, a header line without end, a head that comes byte by byte and would take
/// minutes.
/// Guarantees: the SDK is answered when `upstream.timeout` is over, or sooner; memory stays bounded; others are served
/// meanwhile; the events are exported.
#[test]
fn a_head_without_end_ends_at_the_timeout() {
    let floods: [(&str, &[u8], Duration); 3] = [
        (
            "interim",
            b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
            Duration::ZERO,
        ),
        (
            "line",
            b"yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy",
            Duration::ZERO,
        ),
        ("dribble", b"y", Duration::from_millis(20)),
    ];
    let wrote = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&wrote);
    let upstream = Rude::start(move |mut stream| {
        let (_, headers) = read_head(&mut BufReader::new(stream.try_clone().unwrap()))
            .unwrap()
            .unwrap();
        let payload_id = headers.get("x-launchdarkly-payload-id").unwrap();
        let Some((what, flood, rest)) = floods.iter().find(|(what, ..)| *what == payload_id) else {
            let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            return;
        };
        let start = if *what == "interim" {
            ""
        } else {
            "HTTP/1.1 202 Accepted\r\nX-Long: "
        };
        let _ = stream.write_all(start.as_bytes());
        let flood = if rest.is_zero() {
            flood.repeat(500)
        } else {
            flood.to_vec()
        };
        while stream.write_all(&flood).is_ok() {
            counted.fetch_add(flood.len(), Ordering::SeqCst);
            thread::sleep(*rest);
        }
    });
    let mut setup = Setup::new(upstream.address);
    setup.config["upstream"]["timeout"] = json!("3s");
    let relay = Relay::start(&setup);
    let mut expected = Vec::new();
    for (what, ..) in floods {
        let started = Instant::now();
        let mut connection = relay.connect();
        connection.send(&bulk(what, &json!([marked(what)]))).unwrap();
        let other = format!("beside-{what}");
        assert_eq!(relay.post(&other, &json!([marked(&other)])).status, 202);
        let response = connection.response(false).unwrap();
        assert!([502, 504].contains(&response.status), "{what}: {}", response.status);
        assert!(response.headers.get("date").is_some(), "{what}");
        assert!(
            started.elapsed() < Duration::from_secs(15),
            "{what}: {:?}",
            started.elapsed()
        );
        expected.extend([other, what.to_owned()]);
    }
    upstream.let_go();
    println!("{} bytes of heads without end", wrote.load(Ordering::SeqCst));
    exported(relay, &setup, &expected);
}

/// Scenario: a thousand interim answers before the real one.
/// Guarantees: the SDK gets the real one, at once.
#[test]
fn interim_answers_are_passed_over() {
    let upstream = Upstream::start();
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(1000);
    let answer = format!("{hints}HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
    upstream.once("POST", "/bulk", Answer::raw(answer));
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("hinted", &json!([marked("hinted")])).status, 202);
    exported(relay, &setup, &["hinted".to_owned()]);
}

/// Scenario: an accepting answer whose body never ends, which one SDK reads until it has enough and another does not
/// read at all; both hang up.
/// Guarantees: the relay takes no more from the upstream than is read, memory stays bounded, the upstream is let go when the
/// SDK hangs up; the events are exported without waiting for the body's end.
#[test]
fn a_body_without_end_goes_on_only_as_it_is_read() {
    let chunk = [b"10000\r\n".as_slice(), &vec![b'y'; 0x10000], b"\r\n"].concat();
    let wrote = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&wrote);
    let upstream = Rude::start(move |mut stream| {
        let _ = read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream.write_all(&chunk).is_ok() {
            counted.fetch_add(chunk.len(), Ordering::SeqCst);
        }
    });
    let setup = Setup::new(upstream.address);
    let relay = Relay::start(&setup);

    let mut reading = relay.connect();
    reading.send(&bulk("reading", &json!([marked("reading")]))).unwrap();
    assert_eq!(reading.response_head().unwrap().status, 202);
    let mut read = 0;
    while read < 100 << 20 {
        read += reading.chunk().unwrap().unwrap().len();
    }
    drop(reading);
    upstream.let_go();

    let before = wrote.load(Ordering::SeqCst);
    let mut idle = relay.connect();
    idle.send(&bulk("idle", &json!([marked("idle")]))).unwrap();
    let mut last = (0, Instant::now());
    eventually("the upstream to be held back", || {
        let now = wrote.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > before && last.1.elapsed() > Duration::from_millis(300)).then_some(())
    });
    let held = wrote.load(Ordering::SeqCst) - before;
    println!("{held} bytes on their way to an SDK that does not read");
    assert!(held < 40 << 20, "{held}");
    eventually("the batch to be queued although the body goes on", || {
        (relay.metrics().sum("flagtap_events_queued_total", &[]) == 2.0).then_some(())
    });
    drop(idle);
    upstream.let_go();
    exported(relay, &setup, &["reading".to_owned(), "idle".to_owned()]);
}

/// Scenario: the upstream accepts, and its answer's body breaks off: closed before its length or within a chunk, or with a
/// chunk that is none.
/// Guarantees: the SDK sees the head as it came and that the body broke off, never a whole answer; the events, which were
/// accepted, are exported; a repetition of the batch is not exported again.
#[test]
fn a_body_that_breaks_off_is_seen_to_break_off() {
    let chunked = Answer::chunked(202, &[]);
    let answers = [
        (
            "short",
            Answer::raw("HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\nhalf").and_close(),
        ),
        ("cut chunk", chunked.clone().then("64\r\nhalf").and_close()),
        ("no last chunk", chunked.clone().then("4\r\nhalf\r\n").and_close()),
        ("no chunk", chunked.then("4\r\nhalf\r\nzz\r\n").and_close()),
    ];
    let upstream = Upstream::start();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let mut expected = Vec::new();
    for (what, answer) in answers {
        upstream.once("POST", "/bulk", answer);
        upstream.once("POST", "/bulk", Answer::accepted());
        let events = json!([marked(what)]);
        let mut connection = relay.connect();
        connection.send(&bulk(what, &events)).unwrap();
        let broken = connection.response(false);
        assert!(broken.is_err(), "{what}: {broken:?}");
        assert_eq!(relay.post(what, &events).status, 202, "{what}");
        expected.push(what.to_owned());
    }
    let metrics = exported(relay, &setup, &expected);
    assert_eq!(metrics.sum("flagtap_batches_duplicate_total", &[]), 4.0);
}

/// Scenario: the upstream accepts, sends half of its answer's body and resets the connection; then it behaves.
/// Guarantees: the SDK sees that the body broke off; the events are exported, once although the SDK repeats them.
#[test]
fn a_reset_within_the_answer_is_seen_by_the_sdk() {
    let resets = Arc::new(AtomicBool::new(true));
    let first = Arc::clone(&resets);
    let upstream = Rude::start(move |mut stream| {
        if first.swap(false, Ordering::SeqCst) {
            let _ = stream.read(&mut [0; 16]);
            let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\nhalf");
            // Closing with unread bytes is a reset.
            return;
        }
        let _ = read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    });
    let setup = Setup::new(upstream.address);
    let relay = Relay::start(&setup);
    let events = json!([marked("reset")]);
    let mut connection = relay.connect();
    connection.send(&bulk("reset", &events)).unwrap();
    let broken = connection.response(false);
    assert!(broken.is_err(), "{broken:?}");
    assert_eq!(relay.post("reset", &events).status, 202);
    upstream.let_go();
    let metrics = exported(relay, &setup, &["reset".to_owned()]);
    assert_eq!(metrics.sum("flagtap_batches_duplicate_total", &[]), 1.0);
}

/// Scenario: the upstream answers, sends half of the body, and then nothing; the SDK hangs up after a while.
/// Guarantees: the events are exported meanwhile, and the connections on both sides end with the SDK's.
#[test]
fn a_body_that_stalls_ends_with_the_sdk() {
    let upstream = Rude::start(|mut stream| {
        let _ = read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\nhalf");
        // Returns when the relay closes.
        let _ = stream.read(&mut [0; 1]);
    });
    let setup = Setup::new(upstream.address);
    let relay = Relay::start(&setup);
    let mut connection = relay.connect();
    connection.send(&bulk("stalled", &json!([marked("stalled")]))).unwrap();
    assert_eq!(connection.response_head().unwrap().status, 202);
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["stalled"]);
    drop(connection);
    upstream.let_go();
    eventually("the relay to see that the client has gone", || {
        (relay.metrics().sum("flagtap_connections", &[]) == 0.0).then_some(())
    });
    exported(relay, &setup, &["stalled".to_owned()]);
}

/// Scenario: the upstream resets the connection while the batch is on its way to it.
/// Guarantees: the SDK gets a 502 and sends the batch again; it is exported once.
#[test]
fn a_reset_within_the_request_is_a_502() {
    let resets = Arc::new(AtomicUsize::new(3));
    let left = Arc::clone(&resets);
    let upstream = Rude::start(move |mut stream| {
        if left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            // Closing with unread bytes is a reset.
            let _ = stream.read(&mut [0; 1024]);
            return;
        }
        let _ = read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    });
    let setup = Setup::new(upstream.address);
    let relay = Relay::start(&setup);
    let events = large("reset");
    for _ in 0..3 {
        let response = relay.post("reset", &events);
        assert_eq!(response.status, 502);
        assert!(response.headers.get("x-flagtap-error").is_some() && response.headers.get("date").is_some());
    }
    assert_eq!(relay.post("reset", &events).status, 202);
    upstream.let_go();
    exported(relay, &setup, &["reset".to_owned()]);
}

/// Scenario: the upstream answers 413 when it has read the head of a large batch, and closes without reading the rest.
/// Guarantees: the SDK gets the 413, every time; a batch that was refused is not exported.
#[test]
fn an_answer_that_comes_before_the_body_was_read_is_passed_on() {
    let upstream = Rude::start(|mut stream| {
        let mut start = [0; 300];
        let _ = stream.read_exact(&mut start);
        let _ = stream
            .write_all(b"HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large");
    });
    let mut setup = Setup::new(upstream.address);
    // One of the two sizes is captured, the other streamed.
    setup.config["tee"]["max_body"] = json!("4MiB");
    let relay = Relay::start(&setup);
    for number in 0..20 {
        let mut events = large("early");
        if number % 2 == 1 {
            events[0]["data"] = json!("x".repeat(6 << 20));
        }
        let mut connection = relay.connect();
        // A streamed one meets the end of the connection while it is sent.
        let _ = connection.send(&bulk(&format!("early-{number}"), &events));
        match connection.response(false) {
            Ok(response) => assert_eq!(
                (response.status, response.body.as_slice()),
                (413, b"too large".as_slice())
            ),
            Err(error) => assert!(number % 2 == 1, "request {number}: {error}"),
        }
    }
    upstream.let_go();
    let metrics = exported(relay, &setup, &[]);
    assert_eq!(metrics.sum("flagtap_batches_not_teed_total", &[]), 20.0);
}

/// Scenario: behind its answer the upstream sends another one, unasked.
/// Guarantees: the next request does not get it.
#[test]
fn an_answer_nobody_asked_for_is_given_to_nobody() {
    let upstream = Upstream::start();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let accepted = "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";
    let stray = format!("{accepted}HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    let mut expected = Vec::new();
    for number in 0..10 {
        for (what, answer) in [("stray", stray.as_str()), ("next", accepted)] {
            let marker = format!("{what}-{number}");
            upstream.once("POST", "/bulk", Answer::raw(answer));
            assert_eq!(relay.post(&marker, &json!([marked(&marker)])).status, 202, "{marker}");
            expected.push(marker);
        }
    }
    exported(relay, &setup, &expected);
}

/// Scenario: the upstream takes batches and does not answer them in time; SDKs by the dozen repeat them. Other requests are
/// sent meanwhile.
/// Guarantees: each SDK gets a 504 in time, and its events are exported once; other requests are answered at once.
#[test]
fn an_upstream_that_takes_and_times_out_costs_nobody_an_event() {
    const SDKS: usize = 24;
    let upstream = Upstream::start();
    let never = Gate::default();
    upstream.always("POST", "/bulk", Answer::accepted().behind(&never));
    upstream.always("GET", "/other", Answer::status(200));
    let mut setup = Setup::new(upstream.address());
    setup.config["upstream"]["timeout"] = json!("3s");
    let relay = Relay::start(&setup);
    let started = Instant::now();
    thread::scope(|scope| {
        for sdk in 0..SDKS {
            let relay = &relay;
            scope.spawn(move || {
                let marker = format!("timed-out-{sdk:02}");
                for _ in 0..2 {
                    assert_eq!(relay.post(&marker, &json!([marked(&marker)])).status, 504);
                }
            });
        }
        for _ in 0..20 {
            let asked = Instant::now();
            assert_eq!(relay.exchange(&request("GET", "/other", &[], b"")).status, 200);
            assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        }
    });
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let expected: Vec<String> = (0..SDKS).map(|sdk| format!("timed-out-{sdk:02}")).collect();
    let metrics = exported(relay, &setup, &expected);
    assert_eq!(metrics.sum("flagtap_batches_duplicate_total", &[]), SDKS as f64);
    never.open();
}

/// An event of about 2 MB.
fn large(marker: &str) -> Value {
    let mut event = marked(marker);
    event["data"] = json!("x".repeat(2 << 20));
    json!([event])
}

/// An upstream that does with each connection what no server should. It ends when dropped.
struct Rude {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
}

impl Rude {
    fn start(conduct: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stopped, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ended, counted, conduct) = (Arc::clone(&stopped), Arc::clone(&open), Arc::new(conduct));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (open, conduct) = (Arc::clone(&counted), Arc::clone(&conduct));
                open.fetch_add(1, Ordering::SeqCst);
                stream.set_read_timeout(Some(patience())).unwrap();
                stream.set_write_timeout(Some(patience())).unwrap();
                thread::spawn(move || {
                    conduct(stream);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, stopped, open }
    }

    /// Waits until the relay has let go of every connection.
    fn let_go(&self) {
        eventually("the relay to let go of the upstream", || {
            (self.open.load(Ordering::SeqCst) == 0).then_some(())
        });
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread so that it sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

/// Reads a request with a `Content-Length` to its end.
fn read_request(stream: &mut TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (_, headers) = read_head(&mut reader).ok()??;
    let length: u64 = headers.get("content-length")?.parse().ok()?;
    std::io::copy(&mut reader.take(length), &mut std::io::sink()).ok()?;
    Some(())
}
