//! Whose request it is: the configured credentials and how a request presents one.
//!
//! Keys are kept as SHA-256 digests, so nothing here can print one, and comparing takes as long whatever matches.
//! How a key is sent is ld-relay's parsing rule: bare, or behind `api_key ` (iOS, old Android and C SDKs).

use std::collections::HashMap;
use std::fmt;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

use crate::platform::{EventRoute, Identity};

/// The credentials of one configured environment.
#[derive(Clone)]
pub struct EnvironmentCredentials {
    name: String,
    keys: Vec<[u8; 32]>,
    client_side_ids: Vec<String>,
}

impl EnvironmentCredentials {
    /// Returns the environment of this name without credentials.
    ///
    /// An environment that stays so and is the only one takes whatever the upstream accepts.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            keys: Vec::new(),
            client_side_ids: Vec::new(),
        }
    }

    /// Adds an SDK key or a mobile key. Both come in `Authorization`, on any route; only its digest is kept.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        self.keys.push(digest(key));
        self
    }

    /// Adds a client-side id: comes in the path, or from edge SDKs in `Authorization`.
    #[must_use]
    pub fn with_client_side_id(mut self, id: impl Into<String>) -> Self {
        self.client_side_ids.push(id.into());
        self
    }
}

impl fmt::Debug for EnvironmentCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvironmentCredentials")
            .field("name", &self.name)
            .field("keys", &self.keys.len())
            .field("client_side_ids", &self.client_side_ids)
            .finish()
    }
}

/// All configured credentials, by what a request presents.
pub(super) struct Keyring {
    names: Vec<String>,
    keys: HashMap<[u8; 32], usize>,
    client_side_ids: HashMap<String, usize>,
    lone: bool,
}

impl Keyring {
    /// Returns the keyring of these environments. A credential that several have belongs to the first.
    pub(super) fn new(environments: Vec<EnvironmentCredentials>) -> Self {
        let mut keyring = Self {
            names: Vec::with_capacity(environments.len()),
            keys: HashMap::new(),
            client_side_ids: HashMap::new(),
            lone: false,
        };
        for (index, environment) in environments.into_iter().enumerate() {
            keyring.names.push(environment.name);
            for key in environment.keys {
                keyring.keys.entry(key).or_insert(index);
            }
            for id in environment.client_side_ids {
                keyring.client_side_ids.entry(id).or_insert(index);
            }
        }
        keyring.lone = keyring.names.len() == 1 && keyring.keys.is_empty() && keyring.client_side_ids.is_empty();
        keyring
    }

    /// Returns the name of the environment with this index; empty if there is none.
    pub(super) fn name(&self, environment: usize) -> &str {
        self.names.get(environment).map_or("", String::as_str)
    }

    /// Returns whose request it is.
    ///
    /// A client-side id in the path decides alone, as it does upstream: Vercel's SDK sends it in both places, browsers
    /// in the path only.
    pub(super) fn identify(&self, route: &EventRoute, headers: &HeaderMap) -> Identity {
        if self.lone {
            return Identity::Lone(0);
        }
        let environment = match &route.client_side_id {
            Some(id) => self.client_side_ids.get(id),
            None => authorization(headers)
                .and_then(|key| self.keys.get(&digest(key)).or_else(|| self.client_side_ids.get(key))),
        };
        environment.map_or(Identity::Unknown, |index| Identity::Known(*index))
    }
}

/// Returns the credential that a request presents; empty if it has none or none that can be read.
pub(super) fn presented<'a>(route: &'a EventRoute, headers: &'a HeaderMap) -> &'a str {
    match &route.client_side_id {
        Some(id) => id,
        None => authorization(headers).unwrap_or_default(),
    }
}

fn authorization(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    // Of several the upstream may take another than this would.
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let value = value.to_str().ok()?.trim();
    let key = value.strip_prefix("api_key ").unwrap_or(value).trim();
    (!key.is_empty() && !key.contains(' ')).then_some(key)
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::platform::Carrier;

    const SDK_KEY: &str = "sdk-6a0b1f2e-3c4d-4e5f-8a9b-0c1d2e3f4a5b";

    fn keyring() -> Keyring {
        Keyring::new(vec![
            EnvironmentCredentials::new("production")
                .with_key(SDK_KEY)
                .with_key("mob-1")
                .with_client_side_id("578d1e02d2943862c52b9686"),
            EnvironmentCredentials::new("test").with_key("sdk-2"),
        ])
    }

    fn route(client_side_id: Option<&str>) -> EventRoute {
        EventRoute {
            template: "/bulk",
            carrier: Carrier::Body,
            client_side_id: client_side_id.map(str::to_owned),
        }
    }

    fn headers(authorization: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn knows_keys_in_every_form_that_sdks_send() {
        for (value, environment) in [
            (SDK_KEY, 0),
            ("mob-1", 0),
            ("api_key mob-1", 0),
            ("api_key  mob-1", 0),
            (" mob-1 ", 0),
            ("sdk-2", 1),
            ("578d1e02d2943862c52b9686", 0),
        ] {
            let identity = keyring().identify(&route(None), &headers(&[value.as_bytes()]));
            assert_eq!(identity, Identity::Known(environment), "{value}");
        }
    }

    #[test]
    fn a_client_side_id_in_the_path_decides_alone() {
        let keyring = keyring();
        let known = route(Some("578d1e02d2943862c52b9686"));
        assert_eq!(keyring.identify(&known, &headers(&[])), Identity::Known(0));
        assert_eq!(keyring.identify(&known, &headers(&[b"sdk-2"])), Identity::Known(0));
        let unknown = route(Some("0a8a7c4d049f77d84df36cdd"));
        assert_eq!(keyring.identify(&unknown, &headers(&[b"sdk-2"])), Identity::Unknown);
    }

    #[test]
    fn takes_nothing_else_for_a_credential() {
        for values in [
            &[][..],
            &[&b""[..]],
            &[b"api_key "],
            &[b"SDK-2"],
            &[b"sdk-2 x"],
            &[b"Bearer sdk-2"],
            &[b"n/a"],
            &[b"sdk-2\xff"],
            &[b"sdk-2", b"sdk-2"],
        ] {
            assert_eq!(
                keyring().identify(&route(None), &headers(values)),
                Identity::Unknown,
                "{values:?}"
            );
        }
    }

    #[test]
    fn a_lone_environment_without_credentials_takes_anything() {
        let lone = Keyring::new(vec![EnvironmentCredentials::new("default")]);
        assert_eq!(lone.identify(&route(None), &headers(&[])), Identity::Lone(0));
        assert_eq!(lone.identify(&route(Some("x")), &headers(&[b"y"])), Identity::Lone(0));
        let two = Keyring::new(vec![EnvironmentCredentials::new("a"), EnvironmentCredentials::new("b")]);
        assert_eq!(two.identify(&route(None), &headers(&[b"y"])), Identity::Unknown);
    }

    #[test]
    fn prints_no_key() {
        let text = format!("{:?}", EnvironmentCredentials::new("production").with_key(SDK_KEY));
        assert!(text.contains("production") && !text.contains("6a0b"), "{text}");
    }
}
