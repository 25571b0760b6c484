//! Amazon Kinesis Data Streams: one record per event, with `PutRecords`.
//!
//! The record's data is the export record, its partition key that of LaunchDarkly's own export: the key of the event's
//! user or context. A 200 does not mean success: each record has its own answer, in the order of the request
//! (<https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html>).
//! Credentials come from AWS's default chain (variables, web identity, pod identity, instance), then from a role if one
//! is configured. The SDK's own retries are off.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{Builder, SharedCredentialsProvider};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use sha2::{Digest, Sha256};

use super::{Destination, Encoded, Item, Limits, ProbeError, Verdict, all, on_one_line};
use crate::export::form::Form;
use crate::export::{ExportEvent, envelope};
use crate::section::Section;
use crate::units::{ByteSize, hex};
use crate::web;

mod answers;
#[cfg(test)]
mod fake;
mod probe;
#[cfg(test)]
mod tests;
mod verdict;

/// Records in one request (PutRecords).
const MOST_RECORDS: u16 = 500;
/// Bytes in one request, data before base64 and partition keys (PutRecords).
const MOST_REQUEST_BYTES: ByteSize = ByteSize::mib(10);
/// Bytes in one record at most (a stream's `MaxRecordSizeInKiB`).
const MOST_RECORD_BYTES: ByteSize = ByteSize::mib(10);
/// The default of requests is what all regions and emulators take; until 2025 it was the limit.
const REQUEST_BYTES: ByteSize = ByteSize::mib(5);
/// The default of a stream's `MaxRecordSizeInKiB`.
const RECORD_BYTES: ByteSize = ByteSize::mib(1);
/// Unicode characters in a partition key (PutRecordsRequestEntry).
const KEY_CHARS: usize = 256;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Below the drain's own bound, so that the error says what took so long.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(50);

/// Which stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// By name, in the credentials' account.
    Name(String),
    /// By ARN, also in another account.
    Arn(String),
}

crate::choices! {
    /// What a record's partition key is.
    pub enum PartitionBy {
        /// The key of the event's user or context, so that its events stay in order; the event id if it has none.
        ContextKey = "context_key",
        /// The event id: spreads evenly whatever the traffic.
        EventId = "event_id",
    }
}

/// Which stream, as whom, and with what limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The stream's region.
    pub region: String,
    /// The stream.
    pub stream: Stream,
    /// A role to assume.
    pub role_arn: Option<String>,
    /// The external id that the role's trust policy asks for.
    pub external_id: Option<String>,
    /// Another address than AWS's: a VPC endpoint, an emulator.
    pub endpoint: Option<String>,
    /// Records in one request.
    pub max_records: usize,
    /// Bytes in one request.
    pub max_request_bytes: usize,
    /// Bytes in one record, partition key included.
    pub max_record_bytes: usize,
    /// What the partition key is.
    pub partition_by: PartitionBy,
    /// A newline after each record's JSON.
    pub newline: bool,
    /// The record's form.
    pub form: Form,
}

impl Settings {
    /// Returns the settings for a stream with the defaults.
    pub fn to(region: &str, stream: Stream) -> Self {
        Self {
            region: region.to_owned(),
            stream,
            role_arn: None,
            external_id: None,
            endpoint: None,
            max_records: usize::from(MOST_RECORDS),
            max_request_bytes: REQUEST_BYTES.as_usize(),
            max_record_bytes: RECORD_BYTES.as_usize(),
            partition_by: PartitionBy::ContextKey,
            newline: false,
            form: Form::default(),
        }
    }
}

/// Reads the settings.
pub fn read(section: &mut Section<'_>) -> Option<Settings> {
    let region: Option<String> = section.required("region");
    let stream = read_stream(section);
    let max_records = section.or("max_records", MOST_RECORDS);
    let max_request_bytes = section.or("max_request_bytes", REQUEST_BYTES);
    let max_record_bytes = section.or("max_record_bytes", RECORD_BYTES);
    if !(1..=MOST_RECORDS).contains(&max_records) {
        section.problem(Some("max_records"), "must be from 1 to 500, which is Kinesis' limit");
    }
    if max_request_bytes > MOST_REQUEST_BYTES {
        section.problem(
            Some("max_request_bytes"),
            "must be at most 10MiB, which is Kinesis' limit",
        );
    }
    if max_record_bytes > MOST_RECORD_BYTES {
        section.problem(
            Some("max_record_bytes"),
            "must be at most 10MiB, which is Kinesis' limit",
        );
    }
    if max_record_bytes > max_request_bytes || max_record_bytes == ByteSize(0) {
        section.problem(
            Some("max_record_bytes"),
            "must be more than nothing and at most `max_request_bytes`",
        );
    }
    let role_arn = section.optional("role_arn");
    let external_id = section.optional("external_id");
    if external_id.is_some() && role_arn.is_none() {
        section.problem(Some("external_id"), "means nothing without `role_arn`");
    }
    let endpoint = web::read_url(section, "endpoint");
    let settings = Settings {
        role_arn,
        external_id,
        endpoint: endpoint.map(|endpoint| endpoint.to_string()),
        max_records: usize::from(max_records),
        max_request_bytes: max_request_bytes.as_usize(),
        max_record_bytes: max_record_bytes.as_usize(),
        partition_by: section.or("partition_by", PartitionBy::ContextKey),
        newline: section.or("newline", false),
        form: Form::read(section),
        ..Settings::to(&region?, stream?)
    };
    Some(settings)
}

// A wrong name would make AWS refuse every record as invalid, so it is caught here.
fn read_stream(section: &mut Section<'_>) -> Option<Stream> {
    let name: Option<String> = section.optional("stream_name");
    let arn: Option<String> = section.optional("stream_arn");
    let valid = |name: &str| {
        (1..=128).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    match (name, arn) {
        (Some(name), None) if valid(&name) => Some(Stream::Name(name)),
        (Some(_), None) => {
            let message = "must be 1 to 128 letters, digits, `_`, `.` or `-`; an ARN goes into `stream_arn`";
            section.problem(Some("stream_name"), message);
            None
        }
        (None, Some(arn)) if arn.starts_with("arn:") && arn.contains(":stream/") => Some(Stream::Arn(arn)),
        (None, Some(_)) => {
            let message = "must be a stream's ARN such as arn:aws:kinesis:eu-west-1:123456789012:stream/ld-events";
            section.problem(Some("stream_arn"), message);
            None
        }
        (Some(_), Some(_)) => {
            section.problem(Some("stream_arn"), "cannot be given together with `stream_name`");
            None
        }
        (None, None) if section.has("stream_name") || section.has("stream_arn") => None,
        (None, None) => {
            section.problem(None, "needs `stream_name` or `stream_arn`");
            None
        }
    }
}

/// Returns the destination.
pub async fn open(settings: &Settings) -> Arc<dyn Destination> {
    Arc::new(Kinesis::open(settings).await)
}

pub(super) use answers::ANSWERS;

/// The destination.
pub struct Kinesis {
    client: Client,
    settings: Settings,
}

impl Kinesis {
    /// Returns the destination with credentials from AWS's default chain; they are looked up at first use.
    pub async fn open(settings: &Settings) -> Self {
        let region = Region::new(settings.region.clone());
        let config = aws_config::defaults(BehaviorVersion::latest()).region(region);
        let config = config.retry_config(RetryConfig::disabled()).load().await;
        let credentials = match &settings.role_arn {
            None => config.credentials_provider(),
            Some(role) => {
                let mut role = AssumeRoleProvider::builder(role)
                    .session_name("flagtap")
                    .configure(&config);
                if let Some(id) = &settings.external_id {
                    role = role.external_id(id);
                }
                Some(SharedCredentialsProvider::new(role.build().await))
            }
        };
        Self::with(&config, credentials, settings)
    }

    fn with(config: &SdkConfig, credentials: Option<SharedCredentialsProvider>, settings: &Settings) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT);
        let mut config = Builder::from(config)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts.build());
        config.set_credentials_provider(credentials);
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Self {
            client: Client::from_conf(config.build()),
            settings: settings.clone(),
        }
    }

    fn stream(&self) -> (Option<String>, Option<String>) {
        match &self.settings.stream {
            Stream::Name(name) => (Some(name.clone()), None),
            Stream::Arn(arn) => (None, Some(arn.clone())),
        }
    }
}

#[async_trait]
impl Destination for Kinesis {
    fn limits(&self) -> Limits {
        Limits {
            keys: usize::MAX,
            requests: usize::MAX,
            items: self.settings.max_records,
            bytes: self.settings.max_request_bytes,
            item_bytes: self.settings.max_record_bytes,
        }
    }

    fn encode(&self, event: &ExportEvent<'_>) -> Encoded {
        let mut body = match self.settings.form.render(event) {
            Ok(record) => record,
            Err(reason) => return Encoded::Skip(reason),
        };
        if self.settings.newline {
            body = on_one_line(body);
        }
        let key = match self.settings.partition_by {
            PartitionBy::ContextKey => partition_key(envelope::partition_key(event), event.id),
            PartitionBy::EventId => event.id.to_owned(),
        };
        Encoded::Item(Item {
            id: event.id.to_owned(),
            size: body.len() + key.len(),
            body: body.into(),
            key,
        })
    }

    async fn send(&self, items: &[Item]) -> Vec<Verdict> {
        let records: Result<Vec<PutRecordsRequestEntry>, _> = items
            .iter()
            .map(|item| {
                let data = Blob::new(item.body.as_ref());
                PutRecordsRequestEntry::builder()
                    .data(data)
                    .partition_key(&item.key)
                    .build()
            })
            .collect();
        let (name, arn) = self.stream();
        let request = self.client.put_records().set_stream_name(name).set_stream_arn(arn);
        match records {
            Ok(records) => match request.set_records(Some(records)).send().await {
                Ok(answer) => verdict::of_records(answer.records(), items.len()),
                Err(error) => all(&verdict::of_error(&error, items.len()), items),
            },
            // The builder misses nothing that is set above.
            Err(error) => all(&verdict::retry(&error.to_string()), items),
        }
    }

    async fn probe(&self) -> Result<String, ProbeError> {
        let (name, arn) = self.stream();
        let request = self.client.describe_stream_summary();
        match request.set_stream_name(name).set_stream_arn(arn).send().await {
            Ok(answer) => probe::of_summary(answer.stream_description_summary(), &self.settings),
            Err(error) => probe::of_error(&error),
        }
    }
}

// LaunchDarkly uses a random key where an event has none. The id spreads as evenly, and stays for a retry.
fn partition_key(key: String, id: &str) -> String {
    if key.is_empty() {
        return id.to_owned();
    }
    if key.chars().nth(KEY_CHARS).is_none() {
        return key;
    }
    hex(&Sha256::digest(key.as_bytes()))
}
