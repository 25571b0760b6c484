//! The claim of `docs/adding-a-destination.md` as a test: a kind of destination is one file or folder, one line in the
//! registry and the contract suite, with its table of answers, its page and its keys; nothing else knows it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::layering::{imports, rust_files, source};

/// Who may name a kind beside its own files and the registry: the start without a file exports to a folder, and the
/// suites about reading settings name what they read.
const MAY_NAME: [(&str, &str); 4] = [
    ("src/config/destinations.rs", "file"),
    ("src/config/tests.rs", "kinesis"),
    ("src/destination/reading.rs", "*"),
    ("src/destination/mod.rs", "*"),
];

/// The repository's files by their paths in it.
type Tree = BTreeMap<String, String>;

/// A line of the registry.
#[derive(Debug, PartialEq, Eq)]
struct Kind {
    variant: String,
    name: String,
    module: String,
}

/// Scenario: every kind in the registry.
/// Guarantees: it has all parts that a kind has, and no other source file names it.
#[test]
fn a_kind_is_its_files_one_registry_line_and_the_contract() {
    let tree = repository();
    let kinds = registry(&tree["src/destination/mod.rs"]);
    assert!(kinds.len() >= 3, "{kinds:?}");
    let missing: Vec<String> = kinds.iter().flat_map(|kind| missing(&tree, kind)).collect();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Scenario: a made-up tree with a kind that has everything, and the same with one part broken at a time.
/// Guarantees: the check can fail, in each of its parts.
#[test]
fn a_part_that_is_missing_is_seen() {
    let whole = made_up();
    let kinds = registry(&whole["src/destination/mod.rs"]);
    assert_eq!(
        kinds,
        [
            Kind {
                variant: "Pigeon".to_owned(),
                name: "carrier_pigeon".to_owned(),
                module: "pigeon".to_owned()
            },
            Kind {
                variant: "File".to_owned(),
                name: "file".to_owned(),
                module: "file".to_owned()
            },
        ]
    );
    let found = |tree: &Tree| missing(tree, &kinds[0]);
    assert_eq!(found(&whole), [""; 0]);
    let changed = |path: &str, from: &str, to: &str| {
        let mut tree = whole.clone();
        let text = tree.get_mut(path).unwrap();
        assert!(text.contains(from), "{path} has no {from}");
        *text = text.replace(from, to);
        found(&tree).join("\n")
    };
    let module = "src/destination/pigeon/mod.rs";
    for (path, from, to, says) in [
        (module, "ANSWERS", "NOTES", "no table of answers"),
        (
            "src/destination/pigeon/tests.rs",
            "contract::holds(",
            "contract::folds(",
            "not held to the contract",
        ),
        (
            "config.example.yaml",
            "carrier_pigeon:",
            "pigeon:",
            "no keys in config.example.yaml",
        ),
        (
            "docs/destinations/README.md",
            "carrier_pigeon.md",
            "pigeon.md",
            "not listed in docs/destinations/README.md",
        ),
        (
            "src/drain/mod.rs",
            "destination::Item",
            "destination::pigeon::Loft",
            "src/drain/mod.rs names",
        ),
        (
            "src/drain/mod.rs",
            "Item;",
            "Item; fn f() { Settings::Pigeon(_) }",
            "src/drain/mod.rs names",
        ),
        (
            "src/destination/file.rs",
            "super::Item",
            "super::pigeon::Loft",
            "src/destination/file.rs names",
        ),
    ] {
        let said = changed(path, from, to);
        assert!(said.contains(says), "{from} -> {to}: {said:?}");
    }
    for (path, says) in [
        (module, "no file src/destination/pigeon.rs"),
        ("docs/destinations/carrier_pigeon.md", "no page"),
    ] {
        let mut tree = whole.clone();
        tree.remove(path);
        assert!(found(&tree).join("\n").contains(says), "{path}");
    }
}

/// Returns what a kind lacks, and who names it but should not.
fn missing(tree: &Tree, kind: &Kind) -> Vec<String> {
    let Kind { variant, name, module } = kind;
    let file = format!("src/destination/{module}.rs");
    let folder = format!("src/destination/{module}/");
    let own = |path: &str| path == file || path.starts_with(&folder);
    let mut wrong = Vec::new();
    let mut must = |holds: bool, why: String| {
        if !holds {
            wrong.push(format!("{name}: {why}"));
        }
    };
    let has_file = tree.contains_key(&file) || tree.contains_key(&format!("{folder}mod.rs"));
    must(has_file, format!("no file {file} or {folder}mod.rs"));
    let own_files = || tree.iter().filter(|(path, _)| own(path));
    let declares = |words: &str| own_files().any(|(_, text)| text.contains(words));
    must(declares("const ANSWERS: &[Answer]"), "no table of answers".to_owned());
    must(declares("contract::holds("), "not held to the contract".to_owned());
    let page = format!("docs/destinations/{name}.md");
    must(tree.contains_key(&page), format!("no page {page}"));
    let overview = tree
        .get("docs/destinations/README.md")
        .map(String::as_str)
        .unwrap_or_default();
    must(
        overview.contains(&format!("]({name}.md)")),
        "not listed in docs/destinations/README.md".to_owned(),
    );
    let example = tree.get("config.example.yaml").map(String::as_str).unwrap_or_default();
    let key = format!("{name}:");
    let shown = example
        .lines()
        .any(|line| line.trim_start_matches(['#', ' ']).starts_with(&key));
    must(shown, "no keys in config.example.yaml".to_owned());
    for (path, text) in tree.iter().filter(|(path, _)| path.starts_with("src/") && !own(path)) {
        let may = MAY_NAME
            .iter()
            .any(|(allowed, kind)| allowed == path && (*kind == "*" || kind == module));
        if may {
            continue;
        }
        let imported = imports(&source(Path::new(path), text.clone()))
            .into_iter()
            .any(|(_, target)| target.starts_with(&["destination".to_owned(), module.clone()]));
        let matched = text
            .split(&format!("Settings::{variant}"))
            .skip(1)
            .any(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'));
        must(!imported && !matched, format!("{path} names {module}"));
    }
    wrong
}

/// Returns the lines of the registry: `Variant = "kind" as alias: module in field,`, perhaps behind a feature.
fn registry(text: &str) -> Vec<Kind> {
    let (_, lines) = text.split_once("\nregistry! {\n").unwrap();
    let (lines, _) = lines.split_once("\n}").unwrap();
    lines
        .lines()
        .map(|line| {
            let line = line
                .rsplit_once("] ")
                .map_or(line, |(_, behind_the_feature)| behind_the_feature);
            let (variant, rest) = line.split_once(" = \"").unwrap_or_else(|| panic!("{line}"));
            let (name, rest) = rest.split_once('"').unwrap();
            let (_, module) = rest.split_once(": ").unwrap();
            Kind {
                variant: variant.trim().to_owned(),
                name: name.to_owned(),
                module: module.split([' ', ',']).next().unwrap().to_owned(),
            }
        })
        .collect()
}

fn repository() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    rust_files(&root.join("src"), &mut paths);
    paths.push(root.join("config.example.yaml"));
    let pages = fs::read_dir(root.join("docs/destinations")).unwrap();
    paths.extend(pages.map(|page| page.unwrap().path()));
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

fn made_up() -> Tree {
    let registry = "macro_rules! registry { () => {} }\n\nregistry! {\n    \
                    #[cfg(feature = \"pigeon\")] Pigeon = \"carrier_pigeon\" as \"carrier-pigeon\": pigeon in loft,\n    \
                    File = \"file\": file,\n}\n";
    [
        ("src/destination/mod.rs", registry),
        ("src/destination/file.rs", "use super::Item;"),
        (
            "src/destination/pigeon/mod.rs",
            "pub(super) const ANSWERS: &[Answer] = &[];",
        ),
        ("src/destination/pigeon/tests.rs", "contract::holds(&pigeon).await;"),
        ("src/drain/mod.rs", "use crate::destination::Item;"),
        (
            "src/config/destinations.rs",
            "use crate::destination::{Settings, file};",
        ),
        (
            "config.example.yaml",
            "destinations:\n  #- name: x\n  #  carrier_pigeon:\n",
        ),
        (
            "docs/destinations/README.md",
            "| [`carrier_pigeon`](carrier_pigeon.md) |",
        ),
        ("docs/destinations/carrier_pigeon.md", "# `carrier_pigeon`"),
    ]
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .into()
}
