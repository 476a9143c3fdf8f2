//! `muster`: the server, and the tools for teams and admins.
//!
//! Under the name `muster-agent` it is that program: `muster demo` needs agents, and `cargo run` builds this program alone.

use std::path::Path;
use std::process::ExitCode;

use muster::machine::exec::Environment;

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[expect(clippy::disallowed_methods, reason = "the agent's library reads no environment; it is given what it needs from here")]
fn main() -> ExitCode {
    let name = std::env::args_os().next();
    if name.as_deref().and_then(|name| Path::new(name).file_name()).is_some_and(|name| name == "muster-agent") {
        return muster::agent::main_from(std::env::args_os(), Environment::read(|name| std::env::var_os(name)));
    }
    // Only fails when a provider is installed already, which is as good.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    muster::cli::main()
}
