//! `flagtap import`: a configuration from what is set up in LaunchDarkly already.
//!
//! Two sources, one [`Account`], one writer. Writes the configuration to standard output and touches nothing else. No secret
//! is ever written, also one that the source reveals: each becomes a named variable, listed at the end with where its value
//! is. What is written was read by flagtap's own reader first.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Map, Value};

use crate::catalogue::rest::BASE_URL;
use crate::cli::{print, say};

mod destination;
mod launchdarkly;
mod terraform;
mod text;
mod written;

/// Where LaunchDarkly's settings are read.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Read an account by LaunchDarkly's REST API: environments with a Data Export destination, and their flags.
    ///
    /// The API access token (role Reader) comes from the variable LD_API_TOKEN or from a file.
    Launchdarkly {
        /// File with the API access token.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// The API's scheme and host; other instances than LaunchDarkly's own have others.
        #[arg(long, value_name = "URL", default_value = BASE_URL)]
        base_url: String,
        /// Also an environment without a destination, as PROJECT/ENVIRONMENT. Any number.
        #[arg(long, value_name = "KEYS")]
        environment: Vec<String>,
    },
    /// Read what Terraform manages, from the output of `terraform show -json`.
    Terraform {
        /// The file; `-` for standard input.
        file: PathBuf,
    },
}

/// What is set up in LaunchDarkly.
#[derive(Debug, Default)]
struct Account {
    /// What it was read from, for people.
    source: String,
    /// The API's scheme and host, if not LaunchDarkly's own.
    instance: Option<String>,
    environments: Vec<Environment>,
    destinations: Vec<Destination>,
    /// Flags that are not among those of an environment may be exported too.
    flags_may_be_missing: bool,
    /// What the source has and the configuration does not, for people.
    left_out: Vec<String>,
}

/// An environment of a project.
#[derive(Clone, Debug, Default)]
struct Environment {
    project: String,
    key: String,
    /// 24 hex digits, if the source knows it.
    project_id: Option<String>,
    /// 24 hex digits, if the source knows it.
    id: Option<String>,
    tracks_new_flags: bool,
    /// There are more flags than were read.
    has_more_flags: bool,
    /// The flags that are exported, by their keys.
    flags: Vec<(String, Tracked)>,
}

/// Which of a flag's evaluations are exported.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tracked {
    All,
    Rules {
        /// Each with what people call it.
        rules: Vec<(String, Option<String>)>,
        fallthrough: bool,
    },
}

/// A destination of LaunchDarkly's Data Export.
#[derive(Clone, Debug)]
struct Destination {
    project: String,
    environment: String,
    name: String,
    /// In LaunchDarkly's words.
    kind: String,
    /// In the words of LaunchDarkly's API or of its Terraform provider.
    config: Map<String, Value>,
    on: bool,
}

/// Imports; 1 with the reason on standard error if the source cannot be read or has nothing to import.
pub(super) fn run(command: Command) -> ExitCode {
    let account = match command {
        Command::Launchdarkly {
            token_file,
            base_url,
            environment,
        } => launchdarkly::read(token_file.as_deref(), &base_url, &environment),
        Command::Terraform { file } => terraform::read(&file),
    };
    match account.and_then(|account| written::write(&account)) {
        Ok(written) => {
            print(&written.text);
            say(&written.said);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(format_args!("{error:#}\n"));
            ExitCode::FAILURE
        }
    }
}
