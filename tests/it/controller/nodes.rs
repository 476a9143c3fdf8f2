//! The life of a node, call by call.

use std::collections::BTreeSet;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use futures_util::future::join_all;
use muster::controller::jenkins::{Created, JenkinsError};

use super::{Muster, executors, labels, name, serve, wanted};
use crate::jenkins::config::{Mode, NodeConfig, Retention};
use crate::jenkins::controller::Outcome;
use crate::jenkins::routes::Op;
use crate::jenkins::words::Language;
use crate::jenkins::{Fault, Jenkins, Plan, Version};

#[tokio::test]
async fn a_node_is_made_as_it_was_wanted_and_no_redirect_is_followed() {
    for version in [Version::V2_372, Version::V2_452_2] {
        let jenkins = Jenkins::start(Plan::default().version(version)).await;
        let muster = Muster::of(&jenkins);
        assert_eq!(muster.create(&wanted("n1")).await.unwrap(), Created::Made);
        let config = jenkins.node("n1").unwrap().config;
        assert_eq!((config.executors, config.label.as_str(), config.remote_fs.as_str()), (2, "linux large", "/srv/agent"));
        assert_eq!(
            (config.mode, config.retention, config.description.as_str()),
            (Mode::Exclusive, Some(Retention::Always), "an agent of Muster's")
        );
        assert!(config.launcher.unwrap().web_socket);
        assert_eq!(config.environment, [("JAVA".to_owned(), "a <b> & \"c\"".to_owned())]);
        muster.set_offline(&name("n1"), "over").await.unwrap();
        muster.set_online(&name("n1")).await.unwrap();
        muster.delete(&name("n1")).await.unwrap();
        assert_eq!(jenkins.followed(), 0);
    }
}

#[tokio::test]
async fn a_node_that_is_there_is_told_as_it_is_and_left_so_in_any_language() {
    for version in [Version::V2_372, Version::V2_452_2] {
        let jenkins = Jenkins::start(Plan::default().version(version).language(Language::German)).await;
        jenkins.put(NodeConfig::new("n1").label("theirs").executors(7));
        let before = jenkins.node("n1").unwrap().config;
        let Created::There(node) = Muster::of(&jenkins).create(&wanted("n1")).await.unwrap() else { panic!("it was made") };
        assert_eq!((node.name.as_str(), node.executors, node.labels), ("n1", 7, BTreeSet::from(["theirs".to_owned()])));
        assert_eq!(jenkins.node("n1").unwrap().config, before);
    }
}

#[tokio::test]
async fn a_node_that_jenkins_keeps_and_does_not_show_is_refused_in_its_words() {
    let jenkins = Jenkins::start(Plan::default().language(Language::French)).await;
    jenkins.put(NodeConfig::new("ghost").executors(0));
    let muster = Muster::of(&jenkins);
    let error = muster.create(&wanted("ghost")).await.unwrap_err();
    assert_eq!(error.to_string(), "the controller refuses: Agent called ghost already exists");
    assert!(matches!(error, JenkinsError::Refused(_)) && !error.is_passing());
    assert_eq!(muster.node(&name("ghost")).await.unwrap(), None);
    assert!(!muster.delete(&name("ghost")).await.unwrap());
}

#[tokio::test]
async fn of_many_who_make_one_node_one_does_and_the_others_find_it() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Muster::of(&jenkins);
    let node = wanted("n1");
    let all = join_all((0..16).map(|_| muster.create(&node))).await;
    let made = all.into_iter().filter(|created| *created.as_ref().unwrap() == Created::Made).count();
    assert_eq!((made, jenkins.nodes().len()), (1, 1));
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_known_by_looking_and_not_asked_again_by_itself() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Muster::of(&jenkins);
    for (fault, is_there) in [(Fault::Lose, true), (Fault::Refuse, false)] {
        let text = format!("n-{is_there}");
        jenkins.next(Op::Create, fault);
        let error = muster.create(&wanted(&text)).await.unwrap_err();
        assert!(matches!(error, JenkinsError::Lost(_)) && error.is_passing(), "{error}");
        assert_eq!(muster.node(&name(&text)).await.unwrap().is_some(), is_there);
    }
    assert_eq!(jenkins.count(Op::Create), 2);
    jenkins.next(Op::Delete, Fault::Lose);
    assert!(matches!(muster.delete(&name("n-true")).await, Err(JenkinsError::Lost(_))));
    assert!(!muster.delete(&name("n-true")).await.unwrap(), "it was removed");
    // What only looks changes nothing, so nothing is lost.
    jenkins.next(Op::List, Fault::Lose);
    assert!(matches!(muster.list().await, Err(JenkinsError::Away(_))));
}

#[tokio::test]
async fn the_list_has_agents_and_not_jenkins_itself_whatever_it_is_called() {
    let jenkins = Jenkins::start(Plan::default().language(Language::German)).await;
    jenkins.put(NodeConfig::new("n1").label("a b"));
    jenkins.put(NodeConfig::new("Built-In Node"));
    jenkins.put(NodeConfig::new("ghost").executors(0));
    let _agent = jenkins.connect("n1").await.unwrap();
    let build = jenkins.build("n1");
    build.started().await;
    let nodes = Muster::of(&jenkins).list().await.unwrap();
    let mut names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["Built-In Node", "n1"]);
    let n1 = nodes.iter().find(|node| node.name == "n1").unwrap();
    assert!(!n1.is_offline && !n1.is_idle && !n1.is_marked);
    assert_eq!(n1.labels, ["a", "b"].map(ToOwned::to_owned).into());
    build.end(Outcome::Success);
}

#[tokio::test]
async fn a_build_that_has_an_executor_and_did_not_start_is_not_idle() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n1"));
    let _agent = jenkins.connect("n1").await.unwrap();
    jenkins.hold_starts(true);
    let _build = jenkins.build("n1");
    jenkins.until_node("n1", |node| node.busy_executors == 1).await;
    assert!(!Muster::of(&jenkins).node(&name("n1")).await.unwrap().unwrap().is_idle);
}

#[tokio::test]
async fn an_update_changes_labels_and_executors_and_nothing_else_and_drops_no_agent() {
    for version in [Version::V2_372, Version::V2_452_2] {
        let jenkins = Jenkins::start(Plan::default().version(version)).await;
        let muster = Muster::of(&jenkins);
        muster.create(&wanted("n1")).await.unwrap();
        let agent = jenkins.connect("n1").await.unwrap();
        let mut expected = jenkins.node("n1").unwrap().config;
        assert!(muster.update(&name("n1"), &labels(&["linux", "small"]), executors(3)).await.unwrap());
        expected.label = "linux small".into();
        expected.executors = 3;
        let node = jenkins.node("n1").unwrap();
        assert_eq!(node.config, expected);
        assert!(node.is_connected && node.connections == 1);
        // The same again, in another order, is nothing to write.
        assert!(!muster.update(&name("n1"), &labels(&["small", "linux"]), executors(3)).await.unwrap());
        assert_eq!(jenkins.count(Op::WriteConfig), 1);
        drop(agent);
        assert!(matches!(muster.update(&name("n2"), &[], executors(1)).await, Err(JenkinsError::Missing(_))));
    }
}

#[tokio::test]
async fn what_would_rename_a_node_over_another_is_never_sent() {
    // There is no way to write here: whoever tries is told so, and not what was read.
    let xml = |text: &'static str| serve(Router::new().route("/computer/n1/config.xml", get(async move || text)));
    for text in [
        "<slave><name>n2</name><numExecutors>1</numExecutors><label>a</label></slave>",
        "<slave><name>n1</name><name>n2</name><numExecutors>1</numExecutors></slave>",
        "<slave><!-- <name>n1</name> --><numExecutors>1</numExecutors></slave>",
        "<slave><name> n1</name><numExecutors>1</numExecutors></slave>",
        "<!DOCTYPE slave [<!ENTITY n \"n2\">]><slave><name>n1</name><numExecutors>1</numExecutors></slave>",
        "<project><name>n1</name></project>",
        "<html>Sign in</html>",
    ] {
        let muster = Muster::with(&xml(text).await, "u", "t", |_| {});
        let error = muster.update(&name("n1"), &labels(&["b"]), executors(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "the controller answered with what is no config.xml of the node `n1`", "{text}");
    }
}

#[tokio::test]
async fn a_node_is_taken_out_again_and_again_with_the_last_reason_and_its_build_goes_on() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n1"));
    let _agent = jenkins.connect("n1").await.unwrap();
    let build = jenkins.build("n1");
    build.started().await;
    let muster = Muster::of(&jenkins);
    muster.set_offline(&name("n1"), "first").await.unwrap();
    muster.set_offline(&name("n1"), "a new\nimage\u{1b}[2J").await.unwrap();
    let node = muster.node(&name("n1")).await.unwrap().unwrap();
    assert!(node.is_offline && node.is_marked && !node.is_idle);
    assert_eq!(node.reason, "a new image [2J");
    build.end(Outcome::Success);
    assert_eq!(build.ended().await, Outcome::Success);
    assert!(matches!(muster.set_offline(&name("n2"), "x").await, Err(JenkinsError::Missing(_))));
}

#[tokio::test]
async fn a_node_is_put_back_only_if_it_is_out_since_the_call_for_it_toggles() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n1"));
    let muster = Muster::of(&jenkins);
    assert!(!muster.set_online(&name("n1")).await.unwrap());
    jenkins.mark_offline("n1", Some("x"));
    assert!(muster.set_online(&name("n1")).await.unwrap());
    assert!(!muster.set_online(&name("n1")).await.unwrap());
    assert!(!jenkins.node("n1").unwrap().is_marked);
    assert_eq!(jenkins.count(Op::Toggle), 1);
    // After a restart the mark is on the disk and not told: to toggle then would make it, and not take it away.
    jenkins.mark_offline("n1", Some("x"));
    jenkins.restart().await;
    assert!(!muster.set_online(&name("n1")).await.unwrap());
    assert_eq!(jenkins.count(Op::Toggle), 1);
    let _agent = jenkins.connect("n1").await.unwrap();
    assert!(muster.set_online(&name("n1")).await.unwrap());
    assert!(!jenkins.node("n1").unwrap().is_marked);
}

#[tokio::test]
async fn a_node_is_removed_by_the_call_that_removes_and_one_that_is_gone_is_removed() {
    for version in [Version::V2_372, Version::V2_452_2] {
        let jenkins = Jenkins::start(Plan::default().version(version)).await;
        jenkins.put(NodeConfig::new("n1"));
        let muster = Muster::of(&jenkins);
        let node = name("n1");
        let removed = join_all((0..4).map(|_| muster.delete(&node))).await;
        assert!(removed.iter().all(Result::is_ok) && jenkins.node("n1").is_none());
        assert!(!muster.delete(&node).await.unwrap());
        assert_eq!(muster.node(&node).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_nodes_secret_comes_with_the_url_that_jenkins_believes_it_has() {
    let jenkins = Jenkins::start(Plan::default().root_url_is("https://jenkins.example/a&b/")).await;
    jenkins.put(NodeConfig::new("n1"));
    let muster = Muster::of(&jenkins);
    let inbound = muster.secret(&name("n1")).await.unwrap();
    assert_eq!((inbound.secret.as_str(), inbound.url.as_str()), (jenkins.secret("n1").as_str(), "https://jenkins.example/a&b/"));
    assert!(matches!(muster.secret(&name("n2")).await, Err(JenkinsError::Missing(_))));
    // What is encrypted, which anybody gets, is no secret.
    let odd = serve(Router::new().route("/computer/n1/jenkins-agent.jnlp", get(async || [0_u8, 159, 146, 150].to_vec()))).await;
    assert!(matches!(Muster::with(&odd, "u", "t", |_| {}).secret(&name("n1")).await, Err(JenkinsError::Odd(_))));
}

#[tokio::test]
async fn agent_jar_is_fetched_once_a_start_without_a_credential() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Muster::of(&jenkins);
    let first = muster.jar(None).await.unwrap().unwrap();
    assert_eq!(first.bytes, jenkins.agent_jar());
    assert!(muster.jar(first.modified.as_deref()).await.unwrap().is_none());
    assert!(jenkins.requests().iter().all(|seen| seen.user == "anonymous"));
    let page = serve(Router::new().route("/jnlpJars/agent.jar", get(async || "<html>Sign in</html>"))).await;
    assert!(matches!(Muster::with(&page, "u", "t", |_| {}).jar(None).await, Err(JenkinsError::Odd(_))));
}

#[tokio::test]
async fn a_jenkins_below_a_path_is_asked_below_that_path() {
    let list = || async { axum::Json(serde_json::json!({"computer": []})) };
    let create = || async { (StatusCode::FOUND, [("location", "https://jenkins.example/ci/computer/")]) };
    let routes = Router::new().route("/ci/computer/api/json", get(list)).route("/ci/computer/doCreateItem", post(create));
    let url = serve(routes).await;
    for url in [format!("{url}ci"), format!("{url}ci/")] {
        let muster = Muster::with(&url, "u", "t", |_| {});
        assert_eq!(muster.list().await.unwrap(), []);
        assert_eq!(muster.create(&wanted("n1")).await.unwrap(), Created::Made);
    }
}
