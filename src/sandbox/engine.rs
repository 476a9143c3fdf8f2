//! The engine: compiling modules and running them.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::{Component, HasSelf, Linker, ResourceTable};
use wasmtime::{Cache, CacheConfig, Config, Enabled, Engine, PoolingAllocationConfig, Store, Trap};
use wasmtime_wasi::{ResourceTableError, WasiCtxBuilder};

use crate::limits::{
    COMPILE_CPU_SECONDS_MAX, COMPILE_MEMORY_BYTES_MAX, COMPILES_AT_ONCE, COMPILES_WAITING_MAX, EPOCH_TICK, EXEC_LINGER_MAX, HANDLES_MAX,
    HOSTCALL_BYTES_MAX, MODULE_CORE_INSTANCES_MAX, MODULE_MEMORIES_MAX, MODULE_TABLES_MAX, RANDOM_BYTES_MAX, RUN_MEMORY_MIB_MAX,
    RUN_PAGES_KEPT_BYTES, TABLE_ELEMENTS_MAX, WASM_STACK_BYTES_MAX,
};
use crate::machine::Command;
use crate::names::Digest;
use crate::sandbox::bindings::exports::muster::provision::provisioning::Refusal;
use crate::sandbox::bindings::{Provisioner, ProvisionerPre};
use crate::sandbox::compiler::Compiler;
use crate::sandbox::gate::{Counts, Gate, RunInputs};
use crate::sandbox::host::Guest;
use crate::sandbox::inspect::{About, InspectError, inspect};
use crate::sandbox::limiter::Limiter;
use crate::sandbox::output::LogPipe;
use crate::sandbox::verdict::{Verdict, cut};

/// The engine and all that runs share.
pub struct Sandbox {
    engine: Engine,
    linker: Linker<Guest>,
    compiling: Arc<Semaphore>,
    /// For the compiler's process: who is compiled again does not wait for it.
    trying: Semaphore,
    waiting: Arc<Semaphore>,
    running: Arc<Semaphore>,
    guests: Option<tokio::runtime::Runtime>,
    compiler: Option<Compiler>,
    closing: CancellationToken,
}

/// A module, compiled and linked: ready to run. Cheap to clone; what was compiled is freed with the last one.
#[derive(Clone)]
pub struct Module {
    digest: Digest,
    about: Arc<About>,
    pre: ProvisionerPre<Guest>,
}

impl Module {
    /// The sha256 of the component's bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the component says of itself.
    pub fn about(&self) -> &About {
        &self.about
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The engine does not start.
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
    /// There are no threads for it.
    #[error("the WebAssembly engine has no threads")]
    Threads(#[from] std::io::Error),
}

/// Why a component is not taken as a module.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It is no module that this server can run.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// It does not compile, or does not link: an import or the export has another type than the contract says.
    #[error("the component can not be used as a module: {0}")]
    Component(String),
    /// The compiler takes too much for it.
    #[error(
        "the component takes more than {COMPILE_CPU_SECONDS_MAX} s of processor time, or {} MiB of memory, to be compiled",
        COMPILE_MEMORY_BYTES_MAX / 1024 / 1024
    )]
    TooCostly,
    /// Too many components wait for their compilation.
    #[error("{COMPILES_WAITING_MAX} components wait to be compiled already")]
    Busy,
    /// The compilation itself broke down.
    #[error("the compilation broke down")]
    BrokeDown,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub verdict: Verdict,
    /// What it did, in numbers.
    pub counts: Counts,
    /// What it asked to have launched.
    pub launch: Option<Command>,
}

impl Sandbox {
    /// Starts the engine, with at most `runs_at_once` runs. With a compiler, components are compiled by it, and kept compiled in its cache;
    /// without one, in this process.
    ///
    /// # Errors
    /// When the engine does not start, even without its pool of memories.
    pub fn new(compiler: Option<Compiler>, runs_at_once: u32) -> Result<Self, SandboxError> {
        let engine = engine(compiler.as_ref().map(|compiler| compiler.cache.clone()), runs_at_once)
            .map_err(|error| SandboxError::Engine(format!("{error:#}")))?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)
            .and_then(|()| Provisioner::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest))
            .map_err(|error| SandboxError::Engine(format!("{error:#}")))?;
        // A thread of its own: a timer of the runtime stands still when guests keep its threads busy.
        let weak = engine.weak();
        std::thread::Builder::new().name("epochs".into()).spawn(move || {
            while let Some(engine) = weak.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(EPOCH_TICK);
            }
        })?;
        let guests = tokio::runtime::Builder::new_multi_thread().thread_name("guests").enable_all().build()?;
        Ok(Self {
            engine,
            linker,
            compiling: Arc::new(Semaphore::new(COMPILES_AT_ONCE)),
            trying: Semaphore::new(COMPILES_AT_ONCE),
            waiting: Arc::new(Semaphore::new(COMPILES_WAITING_MAX)),
            running: Arc::new(Semaphore::new(runs_at_once as usize)),
            guests: Some(guests),
            compiler,
            closing: CancellationToken::new(),
        })
    }

    /// Inspects, compiles and links a component that may be anything.
    ///
    /// # Errors
    /// When it is no module that this server can run, with a sentence for its author.
    pub async fn compile(&self, bytes: Bytes) -> Result<Module, CompileError> {
        inspect(&bytes)?;
        let Ok(_waiting) = Arc::clone(&self.waiting).try_acquire_owned() else {
            return Err(CompileError::Busy);
        };
        if let Some(compiler) = &self.compiler {
            let Ok(_permit) = self.trying.acquire().await else { return Err(CompileError::BrokeDown) };
            tokio::select! {
                compiled = compiler.compile(&bytes) => compiled?,
                () = self.closing.cancelled() => return Err(CompileError::Busy),
            }
        }
        self.compile_known(bytes).await
    }

    /// Compiles and links a component that was compiled before, and is known not to take too much for it.
    ///
    /// # Errors
    /// When it is no module that this server can run.
    pub async fn compile_known(&self, bytes: Bytes) -> Result<Module, CompileError> {
        let about = inspect(&bytes)?;
        let Ok(permit) = Arc::clone(&self.compiling).acquire_owned().await else {
            return Err(CompileError::BrokeDown);
        };
        let (engine, linker) = (self.engine.clone(), self.linker.clone());
        let compiled = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let component = Component::from_binary(&engine, &bytes)?;
            let pre = ProvisionerPre::new(linker.instantiate_pre(&component)?)?;
            Ok((Digest::of(&bytes), pre))
        });
        let compiled: wasmtime::Result<_> = compiled.await.map_err(|_| CompileError::BrokeDown)?;
        let (digest, pre) = compiled.map_err(|error| CompileError::Component(cut(format!("{error:#}"))))?;
        Ok(Module { digest, about: Arc::new(about), pre })
    }

    /// Ends all runs, and what they do on the way to their agents; on return they are over.
    pub async fn end(mut self) {
        if let Some(guests) = self.guests.take() {
            // A runtime may not be waited for within another one.
            tokio::task::spawn_blocking(move || guests.shutdown_timeout(EXEC_LINGER_MAX)).await.ok();
        }
    }

    /// Compiles nothing any more, and waits for what is being compiled: it writes to the cache.
    pub async fn close(&self) {
        self.waiting.close();
        self.closing.cancel();
        self.trying.close();
        // What waits for its turn is turned away, what has it is waited for.
        let all = u32::try_from(COMPILES_AT_ONCE).unwrap_or(u32::MAX);
        drop(self.compiling.acquire_many(all).await);
        self.compiling.close();
    }

    /// How many more runs there is room for now.
    pub fn room(&self) -> usize {
        self.running.available_permits()
    }

    /// Runs a module once, in a store of its own, and waits for room first.
    ///
    /// Dropping the future ends the run at its next call or tick.
    pub async fn run(&self, module: &Module, inputs: RunInputs) -> Outcome {
        let fault =
            |reason: &str| Outcome { verdict: Verdict::HostFault { reason: reason.into() }, counts: Counts::default(), launch: None };
        let (Ok(permit), Some(guests)) = (Arc::clone(&self.running).acquire_owned().await, &self.guests) else {
            return fault("the server is stopping");
        };
        let (engine, pre) = (self.engine.clone(), module.pre.clone());
        let task = guests.spawn(async move {
            let _permit = permit;
            run(&engine, &pre, inputs).await
        });
        AbortOnDropHandle::new(task).await.unwrap_or_else(|_| fault("the run broke down; the server's log says where"))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A runtime may not be waited for where it is dropped: that may be within another one.
        if let Some(guests) = self.guests.take() {
            guests.shutdown_background();
        }
    }
}

/// What compiled code depends on.
pub(super) fn config(cache: Option<PathBuf>) -> wasmtime::Result<Config> {
    let mut config = Config::new();
    config.epoch_interruption(true);
    config.concurrency_support(false);
    config.max_wasm_stack(WASM_STACK_BYTES_MAX);
    config.async_stack_size(WASM_STACK_BYTES_MAX + 512 * 1024);
    config.wasm_memory64(false);
    if let Some(directory) = cache {
        let mut settings = CacheConfig::new();
        settings.with_directory(directory);
        config.cache(Some(Cache::new(settings)?));
    }
    Ok(config)
}

fn engine(cache: Option<PathBuf>, runs_at_once: u32) -> wasmtime::Result<Engine> {
    let config = config(cache)?;
    let memory_bytes = RUN_MEMORY_MIB_MAX as usize * 1024 * 1024;
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(runs_at_once);
    pool.total_core_instances(runs_at_once * MODULE_CORE_INSTANCES_MAX);
    pool.total_memories(runs_at_once * MODULE_MEMORIES_MAX);
    pool.total_tables(runs_at_once * MODULE_TABLES_MAX);
    pool.total_stacks(runs_at_once);
    pool.max_core_instances_per_component(MODULE_CORE_INSTANCES_MAX);
    pool.max_memories_per_component(MODULE_MEMORIES_MAX);
    pool.max_tables_per_component(MODULE_TABLES_MAX);
    pool.max_tables_per_module(MODULE_TABLES_MAX);
    pool.max_memory_size(memory_bytes);
    pool.table_elements(TABLE_ELEMENTS_MAX);
    pool.max_component_instance_size(4 * 1024 * 1024);
    pool.max_core_instance_size(4 * 1024 * 1024);
    // Where the kernel tells which pages a run wrote to, those are cleared by hand: giving them back costs more, as every core is
    // interrupted for it.
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes);
        pool.linear_memory_keep_resident(RUN_PAGES_KEPT_BYTES);
        pool.table_keep_resident(RUN_PAGES_KEPT_BYTES);
    }
    let mut pooled = config.clone();
    pooled.allocation_strategy(pool);
    // The pool reserves terabytes of addresses, which some machines do not let a process have: there each run maps its own memory.
    Engine::new(&pooled).or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "the pool of memories can not be had; each run will map its own");
        Engine::new(&config)
    })
}

async fn run(engine: &Engine, pre: &ProvisionerPre<Guest>, inputs: RunInputs) -> Outcome {
    let limits = inputs.policy.limits;
    let (stdout, stderr) = LogPipe::pair(inputs.recorder.clone());
    let wasi = WasiCtxBuilder::new().stdout(stdout).stderr(stderr).max_random_size(RANDOM_BYTES_MAX).build();
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    let guest = Guest { gate: Gate::new(inputs), table, wasi, limiter: Limiter::new(limits.memory_mib) };
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.limiter);
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    store.set_max_component_handles(HANDLES_MAX);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);

    store.data_mut().gate.know_secrets().await;
    let call = async {
        let instance = pre.instantiate_async(&mut store).await?;
        instance.muster_provision_provisioning().call_provision(&mut store).await
    };
    let metered = Metered { call: Box::pin(call), spent: Duration::ZERO, limit: Duration::from_millis(limits.cpu_ms.into()) };
    let wall = Duration::from_secs(limits.run_seconds.into());
    let ended = tokio::time::timeout(wall, metered).await;

    let guest = store.into_data();
    let certain = guest.gate.over().cloned().or_else(|| match &ended {
        Err(_) => Some(Verdict::TimedOut { limit_seconds: limits.run_seconds }),
        Ok(None) => Some(Verdict::OverLimit { which: format!("the module computed for longer than `limits.cpu_ms` = {}", limits.cpu_ms) }),
        Ok(Some(Err(_))) => guest.limiter.reached().map(|which| Verdict::OverLimit { which: which.into() }),
        Ok(Some(Ok(_))) => None,
    });
    let verdict = certain.unwrap_or_else(|| match ended {
        Ok(Some(Ok(Ok(())))) => Verdict::Provisioned,
        Ok(Some(Ok(Err(refusal)))) => refused(refusal, &guest.gate),
        Ok(Some(Err(error))) => trapped(&error, &guest.gate),
        Ok(None) | Err(_) => Verdict::HostFault { reason: "a run ended without a verdict".into() },
    });
    let (counts, launch) = guest.gate.finish();
    Outcome { verdict, counts, launch }
}

fn refused(refusal: Refusal, gate: &Gate) -> Verdict {
    let said = |text: String| cut(gate.redact(text));
    match refusal {
        Refusal::Later((reason, after_seconds)) => Verdict::RefusedLater { reason: said(reason), after_seconds },
        Refusal::Never(reason) => Verdict::RefusedNever { reason: said(reason) },
        Refusal::Other(reason) => Verdict::Refused { reason: said(reason.unwrap_or_else(|| "the module gave no reason".into())) },
    }
}

/// Tells limits of the engine from the module's own faults. The engine has no kinds for the former; a test holds its words.
fn trapped(error: &wasmtime::Error, gate: &Gate) -> Verdict {
    let text = format!("{error:#}");
    if text.contains("fuel allocated for hostcalls has been exhausted") {
        return Verdict::OverLimit { which: format!("the module passed more than {HOSTCALL_BYTES_MAX} bytes in one call") };
    }
    let handles = matches!(error.downcast_ref(), Some(ResourceTableError::Full)) || text.contains("store handle limit exceeded");
    if handles {
        return Verdict::OverLimit { which: format!("the module holds more than {HANDLES_MAX} handles at once") };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => {
            Verdict::OverLimit { which: format!("the module's calls are nested deeper than {WASM_STACK_BYTES_MAX} bytes of stack") }
        }
        _ => Verdict::Trapped { reason: cut(gate.redact(text)) },
    }
}

/// Meters the processor time of a call, and ends it when that is spent.
///
/// A guest computes only while it is polled, and yields at every tick, so the time of the thread during each poll, added up, is what it
/// cost. Time in which its thread did not run, or in which it waited for its agent, is not its fault and does not count.
struct Metered<F> {
    call: Pin<Box<F>>,
    spent: Duration,
    limit: Duration,
}

impl<F: Future> Future for Metered<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let began = thread_time();
        let polled = self.call.as_mut().poll(context);
        self.spent += thread_time().saturating_sub(began);
        match polled {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.spent > self.limit => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
