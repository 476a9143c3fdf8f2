//! A PostgreSQL of the tests' own: in a temporary directory, behind a unix socket, gone with the last test that uses it.

#![expect(clippy::disallowed_methods, reason = "only the environment says where programs are, and whether this is CI")]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::process::{Pid, Signal, geteuid, kill_process};

/// One running cluster. Tests of one process share it.
pub(crate) struct Postgres {
    programs: PathBuf,
    user: Option<(u32, u32)>,
    directory: tempfile::TempDir,
    server: Child,
    databases: AtomicU32,
}

/// Whether a program that is missing is a failure.
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").as_deref() == Ok("true")
}

impl Postgres {
    /// Starts a cluster, or shares the one that runs; none, and a line that says so, where there is no PostgreSQL. In CI that is a failure.
    pub(crate) fn start() -> Option<Arc<Self>> {
        static RUNNING: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = running.upgrade() {
            return Some(shared);
        }
        let Some(programs) = programs() else {
            assert!(!is_ci(), "CI has to have PostgreSQL's programs");
            eprintln!("missed: there is no initdb in /usr/lib/postgresql/*/bin or in PATH, so nothing was tried on PostgreSQL");
            return None;
        };
        let started = Arc::new(Self::start_new(programs));
        *running = Arc::downgrade(&started);
        Some(started)
    }

    fn start_new(programs: PathBuf) -> Self {
        // PostgreSQL refuses to run as root.
        let user = geteuid().is_root().then(|| user_ids("postgres"));
        let directory = tempfile::tempdir().unwrap();
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let data = directory.path().join("data");
        let mut initdb = as_user(&programs.join("initdb"), user, directory.path());
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "-D"]).arg(&data);
        let made = initdb.output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));

        let mut postgres = as_user(&programs.join("postgres"), user, directory.path());
        postgres.arg("-D").arg(&data).arg("-k").arg(directory.path()).args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        let mut server = postgres.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("ready to accept connections"));
        assert!(ready, "PostgreSQL ended before it was ready");
        // Its log is read on, so that it never waits for a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { programs, user, directory, server, databases: AtomicU32::new(0) }
    }

    /// Makes an empty database and answers its URL.
    pub(crate) fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut createdb = as_user(&self.programs.join("createdb"), self.user, self.directory.path());
        let made = createdb.args(["-U", "postgres", "-h"]).arg(self.directory.path()).arg(&name).output().unwrap();
        assert!(made.status.success(), "createdb: {}", String::from_utf8_lossy(&made.stderr));
        format!("postgres://postgres@localhost/{name}?host={}", self.directory.path().display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.server), Signal::INT);
        let _ = self.server.wait();
    }
}

fn as_user(program: &Path, user: Option<(u32, u32)>, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    versions.chain(std::env::split_paths(&path)).find(|directory| directory.join("initdb").exists())
}

fn user_ids(name: &str) -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let fields: Vec<&str> = users.lines().map(|line| line.split(':').collect()).find(|fields: &Vec<&str>| fields[0] == name).unwrap();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}
