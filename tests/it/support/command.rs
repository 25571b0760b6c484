//! The binary's other commands, run to their end.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) error: String,
}

/// Runs `flagtap` with these arguments, separated by spaces, and `--config FILE`.
pub(crate) fn flagtap(arguments: &str, config: &Path) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_flagtap"))
        .args(arguments.split_whitespace())
        .arg("--config")
        .arg(config)
        .env_remove("FLAGTAP_CONFIG")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said {
        code: output.status.code(),
        out: text(&output.stdout),
        error: text(&output.stderr),
    }
}

impl Said {
    /// Returns what was printed as JSON, one value a line.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let lines = self.out.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}")))
            .collect()
    }

    /// Returns what was printed as one JSON value.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
