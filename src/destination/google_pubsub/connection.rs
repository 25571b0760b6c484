//! Credentials and Google's client, made when they are first needed and anew when they may be at fault.
//!
//! Promises: nothing is contacted and no file is read before the first call; a file, role or network that was mended
//! is found without a restart; one `publish` is one RPC for each ordering key, tried once. The client's own batching,
//! retries and pausing are kept out of the way: each request gets a publisher of its own, which ends with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use google_cloud_auth::credentials::{
    self, CacheableResource, Credentials, anonymous, external_account, impersonated, service_account, user_account,
};
use google_cloud_auth::errors::CredentialsError;
use google_cloud_gax::retry_policy::{NeverRetry, RetryPolicyExt};
use google_cloud_pubsub::client::BasePublisher;
use google_cloud_pubsub::error::PublishError;
use google_cloud_pubsub::model::Message;
use http::{Extensions, HeaderMap};
use serde_json::Value;
use tokio::sync::Mutex;

use super::Settings;
use crate::web;

/// What is asked of Google for the credentials: to publish, and to look at the topic.
const SCOPE: &str = "https://www.googleapis.com/auth/pubsub";
const ENDPOINT: &str = "https://pubsub.googleapis.com";
/// How long an RPC may take. Below [`super::PATIENCE`], so that a slow answer is told from one that cannot come.
const RPC_TIMEOUT: Duration = Duration::from_secs(45);
/// Words of error texts from here on, characters: tokens are longer, and what people read is not.
const LONG_WORD: usize = 100;

/// Why there is no connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// May pass by itself: the service that gives out tokens did not answer well.
    Passing(String),
    /// Somebody has to change something.
    Setting(String),
}

/// The connection of one destination.
pub(super) struct Connection {
    topic: String,
    open: Mutex<Option<Arc<Open>>>,
}

/// Credentials and a client that uses them.
pub(super) struct Open {
    credentials: Credentials,
    client: BasePublisher,
}

impl Connection {
    /// Returns a connection that is not open yet.
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            topic: settings.topic_name(),
            open: Mutex::default(),
        }
    }

    /// Returns the open connection, or opens one.
    pub(super) async fn open(&self, settings: &Settings) -> Result<Arc<Open>, Trouble> {
        let mut open = self.open.lock().await;
        if let Some(open) = &*open {
            return Ok(open.clone());
        }
        let credentials = credentials(settings).await?;
        let client = BasePublisher::builder()
            .with_endpoint(endpoint(settings))
            .with_credentials(credentials.clone())
            // The limit is how the client is told a timeout for its one attempt.
            .with_retry_policy(NeverRetry.with_time_limit(RPC_TIMEOUT))
            .build()
            .await
            .map_err(|error| Trouble::Setting(told(&error)))?;
        let opened = Arc::new(Open { credentials, client });
        *open = Some(opened.clone());
        Ok(opened)
    }

    /// Lets go of credentials and client: the next call reads and connects anew.
    pub(super) async fn forget(&self) {
        *self.open.lock().await = None;
    }

    /// Publishes messages (at most 1000 and 10 MB of them) and returns what became of each, in their order.
    pub(super) async fn publish(&self, open: &Open, messages: Vec<Message>) -> Vec<Result<String, PublishError>> {
        // The client keeps a task for every ordering key it has ever seen, and refuses a key after an error until told
        // otherwise; both end with the publisher.
        let publisher = open
            .client
            .publisher(&self.topic)
            .set_message_count_threshold(u32::MAX)
            .set_byte_threshold(u32::MAX)
            .set_delay_threshold(Duration::MAX)
            .build();
        let answers: Vec<_> = messages.into_iter().map(|message| publisher.publish(message)).collect();
        publisher.flush().await;
        join_all(answers).await
    }
}

impl Open {
    /// Returns the headers that prove who calls. Waits for a token if there is none.
    pub(super) async fn headers(&self) -> Result<HeaderMap, Trouble> {
        match self.credentials.headers(Extensions::new()).await {
            Ok(CacheableResource::New { data, .. }) => Ok(data),
            Ok(CacheableResource::NotModified) => Ok(HeaderMap::new()),
            Err(error) => Err(of_credentials(&error)),
        }
    }
}

/// Returns where Pub/Sub is, without a slash at the end.
pub(super) fn endpoint(settings: &Settings) -> &str {
    settings.endpoint.as_deref().unwrap_or(ENDPOINT)
}

/// Returns what a failure to get a token means.
pub(super) fn of_credentials(error: &CredentialsError) -> Trouble {
    let why = format!("no token: {}", told(error));
    match error.is_transient() {
        true => Trouble::Passing(why),
        false => Trouble::Setting(format!("{why}: look at `credentials_file` or the default credentials")),
    }
}

/// Returns an error with its causes, without any word as long as a token.
pub(super) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let words: Vec<String> = web::causes(error).split(' ').map(shortened).collect();
    words.join(" ")
}

fn shortened(word: &str) -> String {
    match word.char_indices().nth(LONG_WORD) {
        Some(_) => "…".to_owned(),
        None => word.to_owned(),
    }
}

async fn credentials(settings: &Settings) -> Result<Credentials, Trouble> {
    if settings.is_anonymous() {
        return Ok(anonymous::Builder::new().build());
    }
    let built = match &settings.credentials_file {
        None => credentials::Builder::default().with_scopes([SCOPE]).build(),
        Some(path) => {
            let json = read_json(path).await.map_err(Trouble::Setting)?;
            match json["type"].as_str() {
                Some("service_account") => service_account::Builder::new(json)
                    .with_access_specifier(service_account::AccessSpecifier::from_scopes([SCOPE]))
                    .build(),
                Some("external_account") => external_account::Builder::new(json).with_scopes([SCOPE]).build(),
                Some("impersonated_service_account") => impersonated::Builder::new(json).with_scopes([SCOPE]).build(),
                Some("authorized_user") => user_account::Builder::new(json).with_scopes([SCOPE]).build(),
                _ => {
                    let why = format!("`credentials_file` {} has no `type` that is known", path.display());
                    return Err(Trouble::Setting(why));
                }
            }
        }
    };
    // The errors name paths and members, never values.
    built.map_err(|error| Trouble::Setting(format!("credentials cannot be used: {}", told(&error))))
}

async fn read_json(path: &Path) -> Result<Value, String> {
    let text = tokio::fs::read(path)
        .await
        .map_err(|error| format!("cannot read `credentials_file` {}: {error}", path.display()))?;
    // The parser's error could quote the key.
    serde_json::from_slice(&text).map_err(|_| format!("`credentials_file` {} is not JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_as_long_as_tokens_are_left_out() {
        assert_eq!(shortened("invalid_grant"), "invalid_grant");
        assert_eq!(shortened(&"x".repeat(101)), "…");
    }
}
