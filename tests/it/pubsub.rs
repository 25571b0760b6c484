//! The Pub/Sub destination: through Google's emulator byte by byte, and through a Pub/Sub that fails and asks who calls.
//!
//! The emulator takes every publish that is well formed and looks at no credentials, so a fake takes those parts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use google_cloud_auth::credentials::anonymous;
use google_cloud_pubsub::client::Subscriber;
use google_cloud_pubsub::model::Message;
use rcgen::{KeyPair, PKCS_RSA_SHA256, SigningKey};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::runtime::Builder;

use crate::replay;
use crate::support::eventually::patience;
use crate::support::export::{event, id};
use crate::support::pubsub_emulator::Emulator;
use crate::support::pubsub_fake::{Answer, FakePubsub, Publish, code};
use crate::support::relay::marked;
use crate::support::tls::Authority;
use crate::support::{Answer as HttpAnswer, Connection, Relay, Setup, Upstream, eventually, request};

/// Scenario: every recording is exported to a topic of its own in Google's emulator.
/// Guarantees: a subscription gets each line of the golden export once, byte by byte, without attributes or key.
#[test]
fn every_recording_reaches_googles_emulator_byte_by_byte() {
    let Some(emulator) = Emulator::start("pubsub") else {
        return;
    };
    for build in replay::BUILDS {
        subscribe(&emulator, build);
        let destination = json!({ "google_pubsub": {
            "project": "my-project", "topic": build, "endpoint": emulator.url(),
        } });
        let mut expected = replay::deliver(build, destination);
        let messages = pull(&emulator, build, expected.len());
        assert!(
            messages
                .iter()
                .all(|message| message.attributes.is_empty() && message.ordering_key.is_empty())
        );
        let mut data: Vec<String> = messages.iter().map(text).collect();
        data.sort();
        expected.sort();
        assert!(data == expected, "{build}: the messages differ from the golden lines");
    }
}

/// Scenario: a recording is exported with ordering keys, all attributes and line feeds; the subscription keeps order.
/// Guarantees: the bytes are the golden line and a line feed; attributes say id, kind and environment; the events of
/// one context come in the order they were exported in.
#[test]
fn ordering_keys_and_attributes_arrive() {
    let Some(emulator) = Emulator::start("pubsub") else {
        return;
    };
    let build = "node-server-9.13.7";
    subscribe(&emulator, build);
    let expected = replay::deliver(
        build,
        json!({ "google_pubsub": {
            "project": "my-project", "topic": build, "endpoint": emulator.url(), "ordering": "context_key",
            "attributes": ["kind", "event_id", "environment"], "newline": true,
        } }),
    );
    let places: BTreeMap<&str, usize> = expected.iter().map(String::as_str).zip(0..).collect();
    let messages = pull(&emulator, build, expected.len());
    assert_eq!(messages.len(), expected.len());
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for message in &messages {
        let text = text(message);
        let line = text.strip_suffix('\n').unwrap();
        let place = *places.get(line).unwrap_or_else(|| panic!("not in the export: {line}"));
        assert_eq!(message.attributes["event_id"], id(line));
        assert_eq!(message.attributes["kind"], event(line)["kind"]);
        assert_eq!(message.attributes["environment"], "recorded");
        if !message.ordering_key.is_empty() {
            let before = last.insert(&message.ordering_key, place);
            assert!(before.is_none_or(|before| before < place), "out of order");
        }
    }
    assert!(last.len() > 1, "more than one context");
    let different: BTreeSet<String> = messages.iter().map(text).collect();
    assert_eq!(different.len(), expected.len());
}

/// Scenario: Pub/Sub has no quota, is not there, loses the answer, answers nonsense and answers with too few ids, over
/// and over, and sometimes works.
/// Guarantees: every event is acknowledged in the end, nothing that was acknowledged is sent again, and an event that
/// is sent again has the same bytes.
#[test]
fn every_event_reaches_pubsub_whatever_it_answers() {
    let mut turn = 0;
    let fake = FakePubsub::planned(move |_| {
        turn += 1;
        Some(match turn % 7 {
            1 => Answer::Error(code::RESOURCE_EXHAUSTED, "quota exceeded".to_owned()),
            2 => Answer::Error(code::UNAVAILABLE, "try again".to_owned()),
            3 => Answer::Reset,
            4 => Answer::Bytes(b"\xff garbage"),
            5 => Answer::Ids(1),
            6 => Answer::Http(502, "<html>bad gateway</html>"),
            _ => Answer::Taken,
        })
    });
    let upstream = Upstream::accepting();
    let setup = exporting(&upstream, &fake.url());
    let relay = Relay::start(&setup);
    for batch in 0..20 {
        let events: Value = (0..10).map(|index| marked(&format!("p-{batch}-{index} ☃ é"))).collect();
        assert_eq!(relay.post(&format!("pubsub-{batch}"), &events).status, 202);
    }
    let metrics = relay.settle();
    let lake = [("destination", "bus")];
    assert_eq!(metrics.sum("flagtap_destination_events_delivered_total", &lake), 200.0);
    assert_eq!(metrics.sum("flagtap_destination_events_dead_total", &[]), 0.0);
    relay.stop();

    let lines: BTreeSet<String> = setup.exported().into_iter().collect();
    let (mut acknowledged, mut sent) = (BTreeMap::<String, usize>::new(), BTreeSet::new());
    for (turn, publish) in fake.received().iter().enumerate() {
        let data = data(publish);
        sent.extend(data.iter().cloned());
        let heard = match (turn + 1) % 7 {
            0 => data.len(),
            5 => 1,
            _ => 0,
        };
        data.into_iter()
            .take(heard)
            .for_each(|line| *acknowledged.entry(line).or_default() += 1);
    }
    assert!(sent == lines, "what was sent differs from the file's lines");
    assert!(
        acknowledged.values().all(|count| *count == 1),
        "acknowledged and yet sent again"
    );
    assert_eq!(acknowledged.len(), 200);
}

/// Scenario: one of twenty events does not fit the topic's schema, for which Pub/Sub refuses the whole request.
/// Guarantees: that event alone becomes a dead letter; each of the others is taken once.
#[test]
fn an_event_that_pubsub_refuses_is_found_and_holds_back_no_other() {
    let poisoned = |publish: &Publish| data(publish).iter().any(|line| line.contains("poison"));
    let fake = FakePubsub::planned(move |publish| {
        Some(match poisoned(publish) {
            true => Answer::Error(code::INVALID_ARGUMENT, "does not match the schema".to_owned()),
            false => Answer::Taken,
        })
    });
    let upstream = Upstream::accepting();
    let setup = exporting(&upstream, &fake.url());
    let mut relay = Relay::start(&setup);
    relay.tolerate("INVALID_ARGUMENT");
    let events: Value = (0..20)
        .map(|index| {
            marked(&if index == 13 {
                "poison".to_owned()
            } else {
                format!("good-{index}")
            })
        })
        .collect();
    assert_eq!(relay.post("pubsub-poison", &events).status, 202);
    let metrics = relay.settle();
    let bus = [("destination", "bus")];
    assert_eq!(metrics.sum("flagtap_destination_events_delivered_total", &bus), 19.0);
    assert_eq!(metrics.sum("flagtap_destination_events_dead_total", &bus), 1.0);
    relay.stop();
    let taken: Vec<String> = fake
        .received()
        .iter()
        .filter(|publish| !poisoned(publish))
        .flat_map(data)
        .collect();
    assert_eq!(taken.len(), 19);
    assert_eq!(taken.into_iter().collect::<BTreeSet<_>>().len(), 19);
}

/// Scenario: the account may not publish; the role is granted while flagtap is down.
/// Guarantees: the status says which role on what; nothing is lost, and the events are delivered at the next start.
#[test]
fn a_missing_role_is_named_and_loses_nothing() {
    let granted = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = granted.clone();
    let fake = FakePubsub::planned(move |_| {
        Some(match asked.load(std::sync::atomic::Ordering::SeqCst) {
            true => Answer::Taken,
            false => Answer::Error(
                code::PERMISSION_DENIED,
                "User not authorized to perform this action.".to_owned(),
            ),
        })
    });
    let upstream = Upstream::accepting();
    let setup = exporting(&upstream, &fake.url());
    let relay = Relay::start(&setup);
    let events: Value = (0..5).map(|index| marked(&format!("r-{index}"))).collect();
    assert_eq!(relay.post("pubsub-role", &events).status, 202);
    eventually("the status to name the role", || {
        let status = String::from_utf8(relay.telemetry("/status")?.body).unwrap();
        (status.contains("roles/pubsub.publisher") && status.contains("blocked")).then_some(())
    });
    relay.stop();
    granted.store(true, std::sync::atomic::Ordering::SeqCst);
    fake.received();
    let relay = Relay::start(&setup);
    relay.settle();
    relay.stop();
    let lines: BTreeSet<String> = setup.exported().into_iter().collect();
    let taken: Vec<String> = fake.received().iter().flat_map(data).collect();
    assert_eq!(taken.len(), 5);
    assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), lines);
}

/// Scenario: a service account's key in `credentials_file`, then the same by GOOGLE_APPLICATION_CREDENTIALS, each over
/// TLS that is verified.
/// Guarantees: publishing carries a token that this key signed, for Pub/Sub's scope alone; nothing else is contacted.
#[test]
fn a_service_accounts_key_signs_the_token() {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let account = json!({
        "type": "service_account", "project_id": "my-project", "private_key_id": "key-1",
        "private_key": key.serialize_pem(), "client_email": "flagtap@my-project.iam.gserviceaccount.com",
        "client_id": "1", "token_uri": "https://127.0.0.1:1/token", "universe_domain": "googleapis.com",
    });
    for by_variable in [false, true] {
        let authorization = authorization(|setup, folder| {
            let file = folder.join("account.json");
            fs::write(&file, account.to_string()).unwrap();
            if by_variable {
                let variable = ("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), file.display().to_string());
                setup.variables.push(variable);
            } else {
                setup.config["destinations"][1]["google_pubsub"]["credentials_file"] = json!(file);
            }
        });
        let token = authorization.strip_prefix("Bearer ").unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        // This signature has no randomness, so the right one is known.
        assert_eq!(
            URL_SAFE_NO_PAD.decode(signature).unwrap(),
            key.sign(signed.as_bytes()).unwrap()
        );
        let claims = URL_SAFE_NO_PAD.decode(signed.split_once('.').unwrap().1).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["iss"], "flagtap@my-project.iam.gserviceaccount.com");
        assert_eq!(claims["scope"], "https://www.googleapis.com/auth/pubsub");
    }
}

/// Scenario: no file anywhere, and a metadata server as GKE's workload identity has it.
/// Guarantees: publishing carries its token, asked for Pub/Sub's scope alone.
#[test]
fn the_metadata_servers_token_is_used() {
    let metadata = Upstream::start();
    metadata.plan(|call| {
        assert_eq!(call.headers.get("metadata-flavor"), Some("Google"));
        match call.path() {
            "/computeMetadata/v1/instance/service-accounts/default/token" => {
                assert!(
                    call.target.contains("auth%2Fpubsub") || call.target.contains("auth/pubsub"),
                    "{}",
                    call.target
                );
                Some(token("of-the-pod"))
            }
            "/computeMetadata/v1/universe/universe-domain" => Some(HttpAnswer::full(200, &[], b"googleapis.com")),
            _ => None,
        }
    });
    let address = metadata.address().to_string();
    let authorization = authorization(|setup, _| setup.variables.push(("GCE_METADATA_HOST".to_owned(), address)));
    assert_eq!(authorization, "Bearer of-the-pod");
}

/// Scenario: workload identity federation: a token that the cluster put into a file is exchanged at a token service.
/// Guarantees: publishing carries the token that the service gave for it.
#[test]
fn a_federated_identity_is_exchanged_for_a_token() {
    let service = Upstream::start();
    service.plan(|call| {
        let form = String::from_utf8(call.body.clone()).unwrap();
        assert_eq!((call.method.as_str(), call.path()), ("POST", "/v1/token"));
        assert!(form.contains("subject_token=of-the-cluster"), "{form}");
        Some(token("federated"))
    });
    let url = format!("http://{}/v1/token", service.address());
    let authorization = authorization(|setup, folder| {
        let (subject, file) = (folder.join("subject"), folder.join("federation.json"));
        fs::write(&subject, "of-the-cluster").unwrap();
        let federation = json!({
            "type": "external_account", "token_url": url,
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/a/providers/b",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "credential_source": { "file": subject },
        });
        fs::write(&file, federation.to_string()).unwrap();
        setup.config["destinations"][1]["google_pubsub"]["credentials_file"] = json!(file);
    });
    assert_eq!(authorization, "Bearer federated");
}

/// Scenario: the endpoint shows a certificate of an authority that the system does not know.
/// Guarantees: nothing is sent to it, no token either, and the status says why.
#[test]
fn an_endpoint_that_nobody_vouches_for_gets_nothing() {
    let fake = with_tls(&Authority::new("unknown"));
    let upstream = Upstream::accepting();
    let mut setup = exporting(&upstream, &format!("https://localhost:{}", fake.address().port()));
    setup
        .variables
        .push(("GCE_METADATA_HOST".to_owned(), "127.0.0.1:1".to_owned()));
    let file = setup.queue().with_file_name("federation.json");
    let metadata = Upstream::start();
    metadata.plan(|_| Some(token("federated")));
    let subject = setup.queue().with_file_name("subject");
    fs::write(&subject, "of-the-cluster").unwrap();
    fs::write(
        &file,
        json!({
            "type": "external_account", "token_url": format!("http://{}/v1/token", metadata.address()),
            "audience": "//iam.googleapis.com/projects/1", "credential_source": { "file": subject },
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        })
        .to_string(),
    )
    .unwrap();
    setup.config["destinations"][1]["google_pubsub"]["credentials_file"] = json!(file);
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("pubsub-tls", &json!([marked("t")])).status, 202);
    eventually("the status to say why", || {
        let status = String::from_utf8(relay.telemetry("/status")?.body).unwrap();
        status.contains("certificate").then_some(())
    });
    relay.stop();
    assert!(fake.received().is_empty());
}

/// Returns the `authorization` of a publish over TLS by a relay that `prepare` gave its credentials.
fn authorization(prepare: impl FnOnce(&mut Setup, PathBuf)) -> String {
    let authority = Authority::new("flagtap tests");
    let fake = with_tls(&authority);
    let upstream = Upstream::accepting();
    let mut setup = exporting(&upstream, &format!("https://localhost:{}", fake.address().port()));
    let folder = setup.queue().parent().unwrap().to_owned();
    fs::write(folder.join("roots.pem"), authority.pem()).unwrap();
    let roots = folder.join("roots.pem").display().to_string();
    setup.variables.push(("SSL_CERT_FILE".to_owned(), roots));
    // Whoever runs the tests may be logged in to Google.
    setup.variables.push(("HOME".to_owned(), folder.display().to_string()));
    prepare(&mut setup, folder);
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("pubsub-credentials", &json!([marked("c")])).status, 202);
    relay.settle();
    relay.stop();
    let received = fake.received();
    assert_eq!(received.len(), 1);
    assert_eq!(data(&received[0]), setup.exported());
    received[0].headers["authorization"].to_str().unwrap().to_owned()
}

/// Returns a Pub/Sub that takes everything, at `localhost` with a certificate of this authority.
fn with_tls(authority: &Authority) -> FakePubsub {
    let identity = authority.issue("localhost");
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = versions
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.der()], key);
    let local = ([127, 0, 0, 1], 0).into();
    FakePubsub::start(Box::new(|_| Some(Answer::Taken)), Some(config.unwrap()), local)
}

/// Returns a setup that exports to the topic `ld-events` at `endpoint` beside the folder of files.
fn exporting(upstream: &Upstream, endpoint: &str) -> Setup {
    let mut setup = Setup::new(upstream.address());
    setup.config["environments"][0]["destinations"] = json!(["archive", "bus"]);
    setup.config["destinations"].as_array_mut().unwrap().push(json!({
        "name": "bus",
        "google_pubsub": { "project": "my-project", "topic": "ld-events", "endpoint": endpoint },
        "retry": { "initial": "20ms", "max": "200ms", "over": "500ms", "then": "keep" },
    }));
    setup
}

fn token(token: &str) -> HttpAnswer {
    let answer = json!({
        "access_token": token, "expires_in": 3600, "token_type": "Bearer",
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
    });
    let headers = [("Content-Type", "application/json"), ("Metadata-Flavor", "Google")];
    HttpAnswer::full(200, &headers, answer.to_string().as_bytes())
}

fn data(publish: &Publish) -> Vec<String> {
    let data = publish.request.messages.iter().map(|message| message.data.to_vec());
    data.map(|bytes| String::from_utf8(bytes).unwrap()).collect()
}

/// Makes a topic with a subscription of the same name that keeps order.
fn subscribe(emulator: &Emulator, name: &str) {
    emulator.create_topic(name);
    let settings = json!({
        "topic": format!("projects/my-project/topics/{name}"), "enableMessageOrdering": true, "ackDeadlineSeconds": 600,
    });
    let path = format!("/v1/projects/my-project/subscriptions/{name}");
    let headers = [("Content-Type", "application/json")];
    let response = Connection::open(emulator.address())
        .exchange(&request("PUT", &path, &headers, settings.to_string().as_bytes()))
        .unwrap();
    assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
}

/// Returns the messages of a subscription, with Google's own client: so many, and any that follow at once.
fn pull(emulator: &Emulator, name: &str, count: usize) -> Vec<Message> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Subscriber::builder()
            .with_endpoint(emulator.url())
            .with_credentials(anonymous::Builder::new().build())
            .build()
            .await
            .unwrap();
        let mut stream = client
            .subscribe(format!("projects/my-project/subscriptions/{name}"))
            .build();
        let mut pulled = Vec::new();
        loop {
            let enough = pulled.len() >= count;
            let limit = if enough { Duration::from_millis(300) } else { patience() };
            match tokio::time::timeout(limit, stream.next()).await {
                Ok(Some(next)) => {
                    let (message, handler) = next.unwrap();
                    handler.ack();
                    pulled.push(message);
                }
                Ok(None) | Err(_) if enough => return pulled,
                _ => panic!("{name}: {} of {count} messages came", pulled.len()),
            }
        }
    })
}

fn text(message: &Message) -> String {
    String::from_utf8(message.data.to_vec()).unwrap()
}
