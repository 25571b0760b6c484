//! `flagtap serve`: loads the configuration, sets up logging, runs until asked to stop.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use crate::app::{App, SetLevel, Source};
use crate::cli::{UNUSABLE, log_to_stderr, say};
use crate::config::{self, Config};
use crate::shutdown::Shutdown;

const LAST_WRITE: Duration = Duration::from_secs(1);

/// Serves until a signal, with so many working threads; returns the exit code.
pub(super) fn run(path: Option<&Path>, threads: usize) -> ExitCode {
    let (config, warnings) = match path {
        None => (Config::embedded(), None),
        Some(path) => match Config::load(path, &config::process_environment) {
            Ok((config, warnings)) => (config, Some(warnings)),
            Err(problems) => {
                // Before logging is set up: these lines are for the person who wrote the file.
                say(problems.render(&path.display().to_string()));
                return ExitCode::from(UNUSABLE);
            }
        },
    };
    let set_level = log_to_stderr(config.log);
    match (path, &warnings) {
        (Some(path), Some(warnings)) => {
            let file = path.display().to_string();
            for line in warnings.render(&file).lines() {
                warn!("{line}");
            }
            info!(%file, "configuration loaded");
        }
        _ => info!(
            queue = "./flagtap-data",
            export = "./flagtap-export",
            upstream = %config.upstream.url,
            "no configuration file, running on the embedded defaults"
        ),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let outcome = runtime.block_on(serve(config, path, set_level));
        // A write that hangs on a broken disk must not keep the process.
        runtime.shutdown_timeout(LAST_WRITE);
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            error!("{cause:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config, path: Option<&Path>, set_level: SetLevel) -> anyhow::Result<()> {
    // Before anything listens: a TERM during the start must find its handler.
    let shutdown = Shutdown::listen()?;
    let source = Source {
        file: path.map(Path::to_owned),
        asked: Arc::clone(&shutdown.reload),
        set_level,
    };
    let app = App::start(config, source).await?;
    app.run(shutdown).await;
    Ok(())
}
