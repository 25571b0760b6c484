//! What a destination has received, as tests look at it.

use std::fs;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

/// Returns the lines of a `file` destination's folder, oldest file first; the active file is included.
pub(crate) fn read_lines(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.split('.').next().unwrap_or_default().to_owned();
        let (time, number) = stem.rsplit_once('-').unwrap_or((&stem, "0"));
        (time.to_owned(), number.parse::<u64>().unwrap_or(0))
    });
    let mut lines = Vec::new();
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        let text = if path.extension().is_some_and(|extension| extension == "gz") {
            inflate(&bytes)
        } else {
            bytes
        };
        let text = String::from_utf8(text).unwrap();
        // A line that is being written has no line feed yet.
        lines.extend(
            text.split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'))
                .map(str::to_owned),
        );
    }
    lines
}

/// Returns a gzip file's content.
pub(crate) fn inflate(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut text).unwrap();
    text
}

/// Returns the `key` of each exported event: tests mark their events with it.
pub(crate) fn markers(lines: &[String]) -> Vec<String> {
    let keys = lines
        .iter()
        .map(|line| event(line)["key"].as_str().unwrap_or_default().to_owned());
    keys.collect()
}

/// Returns the event in an export line.
pub(crate) fn event(line: &str) -> Value {
    let envelope: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    envelope["event"].clone()
}

/// Returns the event id in an export line.
pub(crate) fn id(line: &str) -> String {
    event(line)["id"]
        .as_str()
        .unwrap_or_else(|| panic!("no id: {line}"))
        .to_owned()
}
