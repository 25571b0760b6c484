//! The configuration file's whole shape, its defaults and its checks.
//!
//! [`Config::load`] reports every problem of a file at once, with line and column. What a key means and why its
//! default is what it is stands in `config.example.yaml`; tests hold that file, `docs/configuration.md` and the
//! readers here together. Values for `${NAME}` come from here and from nowhere else.

mod admin;
mod check;
mod destinations;
mod environments;
mod launchdarkly;
mod queue;
mod selection;
mod traffic;
mod written;

use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::problems::{Place, Problems};
use crate::section::{self, Leaf, Section};

pub use admin::Admin;
pub use destinations::Destination;
pub use environments::{Credentials, Environment};
pub use launchdarkly::LaunchDarkly;
pub use queue::{Dedupe, Engine, Queue, WhenFull};
pub use traffic::{Limits, Listen, OnFailure, Tee, Tls, Upstream, When};
pub use written::{document, export, yaml};

/// Read no more than this of a file that may be anything; the parser then refuses it as too large.
const MAX_FILE_BYTES: u64 = (1 << 20) + 1;

/// Everything that flagtap is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where SDKs connect.
    pub listen: Listen,
    /// Where probes and Prometheus connect: no data, no secrets.
    pub telemetry: SocketAddr,
    /// Where people and their tools connect; nothing if it is off.
    pub admin: Option<Admin>,
    /// What is logged, and how.
    pub log: Log,
    /// LaunchDarkly's events service.
    pub upstream: Upstream,
    /// What a client may take of connections, headers and time.
    pub limits: Limits,
    /// How events are copied.
    pub tee: Tee,
    /// Where copies wait for their destinations.
    pub queue: Queue,
    /// How an SDK's retry is recognised.
    pub dedupe: Dedupe,
    /// LaunchDarkly's REST API, if more is to be known of flags than traffic shows.
    pub launchdarkly: Option<LaunchDarkly>,
    /// Whose events are exported. At least one.
    pub environments: Vec<Environment>,
    /// Where events go.
    pub destinations: Vec<Destination>,
    /// How flagtap ends.
    pub shutdown: Grace,
    /// What may be changed without the file.
    pub settings: RunTime,
    /// Files with secrets that it was read from, beside its own.
    pub secret_files: Vec<PathBuf>,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is shown.
    pub level: Level,
    /// How a line looks.
    pub format: Format,
}

crate::choices! {
    /// A log level.
    pub enum Level {
        /// Data lost or help needed.
        Error = "error",
        /// Recovered, nothing lost.
        Warn = "warn",
        /// State changes that an operator asked for.
        Info = "info",
        /// One line per batch.
        Debug = "debug",
        /// Everything that libraries say.
        Trace = "trace",
    }
}

crate::choices! {
    /// How a log line looks.
    pub enum Format {
        /// For people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

/// What may be changed without the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunTime {
    /// Export settings may be changed at the admin port, and hold over the file's.
    pub mutable: bool,
}

impl Default for RunTime {
    fn default() -> Self {
        Self { mutable: true }
    }
}

/// How flagtap ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// From the first signal to the end: connections are still accepted and destinations still served.
    pub grace: Duration,
    /// The last part of `grace`, kept for the final flush of queue and destinations.
    pub reserve: Duration,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: Level::Info,
            format: Format::Json,
        }
    }
}

impl Default for Grace {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(25),
            reserve: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// Reads the file at `path`. Returns the configuration and its warnings, or every problem.
    ///
    /// `environment` gives the values for `${NAME}`; [`process_environment`] outside tests.
    pub fn load(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<(Self, Problems), Problems> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text))
            .map_err(|error| Problems::one(Place::default(), format!("cannot be read: {error}")))?;
        Self::parse(&text, environment)
    }

    /// Reads a configuration's text, like [`Config::load`].
    pub fn parse(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<(Self, Problems), Problems> {
        let section::Reading {
            value,
            mut problems,
            files,
            ..
        } = section::read(text, environment, read);
        match value.flatten() {
            Some(mut config) if !problems.has_errors() => {
                config.secret_files = files;
                Ok((config, problems))
            }
            _ => {
                if !problems.has_errors() {
                    problems.error(Place::default(), "cannot be used, for a reason that no check names");
                }
                Err(problems)
            }
        }
    }

    /// Returns the JSON Schema of the file. `meaning` describes a key by its path, such as `queue.max_bytes`.
    pub fn schema(meaning: &dyn Fn(&str) -> Option<String>) -> serde_json::Value {
        section::schema(read, meaning)
    }

    /// Returns the configuration for a start without a file: everything LaunchDarkly accepts from here is exported to
    /// `./flagtap-export`.
    pub fn embedded() -> Self {
        let archive = Destination::archive();
        Self {
            listen: Listen::default(),
            telemetry: TELEMETRY,
            admin: Some(Admin::default()),
            log: Log::default(),
            upstream: Upstream::default(),
            limits: Limits::default(),
            tee: Tee::default(),
            queue: Queue::default(),
            dedupe: Dedupe::default(),
            launchdarkly: None,
            environments: vec![Environment::lone(&archive.name)],
            destinations: vec![archive],
            shutdown: Grace::default(),
            settings: RunTime::default(),
            secret_files: Vec::new(),
        }
    }
}

/// Returns the value of a variable of the process, nothing if it is not set or not Unicode.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// ld-relay serves Prometheus at the same port.
const TELEMETRY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8031);

fn read(root: &mut Section<'_>) -> Option<Config> {
    let listen = traffic::read_listen(root);
    let telemetry = root.or("telemetry", TELEMETRY);
    let admin = admin::read(root);
    let log = root.section("log", read_log).unwrap_or_default();
    let upstream = root.section("upstream", traffic::read_upstream).unwrap_or_default();
    let limits = root.section("limits", traffic::read_limits).unwrap_or_default();
    let tee = root.section("tee", traffic::read_tee).unwrap_or_default();
    let queue = queue::read_queue(root);
    let dedupe = root.section("dedupe", queue::read_dedupe).unwrap_or_default();
    let launchdarkly = launchdarkly::read(root);
    let environments = environments::read_all(root);
    let destinations = destinations::read_all(root);
    let shutdown = root.section("shutdown", read_grace).unwrap_or_default();
    let settings = root.section("settings", read_run_time).unwrap_or_default();
    check::addresses(root, &listen, telemetry, admin.as_ref(), &upstream);
    check::sizes(root, &tee, &queue);
    check::environments(root, &environments, &destinations, &queue);
    Some(Config {
        listen,
        telemetry,
        admin,
        log,
        upstream,
        limits,
        tee,
        queue,
        dedupe,
        launchdarkly,
        environments: environments.into_iter().map(|read| read.value).collect::<Option<_>>()?,
        destinations: destinations.into_iter().map(|read| read.value).collect::<Option<_>>()?,
        shutdown,
        settings,
        secret_files: Vec::new(),
    })
}

fn read_log(section: &mut Section<'_>) -> Log {
    let default = Log::default();
    Log {
        level: section.or("level", default.level),
        format: section.or("format", default.format),
    }
}

fn read_run_time(section: &mut Section<'_>) -> RunTime {
    RunTime {
        mutable: section.or("mutable", RunTime::default().mutable),
    }
}

fn read_grace(section: &mut Section<'_>) -> Grace {
    let default = Grace::default();
    let shutdown = Grace {
        grace: section.or("grace", default.grace),
        reserve: section.or("reserve", default.reserve),
    };
    if shutdown.reserve >= shutdown.grace {
        let key = if section.has("reserve") { "reserve" } else { "grace" };
        section.problem(
            Some(key),
            format!(
                "leaves no time to deliver: the reserve ({}) must be shorter than the grace period ({})",
                shutdown.reserve.show(),
                shutdown.grace.show()
            ),
        );
    }
    shutdown
}

/// A name that is safe as a metric label, a cursor's key and a part of a file's name.
struct Name(String);

impl Leaf for Name {
    fn expected() -> String {
        "a name of up to 63 lower-case letters, digits, `-`, `_` and `.`, such as production".to_owned()
    }

    fn noun() -> String {
        "name".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let first = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let rest = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
        if first && rest && text.len() <= 63 {
            Ok(Self(text.to_owned()))
        } else {
            Err("is not a valid name".to_owned())
        }
    }

    fn schema() -> serde_json::Value {
        section::scalar("[a-z0-9][a-z0-9._-]{0,62}", None)
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// Reads the key `name` with its place.
fn read_name(section: &mut Section<'_>) -> Option<(String, Place)> {
    let Name(name) = section.required("name")?;
    Some((name, section.place(Some("name"))))
}

/// Reads a duration that must not be zero.
fn positive(section: &mut Section<'_>, key: &str, default: Duration) -> Duration {
    let value = section.or(key, default);
    if value.is_zero() {
        section.problem(Some(key), format!("is zero; expected {}", Duration::expected()));
    }
    value
}

/// Reports a named file that cannot be opened.
fn must_open(section: &Section<'_>, key: &str, path: &Path) {
    if let Err(error) = File::open(path) {
        section.problem(Some(key), format!("names a file that cannot be read: {}", error.kind()));
    }
}

#[cfg(all(test, feature = "kinesis"))]
mod pasted;
// The example has every kind of destination, so its tests need a build that has them all.
#[cfg(all(test, feature = "kinesis"))]
mod tests;
