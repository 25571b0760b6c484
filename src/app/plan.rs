//! What a new configuration changes: which deliveries end and begin, and what has to wait for a restart. Pure.

use crate::config::{Config, Destination, Engine};
use crate::problems::{Place, Problems};

/// What a new configuration changes.
#[derive(Debug)]
pub(super) struct Plan {
    /// What is in force afterwards: the new configuration, with what cannot change at run time as it was.
    pub(super) config: Config,
    /// The keys whose new values wait for a restart.
    pub(super) restart: Vec<&'static str>,
    /// The destinations whose delivery ends: removed, changed or paused.
    pub(super) stop: Vec<String>,
    /// The destinations whose delivery begins: added, changed or no longer paused.
    pub(super) start: Vec<String>,
    /// Anything else changes.
    pub(super) others: bool,
}

impl Plan {
    /// Compares. Fails if the new configuration does not go together with what cannot change.
    pub(super) fn between(old: &Config, new: Config) -> Result<Self, Problems> {
        let (config, restart) = keep_fixed(old, new);
        check(&config)?;
        let delivered = |config: &Config, name: &str| -> Option<Destination> {
            let found = config.destinations.iter().find(|destination| destination.name == name);
            found.filter(|destination| !destination.paused).cloned()
        };
        let changed = |one: &Config, other: &Config| -> Vec<String> {
            let names = one.destinations.iter().map(|destination| &destination.name);
            let changed = names.filter(|name| {
                let before = delivered(one, name);
                before.is_some() && before != delivered(other, name)
            });
            changed.cloned().collect()
        };
        let (stop, start) = (changed(old, &config), changed(&config, old));
        let others = Config {
            destinations: Vec::new(),
            ..old.clone()
        } != Config {
            destinations: Vec::new(),
            ..config.clone()
        };
        Ok(Self {
            others: others || names(old) != names(&config),
            config,
            restart,
            stop,
            start,
        })
    }

    /// Returns true if nothing changes.
    pub(super) fn is_empty(&self) -> bool {
        self.stop.is_empty() && self.start.is_empty() && !self.others
    }
}

/// Returns the names of the destinations, and which are paused.
pub(super) fn names(config: &Config) -> Vec<(&str, bool)> {
    let destinations = config.destinations.iter();
    destinations
        .map(|destination| (destination.name.as_str(), destination.paused))
        .collect()
}

/// Gives what cannot change at run time its old values, and returns the keys that had others.
fn keep_fixed(old: &Config, mut new: Config) -> (Config, Vec<&'static str>) {
    let mut keys = Vec::new();
    macro_rules! keep {
        ($($name:literal: $($field:ident).+;)+) => {
            $(if new.$($field).+ != old.$($field).+ {
                keys.push($name);
                new.$($field).+ = old.$($field).+.clone();
            })+
        };
    }
    keep! {
        "listen.address": listen.address;
        "listen.tls": listen.tls;
        "telemetry": telemetry;
        "admin": admin;
        "log.format": log.format;
        "upstream.url": upstream.url;
        "upstream.connect_timeout": upstream.connect_timeout;
        "upstream.timeout": upstream.timeout;
        "upstream.ca_file": upstream.ca_file;
        "upstream.idle_timeout": upstream.idle_timeout;
        "upstream.max_idle": upstream.max_idle;
        "limits": limits;
        "tee.max_in_flight": tee.max_in_flight;
        "tee.max_decompressed": tee.max_decompressed;
        "queue.max_bytes": queue.max_bytes;
        "queue.max_age": queue.max_age;
        "queue.when_full": queue.when_full;
        "queue.headroom": queue.headroom;
        "queue.sled": queue.engine;
        "dedupe.entries": dedupe.entries;
        "launchdarkly": launchdarkly;
        "shutdown": shutdown;
    }
    // It goes with the new values of the other two, and not with those in force.
    if new.tee.max_body > new.tee.max_in_flight || new.tee.max_body > new.tee.max_decompressed {
        keys.push("tee.max_body");
        new.tee.max_body = old.tee.max_body;
    }
    (new, keys)
}

/// The file was checked with its own queue; here with the one in force.
fn check(config: &Config) -> Result<(), Problems> {
    let Engine::Sled { path } = &config.queue.engine else {
        return Ok(());
    };
    let mut problems = Problems::default();
    for (index, destination) in config.destinations.iter().enumerate() {
        let inside = |folder: &std::path::Path| folder.starts_with(path) || path.starts_with(folder);
        if destination.settings.folder().is_some_and(inside) {
            let place = Place {
                path: format!("destinations[{index}]"),
                ..Place::default()
            };
            let message =
                "has its folder and that of the queue in use, which only a restart leaves, one inside the other";
            problems.error(place, message);
        }
    }
    match problems.has_errors() {
        true => Err(problems),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "environments: [{ name: a, destinations: [] }]\n";

    fn config(head: &str, destinations: &str) -> Config {
        let text = format!("{head}{TAIL}destinations: [{destinations}]\n");
        Config::parse(&text, &|_| None)
            .unwrap_or_else(|problems| panic!("{problems}"))
            .0
    }

    fn plan(old: &str, new: &str) -> (Vec<String>, Vec<String>) {
        let plan = Plan::between(&config("", old), config("", new)).unwrap();
        assert_eq!(plan.is_empty(), old == new, "{old} {new}");
        (plan.stop, plan.start)
    }

    const A: &str = "{ name: a, file: { path: ./a } }, ";
    const PAUSED: &str = "{ name: a, paused: true, file: { path: ./a } }, ";
    const B: &str = "{ name: b, stdout: {} }, ";

    #[test]
    fn only_what_a_destination_is_told_changes_its_delivery() {
        let slower = A.replace("name: a", "name: a, retry: { initial: 2s }");
        let a = || vec!["a".to_owned()];
        for (old, new, stop, start) in [
            (format!("{A}{B}"), format!("{A}{B}"), vec![], vec![]),
            (format!("{A}{B}"), format!("{B}{A}"), vec![], vec![]),
            (B.to_owned(), format!("{B}{A}"), vec![], a()),
            (format!("{A}{B}"), B.to_owned(), a(), vec![]),
            (format!("{A}{B}"), format!("{slower}{B}"), a(), a()),
            (format!("{A}{B}"), format!("{PAUSED}{B}"), a(), vec![]),
            (format!("{PAUSED}{B}"), format!("{A}{B}"), vec![], a()),
            (format!("{PAUSED}{B}"), B.to_owned(), vec![], vec![]),
            (B.to_owned(), format!("{B}{PAUSED}"), vec![], vec![]),
        ] {
            assert_eq!(plan(&old, &new), (stop, start), "{old} -> {new}");
        }
    }

    #[test]
    fn what_cannot_change_is_named_and_stays_as_it_was() {
        let head = "listen: 127.0.0.1:1\ntelemetry: 127.0.0.1:2\nadmin: off\nlog: { level: debug, format: text }\n\
                    upstream: { url: \"https://u.example\", timeout: 31s }\nlimits: { connections: 9 }\n\
                    tee: { max_in_flight: 65MiB, max_body: 1MiB, on_failure: refuse }\nqueue: { max_age: 1d, sled: { path: ./q } }\n\
                    dedupe: { entries: 9, window: 1h }\nshutdown: { grace: 9s }\n";
        let (old, new) = (config("", A), config(head, A));
        let plan = Plan::between(&old, new.clone()).unwrap();
        assert_eq!(
            plan.restart,
            [
                "listen.address",
                "telemetry",
                "admin",
                "log.format",
                "upstream.url",
                "upstream.timeout",
                "limits",
                "tee.max_in_flight",
                "queue.max_age",
                "queue.sled",
                "dedupe.entries",
                "shutdown",
            ]
        );
        assert_eq!((&plan.config.listen, &plan.config.queue), (&old.listen, &old.queue));
        assert_eq!(plan.config.log.level, new.log.level);
        assert_eq!(plan.config.tee.on_failure, new.tee.on_failure);
        assert_eq!(plan.config.tee.max_body, new.tee.max_body);
        assert_eq!(plan.config.dedupe.window, new.dedupe.window);
        assert!(plan.others && plan.stop.is_empty() && plan.start.is_empty());
        let back = Plan::between(&plan.config, old).unwrap();
        assert!(
            back.restart.is_empty(),
            "what was never in force needs no restart to leave"
        );
    }

    #[test]
    fn a_body_that_the_budget_in_force_cannot_hold_waits_for_the_restart() {
        let new = config(
            "tee: { max_in_flight: 1GiB, max_body: 128MiB, max_decompressed: 1GiB }\n",
            A,
        );
        let plan = Plan::between(&config("", A), new).unwrap();
        assert_eq!(
            plan.restart,
            ["tee.max_in_flight", "tee.max_decompressed", "tee.max_body"]
        );
        assert!(plan.config.tee.max_body <= plan.config.tee.max_in_flight);
    }

    #[test]
    fn a_folder_of_the_queue_in_use_is_not_given_away() {
        let new = config(
            "queue: { sled: { path: ./other } }\n",
            "{ name: a, file: { path: ./flagtap-data/x } }",
        );
        let problems = Plan::between(&config("", A), new).unwrap_err();
        assert!(problems.to_string().contains("destinations[0]"), "{problems}");
    }
}
