//! What the injector needs to know of a pod, out of the object that the API server sends.
//!
//! Only these fields are read; the rest of the pod is never copied, so that a hostile object costs little more memory than
//! its bytes. Field names are those of Kubernetes' `v1.Pod`. Every list may be missing or null.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The most containers that are looked at. A pod has a few; etcd would not take one with that many.
const MOST_CONTAINERS: usize = 1000;

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
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(default, deserialize_with = "containers")]
    pub(super) containers: Vec<Container>,
    /// `None` where the list is missing or null: then it has to be made.
    #[serde(default, deserialize_with = "init_containers")]
    pub(super) init_containers: Option<Vec<Container>>,
    pub(super) volumes: Option<Vec<Named>>,
    pub(super) host_network: Option<bool>,
    pub(super) restart_policy: Option<String>,
    pub(super) os: Option<Named>,
    pub(super) node_selector: Option<BTreeMap<String, String>>,
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
    init_containers(deserializer).map(Option::unwrap_or_default)
}

fn init_containers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Container>>, D::Error> {
    deserializer.deserialize_option(Few)
}

/// Reads an optional list of containers, up to [`MOST_CONTAINERS`].
struct Few;

impl<'de> Visitor<'de> for Few {
    type Value = Option<Vec<Container>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MOST_CONTAINERS} containers")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut containers = Vec::new();
        while let Some(container) = list.next_element()? {
            if containers.len() == MOST_CONTAINERS {
                return Err(A::Error::invalid_length(MOST_CONTAINERS + 1, &self));
            }
            containers.push(container);
        }
        Ok(Some(containers))
    }
}
