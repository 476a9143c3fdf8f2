//! Jenkins restarts.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use super::Caller;
use crate::jenkins::config::NodeConfig;
use crate::jenkins::controller::Outcome;
use crate::jenkins::door::Phase;
use crate::jenkins::{Jenkins, Plan};

#[tokio::test]
async fn a_client_with_a_valid_token_sees_every_phase() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    let list = async || muster.get("computer/api/json").await;
    let create = async || muster.create("n1", json!({})).await;
    jenkins.enter(Phase::Restarting).await;
    let unready = list().await;
    assert!(unready.is(503).text.contains("Please wait while Jenkins is restarting") && unready.text.len() < 1000);
    assert!(!unready.is_signed() && unready.header("retry-after").is_none());
    create().await.is(503);
    jenkins.enter(Phase::Unauthorized).await;
    list().await.is(401);
    create().await.is(401);
    jenkins.enter(Phase::Refused).await;
    let refused = muster.request(Method::GET, "login").send().await.unwrap_err();
    assert!(refused.is_connect(), "{refused:?}");
    jenkins.enter(Phase::Unanswered).await;
    let unanswered = muster.request(Method::GET, "login").timeout(Duration::from_millis(50)).send().await.unwrap_err();
    assert!(unanswered.is_timeout() && !unanswered.is_connect(), "{unanswered:?}");
    jenkins.enter(Phase::GettingReady).await;
    for answer in [list().await, create().await, Caller::anonymous(&jenkins).get("login").await] {
        assert!(answer.is(503).text.contains("Please wait while Jenkins is getting ready to work"));
    }
    jenkins.enter(Phase::NoCrumb).await;
    assert!(create().await.is(403).text.contains("No valid crumb"));
    list().await.is(503);
    jenkins.enter(Phase::AlmostReady).await;
    create().await.is(503);
    assert!(jenkins.nodes().is_empty());
    jenkins.enter(Phase::Ready).await;
    create().await.is(302);
}

#[tokio::test]
async fn what_was_under_way_is_reset_when_the_process_goes() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.slow(Duration::from_secs(3600));
    let under_way = tokio::spawn(muster.request(Method::GET, "computer/api/json").send());
    jenkins.until_at_once(1).await;
    jenkins.enter(Phase::Refused).await;
    assert!(under_way.await.unwrap().is_err());
}

#[tokio::test]
async fn nodes_and_the_queue_survive_a_restart_and_agents_and_builds_do_not() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n1").label("l"));
    let agent = jenkins.connect("n1").await.unwrap();
    let (running, waiting) = (jenkins.build("n1"), jenkins.build("l"));
    running.started().await;
    let session = jenkins.session();
    jenkins.restart().await;
    agent.ended().await;
    assert_ne!(jenkins.session(), session);
    assert_eq!((running.ended().await, waiting.outcome()), (Outcome::Failure, None));
    let node = jenkins.node("n1").unwrap();
    assert!(!node.is_connected && node.cause.is_none());
    let _agent = jenkins.connect("n1").await.unwrap();
    assert_eq!(waiting.started().await, "n1");
}

#[tokio::test]
async fn a_restart_over_rest_is_for_administrators_and_a_safe_one_waits_for_builds() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let (muster, admin) = (Caller::muster(&jenkins), Caller::admin(&jenkins));
    muster.post("restart", &[]).await.is(403);
    jenkins.put(NodeConfig::new("n1"));
    let _agent = jenkins.connect("n1").await.unwrap();
    let build = jenkins.build("n1");
    build.started().await;
    let session = jenkins.session();
    admin.post("safeRestart", &[]).await.is(302);
    let later = jenkins.build("n1");
    assert_eq!(muster.json("api/json?tree=quietingDown").await["quietingDown"], true);
    build.end(Outcome::Success);
    jenkins.until("it restarts", |jenkins| (jenkins.phase() == Phase::Restarting).then_some(())).await;
    jenkins.until_ready().await;
    assert_eq!((build.outcome(), later.outcome()), (Some(Outcome::Success), None));
    assert_ne!(jenkins.session(), session);
    admin.post("restart", &[]).await.is(302);
    assert_eq!(jenkins.phase(), Phase::Restarting);
    jenkins.until_ready().await;
    muster.get("computer/api/json").await.is(200);
}

#[tokio::test]
async fn sessions_do_not_survive_a_restart() {
    let jenkins = Jenkins::start(Plan::default()).await;
    Caller::muster(&jenkins).get("computer/").await.is(200);
    assert_eq!(jenkins.sessions(), 1);
    jenkins.restart().await;
    assert_eq!(jenkins.sessions(), 0);
}
