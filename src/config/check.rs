//! Checks across the sections of a file: what each key allows for itself, but not together with another.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use http::Uri;

use super::admin::Admin;
use super::destinations::ReadDestination;
use super::environments::ReadEnvironment;
use super::queue::{Engine, Queue};
use super::traffic::{Listen, Tee, Upstream};
use crate::problems::Place;
use crate::section::Section;
use crate::units::ByteSize;

/// Checks that the ports differ and that the upstream is not flagtap itself.
pub(super) fn addresses(
    root: &Section<'_>,
    listen: &Listen,
    telemetry: SocketAddr,
    admin: Option<&Admin>,
    upstream: &Upstream,
) {
    let at = |section: &str, key: &str| root.inner_place(section, key).unwrap_or_else(|| root.place(None));
    let mut ports = vec![("listen", listen.address), ("telemetry", telemetry)];
    ports.extend(admin.map(|admin| ("admin", admin.listen)));
    for (index, (name, address)) in ports.iter().enumerate() {
        for (earlier, other) in ports.iter().take(index).filter(|(_, other)| collide(*other, *address)) {
            let key = if root.has(name) { name } else { earlier };
            let message = format!(
                "makes `{earlier}` and `{name}` share port {}; give them different ports",
                other.port()
            );
            root.problem(Some(key), message);
        }
    }
    for (name, address) in ports {
        if leads_to(&upstream.url, address) {
            let message =
                format!("leads to our own `{name}` address, so requests would go in a circle; give the service's URL");
            root.problem_at(at("upstream", "url"), message);
        }
    }
}

/// Returns true if both cannot be bound. Port 0 is any free port.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_interface = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && same_interface
}

fn leads_to(url: &Uri, address: SocketAddr) -> bool {
    let default = if url.scheme_str() == Some("https") { 443 } else { 80 };
    if url.port_u16().unwrap_or(default) != address.port() {
        return false;
    }
    let host = url
        .host()
        .unwrap_or_default()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let ip = if host.eq_ignore_ascii_case("localhost") {
        Some(IpAddr::from([127, 0, 0, 1]))
    } else {
        host.parse().ok()
    };
    ip.is_some_and(|ip| {
        ip == address.ip()
            || ip.is_unspecified()
            || (ip.is_loopback() && (address.ip().is_unspecified() || address.ip().is_loopback()))
    })
}

/// Checks that no size makes another one useless.
pub(super) fn sizes(root: &Section<'_>, tee: &Tee, queue: &Queue) {
    let at = |section: &str, keys: [&str; 2]| {
        keys.iter()
            .find_map(|key| root.inner_place(section, key))
            .unwrap_or_else(|| root.place(Some(section)))
    };
    if tee.max_body > tee.max_in_flight {
        let message = format!(
            "leaves no room for one body: `max_body` ({}) must not exceed `max_in_flight` ({})",
            tee.max_body, tee.max_in_flight
        );
        root.problem_at(at("tee", ["max_body", "max_in_flight"]), message);
    }
    if tee.max_body > tee.max_decompressed {
        let message = format!(
            "is the wrong way round: `max_body` ({}, as sent) must not exceed `max_decompressed` ({}, inflated)",
            tee.max_body, tee.max_decompressed
        );
        root.problem_at(at("tee", ["max_decompressed", "max_body"]), message);
    }
    if queue.max_bytes < ByteSize::mib(64) {
        let message = "is under 64MiB: the queue removes whole parts at a time and has little room to work";
        root.warn_at(at("queue", ["max_bytes", "max_bytes"]), message);
    }
}

/// Checks names, references and credentials.
pub(super) fn environments(
    root: &Section<'_>,
    environments: &[ReadEnvironment],
    destinations: &[ReadDestination],
    queue: &Queue,
) {
    let environment_names: Vec<_> = environments.iter().filter_map(|read| read.name.as_ref()).collect();
    let destination_names: Vec<_> = destinations.iter().filter_map(|read| read.name.as_ref()).collect();
    unique(root, &environment_names);
    unique(root, &destination_names);

    let references: Vec<_> = environments.iter().flat_map(|read| &read.destinations).collect();
    for (name, place) in &references {
        if !destination_names.iter().any(|(known, _)| known == name) {
            let known: Vec<&str> = destination_names.iter().map(|(name, _)| name.as_str()).collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            root.problem_at(
                place.clone(),
                format!("is not the name of a destination; there are: {known}"),
            );
        }
    }
    for environment in environments {
        let names: Vec<_> = environment.destinations.iter().collect();
        unique(root, &names);
    }
    for (name, place) in destination_names {
        if !references.iter().any(|(used, _)| used == name) {
            root.warn_at(place.clone(), "is a destination that no environment uses");
        }
    }

    let mut folders: HashMap<&Path, &str> = HashMap::new();
    for (destination, (name, place)) in destinations
        .iter()
        .filter_map(|read| read.value.as_ref().zip(read.name.as_ref()))
    {
        let Some(folder) = destination.settings.folder() else {
            continue;
        };
        if let Engine::Sled { path } = &queue.engine
            && (folder.starts_with(path) || path.starts_with(folder))
        {
            root.problem_at(
                place.clone(),
                "has its folder and the queue's one inside the other; give each its own",
            );
        }
        if let Some(other) = folders.insert(folder, name) {
            root.problem_at(
                place.clone(),
                format!("writes to the same folder as {other}; give each its own"),
            );
        }
    }

    let mut seen: HashMap<&str, &Place> = HashMap::new();
    for (credential, place) in environments.iter().flat_map(|read| &read.credentials) {
        if let Some(first) = seen.insert(credential.expose(), place) {
            let message = format!(
                "is the same credential as {}; a request belongs to one environment, give it once",
                first.path
            );
            root.problem_at(place.clone(), message);
        }
    }
    if environments.len() > 1 {
        for environment in environments.iter().filter(|read| !read.has_credentials) {
            let message = "needs `credentials`: only an environment that is alone can do without";
            root.problem_at(environment.place.clone(), message);
        }
    }
}

fn unique(root: &Section<'_>, names: &[&(String, Place)]) {
    for (index, (name, place)) in names.iter().enumerate() {
        if let Some((_, first)) = names.iter().take(index).find(|(earlier, _)| earlier == name) {
            root.problem_at(
                place.clone(),
                format!("is the same name as {}; names must differ", first.path),
            );
        }
    }
}
