//! `flagtap check FILE --probe`: contacts the upstream and each destination and says what works, what does not, and what to do.
//!
//! Uses each service's cheapest harmless call, of the upstream its root; no event is sent and no queue is opened. All are asked
//! at the same time, and none for longer than [`PATIENCE`].

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use http::Request;
use tokio::time::timeout;

use crate::app::connection_to_upstream;
use crate::cli::complete;
use crate::config::{Config, Destination};
use crate::destination::ProbeError;
use crate::proxy::Outbound;

/// Longer than a connection and a credential take, shorter than a person likes to wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Probes the upstream and the destinations. Returns success only if all work. Fails only if `out` does.
pub(super) fn run(config: &Config, out: &mut dyn Write) -> io::Result<ExitCode> {
    let destinations = &config.destinations;
    writeln!(out, "probing, without sending an event")?;
    out.flush()?;
    let probes = join_all(destinations.iter().map(probe));
    let (upstream, found) = complete(join(within_patience(probe_upstream(config)), probes))?;
    let mut code = ExitCode::SUCCESS;
    let names = destinations.iter().map(|destination| destination.name.as_str());
    for (name, found) in [("upstream", upstream)].into_iter().chain(names.zip(found)) {
        match found {
            Ok(found) => writeln!(out, "  {name}: works: {found}")?,
            Err(ProbeError { why, remedy }) => {
                code = ExitCode::FAILURE;
                writeln!(out, "  {name}: does not work: {why}\n    remedy: {remedy}")?;
            }
        }
    }
    Ok(code)
}

async fn probe(destination: &Destination) -> Result<String, ProbeError> {
    within_patience(async { destination.settings.open().await.probe().await }).await
}

/// Asks for the upstream's root as an SDK's request would get there, by the egress proxy if there is one; any answer will do.
async fn probe_upstream(config: &Config) -> Result<String, ProbeError> {
    let failed = |why: String| ProbeError {
        why,
        remedy: format!("look at `upstream.url`, `upstream.ca_file`, and {NETWORK}"),
    };
    let upstream = connection_to_upstream(config).map_err(|error| failed(format!("{error:#}")))?;
    let (parts, ()) = Request::new(()).into_parts();
    match upstream.stream(&parts, Outbound::Whole(Some(Bytes::new()))).await {
        Ok(answer) => Ok(format!("it answers {}", answer.status())),
        Err(failure) => {
            let known = upstream.health().known().failed;
            Err(failed(known.map_or_else(|| failure.to_string(), |trouble| trouble.why)))
        }
    }
}

/// What keeps a machine from a service.
const NETWORK: &str = "whether this machine may connect to it: DNS, network policy, HTTPS_PROXY";

async fn within_patience(probe: impl Future<Output = Result<String, ProbeError>>) -> Result<String, ProbeError> {
    timeout(PATIENCE, probe).await.unwrap_or_else(|_| {
        Err(ProbeError {
            why: format!("no answer within {} s", PATIENCE.as_secs()),
            remedy: format!("look at the address, and {NETWORK}"),
        })
    })
}
