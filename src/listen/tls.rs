//! TLS towards the clients: certificate, optional client certificates, reload when a file changes.
//!
//! Files are compared by content at intervals: Kubernetes swaps a symlink two directories up, which file watchers and
//! modification times miss. A new set that does not load is reported and the old one stays.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where certificate, key and client CA are.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
    /// PEM; if given, clients must present a certificate that one of these signed.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot use TLS file {path}")]
pub struct TlsError {
    path: String,
    #[source]
    source: BoxError,
}

/// The current TLS settings, replaced as a whole when a file changes.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<(Vec<Vec<u8>>, Arc<ServerConfig>)>,
}

impl Tls {
    /// Loads the files.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = read(&files)?;
        let config = configure(&files, &contents)?;
        Ok(Self {
            files,
            current: RwLock::new((contents, Arc::new(config))),
        })
    }

    /// Takes a certificate chain and its key from memory, both PEM. There is nothing to watch then: whoever has newer ones
    /// calls [`Tls::replace`].
    pub fn from_memory(certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let files = TlsFiles {
            certificate: "tls.crt".into(),
            key: "tls.key".into(),
            client_ca: None,
        };
        let contents = vec![certificate.to_vec(), key.to_vec()];
        let config = configure(&files, &contents)?;
        Ok(Self {
            files,
            current: RwLock::new((contents, Arc::new(config))),
        })
    }

    /// Replaces the certificate chain and its key, both PEM; returns whether they were others. What cannot be used changes
    /// nothing.
    pub fn replace(&self, certificate: &[u8], key: &[u8]) -> Result<bool, TlsError> {
        self.take(vec![certificate.to_vec(), key.to_vec()])
    }

    /// Returns an acceptor with the current settings.
    pub fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&current.1))
    }

    /// Reloads if a file's content changed; returns whether it did.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        self.take(read(&self.files)?)
    }

    fn take(&self, contents: Vec<Vec<u8>>) -> Result<bool, TlsError> {
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == contents {
            return Ok(false);
        }
        let config = Arc::new(configure(&self.files, &contents)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (contents, config);
        Ok(true)
    }

    /// Looks for changed files every `interval` until `stop`.
    pub async fn watch(self: Arc<Self>, interval: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            let tls = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || tls.refresh()).await {
                Ok(Ok(true)) => tracing::info!("TLS certificate reloaded"),
                Ok(Ok(false)) => {}
                // The cause by itself: the JSON log prints an error without its sources.
                Ok(Err(error)) => tracing::warn!(
                    %error,
                    cause = %error.source,
                    "new TLS files are not usable, keeping the old ones"
                ),
                Err(_panicked) => tracing::warn!("reading the TLS files failed, keeping the old ones"),
            }
        }
    }
}

fn read(files: &TlsFiles) -> Result<Vec<Vec<u8>>, TlsError> {
    [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| std::fs::read(path).map_err(|error| fail(path, error)))
        .collect()
}

fn fail(path: &Path, source: impl Into<BoxError>) -> TlsError {
    TlsError {
        path: path.display().to_string(),
        source: source.into(),
    }
}

fn configure(files: &TlsFiles, contents: &[Vec<u8>]) -> Result<ServerConfig, TlsError> {
    let chain = certificates(&files.certificate, &contents[0])?;
    let key = PrivateKeyDer::from_pem_slice(&contents[1]).map_err(|error| fail(&files.key, error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(&files.certificate, error))?;
    let builder = match (&files.client_ca, contents.get(2)) {
        (Some(path), Some(pem)) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path, pem)? {
                roots.add(certificate).map_err(|error| fail(path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| fail(path, error))?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| fail(&files.certificate, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| fail(path, error))?;
    if found.is_empty() {
        return Err(fail(path, "the file holds no certificate"));
    }
    Ok(found)
}
