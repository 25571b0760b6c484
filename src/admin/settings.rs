//! Environments' export settings at the admin port: which are in force, other ones, the file's again, and what was changed.
//!
//! ```text
//! GET    /api/environments                 whose settings hold, and which version; ?format=yaml: for the configuration file
//! GET    /api/environments/{name}/export   the settings in force; ?format=yaml
//! PUT    /api/environments/{name}/export   other settings, whole, as JSON or YAML; If-Match
//! DELETE /api/environments/{name}/export   the configuration file's again; If-Match
//! GET    /api/settings/changes             the last changes, newest first; ?environment=&limit=
//! ```
//!
//! A change needs `If-Match` with the `ETag` of the settings it was made from, so that of two people the second is told
//! (412) and neither is overwritten unseen; `If-Match: *` is for those who mean it. Answers only when the change is
//! durable and in force.

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::answer::{self, Refusal, answer};
use super::api::{Api, PATIENCE};

/// The body of a change: more than 10,000 flags with a setting each.
const MAX_BODY: usize = 1 << 20;

/// What a change may come as.
const TYPES: [&[u8]; 4] = [
    b"application/json",
    b"application/yaml",
    b"application/x-yaml",
    b"text/yaml",
];

/// The export settings of an environment, as they are in force.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The settings as under `environments[].export`.
    pub settings: Value,
    /// The same as YAML.
    pub yaml: String,
    /// They were given here; else they are the configuration file's.
    pub own: bool,
    /// How often they were changed here.
    pub version: u64,
    /// When that was last, RFC 3339.
    pub changed: Option<String>,
    /// Differs for different settings, and after each change. In quotes.
    pub etag: String,
}

/// Why settings were not changed.
#[derive(Debug)]
pub enum ChangeError {
    /// There is no such environment.
    Unknown,
    /// The configuration forbids it.
    Immutable,
    /// They are not those that were expected, but have this `ETag`.
    Mismatch(String),
    /// They are wrong, in these ways.
    Invalid(Vec<String>),
    /// They could not be made durable.
    NotKept(String),
}

/// Which settings a change was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Whichever there are.
    Any,
    /// Those with one of these `ETag`s.
    Tags(Vec<String>),
}

/// What the admin port asks about settings.
#[async_trait]
pub trait Exports: Send + Sync {
    /// Returns the names of the configured environments, in their order.
    fn environments(&self) -> Vec<String>;

    /// Returns the settings of an environment; nothing if there is none of this name.
    fn of(&self, environment: &str) -> Option<InForce>;

    /// Puts `settings` (the text of a document) in force, or without any the configuration file's again. Durable when it
    /// returns. Of two that expect the same, one succeeds.
    async fn change(
        &self,
        environment: &str,
        expected: Expected,
        settings: Option<String>,
    ) -> Result<InForce, ChangeError>;

    /// Returns the last changes, newest first.
    fn changes(&self) -> Vec<Value>;
}

impl Expected {
    /// Returns true if settings with this `ETag` are meant.
    pub fn admits(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Tags(tags) => tags.iter().any(|tag| tag == etag),
        }
    }

    /// Reads `If-Match`; nothing if there is none that can be read. A weak tag never matches (RFC 9110, 13.1.1).
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut tags = Vec::new();
        for value in headers.get_all(header::IF_MATCH) {
            for tag in value.to_str().ok()?.split(',').map(str::trim) {
                match tag {
                    "*" => return Some(Self::Any),
                    "" => {}
                    tag => tags.push(tag.to_owned()),
                }
            }
        }
        (!tags.is_empty()).then_some(Self::Tags(tags))
    }
}

/// Returns the routes.
pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/api/environments", get(list))
        .route("/api/environments/{name}/export", get(show).put(put).delete(take_back))
        .route("/api/settings/changes", get(changes))
}

async fn list(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Refusal> {
    let as_yaml = wants_yaml(&request)?;
    let names = api.exports.environments();
    let all = names
        .into_iter()
        .filter_map(|name| Some((api.exports.of(&name)?, name)));
    if as_yaml {
        let mut text = "environments:\n".to_owned();
        for (in_force, name) in all {
            text.push_str(&format!("  - name: {name}\n    export:\n"));
            in_force
                .yaml
                .lines()
                .for_each(|line| text.push_str(&format!("      {line}\n")));
        }
        return Ok(yaml(text));
    }
    let one = |(in_force, name): (InForce, String)| {
        json!({
            "environment": name,
            "source": if in_force.own { "run_time" } else { "file" },
            "version": in_force.version,
            "changed": in_force.changed,
            "etag": in_force.etag,
        })
    };
    Ok(answer(
        StatusCode::OK,
        &json!({ "environments": all.map(one).collect::<Vec<_>>() }),
    ))
}

async fn show(State(api): State<Arc<Api>>, Path(name): Path<String>, request: Request) -> Result<Response, Refusal> {
    let as_yaml = wants_yaml(&request)?;
    let in_force = api.exports.of(&name).ok_or_else(|| unknown(&api))?;
    Ok(shown(in_force, as_yaml))
}

async fn put(State(api): State<Arc<Api>>, Path(name): Path<String>, request: Request) -> Result<Response, Refusal> {
    let expected = expected(&request)?;
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind
        .map(|kind| kind.as_bytes().to_ascii_lowercase())
        .unwrap_or_default();
    if !TYPES.iter().any(|known| kind.starts_with(known)) {
        return Err(Refusal {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            error: "the body is neither JSON nor YAML".to_owned(),
            remedy: "send it with `Content-Type: application/json` or `application/yaml`",
        });
    }
    let refused = |status, error: &str| Refusal {
        status,
        error: error.to_owned(),
        remedy: "send what stands under `export:` of an environment, as GET shows it",
    };
    let body = timeout(PATIENCE, to_bytes(request.into_body(), MAX_BODY)).await;
    let body = body
        .map_err(|_| refused(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?
        .map_err(|_| refused(StatusCode::PAYLOAD_TOO_LARGE, "the body broke off or is over 1 MiB"))?;
    let text = String::from_utf8(body.into()).map_err(|_| refused(StatusCode::BAD_REQUEST, "the body is not UTF-8"))?;
    change(&api, &name, expected, Some(text)).await
}

async fn take_back(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    change(&api, &name, expected(&request)?, None).await
}

async fn change(api: &Api, name: &str, expected: Expected, settings: Option<String>) -> Result<Response, Refusal> {
    // Whoever hangs up must not leave what is durable and what is in force apart.
    let (exports, of) = (Arc::clone(&api.exports), name.to_owned());
    let changing = tokio::spawn(async move { exports.change(&of, expected, settings).await });
    let broken = |error: tokio::task::JoinError| Err(ChangeError::NotKept(error.to_string()));
    match changing.await.unwrap_or_else(broken) {
        Ok(in_force) => Ok(shown(in_force, false)),
        Err(ChangeError::Unknown) => Err(unknown(api)),
        Err(ChangeError::Immutable) => Err(Refusal {
            status: StatusCode::FORBIDDEN,
            error: "settings cannot be changed at run time here (`settings.mutable` is false)".to_owned(),
            remedy: "change the configuration file, which is read again by itself",
        }),
        Err(ChangeError::Mismatch(etag)) => {
            let mut response = Refusal {
                status: StatusCode::PRECONDITION_FAILED,
                error: "the settings are not those of `If-Match` any more: somebody changed them".to_owned(),
                remedy: "get them again, make the change to them, and send it with their ETag",
            }
            .into_response();
            tag(&mut response, &etag);
            Ok(response)
        }
        Err(ChangeError::Invalid(problems)) => {
            let document = json!({
                "error": "the settings are wrong, nothing was changed",
                "remedy": "correct every problem; docs/configuration.md has the keys",
                "problems": problems,
            });
            Ok(answer(StatusCode::UNPROCESSABLE_ENTITY, &document))
        }
        Err(ChangeError::NotKept(why)) => Err(Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            error: format!("the settings could not be kept, nothing was changed: {why}"),
            remedy: "look at `tee` and `queue` in /api/status, and try again",
        }),
    }
}

async fn changes(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Refusal> {
    let (mut environment, mut limit) = (None, usize::MAX);
    for (name, value) in parameters(&request)? {
        match name.as_str() {
            "environment" => environment = Some(value),
            "limit" => limit = value.parse().map_err(|_| wrong_query("`limit` is no number"))?,
            _ => return Err(wrong_query("a parameter is not known")),
        }
    }
    let wanted = |change: &Value| environment.as_ref().is_none_or(|name| change["environment"] == **name);
    let changes: Vec<Value> = api.exports.changes().into_iter().filter(wanted).take(limit).collect();
    Ok(answer(StatusCode::OK, &json!({ "changes": changes })))
}

fn expected(request: &Request) -> Result<Expected, Refusal> {
    Expected::of(request.headers()).ok_or_else(|| Refusal {
        status: StatusCode::PRECONDITION_REQUIRED,
        error: "it is not said which settings the change was made from".to_owned(),
        remedy: "send `If-Match` with the ETag that GET gave, or `If-Match: *` for whichever there are",
    })
}

fn wants_yaml(request: &Request) -> Result<bool, Refusal> {
    let mut as_yaml = false;
    for (name, value) in parameters(request)? {
        as_yaml = match (name.as_str(), value.as_str()) {
            ("format", "yaml") => true,
            ("format", "json") => false,
            _ => return Err(wrong_query("a parameter is not known")),
        };
    }
    Ok(as_yaml)
}

fn parameters(request: &Request) -> Result<Vec<(String, String)>, Refusal> {
    let query = request.uri().query().unwrap_or_default();
    answer::parameters(query).ok_or_else(|| wrong_query("a value is not UTF-8"))
}

fn wrong_query(why: &str) -> Refusal {
    Refusal {
        status: StatusCode::BAD_REQUEST,
        error: why.to_owned(),
        remedy: "use `format=yaml` or `format=json`; for changes `environment` and `limit`",
    }
}

fn unknown(api: &Api) -> Refusal {
    let known = api.exports.environments().join(", ");
    Refusal {
        status: StatusCode::NOT_FOUND,
        error: format!("there is no environment of this name; there are: {known}"),
        remedy: "use a name of `environments` in the configuration",
    }
}

fn shown(in_force: InForce, as_yaml: bool) -> Response {
    let mut response = match as_yaml {
        true => yaml(in_force.yaml),
        false => answer(StatusCode::OK, &in_force.settings),
    };
    tag(&mut response, &in_force.etag);
    response
}

fn yaml(text: String) -> Response {
    let mut response = answer(StatusCode::OK, &Value::Null);
    let kind = HeaderValue::from_static("application/yaml");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    *response.body_mut() = Body::from(text);
    response
}

fn tag(response: &mut Response, etag: &str) {
    if let Ok(etag) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
}

/// Environments of which there are none.
#[cfg(test)]
pub(super) struct Nobody;

#[cfg(test)]
#[async_trait]
impl Exports for Nobody {
    fn environments(&self) -> Vec<String> {
        Vec::new()
    }

    fn of(&self, _: &str) -> Option<InForce> {
        None
    }

    async fn change(&self, _: &str, _: Expected, _: Option<String>) -> Result<InForce, ChangeError> {
        Err(ChangeError::Unknown)
    }

    fn changes(&self) -> Vec<Value> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(values: &[&'static str]) -> Option<Expected> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::IF_MATCH, HeaderValue::from_static(value));
        }
        Expected::of(&headers)
    }

    #[test]
    fn if_match_names_the_settings_that_are_meant() {
        let tags = |tags: &[&str]| Some(Expected::Tags(tags.iter().map(|tag| (*tag).to_owned()).collect()));
        for (values, meant) in [
            (&[][..], None),
            (&[""], None),
            (&[" , "], None),
            (&["*"], Some(Expected::Any)),
            (&["\"1-a\""], tags(&["\"1-a\""])),
            (
                &["\"1-a\", \"2-b\"", "\"3-c\""],
                tags(&["\"1-a\"", "\"2-b\"", "\"3-c\""]),
            ),
        ] {
            assert_eq!(expected(values), meant, "{values:?}");
        }
        let one = expected(&["\"1-a\""]).unwrap();
        assert!(one.admits("\"1-a\"") && !one.admits("\"1-b\"") && !one.admits("1-a"));
        assert!(!expected(&["W/\"1-a\""]).unwrap().admits("\"1-a\""), "a weak tag");
        assert!(Expected::Any.admits("\"x\""));
    }
}
