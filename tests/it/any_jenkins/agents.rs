//! Agents: the controller's own jar, started as Muster starts it.

use muster::controller::jenkins::Executors;
use rustix::process::Signal;
use serde_json::json;

use super::sites;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_comes_online_with_its_secret_in_no_list_of_processes_and_goes_without_a_cause() {
    for site in sites().await {
        let name = site.create("agent").await;
        let mut agent = site.agent(&name).await;
        let node = site.until_node(&name, "online", |node| !node.is_offline).await;
        assert!(node.is_idle);
        let seen = agent.seen_arguments();
        assert!(seen.contains("/arguments") && !seen.contains(&site.muster().secret(&name).await.unwrap().secret), "{seen}");
        assert!(site.directory.path().join(name.as_str()).join("remoting").is_dir());
        agent.signal(Signal::TERM);
        assert_eq!(agent.ended(&site).await, Some(143));
        let gone = site.until_node(&name, "offline", |node| node.is_offline).await;
        assert!(!gone.is_marked && gone.reason.is_empty(), "{gone:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_of_the_first_connect_ends_the_process_with_255() {
    for site in sites().await {
        let (absent, name) = (site.name("absent"), site.create("refused").await);
        let secret = site.muster().secret(&name).await.unwrap().secret;
        assert_eq!(site.agent_with(&absent, &secret, &site.url).await.ended(&site).await, Some(255));
        assert_eq!(site.agent_with(&name, &"0".repeat(64), &site.url).await.ended(&site).await, Some(255));
        assert_eq!(site.agent_with(&name, &secret, "http://127.0.0.1:1/").await.ended(&site).await, Some(255));
        let mut first = site.agent(&name).await;
        site.until_node(&name, "online", |node| !node.is_offline).await;
        assert_eq!(site.agent(&name).await.ended(&site).await, Some(255));
        assert!(!site.muster().node(&name).await.unwrap().unwrap().is_offline);
        assert!(first.child.try_wait().unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_takes_effect_and_drops_no_agent_and_an_agent_that_is_killed_is_offline_at_once() {
    for site in sites().await {
        let (muster, name) = (site.muster(), site.create("update").await);
        let mut agent = site.agent(&name).await;
        site.until_node(&name, "online", |node| !node.is_offline).await;
        assert!(muster.update(&name, &["small".parse().unwrap()], Executors::new(5).unwrap()).await.unwrap());
        let node = muster.node(&name).await.unwrap().unwrap();
        assert!(!node.is_offline && node.executors == 5 && node.labels.contains("small"), "{node:?}");
        assert!(agent.child.try_wait().unwrap().is_none());
        agent.signal(Signal::KILL);
        let node = site.until_node(&name, "offline", |node| node.is_offline).await;
        assert!(!node.is_marked, "{node:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_ends_on_a_node_that_is_taken_out_and_the_next_one_waits_for_it_to_be_back() {
    for site in sites().await {
        let (muster, name) = (site.muster(), site.create("build").await);
        let _agent = site.agent(&name).await;
        site.until_node(&name, "online", |node| !node.is_offline).await;
        let job = site.build(&format!("l-{name}"), 3.0).await;
        site.until_node(&name, "building", |node| !node.is_idle).await;
        muster.set_offline(&name, "a new release").await.unwrap();
        let node = muster.node(&name).await.unwrap().unwrap();
        assert!(node.is_offline && node.is_marked && !node.is_idle, "{node:?}");
        let next = site.build(&format!("l-{name}"), 0.1).await;
        let result =
            async |job: &str| site.built(job).await.filter(|build| build["building"] == false).map(|build| build["result"].clone());
        assert_eq!(site.until("the build ends", || result(&job)).await, json!("SUCCESS"));
        let idle = site.until_node(&name, "idle", |node| node.is_idle).await;
        assert!(idle.is_offline && idle.reason == "a new release", "{idle:?}");
        assert_eq!(site.built(&next).await, None);
        assert!(muster.set_online(&name).await.unwrap());
        assert_eq!(site.until("the next build ends", || result(&next)).await, json!("SUCCESS"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_come_to_a_node_that_is_taken_out_and_one_whose_node_is_deleted_ends() {
    for site in sites().await {
        let (muster, name) = (site.muster(), site.create("out").await);
        muster.set_offline(&name, "not yet").await.unwrap();
        let mut agent = site.agent(&name).await;
        site.until("the agent is connected", async || agent.log().contains("Connected").then_some(())).await;
        let node = muster.node(&name).await.unwrap().unwrap();
        assert!(node.is_offline && node.is_marked, "{node:?}");
        assert!(muster.set_online(&name).await.unwrap());
        site.until_node(&name, "online", |node| !node.is_offline).await;
        assert!(muster.delete(&name).await.unwrap());
        assert_eq!(agent.ended(&site).await, Some(255));
    }
}
