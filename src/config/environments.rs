//! The key `environments`: whose events are exported, which of them, and where to.

use super::{Name, read_name, selection};
use crate::event::Kind;
use crate::export::selection::Settings;
use crate::problems::Place;
use crate::secret::Secret;
use crate::section::{self, Leaf, Section, not_a_choice};

/// A LaunchDarkly environment whose events are exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The name in metrics, logs and queue records. Changing it changes the ids of events to come.
    pub name: String,
    /// LaunchDarkly's project id, as it stands in exported events; empty if not given.
    pub project_id: String,
    /// LaunchDarkly's environment id, as it stands in exported events; empty if not given.
    pub environment_id: String,
    /// The credentials that mark a request as this environment's. `None`: this environment is alone and takes
    /// whatever the upstream accepts.
    pub credentials: Option<Credentials>,
    /// Which events are exported.
    pub export: Settings,
    /// Names of the destinations.
    pub destinations: Vec<String>,
}

/// What SDKs identify themselves with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Keys of server-side SDKs.
    pub sdk_keys: Vec<Secret>,
    /// Keys of mobile SDKs.
    pub mobile_keys: Vec<Secret>,
    /// Ids of browser SDKs; no secrets.
    pub client_side_ids: Vec<String>,
}

impl Environment {
    /// Returns the environment of a start without a file: alone, without credentials.
    pub(super) fn lone(destination: &str) -> Self {
        Self {
            name: "default".to_owned(),
            project_id: String::new(),
            environment_id: String::new(),
            credentials: None,
            export: Settings::default(),
            destinations: vec![destination.to_owned()],
        }
    }
}

/// An environment as far as it could be read, with what the checks across the file need.
pub(super) struct ReadEnvironment {
    pub(super) place: Place,
    pub(super) name: Option<(String, Place)>,
    pub(super) has_credentials: bool,
    /// Every credential, of whatever sort.
    pub(super) credentials: Vec<(Secret, Place)>,
    pub(super) destinations: Vec<(String, Place)>,
    /// The environment, if all of it could be read.
    pub(super) value: Option<Environment>,
}

impl Leaf for Kind {
    fn expected() -> String {
        let names: Vec<&str> = Self::EXPORTABLE.into_iter().map(Self::as_str).collect();
        format!("one of `{}`", names.join("`, `"))
    }

    fn noun() -> String {
        "event kind".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        match Self::of(text) {
            Self::Other => Err(not_a_choice(text, &Self::EXPORTABLE.map(Self::as_str))),
            kind => Ok(kind),
        }
    }

    fn schema() -> serde_json::Value {
        section::words(&Self::EXPORTABLE.map(Self::as_str))
    }

    fn show(&self) -> String {
        self.as_str().to_owned()
    }
}

/// Reads `environments`.
pub(super) fn read_all(root: &mut Section<'_>) -> Vec<ReadEnvironment> {
    // LaunchDarkly's API tells the ids that are left out here.
    let ids_are_told = root.has("launchdarkly");
    let environments = root.sections("environments", |section| read(section, ids_are_told));
    if !root.has("environments") || root.is_empty("environments") {
        root.problem(
            root.has("environments").then_some("environments"),
            "needs `environments`: a list with at least one environment whose events are exported",
        );
    }
    environments
}

fn read(section: &mut Section<'_>, ids_are_told: bool) -> ReadEnvironment {
    let name = read_name(section);
    let project_id = read_id(section, "project_id", "project");
    let environment_id = read_id(section, "environment_id", "environment");
    let has_credentials = section.has("credentials");
    let mut all = Vec::new();
    let credentials = section.section("credentials", |section| read_credentials(section, &mut all));
    let export = section.section("export", selection::read).unwrap_or_default();
    let destinations: Vec<(String, Place)> = section
        .placed_list::<Name>("destinations")
        .unwrap_or_default()
        .into_iter()
        .map(|(Name(name), place)| (name, place))
        .collect();
    if !section.has("destinations") {
        section.problem(
            None,
            "needs `destinations`: a list of destination names, such as [archive]",
        );
    } else if destinations.is_empty() {
        section.warn(
            Some("destinations"),
            "is empty: nothing of this environment is exported",
        );
    }

    let client_side_ids = credentials
        .as_ref()
        .map_or(&[][..], |credentials| &credentials.client_side_ids);
    let environment_id = match (environment_id, client_side_ids) {
        (Some(id), ids) => {
            if !ids.is_empty() && !ids.contains(&id) {
                section.warn(
                    Some("environment_id"),
                    "is none of the client-side ids; LaunchDarkly uses one id for both",
                );
            }
            id
        }
        // A LaunchDarkly environment's id and its client-side id are the same.
        (None, [only]) => only.clone(),
        (None, _) => {
            if !section.has("environment_id") && !ids_are_told {
                section.warn(
                    None,
                    "has no `environment_id`: exported events carry an empty environment",
                );
            }
            String::new()
        }
    };
    let project_id = project_id.unwrap_or_else(|| {
        if !section.has("project_id") && !ids_are_told {
            section.warn(None, "has no `project_id`: exported events carry an empty project");
        }
        String::new()
    });
    ReadEnvironment {
        place: section.place(None),
        has_credentials,
        credentials: all,
        value: name.as_ref().map(|(name, _)| Environment {
            name: name.clone(),
            project_id,
            environment_id,
            credentials,
            export,
            destinations: destinations.iter().map(|(name, _)| name.clone()).collect(),
        }),
        name,
        destinations,
    }
}

fn read_id(section: &mut Section<'_>, key: &str, of: &str) -> Option<String> {
    let id: String = section.optional(key)?;
    if !is_id(&id) {
        section.warn(
            Some(key),
            format!("is not 24 hexadecimal digits, as the id of a LaunchDarkly {of} is"),
        );
    }
    Some(id)
}

fn is_id(text: &str) -> bool {
    text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn read_credentials(section: &mut Section<'_>, all: &mut Vec<(Secret, Place)>) -> Credentials {
    let sdk_keys = section.secrets("sdk_keys");
    let mobile_keys = section.secrets("mobile_keys");
    let client_side_ids = section.placed_list::<String>("client_side_ids").unwrap_or_default();
    for (keys, other, belongs) in [(&sdk_keys, "mob-", "mobile_keys"), (&mobile_keys, "sdk-", "sdk_keys")] {
        for (_, place) in keys.iter().filter(|(key, _)| key.expose().starts_with(other)) {
            section.warn_at(
                place.clone(),
                format!("begins with `{other}`, which is the form of `{belongs}`"),
            );
        }
    }
    for (_, place) in client_side_ids.iter().filter(|(id, _)| !is_id(id)) {
        section.warn_at(place.clone(), "is not 24 hexadecimal digits, as a client-side id is");
    }
    let given = [
        "sdk_keys",
        "sdk_keys_file",
        "mobile_keys",
        "mobile_keys_file",
        "client_side_ids",
    ];
    if !given.iter().any(|key| section.has(key)) {
        section.problem(
            None,
            "holds no credential; give some, or remove it so that a lone environment takes whatever the upstream accepts",
        );
    }
    all.extend(sdk_keys.iter().chain(&mobile_keys).cloned());
    all.extend(
        client_side_ids
            .iter()
            .map(|(id, place)| (Secret::new(id.clone()), place.clone())),
    );
    Credentials {
        sdk_keys: sdk_keys.into_iter().map(|(key, _)| key).collect(),
        mobile_keys: mobile_keys.into_iter().map(|(key, _)| key).collect(),
        client_side_ids: client_side_ids.into_iter().map(|(id, _)| id).collect(),
    }
}
