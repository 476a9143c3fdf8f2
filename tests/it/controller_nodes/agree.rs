//! Nodes and agents agree, whatever becomes of either, and what is somebody else's is not touched.

use std::time::Duration;

use super::*;
use crate::jenkins::routes::Op;

#[tokio::test(flavor = "multi_thread")]
async fn the_node_of_an_agent_that_is_removed_is_removed() {
    let site = Site::start().await;
    for (at, launch) in [json!({}), json!({"keep_node": true}), json!({"node_name": "plain"})].into_iter().enumerate() {
        site.apply(launch).await;
        let agent = format!("web-{at}");
        let (_process, name) = site.ready(&agent).await;
        site.remove(&agent).await;
        site.until_gone(&name).await;
    }
    assert!(site.jenkins.listed().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_agent_is_marked_with_the_cause_at_once_and_its_node_goes_with_it() {
    let site = Site::with(Plan::default(), |_, plan| plan.lost_kept_seconds(3)).await;
    site.apply(json!({})).await;
    let (mut agent, name) = site.ready("web-1").await;
    agent.kill();
    let marked = site.jenkins.until_node(&name, |node| node.is_marked).await;
    let cause = marked.cause.unwrap();
    assert!(cause.reason().starts_with("Muster: agent web-1 is lost: no poll for "), "{}", cause.reason());
    site.until_gone(&name).await;
    site.jenkins.until_count(Op::Delete, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_agent_that_is_back_has_its_door_opened() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (agent, name) = site.ready("web-1").await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    site.jenkins.until_node(&name, |node| node.is_marked).await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert_eq!(site.until_online("web-1").await, name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_kept_outlives_its_agent_and_is_the_next_ones_of_its_name() {
    for launch in [json!({"keep_node": true}), json!({"keep_node": true, "node_name": "plain"})] {
        let site = Site::with(Plan::default(), |_, plan| plan.lost_kept_seconds(1)).await;
        site.apply(launch).await;
        let (mut agent, name) = site.ready("web-1").await;
        agent.stop();
        agent.start();
        assert_eq!(site.until_online("web-1").await, name);
        agent.kill();
        site.house.until_state("web-1", "gone").await;
        assert!(site.jenkins.until_node(&name, |node| node.is_marked).await.is_marked);
        // It is another agent of the same name then.
        agent.start();
        let again = site.until_online("web-1").await;
        assert_eq!((again, site.jenkins.listed().len(), site.jenkins.count(Op::Create)), (name, 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_start_of_an_agent_is_a_new_node_unless_it_is_kept() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (mut agent, first) = site.ready("web-1").await;
    agent.stop();
    agent.start();
    let second = site
        .house
        .until_agent("web-1", |detail| detail["agent"]["node"]["name"] != json!(first) && detail["agent"]["state"] == "ready")
        .await;
    site.until_gone(&first).await;
    assert_eq!(site.jenkins.listed(), [second["agent"]["node"]["name"].as_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_somebody_deletes_is_made_again_and_its_agent_comes_back() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    site.jenkins.delete(&name);
    let node = site.jenkins.until_node(&name, |node| !node.is_ghost).await;
    assert_eq!(node.config.label, "linux");
    // Its program ends by itself, as its node was not there, and is started again.
    site.jenkins.until_node(&name, |node| node.is_online).await;
    assert_eq!((site.jenkins.count(Op::Create), site.jenkins.listed()), (2, vec![name]));
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_executors_that_somebody_changes_are_corrected_and_no_agent_is_dropped() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    let mut changed = site.node(&name).config;
    changed.label = "other".into();
    changed.executors = 5;
    site.jenkins.put(changed);
    let node = site.jenkins.until_node(&name, |node| node.config.label == "linux" && node.config.executors == 1).await;
    assert!(node.is_connected && node.connections == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_muster_s_own_is_left_as_it_is_and_what_it_forgot_is_removed() {
    let mut site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    let gone = "0123456789abcdef0123456789abcdef";
    let other_server = format!("muster:{}/{gone}", "f".repeat(32));
    let put = |name: &str, description: &str| {
        let mut config = NodeConfig::new(name).label("linux");
        config.description = description.into();
        site.jenkins.put(config);
    };
    put("ci-web-2", "somebody's");
    put("ci-web-1", "");
    put("theirs", &other_server);
    put("ci-theirs", &other_server);
    // By name and description it is this server's, or would be with the prefix.
    put("no-prefix", &site.marker(gone));
    put("ci-forgotten", &site.marker(gone));
    site.house.restart().await;
    site.until_gone("ci-forgotten").await;
    site.until_online("web-1").await;
    let mut expected = ["ci-theirs", "ci-web-1", "ci-web-2", "no-prefix", "theirs", &name];
    expected.sort_unstable();
    assert_eq!((site.jenkins.listed(), site.jenkins.count(Op::Delete)), (expected.iter().map(ToString::to_string).collect(), 1));
    assert_eq!(site.jenkins.count(Op::WriteConfig), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_moves_to_another_controller_and_to_none() {
    let other = Jenkins::start(Plan::default()).await;
    let site = Site::with(Plan::default(), |directory, plan| {
        let section = section(&other, directory);
        plan.with(|config| drop(config.controller.insert("other".parse().unwrap(), section)))
    })
    .await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    site.apply(json!({"controller": "other"})).await;
    let moved = site
        .house
        .until_agent("web-1", |detail| detail["agent"]["state"] == "ready" && detail["agent"]["node"]["controller"] == "other")
        .await;
    let moved = moved["agent"]["node"]["name"].as_str().unwrap().to_owned();
    site.until_gone(&name).await;
    other.until_node(&moved, |node| node.is_online).await;
    site.house.apply("linux", json!({"team": TEAM, "module": "ok", "launch": {"none": true}})).await;
    other.until("its node is gone", |jenkins| jenkins.listed().is_empty().then_some(())).await;
    let detail = site.house.until_agent("web-1", |detail| detail["agent"]["node"].is_null() && detail["agent"]["state"] == "ready").await;
    assert_eq!(detail["agent"]["launched"], "nothing is launched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_is_asked_seldom_while_nothing_is_wanted_of_it() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, _) = site.ready("web-1").await;
    // What is under way is over when nothing was asked for a while.
    let still = eventually(async || {
        let before = site.jenkins.count(Op::List);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        (site.jenkins.count(Op::List) == before).then_some(())
    });
    still.await.expect("it is asked all the time");
}
