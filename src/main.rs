//! The `flagtap` binary: parses arguments, runs one command, returns its exit code.

use std::process::ExitCode;

use mimalloc::MiMalloc;

// Threads of three kinds (traffic, queue, delivery) pass buffers to one another; glibc would keep an arena for each.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    flagtap::cli::main()
}
