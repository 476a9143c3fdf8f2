//! Agents that the server dials, with a real sshd, from the registration to the launch.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use muster::config::Ssh;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::Connection as _;
use tempfile::TempDir;

use crate::house::{House, TEAM, claims, eventually};
use crate::ssh::sshd::{Sshd, user_name};

/// A server that dials as whoever runs the tests, and has an agent to place.
async fn house(sshd: &Sshd) -> House {
    house_with(sshd, |_| {}).await
}

async fn house_with(sshd: &Sshd, change: impl FnOnce(&mut Ssh)) -> House {
    let mut ssh = Ssh {
        user: user_name(),
        keys: vec![sshd.path("client")],
        certificate: None,
        agent: None,
        known_hosts: None,
        authorities: Vec::new(),
        first_use: false,
        networks: Some(vec!["127.0.0.0/8".parse().unwrap()]),
        program: Some(PathBuf::from(env!("CARGO_BIN_EXE_muster-agent"))),
    };
    change(&mut ssh);
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

/// The process of what an agent that is ready launched; none if it is not, or launched nothing.
fn launched(detail: &Value) -> Option<u32> {
    let launched = detail["agent"]["launched"].as_str().filter(|_| detail["agent"]["state"] == "ready")?;
    launched.strip_prefix("running (pid ")?.strip_suffix(')')?.parse().ok()
}

/// Waits until an agent is ready and has launched what it had not before; its process.
async fn until_launched(house: &House, name: &str, before: Option<u32>) -> u32 {
    let ready = house.until_agent(name, |detail| launched(detail).is_some_and(|pid| Some(pid) != before)).await;
    launched(&ready).unwrap()
}

async fn until_exists(path: &Path) {
    eventually(async || path.exists().then_some(())).await.unwrap_or_else(|| panic!("{} does not come", path.display()));
}

/// Puts a program in the place of a root's `muster-agent`.
fn install(root: &TempDir, script: &str) {
    let bin = root.path().join(".muster/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("muster-agent"), script).unwrap();
    fs::set_permissions(bin.join("muster-agent"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Sends a signal to the agent that `muster-agent link` started for a root.
fn signal_keeper(root: &TempDir, signal: Signal) {
    let wanted = format!("muster-agent\0keep\0--root\0{}\0", root.path().display());
    let ids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
    let mut keepers = ids.filter(|id| fs::read_to_string(format!("/proc/{id}/cmdline")).is_ok_and(|line| line == wanted));
    kill_process(Pid::from_raw(keepers.next().expect("no agent keeps the root")).unwrap(), signal).unwrap();
}

async fn from_registration_to_the_end(place_agent: bool) {
    let Some(sshd) = Sshd::start("") else { return };
    let mut house = house(&sshd).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    house.apply("linux", policy(place_agent)).await;
    house.client(Some(&token)).post("/v1/register", machine(&sshd, "web-1", &root, "host_ed25519")).await.expect(201);
    let ready = house.until_agent("web-1", |detail| launched(detail).is_some()).await;
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
    eventually(gone).await.expect("what was launched runs still");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_an_agent_of_another_version_is_not_provisioned_beside_it() {
    let Some(sshd) = Sshd::start("") else { return };
    let house = house(&sshd).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    house.apply("linux", policy(false)).await;
    install(&root, "#!/bin/sh\necho muster-agent 0.0.9\n");
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

#[tokio::test(flavor = "multi_thread")]
async fn what_was_launched_is_launched_again_when_the_agent_that_keeps_it_died() {
    let Some(sshd) = Sshd::start("") else { return };
    let mut house = house(&sshd).await;
    house.apply("linux", policy(true)).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    house.client(Some(&token)).post("/v1/register", machine(&sshd, "web-1", &root, "host_ed25519")).await.expect(201);
    let first = until_launched(&house, "web-1", None).await;
    // Its link is open: a crash, and then the end of an agent that says so.
    signal_keeper(&root, Signal::KILL);
    let second = until_launched(&house, "web-1", Some(first)).await;
    signal_keeper(&root, Signal::TERM);
    let third = until_launched(&house, "web-1", Some(second)).await;
    // Nobody dials meanwhile.
    house.stop().await;
    signal_keeper(&root, Signal::KILL);
    house.restart().await;
    let fourth = until_launched(&house, "web-1", Some(third)).await;
    // A person's word holds whatever the machine does.
    house.admin().post("/v1/agents/web-1/drain", json!({"reason": "maintenance"})).await.expect(200);
    signal_keeper(&root, Signal::KILL);
    house.until_agent("web-1", |detail| detail["agent"]["session"] == false).await;
    let drained = house.until_agent("web-1", |detail| detail["agent"]["session"] == true).await;
    assert_eq!(drained["agent"]["state"], "draining", "{drained}");
    house.admin().post("/v1/agents/web-1/provision", json!({})).await.expect(200);
    until_launched(&house, "web-1", Some(fourth)).await;
    house.link("web-1").unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_a_shell_alone_begins_anew_when_it_was_booted_and_when_it_has_an_agent() {
    let Some(sshd) = Sshd::start("") else { return };
    let mut house = house(&sshd).await;
    house.apply("linux", policy(false)).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    house.client(Some(&token)).post("/v1/register", machine(&sshd, "web-1", &root, "host_ed25519")).await.expect(201);
    let first = until_launched(&house, "web-1", None).await;
    house.stop().await;
    let mut database = sqlx::SqliteConnection::connect(&format!("sqlite://{}", house.data().join("muster.db").display())).await.unwrap();
    let sql = "UPDATE agents SET instance = REPLACE(instance, 'boot ', 'boot before ') WHERE instance LIKE 'boot %'";
    assert_eq!(sqlx::query(sql).execute(&mut database).await.unwrap().rows_affected(), 1);
    database.close().await.unwrap();
    house.restart().await;
    let second = until_launched(&house, "web-1", Some(first)).await;
    install(&root, &format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_muster-agent")));
    sshd.kill_sessions();
    until_launched(&house, "web-1", Some(second)).await;
    signal_keeper(&root, Signal::TERM);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_removed_while_it_is_dialled_keeps_no_session() {
    let Some(sshd) = Sshd::start("") else { return };
    let house = house(&sshd).await;
    house.apply("linux", policy(false)).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    let (dialled, go) = (root.path().join("dialled"), root.path().join("go"));
    let wait = format!(": > {}; while [ ! -e {} ]; do sleep 0.02; done", dialled.display(), go.display());
    install(&root, &format!("#!/bin/sh\n[ \"$1\" != link ] || {{ {wait}; }}\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_muster-agent")));
    house.client(Some(&token)).post("/v1/register", machine(&sshd, "web-1", &root, "host_ed25519")).await.expect(201);
    until_exists(&dialled).await;
    house.admin().delete("/v1/agents/web-1").await.expect(204);
    fs::write(&go, "").unwrap();
    eventually(async || sshd.sessions().is_empty().then_some(())).await.expect("the session goes on");
    signal_keeper(&root, Signal::TERM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_trusted_at_its_first_use_is_forgotten_with_the_agent() {
    let Some(sshd) = Sshd::start("") else { return };
    let house = house_with(&sshd, |ssh| ssh.first_use = true).await;
    house.apply("linux", policy(false)).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    // The host had another key before.
    let mut database = sqlx::SqliteConnection::connect(&format!("sqlite://{}", house.data().join("muster.db").display())).await.unwrap();
    let insert = sqlx::query("INSERT INTO ssh_hosts (host, key, since_us) VALUES ($1, $2, 0)").bind(sshd.host().to_string());
    insert.bind(sshd.key("client").to_string()).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
    let mut claims = machine(&sshd, "web-1", &root, "host_ed25519");
    claims.as_object_mut().unwrap().remove("ssh_host_key");
    house.client(Some(&token)).post("/v1/register", claims.clone()).await.expect(201);
    house.until_agent("web-1", |detail| detail["agent"]["reason"].as_str().unwrap().contains("`muster agent remove`")).await;
    house.admin().delete("/v1/agents/web-1").await.expect(204);
    house.client(Some(&token)).post("/v1/register", claims).await.expect(201);
    until_launched(&house, "web-1", None).await;
    house.link("web-1").unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_dialled_where_an_agent_of_others_lives() {
    let Some(sshd) = Sshd::start("") else { return };
    let house = house(&sshd).await;
    house.apply("linux", policy(false)).await;
    let (root, other_root) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let own = house.client(Some(&house.join_token(&["linux"]).await));
    let others = house.client(Some(&house.join_token(&["arm"]).await));
    own.post("/v1/register", machine(&sshd, "web-1", &root, "host_ed25519")).await.expect(201);
    until_launched(&house, "web-1", None).await;
    let mut thief = machine(&sshd, "thief", &other_root, "host_ed25519");
    thief["labels"] = json!(["arm"]);
    let refused = others.post("/v1/register", thief.clone()).await.problem(409);
    assert_eq!(refused["code"], "address-taken");
    assert!(!refused.to_string().contains("web-1"), "{refused}");
    // By another name, or at first at another address, it is let in, and not dialled.
    thief["address"] = format!("localhost:{}", sshd.port).into();
    let registered = others.post("/v1/register", thief.clone()).await.expect(201);
    house.until_agent("thief", |detail| detail["agent"]["reason"].as_str().unwrap().contains(" lives agent `web-1` of others")).await;
    let thief_itself = house.client(registered["credential"].as_str());
    thief["address"] = format!("127.0.0.1:{}", sshd.port).into();
    assert_eq!(thief_itself.post("/v1/register", thief).await.problem(409)["code"], "address-taken");
    assert!(!other_root.path().join(".muster").exists());
    // Its own kin lives there at another root, but not at the same.
    own.post("/v1/register", machine(&sshd, "web-2", &root, "host_ed25519")).await.problem(409);
    own.post("/v1/register", machine(&sshd, "web-2", &other_root, "host_ed25519")).await.expect(201);
    until_launched(&house, "web-2", None).await;
    house.link("web-2").unwrap().stop().await.unwrap();
    house.link("web-1").unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_agent_makes_way_at_its_address_for_its_own_kin_alone() {
    let Some(sshd) = Sshd::start("") else { return };
    let house = house(&sshd).await;
    let root = TempDir::new().unwrap();
    let own = house.client(Some(&house.join_token(&["linux"]).await));
    let others = house.client(Some(&house.join_token(&["arm"]).await));
    let away = |name: &str, label: &str| {
        let mut claims = machine(&sshd, name, &root, "host_ed25519");
        (claims["address"], claims["labels"]) = ("127.0.0.1:1".into(), json!([label]));
        claims
    };
    own.post("/v1/register", away("web-1", "linux")).await.expect(201);
    house.until_state("web-1", "lost").await;
    others.post("/v1/register", away("web-2", "arm")).await.problem(409);
    own.post("/v1/register", away("web-2", "linux")).await.expect(201);
    house.until_state("web-1", "gone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_machine_is_not_reached_is_for_people_and_not_for_the_agent() {
    let Some(sshd) = Sshd::start("") else { return };
    let house = house_with(&sshd, |ssh| ssh.networks = None).await;
    let (root, token) = (TempDir::new().unwrap(), house.join_token(&["linux"]).await);
    let claims = machine(&sshd, "web-1", &root, "host_ed25519");
    let registered = house.client(Some(&token)).post("/v1/register", claims.clone()).await.expect(201);
    let own = house.client(registered["credential"].as_str());
    let told = house.until_agent("web-1", |detail| detail["agent"]["reason"].as_str().unwrap().contains("ssh.networks")).await;
    assert!(told["agent"]["reason"].as_str().unwrap().contains("is at 127.0.0.1"), "{told}");
    let reason = own.post("/v1/register", claims).await.expect(200)["agent"]["reason"].clone();
    assert_eq!(reason, "it is not reached by ssh; an admin sees why");
    assert!(sshd.log().lines().all(|line| !line.starts_with("Connection from")), "{}", sshd.log());
}
