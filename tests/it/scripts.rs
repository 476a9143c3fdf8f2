//! Plain scripts: pushed, swapped, edited, and what those do that throw or mean harm.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use bytes::Bytes;
use muster::journal::Taken;
use muster::names::Digest;
use muster::policy::{LabelPolicy, parse_file};
use muster::sandbox::script::{RUNNER, RUNNER_DIGEST, Script, WORLD};
use muster::sandbox::{CompileError, Module, Outcome, Sandbox, Verdict};
use muster::store::Store;
use muster::store::blobs::Blobs;
use muster::store::modules::ModuleRow;
use reqwest::Method;
use serde_json::{Value, json};
use wit_parser::{FunctionKind, Resolve};

use crate::house::{Answer, Client, House, TEAM};
use crate::sandbox::{Manner, Witness, inputs, sandbox};

fn script(text: &str) -> Bytes {
    Script::new("hook.js".parse().unwrap(), text.as_bytes()).unwrap().bytes()
}

async fn taken(text: &str) -> Module {
    sandbox().compile(script(text)).await.unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Why a script is not taken.
async fn refused(text: &str) -> String {
    match sandbox().compile(script(text)).await {
        Err(CompileError::Syntax(problem)) => problem,
        other => panic!("{:?}: {text}", other.err()),
    }
}

fn policy() -> LabelPolicy {
    let text = "[label.linux]\nteam = \"media\"\nmodule = \"hook\"\nsettings = { jdk = \"17\" }\n\
                [label.linux.limits]\nmemory_mib = 32\ncpu_ms = 300\n\
                [label.linux.grants]\nrun = [\"/bin/true\"]\nread = [\"/etc\"]\nwrite = [\"greeting\"]\n";
    parse_file(text).unwrap().into_values().next().unwrap()
}

/// Runs a script; what came of it, what its agent was asked, and what was recorded.
async fn ran(text: &str) -> (Outcome, Vec<String>, Taken) {
    let module = taken(text).await;
    let link = Witness::that(Manner::Answers);
    let (inputs, records) = inputs(policy(), link.clone());
    let outcome = sandbox().run(&module, inputs).await;
    (outcome, link.asked(), records.take())
}

/// Why a script's run was refused.
async fn reason(text: &str) -> String {
    let outcome = ran(text).await.0;
    assert!(matches!(outcome.verdict, Verdict::Refused { .. } | Verdict::RefusedNever { .. }), "{:?}: {text}", outcome.verdict);
    outcome.verdict.reason().unwrap()
}

async fn push(client: &Client, name: &str, text: &str) -> Answer {
    let path = format!("/v1/modules?name={name}&team={TEAM}&script=hook.js");
    client.send(Method::POST, &path, &[], text.to_owned()).await
}

/// Pushes a script; its digest.
async fn pushed(house: &House, text: &str) -> String {
    push(house.admin(), "hook", text).await.done()["digest"].as_str().unwrap().to_owned()
}

async fn muster(house: &House, editor: Option<&Path>, arguments: &[&str]) -> (i32, String, String) {
    let token = std::fs::read_to_string(house.data().join("admin.token")).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(arguments).env("MUSTER_URL", house.url()).env("MUSTER_TOKEN", token.trim()).env_remove("VISUAL").stdin(Stdio::null());
    if let Some(editor) = editor {
        command.env("EDITOR", editor);
    }
    let done = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_calls_what_the_contract_has_and_its_answers_are_values() {
    let (outcome, asked, taken) = ran("log.step('greet');\n\
         const greeting = `${registration.name()} with ${settings.get('jdk')} and ${settings.get('none')}`;\n\
         const change = agent.writeFile('greeting', greeting);\n\
         if (change.changed() || change.files() !== 0) refuse('the change is another');\n\
         const command = new agent.Command('/bin/true', ['-x']);\n\
         command.env('A', 'b');\n\
         command.timeoutMs(5000);\n\
         command.stdin('é');\n\
         const output = agent.run(command);\n\
         if (output.status() !== 0 || text(output.stdout()) !== '') refuse('the output is another');\n\
         if (text(bytes('é€😀')) !== 'é€😀' || text(agent.readFile('/etc')) !== 'root:*') refuse('the text is another');\n\
         console.log('one', 2, { three: 4 });\n\
         agent.launch(command);\n\
         return 5;\n")
    .await;
    assert_eq!(outcome.verdict, Verdict::Provisioned);
    assert_eq!(asked, ["write /srv/agent/greeting 644 a1 with 17 and null", "exec /bin/true", "read /etc"]);
    assert_eq!(outcome.launch.unwrap().args, ["-x"]);
    assert!(taken.lines.iter().any(|line| line.text == "one 2 {\"three\":4}"), "{:?}", taken.lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_throws_says_where() {
    for (text, told) in [
        ("\n  missing.x();\n", "hook.js:2:3: ReferenceError: missing is not defined"),
        ("undeclared = 1;", "hook.js:1:1: ReferenceError: undeclared is not defined"),
        ("throw new Error('the disk is full');", "hook.js:1:11: Error: the disk is full"),
        ("throw 'words alone';", "hook.js: words alone"),
        ("throw null;", "hook.js: null"),
        ("agent.run('/bin/true');", "hook.js:1:7: TypeError: agent.run takes an `agent.Command` as `command`, not a string"),
        (
            "agent.writeFile('greeting', 3);",
            "hook.js:1:7: TypeError: agent.writeFile takes a string or a Uint8Array as `contents`, not a number",
        ),
        ("new agent.Command('/bin/true', ['a', 1]);", "TypeError: agent.Command takes an array of strings as `args`, not an array"),
        ("agent.push(undefined, 'x');", "TypeError: agent.push takes a bundle of `bits.open` as `bundle`, not nothing"),
        ("log.write('loud', 'x');", "hook.js:1:5: TypeError: log.write takes one of debug, info, warn, error as `level`"),
        ("agent.readFile('../x');", "hook.js:1:7: AgentError: invalid: the path `../x` has `..` in it"),
    ] {
        let reason = reason(text).await;
        assert!(reason.contains(told), "{text}: {reason}");
    }
    // What the policy forbids is not tried again.
    let (outcome, asked, taken) = ran("function deep() {\n  agent.remove('/etc/passwd');\n}\ndeep();\n").await;
    let Verdict::RefusedNever { reason } = outcome.verdict else { panic!("{:?}", outcome.verdict) };
    assert!(reason.starts_with("hook.js:2:9: AgentError: denied: `grants.write`"), "{reason}");
    assert!(asked.is_empty());
    let lines: Vec<_> = taken.lines.iter().map(|line| line.text.as_str()).collect();
    assert!(lines.contains(&reason.as_str()) && lines.contains(&"  called at hook.js:4:1"), "{lines:?}");
    // What a script catches is its own matter.
    let caught =
        "try { agent.remove('/etc/x'); } catch (error) { if (error.tag !== 'denied' || error.name !== 'AgentError') throw error; }";
    assert_eq!(ran(caught).await.0.verdict, Verdict::Provisioned);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_refuses_as_a_module_does() {
    let verdict = async |text| ran(text).await.0.verdict;
    assert_eq!(verdict("never('too old');").await, Verdict::RefusedNever { reason: "too old".into() });
    assert_eq!(verdict("throw later('busy', 30);").await, Verdict::RefusedLater { reason: "busy".into(), after_seconds: 30 });
    assert_eq!(verdict("refuse('no');").await, Verdict::Refused { reason: "no".into() });
    assert_eq!(verdict("throw { tag: 'never', val: 'old' };").await, Verdict::RefusedNever { reason: "old".into() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_a_script_is_found_when_it_arrives_with_line_and_column() {
    for (text, told) in [
        ("let x = 1;\n  let y = ;\n", "hook.js:2:11: SyntaxError: "),
        ("if (x) {\n  foo(", "hook.js:2:7: SyntaxError: the script ends where it can not end"),
        ("import x from 'y';", "hook.js:1:8: SyntaxError: "),
        ("let a;\n}); (function () {", "hook.js:2:1: SyntaxError: "),
        ("await 1;", "hook.js:1:7: SyntaxError: "),
        ("with (x) {}", "hook.js:1:"),
        ("let a; let a;", "hook.js:1:"),
    ] {
        let problem = refused(text).await;
        assert!(problem.starts_with(told), "{text}: {problem}");
    }
    assert!(refused("import x from 'y';").await.contains("a script imports and exports nothing"));
    for deep in ["[".repeat(200_000), format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000))] {
        assert!(refused(&deep).await.starts_with("hook.js"));
    }
    // Nothing of it was run for that.
    taken("for (;;);").await;
    taken("const text = 1, log = 2, agent = 3; // names of its own").await;
    taken("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_script_harms_its_own_run_alone() {
    let over = async |text: &str| match ran(text).await.0.verdict {
        Verdict::OverLimit { which } => which,
        other => panic!("{other:?}: {text}"),
    };
    assert!(over("for (;;);").await.contains("limits.cpu_ms"));
    assert!(over("const all = []; for (;;) all.push('x'.repeat(100000) + all.length);").await.contains("limits.memory_mib"));
    assert!(over("(function f() { f(); f(); })();").await.contains("stack"));
    // What it changes of its runner is gone with it.
    let spoils = "Object.prototype.tag = 'never'; Math.random = () => 4; Function.prototype.call = null;\n\
                  for (const name of Object.getOwnPropertyNames(globalThis)) try { delete globalThis[name]; } catch {}\n\
                  for (const name of ['__cqjs', 'wit']) globalThis[name] = null;\n\
                  String.prototype.split = () => { throw 1; }; globalThis.spoilt = true;";
    let _ = ran(spoils).await;
    let whole = "if (globalThis.spoilt || Math.random() === 4) refuse('spoilt'); agent.writeFile('greeting', 'a'.split('b')[0]);";
    let (outcome, asked, _) = ran(whole).await;
    assert_eq!((outcome.verdict, asked.len()), (Verdict::Provisioned, 1));
    // An exception that can not be shown, and a stack that is none.
    assert_eq!(reason("throw { toString() { throw 1; } };").await, "hook.js: an exception that can not be shown");
    let odd = "throw Object.defineProperty(new Error('x'), 'stack', { get() { throw 1; } });";
    assert_eq!(reason(odd).await, "hook.js: an exception that can not be shown");
    assert!(reason("throw { tag: 'later', val: 'soon' };").await.starts_with("hook.js: {\"tag\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn chance_and_clocks_are_the_runs_own() {
    let told = async |text: &str| ran(text).await.2.lines.into_iter().map(|line| line.text).collect::<Vec<_>>();
    let text = "console.log(Math.random(), Math.random());";
    let (one, other) = (told(text).await, told(text).await);
    assert_ne!(one, other);
    let year = told("console.log(new Date().getFullYear() > 2024);").await;
    assert!(year.contains(&"true".to_owned()), "{year:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_scripts_share_one_compiled_runner() {
    let sandbox = Sandbox::new(None, 1).unwrap();
    let one = sandbox.compile(script("1;")).await.unwrap();
    for number in 2..50 {
        let other = sandbox.compile(script(&format!("{number};"))).await.unwrap();
        assert!(other.digest() != one.digest() && other.shares_code_with(&one), "script {number} was compiled by itself");
    }
    let foreign = script("1;");
    let foreign = String::from_utf8(foreign.to_vec()).unwrap().replace(&RUNNER_DIGEST.to_string(), &Digest::of(b"x").to_string());
    assert!(matches!(sandbox.compile(foreign.into()).await, Err(CompileError::NoRunner(_))));
    // And no module may ask for a script by itself.
    let told = sandbox.compile(Bytes::from_static(RUNNER)).await.err().unwrap().to_string();
    assert!(told.contains("muster:script/source@0.1.0"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_is_pushed_applied_swapped_rolled_back_and_outlives_a_restart() {
    let mut house = House::start().await;
    let write = |what: &str| format!("agent.writeFile('greeting', '{what}');\n");
    let answer = push(house.admin(), "hook", &write("one")).await;
    assert_eq!(answer.status, 201);
    let module = answer.body;
    assert_eq!((&module["kind"], &module["language"]), (&json!("script"), &json!("JavaScript")), "{module}");
    let one = module["digest"].as_str().unwrap().to_owned();
    assert_eq!(push(house.admin(), "hook", &write("one")).await.expect(200)["digest"], one);
    let problem = push(house.admin(), "hook", "let x = ;").await.problem(422);
    assert_eq!(problem["code"], "syntax");
    assert!(problem["detail"].as_str().unwrap().contains("hook.js:1:9: SyntaxError"), "{problem}");
    push(house.admin(), "hook", &" ".repeat(256 * 1024 + 1)).await.problem(413);
    push(house.admin(), "hook", "\0asm").await.problem(422);
    // What a script's bytes say of their runner is the server's to say.
    let path = format!("/v1/modules?name=hook&team={TEAM}");
    house.admin().send(Method::POST, &path, &[], script("1;").to_vec()).await.problem(422);
    let fetched = house.admin().get(&format!("/v1/modules/hook/{one}/script")).await.expect(200);
    assert_eq!(fetched, json!({"file": "hook.js", "text": write("one")}));
    let wasm = house.upload("ok").await;
    assert_eq!(house.admin().get(&format!("/v1/modules/ok/{wasm}/script")).await.problem(404)["code"], "no-script");
    house.team("other").await.get(&format!("/v1/modules/hook/{one}/script")).await.problem(404);
    let listed = house.admin().get("/v1/modules").await.expect(200);
    let kinds: BTreeSet<_> = listed["items"].as_array().unwrap().iter().map(|module| module["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["component", "script"].into());

    house.apply("linux", json!({"team": TEAM, "module": "hook", "grants": {"write": ["greeting"]}})).await;
    let agent = house.agent_process("web-1", &["linux"]).await;
    let greeting = || std::fs::read_to_string(agent.root.join("greeting")).unwrap();
    let holds = async |release: i64| {
        house.until_agent("web-1", |detail| detail["agent"]["state"] == "ready" && detail["agent"]["releases"]["linux"] == release).await;
    };
    holds(1).await;
    assert_eq!(greeting(), "one");

    let began = Instant::now();
    let two = pushed(&house, &write("two")).await;
    let push_took = began.elapsed();
    let swap = |digest: &str| json!({"module": format!("hook@sha256:{digest}")});
    house.admin().post("/v1/labels/linux/swap", swap(&two)).await.expect(200);
    let swap_took = began.elapsed();
    holds(2).await;
    let ready_took = began.elapsed();
    println!("a script was pushed after {push_took:?}, in force after {swap_took:?}, and its agent seen ready after {ready_took:?}");
    assert_eq!(greeting(), "two");

    // One that throws is told with its place.
    let bad = pushed(&house, "\nboom();\n").await;
    house.admin().post("/v1/labels/linux/swap", swap(&bad)).await.expect(200);
    let failed = house.until_agent("web-1", |detail| detail["agent"]["state"] == "failed").await;
    assert_eq!(failed["runs"][0]["reason"], "hook.js:2:1: ReferenceError: boom is not defined");
    let run = failed["runs"][0]["id"].as_str().unwrap();
    let log = house.admin().get(&format!("/v1/runs/{run}/log")).await;
    assert!(log.text.contains("error  hook.js:2:1: ReferenceError: boom is not defined"), "{}", log.text);
    house.admin().post("/v1/labels/linux/rollback", json!({})).await.expect(200);
    holds(4).await;
    assert_eq!(greeting(), "two");

    house.restart().await;
    house.admin().post("/v1/labels/linux/swap", swap(&one)).await.expect(200);
    house.until_agent("web-1", |detail| detail["agent"]["state"] == "ready" && detail["agent"]["releases"]["linux"] == 5).await;
    assert_eq!(greeting(), "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_goes_on_with_the_runner_that_it_was_pushed_for() {
    let mut house = House::start().await;
    pushed(&house, "agent.writeFile('greeting', 'one');").await;
    house.apply("linux", json!({"team": TEAM, "module": "hook", "grants": {"write": ["greeting"]}})).await;
    // As if another version had taken it: with a runner of other bytes, which do the same.
    let mut runner = RUNNER.to_vec();
    runner.extend_from_slice(b"\0\x03\x02hi");
    let other = Digest::of(&runner);
    let text = String::from_utf8(script("agent.writeFile('greeting', 'two');").to_vec()).unwrap();
    let bytes = text.replace(&RUNNER_DIGEST.to_string(), &other.to_string()).into_bytes();
    house.stop().await;
    let digest = Digest::of(&bytes);
    let blobs = Blobs::open(&house.data().join("contents")).await.unwrap();
    let size_bytes = bytes.len() as u64;
    blobs.put(&other, runner.into()).await.unwrap();
    blobs.put(&digest, bytes.into()).await.unwrap();
    let store = Store::open(&format!("sqlite://{}", house.data().join("muster.db").display())).await.unwrap();
    let (name, team) = ("hook".parse().unwrap(), TEAM.parse().unwrap());
    let row =
        ModuleRow { digest, name, team, size_bytes, world: WORLD.into(), imports: vec![], language: None, asks: None, uploaded_us: 1 };
    assert!(store.insert_module(&row).await.unwrap());
    store.close().await;
    house.restart().await;
    house.admin().post("/v1/labels/linux/swap", json!({"module": format!("hook@sha256:{digest}")})).await.expect(200);
    let agent = house.agent_process("web-1", &["linux"]).await;
    house.until_state("web-1", "ready").await;
    assert_eq!(std::fs::read_to_string(agent.root.join("greeting")).unwrap(), "two");
}

/// An editor that replaces a text in the file.
fn editor(directory: &Path, from: &str, to: &str) -> std::path::PathBuf {
    let path = directory.join("editor");
    std::fs::write(&path, format!("#!/bin/sh\nsed -i 's/{from}/{to}/' \"$1\"\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_labels_script_is_edited_in_the_callers_editor() {
    let house = House::start().await;
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("hook.js");
    std::fs::write(&file, "agent.writeFile('greeting', 'one');\n").unwrap();
    let file = file.to_str().unwrap();
    let (status, out, err) = muster(&house, None, &["module", "push", file, "--name", "hook", "--team", TEAM]).await;
    assert_eq!(status, 0, "{err}");
    assert!(out.starts_with("hook@sha256:"), "{out}");
    let (_, inspected, _) = muster(&house, None, &["module", "inspect", file, "--json"]).await;
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!((&inspected["kind"], &inspected["language"]), (&json!("script"), &json!("JavaScript")));
    assert!(out.trim().ends_with(inspected["digest"].as_str().unwrap()), "{out} {inspected}");
    house.apply("linux", json!({"team": TEAM, "module": "hook"})).await;

    let edit = ["label", "edit", "linux", "--yes"];
    let (status, out, err) = muster(&house, Some(&editor(directory.path(), "one", "two")), &edit).await;
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("-agent.writeFile('greeting', 'one');\n+agent.writeFile('greeting', 'two');\n"), "{out}");
    assert!(out.contains("linux: release 2 is in force, before it 1"), "{out}");
    let text = async || {
        let label = house.admin().get("/v1/labels/linux").await.expect(200);
        let module = label["release"]["policy"]["module"].as_str().unwrap().to_owned();
        let digest = module.rsplit(':').next().unwrap();
        house.admin().get(&format!("/v1/modules/hook/{digest}/script")).await.expect(200)["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(text().await, "agent.writeFile('greeting', 'two');\n");
    // Nothing edited, nothing changed.
    let (status, out, _) = muster(&house, Some(Path::new("/bin/true")), &edit).await;
    assert_eq!((status, out.as_str()), (0, "linux: nothing changes\n"));
    // One with a mistake never gets near the label, and is not lost.
    let (status, _, err) = muster(&house, Some(&editor(directory.path(), ";", "(")), &edit).await;
    assert_eq!(status, 1);
    assert!(err.contains("hook.js:2:1: SyntaxError") && err.contains("what was edited is kept: "), "{err}");
    let kept = err.lines().find_map(|line| line.strip_prefix("what was edited is kept: ")).unwrap();
    assert!(std::fs::read_to_string(kept).unwrap().contains("'two')(\n"));
    std::fs::remove_dir_all(Path::new(kept).parent().unwrap()).unwrap();
    let (status, _, err) = muster(&house, Some(Path::new("/nowhere/editor")), &edit).await;
    assert!(status == 1 && err.contains("which $VISUAL or $EDITOR names"), "{err}");
    assert_eq!(text().await, "agent.writeFile('greeting', 'two');\n");
    // A component has no text.
    house.upload("ok").await;
    house.apply("other", json!({"team": TEAM, "module": "ok"})).await;
    let (status, _, err) = muster(&house, None, &["label", "edit", "other"]).await;
    assert!(status == 2 && err.contains("is a component, and has no text to edit") && err.contains("muster label swap"), "{err}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_runner_was_built_from_its_present_source() {
    let built = std::fs::read_to_string(root().join("runner/BUILT-FROM")).unwrap();
    let mut files = Vec::new();
    for line in built.lines() {
        let (digest, file) = line.split_once("  ").unwrap();
        let found = Digest::of(&std::fs::read(root().join("runner").join(file)).unwrap());
        assert_eq!(found.to_string(), digest, "runner/{file} is not what the runner was built from; run scripts/script-runner");
        files.push(file);
    }
    assert_eq!(files, ["runner.js", "wit/script.wit", "package-lock.json", "runner.wasm"]);
}

/// `write-file` as scripts write it: `writeFile`.
fn camel(name: &str) -> String {
    let mut parts = name.split('-');
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |all, part| all + &part[..1].to_uppercase() + &part[1..])
}

#[test]
fn the_types_for_scripts_have_the_names_of_the_contract() {
    let mut resolve = Resolve::default();
    let contract = std::fs::read_to_string(root().join("wit/provision.wit")).unwrap();
    let package = resolve.push_str("provision.wit", &contract).unwrap();
    let mut wanted = BTreeSet::new();
    for (interface, id) in resolve.packages[package].interfaces.iter().filter(|(name, _)| *name != "provisioning") {
        for function in resolve.interfaces[*id].functions.values() {
            let resource = |id: wit_parser::TypeId| {
                let name = camel(resolve.types[id].name.as_deref().unwrap());
                name[..1].to_uppercase() + &name[1..]
            };
            wanted.insert(match function.kind {
                FunctionKind::Method(id) => format!("{interface}.{}.{}", resource(id), camel(function.item_name())),
                FunctionKind::Constructor(id) => format!("{interface}.{}.constructor", resource(id)),
                _ => format!("{interface}.{}", camel(&function.name)),
            });
        }
    }
    let (mut told, mut namespace, mut class) = (BTreeSet::new(), None, None);
    for line in std::fs::read_to_string(root().join("runner/muster.d.ts")).unwrap().lines() {
        let code = line.trim_start();
        let name = |rest: &str| rest.split(['(', ' ']).next().unwrap().to_owned();
        match (line.len() - code.len(), code) {
            (0, "}") => namespace = None,
            (2, "}") => class = None,
            (0, code) => namespace = code.strip_prefix("declare namespace ").map(name).or(namespace),
            (2, code) if code.starts_with("class ") => class = Some(name(&code[6..])),
            (2, code) if code.starts_with("function ") => drop(told.insert(format!("{}.{}", namespace.clone().unwrap(), name(&code[9..])))),
            (4, code) if code.contains('(') && !code.starts_with("private") && !code.starts_with('/') => {
                told.insert(format!("{}.{}.{}", namespace.clone().unwrap(), class.clone().unwrap(), name(code)));
            }
            _ => {}
        }
    }
    assert_eq!(told, wanted);
    // And the runner offers all of it.
    let offered = wanted.iter().map(|name| match name.split('.').collect::<Vec<_>>()[..] {
        [interface, class, "constructor"] => format!("{interface}.{class}"),
        [interface, class, method] => format!("{interface}.{class}.prototype.{method}"),
        _ => name.clone(),
    });
    let text: String = offered.map(|name| format!("if (typeof {name} !== 'function') refuse('{name}');\n")).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert_eq!(runtime.block_on(ran(&text)).0.verdict, Verdict::Provisioned);
}
