//! What Pub/Sub's answers mean for the messages of a request.
//!
//! A publish request is all or nothing: the messages of one RPC share its answer, and only a message id is an
//! acknowledgement. Promises: no answer that could be about the topic, the project or the account makes a dead letter;
//! a reason never holds an event's data (an INVALID_ARGUMENT can quote keys and attributes, so its text is not kept).

use std::time::Duration;

use google_cloud_gax::error::Error;
use google_cloud_gax::error::rpc::{Status, StatusDetails};
use google_cloud_pubsub::error::PublishError;

use super::connection::{Trouble, told};
use crate::destination::Verdict;
use crate::destination::answers::{Answer, Means, On, of_code};
use crate::web::short;

/// Why a message is sent again that nobody answered for.
pub(super) const NO_ANSWER: &str = "no answer in time";

const CODES: &str = "https://cloud.google.com/pubsub/docs/reference/error-codes";
const GRPC: &str = "https://grpc.io/docs/guides/status-codes/";

/// The size of a whole request is refused by gRPC itself, with a code that else means a quota.
const TOO_LARGE: Answer = Answer {
    on: On::Case("`RESOURCE_EXHAUSTED` for a message larger than the maximum"),
    means: Means::Isolate,
    why: "the request is larger than the endpoint takes: lower `max_request_bytes`",
    source: GRPC,
};

/// All events would be refused alike.
const NOT_THE_EVENT: Answer = Answer {
    on: On::Case("`INVALID_ARGUMENT` that names the topic, or comes from what all Google APIs share"),
    means: Means::Blocked,
    why: "look at `project`, `topic` and the credentials",
    source: CODES,
};

/// What Pub/Sub's answers mean.
pub(in crate::destination) const ANSWERS: &[Answer] = &[
    row(
        "OK",
        Means::Delivered,
        "each message has an id; one without is sent again",
        CODES,
    ),
    row("ABORTED", Means::Retry, "passes by itself", CODES),
    row("CANCELLED", Means::Retry, "the call was broken off", CODES),
    row(
        "DEADLINE_EXCEEDED",
        Means::Retry,
        "no answer in time; the message may be there twice",
        CODES,
    ),
    row("INTERNAL", Means::Retry, "passes by itself", CODES),
    row(
        "RESOURCE_EXHAUSTED",
        Means::Retry,
        "over a quota of the project: raise it if this stays",
        CODES,
    ),
    row("UNAVAILABLE", Means::Retry, "passes by itself", CODES),
    row("UNKNOWN", Means::Retry, "passes by itself", CODES),
    row(
        "UNAUTHENTICATED",
        Means::Blocked,
        "the credentials are not valid: look at `credentials_file`, the workload identity and the clock",
        CODES,
    ),
    row(
        "PERMISSION_DENIED",
        Means::Blocked,
        "grant the account roles/pubsub.publisher on the topic, and enable the Pub/Sub API in the project",
        CODES,
    ),
    row(
        "NOT_FOUND",
        Means::Blocked,
        "there is no such topic: look at `project` and `topic`",
        CODES,
    ),
    row(
        "FAILED_PRECONDITION",
        Means::Blocked,
        "the topic cannot take messages here: look at its storage policy, its encryption key and `endpoint`",
        CODES,
    ),
    row(
        "UNIMPLEMENTED",
        Means::Blocked,
        "this is not Pub/Sub: look at `endpoint`",
        GRPC,
    ),
    row(
        "INVALID_ARGUMENT",
        Means::Isolate,
        "refused for a message's content: too large, or not of the topic's schema",
        CODES,
    ),
    TOO_LARGE,
    NOT_THE_EVENT,
];

const fn row(code: &'static str, means: Means, why: &'static str, source: &'static str) -> Answer {
    Answer {
        on: On::Code(code),
        means,
        why,
        source,
    }
}

/// Returns the verdict for each of the `messages` messages of an RPC from what became of it.
pub(super) fn of_message(answer: &Result<String, PublishError>, messages: usize) -> Verdict {
    match answer {
        Ok(id) if !id.is_empty() => Verdict::Delivered,
        Ok(_) => retry("answer has no id for this message"),
        Err(PublishError::Rpc(error)) => of_rpc(error, messages),
        // Nobody is left who could answer for the message: the RPC succeeded with fewer ids than messages.
        Err(PublishError::Shutdown) => retry("answer has no id for this message"),
        Err(error) => retry(&told(error)),
    }
}

/// Returns the verdict where no call could be made.
pub(super) fn of_trouble(trouble: Trouble) -> Verdict {
    match trouble {
        Trouble::Passing(why) => Verdict::Retry { after: None, why },
        Trouble::Setting(why) => Verdict::Blocked { why },
    }
}

pub(super) fn retry(why: &str) -> Verdict {
    Verdict::Retry {
        after: None,
        why: why.to_owned(),
    }
}

fn of_rpc(error: &Error, messages: usize) -> Verdict {
    let Some(status) = error.status() else {
        return if error.is_timeout() {
            retry(NO_ANSWER)
        } else {
            retry(&told(error))
        };
    };
    let code = status.code.name();
    let Some(answer) = special(status).or_else(|| of_code(ANSWERS, code)) else {
        return retry(&format!("{code}: {}", short(&status.message)));
    };
    let why = match answer.means {
        Means::Isolate => format!("{code}: {}", answer.why),
        _ => format!("{code}: {} ({})", short(&status.message), answer.why),
    };
    answer.means.verdict(messages, why, wish(status))
}

fn special(status: &Status) -> Option<&'static Answer> {
    let message = status.message.to_ascii_lowercase();
    match status.code.name() {
        "RESOURCE_EXHAUSTED" if message.contains("larger than max") => Some(&TOO_LARGE),
        "INVALID_ARGUMENT"
            if is_of_all_apis(status) || message.contains("resource name") || message.contains("[topics] name") =>
        {
            Some(&NOT_THE_EVENT)
        }
        _ => None,
    }
}

// Errors about the project, the API key or the quota come from the front that all of Google's APIs share
// (<https://google.aip.dev/193>: the domain is that of the service which made the error).
fn is_of_all_apis(status: &Status) -> bool {
    status
        .details
        .iter()
        .any(|detail| matches!(detail, StatusDetails::ErrorInfo(info) if info.domain == "googleapis.com"))
}

// `google.rpc.RetryInfo` (<https://google.aip.dev/194>).
fn wish(status: &Status) -> Option<Duration> {
    status.details.iter().find_map(|detail| match detail {
        StatusDetails::RetryInfo(info) => Duration::try_from(info.retry_delay?).ok(),
        _ => None,
    })
}
