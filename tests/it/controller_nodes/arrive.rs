//! From a new agent to a node that is online, and what keeps it from that.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::jenkins::config::Mode;
use crate::jenkins::controller::Outcome;
use crate::jenkins::door::Phase;
use crate::jenkins::routes::Op;
use crate::jenkins::users::{Permission, User};
use crate::jenkins::{FIVE, Fault, Version};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_ready_when_its_controller_says_that_its_node_is_online() {
    for version in [Version::V2_372, Version::V2_452_2] {
        let site = Site::with(Plan::default().version(version), |_, plan| plan).await;
        site.apply(json!({"mode": "exclusive", "environment": {"TIER": "a <b>"}})).await;
        let (agent, name) = site.ready("web-1").await;
        let node = site.node(&name);
        assert!(name.starts_with("ci-web-1-") && name.len() == "ci-web-1-".len() + 16, "{name}");
        assert_eq!((node.config.executors, node.config.mode, node.config.label.as_str()), (1, Mode::Exclusive, "linux"));
        assert_eq!((node.config.remote_fs.as_str(), node.labels.clone()), (agent.root.to_str().unwrap(), labels(&["linux", &name])));
        assert_eq!(node.config.environment, [("TIER".to_owned(), "a <b>".to_owned())]);
        assert!(node.config.description.contains(&site.marker(&site.agent_id("web-1").await)), "{}", node.config.description);
        let build = site.jenkins.build("linux");
        assert_eq!(build.started().await, name);
        build.end(Outcome::Success);
        let shown = site.house.admin().get("/v1/agents/web-1").await.expect(200);
        assert_eq!((&shown["agent"]["node"]["controller"], &shown["agent"]["node"]["name"]), (&json!("builds"), &json!(name)));
        assert!(site.explained("web-1").await.contains(&format!("it is node `{name}` at controller `builds`, which is online")));
        assert_eq!((site.jenkins.followed(), site.jenkins.sessions(), site.jenkins.count(Op::Create)), (0, 0, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_is_in_a_file_for_the_agents_user_alone_and_nowhere_else() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (agent, name) = site.ready("web-1").await;
    let secret = site.jenkins.secret(&name);
    let file = agent.root.join("muster-node/arguments");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&file).unwrap().contains(&secret));
    let pid = launched(&site.house.admin().get("/v1/agents/web-1").await.expect(200)).unwrap();
    let arguments = String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap()).into_owned();
    assert!(arguments.contains("muster-node/arguments") && !arguments.contains(&secret), "{arguments}");
    let mut told = vec![agent.log(), site.explained("web-1").await, site.house.admin().get("/v1/agents/web-1").await.text];
    for run in site.house.admin().get("/v1/runs").await.expect(200)["items"].as_array().unwrap() {
        let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
        told.push(site.house.admin().get(&format!("{path}/journal")).await.text);
        told.push(site.house.admin().get(&format!("{path}/log")).await.text);
    }
    assert!(told.iter().all(|text| !text.contains(&secret)));
    assert!(!std::fs::read(site.house.data().join("muster.db")).unwrap().windows(64).any(|part| part == secret.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_come_together_have_the_controllers_program_fetched_once_and_not_by_themselves() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let _one = site.house.agent_process("web-1", &["linux"]).await;
    let _two = site.house.agent_process("web-2", &["linux"]).await;
    let _three = site.house.agent_process("web-3", &["linux"]).await;
    let mut names = BTreeSet::new();
    for agent in ["web-1", "web-2", "web-3"] {
        names.insert(site.until_online(agent).await);
    }
    assert_eq!((names.len(), site.jenkins.count(Op::Jar), site.jenkins.count(Op::Create)), (3, 1, 3));
    assert!(site.jenkins.requests().iter().filter(|seen| seen.op == Op::Jar).all(|seen| seen.user == "anonymous"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_a_java_that_will_do_is_told_so() {
    let site = Site::start().await;
    let old = jar::java(TempDir::new_in(site.directory.path()).unwrap().keep().as_path(), "1.8.0_392");
    site.apply(json!({"java": old})).await;
    let _agent = site.house.agent_process("web-1", &["linux"]).await;
    let detail = site.house.until_state("web-1", "failed").await;
    let reason = detail["agent"]["reason"].as_str().unwrap();
    assert!(reason.contains("it takes a Java 11 or later") && reason.contains(" is 8"), "{reason}");
    site.apply(json!({"java": "/nowhere/java"})).await;
    site.until_reason("web-1", "there is no program `/nowhere/java`, which `launch.java` names").await;
    site.apply(json!({})).await;
    site.until_online("web-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_somebody_else_is_neither_taken_nor_touched() {
    let site = Site::start().await;
    site.jenkins.put(NodeConfig::new("ci-web-1").label("theirs").executors(7));
    let before = site.node("ci-web-1").config;
    site.apply(json!({"node_name": "plain"})).await;
    let _agent = site.house.agent_process("web-1", &["linux"]).await;
    let detail = site.until_reason("web-1", "there is a node `ci-web-1` already, which is not Muster's").await;
    assert_eq!(detail["agent"]["state"], "failed");
    assert_eq!(site.node("ci-web-1").config, before);
    site.remove("web-1").await;
    // Removed there by hand, it is free.
    let _other = site.house.agent_process("web-2", &["linux"]).await;
    assert_eq!(site.until_online("web-2").await, "ci-web-2");
    assert_eq!((site.node("ci-web-1").config, site.jenkins.count(Op::Delete), site.jenkins.count(Op::ChangeCause)), (before, 0, 0));
    site.remove("web-2").await;
    site.until_gone("ci-web-2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_making_was_not_answered_is_looked_up_and_is_the_agents() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    site.jenkins.next(Op::Create, Fault::Lose);
    let (_agent, name) = site.ready("web-1").await;
    assert_eq!((site.jenkins.listed(), site.jenkins.count(Op::Create)), (vec![name], 1));
    site.jenkins.next(Op::Create, Fault::Refuse);
    site.jenkins.next(Op::Jnlp, Fault::Status(502));
    let (_other, _) = site.ready("web-2").await;
    assert_eq!((site.jenkins.listed().len(), site.jenkins.count(Op::Create)), (2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_missing_is_named_and_what_is_given_later_is_taken() {
    let may: Vec<_> = FIVE.into_iter().filter(|permission| *permission != Permission::Create).collect();
    let token = "11dddddddddddddddddddddddddddddddd";
    let plan = Plan::default().user(User::new("poor").token(token).may(&may));
    let site = Site::with(plan, |directory, plan| {
        std::fs::write(directory.path().join("poor"), token).unwrap();
        plan.with(|config| {
            let section = config.controller.values_mut().next().unwrap();
            (section.user, section.token_file) = ("poor".into(), directory.path().join("poor"));
        })
    })
    .await;
    site.apply(json!({})).await;
    let _agent = site.house.agent_process("web-1", &["linux"]).await;
    let detail = site.until_reason("web-1", "lacks the permission Agent/Create").await;
    assert_eq!(detail["agent"]["state"], "failed");
    assert!(site.jenkins.listed().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_away_is_waited_for_and_the_agent_says_so() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    site.jenkins.enter(Phase::Restarting).await;
    let _agent = site.house.agent_process("web-1", &["linux"]).await;
    let detail = site.until_reason("web-1", "its node can not be made yet at controller `builds`: the controller is away").await;
    assert_eq!(detail["agent"]["state"], "provisioning");
    site.jenkins.enter(Phase::Ready).await;
    site.until_online("web-1").await;
    // However long it is away, it is not asked for the same again and again.
    assert!(site.jenkins.count(Op::Create) <= 3, "{}", site.jenkins.count(Op::Create));
}

#[tokio::test(flavor = "multi_thread")]
async fn until_its_node_is_online_an_agent_is_not_ready_and_says_what_it_waits_for() {
    let site = Site::start().await;
    // It starts, and connects to nothing.
    let slow = site.directory.path().join("slow-java");
    std::fs::write(&slow, "#!/bin/sh\n[ \"$1\" = -version ] && { echo 'openjdk version \"17.0.1\"' >&2; exit; }\nexec sleep 600\n")
        .unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    site.apply(json!({"java": slow})).await;
    let _agent = site.house.agent_process("web-1", &["linux"]).await;
    let _ = site.until_reason("web-1", "launched; waiting until controller `builds` says that node `ci-web-1-").await;
    // The next list of the controller's says what it is there.
    let detail = site.house.until_agent("web-1", |detail| detail["agent"]["node"]["state"] == "offline").await;
    assert_eq!(detail["agent"]["state"], json!("provisioning"));
    // Another release is not kept waiting by that.
    site.apply(json!({})).await;
    site.until_online("web-1").await;
    assert_eq!(site.jenkins.count(Op::Create), 1);
}
