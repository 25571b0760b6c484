//! `flagtap injector`: serves the admission webhook until asked to stop.
//!
//! Puts the webhook, its certificate, its template and a telemetry port together, and ends them. Exit code 64 for a template
//! that cannot be used, 1 for what else keeps it from starting.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::service_fn;
use tracing::{error, info};

use crate::admin::{self, telemetry};
use crate::cli::{UNUSABLE, log_to_stderr};
use crate::config::{Format, Level, Log, process_environment};
use crate::injector::keeper::{Keeper, Settings};
use crate::injector::{Injector, LIMITS, Templates};
use crate::listen::tls::{Tls, TlsFiles};
use crate::listen::{self, Listening};
use crate::metrics::{BUILD_INFO, Metrics};
use crate::section::Leaf;
use crate::shutdown::Shutdown;

/// API servers hear late of a pod that leaves its Service, and go on calling it.
const STILL_CALLED: Duration = Duration::from_secs(5);
/// For reviews under way, after that.
const FINISH: Duration = Duration::from_secs(5);
/// Reviews are few and small.
const THREADS: usize = 2;

#[derive(Args)]
pub(super) struct Arguments {
    /// What is added to pods; docs/injector.md describes it.
    #[arg(long, default_value = "/etc/flagtap/sidecar.yaml", value_name = "FILE")]
    template: PathBuf,
    /// Where API servers call, over TLS.
    #[arg(long, default_value = "0.0.0.0:8443", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where probes and metrics are answered.
    #[arg(long, default_value = "0.0.0.0:8031", value_name = "ADDRESS")]
    telemetry: SocketAddr,
    /// Certificate chain, PEM, leaf first; read anew when it changes.
    #[arg(long, value_name = "FILE", requires = "key", required_unless_present = "secret")]
    certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Make a certificate, renew it, and keep it in this Secret of the pod's namespace.
    #[arg(long, value_name = "NAME", conflicts_with = "certificate", value_parser = name)]
    secret: Option<String>,
    /// With --secret: the Service that API servers call.
    #[arg(long, default_value = "flagtap-injector", value_name = "NAME", value_parser = name)]
    service: String,
    /// With --secret: the MutatingWebhookConfiguration that is told of the certificate's authority.
    #[arg(long, default_value = "flagtap-injector", value_name = "NAME", value_parser = name)]
    webhook: String,
    /// Time between looks at the template, at TLS files, and with --secret at Secret and configuration.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = interval)]
    interval: Duration,
    /// With --secret: the folder of the service account.
    #[arg(
        long,
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount",
        value_name = "DIR"
    )]
    service_account: PathBuf,
    /// The least important level that is logged.
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = Level::parse)]
    log_level: Level,
    /// `json` for one object per line, `text` for people.
    #[arg(long, default_value = "json", value_name = "FORMAT", value_parser = Format::parse)]
    log_format: Format,
}

/// Serves until a signal; returns the exit code.
pub(super) fn run(arguments: Arguments) -> ExitCode {
    let _level_stays = log_to_stderr(Log {
        level: arguments.log_level,
        format: arguments.log_format,
    });
    let templates = match Templates::load(&arguments.template) {
        Ok(templates) => Arc::new(templates),
        Err(unusable) => {
            error!("{unusable}");
            return ExitCode::from(UNUSABLE);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(serve(arguments, templates)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            error!("{cause:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: Arguments, templates: Arc<Templates>) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen()?;
    let metrics = Arc::new(Metrics::new());
    metrics.gauge(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")]).set(1.0);
    let (stop, ready, tasks) = (
        CancellationToken::new(),
        Arc::new(AtomicBool::new(false)),
        TaskTracker::new(),
    );
    let listener = bind(arguments.listen, "--listen").await?;
    let telemetry_listener = bind(arguments.telemetry, "--telemetry").await?;
    let (webhook, telemetry) = (listener.local_addr()?, telemetry_listener.local_addr()?);
    let routes = telemetry::health_routes(Arc::clone(&metrics), Arc::clone(&ready));
    tasks.spawn(admin::serve(
        telemetry_listener,
        routes,
        Some(admin::LIFE),
        stop.clone(),
    ));
    tasks.spawn(Arc::clone(&templates).watch(arguments.interval, stop.clone()));

    let tls = if let (Some(certificate), Some(key)) = (&arguments.certificate, &arguments.key) {
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: None,
        };
        let tls = Arc::new(Tls::load(files).context("cannot set up TLS (`--certificate`, `--key`)")?);
        tasks.spawn(Arc::clone(&tls).watch(arguments.interval, stop.clone()));
        tls
    } else {
        let settings = Settings {
            secret: arguments.secret.unwrap_or_default(),
            service: arguments.service,
            webhook: arguments.webhook,
            interval: arguments.interval,
        };
        let keeper = Keeper::new(
            settings,
            &arguments.service_account,
            &process_environment,
            Arc::clone(&metrics),
        );
        let keeper = keeper.map_err(anyhow::Error::msg)?;
        let Some(tls) = shutdown.soft.run_until_cancelled(keeper.begin()).await else {
            return Ok(());
        };
        tasks.spawn(keeper.keep(Arc::clone(&tls), stop.clone()));
        tls
    };
    let injector = Arc::new(Injector::new(templates, Arc::clone(&metrics)));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let injector = Arc::clone(&injector);
        async move { Ok::<_, Infallible>(injector.answer(request).await) }
    });
    let listening = Listening {
        tls: Some(tls),
        limits: LIMITS,
        unreadable: None,
        open: Arc::new(AtomicUsize::new(0)),
        stop: stop.clone(),
        grace: FINISH,
    };
    let serving = tokio::spawn(listen::serve(listener, service, listening, metrics));
    ready.store(true, Ordering::Release);
    info!(%webhook, %telemetry, "listening");

    shutdown.soft.cancelled().await;
    ready.store(false, Ordering::Release);
    let ending = async {
        tokio::time::sleep(STILL_CALLED).await;
        stop.cancel();
        let _ = serving.await;
        tasks.close();
        tasks.wait().await;
    };
    let _ = shutdown.hard.run_until_cancelled(ending).await;
    info!("ended");
    Ok(())
}

async fn bind(address: SocketAddr, argument: &str) -> anyhow::Result<tokio::net::TcpListener> {
    let bound = listen::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address} (`{argument}`)"))
}

/// These names become parts of URLs.
fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if text.is_empty() || text.len() > 253 || !text.chars().all(allowed) || text.starts_with('.') {
        return Err("a name has lower-case letters, digits, `-` and `.`".to_owned());
    }
    Ok(text.to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = Duration::parse(text)?;
    if interval < Duration::from_millis(100) {
        return Err("must be at least 100ms".to_owned());
    }
    Ok(interval)
}
