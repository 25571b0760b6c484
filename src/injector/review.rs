//! AdmissionReview of `admission.k8s.io/v1`, in and out.
//!
//! Kubernetes' documentation, "Dynamic Admission Control": a request names its `uid`, which the answer repeats; a patch is
//! the base64 of a JSON patch; warnings are shown to whoever made the request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::injector::pod::Pod;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// The longest `uid` that is repeated. Kubernetes sends UUIDs.
const LONGEST_UID: usize = 128;
/// The most warnings of an answer, and characters of one: Kubernetes cuts off at 4096 characters in all.
const MOST_WARNINGS: usize = 8;
const LONGEST_WARNING: usize = 240;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: Option<Request<'a>>,
}

/// What the API server asks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request<'a> {
    /// Repeated in the answer.
    pub(super) uid: String,
    resource: Resource,
    sub_resource: Option<String>,
    operation: String,
    /// Where the pod is created.
    pub(super) namespace: Option<String>,
    #[serde(borrow)]
    object: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Resource {
    group: String,
    version: String,
    resource: String,
}

impl<'a> Request<'a> {
    /// Reads a body. The error says why it is no review.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, String> {
        let review: Review<'a> =
            serde_json::from_slice(body).map_err(|error| format!("not an AdmissionReview: {}", place(&error)))?;
        if review.api_version != API_VERSION || review.kind != KIND {
            return Err(format!("not an {KIND} of {API_VERSION}"));
        }
        let request = review.request.ok_or("an AdmissionReview without a request")?;
        if request.uid.is_empty() || request.uid.len() > LONGEST_UID {
            return Err("an AdmissionReview without a usable uid".to_owned());
        }
        Ok(request)
    }

    /// Returns the pod that is about to be created, or why there is none.
    pub(super) fn new_pod(&self) -> Result<Pod, String> {
        let Resource {
            group,
            version,
            resource,
        } = &self.resource;
        let is_pod = group.is_empty() && version == "v1" && resource == "pods";
        let is_whole = self.sub_resource.as_deref().unwrap_or_default().is_empty();
        if !is_pod || !is_whole || self.operation != "CREATE" {
            return Err(
                "asked about something else than a new pod: see `rules` of the webhook's configuration".to_owned(),
            );
        }
        let object = self.object.ok_or("asked about a pod without an object")?;
        serde_json::from_str(object.get()).map_err(|error| format!("the pod cannot be read: {}", place(&error)))
    }
}

/// Returns where reading failed. serde's own words can repeat values of the pod.
fn place(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "not of the documented form",
        _ => "not JSON",
    };
    format!("{what} at line {} column {}", error.line(), error.column())
}

/// Returns an answer that admits the pod, with these changes.
pub(super) fn admit(uid: &str, patch: &[Value], warnings: &[String]) -> Value {
    let mut response = json!({ "uid": uid, "allowed": true });
    if !patch.is_empty() {
        let patch = serde_json::to_vec(patch).unwrap_or_default();
        response["patchType"] = json!("JSONPatch");
        response["patch"] = Value::String(STANDARD.encode(patch));
    }
    if !warnings.is_empty() {
        let shown = warnings.iter().take(MOST_WARNINGS);
        let cut = |text: &String| text.chars().take(LONGEST_WARNING).collect::<String>();
        response["warnings"] = shown.map(cut).collect();
    }
    json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response })
}
