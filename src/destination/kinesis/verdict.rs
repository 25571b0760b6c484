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

use super::answers::{
    ANSWERS, NO_CREDENTIALS, NO_CREDENTIALS_NOW, NO_STREAM_NAME, NOT_STORED, ROLE_REFUSED, STORED, TOO_LARGE, UNKNOWN,
    UNMENTIONED,
};
use crate::destination::Verdict;
use crate::destination::answers::{Answer, Means, of_code, of_status};
use crate::web::{all_causes, causes, short};

/// Codes whose message can quote an event's values.
const INVALID: [&str; 2] = ["ValidationException", "SerializationException"];

/// Returns the verdicts for `items` records from what a 200 says of each.
pub(super) fn of_records(records: &[PutRecordsResultEntry], items: usize) -> Vec<Verdict> {
    (0..items)
        .map(|item| {
            let (answer, why) = match records.get(item) {
                None => (&UNMENTIONED, "answer has no result for this record"),
                Some(record) => match (record.error_code(), record.sequence_number()) {
                    (Some(code), _) => (&NOT_STORED, code),
                    (None, Some(number)) if !number.is_empty() => (&STORED, ""),
                    (None, _) => (&UNMENTIONED, "answer has no sequence number for this record"),
                },
            };
            answer.means.verdict(1, why.to_owned(), None)
        })
        .collect()
}

/// Returns the verdict for every record of a request of `items` records that failed as a whole.
pub(super) fn of_error<E>(error: &SdkError<E, HttpResponse>, items: usize) -> Verdict
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let response = error.raw_response().filter(|response| !response.status().is_success());
    let answer = match response {
        Some(response) => of_response(
            response.status().as_u16(),
            error.code().unwrap_or_default(),
            error.message().unwrap_or_default(),
        ),
        None => match of_credentials(error) {
            Some(answer) => answer,
            // Lost on the way, or not one of Kinesis: no answer.
            None => return retry(&describe(error)),
        },
    };
    let why = match answer.means {
        // What to do is only asked of people where something has to be done.
        Means::Blocked | Means::Isolate => format!("{}; {}", describe(error), answer.why),
        _ => describe(error),
    };
    let after = response.and_then(|response| response.headers().get("retry-after")?.parse().ok());
    answer.means.verdict(items, why, after.map(Duration::from_secs))
}

/// Returns what an answer other than 2xx means.
pub(super) fn of_response(status: u16, code: &str, message: &str) -> &'static Answer {
    if code == "InvalidArgumentException" && is_about_size(message) {
        return &TOO_LARGE;
    }
    if INVALID.contains(&code) && is_about_the_stream(message) {
        return &NO_STREAM_NAME;
    }
    of_status(ANSWERS, status)
        .or_else(|| of_code(ANSWERS, code))
        .unwrap_or(&UNKNOWN)
}

/// Returns what it means that a request was not sent for want of credentials; `None` if that is not why.
pub(super) fn of_credentials(error: &(dyn Error + 'static)) -> Option<&'static Answer> {
    let mut source = Some(error);
    while let Some(error) = source {
        match error.downcast_ref::<CredentialsError>() {
            Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => {
                return Some(&NO_CREDENTIALS);
            }
            Some(failed) => {
                let text = all_causes(failed);
                let refused = ["AccessDenied", "InvalidIdentityToken", "InvalidClientTokenId"];
                let refused = refused.iter().any(|code| text.contains(code));
                return Some(if refused { &ROLE_REFUSED } else { &NO_CREDENTIALS_NOW });
            }
            None => source = error.source(),
        }
    }
    None
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
        SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) => causes(error),
        _ => match error.raw_response() {
            Some(response) => format!("answer {} is not one of Kinesis", response.status().as_u16()),
            None => "no answer".to_owned(),
        },
    }
}

pub(super) fn retry(why: &str) -> Verdict {
    Verdict::Retry {
        after: None,
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
