//! What the image is built from is let into its build.

use std::fs;
use std::path::{Path, PathBuf};

/// Scenario: the files that sources of the binary include at compile time, and what `.dockerignore` lets in.
/// Guarantees: the build stage of the Dockerfile has them all.
#[test]
fn the_build_stage_has_what_the_sources_include() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().unwrap();
    let ignored = fs::read_to_string(root.join(".dockerignore")).unwrap();
    let let_in: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"), "all else is left out");
    let (mut files, mut included) = (vec![root.join("src")], 0);
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        if path.ends_with("tests.rs") || path.parent().unwrap().ends_with("tests") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for name in ["include_str!(\"", "include_bytes!(\""] {
            for rest in code.split(name).skip(1) {
                let named = path.parent().unwrap().join(rest.split('"').next().unwrap());
                let file: PathBuf = named.canonicalize().unwrap();
                let file = file.strip_prefix(&root).unwrap();
                let is_there = let_in.iter().any(|entry| file.starts_with(entry));
                assert!(is_there, "{} includes {}", path.display(), file.display());
                included += 1;
            }
        }
    }
    assert!(included >= 2, "{included}");
}
