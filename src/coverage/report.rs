//! The coverage document: JSON for people and tools, with a reason and a remedy for every flag that is not exported.
//!
//! ```text
//! {"environments":[{"name":…, "since":T, "flags_followed":n, "flags_beyond":n, "flags":[{
//!    "flag":…, "evaluations":n, "received":n, "exported":n, "not_kept":n, "first_seen":T, "last_seen":T, "sdks":[…],
//!    "not_exported":[{"reason":…, "destination":…, "events":n, "setting":…, "what":…, "remedy":…, "rest":…, "terraform":…}],
//!    "launchdarkly":{"created":T, "detailed_events":"on"|"by rule"|"off",
//!       "rules":[{"id":…, "description":…, "detailed_events":bool}]}}]}]}
//! ```
//!
//! Counts are `since` the start or the last change of what the environment exports. `evaluations` are those that summaries count,
//! exported or not; `received` and what follows are `feature` events. `reason` is a label of `flagtap_events_filtered_total`; with a
//! `destination`, which does not get what the others get, one of `flagtap_destination_events_skipped_total`; or one of those that
//! docs/selection.md lists. `launchdarkly` is there if its API tells of the flag.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Aim, Environment, Flag, Goal, Sender};
use crate::catalogue::{self, Known};
use crate::export::narrow::{self, Narrow};
use crate::export::selection::Reason;

/// A document in pieces.
pub type Pieces = Box<dyn Iterator<Item = String> + Send>;

/// SDKs that one reason names.
const NAMED: usize = 5;

/// Flags that are shown at a time: a fraction of a millisecond, some ten kilobytes.
const AT_ONCE: usize = 64;

/// Returns the coverage of environments, those with this name if one is given, piece by piece: the whole document of a full
/// table has tens of megabytes. What is shown is how it stood at this call.
pub fn document<'a>(environments: impl IntoIterator<Item = &'a Environment>, only: Option<&str>) -> Pieces {
    let asked = environments
        .into_iter()
        .filter(|environment| only.is_none_or(|name| name == environment.name()));
    let asked: Vec<Snapshot> = asked.map(Snapshot::of).collect();
    let head = "{\"environments\":[\n".to_owned();
    let parts = asked
        .into_iter()
        .enumerate()
        .flat_map(|(number, environment)| environment.pieces(number > 0));
    let pieces = std::iter::once(head).chain(parts);
    Box::new(pieces.chain(std::iter::once("]}\n".to_owned())))
}

/// What is known of an environment at one moment.
struct Snapshot {
    name: String,
    followed: usize,
    beyond: u64,
    /// Those seen since the start, by key.
    flags: Vec<(Box<str>, Flag)>,
    sdks: Vec<Sender>,
    known: Option<Known>,
    aim: Aim,
}

impl Snapshot {
    /// Copies what there is: batches wait for the table meanwhile, and text takes far longer than numbers.
    fn of(environment: &Environment) -> Self {
        let (known, aim) = (environment.known(), environment.aim());
        let table = environment.lock();
        let seen = table.flags.iter().filter(|(_, flag)| flag.last_seen_ms > 0);
        let mut flags: Vec<(Box<str>, Flag)> = seen.map(|(key, flag)| (key.clone(), flag.clone())).collect();
        let (followed, beyond, sdks) = (table.flags.len(), table.untracked, table.sdks.clone());
        drop(table);
        flags.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Self {
            name: environment.name().to_owned(),
            followed,
            beyond,
            flags,
            sdks,
            known,
            aim,
        }
    }

    fn describe(&self, key: &str, flag: &Flag) -> Value {
        let counts = &flag.counts;
        let known = self.known.as_deref();
        let senders: Vec<&Sender> = (self.sdks.iter().enumerate())
            .filter(|(index, _)| flag.sdks & (1 << index) != 0)
            .map(|(_, sender)| sender)
            .collect();
        let sdks: Vec<&str> = senders.iter().map(|sender| sender.sdk.as_str()).collect();
        let mut why = why(key, flag, &senders, known, self.aim.goal.as_deref());
        why.extend(self.narrowed(key, counts.exported));
        let mut shown = json!({
            "flag": key,
            "evaluations": counts.evaluations,
            "received": counts.received,
            "exported": counts.exported,
            "not_kept": counts.lost,
            "first_seen": time(flag.first_seen_ms),
            "last_seen": time(flag.last_seen_ms),
            "not_exported": why,
            "sdks": sdks,
        });
        if let Some(flag) = known.and_then(|known| known.flags.get(key)) {
            shown["launchdarkly"] = told(flag);
        }
        shown
    }

    /// Returns which destinations do not get the flag's exported evaluations, and why.
    fn narrowed(&self, key: &str, exported: u64) -> Vec<Value> {
        let Some(goal) = self.aim.goal.as_deref().filter(|_| exported > 0) else {
            return Vec::new();
        };
        let left_out = |(name, narrow): &(String, Narrow)| {
            let label = narrow.leaves_out(key)?;
            let setting = narrow::setting(label).unwrap_or_default();
            let mut shown = reason(
                label,
                exported,
                &format!("destinations[].{setting}"),
                &format!("the environment exports it, and the destination {name} does not take it"),
                &format!("add {} to {setting} of the destination {name}", missing(setting)),
            );
            shown.insert("destination".to_owned(), json!(name));
            Some(Value::Object(shown))
        };
        goal.destinations.iter().filter_map(left_out).collect()
    }

    fn pieces(self, is_further: bool) -> impl Iterator<Item = String> + Send {
        let head = format!(
            "{}{{\"name\":{},\"since\":{},\"flags_followed\":{},\"flags_beyond\":{},\"flags\":[\n",
            if is_further { "," } else { "" },
            json!(self.name),
            time(self.aim.since_ms),
            self.followed,
            self.beyond
        );
        let pieces = (0..self.flags.len()).step_by(AT_ONCE).map(move |from| {
            let mut text = String::new();
            for (at, (key, flag)) in self.flags.iter().enumerate().skip(from).take(AT_ONCE) {
                text.push_str(if at > 0 { "," } else { "" });
                text.push_str(&self.describe(key, flag).to_string());
                text.push('\n');
            }
            text
        });
        std::iter::once(head)
            .chain(pieces)
            .chain(std::iter::once("]}\n".to_owned()))
    }
}

/// Returns what a destination's `only` lacks that has this setting.
fn missing(setting: &str) -> &'static str {
    match setting {
        "only.kinds" => "the kind feature",
        _ => "the flag's key",
    }
}

fn detailed_events(flag: &catalogue::Flag) -> &'static str {
    let by_rule = flag.tracks_fallthrough || flag.rules.iter().any(|rule| rule.tracked);
    match (flag.tracked, by_rule) {
        (true, _) => "on",
        (false, true) => "by rule",
        (false, false) => "off",
    }
}

fn told(flag: &catalogue::Flag) -> Value {
    let rule = |rule: &catalogue::Rule| json!({ "id": rule.id, "description": rule.description, "detailed_events": rule.tracked });
    let rules: Vec<Value> = flag.rules.iter().map(rule).collect();
    json!({ "created": time(flag.created_ms), "detailed_events": detailed_events(flag), "rules": rules })
}

/// Returns why evaluations of a flag are not exported, the weightiest reason first.
fn why(
    key: &str,
    flag: &Flag,
    senders: &[&Sender],
    known: Option<&catalogue::Environment>,
    goal: Option<&Goal>,
) -> Vec<Value> {
    let counts = &flag.counts;
    let mut held = counts.held.clone();
    held.sort_unstable_by_key(|(reason, events)| (std::cmp::Reverse(*events), *reason));
    let mut why: Vec<Value> = held
        .into_iter()
        .map(|(reason, events)| held_by(key, reason, events, known))
        .collect();
    let mut add = |shown| why.push(Value::Object(shown));
    if counts.lost > 0 {
        add(reason(
            "not_kept",
            counts.lost,
            "",
            "the queue could not take them: it was full, or not available",
            "see `tee` and `queue` in /status, flagtap_events_not_teed_total, and docs/operations.md, Tee off",
        ));
    }
    let told = known.and_then(|known| known.flags.get(key));
    let (evaluations, unknown) = (counts.evaluations.saturating_sub(counts.unknown), counts.unknown);
    if unknown > 0 && evaluations == 0 && counts.received == 0 && told.is_none() {
        add(reason(
            "no_such_flag",
            unknown,
            "",
            "no SDK knows the flag: LaunchDarkly has none of this key, or has archived it",
            "create the flag in LaunchDarkly, or correct the key where it is evaluated",
        ));
    } else if unknown > 0 {
        add(reason(
            "sdk_without_flag",
            unknown,
            "",
            "the SDK did not have the flag: it was not initialised yet, or could not read its store",
            "evaluate flags after the SDK is initialised",
        ));
    }
    if counts.received == 0 && evaluations > 0 {
        add(unsent(key, evaluations, told, known));
        // What would hold them if they were sent, so that nobody turns events on in vain.
        let created_ms = told.map_or(flag.first_seen_ms, |flag| flag.created_ms);
        let holds = |goal: &Goal| match goal.destinations.is_empty() {
            true => Some(Reason::NoDestination),
            false => goal.export.holds(key, created_ms),
        };
        if let Some(by) = goal.and_then(holds) {
            add(reason(by.as_str(), evaluations, by.setting(), by.what(), by.remedy()));
        }
    }
    // What only an SDK can lack: it sends no event for a rule, or no reason with it.
    let lacking = (counts.held.iter())
        .filter(|(reason, _)| matches!(reason, Reason::NoReasonGiven | Reason::NotTracked))
        .map(|(_, events)| events)
        .sum();
    let lacking = if counts.received == 0 { evaluations } else { lacking };
    let too_old: Vec<&str> = (senders.iter().filter(|sender| sender.too_old))
        .map(|sender| sender.sdk.as_str())
        .collect();
    if lacking > 0 && !too_old.is_empty() {
        let beyond = match too_old.len().saturating_sub(NAMED) {
            0 => String::new(),
            beyond => format!(" and {beyond} more"),
        };
        let named = too_old.get(..NAMED).unwrap_or(&too_old).join(", ");
        add(reason(
            "sdk_too_old",
            lacking,
            "",
            &format!("of the SDKs that send events of it, {named}{beyond} cannot choose by targeting rule"),
            "update the SDK (docs/sdks.md has the versions), or turn on detailed events of the whole flag",
        ));
    }
    // A few are always counted in one batch and sent in another, or lost to an SDK's own bounds.
    let expected = evaluations / 10 * 9;
    if counts.received > 0 && counts.received < expected {
        add(reason(
            "detailed_events_for_some",
            evaluations - counts.received,
            "",
            "SDKs send an event for some of the flag's evaluations and only count the others: detailed events are on for \
             some of its targeting rules or in some SDKs, are sampled, or were turned on or off meanwhile",
            "turn on detailed events of the whole flag in LaunchDarkly, if all are wanted",
        ));
    }
    why
}

/// Returns why SDKs count a flag's evaluations and send no event for any.
fn unsent(
    key: &str,
    evaluations: u64,
    told: Option<&catalogue::Flag>,
    known: Option<&catalogue::Environment>,
) -> Map<String, Value> {
    match told.map(detailed_events) {
        Some("on") => reason(
            "detailed_events_not_seen",
            evaluations,
            "",
            "detailed events are on in LaunchDarkly, and no SDK has sent one since counting began",
            "wait until the SDKs have the flag's new version; look at `sdks` for ones that are too old",
        ),
        Some("by rule") => reason(
            "detailed_events_by_rule",
            evaluations,
            "",
            "detailed events are on for some of the flag's targeting rules in LaunchDarkly, and no evaluation matched one",
            "turn on detailed events of the whole flag in LaunchDarkly, if all are wanted",
        ),
        _ => {
            let mut shown = reason(
                "detailed_events_off",
                evaluations,
                "",
                "SDKs count the flag's evaluations and send no event for them: detailed events are off in LaunchDarkly",
                "turn on detailed events of the flag, or of some of its targeting rules, in LaunchDarkly",
            );
            shown.extend(switch_on(key, known));
            shown
        }
    }
}

fn held_by(key: &str, by: Reason, events: u64, known: Option<&catalogue::Environment>) -> Value {
    let mut shown = reason(by.as_str(), events, by.setting(), by.what(), by.remedy());
    if by == Reason::NotTracked {
        shown.extend(switch_on(key, known));
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
/// key that no flag can have: it comes from traffic and is meant for a shell. Project and environment stand there by their
/// keys if LaunchDarkly tells them, else as variables.
fn switch_on(key: &str, known: Option<&catalogue::Environment>) -> Vec<(String, Value)> {
    if !is_plain(key) {
        return Vec::new();
    }
    let known = known.filter(|known| is_plain(&known.project_key) && is_plain(&known.key));
    let project = known.map_or("$PROJECT_KEY", |known| &known.project_key);
    let environment = known.map_or("'\"$ENVIRONMENT_KEY\"'", |known| &known.key);
    let rest = format!(
        "curl -X PATCH \"${{LD_BASE_URL:-https://app.launchdarkly.com}}/api/v2/flags/{project}/{key}\" \
         -H \"Authorization: $LD_API_TOKEN\" -H \"Content-Type: application/json\" \
         -d '[{{\"op\":\"replace\",\"path\":\"/environments/{environment}/trackEvents\",\"value\":true}}]'"
    );
    let project = known.map_or("<project>", |known| &known.project_key);
    let terraform = format!("track_events = true    # launchdarkly_feature_flag_environment of \"{project}/{key}\"");
    vec![
        ("rest".to_owned(), json!(rest)),
        ("terraform".to_owned(), json!(terraform)),
    ]
}

fn is_plain(key: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    key.chars().all(plain) && !key.starts_with('-') && ![".", ".."].contains(&key)
}

fn time(ms: u64) -> Value {
    let time = i64::try_from(ms / 1000)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or(Value::Null, |time| json!(time.to_string()))
}
