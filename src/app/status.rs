//! The `/status` document: is the tee on, what waits, which destination is in trouble and why.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::app::live::{Delivery, Shown};
use crate::config::{Config, Environment};
use crate::drain::{self, Breaker, DrainStatus, State};
use crate::platform::Support;
use crate::platform::census::Counted;
use crate::proxy::forward::{Known, Trouble};
use crate::queue::{ConsumerStats, PartStats, SetAside, Stats};
use crate::secret::Secret;

/// Parts set aside that are listed: with more there is nothing to learn from a list.
const LISTED: usize = 100;

/// Returns the status as JSON: names and numbers, never event data.
pub(super) fn document(stats: &Stats, shown: &Shown, upstream: &Known, catalogue: Option<Value>) -> Value {
    let deliveries = &shown.deliveries;
    let destinations: Map<String, Value> = deliveries
        .iter()
        .map(|delivery| (delivery.name.clone(), destination(delivery, stats)))
        .collect();
    let unconfigured: Vec<&str> = stats
        .consumers
        .iter()
        .filter(|consumer| !deliveries.iter().any(|delivery| delivery.name == consumer.name))
        .map(|consumer| consumer.name.as_str())
        .collect();
    let mut document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "tee": stats.unavailable.as_ref().map_or_else(|| json!("on"), |why| json!({ "off": why })),
        "configuration": {
            "in_force_since": time(shown.since),
            "refused": shown.refused.as_ref().map(|(since, problems)| json!({ "since": time(*since), "problems": problems })),
            "waits_for_restart": shown.restart,
            "overridden": shown.kept.holding(&shown.config),
        },
        "upstream": {
            "last_answer": upstream.answered.map(time),
            "last_failure": upstream.failed.as_ref().map(failure),
        },
        "queue": {
            "bytes": stats.bytes,
            "corrupt_records": stats.corrupt_records,
            "quarantined": stats.quarantined,
            "cursors_without_destination": unconfigured,
        },
        "destinations": destinations,
    });
    if let Some(catalogue) = catalogue {
        document["launchdarkly"] = catalogue;
    }
    document
}

/// Returns everything that is known, as JSON: what [`document`] says, where everything is, who sends events, and what is
/// configured; credentials masked.
pub(super) fn whole(
    stats: &Stats,
    shown: &Shown,
    upstream: &Known,
    sdks: &[Counted],
    catalogue: Option<Value>,
) -> Value {
    let mut document = document(stats, shown, upstream, catalogue);
    document["environments"] = environments(&shown.config);
    document["queue"]["quarantine_bytes"] = json!(stats.quarantine_bytes());
    let set_aside =
        |part: &SetAside| json!({ "name": part.name, "bytes": part.bytes, "last_written": time_ms(part.changed_ms) });
    document["queue"]["quarantine"] = stats.quarantine.iter().take(LISTED).map(set_aside).collect();
    let newest = stats.parts.last().map(|part| part.first);
    let part = |part: &PartStats| {
        let end = part.end.or((newest == Some(part.first)).then_some(stats.next_position));
        json!({ "first": part.first, "end": end, "bytes": part.bytes, "begun": time_ms(part.created_ms) })
    };
    document["queue"]["next_position"] = json!(stats.next_position);
    document["queue"]["damaged_dead_letters"] = json!(stats.damaged_letters);
    document["queue"]["parts"] = stats.parts.iter().map(part).collect();
    document["queue"]["cursors"] = stats.consumers.iter().map(cursor).collect();
    for (key, letters) in [
        ("dead_letters", &stats.dead_letters),
        ("transient_dead_letters", &stats.transient_letters),
    ] {
        let letters = letters.iter().map(|(name, letters)| (name.clone(), json!(letters)));
        document["queue"][key] = letters.collect::<Map<_, _>>().into();
    }
    let line = |line: &Counted| json!({ "sdk": line.sdk, "version": line.version, "support": line.support.as_str(), "events": line.events });
    document["sdks"] = sdks.iter().map(line).collect();
    document["sdks_too_old"] = (sdks.iter())
        .filter(|line| line.support == Support::TooOld)
        .map(|line| json!(format!("{} {}", line.sdk, line.version)))
        .collect();
    document
}

fn failure(trouble: &Trouble) -> Value {
    json!({ "at": time(trouble.at), "reason": trouble.reason, "why": trouble.why })
}

/// Returns what is configured of the environments: credentials by their last four characters.
fn environments(config: &Config) -> Value {
    let masked = |keys: &[Secret]| -> Vec<String> { keys.iter().map(Secret::last_four).collect() };
    let environment = |environment: &Environment| {
        let credentials = environment.credentials.as_ref().map(|credentials| {
            json!({
                "sdk_keys": masked(&credentials.sdk_keys), "mobile_keys": masked(&credentials.mobile_keys),
                "client_side_ids": credentials.client_side_ids,
            })
        });
        json!({ "name": environment.name, "credentials": credentials, "destinations": environment.destinations })
    };
    config.environments.iter().map(environment).collect()
}

fn cursor(consumer: &ConsumerStats) -> Value {
    let waiting = consumer
        .waiting
        .iter()
        .map(|(environment, events)| (environment.clone(), json!(events)));
    let noted = drain::noted(&consumer.note);
    json!({
        "destination": consumer.name, "configured": consumer.attached, "position": consumer.position,
        "note_bytes": consumer.note.len(), "failed": noted.map(|noted| noted.failed),
        "next_try": noted.and_then(|noted| noted.next_ms).map(time_ms), "waiting": waiting.collect::<Map<_, _>>(),
        "oldest_waiting_since": consumer.oldest_waiting_ms.map(time_ms),
    })
}

fn destination(delivery: &Delivery, stats: &Stats) -> Value {
    let name = delivery.name.as_str();
    let mut shown = Map::new();
    match &delivery.status {
        Some(status) => progress(status, &mut shown),
        None => drop(shown.insert("state".to_owned(), json!("paused"))),
    }
    if let Some(consumer) = stats.consumers.iter().find(|consumer| consumer.name == name) {
        shown.insert("waiting".to_owned(), json!(consumer.waiting_events()));
        let since = consumer.oldest_waiting_ms.map(time_ms);
        shown.insert("oldest_waiting_since".to_owned(), since.unwrap_or_default());
        for (key, lost) in [("evicted", &consumer.evicted), ("corrupt", &consumer.corrupt)] {
            let events: u64 = lost.iter().map(|(_, events)| events).sum();
            shown.insert(key.to_owned(), json!(events));
        }
        let limits = consumer
            .limits
            .iter()
            .map(|(limit, events)| ((*limit).to_owned(), json!(events)));
        shown.insert("evicted_by".to_owned(), Value::Object(limits.collect()));
    }
    let dead = stats
        .dead_letters
        .iter()
        .find(|(of, _)| of == name)
        .map_or(0, |(_, count)| *count);
    shown.insert("dead_letters".to_owned(), json!(dead));
    Value::Object(shown)
}

/// Says how a delivery goes.
fn progress(status: &DrainStatus, shown: &mut Map<String, Value>) {
    let now = status.get();
    let (state, why) = match &now.state {
        State::Idle => ("idle", None),
        State::Delivering => ("delivering", None),
        State::Retrying { why, .. } => ("retrying", Some(why)),
        State::Blocked { why, .. } => ("blocked", Some(why)),
        State::Stopped => ("stopped", None),
    };
    shown.insert("state".to_owned(), json!(state));
    if let Some(why) = why {
        shown.insert("why".to_owned(), json!(why));
    }
    if let State::Retrying { since, next, .. } | State::Blocked { since, next, .. } = &now.state {
        shown.insert("since".to_owned(), time(*since));
        shown.insert("next_try".to_owned(), time(*next));
    }
    let breaker = match now.breaker {
        Breaker::Closed => "closed",
        Breaker::HalfOpen => "half_open",
        Breaker::Open => "open",
    };
    shown.insert("breaker".to_owned(), json!(breaker));
    if let Some(why) = &now.queue_error {
        shown.insert("queue_error".to_owned(), json!(why));
    }
    shown.insert(
        "last_delivered".to_owned(),
        now.last_delivered.map_or(Value::Null, time),
    );
}

/// Returns Unix milliseconds as [`time`] shows them.
fn time_ms(ms: u64) -> Value {
    time(UNIX_EPOCH + Duration::from_millis(ms))
}

fn time(at: SystemTime) -> Value {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let text = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    text.map_or(Value::Null, |text| json!(text.to_string()))
}
