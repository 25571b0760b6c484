//! `flagtap queue …`: looks into a queue, checks it, repairs it, and decides about dead letters.
//!
//! What only looks works on a stopped folder and beside a running relay, and never writes to the folder. What changes
//! something works on a stopped folder, or goes through the admin port of the relay that has it open.

mod export;
mod letters;
mod remote;
mod show;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cli::{UNUSABLE, say};
use crate::config::{self, Admin, Config, Engine};
use crate::queue::sled::inspect::{InspectError, Inspection};
use crate::queue::sled::repair::repair;

/// What is done with a queue.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Show what waits for whom, since when, and what was set aside.
    Inspect {
        #[command(flatten)]
        place: Place,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read every record and check every checksum (exit code 1 if something is damaged).
    Verify {
        #[command(flatten)]
        place: Place,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Set aside what cannot be read; on a stopped queue only. Deletes nothing.
    Repair {
        #[command(flatten)]
        place: Place,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the events that wait as export records, one JSON object a line, to standard output.
    Export {
        #[command(flatten)]
        place: Place,
        /// Only what waits for this destination.
        #[arg(long, value_name = "NAME")]
        destination: Option<String>,
    },
    /// List, show, replay or discard the events that were given up.
    DeadLetters {
        #[command(subcommand)]
        command: Box<letters::Command>,
    },
}

/// Which queue.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct Place {
    /// The queue's folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The configuration file that names the folder, and the admin port of the relay that has it open.
    #[arg(long, env = "FLAGTAP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A queue's folder, and the admin port that the configuration names.
struct Found {
    dir: PathBuf,
    admin: Option<Admin>,
    /// The destinations of the configuration, if there is one.
    names: Option<Vec<String>>,
}

/// How a command ended, if not well.
enum Stop {
    /// The configuration cannot be used; said already.
    Unusable,
    /// This is why.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the command; returns the exit code.
pub(super) fn run(command: Command) -> ExitCode {
    let outcome = match command {
        Command::Inspect { place, json } => inspect(&place, json),
        Command::Verify { place, json } => verify(&place, json),
        Command::Repair { place, json } => set_aside(&place, json),
        Command::Export { place, destination } => export(&place, destination.as_deref()),
        Command::DeadLetters { command } => letters::run(*command),
    };
    match outcome {
        Ok(code) => code,
        Err(Stop::Unusable) => ExitCode::from(UNUSABLE),
        Err(Stop::Failed(error)) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(Stop::Failed(error)) => {
            say(format_args!("{error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

impl Place {
    fn find(&self) -> Result<Found, Stop> {
        if let Some(dir) = &self.dir {
            return Ok(Found {
                dir: dir.clone(),
                admin: None,
                names: None,
            });
        }
        let path = self.config.clone().unwrap_or_default();
        let (config, _) = Config::load(&path, &config::process_environment).map_err(|problems| {
            say(problems.render(&path.display().to_string()));
            Stop::Unusable
        })?;
        match config.queue.engine {
            Engine::Sled { path } => Ok(Found {
                dir: path,
                admin: config.admin,
                names: Some(config.destinations.into_iter().map(|known| known.name).collect()),
            }),
            Engine::Memory => Err(anyhow::anyhow!(
                "the queue of this configuration is in memory: only the relay itself can tell, at /api/status and \
                 /api/dead-letters of its admin port"
            )
            .into()),
        }
    }

    fn open(&self) -> Result<Inspection, Stop> {
        Ok(Inspection::open(&self.find()?.dir)?)
    }
}

fn inspect(place: &Place, json: bool) -> Result<ExitCode, Stop> {
    let found = place.find()?;
    let overview = Inspection::open(&found.dir)?.overview()?;
    let names = found.names.as_deref();
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &show::overview_json(&overview, names))?;
        writeln!(out)?;
    } else {
        show::overview(&overview, names, crate::queue::now_ms(), &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(place: &Place, json: bool) -> Result<ExitCode, Stop> {
    let verification = place.open()?.verify()?;
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &show::verification_json(&verification))?;
        writeln!(out)?;
    } else {
        show::verification(&verification, &mut out)?;
    }
    Ok(if verification.damaged > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn set_aside(place: &Place, json: bool) -> Result<ExitCode, Stop> {
    let dir = place.find()?.dir;
    let repaired = runtime()?.block_on(repair(&dir)).map_err(|error| match error {
        InspectError::InUse { path } => {
            anyhow::anyhow!(
                "the queue at {path} is open in another process: a running relay sets aside what it cannot read by \
                 itself; stop it to do so at once"
            )
        }
        error => error.into(),
    })?;
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &show::repair_json(&repaired))?;
        writeln!(out)?;
    } else {
        show::repair(&repaired, &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn export(place: &Place, destination: Option<&str>) -> Result<ExitCode, Stop> {
    let inspection = place.open()?;
    if let Some(name) = destination
        && !inspection.consumers().iter().any(|consumer| consumer.name == name)
    {
        let known: Vec<String> = inspection
            .consumers()
            .into_iter()
            .map(|consumer| consumer.name)
            .collect();
        return Err(anyhow::anyhow!("nothing waits for {name}; the queue knows: {}", known.join(", ")).into());
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let unread = export::write(&inspection, destination, &mut out)?;
    out.flush()?;
    for what in &unread {
        say(format_args!("left out: {what}\n"));
    }
    Ok(if unread.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) || cause.to_string().contains("Broken pipe")
    })
}
