//! The way to the upstream through an egress proxy, named by the environment variables that curl reads.

use std::fs;
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::export::markers;
use crate::support::http1::{self, Headers};
use crate::support::relay::marked;
use crate::support::tls::{Authority, TlsFront};
use crate::support::{Answer, Relay, SDK_KEY, Setup, Upstream, request};

/// A name that only the proxy can reach: no resolver knows it (RFC 2606).
const HOST: &str = "events.invalid";
const USER: &str = "relay";
const PASSWORD: &str = "s3cret-of-the-proxy";

/// What a proxy makes of `CONNECT`.
#[derive(Clone, Copy)]
pub(crate) enum Policy {
    /// Opens a tunnel to this address, whatever was asked for.
    Tunnel(SocketAddr),
    /// Answers with this status and closes.
    Refuse(u16),
}

/// A proxy that knows `CONNECT` and keeps the heads it was sent.
pub(crate) struct Proxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<(String, Headers)>>>,
    stopped: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) fn start(policy: Policy) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            heads: Arc::default(),
            stopped: Arc::default(),
        };
        let (heads, stopped) = (proxy.heads.clone(), proxy.stopped.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let heads = heads.clone();
                // An error is a side that went away, which the test sees at the other.
                thread::spawn(move || serve(client, policy, &heads));
            }
        });
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn url_with_password(&self) -> String {
        format!("http://{USER}:{PASSWORD}@{}", self.address)
    }

    pub(crate) fn heads(&self) -> Vec<(String, Headers)> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread so that it sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut client: TcpStream, policy: Policy, heads: &Mutex<Vec<(String, Headers)>>) -> io::Result<()> {
    // A client of a tunnel waits for the answer, so the reader holds nothing beyond the head.
    let Some(head) = http1::read_head(&mut BufReader::new(client.try_clone()?))? else {
        return Ok(());
    };
    heads.lock().unwrap().push(head);
    match policy {
        Policy::Refuse(status) => write!(client, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n"),
        Policy::Tunnel(server) => {
            let mut server = TcpStream::connect(server)?;
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
            let (mut up, mut down) = (client.try_clone()?, server.try_clone()?);
            thread::spawn(move || io::copy(&mut up, &mut down));
            io::copy(&mut server, &mut client).map(drop)
        }
    }
}

fn variables(setup: &mut Setup, pairs: &[(&str, &str)]) {
    let pairs = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    setup.variables.extend(pairs);
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

/// Fails if the log has the proxy's password in any form.
fn assert_log_is_clean(relay: &Relay) {
    relay.await_log("reaching the upstream through an egress proxy");
    let log = relay.log_text();
    for secret in [PASSWORD, basic().trim_start_matches("Basic ")] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

/// Scenario: `HTTPS_PROXY` with a password; the upstream's name is one that only the proxy can resolve.
/// Guarantees: one `CONNECT` with the password, TLS inside the tunnel verified for the upstream's name, nothing of the
/// proxy's in the upstream's requests or in the most talkative log, the batches exported.
#[test]
fn an_https_upstream_is_reached_through_a_tunnel() {
    let upstream = Upstream::accepting();
    let authority = Authority::new("ours");
    let front = TlsFront::start(&authority.issue(HOST), upstream.address());
    let proxy = Proxy::start(Policy::Tunnel(front.address()));
    let mut setup = Setup::new(upstream.address());
    let ca_file = setup.queue().with_file_name("ca.crt");
    fs::write(&ca_file, authority.pem()).unwrap();
    setup.config["upstream"]["url"] = json!(format!("https://{HOST}"));
    setup.config["upstream"]["ca_file"] = json!(ca_file);
    setup.config["log"]["level"] = json!("trace");
    variables(&mut setup, &[("HTTPS_PROXY", &proxy.url_with_password())]);
    let relay = Relay::start(&setup);
    for marker in ["first", "second"] {
        let events = json!([marked(marker)]);
        assert_eq!(relay.post(marker, &events).status, 202);
        let received = upstream.next();
        assert_eq!(
            (received.target.as_str(), received.headers.get("host")),
            ("/bulk", Some(HOST))
        );
        assert_eq!(received.body, events.to_string().as_bytes());
        assert_eq!(received.headers.get("proxy-authorization"), None);
    }
    // The second post went over the first one's tunnel.
    let [(line, headers)] = proxy.heads().try_into().unwrap();
    assert_eq!(line, format!("CONNECT {HOST}:443 HTTP/1.1"));
    assert_eq!(headers.all("proxy-authorization"), [basic()]);
    assert_eq!(headers.get("authorization"), None);
    relay.settle();
    assert_log_is_clean(&relay);
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["first", "second"]);
}

/// Scenario: `HTTP_PROXY` with a password, and a plain HTTP upstream; the client sends proxy credentials of its own.
/// Guarantees: the proxy gets the whole URL, its own password and the upstream's `Host`; the client's credentials for
/// a proxy end here.
#[test]
fn an_http_upstream_is_asked_for_by_its_whole_url() {
    let proxy = Upstream::start();
    proxy.always("POST", &format!("http://{HOST}/base/bulk"), Answer::accepted());
    let mut setup = Setup::new(proxy.address());
    setup.config["upstream"]["url"] = json!(format!("http://{HOST}/base"));
    setup.config["log"]["level"] = json!("trace");
    let url = format!("http://{USER}:{PASSWORD}@{}", proxy.address());
    variables(&mut setup, &[("HTTP_PROXY", &url)]);
    let relay = Relay::start(&setup);
    let body = json!([marked("forwarded")]).to_string();
    let headers = [
        ("Authorization", SDK_KEY),
        ("Proxy-Authorization", "Basic b2YtdGhlLWNsaWVudA=="),
        ("X-LaunchDarkly-Event-Schema", "4"),
    ];
    let answer = relay.exchange(&request("POST", "/bulk", &headers, body.as_bytes()));
    assert_eq!(answer.status, 202);
    let received = proxy.next();
    assert_eq!(received.headers.get("host"), Some(HOST));
    assert_eq!(received.headers.all("proxy-authorization"), [basic()]);
    assert_eq!(received.body, body.as_bytes());
    relay.settle();
    assert_log_is_clean(&relay);
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["forwarded"]);
}

/// Scenario: `NO_PROXY` names the upstream: as a name, an address, a network, everything.
/// Guarantees: the proxy is not asked.
#[test]
fn what_no_proxy_names_is_reached_directly() {
    let cases = [
        ("localhost", "example.com, localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "10.0.0.0/8,127.0.0.0/8"),
        ("localhost", "*"),
    ];
    for (host, exceptions) in cases {
        let upstream = Upstream::accepting();
        let proxy = Proxy::start(Policy::Refuse(503));
        let mut setup = Setup::new(upstream.address());
        setup.config["upstream"]["url"] = json!(format!("http://{host}:{}", upstream.address().port()));
        variables(&mut setup, &[("ALL_PROXY", &proxy.url()), ("NO_PROXY", exceptions)]);
        let relay = Relay::start(&setup);
        assert_eq!(
            relay.post("direct", &json!([marked("direct")])).status,
            202,
            "{exceptions}"
        );
        assert_eq!(upstream.next().target, "/bulk");
        assert!(proxy.heads().is_empty(), "{exceptions}: {:?}", proxy.heads());
        relay.stop();
    }
}

/// Scenario: `NO_PROXY` has a suffix; the upstream's name ends in it, or merely in its letters.
/// Guarantees: a name under the suffix is not taken to the proxy, even if it cannot be reached directly; the other is.
#[test]
fn a_suffix_in_no_proxy_ends_at_a_dot() {
    for (host, asked) in [("events.cluster.invalid", 0), ("events.notcluster.invalid", 1)] {
        let unused = Upstream::start();
        let proxy = Proxy::start(Policy::Refuse(503));
        let mut setup = Setup::new(unused.address());
        setup.config["upstream"]["url"] = json!(format!("https://{host}"));
        variables(
            &mut setup,
            &[("HTTPS_PROXY", &proxy.url()), ("NO_PROXY", ".cluster.invalid")],
        );
        let relay = Relay::start(&setup);
        assert_eq!(relay.post("kept", &json!([marked("kept")])).status, 502, "{host}");
        assert_eq!(proxy.heads().len(), asked, "{host}");
        relay.stop();
    }
}

/// Scenario: the proxy wants credentials, or cannot reach the upstream.
/// Guarantees: the SDK gets 502, never the proxy's own status; the batch of a configured credential is exported.
#[test]
fn a_proxy_that_refuses_is_an_upstream_that_cannot_be_reached() {
    for (scheme, status) in [("https", 407), ("https", 502), ("http", 407)] {
        let unused = Upstream::start();
        let proxy = Proxy::start(Policy::Refuse(status));
        let mut setup = Setup::new(unused.address());
        setup.config["upstream"]["url"] = json!(format!("{scheme}://{HOST}"));
        variables(&mut setup, &[("all_proxy", &proxy.url_with_password())]);
        let relay = Relay::start(&setup);
        let answer = relay.post("kept", &json!([marked("kept")]));
        assert_eq!(answer.status, 502);
        assert_eq!(answer.headers.get("x-flagtap-error"), Some("upstream; unreachable"));
        assert_eq!(proxy.heads().len(), 1);
        relay.settle();
        assert_log_is_clean(&relay);
        relay.stop();
        assert_eq!(markers(&setup.exported()), ["kept"]);
    }
}
