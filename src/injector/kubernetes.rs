//! The few calls to the Kubernetes API that the injector makes, as the pod's service account.
//!
//! Protocol: Kubernetes API over HTTPS; the address is in `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`, the
//! account's files are mounted by kubelet. The token is read for each call, because kubelet renews it within the hour. Only the
//! cluster's own authority is trusted, and no proxy is used.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Method};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use crate::secret::Secret;
use crate::trust;
use crate::web;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(10);

/// The API of the cluster that this process runs in.
pub(super) struct Kubernetes {
    client: Client,
    base: String,
    token: PathBuf,
    /// The namespace of the pod.
    pub(super) namespace: String,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The object is not there.
    #[error("{0} answered 404")]
    Missing(String),
    /// Somebody else was faster.
    #[error("{0} answered 409: somebody else wrote at the same time")]
    Conflict(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Kubernetes {
    /// Returns the API that the environment and the service account's folder name, or why there is none.
    pub(super) fn in_cluster(account: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let variable =
            |name: &str| environment(name).ok_or(format!("{name} is not set: this does not run in a cluster"));
        let (host, port) = (
            variable("KUBERNETES_SERVICE_HOST")?,
            variable("KUBERNETES_SERVICE_PORT")?,
        );
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let read = |name: &str| {
            let path = account.join(name);
            std::fs::read_to_string(&path).map_err(|error| {
                format!(
                    "cannot read {}: {error} (`automountServiceAccountToken`)",
                    path.display()
                )
            })
        };
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(read("ca.crt")?.as_bytes()) {
            let added = authority.map_err(|error| error.to_string());
            let added = added.and_then(|authority| roots.add(authority).map_err(|error| error.to_string()));
            added.map_err(|error| format!("ca.crt of the service account: {error}"))?;
        }
        let namespace = read("namespace")?.trim().to_owned();
        read("token")?;
        let tls = trust::client(roots).map_err(|error| error.to_string())?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .retry(reqwest::retry::never())
            .user_agent(concat!("flagtap-injector/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            client: client.map_err(|error| web::causes(&error))?,
            base: format!("https://{host}:{port}"),
            token: account.join("token"),
            namespace,
        })
    }

    /// Reads an object.
    pub(super) async fn get(&self, path: &str) -> Result<Value, CallError> {
        self.call(Method::GET, path, "", None).await
    }

    /// Makes an object in a collection.
    pub(super) async fn create(&self, path: &str, object: &Value) -> Result<Value, CallError> {
        self.call(Method::POST, path, "application/json", Some(object)).await
    }

    /// Writes a whole object; its `resourceVersion` must be the current one.
    pub(super) async fn replace(&self, path: &str, object: &Value) -> Result<Value, CallError> {
        self.call(Method::PUT, path, "application/json", Some(object)).await
    }

    /// Applies a JSON patch.
    pub(super) async fn patch(&self, path: &str, operations: &Value) -> Result<Value, CallError> {
        self.call(Method::PATCH, path, "application/json-patch+json", Some(operations))
            .await
    }

    async fn call(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Result<Value, CallError> {
        let what = format!("{method} {path}");
        let fail = |why: String| CallError::Other(format!("{what}: {why}"));
        let token = tokio::fs::read_to_string(&self.token).await;
        let token = Secret::new(token.map_err(|error| fail(format!("the token cannot be read: {error}")))?);
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(token.expose().trim())
            .header("accept", "application/json");
        if let Some(body) = body {
            request = request.header("content-type", kind).body(body.to_string());
        }
        let reply = web::exchange(request).await.map_err(fail)?;
        match reply.status {
            200 | 201 => serde_json::from_str(&reply.text)
                .map_err(|_| CallError::Other(format!("{what} answered something else than an object"))),
            404 => Err(CallError::Missing(what)),
            409 => Err(CallError::Conflict(what)),
            403 => Err(CallError::Other(format!(
                "{what} answered 403: the service account's role does not allow it: {}",
                message(&reply.text)
            ))),
            status => Err(CallError::Other(format!(
                "{what} answered {status}: {}",
                message(&reply.text)
            ))),
        }
    }
}

/// Returns what a `Status` object says.
fn message(text: &str) -> String {
    let status: Option<Value> = serde_json::from_str(text).ok();
    let said = status.as_ref().and_then(|status| status["message"].as_str());
    web::short(said.unwrap_or("no reason given"))
}
