//! TLS towards the upstream: what is trusted, what is refused, and HTTP/2 by ALPN.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;

use crate::support::export::markers;
use crate::support::relay::marked;
use crate::support::tls::{Authority, Http2Upstream, Identity, TlsFront};
use crate::support::upstream::DATE;
use crate::support::{Relay, SDK_KEY, Setup, Upstream, eventually, request};

fn setup(upstream: SocketAddr, trusted: Option<&Authority>) -> (Setup, PathBuf) {
    let mut setup = Setup::new(upstream);
    setup.config["upstream"]["url"] = json!(format!("https://{upstream}"));
    let ca_file = setup.queue().with_file_name("ca.crt");
    if let Some(authority) = trusted {
        fs::write(&ca_file, authority.pem()).unwrap();
        setup.config["upstream"]["ca_file"] = json!(ca_file);
    }
    (setup, ca_file)
}

/// Posts through a relay whose upstream shows `identity`: the SDK gets 502, nothing is sent, the batch is exported, and
/// the log and the status say `why`.
fn is_refused(identity: &Identity, trusted: Option<&Authority>, why: &str) {
    let upstream = Upstream::start();
    let front = TlsFront::start(identity, upstream.address());
    let (setup, _) = setup(front.address(), trusted);
    let relay = Relay::start(&setup);
    let answer = relay.post("kept", &json!([marked("kept")]));
    assert_eq!(answer.status, 502);
    assert_eq!(answer.headers.get("x-flagtap-error"), Some("upstream; unreachable"));
    eventually("the relay to break off the handshake", || {
        (front.refusals() > 0).then_some(())
    });
    assert_eq!(upstream.count(), 0);
    let failure = eventually("the failure in the log", || {
        relay.find_log("the upstream cannot be reached")
    });
    assert!(failure["why"].as_str().unwrap().contains(why), "{failure}");
    let status = relay.telemetry("/status").unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    let shown = &status["upstream"]["last_failure"];
    assert!(shown["why"].as_str().unwrap().contains(why), "{status}");
    assert_eq!(
        (&shown["reason"], &status["upstream"]["last_answer"]),
        (&json!("unreachable"), &json!(null))
    );
    relay.settle();
    relay.stop();
    // No judgement came, and the credential is configured: the default exports it.
    assert_eq!(markers(&setup.exported()), ["kept"]);
}

/// Scenario: the upstream's certificate is of an authority that the relay does not know.
/// Guarantees: 502 and `upstream; unreachable`; not a byte of the request goes there; the batch is exported.
#[test]
fn an_upstream_of_an_unknown_authority_is_refused() {
    is_refused(&Authority::new("unknown").issue("127.0.0.1"), None, "UnknownIssuer");
}

/// Scenario: a trusted certificate, but for another host.
/// Guarantees: refused as an unknown one is.
#[test]
fn an_upstream_with_a_certificate_for_another_host_is_refused() {
    let authority = Authority::new("ours");
    is_refused(
        &authority.issue("events.elsewhere.test"),
        Some(&authority),
        "not valid for name",
    );
}

/// Scenario: a trusted certificate whose time is over.
/// Guarantees: refused as an unknown one is.
#[test]
fn an_upstream_with_an_expired_certificate_is_refused() {
    let authority = Authority::new("ours");
    is_refused(&authority.issue_expired("127.0.0.1"), Some(&authority), "expired");
}

/// Scenario: the authority of the upstream's certificate is in `upstream.ca_file`, or in `SSL_CERT_FILE`.
/// Guarantees: posts pass unchanged and are exported.
#[test]
fn an_upstream_of_a_configured_authority_is_trusted() {
    for by_variable in [false, true] {
        let authority = Authority::new("ours");
        let upstream = Upstream::accepting();
        let front = TlsFront::start(&authority.issue("127.0.0.1"), upstream.address());
        let (mut setup, ca_file) = setup(front.address(), Some(&authority));
        if by_variable {
            setup.config["upstream"].as_object_mut().unwrap().remove("ca_file");
            let file = ca_file.display().to_string();
            setup.variables.push(("SSL_CERT_FILE".to_owned(), file));
        }
        let relay = Relay::start(&setup);
        let events = json!([marked("trusted")]);
        let answer = relay.post("trusted", &events);
        assert_eq!((answer.status, answer.headers.get("date")), (202, Some(DATE)));
        let received = upstream.next();
        assert_eq!(received.headers.get("host"), Some(front.address().to_string().as_str()));
        assert_eq!(received.body, events.to_string().as_bytes());
        relay.settle();
        relay.stop();
        assert_eq!(markers(&setup.exported()), ["trusted"]);
    }
}

/// Scenario: the upstream speaks HTTP/2, the SDK HTTP/1.1.
/// Guarantees: body, path and end-to-end headers are the same there, headers of the connection stay behind, the answer
/// comes back as HTTP/1.1, and the batch is exported.
#[test]
fn an_upstream_that_speaks_http2_gets_the_same_request() {
    let authority = Authority::new("ours");
    let upstream = Http2Upstream::start(&authority.issue("127.0.0.1"));
    let (setup, _) = setup(upstream.address(), Some(&authority));
    let relay = Relay::start(&setup);
    let body = json!([marked("h2")]).to_string();
    let end_to_end = [
        ("Authorization", SDK_KEY),
        ("Content-Type", "application/json"),
        ("X-LaunchDarkly-Event-Schema", "4"),
        ("X-LaunchDarkly-Payload-ID", "h2"),
        ("X-Repeat", "1"),
        ("X-Repeat", "2"),
    ];
    let of_the_connection = [
        ("Connection", "keep-alive"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
    ];
    let sent = [&end_to_end[..], &of_the_connection[..]].concat();
    let answer = relay.exchange(&request("POST", "/bulk?x=%2F", &sent, body.as_bytes()));
    assert_eq!((answer.status, answer.headers.get("date")), (202, Some(DATE)));
    // A streamed request goes the same way.
    let other = relay.exchange(&request("PUT", "/other", &[], b"streamed"));
    assert_eq!(other.status, 202);
    let [received, streamed] = upstream.take().try_into().ok().unwrap();
    assert_eq!(
        received.uri.to_string(),
        format!("https://{}/bulk?x=%2F", upstream.address())
    );
    assert_eq!(received.body, body.as_bytes());
    assert_eq!(streamed.body, "streamed");
    let mut headers: Vec<(&str, &str)> = received
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    headers.sort();
    let (host, length) = (upstream.address().to_string(), body.len().to_string());
    let lower: Vec<(String, &str)> = end_to_end
        .iter()
        .map(|(name, value)| (name.to_lowercase(), *value))
        .collect();
    let mut expected: Vec<(&str, &str)> = lower.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    expected.extend([("host", host.as_str()), ("content-length", length.as_str())]);
    expected.sort();
    assert_eq!(headers, expected);
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["h2"]);
}
