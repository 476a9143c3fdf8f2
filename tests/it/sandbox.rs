//! What becomes of modules that are good, bad and hostile.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use muster::bits::contents::Bundle;
use muster::journal::{Records, channel};
use muster::limits::RUN_LOG_LINES_MAX;
use muster::link::Link;
use muster::machine::{CallError, Change, Command, Output, Stream, SyncRules};
use muster::policy::{LabelPolicy, parse_file};
use muster::sandbox::compiler::Compiler;
use muster::sandbox::{CompileError, Module, Outcome, Registration, RunInputs, Sandbox, Verdict};
use tokio::sync::Notify;

use crate::guests::{component, component_of_contract};

/// One engine for all tests of a process: each would reserve its own pool of memories.
static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::new(None, 4).unwrap());

/// What a link does when it is asked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Manner {
    /// It answers at once.
    #[default]
    Answers,
    /// It never answers.
    Hangs,
    /// It is lost.
    Lost,
}

#[derive(Default)]
pub(crate) struct Witness {
    manner: Manner,
    asked: Mutex<Vec<String>>,
    reached: Notify,
    dropped: Arc<AtomicUsize>,
}

/// Counts calls that were dropped before they were answered.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Witness {
    pub(crate) fn that(manner: Manner) -> Arc<Self> {
        Arc::new(Self { manner, ..Self::default() })
    }

    async fn answer<T>(&self, call: String, answer: T) -> Result<T, CallError> {
        self.asked.lock().unwrap().push(call);
        self.reached.notify_one();
        match self.manner {
            Manner::Answers => Ok(answer),
            Manner::Lost => Err(CallError::Unreachable("the agent's session was closed".into())),
            Manner::Hangs => {
                let _dropped = Dropped(Arc::clone(&self.dropped));
                pending().await
            }
        }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl Link for Witness {
    async fn exec(&self, command: &Command, _progress: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<Output, CallError> {
        self.answer(format!("exec {}", command.program), Output::default()).await
    }

    async fn read_file(&self, path: &str, _bytes_max: usize) -> Result<Vec<u8>, CallError> {
        self.answer(format!("read {path}"), b"root:*".to_vec()).await
    }

    async fn exists(&self, path: &str) -> Result<bool, CallError> {
        self.answer(format!("exists {path}"), true).await
    }

    async fn write_file(&self, path: &str, contents: &[u8], mode: u32) -> Result<Change, CallError> {
        let text = String::from_utf8_lossy(contents).into_owned();
        self.answer(format!("write {path} {mode:o} {text}"), Change::default()).await
    }

    async fn remove(&self, path: &str, _with_below: bool) -> Result<Change, CallError> {
        self.answer(format!("remove {path}"), Change::default()).await
    }

    async fn sync(&self, destination: &str, _bundle: &Bundle, _rules: SyncRules) -> Result<Change, CallError> {
        self.answer(format!("sync {destination}"), Change::default()).await
    }

    async fn stop(&self) -> Result<bool, CallError> {
        self.answer("stop".into(), false).await
    }

    async fn launch(&self, command: &Command) -> Result<(), CallError> {
        self.answer(format!("launch {}", command.program), ()).await
    }
}

/// A policy with these limits that grants what the guests ask for.
fn policy(limits: &str) -> LabelPolicy {
    let text = format!(
        "[label.linux]\nteam = \"media\"\nmodule = \"base\"\n[label.linux.limits]\n{limits}\n\
         [label.linux.grants]\nrun = [\"/bin/true\"]\nread = [\"/etc\"]\nwrite = [\"greeting\"]\n"
    );
    parse_file(&text).unwrap().into_values().next().unwrap()
}

pub(crate) fn inputs(policy: LabelPolicy, link: Arc<dyn Link>) -> (RunInputs, Records) {
    let (recorder, records) = channel();
    let registration = Registration { name: "a1".into(), root: "/srv/agent".into(), attempt: 1, ..Registration::default() };
    (RunInputs { registration, policy: Arc::new(policy), bundles: [].into(), secrets: None, link, recorder }, records)
}

pub(crate) async fn compiled(name: &str) -> Module {
    SANDBOX.compile(Bytes::from(component(name))).await.unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn sandbox() -> &'static Sandbox {
    &SANDBOX
}

/// Runs a guest to its end; says how long that took, for people.
async fn ran_with(name: &str, limits: &str, link: Arc<Witness>) -> Outcome {
    let module = compiled(name).await;
    let (inputs, _) = inputs(policy(limits), link);
    let began = Instant::now();
    let outcome = SANDBOX.run(&module, inputs).await;
    println!("{name}: {} after {:?}", outcome.verdict.word(), began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(20), "{name} was not stopped: {:?}", began.elapsed());
    outcome
}

async fn ran(name: &str, limits: &str) -> Verdict {
    ran_with(name, limits, Arc::default()).await.verdict
}

#[track_caller]
fn assert_over(verdict: &Verdict, what: &str) {
    assert!(matches!(verdict, Verdict::OverLimit { which } if which.contains(what)), "{verdict:?}");
}

#[tokio::test]
async fn a_module_that_succeeds_has_provisioned_its_machine() {
    assert_eq!(ran("ok", "").await, Verdict::Provisioned);
    let link = Witness::that(Manner::Answers);
    let outcome = ran_with("write-file", "", Arc::clone(&link)).await;
    assert_eq!((outcome.verdict, outcome.counts.calls), (Verdict::Provisioned, 1));
    assert_eq!(link.asked(), ["write /srv/agent/greeting 644 hello"]);
}

#[tokio::test]
async fn a_refusal_says_what_the_module_said() {
    assert_eq!(ran("refuse-later", "").await, Verdict::RefusedLater { reason: "disk is full".into(), after_seconds: 30 });
    assert_eq!(ran("refuse-never", "").await, Verdict::RefusedNever { reason: "no such image".into() });
    assert_eq!(ran("refuse-other", "").await, Verdict::Refused { reason: "it is broken".into() });
}

#[tokio::test]
async fn a_module_that_traps_is_trapped_with_the_reason() {
    let verdict = ran("trap", "").await;
    assert!(matches!(&verdict, Verdict::Trapped { reason } if reason.contains("unreachable")), "{verdict:?}");
}

#[tokio::test]
async fn a_module_that_spins_is_stopped_while_others_go_on() {
    let (spin, calls) = (compiled("spin").await, compiled("calls").await);
    let spinning = async {
        let (inputs, _) = inputs(policy("cpu_ms = 300"), Arc::new(Witness::default()));
        let began = Instant::now();
        let verdict = SANDBOX.run(&spin, inputs).await.verdict;
        println!("spin with cpu_ms = 300: stopped after {:?}", began.elapsed());
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        verdict
    };
    let working = async {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let (inputs, _) = inputs(policy(""), Arc::new(Witness::default()));
            let began = Instant::now();
            assert_eq!(SANDBOX.run(&calls, inputs).await.verdict, Verdict::Provisioned);
            longest = longest.max(began.elapsed());
        }
        println!("20 runs beside it: the longest {longest:?}");
    };
    let (verdict, ()) = tokio::join!(spinning, working);
    assert_over(&verdict, "`limits.cpu_ms` = 300");
}

#[tokio::test]
async fn more_modules_that_spin_than_there_are_processors_do_not_stop_another_one() {
    let (spin, ok) = (compiled("spin").await, compiled("ok").await);
    let spinning =
        futures_util::future::join_all((0..3).map(|_| SANDBOX.run(&spin, inputs(policy("cpu_ms = 400"), Arc::<Witness>::default()).0)));
    let (spun, done) = tokio::join!(spinning, SANDBOX.run(&ok, inputs(policy(""), Arc::<Witness>::default()).0));
    assert_eq!(done.verdict, Verdict::Provisioned);
    spun.iter().for_each(|outcome| assert_over(&outcome.verdict, "limits.cpu_ms"));
}

#[tokio::test]
async fn a_run_whose_agent_does_not_answer_is_timed_out() {
    let link = Witness::that(Manner::Hangs);
    let outcome = ran_with("calls", "run_seconds = 1", Arc::clone(&link)).await;
    assert_eq!(outcome.verdict, Verdict::TimedOut { limit_seconds: 1 });
    assert!(outcome.verdict.reason().unwrap().contains("`limits.run_seconds` = 1"));
    assert_eq!(link.dropped.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_run_whose_link_is_lost_says_so_whatever_the_module_answers() {
    let outcome = ran_with("calls", "", Witness::that(Manner::Lost)).await;
    assert_eq!(outcome.verdict, Verdict::LinkLost { reason: "the agent's session was closed".into() });
    assert_eq!(outcome.counts.calls, 1);
    let outcome = ran_with("write-file", "", Witness::that(Manner::Lost)).await;
    assert!(matches!(outcome.verdict, Verdict::LinkLost { .. }), "{:?}", outcome.verdict);
}

#[tokio::test]
async fn a_module_that_takes_too_much_of_anything_is_over_its_limit() {
    assert_over(&ran("grow", "memory_mib = 2").await, "`limits.memory_mib` = 2");
    assert_over(&ran("grow", "").await, "`limits.memory_mib` = 64");
    assert_over(&ran("recurse", "").await, "stack");
    assert_over(&ran("handles", "").await, "256 handles");
    assert_over(&ran("log-flood", "cpu_ms = 60000").await, &format!("{RUN_LOG_LINES_MAX} log lines"));
    assert_over(&ran("big-answer", "").await, "2097152 bytes");
    assert_over(&ran("run-loop", "calls = 100").await, "`limits.calls` = 100");
}

#[tokio::test]
async fn a_text_beyond_the_modules_memory_is_a_trap() {
    let verdict = ran("beyond-memory", "").await;
    assert!(matches!(verdict, Verdict::Trapped { .. }), "{verdict:?}");
}

#[tokio::test]
async fn a_run_that_nobody_waits_for_any_more_ends_its_call() {
    let link = Witness::that(Manner::Hangs);
    let module = compiled("calls").await;
    let (inputs, _) = inputs(policy(""), Arc::clone(&link) as Arc<dyn Link>);
    {
        let run = SANDBOX.run(&module, inputs);
        tokio::select! {
            outcome = run => panic!("{outcome:?}"),
            () = link.reached.notified() => {}
        }
    }
    while link.dropped.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_run_that_computes_and_that_nobody_waits_for_makes_room() {
    let sandbox = Sandbox::new(None, 1).unwrap();
    let spin = sandbox.compile(Bytes::from(component("spin"))).await.unwrap();
    let ok = sandbox.compile(Bytes::from(component("ok"))).await.unwrap();
    let (long, _) = inputs(policy("cpu_ms = 60000"), Arc::<Witness>::default());
    let run = sandbox.run(&spin, long);
    tokio::select! {
        biased;
        outcome = run => panic!("{outcome:?}"),
        () = tokio::task::yield_now() => {}
    }
    let (short, _) = inputs(policy(""), Arc::<Witness>::default());
    let began = Instant::now();
    assert_eq!(sandbox.run(&ok, short).await.verdict, Verdict::Provisioned);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_is_no_module_is_not_taken_and_the_error_says_why() {
    let ok = component("ok");
    let core = wat::parse_str("(module)").unwrap();
    let empty = wat::parse_str("(component)").unwrap();
    let foreign = wat::parse_str("(component (import \"other:x/y@1.0.0\" (instance)))").unwrap();
    let mistyped = wat::parse_str(
        "(component (import \"muster:provision/log@0.1.0\" (instance (export \"write\" (func (param \"x\" u8)))))\
         (instance $i) (export \"muster:provision/provisioning@0.1.0\" (instance $i)))",
    )
    .unwrap();
    for (bytes, says) in [
        (core, "a core WebAssembly module"),
        (b"garbage, and more of it".to_vec(), "not a WebAssembly component"),
        (Vec::new(), "not a WebAssembly component"),
        (ok[..ok.len() / 2].to_vec(), "not a WebAssembly component"),
        (empty, "does not export `muster:provision/provisioning@0.1.0`"),
        (foreign, "imports `other:x/y@1.0.0`"),
        (mistyped, "can not be used as a module: "),
    ] {
        let error = SANDBOX.compile(Bytes::from(bytes)).await.err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_component_of_another_contract_is_not_taken_and_the_error_names_both() {
    for version in ["0.2.0", "1.0.0"] {
        let error = SANDBOX.compile(Bytes::from(component_of_contract(version))).await.err().unwrap();
        assert!(matches!(error, CompileError::Inspect(_)));
        let error = error.to_string();
        assert!(error.contains(version) && error.contains("0.1.0"), "{error}");
    }
    let module = SANDBOX.compile(Bytes::from(component_of_contract("0.1.9"))).await;
    println!("a component of contract 0.1.9: {:?}", module.map(|module| module.about().clone()).map_err(|error| error.to_string()));
}

#[tokio::test]
async fn a_module_knows_what_it_is() {
    let bytes = component("calls");
    let module = compiled("calls").await;
    assert_eq!(module.digest(), muster::names::Digest::of(&bytes));
    assert_eq!(module.about().world.as_deref(), Some("muster:provision/provisioner@0.1.0"));
    assert!(module.about().imports.contains(&"muster:provision/agent@0.1.0".to_owned()));
}

fn compiled_files(cache: &std::path::Path) -> usize {
    let below = |directory: std::path::PathBuf| std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let (mut waiting, mut files) = (vec![cache.to_owned()], 0);
    while let Some(directory) = waiting.pop() {
        for path in below(directory) {
            match path.is_dir() {
                true => waiting.push(path),
                // What the engine notes of a file's use stands beside it.
                false => files += usize::from(path.extension().is_none()),
            }
        }
    }
    files
}

#[tokio::test]
async fn what_a_process_of_its_own_compiled_is_found_and_not_compiled_again() {
    let cache = tempfile::tempdir().unwrap();
    let compiler = |program: &str| Some(Compiler { program: program.into(), cache: cache.path().to_owned() });
    let component = Bytes::from(crate::guests::component("ok"));
    let sandbox = Sandbox::new(compiler(env!("CARGO_BIN_EXE_muster")), 1).unwrap();
    sandbox.compile(component.clone()).await.unwrap();
    let files = compiled_files(cache.path());
    assert!(files > 0);
    Sandbox::new(compiler("/no/such"), 1).unwrap().compile_known(component.clone()).await.unwrap();
    assert_eq!(compiled_files(cache.path()), files, "the server compiles with other settings than its compiler");

    let mut broken = component.to_vec();
    let code = broken.windows(2).rposition(|bytes| bytes == [0x0b, 0x0b]).unwrap_or(broken.len() - 40);
    broken[code] = 0xff;
    let refused = sandbox.compile(broken.into()).await.err().unwrap();
    assert!(matches!(refused, CompileError::Component(_) | CompileError::Inspect(_)), "{refused}");
    assert!(matches!(Sandbox::new(compiler("/no/such"), 1).unwrap().compile(component).await, Err(CompileError::BrokeDown)));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_compilation_that_is_ended_is_told_as_one_that_takes_too_much() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("compiler");
    std::fs::write(&program, "#!/bin/sh\nkill -XCPU $$\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let sandbox = Sandbox::new(Some(Compiler { program, cache: directory.path().join("cache") }), 1).unwrap();
    let refused = sandbox.compile(Bytes::from(crate::guests::component("ok"))).await.err().unwrap();
    assert!(matches!(refused, CompileError::TooCostly), "{refused}");
}
