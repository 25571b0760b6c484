use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_sdk_kinesis::config::SharedCredentialsProvider;

use super::super::{Destination, ProbeError, Verdict, answers, contract};
use super::fake::{Answer, FakeKinesis};
use super::{ANSWERS, Kinesis, PartitionBy, Settings, Stream, partition_key};

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
    let mut script = vec![Answer::AllTaken; 7];
    // After three requests of different sizes and one that is sent twice, the probe.
    script[5] = Answer::Summary("ACTIVE", "NONE", 1024);
    let fake = FakeKinesis::answering(script).await;
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
    let Verdict::Reject { why } = verdict(1, invalid()).await else {
        panic!("not rejected")
    };
    assert!(why.starts_with("ValidationException; "), "{why}");
    assert!(!why.contains("ann@example.com"), "{why}");
}

#[tokio::test]
async fn a_request_too_large_is_split() {
    for answer in [
        Answer::Error(400, "InvalidArgumentException", "Records size exceeds 5 MB limit"),
        Answer::Text(413, ""),
    ] {
        assert_eq!(verdict(2, answer.clone()).await, Verdict::Split);
        let alone = verdict(1, answer).await;
        assert!(matches!(alone, Verdict::Reject { .. }), "{alone:?}");
    }
}

#[tokio::test]
async fn a_proxys_status_counts_more_than_its_text() {
    let verdict = verdict(1, Answer::Error(503, "AccessDeniedException", "")).await;
    assert!(retries(&verdict, "AccessDeniedException"), "{verdict:?}");
}

#[test]
fn every_code_is_looked_up_once_and_no_status_hides_the_errors_of_kinesis() {
    let lines = || ANSWERS.iter().map(|answer| answer.on);
    for on in lines() {
        assert_eq!(lines().filter(|other| *other == on).count(), 1, "{on:?} is there twice");
    }
    // Kinesis' own errors come with 400 and 403; a line for those would answer before their codes.
    assert!(answers::of_status(ANSWERS, 400).is_none() && answers::of_status(ANSWERS, 403).is_none());
    assert!(
        ANSWERS
            .iter()
            .all(|answer| answer.source.starts_with("https://docs.aws.amazon.com/"))
    );
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

async fn probed(answer: Answer) -> Result<String, ProbeError> {
    let fake = FakeKinesis::answering([answer]).await;
    let found = kinesis(&fake, by_name()).probe().await;
    assert_eq!(fake.received()[0].target, "Kinesis_20131202.DescribeStreamSummary");
    found
}

#[tokio::test]
async fn a_probe_passes_for_a_stream_and_for_a_policy_that_only_allows_to_write() {
    let found = probed(Answer::Summary("ACTIVE", "NONE", 1024)).await.unwrap();
    assert!(
        found.contains("ACTIVE, 3 open shards") && !found.contains("kms:"),
        "{found}"
    );
    let encrypted = probed(Answer::Summary("UPDATING", "KMS", 512)).await.unwrap();
    assert!(
        encrypted.contains("kms:GenerateDataKey") && encrypted.contains("512KiB"),
        "{encrypted}"
    );
    let message = "not authorized to perform kinesis:DescribeStreamSummary";
    let denied = probed(Answer::Error(400, "AccessDeniedException", message))
        .await
        .unwrap();
    assert!(
        denied.contains("kinesis:DescribeStreamSummary") && denied.contains("delivery can work"),
        "{denied}"
    );
}

#[tokio::test]
async fn a_probe_says_what_to_do_about_what_cannot_work() {
    for (answer, why, remedy) in [
        (
            Answer::Error(400, "ResourceNotFoundException", "stream ld-events not found"),
            "not found",
            "`region`",
        ),
        (
            Answer::Error(403, "InvalidSignatureException", "signature expired"),
            "signature expired",
            "clock",
        ),
        (Answer::Summary("DELETING", "NONE", 1024), "DELETING", "`stream_name`"),
        (Answer::Text(503, ""), "503", "try again"),
        (Answer::Text(200, "<html>login</html>"), "", "`endpoint`"),
        (Answer::Drop, "dispatch failure", "network policy"),
    ] {
        let error = probed(answer).await.unwrap_err();
        assert!(error.why.contains(why), "{error:?}");
        assert!(error.remedy.contains(remedy), "{error:?}");
    }
    let settings = Settings {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        ..Settings::to("eu-west-1", by_name())
    };
    let error = kinesis_as(NoCredentials, &settings).probe().await.unwrap_err();
    assert!(error.why.contains("nobody is logged in"), "{error:?}");
    for place in ["IRSA", "pod identity", "instance"] {
        assert!(error.remedy.contains(place), "{error:?}");
    }
}
