//! A controller that restarts is waited for, and not believed.

use std::time::Duration;

use muster::controller::jenkins::{Created, JenkinsError};

use super::{Muster, is_away, patiently, wanted};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::door::Phase;
use crate::jenkins::routes::Op;
use crate::jenkins::{Jenkins, MUSTER_TOKEN, Plan};

#[tokio::test]
async fn in_every_phase_of_a_restart_it_is_away_and_only_without_an_answer_a_write_is_lost() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Muster::with(&jenkins.url(), "muster", MUSTER_TOKEN, |settings| settings.timeout = Duration::from_millis(200));
    for phase in
        [Phase::Restarting, Phase::Unauthorized, Phase::Refused, Phase::GettingReady, Phase::NoCrumb, Phase::AlmostReady, Phase::Unanswered]
    {
        jenkins.enter(phase).await;
        let (read, write) = (muster.list().await, muster.create(&wanted("n1")).await);
        assert!(is_away(&read), "{phase:?}: {read:?}");
        match phase {
            Phase::Unanswered => assert!(matches!(write, Err(JenkinsError::Lost(_))), "{write:?}"),
            _ => assert!(is_away(&write), "{phase:?}: {write:?}"),
        }
        assert!(is_away(&muster.about().await), "{phase:?}");
    }
}

#[tokio::test]
async fn a_node_that_is_wanted_while_it_restarts_is_made_once_when_it_is_back() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n0"));
    let muster = Muster::of(&jenkins);
    muster.list().await.unwrap();
    let before = muster.last_about().unwrap();
    assert_eq!(before.session, jenkins.session());
    jenkins.begin_restart();
    let node = wanted("n1");
    let created = patiently(async || muster.create(&node).await).await.unwrap();
    assert!(matches!(created, Created::Made | Created::There(_)));
    jenkins.until_ready().await;
    assert_eq!(jenkins.listed(), ["n0", "n1"]);
    // A write's answer says nothing of Jenkins itself.
    muster.list().await.unwrap();
    let after = muster.last_about().unwrap();
    assert!(after.session != before.session && after.version == before.version);
}

#[tokio::test]
async fn what_is_asked_in_a_loop_makes_jenkins_keep_no_sessions() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n1"));
    let muster = Muster::of(&jenkins);
    for _ in 0..5 {
        muster.list().await.unwrap();
        muster.queue().await.unwrap();
        muster.label(&"linux".parse().unwrap()).await.unwrap();
        muster.who_am_i().await.unwrap();
    }
    assert_eq!((jenkins.sessions(), jenkins.count(Op::Login)), (0, 0));
}
