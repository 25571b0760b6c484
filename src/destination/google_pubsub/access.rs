//! Tests: who may publish. Credentials that cannot be used, tokens that do not come, and what the probe makes of it.

use super::super::{Destination, Verdict, contract};
use super::fake::{Answer, FakePubsub};
use super::tests::{is_blocked, pubsub, retries, settings};
use super::{GooglePubsub, Settings};

#[tokio::test]
async fn a_credentials_file_that_cannot_be_used_blocks_until_it_is_mended() {
    let fake = FakePubsub::answering([Answer::Taken]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("google.json");
    let settings = Settings {
        credentials_file: Some(file.clone()),
        ..settings(&fake)
    };
    let pubsub = GooglePubsub::new(&settings);
    let items = contract::items(&pubsub, 2);
    for (content, because) in [
        (None, "cannot read `credentials_file`"),
        (Some("{\"private_key\": \"s3cret"), "is not JSON"),
        (Some(r#"{"type":"s3cret"}"#), "has no `type` that is known"),
        (
            Some(r#"{"type":"service_account","private_key":"s3cret"}"#),
            "cannot be used",
        ),
        (
            Some(
                r#"{"type":"service_account","private_key":"s3cret","private_key_id":"1","client_email":"a","project_id":"p"}"#,
            ),
            "no token",
        ),
    ] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        for verdict in pubsub.send(&items).await {
            assert!(is_blocked(&verdict, because), "{because}: {verdict:?}");
            assert!(!is_blocked(&verdict, "s3cret"), "{verdict:?}");
        }
        let problem = pubsub.probe().await.unwrap_err();
        assert!(
            problem.why.contains(because) && problem.remedy.contains("credentials_file"),
            "{problem:?}"
        );
    }
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let account = serde_json::json!({
        "type": "service_account", "private_key": key.serialize_pem(), "private_key_id": "1", "client_email": "a",
        "project_id": "p",
    });
    std::fs::write(&file, account.to_string()).unwrap();
    assert_eq!(pubsub.send(&items).await, vec![Verdict::Delivered; 2]);
}

#[tokio::test]
async fn a_token_that_does_not_come_is_retried() {
    let fake = FakePubsub::answering([]);
    fake.answer_http(|_, path| (path == "/v1/token").then(|| (503, "busy".to_owned())));
    let folder = tempfile::tempdir().unwrap();
    let (subject, file) = (folder.path().join("subject"), folder.path().join("google.json"));
    std::fs::write(&subject, "s3cret").unwrap();
    let federation = serde_json::json!({
        "type": "external_account", "token_url": format!("{}/v1/token", fake.url()), "audience": "a",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "credential_source": { "file": subject },
    });
    std::fs::write(&file, federation.to_string()).unwrap();
    let settings = Settings {
        credentials_file: Some(file),
        ..settings(&fake)
    };
    let pubsub = GooglePubsub::new(&settings);
    let verdict = pubsub.send(&contract::items(&pubsub, 1)).await.remove(0);
    assert!(
        retries(&verdict, "no token") && !retries(&verdict, "s3cret"),
        "{verdict:?}"
    );
}

#[tokio::test]
async fn a_probe_says_what_works_and_what_to_do_about_the_rest() {
    let none = r#"{"error":{"code":404,"message":"Resource not found","status":"NOT_FOUND"}}"#;
    let denied = r#"{"error":{"code":403,"message":"User not authorized","status":"PERMISSION_DENIED"}}"#;
    let disabled = r#"{"error":{"code":403,"message":"x","status":"PERMISSION_DENIED","details":[{"reason":"SERVICE_DISABLED"}]}}"#;
    let unknown = r#"{"error":{"code":401,"message":"invalid","status":"UNAUTHENTICATED"}}"#;
    let publish = r#"{"permissions":["pubsub.topics.publish"]}"#;
    // What is asked of the permissions, what of the topic, and what is made of it: what works, or else why and remedy.
    for (permissions, topic, expected) in [
        ((200, publish), None, Ok("has pubsub.topics.publish")),
        (
            (200, "{}"),
            Some((404, none)),
            Err(("no topic projects/my-project/topics/ld-events", "create the topic")),
        ),
        (
            (200, "{}"),
            Some((403, denied)),
            Err(("does not have pubsub.topics.publish", "roles/pubsub.publisher")),
        ),
        (
            (200, "{}"),
            Some((200, "{}")),
            Err(("does not have pubsub.topics.publish", "roles/pubsub.publisher")),
        ),
        (
            (404, none),
            None,
            Err(("NOT_FOUND: Resource not found", "create the topic")),
        ),
        ((401, unknown), None, Err(("UNAUTHENTICATED", "credentials_file"))),
        ((403, denied), Some((403, denied)), Ok("was not told")),
        ((403, denied), Some((404, none)), Err(("no topic", "create the topic"))),
        (
            (403, disabled),
            Some((403, disabled)),
            Err(("SERVICE_DISABLED", "enable the Pub/Sub API")),
        ),
        ((501, ""), Some((200, "{}")), Ok("the topic is there")),
        (
            (302, "<html>login</html>"),
            None,
            Err(("answer 302 is not one of Pub/Sub", "`endpoint`")),
        ),
    ] {
        let fake = FakePubsub::answering([]);
        fake.answer_http(move |method, path| {
            let (status, body) = match method {
                "POST" if path.ends_with(":testIamPermissions") => permissions,
                _ => topic?,
            };
            Some((status, body.to_owned()))
        });
        match (pubsub(&fake).probe().await, expected) {
            (Ok(found), Ok(words)) => assert!(found.contains(words), "{found}"),
            (Err(problem), Err((why, remedy))) => {
                assert!(
                    problem.why.contains(why) && problem.remedy.contains(remedy),
                    "{problem:?}"
                );
            }
            (found, _) => panic!("{permissions:?}: {found:?}"),
        }
    }
    let fake = FakePubsub::answering([]);
    let gone = pubsub(&fake);
    drop(fake);
    assert!(gone.probe().await.unwrap_err().remedy.contains("network"));
}
