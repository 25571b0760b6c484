//! TLS on both sides of the relay: certificates made on the spot, clients, and upstreams.
//!
//! The clients block like the rest of the harness. The upstreams need HTTP/2 and many sockets at a time, so each runs
//! on a runtime of its own that ends with it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream as AsyncTcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::raw::{Connection, dial};
use super::upstream::DATE;

/// A certificate authority of one test.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, PEM.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// A connection to the relay over TLS.
pub(crate) type TlsConnection = Connection<StreamOwned<ClientConnection, TcpStream>>;

impl Authority {
    /// Makes an authority that nothing trusts yet.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Returns its certificate, PEM.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate for a host name or an IP address.
    pub(crate) fn issue(&self, name: &str) -> Identity {
        self.sign(CertificateParams::new([name.to_owned()]).unwrap())
    }

    /// Issues a certificate that ends in so many days, on the day.
    pub(crate) fn issue_for_days(&self, name: &str, days: i64) -> Identity {
        self.issue_for_all(&[name], days)
    }

    /// The same for several names.
    pub(crate) fn issue_for_all(&self, names: &[&str], days: i64) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let end = jiff::Zoned::now().checked_add(jiff::Span::new().days(days)).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(end.year().into(), end.month().unsigned_abs(), end.day().unsigned_abs());
        self.sign(params)
    }

    /// Issues a certificate whose time is over.
    pub(crate) fn issue_expired(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.sign(params)
    }

    /// Returns a client that trusts this authority and has no certificate of its own.
    pub(crate) fn client(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider());
        let versions = builder.with_safe_default_protocol_versions().unwrap();
        versions.with_root_certificates(self.roots()).with_no_client_auth()
    }

    /// Returns a client that trusts this authority and presents `identity`.
    pub(crate) fn client_with(&self, identity: &Identity) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider());
        let versions = builder.with_safe_default_protocol_versions().unwrap();
        let trusting = versions.with_root_certificates(self.roots());
        trusting
            .with_client_auth_cert(vec![identity.der()], identity.key_der())
            .unwrap()
    }

    fn sign(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        Identity {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }
}

impl Identity {
    /// Writes `tls.crt` and `tls.key` into a folder, named as in a Kubernetes Secret.
    pub(crate) fn write(&self, folder: &Path) {
        std::fs::write(folder.join("tls.crt"), &self.certificate).unwrap();
        std::fs::write(folder.join("tls.key"), &self.key).unwrap();
    }

    /// Returns the certificate as a peer shows it.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// Opens a connection and completes the client's part of the handshake. Under TLS 1.3 a refused client certificate
/// shows only at the next read.
pub(crate) fn connect(address: SocketAddr, client: ClientConfig) -> io::Result<TlsConnection> {
    shake_hands(address, client).map(Connection::over)
}

/// Returns the certificate that a server shows.
pub(crate) fn shown_certificate(address: SocketAddr, client: ClientConfig) -> CertificateDer<'static> {
    let stream = shake_hands(address, client).unwrap_or_else(|error| panic!("no TLS with {address}: {error}"));
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

/// Opens a connection to a server that is called by `name`, trusting the authorities in a PEM bundle.
pub(crate) fn connect_as(address: SocketAddr, name: &str, bundle: &[u8]) -> io::Result<TlsConnection> {
    shake(
        address,
        ServerName::try_from(name.to_owned()).unwrap(),
        trusting(bundle),
    )
    .map(Connection::over)
}

fn trusting(bundle: &[u8]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(bundle) {
        roots.add(authority.unwrap()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(provider());
    let versions = builder.with_safe_default_protocol_versions().unwrap();
    versions.with_root_certificates(roots).with_no_client_auth()
}

fn shake_hands(address: SocketAddr, client: ClientConfig) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    shake(address, ServerName::from(address.ip()), client)
}

fn shake(
    address: SocketAddr,
    name: ServerName<'static>,
    client: ClientConfig,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut socket = dial(address)?;
    let mut connection = ClientConnection::new(Arc::new(client), name).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(connection, socket))
}

/// TLS in front of a plain HTTP/1.1 server, which sees the bytes as they were before encryption.
pub(crate) struct TlsFront {
    address: SocketAddr,
    refusals: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl TlsFront {
    /// Starts it with `identity` in front of `server`.
    pub(crate) fn start(identity: &Identity, server: SocketAddr) -> Self {
        let refusals = Arc::new(AtomicUsize::new(0));
        let counting = refusals.clone();
        let (address, runtime) = listen(identity, &[], move |accepted| {
            let counting = counting.clone();
            async move {
                match accepted {
                    Ok(mut inside) => {
                        let mut outside = AsyncTcpStream::connect(server).await.unwrap();
                        // Either side may break off; the server behind says whether that was expected.
                        let _ = copy_bidirectional(&mut inside, &mut outside).await;
                    }
                    Err(_) => drop(counting.fetch_add(1, Ordering::SeqCst)),
                }
            }
        });
        Self {
            address,
            refusals,
            _runtime: runtime,
        }
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many handshakes failed.
    pub(crate) fn refusals(&self) -> usize {
        self.refusals.load(Ordering::SeqCst)
    }
}

/// A request as it came over HTTP/2.
pub(crate) struct Http2Request {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A TLS server that prefers HTTP/2, accepts every request and keeps it.
pub(crate) struct Http2Upstream {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Http2Request>>>,
    _runtime: Runtime,
}

impl Http2Upstream {
    /// Starts it with `identity`.
    pub(crate) fn start(identity: &Identity) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let keeping = received.clone();
        let (address, runtime) = listen(identity, &[b"h2", b"http/1.1"], move |accepted| {
            let keeping = keeping.clone();
            async move {
                let stream = accepted.unwrap();
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                let service = service_fn(move |request| keep(request, keeping.clone()));
                let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                // Ends with the relay.
                let _ = serving.await;
            }
        });
        Self {
            address,
            received,
            _runtime: runtime,
        }
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns and forgets the requests that came so far.
    pub(crate) fn take(&self) -> Vec<Http2Request> {
        std::mem::take(&mut self.received.lock().unwrap())
    }
}

async fn keep(
    request: Request<Incoming>,
    received: Arc<Mutex<Vec<Http2Request>>>,
) -> Result<Response<Empty<Bytes>>, hyper::Error> {
    assert_eq!(request.version(), Version::HTTP_2);
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    received.lock().unwrap().push(Http2Request {
        uri: parts.uri,
        headers: parts.headers,
        body,
    });
    let mut answer = Response::new(Empty::new());
    *answer.status_mut() = StatusCode::ACCEPTED;
    answer.headers_mut().insert("date", DATE.parse().unwrap());
    Ok(answer)
}

/// Accepts TLS connections on a free port and hands each to `serve`, handshakes that failed too.
fn listen<F, Serving>(identity: &Identity, protocols: &[&[u8]], serve: F) -> (SocketAddr, Runtime)
where
    F: Fn(io::Result<TlsStream<AsyncTcpStream>>) -> Serving + Clone + Send + Sync + 'static,
    Serving: Future<Output = ()> + Send + 'static,
{
    let builder = ServerConfig::builder_with_provider(provider());
    let versions = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = versions
        .with_no_client_auth()
        .with_single_cert(vec![identity.der()], identity.key_der())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let local = SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
    let listener = runtime.block_on(TcpListener::bind(local)).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            tokio::spawn(async move { serve(acceptor.accept(stream).await).await });
        }
    });
    (address, runtime)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
