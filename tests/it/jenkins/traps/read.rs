//! Nodes are read.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Ask as _, Caller};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::words::Language;
use crate::jenkins::{Jenkins, Plan};

#[tokio::test]
async fn the_list_begins_with_jenkins_itself_and_counts_what_is_online() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1").executors(3));
    let path = "computer/api/json?tree=computer[displayName,offline,idle],busyExecutors,totalExecutors";
    let entry = |class: &str, name: &str, offline: bool| json!({"_class": class, "displayName": name, "offline": offline, "idle": true});
    let own = entry("hudson.model.Hudson$MasterComputer", "Built-In Node", false);
    let agent = |offline| entry("hudson.slaves.SlaveComputer", "n1", offline);
    let list = |nodes: Value, total: u64| json!({"_class": "hudson.model.ComputerSet", "busyExecutors": 0, "computer": nodes, "totalExecutors": total});
    assert_eq!(muster.json(path).await, list(json!([own, agent(true)]), 2));
    let _agent = jenkins.connect("n1").await.unwrap();
    jenkins.until_node("n1", |node| node.is_online).await;
    assert_eq!(muster.json(path).await, list(json!([own, agent(false)]), 5));
    let _build = jenkins.build("n1");
    assert_eq!(muster.json("computer/api/json").await["busyExecutors"], 1);
}

#[tokio::test]
async fn the_name_of_jenkins_own_node_is_that_of_a_language() {
    let jenkins = Jenkins::start(Plan::default().language(Language::French)).await;
    let list = Caller::muster(&jenkins).json("computer/api/json?tree=computer[displayName]").await;
    assert_ne!(list["computer"][0]["displayName"], "Built-In Node");
}

#[tokio::test]
async fn a_node_has_all_of_its_fields() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n1").label("l").executors(2));
    let node = Caller::muster(&jenkins).json("computer/n1/api/json").await;
    let monitors = ["Architecture", "Clock", "DiskSpace", "ResponseTime", "SwapSpace", "TemporarySpace"];
    let monitors: Value = monitors.iter().map(|monitor| (format!("hudson.node_monitors.{monitor}Monitor"), Value::Null)).collect();
    assert_eq!(
        node,
        json!({
            "_class": "hudson.slaves.SlaveComputer", "actions": [], "assignedLabels": [{"name": "l"}, {"name": "n1"}], "description": "",
            "displayName": "n1", "executors": [{}, {}], "icon": "symbol-computer-offline", "iconClassName": "symbol-computer-offline",
            "idle": true, "jnlpAgent": true, "launchSupported": false, "loadStatistics": {"_class": "hudson.model.Label$1"},
            "manualLaunchAllowed": true, "monitorData": monitors, "numExecutors": 2, "offline": true, "offlineCause": null,
            "offlineCauseReason": "", "oneOffExecutors": [], "temporarilyOffline": false, "absoluteRemotePath": null,
        })
    );
}

#[tokio::test]
async fn a_tree_takes_fields_of_fields_and_parts_of_lists() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    for name in ["n1", "n2", "n3"] {
        jenkins.put(NodeConfig::new(name));
    }
    let list = muster.json("computer/api/json?tree=computer[displayName]{1,3}").await;
    let names: Vec<&str> = list["computer"].as_array().unwrap().iter().map(|node| node["displayName"].as_str().unwrap()).collect();
    assert_eq!(names, ["n1", "n2"]);
    assert_eq!(muster.json("computer/api/json?tree=computer[none]{0}").await["computer"].as_array().unwrap().len(), 1);
    let encoded = muster.json("computer/n1/api/json?tree=assignedLabels%5Bname%5D%2Cexecutors%5Bidle%5D").await;
    assert_eq!(encoded["executors"], json!([{"idle": true}]));
    // What has fields of its own and is asked for none shows none.
    assert_eq!(muster.json("computer/n1/api/json?tree=assignedLabels").await["assignedLabels"], json!([{}]));
    jenkins.mark_offline("n1", Some("m"));
    let cause = muster.json("computer/n1/api/json?tree=offlineCause").await["offlineCause"].clone();
    assert_eq!(cause, json!({"_class": "hudson.slaves.OfflineCause$UserCause"}));
}

#[tokio::test]
async fn head_says_whether_there_is_a_node() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    for (name, status) in [("n1", 200), ("n2", 404)] {
        let answer = muster.request(Method::HEAD, &format!("computer/{name}/api/json")).ask().await;
        assert_eq!(answer.is(status).text, "");
    }
}

#[tokio::test]
async fn a_build_that_has_an_executor_and_did_not_start_is_neither_idle_nor_seen() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    let _agent = jenkins.connect("n1").await.unwrap();
    jenkins.hold_starts(true);
    let build = jenkins.build("n1");
    jenkins.until_node("n1", |node| node.busy_executors == 1).await;
    let path = "computer/n1/api/json?tree=idle,executors[idle,currentExecutable[url]]";
    let node = muster.json(path).await;
    assert_eq!((&node["idle"], &node["executors"]), (&json!(false), &json!([{"idle": false, "currentExecutable": null}])));
    jenkins.hold_starts(false);
    build.started().await;
    assert!(muster.json(path).await["executors"][0]["currentExecutable"]["url"].as_str().unwrap().ends_with("/1/"));
}
