//! Documentation that can be checked is checked: paths exist, generated pages are current.

use std::fs;
use std::path::Path;
use std::process::Command;

const PAGES: [&str; 8] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs",
    "docs/destinations/file.md",
    "docs/destinations/google_pubsub.md",
    "docs/destinations/kinesis.md",
    "docs/destinations/stdout.md",
];

/// Scenario: every path of this repository that a page names in backticks or as a link; sources also without `src/`.
/// Guarantees: it exists.
#[test]
fn paths_named_in_the_documentation_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    for page in PAGES.map(|page| root.join(page)) {
        if page.is_dir() {
            pages.extend(fs::read_dir(page).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            pages.push(page);
        }
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md") && page.exists());
    assert!(!pages.is_empty());
    let mut missing = Vec::new();
    for page in &pages {
        for named in paths_in(&fs::read_to_string(page).unwrap()) {
            let bases = [root, &root.join("src"), page.parent().unwrap()];
            if !bases.iter().any(|base| base.join(&named).exists()) {
                missing.push(format!("{} names {named}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Scenario: the binary prints the pages that come from its own tables.
/// Guarantees: the pages in `docs/` are those.
#[test]
fn the_generated_pages_are_current() {
    for name in ["metrics", "destinations"] {
        let output = Command::new(env!("CARGO_BIN_EXE_flagtap")).arg(name).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/{name}.md"));
        assert_eq!(
            fs::read_to_string(page).unwrap_or_default(),
            String::from_utf8(output.stdout).unwrap(),
            "docs/{name}.md is not current: run `make docs`"
        );
    }
}

/// Returns the paths of this repository named in a page.
fn paths_in(text: &str) -> Vec<String> {
    const FOLDERS: [&str; 8] = [
        "src/", "tests/", "docs/", "scripts/", "benches/", "fuzz/", "helm/", ".ci/",
    ];
    let quoted = text.split('`').skip(1).step_by(2);
    let linked = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let cut = |word: &str| {
        word.split(['#', ':'])
            .next()
            .unwrap_or_default()
            .trim_end_matches('/')
            .to_owned()
    };
    let ours = |word: &&str| {
        // A path from the root is one of a container.
        if word.starts_with('/') {
            return false;
        }
        let root_file = word.ends_with(".md") || word.ends_with(".yaml") || *word == "Makefile";
        let source = word.contains('/') && word.ends_with(".rs");
        // A path that begins with a slash is one of a machine that flagtap runs on.
        !word.starts_with('/')
            && !word.contains([' ', '*', '<', '{', '…', '\n'])
            && !word.contains("://")
            && (FOLDERS.iter().any(|folder| word.starts_with(folder))
                || source
                || (root_file && !word.contains("config.yaml")))
    };
    let links = linked.filter(|word| !word.contains("://") && !word.starts_with(['#', '/']) && !word.contains(' '));
    quoted
        .filter(ours)
        .map(cut)
        .chain(links.map(cut))
        .filter(|path| !path.is_empty())
        .collect()
}

/// Scenario: a page with good and bad paths.
/// Guarantees: the check can fail.
#[test]
fn paths_are_found_in_text() {
    let text = "see `src/lib.rs`, `queue/mod.rs`, `src/{a,b}.rs`, `mod.rs`, [the tests](docs/testing.md#x) and `cargo test` \
                at [home](https://x.y)";
    assert_eq!(paths_in(text), ["src/lib.rs", "queue/mod.rs", "docs/testing.md"]);
}
