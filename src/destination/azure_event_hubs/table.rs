//! What Event Hubs' answers mean.
//!
//! The REST reference lists 201, 401 and 500 alone; the others are those of Service Bus, which shares its front end. The
//! codes are words in the text of a 401 or 403.

use crate::destination::answers::{Answer, Means, On};

const SEND: &str = "https://learn.microsoft.com/en-us/rest/api/eventhub/send-batch-events";
const TOKEN: &str = "https://learn.microsoft.com/en-us/azure/event-hubs/authenticate-shared-access-signature";
const SERVICE_BUS: &str = "https://learn.microsoft.com/en-us/rest/api/servicebus/send-message-batch";
const QUOTAS: &str = "https://learn.microsoft.com/en-us/azure/event-hubs/event-hubs-quotas";
const EXCEPTIONS: &str = "https://learn.microsoft.com/en-us/azure/event-hubs/exceptions-dotnet";
const HTTP: &str = "https://www.rfc-editor.org/rfc/rfc9110#section-15";

/// What Event Hubs' answers mean.
pub(in crate::destination) const ANSWERS: &[Answer] = &[
    status(201, 201, Means::Delivered, "the hub has them", SEND),
    status(
        300,
        399,
        Means::Blocked,
        "Event Hubs does not redirect: look at `endpoint` and at what stands before it",
        HTTP,
    ),
    status(
        400,
        400,
        Means::Isolate,
        "the service does not like the content",
        SERVICE_BUS,
    ),
    code(
        "ExpiredToken",
        "the token's time is over before it began: look at this machine's clock",
        TOKEN,
    ),
    code(
        "InvalidSignature",
        "`policy_key` is not a key of the policy in `policy_name`",
        TOKEN,
    ),
    code(
        "40103",
        "`policy_key` is not a key of the policy in `policy_name`",
        TOKEN,
    ),
    code(
        "InvalidAudience",
        "the policy is of another hub: look at `namespace` and `name`",
        TOKEN,
    ),
    status(
        401,
        401,
        Means::Blocked,
        "look at `policy_name` and `policy_key`, whether the policy has the right to send, and at this machine's clock",
        SEND,
    ),
    status(
        403,
        403,
        Means::Blocked,
        "look at the namespace's network rules, at whether it or the hub is disabled, and at its quota",
        SERVICE_BUS,
    ),
    status(
        404,
        404,
        Means::Blocked,
        "there is no such hub: look at `namespace` and `name`",
        SERVICE_BUS,
    ),
    status(405, 405, Means::Blocked, "look at `endpoint`", HTTP),
    status(
        407,
        407,
        Means::Blocked,
        "the egress proxy wants credentials: look at `HTTPS_PROXY`",
        HTTP,
    ),
    status(408, 408, Means::Retry, "the service took too long", EXCEPTIONS),
    status(
        410,
        410,
        Means::Blocked,
        "the hub was deleted: look at `namespace` and `name`",
        SERVICE_BUS,
    ),
    status(
        413,
        413,
        Means::Isolate,
        "the request is too large; in the Basic tier `max_request_bytes` must be 256kB",
        QUOTAS,
    ),
    status(
        415,
        415,
        Means::Blocked,
        "what stands before Event Hubs changed the content type: look at `endpoint`",
        HTTP,
    ),
    status(
        429,
        429,
        Means::Retry,
        "throttled: more throughput units would help",
        EXCEPTIONS,
    ),
    status(
        500,
        599,
        Means::Retry,
        "the service has trouble, or throttles (503)",
        EXCEPTIONS,
    ),
];

const fn status(first: u16, last: u16, means: Means, why: &'static str, source: &'static str) -> Answer {
    Answer {
        on: On::Status(first, last),
        means,
        why,
        source,
    }
}

const fn code(code: &'static str, why: &'static str, source: &'static str) -> Answer {
    Answer {
        on: On::Code(code),
        means: Means::Blocked,
        why,
        source,
    }
}
