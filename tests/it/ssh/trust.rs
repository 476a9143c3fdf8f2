//! Which hosts are trusted.

use muster::link::ssh::error::{CertificateProblem, HostKeyProblem, SshError};
use muster::link::ssh::host::HostKey;
use muster::link::ssh::login::Settings;
use muster::link::ssh::transport::{Connection, connect};

use super::sshd::{Sshd, keygen};

type Answer = Result<(Connection, Option<HostKey>), SshError>;

async fn dial(sshd: &Sshd, settings: &Settings) -> Answer {
    connect(settings, &sshd.host(), None, None).await
}

fn problem(answer: Answer) -> HostKeyProblem {
    match answer {
        Err(error @ SshError::HostKey { .. }) => {
            assert!(error.is_lasting());
            let SshError::HostKey { problem, .. } = error else { unreachable!() };
            problem
        }
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("it is trusted"),
    }
}

#[tokio::test]
async fn an_unknown_host_is_refused_with_its_fingerprint() {
    let Some(sshd) = Sshd::start("") else { return };
    let HostKeyProblem::Unknown { fingerprint } = problem(dial(&sshd, &sshd.settings()).await) else { panic!() };
    assert_eq!(fingerprint, sshd.key("host_ed25519").fingerprint());
    assert!(!sshd.log().contains("Accepted"), "nothing was offered to it");
}

#[tokio::test]
async fn a_pinned_key_is_found_whatever_its_kind() {
    let Some(sshd) = Sshd::with("", |dir| keygen(dir, &["-t", "rsa", "-b", "2048", "-f", "host_rsa"])) else { return };
    for kind in ["host_ed25519", "host_ecdsa", "host_rsa"] {
        let key = sshd.key(kind);
        let (connection, new) = connect(&sshd.settings(), &sshd.host(), Some(&key), None).await.unwrap();
        assert_eq!(new, None);
        connection.close().await;
    }
}

#[tokio::test]
async fn another_key_than_the_pinned_one_is_refused_even_if_all_else_would_trust_it() {
    let Some(sshd) = Sshd::with("", |dir| keygen(dir, &["-t", "ed25519", "-f", "other"])) else { return };
    let mut settings = sshd.settings();
    settings.first_use = true;
    settings.known_hosts = Some(sshd.known_hosts("HOST HOST_ED25519\n"));
    let (pinned, actual) = (sshd.key("other"), sshd.key("host_ed25519"));
    let answer = connect(&settings, &sshd.host(), Some(&pinned), Some(&actual)).await;
    let HostKeyProblem::Changed { fingerprint, expected, .. } = problem(answer) else { panic!() };
    assert_eq!((fingerprint, expected), (actual.fingerprint(), pinned.fingerprint()));
}

#[tokio::test]
async fn a_host_without_a_key_of_the_pinned_kind_is_refused() {
    let Some(sshd) = Sshd::start("HostKey DIR/host_ecdsa") else { return };
    let pinned = sshd.key("host_ed25519");
    let answer = connect(&sshd.settings(), &sshd.host(), Some(&pinned), None).await;
    let HostKeyProblem::NotOffered { expected, offered, .. } = problem(answer) else { panic!() };
    assert_eq!(expected, pinned.fingerprint());
    assert!(offered.contains("ecdsa-sha2-nistp256"), "{offered}");
}

#[tokio::test]
async fn the_first_use_hands_back_a_key_that_counts_from_then_on() {
    let Some(sshd) = Sshd::start("") else { return };
    let mut settings = sshd.settings();
    settings.first_use = true;
    let (_connection, new) = dial(&sshd, &settings).await.unwrap();
    let key = new.unwrap();
    assert_eq!(key, sshd.key("host_ed25519"));
    assert_eq!(key.to_string().parse::<HostKey>().unwrap(), key);

    let (_connection, new) = connect(&settings, &sshd.host(), None, Some(&key)).await.unwrap();
    assert_eq!(new, None);
}

#[tokio::test]
async fn a_changed_key_is_refused_even_on_first_use() {
    let Some(sshd) = Sshd::with("", |dir| keygen(dir, &["-t", "ed25519", "-f", "other"])) else { return };
    let mut settings = sshd.settings();
    settings.first_use = true;
    let answer = connect(&settings, &sshd.host(), None, Some(&sshd.key("other"))).await;
    assert!(matches!(problem(answer), HostKeyProblem::Changed { .. }));

    settings.known_hosts = Some(sshd.known_hosts("HOST OTHER\n"));
    assert!(matches!(problem(dial(&sshd, &settings).await), HostKeyProblem::Changed { .. }));
}

#[tokio::test]
async fn known_hosts_count_by_name_pattern_hash_and_port() {
    let Some(sshd) = Sshd::with("", |dir| keygen(dir, &["-t", "ed25519", "-f", "other"])) else { return };
    let mut settings = sshd.settings();
    for text in ["HOST HOST_ED25519 comment\n", "# HOST OTHER\n\nexample.com OTHER\nx,HOST\tHOST_ECDSA\n", "[127.0.0.?]:* HOST_ECDSA\n"] {
        settings.known_hosts = Some(sshd.known_hosts(text));
        dial(&sshd, &settings).await.unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    settings.known_hosts = Some(sshd.known_hosts("HOST HOST_ED25519\n"));
    keygen(sshd.dir.path(), &["-H", "-f", "known_hosts"]);
    assert!(std::fs::read_to_string(sshd.path("known_hosts")).unwrap().starts_with("|1|"));
    dial(&sshd, &settings).await.unwrap();

    // The plain name is the host on port 22, and what is taken out is out.
    for text in ["127.0.0.1 HOST_ED25519\n", "!HOST,[127.*]:* HOST_ED25519\n", "HOST ssh-dss AAAA\nHOST 1024 35 123\n"] {
        settings.known_hosts = Some(sshd.known_hosts(text));
        assert!(matches!(problem(dial(&sshd, &settings).await), HostKeyProblem::Unknown { .. }), "{text}");
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_even_if_it_is_pinned() {
    let Some(sshd) = Sshd::start("") else { return };
    let mut settings = sshd.settings();
    settings.first_use = true;
    settings.known_hosts = Some(sshd.known_hosts("HOST HOST_ED25519\n@revoked * HOST_ED25519\n"));
    assert!(matches!(problem(dial(&sshd, &settings).await), HostKeyProblem::Revoked { line: 2, .. }));
    let answer = connect(&settings, &sshd.host(), Some(&sshd.key("host_ed25519")), None).await;
    assert!(matches!(problem(answer), HostKeyProblem::Revoked { line: 2, .. }));
}

#[tokio::test]
async fn a_key_of_a_kind_that_is_not_asked_for_can_be_revoked() {
    const OTHER_KIND: &str =
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gAAAABHNzaDo=";
    let Some(sshd) = Sshd::start("") else { return };
    let mut settings = sshd.settings();
    settings.known_hosts = Some(sshd.known_hosts(&format!("HOST HOST_ED25519\n@revoked * {OTHER_KIND}\n")));
    dial(&sshd, &settings).await.unwrap();
}

#[tokio::test]
async fn a_line_with_a_marker_that_can_not_be_read_is_not_passed_over() {
    let Some(sshd) = Sshd::start("") else { return };
    let mut settings = sshd.settings();
    settings.known_hosts = Some(sshd.known_hosts("HOST HOST_ED25519\n@revoked * ssh-ed25519 nonsense\n"));
    let error = dial(&sshd, &settings).await.unwrap_err();
    assert!(error.is_lasting());
    assert!(error.to_string().ends_with("known_hosts has a line with a marker that is no known host, line 2"), "{error}");
}

/// An sshd whose Ed25519 key is certified for these principals, with these options more.
fn certified(principals: &str, options: &[&str]) -> Option<Sshd> {
    Sshd::with("HostKey DIR/host_ed25519\nHostCertificate DIR/host_ed25519-cert.pub", |dir| {
        keygen(dir, &["-t", "ed25519", "-f", "host_ca"]);
        keygen(dir, &["-t", "ed25519", "-f", "other"]);
        let mut args = vec!["-s", "host_ca", "-I", "id", "-h", "-n", principals];
        args.extend(options);
        args.push("host_ed25519.pub");
        keygen(dir, &args);
    })
}

#[tokio::test]
async fn a_certificate_of_a_trusted_authority_is_enough() {
    for principals in ["127.0.0.1", "example.com,127.0.0.*"] {
        let Some(sshd) = certified(principals, &[]) else { return };
        let mut settings = sshd.settings();
        settings.authorities = vec![sshd.key("host_ca")];
        let (_connection, new) = dial(&sshd, &settings).await.unwrap();
        assert_eq!(new, None);

        settings.authorities.clear();
        settings.known_hosts = Some(sshd.known_hosts("@cert-authority 127.0.0.* HOST_CA\n"));
        dial(&sshd, &settings).await.unwrap();

        // A key that is known counts, whoever signed the certificate around it.
        settings.known_hosts = Some(sshd.known_hosts("@cert-authority * OTHER\nHOST HOST_ED25519\n"));
        dial(&sshd, &settings).await.unwrap();

        // Without a trusted authority, no certificate is asked for.
        settings.known_hosts = None;
        assert!(matches!(problem(dial(&sshd, &settings).await), HostKeyProblem::Unknown { .. }));
        dial(&sshd, &Settings { first_use: true, ..settings }).await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_is_refused_even_on_first_use() {
    let check = async |sshd: &Sshd, authority: &str| {
        let mut settings = sshd.settings();
        settings.authorities = vec![sshd.key(authority)];
        settings.first_use = true;
        match problem(dial(sshd, &settings).await) {
            HostKeyProblem::Certificate { problem, .. } => problem,
            other => panic!("{other}"),
        }
    };
    let Some(other) = certified("example.com", &[]) else { return };
    assert_eq!(check(&other, "host_ca").await, CertificateProblem::Principal { principals: "example.com".into() });
    assert!(matches!(check(&other, "other").await, CertificateProblem::Authority { .. }));
    assert_eq!(check(&certified("127.0.0.1", &["-V", "-2d:-1d"]).unwrap(), "host_ca").await, CertificateProblem::NotNow);
    assert_eq!(check(&certified("127.0.0.1", &["-V", "+1d:+2d"]).unwrap(), "host_ca").await, CertificateProblem::NotNow);
    assert_eq!(check(&certified("127.0.0.1", &["-O", "critical:x@y"]).unwrap(), "host_ca").await, CertificateProblem::Option);
}

#[tokio::test]
async fn a_revoked_authority_is_no_authority() {
    let Some(sshd) = certified("127.0.0.1", &[]) else { return };
    let mut settings = sshd.settings();
    settings.known_hosts = Some(sshd.known_hosts("@cert-authority * HOST_CA\n@revoked * HOST_CA\n"));
    assert!(matches!(problem(dial(&sshd, &settings).await), HostKeyProblem::Revoked { line: 2, .. }));
}

#[tokio::test]
async fn rsa_certificates_hold_with_sha2_alone() {
    for (hash, good) in [("rsa-sha2-512", true), ("ssh-rsa", false)] {
        let Some(sshd) = Sshd::with("HostKey DIR/host_rsa\nHostCertificate DIR/host_rsa-cert.pub", |dir| {
            for key in ["host_ca", "host_rsa"] {
                keygen(dir, &["-t", "rsa", "-b", "2048", "-f", key]);
            }
            keygen(dir, &["-t", hash, "-s", "host_ca", "-I", "id", "-h", "-n", "127.0.0.1", "host_rsa.pub"]);
        }) else {
            return;
        };
        let mut settings = sshd.settings();
        settings.authorities = vec![sshd.key("host_ca")];
        let answer = dial(&sshd, &settings).await;
        if good {
            answer.unwrap();
        } else {
            let problem = problem(answer);
            assert!(matches!(problem, HostKeyProblem::Certificate { problem: CertificateProblem::Signature, .. }), "{problem}");
        }
    }
}
