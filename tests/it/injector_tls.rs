//! The injector's own certificate: made, announced, renewed and agreed on through a Kubernetes API.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use crate::injector::template;
use crate::support::kubernetes::{Cluster, SERVICE};
use crate::support::raw::{Response, request};
use crate::support::tls::{Authority, connect_as};
use crate::support::{Relay, eventually};

const FAILURES: &str = "flagtap_injector_certificate_failures_total";

fn written_template() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sidecar.yaml");
    fs::write(&path, template(true)).unwrap();
    (folder, path)
}

fn start(cluster: &Cluster) -> Relay {
    let (_folder, template) = written_template();
    let mut relay = Relay::launch(cluster.injector(&template, "127.0.0.1:0"));
    relay.serves("webhook");
    relay
}

/// Posts a review as the API server would: by the Service's name, with the authorities of the webhook's configuration.
fn review(cluster: &Cluster, relay: &Relay) -> io::Result<Response> {
    let pod = json!({ "metadata": { "annotations": { "flagtap.dev/inject": "true" } }, "spec": { "containers": [{ "name": "app" }] } });
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "operation": "CREATE", "object": pod,
            "resource": { "group": "", "version": "v1", "resource": "pods" },
        },
    });
    let bytes = request("POST", "/mutate", &[], review.to_string().as_bytes());
    connect_as(relay.address(), SERVICE, &cluster.bundle())?.exchange(&bytes)
}

fn served(cluster: &Cluster, relay: &Relay) {
    let answer = review(cluster, relay).unwrap_or_else(|error| panic!("{error}\n{}", relay.log_text()));
    assert_eq!(answer.status, 200);
    assert!(String::from_utf8_lossy(&answer.body).contains("JSONPatch"));
}

/// Scenario: a cluster without the Secret, and one with an empty one that a chart made; the injector starts, and starts
/// again; somebody empties the caBundle; the token is renewed.
/// Guarantees: the certificate is made once and kept, the API server trusts it for the Service's name and no other, the bundle
/// is put right, and no key of an authority is kept.
#[test]
fn it_makes_a_certificate_once_and_tells_the_api_server() {
    for empty in [false, true] {
        let cluster = Cluster::start();
        cluster.tolerate_broken();
        if empty {
            cluster.put_empty_secret();
        }
        let relay = start(&cluster);
        served(&cluster, &relay);
        assert_eq!(cluster.changes(), (1, 1));
        assert_eq!(cluster.bundle(), cluster.part("ca.crt").unwrap().into_bytes());
        let secret = cluster.secret().unwrap();
        assert_eq!(secret["type"], "Opaque");
        assert_eq!(cluster.part("tls.key").unwrap().matches("PRIVATE KEY").count(), 2);
        assert!(!cluster.part("ca.crt").unwrap().contains("PRIVATE"));
        assert!(!relay.log_text().contains("PRIVATE"));
        assert!(connect_as(relay.address(), "other.flagtap.svc", &cluster.bundle()).is_err());
        let stranger = Authority::new("stranger").pem();
        assert!(connect_as(relay.address(), SERVICE, stranger.as_bytes()).is_err());

        cluster.forget_bundle();
        eventually("the bundle to be put right", || {
            (!cluster.bundle().is_empty()).then_some(())
        });
        served(&cluster, &relay);
        cluster.renew_token("token-2");
        let calls = cluster.calls();
        eventually("a round with the new token", || {
            (cluster.calls() > calls + 3).then_some(())
        });
        relay.kill();

        let relay = start(&cluster);
        served(&cluster, &relay);
        assert_eq!((cluster.changes(), cluster.secret()), ((1, 2), Some(secret)));
    }
}

/// Scenario: the Secret's certificate ends in ten days; another time it is for another name, its key is another's, or it
/// is no certificate.
/// Guarantees: a new one is made; the authority before stays in the bundle where there was one.
#[test]
fn what_cannot_go_on_being_shown_is_renewed() {
    let before = Authority::new("before");
    let mut other_key = before.issue_for_days(SERVICE, 80);
    other_key.key = before.issue(SERVICE).key;
    let mut broken = before.issue_for_days(SERVICE, 80);
    broken.certificate = "nothing".to_owned();
    let cases = [
        before.issue_for_days(SERVICE, 10),
        before.issue_for_days("other", 80),
        other_key,
        broken,
    ];
    for held in cases {
        let cluster = Cluster::start();
        cluster.tolerate_broken();
        cluster.put_secret(&held, &before.pem());
        let relay = start(&cluster);
        served(&cluster, &relay);
        assert_ne!(cluster.part("tls.crt").unwrap(), held.certificate);
        let authorities = cluster.part("ca.crt").unwrap();
        assert_eq!(authorities.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(authorities.replace('\r', "").contains(&before.pem().replace('\r', "")));
        assert_eq!(cluster.bundle(), authorities.into_bytes());
    }
}

/// Scenario: while the injector runs, the Secret gets a certificate that is about to end, as another replica's would be;
/// the API server is called all the while.
/// Guarantees: no call fails for its certificate, before, during and after the change, and the new one is shown in the end.
#[test]
fn a_renewal_is_never_ahead_of_what_the_api_server_trusts() {
    let cluster = Cluster::start();
    cluster.tolerate_broken();
    let relay = start(&cluster);
    served(&cluster, &relay);
    let first = cluster.part("tls.crt").unwrap();
    let authorities = cluster.part("ca.crt").unwrap();
    // Ends soon and belongs to the same authorities as far as anybody can see: only its time is short.
    let other = Authority::new("other");
    cluster.put_secret(
        &other.issue_for_days(SERVICE, 10),
        &format!("{authorities}{}", other.pem()),
    );
    eventually("the new certificate to be shown", || {
        served(&cluster, &relay);
        relay.find_log("a new certificate is shown from now on")
    });
    served(&cluster, &relay);
    assert_ne!(cluster.part("tls.crt").unwrap(), first);
    assert!(
        String::from_utf8(cluster.bundle())
            .unwrap()
            .contains(authorities.trim())
    );
}

/// Scenario: another replica writes its certificate between this one's look at the Secret and its own write; the Secret is
/// missing, or there and empty.
/// Guarantees: this one takes the other's and writes nothing.
#[test]
fn the_slower_of_two_replicas_takes_the_others_certificate() {
    for empty in [false, true] {
        let cluster = Cluster::start();
        cluster.tolerate_broken();
        if empty {
            cluster.put_empty_secret();
        }
        let other = Authority::new("other");
        let names = SERVICE.strip_suffix(".svc").unwrap();
        let identity = other.issue_for_all(&[SERVICE, names, &format!("{SERVICE}.cluster.local")], 80);
        cluster.be_faster(&identity, &other.pem());
        let relay = start(&cluster);
        served(&cluster, &relay);
        assert_eq!(cluster.changes(), (0, 1));
        assert_eq!(cluster.part("tls.crt").unwrap(), identity.certificate);
    }
}

/// Scenario: the API server refuses everything at the start, then allows it; later it refuses again.
/// Guarantees: before there is a certificate the injector lives, is not ready and says what its role lacks; afterwards it goes on
/// serving with the certificate it has, and counts.
#[test]
fn an_api_that_refuses_is_waited_for_and_then_done_without() {
    let cluster = Cluster::start();
    cluster.tolerate_broken();
    cluster.fail(Some(403));
    let (_folder, template) = written_template();
    // Before it listens, its log does not say where.
    let telemetry = crate::support::tools::free_address();
    let mut relay = Relay::launch(cluster.injector(&template, &telemetry.to_string()));
    let probe = |what: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flagtap"));
        command
            .args(["probe", what, "--telemetry", &telemetry.to_string()])
            .output()
            .unwrap()
            .status
            .success()
    };
    eventually("the refusal to be said", || {
        let said = relay.find_log("cannot look after the webhook's certificate, will try again")?;
        let why = said["why"].as_str().unwrap();
        assert!(
            why.contains("answered 403: the service account's role does not allow it: the test says so"),
            "{why}"
        );
        Some(())
    });
    eventually("/livez", || probe("live").then_some(()));
    assert!(!probe("ready"));
    cluster.fail(None);
    relay.serves("webhook");
    eventually("/readyz", || probe("ready").then_some(()));
    served(&cluster, &relay);

    let failures = relay.metrics().sum(FAILURES, &[]);
    assert!(failures >= 1.0);
    cluster.fail(Some(500));
    eventually("failures to be counted", || {
        (relay.metrics().sum(FAILURES, &[]) > failures).then_some(())
    });
    served(&cluster, &relay);
    eventually("/readyz", || probe("ready").then_some(()));
}
