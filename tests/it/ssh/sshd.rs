//! A real sshd on loopback, with keys of its own in a directory of its own.

#![expect(clippy::disallowed_methods, reason = "only the environment says where programs are")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use muster::link::ssh::host::{Host, HostKey};
use muster::link::ssh::login::{Identity, Settings};
use rustix::process::{Pid, Signal, geteuid, getuid, kill_process};
use tempfile::TempDir;

use crate::postgres::is_ci;

/// One running sshd, ended with all that it started when it is dropped.
pub(crate) struct Sshd {
    /// Its directory. Commands have it as their home, so that no shell reads a profile of the machine's.
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    daemon: Child,
}

impl Sshd {
    /// Starts one with an Ed25519 and an ECDSA host key that lets the key `client` in as the user who runs the tests; `more` is added to its
    /// configuration. None, and a line that says so, where there is no OpenSSH. In CI that is a failure.
    pub(crate) fn start(more: &str) -> Option<Self> {
        Self::with(more, |_| {})
    }

    /// The same, after `prepare` did something in its directory: a host key that it makes is used, too. In `more`, `DIR` is the directory.
    pub(crate) fn with(more: &str, prepare: impl FnOnce(&Path)) -> Option<Self> {
        let sshd = program("sshd")?;
        let dir = keys("client")?;
        let path = dir.path();
        for kind in ["ed25519", "ecdsa"] {
            keygen(path, &["-t", kind, "-f", &format!("host_{kind}")]);
        }
        fs::copy(path.join("client.pub"), path.join("authorized_keys")).unwrap();
        prepare(path);
        if geteuid().is_root() {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let at = path.display();
        let keys = ["ed25519", "ecdsa", "rsa"].map(|kind| format!("{at}/host_{kind}")).into_iter();
        let keys = keys.filter(|key| !more.contains("HostKey ") && Path::new(key).exists()).map(|key| format!("HostKey {key}\n"));
        let mut config = format!(
            "ListenAddress 127.0.0.1\n{}AuthorizedKeysFile {at}/authorized_keys\nSetEnv HOME={at}\nUsePAM no\nStrictModes no\nPidFile none\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nPermitUserRC no\n\
             MaxStartups 100\nLogLevel VERBOSE\n{}\n",
            keys.collect::<String>(),
            more.replace("DIR", &at.to_string())
        );
        let file = path.join("sshd_config");
        fs::write(&file, &config).unwrap();
        // Newer ones keep out for a while who failed to log in.
        let penalties = "PerSourcePenalties no";
        if Command::new(&sshd).args(["-t", "-o", penalties, "-f"]).arg(&file).output().unwrap().status.success() {
            config.push_str(penalties);
            fs::write(&file, config).unwrap();
        }
        // Somebody else may take the port first.
        let (port, daemon) = (0..10).find_map(|_| listen(&sshd, path)).unwrap_or_else(|| panic!("sshd does not start: {}", log(path)));
        Some(Self { dir, port, daemon })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn host(&self) -> Host {
        format!("127.0.0.1:{}", self.port).parse().unwrap()
    }

    pub(crate) fn key(&self, name: &str) -> HostKey {
        fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap().parse().unwrap()
    }

    pub(crate) fn settings(&self) -> Settings {
        settings(&user_name(), self.identity("client"))
    }

    pub(crate) fn identity(&self, name: &str) -> Identity {
        Identity { key: self.path(name), certificate: None }
    }

    /// Writes a file of known hosts; `HOST` stands for this one, `HOST_ED25519` and so on for keys.
    pub(crate) fn known_hosts(&self, text: &str) -> PathBuf {
        let mut text = text.to_owned();
        for name in ["host_ed25519", "host_ecdsa", "host_rsa", "other", "host_ca"] {
            if self.path(name).exists() {
                text = text.replace(&name.to_uppercase(), &self.key(name).to_string());
            }
        }
        let file = self.path("known_hosts");
        fs::write(&file, text.replace("HOST", &format!("[127.0.0.1]:{}", self.port))).unwrap();
        file
    }

    pub(crate) fn log(&self) -> String {
        log(self.dir.path())
    }

    /// The processes that serve connections now: the children of the daemon.
    pub(crate) fn sessions(&self) -> Vec<Pid> {
        children(Pid::from_child(&self.daemon))
    }

    /// Kills what serves connections, and the commands that it started.
    pub(crate) fn kill_sessions(&self) {
        let mut found = self.sessions();
        while let Some(process) = found.pop() {
            found.extend(children(process));
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill_sessions();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Starts the daemon on a free port; none if it ended.
fn listen(sshd: &Path, dir: &Path) -> Option<(u16, Child)> {
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let file = fs::File::create(dir.join("log")).unwrap();
    let mut daemon = Command::new(sshd);
    daemon.args(["-D", "-e", "-p", &port.to_string(), "-f"]).arg(dir.join("sshd_config")).stdin(Stdio::null()).stderr(file);
    let mut daemon = daemon.spawn().unwrap();
    let began = Instant::now();
    while !log(dir).contains("Server listening on") {
        if daemon.try_wait().unwrap().is_some() {
            return None;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "sshd does not listen: {}", log(dir));
        std::thread::sleep(Duration::from_millis(5));
    }
    Some((port, daemon))
}

/// A directory with one private key of this name; none where there is no OpenSSH.
pub(crate) fn keys(name: &str) -> Option<TempDir> {
    program("ssh-keygen")?;
    let dir = tempfile::tempdir().unwrap();
    keygen(dir.path(), &["-t", "ed25519", "-f", name]);
    Some(dir)
}

pub(crate) fn settings(user: &str, identity: Identity) -> Settings {
    Settings {
        user: user.into(),
        identities: vec![identity],
        agent: None,
        known_hosts: None,
        authorities: Vec::new(),
        first_use: false,
        networks: Some(vec!["127.0.0.0/8".parse().unwrap()]),
        connect_timeout: Duration::from_secs(20),
        keepalive_interval: Duration::from_secs(10),
    }
}

/// Runs `ssh-keygen` in a directory. A key that it makes has no passphrase, unless it is told one.
pub(crate) fn keygen(dir: &Path, args: &[&str]) {
    let mut keygen = Command::new("ssh-keygen");
    keygen.arg("-q").args(args).current_dir(dir).stdin(Stdio::null());
    if args.contains(&"-t") && !args.contains(&"-s") && !args.contains(&"-N") {
        keygen.args(["-N", ""]);
    }
    let done = keygen.output().unwrap();
    assert!(done.status.success(), "ssh-keygen {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Where a program is. In CI it has to be there; else a line says that it is missed.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let found = places.map(|directory| directory.join(name)).find(|program| program.exists());
    if found.is_none() {
        assert!(!is_ci(), "CI has to have {name}");
        eprintln!("missed: there is no {name}, so what needs it was not tried");
    }
    found
}

fn log(dir: &Path) -> String {
    String::from_utf8_lossy(&fs::read(dir.join("log")).unwrap()).into_owned()
}

/// Who runs the tests.
pub(crate) fn user_name() -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let id = getuid().as_raw().to_string();
    let mut users = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    users.find(|fields| fields.get(2) == Some(&id.as_str())).unwrap()[0].to_owned()
}

fn children(of: Pid) -> Vec<Pid> {
    let of = of.as_raw_nonzero();
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().unwrap())).collect()
}
