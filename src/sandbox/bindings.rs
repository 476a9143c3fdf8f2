//! What `bindgen!` makes of the contract in `wit/`.

wasmtime::component::bindgen!({
    path: "wit",
    world: "provisioner",
    imports: { default: async | trappable },
    exports: { default: async },
    with: {
        "muster:provision/secrets.secret": crate::sandbox::gate::Secret,
        "muster:provision/bits.bundle": crate::bits::contents::Bundle,
        "muster:provision/agent.command": crate::sandbox::gate::ModuleCommand,
        "muster:provision/agent.output": crate::machine::Output,
        "muster:provision/agent.change": crate::machine::Change,
    },
    trappable_error_type: {
        "muster:provision/agent.error" => crate::sandbox::gate::Refused,
    },
});
