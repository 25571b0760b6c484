//! How the upstream is: when it answered last, and why it last did not.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::notices::Notices;
use crate::proxy::{Failure, Fault};

/// Shared by all requests.
#[derive(Default)]
pub struct Health {
    notices: Notices,
    known: Mutex<Known>,
}

/// What is known of the upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// When an answer came last, whatever it said.
    pub answered: Option<SystemTime>,
    /// The last request without one.
    pub failed: Option<Trouble>,
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// When.
    pub at: SystemTime,
    /// The word of `x-flagtap-error`.
    pub reason: &'static str,
    /// The causes, the innermost last. Holds no credential.
    pub why: String,
}

impl Health {
    /// Returns what is known.
    pub fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn answered(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).answered = Some(SystemTime::now());
    }

    /// Notes a failure, and says it at once and then once a minute, if it is the upstream's.
    pub(super) fn failed(&self, failure: &Failure, why: String) {
        if failure.fault() != Fault::Upstream {
            return;
        }
        let reason = failure.reason();
        if let Some(requests) = self.notices.due(reason) {
            tracing::warn!(reason, why, requests, "{failure}");
        }
        let at = SystemTime::now();
        let trouble = Some(Trouble { at, reason, why });
        self.known.lock().unwrap_or_else(PoisonError::into_inner).failed = trouble;
    }
}
