//! A fake Kinesis that takes `PutRecords`, fails or hangs, and remembers which process sent what.
//!
//! It stands in for moto where a test looks at repetitions: it keeps each request in order, and tells the relay's lives
//! apart by the application id in the AWS SDK's user agent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::export::id;
use super::upstream::{Gate, Received};
use super::{Answer, Setup, Upstream};

/// The fake. Dropping it judges what it saw, as [`Upstream`] does.
pub(crate) struct Kinesis {
    service: Upstream,
    shared: Arc<Mutex<Shared>>,
}

/// What is done with a request.
#[derive(Clone)]
pub(crate) enum Mood {
    /// Its records are stored and acknowledged.
    Takes,
    /// 500, nothing is stored.
    Fails,
    /// Nothing is stored; an answer that nobody will like comes when the gate opens.
    Hangs(Gate),
}

/// A request whose records were stored.
#[derive(Clone)]
pub(crate) struct Stored {
    /// The life of the relay that sent it, see [`Kinesis::life`].
    pub(crate) life: String,
    /// The export lines in it.
    pub(crate) lines: Vec<String>,
}

struct Shared {
    mood: Mood,
    stored: Vec<Stored>,
    refused: usize,
}

impl Kinesis {
    /// Starts it with this mood.
    pub(crate) fn start(mood: Mood) -> Self {
        let service = Upstream::start();
        let shared = Arc::new(Mutex::new(Shared {
            mood,
            stored: Vec::new(),
            refused: 0,
        }));
        let answering = shared.clone();
        service.plan(move |call| {
            let put = call.headers.get("x-amz-target") == Some("Kinesis_20131202.PutRecords");
            put.then(|| answering.lock().unwrap().answer(call))
        });
        Self { service, shared }
    }

    /// Adds it to a configuration as the destination `lake`, beside `archive`.
    pub(crate) fn add_to(&self, setup: &mut Setup, retry: Value) {
        setup.config["environments"][0]["destinations"] = json!(["archive", "lake"]);
        setup.config["destinations"].as_array_mut().unwrap().push(json!({
            "name": "lake",
            "kinesis": {
                "region": "eu-west-1", "stream_name": "ld-events",
                "endpoint": format!("http://{}", self.service.address()),
            },
            "retry": retry,
        }));
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ] {
            setup.variables.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Names the next life of the relay, so that its requests can be told from those of others.
    pub(crate) fn life(setup: &mut Setup, life: &str) {
        setup.variables.retain(|(name, _)| name != "AWS_SDK_UA_APP_ID");
        setup.variables.push(("AWS_SDK_UA_APP_ID".to_owned(), life.to_owned()));
    }

    /// Changes what is done with later requests.
    pub(crate) fn be(&self, mood: Mood) {
        self.shared.lock().unwrap().mood = mood;
    }

    /// Requests that break off are no failure in this test.
    pub(crate) fn tolerate_broken(&self) {
        self.service.tolerate_broken();
    }

    /// Returns how many requests were not taken.
    pub(crate) fn refused(&self) -> usize {
        self.shared.lock().unwrap().refused
    }

    /// Returns the requests whose records were stored, in order.
    pub(crate) fn stored(&self) -> Vec<Stored> {
        self.shared.lock().unwrap().stored.clone()
    }

    /// Returns every stored line.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.stored().into_iter().flat_map(|request| request.lines).collect()
    }
}

impl Stored {
    /// Returns the event ids in the request.
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        self.lines.iter().map(|line| id(line)).collect()
    }
}

impl Shared {
    fn answer(&mut self, call: &Received) -> Answer {
        match &self.mood {
            Mood::Takes => {
                let lines = lines(&call.body);
                let taken = json!({ "SequenceNumber": "1", "ShardId": "shardId-000000000000" });
                let answer = json!({ "FailedRecordCount": 0, "Records": vec![taken; lines.len()] });
                let life = life(call);
                self.stored.push(Stored { life, lines });
                reply(200, &answer)
            }
            Mood::Fails => {
                self.refused += 1;
                reply(500, &json!({ "__type": "InternalFailure" }))
            }
            Mood::Hangs(gate) => {
                self.refused += 1;
                reply(500, &json!({ "__type": "InternalFailure" })).behind(gate)
            }
        }
    }
}

fn reply(status: u16, body: &Value) -> Answer {
    let headers = [("Content-Type", "application/x-amz-json-1.1")];
    Answer::full(status, &headers, body.to_string().as_bytes())
}

fn lines(body: &[u8]) -> Vec<String> {
    let body: Value = serde_json::from_slice(body).unwrap();
    let records = body["Records"].as_array().unwrap().iter();
    let data = records.map(|record| STANDARD.decode(record["Data"].as_str().unwrap()).unwrap());
    data.map(|bytes| String::from_utf8(bytes).unwrap()).collect()
}

fn life(call: &Received) -> String {
    let agents = ["user-agent", "x-amz-user-agent"].map(|name| call.headers.get(name).unwrap_or_default());
    let mut words = agents.iter().flat_map(|agent| agent.split(' '));
    let found = words.find_map(|word| word.strip_prefix("app/"));
    found.unwrap_or_default().to_owned()
}
