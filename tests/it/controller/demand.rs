//! What waits at a controller, by label.

use serde_json::{Value, json};

use super::check::{Known, knowing};
use crate::house::{House, TEAM};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::controller::Outcome;
use crate::jenkins::door::Phase;
use crate::jenkins::routes::Op;
use crate::jenkins::{Jenkins, MUSTER_TOKEN, Plan};

fn policy() -> Value {
    json!({"team": TEAM, "module": "ok", "launch": {"controller": "main"}})
}

async fn demanding(jenkins: &Jenkins) -> Known {
    let known = knowing(&jenkins.url(), "muster", MUSTER_TOKEN, |plan| plan).await;
    known.house.upload("ok").await;
    known.house.apply("linux", policy()).await;
    known
}

async fn until_demand(house: &House, wanted: impl Fn(&Value) -> bool) -> Value {
    house.until("/v1/labels/linux/demand", wanted).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_grows_by_what_waits_for_it_and_not_by_what_can_be_built_at_once() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let known = demanding(&jenkins).await;
    let nothing = known.house.admin().get("/v1/labels/linux/demand").await.expect(200);
    assert_eq!((&nothing["queued"], &nothing["should_grow"], &nothing["reasons"]), (&json!(0), &json!(0), &json!({})), "{nothing}");
    assert_eq!((&nothing["label"], &nothing["controller"]), (&json!("linux"), &json!("main")));

    // Nobody has the label: Jenkins' own average says 0 for these.
    let builds = [jenkins.build("linux"), jenkins.build("linux"), jenkins.build("linux")];
    let _other = jenkins.build("mac");
    let three = until_demand(&known.house, |demand| demand["queued"] == 3).await;
    assert_eq!((&three["should_grow"], &three["reasons"]), (&json!(3), &json!({"no-nodes": 3})), "{three}");

    // A machine with two executors comes.
    jenkins.put(NodeConfig::new("n1").label("linux").executors(2));
    until_demand(&known.house, |demand| demand["reasons"] == json!({"offline": 3})).await;
    let _agent = jenkins.connect("n1").await.unwrap();
    let busy = until_demand(&known.house, |demand| demand["busy"] == 2).await;
    assert_eq!(
        (&busy["queued"], &busy["idle"], &busy["should_grow"], &busy["reasons"]),
        (&json!(1), &json!(0), &json!(1), &json!({"busy": 1}))
    );
    for build in &builds {
        build.started().await;
        build.end(Outcome::Success);
    }
    let idle = until_demand(&known.house, |demand| demand["idle"] == 2).await;
    assert_eq!((&idle["queued"], &idle["should_grow"], &idle["oldest_waiting_seconds"]), (&json!(0), &json!(0), &json!(0)));
    assert_eq!((jenkins.sessions(), jenkins.followed()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_are_metrics_as_well_and_go_when_they_are_too_old() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let known = demanding(&jenkins).await;
    let _build = jenkins.build("linux");
    until_demand(&known.house, |demand| demand["queued"] == 1).await;
    let until_metrics = async |wanted: &[&str], unwanted: &str| {
        let look = async || {
            let text = known.house.client(None).get("/metrics").await.text;
            (wanted.iter().all(|line| text.contains(line)) && (unwanted.is_empty() || !text.contains(unwanted))).then_some(())
        };
        crate::house::eventually(look).await.unwrap_or_else(|| panic!("no {wanted:?}, or {unwanted}"));
    };
    let told = [
        "muster_demand_queued{controller=\"main\",label=\"linux\",reason=\"no-nodes\"} 1",
        "muster_demand_should_grow{controller=\"main\",label=\"linux\"} 1",
    ];
    until_metrics(&[told[0], told[1], "muster_controller_answers{controller=\"main\"} 1"], "").await;

    jenkins.enter(Phase::Restarting).await;
    // For a while the last figures are told, with the reason why there are no newer ones; then none are.
    let old = until_demand(&known.house, |demand| demand.get("problem").is_some()).await;
    assert_eq!(old["should_grow"], 1);
    until_metrics(&["muster_controller_answers{controller=\"main\"} 0"], "muster_demand_queued{controller=\"main\",label=\"linux\"").await;
    let gone = known.house.admin().get("/v1/labels/linux/demand").await;
    assert_eq!(gone.headers["retry-after"], "15");
    let problem = gone.problem(503);
    assert!(
        problem["code"] == "controller-away" && problem["detail"].as_str().unwrap().contains("Please wait while Jenkins is restarting")
    );
    jenkins.enter(Phase::Refused).await;
    jenkins.enter(Phase::Ready).await;
    until_demand(&known.house, |demand| demand.get("problem").is_none() && demand["queued"] == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_no_policy_names_is_not_asked() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let known = knowing(&jenkins.url(), "muster", MUSTER_TOKEN, |plan| plan).await;
    known.house.upload("ok").await;
    known.house.apply("linux", json!({"team": TEAM, "module": "ok"})).await;
    known.house.admin().get("/v1/labels/linux/demand").await.problem(404);
    // At its start the server looks once whether nodes of its own were left behind there.
    assert!(jenkins.requests().iter().all(|seen| seen.op == Op::List) && jenkins.count(Op::List) <= 1);
    known.house.apply("linux", policy()).await;
    // At once, and not at the end of an interval: whoever asks makes it look.
    known.house.admin().get("/v1/labels/linux/demand").await.expect(200);
    assert_eq!(jenkins.count(Op::Queue), jenkins.count(Op::Label));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_names_a_controller_that_is_there_and_a_team_does_not_choose_it() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let known = knowing(&jenkins.url(), "muster", MUSTER_TOKEN, |plan| plan).await;
    let house = &known.house;
    house.upload("ok").await;
    let mut other = policy();
    other["launch"]["controller"] = "other".into();
    let problem = house.admin().put("/v1/labels/linux", other).await.problem(422);
    assert!(problem["code"] == "unknown" && problem["detail"].as_str().unwrap().contains("no controller `other`"), "{problem}");
    for more in [json!({"controller": "main", "none": true}), json!({"controller": "main", "command": ["/bin/true"]})] {
        let mut both = policy();
        both["launch"] = more;
        assert_eq!(house.admin().put("/v1/labels/linux", both).await.problem(422)["code"], "policy");
    }
    let team = house.team(TEAM).await;
    house.apply("linux", json!({"team": TEAM, "module": "ok"})).await;
    assert_eq!(team.put("/v1/labels/linux", policy()).await.problem(403)["code"], "not-yours");
    house.apply("linux", policy()).await;
    assert_eq!(team.put("/v1/labels/linux", policy()).await.expect(200)["changes"], json!([]));
    team.get("/v1/labels/linux/demand").await.expect(200);
    house.team("another").await.get("/v1/labels/linux/demand").await.problem(404);
    team.get("/v1/controllers").await.problem(403);
}
