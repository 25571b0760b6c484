//! The `flagtap` binary: parses arguments, runs one command, returns its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    flagtap::cli::main()
}
