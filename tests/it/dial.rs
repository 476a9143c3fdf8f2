//! Agents that the server dials, with a real sshd, from the registration to the launch.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use muster::config::Ssh;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::house::{House, TEAM, claims};
use crate::ssh::sshd::{Sshd, user_name};

/// A server that dials as whoever runs the tests, and has an agent to place.
async fn house(sshd: &Sshd) -> House {
    let ssh = Ssh {
        user: user_name(),
        keys: vec![sshd.path("client")],
        certificate: None,
        agent: None,
        known_hosts: None,
        authorities: Vec::new(),
        first_use: false,
        program: Some(PathBuf::from(env!("CARGO_BIN_EXE_muster-agent"))),
    };
    let house = House::plan().lost_kept_seconds(60).with(|config| config.ssh = Some(ssh)).start().await;
    house.upload("ok").await;
    house
}

fn policy(place_agent: bool) -> Value {
    json!({"team": TEAM, "module": "ok", "launch": {"command": ["/bin/sleep", "1000"]}, "place_agent": place_agent})
}

/// What a machine behind this sshd says of itself.
fn machine(sshd: &Sshd, name: &str, root: &TempDir, key: &str) -> Value {
    let mut claims = claims(name, &["linux"]);
    claims["link"] = "ssh".into();
    claims["root"] = root.path().to_str().unwrap().into();
    claims["address"] = format!("127.0.0.1:{}", sshd.port).into();
    claims["ssh_host_key"] = sshd.key(key).to_string().into();
    claims
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_nothing_but_sshd_is_given_an_agent_and_keeps_what_was_launched_while_the_server_is_away() {
    from_registration_to_the_end(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_nothing_but_sshd_and_a_shell_keeps_what_was_launched_while_the_server_is_away() {
    from_registration_to_the_end(false).await;
}

async fn from_registration_to_the_end(place_agent: bool) {
    let Some(sshd) = Sshd::start("") else { return };
    let mut house = house(&sshd).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    house.apply("linux", policy(place_agent)).await;
    house.client(Some(&token)).post("/v1/register", machine(&sshd, "web-1", &root, "host_ed25519")).await.expect(201);
    let running = |detail: &Value| detail["agent"]["launched"].as_str().is_some_and(|launched| launched.starts_with("running (pid "));
    let ready = house.until_agent("web-1", |detail| detail["agent"]["state"] == "ready" && running(detail)).await;
    let launched = ready["agent"]["launched"].clone();
    house.restart().await;
    let as_before = |detail: &Value| detail["agent"]["launched"] == launched && detail["agent"]["state"] == "ready";
    house.until_agent("web-1", as_before).await;
    // The connection is lost, and dialled again.
    sshd.kill_sessions();
    house.until_agent("web-1", |detail| detail["agent"]["session"] == false).await;
    house.until_agent("web-1", as_before).await;
    assert_eq!(root.path().join(".muster/bin/muster-agent").exists(), place_agent);
    house.admin().delete("/v1/agents/web-1").await.expect(204);
    let pid: u32 = launched.as_str().unwrap().trim_start_matches("running (pid ").trim_end_matches(')').parse().unwrap();
    let gone = async || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(());
    crate::house::eventually(gone).await.expect("what was launched runs still");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_an_agent_of_another_version_is_not_provisioned_beside_it() {
    let Some(sshd) = Sshd::start("") else { return };
    let house = house(&sshd).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    house.apply("linux", policy(false)).await;
    let bin = root.path().join(".muster/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("muster-agent"), "#!/bin/sh\necho muster-agent 0.0.9\n").unwrap();
    fs::set_permissions(bin.join("muster-agent"), fs::Permissions::from_mode(0o755)).unwrap();
    house.client(Some(&token)).post("/v1/register", machine(&sshd, "web-1", &root, "host_ed25519")).await.expect(201);
    let refused = |detail: &Value| {
        let reason = detail["agent"]["reason"].as_str().unwrap();
        reason.contains("muster-agent_0.0.9") && reason.contains("place_agent = true")
    };
    house.until_agent("web-1", refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_key_is_another_is_not_provisioned_and_the_reason_says_so() {
    let Some(sshd) = Sshd::start("") else { return };
    let house = house(&sshd).await;
    house.apply("linux", policy(true)).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    let mut claims = machine(&sshd, "web-1", &root, "host_ed25519");
    claims["ssh_host_key"] = sshd.key("client").to_string().into();
    house.client(Some(&token)).post("/v1/register", claims.clone()).await.expect(201);
    let refused = |detail: &Value| detail["agent"]["reason"].as_str().unwrap().starts_with("it is not reached by ssh: ");
    let told = house.until_agent("web-1", refused).await;
    assert!(told["agent"]["reason"].as_str().unwrap().contains("SHA256:"), "{told}");
    assert!(!root.path().join(".muster").exists());
    for (name, field, wrong) in [("web-2", "address", "-oProxyCommand=id"), ("web-3", "ssh_host_key", "ssh-ed25519 AAAA")] {
        claims["name"] = name.into();
        claims[field] = wrong.into();
        house.client(Some(&token)).post("/v1/register", claims.clone()).await.problem(422);
    }
}
