//! The architecture as a test: who may import whom, and how long a file may be.
//!
//! A file imports only from lower levels and from the `mod.rs` files of the folders it is in; siblings never import
//! siblings, but for the files of one unit ([`UNITS`]). Suites under `cfg(test)` may import what they test.

use std::fs;
use std::path::{Path, PathBuf};

const MOST_LINES: usize = 500;

/// Folders whose files are one thing in several files, and may import each other. `*` is any name.
const UNITS: [&[&str]; 15] = [
    &["admin"],
    &["app"],
    &["catalogue"],
    &["cli", "demo"],
    &["cli", "import"],
    &["cli", "queue"],
    &["config"],
    &["coverage"],
    &["destination", "*"],
    &["drain"],
    &["injector"],
    &["platform", "launchdarkly"],
    &["queue", "sled"],
    &["record"],
    &["section"],
];

/// Returns a module's level, for a path such as `queue::sled::writer`. Levels of ten are those of `ARCHITECTURE.md`;
/// five between them orders the modules of one level.
fn level(module: &[String]) -> Option<u8> {
    let names: Vec<&str> = module.iter().map(String::as_str).collect();
    Some(match names[..] {
        [
            "backoff" | "kept" | "units" | "secret" | "problems" | "shutdown" | "inflate" | "trust" | "notices" | "log",
            ..,
        ] => 0,
        ["section", ..] => 5,
        ["event" | "metrics" | "overrides", ..] => 10,
        ["listen", "unreadable"] => 11,
        ["listen", ..] => 12,
        ["record", ..] => 15,
        ["attempts" | "glob" | "web"] => 7,
        ["export", "form" | "selection" | "redact", ..] => 22,
        ["export", "narrow", ..] => 23,
        ["export", ..] => 20,
        ["catalogue", ..] => 23,
        ["coverage", ..] => 24,
        ["platform" | "queue" | "destination"] => 25,
        ["destination", "answers"] => 27,
        ["platform" | "queue" | "destination", _, ..] => 30,
        ["config" | "proxy" | "drain" | "admin" | "injector", ..] => 40,
        ["app", ..] => 50,
        ["cli" | "main", ..] => 60,
        _ => return None,
    })
}

/// A source file: its module path, and whether it is the `mod.rs` of its folder.
pub(crate) struct Source {
    path: PathBuf,
    module: Vec<String>,
    is_folder: bool,
    text: String,
}

/// Scenario: every `crate::`, `super::` and `self::` path in `src`.
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
        for (number, target) in imports(source) {
            // The longest prefix that is a file; the rest of the path is an item in it.
            let found = modules
                .iter()
                .filter(|module| !module.is_empty() && target.starts_with(module));
            let Some(target) = found.max_by_key(|module| module.len()) else {
                continue;
            };
            if !may_import(source, own, target) {
                let (path, target) = (source.path.display(), target.join("::"));
                wrong.push(format!("{path}:{number} imports {target}"));
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
        let source = made_up(from, is_folder, "");
        may_import(&source, level(&source.module).unwrap(), &split(to))
    };
    assert!(judge("queue::memory", false, "record"));
    assert!(judge("queue::memory", false, "queue"));
    assert!(judge("queue::sled::writer", false, "queue::sled::files"));
    assert!(judge("queue::sled", true, "queue::sled::writer"));
    assert!(judge("drain::retry", false, "drain"));
    assert!(judge("drain", true, "drain::retry"));
    assert!(judge("drain::window", false, "drain::pack"));
    assert!(judge("destination::file::folder", false, "destination::file"));
    assert!(judge("app", false, "queue::sled"));
    assert!(judge("export::envelope", false, "export"));
    assert!(!judge("record", false, "queue"));
    assert!(!judge("queue::memory", false, "queue::sled"));
    assert!(!judge("queue::memory", false, "queue::ledger"));
    assert!(judge("destination::webhook", false, "destination::answers"));
    assert!(!judge("destination::answers", false, "destination::webhook"));
    assert!(!judge("destination::file", true, "destination::kinesis"));
    assert!(!judge(
        "destination::file::folder",
        false,
        "destination::kinesis::verdict"
    ));
    assert!(!judge("proxy", true, "drain"));
    assert!(!judge("proxy::tee", false, "proxy::capture"));
    assert!(!judge("cli::check", false, "cli::serve"));
    assert!(!judge("config", false, "app"));
}

/// Scenario: made-up files that name their neighbours in every way.
/// Guarantees: all are resolved to the module they mean.
#[test]
fn relative_paths_are_resolved() {
    let named = |from: &str, is_folder: bool, text: &str| -> Vec<String> {
        let found = imports(&made_up(from, is_folder, text));
        found.into_iter().map(|(_, path)| path.join("::")).collect()
    };
    let tree = "use crate::{event::Kind, queue::{Queue, sled::Sled}};\n// crate::app\n";
    assert_eq!(
        named("proxy", true, tree),
        ["event::Kind", "queue::Queue", "queue::sled::Sled"]
    );
    assert_eq!(
        named("queue::memory", false, "use super::{\n    sled::Sled,\n    Queue,\n};"),
        ["queue::sled::Sled", "queue::Queue"]
    );
    assert_eq!(
        named("queue::sled", true, "use super::memory::X;"),
        ["queue::memory::X"]
    );
    assert_eq!(
        named("queue::sled::open", false, "fn f(x: super::super::memory::X) {}"),
        ["queue::memory::X"]
    );
    assert_eq!(
        named("queue", true, "pub use self::ledger::Ledger;"),
        ["queue::ledger::Ledger"]
    );
    assert_eq!(
        named("drain", true, "macro_rules! m { () => { $crate::app::x } }"),
        ["app::x"]
    );
    assert!(
        named(
            "drain",
            true,
            "let mysuper::x = y;\n#[cfg(test)]\nmod tests { use super::*; }"
        )
        .is_empty()
    );
}

fn made_up(module: &str, is_folder: bool, text: &str) -> Source {
    Source {
        path: PathBuf::new(),
        module: split(module),
        is_folder,
        text: text.to_owned(),
    }
}

fn split(path: &str) -> Vec<String> {
    path.split("::").map(str::to_owned).collect()
}

fn may_import(source: &Source, own: u8, target: &[String]) -> bool {
    let module = &source.module;
    let folder = source.folder();
    if target == module.as_slice() || (source.is_folder && target.starts_with(folder)) {
        return true; // itself, or the files of its own folder
    }
    if !folder.is_empty() && folder.starts_with(target) {
        return true; // the mod.rs of a folder that it is in
    }
    if unit(module).is_some_and(|unit| target.starts_with(unit)) {
        return true;
    }
    // Siblings have the same level, so they are no exception.
    level(target).is_some_and(|level| level < own)
}

/// Returns the part of a module's path that names the unit it belongs to.
fn unit(module: &[String]) -> Option<&[String]> {
    let matches = |unit: &&&[&str]| {
        module.len() >= unit.len() && unit.iter().zip(module).all(|(name, part)| *name == "*" || name == part)
    };
    UNITS.iter().find(matches).map(|unit| &module[..unit.len()])
}

impl Source {
    /// Returns the folder that the file is in: its own if it is a `mod.rs`.
    fn folder(&self) -> &[String] {
        if self.is_folder {
            &self.module
        } else {
            &self.module[..self.module.len() - 1]
        }
    }

    /// Returns what a path beginning with this keyword starts from.
    fn start(&self, keyword: &str) -> Vec<String> {
        match keyword {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            _ => self.module[..self.module.len() - 1].to_vec(),
        }
    }
}

/// Returns the line number and module path of each path outside comments and tests that begins with `crate::`,
/// `super::` or `self::`.
pub(crate) fn imports(source: &Source) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    // Unit tests stand at the end of their file.
    let shipped = source
        .text
        .split("\n#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    let mut lines = shipped.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let mut code = line.split("//").next().unwrap_or_default().to_owned();
        if ["crate::{", "super::{", "self::{"]
            .iter()
            .any(|group| code.contains(group))
        {
            while code.matches('{').count() > code.matches('}').count() {
                let Some((_, next)) = lines.next() else { break };
                code.push_str(next.split("//").next().unwrap_or_default());
            }
        }
        for keyword in ["crate", "super", "self"] {
            for (place, _) in code.match_indices(&format!("{keyword}::")) {
                // Part of a longer name, or a `super` that the first one of its path takes along.
                if code[..place].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                let rest = &code[place + keyword.len() + 2..];
                let start = source.start(keyword);
                found.extend(expand(rest, &start).into_iter().map(|path| (index + 1, path)));
            }
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
        match &rest[..end] {
            "" | "self" => {}
            "super" => drop(path.pop()),
            name => path.push(name.to_owned()),
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
        let text = fs::read_to_string(&path).unwrap();
        let relative = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        source(relative, text)
    });
    // Suites that a parent includes under cfg(test) are no part of the crate.
    let all: Vec<Source> = read.collect();
    let test_only: Vec<Vec<String>> = all.iter().flat_map(test_modules).collect();
    all.into_iter()
        .filter(|source| !test_only.iter().any(|module| source.module.starts_with(module)))
        .collect()
}

/// Returns the file at this path in the repository, below `src/`.
pub(crate) fn source(path: &Path, text: String) -> Source {
    let relative = path.strip_prefix("src").unwrap().with_extension("");
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
    Source {
        path: path.to_owned(),
        module,
        is_folder,
        text,
    }
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

/// Adds the Rust files below a folder.
pub(crate) fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
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
