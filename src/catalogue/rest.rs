//! LaunchDarkly's REST API, as far as it is read here: projects with their environments, flags, destinations.
//!
//! Version 20240415 of the API (`LD-API-Version`): lists come in pages, linked by `_links.next.href`; environments of a flag
//! come only if they are asked for. Only paths of the API are followed, so the token goes to the configured host and nowhere
//! else. The API documents no conditional requests, so none are made.
//!
//! Polite: one request at a time; `Retry-After` is honoured, and where a limit's `X-Ratelimit-…-Remaining` is 0, its reset is
//! awaited before the next request. 429, 5xx and broken connections are tried again after growing waits, [`TRIES`] times.
//! Bounded: [`MAX_PAGE_BYTES`] a page, [`MAX_PAGES`] pages a list.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{Catalogue, Environment, Flag, MAX_FLAGS, MAX_PARTS, Rule, Variation, Whose, digest, short};
use crate::backoff::Backoff;
use crate::secret::Secret;
use crate::web::{self, Reply};

/// LaunchDarkly's own host.
pub const BASE_URL: &str = "https://app.launchdarkly.com";

/// Requests for one page before the whole is given up for this time.
const TRIES: u32 = 5;

/// Flags in a page, and other things; the most that the API gives.
const PAGE: usize = 100;

/// A page of flags with long lists of targets.
const MAX_PAGE_BYTES: usize = 32 * 1024 * 1024;

/// Pages of one list; more is not an account but a circle.
const MAX_PAGES: usize = 1_000;

/// Longest wait that a server can ask for.
const MAX_WAIT: Duration = Duration::from_secs(15 * 60);

const BACKOFF: Backoff = Backoff {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(60),
};

const API: &str = "/api/v2/";

/// What stands for itself in a path (RFC 3986 §2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why something could not be read. For the log and for people: what to do is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// LaunchDarkly refuses the token.
    #[error("launchdarkly refuses the API token ({0}): it needs a role that can read (Reader)")]
    Refused(String),
    /// It cannot be reached, or answers that something is wrong with it.
    #[error("launchdarkly cannot be read: {0}")]
    Unreachable(String),
    /// It answers something else than documented.
    #[error("launchdarkly answers what its documentation does not say: {0}")]
    Strange(String),
}

/// A client of the API.
pub struct Rest {
    base: String,
    token: Secret,
    /// Not before this: a rate limit is used up.
    not_before: Mutex<Option<Instant>>,
}

/// A project.
#[derive(Clone, Debug)]
pub struct Project {
    /// Its id, 24 hex digits.
    pub id: String,
    /// Its key.
    pub key: String,
    /// Its environments, without flags.
    pub environments: Vec<Environment>,
}

/// A destination of LaunchDarkly's Data Export.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The project's key.
    pub project: String,
    /// The environment's key.
    pub environment: String,
    /// What people call it.
    pub name: String,
    /// Its kind in LaunchDarkly's words.
    pub kind: String,
    /// Its settings in LaunchDarkly's words; secrets are left out or masked there.
    pub config: Map<String, Value>,
    /// It is on.
    pub on: bool,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    #[serde(default, rename = "_links")]
    links: Links,
    #[serde(default, rename = "totalCount")]
    total: usize,
}

#[derive(Default, Deserialize)]
struct Links {
    next: Option<Link>,
    #[serde(rename = "self")]
    own: Option<Link>,
}

#[derive(Deserialize)]
struct Link {
    href: String,
}

#[derive(Deserialize)]
struct ProjectItem<'a> {
    #[serde(rename = "_id")]
    id: String,
    key: String,
    #[serde(borrow)]
    environments: Option<Page<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EnvironmentItem {
    #[serde(rename = "_id")]
    id: String,
    key: String,
    api_key: Option<String>,
    mobile_key: Option<String>,
    #[serde(default)]
    default_track_events: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlagItem {
    key: String,
    creation_date: u64,
    #[serde(default)]
    variations: Vec<VariationItem>,
    #[serde(default)]
    environments: BTreeMap<String, FlagEnvironment>,
}

#[derive(Deserialize)]
struct VariationItem {
    value: Value,
    name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FlagEnvironment {
    track_events: bool,
    track_events_fallthrough: bool,
    rules: Vec<RuleItem>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleItem {
    #[serde(rename = "_id")]
    id: String,
    description: Option<String>,
    #[serde(default)]
    track_events: bool,
}

#[derive(Deserialize)]
struct DestinationItem {
    #[serde(default)]
    name: String,
    kind: String,
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(default)]
    on: bool,
    #[serde(default, rename = "_links")]
    links: Links,
}

impl Rest {
    /// Returns a client for the API below this URL (without a slash at its end).
    pub fn new(base: String, token: Secret) -> Self {
        Self {
            base,
            token,
            not_before: Mutex::new(None),
        }
    }

    /// Reads what is to be known of the environments that are `wanted`. `now_ms`: the time, Unix milliseconds.
    pub async fn catalogue(&self, wanted: &[Whose], now_ms: u64) -> Result<Catalogue, Trouble> {
        let mut catalogue = Catalogue {
            read_ms: now_ms,
            environments: Vec::new(),
        };
        for project in self.projects().await? {
            for mut environment in project.environments {
                if wanted.iter().any(|whose| whose.is(&environment)) {
                    self.read_flags(&mut environment).await?;
                    catalogue.environments.push(environment);
                }
            }
        }
        Ok(catalogue)
    }

    /// Reads the projects that the token may see.
    pub async fn projects(&self) -> Result<Vec<Project>, Trouble> {
        let mut projects = Vec::new();
        let mut short_lists = Vec::new();
        let mut take = |item: &RawValue| -> Result<bool, Trouble> {
            let item: ProjectItem<'_> = parse(item.get())?;
            let page = item.environments.as_ref();
            let embedded: &[&RawValue] = page.map_or(&[], |page| page.items.as_slice());
            if page.is_none_or(|page| page.total > page.items.len()) {
                short_lists.push(projects.len());
            }
            let environment = |one: &&RawValue| Ok::<_, Trouble>(environment(&item.id, &item.key, parse(one.get())?));
            projects.push(Project {
                environments: embedded.iter().map(environment).collect::<Result<_, _>>()?,
                id: item.id.clone(),
                key: item.key.clone(),
            });
            Ok(true)
        };
        self.list(&format!("projects?limit={PAGE}&expand=environments"), &mut take)
            .await?;
        for index in short_lists {
            let Project { id, key, .. } = &projects[index];
            let mut environments = Vec::new();
            let path = format!("projects/{}/environments?limit={PAGE}", escaped(key));
            let mut take = |item: &RawValue| -> Result<bool, Trouble> {
                environments.push(environment(id, key, parse(item.get())?));
                Ok(true)
            };
            self.list(&path, &mut take).await?;
            projects[index].environments = environments;
        }
        Ok(projects)
    }

    /// Reads an environment's flags into it.
    pub async fn read_flags(&self, environment: &mut Environment) -> Result<(), Trouble> {
        let (project, key) = (escaped(&environment.project_key), escaped(&environment.key));
        let (mut flags, mut more) = (BTreeMap::new(), false);
        let mut take = |item: &RawValue| -> Result<bool, Trouble> {
            if flags.len() >= MAX_FLAGS {
                more = true;
                return Ok(false);
            }
            let mut item: FlagItem = parse(item.get())?;
            let here = item.environments.remove(&environment.key).unwrap_or_default();
            flags.insert(std::mem::take(&mut item.key), flag(item, here));
            Ok(true)
        };
        let path = format!("flags/{project}?env={key}&limit={PAGE}&summary=0");
        self.list(&path, &mut take).await?;
        (environment.flags, environment.has_more_flags) = (flags, more);
        Ok(())
    }

    /// Reads the destinations of Data Export.
    pub async fn destinations(&self) -> Result<Vec<Destination>, Trouble> {
        let mut destinations = Vec::new();
        let mut take = |item: &RawValue| -> Result<bool, Trouble> {
            let item: DestinationItem = parse(item.get())?;
            // `/api/v2/destinations/<project>/<environment>/<id>`
            let href = item.links.own.as_ref().map_or("", |own| own.href.as_str());
            let parts: Vec<&str> = href.trim_start_matches(API).split('/').collect();
            let ["destinations", project, environment, _] = parts[..] else {
                return Err(Trouble::Strange(
                    "a destination that does not say whose it is".to_owned(),
                ));
            };
            destinations.push(Destination {
                project: project.to_owned(),
                environment: environment.to_owned(),
                name: item.name,
                kind: item.kind,
                config: item.config,
                on: item.on,
            });
            Ok(true)
        };
        self.list("destinations", &mut take).await?;
        Ok(destinations)
    }

    /// Calls `take` with every item of a list until it returns false. An item of another shape than documented ends it: a
    /// list with holes would make flags look new.
    async fn list(
        &self,
        path: &str,
        take: &mut (dyn FnMut(&RawValue) -> Result<bool, Trouble> + Send),
    ) -> Result<(), Trouble> {
        let mut next = Some(format!("{API}{path}"));
        for _ in 0..MAX_PAGES {
            let Some(path) = next else { return Ok(()) };
            let reply = self.get(&path).await?;
            let page: Page<'_> = parse(&reply.text)?;
            for item in &page.items {
                if !take(item)? {
                    return Ok(());
                }
            }
            next = page.links.next.map(|link| link.href);
            // Anything else could lead to another host.
            if next.as_ref().is_some_and(|href| !href.starts_with(API)) {
                return Err(Trouble::Strange("a next page that is not a path of the API".to_owned()));
            }
        }
        Err(Trouble::Strange(format!("more than {MAX_PAGES} pages")))
    }

    async fn get(&self, path: &str) -> Result<Reply, Trouble> {
        let mut failures = 0;
        loop {
            let not_before = self
                .not_before
                .lock()
                .map_or_else(|error| *error.into_inner(), |at| *at);
            if let Some(at) = not_before {
                tokio::time::sleep_until(at).await;
            }
            let (why, wish) = match self.ask(path).await {
                Ok(reply) => {
                    self.note_limits(&reply);
                    match reply.status {
                        200 => return Ok(reply),
                        401 | 403 => return Err(Trouble::Refused(told(&reply))),
                        429 | 500.. => (told(&reply), reply.retry_after()),
                        _ => return Err(Trouble::Strange(told(&reply))),
                    }
                }
                Err(why) => (why, None),
            };
            failures += 1;
            if failures == TRIES {
                return Err(Trouble::Unreachable(why));
            }
            // Chance on top of a server's wish too: others wait for the same moment.
            let chance = BACKOFF.wait(failures, &mut fastrand::Rng::new());
            tokio::time::sleep(wish.unwrap_or_default().min(MAX_WAIT) + chance).await;
        }
    }

    async fn ask(&self, path: &str) -> Result<Reply, String> {
        let request = web::client()?
            .get(format!("{}{path}", self.base))
            .header("authorization", self.token.expose())
            .header("ld-api-version", "20240415");
        web::exchange_whole(request, MAX_PAGE_BYTES).await
    }

    /// Remembers when a limit that is used up begins anew.
    fn note_limits(&self, reply: &Reply) {
        let limits = [
            ("x-ratelimit-global-remaining", "x-ratelimit-reset"),
            ("x-ratelimit-route-remaining", "x-ratelimit-reset"),
            ("x-ratelimit-auth-token-remaining", "x-ratelimit-auth-token-reset"),
        ];
        let number = |name: &str| reply.headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let used_up = limits.iter().filter(|(remaining, _)| number(remaining) == Some(0));
        let reset = used_up.filter_map(|(_, reset)| number(reset)).max();
        let wait = reset.and_then(|ms| {
            let reset = UNIX_EPOCH.checked_add(Duration::from_millis(ms))?;
            reset.duration_since(SystemTime::now()).ok()
        });
        let at = wait.map(|wait| Instant::now() + wait.min(MAX_WAIT));
        *self.not_before.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

fn environment(project_id: &str, project_key: &str, item: EnvironmentItem) -> Environment {
    let keys = [item.api_key, item.mobile_key].into_iter().flatten();
    Environment {
        project_id: project_id.to_owned(),
        project_key: project_key.to_owned(),
        id: item.id,
        key: item.key,
        keys: keys.map(|key| digest(&key)).collect(),
        tracks_new_flags: item.default_track_events,
        ..Environment::default()
    }
}

fn flag(item: FlagItem, here: FlagEnvironment) -> Flag {
    let variations = item.variations.into_iter().take(MAX_PARTS);
    let rules = here.rules.into_iter().take(MAX_PARTS);
    Flag {
        created_ms: item.creation_date,
        tracked: here.track_events,
        tracks_fallthrough: here.track_events_fallthrough,
        variations: variations
            .map(|variation| Variation::new(variation.name, &variation.value))
            .collect(),
        rules: rules
            .map(|rule| Rule {
                id: rule.id,
                description: short(rule.description),
                tracked: rule.track_events,
            })
            .collect(),
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Trouble> {
    serde_json::from_str(text).map_err(|error| Trouble::Strange(error.to_string()))
}

fn escaped(key: &str) -> String {
    utf8_percent_encode(key, UNRESERVED).to_string()
}

/// Returns the status and LaunchDarkly's words: `{"code":…,"message":…}`.
fn told(reply: &Reply) -> String {
    let message = serde_json::from_str::<Value>(&reply.text)
        .ok()
        .and_then(|answer| answer["message"].as_str().map(web::short));
    format!("{} {}", reply.status, message.unwrap_or_default())
        .trim_end()
        .to_owned()
}
