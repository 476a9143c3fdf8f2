//! Agents as nodes, from their registration to their end: the server, `muster-agent` and what it launches are real.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Site, real, sites, sites_alone};
use crate::house::{AgentProcess, House, TEAM};

/// A server with one agent, of a label that nobody else has.
struct Life {
    house: House,
    label: String,
    agent: AgentProcess,
}

impl Life {
    async fn begin(site: &Site) -> Self {
        let (house, label) = (super::client::house(site).await, site.name("label").to_string());
        house.upload("ok").await;
        let life = Self { agent: house.agent_process("web-1", &[&label]).await, house, label };
        life.apply(site, json!({})).await;
        life
    }

    async fn apply(&self, site: &Site, more: Value) {
        let mut launch = json!({"controller": "main", "java": site.java.to_str().unwrap()});
        launch.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.house.apply(&self.label, json!({"team": TEAM, "module": "ok", "launch": launch})).await;
    }

    /// Waits until the agent is as wanted.
    async fn until(&self, site: &Site, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let look = async || {
            // It registers when it gets to it.
            let answer = self.house.admin().get("/v1/agents/web-1").await;
            (answer.status == 200 && wanted(&answer.body)).then_some(answer.body)
        };
        site.until(&format!("the agent is {what}"), look).await
    }

    /// Waits until the agent is ready with a release and its node is online; the node's name.
    async fn until_ready(&self, site: &Site, release: i64) -> String {
        let is_ready = |detail: &Value| {
            let agent = &detail["agent"];
            agent["state"] == "ready" && agent["node"]["state"] == "online" && agent["releases"][&self.label] == release
        };
        let detail = self.until(site, "ready", is_ready).await;
        let name = detail["agent"]["node"]["name"].as_str().unwrap().to_owned();
        assert!(!site.muster().node(&name.parse().unwrap()).await.unwrap().unwrap().is_offline);
        name
    }

    async fn drain(&self) {
        self.house.admin().post("/v1/agents/web-1/drain", json!({"reason": "a test"})).await.expect(200);
    }

    async fn until_ended(&self, site: &Site) {
        self.until(site, "without a program", |detail| detail["agent"]["launched"] == "nothing is launched").await;
    }
}

/// Waits until a build runs on a node.
async fn running(site: &Site, job: &str, node: &str) {
    site.until("the build runs", async || site.built(job).await.filter(|build| build["builtOn"] == node)).await;
}

async fn result(site: &Site, job: &str) -> Value {
    let look = async || site.built(job).await.filter(|build| build["building"] == false).map(|build| build["result"].clone());
    site.until("the build ends", look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_ready_when_its_node_is_online_takes_builds_and_goes_with_its_node() {
    for site in sites().await {
        let life = Life::begin(&site).await;
        let name = life.until_ready(&site, 1).await;
        let node = site.muster().node(&name.parse().unwrap()).await.unwrap().unwrap();
        assert!(node.labels.contains(&life.label) && node.executors == 1, "{node:?}");
        let job = site.build(&life.label, 0.1).await;
        assert_eq!(result(&site, &job).await, "SUCCESS");
        assert_eq!(site.built(&job).await.unwrap()["builtOn"], name);
        let secret = site.muster().secret(&name.parse().unwrap()).await.unwrap().secret;
        assert!(!life.agent.log().contains(&secret));
        life.house.admin().delete("/v1/agents/web-1").await.done();
        site.until("the node is gone", async || site.muster().node(&name.parse().unwrap()).await.unwrap().is_none().then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_the_build_and_lets_no_other_begin() {
    for site in sites().await {
        let life = Life::begin(&site).await;
        let name = life.until_ready(&site, 1).await;
        let job = site.build(&life.label, 4.0).await;
        running(&site, &job, &name).await;
        life.drain().await;
        let marked = site.until_node(&name.parse().unwrap(), "marked", |node| node.is_marked).await;
        assert!(marked.reason.contains("a test") && !marked.is_idle, "{marked:?}");
        let next = site.build(&life.label, 0.1).await;
        assert_eq!(result(&site, &job).await, "SUCCESS");
        life.until_ended(&site).await;
        assert_eq!(site.built(&next).await, None);
        life.house.admin().post("/v1/agents/web-1/provision", json!({"reason": "a test"})).await.expect(200);
        assert_eq!(result(&site, &next).await, "SUCCESS");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_release_waits_for_the_build_and_ends_none() {
    for site in sites().await {
        let life = Life::begin(&site).await;
        let name = life.until_ready(&site, 1).await;
        let job = site.build(&life.label, 4.0).await;
        running(&site, &job, &name).await;
        life.apply(&site, json!({"environment": {"TIER": "a <b>"}})).await;
        site.until_node(&name.parse().unwrap(), "marked", |node| node.is_marked).await;
        assert_eq!(result(&site, &job).await, "SUCCESS");
        let now = life.until_ready(&site, 2).await;
        let next = site.build(&life.label, 0.1).await;
        assert_eq!(result(&site, &next).await, "SUCCESS");
        assert_eq!(site.built(&next).await.unwrap()["builtOn"], now);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_somebody_changes_or_deletes_is_brought_back_and_others_are_left_alone() {
    // It takes a round of the clockwork or two. With those that stand in, other tests show the same in less time.
    let sites = if real().is_some() { sites().await } else { return };
    for site in sites {
        let (life, theirs) = (Life::begin(&site).await, site.create("theirs").await);
        let name = life.until_ready(&site, 1).await.parse().unwrap();
        let muster = site.muster();
        let wrong = ["wrong".parse().unwrap()];
        assert!(muster.update(&name, &wrong, muster::controller::jenkins::Executors::new(7).unwrap()).await.unwrap());
        let right = |node: &muster::controller::jenkins::Node| node.labels.contains(&life.label) && node.executors == 1;
        let node = site.until_node(&name, "as it was", right).await;
        assert!(!node.is_offline, "{node:?}");
        assert!(muster.delete(&name).await.unwrap());
        site.until_node(&name, "online again", |node| !node.is_offline && right(node)).await;
        let left = muster.node(&theirs).await.unwrap().unwrap();
        assert!(left.labels.contains("linux") && left.executors == 2 && !left.is_marked, "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_back_with_its_node_after_its_controller_restarted() {
    for site in sites_alone().await {
        let life = Life::begin(&site).await;
        let name = life.until_ready(&site, 1).await;
        let before = site.muster().about().await.unwrap();
        assert_eq!(site.as_admin(Method::POST, "restart").send().await.unwrap().status(), StatusCode::FOUND);
        site.until("it is back", async || site.muster().about().await.ok().filter(|about| about.session != before.session)).await;
        site.until_node(&name.parse().unwrap(), "online again", |node| !node.is_offline).await;
        assert_eq!(life.until_ready(&site, 1).await, name);
        let job = site.build(&life.label, 0.1).await;
        assert_eq!(result(&site, &job).await, "SUCCESS");
    }
}
