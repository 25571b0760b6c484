//! What Kinesis' answers mean for each record.
//!
//! Promises: only a sequence number is an acknowledgement; no answer that could be about the stream, the role or the
//! key makes a dead letter; a reason never holds an event's data (validation messages quote the value, so of those
//! only the code is kept).

use std::error::Error;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::types::PutRecordsResultEntry;

use crate::destination::Verdict;
use crate::destination::answers::Answer;

/// What Kinesis' answers mean.
pub(in crate::destination) const ANSWERS: &[Answer] = &[];

/// Errors of the request that pass by themselves, beside all 5xx (AWS: PutRecords, "Common Errors").
const PASSING: [&str; 12] = [
    "ProvisionedThroughputExceededException",
    "LimitExceededException",
    "KMSThrottlingException",
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
    "InternalFailure",
    "InternalFailureException",
    "ServiceUnavailable",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
];

/// Errors that say "this request is not valid" without saying which record; also how a record over the stream's own
/// `MaxRecordSizeInKiB` is refused.
const INVALID: [&str; 2] = ["ValidationException", "SerializationException"];

/// Returns the verdicts for `items` records from what a 200 says of each.
pub(super) fn of_records(records: &[PutRecordsResultEntry], items: usize) -> Vec<Verdict> {
    (0..items)
        .map(|item| match records.get(item) {
            None => retry("answer has no result for this record", None),
            Some(record) => match (record.error_code(), record.sequence_number()) {
                (Some(code), _) => retry(code, None),
                (None, Some(number)) if !number.is_empty() => Verdict::Delivered,
                (None, _) => retry("answer has no sequence number for this record", None),
            },
        })
        .collect()
}

/// Returns the verdict for every record of a request of `items` records that failed as a whole.
pub(super) fn of_error<E>(error: &SdkError<E, HttpResponse>, items: usize) -> Verdict
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let Some(response) = error.raw_response().filter(|response| !response.status().is_success()) else {
        return if lacks_credentials(error) {
            Verdict::Blocked { why: describe(error) }
        } else {
            retry(&describe(error), None)
        };
    };
    let status = response.status().as_u16();
    let (code, message) = (error.code().unwrap_or_default(), error.message().unwrap_or_default());
    if status == 413 || (code == "InvalidArgumentException" && is_about_size(message)) {
        return Verdict::Split;
    }
    if INVALID.contains(&code) && !is_about_the_stream(message) {
        return match items {
            1 => Verdict::Reject { why: code.to_owned() },
            _ => Verdict::Split,
        };
    }
    if status >= 500 || status == 429 || status == 408 || PASSING.contains(&code) {
        let after = response
            .headers()
            .get("retry-after")
            .and_then(|after| after.parse().ok());
        return retry(&describe(error), after.map(Duration::from_secs));
    }
    Verdict::Blocked { why: describe(error) }
}

/// Returns what to tell people of an error: AWS's code and, where it is about the configuration, its message.
pub(super) fn describe<E>(error: &SdkError<E, HttpResponse>) -> String
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    if let Some(code) = error.code() {
        let quotes = INVALID.contains(&code) && !is_about_the_stream(error.message().unwrap_or_default());
        return match error.message() {
            Some(message) if !quotes => format!("{code}: {}", short(message)),
            _ => code.to_owned(),
        };
    }
    match error {
        SdkError::TimeoutError(_) => "no answer in time".to_owned(),
        SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) => short(&causes(error)),
        _ => match error.raw_response() {
            Some(response) => format!("answer {} is not one of Kinesis", response.status().as_u16()),
            None => "no answer".to_owned(),
        },
    }
}

pub(super) fn retry(why: &str, after: Option<Duration>) -> Verdict {
    Verdict::Retry {
        after,
        why: why.to_owned(),
    }
}

fn is_about_size(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["exceed", "too large", "larger than"]
        .iter()
        .any(|word| message.contains(word))
}

fn is_about_the_stream(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("'streamname'") || message.contains("'streamarn'")
}

fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        match error.downcast_ref::<CredentialsError>() {
            Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => return true,
            Some(refused) => {
                // STS refuses the role; anything else about it may pass.
                let text = causes(refused);
                return ["AccessDenied", "InvalidIdentityToken", "InvalidClientTokenId"]
                    .iter()
                    .any(|code| text.contains(code));
            }
            None => source = error.source(),
        }
    }
    false
}

/// Returns an error that never reached Kinesis with its causes: addresses and credentials, never events.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Returns one line of at most 300 characters; the credential chain's errors are lists.
fn short(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}
