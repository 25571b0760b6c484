//! `flagtap demo`: the main job on this machine, with real SDK traffic and nothing to set up.
//!
//! Starts a stand-in for LaunchDarkly's events service and a relay on the embedded defaults (sled queue, `file`
//! destination; only folder, addresses and upstream differ), sends recorded requests of ten SDK builds through it at a
//! pace one can watch, and shows what arrived. Listens on loopback only.

use std::fmt::Write as _;
use std::io::{IsTerminal, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};

use crate::app::{App, Source};
use crate::config::{Config, Engine};
use crate::metrics::{DESTINATION_DELIVERED, EVENTS_QUEUED, EVENTS_RECEIVED};

/// Recorded requests, one JSON object a line; `tests/traffic/README.md` says how they were made.
static TRAFFIC: &[u8] = include_bytes!("traffic.jsonl.gz");

// Slow enough to watch the counts move, fast enough for the whole run to take a few seconds.
const PACE: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Recorded {
    sdk: String,
    sdk_version: String,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body_b64: String,
}

/// Runs the demo below `dir`.
pub(super) fn run(dir: &Path) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            super::say(format_args!("cannot start the runtime: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(demo(dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::say(format_args!("demo failed: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

async fn demo(dir: &Path) -> anyhow::Result<()> {
    let requests = recorded()?;
    let dir = fresh(dir)?;
    let upstream = StandIn::start().await?;
    let config = configuration(&dir, upstream.address)?;
    let app = App::start(config, Source::fixed())
        .await
        .context("cannot start the relay")?;
    say(&format!(
        "stand-in for LaunchDarkly's events service on http://{}\nrelay on http://{}, telemetry on http://{}/metrics\n\
         queue in {}, export in {}\n\nsending {} recorded requests of real SDKs through the relay:\n",
        upstream.address,
        app.relay,
        app.telemetry,
        dir.join("flagtap-data").display(),
        dir.join("flagtap-export").display(),
        requests.len(),
    ));
    let live = std::io::stdout().is_terminal();
    let mut sdks: Vec<String> = Vec::new();
    for (sent, request) in requests.iter().enumerate() {
        let sdk = format!("{} {}", request.sdk, request.sdk_version);
        if !sdks.contains(&sdk) {
            sdks.push(sdk.clone());
        }
        let body = Bytes::from(BASE64_STANDARD.decode(&request.body_b64)?);
        let status = send(app.relay, request, body.clone()).await?;
        if !status.is_success() {
            bail!("the relay answered {status} to {} {}", request.method, request.path);
        }
        if upstream.last() != Some((request.path.clone(), body)) {
            bail!(
                "{} {} did not reach the upstream as it was sent",
                request.method,
                request.path
            );
        }
        progress(&app, &upstream, sent + 1, requests.len(), &sdk, live);
        tokio::time::sleep(PACE).await;
    }
    let settled = async {
        while delivered(&app) < exported(&app) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled)
        .await
        .context("not everything was delivered in time")?;
    progress(&app, &upstream, requests.len(), requests.len(), "done", live);
    let (received, delivered) = (total(&app, EVENTS_RECEIVED.name), delivered(&app));
    app.stop().await;
    say(&format!("\n{}", shown(&dir.join("flagtap-export"))?));
    say(&format!(
        "\n{} requests of {} SDK builds passed through unchanged; of {received} events in them {delivered} are in the \
         export.\n(Summaries and kinds that LaunchDarkly does not export are left out.)\nThe whole export: {}/*.ndjson\n",
        requests.len(),
        sdks.len(),
        dir.join("flagtap-export").display(),
    ));
    Ok(())
}

/// Returns the embedded defaults, moved into `dir` and onto loopback.
fn configuration(dir: &Path, upstream: SocketAddr) -> anyhow::Result<Config> {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = Config::embedded();
    config.listen.address = anywhere;
    config.telemetry = anywhere;
    config.admin = None;
    config.upstream.url = format!("http://{upstream}").parse()?;
    config.queue.engine = Engine::Sled {
        path: dir.join("flagtap-data"),
    };
    for destination in &mut config.destinations {
        destination.settings.move_to(&dir.join("flagtap-export"));
    }
    Ok(config)
}

fn recorded() -> anyhow::Result<Vec<Recorded>> {
    let mut text = String::new();
    GzDecoder::new(TRAFFIC).read_to_string(&mut text)?;
    text.lines()
        .map(|line| serde_json::from_str(line).context("a recorded request does not parse"))
        .collect()
}

/// Returns a new folder below `dir`: an earlier run's queue would recognise the recorded payload ids.
fn fresh(dir: &Path) -> anyhow::Result<PathBuf> {
    for number in 1..10_000 {
        let run = dir.join(format!("run-{number}"));
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        match std::fs::create_dir(&run) {
            Ok(()) => return Ok(run),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot create {}", run.display())),
        }
    }
    bail!("{} is full of earlier runs; remove it", dir.display())
}

async fn send(relay: SocketAddr, recorded: &Recorded, body: Bytes) -> anyhow::Result<StatusCode> {
    let mut request = Request::builder().method(recorded.method.as_str()).uri(&recorded.path);
    for (name, value) in &recorded.headers {
        // The connection's own business.
        if !["connection", "content-length", "transfer-encoding"].contains(&name.to_lowercase().as_str()) {
            request = request.header(name, value);
        }
    }
    let stream = TcpStream::connect(relay).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request.body(Full::new(body))?).await?;
    let status = answer.status();
    answer.into_body().collect().await?;
    drop(sender);
    connection.await??;
    Ok(status)
}

/// Answers every request as LaunchDarkly's events service does, and keeps path and body of each.
struct StandIn {
    address: SocketAddr,
    seen: Seen,
}

type Seen = Arc<Mutex<Vec<(String, Bytes)>>>;

impl StandIn {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let seen = Seen::default();
        let keeper = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let keeper = Arc::clone(&keeper);
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let keeper = Arc::clone(&keeper);
                        async move {
                            let path = request.uri().to_string();
                            let body = request.into_body().collect().await?.to_bytes();
                            keeper.lock().unwrap_or_else(PoisonError::into_inner).push((path, body));
                            let mut answer = Response::new(Full::<Bytes>::default());
                            *answer.status_mut() = StatusCode::ACCEPTED;
                            Ok::<_, hyper::Error>(answer)
                        }
                    });
                    // A connection that breaks is the relay's to notice.
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { address, seen })
    }
}

impl StandIn {
    fn count(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn last(&self) -> Option<(String, Bytes)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }
}

fn progress(app: &App, upstream: &StandIn, sent: usize, of: usize, what: &str, live: bool) {
    let (exported, delivered) = (exported(app), delivered(app));
    let line = format!(
        "  {sent:>3}/{of} sent  {:>3} passed on  {exported:>5} events exported  {delivered:>5} delivered  \
         {:>4} waiting   {what:<24}",
        upstream.count(),
        exported.saturating_sub(delivered),
    );
    say(&if live && what != "done" {
        format!("\r{line}")
    } else {
        format!("{}{line}\n", if live { "\r" } else { "" })
    });
}

fn exported(app: &App) -> u64 {
    total(app, EVENTS_QUEUED.name)
}

fn delivered(app: &App) -> u64 {
    total(app, DESTINATION_DELIVERED.name)
}

/// Sums a counter over its labels, read from the same text that Prometheus scrapes.
fn total(app: &App, name: &str) -> u64 {
    app.metrics()
        .render()
        .lines()
        .filter(|line| line.starts_with(name) && line[name.len()..].starts_with('{'))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>() as u64
}

fn shown(export: &Path) -> anyhow::Result<String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(export)
        .with_context(|| format!("cannot read {}", export.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "ndjson"))
        .collect();
    files.sort();
    let Some(file) = files.first() else {
        bail!("no export file in {}", export.display())
    };
    let text = std::fs::read_to_string(file)?;
    let mut shown = String::from("some of the exported events:\n\n");
    for kind in ["index", "feature", "custom", "pageview", "identify"] {
        if let Some(line) = text.lines().find(|line| line.contains(&format!("\"kind\":\"{kind}\""))) {
            let cut: String = line.chars().take(400).collect();
            let more = if cut.len() < line.len() { "…" } else { "" };
            writeln!(shown, "  {cut}{more}\n")?;
        }
    }
    write!(shown, "they are in {}", file.display())?;
    Ok(shown)
}

fn say(text: &str) {
    super::print(text);
    let _ = std::io::stdout().flush();
}
