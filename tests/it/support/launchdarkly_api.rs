//! A fake of LaunchDarkly's REST API: projects, environments, flags and destinations in the documented shapes and pages.
//!
//! Fails the test on every request that LaunchDarkly would refuse or that its documentation does not have, and on one that
//! comes before the rate limit allows it.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::upstream::Received;
use super::{Answer, Upstream};

/// The token that the fake takes.
pub(crate) const TOKEN: &str = "api-99999999-8888-4777-8666-555555555555";

/// The most that a page may have.
const MOST: usize = 100;

/// The fake. Dropping it judges what it saw.
pub(crate) struct Api {
    service: Upstream,
    shared: Arc<Mutex<Shared>>,
}

/// What is done with a request that is in order.
#[derive(Clone, Debug)]
pub(crate) enum Mood {
    /// It is answered.
    Answers,
    /// The next so many get this status and headers, and later ones are answered.
    Fails(usize, u16, Vec<(&'static str, &'static str)>),
    /// It is answered, and each answer uses up the limit with this name for so long.
    Exhausted(&'static str, Duration),
    /// It is answered with this body.
    Says(String),
}

struct Shared {
    mood: Mood,
    /// Project documents, without their environments.
    projects: Vec<Project>,
    /// What takes their place when it is whole.
    draft: Option<Vec<Project>>,
    destinations: Vec<Value>,
    /// Items in a page, whatever is asked for.
    page: usize,
    complaints: Vec<String>,
    /// Paths with their queries.
    seen: Vec<String>,
    not_before: Option<Instant>,
}

struct Project {
    id: String,
    key: String,
    environments: Vec<Value>,
    flags: Vec<Value>,
}

impl Api {
    /// Starts it without projects.
    pub(crate) fn start() -> Self {
        let service = Upstream::start();
        let shared = Arc::new(Mutex::new(Shared {
            mood: Mood::Answers,
            projects: Vec::new(),
            draft: None,
            destinations: Vec::new(),
            page: MOST,
            complaints: Vec::new(),
            seen: Vec::new(),
            not_before: None,
        }));
        let answering = shared.clone();
        service.plan(move |call| Some(answering.lock().unwrap().answer(call)));
        Self { service, shared }
    }

    /// Returns where it is, for `base_url`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.service.address())
    }

    /// Returns the section `launchdarkly` of a configuration.
    pub(crate) fn section(&self) -> Value {
        json!({ "api_token": TOKEN, "base_url": self.url(), "refresh": "1s" })
    }

    /// Adds a project.
    pub(crate) fn project(&self, id: &str, key: &str) {
        self.shared.lock().unwrap().drafted().push(Project {
            id: id.to_owned(),
            key: key.to_owned(),
            environments: Vec::new(),
            flags: Vec::new(),
        });
    }

    /// Adds an environment to the newest project.
    pub(crate) fn environment(&self, id: &str, key: &str, sdk_key: &str, tracks_new_flags: bool) {
        let mut shared = self.shared.lock().unwrap();
        let project = shared.drafted().last_mut().unwrap();
        project.environments.push(json!({
            "_links": { "self": { "href": format!("/api/v2/projects/{}/environments/{key}", project.key), "type": "application/json" } },
            "_id": id, "key": key, "name": format!("The {key}"), "apiKey": sdk_key,
            "mobileKey": format!("mob-of-{id}"), "color": "F5A623", "defaultTtl": 5, "secureMode": false,
            "_access": { "denied": [], "allowed": [] }, "defaultTrackEvents": tracks_new_flags,
            "requireComments": false, "confirmChanges": false, "tags": [], "critical": true,
        }));
    }

    /// Adds a flag to the newest project: its date of creation, variations as pairs of name and value, and settings in every
    /// environment (`trackEvents`, `trackEventsFallthrough`, `rules`).
    pub(crate) fn flag(&self, key: &str, created_ms: u64, variations: &[(&str, Value)], settings: &Value) {
        let mut shared = self.shared.lock().unwrap();
        let project = shared.drafted().last_mut().unwrap();
        let variations = variations.iter().map(|(name, value)| match *name {
            "" => json!({ "_id": "e432f62b", "value": value }),
            name => json!({ "_id": "e432f62b", "value": value, "name": name, "description": "…" }),
        });
        let variations: Vec<Value> = variations.collect();
        let environments = project.environments.iter().map(|environment| {
            let mut here = json!({
                "on": true, "archived": false, "salt": "61eddeadbeef", "sel": "c9a0", "lastModified": 1_627_071_171_347_u64,
                "version": 61, "targets": [{ "values": ["user-1", "user-2"], "variation": 0, "contextKind": "user" }],
                "contextTargets": [], "rules": [], "fallthrough": { "variation": 0 }, "offVariation": 1, "prerequisites": [],
                "_site": { "href": "/default/test/features/x", "type": "text/html" }, "_environmentName": environment["name"],
                "trackEvents": false, "trackEventsFallthrough": false,
            });
            here.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
            (environment["key"].as_str().unwrap().to_owned(), here)
        });
        let environments: serde_json::Map<String, Value> = environments.collect();
        let flag = json!({
            "name": format!("Flag {key}"), "kind": "multivariate", "description": "", "key": key, "_version": 7,
            "creationDate": created_ms, "includeInSnippet": true, "variations": variations, "temporary": false,
            "tags": ["a"], "_links": { "self": { "href": format!("/api/v2/flags/{}/{key}", project.key), "type": "application/json" } },
            "experiments": { "baselineIdx": 0, "items": [] }, "customProperties": {}, "archived": false,
            "environments": environments,
        });
        project.flags.push(flag);
    }

    /// Adds a destination of Data Export.
    pub(crate) fn destination(&self, whose: &str, name: &str, kind: &str, config: &Value, on: bool) {
        let id = "610addeadbeefaa86ec9a7d4";
        self.shared.lock().unwrap().destinations.push(json!({
            "_id": id, "_links": {
                "parent": { "href": "/api/v2/destinations", "type": "application/json" },
                "self": { "href": format!("/api/v2/destinations/{whose}/{id}"), "type": "application/json" },
            },
            "name": name, "kind": kind, "version": 1, "config": config, "on": on,
            "_access": { "denied": [], "allowed": [] },
        }));
    }

    /// Forgets the projects and their flags.
    ///
    /// What is added then is there, all at once, when it is published.
    pub(crate) fn clear(&self) {
        self.shared.lock().unwrap().draft = Some(Vec::new());
    }

    /// Answers with what was added since [`Api::clear`].
    pub(crate) fn publish(&self) {
        let mut shared = self.shared.lock().unwrap();
        shared.projects = shared.draft.take().unwrap();
    }

    /// Gives pages of no more than so many items.
    pub(crate) fn pages_of(&self, items: usize) {
        self.shared.lock().unwrap().page = items;
    }

    /// Changes what is done with later requests.
    pub(crate) fn be(&self, mood: Mood) {
        self.shared.lock().unwrap().mood = mood;
    }

    /// Returns the paths of the requests so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.shared.lock().unwrap().seen.clone()
    }

    /// Returns and forgets what the fake has to say against the requests so far.
    pub(crate) fn complaints(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().unwrap().complaints)
    }

    /// Requests that break off are no failure in this test.
    pub(crate) fn tolerate_broken(&self) {
        self.service.tolerate_broken();
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let complaints = self.complaints();
        assert!(
            thread::panicking() || complaints.is_empty(),
            "LaunchDarkly would refuse: {complaints:#?}"
        );
    }
}

impl Shared {
    /// Returns where projects are added.
    fn drafted(&mut self) -> &mut Vec<Project> {
        self.draft.as_mut().unwrap_or(&mut self.projects)
    }

    fn answer(&mut self, call: &Received) -> Answer {
        // Before the times in the headers, so that a pause between the two is no complaint.
        let now = Instant::now();
        self.seen.push(call.target.clone());
        let body = match self.judge(call) {
            Ok(body) => body,
            Err(complaint) => {
                self.complaints
                    .push(format!("{} {}: {complaint}", call.method, call.target));
                return Answer::full(400, &[], br#"{"code":"invalid_request","message":"see the test"}"#);
            }
        };
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            self.complaints
                .push(format!("{}: before the limit's reset", call.target));
        }
        let mut limits = vec![
            ("X-Ratelimit-Global-Remaining", "99".to_owned()),
            ("X-Ratelimit-Route-Remaining", "4".to_owned()),
            ("X-Ratelimit-Auth-Token-Remaining", "17".to_owned()),
            ("X-Ratelimit-Reset", in_ms(Duration::from_secs(3600))),
            ("X-Ratelimit-Auth-Token-Reset", in_ms(Duration::from_secs(3600))),
        ];
        let (status, body) = match &mut self.mood {
            Mood::Answers => (200, body.to_string()),
            Mood::Says(text) => (200, text.clone()),
            Mood::Fails(times, status, headers) if *times > 0 => {
                *times -= 1;
                let wish = headers.iter().find(|(name, _)| *name == "Retry-After");
                let wish = wish.map(|(_, seconds)| Duration::from_secs(seconds.parse().unwrap()));
                self.not_before = wish.map(|wish| now + wish);
                limits.extend(headers.iter().map(|(name, value)| (*name, (*value).to_owned())));
                (*status, r#"{"code":"rate_limited","message":"slow down"}"#.to_owned())
            }
            Mood::Fails(..) => (200, body.to_string()),
            Mood::Exhausted(limit, wait) => {
                let reset = match *limit {
                    "X-Ratelimit-Auth-Token-Remaining" => "X-Ratelimit-Auth-Token-Reset",
                    _ => "X-Ratelimit-Reset",
                };
                for (name, value) in &mut limits {
                    if *name == *limit {
                        *value = "0".to_owned();
                    } else if *name == reset {
                        *value = in_ms(*wait);
                    }
                }
                // The header is in milliseconds, and cut off.
                self.not_before = Some(now + *wait - Duration::from_millis(2));
                (200, body.to_string())
            }
        };
        let mut headers: Vec<(&str, &str)> = vec![("Content-Type", "application/json")];
        headers.extend(limits.iter().map(|(name, value)| (*name, value.as_str())));
        Answer::full(status, &headers, body.as_bytes())
    }

    /// Returns the answer to a request, or what is wrong with it.
    fn judge(&self, call: &Received) -> Result<Value, String> {
        let header = |name: &str| call.headers.get(name).unwrap_or_default();
        if call.method != "GET" || !call.body.is_empty() {
            return Err("only reads are expected".to_owned());
        }
        if header("authorization") != TOKEN {
            return Err("not the token, as it is".to_owned());
        }
        if header("ld-api-version") != "20240415" {
            return Err(format!("version {:?} of the API", header("ld-api-version")));
        }
        let (path, query) = call.target.split_once('?').unwrap_or((&call.target, ""));
        let mut query: Vec<(&str, &str)> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let mut take = |name: &str| {
            let at = query.iter().position(|(given, _)| *given == name)?;
            Some(query.remove(at).1)
        };
        let (limit, offset) = (take("limit"), take("offset"));
        let parts: Vec<&str> = path.split('/').collect();
        let ["", "api", "v2", parts @ ..] = &parts[..] else {
            return Err("no path of the API".to_owned());
        };
        let mut same = String::new();
        let items: Vec<Value> = match parts {
            ["projects"] => {
                let expand = take("expand") == Some("environments");
                same = if expand {
                    "&expand=environments".to_owned()
                } else {
                    same
                };
                self.projects.iter().map(|project| self.show(project, expand)).collect()
            }
            ["projects", key, "environments"] => self.of(key)?.environments.clone(),
            ["flags", key] => {
                let environment = take("env").ok_or("flags without env have no environments")?;
                if take("summary") != Some("0") {
                    return Err("flags without summary=0 have no rules".to_owned());
                }
                same = format!("&env={environment}&summary=0");
                let only = |flag: &Value| {
                    let mut flag = flag.clone();
                    let environments = flag["environments"].as_object_mut().unwrap();
                    environments.retain(|key, _| key == environment);
                    flag
                };
                self.of(key)?.flags.iter().map(only).collect()
            }
            ["destinations"] => {
                return Ok(json!({ "items": self.destinations, "_links": { "self": { "href": path } } }));
            }
            _ => return Err("an unexpected path".to_owned()),
        };
        if let Some((unknown, _)) = query.first() {
            return Err(format!("an unexpected parameter {unknown}"));
        }
        let number = |text: Option<&str>, otherwise: usize| text.map_or(Ok(otherwise), str::parse);
        let (limit, offset) = (number(limit, 20), number(offset, 0));
        let (limit, offset) = limit.and_then(|limit| Ok((limit, offset?))).map_err(|_| "no number")?;
        if !(1..=MOST).contains(&limit) {
            return Err(format!("pages of {limit}"));
        }
        Ok(page(path, &same, &items, limit.min(self.page), offset))
    }

    fn show(&self, project: &Project, expand: bool) -> Value {
        let mut shown = json!({
            "_links": { "self": { "href": format!("/api/v2/projects/{}", project.key), "type": "application/json" } },
            "_id": project.id, "key": project.key, "name": format!("Project {}", project.key), "tags": [],
            "includeInSnippetByDefault": false,
        });
        if expand {
            let path = format!("/api/v2/projects/{}/environments", project.key);
            // The first 20 come with the project.
            shown["environments"] = page(&path, "", &project.environments, self.page.min(20), 0);
        }
        shown
    }

    fn of(&self, key: &str) -> Result<&Project, String> {
        let found = self.projects.iter().find(|project| project.key == key);
        found.ok_or_else(|| format!("there is no project {key}"))
    }
}

fn page(path: &str, same: &str, items: &[Value], limit: usize, offset: usize) -> Value {
    let link = |offset: usize| json!({ "href": format!("{path}?limit={limit}&offset={offset}{same}"), "type": "application/json" });
    let mut links = json!({ "self": link(offset) });
    if offset + limit < items.len() {
        links["next"] = link(offset + limit);
    }
    let shown: Vec<&Value> = items.iter().skip(offset).take(limit).collect();
    json!({ "totalCount": items.len(), "items": shown, "_links": links })
}

fn in_ms(wait: Duration) -> String {
    let at = SystemTime::now() + wait;
    at.duration_since(UNIX_EPOCH).unwrap().as_millis().to_string()
}
