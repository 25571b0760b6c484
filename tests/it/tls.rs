//! TLS towards SDKs: `listen.tls`, with certificates that change, client certificates and clients that stall.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Version;
use http_body_util::{BodyExt, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::export::markers;
use crate::support::relay::{bulk, marked};
use crate::support::tls::{Authority, connect, shown_certificate};
use crate::support::{Relay, SDK_KEY, Setup, Upstream, eventually};

/// How clients of these tests call the relay.
const HOST: &str = "127.0.0.1";

fn listen_with_tls(setup: &mut Setup, folder: &Path) {
    setup.config["listen"] = json!({
        "address": "127.0.0.1:0",
        "tls": { "certificate": folder.join("tls.crt"), "key": folder.join("tls.key") },
    });
}

/// Starts a relay with a certificate of `authority`; the folder holds its files.
fn start(upstream: &Upstream, authority: &Authority) -> (TempDir, Setup, Relay) {
    let folder = tempfile::tempdir().unwrap();
    authority.issue(HOST).write(folder.path());
    let mut setup = Setup::new(upstream.address());
    listen_with_tls(&mut setup, folder.path());
    let relay = Relay::start(&setup);
    (folder, setup, relay)
}

/// Scenario: an SDK posts over TLS, twice on one connection, as HTTP/1.1.
/// Guarantees: passed on unchanged and exported.
#[test]
fn a_post_over_tls_passes_and_is_exported() {
    let upstream = Upstream::accepting();
    let authority = Authority::new("ours");
    let (_folder, setup, relay) = start(&upstream, &authority);
    let mut connection = connect(relay.address(), authority.client()).unwrap();
    for marker in ["first", "second"] {
        let events = json!([marked(marker)]);
        assert_eq!(connection.exchange(&bulk(marker, &events)).unwrap().status, 202);
        let received = upstream.next();
        assert_eq!(received.body, events.to_string().as_bytes());
        assert_eq!(received.headers.get("Authorization"), Some(SDK_KEY));
    }
    relay.settle();
    drop(connection);
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["first", "second"]);
}

/// Scenario: a client that speaks HTTP/2 only.
/// Guarantees: ALPN agrees on it; the batch passes and is exported.
#[test]
fn http2_is_agreed_on_by_alpn() {
    let upstream = Upstream::accepting();
    let authority = Authority::new("ours");
    let (_folder, setup, relay) = start(&upstream, &authority);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(authority.client())
        .https_only()
        .enable_http2()
        .build();
    let request = http::Request::post(format!("https://{}/bulk", relay.address()))
        .header("authorization", SDK_KEY)
        .header("content-type", "application/json")
        .header("x-launchdarkly-event-schema", "4")
        .header("x-launchdarkly-payload-id", "h2")
        .body(Full::new(Bytes::from(json!([marked("h2")]).to_string())))
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = runtime.unwrap().block_on(async {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build(connector);
        let answer = client.request(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        body.collect().await.unwrap();
        parts
    });
    assert_eq!((answer.status.as_u16(), answer.version), (202, Version::HTTP_2));
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["h2"]);
}

/// Scenario: the certificate's folder is swapped as kubelet does: `..data` points to a new folder.
/// Guarantees: new connections get the new certificate without a restart; an open one goes on.
#[test]
fn a_certificate_swapped_by_symlink_is_served_without_a_restart() {
    let upstream = Upstream::accepting();
    let authority = Authority::new("ours");
    let (old, new) = (authority.issue(HOST), authority.issue(HOST));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (name, identity) in [("..2026_1", &old), ("..2026_2", &new)] {
        fs::create_dir(path(name)).unwrap();
        identity.write(&path(name));
    }
    symlink("..2026_1", path("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), path(name)).unwrap();
    }
    let mut setup = Setup::new(upstream.address());
    listen_with_tls(&mut setup, folder.path());
    let relay = Relay::start(&setup);
    let shown = || shown_certificate(relay.address(), authority.client());
    assert_eq!(shown(), old.der());
    let mut open = connect(relay.address(), authority.client()).unwrap();
    let post = |marker: &str| bulk(marker, &json!([marked(marker)]));
    assert_eq!(open.exchange(&post("before")).unwrap().status, 202);

    symlink("..2026_2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    eventually("the new certificate", || (shown() == new.der()).then_some(()));
    assert_eq!(open.exchange(&post("after")).unwrap().status, 202);
    eventually("the reload in the log", || relay.find_log("TLS certificate reloaded"));
    drop(open);
    relay.stop();
}

/// Scenario: the certificate is overwritten with something broken, and later with a good one.
/// Guarantees: the old one stays and a WARN says why; the good one is taken.
#[test]
fn a_broken_new_certificate_leaves_the_old_one_in_place() {
    let upstream = Upstream::accepting();
    let authority = Authority::new("ours");
    let (folder, _setup, relay) = start(&upstream, &authority);
    let shown = || shown_certificate(relay.address(), authority.client());
    let old = shown();
    fs::write(folder.path().join("tls.crt"), "not a certificate").unwrap();
    let warning = eventually("the warning", || {
        let message = "new TLS files are not usable, keeping the old ones";
        let log = relay.log_text();
        let line = log.lines().find(|line| line.contains(message))?;
        serde_json::from_str::<Value>(line).ok()
    });
    assert_eq!(warning["level"], "WARN");
    let field = |name: &str| warning["fields"][name].as_str().unwrap_or_default();
    assert!(field("error").ends_with("tls.crt"), "{warning}");
    assert_eq!(field("cause"), "the file holds no certificate");
    assert_eq!(shown(), old);

    let new = authority.issue(HOST);
    new.write(folder.path());
    eventually("the new certificate", || (shown() == new.der()).then_some(()));
    relay.stop();
}

/// Scenario: `client_ca` is set; clients come with a certificate of it, with none, and with one of another authority.
/// Guarantees: only the first is served, and nothing of the others reaches the upstream.
#[test]
fn client_certificates_are_demanded_where_an_authority_for_them_is_set() {
    let upstream = Upstream::accepting();
    let (authority, clients, strangers) = (
        Authority::new("ours"),
        Authority::new("clients"),
        Authority::new("strangers"),
    );
    let folder = tempfile::tempdir().unwrap();
    authority.issue(HOST).write(folder.path());
    fs::write(folder.path().join("ca.crt"), clients.pem()).unwrap();
    let mut setup = Setup::new(upstream.address());
    listen_with_tls(&mut setup, folder.path());
    setup.config["listen"]["tls"]["client_ca"] = json!(folder.path().join("ca.crt"));
    let relay = Relay::start(&setup);
    let post = |marker: &str, client| {
        let events = json!([marked(marker)]);
        connect(relay.address(), client).and_then(|mut open| open.exchange(&bulk(marker, &events)))
    };
    let known = authority.client_with(&clients.issue("sdk.internal"));
    assert_eq!(post("known", known).unwrap().status, 202);
    let stranger = authority.client_with(&strangers.issue("sdk.internal"));
    for (who, client) in [("nobody", authority.client()), ("stranger", stranger)] {
        let refusal = post(who, client).unwrap_err();
        assert!(refusal.to_string().contains("received fatal alert"), "{who}: {refusal}");
    }
    assert_eq!(upstream.count(), 1);
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["known"]);
}

/// Scenario: clients connect and send nothing, or the first bytes of a handshake.
/// Guarantees: `limits.header_timeout` ends them and frees their places.
#[test]
fn a_handshake_that_stalls_is_ended() {
    let upstream = Upstream::accepting();
    let authority = Authority::new("ours");
    let folder = tempfile::tempdir().unwrap();
    authority.issue(HOST).write(folder.path());
    let mut setup = Setup::new(upstream.address());
    listen_with_tls(&mut setup, folder.path());
    let patience = Duration::from_secs(1);
    setup.config["limits"] = json!({ "header_timeout": "1s", "connections": 2 });
    let relay = Relay::start(&setup);
    let start = Instant::now();
    let (mut silent, mut stalled) = (relay.connect(), relay.connect());
    stalled.send(b"\x16\x03\x01\x02\x00\x01").unwrap();
    assert!(silent.closes_silently() && stalled.closes_silently());
    assert!(start.elapsed() >= patience, "{:?}", start.elapsed());
    // Both places were taken; a client that behaves gets one now.
    let mut good = connect(relay.address(), authority.client()).unwrap();
    let events = json!([marked("good")]);
    assert_eq!(good.exchange(&bulk("good", &events)).unwrap().status, 202);
    drop(good);
    relay.stop();
}

/// Scenario: a client speaks plain HTTP to the TLS port.
/// Guarantees: it gets no HTTP answer and nothing of it reaches the upstream.
#[test]
fn plain_http_on_the_tls_port_is_not_served() {
    let upstream = Upstream::accepting();
    let authority = Authority::new("ours");
    let (_folder, _setup, relay) = start(&upstream, &authority);
    let answer = relay.connect().exchange(&bulk("plain", &json!([marked("plain")])));
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(upstream.count(), 0);
    relay.stop();
}
