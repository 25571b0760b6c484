//! moto: a Kinesis and an STS that keep what they are given. The accounts of their callers are told apart by access key.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::raw::Response;
use super::upstream::Received;
use super::{Connection, eventually, request, tools};

/// A running moto.
pub(crate) struct Moto {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// Who calls, and for which region.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) token: Option<String>,
    pub(crate) region: String,
}

/// A record in a stream.
pub(crate) struct Stored {
    pub(crate) data: String,
    pub(crate) key: String,
}

impl Default for Caller {
    /// moto's default account, 123456789012, in eu-west-1.
    fn default() -> Self {
        Self {
            access_key: "test".to_owned(),
            secret_key: "test".to_owned(),
            token: None,
            region: "eu-west-1".to_owned(),
        }
    }
}

impl Caller {
    /// Returns the variables that give a relay these long-lived keys, and keep it from asking a metadata service.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let keys = [
            ("AWS_ACCESS_KEY_ID", self.access_key.as_str()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.as_str()),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        keys.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }
}

impl Moto {
    /// Starts it; `None` if it is not installed, after announcing that `test` is skipped.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let program = tools::find(test, "python/bin/moto_server")?;
        let address = tools::free_address();
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moto = Self { child, address };
        eventually("moto to listen", || Connection::try_open(address).ok());
        Some(moto)
    }

    /// Returns its address as an endpoint.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Calls a Kinesis operation. moto looks at the credential's scope and never at the signature.
    pub(crate) fn call(&self, caller: &Caller, operation: &str, input: &Value) -> Value {
        let target = format!("Kinesis_20131202.{operation}");
        let credential = format!("{}/20260101/{}/kinesis/aws4_request", caller.access_key, caller.region);
        let authorization = format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0");
        let headers = [
            ("X-Amz-Target", target.as_str()),
            ("Content-Type", "application/x-amz-json-1.1"),
            ("Authorization", authorization.as_str()),
        ];
        let body = input.to_string();
        let response = Connection::open(self.address)
            .exchange(&request("POST", "/", &headers, body.as_bytes()))
            .unwrap();
        let text = String::from_utf8_lossy(&response.body);
        assert_eq!(response.status, 200, "{operation}: {text}");
        serde_json::from_slice(&response.body).unwrap_or_default()
    }

    /// Makes a stream and waits until it can be written to.
    pub(crate) fn make_stream(&self, caller: &Caller, stream: &str, shards: usize) {
        self.call(
            caller,
            "CreateStream",
            &json!({ "StreamName": stream, "ShardCount": shards }),
        );
        eventually("the stream to be active", || {
            let found = self.call(caller, "DescribeStreamSummary", &json!({ "StreamName": stream }));
            (found["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE").then_some(())
        });
    }

    /// Returns every record in a stream, shard by shard.
    pub(crate) fn read_all(&self, caller: &Caller, stream: &str) -> Vec<Stored> {
        let shards = self.call(caller, "ListShards", &json!({ "StreamName": stream }));
        let mut records = Vec::new();
        for shard in shards["Shards"].as_array().unwrap() {
            let start = json!({
                "StreamName": stream, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON",
            });
            let mut iterator = self.call(caller, "GetShardIterator", &start)["ShardIterator"].clone();
            loop {
                let page = self.call(
                    caller,
                    "GetRecords",
                    &json!({ "ShardIterator": iterator, "Limit": 1_000 }),
                );
                let found = page["Records"].as_array().unwrap();
                if found.is_empty() {
                    break;
                }
                records.extend(found.iter().map(|record| Stored {
                    data: decode(&record["Data"]),
                    key: record["PartitionKey"].as_str().unwrap().to_owned(),
                }));
                iterator = page["NextShardIterator"].clone();
            }
        }
        records
    }

    /// Returns temporary credentials of a role, in the role's own account. moto gives them for any role.
    pub(crate) fn assume(&self, role: &str) -> Caller {
        let body = format!(
            "Action=AssumeRole&Version=2011-06-15&RoleSessionName=test&RoleArn={}",
            role.replace(':', "%3A").replace('/', "%2F")
        );
        let headers = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            (
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=test/20260101/eu-west-1/sts/aws4_request, SignedHeaders=host, Signature=0",
            ),
        ];
        let response = Connection::open(self.address)
            .exchange(&request("POST", "/", &headers, body.as_bytes()))
            .unwrap();
        let text = String::from_utf8(response.body).unwrap();
        assert_eq!(response.status, 200, "{text}");
        let element = |name: &str| {
            let (_, rest) = text
                .split_once(&format!("<{name}>"))
                .unwrap_or_else(|| panic!("{name}: {text}"));
            rest.split('<').next().unwrap_or_default().to_owned()
        };
        Caller {
            access_key: element("AccessKeyId"),
            secret_key: element("SecretAccessKey"),
            token: Some(element("SessionToken")),
            ..Caller::default()
        }
    }
}

/// Returns the text in a record's base64.
pub(crate) fn decode(data: &Value) -> String {
    String::from_utf8(STANDARD.decode(data.as_str().unwrap()).unwrap()).unwrap()
}

/// Passes a request on to moto, with another body if need be.
pub(crate) fn forward(moto: SocketAddr, call: &Received, body: &[u8]) -> Option<Response> {
    let mut headers = call.headers.end_to_end();
    headers.retain(|(name, _)| !name.eq_ignore_ascii_case("expect"));
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    Connection::open(moto)
        .exchange(&request(&call.method, &call.target, &headers, body))
        .ok()
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
