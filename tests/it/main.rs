//! flagtap from outside: the real binary between real SDK traffic and a fake LaunchDarkly.
//!
//! One binary for all integration tests, so that they link once. `docs/testing.md` says what is proved where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod admin_api;
mod catalogue;
mod chosen;
mod commands;
mod corruption;
mod crash;
mod disk_full;
mod docs;
mod egress;
mod ending;
mod event_hubs;
mod exactly_once;
mod form;
mod harness;
mod hostile;
mod image;
mod import;
mod injector;
mod injector_tls;
mod kinds;
mod kinesis;
mod kinesis_identity;
mod layering;
mod limits;
mod logging;
mod loss;
mod mappings;
mod mparticle;
mod neighbours;
mod official_clients;
mod orphan;
mod passthrough;
mod power_cut;
#[cfg(feature = "pubsub")]
mod pubsub;
mod queue_tools;
mod redaction;
mod reload;
mod replay;
mod sdks;
mod segment;
mod selection;
mod setting_up;
mod settings;
mod shutdown;
mod sidecar;
mod stopping;
mod support;
mod tls;
mod upstream_tls;
mod upstream_trouble;
mod webhook;
