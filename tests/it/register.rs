//! Registering and polling, seen from an agent.

use std::time::Duration;

use futures_util::SinkExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection as _;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::house::{Answer, Client, House, TEAM, claims, eventually};

const LONG: Duration = Duration::from_secs(600);

async fn register_with_key(client: &Client, claims: &Value, key: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    client.send(Method::POST, "/v1/register", &headers, claims.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_contact_brings_a_credential_and_later_ones_none() {
    let house = House::plan().poll(LONG).start().await;
    let joining = house.client(Some(&house.join_token(&["linux", "arm"]).await));
    let first = joining.post("/v1/register", claims("web-1", &["linux", "arm"])).await.expect(201);
    assert_eq!(first["agent"]["name"], "web-1");
    assert_eq!(first["agent"]["labels"], json!(["linux", "arm"]));
    assert_eq!(first["agent"]["state"], "registered");
    assert_eq!(first["session"], "/v1/session");
    // Nothing is to be done for its labels; that is looked at once.
    let settled = house.until_agent("web-1", |detail| detail["agent"]["reason"].as_str().unwrap().starts_with("none of its labels")).await;
    let own = house.client(first["credential"].as_str());
    for _ in 0..3 {
        let again = own.post("/v1/register", claims("web-1", &["linux", "arm"])).await.expect(200);
        assert_eq!((&again["agent"]["id"], &again["agent"]["state"]), (&first["agent"]["id"], &json!("registered")));
        assert!(again.get("credential").is_none(), "{again}");
    }
    let detail = house.admin().get("/v1/agents/web-1").await.expect(200);
    assert_eq!(detail["events"], settled["events"], "polls are no events");
    assert!(!detail.to_string().contains(first["credential"].as_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_comes_back_when_it_is_told_to_within_a_fifth() {
    let house = House::plan().poll(Duration::from_secs(10)).start().await;
    let agent = house.register("web-1", &["linux"]).await;
    let mut told = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let after = agent.poll().await.expect(200)["poll_after_ms"].as_u64().unwrap();
        assert!((8_000..=12_000).contains(&after), "{after} ms");
        told.insert(after);
    }
    assert!(told.len() > 10, "agents would come back together: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_the_token_does_not_allow_is_refused_by_name_and_nothing_is_kept() {
    let house = House::plan().poll(LONG).start().await;
    let joining = house.client(Some(&house.join_token(&["linux"]).await));
    let problem = joining.post("/v1/register", claims("web-1", &["linux", "payroll"])).await.problem(403);
    assert_eq!(problem["code"], "labels");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("payroll") && !detail.contains("linux"), "{detail}");
    house.admin().get("/v1/agents/web-1").await.problem(404);

    let agent = house.register("web-2", &["linux"]).await;
    assert_eq!(agent.client.post("/v1/register", claims("web-2", &["payroll"])).await.problem(403)["code"], "labels");
    assert_eq!(house.admin().get("/v1/agents/web-2").await.expect(200)["agent"]["labels"], json!(["linux"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_can_not_be_so_are_refused_by_their_field() {
    let house = House::plan().poll(LONG).start().await;
    let joining = house.client(Some(&house.join_token(&["linux"]).await));
    let many: serde_json::Map<_, _> = (0..65).map(|at| (format!("a{at}"), json!("b"))).collect();
    for (field, value) in [
        ("labels", json!([])),
        ("labels", json!(["linux", "linux"])),
        ("executors", json!(0)),
        ("executors", json!(1_000_000)),
        ("root", json!("srv")),
        ("root", json!("/srv/../etc")),
        ("root", json!("/srv\u{0}")),
        ("os", json!("li\nnux")),
        ("image", json!("x".repeat(2000))),
        ("ssh_host_key", json!("x".repeat(5000))),
        ("attributes", json!({"a": "\u{7}"})),
        ("attributes", Value::Object(many)),
    ] {
        let mut wrong = claims("web-1", &["linux"]);
        wrong[field] = value;
        let problem = joining.post("/v1/register", wrong.clone()).await.problem(422);
        assert_eq!(problem["code"], "claim", "{wrong}");
        assert!(problem["detail"].as_str().unwrap().starts_with(field), "{problem}");
    }
    house.admin().get("/v1/agents/web-1").await.problem(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_living_agent_is_refused() {
    let house = House::plan().poll(LONG).start().await;
    let agent = house.register("web-1", &["linux"]).await;
    let joining = house.client(Some(&house.join_token(&["linux"]).await));
    assert_eq!(joining.post("/v1/register", claims("web-1", &["linux"])).await.problem(409)["code"], "name-taken");
    assert_eq!(register_with_key(&joining, &claims("web-1", &["linux"]), "guessed").await.problem(409)["code"], "name-taken");
    assert_eq!(agent.client.post("/v1/register", claims("web-2", &["linux"])).await.problem(409)["code"], "other-name");
    agent.poll().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_answer_was_lost_gets_its_agent_back_and_the_old_credential_is_dead() {
    let house = House::plan().poll(LONG).start().await;
    let joining = house.client(Some(&house.join_token(&["linux"]).await));
    let claims = claims("web-1", &["linux"]);
    let first = register_with_key(&joining, &claims, "a-secret-of-the-machine").await.expect(201);
    let second = register_with_key(&joining, &claims, "a-secret-of-the-machine").await.expect(201);
    assert_eq!(first["agent"]["id"], second["agent"]["id"]);
    assert_ne!(first["credential"], second["credential"]);
    house.client(first["credential"].as_str()).post("/v1/register", claims.clone()).await.problem(401);
    house.client(second["credential"].as_str()).post("/v1/register", claims.clone()).await.expect(200);
    let key = "x".repeat(2000);
    assert_eq!(register_with_key(&joining, &claims, &key).await.problem(400)["code"], "key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_agent_is_lost_and_comes_back_with_its_next_poll() {
    let house = House::start().await;
    let agent = house.register("web-1", &["linux"]).await;
    let lost = house.until_state("web-1", "lost").await;
    assert!(lost["agent"]["reason"].as_str().unwrap().starts_with("no poll for"), "{lost}");
    // What is asked for meanwhile does not hide why it is lost.
    let asked = house.admin().post("/v1/agents/web-1/provision", json!({"reason": "a new disk"})).await.expect(200);
    assert_eq!(asked["reason"], lost["agent"]["reason"]);
    let told = house.admin().get("/v1/agents/web-1").await.expect(200);
    assert!(told["events"][0]["cause"].as_str().unwrap().ends_with("a new disk"), "{told:#}");
    let back = agent.poll().await.expect(200);
    assert_eq!((&back["agent"]["state"], &back["agent"]["id"]), (&json!("registered"), &json!(agent.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_lost_agent_can_be_taken_and_the_lost_one_is_out() {
    let house = House::start().await;
    let agent = house.register("web-1", &["linux"]).await;
    house.until_state("web-1", "lost").await;
    let other = house.register("web-1", &["linux"]).await;
    assert_ne!(agent.id, other.id);
    agent.poll().await.problem(401);
    other.poll().await.expect(200);
    let gone = house.admin().get("/v1/agents?state=gone").await.expect(200);
    assert_eq!(gone["items"][0]["id"], agent.id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_lost_agent_is_not_another_teams_to_take() {
    let house = House::start().await;
    let joining = async |team: &str, labels: &[&str]| {
        let token = house.token(json!({"kind": "join", "team": team, "labels": labels})).await;
        house.client(Some(&token))
    };
    joining("media", &["linux"]).await.post("/v1/register", claims("web-1", &["linux"])).await.expect(201);
    house.until_state("web-1", "lost").await;
    for (team, label) in [("games", "linux"), ("media", "mac")] {
        let refused = joining(team, &[label]).await.post("/v1/register", claims("web-1", &[label])).await;
        assert_eq!(refused.problem(409)["code"], "name-taken");
    }
    joining("media", &["linux", "mac"]).await.post("/v1/register", claims("web-1", &["mac"])).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_says_does_not_shorten_its_pause_after_a_failure() {
    let house = House::plan().poll(LONG).start().await;
    for guest in ["ok", "trap"] {
        house.upload(guest).await;
    }
    house.apply("linux", json!({"team": TEAM, "module": "trap"})).await;
    house.apply("mac", json!({"team": TEAM, "module": "ok"})).await;
    let agent = house.agent_process("web-1", &["linux", "mac"]).await;
    let failed = house.until_state("web-1", "failed").await;
    let own = house.client(Some(std::fs::read_to_string(agent.root.join(".muster/credential")).unwrap().trim()));
    let mut said = claims("web-1", &["linux", "mac"]);
    (said["root"], said["instance"]) = (json!(agent.root), failed["agent"]["instance"].clone());
    // The first says another instance than the program did; the others only that something else has changed.
    own.post("/v1/register", said.clone()).await.expect(200);
    let before =
        house.until_agent("web-1", |detail| detail["runs"].as_array().unwrap().len() == 2 && detail["agent"]["state"] == "failed").await;
    for at in 0..20 {
        said["attributes"] = json!({"at": at.to_string()});
        own.post("/v1/register", said.clone()).await.expect(200);
    }
    let after = house.until_agent("web-1", |detail| detail["agent"]["attributes"]["at"] == "19").await;
    assert_eq!(after["runs"].as_array().unwrap().len(), before["runs"].as_array().unwrap().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stays_away_is_gone_and_its_name_free() {
    let house = House::plan().lost_kept_seconds(0).start().await;
    let agent = house.register("web-1", &["linux"]).await;
    house.until_state("web-1", "gone").await;
    agent.poll().await.problem(401);
    assert_eq!(house.admin().get("/v1/agents").await.expect(200)["items"], json!([]));
    house.register("web-1", &["linux"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_agent_is_out_at_once_and_its_name_free() {
    let house = House::plan().poll(LONG).start().await;
    let agent = house.register("web-1", &["linux"]).await;
    house.admin().delete("/v1/agents/web-1").await.expect(204);
    agent.poll().await.problem(401);
    agent.client.get("/v1/session").await.problem(401);
    house.admin().delete("/v1/agents/web-1").await.problem(404);
    house.register("web-1", &["linux"]).await.poll().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_join_token_admits_nobody_and_those_it_admitted_stay() {
    let house = House::plan().poll(LONG).start().await;
    let made = house.admin().post("/v1/tokens", json!({"kind": "join", "labels": ["linux"]})).await.expect(201);
    let joining = house.client(made["secret"].as_str());
    let first = joining.post("/v1/register", claims("web-1", &["linux"])).await.expect(201);
    house.admin().delete(&format!("/v1/tokens/{}", made["token"]["id"].as_str().unwrap())).await.expect(204);
    joining.post("/v1/register", claims("web-2", &["linux"])).await.problem(401);
    house.client(first["credential"].as_str()).post("/v1/register", claims("web-1", &["linux"])).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_and_credentials_outlive_a_restart_of_the_server() {
    let mut house = House::plan().poll(LONG).start().await;
    let agent = house.register("web-1", &["linux"]).await;
    let removed = house.register("web-2", &["linux"]).await;
    house.admin().delete("/v1/agents/web-2").await.expect(204);
    let before = house.admin().get("/v1/agents/web-1").await.expect(200);
    house.restart().await;
    let after = house.admin().get("/v1/agents/web-1").await.expect(200);
    assert_eq!((&before["agent"]["id"], &before["events"]), (&after["agent"]["id"], &after["events"]));
    agent.poll().await.expect(200);
    removed.poll().await.problem(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_register_one_name_at_once_one_is_admitted() {
    let house = House::start().await;
    let joining = house.client(Some(&house.join_token(&["linux"]).await));
    let at_once = async |name: &str| {
        let tries = (0..8).map(|_| joining.post("/v1/register", claims(name, &["linux"])));
        let mut statuses: Vec<u16> = futures_util::future::join_all(tries).await.into_iter().map(|answer| answer.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    };
    at_once("web-1").await;
    // And so of those that take the name of a lost one.
    house.until_state("web-1", "lost").await;
    at_once("web-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_of_a_ready_agent_writes_nothing() {
    let house = House::start().await;
    house.upload("ok").await;
    house.apply("linux", json!({"team": TEAM, "module": "ok"})).await;
    let _agent = house.agent_process("web-1", &["linux"]).await;
    house.until_state("web-1", "ready").await;
    let url = format!("sqlite://{}?mode=ro", house.data().join("muster.db").display());
    let database = tokio::sync::Mutex::new(sqlx::SqliteConnection::connect(&url).await.unwrap());
    let polls = async || {
        let text = house.admin().get("/metrics").await.text;
        let line = text.lines().find_map(|line| line.strip_prefix("muster_polls_total ")).unwrap().to_owned();
        line.parse::<u64>().unwrap()
    };
    // The number that another connection's commit changes.
    let version = async || sqlx::query_scalar::<_, i64>("PRAGMA data_version").fetch_one(&mut *database.lock().await).await.unwrap();
    let first = polls().await;
    let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
    let look = async || {
        let version = version().await;
        seen.lock().unwrap().insert(version);
        (polls().await >= first + 20).then_some(())
    };
    eventually(look).await.expect("the agent polls");
    // The clockwork's own, at most: heartbeats of all agents together, and the last lines of the run.
    let commits = seen.lock().unwrap().len();
    assert!(commits <= 4, "{commits} commits during 20 polls");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_key_of_the_longest_kind_fits() {
    let house = House::plan().poll(LONG).start().await;
    let mut claims = claims("web-1", &["linux"]);
    // As long as an RSA key of 16384 bits is.
    claims["ssh_host_key"] = format!("ssh-rsa {}", "A".repeat(2740)).into();
    house.client(Some(&house.join_token(&["linux"]).await)).post("/v1/register", claims).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_a_machine_that_registers_again_with_another_link_is_counted_no_more() {
    let house = House::plan().poll(LONG).start().await;
    let joining = house.client(Some(&house.join_token(&["linux"]).await));
    let mut claims = claims("web-1", &["linux"]);
    let registered = register_with_key(&joining, &claims, "a-secret-of-the-machine").await.expect(201);
    let url = format!("ws{}/v1/session", house.url().strip_prefix("http").unwrap());
    let mut request = url.into_client_request().unwrap();
    let bearer = format!("Bearer {}", registered["credential"].as_str().unwrap());
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    let (mut session, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    let hello = json!({"frame": "hello", "protocol": 2, "version": "1", "instance": "one", "launched": {"is": "nothing"}});
    session.send(Message::text(hello.to_string())).await.unwrap();
    let sessions = async |count: u32| {
        let counted = async || house.admin().get("/metrics").await.text.contains(&format!("muster_sessions {count}\n")).then_some(());
        eventually(counted).await.unwrap_or_else(|| panic!("there are not {count} sessions"));
    };
    sessions(1).await;
    claims["link"] = "poll".into();
    register_with_key(&joining, &claims, "a-secret-of-the-machine").await.expect(201);
    sessions(0).await;
}
