//! What a run costs by itself: store, instance, calls through the gate with the journal, tear-down. The link answers at once.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a bench ends where it fails")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use criterion::{Criterion, criterion_group, criterion_main};
use muster::bits::contents::{Bundle, DirectoryContents};
use muster::bits::scan::scan;
use muster::journal::channel;
use muster::link::Link;
use muster::machine::{CallError, Change, Command, Output, Stream, SyncRules};
use muster::policy::{LabelPolicy, parse_file};
use muster::sandbox::script::Script;
use muster::sandbox::{Module, Registration, RunInputs, Sandbox, Verdict};

#[expect(dead_code, reason = "what only tests of the guests use")]
#[path = "../tests/it/guests.rs"]
mod guests;

/// An agent that does nothing, at once.
struct Idle;

#[async_trait::async_trait]
impl Link for Idle {
    async fn exec(&self, _command: &Command, _progress: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<Output, CallError> {
        Ok(Output::default())
    }

    async fn read_file(&self, _path: &str, _bytes_max: usize) -> Result<Vec<u8>, CallError> {
        Ok(Vec::new())
    }

    async fn exists(&self, _path: &str) -> Result<bool, CallError> {
        Ok(true)
    }

    async fn write_file(&self, _path: &str, _contents: &[u8], _mode: u32) -> Result<Change, CallError> {
        Ok(Change::default())
    }

    async fn remove(&self, _path: &str, _with_below: bool) -> Result<Change, CallError> {
        Ok(Change::default())
    }

    async fn sync(&self, _destination: &str, _bundle: &Bundle, _rules: SyncRules) -> Result<Change, CallError> {
        Ok(Change::default())
    }

    async fn stop(&self) -> Result<bool, CallError> {
        Ok(false)
    }

    async fn launch(&self, _command: &Command) -> Result<(), CallError> {
        Ok(())
    }
}

fn policy() -> Arc<LabelPolicy> {
    let text = "[label.linux]\nteam = \"media\"\nmodule = \"tools\"\nbundles = [\"tools\"]\n\
                [label.linux.grants]\nread = [\"/etc\"]\nwrite = [\"tools/**\"]\nrun = [\"tools/bin/*\"]\n";
    Arc::new(parse_file(text).unwrap().into_values().next().unwrap())
}

fn bundle() -> Bundle {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tools/tree");
    let dir = Dir::open_ambient_dir(tree, ambient_authority()).unwrap();
    let (manifest, spots) = scan(&dir, &mut |_| {}).unwrap();
    let contents = Arc::new(DirectoryContents::new(dir, &manifest, &spots));
    Bundle::new("tools".parse().unwrap(), manifest, contents)
}

/// One run to its end, whose records are taken once, as the server takes them.
async fn run(sandbox: &Sandbox, module: &Module, policy: &Arc<LabelPolicy>, bundle: &Bundle) {
    let (recorder, records) = channel();
    let inputs = RunInputs {
        registration: Registration { name: "a1".into(), root: "/srv/agent".into(), attempt: 1, ..Registration::default() },
        policy: Arc::clone(policy),
        bundles: [(bundle.name.clone(), bundle.clone())].into(),
        secrets: None,
        link: Arc::new(Idle),
        recorder,
    };
    let outcome = sandbox.run(module, inputs).await;
    assert_eq!(outcome.verdict, Verdict::Provisioned);
    assert!(!records.take().is_empty());
}

fn runs(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sandbox = Sandbox::new(None, 8).unwrap();
    let (policy, bundle) = (policy(), bundle());
    let tools = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tools/tools.wasm")).unwrap();
    let script = |text: &str| Script::new("hook.js".parse().unwrap(), text.as_bytes()).unwrap().bytes().to_vec();
    let hook = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hook/hook.js")).unwrap();
    for (what, bytes) in [
        ("ten calls of a small guest", guests::component("calls")),
        ("the example module", tools),
        ("an empty script", script("log.step('nothing');")),
        ("ten calls of a script", script("for (let call = 0; call < 10; call += 1) agent.exists('/etc');")),
        ("the example script", script(&hook)),
    ] {
        let module = runtime.block_on(sandbox.compile(Bytes::from(bytes))).unwrap();
        criterion.bench_function(what, |bencher| bencher.to_async(&runtime).iter(|| run(&sandbox, &module, &policy, &bundle)));
    }
}

criterion_group!(benches, runs);
criterion_main!(benches);
