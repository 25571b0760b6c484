//! How the process is told to end: a first signal asks for a soft end, a second one for an immediate end.
//!
//! Owns the two tokens and the signal handlers. What happens between them (how long connections are accepted, how long
//! destinations are served) is the application's business.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The two stages of the end. Clones share their tokens.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled by the first TERM or INT: finish what is under way.
    pub soft: CancellationToken,
    /// Cancelled by the second: leave at once.
    pub hard: CancellationToken,
    /// Notified by HUP: read the configuration again.
    pub reload: Arc<Notify>,
}

impl Shutdown {
    /// Returns a pair that only its owner cancels; signals do not touch it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Installs the signal handlers and returns the pair that they cancel.
    ///
    /// Must be called inside a Tokio runtime. The task that waits for signals ends when `hard` is cancelled, by a
    /// signal or by the owner. HUP never ends the relay: it asks for the configuration to be read again.
    pub fn listen() -> io::Result<Self> {
        let shutdown = Self::new();
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        tokio::spawn(signals.serve(shutdown.clone()));
        Ok(shutdown)
    }

    /// Takes one step towards the end: soft first, hard if soft was already taken.
    pub fn advance(&self) {
        if self.soft.is_cancelled() {
            self.hard.cancel();
        } else {
            self.soft.cancel();
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    async fn serve(mut self, shutdown: Shutdown) {
        loop {
            let name = tokio::select! {
                () = shutdown.hard.cancelled() => return,
                _ = self.terminate.recv() => "TERM",
                _ = self.interrupt.recv() => "INT",
                _ = self.hangup.recv() => {
                    info!(signal = "HUP", "asked to read the configuration again");
                    shutdown.reload.notify_one();
                    continue;
                }
            };
            if shutdown.soft.is_cancelled() {
                warn!(signal = name, "second signal, ending at once");
            } else {
                info!(
                    signal = name,
                    "ending: delivering what waits, a second signal ends at once"
                );
            }
            shutdown.advance();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn send(name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), process::id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn the_first_step_is_soft_and_the_second_hard() {
        let shutdown = Shutdown::new();
        let shared = shutdown.clone();
        shutdown.advance();
        assert!(shared.soft.is_cancelled() && !shared.hard.is_cancelled());
        shutdown.advance();
        assert!(shared.hard.is_cancelled());
    }

    #[tokio::test]
    async fn a_signal_is_soft_a_second_hard_and_hangup_a_reload() {
        let shutdown = Shutdown::listen().unwrap();
        send("HUP");
        timeout(PATIENCE, shutdown.reload.notified()).await.unwrap();
        assert!(!shutdown.soft.is_cancelled());
        send("TERM");
        timeout(PATIENCE, shutdown.soft.cancelled()).await.unwrap();
        assert!(!shutdown.hard.is_cancelled());
        send("INT");
        timeout(PATIENCE, shutdown.hard.cancelled()).await.unwrap();
    }
}
