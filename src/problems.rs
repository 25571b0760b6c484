//! Problems found in a configuration, each with its place.
//!
//! All problems of a file are collected and shown together, in the order of the file. A problem names the thing, the
//! place and the remedy. It never shows a line of the file or a value: either could hold a secret.

use std::fmt;

/// Where something stands in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Keys from the root, e.g. `destinations[1].kinesis.region`; empty for the file as a whole.
    pub path: String,
    /// Line from 1; 0 if the place is not in a file.
    pub line: usize,
    /// Column from 1, in characters; 0 if the place is not in a file.
    pub column: usize,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is not used.
    Error,
    /// The configuration is used, and probably does not mean what it says.
    Warning,
}

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and what would be right. Lowercase, no full stop, never a value from the file.
    pub message: String,
}

/// The problems of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// Returns a list that holds one error.
    pub fn one(place: Place, message: impl Into<String>) -> Self {
        let mut problems = Self::default();
        problems.error(place, message);
        problems
    }

    /// Adds an error.
    pub fn error(&mut self, place: Place, message: impl Into<String>) {
        self.add(place, Severity::Error, message.into());
    }

    /// Adds a warning.
    pub fn warning(&mut self, place: Place, message: impl Into<String>) {
        self.add(place, Severity::Warning, message.into());
    }

    /// Returns true if there is at least one error.
    pub fn has_errors(&self) -> bool {
        self.errors() > 0
    }

    /// Returns the number of errors.
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|p| p.severity == Severity::Error).count()
    }

    /// Returns true if there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the problems in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// Returns one line per problem: `config.yaml:12:5: destinations[1].kinesis.region: is missing`.
    pub fn render(&self, file: &str) -> String {
        let mut text = String::new();
        for problem in &self.list {
            text.push_str(&problem.render(file));
            text.push('\n');
        }
        text
    }

    /// Returns one line per error, without the warnings.
    pub fn errors_only(&self, file: &str) -> Vec<String> {
        let errors = self.list.iter().filter(|p| p.severity == Severity::Error);
        errors.map(|problem| problem.render(file)).collect()
    }

    fn add(&mut self, place: Place, severity: Severity, message: String) {
        let problem = Problem {
            place,
            severity,
            message,
        };
        // After those of the same place, so that the list is always in the order of the file.
        let at = self
            .list
            .partition_point(|p| (p.place.line, p.place.column) <= (problem.place.line, problem.place.column));
        self.list.insert(at, problem);
    }
}

impl Problem {
    /// Returns the problem as one line without its end.
    pub fn render(&self, file: &str) -> String {
        let Place { path, line, column } = &self.place;
        let mut text = file.to_owned();
        if *line > 0 {
            text.push_str(&format!(":{line}:{column}"));
        }
        text.push_str(": ");
        if self.severity == Severity::Warning {
            text.push_str("warning: ");
        }
        if !path.is_empty() {
            text.push_str(&format!("{path}: "));
        }
        text.push_str(&self.message);
        text
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render("configuration").trim_end())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str, line: usize, column: usize) -> Place {
        Place {
            path: path.to_owned(),
            line,
            column,
        }
    }

    #[test]
    fn renders_file_place_path_and_message_in_the_order_of_the_file() {
        let mut problems = Problems::default();
        problems.error(place("destinations[1].kinesis.region", 12, 5), "is missing");
        problems.warning(place("destinations[0]", 3, 5), "is not used by any environment");
        problems.error(place("", 1, 1), "needs environments");
        assert_eq!(
            problems.render("config.yaml"),
            "config.yaml:1:1: needs environments\n\
             config.yaml:3:5: warning: destinations[0]: is not used by any environment\n\
             config.yaml:12:5: destinations[1].kinesis.region: is missing\n"
        );
        assert_eq!(problems.errors(), 2);
        assert_eq!(
            problems.errors_only("c"),
            [
                "c:1:1: needs environments",
                "c:12:5: destinations[1].kinesis.region: is missing"
            ]
        );
    }

    #[test]
    fn warnings_alone_are_no_errors() {
        let mut problems = Problems::default();
        problems.warning(Place::default(), "odd");
        assert!(!problems.has_errors() && !problems.is_empty());
        assert_eq!(problems.render("embedded"), "embedded: warning: odd\n");
    }
}
