//! flagtap: LaunchDarkly Data Export in the user's own cluster.
//!
//! A transparent relay stands between LaunchDarkly SDKs and the events service. Every request passes through
//! unchanged; the events that are to be exported are appended to a durable queue before the SDK gets its answer,
//! and one drain task per destination delivers them until each is acknowledged or kept as a dead letter.
//!
//! # The path of one batch
//!
//! ```text
//! proxy::service    capture the body, forward the same bytes, decide on the answer's head
//! platform          which environment, which schema, which events       (bytes -> Batch)
//! export            which of them are exported                           (Batch -> Record)
//! queue             durable when `append` returns                        (Record -> Position)
//! drain             next -> encode -> pack -> send -> verdict -> settle   (Record -> destination)
//! ```
//!
//! Modules are levels without cycles; `ARCHITECTURE.md` has the table and `tests/it/layering.rs` holds it.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod admin;
pub mod app;
pub mod attempts;
pub mod backoff;
pub mod catalogue;
pub mod cli;
pub mod config;
pub mod coverage;
pub mod destination;
pub mod drain;
pub mod event;
pub mod export;
pub mod glob;
pub mod inflate;
pub mod injector;
pub mod kept;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod notices;
pub mod overrides;
pub mod platform;
pub mod problems;
pub mod proxy;
pub mod queue;
pub mod record;
pub mod secret;
pub mod section;
pub mod shutdown;
pub mod trust;
pub mod units;
pub mod web;
