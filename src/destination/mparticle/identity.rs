//! Whose batch an event goes into, and how the settings say so.
//!
//! Owns LaunchDarkly's three settings of it: `user_identity`, `anonymous_user_identity` and `user_identities`, which can be a
//! list or its JSON as text. Promises that no two keys get the same identity, of which mParticle would keep one.

use serde_json::Value;

use crate::export::fields::Fields;
use crate::export::json::{Object, as_string};
use crate::section::{Leaf, Section};

crate::choices! {
    /// What mParticle knows a user by (Events API v2, `user_identities`).
    pub enum Identity {
        /// The customer's own id.
        CustomerId = "customer_id",
        /// Any other id of the customer's.
        Other = "other",
        /// A further one.
        OtherId2 = "other_id_2",
        /// A further one.
        OtherId3 = "other_id_3",
        /// A further one.
        OtherId4 = "other_id_4",
        /// A further one.
        OtherId5 = "other_id_5",
        /// A further one.
        OtherId6 = "other_id_6",
        /// A further one.
        OtherId7 = "other_id_7",
        /// A further one.
        OtherId8 = "other_id_8",
        /// A further one.
        OtherId9 = "other_id_9",
        /// A further one.
        OtherId10 = "other_id_10",
        /// An email address.
        Email = "email",
        /// Facebook's id.
        Facebook = "facebook",
        /// Facebook's id of a custom audience.
        FacebookCustomAudienceId = "facebook_custom_audience_id",
        /// Twitter's id.
        Twitter = "twitter",
        /// Google's id.
        Google = "google",
        /// Microsoft's id.
        Microsoft = "microsoft",
        /// Yahoo's id.
        Yahoo = "yahoo",
        /// An alias.
        Alias = "alias",
        /// A telephone number.
        MobileNumber = "mobile_number",
        /// A further one.
        PhoneNumber2 = "phone_number_2",
        /// A further one.
        PhoneNumber3 = "phone_number_3",
    }
}

/// Which keys become which identities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// Kinds of context with the identity that their keys are, in the order of the batch. A user is of kind `user`.
    pub kinds: Vec<(String, Identity)>,
    /// In place of the identity of kind `user` where the event says that this user is anonymous.
    pub anonymous: Option<Identity>,
}

/// `user_identities` as Terraform has it: the list as text, JSON.
struct Pairs(Vec<(String, Identity)>);

impl Leaf for Pairs {
    fn expected() -> String {
        r#"a list of pairs, or its JSON such as [{"ldContextKind":"user","mparticleUserIdentity":"customer_id"}]"#
            .to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let list: Vec<Value> = serde_json::from_str(text).map_err(|_| "is not the JSON of a list".to_owned())?;
        list.iter().map(pair).collect::<Result<_, _>>().map(Self)
    }

    fn show(&self) -> String {
        let pairs = self.0.iter().map(|(kind, identity)| {
            serde_json::json!({ "ldContextKind": kind, "mparticleUserIdentity": identity.as_str() }).to_string()
        });
        format!("[{}]", pairs.collect::<Vec<_>>().join(","))
    }
}

fn pair(item: &Value) -> Result<(String, Identity), String> {
    let members = item.as_object().ok_or("has an item that is no object")?;
    let text = |camel: &str, snake: &str| {
        let value = members
            .get(camel)
            .or_else(|| members.get(snake))
            .and_then(Value::as_str);
        let value = value.filter(|value| !value.is_empty());
        value.ok_or(format!("has an item without `{camel}`"))
    };
    if members.len() > 2 {
        return Err("has an item with more than `ldContextKind` and `mparticleUserIdentity`".to_owned());
    }
    let kind = text("ldContextKind", "ld_context_kind")?.to_owned();
    let identity = Identity::parse(text("mparticleUserIdentity", "mparticle_user_identity")?)
        .map_err(|_| "has an item whose `mparticleUserIdentity` mParticle does not know".to_owned())?;
    Ok((kind, identity))
}

/// Reads `user_identity`, `anonymous_user_identity` and `user_identities`.
pub(super) fn read(section: &mut Section<'_>) -> Option<Identities> {
    let user: Option<Identity> = section.optional("user_identity");
    let anonymous = section.optional("anonymous_user_identity");
    let listed = if section.is_scalar("user_identities") {
        section.optional::<Pairs>("user_identities").map(|pairs| pairs.0)
    } else {
        let pairs = section.sections("user_identities", |pair| {
            let kind: Option<String> = pair.required("ld_context_kind");
            kind.zip(pair.required("mparticle_user_identity"))
        });
        pairs.into_iter().collect()
    };
    let mut kinds = listed?;
    // A kind that is listed says more than `user_identity`, which means the kind `user`.
    if let Some(user) = user.filter(|_| !kinds.iter().any(|(kind, _)| kind == "user")) {
        kinds.insert(0, ("user".to_owned(), user));
    }
    if kinds.is_empty() {
        if !section.has("user_identity") {
            section.problem(
                None,
                "needs `user_identity` or `user_identities`: mParticle takes no event without a user",
            );
        }
        return None;
    }
    for (place, (kind, identity)) in kinds.iter().enumerate() {
        let (before, is_anonymous) = (&kinds[..place], anonymous == Some(*identity) && kind != "user");
        if is_anonymous || before.iter().any(|other| other.0 == *kind || other.1 == *identity) {
            let message = "gives one identity to two kinds, or two to one; mParticle has room for one key in each";
            section.problem(Some("user_identities"), message);
            return None;
        }
    }
    if anonymous.is_some() && !kinds.iter().any(|(kind, _)| kind == "user") {
        section.problem(
            Some("anonymous_user_identity"),
            "means nothing without an identity for users",
        );
    }
    Some(Identities { kinds, anonymous })
}

impl Identities {
    /// Returns the `user_identities` of an event's batch; `None` if the event has none of the kinds.
    pub(super) fn of(&self, fields: &Fields<'_>) -> Option<String> {
        let subject = fields.subject();
        let mut out = Vec::with_capacity(64);
        let mut found = false;
        let mut object = Object::open(&mut out);
        for (kind, identity) in &self.kinds {
            let Some(key) = subject.key(kind) else { continue };
            let anonymous = self.anonymous.filter(|_| kind == "user" && fields.user_is_anonymous());
            object.token(anonymous.unwrap_or(*identity).as_str(), &as_string(key));
            found = true;
        }
        object.close();
        String::from_utf8(out).ok().filter(|_| found)
    }
}
