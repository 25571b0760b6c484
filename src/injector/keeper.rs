//! Looks after a certificate of the webhook's own making: in a Secret, and as the authority that the API server trusts.
//!
//! In each round: read the Secret (make or renew what is in it), put right the `caBundle` of the webhooks that call this
//! Service, then show the certificate. A new certificate is shown one round after it was first seen with its authority
//! announced, because API servers hear of that a moment later; until then the one before is shown, which they still trust. Replicas agree by
//! the Secret's `resourceVersion`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::injector::certificate::{self, Identity};
use crate::injector::kubernetes::{CallError, Kubernetes};
use crate::listen::tls::Tls;
use crate::metrics::{INJECTOR_CERTIFICATE_FAILURES, Metrics};
use crate::notices::Notices;
use crate::secret::Secret;
use crate::web;

/// How often one round tries again after another writer was faster.
const TRIES: usize = 3;
/// Between rounds before there is any certificate.
const STARTING: Backoff = Backoff {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(30),
};

/// What the certificate is for and where it is kept.
pub struct Settings {
    /// The Secret's name.
    pub secret: String,
    /// The Service's name.
    pub service: String,
    /// The MutatingWebhookConfiguration's name.
    pub webhook: String,
    /// Time between rounds.
    pub interval: Duration,
}

/// Keeps the certificate.
pub struct Keeper {
    api: Kubernetes,
    settings: Settings,
    names: Vec<String>,
    metrics: Arc<Metrics>,
    notices: Notices,
}

impl Keeper {
    /// Returns a keeper that works as the service account in this folder, or why it cannot.
    pub fn new(
        settings: Settings,
        account: &Path,
        environment: &dyn Fn(&str) -> Option<String>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let api = Kubernetes::in_cluster(account, environment)?;
        let name = format!("{}.{}", settings.service, api.namespace);
        metrics.counter(&INJECTOR_CERTIFICATE_FAILURES, &[]).increment(0);
        Ok(Self {
            names: vec![format!("{name}.svc"), format!("{name}.svc.cluster.local"), name],
            api,
            settings,
            metrics,
            notices: Notices::default(),
        })
    }

    /// Tries until there is a certificate that the API server trusts.
    pub async fn begin(&self) -> Arc<Tls> {
        let (mut failures, mut random) = (0, fastrand::Rng::new());
        loop {
            let ready = async {
                let identity = self.identity().await?;
                self.announce(&identity).await?;
                shown(&identity)
            };
            match ready.await {
                Ok(tls) => return Arc::new(tls),
                Err(why) => self.failed(&why),
            }
            failures += 1;
            tokio::time::sleep(STARTING.wait(failures, &mut random)).await;
        }
    }

    /// Looks after it every `interval` until `stop`.
    pub async fn keep(self, tls: Arc<Tls>, stop: CancellationToken) {
        let interval = self.settings.interval;
        let mut seen = None;
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            if let Err(why) = self.round(&tls, &mut seen).await {
                self.failed(&why);
            }
        }
    }

    /// `seen` is the certificate of the round before, if the API server was told of its authority then.
    async fn round(&self, tls: &Tls, seen: &mut Option<String>) -> Result<(), String> {
        let identity = self.identity().await?;
        self.announce(&identity).await?;
        if seen.replace(identity.certificate.clone()).as_ref() != Some(&identity.certificate) {
            return Ok(());
        }
        let changed = tls.replace(identity.certificate.as_bytes(), identity.key.expose().as_bytes());
        if changed.map_err(|error| web::all_causes(&error))? {
            info!("a new certificate is shown from now on");
        }
        Ok(())
    }

    fn failed(&self, why: &str) {
        self.metrics.counter(&INJECTOR_CERTIFICATE_FAILURES, &[]).increment(1);
        if let Some(times) = self.notices.due("round") {
            warn!(%why, times, "cannot look after the webhook's certificate, will try again");
        }
    }

    /// Returns what is in the Secret, after making or renewing it if need be.
    async fn identity(&self) -> Result<Identity, String> {
        let collection = format!("/api/v1/namespaces/{}/secrets", self.api.namespace);
        let path = format!("{collection}/{}", self.settings.secret);
        for _ in 0..TRIES {
            let (found, object) = match self.api.get(&path).await {
                Ok(object) => (read(&object), Some(object)),
                Err(CallError::Missing(_)) => (None, None),
                Err(error) => return Err(error.to_string()),
            };
            let now = SystemTime::now();
            let unusable = |found: &Identity| found.unusable(&self.names, now).or_else(|| shown(found).err());
            let why = match &found {
                None => "there is none yet".to_owned(),
                Some(identity) => match unusable(identity) {
                    None => return Ok(identity.clone()),
                    Some(why) => why,
                },
            };
            let made = certificate::make(&self.names, now);
            let made = made.map_err(|error| format!("cannot make a certificate: {error}"))?;
            let made = found.iter().fold(made, Identity::after);
            let written = match object {
                Some(object) => self.api.replace(&path, &with(object, &made)).await,
                None => self.api.create(&collection, &with(self.empty(), &made)).await,
            };
            match written {
                Ok(_) => {
                    info!(secret = %self.settings.secret, %why, "made a new certificate");
                    return Ok(made);
                }
                // Another replica made one: take that.
                Err(CallError::Conflict(_)) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(format!(
            "the Secret {} changes faster than it can be read",
            self.settings.secret
        ))
    }

    fn empty(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": { "name": self.settings.secret, "namespace": self.api.namespace },
        })
    }

    /// Puts the authorities into each webhook that calls this Service, where they are not.
    async fn announce(&self, identity: &Identity) -> Result<(), String> {
        let name = &self.settings.webhook;
        let path = format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}");
        let object = self.api.get(&path).await.map_err(|error| error.to_string())?;
        let bundle = STANDARD.encode(&identity.authorities);
        let (mut ours, mut operations) = (0, Vec::new());
        for (index, webhook) in object["webhooks"].as_array().into_iter().flatten().enumerate() {
            let client = &webhook["clientConfig"];
            let (service, namespace) = (&client["service"]["name"], &client["service"]["namespace"]);
            if *service != *self.settings.service || *namespace != *self.api.namespace {
                continue;
            }
            ours += 1;
            if client["caBundle"] != *bundle {
                // Somebody may have put another webhook in its place since.
                operations
                    .push(json!({ "op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook["name"] }));
                let path = format!("/webhooks/{index}/clientConfig/caBundle");
                operations.push(json!({ "op": "add", "path": path, "value": bundle }));
            }
        }
        if ours == 0 {
            let (service, namespace) = (&self.settings.service, &self.api.namespace);
            return Err(format!(
                "no webhook of {name} calls the Service {service} of namespace {namespace}"
            ));
        }
        if operations.is_empty() {
            return Ok(());
        }
        let patched = self.api.patch(&path, &Value::Array(operations)).await;
        patched.map_err(|error| error.to_string())?;
        info!(webhook = %name, "the API server has been told of the certificate's authority");
        Ok(())
    }
}

fn shown(identity: &Identity) -> Result<Tls, String> {
    let tls = Tls::from_memory(identity.certificate.as_bytes(), identity.key.expose().as_bytes());
    tls.map_err(|error| web::all_causes(&error))
}

/// Returns the identity in a Secret; none if a part is missing or not base64.
fn read(secret: &Value) -> Option<Identity> {
    let part = |name: &str| {
        let bytes = STANDARD.decode(secret["data"][name].as_str()?).ok()?;
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    };
    Some(Identity {
        certificate: part("tls.crt")?,
        key: Secret::new(part("tls.key")?),
        authorities: part("ca.crt")?,
    })
}

/// Returns the Secret with this identity in it; what else is in there stays.
fn with(mut secret: Value, identity: &Identity) -> Value {
    if !secret["data"].is_object() {
        secret["data"] = json!({});
    }
    secret["data"]["tls.crt"] = json!(STANDARD.encode(&identity.certificate));
    secret["data"]["tls.key"] = json!(STANDARD.encode(identity.key.expose()));
    secret["data"]["ca.crt"] = json!(STANDARD.encode(&identity.authorities));
    secret
}
