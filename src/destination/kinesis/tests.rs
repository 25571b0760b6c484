use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_sdk_kinesis::config::SharedCredentialsProvider;

use super::super::{Destination, Verdict, contract};
use super::fake::{Answer, FakeKinesis};
use super::{Kinesis, PartitionBy, Settings, Stream, partition_key};

// Nothing here looks at the environment or asks a metadata service.
fn kinesis_as(credentials: impl ProvideCredentials + 'static, settings: &Settings) -> Kinesis {
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(settings.region.clone()))
        .build();
    Kinesis::with(&config, Some(SharedCredentialsProvider::new(credentials)), settings)
}

fn kinesis(fake: &FakeKinesis, stream: Stream) -> Kinesis {
    let settings = Settings {
        endpoint: Some(fake.url.clone()),
        ..Settings::to("eu-west-1", stream)
    };
    kinesis_as(Credentials::new("id", "secret", None, None, "test"), &settings)
}

fn by_name() -> Stream {
    Stream::Name("ld-events".to_owned())
}

async fn verdicts(count: usize, answer: Answer) -> Vec<Verdict> {
    let fake = FakeKinesis::answering([answer]).await;
    let kinesis = kinesis(&fake, by_name());
    let verdicts = kinesis.send(&contract::items(&kinesis, count)).await;
    fake.received();
    assert_eq!(verdicts.len(), count);
    verdicts
}

async fn verdict(count: usize, answer: Answer) -> Verdict {
    let verdicts = verdicts(count, answer).await;
    assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
    verdicts[0].clone()
}

fn retries(verdict: &Verdict, because: &str) -> bool {
    matches!(verdict, Verdict::Retry { why, .. } if why.contains(because))
}

fn is_blocked(verdict: &Verdict, because: &str) -> bool {
    matches!(verdict, Verdict::Blocked { why } if why.contains(because))
}

#[tokio::test]
async fn keeps_the_contract() {
    let fake = FakeKinesis::answering(vec![Answer::AllTaken; 7]).await;
    contract::holds(&kinesis(&fake, by_name())).await;
    assert_eq!(fake.received().len(), 7);
}

#[tokio::test]
async fn a_service_that_hangs_ends_with_the_request() {
    let fake = FakeKinesis::answering([Answer::Hang]).await;
    contract::ends_with_the_request(&kinesis(&fake, by_name())).await;
}

#[tokio::test]
async fn a_record_is_the_export_record_under_its_context_key() {
    let fake = FakeKinesis::answering([Answer::AllTaken, Answer::AllTaken]).await;
    let kinesis = kinesis(&fake, by_name());
    let items = contract::items(&kinesis, 2);
    kinesis.send(&items).await;
    let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/ld-events";
    let by_arn = self::kinesis(&fake, Stream::Arn(arn.to_owned()));
    by_arn.send(&items).await;
    let received = fake.received();
    assert_eq!(received[0].target, "Kinesis_20131202.PutRecords");
    assert_eq!(received[0].body["StreamName"], "ld-events");
    assert_eq!(received[1].body["StreamARN"], arn);
    let (data, key) = &received[0].records[0];
    assert_eq!(data.as_bytes(), items[0].body);
    assert!(
        data.starts_with(r#"{"project":"5744c96707c9900708000004","environment":"#),
        "{data}"
    );
    assert!(data.ends_with(r#","version":2}"#), "{data}");
    assert_eq!(key, "ann");
    assert_eq!(received[0].records[1].1, items[1].id, "a summary has no key");
}

#[test]
fn a_partition_key_is_kept_hashed_if_too_long_and_made_up_from_the_id_if_there_is_none() {
    let longest = "é".repeat(256);
    assert_eq!(partition_key(longest.clone(), "id"), longest);
    let hashed = partition_key(format!("{longest}x"), "id");
    assert_eq!(hashed.len(), 64);
    assert_eq!(hashed, partition_key(format!("{longest}x"), "other id"));
    assert_eq!(partition_key(String::new(), "id"), "id");
}

#[tokio::test]
async fn partition_by_event_id_and_newline_are_settings() {
    let fake = FakeKinesis::answering([]).await;
    let mut kinesis = kinesis(&fake, by_name());
    kinesis.settings.partition_by = PartitionBy::EventId;
    kinesis.settings.newline = true;
    let item = contract::items(&kinesis, 1).remove(0);
    assert_eq!(item.key, item.id);
    assert!(item.body.ends_with(b"}\n"));
    assert_eq!(item.size, item.body.len() + 24);
}

#[tokio::test]
async fn a_200_with_failed_records_delivers_only_the_others() {
    let codes = vec![
        None,
        Some("ProvisionedThroughputExceededException"),
        None,
        Some("InternalFailure"),
    ];
    let verdicts = verdicts(4, Answer::Records(codes)).await;
    assert_eq!(verdicts[0], Verdict::Delivered);
    assert!(retries(&verdicts[1], "ProvisionedThroughputExceededException"));
    assert_eq!(verdicts[2], Verdict::Delivered);
    assert!(retries(&verdicts[3], "InternalFailure"));
}

#[tokio::test]
async fn fewer_results_than_records_delivers_none_that_is_missing() {
    let verdicts = verdicts(3, Answer::Records(vec![None])).await;
    assert_eq!(verdicts[0], Verdict::Delivered);
    assert!(retries(&verdicts[1], "no result") && retries(&verdicts[2], "no result"));
}

#[tokio::test]
async fn a_200_that_is_no_answer_of_kinesis_delivers_nothing() {
    for text in [
        "",
        "{}",
        "<html>login</html>",
        r#"{"Records":[{},{}]}"#,
        r#"{"Records":[{"SequenceNumber":""}]}"#,
    ] {
        let verdicts = verdicts(2, Answer::Text(200, text)).await;
        assert!(
            verdicts.iter().all(|verdict| retries(verdict, "")),
            "{text}: {verdicts:?}"
        );
    }
}

#[tokio::test]
async fn what_passes_by_itself_is_retried() {
    for answer in [
        Answer::Error(400, "ProvisionedThroughputExceededException", "slow down"),
        Answer::Error(400, "LimitExceededException", "slow down"),
        Answer::Error(400, "KMSThrottlingException", "slow down"),
        Answer::Error(400, "ThrottlingException", "slow down"),
        Answer::Error(400, "ExpiredTokenException", "the security token is expired"),
        Answer::Error(500, "InternalFailure", ""),
        Answer::Text(500, ""),
        Answer::Text(502, "<html>bad gateway</html>"),
        Answer::Text(503, "{}"),
        Answer::Text(429, "{}"),
        Answer::Drop,
    ] {
        let verdict = verdict(2, answer).await;
        assert!(retries(&verdict, ""), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_throttles_own_wish_is_passed_on() {
    let verdict = verdict(2, Answer::RetryAfter(7)).await;
    assert!(matches!(verdict, Verdict::Retry { after: Some(after), .. } if after == Duration::from_secs(7)));
}

#[tokio::test]
async fn what_somebody_has_to_correct_is_blocked_and_says_what() {
    for (status, code) in [
        (400, "AccessDeniedException"),
        (400, "ResourceNotFoundException"),
        (400, "InvalidArgumentException"),
        (400, "UnrecognizedClientException"),
        (403, "InvalidSignatureException"),
        (400, "KMSAccessDeniedException"),
        (400, "KMSDisabledException"),
        (400, "KMSInvalidStateException"),
        (400, "KMSNotFoundException"),
        (400, "KMSOptInRequired"),
        (400, "SomethingNewException"),
    ] {
        for count in [1, 2] {
            let verdict = verdict(count, Answer::Error(status, code, "stream ld-events is not yours")).await;
            assert!(
                is_blocked(&verdict, &format!("{code}: stream ld-events is not yours")),
                "{verdict:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_stream_that_does_not_validate_is_no_reason_to_give_up_events() {
    let message = "1 validation error detected: Value 'a b' at 'streamName' failed to satisfy constraint";
    for count in [1, 2] {
        let verdict = verdict(count, Answer::Error(400, "ValidationException", message)).await;
        assert!(is_blocked(&verdict, "streamName"), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_record_that_does_not_validate_is_isolated_and_its_value_not_repeated() {
    let message = "1 validation error detected: Value 'ann@example.com' at 'records.1.member.partitionKey' failed";
    let invalid = || Answer::Error(400, "ValidationException", message);
    assert_eq!(verdict(2, invalid()).await, Verdict::Split);
    let why = "ValidationException".to_owned();
    assert_eq!(verdict(1, invalid()).await, Verdict::Reject { why });
}

#[tokio::test]
async fn a_request_too_large_is_split() {
    for answer in [
        Answer::Error(400, "InvalidArgumentException", "Records size exceeds 5 MB limit"),
        Answer::Text(413, ""),
    ] {
        assert_eq!(verdict(2, answer).await, Verdict::Split);
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_is_retried() {
    let fake = FakeKinesis::answering([]).await;
    let kinesis = kinesis(&fake, by_name());
    drop(fake);
    let verdicts = kinesis.send(&contract::items(&kinesis, 1)).await;
    assert!(retries(&verdicts[0], "dispatch failure"), "{verdicts:?}");
}

#[derive(Debug)]
struct NoCredentials;

impl ProvideCredentials for NoCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let result: provider::Result = Err(CredentialsError::not_loaded("nobody is logged in"));
        future::ProvideCredentials::ready(result)
    }
}

#[tokio::test]
async fn no_credentials_is_a_refused_configuration() {
    let settings = Settings {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        ..Settings::to("eu-west-1", by_name())
    };
    let kinesis = kinesis_as(NoCredentials, &settings);
    let verdicts = kinesis.send(&contract::items(&kinesis, 1)).await;
    assert!(is_blocked(&verdicts[0], "nobody is logged in"), "{verdicts:?}");
}

#[tokio::test]
async fn a_probe_fails_for_a_missing_stream_and_passes_for_a_policy_that_only_allows_to_write() {
    let fake = FakeKinesis::answering([
        Answer::Error(400, "ResourceNotFoundException", "stream ld-events not found"),
        Answer::Error(
            400,
            "AccessDeniedException",
            "not authorized to perform kinesis:DescribeStreamSummary",
        ),
    ])
    .await;
    let kinesis = kinesis(&fake, by_name());
    let error = kinesis.probe().await.unwrap_err();
    assert!(error.why.contains("not found"), "{error}");
    assert!(kinesis.probe().await.is_ok());
    let received = fake.received();
    assert!(
        received
            .iter()
            .all(|received| received.target == "Kinesis_20131202.DescribeStreamSummary")
    );
}
