//! The engine's own limits of one run, and which of them was reached.

use wasmtime::ResourceLimiter;

use crate::limits::{MODULE_CORE_INSTANCES_MAX, MODULE_MEMORIES_MAX, MODULE_TABLES_MAX, TABLE_ELEMENTS_MAX};

/// Counts the memory of all of a module's linear memories together, and notes the limit that was reached.
///
/// The engine reports a refused growth as an error without a kind, so the note is the one way to know.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_mib: u32,
    memory_used_bytes: usize,
    /// What was last added to that, which is taken back if the memory then does not grow after all.
    memory_added_bytes: usize,
    reached: Option<String>,
}

impl Limiter {
    pub(crate) fn new(memory_mib: u32) -> Self {
        Self { memory_mib, memory_used_bytes: 0, memory_added_bytes: 0, reached: None }
    }

    /// The memory that the module has. It is never given back, so it is the most that it had.
    pub(crate) fn memory_used_bytes(&self) -> u64 {
        self.memory_used_bytes as u64
    }

    /// The limit that was reached, if one was.
    pub(crate) fn reached(&self) -> Option<&str> {
        self.reached.as_deref()
    }

    fn refuse(&mut self, which: String) -> wasmtime::Result<bool> {
        let error = wasmtime::Error::msg(which.clone());
        self.reached.get_or_insert(which);
        Err(error)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let added = desired.saturating_sub(current);
        let used = self.memory_used_bytes.saturating_add(added);
        if used > self.memory_mib as usize * 1024 * 1024 {
            return self.refuse(format!("the module needs more memory than `limits.memory_mib` = {}", self.memory_mib));
        }
        (self.memory_used_bytes, self.memory_added_bytes) = (used, added);
        Ok(true)
    }

    /// The memory's own maximum, say: the module is told, and may go on with what it has.
    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_used_bytes = self.memory_used_bytes.saturating_sub(std::mem::take(&mut self.memory_added_bytes));
        Ok(())
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS_MAX {
            return self.refuse(format!("the module needs a table of {desired} elements; {TABLE_ELEMENTS_MAX} are allowed"));
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        MODULE_CORE_INSTANCES_MAX as usize
    }

    fn tables(&self) -> usize {
        MODULE_TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        MODULE_MEMORIES_MAX as usize
    }
}
