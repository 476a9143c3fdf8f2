//! Reading a script when it arrives: whether it can be run at all. Nothing of it is run, and there is nothing that it could reach.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasSelf, Linker, ResourceTable, ResourceType};
use wasmtime::{Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::limits::{SCRIPT_CHECK_CPU, SCRIPT_CHECK_MEMORY_MIB};
use crate::sandbox::inspect::CONTRACT;
use crate::sandbox::limiter::Limiter;
use crate::sandbox::metered::Metered;
use crate::sandbox::script::Script;
use crate::sandbox::script::bindings::muster::script::source;
use crate::sandbox::script::bindings::{Scripted, ScriptedPre};

/// What the store of a check holds.
pub(in crate::sandbox) struct Reader {
    script: Arc<Script>,
    table: ResourceTable,
    wasi: WasiCtx,
    limiter: Limiter,
}

impl WasiView for Reader {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl source::Host for Reader {
    fn name(&mut self) -> wasmtime::Result<String> {
        Ok(self.script.name().to_string())
    }

    fn text(&mut self) -> wasmtime::Result<String> {
        Ok(self.script.text().to_owned())
    }

    fn random(&mut self) -> wasmtime::Result<f64> {
        Ok(0.0)
    }
}

/// Offers the contract's interfaces by their types alone: whatever is called ends the check. The engine's own way to do that does not know that
/// one version of WASI stands for another.
fn close(linker: &mut Linker<Reader>, engine: &Engine, runner: &Component) -> wasmtime::Result<()> {
    let mut resources = Vec::new();
    for (interface, item) in runner.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
        if !interface.starts_with(CONTRACT) {
            continue;
        }
        let mut closed = linker.instance(interface)?;
        for (name, item) in instance.exports(engine) {
            match item.ty {
                ComponentItem::ComponentFunc(_) => {
                    closed.func_new(name, |_, _, _, _| Err(wasmtime::Error::msg("nothing can be called while a script is read")))?;
                }
                // One that another interface uses has the same name there.
                ComponentItem::Resource(_) => {
                    let number = resources.iter().position(|known| known == name).unwrap_or(resources.len());
                    if number == resources.len() {
                        resources.push(name.to_owned());
                    }
                    let number = u32::try_from(number).unwrap_or(u32::MAX);
                    closed.resource(name, ResourceType::host_dynamic(number), |_, _| Ok(()))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The runner, linked for checks.
pub(in crate::sandbox) fn link(engine: &Engine, runner: &Component) -> wasmtime::Result<ScriptedPre<Reader>> {
    let mut linker = Linker::<Reader>::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    Scripted::add_to_linker::<_, HasSelf<_>>(&mut linker, |reader| reader)?;
    close(&mut linker, engine, runner)?;
    ScriptedPre::new(linker.instantiate_pre(runner)?)
}

/// Why a script can not be run, and where in it; nothing if it can.
pub(in crate::sandbox) async fn check(engine: &Engine, pre: &ScriptedPre<Reader>, script: Arc<Script>) -> Option<String> {
    let costly =
        format!("{}: it takes more than {} ms or {SCRIPT_CHECK_MEMORY_MIB} MiB to read", script.name(), SCRIPT_CHECK_CPU.as_millis());
    let nested = format!("{}: it is nested too deeply to be read", script.name());
    let reader =
        Reader { script, table: ResourceTable::new(), wasi: WasiCtxBuilder::new().build(), limiter: Limiter::new(SCRIPT_CHECK_MEMORY_MIB) };
    let mut store = Store::new(engine, reader);
    store.limiter(|reader| &mut reader.limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    let call = async {
        let instance = pre.instantiate_async(&mut store).await?;
        instance.muster_script_checking().call_check(&mut store).await
    };
    // Nothing that it could wait for takes long, but what waits costs no processor time.
    let ended = tokio::time::timeout(SCRIPT_CHECK_CPU + Duration::from_secs(10), Metered::new(call, SCRIPT_CHECK_CPU)).await;
    match ended {
        Ok(Some(Ok(found))) => found,
        Ok(Some(Err(error))) => Some(match error.downcast_ref() {
            Some(wasmtime::Trap::StackOverflow) => nested,
            _ => costly,
        }),
        Ok(None) | Err(_) => Some(costly),
    }
}
