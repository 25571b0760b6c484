//! A Pub/Sub that answers as a test wants: `Publish` over gRPC, and what a probe asks over HTTP/1.1.
//!
//! gRPC is done by hand (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>), so that answers can also be
//! ones that no gRPC server gives. A call that no plan expects is answered UNIMPLEMENTED and fails the test when the
//! fake is dropped. Used by the unit tests too; blocks nobody, since it runs on a thread of its own.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsAcceptor;

/// `google.pubsub.v1.PublishRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PublishRequest {
    #[prost(string, tag = "1")]
    pub(crate) topic: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) messages: Vec<PubsubMessage>,
}

/// `google.pubsub.v1.PubsubMessage`, what a publisher sets of it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PubsubMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) data: Bytes,
    #[prost(map = "string, string", tag = "2")]
    pub(crate) attributes: HashMap<String, String>,
    #[prost(string, tag = "5")]
    pub(crate) ordering_key: String,
}

#[derive(Clone, PartialEq, Message)]
struct PublishResponse {
    #[prost(string, repeated, tag = "1")]
    message_ids: Vec<String>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// A publish as it came.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    pub(crate) request: PublishRequest,
    pub(crate) headers: HeaderMap,
}

/// What to do with one publish.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Every message gets an id.
    Taken,
    /// So many ids, whatever the number of messages.
    Ids(usize),
    /// Ids without a character.
    EmptyIds,
    /// A status.
    Error(i32, String),
    /// A status with one detail: the name of its type below `google.rpc`, and its bytes.
    Detailed(i32, &'static str, Vec<u8>),
    /// An HTTP answer that is not of gRPC.
    Http(u16, &'static str),
    /// A gRPC answer whose message is these bytes.
    Bytes(&'static [u8]),
    /// The stream is reset: the messages may be there, and nobody heard of it.
    Reset,
    /// Nothing, ever.
    Hang,
}

/// gRPC's status codes.
pub(crate) mod code {
    pub(crate) const INVALID_ARGUMENT: i32 = 3;
    pub(crate) const PERMISSION_DENIED: i32 = 7;
    pub(crate) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(crate) const UNIMPLEMENTED: i32 = 12;
    pub(crate) const UNAVAILABLE: i32 = 14;
}

type Reply = Response<BoxBody<Bytes, Infallible>>;
type Plan = Box<dyn FnMut(&Publish) -> Option<Answer> + Send>;
type RestPlan = Box<dyn FnMut(&str, &str) -> Option<(u16, String)> + Send>;

struct State {
    plan: Plan,
    rest: RestPlan,
    received: Vec<Publish>,
    unexpected: Vec<String>,
    connections: usize,
}

/// The fake service. Dropping it judges what it saw.
pub(crate) struct FakePubsub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    runtime: Option<Runtime>,
}

impl FakePubsub {
    /// Starts a service that answers each publish as `plan` says.
    pub(crate) fn planned(plan: impl FnMut(&Publish) -> Option<Answer> + Send + 'static) -> Self {
        Self::start(Box::new(plan), None, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts a service that gives these answers, one each.
    pub(crate) fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut answers: Vec<Answer> = answers.into_iter().collect();
        answers.reverse();
        Self::planned(move |_| answers.pop())
    }

    /// Starts it at an address, with TLS if `tls` is given.
    pub(crate) fn start(plan: Plan, tls: Option<ServerConfig>, address: SocketAddr) -> Self {
        let state = Arc::new(Mutex::new(State {
            plan,
            rest: Box::new(|_, _| None),
            received: Vec::new(),
            unexpected: Vec::new(),
            connections: 0,
        }));
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let std_listener = std::net::TcpListener::bind(address).unwrap();
        std_listener.set_nonblocking(true).unwrap();
        let address = std_listener.local_addr().unwrap();
        let acceptor = tls.map(|mut config| {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            TlsAcceptor::from(Arc::new(config))
        });
        let serving = state.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(std_listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serving.lock().unwrap().connections += 1;
                let (state, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, state).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, state).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            state,
            runtime: Some(runtime),
        }
    }

    /// Answers HTTP calls: method and path to status and body.
    pub(crate) fn answer_http(&self, plan: impl FnMut(&str, &str) -> Option<(u16, String)> + Send + 'static) {
        self.state.lock().unwrap().rest = Box::new(plan);
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where it is, as an endpoint without TLS.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns how many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// Returns how many publishes came since [`received`](Self::received) was last asked.
    pub(crate) fn count(&self) -> usize {
        self.state.lock().unwrap().received.len()
    }

    /// Returns every publish so far, and forgets them.
    pub(crate) fn received(&self) -> Vec<Publish> {
        std::mem::take(&mut self.state.lock().unwrap().received)
    }
}

impl Drop for FakePubsub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if !thread::panicking() {
            let unexpected = std::mem::take(&mut self.state.lock().unwrap().unexpected);
            assert!(unexpected.is_empty(), "calls that no plan expected: {unexpected:#?}");
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<Mutex<State>>) {
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { answer(request, &state).await }
    });
    // Ends with the client.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> io::Result<Reply> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if head.uri.path() != "/google.pubsub.v1.Publisher/Publish" {
        let (method, path) = (head.method.as_str(), head.uri.path());
        let mut state = state.lock().unwrap();
        return Ok(match (state.rest)(method, path) {
            Some((status, body)) => http_answer(status, body),
            None => {
                state.unexpected.push(format!("{method} {path}"));
                http_answer(599, String::new())
            }
        });
    }
    // A frame is a flag for compression, four bytes of length and the message.
    let request = PublishRequest::decode(body.slice(5..)).unwrap();
    let messages = request.messages.len();
    let publish = Publish {
        request,
        headers: head.headers,
    };
    let answer = {
        let mut state = state.lock().unwrap();
        let answer = (state.plan)(&publish);
        if answer.is_none() {
            state.unexpected.push(format!("Publish of {messages} messages"));
        }
        state.received.push(publish);
        answer
    };
    let answer = answer.unwrap_or_else(|| Answer::Error(code::UNIMPLEMENTED, "no plan expects this".to_owned()));
    Ok(match answer {
        Answer::Taken => taken((0..messages).map(|id| format!("id-{id}")).collect()),
        Answer::Ids(count) => taken((0..count).map(|id| format!("id-{id}")).collect()),
        Answer::EmptyIds => taken(vec![String::new(); messages]),
        Answer::Error(code, message) => refused(code, &message, None),
        Answer::Detailed(code, name, value) => refused(code, "with a detail", Some((name, value))),
        Answer::Http(status, body) => http_answer(status, body.to_owned()),
        Answer::Bytes(message) => framed(message),
        Answer::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
        Answer::Hang => std::future::pending().await,
    })
}

fn taken(message_ids: Vec<String>) -> Reply {
    framed(&PublishResponse { message_ids }.encode_to_vec())
}

fn framed(message: &[u8]) -> Reply {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    let body = Full::new(frame.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    grpc_answer(BoxBody::new(body))
}

fn refused(code: i32, message: &str, detail: Option<(&str, Vec<u8>)>) -> Reply {
    let mut answer = grpc_answer(BoxBody::new(Full::default()));
    let headers = answer.headers_mut();
    headers.insert("grpc-status", code.into());
    // Percent-encoded as the protocol has it; the tests' texts need it for spaces and non-ASCII alone.
    let message: String = message.bytes().map(escaped).collect();
    headers.insert("grpc-message", message.parse().unwrap());
    if let Some((name, value)) = detail {
        let status = Status {
            code,
            message: String::new(),
            details: vec![Any {
                type_url: format!("type.googleapis.com/google.rpc.{name}"),
                value: value.into(),
            }],
        };
        let text = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD_NO_PAD,
            status.encode_to_vec(),
        );
        headers.insert("grpc-status-details-bin", text.parse().unwrap());
    }
    answer
}

fn escaped(byte: u8) -> String {
    match byte {
        b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}

fn grpc_answer(body: BoxBody<Bytes, Infallible>) -> Reply {
    let mut answer = Response::new(body);
    answer
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    answer
}

fn http_answer(status: u16, body: String) -> Reply {
    let mut answer = Response::new(BoxBody::new(Full::from(body)));
    *answer.status_mut() = status.try_into().unwrap();
    answer
        .headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    answer
}
