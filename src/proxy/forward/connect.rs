//! Connections to the upstream: TCP, an egress proxy if the environment names one, TLS.
//!
//! TLS is always verified, with the roots of [`trust`] and an extra CA file if configured. There is no switch to turn
//! it off.
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` mean what they mean to curl.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tower::timeout::Timeout;
use tower::{BoxError, Service};

use crate::trust;

/// Why the upstream's connector could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// The extra CA file cannot be used.
    #[error("cannot read CA certificates from {path}")]
    CaFile {
        /// `upstream.ca_file`.
        path: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An egress proxy reached over anything but plain HTTP.
    #[error("egress proxy for {upstream} has scheme {scheme}; only http:// proxies are supported")]
    ProxyScheme {
        /// The upstream's host.
        upstream: String,
        /// The proxy's scheme.
        scheme: String,
    },
    /// The TLS library refused its own defaults.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// The upstream's connector: the whole way (TCP, tunnel, TLS handshake) within one timeout.
#[derive(Clone)]
pub struct Connector {
    connecting: Timeout<HttpsConnector<Dial>>,
    forwards: bool,
    proxy_authorization: Option<HeaderValue>,
}

impl Connector {
    /// Returns true if an egress proxy reads the requests and answers in the upstream's place where it refuses one.
    pub fn forwards(&self) -> bool {
        self.forwards
    }

    /// Returns what the egress proxy wants to see on every request; a tunnel's is on its `CONNECT` alone.
    pub fn proxy_authorization(&self) -> Option<&HeaderValue> {
        self.proxy_authorization.as_ref()
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<Socket>;
    type Error = BoxError;
    // The pool wants a future that can be moved, which the timeout's is not.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connecting.poll_ready(cx)
    }

    fn call(&mut self, upstream: Uri) -> Self::Future {
        Box::pin(self.connecting.call(upstream))
    }
}

/// Returns the connector for `upstream`.
pub fn connector(upstream: &Uri, timeout: Duration, ca_file: Option<&Path>) -> Result<Connector, ConnectorError> {
    let tls = trust::client(roots(ca_file)?)?;
    let dial = Dial::new(upstream, timeout, &Matcher::from_env())?;
    let forwards = matches!(dial.way, Way::Forward { .. });
    let proxy_authorization = match &dial.way {
        Way::Forward { authorization, .. } => authorization.clone(),
        Way::Direct | Way::Tunnel(_) => None,
    };
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(dial);
    Ok(Connector {
        connecting: Timeout::new(https, timeout),
        forwards,
        proxy_authorization,
    })
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, ConnectorError> {
    let mut roots = trust::roots();
    if let Some(path) = ca_file {
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| ConnectorError::CaFile {
            path: path.display().to_string(),
            source,
        };
        let mut any = false;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| fail(e.into()))? {
            roots
                .add(certificate.map_err(|e| fail(e.into()))?)
                .map_err(|e| fail(e.into()))?;
            any = true;
        }
        if !any {
            return Err(fail("the file holds no certificate".into()));
        }
    }
    Ok(roots)
}

/// How the upstream's address is reached.
#[derive(Clone)]
pub struct Dial {
    tcp: HttpConnector,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Direct,
    /// `CONNECT` through an egress proxy, for an HTTPS upstream.
    Tunnel(Tunnel<HttpConnector>),
    /// Absolute-form requests to an egress proxy, for a plain HTTP upstream.
    Forward {
        proxy: Uri,
        /// `Basic` credentials from the proxy's URL, for each request.
        authorization: Option<HeaderValue>,
    },
}

impl Dial {
    fn new(upstream: &Uri, timeout: Duration, proxies: &Matcher) -> Result<Self, ConnectorError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        tcp.set_connect_timeout(Some(timeout));
        let Some(proxy) = proxies.intercept(upstream) else {
            return Ok(Self { tcp, way: Way::Direct });
        };
        if proxy.uri().scheme_str() != Some("http") {
            return Err(ConnectorError::ProxyScheme {
                upstream: upstream.host().unwrap_or_default().to_owned(),
                scheme: proxy.uri().scheme_str().unwrap_or_default().to_owned(),
            });
        }
        let way = if upstream.scheme_str() == Some("https") {
            let tunnel = Tunnel::new(proxy.uri().clone(), tcp.clone());
            Way::Tunnel(match proxy.basic_auth() {
                Some(auth) => tunnel.with_auth(auth.clone()),
                None => tunnel,
            })
        } else {
            Way::Forward {
                proxy: proxy.uri().clone(),
                authorization: proxy.basic_auth().cloned(),
            }
        };
        // The proxy's address only: its URL may hold a password.
        tracing::info!(proxy = %proxy.uri().host().unwrap_or_default(), "reaching the upstream through an egress proxy");
        Ok(Self { tcp, way })
    }
}

impl Service<Uri> for Dial {
    type Response = Socket;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Socket, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, upstream: Uri) -> Self::Future {
        match &mut self.way {
            Way::Direct => {
                let dialing = self.tcp.call(upstream);
                Box::pin(async move { Ok(Socket::new(dialing.await?, false)) })
            }
            Way::Tunnel(tunnel) => {
                let dialing = tunnel.call(upstream);
                Box::pin(async move { Ok(Socket::new(dialing.await?, false)) })
            }
            Way::Forward { proxy, .. } => {
                let dialing = self.tcp.call(proxy.clone());
                Box::pin(async move { Ok(Socket::new(dialing.await?, true)) })
            }
        }
    }
}

/// How many answers came over a connection: tells a stale pooled connection from one that fails at first use.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<AtomicU32>);

impl Answers {
    /// Notes one answer.
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns true if the connection has answered before.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// A TCP connection that knows how often it was of use.
///
/// What is written to an upstream that has closed is thrown away without an error: it may have answered before it had
/// read the whole request (413), and hyper would not read on. The end of the connection shows when it is read.
pub struct Socket {
    stream: TokioIo<TcpStream>,
    answers: Answers,
    forwarded: bool,
}

impl Socket {
    fn new(stream: TokioIo<TcpStream>, forwarded: bool) -> Self {
        Self {
            stream,
            answers: Answers::default(),
            forwarded,
        }
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.forwarded).extra(self.answers.clone())
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream)
            .poll_write(cx, buf)
            .map(|written| unless_closed(written, buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream)
            .poll_flush(cx)
            .map(|flushed| unless_closed(flushed, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        Pin::new(&mut self.stream)
            .poll_write_vectored(cx, bufs)
            .map(|written| unless_closed(written, length))
    }
}

fn unless_closed<T>(outcome: io::Result<T>, otherwise: T) -> io::Result<T> {
    match outcome {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Ok(otherwise)
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(upstream: &'static str, proxies: &Matcher) -> Result<Way, ConnectorError> {
        Dial::new(&Uri::from_static(upstream), Duration::from_secs(1), proxies).map(|dial| dial.way)
    }

    #[test]
    fn egress_proxies_are_used_as_curl_would() {
        let proxies = Matcher::builder()
            .all("http://proxy.internal:3128")
            .no("plain.internal,.svc")
            .build();
        assert!(matches!(
            way("https://events.launchdarkly.com", &proxies),
            Ok(Way::Tunnel(_))
        ));
        assert!(matches!(
            way("http://events.example", &proxies),
            Ok(Way::Forward { .. })
        ));
        assert!(matches!(way("http://plain.internal", &proxies), Ok(Way::Direct)));
        assert!(matches!(way("https://relay.ns.svc", &proxies), Ok(Way::Direct)));
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_refused_at_start() {
        let proxies = Matcher::builder().all("socks5://proxy.internal:1080").build();
        assert!(matches!(
            way("https://events.launchdarkly.com", &proxies),
            Err(ConnectorError::ProxyScheme { .. })
        ));
    }

    #[test]
    fn an_empty_ca_file_is_refused_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = roots(Some(file.path())).unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    }
}
