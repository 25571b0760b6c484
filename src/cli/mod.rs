//! The command line: one file per command.
//!
//! Exit codes: 0 done, 1 failed at run time (a destination that does not work or take the test event included), 2 wrong
//! arguments (clap), 64 wrong configuration (`EX_USAGE`).

use std::fmt::Display;
use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::app::SetLevel;
use crate::config::{Format, Level, Log};
use crate::log::Lines;

mod allocator;
mod check;
mod coverage;
mod demo;
mod drain;
mod explain;
mod import;
mod injector;
mod probe;
mod probe_destinations;
mod queue;
mod schema;
mod send_test_event;
mod serve;

/// LaunchDarkly Data Export in your own cluster: a transparent events relay with a durable tee.
#[derive(Parser)]
#[command(name = "flagtap", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay.
    Serve {
        /// Configuration file; without one flagtap runs on embedded defaults and says so.
        #[arg(long, env = "FLAGTAP_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check a configuration file and report every problem in it (exit code 64 if there is one).
    Check {
        /// Configuration file.
        #[arg(value_name = "FILE", required_unless_present = "config")]
        file: Option<PathBuf>,
        /// The same, as the other commands take it.
        #[arg(long, env = "FLAGTAP_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        /// Then contact the upstream and each destination, without sending an event, and say what works (exit code 1 if one does not).
        #[arg(long)]
        probe: bool,
    },
    /// Send one made-up feature event, with LaunchDarkly's own test key, to a destination (exit code 0 if delivered).
    SendTestEvent {
        /// Configuration file; without one the embedded defaults count, as for `serve`.
        #[arg(long, env = "FLAGTAP_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        /// The destination's name.
        #[arg(long, value_name = "NAME")]
        destination: String,
        /// The environment that the event is said to be of; needed if several use the destination.
        #[arg(long, value_name = "NAME")]
        environment: Option<String>,
    },
    /// Send recorded SDK traffic through a relay on this machine and show what is exported.
    Demo {
        /// Folder for the demo's queue and export; a new one below it is used for each run.
        #[arg(long, default_value = "flagtap-demo", value_name = "DIR")]
        dir: PathBuf,
    },
    /// Ask a running flagtap how it is; for probes in images without a shell.
    Probe {
        /// What to ask.
        what: Probe,
        /// The telemetry port's address.
        #[arg(long, default_value = "127.0.0.1:8031", value_name = "ADDRESS")]
        telemetry: String,
    },
    /// Deliver what waits in a queue that no relay has open, then end (exit code 1 if anything is left in it).
    Drain {
        /// Configuration file.
        #[arg(long, env = "FLAGTAP_CONFIG", value_name = "FILE")]
        config: PathBuf,
        /// How long to try, such as 1h.
        #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = crate::units::parse_duration)]
        within: Duration,
    },
    /// Wait and do nothing, for preStop hooks in an image without a shell.
    Wait {
        /// How long, such as 15s.
        #[arg(value_name = "DURATION", value_parser = crate::units::parse_duration)]
        duration: Duration,
    },
    /// Look into a queue, check and repair it, and decide about dead letters.
    Queue {
        #[command(subcommand)]
        command: Box<queue::Command>,
    },
    /// Show what a running flagtap exports of each flag, and why not.
    Coverage {
        /// Only the environment with this name.
        #[arg(long, value_name = "NAME")]
        environment: Option<String>,
        /// Print the whole document as JSON.
        #[arg(long)]
        json: bool,
        /// The telemetry port's address.
        #[arg(long, default_value = "127.0.0.1:8031", value_name = "ADDRESS")]
        address: String,
    },
    /// Say for each event what becomes of it, and which setting decides.
    ///
    /// The input is JSON values one after another: events, arrays of events, or requests as docs/selection.md describes
    /// them.
    Explain(explain::Arguments),
    /// Print the JSON Schema of the configuration file.
    Schema,
    /// Write a configuration from what is set up in LaunchDarkly: its Data Export destinations, environments and flags.
    Import {
        #[command(subcommand)]
        source: import::Command,
    },
    /// Serve the admission webhook that adds the relay to pods as a sidecar.
    Injector(Box<injector::Arguments>),
    /// Print docs/metrics.md.
    Metrics,
    /// Print docs/destinations.md: what destinations answer, and what follows.
    Destinations,
}

/// What a probe asks.
#[derive(Clone, Copy, ValueEnum)]
enum Probe {
    /// The process serves.
    Live,
    /// The relay listens and was not asked to stop.
    Ready,
}

/// The exit code for a configuration that cannot be used (`EX_USAGE` of sysexits).
const UNUSABLE: u8 = 64;

// A sidecar shares its node: more threads than this buy no throughput, only memory.
const MAX_THREADS: usize = 4;

/// How long the last lines of a log that somebody reads may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Parses the process's arguments and runs the command.
pub fn main() -> ExitCode {
    let code = run(Arguments::parse().command);
    crate::log::flush(LAST_LINES);
    code
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve { config } => {
            let threads = available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
            allocator::settle(threads);
            serve::run(config.as_deref(), threads)
        }
        Command::Check { file, config, probe } => {
            let file = file.or(config).unwrap_or_default();
            check(&file, probe).unwrap_or(ExitCode::FAILURE)
        }
        Command::SendTestEvent {
            config,
            destination,
            environment,
        } => send_test_event::run(
            config.as_deref(),
            &destination,
            environment.as_deref(),
            &mut io::stdout(),
        )
        .unwrap_or(ExitCode::FAILURE),
        Command::Demo { dir } => demo::run(&dir),
        Command::Probe { what, telemetry } => probe::run(what, &telemetry),
        Command::Drain { config, within } => drain::run(&config, within, |log| drop(log_to_stderr(log))),
        Command::Wait { duration } => {
            std::thread::sleep(duration);
            ExitCode::SUCCESS
        }
        Command::Queue { command } => queue::run(*command),
        Command::Coverage {
            environment,
            json,
            address,
        } => coverage::run(&address, environment.as_deref(), json),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Schema => {
            print(&schema::document());
            ExitCode::SUCCESS
        }
        Command::Import { source } => import::run(source),
        Command::Injector(arguments) => injector::run(*arguments),
        Command::Metrics => {
            print(&crate::metrics::document());
            ExitCode::SUCCESS
        }
        Command::Destinations => {
            print(&crate::destination::document());
            ExitCode::SUCCESS
        }
    }
}

fn check(file: &Path, probe: bool) -> io::Result<ExitCode> {
    let out = &mut io::stdout();
    match check::run(file, out)? {
        Some(config) if probe => probe_destinations::run(&config, out),
        Some(_) => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::from(UNUSABLE)),
    }
}

/// Runs `work` to its end. Writes that hang on a broken disk are left behind.
fn complete<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Runtime::new()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done)
}

/// Sets the log up, and returns what changes its level.
fn log_to_stderr(log: Log) -> SetLevel {
    if let Err(error) = crate::log::start() {
        say(format_args!("nothing will be logged: {error}\n"));
    }
    // A log that cannot be written is no reason to panic.
    let builder = tracing_subscriber::fmt()
        .with_writer(|| Lines)
        .log_internal_errors(false);
    // The level fails to change only once the log is gone.
    match log.format {
        Format::Json => {
            let builder = builder
                .json()
                .with_env_filter(filter(log.level))
                .with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |level| drop(handle.reload(filter(level))))
        }
        Format::Text => {
            let builder = builder
                .with_target(false)
                .with_env_filter(filter(log.level))
                .with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |level| drop(handle.reload(filter(level))))
        }
    }
}

fn filter(level: Level) -> EnvFilter {
    // Libraries below the line of interest: their debug output names addresses and headers.
    EnvFilter::new(format!("warn,flagtap={}", level.as_str()))
}

/// Writes to standard output; a closed pipe is nobody's problem.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Writes to standard error, as it is; if that is closed or full there is nobody to tell.
fn say(text: impl Display) {
    let _ = write!(io::stderr(), "{text}");
}

/// Returns a text from elsewhere as it can be shown on a terminal: without what steers one, or makes it show another text.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
}
