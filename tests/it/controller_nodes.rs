//! Agents as nodes of their controllers: the server, `muster-agent` and what it launches are real, and Jenkins stands in.

mod agree;
mod arrive;
mod doors;
mod interrupted;
mod kills;
mod many;

use std::collections::BTreeSet;

use muster::config::controller::{Controller, ControllerUrl};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::house::{AgentProcess, House, Plan as HousePlan, TEAM, eventually};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::{Jenkins, MUSTER_TOKEN, NodeState, Plan, jar};

/// What is put before the names of nodes.
const PREFIX: &str = "ci-";

/// A server that has one controller, `builds`, and a label `linux` whose agents work for it.
struct Site {
    house: House,
    jenkins: Jenkins,
    /// The Java that policies name.
    java: String,
    directory: TempDir,
}

/// A section for a Jenkins, as its user `muster`.
fn section(jenkins: &Jenkins, directory: &TempDir) -> Controller {
    let token_file = directory.path().join("jenkins.token");
    std::fs::write(&token_file, MUSTER_TOKEN).unwrap();
    let mut section = Controller::new(ControllerUrl::try_from(jenkins.url()).unwrap(), "muster", token_file);
    (section.requests_per_second, section.name_prefix) = (1000, PREFIX.into());
    section
}

impl Site {
    /// With a Jenkins of 2.452.2.
    async fn start() -> Self {
        Self::with(Plan::default(), |_, plan| plan).await
    }

    async fn with(plan: Plan, change: impl FnOnce(&TempDir, HousePlan) -> HousePlan) -> Self {
        let (jenkins, directory) = (Jenkins::start(plan).await, TempDir::new().unwrap());
        let builds = section(&jenkins, &directory);
        let plan = House::plan().with(|config| drop(config.controller.insert("builds".parse().unwrap(), builds)));
        let house = change(&directory, plan).start().await;
        let java = jar::java(directory.path(), "17.0.15").to_str().unwrap().to_owned();
        house.upload("ok").await;
        Self { house, jenkins, java, directory }
    }

    /// A policy with this beside its controller and its Java.
    fn policy(&self, launch: Value) -> Value {
        let mut whole = json!({"controller": "builds", "java": self.java});
        whole.as_object_mut().unwrap().extend(launch.as_object().unwrap().clone());
        json!({"team": TEAM, "module": "ok", "launch": whole})
    }

    async fn apply(&self, launch: Value) {
        self.house.apply("linux", self.policy(launch)).await;
    }

    /// An agent of the label that is ready, and the name of its node.
    async fn ready(&self, name: &str) -> (AgentProcess, String) {
        let agent = self.house.agent_process(name, &["linux"]).await;
        (agent, self.until_online(name).await)
    }

    /// Waits until an agent is ready and its node online, with its door open; the node's name.
    async fn until_online(&self, name: &str) -> String {
        let is_online = |detail: &Value| detail["agent"]["node"]["state"].as_str().is_some_and(|state| state.starts_with("online"));
        let detail = self.house.until_agent(name, |detail| detail["agent"]["state"] == "ready" && is_online(detail)).await;
        let node = detail["agent"]["node"]["name"].as_str().unwrap().to_owned();
        // What the server knows is what the last list said.
        self.jenkins.until_node(&node, |node| node.is_online && !node.is_marked).await;
        node
    }

    async fn until_reason(&self, name: &str, part: &str) -> Value {
        self.house.until_agent(name, |detail| detail["agent"]["reason"].as_str().is_some_and(|reason| reason.contains(part))).await
    }

    fn node(&self, name: &str) -> NodeState {
        self.jenkins.node(name).unwrap()
    }

    async fn until_gone(&self, node: &str) {
        self.jenkins.until(&format!("{node} is gone"), |jenkins| jenkins.node(node).is_none().then_some(())).await;
    }

    /// What this server writes into the description of its node for an agent.
    fn marker(&self, agent_id: &str) -> String {
        let server = std::fs::read_to_string(self.house.data().join("server.id")).unwrap();
        format!("muster:{}/{agent_id}", server.trim())
    }

    async fn agent_id(&self, name: &str) -> String {
        self.house.admin().get(&format!("/v1/agents/{name}")).await.expect(200)["agent"]["id"].as_str().unwrap().to_owned()
    }

    async fn act(&self, name: &str, verb: &str) {
        self.house.admin().post(&format!("/v1/agents/{name}/{verb}"), json!({"reason": "a test"})).await.expect(200);
    }

    async fn remove(&self, name: &str) {
        self.house.admin().delete(&format!("/v1/agents/{name}")).await.done();
    }

    async fn explained(&self, name: &str) -> String {
        self.house.admin().get(&format!("/v1/agents/{name}/explain")).await.expect(200).to_string()
    }
}

fn labels(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// What an agent launched, as its process id; none if nothing runs.
fn launched(detail: &Value) -> Option<u32> {
    detail["agent"]["launched"].as_str()?.strip_prefix("running (pid ")?.split([')', ',']).next()?.parse().ok()
}
