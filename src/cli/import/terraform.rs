//! What Terraform manages, from `terraform show -json` of a state or of a plan.
//!
//! Of LaunchDarkly's provider: `launchdarkly_destination`, `launchdarkly_project` with its environments,
//! `launchdarkly_environment` and `launchdarkly_feature_flag_environment`, in any module. Data sources count, but for
//! destinations. The provider knows projects by key alone, and rules without ids.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use super::{Account, Destination, Environment, Tracked};

/// Largest input, bytes. A state of 10,000 flags has about 50 MB.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Modules within modules; more is no configuration that anybody wrote.
const MAX_DEPTH: usize = 50;

/// Reads the file, or standard input for `-`.
pub(super) fn read(file: &Path) -> anyhow::Result<Account> {
    let mut text = String::new();
    if file == Path::new("-") {
        io::stdin().lock().take(MAX_BYTES).read_to_string(&mut text)?;
    } else {
        File::open(file)
            .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
            .with_context(|| format!("cannot read {}", file.display()))?;
    }
    account(&text)
}

pub(super) fn account(text: &str) -> anyhow::Result<Account> {
    const WANTED: &str = "is not the output of `terraform show -json`";
    let shown: Value = serde_json::from_str(text).context(WANTED)?;
    let root = ["values", "planned_values"]
        .iter()
        .find_map(|part| shown.get(part)?.get("root_module"));
    let mut account = Account {
        source: "`terraform show -json`".to_owned(),
        flags_may_be_missing: true,
        ..Account::default()
    };
    module(root.context(WANTED)?, &mut account, 0);
    ensure!(
        !account.destinations.is_empty(),
        "there is no launchdarkly_destination in it"
    );
    // A destination of an environment that is managed elsewhere.
    for index in 0..account.destinations.len() {
        let Destination {
            project, environment, ..
        } = account.destinations[index].clone();
        account.environment(&project, &environment);
    }
    let destinations = &account.destinations;
    account.environments.retain(|one| {
        destinations
            .iter()
            .any(|destination| destination.project == one.project && destination.environment == one.key)
    });
    Ok(account)
}

impl Account {
    /// Returns an environment, which may be new.
    fn environment(&mut self, project: &str, key: &str) -> &mut Environment {
        let known = self
            .environments
            .iter()
            .position(|one| one.project == project && one.key == key);
        let index = known.unwrap_or(self.environments.len());
        if known.is_none() {
            self.environments.push(Environment {
                project: project.to_owned(),
                key: key.to_owned(),
                ..Environment::default()
            });
        }
        &mut self.environments[index]
    }
}

fn module(module: &Value, account: &mut Account, depth: usize) {
    for resource in list(module, "resources") {
        let kind = resource["type"].as_str().unwrap_or_default();
        let managed = resource["mode"] != "data";
        let Some(values) = resource["values"].as_object() else {
            continue;
        };
        match kind {
            "launchdarkly_destination" if managed => destination(values, account),
            "launchdarkly_project" => {
                for environment in list(&resource["values"], "environments") {
                    if let Some(environment) = environment.as_object() {
                        known(text(values, "key"), environment, account);
                    }
                }
            }
            "launchdarkly_environment" => known(text(values, "project_key"), values, account),
            "launchdarkly_feature_flag_environment" => flag(values, account),
            _ => {}
        }
    }
    if depth < MAX_DEPTH {
        for child in list(module, "child_modules") {
            self::module(child, account, depth + 1);
        }
    }
}

fn destination(values: &Map<String, Value>, account: &mut Account) {
    account.destinations.push(Destination {
        project: text(values, "project_key").to_owned(),
        environment: text(values, "env_key").to_owned(),
        name: text(values, "name").to_owned(),
        kind: text(values, "kind").to_owned(),
        config: values
            .get("config")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default(),
        // `enabled` in the provider's first versions; off unless it says otherwise.
        on: [values.get("on"), values.get("enabled")].contains(&Some(&Value::Bool(true))),
    });
}

fn known(project: &str, values: &Map<String, Value>, account: &mut Account) {
    let key = text(values, "key");
    if project.is_empty() || key.is_empty() {
        return;
    }
    let environment = account.environment(project, key);
    let id = text(values, "client_side_id");
    if !id.is_empty() {
        environment.id = Some(id.to_owned());
    }
    environment.tracks_new_flags |= values.get("default_track_events") == Some(&Value::Bool(true));
}

fn flag(values: &Map<String, Value>, account: &mut Account) {
    let tracked = values.get("track_events") == Some(&Value::Bool(true));
    let id = text(values, "flag_id").split_once('/');
    if let (Some((project, key)), true) = (id, tracked) {
        let environment = account.environment(project, text(values, "env_key"));
        environment.flags.push((key.to_owned(), Tracked::All));
    }
}

fn text<'a>(values: &'a Map<String, Value>, name: &str) -> &'a str {
    values.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}
