//! The server is killed at random moments while nodes come and go: for `scripts/try-nodes`, as it takes a while.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::many::number;
use super::*;
use crate::jenkins::Version;
use crate::jenkins::config::NodeConfig;
use crate::jenkins::routes::Op;

/// Agents that come and go.
const AGENTS: usize = 4;
const SETTLED_MAX: Duration = Duration::from_secs(120);

/// A server as a process of its own.
struct Server {
    config: std::path::PathBuf,
    log: std::path::PathBuf,
    child: Option<Child>,
    url: String,
}

impl Server {
    fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(["serve", "--log", "info", "--config"]).arg(&self.config).env_remove("MUSTER_LOG");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Who talks to it, while it may be away.
struct Admin {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Admin {
    async fn ask(&self, method: reqwest::Method, path: &str, body: Value) -> Option<(u16, Value)> {
        let request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        let answer = request.header("content-type", "application/json").body(body.to_string()).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, serde_json::from_str(&answer.text().await.ok()?).unwrap_or_default()))
    }

    /// Asks until it is answered.
    async fn get(&self, path: &str) -> Value {
        let until = Instant::now() + SETTLED_MAX;
        loop {
            if let Some((200, body)) = self.ask(reqwest::Method::GET, path, Value::Null).await {
                return body;
            }
            assert!(Instant::now() < until, "{path} is not answered");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/try-nodes runs it"]
async fn a_server_that_is_killed_at_any_moment_leaves_nodes_and_agents_that_agree() {
    let rounds = number("TRY_NODES_KILLS", 10);
    let site = Site::with(Plan::default().version(Version::V2_452_2), |_, plan| plan).await;
    // The one in this process is not wanted; its place and its files are.
    let Site { mut house, jenkins, java, directory } = site;
    let token = std::fs::read_to_string(house.data().join("admin.token")).unwrap().trim().to_owned();
    let policy = json!({"team": TEAM, "module": "ok", "launch": {"controller": "builds", "java": java}});
    house.apply("linux", policy).await;
    let mut processes = Vec::new();
    for at in 0..AGENTS {
        processes.push(house.agent_process(&format!("web-{at}"), &["linux"]).await);
    }
    let (url, data) = (house.url(), house.data().to_owned());
    house.stop().await;
    let config = directory.path().join("muster.toml");
    let text = format!(
        "listen = \"{}\"\ndata = \"{}\"\n[register]\npoll_seconds = 0.2\nlost_kept_seconds = 2\n[controller.builds]\ntype = \"jenkins\"\nurl = \"{}\"\nuser = \"muster\"\ntoken_file = \"{}\"\nname_prefix = \"{PREFIX}\"\nrequests_per_second = 1000\n",
        url.trim_start_matches("http://"),
        data.display(),
        jenkins.url(),
        directory.path().join("jenkins.token").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut server = Server { config, log: directory.path().join("server.log"), child: None, url: url.clone() };
    let admin = Admin {
        http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap(),
        url: server.url.clone(),
        token,
    };
    let foreign = ["ci-web-1", "ci-theirs", "theirs"];
    for name in foreign {
        jenkins.put(NodeConfig::new(name).label("theirs").executors(3));
    }
    let before: Vec<_> = foreign.iter().map(|name| jenkins.node(name).unwrap().config).collect();
    server.start();
    let mut settled_longest = Duration::ZERO;
    for round in 1..=rounds {
        // Some agents are removed, restarted, drained, or their nodes deleted, and in the midst of it the server is killed.
        for (at, process) in processes.iter_mut().enumerate() {
            let name = format!("web-{at}");
            match rand::random_range(0..6) {
                0 => drop(admin.ask(reqwest::Method::DELETE, &format!("/v1/agents/{name}"), json!({})).await),
                1 => {
                    process.stop();
                    process.start();
                }
                2 => drop(admin.ask(reqwest::Method::POST, &format!("/v1/agents/{name}/drain"), json!({})).await),
                3 => {
                    process.kill();
                    process.start();
                }
                4 => {
                    let mine = jenkins.listed().into_iter().find(|node| node.starts_with(&format!("ci-{name}-")));
                    if let Some(node) = mine {
                        jenkins.delete(&node);
                    }
                }
                _ => drop(admin.ask(reqwest::Method::POST, &format!("/v1/agents/{name}/provision"), json!({})).await),
            }
        }
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..1500))).await;
        server.kill();
        server.start();
        for at in 0..AGENTS {
            let name = format!("web-{at}");
            // Whoever was drained is wanted again, so that all come to one end.
            let until = Instant::now() + SETTLED_MAX;
            while !matches!(admin.ask(reqwest::Method::POST, &format!("/v1/agents/{name}/provision"), json!({})).await, Some((200, _))) {
                assert!(Instant::now() < until, "agent {name} does not come back");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let began = Instant::now();
        loop {
            let agents = admin.get("/v1/agents?limit=500").await;
            let agents: Vec<_> = agents["items"].as_array().unwrap().iter().filter(|agent| agent["state"] != "gone").cloned().collect();
            let ready = agents.iter().filter(|agent| agent["state"] == "ready" && agent["node"]["state"] == "online");
            let mut wanted: Vec<String> = ready.map(|agent| agent["node"]["name"].as_str().unwrap().to_owned()).collect();
            let is_whole = wanted.len() == AGENTS && agents.len() == AGENTS;
            wanted.extend(foreign.iter().map(ToString::to_string));
            wanted.sort_unstable();
            let open =
                || jenkins.nodes().iter().all(|(name, node)| foreign.contains(&name.as_str()) || (node.is_online && !node.is_marked));
            if is_whole && jenkins.listed() == wanted && open() {
                break;
            }
            assert!(
                began.elapsed() < SETTLED_MAX,
                "round {round}: nodes {:?}, agents {agents:#?}, the server's log:\n{}",
                jenkins.listed(),
                std::fs::read_to_string(&server.log).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        settled_longest = settled_longest.max(began.elapsed());
        let now: Vec<_> = foreign.iter().map(|name| jenkins.node(name).unwrap().config).collect();
        assert_eq!(now, before, "round {round}");
        assert!(foreign.iter().all(|name| jenkins.node(name).unwrap().cause.is_none()), "round {round}");
        if round % 10 == 0 {
            println!("{round} kills; {} nodes made and {} deleted so far", jenkins.count(Op::Create), jenkins.count(Op::Delete));
        }
    }
    println!(
        "{rounds} kills: after each, nodes and agents agreed within {:.1} s at most, and nothing foreign was touched",
        settled_longest.as_secs_f64()
    );
    server.kill();
}
