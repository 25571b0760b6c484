//! The settings of the export record, which all destinations that receive it share, and the record they describe.
//!
//! Where LaunchDarkly's documentation and samples disagree about the record, the default is what its SDKs send and the
//! other reading is a setting here. `docs/destinations/records.md` shows the records. Whatever is rewritten, the bytes of
//! every value are the SDK's; only what moves from one member to another is put together anew. With the defaults nothing
//! is parsed that [`envelope::render`] does not parse anyway.

use std::borrow::Cow;

use crate::event::Kind;
use crate::export::{ExportEvent, Member, Members, envelope};
use crate::section::Section;

#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;
mod to_contexts;
mod to_users;

crate::choices! {
    /// Which generation of the export schema a record has.
    pub enum Schema {
        /// That of the SDK which sent the event: 1 for users, 2 for contexts.
        Auto = "auto",
        /// 1 for all: an event about contexts becomes one about its `user`.
        One = "1",
        /// 2 for all: an event about a user becomes one about a context of kind `user`.
        Two = "2",
    }
}

crate::choices! {
    /// What `default` says in evaluations.
    pub enum DefaultMeans {
        /// The fallback value that the application passed, which is what SDKs send.
        SdkValue = "sdk_value",
        /// `true` where that value was used because the evaluation gave none, and absent otherwise, which is how
        /// LaunchDarkly's schema reference describes the field.
        FallbackUsed = "fallback_used",
    }
}

crate::choices! {
    /// How a record of version 1 names the user of `custom`, `click` and `pageview`.
    pub enum LegacyUser {
        /// As the SDK did: most send `userKey`.
        AsSent = "as_sent",
        /// As `"user":{"key":…}`, which is how LaunchDarkly's schema reference shows these kinds.
        Object = "object",
    }
}

/// How records are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The schema's generation.
    pub schema: Schema,
    /// What `default` says.
    pub default_means: DefaultMeans,
    /// How the user of an action is named in version 1.
    pub legacy_user: LegacyUser,
}

impl Default for Form {
    fn default() -> Self {
        Self {
            schema: Schema::Auto,
            default_means: DefaultMeans::SdkValue,
            legacy_user: LegacyUser::AsSent,
        }
    }
}

impl Form {
    /// Reads the keys of a destination that receives export records.
    pub fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            schema: section.or("schema", default.schema),
            default_means: section.or("default_means", default.default_means),
            legacy_user: section.or("legacy_user", default.legacy_user),
        }
    }

    /// Returns the export record of an event: one JSON object, no newline. The error is why the event has none in this
    /// form, a value of the metric label `reason`.
    pub fn render(&self, event: &ExportEvent<'_>) -> Result<Vec<u8>, &'static str> {
        let version = match self.schema {
            Schema::Auto => event.version,
            Schema::One => 1,
            Schema::Two => 2,
        };
        let boolean_default =
            self.default_means == DefaultMeans::FallbackUsed && matches!(event.kind, Kind::Feature | Kind::Debug);
        let user_object = self.legacy_user == LegacyUser::Object
            && version == 1
            && matches!(event.kind, Kind::Custom | Kind::Click | Kind::Pageview);
        if self.schema == Schema::Auto && !boolean_default && !user_object {
            return Ok(envelope::render(event));
        }
        // A decoded event is always a JSON object; anything else is enveloped as it is.
        let Some(members) = std::str::from_utf8(event.json).ok().and_then(Members::of) else {
            return Ok(envelope::render(event));
        };
        let mut edited = match self.schema {
            Schema::Auto => None,
            Schema::One => to_users::convert(event.kind, event.version, &members)?,
            Schema::Two => to_contexts::convert(event.kind, &members)?,
        };
        if boolean_default {
            edited.get_or_insert_with(|| Object::of(&members)).say_if_default();
        }
        if user_object {
            edited.get_or_insert_with(|| Object::of(&members)).name_user();
        }
        let json = edited.map(|object| object.text());
        let json = json.as_ref().map_or(event.json, |text| text.as_bytes());
        Ok(envelope::render(&ExportEvent {
            version,
            json,
            ..*event
        }))
    }
}

/// A JSON object that is being put together from members as they were written, and some new ones.
#[derive(Debug, Default)]
struct Object<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Object<'a> {
    fn of(members: &Members<'a>) -> Self {
        let mut object = Self::default();
        members.iter().for_each(|member| object.copy(member));
        object
    }

    /// Adds a member as it was written.
    fn copy(&mut self, member: &Member<'a>) {
        self.0.push((member.name.into(), member.value.into()));
    }

    /// Adds a member; `name` is its JSON text, quotes included.
    fn push(&mut self, name: &'static str, value: impl Into<Cow<'a, str>>) {
        self.0.push((name.into(), value.into()));
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn text(&self) -> String {
        let size: usize = self.0.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        let mut text = String::with_capacity(size + 2);
        text.push('{');
        for (place, (name, value)) in self.0.iter().enumerate() {
            if place > 0 {
                text.push(',');
            }
            text.push_str(name);
            text.push(':');
            text.push_str(value);
        }
        text.push('}');
        text
    }

    /// Returns a member's value unless it is null; of duplicates the last counts.
    fn get(&self, name: &str) -> Option<&str> {
        let found = self
            .0
            .iter()
            .rfind(|(text, value)| Member { name: text, value }.is(name));
        found.map(|(_, value)| value.as_ref()).filter(|value| *value != "null")
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(text, value)| !Member { name: text, value }.is(name));
    }

    /// Makes of `default` what LaunchDarkly's schema reference says it is: `true` if the evaluation gave no value.
    fn say_if_default(&mut self) {
        let reason = self.get("reason").and_then(Members::of);
        let is_error = reason.is_some_and(|reason| reason.get("kind") == Some("\"ERROR\""));
        let used = is_error || self.get("variation").is_none();
        self.remove("default");
        if used {
            self.push("\"default\"", "true");
        }
    }

    /// Makes `"user":{"key":…}` of `userKey`, unless there is a `user`.
    fn name_user(&mut self) {
        let Some(key) = self.get("userKey").filter(|_| self.get("user").is_none()) else {
            return;
        };
        let user = format!("{{\"key\":{key}}}");
        self.remove("userKey");
        self.remove("user");
        self.push("\"user\"", user);
    }
}

/// Returns a member's value unless it is null or missing.
fn given<'a>(members: &Members<'a>, name: &str) -> Option<&'a str> {
    members.get(name).filter(|value| *value != "null")
}
