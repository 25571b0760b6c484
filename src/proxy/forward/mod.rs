//! Sends requests on to the upstream, unchanged but for framing, hop-by-hop headers and `Host`.
//!
//! A captured request has a timeout until the answer's head and one second try: on a pooled connection that had
//! answered before and broke now, if the batch has a payload id, by which the service recognises the repetition.
//! A streamed request has neither.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Extensions, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::timeout::{Timeout, TimeoutLayer};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use crate::proxy::{Failure, Outbound, UpstreamSettings};
use crate::units::format_duration;

pub mod connect;
mod health;
mod hop_by_hop;

use connect::{Answers, Connector};
pub use health::{Health, Known, Trouble};

/// The upstream, as the relay uses it.
#[derive(Clone)]
pub struct Upstream {
    way: Arc<Way>,
    whole: Timeout<Tries>,
    timeout: Duration,
    health: Arc<Health>,
}

/// A captured request.
struct Whole {
    parts: Arc<Parts>,
    body: Bytes,
    repeatable: bool,
}

/// Sends a captured request, once more if that is safe and promising.
#[derive(Clone)]
struct Tries(Arc<Way>);

/// Where the upstream is and the pooled client that reaches it.
struct Way {
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    /// Path of `upstream.url` without its last slash; usually empty.
    base: String,
    /// An egress proxy reads the requests themselves.
    through_proxy: bool,
    /// What it wants to see on each.
    proxy_authorization: Option<HeaderValue>,
    client: Client<Connector, Outbound>,
}

impl Upstream {
    /// Returns a client for `settings.url`, an http or https URL with a host.
    pub fn new(settings: &UpstreamSettings, connector: Connector) -> Result<Self, Failure> {
        let parts = settings.url.clone().into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(Failure::NotForwardable);
        };
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Failure::NotForwardable)?;
        let base = settings.url.path().trim_end_matches('/').to_owned();
        let through_proxy = connector.forwards();
        let proxy_authorization = connector.proxy_authorization().cloned();
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(settings.idle_timeout)
            .pool_max_idle_per_host(settings.max_idle)
            .http1_preserve_header_case(true)
            .http1_max_headers(settings.max_headers)
            .http1_max_buf_size(settings.max_head_bytes.max(MIN_BUFFER))
            .http2_max_header_list_size(u32::try_from(settings.max_head_bytes).unwrap_or(u32::MAX))
            .http2_keep_alive_interval(Some(Duration::from_secs(20)))
            .set_host(false)
            .build(connector);
        let way = Arc::new(Way {
            scheme,
            authority,
            host,
            base,
            through_proxy,
            proxy_authorization,
            client,
        });
        // The timeout is the outermost layer: connecting, the second try and the wait for the head all count.
        let whole = ServiceBuilder::new()
            .layer(TimeoutLayer::new(settings.timeout))
            .service(Tries(Arc::clone(&way)));
        Ok(Self {
            way,
            whole,
            timeout: settings.timeout,
            health: Arc::default(),
        })
    }

    /// Returns what is known of it, for all that use this client.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Sends a request whose body was captured; returns the answer with its body unread.
    ///
    /// `repeatable` says that the service recognises a repetition of the request.
    pub async fn send(
        &self,
        parts: &Arc<Parts>,
        body: &Bytes,
        repeatable: bool,
    ) -> Result<Response<Incoming>, Failure> {
        let whole = Whole {
            parts: Arc::clone(parts),
            body: body.clone(),
            repeatable,
        };
        self.judge(self.whole.clone().oneshot(whole).await)
    }

    /// Sends a request whose body goes on as it comes. No timeout but that of connecting: a stream lives for hours.
    pub async fn stream(&self, parts: &Parts, body: Outbound) -> Result<Response<Incoming>, Failure> {
        self.judge(self.way.once(parts, body).await)
    }

    fn judge(&self, outcome: Result<Response<Incoming>, BoxError>) -> Result<Response<Incoming>, Failure> {
        match outcome {
            Ok(answer) => {
                self.health.answered();
                Ok(answer)
            }
            Err(error) => {
                let (failure, why) = failure(&error, self.timeout);
                self.health.failed(&failure, why);
                Err(failure)
            }
        }
    }
}

impl Service<Whole> for Tries {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, whole: Whole) -> Self::Future {
        let way = Arc::clone(&self.0);
        Box::pin(async move {
            let Whole {
                parts,
                body,
                repeatable,
            } = whole;
            match way.once(&parts, Outbound::Whole(Some(body.clone()))).await {
                Err(error) if repeatable && broke_after_use(&error) => {
                    tracing::debug!("pooled connection broke before the answer, sending the batch once more");
                    way.once(&parts, Outbound::Whole(Some(body))).await
                }
                outcome => outcome,
            }
        })
    }
}

impl Way {
    async fn once(&self, parts: &Parts, body: Outbound) -> Result<Response<Incoming>, BoxError> {
        let request = self.request(parts, body)?;
        Ok(self.noted(self.client.request(request).await?)?)
    }

    /// Returns the answer as it goes on to the client.
    fn noted(&self, mut answer: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
        if let Some(answers) = answer.extensions().get::<Answers>() {
            answers.note();
        }
        // The proxy's word, not the upstream's: as an answer it would make SDKs give up for good.
        if self.through_proxy && answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(Failure::ProxyRefused);
        }
        // Nothing here asked for a switch of protocols, and a transfer coding that nobody undid would garble the body.
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS || hop_by_hop::is_coded(answer.headers()) {
            return Err(Failure::UpstreamBroke);
        }
        // Few answers have any, and a copy of the headers costs more than a look.
        if hop_by_hop::any(answer.headers()) {
            *answer.headers_mut() = hop_by_hop::passed_on(answer.headers());
        }
        Ok(answer)
    }

    fn request(&self, parts: &Parts, body: Outbound) -> Result<Request<Outbound>, Failure> {
        // A tunnel is nothing the events service has, and a coding besides chunked nothing that was undone here.
        if parts.method == Method::CONNECT || hop_by_hop::is_coded(&parts.headers) {
            return Err(Failure::NotForwardable);
        }
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = self.uri(&parts.uri)?;
        let mut headers = hop_by_hop::passed_on(&parts.headers);
        // In place, so that `Host` stays where the client had it; HTTP/2 clients had none.
        headers.insert(header::HOST, self.host.clone());
        if let Some(authorization) = &self.proxy_authorization {
            headers.insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
        *request.headers_mut() = headers;
        // hyper keeps the original case of the header names here.
        *request.extensions_mut() = parts.extensions.clone();
        Ok(request)
    }

    fn uri(&self, asked: &Uri) -> Result<Uri, Failure> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.scheme.clone());
        uri.authority = Some(self.authority.clone());
        let path = asked
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        uri.path_and_query = Some(if self.base.is_empty() {
            path
        } else {
            PathAndQuery::try_from(format!("{}{path}", self.base)).map_err(|_| Failure::NotForwardable)?
        });
        Uri::from_parts(uri).map_err(|_| Failure::NotForwardable)
    }
}

// hyper refuses a smaller read buffer.
const MIN_BUFFER: usize = 8192;

/// Returns true if the error came from a connection that had answered before: most likely the upstream closed it
/// while idle and the request met the closing.
fn broke_after_use(error: &BoxError) -> bool {
    let Some(error) = error.downcast_ref::<ClientError>() else {
        return false;
    };
    let Some(connected) = error.connect_info() else {
        return false;
    };
    let mut extras = Extensions::new();
    connected.get_extras(&mut extras);
    !error.is_connect() && extras.get::<Answers>().is_some_and(Answers::any)
}

/// Returns what an error means, and its causes. They are written out, because the innermost one says what to mend.
fn failure(error: &BoxError, timeout: Duration) -> (Failure, String) {
    if error.is::<tower::timeout::error::Elapsed>() {
        let why = format!("no answer within upstream.timeout ({})", format_duration(timeout));
        return (Failure::UpstreamTimeout, why);
    }
    let mut causes = Vec::new();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(current) = cause {
        // The client's own body broke while it was streamed through: the upstream is not at fault.
        if let Some(failure) = current.downcast_ref::<Failure>() {
            return (failure.clone(), failure.to_string());
        }
        causes.push(current.to_string());
        cause = current.source();
    }
    let failure = match error.downcast_ref::<ClientError>() {
        Some(error) if error.is_connect() => Failure::UpstreamUnreachable,
        _ => Failure::UpstreamBroke,
    };
    (failure, causes.join(": "))
}
