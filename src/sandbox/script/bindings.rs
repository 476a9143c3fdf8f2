//! What `bindgen!` makes of what the runner has beside the contract.

wasmtime::component::bindgen!({
    path: "runner/wit",
    world: "scripted",
    imports: { default: trappable },
    exports: { default: async },
});
