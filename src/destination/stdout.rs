//! Standard output: one line per event, for trying things out and for platforms that collect a container's output.
//!
//! An event is delivered when the line was written and flushed. What becomes of it then nobody says: a reader that
//! fails in the middle of a write gets those lines again.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, TryLockError};

use async_trait::async_trait;

use super::answers::{Answer, Means, On};
use super::{Destination, Encoded, Item, Limits, ProbeError, Verdict, all, line};
use crate::export::ExportEvent;
use crate::export::form::Form;
use crate::section::Section;

/// What one write holds: enough to be quick, little enough to stay smooth.
const LIMITS: Limits = Limits {
    items: 1000,
    bytes: 64 * 1024 * 1024,
    item_bytes: 64 * 1024 * 1024,
    keys: usize::MAX,
    requests: 1,
};

/// How records are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The record's form.
    pub form: Form,
}

/// Reads the settings.
pub fn read(section: &mut Section<'_>) -> Option<Settings> {
    Some(Settings {
        form: Form::read(section),
    })
}

/// Returns the destination.
pub async fn open(settings: &Settings) -> Arc<dyn Destination> {
    Arc::new(Stdout::new(Box::new(io::stdout()), settings.form.clone()))
}

/// What follows from how a write ends.
pub(super) const ANSWERS: &[Answer] = &[
    Answer {
        on: On::Case("written and flushed"),
        means: Means::Delivered,
        why: "what becomes of it then nobody says",
        source: "POSIX write",
    },
    Answer {
        on: On::Case("any error"),
        means: Means::Retry,
        why: "the reader may come back; a line that was torn gets an end first",
        source: "POSIX write",
    },
];

/// The destination.
pub struct Stdout {
    form: Form,
    output: Arc<Mutex<Output>>,
}

struct Output {
    sink: Box<dyn Write + Send>,
    /// A write failed, perhaps in the middle of a line.
    torn: bool,
}

impl Stdout {
    /// Returns a destination that writes to `sink`.
    pub fn new(sink: Box<dyn Write + Send>, form: Form) -> Self {
        Self {
            form,
            output: Arc::new(Mutex::new(Output { sink, torn: false })),
        }
    }
}

#[async_trait]
impl Destination for Stdout {
    fn limits(&self) -> Limits {
        LIMITS
    }

    fn encode(&self, event: &ExportEvent<'_>) -> Encoded {
        line(event, &self.form)
    }

    async fn send(&self, items: &[Item]) -> Vec<Verdict> {
        // At its size from the start: a text of megabytes that grows as it is put together takes twice as much.
        let mut text = Vec::with_capacity(items.iter().map(|item| item.body.len()).sum());
        items.iter().for_each(|item| text.extend_from_slice(&item.body));
        let output = Arc::clone(&self.output);
        let written = tokio::task::spawn_blocking(move || {
            // A write that outlived its request holds the lock; a second one must not pile up behind it.
            match output.try_lock() {
                Ok(mut output) => output.write(&text),
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().write(&text),
                Err(TryLockError::WouldBlock) => Err(io::Error::other("an earlier write has not ended")),
            }
        });
        let verdict = match written.await.map_err(io::Error::other).flatten() {
            Ok(()) => Verdict::Delivered,
            Err(error) => Verdict::Retry {
                after: None,
                why: format!("cannot write to standard output: {error}"),
            },
        };
        all(&verdict, items)
    }

    async fn probe(&self) -> Result<String, ProbeError> {
        Ok("standard output is always there".to_owned())
    }
}

impl Output {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if std::mem::replace(&mut self.torn, true) {
            self.sink.write_all(b"\n")?;
        }
        self.sink.write_all(text)?;
        self.sink.flush()?;
        self.torn = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::contract;
    use super::*;

    /// Takes what the script allows, then fails.
    #[derive(Clone, Default)]
    struct Sink {
        text: Arc<Mutex<Vec<u8>>>,
        takes: Arc<Mutex<Option<usize>>>,
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = match &mut *self.takes.lock().unwrap() {
                Some(0) => return Err(io::ErrorKind::BrokenPipe.into()),
                Some(left) => {
                    let count = bytes.len().min(*left);
                    *left -= count;
                    count
                }
                None => bytes.len(),
            };
            self.text.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Ends when the test drops the other end.
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::holds(&Stdout::new(Box::new(Sink::default()), Form::default())).await;
    }

    #[tokio::test]
    async fn a_reader_that_hangs_ends_with_the_request_and_piles_up_no_writes() {
        let (end, stuck) = mpsc::channel();
        let stdout = Stdout::new(Box::new(Stuck(stuck)), Form::default());
        contract::ends_with_the_request(&stdout).await;
        let items = contract::items(&stdout, 2);
        let verdicts = stdout.send(&items).await;
        assert_eq!(verdicts.len(), 2);
        assert!(matches!(&verdicts[0], Verdict::Retry { why, .. } if why.contains("earlier write")));
        drop(end);
    }

    #[tokio::test]
    async fn writes_one_line_per_event() {
        let sink = Sink::default();
        let stdout = Stdout::new(Box::new(sink.clone()), Form::default());
        let items = contract::items(&stdout, 3);
        assert_eq!(stdout.send(&items).await, vec![Verdict::Delivered; 3]);
        let text = sink.text();
        assert!(text.ends_with('\n'));
        for (line, item) in text.lines().zip(&items) {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["event"]["id"], item.id.as_str());
        }
        assert_eq!(text.lines().count(), 3);
    }

    #[tokio::test]
    async fn a_torn_line_is_ended_before_the_next() {
        let sink = Sink::default();
        *sink.takes.lock().unwrap() = Some(10);
        let stdout = Stdout::new(Box::new(sink.clone()), Form::default());
        let items = contract::items(&stdout, 1);
        let verdicts = stdout.send(&items).await;
        assert!(matches!(&verdicts[0], Verdict::Retry { why, .. } if why.contains("broken pipe")));
        *sink.takes.lock().unwrap() = None;
        assert_eq!(stdout.send(&items).await, [Verdict::Delivered]);
        let text = sink.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(serde_json::from_str::<serde_json::Value>(lines[1]).is_ok());
    }
}
