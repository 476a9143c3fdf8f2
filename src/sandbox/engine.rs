//! The engine: compiling modules and running them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::{Component, HasSelf, Linker, ResourceTable};
use wasmtime::{Cache, CacheConfig, Config, Enabled, Engine, PoolingAllocationConfig, Store, Trap};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
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
use crate::sandbox::chance::{Chance, Stream};
use crate::sandbox::clock::Wall;
use crate::sandbox::compiler::Compiler;
use crate::sandbox::gate::{Counts, Gate, RunInputs};
use crate::sandbox::host::Guest;
use crate::sandbox::inspect::{About, InspectError, inspect, look};
use crate::sandbox::limiter::Limiter;
use crate::sandbox::metered::Metered;
use crate::sandbox::output::LogPipe;
use crate::sandbox::replay::{COMPUTED, Tape};
use crate::sandbox::script::bindings::{Scripted, ScriptedPre};
use crate::sandbox::script::check::{Reader, check, link};
use crate::sandbox::script::{RUNNER, RUNNER_DIGEST, Script, ScriptError, WORLD};
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
    /// The script runners that were needed so far. Whoever needs one that is not there yet waits until it is compiled.
    runners: tokio::sync::Mutex<Vec<Runner>>,
    /// The one place in the pool that is for reading a script.
    reading: Semaphore,
}

/// A script runner, compiled and linked.
#[derive(Clone)]
struct Runner {
    module: Module,
    check: ScriptedPre<Reader>,
}

/// A module, compiled and linked: ready to run. Cheap to clone; what was compiled is freed with the last one.
#[derive(Clone)]
pub struct Module {
    digest: Digest,
    about: Arc<About>,
    pre: ProvisionerPre<Guest>,
    /// The script, if it is one: then the rest is its runner's.
    script: Option<Arc<Script>>,
}

impl Module {
    /// Whether both run the same compiled code: all scripts of one runner do.
    pub fn shares_code_with(&self, other: &Self) -> bool {
        let code = |module: &Self| module.pre.instance_pre().component().image_range();
        code(self) == code(other)
    }

    /// The sha256 of its bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the component says of itself.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The script, if it is one.
    pub fn script(&self) -> Option<&Script> {
        self.script.as_deref()
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
    /// It can not be a script.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// It is a script that can not be run, with the place in it.
    #[error("the script can not be run: {0}")]
    Syntax(String),
    /// It is a script for a runner that is not here.
    #[error("the script was made for the script runner {0}, which is not here")]
    NoRunner(Digest),
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
        // The clock of the run takes the place of the machine's.
        linker.allow_shadowing(true);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)
            .and_then(|()| monotonic_clock::add_to_linker::<_, HasSelf<Guest>>(&mut linker, |guest| guest))
            .and_then(|()| Provisioner::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest))
            // For the runner of scripts; no other module gets so far that it could ask for it.
            .and_then(|()| Scripted::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest))
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
            runners: tokio::sync::Mutex::default(),
            reading: Semaphore::new(1),
        })
    }

    /// Inspects, compiles and links a component that may be anything; or reads a script.
    ///
    /// # Errors
    /// When it is no module that this server can run, with a sentence for its author.
    pub async fn compile(&self, bytes: Bytes) -> Result<Module, CompileError> {
        if Script::is(&bytes) {
            return self.read(&bytes).await;
        }
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

    /// Compiles and links a component that was compiled before, and is known not to take too much for it; or takes a script that was read before.
    ///
    /// # Errors
    /// When it is no module that this server can run.
    pub async fn compile_known(&self, bytes: Bytes) -> Result<Module, CompileError> {
        if Script::is(&bytes) {
            let script = Script::read(&bytes)?;
            let runner = self.runner(script.runner()).await?;
            return Ok(runner.of(script, Digest::of(&bytes)));
        }
        let about = inspect(&bytes)?;
        let linker = self.linker.clone();
        let (digest, pre) = self.linked(bytes, move |_, component| ProvisionerPre::new(linker.instantiate_pre(component)?)).await?;
        Ok(Module { digest, about: Arc::new(about), pre, script: None })
    }

    /// Takes a script, and sees that it can be run.
    async fn read(&self, bytes: &[u8]) -> Result<Module, CompileError> {
        let script = Script::read(bytes)?;
        let runner = self.runner(script.runner()).await?;
        let module = runner.of(script, Digest::of(bytes));
        let (Ok(_turn), Some(guests), Some(script)) = (self.reading.acquire().await, &self.guests, &module.script) else {
            return Err(CompileError::Busy);
        };
        let (engine, pre, script) = (self.engine.clone(), runner.check.clone(), Arc::clone(script));
        let checked = guests.spawn(async move { check(&engine, &pre, script).await });
        match AbortOnDropHandle::new(checked).await {
            Ok(None) => Ok(module),
            Ok(Some(problem)) => Err(CompileError::Syntax(cut(problem))),
            Err(_) => Err(CompileError::BrokeDown),
        }
    }

    /// A script runner, compiled when it is first asked for. This program's own is always to be had.
    async fn runner(&self, digest: Digest) -> Result<Runner, CompileError> {
        let mut runners = self.runners.lock().await;
        if let Some(runner) = runners.iter().find(|runner| runner.module.digest == digest) {
            return Ok(runner.clone());
        }
        if digest != *RUNNER_DIGEST {
            return Err(CompileError::NoRunner(digest));
        }
        let runner = self.compile_runner(Bytes::from_static(RUNNER)).await?;
        runners.push(runner.clone());
        Ok(runner)
    }

    /// Takes another script runner than this program's own: that of an earlier version, whose scripts go on with it.
    ///
    /// # Errors
    /// When it is none that can run here.
    pub async fn take_runner(&self, bytes: Bytes) -> Result<(), CompileError> {
        let mut runners = self.runners.lock().await;
        let digest = Digest::of(&bytes);
        if !runners.iter().any(|runner| runner.module.digest == digest) {
            runners.push(self.compile_runner(bytes).await?);
        }
        Ok(())
    }

    async fn compile_runner(&self, bytes: Bytes) -> Result<Runner, CompileError> {
        let about = About { world: Some(WORLD.into()), language: Some("JavaScript".into()), ..look(&bytes)? };
        let linker = self.linker.clone();
        let both = move |engine: &Engine, component: &Component| {
            Ok((ProvisionerPre::new(linker.instantiate_pre(component)?)?, link(engine, component)?))
        };
        let (digest, (pre, check)) = self.linked(bytes, both).await?;
        Ok(Runner { module: Module { digest, about: Arc::new(about), pre, script: None }, check })
    }

    /// Compiles a component when it is its turn, and has it linked.
    async fn linked<T: Send + 'static>(
        &self,
        bytes: Bytes,
        link: impl FnOnce(&Engine, &Component) -> wasmtime::Result<T> + Send + 'static,
    ) -> Result<(Digest, T), CompileError> {
        let Ok(permit) = Arc::clone(&self.compiling).acquire_owned().await else {
            return Err(CompileError::BrokeDown);
        };
        let engine = self.engine.clone();
        let compiled = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let component = Component::from_binary(&engine, &bytes)?;
            Ok((Digest::of(&bytes), link(&engine, &component)?))
        });
        let compiled: wasmtime::Result<_> = compiled.await.map_err(|_| CompileError::BrokeDown)?;
        compiled.map_err(|error| CompileError::Component(cut(format!("{error:#}"))))
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
        self.run_with(module, inputs, None).await
    }

    /// Runs a module once; with a tape it is a replay.
    pub(super) async fn run_with(&self, module: &Module, inputs: RunInputs, tape: Option<Arc<Tape>>) -> Outcome {
        let fault =
            |reason: &str| Outcome { verdict: Verdict::HostFault { reason: reason.into() }, counts: Counts::default(), launch: None };
        let (Ok(permit), Some(guests)) = (Arc::clone(&self.running).acquire_owned().await, &self.guests) else {
            return fault("the server is stopping");
        };
        let (engine, module) = (self.engine.clone(), module.clone());
        let task = guests.spawn(async move {
            let _permit = permit;
            run(&engine, &module, inputs, tape).await
        });
        AbortOnDropHandle::new(task).await.unwrap_or_else(|_| fault("the run broke down; the server's log says where"))
    }
}

impl Runner {
    /// A script as a module.
    fn of(&self, script: Script, digest: Digest) -> Module {
        Module { digest, script: Some(Arc::new(script)), ..self.module.clone() }
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
    // What a module computes may not depend on the machine: a replay must find the same.
    config.cranelift_nan_canonicalization(true);
    config.relaxed_simd_deterministic(true);
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
    // One more reads scripts.
    let runs_at_once = runs_at_once + 1;
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

async fn run(engine: &Engine, module: &Module, inputs: RunInputs, tape: Option<Arc<Tape>>) -> Outcome {
    let limits = inputs.policy.limits;
    let cpu = tape.as_ref().map_or(Duration::from_millis(limits.cpu_ms.into()), |tape| tape.cpu());
    let (stdout, stderr) = LogPipe::pair(inputs.recorder.clone());
    let mut gate = match tape {
        None => Gate::new(inputs),
        Some(tape) => Gate::replaying(inputs, tape),
    };
    let seed = gate.begin().await;
    let clock = Arc::clone(gate.clock());
    let wasi = WasiCtxBuilder::new()
        .stdout(stdout)
        .stderr(stderr)
        .wall_clock(Wall(Arc::clone(&clock)))
        .secure_random(Chance::new(&seed, Stream::Secure))
        .insecure_random(Chance::new(&seed, Stream::Insecure))
        .insecure_random_seed(Chance::new(&seed, Stream::Seed).number())
        .max_random_size(RANDOM_BYTES_MAX)
        .build();
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    let script = module.script.clone().map(|script| (script, Chance::new(&seed, Stream::Script)));
    let guest = Guest { gate, table, wasi, limiter: Limiter::new(limits.memory_mib), script };
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.limiter);
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    store.set_max_component_handles(HANDLES_MAX);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);

    let call = async {
        let instance = module.pre.instantiate_async(&mut store).await?;
        instance.muster_provision_provisioning().call_provision(&mut store).await
    };
    let metered = Metered::new(call, cpu);
    let wall = Duration::from_secs(limits.run_seconds.into());
    let ended = tokio::select! {
        biased;
        ended = tokio::time::timeout(wall, metered) => ended.ok(),
        () = clock.over() => None,
    };

    let guest = store.into_data();
    let certain = guest.gate.over().cloned().or_else(|| match &ended {
        None => Some(Verdict::TimedOut { limit_seconds: limits.run_seconds }),
        Some(None) => Some(Verdict::OverLimit { which: format!("{COMPUTED} than `limits.cpu_ms` = {}", limits.cpu_ms) }),
        Some(Some(Err(_))) => guest.limiter.reached().map(|which| Verdict::OverLimit { which: which.into() }),
        Some(Some(Ok(_))) => None,
    });
    let verdict = certain.unwrap_or_else(|| match ended {
        Some(Some(Ok(Ok(())))) => Verdict::Provisioned,
        Some(Some(Ok(Err(refusal)))) => refused(refusal, &guest.gate),
        Some(Some(Err(error))) => trapped(&error, &guest.gate),
        Some(None) | None => Verdict::HostFault { reason: "a run ended without a verdict".into() },
    });
    let memory_bytes = guest.limiter.memory_used_bytes();
    let (counts, launch) = guest.gate.finish();
    Outcome { verdict, counts: Counts { memory_bytes, ..counts }, launch }
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
