//! `muster-agent`: the program on an agent's machine.

use std::process::ExitCode;

use muster::machine::exec::Environment;

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[expect(clippy::disallowed_methods, reason = "the library reads no environment; it is given what it needs from here")]
fn main() -> ExitCode {
    muster::agent::main_from(std::env::args_os(), Environment::read(|name| std::env::var_os(name)))
}
