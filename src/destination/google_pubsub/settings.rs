//! The settings of a Pub/Sub destination and how they are read.
//!
//! Promises: what Pub/Sub would refuse for every event alike (a topic that cannot be, a limit above its own) is refused
//! here, where it cannot be taken for an event's fault.

use std::path::PathBuf;

use crate::export::form::Form;
use crate::section::Section;
use crate::units::ByteSize;
use crate::web;

/// Messages in one request (<https://cloud.google.com/pubsub/quotas#resource_limits>).
const MOST_MESSAGES: u16 = 1000;
/// Bytes in one request; also in one message (the same page).
const MOST_REQUEST_BYTES: ByteSize = ByteSize(10_000_000);

crate::choices! {
    /// What a message's ordering key is.
    pub enum Ordering {
        /// There is none, as in LaunchDarkly's own export.
        None = "none",
        /// The key of the event's user or context; events without one have no ordering key.
        ContextKey = "context_key",
    }
}

crate::choices! {
    /// What a message can carry beside the record, for the filters of subscriptions.
    pub enum Attribute {
        /// The event's stable id, by which a consumer knows what it has had before.
        EventId = "event_id",
        /// The event's kind.
        Kind = "kind",
        /// The environment's configured name.
        Environment = "environment",
    }
}

/// Which topic, as whom, in what form and with what limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The id of the topic's project.
    pub project: String,
    /// The topic's id.
    pub topic: String,
    /// Another address than Google's, without a slash at the end: a regional endpoint, the emulator.
    pub endpoint: Option<String>,
    /// A file of credentials in Google's JSON; else Application Default Credentials are used.
    pub credentials_file: Option<PathBuf>,
    /// What a message's ordering key is.
    pub ordering: Ordering,
    /// What a message carries beside the record.
    pub attributes: Vec<Attribute>,
    /// Messages in one request.
    pub max_messages: usize,
    /// Bytes in one request.
    pub max_request_bytes: usize,
    /// A newline after each record's JSON.
    pub newline: bool,
    /// The record's form.
    pub form: Form,
}

impl Settings {
    /// Returns the settings for a topic with the defaults.
    pub fn to(project: &str, topic: &str) -> Self {
        Self {
            project: project.to_owned(),
            topic: topic.to_owned(),
            endpoint: None,
            credentials_file: None,
            ordering: Ordering::None,
            attributes: Vec::new(),
            max_messages: usize::from(MOST_MESSAGES),
            max_request_bytes: MOST_REQUEST_BYTES.as_usize(),
            newline: false,
            form: Form::default(),
        }
    }

    /// Returns the topic as Pub/Sub names it.
    pub(super) fn topic_name(&self) -> String {
        format!("projects/{}/topics/{}", self.project, self.topic)
    }

    /// Returns true if calls are made without credentials: the emulator has none, and on an endpoint without TLS they
    /// could be read.
    pub(super) fn is_anonymous(&self) -> bool {
        let plain = self
            .endpoint
            .as_deref()
            .is_some_and(|endpoint| endpoint.starts_with("http:"));
        plain && self.credentials_file.is_none()
    }
}

/// Reads the settings.
pub fn read(section: &mut Section<'_>) -> Option<Settings> {
    let project = section.required("project").filter(|project: &String| {
        let valid = is_project(project);
        if !valid {
            section.problem(Some("project"), "must be a project's id, such as my-project");
        }
        valid
    });
    let topic = section.required("topic").filter(|topic: &String| {
        let valid = is_topic(topic);
        if !valid {
            let message = "must be a topic's id: 3 to 255 letters, digits and `-_.~+%`, a letter first and not `goog` \
                           (of projects/my-project/topics/ld-events it is ld-events)";
            section.problem(Some("topic"), message);
        }
        valid
    });
    let endpoint = web::read_url(section, "endpoint");
    if endpoint
        .as_ref()
        .is_some_and(|endpoint| endpoint.path() != "/" || endpoint.query().is_some())
    {
        section.problem(
            Some("endpoint"),
            "must be a scheme and a host, such as https://europe-west1-pubsub.googleapis.com",
        );
    }
    let max_messages = section.or("max_messages", MOST_MESSAGES);
    if !(1..=MOST_MESSAGES).contains(&max_messages) {
        section.problem(Some("max_messages"), "must be from 1 to 1000, which is Pub/Sub's limit");
    }
    let max_request_bytes = section.or("max_request_bytes", MOST_REQUEST_BYTES);
    if !(ByteSize::kib(1)..=MOST_REQUEST_BYTES).contains(&max_request_bytes) {
        section.problem(
            Some("max_request_bytes"),
            "must be from 1KiB to 10MB, which is Pub/Sub's limit",
        );
    }
    let mut attributes: Vec<Attribute> = section.list_or("attributes", Vec::new());
    let listed = attributes.len();
    attributes.sort_by_key(|attribute| attribute.as_str());
    attributes.dedup();
    if attributes.len() < listed {
        section.problem(Some("attributes"), "names one of them twice");
    }
    let settings = Settings {
        endpoint: endpoint.map(|endpoint| endpoint.to_string().trim_end_matches('/').to_owned()),
        credentials_file: section.optional("credentials_file"),
        ordering: section.or("ordering", Ordering::None),
        attributes,
        max_messages: usize::from(max_messages),
        max_request_bytes: max_request_bytes.as_usize(),
        newline: section.or("newline", false),
        form: Form::read(section),
        ..Settings::to(&project?, &topic?)
    };
    Some(settings)
}

// Project ids, project numbers, and ids of domains (`example.com:my-project`); the emulator takes any.
fn is_project(id: &str) -> bool {
    (1..=255).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.:_".contains(&byte))
}

// <https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names>
fn is_topic(id: &str) -> bool {
    (3..=255).contains(&id.len())
        && id.starts_with(|first: char| first.is_ascii_alphabetic())
        && !id.starts_with("goog")
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.~+%".contains(&byte))
}
