//! The architecture as a test: who may import whom, and how long a file may be.
//!
//! A file imports only from lower levels and from the `mod.rs` files of the folders it is in; siblings never import
//! siblings, but for the files of one implementation (`queue/sled/*`, `platform/launchdarkly/*`). Suites under
//! `cfg(test)` may import what they test.

use std::fs;
use std::path::{Path, PathBuf};

const MOST_LINES: usize = 500;

/// Returns a module's level, for a path such as `queue::sled::writer`. Levels of ten are those of `ARCHITECTURE.md`;
/// five between them orders the modules of one level.
fn level(module: &[String]) -> Option<u8> {
    let names: Vec<&str> = module.iter().map(String::as_str).collect();
    Some(match names[..] {
        ["backoff" | "units" | "secret" | "problems" | "shutdown" | "inflate", ..] => 0,
        ["section", ..] => 5,
        ["event" | "metrics", ..] => 10,
        ["record", ..] => 15,
        ["export", ..] => 20,
        ["platform" | "queue" | "destination"] => 25,
        ["platform" | "queue" | "destination", _, ..] => 30,
        ["config" | "proxy" | "drain" | "admin", ..] => 40,
        ["app", ..] => 50,
        ["cli" | "main", ..] => 60,
        _ => return None,
    })
}

/// A source file: its module path, and whether it is the `mod.rs` of its folder.
struct Source {
    path: PathBuf,
    module: Vec<String>,
    is_folder: bool,
    text: String,
}

/// Scenario: every `crate::` path in `src`.
/// Guarantees: dependencies point downwards.
#[test]
fn imports_point_downwards() {
    let sources = sources();
    assert!(sources.len() > 15, "the sources were not found");
    let modules: Vec<&[String]> = sources.iter().map(|source| source.module.as_slice()).collect();
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| !source.module.is_empty()) {
        let Some(own) = level(&source.module) else {
            wrong.push(format!("{} has no level in this test's table", source.path.display()));
            continue;
        };
        for (number, target) in imports(&source.text) {
            // The longest prefix that is a file; the rest of the path is an item in it.
            let found = modules
                .iter()
                .filter(|module| !module.is_empty() && target.starts_with(module));
            let Some(target) = found.max_by_key(|module| module.len()) else {
                continue;
            };
            if !may_import(source, own, target) {
                let (path, target) = (source.path.display(), target.join("::"));
                wrong.push(format!("{path}:{number} imports crate::{target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the levels:\n{}", wrong.join("\n"));
}

/// Scenario: every file of the crate and of its tests.
/// Guarantees: each can be read in one go.
#[test]
fn files_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    ["src", "tests", "benches"]
        .iter()
        .for_each(|folder| rust_files(&root.join(folder), &mut paths));
    let lengths = paths
        .iter()
        .map(|path| (fs::read_to_string(path).unwrap().lines().count(), path));
    let long: Vec<_> = lengths.filter(|(lines, _)| *lines >= MOST_LINES).collect();
    assert!(long.is_empty(), "files of {MOST_LINES} lines and more: {long:?}");
}

/// Scenario: the rules above applied to made-up imports.
/// Guarantees: the check can fail.
#[test]
fn imports_against_the_levels_are_seen() {
    let judge = |from: &str, is_folder: bool, to: &str| {
        let split = |path: &str| path.split("::").map(str::to_owned).collect::<Vec<_>>();
        let source = Source {
            path: PathBuf::new(),
            module: split(from),
            is_folder,
            text: String::new(),
        };
        may_import(&source, level(&source.module).unwrap(), &split(to))
    };
    assert!(judge("queue::memory", false, "record"));
    assert!(judge("queue::memory", false, "queue"));
    assert!(judge("queue::sled::writer", false, "queue::sled::files"));
    assert!(judge("queue::sled", true, "queue::sled::writer"));
    assert!(judge("drain::retry", false, "drain"));
    assert!(judge("drain", true, "drain::retry"));
    assert!(judge("app", false, "queue::sled"));
    assert!(judge("export::envelope", false, "export"));
    assert!(!judge("record", false, "queue"));
    assert!(!judge("queue::memory", false, "queue::sled"));
    assert!(!judge("destination::file", false, "destination::kinesis"));
    assert!(!judge("drain::retry", false, "drain::pack"));
    assert!(!judge("proxy", true, "drain"));
    assert!(!judge("config", false, "app"));
    assert_eq!(
        imports("use crate::{event::Kind, queue::{Queue, sled::Sled}};\n// crate::app\n").len(),
        3
    );
}

fn may_import(source: &Source, own: u8, target: &[String]) -> bool {
    let module = &source.module;
    let folder = if source.is_folder {
        module.as_slice()
    } else {
        &module[..module.len() - 1]
    };
    if target == module.as_slice() || (source.is_folder && target.starts_with(folder)) {
        return true; // itself, or the files of its own folder
    }
    if !folder.is_empty() && folder.starts_with(target) {
        return true; // the mod.rs of a folder that it is in
    }
    if folder.len() >= 2 && target.starts_with(folder) {
        return true; // another file of the same implementation
    }
    if matches!(folder, [only] if only == "record" || only == "section") && target.starts_with(folder) {
        return true; // one thing in several files
    }
    if module.first() == target.first() && target.len() > 1 {
        return false; // a sibling
    }
    level(target).is_some_and(|level| level < own)
}

/// Returns the line number and module path of each `crate::` path outside comments and tests.
fn imports(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    // Unit tests stand at the end of their file.
    let shipped = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut lines = shipped.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let mut code = line.split("//").next().unwrap_or_default().to_owned();
        if code.contains("crate::{") {
            while code.matches('{').count() > code.matches('}').count() {
                let Some((_, next)) = lines.next() else { break };
                code.push_str(next.split("//").next().unwrap_or_default());
            }
        }
        for rest in code.split("crate::").skip(1) {
            expand(rest, &[])
                .into_iter()
                .for_each(|path| found.push((index + 1, path)));
        }
    }
    found
}

/// Returns the paths of a `use` tree: `a::{b, c::d}` gives `a::b` and `a::c::d`.
fn expand(tree: &str, prefix: &[String]) -> Vec<Vec<String>> {
    let mut path = prefix.to_vec();
    let mut rest = tree.trim_start();
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            return split_group(group).iter().flat_map(|part| expand(part, &path)).collect();
        }
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if end > 0 {
            path.push(rest[..end].to_owned());
        }
        match rest[end..].strip_prefix("::") {
            Some(next) => rest = next,
            None => return vec![path],
        }
    }
}

/// Returns the parts of a brace group, given the text after its opening brace.
fn split_group(text: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    rust_files(&root, &mut paths);
    let read = paths.into_iter().map(|path| {
        let relative = path.strip_prefix(&root).unwrap().with_extension("");
        let mut module: Vec<String> = relative
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect();
        let is_folder = module.last().is_some_and(|name| name == "mod");
        if is_folder {
            module.pop();
        }
        if module == ["lib"] {
            module.clear(); // the crate root names modules and imports nothing
        }
        let text = fs::read_to_string(&path).unwrap();
        Source {
            path,
            module,
            is_folder,
            text,
        }
    });
    // Suites that a parent includes under cfg(test) are no part of the crate.
    let all: Vec<Source> = read.collect();
    let test_only: Vec<Vec<String>> = all.iter().flat_map(test_modules).collect();
    all.into_iter()
        .filter(|source| !test_only.iter().any(|module| source.module.starts_with(module)))
        .collect()
}

fn test_modules(source: &Source) -> Vec<Vec<String>> {
    let lines: Vec<&str> = source.text.lines().collect();
    let marked = lines
        .windows(2)
        .filter(|pair| pair[0].trim().starts_with("#[cfg(test)]"));
    let names = marked.filter_map(|pair| {
        let line = pair[1].trim().strip_suffix(';')?;
        line.rsplit_once("mod ").map(|(_, name)| name.to_owned())
    });
    names
        .map(|name| source.module.iter().cloned().chain([name]).collect())
        .collect()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.ends_with("node_modules") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
}
