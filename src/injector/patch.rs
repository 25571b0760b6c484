//! The decision about a pod, and the change that follows from it as a JSON patch (RFC 6902). Pure.
//!
//! `docs/injector.md` has the decisions as a table. A pod that has a container of the sidecar's name is left alone, so
//! deciding about a patched pod again changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::injector::pod::{Container, Pod, Port, Spec};
use crate::injector::template::Template;
use crate::injector::{CONTAINERS, ENV, INJECT, STATUS, plain_name};

/// The most names that one annotation may list.
const MOST_NAMES: usize = 64;
/// The longest name of a variable that is set, bytes.
const LONGEST_VARIABLE: usize = 128;
/// The most variables that a pod gets, over all containers: each is an operation of the patch.
const MOST_VARIABLES: usize = 256;
/// The most annotations that Kubernetes takes, bytes of names and values together.
const MOST_ANNOTATIONS: usize = 256 * 1024;
/// Where the sidecar's configuration is, in the chart's template.
const CONFIG: &str = "flagtap.dev/config";
/// The default of the configuration's `listen`.
const LISTEN_PORT: u16 = 8030;
/// The default of the configuration's `admin.listen`.
const ADMIN_PORT: u16 = 8032;
/// The longest status, bytes; the rest is cut off.
const LONGEST_STATUS: usize = 1024;

/// What becomes of a pod.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// It does not ask for the sidecar.
    NotAsked,
    /// It has it.
    Present,
    /// It asks and cannot have it.
    Refused(Change),
    /// It gets it.
    Injected(Change),
}

/// A change, and what a person should know of it.
#[derive(Debug, PartialEq)]
pub(super) struct Change {
    /// The operations, in order.
    pub(super) patch: Vec<Value>,
    /// Why there is no sidecar, or what could not be done as asked; empty if all is well.
    pub(super) notes: Vec<String>,
}

/// Decides about a pod.
pub(super) fn decide(template: &Template, pod: &Pod) -> Decision {
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let Some(asked) = annotations.get(INJECT).or_else(|| labels.get(INJECT)) else {
        return Decision::NotAsked;
    };
    if asked == "false" {
        return Decision::NotAsked;
    }
    let all = || pod.spec.all_containers();
    if all().any(|container| container.name == template.name) {
        return Decision::Present;
    }
    let why_not = match asked.as_str() {
        "true" => why_not(template, &pod.spec, annotations),
        _ => Some(format!("{INJECT} is neither \"true\" nor \"false\"")),
    };
    let size = |(name, value): (&String, &String)| name.len() + value.len();
    let so_far: usize = annotations.iter().map(size).sum();
    let missing = || (template.annotations.iter()).filter(|(name, _)| !annotations.contains_key(*name));
    let (mut notes, mut variables, mut wanted) = (Vec::new(), Vec::new(), None);
    if let Some(listed) = annotations.get(ENV) {
        variables = variable_names(listed, &mut notes);
        wanted = annotations
            .get(CONTAINERS)
            .map(|list| names(list, CONTAINERS, &mut notes));
    }
    let why_not = why_not.or_else(|| {
        let operations = variables.len() * wanted.as_ref().map_or(pod.spec.containers.len(), Vec::len);
        (operations > MOST_VARIABLES)
            .then(|| format!("it would get more than {MOST_VARIABLES} variables, over all containers"))
    });
    let status_size = STATUS.len() + LONGEST_STATUS;
    let why_not = why_not.or_else(|| {
        (so_far + missing().map(size).sum::<usize>() + status_size > MOST_ANNOTATIONS)
            .then(|| "its annotations and the template's are more than Kubernetes takes (256 KiB)".to_owned())
    });
    let mut patch = Patch::new(pod);
    if let Some(why) = why_not {
        if so_far + status_size <= MOST_ANNOTATIONS {
            patch.annotate(STATUS, &cut(&format!("not injected: {why}")));
        } else {
            patch.0.clear();
        }
        return Decision::Refused(Change {
            patch: patch.0,
            notes: vec![format!("flagtap is not injected: {why}")],
        });
    }
    patch.variables(template, &pod.spec, &variables, wanted.as_deref(), &mut notes);
    // After the variables: their paths count the containers as they were.
    patch.sidecar(template, &pod.spec);
    for (name, value) in missing() {
        patch.annotate(name, value);
    }
    let status: Vec<&str> = std::iter::once("injected")
        .chain(notes.iter().map(String::as_str))
        .collect();
    patch.annotate(STATUS, &cut(&status.join("; ")));
    Decision::Injected(Change { patch: patch.0, notes })
}

/// Returns the status, or as much of it as may stand in an annotation.
fn cut(status: &str) -> String {
    if status.len() <= LONGEST_STATUS {
        return status.to_owned();
    }
    let end = status.floor_char_boundary(LONGEST_STATUS - '…'.len_utf8());
    format!("{}…", &status[..end])
}

/// Returns the admin port of a sidecar with this configuration. It listens on loopback, and nobody declares it: but whoever wants
/// it on all of the pod's addresses could not have it.
fn admin_port(config: &Value) -> Option<u16> {
    match &config["admin"] {
        Value::Bool(false) => None,
        Value::String(word) if word == "off" => None,
        admin => match admin["listen"].as_str() {
            None => Some(ADMIN_PORT),
            // With a variable in it, it is not known.
            Some(listen) => Some(listen.parse::<SocketAddr>().ok()?.port()),
        },
    }
}

/// Returns the port on which a pod's own configuration listens; `None` if that cannot be told here.
fn own_port(config: &Value) -> Option<u16> {
    match config.get("listen") {
        None => config.is_object().then_some(LISTEN_PORT),
        Some(Value::String(listen)) => listen.parse::<SocketAddr>().ok().map(|address| address.port()),
        Some(listen) => listen["address"]
            .as_str()?
            .parse::<SocketAddr>()
            .ok()
            .map(|address| address.port()),
    }
}

/// Returns why a pod that asks cannot have the sidecar.
fn why_not(template: &Template, spec: &Spec, annotations: &BTreeMap<String, String>) -> Option<String> {
    if spec.containers.is_empty() {
        return Some("the pod has no containers".to_owned());
    }
    if spec.host_network == Some(true) {
        return Some("the pod uses the node's network (hostNetwork), where its ports could collide".to_owned());
    }
    let selected = spec
        .node_selector
        .as_ref()
        .and_then(|selector| selector.get("kubernetes.io/os"));
    let named = spec.os.as_ref().map(|os| &os.name);
    if selected.into_iter().chain(named).any(|os| os == "windows") {
        return Some("the pod is for Windows".to_owned());
    }
    if spec.resources == Some(true) {
        return Some("the pod has resources as a whole (spec.resources), which do not count the sidecar".to_owned());
    }
    if !template.native && spec.restart_policy.as_deref().is_some_and(|policy| policy != "Always") {
        return Some(
            "the pod would never complete (restartPolicy) beside a sidecar that is an ordinary container".to_owned(),
        );
    }
    let declared = spec
        .all_containers()
        .flat_map(|container| container.ports.iter().flatten());
    // What cannot be read is flagtap's to refuse.
    let parsed = |config: &String| serde_saphyr::from_str::<Value>(config).unwrap_or_default();
    let own = annotations.get(CONFIG).map(parsed);
    if let Some(port) = own.as_ref().and_then(own_port)
        && !template.ports.contains(&Port::tcp(port))
    {
        return Some(format!(
            "its {CONFIG} listens on port {port}, where the variables do not point: they have the sidecar's {}",
            template.url
        ));
    }
    let config = own.or_else(|| template.annotations.get(CONFIG).map(parsed));
    let admin = admin_port(&config.unwrap_or_default()).map(Port::tcp);
    for port in declared {
        if template.ports.contains(port) || admin.as_ref() == Some(port) {
            return Some(format!(
                "a container declares port {}, which is the sidecar's",
                port.container_port
            ));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        if template.volumes.contains_key(&volume.name) {
            return Some(format!("the pod has a volume named {} already", volume.name));
        }
    }
    None
}

/// Returns the names in an annotation that variables can have.
fn variable_names<'a>(list: &'a str, notes: &mut Vec<String>) -> Vec<&'a str> {
    let listed = names(list, ENV, notes);
    let valid: Vec<&str> = listed.iter().copied().filter(|name| is_variable(name)).collect();
    if valid.len() < listed.len() {
        notes.push(format!("{ENV} has a name that no variable can have"));
    }
    valid
}

fn is_variable(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    name.len() <= LONGEST_VARIABLE && name.chars().all(allowed) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Returns the names that an annotation lists, each once.
fn names<'a>(list: &'a str, annotation: &str, notes: &mut Vec<String>) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if found.len() == MOST_NAMES {
            notes.push(format!("{annotation} lists more than {MOST_NAMES} names"));
            break;
        }
        if !found.contains(&name) {
            found.push(name);
        }
    }
    if found.is_empty() {
        notes.push(format!("{annotation} names nothing"));
    }
    found
}

impl Spec {
    fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().flatten().chain(&self.containers)
    }
}

/// Operations for one pod.
struct Patch(Vec<Value>);

impl Patch {
    fn new(pod: &Pod) -> Self {
        let mut patch = Self(Vec::new());
        if pod.metadata.annotations.is_none() {
            patch.add("/metadata/annotations".to_owned(), json!({}));
        }
        patch
    }

    /// `add` replaces a member that is there, and null with it.
    fn add(&mut self, path: String, value: Value) {
        self.0.push(json!({ "op": "add", "path": path, "value": value }));
    }

    fn annotate(&mut self, name: &str, value: &str) {
        // RFC 6901 §3.
        let name = name.replace('~', "~0").replace('/', "~1");
        self.add(format!("/metadata/annotations/{name}"), json!(value));
    }

    /// Sets variables in the containers `wanted` by name; without names in all but init containers.
    fn variables(
        &mut self,
        template: &Template,
        spec: &Spec,
        variables: &[&str],
        wanted: Option<&[&str]>,
        notes: &mut Vec<String>,
    ) {
        for name in wanted.unwrap_or_default() {
            if !spec.all_containers().any(|container| container.name == *name) {
                // Only a name that could be one is repeated: notes go into logs and terminals.
                let shown = if plain_name(name) { name } else { "something" };
                notes.push(format!("{CONTAINERS} names {shown}, which is no container"));
            }
        }
        let is_wanted = |container: &Container| wanted.is_none_or(|names| names.contains(&container.name.as_str()));
        for (index, container) in spec
            .containers
            .iter()
            .enumerate()
            .filter(|(_, container)| is_wanted(container))
        {
            self.set(
                &format!("/spec/containers/{index}/env"),
                container,
                template,
                variables,
                notes,
            );
        }
        for (index, container) in spec.init_containers.iter().flatten().enumerate() {
            if wanted.is_none() || !is_wanted(container) {
                continue;
            }
            if template.native {
                self.set(
                    &format!("/spec/initContainers/{index}/env"),
                    container,
                    template,
                    variables,
                    notes,
                );
            } else {
                notes.push(format!("init container {} runs before the sidecar", container.name));
            }
        }
    }

    fn set(
        &mut self,
        path: &str,
        container: &Container,
        template: &Template,
        variables: &[&str],
        notes: &mut Vec<String>,
    ) {
        let there = |name: &str| container.env.iter().flatten().any(|variable| variable.name == name);
        let mut missing = Vec::new();
        for name in variables {
            if there(name) {
                notes.push(format!("container {} sets {name} itself", container.name));
            } else {
                missing.push(json!({ "name": name, "value": template.url }));
            }
        }
        if missing.is_empty() {
            return;
        }
        match &container.env {
            None => self.add(path.to_owned(), Value::Array(missing)),
            // From the last to the first, so that they stand in the order of the annotation.
            Some(_) => missing
                .into_iter()
                .rev()
                .for_each(|variable| self.add(format!("{path}/0"), variable)),
        }
    }

    fn sidecar(&mut self, template: &Template, spec: &Spec) {
        let container = template.container.clone();
        match (template.native, &spec.init_containers) {
            (true, Some(_)) => self.add("/spec/initContainers/0".to_owned(), container),
            (true, None) => self.add("/spec/initContainers".to_owned(), json!([container])),
            (false, _) => self.add("/spec/containers/-".to_owned(), container),
        }
        if spec.volumes.is_none() && !template.volumes.is_empty() {
            self.add("/spec/volumes".to_owned(), json!([]));
        }
        for volume in template.volumes.values() {
            self.add("/spec/volumes/-".to_owned(), volume.clone());
        }
        // Kubernetes' own default is 30 seconds.
        let seconds = spec.termination_grace_period_seconds.unwrap_or(30);
        if let Some(least) = template.grace_seconds.filter(|least| *least > seconds) {
            self.add("/spec/terminationGracePeriodSeconds".to_owned(), json!(least));
        }
    }
}
