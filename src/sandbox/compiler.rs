//! Compiling in a process of its own, with limits that a thread can not have.
//!
//! A component of a few hundred kilobytes can be made such that the compiler takes minutes and gigabytes for it, and a compilation that has
//! begun can not be stopped. So it is tried by this same program, started anew, which is ended when it takes too much. What it compiled is
//! in the engine's cache, where the server finds it; and if it does not, it compiles what is known to be cheap enough.

use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::limits::{COMPILE_CPU_SECONDS_MAX, COMPILE_MEMORY_BYTES_MAX, COMPILE_TIMEOUT, REASON_BYTES_MAX};
use crate::sandbox::engine::{CompileError, config};

/// The command of `muster` that does it.
pub const COMMAND: &str = "compile-component";

/// The program that compiles, and where it keeps what it compiled.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// `muster`.
    pub program: PathBuf,
    /// The directory of the engine's cache.
    pub cache: PathBuf,
}

impl Compiler {
    /// Has a component compiled. Dropping the future ends the process.
    ///
    /// # Errors
    /// When it does not compile, or takes too much for it.
    pub(crate) async fn compile(&self, bytes: &[u8]) -> Result<(), CompileError> {
        let started = Command::new(&self.program)
            .arg(COMMAND)
            .arg("--cache")
            .arg(&self.cache)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut process = started.map_err(|error| {
            tracing::error!(%error, "the compiler can not be started");
            CompileError::BrokeDown
        })?;
        let (stdin, stderr) = (process.stdin.take(), process.stderr.take());
        let give = async {
            if let Some(mut stdin) = stdin {
                // One that was ended takes no more; its status tells why.
                stdin.write_all(bytes).await.ok();
            }
        };
        let hear = async {
            let mut said = Vec::new();
            if let Some(stderr) = stderr {
                stderr.take(REASON_BYTES_MAX as u64).read_to_end(&mut said).await.ok();
            }
            String::from_utf8_lossy(&said).trim().to_owned()
        };
        let done = async { tokio::join!(give, hear, process.wait()) };
        let Ok(((), said, status)) = tokio::time::timeout(COMPILE_TIMEOUT, done).await else { return Err(CompileError::TooCostly) };
        match status.map(|status| status.code()) {
            Ok(Some(0)) => Ok(()),
            Ok(Some(1)) => Err(CompileError::Component(said)),
            // A signal ended it: its processor time was over, or it had no memory left.
            Ok(None) => Err(CompileError::TooCostly),
            other => {
                tracing::error!(status = ?other, said, "the compiler broke down");
                Err(CompileError::BrokeDown)
            }
        }
    }
}

/// Compiles a component into the cache, in a process that does nothing else and is limited by this call.
///
/// # Errors
/// A sentence for the component's author. A component that takes too much ends the process.
pub fn compile_alone(cache: PathBuf, bytes: &[u8]) -> Result<(), String> {
    for (resource, most) in [(Resource::Data, COMPILE_MEMORY_BYTES_MAX), (Resource::Cpu, COMPILE_CPU_SECONDS_MAX), (Resource::Core, 0)] {
        let limit = getrlimit(resource);
        let most = Some(limit.maximum.map_or(most, |maximum| maximum.min(most)));
        setrlimit(resource, Rlimit { current: most, maximum: most })
            .map_err(|error| format!("the compiler can not be limited: {error}"))?;
    }
    // The server has people to answer meanwhile.
    rustix::process::nice(COMPILE_NICENESS).ok();
    let told = |error: wasmtime::Error| format!("{error:#}");
    let engine = config(Some(cache)).and_then(|config| Engine::new(&config)).map_err(told)?;
    Component::from_binary(&engine, bytes).map(drop).map_err(told)
}

/// By how much a compiler stands back behind the server.
const COMPILE_NICENESS: i32 = 5;
