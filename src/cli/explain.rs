//! `flagtap explain`: what becomes of an event, and which setting decides.
//!
//! Goes the way of a batch, decode, select, narrow, encode, with the configuration's own code, and sends nothing: no
//! connection, no port, and of the queue's folder only the record of first sights and the settings that were made at run time
//! are read. What depends on the upstream, on
//! the queue or on a repetition is not asked.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::app::{platform, whose};
use crate::catalogue::{self, Dates, Place, Shelf};
use crate::cli::{UNUSABLE, print, printable, say};
use crate::config::{self, Config, Engine, Environment, process_environment};
use crate::coverage;
use crate::destination::{Destination, Encoded};
use crate::event::{Event, Kind};
use crate::export::selection::{Judgement, Selection};
use crate::export::{self, ExportEvent, Members, narrow};
use crate::overrides::Overrides;
use crate::platform::launchdarkly::LaunchDarkly;
use crate::platform::{Batch, Captured, Carrier, EventRoute, Identity, Platform as _, Route, Support};
use crate::proxy::tee;
use crate::queue::now_ms;
use crate::record::{Origin, Record, RecordEvent};

/// More than any recording of a few requests.
const MAX_INPUT_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Args)]
pub(super) struct Arguments {
    /// Configuration file; without one, the embedded defaults.
    #[arg(long, env = "FLAGTAP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The events or requests; without it, standard input.
    file: Option<PathBuf>,
    /// The environment the events are of; without it, the one whose credential a request has, or the only one.
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// Only what becomes of events on the way to this destination.
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Print the bytes that would be sent on standard output, and the explanation on standard error.
    #[arg(long)]
    output: bool,
}

/// Explains; 1 with the reason on standard error if the input is neither events nor requests, 64 for a configuration that
/// cannot be used.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let config = match &arguments.config {
        None => Config::embedded(),
        Some(path) => match Config::load(path, &process_environment) {
            Ok((config, _)) => config,
            Err(problems) => {
                say(problems.render(&path.display().to_string()));
                return ExitCode::from(UNUSABLE);
            }
        },
    };
    let explained = input(arguments).and_then(|text| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let explainer = runtime.block_on(Explainer::new(config, arguments))?;
        explainer.explain(&text)
    });
    match explained {
        Ok((text, output)) if arguments.output => {
            say(&text);
            // A closed pipe is nobody's problem.
            let _ = io::stdout().write_all(&output);
            ExitCode::SUCCESS
        }
        Ok((text, _)) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(format_args!("{error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

fn input(arguments: &Arguments) -> anyhow::Result<String> {
    let mut text = String::new();
    match &arguments.file {
        Some(path) => File::open(path)
            .and_then(|file| file.take(MAX_INPUT_BYTES).read_to_string(&mut text))
            .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))?,
        None => io::stdin().lock().take(MAX_INPUT_BYTES).read_to_string(&mut text)?,
    };
    anyhow::ensure!(
        !text.trim().is_empty(),
        "there is nothing to explain: the input is empty, and should be events or requests as JSON"
    );
    Ok(text)
}

/// Puts the settings in force that were made at run time and are kept beside the queue. Returns the environments that have
/// some.
fn at_run_time(config: &mut Config) -> HashSet<String> {
    let mut changed = HashSet::new();
    let Engine::Sled { path } = &config.queue.engine else {
        return changed;
    };
    if !config.settings.mutable {
        return changed;
    }
    for (name, document) in Overrides::look(path).settings() {
        let environment = config.environments.iter_mut().find(|one| one.name == name);
        // What this version does not understand does not hold in the relay either.
        if let (Some(environment), Ok((settings, _))) = (environment, config::export(&document.to_string())) {
            environment.export = settings;
            changed.insert(name.to_owned());
        }
    }
    changed
}

/// A recorded request: a line of `tests/traffic`, of which only this is needed.
#[derive(Deserialize)]
struct Recorded {
    method: String,
    path: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    body: Option<String>,
    body_b64: Option<String>,
}

struct Explainer<'a> {
    config: Config,
    platform: LaunchDarkly,
    selections: Vec<Selection>,
    /// By the index of the environment.
    flags: Vec<coverage::Environment>,
    destinations: HashMap<String, Arc<dyn Destination>>,
    /// Environments with settings that were made at run time.
    at_run_time: HashSet<String>,
    arguments: &'a Arguments,
}

impl<'a> Explainer<'a> {
    async fn new(mut config: Config, arguments: &'a Arguments) -> anyhow::Result<Self> {
        if let Some(name) = &arguments.destination {
            let known = config.destinations.iter().any(|destination| destination.name == *name);
            let names = config.destinations.iter().map(|destination| destination.name.as_str());
            let names: Vec<&str> = names.collect();
            anyhow::ensure!(known, "there is no destination {name} (there are {})", names.join(", "));
        }
        let mut seen = match &config.queue.engine {
            Engine::Sled { path } => coverage::file::look(path),
            Engine::Memory => Default::default(),
        };
        let shelf = Arc::new(Shelf::default());
        if let (Some(_), Engine::Sled { path }) = (&config.launchdarkly, &config.queue.engine) {
            shelf.put(catalogue::stored::look(path));
        }
        let at_run_time = at_run_time(&mut config);
        let mut destinations = HashMap::new();
        for destination in &config.destinations {
            destinations.insert(destination.name.clone(), destination.settings.open().await);
        }
        let environments = &config.environments;
        Ok(Self {
            platform: platform(&config),
            selections: environments
                .iter()
                .map(|one| Selection::new(one.export.clone()))
                .collect(),
            flags: environments
                .iter()
                .map(|one| {
                    let flags = coverage::Environment::new(&one.name, seen.remove(&one.name).unwrap_or_default());
                    flags.told_by(Place::new(Arc::clone(&shelf), whose(one)));
                    flags
                })
                .collect(),
            destinations,
            at_run_time,
            arguments,
            config,
        })
    }

    /// Returns the explanation and what would be sent.
    fn explain(&self, text: &str) -> anyhow::Result<(String, Vec<u8>)> {
        let (mut out, mut sent) = (String::new(), Vec::new());
        for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
            let json = value
                .map_err(|error| anyhow::anyhow!("the input is not JSON: {error}"))?
                .get();
            match Members::of(json) {
                Some(members) if members.get("method").is_some() && members.get("path").is_some() => {
                    self.request(json, &mut out, &mut sent)?;
                }
                Some(_) => self.events(format!("[{json}]"), &mut out, &mut sent)?,
                None => self.events(json.to_owned(), &mut out, &mut sent)?,
            }
        }
        Ok((out, sent))
    }

    fn request(&self, json: &str, out: &mut String, sent: &mut Vec<u8>) -> anyhow::Result<()> {
        let recorded: Recorded =
            serde_json::from_str(json).map_err(|error| anyhow::anyhow!("a request cannot be read: {error}"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &recorded.headers {
            headers.append(
                HeaderName::try_from(name.as_str())?,
                HeaderValue::try_from(value.as_str())?,
            );
        }
        let body = match (recorded.body, recorded.body_b64) {
            (Some(body), _) => body.into_bytes(),
            (None, Some(body)) => STANDARD.decode(body)?,
            (None, None) => Vec::new(),
        };
        let (path, query) = match recorded.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (recorded.path.as_str(), None),
        };
        let _ = writeln!(out, "{} {}", printable(&recorded.method), printable(path));
        let Route::Events(route) = self
            .platform
            .classify(&Method::try_from(recorded.method.as_str())?, path)
        else {
            let _ = writeln!(out, "  passes through: it is on no route for events");
            return Ok(());
        };
        let index = match (self.platform.identify(&route, &headers), &self.arguments.environment) {
            (_, Some(_)) => self.environment()?,
            (Identity::Known(index) | Identity::Lone(index), None) => index,
            (Identity::Unknown, None) => {
                let _ = writeln!(out, "  passes through: its credential is of no configured environment");
                return Ok(());
            }
        };
        let body = Bytes::from(body);
        let captured = Captured {
            query,
            headers: &headers,
            body: &body,
            route: &route,
        };
        match self.platform.decode(&captured) {
            Ok(batch) => self.batch(index, &captured, &batch, out, sent),
            Err(error) => {
                let _ = writeln!(out, "  passes through: {error}");
            }
        }
        Ok(())
    }

    /// Explains an array of events without a request: of a context-based SDK if one of them has contexts.
    fn events(&self, body: String, out: &mut String, sent: &mut Vec<u8>) -> anyhow::Result<()> {
        let index = self.environment()?;
        let body = Bytes::from(body);
        let route = EventRoute {
            template: "",
            carrier: Carrier::Body,
            client_side_id: None,
        };
        let [users, contexts] = ["3", "4"].map(|schema| {
            let name = HeaderName::from_static("x-launchdarkly-event-schema");
            HeaderMap::from_iter([(name, HeaderValue::from_static(schema))])
        });
        let captured = |headers| Captured {
            query: None,
            headers,
            body: &body,
            route: &route,
        };
        let mut batch = self.platform.decode(&captured(&users))?;
        if batch.events.iter().any(has_contexts) {
            batch = self.platform.decode(&captured(&contexts))?;
        }
        self.batch(index, &captured(&users), &batch, out, sent);
        Ok(())
    }

    fn environment(&self) -> anyhow::Result<usize> {
        let names: Vec<&str> = self.config.environments.iter().map(|one| one.name.as_str()).collect();
        match (&self.arguments.environment, &names[..]) {
            (Some(name), names) => {
                let index = names.iter().position(|known| known == name);
                index.ok_or_else(|| anyhow::anyhow!("there is no environment {name}; there are: {}", names.join(", ")))
            }
            (None, [_]) => Ok(0),
            (None, names) => Err(anyhow::anyhow!(
                "say with --environment which one the events are of: {}",
                names.join(", ")
            )),
        }
    }

    fn batch(&self, index: usize, captured: &Captured<'_>, batch: &Batch, out: &mut String, sent: &mut Vec<u8>) {
        let (Some(environment), Some(selection), Some(flags)) = (
            self.config.environments.get(index),
            self.selections.get(index),
            self.flags.get(index),
        ) else {
            return;
        };
        let known = flags.known();
        let first_sights = flags.first_sights(now_ms());
        let creation = Dates::new(known.as_deref(), &first_sights);
        let ids = tee::ids(
            [&environment.project_id, &environment.environment_id],
            captured.route.client_side_id.as_deref(),
            known.as_deref(),
        );
        let judge = selection.judge(batch.schema, &batch.sdk, &creation);
        let seed = self.platform.fingerprint(captured, index).seed;
        if self.platform.sdk(&batch.sdk).support == Support::TooOld {
            let _ = writeln!(
                out,
                "  {} does not know the choice of targeting rules: update it (docs/sdks.md has the versions)",
                batch.sdk
            );
        }
        for event in &batch.events {
            let _ = writeln!(out, "event {}: {}", event.index, title(event));
            if let Some(told) = known.as_ref().and_then(|known| told(event, known)) {
                let _ = writeln!(out, "  LaunchDarkly: {told}");
            }
            let judgement = judge.event(event).to(&environment.destinations);
            let (verb, label, setting, what) = match judgement {
                Judgement::Keep { by, ratio: 0 | 1 } => ("exports it", String::new(), by.setting(), by.what()),
                Judgement::Keep { by, ratio } => (
                    "exports it",
                    format!(" as 1 of {ratio} (export.sample.flags)"),
                    by.setting(),
                    by.what(),
                ),
                Judgement::Drop(reason) => (
                    "leaves it out",
                    format!(" ({})", reason.as_str()),
                    reason.setting(),
                    reason.what(),
                ),
            };
            let by = if setting.is_empty() {
                String::new()
            } else if self.at_run_time.contains(&environment.name) {
                format!(" [{setting}, set at run time]")
            } else {
                format!(" [{setting}]")
            };
            let _ = writeln!(out, "  environment {} {verb}{label}: {what}{by}", environment.name);
            match (judgement, judgement.json(event)) {
                (Judgement::Drop(reason), _) => {
                    let _ = writeln!(out, "  remedy: {}", reason.remedy());
                }
                (Judgement::Keep { .. }, json) => {
                    let json = json.unwrap_or_default();
                    let json = match &known {
                        Some(known) => catalogue::named(json, event, known),
                        None => json,
                    };
                    let record = record(environment, &ids, batch, event, json, seed);
                    self.deliver(environment, &record, out, sent);
                }
            }
        }
    }

    fn deliver(&self, environment: &Environment, record: &Record, out: &mut String, sent: &mut Vec<u8>) {
        let ids = export::event_ids(record);
        let (Some(event), Some(id)) = (record.events.first(), ids.first()) else {
            return;
        };
        let event = export::export_event(record, event, id);
        let asked = |name: &&String| self.arguments.destination.as_ref().is_none_or(|only| only == *name);
        for name in environment.destinations.iter().filter(asked) {
            let (Some(settings), Some(destination)) = (
                self.config.destinations.iter().find(|one| one.name == *name),
                self.destinations.get(name),
            ) else {
                continue;
            };
            let said = match settings.narrow.apply(&event) {
                Err(reason) => {
                    let setting = narrow::setting(reason).unwrap_or_default();
                    format!("does not get it ({reason}) [{setting}]")
                }
                Ok(json) => match destination.encode(&ExportEvent { json: &json, ..event }) {
                    Encoded::Skip(reason) => {
                        format!("does not get it ({reason}): not for {}", settings.settings.kind())
                    }
                    Encoded::Reject(why) => format!("cannot get it, it becomes a dead letter: {why}"),
                    Encoded::Item(item) => {
                        sent.extend_from_slice(&item.body);
                        if !item.body.ends_with(b"\n") {
                            sent.push(b'\n');
                        }
                        let when = if settings.paused {
                            " once it is no longer paused [paused]"
                        } else {
                            ""
                        };
                        format!("gets {} bytes{when}{}", item.body.len(), redacted(&json, event.json))
                    }
                },
            };
            let _ = writeln!(out, "  destination {name} {said}");
        }
    }
}

fn redacted(json: &[u8], before: &[u8]) -> &'static str {
    if json == before {
        ""
    } else {
        ", without what is redacted [redact]"
    }
}

fn has_contexts(event: &Event) -> bool {
    let members = std::str::from_utf8(&event.json).ok().and_then(Members::of);
    members.is_some_and(|members| members.get("context").or(members.get("contextKeys")).is_some())
}

/// Returns what an event is in a few words: its kind and the flag or name that it is about.
fn title(event: &Event) -> String {
    let key = event.key().unwrap_or_default();
    let key: String = printable(&key).chars().take(80).collect();
    format!("{} {key}", event.kind).trim_end().to_owned()
}

/// Returns what LaunchDarkly says of the flag and of the rule that an evaluation matched.
fn told(event: &Event, known: &catalogue::Environment) -> Option<String> {
    let flag = known.flags.get(&*event.key()?)?;
    if !matches!(event.kind, Kind::Feature | Kind::Debug) {
        return None;
    }
    let created = i64::try_from(flag.created_ms).ok();
    let created = created.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())?;
    let mut told = format!("the flag was created {created}");
    let reason = event.reason().and_then(Members::of);
    let id = reason.and_then(|reason| serde_json::from_str::<String>(reason.get("ruleId")?).ok());
    if let Some(rule) = id.and_then(|id| flag.rules.iter().find(|rule| rule.id == id)) {
        let description = rule.description.as_deref().unwrap_or("without description");
        let _ = write!(told, "; rule {}: {}", rule.id, printable(description));
    }
    Some(told)
}

fn record(
    environment: &Environment,
    (project_id, environment_id): &(String, String),
    batch: &Batch,
    event: &Event,
    json: Bytes,
    id_seed: [u8; 16],
) -> Record {
    Record {
        received_ms: now_ms(),
        origin: Origin {
            environment: environment.name.clone(),
            project_id: project_id.clone(),
            environment_id: environment_id.clone(),
            schema: batch.schema,
            sdk: batch.sdk.clone(),
            tags: batch.tags.clone(),
        },
        destinations: environment.destinations.clone(),
        id_seed,
        given_up: false,
        events: vec![RecordEvent {
            index: event.index,
            kind: event.kind,
            json,
        }],
    }
}
