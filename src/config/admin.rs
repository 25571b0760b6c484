//! The key `admin`: where people and their tools ask and decide.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::secret::Secret;
use crate::section::Section;

/// The admin port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// IP address and port.
    pub listen: SocketAddr,
    /// What callers have to know.
    pub token: Option<Secret>,
    /// Names under which it is reached, besides IP addresses and `localhost`.
    pub hosts: Vec<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8032),
            token: None,
            hosts: Vec::new(),
        }
    }
}

/// Reads `admin`: a mapping, or the bare word `off`.
pub(super) fn read(root: &mut Section<'_>) -> Option<Admin> {
    crate::choices! {
        enum Bare { Off = "off" }
    }
    if root.is_scalar("admin") {
        let bare: Option<Bare> = root.optional("admin");
        return bare.is_none().then(Admin::default);
    }
    Some(root.section("admin", read_mapping).unwrap_or_default())
}

fn read_mapping(section: &mut Section<'_>) -> Admin {
    let default = Admin::default();
    let admin = Admin {
        listen: section.or("listen", default.listen),
        token: section.secret("token"),
        hosts: section.list_or("hosts", default.hosts),
    };
    let is_given = section.has("token") || section.has("token_file");
    if !admin.listen.ip().is_loopback() && !is_given {
        section.problem(
            Some("listen"),
            "is not this machine alone, and whoever reaches it could read and discard events: give `token` or `token_file`",
        );
    }
    admin
}
