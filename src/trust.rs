//! Whom flagtap trusts on the network.
//!
//! The roots are the system's (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured), or Mozilla's, which the binary holds,
//! where the system has none. Nothing in flagtap turns verification off.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// Returns the roots that servers' certificates are verified with.
pub fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (added, _ignored) = roots.add_parsable_certificates(native.certs);
    if added == 0 {
        tracing::warn!("no CA certificates found on this system, using the bundled ones");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Returns a TLS client that trusts `roots` and has no certificate of its own. Fails only if the library refuses its
/// own defaults.
pub fn client(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
