//! An event as mParticle's event.
//!
//! ```text
//! {"event_type":"custom_event","data":{"source_message_id":…,"event_name":"feature","custom_event_type":"other",
//!   "timestamp_unixtime_ms":…,"custom_attributes":{…}}}
//! {"event_type":"screen_view","data":{"source_message_id":…,"screen_name":…,"timestamp_unixtime_ms":…,
//!   "custom_attributes":{…}}}
//! ```
//!
//! The mapping is that of LaunchDarkly's own Data Export to mParticle (its mParticle page and schema reference). `feature`
//! and `custom` are of type `other`, `click` of type `navigation`, `pageview` is a screen view named by its URL without the
//! query. Nothing else is sent, and a `custom` event's `data` never. Every attribute is a string.

use std::borrow::Cow;

use super::NameCase;
use crate::event::Kind;
use crate::export::ExportEvent;
use crate::export::fields::Fields;
use crate::export::form::DefaultMeans;
use crate::export::json::{Object, as_string, cut};

/// UTF-16 code units in an attribute's value (mParticle: "Default Service Limits"); longer ones are dropped there.
const MOST_ATTRIBUTE_UNITS: usize = 4096;

/// Why an event becomes none of mParticle's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// Not for mParticle, for this value of the metric label `reason`.
    Skip(&'static str),
    /// mParticle would refuse it.
    Reject(&'static str),
}

/// Returns an event's text.
pub(super) fn render(
    event: &ExportEvent<'_>,
    fields: &Fields<'_>,
    case: NameCase,
    default_means: DefaultMeans,
) -> Result<Vec<u8>, Unfit> {
    let (name, custom_type) = match event.kind {
        Kind::Feature => (["feature", "Feature"], Some("other")),
        Kind::Custom => (["custom", "Custom"], Some("other")),
        Kind::Click => (["click", "Click"], Some("navigation")),
        Kind::Pageview => ([""; 2], None),
        _ => return Err(Unfit::Skip("kind_not_in_mparticle")),
    };
    let mut out = Vec::with_capacity(512 + event.json.len() / 2);
    let mut object = Object::open(&mut out);
    object.text(
        "event_type",
        if custom_type.is_some() {
            "custom_event"
        } else {
            "screen_view"
        },
    );
    let mut data = object.object("data");
    data.text("source_message_id", event.id);
    match custom_type {
        Some(custom_type) => {
            data.text("event_name", name[usize::from(case == NameCase::Capitalized)]);
            data.text("custom_event_type", custom_type);
        }
        None => {
            let url = fields.string("url").filter(|url| *url != "\"\"");
            let url = url.ok_or(Unfit::Reject("page view without a URL, which mParticle names it by"))?;
            data.token("screen_name", &without_query(url));
        }
    }
    if let Some(created) = fields.created_ms() {
        data.token("timestamp_unixtime_ms", &created.to_string());
    }
    let mut attributes = Attributes(data.object("custom_attributes"));
    attributes.0.text("project", event.project_id);
    attributes.0.text("environment", event.environment_id);
    attributes.0.text("version", if event.version >= 2 { "2" } else { "1" });
    attributes.add("key", fields.any("key"));
    match event.kind {
        Kind::Feature => attributes.evaluation(fields, default_means),
        Kind::Custom => attributes.add("metric_value", fields.number("metricValue")),
        kind => {
            attributes.add("url", fields.string("url"));
            attributes.add("selector", fields.string("selector").filter(|_| kind == Kind::Click));
        }
    }
    attributes.0.close();
    data.close();
    object.close();
    Ok(out)
}

struct Attributes<'o>(Object<'o>);

impl Attributes<'_> {
    fn add(&mut self, name: &str, token: Option<&str>) {
        if let Some(token) = token {
            self.0.token(name, &cut(&as_string(token), MOST_ATTRIBUTE_UNITS));
        }
    }

    fn evaluation(&mut self, fields: &Fields<'_>, default_means: DefaultMeans) {
        self.add("value", fields.any("value"));
        self.add("flag_version", fields.number("version"));
        match default_means {
            DefaultMeans::SdkValue => self.add("default", fields.any("default")),
            DefaultMeans::FallbackUsed if fields.fell_back() => self.add("default", Some("true")),
            DefaultMeans::FallbackUsed => self.add("default", Some("false")),
        }
        self.add("reason_kind", fields.reason_kind());
        self.add("prerequisite_of", fields.string("prereqOf"));
        self.add("variation_name", fields.string("variationName"));
    }
}

/// Returns a URL's token without its query. What stands behind `#` stays: it is no part of the query.
fn without_query(url: &str) -> Cow<'_, str> {
    let text: Cow<'_, str> = match serde_json::from_str::<String>(url) {
        Ok(text) => Cow::Owned(text),
        // Half a surrogate pair, which is no text: cut as it is written.
        Err(_) => Cow::Borrowed(url),
    };
    let query = text.find('?');
    let fragment = text.find('#');
    let Some(query) = query.filter(|query| fragment.is_none_or(|fragment| *query < fragment)) else {
        return Cow::Borrowed(url);
    };
    let rest = match (fragment, &text) {
        (Some(fragment), _) => &text[fragment..],
        (None, Cow::Borrowed(_)) => "\"",
        (None, Cow::Owned(_)) => "",
    };
    let kept = format!("{}{rest}", &text[..query]);
    match text {
        Cow::Borrowed(_) => Cow::Owned(kept),
        Cow::Owned(_) => Cow::Owned(serde_json::Value::String(kept).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_named_by_the_url_without_its_query() {
        for (url, name) in [
            (r#""https://a.example/x?q=1&s=2""#, r#""https://a.example/x""#),
            (r#""https://a.example/x?q=1#part""#, r#""https://a.example/x#part""#),
            (r#""https://a.example/x#part?q=1""#, r#""https://a.example/x#part?q=1""#),
            (r#""https://a.example/é\u00e9""#, r#""https://a.example/é\u00e9""#),
            (r#""https://a.example/\"\u003fq""#, r#""https://a.example/\"""#),
            (r#""https://a.example/\ud800?q""#, r#""https://a.example/\ud800""#),
            (r#""https://a.example/\ud800?q#f""#, r#""https://a.example/\ud800#f""#),
        ] {
            assert_eq!(without_query(url), name, "{url}");
        }
    }
}
