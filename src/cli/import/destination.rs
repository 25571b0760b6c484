//! A destination of LaunchDarkly's Data Export as one of flagtap's.

use serde_json::Value;

use super::Destination;
use super::text::quoted;
use crate::destination::{ALIASES, KINDS};

/// What is written for a setting of LaunchDarkly's.
enum Write {
    /// Its text.
    Text,
    /// Its text, if there is one.
    TextIfAny,
    /// A variable, whatever it holds; with where its value is to be had.
    Secret(&'static str),
    /// mParticle's pairs of context kind and identity, a list or a list's JSON.
    Identities,
}

use Write::{Identities, Secret, Text, TextIfAny};

/// The settings of each kind that LaunchDarkly has and flagtap knows.
const SETTINGS: &[(&str, &[(&str, Write)])] = &[
    (
        "kinesis",
        &[("region", Text), ("stream_name", Text), ("role_arn", TextIfAny)],
    ),
    ("google_pubsub", &[("project", Text), ("topic", Text)]),
    (
        "segment",
        &[
            (
                "write_key",
                Secret("Segment: the source's settings, API Keys, Write Key"),
            ),
            ("user_id_context_kind", TextIfAny),
            ("anonymous_id_context_kind", TextIfAny),
        ],
    ),
    (
        "mparticle",
        &[
            ("api_key", Secret("mParticle: Setup, Inputs, the feed's key")),
            ("secret", Secret("mParticle: Setup, Inputs, the feed's secret")),
            ("environment", Text),
            ("user_identity", TextIfAny),
            ("anonymous_user_identity", TextIfAny),
            ("user_identities", Identities),
        ],
    ),
    (
        "azure_event_hubs",
        &[
            ("namespace", Text),
            ("name", Text),
            ("policy_name", Text),
            (
                "policy_key",
                Secret("Azure: the event hub's Shared access policies, Primary key"),
            ),
        ],
    ),
];

/// Returns flagtap's kind for one of LaunchDarkly's, the settings as YAML lines; the error is why there are none. `variable`
/// makes a variable for a setting and is told where its value is to be had.
pub(super) fn settings(
    destination: &Destination,
    variable: &mut dyn FnMut(&str, &str) -> String,
) -> Result<(&'static str, Vec<String>), String> {
    let called = destination.kind.as_str();
    let kind = ALIASES
        .iter()
        .find(|(alias, _)| *alias == called)
        .map_or(called, |(_, kind)| *kind);
    let known = SETTINGS
        .iter()
        .find(|(known, _)| *known == kind && KINDS.contains(known));
    let Some((kind, settings)) = known else {
        return Err(format!("flagtap has no destination of the kind {called}"));
    };
    let mut lines = Vec::new();
    for (name, write) in *settings {
        let given = given(destination, name);
        match write {
            Text => lines.push(format!(
                "{name}: {}",
                quoted(&given.ok_or(format!("it has no {name}"))?)
            )),
            TextIfAny => lines.extend(given.map(|text| format!("{name}: {}", quoted(&text)))),
            Secret(place) => lines.push(format!("{name}: \"${{{}}}\"", variable(name, place))),
            Identities => lines.extend(identities(destination)?.map(|pairs| format!("{name}: {pairs}"))),
        }
    }
    Ok((*kind, lines))
}

fn given(destination: &Destination, name: &str) -> Option<String> {
    match member(destination, name)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Returns a setting, in the words of the API (`streamName`) or of the Terraform provider (`stream_name`).
fn member<'a>(destination: &'a Destination, name: &str) -> Option<&'a Value> {
    let letters = |text: &str| text.replace('_', "").to_ascii_lowercase();
    let mut members = destination.config.iter();
    members
        .find(|(spelled, _)| letters(spelled) == letters(name))
        .map(|(_, value)| value)
}

fn identities(destination: &Destination) -> Result<Option<String>, String> {
    let pairs: Vec<Value> = match member(destination, "user_identities") {
        Some(Value::Array(pairs)) => pairs.clone(),
        Some(Value::String(json)) if !json.is_empty() => {
            serde_json::from_str(json).map_err(|_| "its user_identities are not JSON".to_owned())?
        }
        _ => return Ok(None),
    };
    let pair = |pair: &Value| {
        let of = |name: &str| pair[name].as_str().map(quoted);
        let (kind, identity) = (of("ldContextKind")?, of("mparticleUserIdentity")?);
        Some(format!(
            "{{ ld_context_kind: {kind}, mparticle_user_identity: {identity} }}"
        ))
    };
    let pairs: Option<Vec<String>> = pairs.iter().map(pair).collect();
    let pairs = pairs.ok_or("its user_identities are not pairs of a context kind and an identity")?;
    Ok((!pairs.is_empty()).then(|| format!("[{}]", pairs.join(", "))))
}
