//! `flagtap drain`: delivers what waits in a queue that nobody serves, and ends.
//!
//! For the volume of a replica that is gone. It is the relay without its traffic: the same queue, destinations and retries,
//! and the telemetry port; nobody but this machine could connect to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tracing::error;

use crate::app::{App, Source};
use crate::cli::{UNUSABLE, complete, say};
use crate::config::{self, Config, Grace, Log};
use crate::shutdown::Shutdown;

/// Returns 0 when nothing waits any more, 1 when something still does after `within` or the queue cannot be opened.
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
    let app = App::start(config, Source::fixed()).await?;
    // What was acknowledged is on disk: an end in between loses nothing.
    let Some(outcome) = shutdown.soft.run_until_cancelled(app.deliver()).await else {
        bail!("told to end before everything was delivered; the rest still waits");
    };
    match outcome {
        Ok(0) => Ok(()),
        Ok(waiting) => bail!("{waiting} events still wait; the log says why, and `flagtap queue inspect` for whom"),
        Err(why) => bail!("the queue cannot be opened: {why}"),
    }
}
