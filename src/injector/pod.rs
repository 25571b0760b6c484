//! What the injector needs to know of a pod, out of the object that the API server sends.
//!
//! Only these fields are read; the rest of the pod is never copied, so that a hostile object costs little more memory than
//! its bytes. Field names are those of Kubernetes' `v1.Pod`. Every list may be missing or null.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The most containers that are looked at, in each of the two lists. A pod has a few.
const MOST_CONTAINERS: usize = 128;
/// The most annotations, labels or words of a node selector that are looked at. Kubernetes takes 256 KiB of annotations.
const MOST_ENTRIES: usize = 2000;

/// A pod.
#[derive(Debug, Deserialize)]
pub(super) struct Pod {
    #[serde(default)]
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) generate_name: Option<String>,
    #[serde(default, deserialize_with = "optional::<Entries, _>")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "optional::<Entries, _>")]
    pub(super) labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(default, deserialize_with = "containers")]
    pub(super) containers: Vec<Container>,
    /// `None` where the list is missing or null: then it has to be made.
    #[serde(default, deserialize_with = "optional::<Containers, _>")]
    pub(super) init_containers: Option<Vec<Container>>,
    pub(super) volumes: Option<Vec<Named>>,
    pub(super) host_network: Option<bool>,
    pub(super) restart_policy: Option<String>,
    pub(super) os: Option<Named>,
    #[serde(default, deserialize_with = "optional::<Entries, _>")]
    pub(super) node_selector: Option<BTreeMap<String, String>>,
    /// What all containers together need and get, in Kubernetes that knows it.
    #[serde(default, deserialize_with = "optional::<Words, _>")]
    pub(super) resources: Option<bool>,
    pub(super) termination_grace_period_seconds: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) env: Option<Vec<Named>>,
    pub(super) ports: Option<Vec<Port>>,
}

/// Anything of which the name is enough.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    pub(super) name: String,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) container_port: u16,
    #[serde(default = "tcp")]
    pub(super) protocol: String,
}

impl Port {
    /// Returns a TCP port.
    pub(super) fn tcp(port: u16) -> Self {
        Self {
            container_port: port,
            protocol: tcp(),
        }
    }
}

fn tcp() -> String {
    "TCP".to_owned()
}

fn containers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Container>, D::Error> {
    optional::<Containers, D>(deserializer).map(Option::unwrap_or_default)
}

fn optional<'de, B: Bounded, D: Deserializer<'de>>(deserializer: D) -> Result<Option<B::Read>, D::Error> {
    deserializer.deserialize_option(Few::<B>(PhantomData))
}

/// A list or mapping that is read up to a bound.
trait Bounded {
    type Read;
    const WHAT: &'static str;

    fn list<'de, A: SeqAccess<'de>>(_list: A) -> Result<Self::Read, A::Error> {
        Err(A::Error::custom(Self::WHAT))
    }

    fn mapping<'de, A: MapAccess<'de>>(_mapping: A) -> Result<Self::Read, A::Error> {
        Err(A::Error::custom(Self::WHAT))
    }
}

/// Up to [`MOST_CONTAINERS`] containers.
struct Containers;

impl Bounded for Containers {
    type Read = Vec<Container>;
    const WHAT: &'static str = "a list of containers, not too long";

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self::Read, A::Error> {
        let mut containers = Vec::new();
        while let Some(container) = list.next_element()? {
            if containers.len() == MOST_CONTAINERS {
                return Err(A::Error::custom("too many containers"));
            }
            containers.push(container);
        }
        Ok(containers)
    }
}

/// Up to [`MOST_ENTRIES`] words by name.
struct Entries;

impl Bounded for Entries {
    type Read = BTreeMap<String, String>;
    const WHAT: &'static str = "a mapping of words, not too long";

    fn mapping<'de, A: MapAccess<'de>>(mut mapping: A) -> Result<Self::Read, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((name, value)) = mapping.next_entry()? {
            if entries.len() == MOST_ENTRIES {
                return Err(A::Error::custom("too many entries"));
            }
            entries.insert(name, value);
        }
        Ok(entries)
    }
}

/// A mapping of which only matters whether it says anything.
struct Words;

impl Bounded for Words {
    type Read = bool;
    const WHAT: &'static str = "a mapping";

    fn mapping<'de, A: MapAccess<'de>>(mut mapping: A) -> Result<Self::Read, A::Error> {
        let mut any = false;
        while mapping.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            any = true;
        }
        Ok(any)
    }
}

struct Few<B>(PhantomData<B>);

impl<'de, B: Bounded> Visitor<'de> for Few<B> {
    type Value = Option<B::Read>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(B::WHAT)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        B::list(list).map(Some)
    }

    fn visit_map<A: MapAccess<'de>>(self, mapping: A) -> Result<Self::Value, A::Error> {
        B::mapping(mapping).map(Some)
    }
}
