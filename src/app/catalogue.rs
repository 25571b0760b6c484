//! The catalogue of LaunchDarkly's flags: whose it is, and the task that reads it anew and keeps the copy on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::catalogue::rest::{Rest, Trouble};
use crate::catalogue::{Catalogue, Place, Shelf, Whose, digest, stored};
use crate::config::{Config, Engine, Environment};
use crate::metrics::{CATALOGUE_READ_TIME, CATALOGUE_READS, Metrics};
use crate::queue::{Queue, now_ms};

/// The first wait after a read that failed; the longest is the configured interval.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// The catalogue and how it is read.
#[derive(Clone)]
pub(super) struct Reader {
    shelf: Arc<Shelf>,
    source: Option<Arc<Source>>,
}

/// LaunchDarkly's API, and what became of the last read.
struct Source {
    rest: Rest,
    refresh: Duration,
    folder: Option<PathBuf>,
    /// By the environment's name; those of an earlier configuration too.
    wanted: Mutex<BTreeMap<String, Whose>>,
    /// Something else is wanted than at the last read.
    changed: Notify,
    trouble: Mutex<Option<Trouble>>,
}

impl Reader {
    /// Returns the catalogue as the last process left it; empty and never read if no token is configured.
    pub(super) fn load(config: &Config) -> Self {
        let shelf = Arc::new(Shelf::default());
        let Some(settings) = &config.launchdarkly else {
            return Self { shelf, source: None };
        };
        let folder = match &config.queue.engine {
            Engine::Sled { path } => Some(path.clone()),
            Engine::Memory => None,
        };
        if let Some(found) = folder.as_deref().map(stored::load) {
            for damage in &found.damage {
                // Nothing is lost: LaunchDarkly has it.
                warn!(%damage, "the copy of LaunchDarkly's flags cannot be read, reading them anew");
            }
            shelf.put(found.content.unwrap_or_default());
        }
        let source = Source {
            rest: Rest::new(settings.base_url.clone(), settings.api_token.clone()),
            refresh: settings.refresh,
            folder,
            wanted: Mutex::default(),
            changed: Notify::new(),
            trouble: Mutex::new(None),
        };
        Self {
            shelf,
            source: Some(Arc::new(source)),
        }
    }

    /// Returns true if LaunchDarkly is read.
    pub(super) fn reads(&self) -> bool {
        self.source.is_some()
    }

    /// Returns where an environment looks itself up, and has it read soon if that is new.
    pub(super) fn place(&self, environment: &Environment) -> Place {
        let whose = whose(environment);
        if let Some(source) = &self.source {
            let mut wanted = source.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            let before = wanted.insert(environment.name.clone(), whose.clone());
            if before.as_ref() != Some(&whose) {
                source.changed.notify_one();
            }
        }
        Place::new(Arc::clone(&self.shelf), whose)
    }

    /// Returns what is known as JSON; `None` if no token is configured.
    pub(super) fn status(&self) -> Option<Value> {
        let source = self.source.as_ref()?;
        let catalogue = self.shelf.current();
        let environments: Vec<Value> = catalogue
            .environments
            .iter()
            .map(|one| {
                json!({ "project": one.project_key, "environment": one.key, "flags": one.flags.len(),
                    "has_more_flags": one.has_more_flags })
            })
            .collect();
        let read = i64::try_from(catalogue.read_ms)
            .ok()
            .filter(|ms| *ms > 0)
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let trouble = source.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(json!({
            "read": read.map(|time| time.to_string()), "environments": environments,
            "trouble": trouble.map(|trouble| trouble.to_string()),
        }))
    }

    /// Reads LaunchDarkly at intervals until `stop`. The copy is not written while the queue is unavailable: its folder
    /// may belong to another process.
    pub(super) async fn keep(self, queue: Arc<dyn Queue>, metrics: Arc<Metrics>, stop: CancellationToken) {
        let Some(source) = self.source else { return };
        let backoff = Backoff {
            initial: FIRST_WAIT.min(source.refresh),
            max: source.refresh,
        };
        let mut failures = 0;
        loop {
            // What is wanted from here on is noticed; what was before is read now.
            let _ = source.changed.notified().now_or_never();
            let wanted = source.wanted();
            let read = stop.run_until_cancelled(source.rest.catalogue(&wanted, now_ms()));
            let Some(read) = read.await else { return };
            let outcome = match &read {
                Ok(_) => "read",
                Err(Trouble::Refused(_)) => "refused",
                Err(Trouble::Unreachable(_)) => "unreachable",
                Err(Trouble::Strange(_)) => "strange",
            };
            let wait = match read {
                Ok(catalogue) => {
                    failures = 0;
                    source.note(None, &catalogue);
                    metrics
                        .gauge(&CATALOGUE_READ_TIME, &[])
                        .set(catalogue.read_ms as f64 / 1000.0);
                    if queue.stats().unavailable.is_none() {
                        source.store(catalogue.clone()).await;
                    }
                    self.shelf.put(catalogue);
                    // Spread, so that relays that started together do not ask together.
                    source.refresh.mul_f64(0.9 + 0.2 * fastrand::f64())
                }
                Err(trouble) => {
                    failures += 1;
                    source.note(Some(trouble), &self.shelf.current());
                    backoff.bound(failures).mul_f64(0.5 + 0.5 * fastrand::f64())
                }
            };
            // Counted once it is in force.
            metrics.counter(&CATALOGUE_READS, &[outcome]).increment(1);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = source.changed.notified() => {}
            }
        }
    }
}

impl Source {
    fn wanted(&self) -> Vec<Whose> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.values().cloned().collect()
    }

    /// Remembers how it went, and says so in the log when that changes.
    fn note(&self, trouble: Option<Trouble>, catalogue: &Catalogue) {
        let mut noted = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &trouble {
            Some(why) if *noted != trouble => {
                let known = catalogue.environments.len();
                warn!(%why, known, "going on with what is known of LaunchDarkly's flags, will try again");
            }
            None if noted.is_some() => info!("LaunchDarkly's flags were read again"),
            _ => {}
        }
        *noted = trouble;
    }

    async fn store(&self, catalogue: Catalogue) {
        let Some(folder) = self.folder.clone() else { return };
        let written = tokio::task::spawn_blocking(move || stored::write(&folder, &catalogue)).await;
        let error = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        warn!(%error, "cannot keep a copy of LaunchDarkly's flags");
    }
}

/// Returns by what a configured environment is found in LaunchDarkly.
pub(crate) fn whose(environment: &Environment) -> Whose {
    let credentials = environment.credentials.clone().unwrap_or_default();
    let ids = credentials.client_side_ids.into_iter();
    let keys = credentials.sdk_keys.iter().chain(&credentials.mobile_keys);
    Whose {
        ids: ids
            .chain([environment.environment_id.clone()])
            .filter(|id| !id.is_empty())
            .collect(),
        keys: keys.map(|key| digest(key.expose())).collect(),
    }
}
