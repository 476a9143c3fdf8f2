//! The gate, called directly, with a link that notes what reaches it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::{Gate, ModuleCommand, Refused, Registration, RunInputs};
use crate::bits::contents::{Bundle, Contents};
use crate::bits::manifest::Manifest;
use crate::bits::pack::Packed;
use crate::journal::{Entry, Level, Line, Records, channel};
use crate::limits::{
    CALL_FILE_BYTES_MAX, KEPT_INLINE_BYTES_MAX, LOG_LINE_BYTES_MAX, OUTPUT_LOG_LINES_MAX, REASON_BYTES_MAX, RUN_LOG_LINES_MAX,
};
use crate::link::Link;
use crate::machine::{CallError, Change, Command, Output, Stream, SyncRules};
use crate::policy::{LabelPolicy, parse_file};
use crate::sandbox::Verdict;
use crate::store::secrets::Secrets;

const ROOT: &str = "/srv/agent";

/// A link that does nothing, answers what it was told to, and notes what it was asked.
#[derive(Default)]
struct Witness {
    asked: Mutex<Vec<(&'static str, String)>>,
    commands: Mutex<Vec<Command>>,
    output: Vec<u8>,
    truncated: bool,
    change: Change,
    error: Option<CallError>,
}

impl Witness {
    fn note<T>(&self, call: &'static str, path: &str, answer: T) -> Result<T, CallError> {
        self.asked.lock().unwrap().push((call, path.to_owned()));
        self.error.clone().map_or(Ok(answer), Err)
    }

    fn asked(&self) -> Vec<(&'static str, String)> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl Link for Witness {
    async fn exec(&self, command: &Command, progress: &mut (dyn for<'a> FnMut(Stream, &'a [u8]) + Send)) -> Result<Output, CallError> {
        self.commands.lock().unwrap().push(command.clone());
        progress(Stream::Stdout, &self.output);
        let output = Output { status: 0, stdout: self.output.clone(), stderr: Vec::new(), truncated: self.truncated };
        self.note("exec", &command.program, output)
    }

    async fn read_file(&self, path: &str, _bytes_max: usize) -> Result<Vec<u8>, CallError> {
        self.note("read", path, self.output.clone())
    }

    async fn exists(&self, path: &str) -> Result<bool, CallError> {
        self.note("read", path, true)
    }

    async fn write_file(&self, path: &str, _contents: &[u8], _mode: u32) -> Result<Change, CallError> {
        self.note("write", path, self.change)
    }

    async fn remove(&self, path: &str, with_below: bool) -> Result<Change, CallError> {
        self.note(if with_below { "remove all" } else { "remove" }, path, self.change)
    }

    async fn sync(&self, destination: &str, _bundle: &Bundle, _rules: SyncRules) -> Result<Change, CallError> {
        self.note("sync", destination, self.change)
    }

    async fn stop(&self) -> Result<bool, CallError> {
        self.note("stop", "", true)
    }

    async fn launch(&self, command: &Command) -> Result<(), CallError> {
        self.note("launch", &command.program, ())
    }
}

struct Nowhere;

#[async_trait::async_trait]
impl Contents for Nowhere {
    fn group(&self, _: u32) -> u64 {
        0
    }

    fn at_hand(&self, _: &BTreeMap<u64, Vec<u32>>) -> Option<u64> {
        None
    }

    async fn read(&self, _: u32) -> io::Result<Packed> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn turn(&self) -> Box<dyn Send + Sync> {
        Box::new(())
    }

    async fn pace(&self, _: usize) {}
}

fn bundle() -> Bundle {
    let manifest = Manifest::new(Vec::new()).unwrap();
    Bundle::new("tools".parse().unwrap(), manifest, Arc::new(Nowhere))
}

/// A policy with these lines of TOML below its `[label.NAME]`.
fn policy(lines: &str) -> LabelPolicy {
    let text = format!("[label.linux]\nteam = \"media\"\nmodule = \"base\"\n{lines}");
    parse_file(&text).unwrap().into_values().next().unwrap()
}

fn granting(grants: &str) -> LabelPolicy {
    policy(&format!("[label.linux.grants]\n{grants}"))
}

fn gate(policy: LabelPolicy, link: &Arc<Witness>, secrets: Option<Secrets>) -> (Gate, Records) {
    let (recorder, records) = channel();
    let registration = Registration { name: "a1".into(), root: ROOT.into(), ..Registration::default() };
    let bundles = BTreeMap::new();
    let link: Arc<dyn Link> = Arc::clone(link) as Arc<dyn Link>;
    (Gate::new(RunInputs { registration, policy: Arc::new(policy), bundles, secrets, link, recorder }), records)
}

fn command(program: &str) -> ModuleCommand {
    let mut command = ModuleCommand::default();
    command.command.program = program.into();
    command
}

/// What the module is told of a call that was not done.
#[track_caller]
fn told<T: std::fmt::Debug>(result: Result<T, Refused>) -> String {
    match result {
        Err(Refused::Answer(error)) => error.to_string(),
        other => panic!("the module is told nothing: {other:?}"),
    }
}

fn entries(records: &Records) -> (Vec<Line>, Vec<String>) {
    let taken = records.take();
    (taken.lines, taken.entries.into_iter().map(|(_, entry)| entry).collect())
}

#[tokio::test]
async fn nothing_is_granted_by_default_and_each_refusal_names_the_missing_grant() {
    let link = Arc::new(Witness::default());
    let (mut gate, _records) = gate(policy(""), &link, None);
    let (tools, sh) = (bundle(), command("/bin/sh"));
    let refusals = [
        (told(gate.probe(&sh).await), "grants.run", "/bin/sh"),
        (told(gate.run(&sh).await), "grants.run", "/bin/sh"),
        (told(gate.launch(&sh).await), "grants.run", "/bin/sh"),
        (told(gate.read_file("/etc/passwd").await), "grants.read", "/etc/passwd"),
        (told(gate.exists("x").await), "grants.read", "`x`"),
        (told(gate.write_file("x", b"", 0o644).await), "grants.write", "`x`"),
        (told(gate.remove("/").await), "grants.write", "`/`"),
        (told(gate.push(&tools, "tools").await), "grants.write", "`tools/**`"),
        (told(gate.mirror(&tools, "/").await), "grants.write", "`/**`"),
    ];
    for (refusal, grant, what) in refusals {
        assert!(refusal.starts_with("denied: ") && refusal.contains(grant) && refusal.contains(what), "{refusal}");
    }
    assert!(gate.open_secret("key").await.unwrap().is_none());
    assert!(gate.open_bundle("tools").await.unwrap().is_none());
    assert_eq!(link.asked(), []);
    assert_eq!(gate.finish().1, None);
}

#[tokio::test]
async fn exact_and_glob_grants_let_through_what_they_name_and_no_more() {
    let link = Arc::new(Witness::default());
    let grants = "run = [\"/usr/bin/java\", \"bin/*\"]\nwrite = [\"/apps/*/conf\", \"jobs/**\"]\nread = [\"/etc/os-release\"]\n";
    let (mut gate, _records) = gate(granting(grants), &link, None);
    gate.run(&command("/usr/bin/java")).await.unwrap();
    gate.probe(&command("bin/tool")).await.unwrap();
    gate.read_file("//etc/./os-release").await.unwrap();
    gate.write_file("/apps/ci/conf", b"x", 0o600).await.unwrap();
    gate.remove("jobs/a/b").await.unwrap();
    // What a grant names without what is below it goes alone.
    gate.remove("/apps/ci/conf").await.unwrap();
    let reached = [
        ("exec", "/usr/bin/java"),
        ("exec", "/srv/agent/bin/tool"),
        ("read", "/etc/os-release"),
        ("write", "/apps/ci/conf"),
        ("remove all", "/srv/agent/jobs/a/b"),
        ("remove", "/apps/ci/conf"),
    ];
    assert_eq!(link.asked(), reached.map(|(call, path)| (call, path.to_owned())));
    for program in ["/usr/bin/javac", "/usr/bin", "bin/a/tool", "/bin/tool", "java", ""] {
        told(gate.run(&command(program)).await);
    }
    for path in ["/etc/os-release/x", "/etc/shadow", "etc/os-release"] {
        told(gate.read_file(path).await);
    }
    for path in ["/apps/a/b/conf", "/apps/conf", "jobs", "/jobs/a", "/srv/agentx/jobs/a"] {
        told(gate.remove(path).await);
    }
    assert_eq!(link.asked().len(), reached.len());
}

#[tokio::test]
async fn what_may_be_written_may_be_read_too_and_not_the_other_way_round() {
    let link = Arc::new(Witness::default());
    let (mut gate, _records) = gate(granting("write = [\"a\"]\nread = [\"b\"]\n"), &link, None);
    gate.read_file("a").await.unwrap();
    gate.exists("b").await.unwrap();
    assert!(told(gate.write_file("b", b"", 0o644).await).contains("grants.write"));
}

#[tokio::test]
async fn a_path_with_dots_or_a_nul_in_it_is_refused_whatever_is_granted() {
    let link = Arc::new(Witness::default());
    let (mut gate, _records) = gate(granting("run = [\"/**\"]\nwrite = [\"/**\"]\n"), &link, None);
    let long = "x/".repeat(3000);
    for path in ["..", "a/../b", "/a/..", "/../etc", "a\0b", "", long.as_str()] {
        for refusal in [
            told(gate.read_file(path).await),
            told(gate.write_file(path, b"", 0o644).await),
            told(gate.remove(path).await),
            told(gate.push(&bundle(), path).await),
            told(gate.run(&command(&format!("{path}/.."))).await),
        ] {
            assert!(refusal.starts_with("invalid: "), "{path:?}: {refusal}");
        }
    }
    let mut elsewhere = command("/bin/sh");
    elsewhere.command.directory = Some("../x".into());
    assert!(told(gate.run(&elsewhere).await).contains("`..`"));
    assert!(told(gate.write_file("x", b"", 0o1777).await).contains("mode"));
    assert!(told(gate.write_file("x", &vec![0; CALL_FILE_BYTES_MAX + 1], 0o644).await).contains("bundle"));
    assert_eq!(link.asked(), []);
}

#[tokio::test]
async fn a_destination_needs_one_grant_of_everything_below_it() {
    let link = Arc::new(Witness::default());
    for (grants, destination, taken) in [
        ("\"/apps/**\"", "/apps", true),
        ("\"/apps/**\"", "/apps/a/b", true),
        ("\"/*/ci/**\"", "/apps/ci", true),
        ("\"/**\"", "/", true),
        ("\"**\"", "", false),
        ("\"**\"", ".", true),
        ("\"**\"", "a", true),
        ("\"tools/**\"", "tools/", true),
        ("\"/apps/ci\"", "/apps/ci", false),
        ("\"/apps/*\"", "/apps", false),
        ("\"/apps/*/**\"", "/apps", false),
        ("\"/apps/**/*\"", "/apps", false),
        ("\"/apps/**/[!x]*\"", "/apps", false),
        ("\"/apps/*\", \"/apps/*/*\", \"/apps/*/*.*\"", "/apps", false),
        ("\"/apps/**\"", "/appsx", false),
        ("\"/apps/**\"", "/", false),
    ] {
        let (mut gate, _records) = gate(granting(&format!("write = [{grants}]\n")), &link, None);
        let pushed = gate.push(&bundle(), destination).await;
        assert_eq!(pushed.is_ok(), taken, "{grants} for {destination:?}: {pushed:?}");
    }
}

#[tokio::test]
async fn a_command_takes_no_variable_that_loads_code_and_no_nul() {
    let link = Arc::new(Witness::default());
    let (mut gate, _records) = gate(granting("run = [\"/bin/true\"]\n"), &link, None);
    for (name, value) in [
        ("LD_PRELOAD", "x.so"),
        ("LD_AUDIT", "x"),
        ("DYLD_INSERT_LIBRARIES", "x"),
        ("BASH_ENV", "x"),
        ("NODE_OPTIONS", "x"),
        ("PYTHONPATH", "x"),
        ("A=B", "x"),
        ("", "x"),
        ("A", "\0"),
    ] {
        let mut command = command("/bin/true");
        command.command.env.push((name.into(), value.into()));
        assert!(told(gate.run(&command).await).starts_with("invalid: "), "{name}");
    }
    let mut nul = command("/bin/true");
    nul.command.args.push("a\0b".into());
    assert!(told(gate.launch(&nul).await).contains("NUL"));
    let mut many = command("/bin/true");
    many.command.args = vec![String::new(); 2000];
    assert!(told(gate.probe(&many).await).contains("arguments"));
    assert_eq!(link.asked(), []);
}

const VALUE: &str = "hunter2-of-the-build";

fn vault(files: &[(&str, &str)]) -> (tempfile::TempDir, Secrets) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("media")).unwrap();
    for (name, value) in files {
        let mut file =
            std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(dir.path().join("media").join(name)).unwrap();
        io::Write::write_all(&mut file, value.as_bytes()).unwrap();
    }
    let secrets = Secrets::open(dir.path()).unwrap();
    (dir, secrets)
}

#[tokio::test]
async fn a_secret_reaches_the_commands_environment_and_nothing_that_is_kept_or_comes_back() {
    let (_dir, secrets) = vault(&[("key", VALUE)]);
    let said = format!("login with {VALUE}\n{}{VALUE} and on\n", "x".repeat(LOG_LINE_BYTES_MAX - 6));
    let link = Arc::new(Witness { output: said.clone().into_bytes(), ..Witness::default() });
    let grants = "run = [\"/bin/login\"]\nread = [\"/etc/login\"]\nsecrets = [\"key\"]\n";
    let (mut gate, records) = gate(granting(grants), &link, Some(secrets));
    let secret = gate.open_secret("key").await.unwrap().unwrap();
    assert!(!format!("{secret:?}").contains(VALUE));
    let mut login = command("/bin/login");
    login.secret_env.push(("PASSWORD".into(), secret));
    let output = gate.run(&login).await.unwrap();
    let read = gate.read_file("/etc/login").await.unwrap();
    gate.log(Level::Info, &said).await.unwrap();
    gate.launch(&login).await.unwrap();

    assert_eq!(link.commands.lock().unwrap()[0].env, [("PASSWORD".to_owned(), VALUE.to_owned())]);
    let back = String::from_utf8([output.stdout, read].concat()).unwrap();
    assert!(back.contains("login with [secret key]") && !back.contains(VALUE), "{back}");
    assert!(!gate.redact(said).contains(VALUE));
    let (lines, journal) = entries(&records);
    for text in lines.iter().map(|line| &line.text).chain(&journal) {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(lines.iter().any(|line| line.level == Level::Stdout && line.text == "login with [secret key]"), "{lines:?}");
    assert!(journal.iter().any(|entry| entry.contains("[\"PASSWORD\",\"key\"]")), "{journal:?}");
    assert_eq!(gate.finish().1.unwrap().env[0].1, VALUE);
}

#[tokio::test]
async fn what_is_kept_for_a_replay_holds_no_secret_either() {
    let (_dir, secrets) = vault(&[("key", VALUE)]);
    let long = format!("{}{VALUE}{}", "x".repeat(KEPT_INLINE_BYTES_MAX), "y".repeat(9));
    let link = Arc::new(Witness { output: long.into_bytes(), ..Witness::default() });
    let text = "settings = { a = \"x hunter2-of-the-team\" }\n[label.linux.grants]\nrun = [\"/bin/say\"]\nsecrets = [\"key\"]\n";
    let (mut gate, records) = gate(policy(&text.replace("hunter2-of-the-team", VALUE)), &link, Some(secrets));
    gate.begin().await;
    let mut say = command("/bin/say");
    say.command.args.push(format!("--password={VALUE}"));
    let output = gate.run(&say).await.unwrap();
    let taken = records.take();
    assert_eq!(taken.contents.len(), 1);
    assert_eq!(taken.contents[0].1, output.stdout);
    let kept: Vec<String> = taken.contents.into_iter().map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect();
    let journal: Vec<String> = taken.entries.into_iter().map(|(_, entry)| entry).collect();
    for text in kept.iter().chain(&journal) {
        assert!(text.contains("[secret key]") || !text.contains("hunter2"), "{text}");
        assert!(!text.contains(VALUE), "{text}");
    }
    assert!(journal[0].contains("\"secrets\":[\"key\"]") && journal[0].contains("x [secret key]"), "{}", journal[0]);
    assert!(journal[1].contains("--password=[secret key]"), "{}", journal[1]);
}

#[tokio::test]
async fn an_output_that_is_cut_within_a_secret_loses_the_beginning_too() {
    let (_dir, secrets) = vault(&[("key", VALUE)]);
    let link = Arc::new(Witness { output: b"say hunter2-of".to_vec(), truncated: true, ..Witness::default() });
    let (mut gate, records) = gate(granting("run = [\"/bin/say\"]\nsecrets = [\"key\"]\n"), &link, Some(secrets));
    gate.open_secret("key").await.unwrap().unwrap();
    assert_eq!(gate.run(&command("/bin/say")).await.unwrap().stdout, b"say ");
    let (lines, _) = entries(&records);
    assert!(!lines.iter().any(|line| line.text.contains("hunter")), "{lines:?}");
}

#[tokio::test]
async fn a_secret_that_an_earlier_run_left_on_the_machine_is_cut_before_it_is_opened() {
    let (_dir, secrets) = vault(&[("key", VALUE)]);
    let link = Arc::new(Witness { output: format!("password = {VALUE}").into_bytes(), ..Witness::default() });
    let (mut gate, _records) = gate(granting("read = [\"/etc/login\"]\nsecrets = [\"key\", \"missing\"]\n"), &link, Some(secrets));
    gate.begin().await;
    assert_eq!(gate.read_file("/etc/login").await.unwrap(), b"password = [secret key]");
}

#[tokio::test]
async fn a_secret_that_is_not_granted_or_not_there_opens_as_none_and_the_log_says_why() {
    let (_dir, secrets) = vault(&[("key", VALUE), ("other", VALUE)]);
    let link = Arc::new(Witness::default());
    let (mut gate, records) = gate(granting("secrets = [\"key\", \"missing\"]\n"), &link, Some(secrets));
    for name in ["other", "missing", "../media/key", "media/key", ""] {
        assert!(gate.open_secret(name).await.unwrap().is_none(), "{name}");
    }
    let (lines, _) = entries(&records);
    assert!(lines[0].text.contains("`grants.secrets` of the label's policy does not have `other`"), "{lines:?}");
    assert_eq!(lines[1].text, "open secret missing: false");
}

#[tokio::test]
async fn every_call_is_journalled_before_it_is_done_and_answered_after_in_order() {
    let link = Arc::new(Witness { error: Some(CallError::NotFound("no".into())), ..Witness::default() });
    let (mut gate, records) = gate(granting("run = [\"/bin/true\"]\nwrite = [\"**\"]\n"), &link, None);
    let tools = bundle();
    gate.open_bundle("tools").await.unwrap();
    gate.run(&command("/bin/true")).await.unwrap_err();
    gate.read_file("a").await.unwrap_err();
    gate.read_file("/etc/shadow").await.unwrap_err();
    gate.write_file("a", b"x", 0o644).await.unwrap_err();
    gate.mirror(&tools, "a").await.unwrap_err();
    gate.launch(&command("/bin/true")).await.unwrap();
    gate.stop().await.unwrap_err();
    let (_, journal) = entries(&records);
    let kinds: Vec<_> = journal
        .iter()
        .map(|entry| match serde_json::from_str(entry).unwrap() {
            Entry::Began(began) => panic!("{began:?}"),
            Entry::Asked { asked, .. } => serde_json::to_value(asked).unwrap()["call"].as_str().unwrap().to_owned(),
            Entry::Answered { answered, .. } => if answered.is_ok() { "ok" } else { "err" }.to_owned(),
        })
        .collect();
    let calls = ["open-bundle", "run", "read-file", "read-file", "write-file", "mirror", "launch", "stop"];
    assert_eq!(kinds.iter().step_by(2).collect::<Vec<_>>(), calls);
    assert_eq!(kinds.iter().skip(1).step_by(2).collect::<Vec<_>>(), ["err", "err", "err", "err", "err", "err", "ok", "err"]);
    assert_eq!(gate.finish().0.calls, 8);
}

#[tokio::test]
async fn a_call_over_the_budget_is_told_once_and_ends_the_run_at_the_next() {
    let link = Arc::new(Witness::default());
    let (mut gate, _records) = gate(policy("[label.linux.grants]\nread = [\"/**\"]\n[label.linux.limits]\ncalls = 2\n"), &link, None);
    gate.exists("/a").await.unwrap();
    gate.exists("/b").await.unwrap();
    assert!(told(gate.exists("/c").await).contains("`limits.calls` = 2"));
    assert!(matches!(gate.exists("/d").await, Err(Refused::End)));
    assert!(matches!(gate.over(), Some(Verdict::OverLimit { which }) if which.contains("limits.calls")), "{:?}", gate.over());
    assert_eq!(link.asked().len(), 2);
    assert_eq!(gate.finish().0.calls, 2);
}

#[tokio::test]
async fn what_a_run_sends_and_reads_is_counted_together() {
    let link = Arc::new(Witness { output: vec![b'x'; CALL_FILE_BYTES_MAX], ..Witness::default() });
    let (mut sending, _records) = gate(granting("write = [\"/**\"]\n"), &link, None);
    let file = vec![0; CALL_FILE_BYTES_MAX];
    let mut sent = 0;
    let refusal = loop {
        match sending.write_file("/a", &file, 0o644).await {
            Ok(_) => sent += 1,
            Err(Refused::Answer(error)) => break error.to_string(),
            Err(Refused::End) => panic!("ended before it was told"),
        }
    };
    assert!(sent == 63 && refusal.contains("sent more than 67108864 bytes"), "{sent}: {refusal}");
    assert!(matches!(sending.over(), Some(Verdict::OverLimit { .. })));
    let (mut reading, _records) = gate(granting("read = [\"/**\"]\n"), &link, None);
    for _ in 0..64 {
        reading.read_file("/a").await.unwrap();
    }
    assert!(told(reading.read_file("/a").await).contains("read more than 67108864 bytes"));
    assert!(matches!(reading.over(), Some(Verdict::OverLimit { .. })));
}

#[tokio::test]
async fn names_that_are_refused_and_variables_that_are_empty_are_counted_too() {
    let link = Arc::new(Witness::default());
    let (mut naming, records) = gate(policy(""), &link, None);
    naming.charge_held(62 * 1024 * 1024, 0).unwrap();
    let name = "x".repeat(1024 * 1024);
    for _ in 0..2 {
        assert!(naming.open_secret(&name).await.unwrap().is_none());
        let (lines, journal) = entries(&records);
        assert!(lines.iter().all(|line| line.text.len() <= LOG_LINE_BYTES_MAX));
        assert!(journal[1].len() < LOG_LINE_BYTES_MAX, "the answer has {} bytes", journal[1].len());
    }
    naming.open_secret(&name).await.unwrap_err();
    assert!(matches!(naming.over(), Some(Verdict::OverLimit { .. })));
    let (mut holding, _records) = gate(policy(""), &link, None);
    let held = (0..10_000_000).take_while(|_| holding.charge_held(0, 1).is_ok()).count();
    assert!(held < 2_000_000, "{held}");
}

#[tokio::test]
async fn notes_steps_and_output_are_lines_of_one_budget_even_when_they_are_empty() {
    let link = Arc::new(Witness { output: "line\n".repeat(1000).into_bytes(), ..Witness::default() });
    for what in ["note", "step", "output"] {
        let (mut gate, records) = gate(granting("run = [\"/bin/say\"]\n"), &link, None);
        let mut lines = 0;
        let mut ended = false;
        for _ in 0..=RUN_LOG_LINES_MAX {
            let done = match what {
                "note" => gate.log(Level::Info, "").await,
                "step" => gate.step("").await,
                _ => match gate.run(&command("/bin/say")).await {
                    Ok(_) => gate.log(Level::Info, "said").await,
                    Err(refused) => Err(refused),
                },
            };
            let taken = records.take().lines;
            assert!(taken.len() < OUTPUT_LOG_LINES_MAX as usize + 5);
            lines += taken.len();
            ended = done.is_err();
            if ended {
                break;
            }
        }
        assert!(ended, "{what}s went on");
        assert!(lines <= 2 * RUN_LOG_LINES_MAX as usize + 5, "{lines} lines of {what}s");
        assert!(matches!(gate.over(), Some(Verdict::OverLimit { which }) if which.contains("log lines")), "{:?}", gate.over());
    }
}

#[tokio::test]
async fn a_title_and_a_note_that_are_too_long_are_cut() {
    let link = Arc::new(Witness::default());
    let (mut gate, records) = gate(policy(""), &link, None);
    let long = "ä".repeat(LOG_LINE_BYTES_MAX);
    gate.step(&long).await.unwrap();
    gate.log(Level::Warn, &long).await.unwrap();
    gate.finish();
    let (lines, _) = entries(&records);
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line.text.len() <= LOG_LINE_BYTES_MAX));
}

#[tokio::test]
async fn a_lost_link_is_told_once_and_is_the_verdict() {
    let link = Arc::new(Witness { error: Some(CallError::Unreachable("the agent is gone".into())), ..Witness::default() });
    let (mut gate, _records) = gate(granting("read = [\"/**\"]\n"), &link, None);
    assert_eq!(told(gate.exists("/a").await), "unreachable: the agent is gone");
    assert!(matches!(gate.exists("/a").await, Err(Refused::End)));
    assert_eq!(gate.over(), Some(&Verdict::LinkLost { reason: "the agent is gone".into() }));
    assert_eq!(link.asked().len(), 1);
}

#[tokio::test]
async fn an_agent_that_answers_with_too_much_text_or_too_large_numbers_does_no_harm() {
    let change = Change { changed: true, bytes: u64::MAX, ..Change::default() };
    let link = Arc::new(Witness { change, ..Witness::default() });
    let (mut counting, _records) = gate(granting("write = [\"**\"]\n"), &link, None);
    counting.push(&bundle(), "a").await.unwrap();
    counting.push(&bundle(), "b").await.unwrap();
    assert_eq!(counting.finish().0.bytes_saved, 0, "an empty bundle has nothing to save");
    let link = Arc::new(Witness { error: Some(CallError::Other("x".repeat(4_000_000))), ..Witness::default() });
    let (mut listening, records) = gate(granting("read = [\"**\"]\n"), &link, None);
    assert!(told(listening.exists("a").await).len() < 2 * REASON_BYTES_MAX);
    let (lines, journal) = entries(&records);
    assert!(lines.iter().map(|line| line.text.len()).chain(journal.iter().map(String::len)).all(|bytes| bytes <= LOG_LINE_BYTES_MAX));
}

// A plain model of the grants: paths and globs as lists of components.

fn components(path: &str) -> Option<Vec<String>> {
    if path.is_empty() || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return None;
    }
    let root = if path.starts_with('/') { "" } else { ROOT };
    Some(root.split('/').chain(path.split('/')).filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect())
}

fn matches(glob: &[&str], path: &[String]) -> bool {
    match (glob, path) {
        ([], []) => true,
        (["**"], rest) => !rest.is_empty(),
        (["**", after @ ..], rest) => (0..=rest.len()).any(|skipped| matches(after, &rest[skipped..])),
        (["*", after @ ..], [_, rest @ ..]) => matches(after, rest),
        (["?", after @ ..], [one, rest @ ..]) => one.chars().count() == 1 && matches(after, rest),
        (["c.*", after @ ..], [one, rest @ ..]) => one.starts_with("c.") && matches(after, rest),
        ([name, after @ ..], [one, rest @ ..]) => name == one && matches(after, rest),
        _ => false,
    }
}

fn allows(globs: &[String], path: &[String]) -> bool {
    globs.iter().any(|glob| {
        let absolute = if glob.starts_with('/') { glob.clone() } else { format!("{ROOT}/{glob}") };
        matches(&absolute.split('/').skip(1).collect::<Vec<_>>(), path)
    })
}

/// Whether everything that may come below a path is allowed, as far as some names show.
fn allows_below(globs: &[String], path: &[String]) -> bool {
    ["z", "zz", "a", "b", "c.x", "zz/z", "zz/a/zz", "c.x/c.x", "zz/zz/zz/zz", "b/b/b/b/b"].iter().all(|below| {
        let whole: Vec<String> = path.iter().cloned().chain(below.split('/').map(str::to_owned)).collect();
        allows(globs, &whole)
    })
}

fn globs() -> impl Strategy<Value = Vec<String>> {
    let part = prop::sample::select(vec!["a", "b", "*", "**", "?", "c.*", "srv", "agent"]);
    let glob = (any::<bool>(), prop::collection::vec(part, 1..4));
    let glob = glob.prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")));
    prop::collection::vec(glob, 0..4)
}

fn paths() -> impl Strategy<Value = String> {
    let often = prop::sample::select(vec!["a", "b", "c.x", "zz", "srv", "agent"]);
    let seldom = prop::sample::select(vec!["", ".", "..", "a\0"]);
    let path = (any::<bool>(), prop::collection::vec(prop_oneof![9 => often, 1 => seldom], 1..5));
    path.prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

proptest! {
    #[test]
    fn nothing_reaches_the_link_that_a_plain_model_of_the_grants_does_not_allow(
        run in globs(), write in globs(), read in globs(), calls in prop::collection::vec((0..9_u8, paths()), 1..20),
    ) {
        let mut granted = policy("");
        let parsed = |globs: &[String]| globs.iter().map(|glob| glob.parse().unwrap()).collect();
        (granted.grants.run, granted.grants.write, granted.grants.read) = (parsed(&run), parsed(&write), parsed(&read));
        let link = Arc::new(Witness::default());
        let (mut gate, _records) = gate(granted, &link, None);
        let tools = bundle();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let readable: Vec<String> = read.iter().chain(&write).cloned().collect();
        for (call, path) in calls {
            // What a grant of everything says of the topmost directory itself is not what this is about.
            let Some(parts) = components(&path).filter(|parts| !parts.is_empty()) else {
                prop_assert!(runtime.block_on(gate.read_file(&path)).is_err() || components(&path).is_some());
                continue;
            };
            let program = command(&path);
            let (done, allowed) = runtime.block_on(async {
                match call {
                    0 => (gate.probe(&program).await.is_ok(), path.contains('/') && allows(&run, &parts)),
                    1 => (gate.run(&program).await.is_ok(), path.contains('/') && allows(&run, &parts)),
                    2 => (gate.launch(&program).await.is_ok(), path.contains('/') && allows(&run, &parts)),
                    3 => (gate.read_file(&path).await.is_ok(), allows(&readable, &parts)),
                    4 => (gate.exists(&path).await.is_ok(), allows(&readable, &parts)),
                    5 => (gate.write_file(&path, b"", 0o644).await.is_ok(), allows(&write, &parts)),
                    6 => (gate.remove(&path).await.is_ok(), allows(&write, &parts)),
                    7 => (gate.push(&tools, &path).await.is_ok(), allows_below(&write, &parts)),
                    _ => (gate.mirror(&tools, &path).await.is_ok(), allows_below(&write, &parts)),
                }
            });
            // For destinations the gate asks for one grant of everything, where several together may name all that the model tries.
            prop_assert!(if call < 7 { done == allowed } else { !done || allowed }, "{call} {path:?}: {done}, the model says {allowed}");
        }
        for (call, path) in link.asked() {
            let parts = components(&path).unwrap_or_default();
            let allowed = parts.is_empty() || match call {
                "exec" => allows(&run, &parts),
                "read" => allows(&readable, &parts),
                "write" | "remove" => allows(&write, &parts),
                "remove all" => allows(&write, &parts) && allows_below(&write, &parts),
                "sync" => allows_below(&write, &parts),
                other => return Err(TestCaseError::fail(other)),
            };
            prop_assert!(allowed, "{call} {path:?} reached the link");
        }
    }
}
