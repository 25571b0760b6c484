//! The sidecar's definition: one YAML file that the chart renders, so that a pod gets from the injector what it would get
//! from the chart's own templates.
//!
//! Owns reading, checking and reading anew. A template that passes here makes no pod invalid by itself: names are there,
//! and every mount has its volume. What Kubernetes thinks of the rest of the container shows at the first pod.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::Uri;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::injector::pod::Port;
use crate::injector::{ANNOTATIONS, plain_name};

/// The largest file, bytes: what a ConfigMap can hold.
const MOST_BYTES: u64 = 1 << 20;
/// The most annotations, bytes: a pod has some of its own.
const MOST_ANNOTATIONS: usize = 240 * 1024;

/// What is added to pods.
#[derive(Debug)]
pub(super) struct Template {
    /// What the variables are set to.
    pub(super) url: String,
    /// The container's name, by which a pod that has it is recognised.
    pub(super) name: String,
    /// It is an init container that goes on running (`restartPolicy: Always`).
    pub(super) native: bool,
    /// The container as in a pod.
    pub(super) container: Value,
    /// Volumes by name, as in a pod.
    pub(super) volumes: BTreeMap<String, Value>,
    /// Annotations that a pod gets unless it has them.
    pub(super) annotations: BTreeMap<String, String>,
    /// The least that the pod's `terminationGracePeriodSeconds` may be.
    pub(super) grace_seconds: Option<i64>,
    /// Ports that nobody else in the pod can have.
    pub(super) ports: Vec<Port>,
}

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the template {path}: {why}")]
pub struct TemplateError {
    path: String,
    why: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    url: String,
    container: Value,
    #[serde(default)]
    volumes: Vec<Value>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    termination_grace_period_seconds: Option<i64>,
}

impl Template {
    /// Reads the text of a template. The error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let document: Document = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let url: Uri = document.url.parse().map_err(|_| "`url` is not a URL".to_owned())?;
        let Some(host) = url
            .host()
            .filter(|_| matches!(url.scheme_str(), Some("http" | "https")))
        else {
            return Err("`url` must be an http or https URL with a host".to_owned());
        };
        let container = document.container;
        let name = named(&container).ok_or("`container` needs a `name` of lower-case letters, digits and `-`")?;
        if !container.get("image").is_some_and(Value::is_string) {
            return Err("`container` needs an `image`".to_owned());
        }
        let native = match container.get("restartPolicy") {
            None => false,
            Some(policy) if policy == "Always" => true,
            Some(_) => {
                return Err("`container.restartPolicy` can only be `Always`, which makes a native sidecar".to_owned());
            }
        };
        let mut volumes = BTreeMap::new();
        for volume in document.volumes {
            let name =
                named(&volume).ok_or("each of `volumes` needs a `name` of lower-case letters, digits and `-`")?;
            if volumes.insert(name.clone(), volume).is_some() {
                return Err(format!("`volumes` has {name} twice"));
            }
        }
        for mount in list(&container, "volumeMounts") {
            let name = mount.get("name").and_then(Value::as_str).unwrap_or_default();
            if !volumes.contains_key(name) {
                return Err("`container.volumeMounts` names a volume that is not in `volumes`".to_owned());
            }
        }
        if document
            .annotations
            .keys()
            .any(|name| ANNOTATIONS.contains(&name.as_str()))
        {
            return Err(format!(
                "`annotations` has one of {}, which are the pod's own",
                ANNOTATIONS.join(", ")
            ));
        }
        let size = document
            .annotations
            .iter()
            .map(|(name, value)| name.len() + value.len());
        if size.sum::<usize>() > MOST_ANNOTATIONS {
            return Err("`annotations` are more than 240 KiB: Kubernetes takes 256 KiB a pod".to_owned());
        }
        if document
            .termination_grace_period_seconds
            .is_some_and(|seconds| seconds < 0)
        {
            return Err("`terminationGracePeriodSeconds` is below 0".to_owned());
        }
        let mut ports: BTreeSet<Port> = BTreeSet::new();
        for port in list(&container, "ports") {
            let port = Port::deserialize(port).map_err(|error| format!("`container.ports`: {error}"))?;
            ports.insert(port);
        }
        if matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
            let port = url
                .port_u16()
                .unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
            ports.insert(Port::tcp(port));
        }
        Ok(Self {
            url: document.url,
            name,
            native,
            container,
            volumes,
            annotations: document.annotations,
            grace_seconds: document.termination_grace_period_seconds,
            ports: ports.into_iter().collect(),
        })
    }
}

fn named(value: &Value) -> Option<String> {
    let name = value.get("name")?.as_str()?;
    plain_name(name).then(|| name.to_owned())
}

fn list<'a>(container: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    container.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// The template of a file, replaced when the file changes.
pub struct Templates {
    path: PathBuf,
    current: RwLock<(String, Arc<Template>)>,
}

impl Templates {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self, TemplateError> {
        let text = read(path)?;
        let template = parse(path, &text)?;
        Ok(Self {
            path: path.to_owned(),
            current: RwLock::new((text, template)),
        })
    }

    /// Returns the template as it is now.
    pub(super) fn current(&self) -> Arc<Template> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Takes the file's new content if it changed; returns whether it did.
    pub(super) fn refresh(&self) -> Result<bool, TemplateError> {
        let text = read(&self.path)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == text {
            return Ok(false);
        }
        let template = parse(&self.path, &text)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (text, template);
        Ok(true)
    }

    /// Looks for a changed file every `interval` until `stop`. A broken one is said once, and the one before stays.
    pub async fn watch(self: Arc<Self>, interval: Duration, stop: CancellationToken) {
        let mut said = String::new();
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            let templates = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || templates.refresh()).await {
                Ok(Ok(changed)) => {
                    said.clear();
                    if changed {
                        tracing::info!("template taken anew");
                    }
                }
                Ok(Err(error)) if error.why != said => {
                    tracing::warn!(%error, "the new template is not usable, keeping the old one");
                    said = error.why;
                }
                Ok(Err(_)) => {}
                Err(_panicked) => tracing::warn!("reading the template failed, keeping the old one"),
            }
        }
    }
}

fn read(path: &Path) -> Result<String, TemplateError> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes as u64 > MOST_BYTES => Err(fail(path, "is larger than 1MiB")),
        Ok(_) => Ok(text),
        Err(error) => Err(fail(path, error)),
    }
}

fn parse(path: &Path, text: &str) -> Result<Arc<Template>, TemplateError> {
    Template::parse(text).map(Arc::new).map_err(|why| fail(path, why))
}

fn fail(path: &Path, why: impl ToString) -> TemplateError {
    TemplateError {
        path: path.display().to_string(),
        why: why.to_string(),
    }
}
