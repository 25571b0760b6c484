//! A Kubernetes API with what the injector needs of it: one Secret and one MutatingWebhookConfiguration, over TLS.
//!
//! As strict as the API server: the token, the media types, `resourceVersion` on a write, `test` in a patch. A call that
//! the injector has no business to make fails the test.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::tls::{Authority, Identity, TlsFront};
use super::upstream::Received;
use super::{Answer, Upstream};

const SECRETS: &str = "/api/v1/namespaces/flagtap/secrets";
const SECRET: &str = "/api/v1/namespaces/flagtap/secrets/flagtap-injector";
const WEBHOOK: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/flagtap-injector";

/// The name under which the API server calls the webhook.
pub(crate) const SERVICE: &str = "flagtap-injector.flagtap.svc";

/// The cluster.
pub(crate) struct Cluster {
    service: Upstream,
    front: TlsFront,
    account: TempDir,
    state: Arc<Mutex<State>>,
}

struct State {
    token: String,
    version: u64,
    secret: Option<Value>,
    webhook: Value,
    /// What every call is answered while it is set.
    failing: Option<u16>,
    /// What somebody else writes into the Secret just before the next write.
    faster: Option<Held>,
    writes: usize,
    patches: usize,
}

/// What a Secret holds: certificate, key, authorities.
type Held = (String, String, String);

impl Cluster {
    /// A cluster with the webhook's configuration and no Secret.
    pub(crate) fn start() -> Self {
        let authority = Authority::new("cluster");
        let service = Upstream::start();
        let front = TlsFront::start(&authority.issue("127.0.0.1"), service.address());
        let account = tempfile::tempdir().unwrap();
        fs::write(account.path().join("ca.crt"), authority.pem()).unwrap();
        fs::write(account.path().join("namespace"), "flagtap").unwrap();
        let call =
            |name: &str| json!({ "service": { "name": name, "namespace": "flagtap", "path": "/mutate", "port": 443 } });
        let state = Arc::new(Mutex::new(State {
            token: String::new(),
            version: 100,
            secret: None,
            webhook: json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
                "metadata": { "name": "flagtap-injector", "resourceVersion": "7" },
                "webhooks": [
                    { "name": "other.example", "clientConfig": call("other") },
                    { "name": "injector.flagtap.dev", "clientConfig": call("flagtap-injector") },
                ],
            }),
            failing: None,
            faster: None,
            writes: 0,
            patches: 0,
        }));
        let answering = state.clone();
        service.plan(move |request| {
            let answer = answering.lock().unwrap().answer(request);
            answer.unwrap_or_else(|why| {
                eprintln!("the fake API refuses {} {}: {why}", request.method, request.target);
                None
            })
        });
        let cluster = Self {
            service,
            front,
            account,
            state,
        };
        cluster.renew_token("token-1");
        cluster
    }

    /// Returns the command that runs the injector as a pod of this cluster.
    pub(crate) fn injector(&self, template: &Path, telemetry: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flagtap"));
        let address = self.front.address();
        command
            .args(["injector", "--listen", "127.0.0.1:0", "--telemetry"])
            .arg(telemetry)
            .args(["--secret", "flagtap-injector", "--interval", "200ms", "--template"])
            .arg(template)
            .arg("--service-account")
            .arg(self.account.path())
            .env("KUBERNETES_SERVICE_HOST", address.ip().to_string())
            .env("KUBERNETES_SERVICE_PORT", address.port().to_string());
        command
    }

    /// Renews the service account's token, as kubelet does; the one before is refused from now on.
    pub(crate) fn renew_token(&self, token: &str) {
        let mut state = self.state();
        fs::write(self.account.path().join("token"), token).unwrap();
        state.token = format!("Bearer {token}");
    }

    /// Every call is answered with this status from now on, or as it should be.
    pub(crate) fn fail(&self, status: Option<u16>) {
        self.state().failing = status;
    }

    /// Connections that break off are no failure in this test.
    pub(crate) fn tolerate_broken(&self) {
        self.service.tolerate_broken();
    }

    /// Somebody else writes this into the Secret just before the injector's next write.
    pub(crate) fn be_faster(&self, identity: &Identity, authorities: &str) {
        self.state().faster = Some((
            identity.certificate.clone(),
            identity.key.clone(),
            authorities.to_owned(),
        ));
    }

    /// Somebody else writes this into the Secret.
    pub(crate) fn put_secret(&self, identity: &Identity, authorities: &str) {
        self.state().put((
            identity.certificate.clone(),
            identity.key.clone(),
            authorities.to_owned(),
        ));
    }

    /// The Secret as a chart makes it, with nothing in it.
    pub(crate) fn put_empty_secret(&self) {
        self.state().secret = Some(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": { "name": "flagtap-injector", "namespace": "flagtap", "resourceVersion": "3", "labels": { "app": "flagtap" } },
        }));
    }

    /// Returns the Secret.
    pub(crate) fn secret(&self) -> Option<Value> {
        self.state().secret.clone()
    }

    /// Returns a part of the Secret as text.
    pub(crate) fn part(&self, name: &str) -> Option<String> {
        let secret = self.secret()?;
        let bytes = STANDARD.decode(secret["data"][name].as_str()?).unwrap();
        Some(String::from_utf8(bytes).unwrap())
    }

    /// Somebody takes the authority out of the webhook's configuration.
    pub(crate) fn forget_bundle(&self) {
        self.state().webhook["webhooks"][1]["clientConfig"]["caBundle"] = json!("");
    }

    /// Returns the authorities that the API server trusts for the webhook; nothing if there are none.
    pub(crate) fn bundle(&self) -> Vec<u8> {
        let state = self.state();
        assert!(
            state.webhook["webhooks"][0]["clientConfig"]["caBundle"].is_null(),
            "another's webhook was changed"
        );
        let text = state.webhook["webhooks"][1]["clientConfig"]["caBundle"].as_str();
        STANDARD.decode(text.unwrap_or_default()).unwrap()
    }

    /// Returns how often the Secret was written and the configuration patched.
    pub(crate) fn changes(&self) -> (usize, usize) {
        let state = self.state();
        (state.writes, state.patches)
    }

    /// Returns how many calls have come.
    pub(crate) fn calls(&self) -> usize {
        self.service.count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn answer(&mut self, request: &Received) -> Result<Option<Answer>, String> {
        if let Some(status) = self.failing {
            return Ok(Some(status_object(status, "the test says so")));
        }
        let header = |name: &str| request.headers.get(name).unwrap_or_default().to_owned();
        if header("authorization") != self.token {
            return Ok(Some(status_object(401, "Unauthorized")));
        }
        let body = || serde_json::from_slice::<Value>(&request.body).map_err(|error| error.to_string());
        let media = |kind: &str| match header("content-type") == kind {
            true => Ok(()),
            false => Err(format!("content-type is {:?}", header("content-type"))),
        };
        let answer = match (request.method.as_str(), request.target.as_str()) {
            ("GET", SECRET) => match &self.secret {
                Some(secret) => object(200, secret),
                None => status_object(404, "secrets \"flagtap-injector\" not found"),
            },
            ("GET", WEBHOOK) => object(200, &self.webhook),
            ("POST", SECRETS) => {
                media("application/json")?;
                let secret = checked(body()?)?;
                self.interfere();
                if self.secret.is_some() {
                    status_object(409, "already exists")
                } else {
                    self.write(secret, 201)
                }
            }
            ("PUT", SECRET) => {
                media("application/json")?;
                let secret = checked(body()?)?;
                self.interfere();
                let current = self.secret.as_ref().ok_or("a PUT without a Secret")?;
                if secret["metadata"]["resourceVersion"].is_null() {
                    return Err("a PUT without a resourceVersion would overwrite others'".to_owned());
                }
                if secret["metadata"]["resourceVersion"] != current["metadata"]["resourceVersion"] {
                    status_object(409, "the object has been modified")
                } else if secret["metadata"]["labels"] != current["metadata"]["labels"] {
                    return Err("labels were lost".to_owned());
                } else {
                    self.write(secret, 200)
                }
            }
            ("PATCH", WEBHOOK) => {
                media("application/json-patch+json")?;
                let operations = body()?;
                let first = operations[0]["op"].as_str().unwrap_or_default();
                if first != "test" {
                    return Err("a patch of a list by index must test what it finds".to_owned());
                }
                let patch: json_patch::Patch = serde_json::from_value(operations).map_err(|error| error.to_string())?;
                match json_patch::patch(&mut self.webhook, &patch) {
                    Ok(()) => {
                        self.patches += 1;
                        object(200, &self.webhook)
                    }
                    Err(error) => status_object(422, &error.to_string()),
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(answer))
    }

    fn interfere(&mut self) {
        if let Some(identity) = self.faster.take() {
            self.put(identity);
        }
    }

    fn put(&mut self, (certificate, key, authorities): Held) {
        let labels = self.secret.as_ref().map(|secret| secret["metadata"]["labels"].clone());
        let mut secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": { "name": "flagtap-injector", "namespace": "flagtap" },
            "data": {
                "tls.crt": STANDARD.encode(certificate), "tls.key": STANDARD.encode(key),
                "ca.crt": STANDARD.encode(authorities),
            },
        });
        if let Some(labels) = labels.filter(|labels| !labels.is_null()) {
            secret["metadata"]["labels"] = labels;
        }
        self.store(secret);
    }

    fn write(&mut self, secret: Value, status: u16) -> Answer {
        self.writes += 1;
        let stored = self.store(secret);
        object(status, &stored)
    }

    fn store(&mut self, mut secret: Value) -> Value {
        self.version += 1;
        secret["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.secret = Some(secret.clone());
        secret
    }
}

/// What the API server would not take.
fn checked(secret: Value) -> Result<Value, String> {
    let right = secret["kind"] == "Secret"
        && secret["apiVersion"] == "v1"
        && secret["metadata"]["name"] == "flagtap-injector"
        && secret["metadata"]["namespace"] == "flagtap";
    let data = secret["data"].as_object().ok_or("no data")?;
    let decodes = |value: &Value| STANDARD.decode(value.as_str().unwrap_or("-")).is_ok();
    if !right || data.len() != 3 || !data.values().all(decodes) {
        return Err("not the Secret that is to be written".to_owned());
    }
    Ok(secret)
}

fn object(status: u16, value: &Value) -> Answer {
    let json = [("Content-Type", "application/json")];
    Answer::full(status, &json, value.to_string().as_bytes())
}

fn status_object(status: u16, message: &str) -> Answer {
    object(
        status,
        &json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status }),
    )
}
