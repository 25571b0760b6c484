//! The composition root: names the queue engines, starts every task and ends it.
//!
//! Start: listeners bind, the queue opens (for a few seconds the start waits for it), drains, traffic; neither the
//! upstream nor a destination has to answer. Stop: on the first signal the relay goes on accepting, because an
//! application's last flush comes after its own TERM, until nobody is connected any more or the grace period less a
//! reserve is over. Then the listener closes, destinations get what waits, the queue closes. One deadline bounds all of
//! it, and a second signal ends it at once.

mod catalogue;
mod drains;
mod exports;
mod files;
mod flags;
mod left;
mod live;
mod plan;
mod relay;
mod reload;
mod sampling;
mod status;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin;
use crate::admin::api::{self, Api};
use crate::admin::settings::Exports;
use crate::admin::telemetry::{self, Telemetry};
use crate::config::{self, Config, Engine};
use crate::drain;
use crate::listen::{self, Listening};
use crate::metrics::{BUILD_INFO, CONFIGURATION_REFUSED, CONFIGURATION_RESTART, Metrics};
use crate::proxy::tee::Tee;
use crate::proxy::{self, Relay};
use crate::queue::memory::MemoryQueue;
use crate::queue::observed::Observed;
use crate::queue::sled::SledQueue;
use crate::queue::{self, Queue, Stats, system_clock};
use crate::shutdown::Shutdown;

use catalogue::Reader;
pub(crate) use catalogue::whose;
use exports::Overlay;
use flags::Flags;
pub use left::Left;
pub use live::SetLevel;
use live::{Live, Parts};
pub use relay::connection_to_upstream;
pub(crate) use relay::platform;
use relay::{connection_limits, decoded_bytes, policy, relay_settings, tls};
pub use reload::Source;
use sampling::{measure, sample};

/// How long the start waits for the queue: batches that arrive before it is open could not be kept. A queue that cannot
/// open must not hold the traffic for longer.
const QUEUE_PATIENCE: Duration = Duration::from_secs(5);

/// How often TLS files are compared; kubelet itself takes up to a minute to bring a new Secret.
const TLS_INTERVAL: Duration = Duration::from_secs(10);

/// After a signal the relay must have been without connections and without work for this long to end early: a client
/// that flushes without a kept-alive connection gets this much time to come back.
const QUIET: Duration = Duration::from_secs(2);

/// A running flagtap.
pub struct App {
    /// Where the relay listens.
    pub relay: SocketAddr,
    /// Where the telemetry port listens.
    pub telemetry: SocketAddr,
    /// Where the admin port listens, if it does.
    pub admin: Option<SocketAddr>,
    metrics: Arc<Metrics>,
    queue: Arc<Observed>,
    live: Arc<Live>,
    batches: TaskTracker,
    connections: Arc<AtomicUsize>,
    ready: Arc<AtomicBool>,
    grace: config::Grace,
    stop_listening: CancellationToken,
    stop_helpers: CancellationToken,
    stop_keeping: CancellationToken,
    stop_changing: CancellationToken,
    keeping: JoinHandle<()>,
    serving: JoinHandle<()>,
    helpers: TaskTracker,
}

impl App {
    /// Starts everything `config` asks for. Fails only on what a person must put right: an address in use, TLS files
    /// that do not load. What changes later comes from `source`.
    pub async fn start(config: Config, source: Source) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new());
        metrics.gauge(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")]).set(1.0);
        for none_yet in [&CONFIGURATION_REFUSED, &CONFIGURATION_RESTART] {
            metrics.gauge(none_yet, &[]).set(0.0);
        }

        let seats = files::seats(config.limits.connections);
        // Everything that can fail comes before anything that must be ended again.
        let limits = connection_limits(&config, seats);
        let upstream = connection_to_upstream(&config)?;
        let tls = config.listen.tls.as_ref().map(tls).transpose()?.map(Arc::new);
        let listener = bind(config.listen.address, "listen").await?;
        let telemetry_listener = bind(config.telemetry, "telemetry").await?;
        let admin_listener = bind_admin(&config).await;
        let relay = listener.local_addr()?;
        let telemetry = telemetry_listener.local_addr()?;
        let admin = admin_listener.as_ref().and_then(|listener| listener.local_addr().ok());

        let names: Vec<String> = config
            .destinations
            .iter()
            .map(|destination| destination.name.clone())
            .collect();
        // Before the queue: its lock keeps a second process from writing what this one reads.
        let catalogue = Reader::load(&config);
        let flags = Flags::load(&config, &catalogue);
        let queue = Arc::new(Observed::new(
            engine(&config, &names),
            Arc::clone(&metrics),
            system_clock(),
        ));
        let opening = Instant::now() + QUEUE_PATIENCE;
        while queue.stats().is_opening() && Instant::now() < opening {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // As late as can be: a process that is about to leave the folder to this one may still change it.
        let kept = Overlay::load(&config);
        let tee = Arc::new(Tee::new(
            policy(&kept.over(&config), &flags, &metrics),
            Arc::clone(&queue) as Arc<dyn Queue>,
            decoded_bytes(&config),
            Arc::clone(&metrics),
        ));
        let census = tee.census();
        let batches = TaskTracker::new();
        let settings = relay_settings(&config);
        let health = upstream.health();
        let handler = Relay::new(
            upstream,
            Arc::clone(&tee),
            settings,
            batches.clone(),
            Arc::clone(&metrics),
        );
        let stack = proxy::stack(handler, settings.requests, &metrics);
        let grace = config.shutdown;
        let admin_settings = config.admin.clone();
        let Source { file, asked, set_level } = source;
        let parts = Parts {
            queue: Arc::clone(&queue) as Arc<dyn Queue>,
            tee,
            flags: flags.clone(),
            metrics: Arc::clone(&metrics),
            set_level,
        };
        let live = Arc::new(Live::start(parts, config, kept).await);

        let (stop_listening, stop_helpers) = (CancellationToken::new(), CancellationToken::new());
        let (stop_keeping, stop_changing) = (CancellationToken::new(), CancellationToken::new());
        let helpers = TaskTracker::new();
        if let Some(tls) = &tls {
            helpers.spawn(Arc::clone(tls).watch(TLS_INTERVAL, stop_helpers.clone()));
        }
        // Not to the very end: a queue that is closed on purpose is no queue that is not available.
        helpers.spawn(sample(Arc::clone(&queue), Arc::clone(&metrics), stop_listening.clone()));
        let kept = Arc::clone(&queue) as Arc<dyn Queue>;
        // Until nothing is received any more, and while the queue still has its folder.
        let keeping = tokio::spawn(flags.clone().keep(kept, stop_keeping.clone()));
        helpers.spawn(reload::watch(Arc::clone(&live), file, asked, stop_changing.clone()));
        helpers.spawn(catalogue.clone().keep(
            Arc::clone(&queue) as Arc<dyn Queue>,
            Arc::clone(&metrics),
            // As long as the queue has its folder.
            stop_keeping.clone(),
        ));
        let ready = Arc::new(AtomicBool::new(true));
        let shown = Arc::new(Telemetry {
            metrics: Arc::clone(&metrics),
            ready: Arc::clone(&ready),
            sample: {
                let (queue, metrics) = (Arc::clone(&queue), Arc::clone(&metrics));
                Box::new(move || measure(&queue, &metrics))
            },
            status: {
                let (queue, live, catalogue) = (Arc::clone(&queue), Arc::clone(&live), catalogue.clone());
                let health = Arc::clone(&health);
                Box::new(move || status::document(&queue.stats(), &live.shown(), &health.known(), catalogue.status()))
            },
            coverage: {
                let live = Arc::clone(&live);
                Box::new(move |environment| flags.document(&live.shown().config, environment))
            },
            readers: Arc::new(Semaphore::new(telemetry::COVERAGE_READERS)),
        });
        let routes = telemetry::routes(shown);
        helpers.spawn(admin::serve(
            telemetry_listener,
            routes,
            Some(admin::LIFE),
            stop_helpers.clone(),
        ));
        if let (Some(listener), Some(settings)) = (admin_listener, &admin_settings) {
            let (of_status, shown) = (Arc::clone(&queue), Arc::clone(&live));
            let routes = api::routes(Arc::new(Api {
                listen: settings.listen,
                hosts: settings.hosts.clone(),
                token: settings.token.clone(),
                queue: Arc::clone(&queue) as Arc<dyn Queue>,
                status: Box::new(move || {
                    let (stats, shown) = (of_status.stats(), shown.shown());
                    status::whole(&stats, &shown, &health.known(), &census.counted(), catalogue.status())
                }),
                changing: Semaphore::new(1),
                exports: Arc::clone(&live) as Arc<dyn Exports>,
            }));
            helpers.spawn(admin::serve(listener, routes, None, stop_helpers.clone()));
        }
        let connections = Arc::new(AtomicUsize::new(0));
        let listening = Listening {
            tls,
            limits,
            unreadable: Some(proxy::unreadable(Arc::clone(&metrics))),
            open: Arc::clone(&connections),
            stop: stop_listening.clone(),
            grace: connections_part(grace.reserve),
        };
        let serving = tokio::spawn(listen::serve(listener, stack, listening, Arc::clone(&metrics)));
        info!(%relay, %telemetry, admin = admin.map(display), "listening");
        Ok(Self {
            relay,
            telemetry,
            admin,
            metrics,
            queue,
            live,
            batches,
            connections,
            ready,
            grace,
            stop_listening,
            stop_helpers,
            stop_keeping,
            stop_changing,
            keeping,
            serving,
            helpers,
        })
    }

    /// Returns the process's metrics, with its gauges up to date.
    pub fn metrics(&self) -> &Metrics {
        measure(&self.queue, &self.metrics);
        &self.metrics
    }

    /// Serves until `shutdown` and then ends as described above.
    pub async fn run(self, shutdown: Shutdown) {
        shutdown.soft.cancelled().await;
        if shutdown.hard.run_until_cancelled(self.end()).await.is_none() {
            // Nothing acknowledged is lost by this: it is on disk already.
            warn!("ended without waiting for deliveries");
        }
    }

    async fn end(self) {
        self.ready.store(false, Ordering::Release);
        let end = Instant::now() + self.grace.grace;
        if timeout_at(end - self.grace.reserve, self.quiet()).await.is_err() {
            info!("clients are still connected at the end of the grace period");
        }
        self.stop_by(end).await;
    }

    /// Ends within the grace period without waiting for clients: closes the listener, lets batches under way reach the
    /// queue, delivers what waits, closes the queue.
    pub async fn stop(self) {
        let end = Instant::now() + self.grace.grace;
        self.stop_by(end).await;
    }

    /// Stops like [`App::stop`], but has the dead letters go out again that do so by themselves. Returns what is left then; the
    /// error says why the queue could not be opened.
    pub async fn deliver(self) -> Result<Left, String> {
        let end = Instant::now() + self.grace.grace;
        // Bounded by what is left for the destinations.
        let _ = timeout_at(end - self.grace.reserve, self.requeue_letters()).await;
        let stats = self.stop_by(end).await;
        let unopened = stats.unavailable.clone().filter(|_| stats.consumers.is_empty());
        unopened.map_or_else(|| Ok(Left::of(&stats)), Err)
    }

    /// Has dead letters go out again that do so by themselves, once the queue is open and has room for them.
    async fn requeue_letters(&self) {
        let mut told = false;
        loop {
            let (stats, config) = (self.queue.stats(), Arc::clone(&self.live.shown().config));
            let mut is_done = !stats.is_opening();
            // What is requeued has an age and a place in `max_bytes`: not for those to which nothing is delivered.
            let delivered = config.destinations.iter().filter(|destination| !destination.paused);
            for name in delivered.map(|destination| &destination.name) {
                if !stats.transient_letters.iter().any(|(of, _)| of == name) {
                    continue;
                }
                if let Err(error) = drain::requeue_transient(name, &*self.queue).await {
                    is_done = false;
                    if !std::mem::replace(&mut told, true) {
                        warn!(destination = name, %error, "dead letters stay where they are for now");
                    }
                }
            }
            if is_done {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Returns what the queue held when nothing was delivered any more.
    async fn stop_by(self, end: Instant) -> Stats {
        let reserve = self.grace.reserve;
        self.ready.store(false, Ordering::Release);
        self.stop_changing.cancel();
        self.stop_listening.cancel();
        // Bounded inside `listen::serve` by the same part of the reserve as the batches.
        let part = Instant::now() + connections_part(reserve);
        let _ = self.serving.await;
        self.batches.close();
        if timeout_at(part, self.batches.wait()).await.is_err() {
            warn!(
                batches = self.batches.len(),
                "batches still on their way to the upstream are left behind"
            );
        }
        // The last quarter is for the destinations' answers that are still awaited, and its second half for the queue: a
        // destination that hangs must not take that too.
        if let Some(drains) = self.live.end().await {
            drains.stop(end - reserve / 4, end - reserve / 8).await;
        }
        self.stop_keeping.cancel();
        let _ = timeout_at(end, self.keeping).await;
        let stats = self.queue.stats();
        if timeout_at(end, self.queue.close()).await.is_err() {
            warn!("the queue did not close in time; what was acknowledged is on disk all the same");
        }
        self.stop_helpers.cancel();
        self.helpers.close();
        let _ = timeout_at(end, self.helpers.wait()).await;
        info!(events_waiting = Left::of(&stats).waiting, "ended");
        stats
    }

    /// Returns when nobody is connected and nothing is under way, and this has lasted for [`QUIET`].
    async fn quiet(&self) {
        let mut quiet_since: Option<Instant> = None;
        loop {
            let busy = !self.batches.is_empty() || self.connections.load(Ordering::Relaxed) > 0;
            let since = *quiet_since.get_or_insert_with(Instant::now);
            if busy {
                quiet_since = None;
            } else if since.elapsed() >= QUIET {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Returns the part of the reserve in which open connections and batches under way may finish; the rest belongs to the
/// destinations and the queue.
fn connections_part(reserve: Duration) -> Duration {
    reserve / 2
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    listen::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (`{key}`)"))
}

/// The admin port is a help: that another process has it must not keep the relay from its traffic.
async fn bind_admin(config: &Config) -> Option<TcpListener> {
    let address = config.admin.as_ref()?.listen;
    match listen::bind(address).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            warn!(%address, %error, "cannot listen on the admin port (`admin.listen`), going on without it");
            None
        }
    }
}

fn engine(config: &Config, destinations: &[String]) -> Arc<dyn Queue> {
    let queue = &config.queue;
    let settings = queue::Settings {
        path: match &queue.engine {
            Engine::Sled { path } => path.clone(),
            Engine::Memory => PathBuf::new(),
        },
        max_bytes: queue.max_bytes.0,
        max_age: queue.max_age,
        when_full: match queue.when_full {
            config::WhenFull::DropOldest => queue::WhenFull::DropOldest,
            config::WhenFull::DropNewest => queue::WhenFull::DropNewest,
        },
        headroom_bytes: queue.headroom.0,
        mark_entries: config.dedupe.entries,
        ..queue::Settings::default()
    };
    match queue.engine {
        Engine::Sled { .. } => Arc::new(SledQueue::start(settings, destinations, system_clock())),
        Engine::Memory => Arc::new(MemoryQueue::start(settings, destinations, system_clock())),
    }
}
