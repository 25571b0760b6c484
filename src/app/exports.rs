//! Export settings that were changed at run time: kept beside the queue, laid over the configuration file's.
//!
//! A change is durable before it is in force. It holds, whatever the file says later, until it is taken back; with
//! `settings: { mutable: false }` the file alone decides.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tracing::{error, info, warn};

use crate::admin::settings::{ChangeError, Expected, Exports, InForce};
use crate::app::live::Live;
use crate::config::{self, Config, Engine};
use crate::export::selection::Settings;
use crate::overrides::Overrides;
use crate::units::hex;

/// What was changed at run time, and where it is kept.
#[derive(Clone, Default)]
pub(super) struct Overlay {
    /// Nothing for a queue in memory, which loses it as it loses everything.
    folder: Option<PathBuf>,
    overrides: Arc<Overrides>,
    /// What of it this version understands.
    settings: Arc<BTreeMap<String, Settings>>,
}

impl Overlay {
    /// Reads what is kept beside the queue. What cannot be read is reported, and the configuration file's settings hold.
    pub(super) fn load(config: &Config) -> Self {
        let folder = match &config.queue.engine {
            Engine::Sled { path } => Some(path.clone()),
            Engine::Memory => None,
        };
        let (overrides, damage) = folder.as_deref().map(Overrides::load).unwrap_or_default();
        if let Some(damage) = damage {
            error!(
                %damage,
                "settings made at run time cannot be read, those before the last change hold, or else the configuration file's"
            );
        }
        let mut settings = BTreeMap::new();
        for (environment, document) in overrides.settings() {
            match config::export(&document.to_string()) {
                Ok((read, _)) => drop(settings.insert(environment.to_owned(), read)),
                Err(problems) => error!(
                    environment,
                    %problems,
                    "settings made at run time are not understood, the configuration file's hold"
                ),
            }
        }
        let kept = Self {
            folder,
            overrides: Arc::new(overrides),
            settings: Arc::new(settings),
        };
        let own = kept.holding(config);
        if !own.is_empty() {
            info!(
                environments = own.join(", "),
                "settings made at run time hold, not the configuration file's"
            );
        } else if !config.settings.mutable && !kept.settings.is_empty() {
            warn!("settings made at run time are kept and do not hold: `settings.mutable` is false");
        }
        kept
    }

    /// Returns the configuration with the settings that hold.
    pub(super) fn over(&self, config: &Config) -> Config {
        let mut config = config.clone();
        if config.settings.mutable {
            for environment in &mut config.environments {
                if let Some(settings) = self.settings.get(&environment.name) {
                    environment.export = settings.clone();
                }
            }
        }
        config
    }

    /// Returns the environments for which the configuration file's settings do not hold.
    pub(super) fn holding<'a>(&self, config: &'a Config) -> Vec<&'a str> {
        let names = config.environments.iter().map(|environment| environment.name.as_str());
        names
            .filter(|name| config.settings.mutable && self.settings.contains_key(*name))
            .collect()
    }

    fn in_force(&self, config: &Config, name: &str) -> Option<InForce> {
        let environment = config
            .environments
            .iter()
            .find(|environment| environment.name == name)?;
        let own = self.settings.get(name).filter(|_| config.settings.mutable);
        let settings = config::document(own.unwrap_or(&environment.export));
        let entry = self.overrides.of(name);
        let version = entry.map_or(0, |entry| entry.version);
        let digest = Sha256::digest(settings.to_string());
        let short: String = hex(&digest).chars().take(16).collect();
        Some(InForce {
            yaml: config::yaml(&settings, 0),
            settings,
            own: own.is_some(),
            version,
            changed: entry.map(|entry| entry.time.clone()),
            etag: format!("\"{version}-{short}\""),
        })
    }

    /// Returns what is kept after an environment got `settings`, or the file's again.
    fn changed(&self, environment: &str, settings: Option<Settings>, before: Value, after: Value) -> Self {
        let document = settings.as_ref().map(config::document);
        let time = jiff::Timestamp::now().to_string();
        let overrides = self.overrides.changed(environment, document, before, after, &time);
        let mut all = BTreeMap::clone(&self.settings);
        match settings {
            Some(settings) => drop(all.insert(environment.to_owned(), settings)),
            None => drop(all.remove(environment)),
        }
        Self {
            folder: self.folder.clone(),
            overrides: Arc::new(overrides),
            settings: Arc::new(all),
        }
    }

    async fn write(&self) -> Result<(), String> {
        let Some(folder) = self.folder.clone() else {
            return Ok(());
        };
        let overrides = Arc::clone(&self.overrides);
        let written = tokio::task::spawn_blocking(move || overrides.write(&folder)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[async_trait]
impl Exports for Live {
    fn environments(&self) -> Vec<String> {
        let environments = &self.shown().config.environments;
        environments
            .iter()
            .map(|environment| environment.name.clone())
            .collect()
    }

    fn of(&self, environment: &str) -> Option<InForce> {
        let shown = self.shown();
        shown.kept.in_force(&shown.config, environment)
    }

    async fn change(
        &self,
        environment: &str,
        expected: Expected,
        settings: Option<String>,
    ) -> Result<InForce, ChangeError> {
        let turn = self.turn().await;
        if turn.is_none() {
            return Err(ChangeError::NotKept("flagtap is about to end".to_owned()));
        }
        let shown = self.shown();
        let (config, kept) = (&shown.config, &shown.kept);
        let before = kept.in_force(config, environment).ok_or(ChangeError::Unknown)?;
        if !config.settings.mutable {
            return Err(ChangeError::Immutable);
        }
        if !expected.admits(&before.etag) {
            return Err(ChangeError::Mismatch(before.etag));
        }
        let settings = match settings.map(|text| config::export(&text)) {
            Some(Ok((settings, warnings))) => {
                for line in warnings.render(environment).lines() {
                    warn!("{line}");
                }
                Some(settings)
            }
            Some(Err(problems)) => {
                return Err(ChangeError::Invalid(problems.errors_only("settings")));
            }
            None if !before.own => return Ok(before),
            None => None,
        };
        // Its folder may belong to another process.
        if let Some(why) = self.unavailable() {
            return Err(ChangeError::NotKept(why));
        }
        let file = config.environments.iter().find(|one| one.name == environment);
        let file = file.ok_or(ChangeError::Unknown)?;
        let after = config::document(settings.as_ref().unwrap_or(&file.export));
        let changed = kept.changed(environment, settings, before.settings, after);
        changed.write().await.map_err(ChangeError::NotKept)?;
        let in_force = changed.in_force(config, environment).ok_or(ChangeError::Unknown)?;
        info!(
            environment,
            version = in_force.version,
            source = if in_force.own { "run_time" } else { "file" },
            "export settings changed at run time"
        );
        self.adopt(changed);
        drop(turn);
        Ok(in_force)
    }

    fn changes(&self) -> Vec<Value> {
        let shown = self.shown();
        shown
            .kept
            .overrides
            .changes()
            .rev()
            .map(|change| json!(change))
            .collect()
    }
}
