//! The process's limit on open files, of which every connection takes one and its way to the upstream another.

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Files for everything else: the queue, destinations, the telemetry port, the log.
const RESERVED: u64 = 128;

/// Raises the limit on open files as far as the process may, and returns how many of the `wanted` client connections fit
/// into it. Too few files would end in accepted connections without a way to the upstream and a deaf telemetry port.
pub(super) fn seats(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What cannot be raised is counted as it is.
    let _ = setrlimit(Resource::Nofile, limit);
    let fit = fitting(getrlimit(Resource::Nofile).current, wanted);
    if fit < wanted {
        warn!(
            wanted,
            fit, "the limit on open files allows fewer connections than limits.connections"
        );
    }
    fit
}

/// `None` is no limit.
fn fitting(files: Option<u64>, wanted: usize) -> usize {
    let fit = files
        .map_or(u64::MAX, |files| files.saturating_sub(RESERVED) / 2)
        .max(8);
    usize::try_from(fit).unwrap_or(usize::MAX).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_upstream_and_the_rest() {
        assert_eq!(fitting(Some(1024), 4096), 448);
        assert_eq!(fitting(Some(65_536), 4096), 4096);
        assert_eq!(fitting(None, 4096), 4096);
        assert_eq!(fitting(Some(64), 4096), 8);
    }
}
