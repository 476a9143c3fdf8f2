//! The URLs of DynaSlave and of the Swarm plugin, called as their scripts and clients do.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use muster::config::Config;
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{House, Plan, eventually};

/// A server that dials with a key that is not there, so that no machine is reached.
const SSH: &str = "[ssh]\nuser = \"builds\"\nkeys = [\"/nowhere/key\"]\n";
const DYNASLAVE: &str = "[compat.dynaslave]\nteam = \"media\"\nlabels = [\"StandardSlave\", \"linux\"]\ndefault_labels = [\"dynamic\"]\n\
    networks = [\"127.0.0.1/32\"]\nany_host = true\n";
const SWARM: &str = "[compat.swarm]\nteam = \"media\"\nlabels = [\"linux\", \"large\"]\ndefault_labels = [\"swarm\"]\n\
    networks = [\"127.0.0.0/8\"]\n";

/// A server to be started with these sections beside `[ssh]`.
fn plan(sections: &str) -> Plan {
    let config: Config = toml::from_str(&format!("{SSH}{sections}")).unwrap();
    House::plan().poll(Duration::from_secs(600)).with(move |it| (it.ssh, it.compat) = (config.ssh, config.compat))
}

/// What the plugin's script asks for a machine, with more at the end.
fn create(name: &str, host: &str, more: &str) -> String {
    format!("/plugin/dynaslave/createSlave?executors=4&remoteFsRoot=/apps/jenkins/slave&name={name}&hostname={host}{more}")
}

async fn names(house: &House) -> Vec<String> {
    let agents = house.admin().get("/v1/agents").await.expect(200);
    agents["items"].as_array().unwrap().iter().map(|agent| agent["name"].as_str().unwrap().to_owned()).collect()
}

async fn id_of(house: &House, name: &str) -> String {
    house.admin().get(&format!("/v1/agents/{name}")).await.expect(200)["agent"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_their_sections_the_urls_are_not_there() {
    let house = House::start().await;
    let nobody = house.client(None);
    for path in [create("web-1", "127.0.0.1", "&labels=linux"), "/computer/web-1".into(), "/computer/web-1/".into()] {
        let problem = nobody.get(&path).await.problem(404);
        assert_eq!((&problem["code"], &problem["hint"]), (&json!("no-route"), &json!("an admin adds `[compat.dynaslave]` to muster.toml")));
    }
    for path in ["createSlave", "addSlaveLabels", "removeSlaveLabels"] {
        nobody.send(Method::POST, &format!("/plugin/swarm/{path}?name=web-1"), &[], "").await.problem(404);
    }
    nobody.get("/plugin/swarm/getSlaveLabels?name=web-1").await.problem(404);
}

/// What the plugin's sample script does: asks for the computer, makes it if that fails, and asks again.
const SCRIPT: &str = r#"
hostname=dynaslave-build7
curl -f --silent ${buildhost}/computer/${hostname} && exit 3
curl -f --silent "${buildhost}/plugin/dynaslave/createSlave?executors=4&remoteFsRoot=/apps/jenkins/slave&name=${hostname#dynaslave-}&hostname=127.0.0.1&labels=StandardSlave+linux"
echo "made: $?"
curl -f --silent ${buildhost}/computer/${hostname}
echo "there: $?"
curl -f --silent ${buildhost}/computer/${hostname}/
echo "there: $?"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_register_script_of_dynaslave_works_unchanged() {
    if crate::ssh::sshd::program("curl").is_none() {
        return;
    }
    let house = plan(DYNASLAVE).start().await;
    let mut script = tokio::process::Command::new("sh");
    script.args(["-c", SCRIPT]).env("buildhost", house.url()).env("NO_PROXY", "*").stdin(Stdio::null());
    let done = script.output().await.unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    let there = "dynaslave-build7 is registered\nthere: 0\n";
    assert_eq!(said, format!("made: 0\n{there}{there}"));
    let detail = house
        .until_agent("dynaslave-build7", |detail| detail["agent"]["reason"].as_str().unwrap().starts_with("it is not reached by ssh: "))
        .await;
    assert_eq!(detail["agent"]["state"], "registered");
    assert_eq!(detail["agent"]["labels"], json!(["StandardSlave", "linux", "dynamic"]));
    let said = &detail["agent"];
    for (field, value) in [("address", "127.0.0.1"), ("os", "linux"), ("arch", "unknown"), ("root", "/apps/jenkins/slave")] {
        assert_eq!(said[field], value, "{said}");
    }
    assert_eq!(said["executors"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_script_says_is_taken_from_a_query_or_a_form_and_what_it_leaves_out_has_a_meaning() {
    let house = plan(DYNASLAVE).start().await;
    let nobody = house.client(None);
    // The plugin's script sends a name that has the prefix, and an address that its sample never sets.
    let answer = nobody.get(&create("dynaslave-build7", "", "&description=rack%204&mode=odd")).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, ""));
    let form = "name=build8&hostname=Build8.Example&executors=1&remoteFsRoot=/srv&labels=%20linux%20%20linux";
    let kind = [("content-type", "application/x-www-form-urlencoded; charset=UTF-8")];
    assert_eq!(nobody.send(Method::POST, "/plugin/dynaslave/createSlave", &kind, form).await.status, 200);
    let first = house.admin().get("/v1/agents/dynaslave-build7").await.expect(200);
    assert_eq!(first["agent"]["labels"], json!(["dynamic"]));
    assert_eq!((&first["agent"]["address"], &first["agent"]["attributes"]["description"]), (&json!("127.0.0.1"), &json!("rack 4")));
    let second = house.admin().get("/v1/agents/dynaslave-build8").await.expect(200);
    assert_eq!(second["agent"]["address"], "build8.example");
    assert_eq!(second["agent"]["labels"], json!(["linux", "dynamic"]));
    let plain = plan(&format!("{DYNASLAVE}prefix = \"\"\n")).start().await;
    plain.client(None).get(&create("build7", "build7", "")).await.done();
    assert_eq!(names(&plain).await, ["build7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_network_that_is_not_listed_nothing_is_answered() {
    let sections = format!("{DYNASLAVE}{SWARM}").replace("127.0.0.1/32", "192.0.2.0/24").replace("127.0.0.0/8", "::1/128");
    let house = plan(&sections).start().await;
    house.register("web-1", &["linux"]).await;
    let forged = [("x-forwarded-for", "192.0.2.7"), ("forwarded", "for=192.0.2.7"), ("x-real-ip", "192.0.2.7")];
    for path in [create("build7", "build7", "&labels=linux"), "/computer/web-1".into(), "/plugin/swarm/getSlaveLabels?name=web-1".into()] {
        let problem = house.admin().send(Method::GET, &path, &forged, "").await.problem(403);
        assert_eq!(
            (&problem["code"], &problem["detail"]),
            (&json!("network"), &json!("127.0.0.1 is in none of the networks that may call this"))
        );
    }
    for path in ["createSlave?name=a&executors=1&remoteFsRoot=/a", "addSlaveLabels?name=web-1&labels=large", "removeSlaveLabels?name=web-1"]
    {
        house.admin().send(Method::POST, &format!("/plugin/swarm/{path}"), &forged, "").await.problem(403);
    }
    assert_eq!(names(&house).await, ["web-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_token_is_set_a_call_needs_it_and_no_log_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let (token, config) = (directory.path().join("token"), directory.path().join("muster.toml"));
    std::fs::write(&token, "hushhush\n").unwrap();
    let data = directory.path().join("data");
    let text =
        format!("listen = \"127.0.0.1:0\"\ndata = {data:?}\n{SSH}{DYNASLAVE}token_file = {token:?}\n{SWARM}token_file = {token:?}\n");
    std::fs::write(&config, text).unwrap();
    let mut server = tokio::process::Command::new(env!("CARGO_BIN_EXE_muster"));
    server.args(["serve", "--log", "trace", "--config"]).arg(&config).stdin(Stdio::null()).kill_on_drop(true);
    let log = directory.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let mut server = server.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    let read = || std::fs::read_to_string(&log).unwrap();
    let url = eventually(async || url_in(&read())).await.unwrap_or_else(|| panic!("no address in {}", read()));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |path: &str, header: Option<&str>| {
        let mut request = http.get(format!("{url}{path}"));
        if let Some(header) = header {
            request = request.header("authorization", header);
        }
        request.send().await.unwrap().status().as_u16()
    };
    let made = create("build7", "127.0.0.1", "&labels=linux");
    for wrong in [None, Some("Bearer other"), Some("Basic aHVzaGh1c2g=")] {
        assert_eq!(ask(&made, wrong).await, 401);
        assert_eq!(ask("/computer/dynaslave-build7?token=wronghush", wrong).await, 401);
    }
    assert_eq!(ask("/computer/dynaslave-build7?token=hushhush", None).await, 404);
    assert_eq!(ask(&format!("{made}&token=hushhush"), None).await, 200);
    assert_eq!(ask("/computer/dynaslave-build7", Some("Bearer hushhush")).await, 200);
    // A mistake beside it does not bring it into the answer or the log.
    assert_eq!(ask(&format!("{made}&token=hushhush&name=twice"), None).await, 400);
    let swarm = http.post(format!("{url}/plugin/swarm/createSlave?name=s&executors=1&remoteFsRoot=/s"));
    assert_eq!(swarm.basic_auth("anybody", Some("hushhush")).send().await.unwrap().status(), 200);
    server.start_kill().unwrap();
    server.wait().await.unwrap();
    let log = read();
    assert!(log.contains("/plugin/dynaslave/createSlave") && log.contains("build7"), "{log}");
    for secret in ["hushhush", "wronghush", "aHVzaGh1c2g", "aHVzaGh1c2"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// The URL at which a server says that it listens.
fn url_in(log: &str) -> Option<String> {
    let rest = log.get(log.find("http://127.0.0.1:")?..)?;
    let end = rest.find(|letter: char| letter.is_whitespace() || matches!(letter, '\u{1b}' | ',' | '"' | '`'))?;
    rest.get(..end).map(ToOwned::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_that_says_nothing_starts_no_server() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty");
    std::fs::write(&empty, " \n").unwrap();
    for (file, problem) in [(empty.as_path(), "is empty"), (Path::new("/nowhere/token"), "can not be read")] {
        let mut config: Config = toml::from_str(&format!("{SSH}{DYNASLAVE}token_file = {file:?}\n")).unwrap();
        config.data = directory.path().join("data");
        let error = muster::server::Server::start(&config, "muster".into()).await.err().unwrap().to_string();
        assert!(error.starts_with("compat.dynaslave.token_file: ") && error.contains(problem), "{error}");
    }
    assert!(!directory.path().join("data").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_are_not_listed_are_refused() {
    let house = plan(&format!("{DYNASLAVE}{SWARM}")).start().await;
    let nobody = house.client(None);
    let problem = nobody.get(&create("build7", "build7", "&labels=linux+secret")).await.problem(403);
    assert_eq!(problem["code"], "labels");
    assert_eq!(problem["detail"], "the label `secret` may not be asked for here");
    nobody.get(&create("build7", "build7", "&labels=linux%0adynamic%00")).await.problem(422);
    nobody.send(Method::POST, "/plugin/swarm/createSlave?name=s&executors=1&remoteFsRoot=/s&labels=secret", &[], "").await.problem(403);
    assert_eq!(names(&house).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_reach_a_command_line_or_leave_its_place_is_refused() {
    let house = plan(DYNASLAVE).start().await;
    let nobody = house.client(None);
    for host in [
        "-oProxyCommand=touch%20/tmp/owned",
        "build7%20-oProxyCommand=id",
        "build7;id",
        "$(id)",
        "%60id%60",
        "root@build7",
        "build7%0aProxyCommand%20id",
        "..",
        "build7:0",
        "build7/x",
        "%00",
        "2130706433",
        "%ff",
    ] {
        let problem = nobody.get(&create("build7", host, "&labels=linux")).await.problem(422);
        assert_eq!(problem["code"], "claim", "{problem}");
        assert!(problem["detail"].as_str().unwrap().starts_with("hostname: "), "{problem}");
    }
    for name in ["", "..", "a/b", "a%20b", "%0a", &"a".repeat(60)] {
        nobody.get(&create(name, "build7", "&labels=linux")).await.problem(422);
    }
    for odd in
        ["executors=0&remoteFsRoot=/a", "executors=1001&remoteFsRoot=/a", "executors=1&remoteFsRoot=a", "executors=1&remoteFsRoot=/a/../b"]
    {
        nobody.get(&format!("/plugin/dynaslave/createSlave?name=a&hostname=a&{odd}")).await.problem(422);
    }
    for odd in ["", "name=a", "name=a&executors=x&remoteFsRoot=/a", "name=a&executors=-1&remoteFsRoot=/a", "name=a&name=b&executors=1"] {
        nobody.get(&format!("/plugin/dynaslave/createSlave?{odd}")).await.problem(400);
    }
    let long = format!("name=a&hostname=a&executors=1&remoteFsRoot=/a&description={}", "d".repeat(1025));
    nobody.get(&format!("/plugin/dynaslave/createSlave?{long}")).await.problem(422);
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    nobody.send(Method::POST, "/plugin/dynaslave/createSlave", &kind, vec![b'a'; 256 * 1024 + 1]).await.problem(413);
    assert_eq!(names(&house).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_has_no_other_host_dialled_than_its_own_unless_an_admin_says_so() {
    let house = plan(&DYNASLAVE.replace("any_host = true\n", "")).start().await;
    let nobody = house.client(None);
    for other in ["127.0.0.2", "10.0.0.7", "127.0.0.2:7700", "[::1]"] {
        let problem = nobody.get(&create("build7", other, "&labels=linux")).await.problem(403);
        assert_eq!((&problem["code"], problem["hint"].as_str().unwrap().contains("any_host")), (&json!("hostname"), true), "{problem}");
    }
    nobody.get(&create("build7", "no-such-host.invalid", "&labels=linux")).await.problem(422);
    assert_eq!(names(&house).await, [""; 0]);
    // What is dialled is its address, whatever the name leads to later.
    nobody.get(&create("build7", "localhost:2222", "&labels=linux")).await.done();
    nobody.get(&create("build7", "127.0.0.1:2222", "&labels=linux")).await.done();
    assert_eq!(house.admin().get("/v1/agents/dynaslave-build7").await.expect(200)["agent"]["address"], "127.0.0.1:2222");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_asks_again_stays_who_it_is_and_a_name_is_not_taken_from_a_living_one() {
    let house = plan(DYNASLAVE).start().await;
    let nobody = house.client(None);
    nobody.get(&create("build7", "build7", "&labels=linux")).await.done();
    let id = id_of(&house, "dynaslave-build7").await;
    nobody.get(&create("build7", "build7", "&labels=linux")).await.done();
    nobody.get(&create("build7", "BUILD7", "&labels=StandardSlave")).await.done();
    let detail = house.admin().get("/v1/agents/dynaslave-build7").await.expect(200);
    assert_eq!((&detail["agent"]["id"], &detail["agent"]["labels"]), (&json!(id), &json!(["StandardSlave", "dynamic"])));
    assert_eq!(nobody.get(&create("build7", "other", "&labels=linux")).await.problem(409)["code"], "name-taken");
    house.register("dynaslave-own", &["linux"]).await;
    nobody.get(&create("own", "own", "&labels=linux")).await.problem(409);
    // What a person decided holds.
    house.admin().post("/v1/agents/dynaslave-build7/quarantine", json!({})).await.done();
    nobody.get(&create("build7", "build7", "&labels=linux")).await.done();
    house.until_state("dynaslave-build7", "quarantined").await;
    assert_eq!(id_of(&house, "dynaslave-build7").await, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_its_computer_is_a_word_of_an_agent_of_dynaslave_alone() {
    let house = plan(DYNASLAVE).poll(Duration::from_millis(100)).start().await;
    let nobody = house.client(None);
    nobody.get(&create("build7", "build7", "")).await.done();
    let own = house.register("web-1", &["linux"]).await;
    assert_eq!(nobody.get("/computer/web-1").await.text, "web-1 is registered\n");
    // Both are asked for equally often; the one that has to poll by itself is lost meanwhile.
    let lost = eventually(async || {
        assert_eq!(nobody.get("/computer/dynaslave-build7").await.status, 200);
        (nobody.get("/computer/web-1").await.status == 404).then_some(())
    });
    assert!(lost.await.is_some(), "an agent that does not poll is not lost");
    own.poll().await.done();
    assert_eq!(nobody.get("/computer/web-1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_agent_of_dynaslave_comes_back_or_its_name_is_taken_or_it_is_given_up() {
    let house =
        plan(&format!("{DYNASLAVE}idle_timeout_seconds = 2\n")).poll(Duration::from_millis(50)).lost_kept_seconds(600).start().await;
    let nobody = house.client(None);
    let script = async |host: &str| nobody.get(&create("build7", host, "&labels=linux")).await.done();
    script("build7").await;
    let first = id_of(&house, "dynaslave-build7").await;
    house.until_state("dynaslave-build7", "lost").await;
    nobody.get("/computer/dynaslave-build7").await.problem(404);
    script("build7").await;
    assert_eq!(id_of(&house, "dynaslave-build7").await, first);
    nobody.get("/computer/dynaslave-build7").await.done();
    house.until_state("dynaslave-build7", "lost").await;
    script("other").await;
    assert_ne!(id_of(&house, "dynaslave-build7").await, first);
    let gone =
        eventually(async || (house.admin().get("/v1/agents/dynaslave-build7").await.body["agent"]["state"] != "registered").then_some(()));
    gone.await.unwrap();
    let listed = eventually(async || names(&house).await.is_empty().then_some(()));
    assert!(listed.await.is_some(), "it is kept for longer than its section says");
}

/// A Swarm client: what it sends to create its agent, from an address of this machine.
async fn swarm(house: &House, from: u8, form: &str) -> (u16, String) {
    let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, from));
    let http = reqwest::Client::builder().no_proxy().local_address(from).build().unwrap();
    let request = http.post(format!("{}/plugin/swarm/createSlave", house.url()));
    let request = request.header("content-type", "application/x-www-form-urlencoded; charset=UTF-8");
    // Java's client offers to go on in HTTP/2.
    let answer =
        request.header("connection", "Upgrade, HTTP2-Settings").header("upgrade", "h2c").body(form.to_owned()).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.text().await.unwrap())
}

const FIRST_CONTACT: &str = "name=build7&executors=8&remoteFsRoot=%2Fhome%2Fci&description=rack+4&labels=linux&toolLocation=jdk%3A%2Fjdk\
    &toolLocation=git%3A%2Fgit&environmentVariable=A%3A1&mode=NORMAL&hash=0a1b2c3d&deleteExistingClients=false&keepDisconnectedClients=false";

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_clients_first_contact_registers_it_and_says_for_what_it_waits() {
    let house = plan(SWARM).start().await;
    // It goes on without a crumb where there are none.
    house.client(None).get("/crumbIssuer/api/xml?xpath=x").await.problem(404);
    let detail = eventually(async || {
        assert_eq!(swarm(&house, 1, FIRST_CONTACT).await, (200, "name=build7-0a1b2c3d\n".into()));
        let detail = house.admin().get("/v1/agents/build7-0a1b2c3d").await.expect(200);
        let waits = detail["agent"]["reason"].as_str()?.starts_with("it is a Swarm client, to which Jenkins alone can connect");
        waits.then_some(detail)
    });
    let detail = detail.await.expect("it does not say for what it waits");
    assert_eq!(detail["agent"]["state"], "registered");
    assert_eq!(detail["agent"]["labels"], json!(["linux", "swarm"]));
    assert_eq!((&detail["agent"]["address"], &detail["agent"]["executors"]), (&json!("127.0.0.1"), &json!(8)));
    // Another machine does not get the name, and what older clients sent in their query is taken too.
    assert_eq!(swarm(&house, 2, FIRST_CONTACT).await.0, 409);
    let older =
        house.client(None).send(Method::POST, &format!("/plugin/swarm/createSlave?{}", FIRST_CONTACT.replace("7", "8")), &[], "").await;
    assert_eq!(older.text, "name=build8-0a1b2c3d\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_client_is_dialled_at_its_own_address_if_its_section_says_so() {
    let house = plan(&format!("{SWARM}ssh = true\n")).start().await;
    assert_eq!(swarm(&house, 3, "name=build7&executors=1&remoteFsRoot=/home/ci&labels=").await, (200, "name=build7\n".into()));
    let reached = |detail: &Value| detail["agent"]["reason"].as_str().unwrap().starts_with("it is not reached by ssh: ");
    assert_eq!(house.until_agent("build7", reached).await["agent"]["address"], "127.0.0.3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_client_changes_its_own_labels_within_those_that_are_listed() {
    let house = plan(SWARM).start().await;
    swarm(&house, 1, "name=build7&executors=1&remoteFsRoot=/home/ci&labels=linux").await;
    swarm(&house, 2, "name=build8&executors=1&remoteFsRoot=/home/ci&labels=linux").await;
    let nobody = house.client(None);
    let change = async |path: &str| nobody.send(Method::POST, &format!("/plugin/swarm/{path}"), &[], "").await;
    let text = |labels: &str| format!("<labelResponse><labels>{labels}</labels></labelResponse>");
    let seen = async || house.admin().get("/v1/agents/build7").await.expect(200)["agent"]["last_seen_us"].clone();
    let before = seen().await;
    assert_eq!(nobody.get("/plugin/swarm/getSlaveLabels?name=build7").await.text, text("linux swarm"));
    assert_eq!(seen().await, before, "what only asks is a word of it");
    assert_eq!(change("removeSlaveLabels?name=build7&labels=linux+swarm+").await.text, text("swarm"));
    assert_eq!(change("addSlaveLabels?name=build7&labels=large+linux+").await.text, text("swarm large linux"));
    change("addSlaveLabels?name=build7&labels=secret").await.problem(403);
    assert_eq!(house.admin().get("/v1/agents/build7").await.expect(200)["agent"]["labels"], json!(["swarm", "large", "linux"]));
    house.register("web-1", &["linux"]).await;
    for other in ["build8", "web-1", "none"] {
        nobody.get(&format!("/plugin/swarm/getSlaveLabels?name={other}")).await.problem(404);
        change(&format!("addSlaveLabels?name={other}&labels=large")).await.problem(404);
    }
}
