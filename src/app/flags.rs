//! The coverage of every environment, and the task that keeps the flags' first sights beside the queue.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::app::catalogue::Reader;
use crate::config::{self, Config, Engine};
use crate::coverage::file::{self, Environments, Keeper};
use crate::coverage::{self, Environment, Goal, Pieces};
use crate::export::selection::FlagDefault;
use crate::queue::{Queue, now_ms};

/// How often new flags are written. A crash within it makes a flag look newer than it is, by as much.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The flags of every environment that is or was configured since the start.
#[derive(Clone)]
pub(super) struct Flags {
    keeper: Arc<Keeper>,
    catalogue: Reader,
    known_before: bool,
}

impl Flags {
    /// Returns the flags as they were left by the last process; a queue in memory leaves nothing.
    pub(super) fn load(config: &Config, catalogue: &Reader) -> Self {
        let folder = match &config.queue.engine {
            Engine::Sled { path } => Some(path.clone()),
            Engine::Memory => None,
        };
        let mut loaded = Environments::new();
        if let Some(found) = folder.as_deref().map(file::load) {
            for damage in &found.damage {
                error!(%damage, "the record of when flags were first seen cannot be read");
            }
            loaded = found.content.unwrap_or_default();
        }
        Self {
            known_before: !loaded.is_empty(),
            keeper: Arc::new(Keeper::new(folder, loaded)),
            catalogue: catalogue.clone(),
        }
    }

    /// Returns the flags of an environment, which is as this configuration says from now on, and the number of that goal.
    pub(super) fn of(&self, environment: &config::Environment, config: &Config) -> (Arc<Environment>, u64) {
        let (flags, known) = self.keeper.environment(&environment.name);
        if let FlagDefault::New { since_ms } = environment.export.flags.default
            && !known
            && since_ms <= now_ms()
            && !self.catalogue.reads()
        {
            warn!(
                environment = environment.name,
                known_before = self.known_before,
                "nothing is known of flags before now, so every flag counts as newer than export.flags.since"
            );
        }
        flags.told_by(self.catalogue.place(environment));
        let named = |name: &String| config.destinations.iter().find(|one| one.name == *name);
        let destinations = environment.destinations.iter().filter_map(named);
        let goal = Goal {
            export: environment.export.clone(),
            destinations: destinations.map(|one| (one.name.clone(), one.narrow.clone())).collect(),
        };
        let number = flags.aims_at(goal, now_ms());
        (flags, number)
    }

    /// Returns the coverage of the configured environments as JSON, of one of them if its name is given.
    pub(super) fn document(&self, config: &Config, only: Option<&str>) -> Pieces {
        let environments = config.environments.iter();
        let flags: Vec<_> = environments
            .map(|environment| self.keeper.environment(&environment.name).0)
            .collect();
        coverage::document(flags.iter().map(AsRef::as_ref), only)
    }

    /// Writes new flags until `stop`, and once more then. Not while the queue is unavailable: its folder may belong to
    /// another process.
    pub(super) async fn keep(self, queue: Arc<dyn Queue>, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let stopping = stop
                .run_until_cancelled(tokio::time::sleep(KEEP_INTERVAL))
                .await
                .is_none();
            if queue.stats().unavailable.is_none() {
                let keeper = Arc::clone(&self.keeper);
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
