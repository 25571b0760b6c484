//! What is in force, and how another configuration takes its place while traffic goes on.
//!
//! One change at a time. Whoever looks gets one consistent state: requests a policy, people a [`Shown`]. A change is
//! carried out in an order in which nothing is lost: new cursors are durable before anything is exported to them, and
//! nothing is exported to a destination that has left before its delivery ends. A destination that is not concerned keeps
//! its cursor, its requests under way and its waits.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::app::drains::{Drains, Spec};
use crate::app::exports::Overlay;
use crate::app::flags::Flags;
use crate::app::plan::{Plan, names};
use crate::app::relay::policy;
use crate::config::{Config, Level};
use crate::drain::{self, DrainStatus};
use crate::metrics::{
    BATCHES_NOT_TEED, CONFIGURATION_REFUSED, CONFIGURATION_RELOADS, CONFIGURATION_RESTART, DESTINATION_CORRUPT,
    DESTINATION_DEAD, DESTINATION_DELIVERED, DESTINATION_DROPPED, DESTINATION_EVICTED, DESTINATION_PAUSED,
    DESTINATION_QUEUED, DESTINATION_RECOVERED, DESTINATION_REQUEUED, DESTINATION_WAITING, EVENTS_NOT_TEED, Metrics,
    TASK_PANICS,
};
use crate::problems::Problems;
use crate::proxy::tee::{HOLES, Tee};
use crate::queue::Queue;

/// How long the queue may take to make new cursors durable.
const CURSOR_PATIENCE: Duration = Duration::from_secs(10);

/// Sets the log's level.
pub type SetLevel = Box<dyn Fn(Level) + Send + Sync>;

/// What carries a configuration out.
pub(super) struct Parts {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) tee: Arc<Tee>,
    pub(super) flags: Flags,
    pub(super) metrics: Arc<Metrics>,
    pub(super) set_level: SetLevel,
}

/// What is in force.
pub(super) struct Live {
    parts: Parts,
    /// Nothing once the process ends.
    drains: Mutex<Option<Drains>>,
    shown: ArcSwap<Shown>,
}

/// What is in force, for whoever looks.
#[derive(Clone)]
pub(super) struct Shown {
    /// The configuration as the file says, with what cannot change at run time as it was at the start.
    pub(super) config: Arc<Config>,
    /// What was changed at run time.
    pub(super) kept: Overlay,
    /// Every configured destination, in the order of the configuration.
    pub(super) deliveries: Vec<Delivery>,
    /// When this configuration came into force.
    pub(super) since: SystemTime,
    /// Keys whose values in the file wait for a restart.
    pub(super) restart: Vec<&'static str>,
    /// Why the file as it is now is not in force, and since when.
    pub(super) refused: Option<(SystemTime, Vec<String>)>,
}

/// How one destination is served.
#[derive(Clone)]
pub(super) struct Delivery {
    pub(super) name: String,
    /// Nothing while it is paused.
    pub(super) status: Option<Arc<DrainStatus>>,
}

impl Live {
    /// Puts the configuration of the start in force: its policy is in the tee already, its cursors in the queue.
    pub(super) async fn start(parts: Parts, config: Config, kept: Overlay) -> Self {
        show_from_the_start(&config, &parts.metrics);
        let mut drains = Drains::new(Arc::clone(&parts.queue), Arc::clone(&parts.metrics));
        for destination in config.destinations.iter().filter(|destination| !destination.paused) {
            drains.start(spec(destination).await);
        }
        let shown = Shown {
            deliveries: deliveries(&config, &drains),
            kept,
            config: Arc::new(config),
            since: SystemTime::now(),
            restart: Vec::new(),
            refused: None,
        };
        Self {
            parts,
            drains: Mutex::new(Some(drains)),
            shown: ArcSwap::from_pointee(shown),
        }
    }

    /// Returns what is in force.
    pub(super) fn shown(&self) -> Arc<Shown> {
        self.shown.load_full()
    }

    /// Puts what was read from the `file` in force, or says why not. Returns false if it is to be read again although it
    /// did not change: what was wrong may be beside it. `asked`: somebody waits to be told, also if nothing is new.
    pub(super) async fn take(&self, read: Result<(Config, Problems), Problems>, file: &str, asked: bool) -> bool {
        let mut drains = self.drains.lock().await;
        let Some(drains) = &mut *drains else { return true };
        let shown = self.shown();
        let planned = match read {
            Ok((config, warnings)) => Plan::between(&shown.config, config).map(|plan| (plan, warnings)),
            Err(problems) => Err(problems),
        };
        let (plan, warnings) = match planned {
            Ok(planned) => planned,
            Err(problems) => {
                self.refuse(problems.errors_only(file), asked);
                return false;
            }
        };
        if plan.is_empty() && plan.restart == shown.restart && shown.refused.is_none() {
            if asked {
                info!(file, "configuration read again, nothing changed");
                self.count("unchanged");
            }
            return true;
        }
        if let Err(why) = self.configure_queue(&plan, &shown.config).await {
            self.refuse(vec![format!("{file}: {why}")], asked);
            return false;
        }
        for line in warnings.render(file).lines() {
            warn!("{line}");
        }
        if !plan.restart.is_empty() && plan.restart != shown.restart {
            let keys = plan.restart.join(", ");
            warn!(
                keys,
                "these keys cannot change at run time, their new values wait for a restart"
            );
        }
        let (started, ended) = (plan.start.join(", "), plan.stop.join(", "));
        self.carry_out(plan, drains).await;
        let shown = self.shown();
        let overridden = shown.kept.holding(&shown.config).join(", ");
        info!(file, started, ended, overridden, "configuration reloaded");
        self.count("applied");
        true
    }

    /// Returns the turn to change something; nothing once the process ends.
    pub(super) async fn turn(&self) -> Option<impl Sized> {
        let turn = self.drains.lock().await;
        turn.is_some().then_some(turn)
    }

    /// Returns why the queue is not available, if it is not.
    pub(super) fn unavailable(&self) -> Option<String> {
        self.parts.queue.stats().unavailable
    }

    /// Puts what was changed at run time in force. For whoever has the turn.
    pub(super) fn adopt(&self, kept: Overlay) {
        let shown = self.shown();
        let Parts {
            tee, flags, metrics, ..
        } = &self.parts;
        tee.adopt(policy(&kept.over(&shown.config), flags, metrics));
        self.shown.store(Arc::new(Shown {
            kept,
            ..Shown::clone(&shown)
        }));
    }

    /// Ends whatever could change, and returns the drains; nothing if they were taken before.
    pub(super) async fn end(&self) -> Option<Drains> {
        self.drains.lock().await.take()
    }

    async fn configure_queue(&self, plan: &Plan, old: &Config) -> Result<(), String> {
        let of =
            |config: &Config| -> Vec<String> { names(config).iter().map(|(name, _)| (*name).to_owned()).collect() };
        let wanted = of(&plan.config);
        if wanted == of(old) {
            return Ok(());
        }
        match timeout(CURSOR_PATIENCE, self.parts.queue.configure(&wanted)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!(
                "cannot make the destinations' cursors, will try again: {error}"
            )),
            Err(_) => {
                Err("cannot make the destinations' cursors, will try again: the queue does not answer".to_owned())
            }
        }
    }

    async fn carry_out(&self, plan: Plan, drains: &mut Drains) {
        let Plan {
            config,
            restart,
            stop,
            start,
            ..
        } = plan;
        let parts = &self.parts;
        let mut specs = Vec::with_capacity(start.len());
        for destination in config.destinations.iter().filter(|one| start.contains(&one.name)) {
            specs.push(spec(destination).await);
        }
        show_from_the_start(&config, &parts.metrics);
        for left in &self.shown().config.destinations {
            if !config.destinations.iter().any(|one| one.name == left.name) {
                parts.metrics.gauge(&DESTINATION_PAUSED, &[&left.name]).set(0.0);
            }
        }
        let kept = self.shown().kept.clone();
        let in_force = kept.over(&config);
        parts.tee.adopt(policy(&in_force, &parts.flags, &parts.metrics));
        for name in &stop {
            drains.end(name);
        }
        for spec in specs {
            drains.start(spec);
        }
        if config.log.level != self.shown().config.log.level {
            (parts.set_level)(config.log.level);
        }
        parts.metrics.gauge(&CONFIGURATION_REFUSED, &[]).set(0.0);
        parts
            .metrics
            .gauge(&CONFIGURATION_RESTART, &[])
            .set(if restart.is_empty() { 0.0 } else { 1.0 });
        self.shown.store(Arc::new(Shown {
            deliveries: deliveries(&config, drains),
            kept,
            config: Arc::new(config),
            since: SystemTime::now(),
            restart,
            refused: None,
        }));
    }

    fn refuse(&self, problems: Vec<String>, asked: bool) {
        let shown = self.shown();
        let known = shown.refused.as_ref().is_some_and(|(_, known)| *known == problems);
        if known && !asked {
            return;
        }
        for problem in &problems {
            error!("{problem}");
        }
        error!(
            problems = problems.len(),
            "the new configuration is refused, the one before stays in force"
        );
        let since = shown.refused.as_ref().map_or_else(SystemTime::now, |(since, _)| *since);
        self.shown.store(Arc::new(Shown {
            refused: Some((since, problems)),
            ..Shown::clone(&shown)
        }));
        // Whoever sees it counted finds the problems.
        self.count("refused");
        self.parts.metrics.gauge(&CONFIGURATION_REFUSED, &[]).set(1.0);
    }

    fn count(&self, outcome: &str) {
        self.parts
            .metrics
            .counter(&CONFIGURATION_RELOADS, &[outcome])
            .increment(1);
    }
}

async fn spec(destination: &crate::config::Destination) -> Spec {
    Spec {
        name: destination.name.clone(),
        folder: destination.settings.folder().map(Into::into),
        destination: destination.settings.open().await,
        settings: drain::Settings {
            retry: destination.retry,
            concurrency: destination.concurrency,
            narrow: destination.narrow.clone(),
            ..drain::Settings::default()
        },
    }
}

fn deliveries(config: &Config, drains: &Drains) -> Vec<Delivery> {
    let destinations = config.destinations.iter();
    let delivery = |destination: &crate::config::Destination| Delivery {
        name: destination.name.clone(),
        status: drains.status(&destination.name).filter(|_| !destination.paused),
    };
    destinations.map(delivery).collect()
}

/// Makes the series of every environment and destination appear with 0, so that rates see their first events.
fn show_from_the_start(config: &Config, metrics: &Metrics) {
    for outcome in ["applied", "refused", "unchanged"] {
        metrics.counter(&CONFIGURATION_RELOADS, &[outcome]).increment(0);
    }
    for destination in &config.destinations {
        let paused = metrics.gauge(&DESTINATION_PAUSED, &[&destination.name]);
        paused.set(if destination.paused { 1.0 } else { 0.0 });
    }
    for task in ["drain", "request"] {
        metrics.counter(&TASK_PANICS, &[task]).increment(0);
    }
    for environment in &config.environments {
        for reason in HOLES {
            for counter in [&BATCHES_NOT_TEED, &EVENTS_NOT_TEED] {
                metrics.counter(counter, &[&environment.name, reason]).increment(0);
            }
        }
        for destination in &environment.destinations {
            let labels = [environment.name.as_str(), destination.as_str()];
            for counter in [
                &DESTINATION_QUEUED,
                &DESTINATION_RECOVERED,
                &DESTINATION_REQUEUED,
                &DESTINATION_DELIVERED,
                &DESTINATION_DEAD,
                &DESTINATION_DROPPED,
                &DESTINATION_EVICTED,
                &DESTINATION_CORRUPT,
            ] {
                metrics.counter(counter, &labels).increment(0);
            }
            metrics.gauge(&DESTINATION_WAITING, &labels).increment(0.0);
        }
    }
}
