//! An account as LaunchDarkly's REST API tells it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::text::comment;
use super::{Account, Destination, Environment, Tracked};
use crate::catalogue::rest::Rest;
use crate::catalogue::{self, Flag};
use crate::config::process_environment;
use crate::secret::Secret;

/// Longest file with a token, bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Reads the account: environments that have a destination, and those that are asked for (`project/environment`).
pub(super) fn read(token_file: Option<&Path>, base_url: &str, asked: &[String]) -> anyhow::Result<Account> {
    let token = token(token_file)?;
    let url: http::Uri = base_url.parse().context("--base-url is not a URL")?;
    let loopback = matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    ensure!(
        url.scheme_str() == Some("https") || loopback,
        "--base-url must be https: the token would cross the network in plain text"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let base_url = base_url.trim_end_matches('/');
    let mut account = runtime.block_on(account(Rest::new(base_url.to_owned(), token), asked))?;
    account.instance = (base_url != super::BASE_URL).then(|| base_url.to_owned());
    Ok(account)
}

fn token(file: Option<&Path>) -> anyhow::Result<Secret> {
    let text = match file {
        Some(path) => {
            let mut text = String::new();
            File::open(path)
                .and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
                .with_context(|| format!("cannot read {}", path.display()))?;
            text
        }
        None => process_environment("LD_API_TOKEN").context(
            "give an API access token (LaunchDarkly: Organization settings, Authorization; role Reader) in the variable \
             LD_API_TOKEN or with --token-file",
        )?,
    };
    let text = text.trim();
    let fits = !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace() || !c.is_ascii());
    ensure!(fits, "the API access token is empty or holds something else");
    Ok(Secret::new(text.to_owned()))
}

async fn account(rest: Rest, asked: &[String]) -> anyhow::Result<Account> {
    let destinations = rest.destinations().await?;
    let (mut environments, mut left_out) = (Vec::new(), Vec::new());
    let mut missing: Vec<&String> = asked.iter().collect();
    for project in rest.projects().await? {
        for mut environment in project.environments {
            let name = format!("{}/{}", project.key, environment.key);
            let exports = destinations
                .iter()
                .any(|one| one.project == project.key && one.environment == environment.key);
            missing.retain(|asked| **asked != name);
            if exports || asked.contains(&name) {
                rest.read_flags(&mut environment).await?;
                environments.push(found(environment));
            } else {
                left_out.push(format!(
                    "the environment {}: it has no destination (--environment {0} imports it)",
                    comment(&name)
                ));
            }
        }
    }
    if let Some(missing) = missing.first() {
        bail!("there is no environment {missing}, or the token may not see it");
    }
    ensure!(
        !environments.is_empty(),
        "this token sees no Data Export destination; name environments with --environment PROJECT/ENVIRONMENT"
    );
    let destinations = destinations.into_iter().map(|one| Destination {
        project: one.project,
        environment: one.environment,
        name: one.name,
        kind: one.kind,
        config: one.config,
        on: one.on,
    });
    Ok(Account {
        source: "LaunchDarkly's REST API".to_owned(),
        instance: None,
        environments,
        destinations: destinations.collect(),
        flags_may_be_missing: false,
        left_out,
    })
}

fn found(environment: catalogue::Environment) -> Environment {
    let flags = environment.flags.into_iter();
    Environment {
        project: environment.project_key,
        key: environment.key,
        project_id: Some(environment.project_id),
        id: Some(environment.id),
        tracks_new_flags: environment.tracks_new_flags,
        has_more_flags: environment.has_more_flags,
        flags: flags.filter_map(|(key, flag)| Some((key, tracked(flag)?))).collect(),
    }
}

fn tracked(flag: Flag) -> Option<Tracked> {
    if flag.tracked {
        return Some(Tracked::All);
    }
    let chosen = flag.rules.into_iter().filter(|rule| rule.tracked);
    let rules: Vec<_> = chosen.map(|rule| (rule.id, rule.description)).collect();
    (!rules.is_empty() || flag.tracks_fallthrough).then_some(Tracked::Rules {
        rules,
        fallthrough: flag.tracks_fallthrough,
    })
}
