//! What `flagtap queue` prints of a queue: tables for people, JSON for programs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::admin::letters::timestamp;
use crate::drain::{self, Noted};
use crate::queue::ConsumerStats;
use crate::queue::SetAside;
use crate::queue::sled::inspect::Overview;
use crate::queue::sled::repair::{Repair, Verification};
use crate::units::{ByteSize, format_duration};

/// Prints what a queue holds. `names`: the destinations of the configuration, where there is one.
pub(super) fn overview(
    overview: &Overview,
    names: Option<&[String]>,
    now_ms: u64,
    out: &mut dyn Write,
) -> io::Result<()> {
    let whose = if overview.in_use { "open in a relay" } else { "stopped" };
    writeln!(
        out,
        "{whose}, {} on disk, next position {}",
        bytes(overview.bytes),
        overview.tail
    )?;
    writeln!(out, "\ndestinations")?;
    let mut rows = vec![
        [
            "name",
            "waiting",
            "oldest",
            "cursor",
            "to be tried again",
            "dead letters",
        ]
        .map(str::to_owned),
    ];
    for consumer in &overview.consumers {
        let (letters, transient) = letters(overview, &consumer.name);
        let waiting: Vec<String> = (consumer.waiting.iter())
            .map(|(environment, events)| format!("{events} of {environment}"))
            .collect();
        let mut shown = consumer.name.clone();
        if is_configured(&consumer.name, names) == Some(false) {
            shown.push_str(" (not in the configuration)");
        }
        rows.push([
            shown,
            if waiting.is_empty() {
                "none".to_owned()
            } else {
                waiting.join(", ")
            },
            (consumer.oldest_waiting_ms).map_or_else(|| "-".to_owned(), |ms| since(ms, now_ms)),
            consumer.position.to_string(),
            retries(&consumer.note, now_ms),
            format!("{letters}, {transient} transient"),
        ]);
    }
    table(&rows, out)?;
    for (name, letters, transient) in &overview.dead_letters {
        if !overview.consumers.iter().any(|consumer| consumer.name == *name) {
            writeln!(
                out,
                "  {name} has no cursor, but {letters} dead letters, {transient} transient"
            )?;
        }
    }
    if overview.damaged_letters > 0 {
        writeln!(out, "  {} dead letters cannot be read", overview.damaged_letters)?;
    }
    writeln!(out, "\nparts")?;
    let mut rows = vec![["first", "end", "on disk", "begun", ""].map(str::to_owned)];
    for (part, problem) in &overview.parts {
        rows.push([
            part.first.to_string(),
            part.end.map_or_else(|| "-".to_owned(), |end| end.to_string()),
            bytes(part.bytes),
            timestamp(part.created_ms),
            problem
                .as_ref()
                .map_or_else(String::new, |why| format!("DAMAGED: {why}")),
        ]);
    }
    table(&rows, out)?;
    writeln!(out, "\nquarantine")?;
    set_aside(&overview.quarantine, out)
}

/// Returns the same as JSON.
pub(super) fn overview_json(overview: &Overview, names: Option<&[String]>) -> Value {
    let destinations: Map<String, Value> = (overview.consumers.iter())
        .map(|consumer| (consumer.name.clone(), consumer_json(overview, names, consumer)))
        .collect();
    let parts: Vec<Value> = (overview.parts.iter())
        .map(|(part, problem)| {
            json!({
                "first": part.first, "end": part.end, "bytes": part.bytes,
                "begun": timestamp(part.created_ms), "damage": problem,
            })
        })
        .collect();
    let letters: BTreeMap<&str, u64> = (overview.dead_letters.iter())
        .map(|(name, letters, _)| (name.as_str(), *letters))
        .collect();
    json!({
        "in_use": overview.in_use, "bytes": overview.bytes, "next_position": overview.tail,
        "destinations": destinations, "parts": parts, "dead_letters": letters,
        "damaged_dead_letters": overview.damaged_letters,
        "quarantine": overview.quarantine.iter().map(set_aside_json).collect::<Vec<_>>(),
    })
}

/// Prints what was found damaged.
pub(super) fn verification(verification: &Verification, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "read {} parts with {} records of {} events, and {} dead letters",
        verification.parts, verification.records, verification.events, verification.dead_letters
    )?;
    for damage in &verification.damage {
        let part = damage.part.map_or_else(String::new, |part| format!("part {part}: "));
        let position = (damage.position).map_or_else(String::new, |position| format!("record {position}: "));
        writeln!(out, "DAMAGED {part}{position}{}", damage.what)?;
    }
    let more = verification.damaged - verification.damage.len() as u64;
    if more > 0 {
        writeln!(out, "and {more} damaged places more")?;
    }
    if verification.damaged == 0 {
        return writeln!(out, "nothing is damaged");
    }
    cost(verification, out)
}

/// Returns the same as JSON.
pub(super) fn verification_json(verification: &Verification) -> Value {
    let damage: Vec<Value> = (verification.damage.iter())
        .map(|damage| json!({ "part": damage.part, "position": damage.position, "what": damage.what }))
        .collect();
    let cost: Vec<Value> = (verification.cost.iter())
        .map(|(destination, environment, events)| {
            json!({ "destination": destination, "environment": environment, "events": events })
        })
        .collect();
    json!({
        "parts": verification.parts, "records": verification.records, "events": verification.events,
        "dead_letters": verification.dead_letters, "damaged": verification.damaged, "damage": damage,
        "lost": cost, "lost_may_be_more": verification.is_uncounted,
    })
}

/// Prints what was set aside.
pub(super) fn repair(repair: &Repair, out: &mut dyn Write) -> io::Result<()> {
    verification(&repair.verification, out)?;
    if repair.verification.damaged == 0 {
        return Ok(());
    }
    writeln!(out, "\nset aside, in the folder quarantine")?;
    set_aside(&repair.moved, out)?;
    writeln!(
        out,
        "Damaged records in parts that can be read stay where they are; destinations pass them over."
    )
}

/// Returns the same as JSON.
pub(super) fn repair_json(repair: &Repair) -> Value {
    json!({
        "found": verification_json(&repair.verification),
        "moved": repair.moved.iter().map(set_aside_json).collect::<Vec<_>>(),
    })
}

/// Prints rows in columns; the first row is the heading.
pub(super) fn table<const N: usize>(rows: &[[String; N]], out: &mut dyn Write) -> io::Result<()> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let cells: Vec<String> = (row.iter().zip(widths))
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(out, "  {}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Says which events failed and wait for another try, as far as it was written down.
fn retries(note: &[u8], now_ms: u64) -> String {
    match drain::noted(note) {
        None => format!("unknown ({})", bytes(note.len() as u64)),
        Some(Noted { failed: 0, .. }) => "none".to_owned(),
        Some(Noted { failed, next_ms }) => {
            let wait = next_ms.map_or(0, |at| at.saturating_sub(now_ms) / 1000);
            format!("{failed}, first in {wait}s")
        }
    }
}

/// Returns whether a destination is in the configuration, if there is one.
fn is_configured(name: &str, names: Option<&[String]>) -> Option<bool> {
    names.map(|names| names.iter().any(|known| known == name))
}

fn consumer_json(overview: &Overview, names: Option<&[String]>, consumer: &ConsumerStats) -> Value {
    let waiting: BTreeMap<&str, u64> = (consumer.waiting.iter())
        .map(|(environment, events)| (environment.as_str(), *events))
        .collect();
    let (letters, transient) = letters(overview, &consumer.name);
    let noted = drain::noted(&consumer.note);
    json!({
        "configured": is_configured(&consumer.name, names), "waiting": waiting, "oldest_waiting_since": consumer.oldest_waiting_ms.map(timestamp),
        "cursor": consumer.position, "note_bytes": consumer.note.len(),
        "failed": noted.map(|noted| noted.failed), "next_try": noted.and_then(|noted| noted.next_ms).map(timestamp),
        "dead_letters": letters, "transient_dead_letters": transient,
    })
}

fn cost(verification: &Verification, out: &mut dyn Write) -> io::Result<()> {
    if verification.cost.is_empty() && !verification.is_uncounted {
        writeln!(out, "this costs no destination an event that waits")?;
    }
    for (destination, environment, events) in &verification.cost {
        writeln!(out, "this costs {destination} {events} events of {environment}")?;
    }
    if verification.is_uncounted {
        writeln!(out, "and what the newest part held: nothing that can be read counts it")?;
    }
    Ok(())
}

fn set_aside(parts: &[SetAside], out: &mut dyn Write) -> io::Result<()> {
    if parts.is_empty() {
        return writeln!(out, "  nothing");
    }
    let mut rows = vec![["name", "on disk", "last written"].map(str::to_owned)];
    for part in parts {
        rows.push([part.name.clone(), bytes(part.bytes), timestamp(part.changed_ms)]);
    }
    table(&rows, out)
}

fn set_aside_json(part: &SetAside) -> Value {
    json!({ "name": part.name, "bytes": part.bytes, "last_written": timestamp(part.changed_ms) })
}

fn letters(overview: &Overview, name: &str) -> (u64, u64) {
    let found = overview.dead_letters.iter().find(|(known, ..)| known == name);
    found.map_or((0, 0), |(_, letters, transient)| (*letters, *transient))
}

fn since(ms: u64, now_ms: u64) -> String {
    let ago = Duration::from_secs(now_ms.saturating_sub(ms) / 1000);
    format!("{} ({} ago)", timestamp(ms), format_duration(ago))
}

fn bytes(bytes: u64) -> String {
    // Exact below a KiB; above, what a person can compare.
    match bytes {
        0..1024 => format!("{bytes}B"),
        1024..1_048_576 => ByteSize::kib(bytes / 1024).to_string(),
        _ => ByteSize::mib(bytes / 1_048_576).to_string(),
    }
}
