//! What services' answers mean: one table per kind of destination, which its code looks answers up in and
//! `docs/destinations.md` shows.
//!
//! An answer that no line covers means [`Means::Retry`]: an event is never given up for an answer nobody knows.

use std::fmt::Write as _;
use std::time::Duration;

use super::Verdict;

/// One line of a table.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The answer.
    pub on: On,
    /// What it means for the events of the request.
    pub means: Means,
    /// Why, and what to do about it, for people.
    pub why: &'static str,
    /// Where the service says so.
    pub source: &'static str,
}

/// An answer, or a group of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// HTTP statuses from the first to the last.
    Status(u16, u16),
    /// An error code, as the service spells it.
    Code(&'static str),
    /// What neither a status nor a code tells; the kind's code looks for it by itself.
    Case(&'static str),
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// [`Verdict::Delivered`].
    Delivered,
    /// [`Verdict::Retry`].
    Retry,
    /// [`Verdict::Blocked`].
    Blocked,
    /// Some event of the request is at fault: halves are sent until it is alone ([`Verdict::Split`]), then it is
    /// given up ([`Verdict::Reject`]).
    Isolate,
    /// Each event of the request has an answer of its own, on further lines.
    PerEvent,
}

impl Means {
    /// Returns the verdict for each of the `items` events of a request. `why` is what the service said, shortened and
    /// without event data; `after` is its own wish.
    pub fn verdict(self, items: usize, why: String, after: Option<Duration>) -> Verdict {
        match self {
            Self::Delivered => Verdict::Delivered,
            Self::Retry | Self::PerEvent => Verdict::Retry { after, why },
            Self::Blocked => Verdict::Blocked { why },
            Self::Isolate if items > 1 => Verdict::Split,
            Self::Isolate => Verdict::Reject { why },
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::Blocked => "blocked",
            Self::Isolate => "isolate",
            Self::PerEvent => "per event",
        }
    }
}

/// Returns what a status means, if the table has it.
pub fn of_status(table: &[Answer], status: u16) -> Option<&Answer> {
    table
        .iter()
        .find(|answer| matches!(answer.on, On::Status(first, last) if (first..=last).contains(&status)))
}

/// Returns what an error code means, if the table has it.
pub fn of_code<'a>(table: &'a [Answer], code: &str) -> Option<&'a Answer> {
    table
        .iter()
        .find(|answer| matches!(answer.on, On::Code(known) if known == code))
}

/// Returns a table as Markdown.
pub(super) fn document(table: &[Answer]) -> String {
    let mut text = "| answer | verdict | why | source |\n|---|---|---|---|\n".to_owned();
    for Answer { on, means, why, source } in table {
        let on = match on {
            On::Status(first, last) if first == last => format!("`{first}`"),
            On::Status(first, last) => format!("`{first}` to `{last}`"),
            On::Code(code) => format!("`{code}`"),
            On::Case(words) => (*words).to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {on} | {} | {why} | {} |", means.as_str(), cite(source));
    }
    text
}

fn cite(source: &str) -> String {
    match source.strip_prefix("https://") {
        Some(address) => format!("[{}]({source})", address.split('/').next().unwrap_or(address)),
        None => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [Answer; 3] = [
        Answer {
            on: On::Status(200, 200),
            means: Means::Delivered,
            why: "taken",
            source: "https://example.com/api/answers",
        },
        Answer {
            on: On::Status(500, 599),
            means: Means::Retry,
            why: "the service has trouble",
            source: "HTTP",
        },
        Answer {
            on: On::Code("BadStream"),
            means: Means::Isolate,
            why: "not valid",
            source: "HTTP",
        },
    ];

    #[test]
    fn answers_are_found_by_status_and_by_code() {
        assert_eq!(of_status(&TABLE, 503).unwrap().means, Means::Retry);
        assert!(of_status(&TABLE, 404).is_none());
        assert_eq!(of_code(&TABLE, "BadStream").unwrap().why, "not valid");
        assert!(of_code(&TABLE, "badstream").is_none());
    }

    #[test]
    fn an_event_at_fault_is_isolated_before_it_is_given_up() {
        let why = "too large".to_owned();
        assert_eq!(Means::Isolate.verdict(2, why.clone(), None), Verdict::Split);
        assert_eq!(Means::Isolate.verdict(1, why.clone(), None), Verdict::Reject { why });
    }

    #[test]
    fn a_table_is_a_page() {
        let page = document(&TABLE);
        assert!(page.contains("| `200` | delivered | taken | [example.com](https://example.com/api/answers) |\n"));
        assert!(page.contains("| `500` to `599` | retry | the service has trouble | HTTP |\n"));
        assert!(page.contains("| `BadStream` | isolate |"));
    }
}
