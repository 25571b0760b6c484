//! `flagtap send-test-event`: one feature event to one destination, with the service's answer in words.
//!
//! The flag and the user have the key of LaunchDarkly's own test events, so that consumers which know it can leave the
//! event out. No queue and no running relay takes part, nothing is repeated, and nothing is left behind but the event.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::timeout;

use crate::cli::{UNUSABLE, complete};
use crate::config::{self, Config, Destination, Environment};
use crate::destination::{Encoded, Verdict};
use crate::event::Kind;
use crate::export::{ExportEvent, id};

/// Key of the flag and the user in LaunchDarkly's own test events (documentation of its Kinesis destination).
const TEST_KEY: &str = "LaunchDarklyDataExportTestEvent";

/// As long as the relay waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends the event and says what became of it. Returns success if it was delivered. Fails only if `out` does.
pub(super) fn run(
    path: Option<&Path>,
    destination: &str,
    environment: Option<&str>,
    out: &mut dyn Write,
) -> io::Result<ExitCode> {
    let config = match path.map(|path| (path, Config::load(path, &config::process_environment))) {
        None => Config::embedded(),
        Some((_, Ok((config, _)))) => config,
        Some((path, Err(problems))) => {
            write!(out, "{}", problems.render(&path.display().to_string()))?;
            return Ok(ExitCode::from(UNUSABLE));
        }
    };
    let (destination, environment) = match choose(&config, destination, environment) {
        Ok(chosen) => chosen,
        Err(why) => {
            writeln!(out, "not sent: {why}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let event = TestEvent::now();
    writeln!(
        out,
        "sending the feature event {} of flag and user {TEST_KEY}, environment {}, to {} ({})",
        event.id,
        environment.name,
        destination.name,
        destination.settings.kind()
    )?;
    out.flush()?;
    match complete(send(destination, &event.of(environment)))? {
        Ok(()) => {
            writeln!(out, "delivered: {} has acknowledged it", destination.name)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => {
            writeln!(out, "{why}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Returns the destination with this name, and the environment with this name or the only one that exports to it.
fn choose<'a>(
    config: &'a Config,
    destination: &str,
    environment: Option<&str>,
) -> Result<(&'a Destination, &'a Environment), String> {
    let names = |names: Vec<&str>| names.join(", ");
    let found = config.destinations.iter().find(|known| known.name == destination);
    let destination = found.ok_or_else(|| {
        let known = config.destinations.iter().map(|known| known.name.as_str());
        format!(
            "{destination} is not the name of a destination; there are: {}",
            names(known.collect())
        )
    })?;
    let using: Vec<&Environment> = config
        .environments
        .iter()
        .filter(|environment| environment.destinations.contains(&destination.name))
        .collect();
    let environment = match (environment, &using[..]) {
        (Some(name), _) => config
            .environments
            .iter()
            .find(|known| known.name == name)
            .ok_or_else(|| {
                let known = config.environments.iter().map(|known| known.name.as_str());
                format!(
                    "{name} is not the name of an environment; there are: {}",
                    names(known.collect())
                )
            })?,
        (None, [only]) => only,
        (None, []) => return Err("no environment uses this destination; choose one with --environment".to_owned()),
        (None, several) => {
            let several = several.iter().map(|environment| environment.name.as_str());
            return Err(format!(
                "several environments use this destination; choose one with --environment: {}",
                names(several.collect())
            ));
        }
    };
    Ok((destination, environment))
}

struct TestEvent {
    id: String,
    json: String,
}

impl TestEvent {
    /// Returns an event as a context-based SDK sends it, of this moment and with an id that no other has.
    fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        Self {
            id: id::event_id(&now.as_nanos().to_be_bytes(), 0, seconds),
            json: format!(
                r#"{{"kind":"feature","creationDate":{},"key":"{TEST_KEY}","variation":0,"value":true,"default":false,"version":1,"context":{{"kind":"user","key":"{TEST_KEY}"}}}}"#,
                now.as_millis()
            ),
        }
    }

    fn of<'a>(&'a self, environment: &'a Environment) -> ExportEvent<'a> {
        ExportEvent {
            project_id: &environment.project_id,
            environment_id: &environment.environment_id,
            environment: &environment.name,
            version: 2,
            strip_private: false,
            id: &self.id,
            kind: Kind::Feature,
            json: self.json.as_bytes(),
        }
    }
}

/// Sends the event; the error is why it was not delivered, and what the relay would do.
async fn send(destination: &Destination, event: &ExportEvent<'_>) -> Result<(), String> {
    let destination = destination.settings.open().await;
    let item = match destination.encode(event) {
        Encoded::Item(item) => item,
        Encoded::Skip(reason) => {
            return Err(format!(
                "not sent: the event is none for this destination ({reason}); the relay would count it as filtered"
            ));
        }
        Encoded::Reject(why) => return Err(format!("not sent: {why}; the relay would keep it as a dead letter")),
    };
    let most = destination.limits().item_bytes;
    if item.size > most {
        return Err(format!(
            "not sent: it has {} bytes and the destination takes {most}; the relay would keep it as a dead letter",
            item.size
        ));
    }
    let verdicts = timeout(PATIENCE, destination.send(&[item])).await;
    let unanswered = Verdict::Retry {
        after: None,
        why: format!("no answer within {} s", PATIENCE.as_secs()),
    };
    Err(
        match verdicts
            .ok()
            .and_then(|verdicts| verdicts.into_iter().next())
            .unwrap_or(unanswered)
        {
            Verdict::Delivered => return Ok(()),
            Verdict::Retry { why, after: None } => format!("not delivered: {why}; the relay would try again"),
            Verdict::Retry {
                why,
                after: Some(after),
            } => {
                format!(
                    "not delivered: {why}; the relay would try again after {} s",
                    after.as_secs()
                )
            }
            Verdict::Blocked { why } => {
                format!("not delivered: {why}; the relay would lose nothing, try again slowly and resume by itself")
            }
            Verdict::Split => "not delivered: too large; the relay would keep it as a dead letter".to_owned(),
            Verdict::Reject { why } => format!("not delivered: {why}; the relay would keep it as a dead letter"),
        },
    )
}
