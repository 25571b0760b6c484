//! The table of what Kinesis, STS and the credential chain answer.
//!
//! A status is looked up before a code: a proxy's 502 means the same whatever its text. The cases are constants, which
//! `verdict` names where it recognises them.

use crate::destination::answers::{Answer, Means, On};

const PUT_RECORDS: &str = "https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html";
const RESULT_ENTRY: &str = "https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecordsResultEntry.html";
const COMMON_ERRORS: &str = "https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html";
const ASSUME_ROLE: &str = "https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html";
const CREDENTIALS: &str = "https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html";

const fn case(words: &'static str, means: Means, why: &'static str, source: &'static str) -> Answer {
    Answer {
        on: On::Case(words),
        means,
        why,
        source,
    }
}

const fn code(code: &'static str, means: Means, why: &'static str, source: &'static str) -> Answer {
    Answer {
        on: On::Code(code),
        means,
        why,
        source,
    }
}

const fn status(first: u16, last: u16, means: Means, why: &'static str, source: &'static str) -> Answer {
    Answer {
        on: On::Status(first, last),
        means,
        why,
        source,
    }
}

/// The record is stored.
pub(super) const STORED: Answer = case(
    "a record's sequence number",
    Means::Delivered,
    "the record is stored in three zones",
    RESULT_ENTRY,
);

/// The record is not stored.
pub(super) const NOT_STORED: Answer = case(
    "a record's error code: `ProvisionedThroughputExceededException`, `InternalFailure` or any other",
    Means::Retry,
    "the shard is busy: more shards, or `partition_by: event_id`, if it happens all the time",
    RESULT_ENTRY,
);

/// A 200 says nothing of the record.
pub(super) const UNMENTIONED: Answer = case(
    "a record without sequence number, or without any result",
    Means::Retry,
    "only a sequence number is an acknowledgement",
    RESULT_ENTRY,
);

/// The request is over a limit on its size.
pub(super) const TOO_LARGE: Answer = case(
    "`InvalidArgumentException` about the size",
    Means::Isolate,
    "the stream takes less than `max_request_bytes` or `max_record_bytes` say",
    PUT_RECORDS,
);

/// The stream's name or ARN does not validate.
pub(super) const NO_STREAM_NAME: Answer = case(
    "`ValidationException` or `SerializationException` about `streamName` or `streamARN`",
    Means::Blocked,
    "look at `stream_name` and `stream_arn`",
    COMMON_ERRORS,
);

/// Nobody gave credentials.
pub(super) const NO_CREDENTIALS: Answer = case(
    "no credentials are found, or they are set up wrongly",
    Means::Blocked,
    "look at the service account's role (IRSA: AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE; pod identity: \
     AWS_CONTAINER_CREDENTIALS_FULL_URI), the instance's role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    CREDENTIALS,
);

/// STS refuses the role.
pub(super) const ROLE_REFUSED: Answer = case(
    "STS: `AccessDenied`, `InvalidIdentityToken` or `InvalidClientTokenId`",
    Means::Blocked,
    "look at `role_arn`, `external_id` and the role's trust policy, or at the service account's role",
    ASSUME_ROLE,
);

/// The credentials do not come now.
pub(super) const NO_CREDENTIALS_NOW: Answer = case(
    "any other failure to get credentials",
    Means::Retry,
    "the metadata service or STS may answer next time",
    CREDENTIALS,
);

/// An error that nobody knows.
pub(super) const UNKNOWN: Answer = case(
    "any other 3xx or 4xx",
    Means::Blocked,
    "not listed by AWS as passing: look at the settings of this destination",
    COMMON_ERRORS,
);

const NEEDS_WRITE: &str = "the policy has to allow kinesis:PutRecords on the stream; look at `role_arn`";
const NEEDS_KEY: &str = "look at the stream's KMS key: its policy has to allow kms:GenerateDataKey";
const NEEDS_SIGNATURE: &str = "look at the credentials, `region`, and this machine's clock";
const AT_FAULT: &str = "a record is not valid, or over the stream's own limit: see `max_record_bytes`";
const EXPIRED: &str = "the credentials are fetched anew";

/// What Kinesis' answers mean.
pub(in crate::destination) const ANSWERS: &[Answer] = &[
    status(200, 200, Means::PerEvent, "200 does not mean success", PUT_RECORDS),
    STORED,
    NOT_STORED,
    UNMENTIONED,
    status(
        413,
        413,
        Means::Isolate,
        "look at what proxies between here and AWS take",
        COMMON_ERRORS,
    ),
    TOO_LARGE,
    status(408, 408, Means::Retry, "the request took too long", COMMON_ERRORS),
    status(
        429,
        429,
        Means::Retry,
        "after `Retry-After` if it is there",
        COMMON_ERRORS,
    ),
    status(500, 599, Means::Retry, "the service has trouble", COMMON_ERRORS),
    code(
        "ProvisionedThroughputExceededException",
        Means::Retry,
        "the stream is busy: more shards if it happens all the time",
        PUT_RECORDS,
    ),
    code("LimitExceededException", Means::Retry, "too many calls", PUT_RECORDS),
    code("KMSThrottlingException", Means::Retry, "KMS is busy", PUT_RECORDS),
    code("ThrottlingException", Means::Retry, "too many calls", COMMON_ERRORS),
    code("Throttling", Means::Retry, "too many calls", COMMON_ERRORS),
    code(
        "TooManyRequestsException",
        Means::Retry,
        "too many calls",
        COMMON_ERRORS,
    ),
    code(
        "InternalFailure",
        Means::Retry,
        "the service has trouble",
        COMMON_ERRORS,
    ),
    code(
        "InternalFailureException",
        Means::Retry,
        "the service has trouble",
        PUT_RECORDS,
    ),
    code(
        "ServiceUnavailable",
        Means::Retry,
        "the service has trouble",
        COMMON_ERRORS,
    ),
    code("ExpiredToken", Means::Retry, EXPIRED, COMMON_ERRORS),
    code("ExpiredTokenException", Means::Retry, EXPIRED, COMMON_ERRORS),
    code(
        "RequestExpired",
        Means::Retry,
        "look at this machine's clock if it stays",
        COMMON_ERRORS,
    ),
    NO_STREAM_NAME,
    code("ValidationException", Means::Isolate, AT_FAULT, COMMON_ERRORS),
    code("SerializationException", Means::Isolate, AT_FAULT, COMMON_ERRORS),
    code("AccessDeniedException", Means::Blocked, NEEDS_WRITE, PUT_RECORDS),
    code("NotAuthorized", Means::Blocked, NEEDS_WRITE, COMMON_ERRORS),
    code(
        "ResourceNotFoundException",
        Means::Blocked,
        "there is no such stream: look at `stream_name` or `stream_arn`, `region` and the credentials' account",
        PUT_RECORDS,
    ),
    code(
        "InvalidArgumentException",
        Means::Blocked,
        "look at `stream_name` and `stream_arn`",
        PUT_RECORDS,
    ),
    code(
        "UnrecognizedClientException",
        Means::Blocked,
        NEEDS_SIGNATURE,
        COMMON_ERRORS,
    ),
    code("InvalidClientTokenId", Means::Blocked, NEEDS_SIGNATURE, COMMON_ERRORS),
    code(
        "InvalidSignatureException",
        Means::Blocked,
        NEEDS_SIGNATURE,
        COMMON_ERRORS,
    ),
    code("IncompleteSignature", Means::Blocked, NEEDS_SIGNATURE, COMMON_ERRORS),
    code(
        "MissingAuthenticationToken",
        Means::Blocked,
        NEEDS_SIGNATURE,
        COMMON_ERRORS,
    ),
    code(
        "OptInRequired",
        Means::Blocked,
        "the account does not have Kinesis",
        COMMON_ERRORS,
    ),
    code("KMSAccessDeniedException", Means::Blocked, NEEDS_KEY, PUT_RECORDS),
    code("KMSDisabledException", Means::Blocked, NEEDS_KEY, PUT_RECORDS),
    code("KMSInvalidStateException", Means::Blocked, NEEDS_KEY, PUT_RECORDS),
    code("KMSNotFoundException", Means::Blocked, NEEDS_KEY, PUT_RECORDS),
    code("KMSOptInRequired", Means::Blocked, NEEDS_KEY, PUT_RECORDS),
    UNKNOWN,
    NO_CREDENTIALS,
    ROLE_REFUSED,
    NO_CREDENTIALS_NOW,
];
