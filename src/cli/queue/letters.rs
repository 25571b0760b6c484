//! `flagtap queue dead-letters …`: what was given up, and what becomes of it.
//!
//! `list` and `show` read the file. `replay` and `discard` open a stopped queue, or ask the relay that has it open at its
//! admin port. Letters are taken in batches, so that any number of them needs little memory.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use tokio::runtime::Runtime;

use super::show::table;
use super::{Found, Place, Stop, remote, runtime};
use crate::admin::letters::{Filter, Shown};
use crate::admin::settle::{self, Action};
use crate::cli::{printable, say};
use crate::queue::sled::inspect::Inspection;
use crate::queue::sled::repair;
use crate::queue::{Queue, Settings, now_ms};

/// What is done with dead letters.
#[derive(Subcommand)]
pub(in crate::cli) enum Command {
    /// List them: when, whose, what, why.
    List(Selection),
    /// Show them whole, with the event as the SDK sent it.
    Show(Selection),
    /// Deliver them again, with the ids they had.
    Replay {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        relay: Relay,
    },
    /// Remove them for good.
    Discard {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        relay: Relay,
        /// Do it: without this only their number is printed.
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters.
#[derive(Args)]
pub(in crate::cli) struct Selection {
    #[command(flatten)]
    place: Place,
    /// Only those of this destination.
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Only those given up at this time or later: 2026-08-01T12:00:00Z, or how long ago: 2h.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only those given up before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only events of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// Only evaluations of the flag with this key.
    #[arg(long, value_name = "KEY")]
    flag: Option<String>,
    /// Only those whose reason contains this text.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only the event with this id.
    #[arg(long)]
    id: Option<String>,
    /// At most so many, the oldest first.
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The relay that has the queue open.
#[derive(Args)]
pub(in crate::cli) struct Relay {
    /// Its admin port, where the configuration does not say it.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// A file with the admin port's token.
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

impl Selection {
    fn filter(&self) -> Filter {
        Filter {
            destination: self.destination.clone(),
            since: self.since.clone(),
            until: self.until.clone(),
            kind: self.kind.clone(),
            flag: self.flag.clone(),
            reason: self.reason.clone(),
            id: self.id.clone(),
        }
    }
}

/// Runs the command; returns the exit code.
pub(super) fn run(command: Command) -> Result<ExitCode, Stop> {
    match command {
        Command::List(selection) => list(&selection, false),
        Command::Show(selection) => list(&selection, true),
        Command::Replay { selection, relay } => settle(&selection, &relay, Action::Replay),
        Command::Discard {
            selection,
            relay,
            yes: true,
        } => settle(&selection, &relay, Action::Discard),
        Command::Discard { selection, .. } => {
            let count = count(&selection)?;
            say(format_args!(
                "{count} dead letters would be removed for good; give --yes to do it\n"
            ));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn list(selection: &Selection, whole: bool) -> Result<ExitCode, Stop> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut rows = vec![["time", "destination", "kind", "flag", "event id", "reason"].map(str::to_owned)];
    let mut outcome = Ok(());
    let found = each(
        selection,
        |shown| {
            if whole || selection.json {
                let text = if selection.json {
                    serde_json::to_string(&shown)
                } else {
                    serde_json::to_string_pretty(&shown)
                };
                outcome = text.map_err(io::Error::other).and_then(|text| writeln!(out, "{text}"));
                return outcome.is_ok();
            }
            let passing = if shown.transient { " (transient)" } else { "" };
            rows.push([
                shown.time,
                shown.destination,
                shown.kind.to_owned(),
                shown.flag.as_deref().map_or_else(|| "-".to_owned(), printable),
                shown.id,
                format!("{}{passing}", printable(&shown.reason)),
            ]);
            // Columns fit a screenful; a long list is printed as it comes.
            if rows.len() > 1000 {
                outcome = table(&rows, &mut out);
                rows.truncate(1);
            }
            outcome.is_ok()
        },
        whole,
    )?;
    outcome?;
    if !whole && !selection.json && rows.len() > 1 {
        table(&rows, &mut out)?;
    }
    out.flush()?;
    if found == 0 {
        say(format_args!("no dead letters\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Hands each letter that is selected to `take` until it returns false. Returns how many there were.
fn each(selection: &Selection, mut take: impl FnMut(Shown) -> bool, whole: bool) -> Result<u64, Stop> {
    let filter = selection.filter();
    let wanted = filter.test(now_ms()).map_err(anyhow::Error::msg)?;
    let limit = selection.limit.unwrap_or(u64::MAX);
    let mut found = 0;
    let inspection = selection.place.open()?;
    inspection.dead_letters(|name, letter| {
        let is_wanted = filter.destination.as_ref().is_none_or(|wanted| *wanted == name) && wanted(&letter);
        if !is_wanted || found >= limit {
            return found < limit;
        }
        found += 1;
        take(Shown::of(&name, &letter, whole))
    })?;
    Ok(found)
}

fn count(selection: &Selection) -> Result<u64, Stop> {
    each(selection, |_| true, false)
}

fn settle(selection: &Selection, relay: &Relay, action: Action) -> Result<ExitCode, Stop> {
    let found = selection.place.find()?;
    let is_running = relay.admin.is_some() || Inspection::open(&found.dir)?.in_use();
    let runtime = runtime()?;
    let settled = if is_running {
        runtime.block_on(beside(selection, relay, &found, action))?
    } else {
        stopped(&runtime, selection, &found.dir, action)?
    };
    let done = match action {
        Action::Replay => "replayed",
        Action::Discard => "discarded",
    };
    if selection.json {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::json!({ done: settled }))?;
    } else {
        say(format_args!("{done} {settled} dead letters\n"));
    }
    Ok(ExitCode::SUCCESS)
}

fn stopped(runtime: &Runtime, selection: &Selection, dir: &Path, action: Action) -> anyhow::Result<u64> {
    runtime.block_on(async {
        let queue = repair::open(dir, Settings::default().headroom_bytes).await?;
        let limit = selection.limit.unwrap_or(u64::MAX);
        let outcome = settle::settle(&queue, &selection.filter(), limit, action, now_ms()).await;
        queue.close().await;
        Ok(outcome?.letters)
    })
}

async fn beside(selection: &Selection, relay: &Relay, found: &Found, action: Action) -> anyhow::Result<u64> {
    let address = match (&relay.admin, &found.admin) {
        (Some(address), _) => address.clone(),
        (None, Some(admin)) => remote::reachable(admin.listen).to_string(),
        (None, None) => bail!(
            "the queue is open in a running relay, which alone can change it: give --config FILE with its `admin` port, or \
             --admin ADDRESS"
        ),
    };
    let token = match &relay.admin_token_file {
        Some(file) => Some(remote::token(file).with_context(|| format!("cannot read {}", file.display()))?),
        None => found.admin.as_ref().and_then(|admin| admin.token.clone()),
    };
    remote::settle(&address, token.as_ref(), &selection.filter(), selection.limit, action).await
}
