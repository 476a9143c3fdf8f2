//! Nodes go offline, for reasons.

use serde_json::json;

use super::Caller;
use crate::jenkins::config::NodeConfig;
use crate::jenkins::controller::{CauseKind, Outcome};
use crate::jenkins::users::{Permission, User};
use crate::jenkins::{Jenkins, Plan};

fn reason(jenkins: &Jenkins) -> Option<String> {
    jenkins.node("n1").unwrap().cause.map(|cause| cause.reason().to_owned())
}

#[tokio::test]
async fn to_go_offline_is_a_toggle_that_two_can_undo_for_each_other() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let (muster, admin) = (Caller::muster(&jenkins), Caller::admin(&jenkins));
    jenkins.put(NodeConfig::new("n1"));
    let toggled = muster.post("computer/n1/toggleOffline", &[("offlineMessage", "one")]).await;
    assert_eq!(toggled.is(302).location(), format!("{}computer/n1/", jenkins.url()));
    let node = jenkins.node("n1").unwrap();
    assert!(node.is_temporarily_offline && node.is_marked);
    assert_eq!(node.cause.unwrap().kind, CauseKind::User { user: "muster".into(), message: "one".into() });
    admin.post("computer/n1/toggleOffline?offlineMessage=two", &[]).await.is(302);
    let node = jenkins.node("n1").unwrap();
    assert!(!node.is_temporarily_offline && !node.is_marked && node.cause.is_none());
    muster.get("computer/n1/toggleOffline").await.is(405);
}

#[tokio::test]
async fn a_message_is_kept_as_it_is_whatever_its_length() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    let message = format!("<script>alert(1)</script>\nline{}", "x".repeat(70_000));
    muster.post("computer/n1/toggleOffline", &[("offlineMessage", &message)]).await.is(302);
    assert_eq!(muster.json("computer/n1/api/json").await["offlineCauseReason"], message);
}

#[tokio::test]
async fn a_change_of_the_cause_takes_offline_and_never_online() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    for message in ["one", "one", "two"] {
        muster.post("computer/n1/changeOfflineCause", &[("offlineMessage", message)]).await.is(302);
        assert!(jenkins.node("n1").unwrap().is_temporarily_offline);
        assert_eq!(reason(&jenkins).unwrap(), message);
    }
}

#[tokio::test]
async fn a_drained_node_ends_its_build_and_takes_no_other() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1").executors(2));
    let _agent = jenkins.connect("n1").await.unwrap();
    let first = jenkins.build("n1");
    first.started().await;
    muster.post("computer/n1/changeOfflineCause", &[("offlineMessage", "drained")]).await.is(302);
    let second = jenkins.build("n1");
    let node = muster.json("computer/n1/api/json").await;
    assert_eq!((&node["offline"], &node["idle"]), (&json!(true), &json!(false)));
    first.end(Outcome::Success);
    assert_eq!((first.ended().await, second.node()), (Outcome::Success, None));
    assert_eq!(muster.json("computer/n1/api/json?tree=idle").await["idle"], true);
    jenkins.mark_offline("n1", None);
    assert_eq!(second.started().await, "n1");
}

#[tokio::test]
async fn an_agent_may_connect_to_a_node_that_is_offline_and_leaves_it_so() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n1"));
    jenkins.mark_offline("n1", Some("closed"));
    let agent = jenkins.connect("n1").await.unwrap();
    let node = jenkins.until_node("n1", |node| node.is_connected).await;
    assert!(!node.is_online && reason(&jenkins).unwrap() == "closed");
    agent.stop().await;
    jenkins.until_node("n1", |node| !node.is_connected).await;
    assert_eq!(reason(&jenkins).unwrap(), "closed");
}

#[tokio::test]
async fn each_way_to_be_offline_has_its_cause() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    let read = async || {
        let node = muster.json("computer/n1/api/json?tree=offline,offlineCauseReason,offlineCause[description]").await;
        assert_eq!(node["offline"], true);
        (node["offlineCause"]["_class"].clone(), node["offlineCauseReason"].clone(), node["offlineCause"]["description"].clone())
    };
    assert_eq!(read().await, (json!(null), json!(""), json!(null)));
    jenkins.connect("n1").await.unwrap().stop().await;
    jenkins.until_node("n1", |node| node.connections == 1 && !node.is_connected).await;
    assert_eq!(read().await, (json!(null), json!(""), json!(null)));
    let agent = jenkins.connect("n1").await.unwrap();
    jenkins.until_node("n1", |node| node.is_online).await;
    assert_eq!(muster.json("computer/n1/api/json").await["absoluteRemotePath"], "/srv/agent");
    agent.kill();
    jenkins.until_node("n1", |node| !node.is_connected).await;
    let broken = "Connection was broken";
    assert_eq!(read().await, (json!("hudson.slaves.OfflineCause$ChannelTermination"), json!(broken), json!(broken)));
    muster.post("computer/n1/toggleOffline", &[("offlineMessage", "msg")]).await.is(302);
    let user = "hudson.slaves.OfflineCause$UserCause";
    assert_eq!(read().await, (json!(user), json!("msg"), json!("Disconnected by muster : msg")));
    muster.post("computer/n1/toggleOffline", &[]).await.is(302);
    assert_eq!(muster.post("computer/n1/launchSlaveAgent", &[]).await.is(302).location(), format!("{}computer/n1/log", jenkins.url()));
    assert_eq!(read().await.0, "hudson.slaves.OfflineCause$LaunchFailed");
    muster.post("computer/n1/doLaunchSlaveAgent", &[]).await.is(404);
}

#[tokio::test]
async fn a_disconnected_agent_loses_the_message_and_may_come_back() {
    let jenkins = Jenkins::start(Plan::default().user(User::new("bob").token("t").may(&[Permission::Read]))).await;
    let bob = Caller::new(&jenkins, Some(("bob", "t")));
    jenkins.put(NodeConfig::new("n1"));
    // Without an agent it is nothing, and for everybody.
    bob.post("computer/n1/doDisconnect", &[("offlineMessage", "m")]).await.is(302);
    assert_eq!(reason(&jenkins), None);
    let agent = jenkins.connect("n1").await.unwrap();
    jenkins.until_node("n1", |node| node.is_online).await;
    bob.post("computer/n1/doDisconnect", &[("offlineMessage", "m")]).await.is(403);
    Caller::muster(&jenkins).post("computer/n1/doDisconnect", &[("offlineMessage", "m")]).await.is(302);
    agent.ended().await;
    jenkins.until_node("n1", |node| !node.is_connected).await;
    assert_eq!(reason(&jenkins).unwrap(), "Connection was broken");
    let _agent = jenkins.connect("n1").await.unwrap();
    let node = jenkins.until_node("n1", |node| node.is_online).await;
    assert_eq!((node.connections, reason(&jenkins)), (2, None));
}

#[tokio::test]
async fn after_a_restart_an_offline_mark_is_not_shown_until_the_agent_is_back() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    jenkins.put(NodeConfig::new("n2"));
    for name in ["n1", "n2"] {
        muster.post(&format!("computer/{name}/changeOfflineCause"), &[("offlineMessage", "closed")]).await.is(302);
    }
    jenkins.restart().await;
    assert_eq!(muster.json("computer/n1/api/json?tree=temporarilyOffline").await["temporarilyOffline"], false);
    assert!(jenkins.node("n1").unwrap().is_marked);
    let _agent = jenkins.connect("n1").await.unwrap();
    let node = jenkins.until_node("n1", |node| node.is_connected).await;
    assert!(node.is_temporarily_offline && reason(&jenkins).unwrap() == "closed");
    // Who toggles before that to bring it online does the opposite.
    muster.post("computer/n2/toggleOffline", &[]).await.is(302);
    assert!(jenkins.node("n2").unwrap().is_temporarily_offline);
}
