//! As whom the server comes.

use std::fs;
use std::process::{Command, Stdio};

use muster::link::ssh::error::SshError;
use muster::link::ssh::login::{Identity, Settings};
use muster::link::ssh::transport::{Connection, Event, connect};

use super::sshd::{Sshd, keygen, program, user_name};

async fn dial(sshd: &Sshd, settings: &Settings) -> Result<Connection, SshError> {
    let key = sshd.key("host_ed25519");
    connect(settings, &sshd.host(), Some(&key), None).await.map(|(connection, _)| connection)
}

async fn error(sshd: &Sshd, settings: &Settings) -> String {
    let error = dial(sshd, settings).await.unwrap_err();
    assert!(error.is_lasting(), "{error}");
    let user = format!(" {} ", settings.user);
    error
        .to_string()
        .replace(&user, " USER ")
        .replace(&sshd.dir.path().display().to_string(), "DIR")
        .replace(&sshd.port.to_string(), "PORT")
}

#[tokio::test]
async fn a_key_without_a_passphrase_lets_in() {
    let Some(sshd) = Sshd::start("") else { return };
    let user = sshd.settings().user;
    let mut exec = dial(&sshd, &sshd.settings()).await.unwrap().exec("echo $USER; exit 7").await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = exec.next().await.unwrap() {
        events.push(event);
    }
    assert!(events.contains(&Event::Stdout(format!("{user}\n").into())), "{events:?}");
    assert!(events.contains(&Event::Exit(7)), "{events:?}");
}

#[tokio::test]
async fn keys_of_every_kind_and_form_let_in() {
    let Some(sshd) = Sshd::start("") else { return };
    for (name, args) in [
        ("rsa", &["-t", "rsa", "-b", "2048"][..]),
        ("rsa_pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("ecdsa", &["-t", "ecdsa"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("p384_pkcs8", &["-t", "ecdsa", "-b", "384", "-m", "PKCS8"]),
    ] {
        keygen(sshd.dir.path(), &[args, &["-f", name]].concat());
        fs::copy(sshd.path(&format!("{name}.pub")), sshd.path("authorized_keys")).unwrap();
        let mut settings = sshd.settings();
        settings.identities = vec![sshd.identity(name)];
        dial(&sshd, &settings).await.unwrap_or_else(|error| panic!("{name}: {error} {}", sshd.log()));
    }
}

#[tokio::test]
async fn a_certificate_lets_in_where_its_key_alone_does_not() {
    for kind in ["ed25519", "rsa", "ecdsa"] {
        let Some(sshd) = Sshd::with("TrustedUserCAKeys DIR/user_ca.pub", |dir| {
            keygen(dir, &["-t", "ed25519", "-f", "user_ca"]);
            keygen(dir, &["-t", kind, "-f", "certified"]);
            keygen(dir, &["-s", "user_ca", "-I", "id", "-n", &user_name(), "certified.pub"]);
        }) else {
            return;
        };
        let mut settings = sshd.settings();
        settings.identities = vec![Identity { key: sshd.path("certified"), certificate: Some(sshd.path("certified-cert.pub")) }];
        dial(&sshd, &settings).await.unwrap_or_else(|error| panic!("{kind}: {error} {}", sshd.log()));
        settings.identities = vec![sshd.identity("certified")];
        let error = error(&sshd, &settings).await;
        assert_eq!(error, "127.0.0.1:PORT does not let USER in: tried the key DIR/certified; it takes publickey");
    }
}

#[tokio::test]
async fn certificates_that_can_not_be_used_are_named() {
    let Some(sshd) = Sshd::with("", |dir| {
        keygen(dir, &["-t", "ed25519", "-f", "other"]);
        keygen(dir, &["-t", "ed25519", "-f", "user_ca"]);
        keygen(dir, &["-s", "user_ca", "-I", "id", "-n", &user_name(), "-V", "-2d:-1d", "client.pub"]);
        keygen(dir, &["-s", "user_ca", "-I", "id", "-n", &user_name(), "other.pub"]);
    }) else {
        return;
    };
    let mut settings = sshd.settings();
    for (file, problem) in [
        ("client-cert.pub", "DIR/client-cert.pub is a certificate that is not valid now"),
        ("other-cert.pub", "DIR/other-cert.pub is a certificate for another key than DIR/client"),
        ("client.pub", "DIR/client.pub is no OpenSSH user certificate"),
        ("none", "DIR/none can not be read"),
    ] {
        settings.identities = vec![Identity { key: sshd.path("client"), certificate: Some(sshd.path(file)) }];
        assert_eq!(error(&sshd, &settings).await, problem);
    }
}

#[tokio::test]
async fn key_files_that_can_not_be_used_are_named() {
    let Some(sshd) = Sshd::with("", |dir| {
        keygen(dir, &["-t", "ed25519", "-N", "secret", "-f", "encrypted"]);
        keygen(dir, &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "secret", "-f", "encrypted_pem"]);
        keygen(dir, &["-t", "rsa", "-b", "2048", "-m", "PKCS8", "-N", "secret", "-f", "encrypted_pkcs8"]);
        fs::write(dir.join("empty"), "").unwrap();
        fs::write(dir.join("huge"), "x".repeat(70_000)).unwrap();
    }) else {
        return;
    };
    let mut settings = sshd.settings();
    let encrypted = "is encrypted: give the server a key without a passphrase, or load it into an ssh-agent and name its socket";
    for (file, problem) in [
        ("encrypted", encrypted),
        ("encrypted_pem", encrypted),
        ("encrypted_pkcs8", encrypted),
        ("empty", "is no private key that OpenSSH wrote"),
        ("client.pub", "is no private key that OpenSSH wrote"),
        ("huge", "has more than 65536 bytes"),
        ("none", "can not be read"),
    ] {
        settings.identities = vec![sshd.identity(file)];
        assert_eq!(error(&sshd, &settings).await, format!("DIR/{file} {problem}"));
    }
    settings.identities.clear();
    let none = "there is no key to offer to 127.0.0.1:PORT: the configuration names none, and no ssh-agent holds one";
    assert_eq!(error(&sshd, &settings).await, none);
}

#[tokio::test]
async fn who_is_not_let_in_hears_what_was_tried() {
    let Some(sshd) = Sshd::with("", |dir| keygen(dir, &["-t", "ed25519", "-f", "other"])) else { return };
    let mut settings = sshd.settings();
    settings.identities = vec![sshd.identity("other")];
    let refused = "127.0.0.1:PORT does not let USER in: tried the key DIR/other; it takes publickey";
    assert_eq!(error(&sshd, &settings).await, refused);
    let user = std::mem::replace(&mut settings.user, "nobody-of-that-name".into());
    assert_eq!(error(&sshd, &settings).await, refused);
    // Two keys, of which the second is right.
    settings.user = user;
    settings.identities.push(sshd.identity("client"));
    dial(&sshd, &settings).await.unwrap();
}

#[tokio::test]
async fn a_host_that_has_enough_of_it_is_quoted() {
    let Some(sshd) = Sshd::with("MaxAuthTries 2", |dir| {
        for name in ["a", "b", "c", "d"] {
            keygen(dir, &["-t", "ed25519", "-f", name]);
        }
    }) else {
        return;
    };
    let mut settings = sshd.settings();
    settings.identities = ["a", "b", "c", "d"].map(|name| sshd.identity(name)).into();
    let error = error(&sshd, &settings).await;
    assert!(error.ends_with("it said: Too many authentication failures"), "{error}");
}

/// An ssh-agent, ended with its fixture.
struct Agent(std::process::Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn the_keys_of_an_ssh_agent_let_in() {
    if program("ssh-agent").is_none() {
        return;
    }
    for kind in ["ed25519", "rsa"] {
        let Some(sshd) = Sshd::with("TrustedUserCAKeys DIR/user_ca.pub", |dir| {
            keygen(dir, &["-t", kind, "-f", "held"]);
            keygen(dir, &["-t", "ed25519", "-f", "user_ca"]);
        }) else {
            return;
        };
        let socket = sshd.path("agent");
        let mut settings = sshd.settings();
        settings.agent = Some(socket.clone());
        settings.identities.clear();
        let gone = dial(&sshd, &settings).await.unwrap_err();
        assert_eq!(gone.to_string(), format!("the ssh-agent at {} does not answer", socket.display()));
        assert!(!gone.is_lasting());

        let _agent = Agent(Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap());
        while !socket.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(error(&sshd, &settings).await.starts_with("there is no key to offer"));
        let add = |name: &str| {
            let added = Command::new("ssh-add").arg("-q").arg(sshd.path(name)).env("SSH_AUTH_SOCK", &socket).status().unwrap();
            assert!(added.success());
        };
        add("held");
        assert!(error(&sshd, &settings).await.contains("tried the ssh-agent's key SHA256:"));
        // With a certificate beside it, the agent holds both.
        keygen(sshd.dir.path(), &["-s", "user_ca", "-I", "id", "-n", &user_name(), "held.pub"]);
        add("held");
        dial(&sshd, &settings).await.unwrap_or_else(|error| panic!("{kind}: {error} {}", sshd.log()));
        fs::copy(sshd.path("held.pub"), sshd.path("authorized_keys")).unwrap();
        dial(&sshd, &settings).await.unwrap();
    }
}
