//! `flagtap schema`: the JSON Schema of the configuration file, for editors, Helm and other tools.

use std::collections::BTreeMap;

use crate::config::Config;

/// The page with the meaning of each key; a test holds it complete.
const MEANINGS: &str = include_str!("../../docs/configuration.md");

/// Returns the schema's text.
pub(super) fn document() -> String {
    let meanings = meanings();
    let mut schema = Config::schema(&|path| meanings.get(path).map(|meaning| (*meaning).to_owned()));
    schema["title"] = "flagtap's configuration".into();
    format!("{schema:#}\n")
}

/// Returns the last column of the page's table by its first.
fn meanings() -> BTreeMap<&'static str, &'static str> {
    let rows = MEANINGS.lines().filter_map(|line| {
        let cells = line.strip_prefix("| `")?.strip_suffix(" |")?;
        let (path, rest) = cells.split_once('`')?;
        Some((path, rest.rsplit_once(" | ")?.1))
    });
    rows.collect()
}
