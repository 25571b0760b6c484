//! The admin port: how the relay is, and what becomes of dead letters. For people and their tools on this machine, or
//! elsewhere with a token.
//!
//! ```text
//! GET  /api/status                 what `flagtap queue inspect` shows without reading files, deliveries, SDKs; credentials masked
//! GET  /api/dead-letters           ?destination=&since=&until=&kind=&flag=&reason=&id=&limit=&events=true
//! POST /api/dead-letters/replay    {"filter": {…}, "all": true, "limit": 10}
//! POST /api/dead-letters/discard   the same
//! ```
//!
//! Export settings are in [`settings`].
//!
//! Every error is JSON with a remedy. No web page can use the port, not even from the browser of somebody who may: a
//! request with an `Origin` is refused, and so is a `Host` that somebody else's DNS could have led here.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::{Refusal, answer, parameters};
use super::letters::{Filter, Shown};
use super::settings::{self, Exports};
use super::settle::{self, Action, SettleError, settle};
use crate::queue::{DeadLetter, Queue, now_ms};
use crate::secret::Secret;

/// The body of a request; a filter is far smaller.
const MAX_BODY: usize = 64 * 1024;

/// For a request's body.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Letters in one answer: without a wish, and at the most.
const LISTED: (usize, usize) = (100, 1000);

/// Bytes of events in one answer, about.
const LISTED_BYTES: usize = 16 << 20;

/// What the admin port works with.
pub struct Api {
    /// The address it listens on.
    pub listen: SocketAddr,
    /// Names under which it is reached, besides IP addresses and `localhost`.
    pub hosts: Vec<String>,
    /// What callers have to know; nothing only on loopback.
    pub token: Option<Secret>,
    /// The queue.
    pub queue: Arc<dyn Queue>,
    /// Returns the status document.
    pub status: Box<dyn Fn() -> Value + Send + Sync>,
    /// One change of dead letters at a time.
    pub changing: Semaphore,
    /// The export settings.
    pub exports: Arc<dyn Exports>,
}

/// Returns what the admin port serves.
pub fn routes(api: Arc<Api>) -> Router {
    let guarded = middleware::from_fn_with_state(Arc::clone(&api), guard);
    Router::new()
        .route("/api/status", get(status))
        .route("/api/dead-letters", get(list))
        .route("/api/dead-letters/replay", post(replay))
        .route("/api/dead-letters/discard", post(discard))
        .merge(settings::routes())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(guarded)
        .with_state(api)
}

async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    match api.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

impl Api {
    fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        if headers.contains_key(header::ORIGIN) || site.is_some_and(|site| site != b"none") {
            return Err(Refusal {
                status: StatusCode::FORBIDDEN,
                error: "the request comes from a web page".to_owned(),
                remedy: "use the command line or curl",
            });
        }
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok()).unwrap_or_default();
        if hosts.next().is_some() || !self.is_ours(host) {
            return Err(Refusal {
                status: StatusCode::FORBIDDEN,
                error: "the Host header names neither this machine nor a configured name".to_owned(),
                remedy: "use the IP address, or add the name to `admin.hosts`",
            });
        }
        let Some(token) = &self.token else {
            return Ok(());
        };
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let given = given.and_then(|value| {
            let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
        });
        if given.is_some_and(|given| is_same(given, token.expose().as_bytes())) {
            return Ok(());
        }
        Err(Refusal {
            status: StatusCode::UNAUTHORIZED,
            error: "the token is missing or wrong".to_owned(),
            remedy: "send `Authorization: Bearer TOKEN` with the token of `admin.token`",
        })
    }

    fn is_ours(&self, host: &str) -> bool {
        let Some(name) = host_name(host) else {
            return false;
        };
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        // No name server can lead a browser that was given an address; but an address that is not ours is a mistake.
        if let Ok(ip) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return ip.is_loopback() || ip == self.listen.ip() || self.listen.ip().is_unspecified();
        }
        self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Returns a `Host` without its port.
fn host_name(host: &str) -> Option<&str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => {
            (!port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)?
        }
        _ => host,
    };
    (!name.is_empty()).then_some(name)
}

/// Compares in a time that says nothing of either value.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (Sha256::digest(one), Sha256::digest(other));
    one.iter()
        .zip(other.iter())
        .fold(0, |sum, (one, other)| sum | (one ^ other))
        == 0
}

async fn status(State(api): State<Arc<Api>>) -> Response {
    answer(StatusCode::OK, &(api.status)())
}

async fn list(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Refusal> {
    let (filter, limit, with_events) = asked(request.uri().query().unwrap_or_default())?;
    let names: Vec<String> = match &filter.destination {
        Some(name) => vec![name.clone()],
        None => api
            .queue
            .stats()
            .dead_letters
            .into_iter()
            .map(|(name, _)| name)
            .collect(),
    };
    let listed: Arc<Mutex<(Vec<Value>, usize)>> = Arc::default();
    for name in names {
        let wanted = filter.test(now_ms()).map_err(wrong_filter)?;
        let (taken, of) = (Arc::clone(&listed), name.clone());
        let take = move |letter: &DeadLetter| {
            let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
            let (letters, bytes) = &mut *taken;
            if letters.len() < limit && *bytes < LISTED_BYTES && wanted(letter) {
                *bytes += letter.record.json_bytes() as usize;
                letters.push(serde_json::to_value(Shown::of(&of, letter, with_events)).unwrap_or_default());
            }
            false
        };
        let read = api.queue.find_dead_letters(&name, 1, Arc::new(take)).await;
        read.map_err(|error| unavailable(&error))?;
    }
    let letters = std::mem::take(&mut listed.lock().unwrap_or_else(PoisonError::into_inner).0);
    Ok(answer(StatusCode::OK, &json!({ "dead_letters": letters })))
}

async fn replay(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Refusal> {
    change(&api, request, Action::Replay).await
}

async fn discard(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Refusal> {
    change(&api, request, Action::Discard).await
}

async fn change(api: &Api, request: Request, action: Action) -> Result<Response, Refusal> {
    let wanted = read(request).await?;
    if wanted.filter.is_empty() != wanted.all {
        return Err(Refusal {
            status: StatusCode::BAD_REQUEST,
            error: "it is not clear which dead letters are meant".to_owned(),
            remedy: "give a `filter`, or `\"all\": true` and none",
        });
    }
    let Ok(_turn) = api.changing.try_acquire() else {
        return Err(Refusal {
            status: StatusCode::CONFLICT,
            error: "dead letters are being replayed or discarded already".to_owned(),
            remedy: "wait for the answer to that request",
        });
    };
    let limit = wanted.limit.unwrap_or(u64::MAX);
    match settle(&*api.queue, &wanted.filter, limit, action, now_ms()).await {
        Ok(settled) => Ok(answer(StatusCode::OK, &json!({ "letters": settled.letters }))),
        Err(SettleError::Filter(why)) => Err(wrong_filter(why)),
        Err(error) => Err(unavailable(&error)),
    }
}

async fn read(request: Request) -> Result<settle::Request, Refusal> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let is_json = kind.is_some_and(|kind| kind.as_bytes().to_ascii_lowercase().starts_with(b"application/json"));
    if !is_json {
        return Err(Refusal {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            error: "the body is not JSON".to_owned(),
            remedy: "send it with `Content-Type: application/json`",
        });
    }
    let refused = |status, error: String| Refusal {
        status,
        error,
        remedy: "send a body such as {\"filter\": {\"destination\": \"lake\"}}",
    };
    let body = timeout(PATIENCE, to_bytes(request.into_body(), MAX_BODY)).await;
    let body = body
        .map_err(|_| refused(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned()))?
        .map_err(|_| {
            let error = format!("the body broke off or is over {MAX_BODY} bytes");
            refused(StatusCode::PAYLOAD_TOO_LARGE, error)
        })?;
    serde_json::from_slice(&body).map_err(|error| refused(StatusCode::BAD_REQUEST, error.to_string()))
}

/// Reads a query: a filter, `limit` and `events`.
fn asked(query: &str) -> Result<(Filter, usize, bool), Refusal> {
    let (mut limit, mut with_events) = (LISTED.0, false);
    let mut filter = Map::new();
    for (name, value) in parameters(query).ok_or_else(|| wrong_filter("a value is not UTF-8"))? {
        match name.as_str() {
            "limit" => {
                let number: Result<usize, _> = value.parse();
                limit = number.map_err(|_| wrong_filter("`limit` is no number"))?.min(LISTED.1);
            }
            "events" => with_events = value == "true",
            _ => drop(filter.insert(name, Value::String(value))),
        }
    }
    let filter = serde_json::from_value(Value::Object(filter)).map_err(|error| wrong_filter(error.to_string()))?;
    Ok((filter, limit, with_events))
}

async fn unknown() -> Refusal {
    Refusal {
        status: StatusCode::NOT_FOUND,
        error: "there is no such path".to_owned(),
        remedy: "use /api/status, /api/dead-letters, /api/environments or /api/settings/changes, or what is below them",
    }
}

async fn wrong_method() -> Refusal {
    Refusal {
        status: StatusCode::METHOD_NOT_ALLOWED,
        error: "the path does not take this method".to_owned(),
        remedy: "look with GET; dead letters are changed with POST, settings with PUT and DELETE",
    }
}

fn wrong_filter(why: impl Into<String>) -> Refusal {
    Refusal {
        status: StatusCode::BAD_REQUEST,
        error: why.into(),
        remedy: "filter by destination, since, until, kind, flag, reason and id",
    }
}

fn unavailable(error: &dyn std::error::Error) -> Refusal {
    Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        error: error.to_string(),
        remedy: "look at `tee` and `queue` in /api/status, and try again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Settings;
    use crate::queue::memory::MemoryQueue;

    fn api(listen: &str, hosts: &[&str], token: Option<&str>) -> Api {
        Api {
            listen: listen.parse().unwrap(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            token: token.map(|token| Secret::new(token.to_owned())),
            queue: Arc::new(MemoryQueue::start(Settings::default(), &[], Arc::new(|| 1))),
            status: Box::new(|| json!({})),
            changing: Semaphore::new(1),
            exports: Arc::new(settings::Nobody),
        }
    }

    fn judge(api: &Api, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: header::HeaderName = name.parse().unwrap();
            map.append(name, value.parse().unwrap());
        }
        api.admit(&map).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_hosts_that_no_name_server_can_forge_are_ours() {
        let local = api("127.0.0.1:8032", &["Relay.internal"], None);
        for host in [
            "127.0.0.1:8032",
            "localhost",
            "LOCALHOST:8032",
            "[::1]:8032",
            "[::1]",
            "127.9.9.9",
            "relay.internal:80",
        ] {
            assert_eq!(judge(&local, &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8032",
            "localhost.evil.example",
            "10.0.0.7",
            "",
            ":8032",
            "localhost:x",
            "relay.internal.",
            "127.0.0.1.nip.io",
        ] {
            assert_eq!(judge(&local, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(judge(&local, &[]), 403);
        assert_eq!(judge(&local, &[("host", "localhost"), ("host", "evil.example")]), 403);
        let open = api("0.0.0.0:8032", &[], Some("secret"));
        assert_eq!(judge(&open, &[("host", "10.0.0.7:8032")]), 401);
        assert_eq!(judge(&open, &[("host", "evil.example")]), 403);
    }

    #[test]
    fn a_web_page_is_refused_even_with_the_token() {
        let api = api("127.0.0.1:8032", &[], Some("secret"));
        let token = ("authorization", "Bearer secret");
        assert_eq!(judge(&api, &[("host", "localhost"), token]), 200);
        for origin in [
            ("origin", "http://localhost:8032"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
        ] {
            assert_eq!(judge(&api, &[("host", "localhost"), token, origin]), 403);
        }
        assert_eq!(
            judge(&api, &[("host", "localhost"), token, ("sec-fetch-site", "none")]),
            200
        );
    }

    #[test]
    fn only_the_very_token_opens() {
        let api = api("127.0.0.1:8032", &[], Some("secret"));
        for given in ["Bearer secret", "bearer secret"] {
            assert_eq!(
                judge(&api, &[("host", "localhost"), ("authorization", given)]),
                200,
                "{given}"
            );
        }
        for given in [
            "Bearer secre",
            "Bearer secret1",
            "Bearer ",
            "Bearer",
            "secret",
            "Basic secret",
            "Bearer  secret",
        ] {
            assert_eq!(
                judge(&api, &[("host", "localhost"), ("authorization", given)]),
                401,
                "{given}"
            );
        }
        assert_eq!(judge(&api, &[("host", "localhost")]), 401);
    }

    #[test]
    fn a_query_is_a_filter_and_nothing_else() {
        let (filter, limit, events) = asked("destination=lake&reason=too+large%21&limit=5000&events=true")
            .ok()
            .unwrap();
        assert_eq!(
            (filter.reason.as_deref(), limit, events),
            (Some("too large!"), 1000, true)
        );
        assert_eq!(asked("").ok().unwrap().1, 100);
        for wrong in ["destinatoin=lake", "limit=x", "reason=%ff"] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
    }
}
