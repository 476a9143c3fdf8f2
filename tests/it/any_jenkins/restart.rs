//! A restart of the controller, which a test has alone.

use std::time::{Duration, Instant};

use muster::controller::jenkins::{Created, JenkinsError};
use reqwest::{Method, StatusCode};

use super::{WAIT_MAX, sites_alone};

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_restarts_is_waited_for_and_agents_come_back_by_themselves() {
    for site in sites_alone().await {
        let (muster, name) = (site.muster(), site.create("restart").await);
        let mut agent = site.agent(&name).await;
        site.until_node(&name, "online", |node| !node.is_offline).await;
        let before = muster.about().await.unwrap();
        assert_eq!(site.as_admin(Method::POST, "restart").send().await.unwrap().status(), StatusCode::FOUND);
        // All the while there are reads and writes, and each says that it passes, or is done.
        let end = Instant::now() + WAIT_MAX;
        let mut made = Vec::new();
        let after = loop {
            assert!(Instant::now() < end, "it does not come back");
            let wanted = site.wanted(&site.name("meanwhile"));
            match muster.create(&wanted).await {
                Ok(Created::Made) => made.push(wanted.name.clone()),
                Ok(Created::There(there)) => panic!("{there:?}"),
                Err(error) => assert!(error.is_passing(), "{error}"),
            }
            match muster.list().await {
                Ok(_) => {}
                Err(error @ (JenkinsError::Away(_) | JenkinsError::Lost(_))) => assert!(error.is_passing()),
                Err(error) => panic!("{error}"),
            }
            match muster.about().await {
                Ok(about) if about.session != before.session && muster.who_am_i().await.is_ok() => break about,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        assert_eq!(after.version, before.version);
        site.until_node(&name, "online again", |node| !node.is_offline).await;
        assert!(agent.child.try_wait().unwrap().is_none());
        for name in &made {
            assert!(muster.node(name).await.unwrap().is_some(), "{name} was made and is not there");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_survives_a_restart_and_the_node_is_put_back_when_its_agent_is_there() {
    for site in sites_alone().await {
        let (muster, name) = (site.muster(), site.create("mark").await);
        let _agent = site.agent(&name).await;
        site.until_node(&name, "online", |node| !node.is_offline).await;
        muster.set_offline(&name, "kept").await.unwrap();
        let before = muster.about().await.unwrap();
        assert_eq!(site.as_admin(Method::POST, "restart").send().await.unwrap().status(), StatusCode::FOUND);
        site.until("it is back", async || muster.about().await.ok().filter(|about| about.session != before.session)).await;
        let marked = site.until_node(&name, "marked again", |node| node.is_marked).await;
        assert!(marked.is_offline, "{marked:?}");
        assert!(site.until("it is put back", async || muster.set_online(&name).await.ok().filter(|was| *was)).await);
        site.until_node(&name, "online again", |node| !node.is_offline).await;
    }
}
