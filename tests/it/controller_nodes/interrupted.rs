//! The server and the controller restart in the middle of things.

use super::*;
use crate::jenkins::Fault;
use crate::jenkins::controller::Outcome;
use crate::jenkins::routes::Op;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_takes_no_build_from_anybody() {
    let mut site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    let build = site.jenkins.build("linux");
    build.started().await;
    site.house.restart().await;
    assert_eq!(site.until_ready_again("web-1").await, name);
    // While it is provisioned anew, too.
    site.apply(json!({"drain_seconds": 600})).await;
    site.until_reason("web-1", "waiting for a build to end").await;
    site.house.restart().await;
    site.until_reason("web-1", "waiting for a build to end").await;
    assert!(build.outcome().is_none());
    build.end(Outcome::Success);
    assert_eq!(build.ended().await, Outcome::Success);
    site.house.until_agent("web-1", |detail| detail["agent"]["releases"]["linux"] == 2).await;
    assert_eq!(site.until_online("web-1").await, name);
    assert!(!site.node(&name).is_marked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_goes_on_when_the_server_is_back() {
    let mut site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    let build = site.jenkins.build("linux");
    build.started().await;
    site.act("web-1", "drain").await;
    site.jenkins.until_node(&name, |node| node.is_marked).await;
    site.house.restart().await;
    site.house.until_agent("web-1", |detail| detail["agent"]["session"] == true && launched(detail).is_some()).await;
    assert!(build.outcome().is_none());
    build.end(Outcome::Success);
    site.house.until_agent("web-1", |detail| detail["agent"]["launched"] == "nothing is launched").await;
    assert_eq!(build.ended().await, Outcome::Success);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_restarts_has_all_its_agents_back_and_loses_no_node() {
    let site = Site::start().await;
    site.apply(json!({})).await;
    let (_one, first) = site.ready("web-1").await;
    let (_two, second) = site.ready("web-2").await;
    site.jenkins.begin_restart();
    let (_three, third) = site.ready("web-3").await;
    for name in [&first, &second, &third] {
        site.jenkins.until_node(name, |node| node.is_online && !node.is_marked).await;
    }
    assert_eq!((site.jenkins.listed().len(), site.jenkins.count(Op::Delete)), (3, 0));
    for agent in ["web-1", "web-2", "web-3"] {
        site.until_online(agent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_was_not_answered_and_one_that_fails_are_brought_to_their_end() {
    let mut site = Site::start().await;
    site.apply(json!({})).await;
    let (_agent, name) = site.ready("web-1").await;
    for fault in [Fault::Status(502), Fault::Refuse, Fault::Status(503)] {
        site.jenkins.next(Op::Delete, fault);
    }
    site.remove("web-1").await;
    site.until_gone(&name).await;
    let (_other, name) = site.ready("web-2").await;
    site.jenkins.enter(crate::jenkins::door::Phase::GettingReady).await;
    site.remove("web-2").await;
    site.house.restart().await;
    site.jenkins.enter(crate::jenkins::door::Phase::Ready).await;
    site.until_gone(&name).await;
}

impl Site {
    async fn until_ready_again(&self, agent: &str) -> String {
        let detail =
            self.house.until_agent(agent, |detail| detail["agent"]["state"] == "ready" && detail["agent"]["session"] == true).await;
        detail["agent"]["node"]["name"].as_str().unwrap().to_owned()
    }
}
