//! The settings of the export record, which all destinations that receive it share, and the record they describe.
//!
//! Where LaunchDarkly's documentation and samples disagree about the record, the default is what its SDKs send and the
//! other reading is a setting here.

use crate::export::{ExportEvent, envelope};
use crate::section::Section;

crate::choices! {
    /// Which generation of the export schema a record has.
    pub enum Schema {
        /// That of the SDK which sent the event: 1 for users, 2 for contexts.
        Auto = "auto",
        /// 1 for all: an event about contexts becomes one about its `user`.
        One = "1",
        /// 2 for all: an event about a user becomes one about a context of kind `user`.
        Two = "2",
    }
}

/// How records are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The schema's generation.
    pub schema: Schema,
}

impl Default for Form {
    fn default() -> Self {
        Self { schema: Schema::Auto }
    }
}

impl Form {
    /// Reads the keys of a destination that receives export records.
    pub fn read(section: &mut Section<'_>) -> Self {
        Self {
            schema: section.or("schema", Schema::Auto),
        }
    }

    /// Returns the export record of an event: one JSON object, no newline. The error is why the event has none in this
    /// form, a value of the metric label `reason`.
    pub fn render(&self, event: &ExportEvent<'_>) -> Result<Vec<u8>, &'static str> {
        Ok(envelope::render(event))
    }
}
