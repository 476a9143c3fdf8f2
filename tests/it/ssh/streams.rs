//! What runs over a connection.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use muster::limits::REACH_MAX;
use muster::link::quote::command;
use muster::link::ssh::error::{Ending, SshError};
use muster::link::ssh::host::Host;
use muster::link::ssh::login::Settings;
use muster::link::ssh::remote;
use muster::link::ssh::transport::{Connection, Event, Exec, ExecInput, ExecOutput, connect};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::sshd::Sshd;

const MIB: usize = 1024 * 1024;

async fn dial(sshd: &Sshd, settings: &Settings) -> Connection {
    connect(settings, &sshd.host(), Some(&sshd.key("host_ed25519")), None).await.unwrap().0
}

/// What a command wrote and how it ended.
async fn run(mut exec: Exec) -> (String, String, i32) {
    let (mut out, mut err, mut exit) = (Vec::new(), Vec::new(), None);
    while let Some(event) = exec.next().await.unwrap() {
        match event {
            Event::Stdout(bytes) => out.extend(bytes),
            Event::Stderr(bytes) => err.extend(bytes),
            Event::Exit(status) => exit = Some(status),
        }
    }
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), exit.unwrap())
}

#[tokio::test]
async fn statuses_and_signals_come_as_a_shell_would_tell_them() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    for (line, expected) in [
        ("true", ("", "", 0)),
        ("exit 255", ("", "", 255)),
        ("printf out; printf err >&2; exit 3", ("out", "err", 3)),
        ("kill -TERM $$", ("", "", 128 + 15)),
        ("kill -KILL $$", ("", "", 128 + 9)),
        ("kill -USR2 $$", ("", "", 128 + 12)),
        ("kill -BUS $$", ("", "", 255)),
        ("sh -c 'kill -HUP $$'; exit $?", ("", "", 128 + 1)),
    ] {
        let (out, err, exit) = run(connection.exec(line).await.unwrap()).await;
        assert_eq!((out.as_str(), exit), (expected.0, expected.2), "{line}: {err}");
        assert!(err.contains(expected.1), "{line}: {err}");
    }
    let (_, err, exit) = run(connection.exec("/no/such/program").await.unwrap()).await;
    assert!(err.contains("No such file") && exit == 127, "{err}");
}

#[tokio::test]
async fn input_reaches_the_command_and_ends() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let mut exec = connection.exec("tr a-z A-Z; echo end").await.unwrap();
    exec.write(Bytes::from_static(b"some ")).await.unwrap();
    exec.write(Bytes::new()).await.unwrap();
    exec.write(Bytes::from_static(b"words\n")).await.unwrap();
    exec.finish_input().await.unwrap();
    assert_eq!(run(exec).await.0, "SOME WORDS\nend\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_goes_up_and_down_whole() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let pieces = 16;
    let piece: Bytes = (0..MIB).map(|at| (at * 7 + at / 251) as u8).collect();

    let (mut input, output) = connection.exec("sha256sum").await.unwrap().split();
    let (up, mut own) = (piece.clone(), tokio::process::Command::new("sha256sum"));
    let mut own = own.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut own_input = own.stdin.take().unwrap();
    for _ in 0..pieces {
        input.write(up.clone()).await.unwrap();
        own_input.write_all(&up).await.unwrap();
    }
    input.finish().await.unwrap();
    drop(own_input);
    let own = own.wait_with_output().await.unwrap().stdout;
    let there = collect(output).await.0;
    assert_eq!(String::from_utf8(there).unwrap(), String::from_utf8(own).unwrap());

    // Down, and both ways at once.
    let (out, _) = collect(connection.exec("head -c 16777216 /dev/zero").await.unwrap().split().1).await;
    assert_eq!(out.len(), 16 * MIB);
    assert!(out.iter().all(|byte| *byte == 0));
    let (mut input, output) = connection.exec("cat").await.unwrap().split();
    let writing = async {
        for _ in 0..pieces {
            input.write(piece.clone()).await.unwrap();
        }
        input.finish().await.unwrap();
    };
    let ((), (back, exit)) = tokio::join!(writing, collect(output));
    assert_eq!((back.len(), exit), (pieces * MIB, Some(0)));
    assert!(back.chunks(MIB).all(|chunk| chunk == piece));
}

async fn collect(mut output: ExecOutput) -> (Vec<u8>, Option<i32>) {
    let (mut all, mut exit) = (Vec::new(), None);
    while let Some(event) = output.next().await.unwrap() {
        match event {
            Event::Stdout(bytes) => all.extend(bytes),
            Event::Stderr(_) => {}
            Event::Exit(status) => exit = Some(status),
        }
    }
    (all, exit)
}

#[tokio::test]
async fn the_eleventh_session_is_refused_by_sshd_and_thirty_are_not_if_it_allows_them() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(connection.exec("cat").await.unwrap());
    }
    let refused = connection.exec("cat").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("127.0.0.1:{} opens no further session on this connection; sshd's `MaxSessions` is 10 unless set", sshd.port)
    );
    assert!(!refused.is_lasting());
    // One that has ended, and one that is dropped, make room.
    let mut ended = open.pop().unwrap();
    ended.finish_input().await.unwrap();
    run(ended).await;
    open.push(room(&connection).await);
    drop(open.pop());
    open.push(room(&connection).await);

    let Some(sshd) = Sshd::start("MaxSessions 100") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..30 {
        let connection = connection.clone();
        tasks.spawn(async move {
            let mut exec = connection.exec(&format!("cat; exit {number}")).await.unwrap();
            exec.write(Bytes::from(vec![b'x'; 100_000])).await.unwrap();
            exec.finish_input().await.unwrap();
            let (out, _, exit) = run(exec).await;
            assert_eq!((out.len(), exit), (100_000, number));
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_dropped_command_reads_the_end_of_its_input() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let line = command(&["sh", "-c", "cat; echo over > \"$1\"", "sh", sshd.path("over").to_str().unwrap()]).unwrap();
    drop(connection.exec(&line).await.unwrap());
    // A call that is dropped before the host has answered leaves nothing behind, either.
    for number in 0..50 {
        let mut call = Box::pin(connection.exec("cat"));
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        tokio::time::sleep(Duration::from_micros(number * 20)).await;
    }
    while !sshd.path("over").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut all = Vec::new();
    while all.len() < 10 {
        all.push(room(&connection).await);
    }
}

/// A command, as soon as sshd has seen that an earlier one has ended.
async fn room(connection: &Connection) -> Exec {
    let began = Instant::now();
    loop {
        match connection.exec("cat").await {
            Ok(exec) => return exec,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn write_until_it_fails(input: &mut ExecInput) -> SshError {
    loop {
        if let Err(error) = input.write(Bytes::from(vec![0; MIB])).await {
            return error;
        }
    }
}

#[tokio::test]
async fn writing_to_a_command_that_has_ended_fails() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let (mut input, output) = connection.exec("exit 0").await.unwrap().split();
    let error = timeout(Duration::from_secs(30), write_until_it_fails(&mut input)).await.unwrap();
    assert!(matches!(error, SshError::Input { .. }), "{error}");
    assert_eq!(collect(output).await.1, Some(0));
    assert!(matches!(input.finish().await, Err(SshError::Input { .. })));
}

#[tokio::test]
async fn output_after_the_exit_is_still_read() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let mut exec = connection.exec("{ sleep 0.3; echo late; } & exit 4").await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = exec.next().await.unwrap() {
        events.push(event);
    }
    assert_eq!(events, [Event::Exit(4), Event::Stdout("late\n".into())]);
}

#[tokio::test]
async fn a_killed_sshd_is_noticed_at_once_by_all() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let (mut input, _unread) = connection.exec("sleep 1000").await.unwrap().split();
    let (_input, mut output) = connection.exec("echo here; exec sleep 1000").await.unwrap().split();
    assert_eq!(output.next().await.unwrap(), Some(Event::Stdout("here\n".into())));
    let writing = tokio::spawn(async move { write_until_it_fails(&mut input).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!writing.is_finished());
    sshd.kill_sessions();
    let killed = Instant::now();
    let lost = output.next().await.unwrap_err();
    assert!(matches!(lost, SshError::Lost { source: Ending::Broken(_), .. }), "{lost:?}");
    assert!(matches!(writing.await.unwrap(), SshError::Lost { .. }));
    assert!(matches!(connection.closed().await, Ending::Broken(_)));
    assert!(matches!(connection.exec("true").await, Err(SshError::Lost { .. })));
    assert!(killed.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_closed_connection_is_closed_for_all() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let mut exec = connection.exec("cat").await.unwrap();
    connection.close().await;
    assert!(matches!(connection.closed().await, Ending::Here));
    assert!(matches!(exec.next().await, Err(SshError::Lost { source: Ending::Here, .. })));
    assert!(matches!(exec.write(Bytes::from_static(b"x")).await, Err(SshError::Lost { .. })));
    gone(&sshd).await;
    // It is the same if all that there was of it is dropped.
    let connection = dial(&sshd, &sshd.settings()).await;
    let exec = connection.exec("cat").await.unwrap();
    drop(connection);
    assert_eq!(sshd.sessions().len(), 1, "a command keeps its connection");
    drop(exec);
    gone(&sshd).await;
}

async fn gone(sshd: &Sshd) {
    let began = Instant::now();
    while !sshd.sessions().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(20), "a connection is left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_does_not_wait_for_a_reader_that_does_not_read() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let unread = connection.exec("cat /dev/zero").await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    connection.close().await;
    assert!(began.elapsed() < Duration::from_secs(10));
    drop(unread);
    gone(&sshd).await;
}

#[tokio::test]
async fn a_reader_may_pause_for_longer_than_a_host_may_be_silent() {
    let Some(sshd) = Sshd::start("") else { return };
    let mut settings = sshd.settings();
    settings.keepalive_interval = Duration::from_millis(300);
    let connection = dial(&sshd, &settings).await;
    let mut exec = connection.exec("cat /dev/zero").await.unwrap();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(1300)).await;
        for _ in 0..200 {
            assert!(matches!(exec.next().await.unwrap(), Some(Event::Stdout(_))));
        }
    }
}

fn host_at(port: u16) -> Host {
    format!("127.0.0.1:{port}").parse().unwrap()
}

/// Passes bytes on between this machine and a host, until it is told to swallow them.
async fn proxy(to: u16) -> (u16, std::sync::Arc<tokio::sync::watch::Sender<bool>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let swallow = std::sync::Arc::new(tokio::sync::watch::Sender::new(false));
    let told = swallow.clone();
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
        let mut black = told.subscribe();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            _ = black.wait_for(|black| *black) => {}
        }
        // Neither closes nor reads any more.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        drop((near, far));
    });
    (port, swallow)
}

#[tokio::test]
async fn a_host_behind_a_black_hole_is_lost_after_three_keepalives() {
    tokio::join!(becomes_silent(false), becomes_silent(true));
}

async fn becomes_silent(busy: bool) {
    let Some(sshd) = Sshd::start("") else { return };
    let (port, swallow) = proxy(sshd.port).await;
    let mut settings = sshd.settings();
    settings.keepalive_interval = Duration::from_millis(600);
    let host = host_at(port);
    let (connection, _) = connect(&settings, &host, Some(&sshd.key("host_ed25519")), None).await.unwrap();
    let (mut input, mut output) = connection.exec("cat > /dev/null").await.unwrap().split();
    // Idle for longer than it would take to be lost.
    tokio::time::sleep(Duration::from_millis(2400)).await;
    assert!(timeout(Duration::ZERO, connection.closed()).await.is_err());
    let writing = tokio::spawn(async move { if busy { Some(write_until_it_fails(&mut input).await) } else { None } });
    tokio::time::sleep(Duration::from_millis(100)).await;
    swallow.send_replace(true);
    let began = Instant::now();
    let error = output.next().await.unwrap_err();
    let took = began.elapsed();
    assert!(matches!(error, SshError::Lost { source: Ending::Silent, .. }), "{error:?}");
    assert!(took > Duration::from_millis(1000) && took < Duration::from_secs(10), "{took:?}");
    assert!(matches!(connection.closed().await, Ending::Silent));
    assert_eq!(writing.await.unwrap().is_some(), busy);
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_given_up_in_time() {
    let Some(sshd) = Sshd::start("") else { return };
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut settings = sshd.settings();
    settings.connect_timeout = Duration::from_millis(500);
    let host = host_at(silent.local_addr().unwrap().port());
    let error = connect(&settings, &host, None, None).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{host} did not shake hands within 500ms"));
    assert!(!error.is_lasting());
    let (mut stream, _) = silent.accept().await.unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(5), tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest)).await.unwrap().ok();

    drop(silent);
    let error = connect(&settings, &host, None, None).await.unwrap_err();
    assert!(matches!(error, SshError::Reach { .. }) && !error.is_lasting(), "{error}");
    let error = connect(&settings, &"nowhere.invalid".parse().unwrap(), None, None).await.unwrap_err();
    assert!(matches!(error, SshError::Resolve { .. }) && !error.is_lasting(), "{error}");
}

#[tokio::test]
async fn quoted_words_reach_the_remote_program_as_they_are() {
    let Some(sshd) = Sshd::start("") else { return };
    let connection = dial(&sshd, &sshd.settings()).await;
    let word = "a 'b' \"c\" $(d) `e` \\ * ~ ! # ; & | \n\t é\u{7f}\u{1}";
    let line = command(&["printf", "%s|", word, "", "-n"]).unwrap();
    assert_eq!(run(connection.exec(&line).await.unwrap()).await.0, format!("{word}||-n|"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_closed_ends_though_the_agent_takes_nothing() {
    let Some(sshd) = Sshd::start("") else { return };
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join(".muster/bin");
    std::fs::create_dir_all(&bin).unwrap();
    let hello = r#"{"frame":"hello","protocol":2,"version":"1","instance":"one","launched":{"is":"nothing"}}"#;
    // It says that it lives, and reads nothing.
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = link ] || exec echo muster-agent {}\nprintf '\\000\\{:03o}\\000\\000\\000%s' '{hello}'\n\
         while printf '\\002\\000\\000\\000\\000'; do sleep 0.1; done\n",
        env!("CARGO_PKG_VERSION"),
        hello.len()
    );
    std::fs::write(bin.join("muster-agent"), script).unwrap();
    std::fs::set_permissions(bin.join("muster-agent"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let connection = dial(&sshd, &sshd.settings()).await;
    let opened = remote::open(&connection, root.path().to_str().unwrap(), None, REACH_MAX).await.unwrap();
    assert_eq!(opened.instance, "one");
    let link = opened.link.clone();
    let (said, _) = tokio::sync::mpsc::channel(1);
    let driving = tokio::spawn(async move { opened.drive(|| {}, said).await });
    // More than sshd takes before the command reads.
    link.drain(&"x".repeat(3 * MIB)).await.unwrap();
    link.close("it is enough");
    timeout(Duration::from_secs(20), driving).await.expect("the session goes on").unwrap();
}
