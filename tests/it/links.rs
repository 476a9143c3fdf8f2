//! What every link does: one suite, run over each of them with real programs at the other end.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use futures_util::{SinkExt as _, StreamExt as _};
use muster::agent::calls::Machine;
use muster::agent::server::Server;
use muster::agent::session::{Ending, serve};
use muster::agent::state::Secret;
use muster::agent::supervise::{Pace, Supervisor};
use muster::bits::apply::Mode;
use muster::bits::contents::{Bundle, Contents, DirectoryContents};
use muster::bits::pack::Packed;
use muster::bits::scan::scan;
use muster::limits::{OUTPUT_BYTES_MAX, REACH_MAX};
use muster::link::Link;
use muster::link::frames::Message;
use muster::link::session::Session;
use muster::link::ssh::remote;
use muster::link::ssh::transport::connect;
use muster::machine::exec::Environment;
use muster::machine::root::Root;
use muster::machine::{CallError, Change, Command, Output, SyncMode, SyncRules};
use muster::names::Digest;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as Wire;
use tokio_util::task::AbortOnDropHandle;

use crate::bits::{Kinds, Node, Tree, a_bundle, a_mode, below, contents, grow, manifest, nodes, packed, predict, read_tree, write_tree};
use crate::house::House;
use crate::poll::{PollProcess, PollShell};
use crate::ssh::sshd::Sshd;

/// A machine at the other end of a link. What keeps it there is dropped with it.
struct Far {
    link: Arc<dyn Link>,
    root: PathBuf,
    _kept: Vec<Box<dyn Any + Send>>,
}

impl Far {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    async fn exec(&self, command: &Command) -> Result<Output, CallError> {
        self.link.exec(command, &mut |_, _| {}).await
    }

    async fn sync(&self, destination: &str, bundle: &Bundle, mode: SyncMode) -> Result<Change, CallError> {
        self.link.sync(destination, bundle, SyncRules { mode, max_delete_percent: 100 }).await
    }
}

/// A muster-agent in this process, with a session over a WebSocket.
async fn session() -> Option<Far> {
    let root = TempDir::new().unwrap();
    let opened = Arc::new(Root::open(root.path(), &[]).unwrap());
    let environment = Environment::read(|name| (name == "PATH").then(|| "/usr/bin:/bin".into()));
    let supervisor = Supervisor::start(opened.clone(), environment.clone(), Pace::default()).await;
    let machine = Arc::new(Machine { root: opened, environment, supervisor, syncing: Arc::default(), verify: false });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::new(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();
    let agent = tokio::spawn(async move {
        let credential = Secret::from_text("credential").unwrap();
        serve(&server, "/v1/session", &credential, machine, "instance", &Ending::default()).await
    });
    let (stream, _) = listener.accept().await.unwrap();
    let (mut sink, mut stream) = tokio_tungstenite::accept_async(stream).await.unwrap().split();
    let (outgoing, mut queue) = mpsc::channel(4);
    let session = Session::new(outgoing);
    let sending = tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            let wire = match message {
                Message::Text(text) => Wire::text(text),
                Message::Binary(bytes) => Wire::Binary(bytes),
                Message::Ping => continue,
            };
            sink.send(wire).await.unwrap();
        }
    });
    let receiving = session.clone();
    let receiving = tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let message = match message {
                Wire::Text(text) => Message::Text(text.to_string()),
                Wire::Binary(bytes) => Message::Binary(bytes),
                _ => continue,
            };
            receiving.receive(message).await.unwrap();
        }
    });
    let path = root.path().to_owned();
    let kept: Vec<Box<dyn Any + Send>> = vec![
        Box::new(root),
        Box::new(AbortOnDropHandle::new(agent)),
        Box::new(AbortOnDropHandle::new(sending)),
        Box::new(AbortOnDropHandle::new(receiving)),
    ];
    Some(Far { link: Arc::new(session), root: path, _kept: kept })
}

/// A muster-agent that a real sshd starts.
async fn ssh() -> Option<Far> {
    dialled(true).await
}

/// A machine with sshd and a shell, and nothing of ours.
async fn ssh_alone() -> Option<Far> {
    dialled(false).await
}

async fn dialled(has_agent: bool) -> Option<Far> {
    let sshd = Sshd::start("")?;
    let root = TempDir::new().unwrap();
    if has_agent {
        let bin = root.path().join(".muster/bin");
        fs::create_dir_all(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_muster-agent"), bin.join("muster-agent")).unwrap();
    }
    let (connection, _) = connect(&sshd.settings(), &sshd.host(), Some(&sshd.key("host_ed25519")), None).await.unwrap();
    let opened = remote::open(&connection, root.path().to_str().unwrap(), None, REACH_MAX).await.unwrap();
    let link = Arc::clone(&opened.link);
    let (said, _) = mpsc::channel(1);
    let driving = tokio::spawn(async move {
        let _connection = connection;
        opened.drive(|| {}, said).await
    });
    Some(Far { link, root: root.path().to_owned(), _kept: vec![Box::new(AbortOnDropHandle::new(driving)), Box::new(sshd), Box::new(root)] })
}

/// A machine with curl and a shell, that polls.
async fn polling(shell: PollShell) -> Option<Far> {
    let house = House::plan().poll(Duration::from_secs(600)).start().await;
    let process = PollProcess::start(&house, "far", shell).await?;
    house.until_agent("far", |detail| detail["agent"]["session"] == true).await;
    let (link, root) = (house.link("far").unwrap(), process.root.clone());
    Some(Far { link, root, _kept: vec![Box::new(process), Box::new(house)] })
}

async fn poll_dash() -> Option<Far> {
    polling(PollShell::Dash).await
}

async fn poll_busybox() -> Option<Far> {
    polling(PollShell::Busybox).await
}

macro_rules! over_each_link {
    ($($check:ident),* $(,)?) => {
        over_each_link!(@ poll_dash: $($check),*);
        over_each_link!(@ poll_busybox: $($check),*);
        over_each_link!(@ session: $($check),*);
        over_each_link!(@ ssh: $($check),*);
        over_each_link!(@ ssh_alone: $($check),*);
    };
    (@ $link:ident: $($check:ident),*) => {
        mod $link {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $check() {
                if let Some(far) = super::$link().await {
                    super::$check(&far).await;
                }
            })*
        }
    };
}

over_each_link!(
    a_command_runs_as_it_was_asked_for,
    a_command_is_ended_at_its_time_and_when_nobody_waits,
    files_are_read_written_and_removed_below_the_root,
    what_leads_out_of_the_root_is_refused,
    a_bundle_is_brought_and_mirrored,
    a_tree_with_every_kind_of_name_and_file_arrives_as_it_was,
    what_is_in_the_way_changes_nothing_and_is_named,
    what_is_launched_runs_until_it_is_stopped,
    what_a_bundle_does_is_what_the_model_says,
);

fn sh(script: &str) -> Command {
    Command { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], ..Command::default() }
}

async fn a_command_runs_as_it_was_asked_for(far: &Far) {
    let command = Command {
        args: vec![
            "-c".into(),
            "cat; printf '%s|' \"$@\" \"$KEY\" >&2; pwd; exit 3".into(),
            "sh".into(),
            "a b".into(),
            "'; exit 9; '".into(),
            String::new(),
        ],
        env: vec![("KEY".into(), "one\ntwo $(x) 'q'".into())],
        directory: Some("in".into()),
        stdin: (0..=255).cycle().take(100_000).collect(),
        ..sh("")
    };
    fs::create_dir(far.path("in")).unwrap();
    let output = far.exec(&command).await.unwrap();
    assert_eq!(output.status, 3);
    let real = far.root.canonicalize().unwrap();
    assert_eq!(output.stdout, [command.stdin.as_slice(), format!("{}/in\n", real.display()).as_bytes()].concat());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "a b|'; exit 9; '||one\ntwo $(x) 'q'|");
    assert_eq!(far.exec(&sh("kill -9 $$")).await.unwrap().status, 137);
    let loud = far.exec(&sh("head -c 700000 /dev/zero; head -c 700000 /dev/zero >&2")).await.unwrap();
    assert!(loud.truncated && loud.stdout.len() == OUTPUT_BYTES_MAX && loud.stderr.len() == OUTPUT_BYTES_MAX);
    let quiet = far.exec(&sh("env | cut -d= -f1 | sort | tr '\\n' ' '")).await.unwrap();
    let names = String::from_utf8(quiet.stdout).unwrap();
    assert!(
        names.split(' ').all(|name| matches!(name, "" | "PATH" | "HOME" | "LANG" | "USER" | "PWD" | "OLDPWD" | "SHLVL" | "_")),
        "{names}"
    );
    fs::write(far.path("own"), "#!/bin/sh\necho own\n").unwrap();
    fs::set_permissions(far.path("own"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(far.exec(&Command { program: "./own".into(), ..Command::default() }).await.unwrap().stdout, b"own\n");
    for program in ["/nowhere/program", "./missing"] {
        let missing = far.exec(&Command { program: program.into(), ..Command::default() }).await;
        assert!(matches!(missing, Err(CallError::NotFound(_))), "{missing:?}");
    }
    let bare = far.exec(&Command { program: "sh".into(), ..Command::default() }).await;
    assert!(matches!(bare, Err(CallError::Invalid(_))), "{bare:?}");
}

async fn a_command_is_ended_at_its_time_and_when_nobody_waits(far: &Far) {
    let slow = |timeout_ms| Command { timeout_ms, ..sh("echo $$ > pid; sleep 1000 & echo $! >> pid; wait") };
    let pids =
        || -> Vec<i32> { fs::read_to_string(far.path("pid")).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect() };
    assert_eq!(far.exec(&slow(Some(300))).await, Err(CallError::TimedOut));
    assert_eq!(pids().len(), 2);
    gone(&pids()).await;
    fs::remove_file(far.path("pid")).unwrap();
    let command = slow(None);
    let given_up = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::select! {
            output = far.exec(&command) => panic!("it ended: {output:?}"),
            () = async { while pids().len() < 2 { tokio::time::sleep(Duration::from_millis(10)).await } } => {}
        }
    });
    given_up.await.unwrap();
    gone(&pids()).await;
}

async fn gone(pids: &[i32]) {
    let alive = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
    };
    for _ in 0..2000 {
        if !pids.iter().any(alive) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{pids:?} run still");
}

async fn files_are_read_written_and_removed_below_the_root(far: &Far) {
    let link = &far.link;
    let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let written = link.write_file("a b/c'd", &content, 0o640).await.unwrap();
    assert!(written.changed && written.files_changed == 1 && written.bytes == 300_000, "{written:?}");
    assert_eq!(fs::read(far.path("a b/c'd")).unwrap(), content);
    assert_eq!(fs::metadata(far.path("a b/c'd")).unwrap().mode() & 0o7777, 0o640);
    assert!(!link.write_file("a b/c'd", &content, 0o640).await.unwrap().changed);
    assert!(link.write_file("a b/c'd", &content, 0o600).await.unwrap().changed);
    assert!(link.write_file("a b/c'd", b"", 0o600).await.unwrap().changed);
    link.write_file("file", &content, 0o644).await.unwrap();
    assert_eq!(link.read_file("file", 300_000).await.unwrap(), content);
    assert!(matches!(link.read_file("file", 299_999).await, Err(CallError::Invalid(_))));
    assert!(matches!(link.read_file("a b", 10).await, Err(CallError::Invalid(_))));
    assert!(matches!(link.read_file("missing", 10).await, Err(CallError::NotFound(_))));
    assert!(!link.read_file("/etc/passwd", 1_000_000).await.unwrap().is_empty());
    symlink("nowhere", far.path("dangling")).unwrap();
    for (path, there) in [("file", true), ("a b", true), ("missing", false), ("file/below", false), ("dangling", true), ("/etc", true)] {
        assert_eq!(link.exists(path).await, Ok(there), "{path}");
    }
    assert!(matches!(link.write_file("a b", b"x", 0o644).await, Err(CallError::Invalid(_))));
    let full = link.remove("a b", false).await;
    assert!(matches!(full, Err(CallError::Denied(_))), "{full:?}");
    let removed = link.remove("a b", true).await.unwrap();
    assert!(removed.changed && removed.files_removed == 1, "{removed:?}");
    assert!(!link.remove("a b", true).await.unwrap().changed);
    assert_eq!(link.remove("dangling", false).await.unwrap().files_removed, 1);
    assert!(far.path("file").exists() && !far.path("a b").exists());
}

async fn what_leads_out_of_the_root_is_refused(far: &Far) {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("kept"), b"kept").unwrap();
    symlink(outside.path(), far.path("out")).unwrap();
    fs::write(far.path(".muster/secret"), b"secret").unwrap();
    symlink(".muster", far.path("own")).unwrap();
    symlink(".muster/secret", far.path("to-secret")).unwrap();
    let link = &far.link;
    let there = outside.path().join("new").display().to_string();
    for path in [there.as_str(), "out/new", "own/new", ".muster/new", "../new"] {
        assert!(link.write_file(path, b"x", 0o644).await.is_err(), "{path} was written");
        assert!(link.remove(path, true).await.map_or(true, |change| !change.changed), "{path} was removed");
        assert!(far.sync(path, &bundle(&[("f", b"x")]), SyncMode::Push).await.is_err(), "a bundle went to {path}");
    }
    for path in [".muster/secret", "own/secret", "to-secret"] {
        assert!(link.read_file(path, 100).await.is_err(), "{path} was read");
    }
    assert!(link.remove(".", true).await.is_err() && link.remove(".muster", true).await.is_err());
    link.remove("out", true).await.unwrap();
    let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kept"]);
    assert!(far.path(".muster/secret").exists());
}

/// A bundle and the directory that its contents are read from.
struct Made {
    bundle: Bundle,
    _directory: TempDir,
}

impl std::ops::Deref for Made {
    type Target = Bundle;

    fn deref(&self) -> &Bundle {
        &self.bundle
    }
}

/// A bundle of small files.
fn bundle(files: &[(&str, &[u8])]) -> Made {
    let directory = TempDir::new().unwrap();
    for (path, content) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    Made { bundle: bundle_of(directory.path()), _directory: directory }
}

fn bundle_of(directory: &Path) -> Bundle {
    let dir = Dir::open_ambient_dir(directory, ambient_authority()).unwrap();
    let (manifest, spots) = scan(&dir, &mut |_| {}).unwrap();
    let contents = Arc::new(DirectoryContents::new(dir, &manifest, &spots));
    Bundle::new("tools".parse().unwrap(), manifest, contents)
}

/// All files below a directory, with their contents.
fn files(top: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(below, content)| (format!("{name}/{below}"), content)));
        } else {
            found.push((name, fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

async fn a_bundle_is_brought_and_mirrored(far: &Far) {
    let first = bundle(&[("a", b"one"), ("d/b", b"two"), ("d/c", b"three")]);
    let change = far.sync("to/tools", &first, SyncMode::Mirror).await.unwrap();
    assert_eq!((change.changed, change.files, change.files_changed, change.bytes, change.bytes_sent), (true, 3, 3, 11, 11));
    let again = far.sync("to/tools", &first, SyncMode::Mirror).await.unwrap();
    assert_eq!((again.changed, again.files, again.files_changed, again.bytes_sent), (false, 3, 0, 0));
    fs::write(far.path("to/tools/theirs"), b"theirs").unwrap();
    let second = bundle(&[("a", b"one"), ("d/b", b"TWO"), ("e", b"three")]);
    let change = far.sync("to/tools", &second, SyncMode::Mirror).await.unwrap();
    assert_eq!((change.changed, change.files_removed, change.bytes_sent), (true, 1, 3), "what is there under another name is not sent");
    let expected = |more: &[(&str, &[u8])]| {
        let mut files: Vec<(String, Vec<u8>)> = more.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())).collect();
        files.sort();
        files
    };
    assert_eq!(files(&far.path("to/tools")), expected(&[("a", b"one"), ("d/b", b"TWO"), ("e", b"three"), ("theirs", b"theirs")]));
    let third = bundle(&[("f", b"four")]);
    far.sync("to/tools", &third, SyncMode::Push).await.unwrap();
    assert_eq!(files(&far.path("to/tools")).len(), 5);
    let guarded = SyncRules { mode: SyncMode::Mirror, max_delete_percent: 10 };
    let refused = far.link.sync("to/tools", &third, guarded).await;
    assert!(matches!(&refused, Err(CallError::Denied(why)) if why.contains("max_delete")), "{refused:?}");
    far.sync("to/tools", &third, SyncMode::MirrorDeletingForeign).await.unwrap();
    assert_eq!(files(&far.path("to/tools")), expected(&[("f", b"four")]));
}

async fn a_tree_with_every_kind_of_name_and_file_arrives_as_it_was(far: &Far) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let from = TempDir::new().unwrap();
    let names: [&[u8]; 10] =
        [b"plain", b"a b", b"new\nline", b"'q\"`$x", b"-rf", b"*", b"\xff\xfe", b"back\\slash", b".hidden", "ä€".as_bytes()];
    for directory in ["", "deep/er/and/deeper"] {
        fs::create_dir_all(from.path().join(directory)).unwrap();
        for (number, name) in names.iter().enumerate() {
            let path = from.path().join(directory).join(OsStr::from_bytes(name));
            fs::write(&path, format!("{directory}{number}")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode([0o644, 0o755, 0o600, 0o444][number % 4])).unwrap();
        }
    }
    fs::create_dir(from.path().join("empty")).unwrap();
    fs::write(from.path().join("nothing"), b"").unwrap();
    fs::write(
        from.path().join("large"),
        (0..3_000_000_u32).flat_map(|at| (at.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()).collect::<Vec<u8>>(),
    )
    .unwrap();
    fs::write(from.path().join("twin"), b"deep/er/and/deeper1").unwrap();
    symlink("deep/er", from.path().join("link")).unwrap();
    symlink("no where\n", from.path().join("dangling")).unwrap();
    let wanted = bundle_of(from.path());
    let change = far.sync("tree", &wanted, SyncMode::Mirror).await.unwrap();
    assert!(change.changed && change.files == wanted.manifest.files());
    // The scan of what arrived says the same, modes and times included.
    assert_eq!(bundle_of(&far.path("tree")).version, wanted.version);
    assert!(!far.sync("tree", &wanted, SyncMode::Mirror).await.unwrap().changed);
    fs::set_permissions(far.path("tree/plain"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(far.path("tree/-rf")).unwrap();
    fs::write(far.path("tree/*"), b"0*").unwrap();
    far.sync("tree", &wanted, SyncMode::Mirror).await.unwrap();
    assert_eq!(bundle_of(&far.path("tree")).version, wanted.version);
}

async fn what_is_in_the_way_changes_nothing_and_is_named(far: &Far) {
    fs::create_dir_all(far.path("to/a/theirs")).unwrap();
    fs::write(far.path("to/file"), b"theirs").unwrap();
    let wanted = bundle(&[("a", b"x"), ("file/below", b"x"), ("other", b"x")]);
    for mode in [SyncMode::Push, SyncMode::Mirror] {
        let refused = far.sync("to", &wanted, mode).await;
        assert!(matches!(&refused, Err(CallError::Invalid(why)) if why.contains("`file`") || why.contains("`a")), "{refused:?}");
        assert_eq!(files(&far.path("to")), [("file".to_owned(), b"theirs".to_vec())]);
        assert!(far.path("to/a/theirs").exists());
    }
    let refused = far.sync("to/file", &bundle(&[("a", b"x")]), SyncMode::Push).await;
    assert!(matches!(refused, Err(CallError::Invalid(_))), "{refused:?}");
    symlink("to", far.path("symlink")).unwrap();
    far.sync("to", &wanted, SyncMode::MirrorDeletingForeign).await.unwrap();
    assert_eq!(files(&far.path("to")).len(), 3);
}

async fn what_is_launched_runs_until_it_is_stopped(far: &Far) {
    assert_eq!(far.link.stop().await, Ok(false));
    let pid = |file: &str| fs::read_to_string(far.path(file)).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let started = async |file: &str| {
        while pid(file).is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        pid(file).unwrap()
    };
    far.link
        .launch(&Command { env: vec![("SECRET".into(), "s3cret".into())], ..sh("echo $$ > one; echo $SECRET > got; exec sleep 1000") })
        .await
        .unwrap();
    let one = tokio::time::timeout(Duration::from_secs(20), started("one")).await.unwrap();
    assert_eq!(fs::read_to_string(far.path("got")).unwrap(), "s3cret\n");
    far.link.launch(&sh("echo $$ > two; exec sleep 1000")).await.unwrap();
    let two = tokio::time::timeout(Duration::from_secs(20), started("two")).await.unwrap();
    gone(&[one]).await;
    assert_eq!(far.link.stop().await, Ok(true));
    gone(&[two]).await;
    assert_eq!(far.link.stop().await, Ok(false));
    let missing = far.link.launch(&Command { program: "/nowhere/program".into(), ..Command::default() }).await;
    assert!(matches!(missing, Err(CallError::NotFound(_))), "{missing:?}");
    // What ends is started again, unless a run holds it.
    far.link.launch(&sh("echo again >> times; exit 1")).await.unwrap();
    let times = || fs::read_to_string(far.path("times")).unwrap_or_default().lines().count();
    tokio::time::timeout(Duration::from_secs(20), async {
        while times() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await
        }
    })
    .await
    .unwrap();
    far.link.stop().await.unwrap();
}

/// The contents of a tree of the model.
struct Modelled {
    contents: Vec<(Digest, Vec<u8>)>,
}

#[async_trait::async_trait]
impl Contents for Modelled {
    fn group(&self, index: u32) -> u64 {
        u64::from(index % 3)
    }

    fn at_hand(&self, _: &BTreeMap<u64, Vec<u32>>) -> Option<u64> {
        None
    }

    async fn read(&self, index: u32) -> io::Result<Packed> {
        Ok(packed(&self.contents[index as usize].1))
    }

    async fn turn(&self) -> Box<dyn Send + Sync> {
        Box::new(())
    }

    async fn pace(&self, _: usize) {}
}

fn modelled(tree: &Tree) -> Bundle {
    let (manifest, contents) = (manifest(tree), contents(tree));
    let contents = manifest.contents().iter().map(|(digest, _)| (*digest, contents[digest].clone())).collect();
    Bundle::new("tools".parse().unwrap(), manifest, Arc::new(Modelled { contents }))
}

/// One destination: what is there, what Muster put there, and what brings bundles to it.
struct Modelling<'a> {
    far: &'a Far,
    name: String,
    tree: Tree,
    ledger: Kinds,
}

impl Modelling<'_> {
    fn sync(&mut self, bundle: &Tree, mode: Mode) -> Result<(), TestCaseError> {
        let (place, made) = (self.far.path(&self.name), modelled(bundle));
        let asked = match mode {
            Mode::Push => SyncMode::Push,
            Mode::Mirror => SyncMode::Mirror,
            Mode::MirrorDeletingForeign => SyncMode::MirrorDeletingForeign,
        };
        let sync = || tokio::runtime::Handle::current().block_on(self.far.sync(&self.name, &made, asked));
        let existed = place.exists();
        let synced = sync();
        let Some((new, after)) = predict(&self.tree, &self.ledger, bundle, mode, (0o755, false)) else {
            prop_assert!(matches!(synced, Err(CallError::Invalid(_))), "{synced:?} where something is in the way");
            prop_assert!(!existed || read_tree(&place) == self.tree);
            return Ok(());
        };
        let change = synced.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&read_tree(&place), &new);
        prop_assert_eq!(change.changed, new != self.tree || !existed);
        prop_assert!(!sync().map_err(|error| TestCaseError::fail(error.to_string()))?.changed, "a second time changed something");
        (self.tree, self.ledger) = (new, after);
        Ok(())
    }
}

/// What happens at a destination: what is there, what is brought, who meddles, and what is brought then.
type Case = (Vec<(Vec<u8>, Node)>, Vec<(Tree, Mode)>, Vec<Index>, Vec<(Vec<u8>, Node)>, Tree, Mode, bool);

async fn what_a_bundle_does_is_what_the_model_says(far: &Far) {
    let bundles = prop::collection::vec((a_bundle(), a_mode()), 0..2);
    let cases =
        (nodes(false, 8), bundles, prop::collection::vec(any::<Index>(), 0..3), nodes(false, 4), a_bundle(), a_mode(), any::<bool>());
    let config = ProptestConfig { cases: 10, failure_persistence: None, max_shrink_iters: 30, ..ProptestConfig::default() };
    let number = Cell::new(0);
    let check = |(foreign, earlier, gone, edits, bundle, mode, begins_empty): Case| {
        number.set(number.get() + 1);
        let mut modelling = Modelling { far, name: format!("to {}", number.get()), tree: Tree::new(), ledger: Kinds::new() };
        let place = far.path(&modelling.name);
        if !begins_empty {
            grow(&mut modelling.tree, &foreign, Some(0o755));
            write_tree(&place, &modelling.tree);
        }
        for (bundle, mode) in &earlier {
            modelling.sync(bundle, *mode)?;
        }
        // Somebody else is at work there too.
        for index in gone {
            if !modelling.tree.is_empty() {
                let victim = index.get(&modelling.tree.keys().cloned().collect::<Vec<_>>()).clone();
                modelling.tree.retain(|path, _| *path != victim && !below(&victim, path));
            }
        }
        grow(&mut modelling.tree, &edits, Some(0o755));
        if place.exists() {
            fs::remove_dir_all(&place).unwrap();
        }
        write_tree(&place, &modelling.tree);
        modelling.sync(&bundle, mode)
    };
    tokio::task::block_in_place(|| TestRunner::new(config).run(&cases, check).unwrap_or_else(|error| panic!("{error}")));
}
