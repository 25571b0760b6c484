//! `flagtap check FILE`: reads a configuration as `serve` would and says everything that is wrong with it.
//!
//! Opens no port, no queue and no connection. Prints no secret: keys appear as `***` and their last four characters.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;

use crate::app::connection_to_upstream;
use crate::config::{self, Config, Credentials, Engine, Environment, Queue};
use crate::secret::Secret;
use crate::section::Leaf as _;
use crate::units::format_duration;

/// Checks the file at `path` with the process's environment. Returns the configuration if it can be used. Fails only
/// if `out` does.
pub(super) fn run(path: &Path, out: &mut dyn Write) -> io::Result<Option<Config>> {
    check(path, &config::process_environment, out)
}

fn check(path: &Path, environment: &dyn Fn(&str) -> Option<String>, out: &mut dyn Write) -> io::Result<Option<Config>> {
    let file = path.display().to_string();
    match Config::load(path, environment) {
        Ok((config, warnings)) => {
            write!(out, "{}", warnings.render(&file))?;
            if let Err(error) = connection_to_upstream(&config) {
                writeln!(out, "{file}: {error:#}")?;
                writeln!(out, "{file} cannot be used: {}", count(1, "problem"))?;
                return Ok(None);
            }
            let environments = count(config.environments.len(), "environment");
            let destinations = count(config.destinations.len(), "destination");
            writeln!(out, "{file} is valid: {environments}, {destinations}")?;
            summarise(&config, out)?;
            Ok(Some(config))
        }
        Err(problems) => {
            write!(out, "{}", problems.render(&file))?;
            writeln!(out, "{file} cannot be used: {}", count(problems.errors(), "problem"))?;
            Ok(None)
        }
    }
}

fn summarise(config: &Config, out: &mut dyn Write) -> io::Result<()> {
    let tls = if config.listen.tls.is_some() { " with TLS" } else { "" };
    writeln!(out, "  listen       {}{tls}", config.listen.address)?;
    writeln!(out, "  telemetry    {}", show(config.telemetry))?;
    match &config.admin {
        Some(admin) => writeln!(out, "  admin        {}", show(admin.listen))?,
        None => writeln!(out, "  admin        off")?,
    }
    writeln!(out, "  upstream     {}", config.upstream.url.show())?;
    writeln!(out, "  queue        {}", queue(&config.queue))?;
    for environment in &config.environments {
        writeln!(out, "  environment  {}", describe(environment))?;
    }
    for destination in &config.destinations {
        let paused = if destination.paused { ", paused" } else { "" };
        let (name, kind) = (&destination.name, destination.settings.kind());
        writeln!(out, "  destination  {name}: {kind}{paused}")?;
    }
    Ok(())
}

fn show(address: SocketAddr) -> String {
    let whose = if address.ip().is_loopback() {
        ", this machine only"
    } else {
        ""
    };
    format!("{address}{whose}")
}

fn queue(queue: &Queue) -> String {
    let engine = match &queue.engine {
        Engine::Sled { path } => format!("sled in {}", path.display()),
        Engine::Memory => "memory".to_owned(),
    };
    let (bytes, age) = (queue.max_bytes, format_duration(queue.max_age));
    format!("{engine}, up to {bytes} and {age}, then {}", queue.when_full.as_str())
}

fn describe(environment: &Environment) -> String {
    let whose = match &environment.credentials {
        Some(credentials) => keys(credentials),
        None => "whatever the upstream accepts".to_owned(),
    };
    let kinds: Vec<&str> = environment.export.kinds.iter().map(|kind| kind.as_str()).collect();
    format!(
        "{}: {whose}; exports {} to {}",
        environment.name,
        list(&kinds),
        list(&environment.destinations)
    )
}

fn keys(credentials: &Credentials) -> String {
    let masked = |name: &str, keys: &[Secret]| {
        let keys: Vec<String> = keys.iter().map(Secret::last_four).collect();
        (!keys.is_empty()).then(|| format!("{name} {}", keys.join(", ")))
    };
    let ids = &credentials.client_side_ids;
    let ids = (!ids.is_empty()).then(|| format!("client-side ids {}", ids.join(", ")));
    let parts = [
        masked("SDK keys", &credentials.sdk_keys),
        masked("mobile keys", &credentials.mobile_keys),
        ids,
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn list<T: AsRef<str>>(items: &[T]) -> String {
    if items.is_empty() {
        return "nothing".to_owned();
    }
    items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> (bool, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        let mut out = Vec::new();
        let environment = |name: &str| (name == "LD_SDK_KEY").then(|| "sdk-0123456789".to_owned());
        let usable = check(&path, &environment, &mut out).unwrap().is_some();
        let shown = path.display().to_string();
        (usable, String::from_utf8(out).unwrap().replace(&shown, "config.yaml"))
    }

    #[test]
    fn sums_up_a_valid_file_with_masked_keys() {
        let (usable, out) = checked(
            "environments:\n  - name: production\n    project_id: 5744c96707c9900708000004\n    credentials:\n      \
             sdk_keys: [\"${LD_SDK_KEY}\"]\n      client_side_ids: [578d1e02d2943862c52b9686]\n    \
             export: { kinds: [custom] }\n    destinations: [archive]\n\
             destinations:\n  - name: archive\n    paused: true\n    file: { path: ./out }\n",
        );
        assert_eq!(
            out,
            "config.yaml is valid: 1 environment, 1 destination\n\
             \x20 listen       0.0.0.0:8030\n\
             \x20 telemetry    0.0.0.0:8031\n\
             \x20 admin        127.0.0.1:8032, this machine only\n\
             \x20 upstream     https://events.launchdarkly.com\n\
             \x20 queue        sled in ./flagtap-data, up to 1GiB and 7d, then drop_oldest\n\
             \x20 environment  production: SDK keys ***6789; client-side ids 578d1e02d2943862c52b9686; exports custom to archive\n\
             \x20 destination  archive: file, paused\n"
        );
        assert!(usable);
    }

    #[test]
    fn says_everything_that_is_wrong() {
        let (usable, out) = checked("listen: 8030\ntele: x\n");
        assert!(!usable);
        assert!(out.starts_with("config.yaml:1:1: needs `environments`"), "{out}");
        assert!(out.ends_with("config.yaml cannot be used: 3 problems\n"), "{out}");
    }

    #[test]
    fn a_missing_file_is_a_problem_like_others() {
        let mut out = Vec::new();
        let usable = check(Path::new("/does/not/exist.yaml"), &|_| None, &mut out).unwrap();
        assert!(usable.is_none());
        assert!(
            String::from_utf8(out)
                .unwrap()
                .starts_with("/does/not/exist.yaml: cannot be read: No such file")
        );
    }
}
