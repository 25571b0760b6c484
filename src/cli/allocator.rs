//! The allocator's settings, which glibc takes from the environment of a process as it starts.
//!
//! glibc maps a large block for itself and unmaps it when it is freed, but after the first such block it takes others of
//! that size from its heaps, which keep what they once had. The queue opens a part after another, each with blocks of
//! megabytes, and a backlog of 10 GB made that 270 MB of resident memory where 100 MB are in use. A fixed threshold and
//! no more heaps than threads that work end it. Only `serve` lives long enough for this to matter.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Blocks of this size are mapped; smaller ones are many, and mapping each would cost more than it saves.
const MAPPED_FROM: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "1048576");

/// How many heaps there may be.
const HEAPS: &str = "MALLOC_ARENA_MAX";

/// Other names for the same settings: who gave one knows what they want.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Starts this program anew in its place (same process, same arguments) with the allocator's settings for `threads`
/// working threads, unless there are some. Returns if there are, or if it cannot: flagtap works without, and takes more
/// memory while it delivers a large backlog.
pub(super) fn settle(threads: usize) {
    let chosen = |name| env::var_os(name).is_some();
    if !cfg!(target_env = "gnu") || chosen(MAPPED_FROM.0) || chosen(HEAPS) || chosen(TUNABLES) {
        return;
    }
    let mut arguments = env::args_os();
    let (Ok(program), Some(name)) = (env::current_exe(), arguments.next()) else {
        return;
    };
    // On success this does not return.
    let _failed = Command::new(program)
        .arg0(name)
        .args(arguments)
        .env(MAPPED_FROM.0, MAPPED_FROM.1)
        .env(HEAPS, threads.max(2).to_string())
        .exec();
}
