//! The one place where a failure becomes an answer.
//!
//! The relay's own answers are 502, 503 and 504 with `x-flagtap-error: <fault>; <reason>`, never a 4xx: after most
//! 4xx answers an SDK sends no events until its process restarts (shared behaviour of the Go, Java, Python, Ruby,
//! .NET and Node SDKs). hyper adds the `Date` header that Android's 2.9 SDK cannot live without.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use tower::{BoxError, Layer, Service};

use crate::listen::{Own, Unreadable};
use crate::metrics::{Metrics, REQUEST_ERRORS};
use crate::notices::Notices;
use crate::proxy::{Failure, Fault, Reply};

/// Names the relay as the author of an answer, and whose fault it was.
pub(super) const ERROR_HEADER: HeaderName = HeaderName::from_static("x-flagtap-error");

/// Turns every error of the inner service into an answer.
#[derive(Clone)]
pub(super) struct AnswerLayer {
    metrics: Arc<Metrics>,
    notices: Arc<Notices>,
}

impl AnswerLayer {
    /// Returns the layer; it counts what it answers.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        // Shown with 0, so that rates see the first.
        for failure in Failure::ALL.iter().filter(|failure| failure.fault() != Fault::Client) {
            let labels = [failure.fault().as_str(), failure.reason()];
            metrics.counter(&REQUEST_ERRORS, &labels).increment(0);
        }
        Self {
            metrics,
            notices: Arc::default(),
        }
    }
}

impl<S> Layer<S> for AnswerLayer {
    type Service = Answer<S>;

    fn layer(&self, inner: S) -> Answer<S> {
        Answer {
            inner,
            metrics: Arc::clone(&self.metrics),
            notices: Arc::clone(&self.notices),
        }
    }
}

/// See [`AnswerLayer`].
#[derive(Clone)]
pub(super) struct Answer<S> {
    inner: S,
    metrics: Arc<Metrics>,
    notices: Arc<Notices>,
}

impl<S, B> Service<Request<B>> for Answer<S>
where
    S: Service<Request<B>, Response = Response<Reply>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Reply>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Reply>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answering = self.inner.call(request);
        let (metrics, notices) = (Arc::clone(&self.metrics), Arc::clone(&self.notices));
        Box::pin(async move {
            match answering.await {
                Ok(answer) => Ok(answer),
                Err(error) => {
                    let failure = if error.is::<tower::load_shed::error::Overloaded>() {
                        Failure::Overloaded
                    } else {
                        error.downcast_ref::<Failure>().cloned().unwrap_or(Failure::Internal)
                    };
                    tell(&failure, &metrics, &notices);
                    Ok(own(&failure))
                }
            }
        })
    }
}

/// Counts a failure, and logs it where it is the relay's. The upstream's are logged with their causes where they arise.
fn tell(failure: &Failure, metrics: &Metrics, notices: &Notices) {
    let (fault, reason) = (failure.fault().as_str(), failure.reason());
    metrics.counter(&REQUEST_ERRORS, &[fault, reason]).increment(1);
    if failure.fault() == Fault::Relay
        && let Some(requests) = notices.due(reason)
    {
        tracing::warn!(
            fault,
            reason,
            requests,
            "requests got an answer of flagtap's own: {failure}"
        );
    }
}

/// Returns what answers a request whose head cannot be read, before there is a request: 503, as [`own`] does.
pub fn unreadable(metrics: Arc<Metrics>) -> Unreadable {
    let notices = Notices::default();
    Arc::new(move |own: &Own<'_>| {
        let failure = match own.too_large {
            true => Failure::HeadTooLarge,
            false => Failure::HeadMalformed,
        };
        tell(&failure, &metrics, &notices);
        let (fault, reason) = (failure.fault().as_str(), failure.reason());
        let (date, text) = (own.date, format!("flagtap: {failure}\n"));
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\n\
             Content-Length: {}\r\nDate: {date}\r\n{ERROR_HEADER}: {fault}; {reason}\r\n\r\n",
            text.len()
        );
        Bytes::from(head + &text)
    })
}

/// Returns the relay's own answer to a failure.
pub(super) fn own(failure: &Failure) -> Response<Reply> {
    let status = match failure {
        Failure::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        _ if failure.fault() == Fault::Upstream => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let text = format!("{}; {}", failure.fault().as_str(), failure.reason());
    let mut answer = Response::new(Reply::Own(Some(Bytes::from(format!("flagtap: {failure}\n")))));
    *answer.status_mut() = status;
    if let Ok(value) = HeaderValue::from_str(&text) {
        answer.headers_mut().insert(ERROR_HEADER, value);
    }
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if failure.fault() == Fault::Client {
        // The rest of the body is still on its way; the connection cannot be used again.
        answer
            .headers_mut()
            .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relays_own_answers_are_never_4xx_and_say_whose_fault_it_was() {
        for failure in Failure::ALL {
            let answer = own(&failure);
            assert!(answer.status().is_server_error(), "{failure:?}");
            let value = answer.headers()[ERROR_HEADER].to_str().unwrap();
            assert_eq!(value, format!("{}; {}", failure.fault().as_str(), failure.reason()));
        }
    }
}
