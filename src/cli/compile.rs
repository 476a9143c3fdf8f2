//! `muster compile-component`: what a server starts to compile what was uploaded. Not for people.

use std::io::Read as _;
use std::path::PathBuf;

use crate::cli::CliError;
use crate::limits::MODULE_BYTES_MAX;
use crate::sandbox::compiler::compile_alone;

/// What `muster compile-component` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The engine's cache
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
}

/// Compiles the component that comes on standard input; what is wrong with it goes to standard error, alone.
pub(crate) fn run(args: Args) -> Result<(), CliError> {
    let mut bytes = Vec::new();
    std::io::stdin().take(MODULE_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    compile_alone(args.cache, &bytes).map_err(CliError::Told)
}
