//! What a look at the stream says about delivery.
//!
//! `DescribeStreamSummary` is the cheapest call that names the stream. Delivery does not need it, so a policy that
//! denies it is no fault: AWS then has at least recognised who calls.

use std::error::Error;

use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::types::{EncryptionType, StreamDescriptionSummary, StreamStatus};

use super::verdict::{describe, of_credentials, of_response};
use super::{ProbeError, Settings};
use crate::destination::answers::Means;

/// Says what the stream's summary means.
pub(super) fn of_summary(
    summary: Option<&StreamDescriptionSummary>,
    settings: &Settings,
) -> Result<String, ProbeError> {
    let Some(summary) = summary else {
        return Err(ProbeError {
            why: "the answer is not one of Kinesis".to_owned(),
            remedy: "look at `endpoint` and at proxies between here and AWS".to_owned(),
        });
    };
    let status = summary.stream_status();
    if matches!(status, StreamStatus::Creating | StreamStatus::Deleting) {
        return Err(ProbeError {
            why: format!("the stream is {status}"),
            remedy: "wait until it is ACTIVE, or look at `stream_name`".to_owned(),
        });
    }
    let mut found = format!("the stream is {status}, {} open shards", summary.open_shard_count());
    if summary.encryption_type() == Some(&EncryptionType::Kms) {
        found.push_str("; it is encrypted, so writing needs kms:GenerateDataKey too");
    }
    let takes = summary
        .max_record_size_in_kib()
        .and_then(|kib| usize::try_from(kib).ok());
    if let Some(kib) = takes.filter(|kib| kib * 1024 < settings.max_record_bytes) {
        found.push_str(&format!(
            "; it takes records of up to {kib}KiB, less than `max_record_bytes`"
        ));
    }
    found.push_str("; whether kinesis:PutRecords is allowed only a delivery tells");
    Ok(found)
}

/// Says what it means that there is no summary.
pub(super) fn of_error<E>(error: &SdkError<E, HttpResponse>) -> Result<String, ProbeError>
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let (code, message) = (error.code().unwrap_or_default(), error.message().unwrap_or_default());
    let remedy = match (error.raw_response(), of_credentials(error)) {
        (Some(_), _) if code == "AccessDeniedException" => {
            return Ok(
                "AWS knows the credentials, which may not call kinesis:DescribeStreamSummary: delivery can work \
                 without; to have the stream looked at, allow it"
                    .to_owned(),
            );
        }
        (Some(response), _) => {
            let answer = of_response(response.status().as_u16(), code, message);
            match answer.means {
                Means::Blocked => answer.why,
                _ => "this may pass: try again, and look at `endpoint` if it does not",
            }
        }
        (None, Some(answer)) => answer.why,
        (None, None) => {
            "look at `region` and `endpoint`, and whether this machine may connect to AWS: DNS, network policy, \
             VPC endpoint, HTTPS_PROXY"
        }
    };
    Err(ProbeError {
        why: describe(error),
        remedy: remedy.to_owned(),
    })
}
