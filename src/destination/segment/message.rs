//! An event as Segment's message.
//!
//! ```text
//! {"type":"track","event":"feature","messageId":…,"userId":…,"anonymousId":…,"integrations":{},"timestamp":…,"properties":{…}}
//! {"type":"page","messageId":…,"userId":…,"anonymousId":…,"integrations":{},"timestamp":…,"properties":{…}}
//! {"type":"alias","messageId":…,"userId":…,"previousId":…,"integrations":{},"timestamp":…,"project":…,"environment":…}
//! ```
//!
//! The mapping is that of LaunchDarkly's own Data Export to Segment (its Segment page). `feature`, `click` and `custom`
//! become `track` with the kind as the constant event name, `pageview` becomes `page`, `alias` stays `alias`. Nothing else
//! is sent, and a `custom` event's `data` never. A user's key is the `userId`, also an anonymous user's; of contexts the
//! settings say which kind is which id.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Settings, Values, date};
use crate::event::Kind;
use crate::export::ExportEvent;
use crate::export::fields::{Fields, Subject, key};
use crate::export::form::DefaultMeans;
use crate::export::json::{Object, as_string};
use crate::units::hex;

/// The longest environment id that stands in a `messageId` as it is; Segment takes less than 100 characters in all.
const MOST_ENVIRONMENT_BYTES: usize = 48;

/// How events become messages.
pub(super) struct Mapping {
    user_kind: String,
    anonymous_kind: Option<String>,
    values: Values,
    default_means: DefaultMeans,
    /// Tells one source's messages from those of others with the same events.
    source: String,
}

impl Mapping {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            user_kind: settings.user_id_context_kind.clone(),
            anonymous_kind: settings.anonymous_id_context_kind.clone(),
            values: settings.values,
            default_means: settings.default_means,
            source: short_hash(settings.write_key.expose()),
        }
    }

    /// Returns an event's message. The error is why it has none, a value of the metric label `reason`.
    pub(super) fn message(&self, event: &ExportEvent<'_>) -> Result<Vec<u8>, &'static str> {
        let kind = match event.kind {
            Kind::Feature | Kind::Click | Kind::Custom => "track",
            Kind::Pageview => "page",
            Kind::Alias => "alias",
            _ => return Err("kind_not_in_segment"),
        };
        let fields = Fields::of(event).ok_or("not_an_object")?;
        let subject = fields.subject();
        let (user, anonymous) = self.identity(&subject).ok_or("no_identity")?;
        let mut out = Vec::with_capacity(512 + event.json.len() / 2);
        let mut message = Object::open(&mut out);
        message.text("type", kind);
        if kind == "track" {
            message.text("event", event.kind.as_str());
        }
        message.text("messageId", &self.message_id(event));
        if let Some(user) = user {
            message.token("userId", &as_string(user));
        }
        if let Some(anonymous) = anonymous {
            message.token("anonymousId", &as_string(anonymous));
        }
        if event.kind == Kind::Alias {
            let previous = fields.any("previousKey").and_then(key).ok_or("no_identity")?;
            message.token("previousId", &as_string(previous));
        }
        message.object("integrations").close();
        let created = fields.created_ms().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        if let Some(created) = created {
            message.text("timestamp", &date(created));
        }
        if event.kind == Kind::Alias {
            message.text("project", event.project_id);
            message.text("environment", event.environment_id);
        } else {
            let mut properties = message.object("properties");
            self.properties(&mut properties, event, &fields, &subject);
            properties.close();
        }
        message.close();
        Ok(out)
    }

    /// Returns the keys that are `userId` and `anonymousId`; `None` if there is neither.
    fn identity<'a>(&self, subject: &Subject<'a>) -> Option<(Option<&'a str>, Option<&'a str>)> {
        if let Subject::User(key) = subject {
            return Some((Some(*key), None));
        }
        let user = subject.key(&self.user_kind);
        let anonymous = self.anonymous_kind.as_deref().and_then(|kind| subject.key(kind));
        (user.is_some() || anonymous.is_some()).then_some((user, anonymous))
    }

    fn properties(&self, out: &mut Object<'_>, event: &ExportEvent<'_>, fields: &Fields<'_>, subject: &Subject<'_>) {
        out.text("project", event.project_id);
        out.text("environment", event.environment_id);
        out.text("eventId", event.id);
        if let Some(key) = fields.any("key") {
            out.token("key", &as_string(key));
        }
        out.token("version", if event.version >= 2 { "2" } else { "1" });
        if let Subject::Contexts(contexts) = subject {
            let mut keys = out.object("contextKeys");
            contexts
                .iter()
                .for_each(|context| keys.member(context.name, &as_string(context.value)));
            keys.close();
        }
        match event.kind {
            Kind::Feature => self.evaluation(out, fields),
            Kind::Click => copy(out, fields, Fields::string, &["url", "selector"]),
            Kind::Pageview => copy(out, fields, Fields::string, &["url"]),
            _ => copy(out, fields, Fields::number, &["metricValue"]),
        }
    }

    fn evaluation(&self, out: &mut Object<'_>, fields: &Fields<'_>) {
        self.value(out, "value", fields.any("value"));
        if let Some(version) = fields.number("version") {
            out.token("flagVersion", version);
        }
        match self.default_means {
            DefaultMeans::SdkValue => self.value(out, "default", fields.any("default")),
            DefaultMeans::FallbackUsed if fields.fell_back() => self.value(out, "default", Some("true")),
            DefaultMeans::FallbackUsed => self.value(out, "default", Some("false")),
        }
        if let Some(kind) = fields.reason_kind() {
            out.token("reasonKind", kind);
        }
        if fields.in_experiment() {
            out.token("inExperiment", "true");
        }
        copy(out, fields, Fields::string, &["prereqOf"]);
        copy(out, fields, Fields::number, &["variation"]);
        copy(out, fields, Fields::string, &["variationName"]);
    }

    fn value(&self, out: &mut Object<'_>, name: &str, token: Option<&str>) {
        match (token, self.values) {
            (None, _) => {}
            (Some(token), Values::Json) => out.token(name, token),
            (Some(token), Values::Text) => out.token(name, &as_string(token)),
        }
    }

    /// Segment drops a message whose id it has seen, in whatever source or workspace: the environment and the source are
    /// in it, so that two sources can have the same events.
    fn message_id(&self, event: &ExportEvent<'_>) -> String {
        let hashed;
        let environment = match event.environment_id {
            id if id.len() <= MOST_ENVIRONMENT_BYTES => id,
            id => {
                hashed = short_hash(id);
                &hashed
            }
        };
        format!("{environment}-{}-{}", event.id, self.source)
    }
}

fn copy<'a>(out: &mut Object<'_>, fields: &Fields<'a>, read: fn(&Fields<'a>, &str) -> Option<&'a str>, names: &[&str]) {
    for name in names {
        if let Some(token) = read(fields, name) {
            out.token(name, token);
        }
    }
}

// 48 bits of a secret's hash tell sources apart, and nobody finds a key of 190 bits by them.
fn short_hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes())[..6])
}
