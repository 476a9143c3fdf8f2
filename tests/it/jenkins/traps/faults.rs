//! Answers that get lost, come late, or are not what was asked for; and what is counted.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use super::{Ask as _, Caller, DUMB};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::door::Phase;
use crate::jenkins::routes::Op;
use crate::jenkins::{Fault, Jenkins, Plan};

#[tokio::test]
async fn a_write_whose_answer_is_lost_happened_and_one_that_is_refused_did_not() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    for (name, fault) in [("lost", Fault::Lose), ("refused", Fault::Refuse)] {
        jenkins.next(Op::Create, fault);
        let fields = [("name", name), ("type", DUMB), ("json", "{}")];
        let error = muster.request(Method::POST, "computer/doCreateItem").form_of(&fields).send().await.unwrap_err();
        assert!(!error.is_connect() && !error.is_timeout(), "{error:?}");
    }
    assert_eq!(jenkins.nodes().into_keys().collect::<Vec<_>>(), ["lost"]);
    muster.create("lost", json!({})).await.is(400);
    muster.create("refused", json!({})).await.is(302);
}

#[tokio::test]
async fn a_fault_befalls_one_request_of_its_kind() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    jenkins.next(Op::Delete, Fault::Status(500));
    muster.get("computer/n1/api/json").await.is(200);
    muster.post("computer/n1/doDelete", &[]).await.is(500);
    assert!(jenkins.node("n1").is_some());
    muster.post("computer/n1/doDelete", &[]).await.is(302);
}

#[tokio::test]
async fn a_client_that_waits_no_longer_undoes_nothing() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.next(Op::Create, Fault::Wait(Duration::from_millis(300)));
    let fields = [("name", "n1"), ("type", DUMB), ("json", "{}")];
    let impatient = tokio::spawn(muster.request(Method::POST, "computer/doCreateItem").form_of(&fields).send());
    jenkins.until_at_once(1).await;
    impatient.abort();
    assert!(impatient.await.unwrap_err().is_cancelled());
    jenkins.until_node("n1", |_| true).await;
}

#[tokio::test]
async fn requests_are_counted_by_what_they_ask_for_and_how_many_there_are_at_once() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.enter(Phase::Unanswered).await;
    let four = join_all((0..4).map(|_| muster.get("queue/api/json")));
    let answered = async {
        jenkins.until_at_once(4).await;
        jenkins.enter(Phase::Ready).await;
    };
    tokio::join!(four, answered);
    jenkins.slow(Duration::from_millis(1));
    muster.post("computer/n1/doDelete?x=y", &[]).await.is(404);
    jenkins.until_count(Op::Queue, 4).await;
    assert_eq!((jenkins.count(Op::Queue), jenkins.most_at_once()), (4, 4));
    assert_eq!(jenkins.counts().into_iter().collect::<Vec<_>>(), [(Op::Delete, 1), (Op::Queue, 4)]);
    let last = jenkins.requests().pop().unwrap();
    assert_eq!((last.method.as_str(), last.path.as_str(), last.status), ("POST", "/computer/n1/doDelete?x=y", 404));
    assert!(last.user == "muster" && last.took >= Duration::from_millis(1) && last.at.elapsed() >= last.took);
    jenkins.forget_requests();
    assert!(jenkins.requests().is_empty());
}

#[tokio::test]
async fn with_real_timings_those_who_create_wait_for_each_other() {
    let jenkins = Jenkins::start(Plan::default().real_timings()).await;
    let muster = Caller::muster(&jenkins);
    let names: Vec<String> = (0..20).map(|number| format!("n{number}")).collect();
    let began = Instant::now();
    for answer in join_all(names.iter().map(|name| muster.create(name, json!({})))).await {
        answer.is(302);
    }
    // 11.5 ms of each are its alone.
    assert!(began.elapsed() >= Duration::from_millis(20 * 11), "{:?}", began.elapsed());
    let slowest = jenkins.requests().iter().map(|seen| seen.took).max().unwrap();
    assert!(slowest >= Duration::from_millis(230), "{slowest:?}");
}
