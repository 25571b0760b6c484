//! Asks a running relay at its admin port.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::admin::letters::Filter;
use crate::admin::settle::{Action, Request};
use crate::secret::Secret;

/// A replay of many letters takes its time: the relay answers when all are durable.
const PATIENCE: Duration = Duration::from_secs(300);

const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// Returns the token in a file, without the line end.
pub(super) fn token(file: &Path) -> io::Result<Secret> {
    let mut text = String::new();
    File::open(file)?.take(MAX_TOKEN_BYTES).read_to_string(&mut text)?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Returns where a port that listens on every interface is reached from this machine.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Has the relay settle dead letters; returns how many.
pub(super) async fn settle(
    address: &str,
    token: Option<&Secret>,
    filter: &Filter,
    limit: Option<u64>,
    action: Action,
) -> anyhow::Result<u64> {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let url = format!("http://{address}/api/dead-letters/{}", action.as_str());
    let body = Request {
        all: filter.is_empty(),
        limit,
        filter: filter.clone(),
    };
    let mut request = client
        .post(&url)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&body)?);
    if let Some(token) = token {
        request = request.bearer_auth(token.expose());
    }
    let answer = request.send().await.with_context(|| {
        format!("the queue is open in a running relay, and its admin port does not answer at {url}")
    })?;
    let (status, text) = (answer.status(), answer.text().await?);
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    if !status.is_success() {
        let (error, remedy) = (answer["error"].as_str(), answer["remedy"].as_str());
        let said = [error, remedy].into_iter().flatten().collect::<Vec<_>>().join(": ");
        bail!("{url} answered {status}: {said}");
    }
    answer["letters"]
        .as_u64()
        .with_context(|| format!("{url} gave an answer that is not flagtap's"))
}
