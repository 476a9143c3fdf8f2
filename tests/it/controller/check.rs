//! `muster controller check`.

use std::time::Duration;

use muster::config::controller::{Controller, ControllerUrl};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::house::{House, Plan as HousePlan};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::door::Phase;
use crate::jenkins::users::{Permission, User};
use crate::jenkins::{FIVE, Jenkins, MUSTER_TOKEN, Plan};

const TOKEN: &str = "11cccccccccccccccccccccccccccccccc";

/// A server that knows one controller, `main`; its directory holds the token's file.
pub(super) struct Known {
    pub(super) house: House,
    pub(super) directory: TempDir,
}

/// A server that knows a Jenkins under the name `main`, as a user.
pub(super) async fn knowing(url: &str, user: &str, token: &str, change: impl FnOnce(HousePlan) -> HousePlan) -> Known {
    let directory = TempDir::new().unwrap();
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, token).unwrap();
    let mut controller = Controller::new(ControllerUrl::try_from(url.to_owned()).unwrap(), user, token_file);
    controller.requests_per_second = 1000;
    controller.demand_seconds = 1;
    let plan = House::plan().with(|config| drop(config.controller.insert("main".parse().unwrap(), controller)));
    Known { house: change(plan).start().await, directory }
}

async fn check(known: &Known) -> Value {
    known.house.admin().post("/v1/controllers/main/check", json!({})).await.expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_five_permissions_nothing_is_missing_and_nothing_is_left() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("theirs"));
    let known = knowing(&jenkins.url(), "muster", MUSTER_TOKEN, |plan| plan).await;
    let checked = check(&known).await;
    let url = jenkins.url();
    let expected =
        json!({"name": "main", "url": url, "answers": true, "version": "2.452.2", "user": "muster", "missing": [], "unseen": []});
    assert_eq!(checked, expected);
    assert_eq!(jenkins.listed(), ["theirs"]);
    let listed = known.house.admin().get("/v1/controllers").await.expect(200);
    assert_eq!(
        listed["items"],
        json!([{"name": "main", "type": "jenkins", "url": url, "user": "muster", "labels": [], "version": "2.452.2"}])
    );
    known.house.admin().post("/v1/controllers/other/check", json!({})).await.problem(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_permission_that_is_missing_is_named() {
    for (lacks, missing, left) in [
        (Permission::Connect, json!([]), false),
        (Permission::Configure, json!(["Agent/Configure"]), false),
        (Permission::Disconnect, json!(["Agent/Disconnect"]), false),
        (Permission::Delete, json!(["Agent/Delete"]), true),
    ] {
        let has: Vec<_> = FIVE.into_iter().filter(|permission| *permission != lacks).collect();
        let jenkins = Jenkins::start(Plan::default().user(User::new("bob").token(TOKEN).may(&has))).await;
        let known = knowing(&jenkins.url(), "bob", TOKEN, |plan| plan).await;
        let checked = check(&known).await;
        // Whoever may disconnect may connect.
        assert_eq!((&checked["missing"], &checked["unseen"], checked.get("problem")), (&missing, &json!([]), None), "{checked}");
        let named = checked["left"].as_str();
        assert_eq!((named.is_some(), jenkins.listed().first().map(String::as_str)), (left, named), "{checked}");
        // They do not become more.
        check(&known).await;
        assert_eq!(jenkins.listed().len(), usize::from(left));
    }
    let few = [Permission::Read, Permission::Create, Permission::Delete];
    let jenkins = Jenkins::start(Plan::default().user(User::new("bob").token(TOKEN).may(&few))).await;
    let checked = check(&knowing(&jenkins.url(), "bob", TOKEN, |plan| plan).await).await;
    assert_eq!(checked["missing"], json!(["Agent/Connect", "Agent/Configure", "Agent/Disconnect"]));
    assert!(jenkins.listed().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_create_the_others_can_not_be_seen_and_that_is_said() {
    let has = [Permission::Read, Permission::Connect, Permission::Configure, Permission::Disconnect, Permission::Delete];
    let jenkins =
        Jenkins::start(Plan::default().user(User::new("bob").token(TOKEN).may(&has)).user(User::new("eve").token(MUSTER_TOKEN))).await;
    let checked = check(&knowing(&jenkins.url(), "bob", TOKEN, |plan| plan).await).await;
    assert_eq!(checked["missing"], json!(["Agent/Create"]));
    assert_eq!(checked["unseen"], json!(["Agent/Connect", "Agent/Configure", "Agent/Disconnect", "Agent/Delete"]));
    let checked = check(&knowing(&jenkins.url(), "eve", MUSTER_TOKEN, |plan| plan).await).await;
    assert_eq!((&checked["missing"], checked["unseen"].as_array().unwrap().len()), (&json!(["Overall/Read"]), 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_away_or_does_not_let_the_user_in_or_is_no_jenkins_is_told_so() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let known = knowing(&jenkins.url(), "muster", TOKEN, |plan| plan).await;
    let checked = check(&known).await;
    assert_eq!((&checked["answers"], &checked["version"]), (&json!(true), &json!("2.452.2")));
    let problem = checked["problem"].as_str().unwrap();
    assert!(problem.contains("it refuses the token (401)") && !problem.contains(TOKEN), "{problem}");
    assert_eq!(checked["unseen"].as_array().unwrap().len(), 5);

    std::fs::write(known.directory.path().join("token"), MUSTER_TOKEN).unwrap();
    assert_eq!(check(&known).await.get("problem"), None);
    jenkins.enter(Phase::GettingReady).await;
    let checked = check(&known).await;
    assert_eq!(checked["answers"], false);
    assert!(checked["problem"].as_str().unwrap().contains("Please wait while Jenkins is getting ready to work"), "{checked}");

    let page = super::serve(axum::Router::new().fallback(async || "<title>Something else</title>")).await;
    let checked = check(&knowing(&page, "muster", TOKEN, |plan| plan).await).await;
    assert!(checked["answers"] == false && checked["problem"].as_str().unwrap().contains("no Jenkins"), "{checked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_leaves_no_node_behind() {
    for fault in [crate::jenkins::Fault::Lose, crate::jenkins::Fault::Refuse] {
        let jenkins = Jenkins::start(Plan::default()).await;
        let known = knowing(&jenkins.url(), "muster", MUSTER_TOKEN, |plan| plan).await;
        jenkins.next(crate::jenkins::routes::Op::Create, fault);
        check(&known).await;
        jenkins.next(crate::jenkins::routes::Op::Jnlp, crate::jenkins::Fault::Status(500));
        let checked = check(&known).await;
        assert!(checked["problem"].as_str().unwrap().contains("500"), "{checked}");
        assert!(jenkins.listed().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_tells_it_to_a_person_and_exits_with_1_when_something_is_wrong() {
    let jenkins = Jenkins::start(Plan::default().user(User::new("bob").token(TOKEN).may(&[Permission::Read]))).await;
    let known = knowing(&jenkins.url(), "muster", MUSTER_TOKEN, |plan| plan).await;
    let admin = std::fs::read_to_string(known.house.data().join("admin.token")).unwrap();
    let muster = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(arguments).env("MUSTER_TOKEN", admin.trim()).env("MUSTER_URL", known.house.url()).stdin(std::process::Stdio::null());
        let done = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (status, out, err) = muster(&["controller", "check", "main"]).await;
    assert_eq!((status, err.as_str()), (Some(0), ""));
    assert!(out.contains("version\t2.452.2\n") && out.contains("allowed\tall that is needed\n"), "{out}");
    let (_, out, _) = muster(&["controller", "ls"]).await;
    assert!(out.starts_with(&format!("main\tjenkins\t{}\tmuster\t2.452.2\t", jenkins.url())), "{out}");

    let poor = knowing(&jenkins.url(), "bob", TOKEN, |plan| plan).await;
    let checked = check(&poor).await;
    assert_eq!(checked["missing"], json!(["Agent/Create"]));
    jenkins.enter(Phase::Restarting).await;
    let (status, out, err) = muster(&["controller", "check", "main"]).await;
    assert_eq!(status, Some(1));
    assert!(
        out.contains("answers\tno\n") && err.starts_with("error: can not use the controller main: the controller is away: "),
        "{out}{err}"
    );
}
