//! Nodes are changed, renamed and deleted.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use super::{Ask as _, Caller};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::controller::Outcome;
use crate::jenkins::routes::Op;
use crate::jenkins::{Jenkins, Plan};

const WHOLE: &str = r#"<?xml version="1.1" encoding="UTF-8"?>
<slave>
  <name>n1</name>
  <description>a &lt; &quot;b&quot;</description>
  <remoteFS>/srv/agent</remoteFS>
  <numExecutors>2</numExecutors>
  <mode>EXCLUSIVE</mode>
  <retentionStrategy class="hudson.slaves.RetentionStrategy$Demand">
    <inDemandDelay>0</inDemandDelay>
    <idleDelay>1</idleDelay>
  </retentionStrategy>
  <launcher class="hudson.slaves.JNLPLauncher">
    <tunnel>host:1</tunnel>
    <workDirSettings>
      <disabled>false</disabled>
      <workDirPath>/w</workDirPath>
      <internalDir>remoting</internalDir>
      <failIfWorkDirIsMissing>false</failIfWorkDirIsMissing>
    </workDirSettings>
    <webSocket>true</webSocket>
  </launcher>
  <label>a b</label>
  <nodeProperties>
    <hudson.slaves.EnvironmentVariablesNodeProperty>
      <envVars serialization="custom">
        <unserializable-parents/>
        <tree-map>
          <default>
            <comparator class="java.lang.String$CaseInsensitiveComparator"/>
          </default>
          <int>1</int>
          <string>K</string>
          <string>V</string>
        </tree-map>
      </envVars>
    </hudson.slaves.EnvironmentVariablesNodeProperty>
  </nodeProperties>
</slave>"#;

#[tokio::test]
async fn a_config_xml_comes_back_as_it_was_written_in_xml_1_1() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    muster.create("n1", json!({})).await.is(302);
    for declaration in ["1.1", "1.0"] {
        let written = muster.write_config("n1", &WHOLE.replace("1.1", declaration)).await;
        assert_eq!(written.is(200).text, "");
        let read = muster.get("computer/n1/config.xml").await;
        assert_eq!((read.is(200).text.as_str(), read.header("content-type").unwrap().as_str()), (WHOLE, "application/xml"));
    }
}

#[tokio::test]
async fn an_update_takes_effect_at_once_and_keeps_the_agent() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1").label("a"));
    let _agent = jenkins.connect("n1").await.unwrap();
    jenkins.until_node("n1", |node| node.is_online).await;
    let xml = muster.get("computer/n1/config.xml").await.text;
    let xml = xml
        .replace("<label>a<", "<label>b<")
        .replace("<numExecutors>1<", "<numExecutors>4<")
        .replace("<webSocket>true<", "<webSocket>false<");
    muster.write_config("n1", &xml).await.is(200);
    let node = jenkins.node("n1").unwrap();
    assert!(node.is_online && node.connections == 1 && node.labels.contains("b") && node.config.executors == 4);
    assert_eq!(muster.json("label/b/api/json").await["totalExecutors"], 4);
}

#[tokio::test]
async fn what_a_config_xml_has_beyond_what_jenkins_knows_is_dropped_without_a_word() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    let xml = WHOLE.replace("JNLPLauncher", "NoLauncher").replace("<label>", "<surprise>x</surprise><label>");
    muster.write_config("n1", &xml).await.is(200);
    let read = muster.get("computer/n1/config.xml").await.text;
    assert!(!read.contains("surprise") && !read.contains("launcher") && read.contains("<label>a b</label>"));
}

#[tokio::test]
async fn a_config_xml_that_is_none_is_500_or_400() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    for broken in [
        "garbage",
        "<slave><name>n1</name>",
        "<node><name>n1</name></node>",
        "<slave><name>n1</name><numExecutors>x</numExecutors></slave>",
    ] {
        muster.write_config("n1", broken).await.is(500);
    }
    let form = muster.request(Method::POST, "computer/n1/config.xml").header("content-type", "application/x-www-form-urlencoded");
    form.body(WHOLE).ask().await.is(500);
    assert_eq!(muster.write_config("n1", "<slave/>").await.is(400).error(), "No name is specified");
    assert_eq!(muster.write_config("n1", &WHOLE.replace(">n1<", ">a/b<")).await.is(400).error().trim(), "/  is an unsafe character");
    muster.write_config("none", WHOLE).await.is(404);
    muster.get("computer/(built-in)/config.xml").await.is(400);
    assert_eq!(jenkins.node("n1").unwrap().config, NodeConfig::new("n1"));
}

#[tokio::test]
async fn another_name_renames_and_overwrites_who_has_it_without_a_word() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("old").label("of-old"));
    jenkins.put(NodeConfig::new("other").label("of-other"));
    let agent = jenkins.connect("old").await.unwrap();
    let xml = muster.get("computer/old/config.xml").await.text.replace(">old<", ">other<");
    muster.write_config("old", &xml).await.is(200);
    assert_eq!(jenkins.nodes().into_keys().collect::<Vec<_>>(), ["other"]);
    assert!(jenkins.node("other").unwrap().labels.contains("of-old"));
    agent.ended().await;
}

#[tokio::test]
async fn a_deleted_node_is_302_and_then_404_and_a_get_deletes_nothing() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    assert!(muster.get("computer/n1/doDelete").await.is(405).text.contains("This URL requires POST"));
    let deleted = muster.post("computer/n1/doDelete", &[]).await;
    assert_eq!((deleted.is(302).text.as_str(), deleted.location()), ("", format!("{}computer/", jenkins.url())));
    muster.post("computer/n1/doDelete", &[]).await.is(404);
    jenkins.put(NodeConfig::new("n2"));
    for answer in join_all((0..8).map(|_| muster.post("computer/n2/doDelete", &[]))).await {
        assert!(matches!(answer.status, 302 | 404), "{}", answer.status);
    }
}

#[tokio::test]
async fn the_method_delete_is_200_and_deletes_nothing() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    let answer = muster.request(Method::DELETE, "computer/n1/").ask().await;
    assert!(answer.is(200).text.starts_with("<!DOCTYPE html>"));
    let answer = muster.request(Method::DELETE, "computer/n1").ask().await;
    assert_eq!(answer.is(302).location(), format!("{}computer/n1/", jenkins.url()));
    assert!(jenkins.node("n1").is_some());
    assert_eq!((jenkins.count(Op::NodePage), jenkins.followed()), (2, 0));
}

#[tokio::test]
async fn a_build_on_a_deleted_node_fails_and_its_agent_is_dropped() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    let agent = jenkins.connect("n1").await.unwrap();
    let build = jenkins.build("n1");
    assert_eq!(build.started().await, "n1");
    muster.post("computer/n1/doDelete", &[]).await.is(302);
    assert_eq!(build.ended().await, Outcome::Failure);
    agent.ended().await;
    assert_eq!(jenkins.connect("n1").await.err(), Some(400));
}

#[tokio::test]
async fn with_real_timings_a_deleted_node_that_builds_is_listed_for_a_moment() {
    let jenkins = Jenkins::start(Plan::default().real_timings()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    let _agent = jenkins.connect("n1").await.unwrap();
    let build = jenkins.build("n1");
    build.started().await;
    let lingers = jenkins.until("the node is listed without being there", |jenkins| {
        (jenkins.node("n1").is_none() && jenkins.listed() == ["n1"] && build.outcome().is_none()).then_some(())
    });
    let (deleted, ()) = tokio::join!(muster.post("computer/n1/doDelete", &[]), lingers);
    deleted.is(302);
    jenkins.until("the node is gone", |jenkins| jenkins.listed().is_empty().then_some(())).await;
    assert_eq!(build.ended().await, Outcome::Failure);
}
