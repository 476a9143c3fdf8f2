//! Builds are not ended by what Muster does: the door is closed, and their end is waited for.

use super::*;
use crate::jenkins::FIVE;
use crate::jenkins::controller::Outcome;
use crate::jenkins::door::Phase;
use crate::jenkins::routes::Op;
use crate::jenkins::users::{Permission, User};

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_agent_ends_what_it_launched_when_its_build_has_ended() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    let build = site.jenkins.build("linux");
    build.started().await;
    site.act("web-1", "drain").await;
    let marked = site.jenkins.until_node(&name, |node| node.is_marked).await;
    assert_eq!(marked.cause.unwrap().reason(), "Muster: drained by an admin: a test");
    let detail = site.house.until_state("web-1", "draining").await;
    assert!(launched(&detail).is_some() && build.outcome().is_none(), "{detail}");
    let _next = site.jenkins.build("linux");
    build.end(Outcome::Success);
    assert_eq!(build.ended().await, Outcome::Success);
    site.house.until_agent("web-1", |detail| detail["agent"]["launched"] == "nothing is launched").await;
    let node = site.jenkins.until_node(&name, |node| !node.is_connected).await;
    assert!(node.is_marked);
    // Taken back, it is the same node, with its door open.
    site.act("web-1", "provision").await;
    assert_eq!(site.until_online("web-1").await, name);
    assert!(!site.node(&name).is_marked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_not_waited_for_any_longer_than_the_policy_says() {
    let site = Site::start().await;
    site.apply(json!({"drain_seconds": 1})).await;
    let (_agent, _) = site.ready("web-1").await;
    let build = site.jenkins.build("linux");
    build.started().await;
    site.act("web-1", "drain").await;
    site.house.until_agent("web-1", |detail| detail["agent"]["launched"] == "nothing is launched").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_agent_ends_at_once() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    site.jenkins.build("linux").started().await;
    site.act("web-1", "quarantine").await;
    site.house.until_agent("web-1", |detail| detail["agent"]["launched"] == "nothing is launched").await;
    site.jenkins.until_node(&name, |node| node.is_marked && !node.is_connected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_release_waits_for_the_build_that_runs_and_lets_no_other_begin() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    let build = site.jenkins.build("linux");
    build.started().await;
    site.apply(json!({"mode": "exclusive"})).await;
    let detail = site.until_reason("web-1", &format!("waiting for a build to end on node `{name}`")).await;
    assert_eq!((&detail["agent"]["state"], &detail["agent"]["releases"]["linux"]), (&json!("ready"), &json!(1)));
    assert!(site.explained("web-1").await.contains("waiting for a build to end on node"));
    let next = site.jenkins.build("linux");
    assert!(site.node(&name).is_marked && build.outcome().is_none() && next.node().is_none());
    build.end(Outcome::Success);
    assert_eq!(build.ended().await, Outcome::Success);
    site.house.until_agent("web-1", |detail| detail["agent"]["state"] == "ready" && detail["agent"]["releases"]["linux"] == 2).await;
    // How it is set up has changed, which is a node of another name.
    let other = next.started().await;
    assert_ne!(other, name);
    site.until_gone(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_opens_the_door_again_and_the_agent_works_on() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    site.house.upload("refuse-never").await;
    let mut policy = site.policy(json!({}));
    policy["module"] = json!("refuse-never");
    site.house.apply("linux", policy).await;
    site.house.until_state("web-1", "failed").await;
    site.jenkins.until_node(&name, |node| node.is_online && !node.is_marked && node.connections == 1).await;
    let build = site.jenkins.build("linux");
    assert_eq!(build.started().await, name);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_controller_is_away_nothing_is_taken_from_it() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    let build = site.jenkins.build("linux");
    build.started().await;
    site.jenkins.enter(Phase::GettingReady).await;
    site.act("web-1", "provision").await;
    site.until_reason("web-1", "can not be taken out yet: the controller is away").await;
    assert_eq!(site.node(&name).connections, 1);
    site.jenkins.enter(Phase::Ready).await;
    site.until_reason("web-1", "waiting for a build to end").await;
    build.end(Outcome::Success);
    assert_eq!(build.ended().await, Outcome::Success);
    assert_eq!(site.until_online("web-1").await, name);
    assert_eq!(site.jenkins.count(Op::Delete), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_stays_away_is_not_waited_for_any_longer_than_the_policy_says() {
    let other = Jenkins::start(Plan::default()).await;
    let site = Site::with(Plan::default(), |directory, plan| {
        let section = section(&other, directory);
        plan.with(|config| drop(config.controller.insert("other".parse().unwrap(), section)))
    })
    .await;
    site.apply(json!({"drain_seconds": 1})).await;
    let (_moved, _) = site.ready("web-1").await;
    let (_drained, _) = site.ready("web-2").await;
    site.jenkins.enter(Phase::GettingReady).await;
    site.act("web-2", "drain").await;
    site.house.until_agent("web-2", |detail| detail["agent"]["launched"] == "nothing is launched").await;
    site.apply(json!({"controller": "other"})).await;
    site.house.until_agent("web-1", |detail| detail["agent"]["state"] == "ready" && detail["agent"]["node"]["controller"] == "other").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_node_can_not_be_marked_is_drained_when_its_time_is_over() {
    let may: Vec<_> = FIVE.into_iter().filter(|permission| *permission != Permission::Disconnect).collect();
    let token = "11dddddddddddddddddddddddddddddddd";
    let site = Site::with(Plan::default().user(User::new("poor").token(token).may(&may)), |directory, plan| {
        std::fs::write(directory.path().join("poor"), token).unwrap();
        plan.with(|config| {
            let section = config.controller.values_mut().next().unwrap();
            (section.user, section.token_file) = ("poor".into(), directory.path().join("poor"));
        })
    })
    .await;
    site.apply(json!({"drain_seconds": 1})).await;
    let (_agent, _) = site.ready("web-1").await;
    site.act("web-1", "drain").await;
    site.house.until_agent("web-1", |detail| detail["agent"]["launched"] == "nothing is launched").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_somebody_else_made_stays_theirs() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    site.jenkins.mark_offline(&name, Some("looking into it"));
    site.act("web-1", "provision").await;
    site.until_reason("web-1", "is marked offline there: looking into it").await;
    let node = site.node(&name);
    assert!(node.is_marked && node.is_connected);
    assert_eq!(
        (node.cause.unwrap().reason(), site.jenkins.count(Op::ChangeCause), site.jenkins.count(Op::Toggle)),
        ("looking into it", 0, 0)
    );
}
