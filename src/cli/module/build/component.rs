//! A component of what a compiler made.

use std::path::Path;

use wasi_preview1_component_adapter_provider::{WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::sandbox::inspect::{InspectError, look};

/// Why what a compiler made can not be made a component.
#[derive(Debug, thiserror::Error)]
pub(super) enum ComponentError {
    /// It is no WebAssembly.
    #[error("what the compiler made is no WebAssembly")]
    NotWasm(#[source] InspectError),
    /// The project's copy of the contract can not be read.
    #[error("the contract in `wit` can not be read: {0}")]
    Contract(String),
    /// It does not fit the contract.
    #[error("what the compiler made does not fit the contract: {0}")]
    Misfit(String),
}

/// A component as it is; of a core module, the component of it for the world `provisioner`. What it uses of the first WASI becomes WASI 0.2.
pub(super) fn component(mut bytes: Vec<u8>, wit: &Path) -> Result<Vec<u8>, ComponentError> {
    match look(&bytes) {
        Ok(_) => return Ok(bytes),
        Err(InspectError::CoreModule) => {}
        Err(error) => return Err(ComponentError::NotWasm(error)),
    }
    let contract = |error: &dyn std::fmt::Display| ComponentError::Contract(format!("{error:#}"));
    let misfit = |error: &dyn std::fmt::Display| ComponentError::Misfit(format!("{error:#}"));
    // What `wit-bindgen` for Rust puts there says the same; for the other languages nothing is there.
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit).map_err(|error| contract(&error))?;
    let world = resolve.select_world(&[package], Some("provisioner")).map_err(|error| contract(&error))?;
    embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8).map_err(|error| misfit(&error))?;
    ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(|encoder| encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER))
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| misfit(&error))
}
