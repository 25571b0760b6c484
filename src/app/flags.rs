//! The coverage of every environment, and the task that keeps the flags' first sights beside the queue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::config::{Config, Engine};
use crate::coverage::file::{self, Keeper, Loaded};
use crate::coverage::{self, Environment};
use crate::export::selection::FlagDefault;
use crate::queue::{Queue, now_ms};

/// How often new flags are written. A crash within it makes a flag look newer than it is, by as much.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The flags of every environment.
#[derive(Clone)]
pub(super) struct Flags {
    environments: Vec<Arc<Environment>>,
    keeper: Option<Arc<Keeper>>,
    since_ms: u64,
}

impl Flags {
    /// Returns the flags as they were left by the last process; a queue in memory leaves nothing.
    pub(super) fn load(config: &Config) -> Self {
        let folder = match &config.queue.engine {
            Engine::Sled { path } => Some(path.clone()),
            Engine::Memory => None,
        };
        let mut loaded = folder.as_deref().map_or_else(
            || Loaded {
                fresh: true,
                ..Loaded::default()
            },
            file::load,
        );
        for damage in &loaded.damage {
            error!(%damage, "the record of when flags were first seen cannot be read");
        }
        let known_before = !loaded.environments.is_empty();
        let environments: Vec<Arc<Environment>> = config
            .environments
            .iter()
            .map(|environment| {
                let seen = loaded.environments.remove(&environment.name);
                if let FlagDefault::New { since_ms } = environment.export.flags.default
                    && seen.is_none()
                    && since_ms <= now_ms()
                {
                    warn!(
                        environment = environment.name,
                        known_before,
                        "nothing is known of flags before now, so every flag counts as newer than export.flags.since"
                    );
                }
                Arc::new(Environment::new(&environment.name, seen.unwrap_or_default()))
            })
            .collect();
        let others: BTreeMap<_, _> = std::mem::take(&mut loaded.environments);
        let keeper = folder.map(|folder| Arc::new(Keeper::new(folder, environments.clone(), others)));
        Self {
            environments,
            keeper,
            since_ms: now_ms(),
        }
    }

    /// Returns the flags of each environment, in the order of the configuration.
    pub(super) fn environments(&self) -> &[Arc<Environment>] {
        &self.environments
    }

    /// Returns the coverage as JSON, of the environment with this name if one is given.
    pub(super) fn document(&self, only: Option<&str>) -> Value {
        let environments = self.environments.iter().map(AsRef::as_ref);
        coverage::document(environments, only, self.since_ms)
    }

    /// Writes new flags until `stop`, and once more then. Not while the queue is unavailable: its folder may belong to
    /// another process.
    pub(super) async fn keep(self, queue: Arc<dyn Queue>, stop: CancellationToken) {
        let Some(keeper) = self.keeper else { return };
        let mut failing = false;
        loop {
            let stopping = stop
                .run_until_cancelled(tokio::time::sleep(KEEP_INTERVAL))
                .await
                .is_none();
            if queue.stats().unavailable.is_none() {
                let keeper = Arc::clone(&keeper);
                let kept = tokio::task::spawn_blocking(move || keeper.keep()).await;
                let error = match kept {
                    Ok(Ok(_)) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                match error {
                    Some(error) if !failing => {
                        failing = true;
                        warn!(%error, "cannot keep when flags were first seen, will try again");
                    }
                    Some(_) => {}
                    None => failing = false,
                }
            }
            if stopping {
                return;
            }
        }
    }
}
