//! `flagtap coverage`: the coverage document of a running relay, as a table.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::cli::{print, printable, say};

const PATIENCE: Duration = Duration::from_secs(10);

/// A document of 20,000 flags in each of a few environments is below it.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Asks the relay and prints; 1 with the reason on standard error if it does not answer.
pub(super) fn run(address: &str, environment: Option<&str>, json: bool) -> ExitCode {
    let document = match fetch(address, environment) {
        Ok(document) => document,
        Err(error) => {
            say(format_args!(
                "http://{address}/coverage: {error}\nis a relay running, with its telemetry port there? --address names another\n"
            ));
            return ExitCode::FAILURE;
        }
    };
    if let (Some(name), true) = (environment, list(&document, "environments").is_empty()) {
        say(format_args!(
            "http://{address}/coverage: there is no environment {name}\n"
        ));
        return ExitCode::FAILURE;
    }
    if json {
        let text = serde_json::to_string_pretty(&document).unwrap_or_default();
        print(&(text + "\n"));
    } else {
        print(&table(&document));
    }
    ExitCode::SUCCESS
}

fn fetch(address: &str, environment: Option<&str>) -> std::io::Result<Value> {
    let query = environment.map_or(String::new(), |name| format!("?environment={name}"));
    if query.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(std::io::Error::other("that is no name of an environment"));
    }
    let resolved = address
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| std::io::Error::other("the address resolves to nothing"))?;
    let mut stream = TcpStream::connect_timeout(&resolved, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0, so that the body ends with the connection.
    write!(stream, "GET /coverage{query} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or_else(|| std::io::Error::other("the answer is not HTTP"))?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        return Err(std::io::Error::other(format!("answered {status}")));
    }
    Ok(serde_json::from_slice(&answer[end + 4..])?)
}

/// Returns the document as a table for each environment, with what to do below it.
fn table(document: &Value) -> String {
    let mut out = String::new();
    for environment in list(document, "environments") {
        let flags = list(environment, "flags");
        let since = environment["since"].as_str().unwrap_or_default();
        let name = environment["name"].as_str().unwrap_or_default();
        let _ = writeln!(out, "environment {name}, since {since}\n");
        let rows: Vec<[String; 6]> = flags.iter().map(row).collect();
        let head = [
            "FLAG",
            "EVALUATIONS",
            "RECEIVED",
            "EXPORTED",
            "LAST SEEN",
            "NOT EXPORTED BECAUSE",
        ]
        .map(str::to_owned);
        let rows: Vec<[String; 6]> = [head].into_iter().chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        for [flag, evaluations, received, exported, seen, because] in &rows {
            let [one, two, three, four, five, _] = widths;
            let line = format!(
                "{flag:one$}  {evaluations:>two$}  {received:>three$}  {exported:>four$}  {seen:five$}  {because}"
            );
            let _ = writeln!(out, "{}", line.trim_end());
        }
        if environment["flags_beyond"] != 0 {
            let _ = writeln!(
                out,
                "and {} sights of flags beyond those that are followed",
                environment["flags_beyond"]
            );
        }
        out.push('\n');
        remedies(&mut out, flags);
    }
    out
}

fn row(flag: &Value) -> [String; 6] {
    let number = |name: &str| flag[name].as_u64().unwrap_or(0).to_string();
    let because: Vec<String> = list(flag, "not_exported")
        .iter()
        .map(|why| {
            let reason = format!("{} ({})", why["reason"].as_str().unwrap_or_default(), why["events"]);
            match why["destination"].as_str() {
                Some(name) => format!("{name}: {reason}"),
                None => reason,
            }
        })
        .collect();
    [
        printable(flag["flag"].as_str().unwrap_or_default())
            .chars()
            .take(80)
            .collect(),
        number("evaluations"),
        number("received"),
        number("exported"),
        flag["last_seen"].as_str().unwrap_or_default().to_owned(),
        because.join(", "),
    ]
}

/// Writes each reason once: what it means, what to do and, where there is one, the command for the first such flag.
fn remedies(out: &mut String, flags: &[Value]) {
    let all = || flags.iter().flat_map(|flag| list(flag, "not_exported"));
    let mut said: Vec<(&Value, &Value)> = Vec::new();
    for why in all() {
        let text = |name: &str| why[name].as_str().unwrap_or_default();
        let whose = (&why["reason"], &why["destination"]);
        if said.contains(&whose) {
            continue;
        }
        said.push(whose);
        let _ = writeln!(
            out,
            "{}: {}\n  remedy: {}",
            text("reason"),
            text("what"),
            text("remedy")
        );
        let same = |other: &&Value| other["reason"] == why["reason"] && other["rest"].is_string();
        if let Some(command) = all().find(same) {
            let text = |name: &str| command[name].as_str().unwrap_or_default();
            let _ = writeln!(out, "  REST API: {}\n  Terraform: {}", text("rest"), text("terraform"));
        }
        out.push('\n');
    }
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_says_why_and_what_to_do() {
        let why = json!({ "reason": "flag_held", "events": 2, "what": "it is held", "remedy": "export it" });
        let off = json!({ "reason": "detailed_events_off", "events": 9, "what": "off", "remedy": "turn it on",
            "rest": "curl x", "terraform": "track_events = true" });
        let only = json!({ "reason": "only_other_flags", "events": 2, "destination": "lake", "what": "lake", "remedy": "add it" });
        let flag = |key: &str, counts: [u64; 3], why: &[&Value]| {
            json!({ "flag": key, "evaluations": counts[0], "received": counts[1], "exported": counts[2],
                "last_seen": "2026-11-22T00:00:00Z", "not_exported": why })
        };
        let no_key = json!({ "reason": "detailed_events_off", "events": 1, "what": "off", "remedy": "turn it on" });
        let flags = [
            flag("!", [1, 0, 0], &[&no_key]),
            flag("checkout", [40, 3, 3], &[]),
            flag("b\u{1b}[31m", [0, 2, 0], &[&why]),
            flag("c", [9, 0, 0], &[&off]),
            flag("d", [9, 2, 0], &[&why]),
            flag("e\u{202e}", [2, 2, 2], &[&only]),
        ];
        let document = json!({ "environments": [
            { "name": "production", "since": "2026-11-21T00:00:00Z", "flags_beyond": 7, "flags": flags },
        ]});
        assert_eq!(
            table(&document),
            "environment production, since 2026-11-21T00:00:00Z\n\n\
             FLAG      EVALUATIONS  RECEIVED  EXPORTED  LAST SEEN             NOT EXPORTED BECAUSE\n\
             !                   1         0         0  2026-11-22T00:00:00Z  detailed_events_off (1)\n\
             checkout           40         3         3  2026-11-22T00:00:00Z\n\
             b\u{fffd}[31m              0         2         0  2026-11-22T00:00:00Z  flag_held (2)\n\
             c                   9         0         0  2026-11-22T00:00:00Z  detailed_events_off (9)\n\
             d                   9         2         0  2026-11-22T00:00:00Z  flag_held (2)\n\
             e\u{fffd}                  2         2         2  2026-11-22T00:00:00Z  lake: only_other_flags (2)\n\
             and 7 sights of flags beyond those that are followed\n\n\
             detailed_events_off: off\n  remedy: turn it on\n  REST API: curl x\n  Terraform: track_events = true\n\n\
             flag_held: it is held\n  remedy: export it\n\n\
             only_other_flags: lake\n  remedy: add it\n\n"
        );
    }
}
