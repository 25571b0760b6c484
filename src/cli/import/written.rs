//! An account as a configuration's text.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use anyhow::ensure;

use super::text::{Names, comment, quoted, quoted_key};
use super::{Account, Destination, Environment, Tracked, destination};
use crate::config::Config;
use crate::export::selection::MAX_FLAG_KEY;
use crate::problems::Severity;
use crate::queue::now_ms;

/// The largest configuration with single flags in it, bytes; flagtap takes 1 MiB.
const MAX_BYTES: usize = 900_000;

/// What an import writes.
pub(super) struct Written {
    /// The configuration.
    pub(super) text: String,
    /// What a person has to do, for standard error.
    pub(super) said: String,
}

/// A variable that the configuration needs.
struct Variable {
    name: String,
    what: String,
    place: String,
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {} ({})", self.name, comment(&self.what), self.place)
    }
}

struct Writer<'a> {
    account: &'a Account,
    /// Flags' settings are left to LaunchDarkly.
    follow: bool,
    names: Names,
    variables: Names,
    wanted: Vec<Variable>,
    left_out: Vec<String>,
    /// The variables with projects' ids, by the projects' keys.
    project_ids: BTreeMap<String, String>,
}

/// Returns the configuration; the error is why it would be none that flagtap takes.
pub(super) fn write(account: &Account) -> anyhow::Result<Written> {
    let (mut text, mut writer) = whole(account, false);
    if text.len() > MAX_BYTES {
        (text, writer) = whole(account, true);
    }
    // Each variable has a value of its own, as credentials have to.
    let checked = Config::parse(&text, &|name| Some(name.to_ascii_lowercase()));
    if let Err(problems) = checked {
        ensure!(
            false,
            "what was read makes no configuration that flagtap takes:\n{}",
            problems.render("import")
        );
    }
    let mut said = String::new();
    for left_out in account.left_out.iter().chain(&writer.left_out) {
        let _ = writeln!(said, "left out: {left_out}");
    }
    let _ = writeln!(said, "set before `flagtap check`:");
    for variable in &writer.wanted {
        let _ = writeln!(said, "  {variable}");
    }
    Ok(Written { text, said })
}

fn whole(account: &Account, follow: bool) -> (String, Writer<'_>) {
    let mut writer = Writer {
        account,
        follow,
        names: Names::default(),
        variables: Names::default(),
        wanted: Vec::new(),
        left_out: Vec::new(),
        project_ids: BTreeMap::new(),
    };
    let text = writer.text();
    (text, writer)
}

/// LaunchDarkly's other instances: the API's address, and the events service.
const INSTANCES: [(&str, &str); 2] = [
    ("https://app.eu.launchdarkly.com", "https://events.eu.launchdarkly.com"),
    ("https://app.launchdarkly.us", "https://events.launchdarkly.us"),
];

/// Returns what an account of another instance needs: its upstream, and a line for its API.
fn instance(base_url: &str) -> (String, String) {
    match INSTANCES.iter().find(|(api, _)| *api == base_url) {
        Some((api, events)) => (
            format!("# The events service of this account's instance.\nupstream:\n  url: {events}\n\n"),
            format!("#  base_url: {api}\n"),
        ),
        None => (
            "# The API was read elsewhere than at LaunchDarkly's own address. If that is another instance, set its events\n\
             # service here, or its SDKs' events go to the wrong one:\n#upstream:\n#  url: https://events.example.com\n\n"
                .to_owned(),
            "#  base_url: https://app.example.com    # the same for the API\n".to_owned(),
        ),
    }
}

impl Writer<'_> {
    fn text(&mut self) -> String {
        let mut names = Names::default();
        let several = self
            .account
            .environments
            .iter()
            .any(|one| one.project != self.account.environments[0].project);
        let mut destinations = String::new();
        let mut environments = String::new();
        for environment in &self.account.environments {
            let name = match several {
                true => names.name(&format!("{}-{}", environment.project, environment.key), "environment"),
                false => names.name(&environment.key, "environment"),
            };
            let account = self.account;
            let own = account
                .destinations
                .iter()
                .filter(|one| one.project == environment.project && one.environment == environment.key);
            let fed: Vec<String> = own.filter_map(|one| self.destination(one, &mut destinations)).collect();
            self.environment(environment, &name, &fed, &mut environments);
        }
        let (upstream, base_url) = self.account.instance.as_deref().map(instance).unwrap_or_default();
        let mut text = format!(
            "# Written by `flagtap import` from {}. What it needs from you is listed at the end.\n\n{upstream}\
             # Names of variations and dates of creation, from LaunchDarkly's API:\n\
             #launchdarkly:\n#  api_token: \"${{LD_API_TOKEN}}\"\n{base_url}\nenvironments:\n{environments}",
            self.account.source
        );
        match destinations.lines().any(|line| !line.trim_start().starts_with('#')) {
            true => text.push_str("\ndestinations:\n"),
            false => text.push_str("\ndestinations: []\n"),
        }
        text.push_str(&destinations);
        text.push_str("\n# Variables to set; flagtap also takes files, see config.example.yaml:\n");
        for variable in &self.wanted {
            let _ = writeln!(text, "#   {variable}");
        }
        text
    }

    fn environment(&mut self, environment: &Environment, name: &str, destinations: &[String], out: &mut String) {
        let called = format!("project {}, environment {}", environment.project, environment.key);
        let settings = "LaunchDarkly: the project's settings, Environments";
        let project_id = match &environment.project_id {
            Some(id) => quoted(id),
            None => self.project_id(&environment.project),
        };
        let id = match &environment.id {
            Some(id) => quoted(id),
            None => self.variable(
                "LD_CLIENT_SIDE_ID",
                name,
                &format!("client-side ID of {called}"),
                settings,
            ),
        };
        let sdk_key = self.variable("LD_SDK_KEY", name, &format!("SDK key of {called}"), settings);
        let mobile_key = self.variable("LD_MOBILE_KEY", name, &format!("mobile key of {called}"), settings);
        let _ = write!(
            out,
            "  # {}\n  - name: {}\n    project_id: {project_id}\n    environment_id: {id}\n    credentials:\n      \
             sdk_keys: [{sdk_key}]\n      mobile_keys: [{mobile_key}]\n      client_side_ids: [{id}]\n",
            comment(&called),
            quoted(name),
        );
        self.export(environment, out);
        let _ = writeln!(out, "    destinations: [{}]", destinations.join(", "));
    }

    /// Returns the variable with a project's id: one, however many of its environments there are.
    fn project_id(&mut self, project: &str) -> String {
        if let Some(known) = self.project_ids.get(project) {
            return known.clone();
        }
        let what = format!("id of the project {project}");
        let place = "LaunchDarkly's REST API: `_id` of GET /api/v2/projects/<key>";
        let quoted = self.variable("LD_PROJECT_ID", project, &what, place);
        self.project_ids.insert(project.to_owned(), quoted.clone());
        quoted
    }

    /// Returns the flags to name, each once: what flagtap takes as a key.
    fn flags<'e>(&mut self, environment: &'e Environment) -> BTreeMap<&'e String, &'e Tracked> {
        let mut flags = BTreeMap::new();
        for (key, tracked) in &environment.flags {
            if key.is_empty() || key.len() > MAX_FLAG_KEY {
                let Environment { project, key: name, .. } = environment;
                let key = comment(key);
                let left_out =
                    format!("the flag {key} of {project}/{name}: no flag's key is empty or longer than 256 bytes");
                self.left_out.push(left_out);
            } else {
                flags.entry(key).or_insert(tracked);
            }
        }
        flags
    }

    /// Repeats which flags LaunchDarkly exports.
    fn export(&mut self, environment: &Environment, out: &mut String) {
        if self.follow {
            out.push_str("    # Too many flags to list: what LaunchDarkly's settings have SDKs send is exported.\n");
            return;
        }
        if environment.has_more_flags {
            out.push_str("    # More flags than are read: what LaunchDarkly's settings have SDKs send is exported.\n");
            let Environment { project, key, .. } = environment;
            let left_out =
                format!("the flags' settings of {project}/{key}: there are more than are read, so all are exported");
            self.left_out.push(comment(&left_out));
            return;
        }
        let flags = self.flags(environment);
        let default = match (self.account.flags_may_be_missing, environment.tracks_new_flags) {
            (true, _) => String::new(),
            (false, true) => {
                let now = i64::try_from(now_ms() / 1000).ok();
                let now = now.and_then(|now| jiff::Timestamp::from_second(now).ok());
                format!(
                    "        default: new\n        since: {}\n",
                    now.map(|now| now.to_string()).unwrap_or_default()
                )
            }
            (false, false) => "        default: hold\n".to_owned(),
        };
        if default.is_empty() && flags.is_empty() {
            return;
        }
        out.push_str(
            "    # LaunchDarkly's own settings decide what SDKs send, and stay in force. To have all of it exported, now and\n    \
             # after each change there, leave `export` out.\n    export:\n      flags:\n",
        );
        out.push_str(&default);
        if flags.is_empty() {
            return;
        }
        out.push_str("        named:\n");
        for (key, tracked) in flags {
            let key = quoted_key(key);
            let _ = match tracked {
                Tracked::All => writeln!(out, "          {key}: export"),
                Tracked::Rules { rules, fallthrough } => {
                    for (id, description) in rules {
                        let said = description.as_deref().unwrap_or("a rule without description");
                        let _ = writeln!(out, "          # {}: {}", comment(id), comment(said));
                    }
                    let ids: Vec<String> = rules.iter().map(|(id, _)| quoted(id)).collect();
                    let ids = ids.join(", ");
                    writeln!(out, "          {key}: {{ rules: [{ids}], fallthrough: {fallthrough} }}")
                }
            };
        }
    }

    /// Writes a destination, and returns its name unless it is in a comment.
    fn destination(&mut self, found: &Destination, out: &mut String) -> Option<String> {
        let name = self.names.name(&found.name, "destination");
        let mut wanted = Vec::new();
        let called = format!("destination {} of {}/{}", found.name, found.project, found.environment);
        let variables = &mut self.variables;
        let mut variable = |setting: &str, place: &str| {
            let variable = variables.variable(&format!("{name}_{setting}"));
            wanted.push(Variable {
                name: variable.clone(),
                what: format!("{setting} of the {called}"),
                place: place.to_owned(),
            });
            variable
        };
        let settings = match destination::settings(found, &mut variable) {
            Ok(settings) if found.on => settings,
            Ok((kind, lines)) => {
                self.left_out.push(format!("the {}: it is off", comment(&called)));
                let _ = writeln!(out, "  # The {}: it is off.", comment(&called));
                let _ = writeln!(out, "  #- name: {}\n  #  {kind}:", quoted(&name));
                for line in lines {
                    let _ = writeln!(out, "  #    {line}");
                }
                return None;
            }
            Err(why) => {
                let why = comment(&why);
                self.left_out.push(format!("the {}: {why}", comment(&called)));
                let _ = writeln!(
                    out,
                    "  # The {}: {why}.\n  #- name: {}",
                    comment(&called),
                    quoted(&name)
                );
                return None;
            }
        };
        let (kind, lines) = settings;
        let mut entry = format!("  - name: {}\n    {kind}:\n", quoted(&name));
        for line in &lines {
            if line.starts_with("role_arn") {
                entry.push_str(
                    "      # Trusts LaunchDarkly's account: have it trust flagtap's identity, or leave it out.\n",
                );
            }
            let _ = writeln!(entry, "      {line}");
        }
        if let Err(why) = alone(&name, &entry) {
            let why = comment(&why);
            self.left_out.push(format!("the {}: {why}", comment(&called)));
            let _ = writeln!(out, "  # The {}: {why}.", comment(&called));
            for line in entry.lines() {
                let _ = writeln!(out, "  #{}", line.strip_prefix("  ").unwrap_or(line));
            }
            return None;
        }
        let _ = write!(out, "  # The {}.\n{entry}", comment(&called));
        self.wanted.extend(wanted);
        Some(quoted(&name))
    }

    /// Returns a variable in quotes, after noting it.
    fn variable(&mut self, head: &str, environment: &str, what: &str, place: &str) -> String {
        let name = self.variables.variable(&format!("{head}_{environment}"));
        let quoted = format!("\"${{{name}}}\"");
        self.wanted.push(Variable {
            name,
            what: what.to_owned(),
            place: place.to_owned(),
        });
        quoted
    }
}

/// Whether flagtap takes a destination's entry. LaunchDarkly may have taken what flagtap refuses, and one such destination
/// must not cost the others.
fn alone(name: &str, entry: &str) -> Result<(), String> {
    let text = format!(
        "environments:\n  - name: e\n    credentials: {{ sdk_keys: [k] }}\n    destinations: [{}]\ndestinations:\n{entry}",
        quoted(name)
    );
    let parsed = Config::parse(&text, &|name| Some(name.to_ascii_lowercase()));
    parsed.map(|_| ()).map_err(|problems| {
        let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
        let said = errors.map(|problem| {
            let path = problem.place.path.trim_start_matches("destinations[0].");
            format!("{path} {}", problem.message)
        });
        said.collect::<Vec<_>>().join("; ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kinesis(name: &str, stream: &str) -> Destination {
        let config =
            json!({ "region": "eu-west-1", "roleArn": "arn:aws:iam::123456789012:role/export", "streamName": stream });
        Destination {
            project: "shop".to_owned(),
            environment: "production".to_owned(),
            name: name.to_owned(),
            kind: "kinesis".to_owned(),
            config: config.as_object().unwrap().clone(),
            on: true,
        }
    }

    #[test]
    fn a_destination_that_flagtap_does_not_take_costs_no_other() {
        let account = Account {
            environments: vec![Environment {
                project: "shop".to_owned(),
                key: "production".to_owned(),
                ..Environment::default()
            }],
            destinations: vec![kinesis("odd", "two words"), kinesis("good", "events")],
            ..Account::default()
        };
        let written = write(&account).unwrap();
        assert!(
            written.text.contains("    destinations: [\"good\"]\n"),
            "{}",
            written.text
        );
        assert!(
            written.text.contains("\n  #- name: \"odd\"\n  #  kinesis:\n"),
            "{}",
            written.text
        );
        let left_out = "left out: the destination odd of shop/production: kinesis.stream_name";
        assert!(written.said.contains(left_out), "{}", written.said);
        assert!(!written.said.contains("ODD"), "{}", written.said);
    }

    #[test]
    fn a_flag_that_is_met_twice_or_has_no_usable_key_costs_no_other() {
        let key = |key: &str| (key.to_owned(), Tracked::All);
        let account = Account {
            environments: vec![Environment {
                project: "shop".to_owned(),
                key: "production".to_owned(),
                flags: vec![key("a"), key(""), key("a"), key(&"k".repeat(257)), key("b")],
                ..Environment::default()
            }],
            ..Account::default()
        };
        let written = write(&account).unwrap();
        let named = "        named:\n          \"a\": export\n          \"b\": export\n    destinations";
        assert!(written.text.contains(named), "{}", written.text);
        assert_eq!(written.said.matches("no flag's key").count(), 2, "{}", written.said);
    }

    #[test]
    fn an_environment_with_more_flags_than_are_read_holds_none() {
        let account = Account {
            environments: vec![Environment {
                project: "shop".to_owned(),
                key: "production".to_owned(),
                flags: vec![("a".to_owned(), Tracked::All)],
                has_more_flags: true,
                ..Environment::default()
            }],
            ..Account::default()
        };
        let written = write(&account).unwrap();
        assert!(
            !written.text.contains("export:") && !written.text.contains("hold"),
            "{}",
            written.text
        );
        assert!(
            written
                .said
                .contains("left out: the flags' settings of shop/production"),
            "{}",
            written.said
        );
    }

    #[test]
    fn an_account_of_another_instance_goes_to_its_own_events_service() {
        for (api, events) in INSTANCES {
            let account = Account {
                instance: Some(api.to_owned()),
                environments: vec![Environment {
                    project: "shop".to_owned(),
                    key: "production".to_owned(),
                    ..Environment::default()
                }],
                ..Account::default()
            };
            let written = write(&account).unwrap();
            let upstream = format!("\nupstream:\n  url: {events}\n");
            assert!(written.text.contains(&upstream), "{}", written.text);
            assert!(
                written.text.contains(&format!("#  base_url: {api}\n")),
                "{}",
                written.text
            );
        }
    }
}
