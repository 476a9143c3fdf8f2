//! The contract's functions, each handed to the gate. Nothing is decided here.

use std::sync::Arc;

use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::{DynPollable, subscribe};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::bits::contents::Bundle;
use crate::journal::Level;
use crate::machine::{CallError, Change, Output};
use crate::sandbox::bindings::muster::provision::{agent, bits, log, registration, secrets, settings};
use crate::sandbox::chance::Chance;
use crate::sandbox::gate::{Gate, ModuleCommand, Refused, Secret};
use crate::sandbox::limiter::Limiter;
use crate::sandbox::script::Script;
use crate::sandbox::script::bindings::muster::script::source;

/// What one run's store holds.
pub(crate) struct Guest {
    pub(crate) gate: Gate,
    pub(crate) table: ResourceTable,
    pub(crate) wasi: WasiCtx,
    pub(crate) limiter: Limiter,
    /// The script that the runner is to run, and its random numbers; none in a module of its own.
    pub(crate) script: Option<(Arc<Script>, Chance)>,
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// The engine's own would pause by the machine's clock.
impl monotonic_clock::Host for Guest {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.gate.clock().look_ns())
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(1000)
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let pause = self.table.push(self.gate.clock().until(when))?;
        subscribe(&mut self.table, pause)
    }

    fn subscribe_duration(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let pause = self.table.push(self.gate.clock().pause(when))?;
        subscribe(&mut self.table, pause)
    }
}

impl Guest {
    fn script(&mut self) -> wasmtime::Result<&mut (Arc<Script>, Chance)> {
        self.script.as_mut().ok_or_else(|| wasmtime::Error::msg("there is no script"))
    }
}

impl source::Host for Guest {
    fn name(&mut self) -> wasmtime::Result<String> {
        Ok(self.script()?.0.name().to_string())
    }

    fn text(&mut self) -> wasmtime::Result<String> {
        Ok(self.script()?.0.text().to_owned())
    }

    fn random(&mut self) -> wasmtime::Result<f64> {
        Ok(self.script()?.1.share())
    }
}

/// What a function without an error of its own does when the gate refuses: the run ends.
fn ended(_: Refused) -> wasmtime::Error {
    wasmtime::Error::msg("the run is over")
}

impl registration::Host for Guest {
    async fn name(&mut self) -> wasmtime::Result<String> {
        Ok(self.gate.registration().name.clone())
    }

    async fn label(&mut self) -> wasmtime::Result<String> {
        Ok(self.gate.registration().label.clone())
    }

    async fn labels(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.gate.registration().labels.clone())
    }

    async fn executors(&mut self) -> wasmtime::Result<u32> {
        Ok(self.gate.registration().executors)
    }

    async fn root(&mut self) -> wasmtime::Result<String> {
        Ok(self.gate.registration().root.clone())
    }

    async fn os(&mut self) -> wasmtime::Result<String> {
        Ok(self.gate.registration().os.clone())
    }

    async fn arch(&mut self) -> wasmtime::Result<String> {
        Ok(self.gate.registration().arch.clone())
    }

    async fn image(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.gate.registration().image.clone())
    }

    async fn attribute(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(self.gate.registration().attributes.get(&name).cloned())
    }

    async fn attempt(&mut self) -> wasmtime::Result<u32> {
        Ok(self.gate.registration().attempt)
    }
}

impl settings::Host for Guest {
    async fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(self.gate.settings().get(&name).cloned())
    }

    async fn all(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.gate.settings().iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

impl secrets::Host for Guest {
    async fn open(&mut self, name: String) -> wasmtime::Result<Option<Resource<Secret>>> {
        let secret = self.gate.open_secret(&name).await.map_err(ended)?;
        Ok(secret.map(|secret| self.table.push(secret)).transpose()?)
    }
}

impl secrets::HostSecret for Guest {
    async fn name(&mut self, secret: Resource<Secret>) -> wasmtime::Result<String> {
        Ok(self.table.get(&secret)?.name().to_string())
    }

    async fn drop(&mut self, secret: Resource<Secret>) -> wasmtime::Result<()> {
        self.table.delete(secret)?;
        Ok(())
    }
}

impl bits::Host for Guest {
    async fn open(&mut self, name: String) -> wasmtime::Result<Option<Resource<Bundle>>> {
        let bundle = self.gate.open_bundle(&name).await.map_err(ended)?;
        Ok(bundle.map(|bundle| self.table.push(bundle)).transpose()?)
    }
}

impl bits::HostBundle for Guest {
    async fn name(&mut self, bundle: Resource<Bundle>) -> wasmtime::Result<String> {
        Ok(self.table.get(&bundle)?.name.to_string())
    }

    async fn version(&mut self, bundle: Resource<Bundle>) -> wasmtime::Result<String> {
        Ok(self.table.get(&bundle)?.version.to_string())
    }

    async fn read(&mut self, bundle: Resource<Bundle>, path: String) -> wasmtime::Result<Option<Vec<u8>>> {
        let bundle = self.table.get(&bundle)?.clone();
        self.gate.read_bundle(&bundle, &path).await.map_err(ended)
    }

    async fn drop(&mut self, bundle: Resource<Bundle>) -> wasmtime::Result<()> {
        self.table.delete(bundle)?;
        Ok(())
    }
}

impl log::Host for Guest {
    async fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warn => Level::Warn,
            log::Level::Error => Level::Error,
        };
        self.gate.log(level, &message).await.map_err(ended)
    }

    async fn step(&mut self, title: String) -> wasmtime::Result<()> {
        self.gate.step(&title).await.map_err(ended)
    }
}

impl Guest {
    fn command(&self, command: &Resource<ModuleCommand>) -> Result<ModuleCommand, Refused> {
        self.table.get(command).cloned().map_err(|_| Refused::End)
    }

    fn bundle(&self, bundle: &Resource<Bundle>) -> Result<Bundle, Refused> {
        self.table.get(bundle).cloned().map_err(|_| Refused::End)
    }

    fn hold<T: Send + 'static>(&mut self, value: T) -> Result<Resource<T>, Refused> {
        self.table.push(value).map_err(|_| self.gate.end_for_handles())
    }
}

impl agent::Host for Guest {
    fn convert_error(&mut self, refused: Refused) -> wasmtime::Result<agent::Error> {
        match refused {
            Refused::End => Err(ended(refused)),
            Refused::Answer(error) => Ok(match error {
                CallError::Denied(text) => agent::Error::Denied(text),
                CallError::NotFound(text) => agent::Error::NotFound(text),
                CallError::Invalid(text) => agent::Error::Invalid(text),
                CallError::Unreachable(text) => agent::Error::Unreachable(text),
                CallError::TimedOut => agent::Error::TimedOut,
                CallError::OverBudget(text) => agent::Error::OverBudget(text),
                CallError::Other(text) => agent::Error::Other(Some(text)),
            }),
        }
    }

    async fn probe(&mut self, command: Resource<ModuleCommand>) -> Result<Resource<Output>, Refused> {
        let command = self.command(&command)?;
        let output = self.gate.probe(&command).await?;
        self.hold(output)
    }

    async fn read_file(&mut self, path: String) -> Result<Vec<u8>, Refused> {
        self.gate.read_file(&path).await
    }

    async fn exists(&mut self, path: String) -> Result<bool, Refused> {
        self.gate.exists(&path).await
    }

    async fn run(&mut self, command: Resource<ModuleCommand>) -> Result<Resource<Output>, Refused> {
        let command = self.command(&command)?;
        let output = self.gate.run(&command).await?;
        self.hold(output)
    }

    async fn write_file(&mut self, path: String, contents: Vec<u8>, mode: u32) -> Result<Resource<Change>, Refused> {
        let change = self.gate.write_file(&path, &contents, mode).await?;
        self.hold(change)
    }

    async fn remove(&mut self, path: String) -> Result<Resource<Change>, Refused> {
        let change = self.gate.remove(&path).await?;
        self.hold(change)
    }

    async fn push(&mut self, bundle: Resource<Bundle>, destination: String) -> Result<Resource<Change>, Refused> {
        let bundle = self.bundle(&bundle)?;
        let change = self.gate.push(&bundle, &destination).await?;
        self.hold(change)
    }

    async fn mirror(&mut self, bundle: Resource<Bundle>, destination: String) -> Result<Resource<Change>, Refused> {
        let bundle = self.bundle(&bundle)?;
        let change = self.gate.mirror(&bundle, &destination).await?;
        self.hold(change)
    }

    async fn stop(&mut self) -> Result<bool, Refused> {
        self.gate.stop().await
    }

    async fn launch(&mut self, command: Resource<ModuleCommand>) -> Result<(), Refused> {
        let command = self.command(&command)?;
        self.gate.launch(&command).await
    }
}

impl agent::HostCommand for Guest {
    async fn new(&mut self, program: String, args: Vec<String>) -> wasmtime::Result<Resource<ModuleCommand>> {
        self.gate.charge_held(program.len(), 1).map_err(ended)?;
        self.gate.charge_held(args.iter().map(String::len).sum(), args.len()).map_err(ended)?;
        let mut command = ModuleCommand::default();
        command.command.program = program;
        command.command.args = args;
        Ok(self.table.push(command)?)
    }

    async fn env(&mut self, command: Resource<ModuleCommand>, name: String, value: String) -> wasmtime::Result<()> {
        self.gate.charge_held(name.len() + value.len(), 1).map_err(ended)?;
        self.table.get_mut(&command)?.command.env.push((name, value));
        Ok(())
    }

    async fn secret_env(&mut self, command: Resource<ModuleCommand>, name: String, value: Resource<Secret>) -> wasmtime::Result<()> {
        self.gate.charge_held(name.len(), 1).map_err(ended)?;
        let secret = self.table.get(&value)?.clone();
        self.table.get_mut(&command)?.secret_env.push((name, secret));
        Ok(())
    }

    async fn directory(&mut self, command: Resource<ModuleCommand>, path: String) -> wasmtime::Result<()> {
        self.gate.charge_held(path.len(), 1).map_err(ended)?;
        self.table.get_mut(&command)?.command.directory = Some(path);
        Ok(())
    }

    async fn stdin(&mut self, command: Resource<ModuleCommand>, bytes: Vec<u8>) -> wasmtime::Result<()> {
        self.gate.charge_held(bytes.len(), 1).map_err(ended)?;
        self.table.get_mut(&command)?.command.stdin = bytes;
        Ok(())
    }

    async fn timeout_ms(&mut self, command: Resource<ModuleCommand>, limit: u64) -> wasmtime::Result<()> {
        self.table.get_mut(&command)?.command.timeout_ms = Some(limit);
        Ok(())
    }

    async fn drop(&mut self, command: Resource<ModuleCommand>) -> wasmtime::Result<()> {
        self.table.delete(command)?;
        Ok(())
    }
}

impl agent::HostOutput for Guest {
    async fn status(&mut self, output: Resource<Output>) -> wasmtime::Result<i32> {
        Ok(self.table.get(&output)?.status)
    }

    async fn stdout(&mut self, output: Resource<Output>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.table.get(&output)?.stdout.clone())
    }

    async fn stderr(&mut self, output: Resource<Output>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.table.get(&output)?.stderr.clone())
    }

    async fn truncated(&mut self, output: Resource<Output>) -> wasmtime::Result<bool> {
        Ok(self.table.get(&output)?.truncated)
    }

    async fn drop(&mut self, output: Resource<Output>) -> wasmtime::Result<()> {
        self.table.delete(output)?;
        Ok(())
    }
}

impl agent::HostChange for Guest {
    async fn changed(&mut self, change: Resource<Change>) -> wasmtime::Result<bool> {
        Ok(self.table.get(&change)?.changed)
    }

    async fn files(&mut self, change: Resource<Change>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&change)?.files)
    }

    async fn files_changed(&mut self, change: Resource<Change>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&change)?.files_changed)
    }

    async fn files_removed(&mut self, change: Resource<Change>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&change)?.files_removed)
    }

    async fn bytes(&mut self, change: Resource<Change>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&change)?.bytes)
    }

    async fn bytes_sent(&mut self, change: Resource<Change>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&change)?.bytes_sent)
    }

    async fn drop(&mut self, change: Resource<Change>) -> wasmtime::Result<()> {
        self.table.delete(change)?;
        Ok(())
    }
}
