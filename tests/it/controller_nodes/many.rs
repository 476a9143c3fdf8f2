//! Many agents at once: for `scripts/try-nodes`, as it takes the machine for a while.

use std::time::{Duration, Instant};

use super::*;
use crate::jenkins::routes::Op;

/// How long all of them may take.
const ALL_MAX: Duration = Duration::from_secs(1200);

#[expect(clippy::disallowed_methods, reason = "whoever starts the test says how much there is to be of it")]
pub(super) fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

async fn arrive(restarts: bool) {
    let count = number("TRY_NODES_AGENTS", 30);
    let site = Site::with(Plan::default().real_timings(), |_, plan| {
        plan.poll(Duration::from_secs(5)).with(|config| {
            config.runs.at_once = 128;
            // As it is unless an admin says otherwise.
            for section in config.controller.values_mut() {
                (section.requests_per_second, section.requests_at_once) = (20, 4);
            }
        })
    })
    .await;
    site.apply(json!({})).await;
    let mut agents = Vec::new();
    let began = Instant::now();
    for at in 0..count {
        agents.push(site.house.agent_process(&format!("web-{at}"), &["linux"]).await);
    }
    let started = began.elapsed();
    let (mut online_at, mut is_restarted) = (vec![None; count], false);
    while online_at.iter().any(Option::is_none) {
        assert!(began.elapsed() < ALL_MAX, "not all are online after {} s", ALL_MAX.as_secs());
        tokio::time::sleep(Duration::from_millis(200)).await;
        let listed = site.house.admin().get("/v1/agents?limit=500").await.expect(200);
        let mut ready = 0;
        for agent in listed["items"].as_array().unwrap() {
            let at: usize = agent["name"].as_str().unwrap().strip_prefix("web-").unwrap().parse().unwrap();
            if agent["state"] == "ready" {
                ready += 1;
                online_at[at].get_or_insert_with(|| began.elapsed());
            }
        }
        if restarts && !is_restarted && ready >= count / 3 {
            println!("the controller is restarted, {ready} agents are ready after {:.1} s", began.elapsed().as_secs_f64());
            site.jenkins.begin_restart();
            is_restarted = true;
        }
    }
    let took = began.elapsed();
    if restarts {
        // Those that were online before come back by themselves.
        let until = Instant::now() + ALL_MAX;
        while site.jenkins.nodes().values().filter(|node| node.is_online).count() < count {
            assert!(Instant::now() < until, "not all are back");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("all are online again after {:.1} s", began.elapsed().as_secs_f64());
    }
    let (nodes, requests) = (site.jenkins.nodes(), site.jenkins.requests());
    assert_eq!(nodes.len(), count, "a node for each agent, and no more");
    let mut waits: Vec<f64> = online_at.iter().flatten().map(Duration::as_secs_f64).collect();
    waits.sort_by(f64::total_cmp);
    let mut by_second = std::collections::BTreeMap::<u64, usize>::new();
    for seen in requests.iter().filter(|seen| seen.op != Op::Agent) {
        *by_second.entry(seen.at.duration_since(began).as_secs()).or_default() += 1;
    }
    println!("{count} agents; all programs were started within {:.1} s", started.as_secs_f64());
    println!(
        "all ready after {:.1} s; half of them after {:.1} s; the longest wait {:.1} s",
        took.as_secs_f64(),
        waits[count / 2],
        waits[count - 1]
    );
    println!(
        "{} requests, at most {} at once and {} in a second",
        requests.len(),
        site.jenkins.most_at_once(),
        by_second.values().max().unwrap_or(&0)
    );
    for (op, times) in site.jenkins.counts() {
        println!("    {op:?}: {times}");
    }
    let slowest = requests.iter().filter(|seen| seen.op != Op::Agent).map(|seen| seen.took).max().unwrap_or_default();
    println!("the slowest request took {:.2} s; redirects followed: {}", slowest.as_secs_f64(), site.jenkins.followed());
    // Those that run still would register again.
    agents.clear();
    let began = Instant::now();
    for at in 0..count {
        site.remove(&format!("web-{at}")).await;
    }
    while !site.jenkins.listed().is_empty() {
        assert!(began.elapsed() < ALL_MAX, "{:?} are not removed", site.jenkins.listed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("all removed, and their nodes with them, after {:.1} s", began.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/try-nodes runs it"]
async fn many_agents_arrive_at_once() {
    arrive(false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/try-nodes runs it"]
async fn many_agents_arrive_while_the_controller_restarts() {
    arrive(true).await;
}
