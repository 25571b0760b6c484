use std::time::Duration;

use prost::Message as _;

use super::super::{Destination, Item, Verdict, contract};
use super::emulator::Emulator;
use super::fake::{Answer, FakePubsub, PublishRequest, PubsubMessage, code};
use super::{Attribute, GooglePubsub, Ordering, Settings, ordering_key};

pub(super) fn settings(fake: &FakePubsub) -> Settings {
    Settings {
        endpoint: Some(fake.url()),
        ..Settings::to("my-project", "ld-events")
    }
}

pub(super) fn pubsub(fake: &FakePubsub) -> GooglePubsub {
    GooglePubsub::new(&settings(fake))
}

async fn verdicts(count: usize, answer: Answer) -> Vec<Verdict> {
    let fake = FakePubsub::answering([answer]);
    let pubsub = pubsub(&fake);
    let verdicts = pubsub.send(&contract::items(&pubsub, count)).await;
    assert_eq!(fake.received().len(), 1, "one request is one RPC, tried once");
    assert_eq!(verdicts.len(), count);
    verdicts
}

async fn verdict(count: usize, answer: Answer) -> Verdict {
    let verdicts = verdicts(count, answer).await;
    assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
    verdicts[0].clone()
}

fn error(code: i32, message: &str) -> Answer {
    Answer::Error(code, message.to_owned())
}

pub(super) fn retries(verdict: &Verdict, because: &str) -> bool {
    matches!(verdict, Verdict::Retry { why, .. } if why.contains(because))
}

pub(super) fn is_blocked(verdict: &Verdict, because: &str) -> bool {
    matches!(verdict, Verdict::Blocked { why } if why.contains(because))
}

fn permits(fake: &FakePubsub) {
    fake.answer_http(|method, path| {
        assert_eq!(
            (method, path),
            ("POST", "/v1/projects/my-project/topics/ld-events:testIamPermissions")
        );
        Some((200, r#"{"permissions":["pubsub.topics.publish"]}"#.to_owned()))
    });
}

#[tokio::test]
async fn keeps_the_contract() {
    let fake = FakePubsub::planned(|_| Some(Answer::Taken));
    permits(&fake);
    contract::holds(&pubsub(&fake)).await;
    assert_eq!(fake.received().len(), 6);
}

#[tokio::test]
async fn keeps_the_contract_with_ordering_attributes_and_newlines() {
    let fake = FakePubsub::planned(|_| Some(Answer::Taken));
    permits(&fake);
    let settings = Settings {
        ordering: Ordering::ContextKey,
        attributes: vec![Attribute::Environment, Attribute::EventId, Attribute::Kind],
        newline: true,
        ..settings(&fake)
    };
    contract::holds(&GooglePubsub::new(&settings)).await;
}

#[tokio::test]
async fn keeps_the_contract_with_googles_emulator() {
    let Some(emulator) = Emulator::start("google_pubsub") else {
        return;
    };
    emulator.create_topic("ld-events");
    let settings = Settings {
        endpoint: Some(emulator.url()),
        ..Settings::to("my-project", "ld-events")
    };
    let pubsub = GooglePubsub::new(&settings);
    contract::holds(&pubsub).await;
    assert!(pubsub.probe().await.unwrap().contains("the topic is there"));

    let missing = Settings {
        topic: "ld-missing".to_owned(),
        ..settings
    };
    let pubsub = GooglePubsub::new(&missing);
    let problem = pubsub.probe().await.unwrap_err();
    assert!(
        problem.why.contains("projects/my-project/topics/ld-missing"),
        "{problem:?}"
    );
    assert!(problem.remedy.contains("`topic`"), "{problem:?}");
    let verdicts = pubsub.send(&contract::items(&pubsub, 2)).await;
    assert!(
        verdicts.iter().all(|verdict| is_blocked(verdict, "NOT_FOUND")),
        "{verdicts:?}"
    );
}

#[tokio::test]
async fn a_service_that_hangs_ends_with_the_request() {
    let fake = FakePubsub::answering([Answer::Hang]);
    contract::ends_with_the_request(&pubsub(&fake)).await;
}

#[tokio::test]
async fn a_message_is_the_export_record_and_nothing_else() {
    let fake = FakePubsub::answering([Answer::Taken]);
    let pubsub = pubsub(&fake);
    let items = contract::items(&pubsub, 3);
    pubsub.send(&items).await;
    let publish = fake.received().remove(0);
    assert_eq!(publish.request.topic, "projects/my-project/topics/ld-events");
    assert!(
        publish.headers.get("authorization").is_none(),
        "no credentials without TLS"
    );
    let messages = publish.request.messages;
    assert_eq!(messages.len(), 3);
    for (message, item) in messages.iter().zip(&items) {
        assert_eq!(message.data, item.body);
        assert!(message.attributes.is_empty() && message.ordering_key.is_empty());
    }
    assert!(
        messages[0]
            .data
            .starts_with(br#"{"project":"5744c96707c9900708000004","environment":"#)
    );
    assert!(messages[0].data.ends_with(br#","version":2}"#));
}

#[tokio::test]
async fn attributes_and_ordering_keys_are_settings() {
    let fake = FakePubsub::answering([Answer::Taken, Answer::Taken]);
    let plain = pubsub(&fake);
    let settings = Settings {
        ordering: Ordering::ContextKey,
        attributes: vec![Attribute::Environment, Attribute::EventId, Attribute::Kind],
        ..settings(&fake)
    };
    let pubsub = GooglePubsub::new(&settings);
    let items = contract::items(&pubsub, 2);
    assert_eq!((items[0].key.as_str(), items[1].key.as_str()), ("ann", ""));
    pubsub.send(&items).await;
    let mut messages: Vec<PubsubMessage> = Vec::new();
    for publish in fake.received() {
        assert_eq!(
            publish.request.messages.len(),
            1,
            "an ordering key has an RPC of its own"
        );
        messages.extend(publish.request.messages);
    }
    messages.sort_by_key(|message| message.attributes["event_id"].clone());
    for (message, (item, plain)) in messages.iter().zip(items.iter().zip(contract::items(&plain, 2))) {
        assert_eq!(message.data, plain.body, "the record is the same");
        assert_eq!(message.ordering_key, item.key);
        assert_eq!(message.attributes["event_id"], item.id);
        assert_eq!(message.attributes["kind"], "custom");
        assert_eq!(message.attributes["environment"], "production");
        assert_eq!(message.attributes.len(), 3);
    }
}

#[test]
fn an_ordering_key_is_kept_or_hashed_if_too_long() {
    let longest = "é".repeat(512);
    assert_eq!(ordering_key(longest.clone()), longest);
    let hashed = ordering_key(format!("{longest}x"));
    assert_eq!(hashed.len(), 64);
    assert_ne!(hashed, ordering_key(format!("{longest}y")));
    assert_eq!(ordering_key(String::new()), "");
}

#[tokio::test]
async fn a_full_request_is_one_rpc_within_the_limits() {
    let fake = FakePubsub::planned(|_| Some(Answer::Taken));
    for attributes in [
        vec![],
        vec![Attribute::Environment, Attribute::EventId, Attribute::Kind],
    ] {
        let settings = Settings {
            attributes,
            ..settings(&fake)
        };
        let pubsub = GooglePubsub::new(&settings);
        let limits = pubsub.limits();
        for item_bytes in [10, 20_000, limits.item_bytes - 1000] {
            let items = full(&pubsub, item_bytes);
            let sum: usize = items.iter().map(|item| item.size).sum();
            assert!(sum <= limits.bytes && items.len() <= limits.items);
            assert_eq!(pubsub.send(&items).await, vec![Verdict::Delivered; items.len()]);
            let received = fake.received();
            assert_eq!(received.len(), 1, "{item_bytes}");
            let PublishRequest { messages, .. } = &received[0].request;
            assert_eq!(messages.len(), items.len());
            let bytes = received[0].request.encoded_len();
            assert!(bytes <= settings.max_request_bytes, "{bytes} bytes");
            assert!(bytes <= sum + settings.topic_name().len() + super::MESSAGE_FRAME);
        }
    }
}

// As many items with data of `bytes` or more as one request takes.
fn full(pubsub: &GooglePubsub, bytes: usize) -> Vec<Item> {
    let limits = pubsub.limits();
    let json = format!(r#"{{"kind":"custom","key":"{}"}}"#, "x".repeat(bytes));
    let (mut items, mut sum) = (Vec::new(), 0);
    while items.len() < limits.items {
        let id = format!("63843c40{:016x}", items.len());
        let item = contract::encoded(pubsub, &contract::event(&json, &id));
        sum += item.size;
        if sum > limits.bytes {
            break;
        }
        items.push(item);
    }
    items
}

#[tokio::test]
async fn only_an_id_is_an_acknowledgement() {
    let verdicts = verdicts(3, Answer::Ids(1)).await;
    assert_eq!(verdicts[0], Verdict::Delivered);
    assert!(
        retries(&verdicts[1], "no id") && retries(&verdicts[2], "no id"),
        "{verdicts:?}"
    );
    assert!(retries(&verdict(2, Answer::EmptyIds).await, "no id"));
    assert!(retries(&verdict(2, Answer::Ids(0)).await, "no id"));
    assert_eq!(verdict(2, Answer::Ids(5)).await, Verdict::Delivered);
}

#[tokio::test]
async fn an_answer_that_is_not_of_pubsub_delivers_nothing() {
    for answer in [
        Answer::Http(200, "<html>login</html>"),
        Answer::Http(404, "not here"),
        Answer::Http(502, "<html>bad gateway</html>"),
        Answer::Http(503, ""),
        Answer::Bytes(b"\xff\xff\xff garbage"),
    ] {
        let verdict = verdict(2, answer.clone()).await;
        assert!(
            retries(&verdict, "") || is_blocked(&verdict, "UNIMPLEMENTED"),
            "{answer:?}: {verdict:?}"
        );
    }
    assert!(retries(&verdict(2, Answer::Bytes(b"")).await, "no id"));
}

#[tokio::test]
async fn what_passes_by_itself_is_retried_once_for_each_send() {
    for code in [1, 2, 4, 8, 10, 13, 14, 6, 11, 15, 99] {
        let verdict = verdict(2, error(code, "made up")).await;
        assert!(retries(&verdict, "made up"), "{code}: {verdict:?}");
    }
}

#[tokio::test]
async fn what_somebody_has_to_correct_is_blocked_and_says_what() {
    for (code, because) in [
        (code::PERMISSION_DENIED, "PERMISSION_DENIED: User not authorized"),
        (code::PERMISSION_DENIED, "roles/pubsub.publisher"),
        (16, "credentials_file"),
        (5, "`topic`"),
        (9, "storage policy"),
        (12, "`endpoint`"),
    ] {
        for count in [1, 2] {
            let verdict = verdict(count, error(code, "User not authorized")).await;
            assert!(is_blocked(&verdict, because), "{code}: {verdict:?}");
        }
    }
}

#[tokio::test]
async fn a_message_at_fault_is_isolated_and_not_quoted() {
    let invalid = || error(code::INVALID_ARGUMENT, "schema: ann@example.com is not an integer");
    assert_eq!(verdict(2, invalid()).await, Verdict::Split);
    let Verdict::Reject { why } = verdict(1, invalid()).await else {
        panic!("not rejected");
    };
    assert!(why.starts_with("INVALID_ARGUMENT") && !why.contains("ann"), "{why}");
}

#[tokio::test]
async fn an_argument_that_is_none_of_the_events_is_no_reason_to_give_them_up() {
    let topic = "Invalid [topics] name: (name=projects/my-project/topics/t)";
    let api = [&[10, 1, b'K', 18, 14][..], b"googleapis.com"].concat();
    for count in [1, 2] {
        assert!(is_blocked(
            &verdict(count, error(code::INVALID_ARGUMENT, topic)).await,
            "Invalid [topics]"
        ));
        let front = Answer::Detailed(code::INVALID_ARGUMENT, "ErrorInfo", api.clone());
        assert!(is_blocked(&verdict(count, front).await, "credentials"));
    }
}

#[tokio::test]
async fn a_request_that_is_too_large_for_the_endpoint_is_halved() {
    let large = "Received message larger than max (8000000 vs. 4194304)";
    assert_eq!(verdict(2, error(code::RESOURCE_EXHAUSTED, large)).await, Verdict::Split);
}

#[tokio::test]
async fn the_services_own_wish_is_passed_on() {
    // RetryInfo { retry_delay: Duration { seconds: 7 } }
    let wish = Answer::Detailed(code::UNAVAILABLE, "RetryInfo", vec![10, 2, 8, 7]);
    let verdict = verdict(2, wish).await;
    assert!(
        matches!(verdict, Verdict::Retry { after: Some(after), .. } if after == Duration::from_secs(7)),
        "{verdict:?}"
    );
}

#[tokio::test]
async fn one_ordering_key_in_trouble_is_no_trouble_of_the_others() {
    let fake = FakePubsub::planned(|publish| {
        Some(match publish.request.messages[0].ordering_key.as_str() {
            "ann" => error(code::UNAVAILABLE, "not now"),
            _ => Answer::Taken,
        })
    });
    let settings = Settings {
        ordering: Ordering::ContextKey,
        ..settings(&fake)
    };
    let pubsub = GooglePubsub::new(&settings);
    let key = |key: &str| {
        let json = format!(r#"{{"kind":"custom","contextKeys":{{"user":"{key}"}}}}"#);
        contract::encoded(&pubsub, &contract::event(&json, "63843c400000000000000000"))
    };
    let items = [key("ann"), key("bob"), key("ann"), key("cid")];
    for _ in 0..2 {
        let verdicts = pubsub.send(&items).await;
        assert!(retries(&verdicts[0], "not now") && retries(&verdicts[2], "not now"));
        assert_eq!((&verdicts[1], &verdicts[3]), (&Verdict::Delivered, &Verdict::Delivered));
    }
    let received = fake.received();
    assert_eq!(
        received.len(),
        6,
        "the failed key is tried again, and not refused by the client"
    );
    assert!(received.iter().any(|publish| publish.request.messages.len() == 2));
}

#[tokio::test]
async fn an_answer_that_never_comes_is_given_up_and_the_next_try_is_the_same_on_a_new_connection() {
    let fake = FakePubsub::answering([Answer::Taken, Answer::Hang, Answer::Taken]);
    let pubsub = pubsub(&fake);
    let items = contract::items(&pubsub, 2);
    assert_eq!(pubsub.send(&items).await, vec![Verdict::Delivered; 2]);
    assert_eq!(fake.connections(), 1);
    // Paused time flies whenever nobody has anything to do, also while a request is on its way: it has to arrive first.
    let arrived = async {
        while fake.count() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::pause();
    };
    let (verdicts, ()) = tokio::join!(pubsub.send(&items), arrived);
    tokio::time::resume();
    assert!(
        verdicts.iter().all(|verdict| retries(verdict, "no answer in time")),
        "{verdicts:?}"
    );
    assert_eq!(pubsub.send(&items).await, vec![Verdict::Delivered; 2]);
    assert_eq!(fake.connections(), 2);
    let received = fake.received();
    assert_eq!(received.len(), 3);
    assert_eq!(received[1].request, received[2].request);
}

#[tokio::test]
async fn a_lost_answer_is_retried() {
    assert!(retries(&verdict(2, Answer::Reset).await, ""));
}

#[tokio::test]
async fn an_endpoint_that_comes_back_is_found() {
    let fake = FakePubsub::answering([Answer::Taken]);
    let pubsub = pubsub(&fake);
    let items = contract::items(&pubsub, 1);
    assert_eq!(pubsub.send(&items).await, [Verdict::Delivered]);
    let address = fake.address();
    drop(fake);
    assert!(retries(&pubsub.send(&items).await[0], ""));
    let fake = FakePubsub::start(Box::new(|_| Some(Answer::Taken)), None, address);
    assert_eq!(pubsub.send(&items).await, [Verdict::Delivered]);
    assert_eq!(fake.received().len(), 1);
}
