//! A fake Kinesis that takes `PutRecords`, fails or hangs, and remembers which process sent what.
//!
//! It stands in for moto where a test looks at repetitions: it keeps each request in order, and tells the relay's lives
//! apart by the application id in the AWS SDK's user agent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::oracle::Request;
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
    /// The answer of [`Mood::Takes`], after this time.
    Lingers(Duration),
    /// A third of a request's records are throttled inside the 200, at random.
    Picks,
    /// At random as it takes, picks, fails, throttles, breaks off, or stores everything and breaks off.
    Flaps,
}

struct Shared {
    mood: Mood,
    requests: Vec<Request>,
    refused: usize,
}

impl Kinesis {
    /// Starts it with this mood.
    pub(crate) fn start(mood: Mood) -> Self {
        let service = Upstream::start();
        let shared = Arc::new(Mutex::new(Shared {
            mood,
            requests: Vec::new(),
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
                "endpoint": self.url(),
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

    /// Returns where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.service.address())
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

    /// Returns all requests in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.lock().unwrap().requests.clone()
    }

    /// Returns every stored line.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.requests().into_iter().flat_map(|request| request.lines).collect()
    }
}

impl Shared {
    fn answer(&mut self, call: &Received) -> Answer {
        let mood = match &self.mood {
            Mood::Flaps => match fastrand::u8(..20) {
                0..=7 => Mood::Takes,
                8..=11 => Mood::Picks,
                12..=14 => Mood::Fails,
                15 | 16 => return self.refuse(call, throttled()),
                17 => return self.refuse(call, Answer::close()),
                _ => {
                    self.store(call, |_| true, false);
                    return Answer::close();
                }
            },
            mood => mood.clone(),
        };
        match mood {
            Mood::Takes | Mood::Flaps => self.store(call, |_| true, true),
            Mood::Picks => self.store(call, |_| fastrand::u8(..3) > 0, true),
            Mood::Lingers(time) => {
                let answer = self.store(call, |_| true, true);
                answer.after(time)
            }
            Mood::Fails => self.refuse(call, reply(500, &json!({ "__type": "InternalFailure" }))),
            Mood::Hangs(gate) => {
                let answer = reply(500, &json!({ "__type": "InternalFailure" })).behind(&gate);
                self.refuse(call, answer)
            }
        }
    }

    /// Stores the records that are `taken`, and returns the answer that says so.
    fn store(&mut self, call: &Received, mut taken: impl FnMut(&String) -> bool, told: bool) -> Answer {
        let (lines, mut failed) = (lines(&call.body), 0);
        let mut stored = Vec::with_capacity(lines.len());
        let mut records = Vec::with_capacity(lines.len());
        for line in lines {
            if taken(&line) {
                stored.push(line);
                records.push(json!({ "SequenceNumber": "1", "ShardId": "shardId-000000000000" }));
            } else {
                failed += 1;
                let code = "ProvisionedThroughputExceededException";
                records.push(json!({ "ErrorCode": code, "ErrorMessage": "Rate exceeded" }));
            }
        }
        self.requests.push(Request {
            life: life(call),
            lines: stored,
            told,
        });
        reply(200, &json!({ "FailedRecordCount": failed, "Records": records }))
    }

    fn refuse(&mut self, call: &Received, answer: Answer) -> Answer {
        self.refused += 1;
        self.requests.push(Request {
            life: life(call),
            lines: Vec::new(),
            told: true,
        });
        answer
    }
}

fn throttled() -> Answer {
    reply(400, &json!({ "__type": "ProvisionedThroughputExceededException" }))
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
