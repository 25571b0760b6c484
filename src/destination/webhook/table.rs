//! What a webhook's answers mean.
//!
//! Nobody but HTTP says what a receiver means with a status. So an answer that can be about the setup blocks, and
//! only one that is about content looks for an event at fault.

use crate::destination::answers::{Answer, Means, On};

const HTTP: &str = "https://www.rfc-editor.org/rfc/rfc9110#section-15";
const ADDITIONAL: &str = "https://www.rfc-editor.org/rfc/rfc6585";

/// What a webhook's answers mean.
pub(in crate::destination) const ANSWERS: &[Answer] = &[
    answer(
        200,
        299,
        Means::Delivered,
        "the receiver has them, whatever its answer's body says",
        HTTP,
    ),
    answer(
        300,
        399,
        Means::Blocked,
        "redirects are not followed: put the final address into `url`",
        HTTP,
    ),
    answer(400, 400, Means::Isolate, "the receiver does not like the content", HTTP),
    answer(401, 401, Means::Blocked, "look at `headers` and `signing_secret`", HTTP),
    answer(
        403,
        403,
        Means::Blocked,
        "look at `headers`, `signing_secret` and who may call the receiver",
        HTTP,
    ),
    answer(
        404,
        405,
        Means::Blocked,
        "nothing takes posts there: look at `url`",
        HTTP,
    ),
    answer(
        407,
        407,
        Means::Blocked,
        "the egress proxy wants credentials: look at `HTTPS_PROXY`",
        HTTP,
    ),
    answer(408, 408, Means::Retry, "the receiver waited too long", HTTP),
    answer(
        409,
        409,
        Means::Retry,
        "the receiver is busy with the same delivery",
        HTTP,
    ),
    answer(
        410,
        410,
        Means::Blocked,
        "the receiver is gone for good: look at `url`",
        HTTP,
    ),
    answer(
        413,
        413,
        Means::Isolate,
        "the request is too large; a smaller `max_request_bytes` saves the tries",
        HTTP,
    ),
    answer(415, 415, Means::Blocked, "look at `format` and `gzip`", HTTP),
    answer(
        421,
        421,
        Means::Blocked,
        "another server answers there: look at `url`",
        HTTP,
    ),
    answer(422, 422, Means::Isolate, "the receiver does not like the content", HTTP),
    answer(
        425,
        425,
        Means::Retry,
        "the receiver wants it again, later",
        "https://www.rfc-editor.org/rfc/rfc8470",
    ),
    answer(
        429,
        429,
        Means::Retry,
        "the receiver is throttling; `Retry-After` is honoured",
        ADDITIONAL,
    ),
    answer(
        402,
        499,
        Means::Blocked,
        "any other 4xx is about the request, not about an event: look at the receiver",
        HTTP,
    ),
    answer(
        500,
        599,
        Means::Retry,
        "the receiver, or what stands before it, has trouble",
        HTTP,
    ),
];

const fn answer(first: u16, last: u16, means: Means, why: &'static str, source: &'static str) -> Answer {
    Answer {
        on: On::Status(first, last),
        means,
        why,
        source,
    }
}
