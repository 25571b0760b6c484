//! Where log lines go: a bounded buffer, from which a thread of its own writes them to standard error.
//!
//! A log that nobody reads, or whose disk is full, costs lines: no request, delivery or signal waits for it or fails by it.
//! Lines that are lost are counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of lines that wait at the most: minutes of an ordinary log, a second of the busiest.
const BUFFERED: usize = 1 << 20;

static LOG: LazyLock<Log> = LazyLock::new(Log::default);

#[derive(Default)]
struct Log {
    state: Mutex<State>,
    changed: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    is_writing: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.bytes + line.len() > BUFFERED {
            drop(state);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        drop(state);
        self.changed.notify_all();
    }

    /// Writes what comes, for ever.
    fn write_to(&self, mut out: impl Write) {
        let mut state = self.lock();
        loop {
            let Some(line) = state.lines.pop_front() else {
                state.is_writing = false;
                self.changed.notify_all();
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.is_writing = true;
            drop(state);
            if out.write_all(&line).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            state = self.lock();
            state.bytes -= line.len();
        }
    }

    /// Waits until everything is written, or for so long.
    fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut state = self.lock();
        while state.is_writing || !state.lines.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Takes one line with each write; never fails and never waits.
#[derive(Clone, Copy, Debug)]
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LOG.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the thread that writes to standard error, panics too.
///
/// Fails if the system gives no thread: then no line is ever written.
pub fn start() -> io::Result<()> {
    let writer = thread::Builder::new().name("log".to_owned());
    writer.spawn(|| LOG.write_to(io::stderr()))?;
    // The usual one writes where the panic arises, and waits for whoever reads.
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let (name, trace) = (thread.name().unwrap_or("unnamed"), Backtrace::capture());
        let trace = match trace.status() {
            BacktraceStatus::Captured => format!("{trace}\n"),
            _ => String::new(),
        };
        LOG.push(format!("thread '{name}' {panic}\n{trace}").as_bytes());
    }));
    Ok(())
}

/// Waits until the lines so far are written, or for so long: the last thing that a process does.
pub fn flush(patience: Duration) {
    LOG.flush(patience);
}

/// Returns how many lines were lost: nobody took them in time, or standard error could not be written.
pub fn lost() -> u64 {
    LOG.lost.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    /// Says what it is given and waits for the outcome.
    struct Reader {
        given: Sender<String>,
        outcomes: Receiver<io::Result<()>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.given.send(String::from_utf8_lossy(bytes).into_owned()).unwrap();
            self.outcomes.recv().unwrap().map(|()| bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_or_fails_costs_lines_and_holds_up_nobody() {
        let log: &'static Log = Box::leak(Box::default());
        let ((given, seen), (outcome, outcomes)) = (mpsc::channel(), mpsc::channel());
        thread::spawn(move || log.write_to(Reader { given, outcomes }));
        log.push(b"first\n");
        assert_eq!(seen.recv().unwrap(), "first\n");
        // It stalls: what fits is kept, the rest is lost, at once.
        let line = vec![b'x'; 100_000];
        (0..20).for_each(|_| log.push(&line));
        let kept = (BUFFERED - 6) / line.len();
        assert_eq!(log.lost.load(Ordering::Relaxed), 20 - kept as u64);
        log.flush(Duration::from_millis(10));
        outcome.send(Ok(())).unwrap();
        for number in 0..kept {
            assert_eq!(seen.recv().unwrap().len(), line.len());
            let failed = || io::Error::from(io::ErrorKind::StorageFull);
            outcome.send(if number == 0 { Err(failed()) } else { Ok(()) }).unwrap();
        }
        log.flush(Duration::from_secs(60));
        assert_eq!(log.lost.load(Ordering::Relaxed), 21 - kept as u64);
        assert!(log.lock().lines.is_empty() && log.lock().bytes == 0);
        log.push(b"last\n");
        assert_eq!(seen.recv().unwrap(), "last\n");
        outcome.send(Ok(())).unwrap();
        log.flush(Duration::from_secs(60));
    }
}
