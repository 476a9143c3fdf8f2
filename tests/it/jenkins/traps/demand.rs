//! The queue, labels and builds.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{Ask as _, Caller};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::controller::Outcome;
use crate::jenkins::{Jenkins, Plan};

async fn whys(muster: &Caller, language: &str) -> Vec<String> {
    let queue = muster.request(Method::GET, "queue/api/json?tree=items[why]").header("Accept-Language", language).ask().await;
    let queue: Value = serde_json::from_str(&queue.is(200).text).unwrap();
    queue["items"].as_array().unwrap().iter().map(|item| item["why"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_waiting_build_says_why_in_the_client_s_language() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    let _build = jenkins.build("zeta");
    assert_eq!(whys(&muster, "en").await, ["There are no nodes with the label ‘zeta’"]);
    jenkins.put(NodeConfig::new("z1").label("zeta"));
    assert_eq!(whys(&muster, "en").await, ["‘z1’ is offline"]);
    assert_ne!(whys(&muster, "de").await, ["‘z1’ is offline"]);
    jenkins.put(NodeConfig::new("z2").label("zeta"));
    assert_eq!(whys(&muster, "en").await, ["All nodes of label ‘zeta’ are offline"]);
    Caller::admin(&jenkins).post("quietDown", &[]).await.is(302);
    assert_eq!(whys(&muster, "en").await, ["Jenkins is about to shut down"]);
    assert_eq!(muster.json("api/json?tree=quietingDown").await["quietingDown"], true);
    Caller::admin(&jenkins).post("cancelQuietDown", &[]).await.is(302);
    let _agents = [jenkins.connect("z1").await.unwrap(), jenkins.connect("z2").await.unwrap()];
    jenkins.until("the queue is empty", |jenkins| (jenkins.queue_length() == 0).then_some(())).await;
    let _builds = [jenkins.build("zeta"), jenkins.build("zeta")];
    assert_eq!(whys(&muster, "en").await, ["Waiting for next available executor on ‘zeta’"]);
}

#[tokio::test]
async fn an_item_of_the_queue_has_no_label_and_is_stuck_after_a_while() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.build_of("j", Some("zeta"));
    let tree = "queue/api/json?tree=items[id,why,stuck,blocked,buildable,inQueueSince,task[name]]";
    let item = muster.json(tree).await["items"][0].clone();
    assert_eq!(
        (&item["id"], &item["stuck"], &item["buildable"], &item["task"]["name"]),
        (&json!(1), &json!(false), &json!(true), &json!("j"))
    );
    assert!(item["inQueueSince"].as_u64().unwrap() > 1_700_000_000_000 && item.get("label").is_none());
    let impatient = Jenkins::start(Plan::default().stuck_after(Duration::ZERO)).await;
    impatient.build("zeta");
    assert_eq!(Caller::muster(&impatient).json(tree).await["items"][0]["stuck"], true);
}

#[tokio::test]
async fn a_label_counts_what_is_online_and_an_unknown_one_is_zeros() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1").label("x y").executors(2));
    jenkins.put(NodeConfig::new("n2").label("x").executors(4));
    let _agent = jenkins.connect("n1").await.unwrap();
    jenkins.build_of("j", Some("x")).started().await;
    let counts = async |label: &str| {
        let label = muster.json(&format!("label/{label}/api/json")).await;
        ["totalExecutors", "busyExecutors", "idleExecutors"].map(|field| label[field].as_u64().unwrap())
    };
    assert_eq!(counts("x").await, [2, 1, 1]);
    assert_eq!(counts("n2").await, [0, 0, 0]);
    let label = muster.json("label/x/api/json").await;
    assert_eq!(
        label["nodes"],
        json!([{"_class": "hudson.slaves.DumbSlave", "nodeName": "n1"}, {"_class": "hudson.slaves.DumbSlave", "nodeName": "n2"}])
    );
    assert_eq!((&label["tiedJobs"][0]["name"], &label["offline"], &label["clouds"]), (&json!("j"), &json!(false), &json!([])));
    let unknown = muster.json("label/unknown/api/json").await;
    assert_eq!((&unknown["totalExecutors"], &unknown["nodes"], &unknown["tiedJobs"]), (&json!(0), &json!([]), &json!([])));
    for (expression, class, nodes) in [
        ("x%26%26y", "And", 1),
        ("x%7C%7Cy", "Or", 2),
        ("x&&!y", "And", 1),
        ("(x||y)&&n2", "And", 1),
        ("!x", "Not", 1),
        ("y->x", "Implies", 3),
        ("x<->y", "Iff", 2),
        ("(x)", "Paren", 2),
    ] {
        let label = muster.json(&format!("label/{expression}/api/json")).await;
        assert_eq!(label["_class"], format!("hudson.model.labels.LabelExpression${class}"), "{expression}");
        assert_eq!(label["nodes"].as_array().unwrap().len(), nodes, "{expression}");
    }
}

#[tokio::test]
async fn averages_of_load_are_no_counts_and_know_nothing_of_labels_without_nodes() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.build("zeta");
    let path = "api/json?tree=queueLength[sec10[latest]]";
    let overall = muster.json(&format!("overallLoad/{path}")).await;
    assert_eq!(overall["queueLength"]["sec10"]["latest"], 0.27);
    let label = muster.json(&format!("label/zeta/loadStatistics/{path}")).await;
    assert_eq!(label["queueLength"]["sec10"]["latest"], 0.0);
}

#[tokio::test]
async fn a_node_for_its_own_jobs_takes_no_others() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    muster.create("n1", json!({"labelString": "x"})).await.is(302);
    let _agent = jenkins.connect("n1").await.unwrap();
    jenkins.until_node("n1", |node| node.is_online).await;
    assert_eq!(jenkins.build_of("any", None).started().await, "(built-in)");
    assert_eq!(jenkins.build("x").started().await, "n1");
}

#[tokio::test]
async fn a_build_ends_as_it_is_told_or_fails_with_its_agent() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n1").executors(2));
    let _agent = jenkins.connect("n1").await.unwrap();
    let (told, lost) = (jenkins.build("n1"), jenkins.build("n1"));
    jenkins.until_node("n1", |node| node.busy_executors == 2).await;
    told.end(Outcome::Success);
    assert_eq!((told.outcome(), lost.outcome()), (Some(Outcome::Success), None));
    jenkins.break_agent("n1");
    assert_eq!(lost.ended().await, Outcome::Failure);
    assert_eq!(jenkins.until_node("n1", |node| !node.is_connected).await.busy_executors, 0);
}

#[tokio::test]
async fn a_job_made_over_rest_is_queued_once_and_ends_when_its_sleep_does() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let admin = Caller::admin(&jenkins);
    let xml = "<project><assignedNode>x</assignedNode><builders><hudson.tasks.Shell><command>sleep 0.01</command></hudson.tasks.Shell></builders></project>";
    let made = admin.request(Method::POST, "createItem?name=j").header("content-type", "application/xml").body(xml).ask().await;
    made.is(200);
    for _ in 0..2 {
        let queued = admin.post("job/j/build", &[]).await;
        assert_eq!(queued.is(201).location(), format!("{}queue/item/1/", jenkins.url()));
    }
    assert_eq!(jenkins.queue_length(), 1);
    jenkins.put(NodeConfig::new("n1").label("x"));
    let _agent = jenkins.connect("n1").await.unwrap();
    let build = jenkins.until("the build is ended", |jenkins| {
        jenkins.inner.read(|controller| controller.build_json("j", "lastBuild", "").filter(|build| build["building"] == false))
    });
    assert_eq!(build.await["result"], "SUCCESS");
    let build = admin.json("job/j/1/api/json").await;
    assert_eq!((&build["builtOn"], &build["queueId"]), (&json!("n1"), &json!(1)));
    assert_eq!(admin.json("queue/item/1/api/json").await["executable"]["number"], 1);
    let long = "<project><assignedNode>x</assignedNode></project>";
    admin.request(Method::POST, "createItem?name=long").header("content-type", "application/xml").body(long).ask().await.is(200);
    admin.post("job/long/build", &[]).await.is(201);
    admin.post("job/long/1/stop", &[]).await.is(302);
    assert_eq!(admin.json("job/long/1/api/json").await["result"], "FAILURE");
    Caller::muster(&jenkins).post("job/j/build", &[]).await.is(403);
}
