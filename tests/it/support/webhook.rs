//! A receiver of webhooks that checks every request as the documentation tells receivers to, and answers by script.
//!
//! A request that is signed wrongly, framed in an unexpected way or unsigned where it should not be is unexpected, and
//! fails the test when the fake is dropped.

use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::read::GzDecoder;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::Sha256;

use super::oracle::Request;
use super::upstream::Received;
use super::{Answer, Upstream};

const SECRET: &str = "whsec-5f0c1d2e3b4a59687766554433221100";
const TOKEN: &str = "Bearer t0ken-of-the-collector";

/// How the body is to come.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// A record per line instead of an array.
    pub(crate) lines: bool,
    pub(crate) gzip: bool,
}

/// The records of one request that the receiver took, with the key that its repetitions share.
#[derive(Clone)]
pub(crate) struct Delivery {
    pub(crate) key: String,
    pub(crate) records: Vec<String>,
    /// The life of the relay that sent it, see [`Webhook::settings_in`].
    pub(crate) life: String,
    /// What was answered said that they are taken.
    pub(crate) told: bool,
}

/// The fake. Dropping it judges what it saw, as [`Upstream`] does.
pub(crate) struct Webhook {
    service: Upstream,
    shape: Shape,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    script: VecDeque<(Answer, bool, bool)>,
    /// What comes when the script is over is answered at random.
    flaps: bool,
    /// Each with whether it was taken.
    requests: Vec<(Delivery, bool)>,
}

impl Webhook {
    /// Starts a receiver that takes everything.
    pub(crate) fn start(shape: Shape) -> Self {
        let service = Upstream::start();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let answering = shared.clone();
        service.plan(move |request| match read(request, shape) {
            Ok(delivery) => Some(answering.lock().unwrap().answer(delivery)),
            Err(why) => {
                eprintln!("{why}");
                None
            }
        });
        Self { service, shape, shared }
    }

    /// Adds an answer to the script. `takes`: the records are stored; `tells`: the answer says so.
    pub(crate) fn then(&self, answer: Answer, takes: bool, tells: bool) {
        self.shared.lock().unwrap().script.push_back((answer, takes, tells));
    }

    /// From now on, at random: takes, fails, throttles, breaks off, or takes everything and breaks off. With false, takes.
    pub(crate) fn flap(&self, flaps: bool) {
        self.shared.lock().unwrap().flaps = flaps;
    }

    /// Requests that break off are no failure in this test.
    pub(crate) fn tolerate_broken(&self) {
        self.service.tolerate_broken();
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.service.address()
    }

    /// Returns a destination's settings that lead here.
    pub(crate) fn settings(&self) -> Value {
        self.settings_at(&format!("http://{}", self.address()))
    }

    /// Returns a destination's settings that lead to `base`.
    pub(crate) fn settings_at(&self, base: &str) -> Value {
        json!({
            "url": format!("{base}/hook?from=flagtap"),
            "headers": { "Authorization": TOKEN },
            "format": if self.shape.lines { "ndjson" } else { "json_array" },
            "gzip": self.shape.gzip,
            "signing_secret": SECRET,
        })
    }

    /// Returns a destination's settings for one life of the relay, so that its requests can be told from those of others.
    pub(crate) fn settings_in(&self, life: &str) -> Value {
        let mut settings = self.settings();
        settings["headers"]["X-Life"] = json!(life);
        settings
    }

    /// Returns what was taken, in order.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        let shared = self.shared.lock().unwrap();
        let taken = shared.requests.iter().filter(|(_, taken)| *taken);
        taken.map(|(delivery, _)| delivery.clone()).collect()
    }

    /// Returns all requests, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let shared = self.shared.lock().unwrap();
        let requests = shared.requests.iter().map(|(delivery, taken)| Request {
            life: delivery.life.clone(),
            lines: if *taken { delivery.records.clone() } else { Vec::new() },
            told: delivery.told,
        });
        requests.collect()
    }

    /// Returns every record that was taken, in order.
    pub(crate) fn records(&self) -> Vec<String> {
        self.deliveries()
            .into_iter()
            .flat_map(|delivery| delivery.records)
            .collect()
    }

    /// Returns how many requests were not taken.
    pub(crate) fn refused(&self) -> usize {
        let shared = self.shared.lock().unwrap();
        shared.requests.iter().filter(|(_, taken)| !taken).count()
    }

    /// Returns how many answers of the script are left.
    pub(crate) fn planned(&self) -> usize {
        self.shared.lock().unwrap().script.len()
    }

    /// Fails if a text holds one of the receiver's secrets.
    pub(crate) fn assert_no_secrets_in(text: &str) {
        for secret in [SECRET, TOKEN, "t0ken"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }
}

impl Shared {
    fn answer(&mut self, mut delivery: Delivery) -> Answer {
        let (answer, takes, tells) = match self.script.pop_front() {
            Some(planned) => planned,
            None if self.flaps => match fastrand::u8(..20) {
                0..=9 => (Answer::status(204), true, true),
                10..=12 => (Answer::status(503), false, false),
                13 | 14 => (Answer::status(429), false, false),
                15 | 16 => (Answer::close(), false, false),
                _ => (Answer::close(), true, false),
            },
            None => (Answer::status(204), true, true),
        };
        delivery.told = tells;
        self.requests.push((delivery, takes));
        answer
    }
}

fn read(request: &Received, shape: Shape) -> Result<Delivery, String> {
    let header = |name: &str| match request.headers.all(name)[..] {
        [value] => Ok(value),
        ref values => Err(format!("{name}: {values:?}")),
    };
    let check = |what: &str, good: bool| if good { Ok(()) } else { Err(what.to_owned()) };
    check(
        "request line",
        request.method == "POST" && request.target == "/hook?from=flagtap",
    )?;
    check("authorization", header("authorization")? == TOKEN)?;
    let content_type = if shape.lines {
        "application/x-ndjson"
    } else {
        "application/json"
    };
    check("content-type", header("content-type")? == content_type)?;
    let encoding = request.headers.all("content-encoding");
    check(
        "content-encoding",
        encoding == if shape.gzip { vec!["gzip"] } else { vec![] },
    )?;
    check("accept-encoding", request.headers.get("accept-encoding").is_none())?;
    verify(header("flagtap-signature")?, &request.body)?;
    let mut body = Vec::new();
    match shape.gzip {
        true => drop(
            GzDecoder::new(&request.body[..])
                .read_to_end(&mut body)
                .map_err(|error| error.to_string())?,
        ),
        false => body.clone_from(&request.body),
    }
    check("size", body.len() <= 1 << 20)?;
    let body = String::from_utf8(body).map_err(|error| error.to_string())?;
    let records: Vec<String> = match shape.lines {
        true => body
            .split_inclusive('\n')
            .map(|line| line.trim_end_matches('\n').to_owned())
            .collect(),
        false => {
            let records: Vec<&RawValue> = serde_json::from_str(&body).map_err(|error| error.to_string())?;
            records.into_iter().map(|record| record.get().to_owned()).collect()
        }
    };
    check("number of records", (1..=500).contains(&records.len()))?;
    Ok(Delivery {
        key: header("idempotency-key")?.to_owned(),
        records,
        life: request.headers.get("x-life").unwrap_or_default().to_owned(),
        told: true,
    })
}

fn verify(signature: &str, body: &[u8]) -> Result<(), String> {
    let (time, hex) = signature
        .strip_prefix("t=")
        .and_then(|rest| rest.split_once(",v1="))
        .ok_or("signature's form")?;
    let seconds: u64 = time.parse().map_err(|_| "signature's time")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    if now.abs_diff(seconds) > 60 {
        return Err(format!("signed at {seconds}, and it is {now}"));
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{time}.").as_bytes());
    mac.update(body);
    let expected: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if hex == expected {
        Ok(())
    } else {
        Err("signature".to_owned())
    }
}
