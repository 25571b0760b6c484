//! `flagtap check FILE --probe`: contacts each destination and says what works, what does not, and what to do.
//!
//! Uses each service's cheapest harmless call; no event is sent and no queue is opened. All destinations are asked at
//! the same time, and none for longer than [`PATIENCE`].

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::cli::complete;
use crate::config::Destination;
use crate::destination::ProbeError;

/// Longer than a connection and a credential take, shorter than a person likes to wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Probes the destinations. Returns success only if all work. Fails only if `out` does.
pub(super) fn run(destinations: &[Destination], out: &mut dyn Write) -> io::Result<ExitCode> {
    writeln!(out, "probing, without sending an event")?;
    out.flush()?;
    let found = complete(join_all(destinations.iter().map(probe)))?;
    let mut code = ExitCode::SUCCESS;
    for (destination, found) in destinations.iter().zip(found) {
        match found {
            Ok(found) => writeln!(out, "  {}: works: {found}", destination.name)?,
            Err(ProbeError { why, remedy }) => {
                code = ExitCode::FAILURE;
                writeln!(
                    out,
                    "  {}: does not work: {why}\n    remedy: {remedy}",
                    destination.name
                )?;
            }
        }
    }
    Ok(code)
}

async fn probe(destination: &Destination) -> Result<String, ProbeError> {
    let probe = async { destination.settings.open().await.probe().await };
    timeout(PATIENCE, probe).await.unwrap_or_else(|_| {
        Err(ProbeError {
            why: format!("no answer within {} s", PATIENCE.as_secs()),
            remedy: "look at the address, and whether this machine may connect to it: DNS, network policy, HTTPS_PROXY"
                .to_owned(),
        })
    })
}
