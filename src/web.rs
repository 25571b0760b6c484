//! The HTTP client of all that asks services over plain HTTP, and the rules they share.
//!
//! One connection pool for the process. TLS is verified with [`crate::trust`]'s roots; redirects are not followed, and
//! are answers like others; of an answer's body at most [`MOST_ANSWER_BYTES`] are read unless the caller says how many. `HTTPS_PROXY`, `HTTP_PROXY`,
//! `ALL_PROXY` and `NO_PROXY` are honoured. Nothing here retries: callers do.

use std::error::Error;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Uri};
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response};

use crate::section::Section;
use crate::trust;

/// How much of an answer is read, bytes. The answers of every service that takes events are shorter.
pub const MOST_ANSWER_BYTES: usize = 64 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request may take with its answer. Below the drain's own bound, so that the error says what took so long.
pub const TIMEOUT: Duration = Duration::from_secs(50);
/// Services close idle connections after a minute or more; a request on a closed one would cost a retry.
const IDLE: Duration = Duration::from_secs(30);
/// How long the rest of an answer is awaited whose status says all, so that its connection can be used again.
const REST: Duration = Duration::from_secs(1);
/// The longest text about a failure that goes into logs and dead letters, characters.
const MOST_WORDS: usize = 300;

/// A service's answer.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; what is not UTF-8 is replaced.
    pub text: String,
}

/// Returns the client, or why there is none.
pub fn client() -> Result<&'static Client, String> {
    static CLIENT: OnceLock<Result<Client, String>> = OnceLock::new();
    CLIENT
        .get_or_init(|| build().map_err(|error| causes(error.as_ref())))
        .as_ref()
        .map_err(Clone::clone)
}

fn build() -> Result<Client, Box<dyn Error + Send + Sync>> {
    let client = Client::builder()
        .tls_backend_preconfigured(trust::client(trust::roots())?)
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .pool_idle_timeout(IDLE)
        .retry(reqwest::retry::never())
        .user_agent(concat!("flagtap/", env!("CARGO_PKG_VERSION")));
    Ok(client.build()?)
}

/// Sends a request and reads the answer. The error is text for people, without the URL (which can hold a secret).
pub async fn exchange(request: RequestBuilder) -> Result<Reply, String> {
    let mut response = request.send().await.map_err(told)?;
    let body = read(&mut response, MOST_ANSWER_BYTES).await?;
    Ok(Reply::of(response, &body))
}

/// Sends a request and reads the answer like [`exchange`]; one of more than `most` bytes is an error.
pub async fn exchange_whole(request: RequestBuilder, most: usize) -> Result<Reply, String> {
    let mut response = request.send().await.map_err(told)?;
    let body = read(&mut response, most.saturating_add(1)).await?;
    if body.len() > most {
        return Err(format!("an answer of more than {most} bytes"));
    }
    Ok(Reply::of(response, &body))
}

/// Sends the request that `build` makes with the shared client, and reads the answer.
pub async fn ask(build: impl FnOnce(&Client) -> RequestBuilder) -> Result<Reply, String> {
    exchange(build(client()?)).await
}

/// Sends a request and takes the answer's status and headers for the answer: `text` is empty. What comes of the body is
/// thrown away, and whether it comes at all changes nothing.
pub async fn exchange_heads(request: RequestBuilder) -> Result<Reply, String> {
    let mut response = request.send().await.map_err(told)?;
    // A body that is read to its end frees the connection for the next request; any other outcome closes it.
    let _ = tokio::time::timeout(REST, read(&mut response, MOST_ANSWER_BYTES)).await;
    Ok(Reply::of(response, b""))
}

async fn read(response: &mut Response, most: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(told)? {
        let room = most - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == most {
            break;
        }
    }
    Ok(body)
}

fn told(error: reqwest::Error) -> String {
    match error.is_timeout() {
        true => "no answer in time".to_owned(),
        false => causes(&error.without_url()),
    }
}

impl Reply {
    fn of(mut response: Response, body: &[u8]) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: std::mem::take(response.headers_mut()),
            text: String::from_utf8_lossy(body).into_owned(),
        }
    }

    /// Returns the service's wish in `Retry-After`: a whole number of seconds, or a date (RFC 9110 §10.2.3).
    pub fn retry_after(&self) -> Option<Duration> {
        self.seconds("retry-after")
            .or_else(|| self.until("retry-after", SystemTime::now()))
    }

    /// Returns the time from `now` to the date in a header; none if it has passed.
    fn until(&self, name: &str, now: SystemTime) -> Option<Duration> {
        let text = self.headers.get(name)?.to_str().ok()?;
        let date = DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
        SystemTime::from(date).duration_since(now).ok()
    }

    /// Returns a header that holds a whole number of seconds.
    pub fn seconds(&self, name: &str) -> Option<Duration> {
        let text = self.headers.get(name)?.to_str().ok()?;
        Some(Duration::from_secs(text.trim().parse().ok()?))
    }
}

/// Returns one line of at most 300 characters, for texts that a service wrote.
pub fn short(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().map(printable).take(16 * MOST_WORDS).collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(MOST_WORDS).collect()
}

/// Returns an error with its causes, as one line of at most 300 characters.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    short(&all_causes(error))
}

/// Returns an error with its causes, however long.
pub fn all_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Reads the URL of a service, if there is one. It must be https but for loopback, and hold no credentials.
pub fn read_url(section: &mut Section<'_>, key: &str) -> Option<Uri> {
    let url = section.optional(key)?;
    Some(checked(section, key, url))
}

/// Reads a URL that must be there, with the same rules.
pub fn require_url(section: &mut Section<'_>, key: &str) -> Option<Uri> {
    let url = section.required(key)?;
    Some(checked(section, key, url))
}

fn checked(section: &Section<'_>, key: &str, url: Uri) -> Uri {
    let loopback = matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    if url.scheme_str() != Some("https") && !(loopback && url.scheme_str() == Some("http")) {
        let message = "must be https: what is sent would cross the network in plain text (http is for loopback)";
        section.problem(Some(key), message);
    }
    if url
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        section.problem(
            Some(key),
            "holds a user name or password; credentials have keys of their own",
        );
    }
    url
}

/// Reads a URL like [`read_url`] that stands in for a service's own scheme and host: the caller appends the path. A base
/// path is kept, a query is refused. Returned without a slash at its end.
pub fn read_base(section: &mut Section<'_>, key: &str) -> Option<String> {
    let url = read_url(section, key)?;
    if url.query().is_some() {
        section.problem(Some(key), "has a query; the service's own path is appended to it");
    }
    Some(url.to_string().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(name: &'static str, value: &'static str) -> Reply {
        Reply {
            status: 503,
            headers: [(
                http::HeaderName::from_static(name),
                http::HeaderValue::from_static(value),
            )]
            .into_iter()
            .collect(),
            text: String::new(),
        }
    }

    #[test]
    fn a_wish_is_a_number_of_seconds_or_a_date() {
        let wish = |value| reply("retry-after", value).retry_after();
        assert_eq!(wish(" 120 "), Some(Duration::from_secs(120)));
        for none in [
            "",
            "-1",
            "1.5",
            "soon",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "99999999999999999999",
        ] {
            assert_eq!(wish(none), None, "{none}");
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_700);
        let until = |value| reply("retry-after", value).until("retry-after", now);
        assert_eq!(until("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(77)));
        assert_eq!(until("Sun, 06 Nov 1994 08:01:37 GMT"), None);
    }

    #[test]
    fn texts_of_a_service_become_one_short_line() {
        assert_eq!(short(" a\r\n\tb\u{1b}[31m c "), "a b [31m c");
        assert_eq!(short(&"é ".repeat(5000)).chars().count(), 300);
    }
}
