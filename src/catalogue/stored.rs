//! The copy on disk, in the file `catalogue` beside the queue: JSON of [`Catalogue`] behind the first line of
//! [`crate::kept`].

use std::io;
use std::path::Path;

use super::Catalogue;
use crate::kept::{Found, Kept};

const KEPT: Kept = Kept {
    name: "catalogue",
    head: "flagtap-catalogue 1",
    most_bytes: 256 * 1024 * 1024,
};

/// Reads the copy in `folder`. What cannot be read is reported, and damage put aside: it is fetched anew.
pub fn load(folder: &Path) -> Found<Catalogue> {
    KEPT.load(folder, parse)
}

/// Reads the copy in `folder`, which may belong to a running relay: changes nothing. Empty if nothing can be read.
pub fn look(folder: &Path) -> Catalogue {
    KEPT.look(folder, parse).unwrap_or_default()
}

/// Replaces the copy. Blocks on the disk.
pub fn write(folder: &Path, catalogue: &Catalogue) -> io::Result<()> {
    KEPT.write(folder, &serde_json::to_string(catalogue)?)
}

fn parse(text: &str) -> Result<Catalogue, &'static str> {
    serde_json::from_str(text).map_err(|_| "does not hold a catalogue")
}
