//! An orderly stream, however many ask.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::{Muster, wanted};
use crate::jenkins::routes::Op;
use crate::jenkins::{Jenkins, MUSTER_TOKEN, Plan};

#[tokio::test]
async fn no_more_requests_are_under_way_at_once_than_are_allowed() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.slow(Duration::from_millis(5));
    let muster = Muster::with(&jenkins.url(), "muster", MUSTER_TOKEN, |settings| settings.at_once = 3);
    let nodes: Vec<_> = (0..30).map(|number| wanted(&format!("n{number}"))).collect();
    for created in join_all(nodes.iter().map(|node| muster.create(node))).await {
        created.unwrap();
    }
    assert_eq!((jenkins.most_at_once(), jenkins.count(Op::Create), jenkins.nodes().len()), (3, 30, 30));
}

#[tokio::test]
async fn no_more_requests_begin_in_a_second_than_are_allowed() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Muster::with(&jenkins.url(), "muster", MUSTER_TOKEN, |settings| settings.per_second = 20);
    let began = Instant::now();
    join_all((0..9).map(|_| muster.queue())).await;
    assert!(began.elapsed() >= Duration::from_millis(8 * 50), "{:?}", began.elapsed());
    assert_eq!(jenkins.count(Op::Queue), 9);
}

#[tokio::test]
async fn who_does_not_wait_any_longer_keeps_no_place() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.slow(Duration::from_secs(3600));
    let muster = Muster::with(&jenkins.url(), "muster", MUSTER_TOKEN, |settings| settings.at_once = 1);
    {
        let impatient = std::pin::pin!(muster.queue());
        tokio::select! {
            _ = impatient => panic!("it was answered"),
            () = jenkins.until_at_once(1) => {}
        }
    }
    jenkins.slow(Duration::ZERO);
    muster.queue().await.unwrap();
}
