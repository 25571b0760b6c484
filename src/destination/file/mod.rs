//! A folder of NDJSON files: one export record per line.
//!
//! ```text
//! flagtap-<UTC yyyymmddThhmmssZ>-<n>.ndjson.part   being written; for nobody else to read
//! flagtap-<UTC yyyymmddThhmmssZ>-<n>.ndjson        complete (`.ndjson.gz` with `gzip`); never touched again
//! .flagtap.lock                                    held while a flagtap writes here
//! ```
//!
//! Promises: an event is delivered when it is on disk (fdatasync). A crash leaves neither torn nor double lines: the
//! part is taken up again, its last line cut off if torn, and events that are in it already are not written again.
//! That is why a part is only completed when everything in it is known to be noted as delivered: at the start of a
//! request, or when idle.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use async_trait::async_trait;

use super::answers::{Answer, Means, On};
use super::{Destination, Encoded, Item, Limits, ProbeError, Verdict, all, line};
use crate::export::ExportEvent;
use crate::export::form::Form;
use crate::section::Section;
use crate::units::ByteSize;

mod folder;
#[cfg(test)]
mod tests;

use folder::{Cause, Folder, Trouble};

/// One request is one fdatasync. An event is at most what `tee.max_body` can be set to within reason.
const LIMITS: Limits = Limits {
    items: 1000,
    bytes: 64 * 1024 * 1024,
    item_bytes: 64 * 1024 * 1024,
    keys: usize::MAX,
    requests: 1,
};

/// Where files are written and when they are complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The folder; made if it is not there.
    pub path: PathBuf,
    /// A file is complete when it has this many bytes (before compression).
    pub rotate_bytes: u64,
    /// A file is complete at this age.
    pub rotate_after: Duration,
    /// Complete files are gzipped.
    pub gzip: bool,
    /// The record's form.
    pub form: Form,
}

impl Settings {
    /// Returns the settings with the defaults: 64 MiB, 1 hour, not gzipped.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            rotate_bytes: ByteSize::mib(64).0,
            rotate_after: Duration::from_secs(3600),
            gzip: false,
            form: Form::default(),
        }
    }
}

/// Reads the settings.
pub fn read(section: &mut Section<'_>) -> Option<Settings> {
    let path = section.required("path");
    let default = Settings::at(PathBuf::new());
    let settings = Settings {
        path: PathBuf::new(),
        rotate_bytes: section.or("rotate_bytes", ByteSize(default.rotate_bytes)).0,
        rotate_after: section.or("rotate_after", default.rotate_after),
        gzip: section.or("gzip", default.gzip),
        form: Form::read(section),
    };
    if settings.rotate_bytes == 0 {
        section.problem(Some("rotate_bytes"), "must be more than nothing, such as 64MiB");
    }
    if settings.rotate_after.is_zero() {
        section.problem(Some("rotate_after"), "must be longer than nothing, such as 1h");
    }
    Some(Settings {
        path: path?,
        ..settings
    })
}

/// Returns the destination.
pub async fn open(settings: &Settings) -> Arc<dyn Destination> {
    Arc::new(Files::new(settings.clone()))
}

/// What follows from how a write ends.
pub(super) const ANSWERS: &[Answer] = &[
    Answer {
        on: On::Case("written, and on disk (fdatasync)"),
        means: Means::Delivered,
        why: "only what survives a power cut counts",
        source: "POSIX fdatasync",
    },
    Answer {
        on: On::Case("no space, quota, input/output error"),
        means: Means::Retry,
        why: "passes when there is room or the volume is back",
        source: "POSIX write",
    },
    Answer {
        on: On::Case("no permission, not a folder, another flagtap writes here"),
        means: Means::Blocked,
        why: "look at `path` and at who may write there",
        source: "POSIX open",
    },
];

/// The destination.
pub struct Files {
    settings: Arc<Settings>,
    /// The folder once it is open. Only ever locked on a blocking thread.
    folder: Arc<Mutex<Option<Folder>>>,
}

impl Files {
    /// Returns the destination. The folder is opened at first use.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            folder: Arc::default(),
        }
    }

    /// Does something with the open folder, off the async threads.
    async fn with_folder<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Folder) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, Trouble> {
        let (settings, folder) = (Arc::clone(&self.settings), Arc::clone(&self.folder));
        let done = tokio::task::spawn_blocking(move || {
            let mut folder = match folder.try_lock() {
                Ok(folder) => folder,
                // What it holds may be half done: it is opened again, as after a crash.
                Err(TryLockError::Poisoned(poisoned)) => {
                    folder.clear_poison();
                    let mut folder = poisoned.into_inner();
                    *folder = None;
                    folder
                }
                Err(TryLockError::WouldBlock) => return Err(Trouble::passing("an earlier write has not ended")),
            };
            let open = match &mut *folder {
                Some(open) => open,
                closed => closed.insert(Folder::open(&settings)?),
            };
            let done = work(open);
            if done.is_err() && !settings.path.exists() {
                // Somebody removed the folder: the next request makes it anew.
                *folder = None;
            }
            done
        });
        done.await.unwrap_or_else(|_| Err(Trouble::passing("writing panicked")))
    }
}

#[async_trait]
impl Destination for Files {
    fn limits(&self) -> Limits {
        LIMITS
    }

    fn encode(&self, event: &ExportEvent<'_>) -> Encoded {
        line(event, &self.settings.form)
    }

    async fn send(&self, items: &[Item]) -> Vec<Verdict> {
        let lines = items.to_vec();
        let verdict = match self.with_folder(move |folder| folder.append(&lines)).await {
            Ok(()) => Verdict::Delivered,
            Err(Trouble {
                cause: Cause::Passing,
                why,
            }) => Verdict::Retry { after: None, why },
            Err(Trouble { why, .. }) => Verdict::Blocked { why },
        };
        all(&verdict, items)
    }

    async fn probe(&self) -> Result<String, ProbeError> {
        match self.with_folder(|folder| folder.try_out()).await {
            // The flagtap that is at work in this folder shows that one can be.
            Err(trouble) if trouble.cause != Cause::Locked => Err(ProbeError {
                why: trouble.why,
                remedy: "look at `path` and at who may write there".to_owned(),
            }),
            Err(_) => Ok("a flagtap is at work in the folder".to_owned()),
            Ok(()) => Ok("the folder can be written to".to_owned()),
        }
    }

    async fn idle(&self, last: bool) {
        // What fails here is tried again at the next request, whose verdict says so.
        let _ = self.with_folder(move |folder| folder.rest(last)).await;
    }
}
