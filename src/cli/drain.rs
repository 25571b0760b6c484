//! `flagtap drain`: delivers what waits in a queue that nobody serves, and ends.
//!
//! For the volume of a replica that is gone. It is the relay without its traffic: the same queue, destinations and retries,
//! and the telemetry port; nobody but this machine could connect to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tracing::error;

use crate::app::{App, Left, Source};
use crate::cli::{UNUSABLE, complete, say};
use crate::config::{self, Config, Engine, Grace, Log};
use crate::queue::sled::SledQueue;
use crate::shutdown::Shutdown;

/// How long a process that has the queue open may take to end.
const LOCKED: Duration = Duration::from_secs(30);

/// Returns 0 when nothing is left in the queue, 1 when something is after `within`, and when the queue cannot be opened.
/// `set_up_log` is called once, as soon as it is known what is logged.
pub(super) fn run(path: &Path, within: Duration, set_up_log: impl FnOnce(Log)) -> ExitCode {
    let config = match Config::load(path, &config::process_environment) {
        Ok((config, _)) => idle(config, within),
        Err(problems) => {
            say(problems.render(&path.display().to_string()));
            return ExitCode::from(UNUSABLE);
        }
    };
    set_up_log(config.log);
    match complete(drain(config)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(cause)) => {
            error!("{cause:#}");
            ExitCode::FAILURE
        }
        Err(cause) => {
            error!("cannot start: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the configuration of a relay without traffic, which ends within this time.
fn idle(mut config: Config, within: Duration) -> Config {
    config.listen.address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.listen.tls = None;
    config.admin = None;
    let reserve = config.shutdown.reserve.min(within / 2);
    config.shutdown = Grace { grace: within, reserve };
    config
}

async fn drain(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen().context("cannot wait for signals")?;
    let Engine::Sled { path } = &config.queue.engine else {
        bail!("the queue of this configuration is in memory: there is nothing that could be delivered");
    };
    wait_for_the_lock(path, config.shutdown.grace.min(LOCKED)).await?;
    let app = App::start(config, Source::fixed()).await?;
    // What was acknowledged is on disk: an end in between loses nothing.
    let Some(outcome) = shutdown.soft.run_until_cancelled(app.deliver()).await else {
        bail!("told to end before everything was delivered; the rest still waits");
    };
    match outcome {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => bail!(said(&left)),
        Err(why) => bail!("the queue cannot be opened: {why}"),
    }
}

/// Returns when nobody has the queue open; a process that is about to end gets a moment.
async fn wait_for_the_lock(path: &Path, patience: Duration) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        if !SledQueue::is_open_elsewhere(path).map_err(anyhow::Error::msg)? {
            return Ok(());
        }
        if since.elapsed() >= patience {
            bail!(
                "the queue at {} is open in another process, which delivers what waits there itself; there is nothing to do",
                path.display()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Says what is left and what can be done about it.
fn said(left: &Left) -> String {
    let mut parts = Vec::new();
    if left.waiting > 0 {
        parts.push(format!(
            "{} events still wait; the log says why, and `flagtap queue inspect` for whom",
            left.waiting
        ));
    }
    for (name, events) in &left.for_others {
        parts.push(format!(
            "{events} events wait for {name}, which is not in this configuration: put it back to have them delivered, or take them \
             with `flagtap queue export`"
        ));
    }
    for (name, letters) in &left.dead_letters {
        parts.push(format!(
            "{letters} dead letters of {name}: see `flagtap queue dead-letters`"
        ));
    }
    format!("the volume is still needed: {}", parts.join("; "))
}
