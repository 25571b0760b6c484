//! Recorded SDK requests from `tests/traffic`; the folder's README has the format.

use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::export::inflate;

/// One recorded request.
pub(crate) struct Recorded {
    pub(crate) scenario: String,
    pub(crate) method: String,
    pub(crate) target: String,
    /// In the order and case of the wire.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Requests with the same number came over the same connection.
    pub(crate) connection: u64,
    /// The status that was answered; `None` if the connection was closed instead.
    pub(crate) answer: Option<u16>,
}

/// Returns the path of a file of the test suite.
pub(crate) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

/// Returns the recording of an SDK build.
pub(crate) fn load(build: &str) -> Vec<Recorded> {
    let bytes = fs::read(fixture(&format!("traffic/{build}.jsonl.gz"))).unwrap();
    let text = String::from_utf8(inflate(&bytes)).unwrap();
    text.split_terminator('\n')
        .map(|line| Recorded::read(&serde_json::from_str(line).unwrap()))
        .collect()
}

impl Recorded {
    fn read(line: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let body = match &line["body"] {
            Value::String(body) => body.clone().into_bytes(),
            _ => STANDARD.decode(text(&line["body_b64"])).unwrap(),
        };
        let headers = line["headers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| (text(&pair[0]), text(&pair[1])));
        Self {
            scenario: text(&line["scenario"]),
            method: text(&line["method"]),
            target: text(&line["path"]),
            headers: headers.collect(),
            body,
            connection: line["conn"].as_u64().unwrap(),
            answer: line["answer"].as_u64().map(|status| u16::try_from(status).unwrap()),
        }
    }

    /// Returns a header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the client-side id in the path, if the route has one.
    pub(crate) fn client_side_id(&self) -> Option<&str> {
        let path = self.target.split('?').next().unwrap_or_default();
        let rest = path
            .strip_prefix("/events/bulk/")
            .or_else(|| path.strip_prefix("/events/diagnostic/"))
            .or_else(|| path.strip_prefix("/a/").and_then(|rest| rest.strip_suffix(".gif")))?;
        rest.split('/').next()
    }
}
