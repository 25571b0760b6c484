//! The coverage document: JSON for people and tools, with a reason and a remedy for every flag that is not exported.
//!
//! ```text
//! {"since":T, "environments":[{"name":…, "flags_followed":n, "flags_beyond":n, "flags":[{
//!    "flag":…, "evaluations":n, "received":n, "exported":n, "not_kept":n, "first_seen":T, "last_seen":T, "sdks":[…],
//!    "not_exported":[{"reason":…, "events":n, "setting":…, "what":…, "remedy":…, "rest":…, "terraform":…}]}]}]}
//! ```
//!
//! Counts are since the start, but for `first_seen`. `evaluations` are those that summaries count, exported or not;
//! `received` and what follows are `feature` events. `reason` is a label of `flagtap_events_filtered_total`, or
//! `detailed_events_off` or `sdk_too_old`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Environment, Flag, Sender, Table};
use crate::export::selection::Reason;

/// Returns the coverage of environments, those with this name if one is given. `since_ms`: when counting began.
pub fn document<'a>(
    environments: impl IntoIterator<Item = &'a Environment>,
    only: Option<&str>,
    since_ms: u64,
) -> Value {
    let shown = environments
        .into_iter()
        .filter(|environment| only.is_none_or(|name| name == environment.name()));
    let shown: Vec<Value> = shown.map(one).collect();
    json!({ "since": time(since_ms), "environments": shown })
}

fn one(environment: &Environment) -> Value {
    let table = environment.lock();
    let mut flags: Vec<(&str, &Flag)> = table
        .flags
        .iter()
        .filter(|(_, flag)| flag.last_seen_ms > 0)
        .map(|(key, flag)| (&**key, flag))
        .collect();
    flags.sort_unstable_by_key(|(key, _)| *key);
    let flags: Vec<Value> = flags
        .into_iter()
        .map(|(key, flag)| describe(key, flag, &table))
        .collect();
    json!({
        "name": environment.name(),
        "flags_followed": table.flags.len(),
        "flags_beyond": table.untracked,
        "flags": flags,
    })
}

fn describe(key: &str, flag: &Flag, table: &Table) -> Value {
    let counts = &flag.counts;
    let senders: Vec<&Sender> = table
        .sdks
        .iter()
        .enumerate()
        .filter(|(index, _)| flag.sdks & (1 << index) != 0)
        .map(|(_, sender)| sender)
        .collect();
    let sdks: Vec<&str> = senders.iter().map(|sender| sender.sdk.as_str()).collect();
    json!({
        "flag": key,
        "evaluations": counts.evaluations,
        "received": counts.received,
        "exported": counts.exported,
        "not_kept": counts.lost,
        "first_seen": time(flag.first_seen_ms),
        "last_seen": time(flag.last_seen_ms),
        "not_exported": why(key, flag, &senders),
        "sdks": sdks,
    })
}

/// Returns why evaluations of a flag are not exported, the weightiest reason first.
fn why(key: &str, flag: &Flag, senders: &[&Sender]) -> Vec<Value> {
    let counts = &flag.counts;
    let mut held = counts.held.clone();
    held.sort_unstable_by_key(|(reason, events)| (std::cmp::Reverse(*events), *reason));
    let mut why: Vec<Value> = held
        .into_iter()
        .map(|(reason, events)| held_by(key, reason, events))
        .collect();
    if counts.received == 0 && counts.evaluations > 0 {
        let mut shown = reason(
            "detailed_events_off",
            counts.evaluations,
            "",
            "SDKs count the flag's evaluations and send no event for them: detailed events are off in LaunchDarkly",
            "turn on detailed events of the flag, or of some of its targeting rules, in LaunchDarkly",
        );
        shown.extend(switch_on(key));
        why.push(Value::Object(shown));
        for sender in senders.iter().filter(|sender| sender.too_old) {
            why.push(Value::Object(reason(
                "sdk_too_old",
                counts.evaluations,
                "",
                &format!("{} does not know the choice of targeting rules", sender.sdk),
                "update the SDK (docs/sdks.md has the versions), or turn on detailed events of the whole flag",
            )));
        }
    }
    why
}

fn held_by(key: &str, by: Reason, events: u64) -> Value {
    let mut shown = reason(by.as_str(), events, by.setting(), by.what(), by.remedy());
    if by == Reason::NotTracked {
        shown.extend(switch_on(key));
    }
    Value::Object(shown)
}

fn reason(name: &str, events: u64, setting: &str, what: &str, remedy: &str) -> Map<String, Value> {
    let mut shown = Map::new();
    shown.insert("reason".to_owned(), json!(name));
    shown.insert("events".to_owned(), json!(events));
    if !setting.is_empty() {
        shown.insert("setting".to_owned(), json!(setting));
    }
    shown.insert("what".to_owned(), json!(what));
    shown.insert("remedy".to_owned(), json!(remedy));
    shown
}

/// Returns what turns detailed events on: a call of LaunchDarkly's REST API (JSON Patch of the flag, property
/// `environments.<key>.trackEvents`), and the attribute of Terraform's `launchdarkly_feature_flag_environment`. Nothing for a
/// key that no flag can have: it comes from traffic and is meant for a shell.
fn switch_on(key: &str) -> Vec<(String, Value)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !key.chars().all(plain) || key.starts_with('-') {
        return Vec::new();
    }
    let rest = format!(
        "curl -X PATCH \"https://app.launchdarkly.com/api/v2/flags/$PROJECT_KEY/{key}\" \
         -H \"Authorization: $LD_API_TOKEN\" -H \"Content-Type: application/json\" \
         -d '[{{\"op\":\"replace\",\"path\":\"/environments/'\"$ENVIRONMENT_KEY\"'/trackEvents\",\"value\":true}}]'"
    );
    let terraform = format!("track_events = true    # launchdarkly_feature_flag_environment of \"<project>/{key}\"");
    vec![
        ("rest".to_owned(), json!(rest)),
        ("terraform".to_owned(), json!(terraform)),
    ]
}

fn time(ms: u64) -> Value {
    let time = i64::try_from(ms / 1000)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or(Value::Null, |time| json!(time.to_string()))
}
