//! Who is let in, and what answers say of Jenkins.

use reqwest::Method;
use serde_json::json;

use super::{Answer, Ask as _, Caller};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::routes::Op;
use crate::jenkins::users::{Permission, User};
use crate::jenkins::{FIVE, Jenkins, MUSTER_TOKEN, Plan, Version};

#[tokio::test]
async fn a_token_needs_no_crumb_and_a_password_needs_one_with_its_session() {
    let jenkins = Jenkins::start(Plan::default().user(User::new("ann").password("secret").may(&FIVE))).await;
    let ann = Caller::new(&jenkins, Some(("ann", "secret")));
    ann.get("computer/api/json").await.is(200);
    let refused = ann.create("n1", json!({})).await;
    assert!(refused.is(403).text.contains("No valid crumb was included in the request"));
    assert_eq!(refused.header("content-type").unwrap(), "text/html;charset=iso-8859-1");
    assert!((400..700).contains(&refused.text.len()) && !refused.is_signed());
    let issued = ann.get("crumbIssuer/api/json").await;
    let body: serde_json::Value = serde_json::from_str(&issued.text).unwrap();
    let crumb = body["crumb"].as_str().unwrap();
    assert_eq!((crumb.len(), &body["crumbRequestField"]), (64, &json!("Jenkins-Crumb")));
    let cookie = issued.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let post = || ann.request(Method::POST, "computer/doCreateItem").form_of(&[("name", "n1"), ("type", super::DUMB), ("json", "{}")]);
    post().header("Jenkins-Crumb", crumb).ask().await.is(403);
    post().header("Jenkins-Crumb", crumb).header("Cookie", cookie).ask().await.is(302);
    Caller::muster(&jenkins).create("n2", json!({})).await.is(302);
    assert_eq!(jenkins.nodes().len(), 2);
}

#[tokio::test]
async fn wrong_credentials_are_401_whatever_is_asked_for() {
    let jenkins = Jenkins::start(Plan::default()).await;
    for (name, secret) in [("muster", "wrong"), ("nobody", MUSTER_TOKEN)] {
        let caller = Caller::new(&jenkins, Some((name, secret)));
        for answer in [caller.get("computer/api/json").await, caller.post("computer/doCreateItem", &[]).await, caller.get("login").await] {
            assert_eq!(answer.is(401).header("www-authenticate").unwrap(), "Basic realm=\"Jenkins\"");
            assert!(answer.header("set-cookie").unwrap().starts_with("remember-me=;") && !answer.is_signed());
            assert!((400..520).contains(&answer.text.len()), "{}", answer.text.len());
        }
    }
}

#[tokio::test]
async fn who_says_nothing_or_sends_a_bearer_token_is_nobody_and_is_refused_with_403() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let nobody = Caller::anonymous(&jenkins);
    let bearer = || nobody.request(Method::GET, "computer/api/json").bearer_auth(MUSTER_TOKEN);
    for answer in [nobody.get("computer/api/json").await, bearer().ask().await, nobody.request(Method::GET, "").ask().await] {
        assert!(answer.is(403).text.contains("Authentication required") && answer.is_signed());
    }
    assert!(nobody.post("computer/doCreateItem", &[("name", "n1")]).await.is(403).text.contains("No valid crumb"));
    nobody.request(Method::HEAD, "").ask().await.is(403);
    let login = nobody.get("login").await;
    assert_eq!(login.is(200).header("x-jenkins").unwrap(), "2.452.2");
    assert_eq!(login.header("x-jenkins-session").unwrap(), jenkins.session());
}

#[tokio::test]
async fn who_am_i_names_the_user_and_answers_those_who_are_nobody() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let known = Caller::muster(&jenkins).json("whoAmI/api/json").await;
    assert_eq!(
        known,
        json!({"_class": "hudson.security.WhoAmI", "anonymous": false, "authenticated": true, "authorities": ["authenticated"], "name": "muster"})
    );
    assert_eq!(Caller::anonymous(&jenkins).json("whoAmI/api/json").await["anonymous"], true);
}

/// What happens to each operation on the node `n1`, and to the creation of `n2`.
async fn try_all(caller: &Caller) -> Vec<(&'static str, u16)> {
    let mut tried = Vec::new();
    let reads =
        [("list", "computer/api/json"), ("node", "computer/n1/api/json"), ("queue", "queue/api/json"), ("label", "label/x/api/json")];
    for (what, path) in reads {
        tried.push((what, caller.get(path).await.status));
    }
    tried.push(("create", caller.create("n2", json!({})).await.status));
    tried.push(("jnlp", caller.get("computer/n1/jenkins-agent.jnlp").await.status));
    tried.push(("read config", caller.get("computer/n1/config.xml").await.status));
    tried.push(("write config", caller.write_config("n1", "<slave><name>n1</name><numExecutors>1</numExecutors></slave>").await.status));
    tried.push(("go offline", caller.post("computer/n1/changeOfflineCause", &[("offlineMessage", "m")]).await.status));
    tried.push(("toggle", caller.post("computer/n1/toggleOffline", &[]).await.status));
    tried.push(("restart", caller.post("quietDown", &[]).await.status));
    tried.push(("delete", caller.post("computer/n1/doDelete", &[]).await.status));
    tried
}

#[tokio::test]
async fn each_operation_needs_its_own_permission() {
    let reads = ["list", "node", "queue", "label"];
    let cases: [(&[Permission], &[&str]); 9] = [
        (&[], &[]),
        (&[Permission::Read], &reads),
        (&[Permission::Read, Permission::Create], &["create"]),
        // A node that is online is toggled by those who may disconnect it.
        (&[Permission::Read, Permission::Connect], &["jnlp"]),
        (&[Permission::Read, Permission::Configure], &["read config", "write config"]),
        (&[Permission::Read, Permission::ExtendedRead], &[]),
        (&[Permission::Read, Permission::Disconnect], &["jnlp", "go offline", "toggle"]),
        (&[Permission::Read, Permission::Delete], &["delete"]),
        (&FIVE, &["create", "jnlp", "read config", "write config", "go offline", "toggle", "delete"]),
    ];
    for (permissions, allowed) in cases {
        let jenkins = Jenkins::start(Plan::default().user(User::new("bob").token("t").may(permissions))).await;
        jenkins.put(NodeConfig::new("n1"));
        let bob = Caller::new(&jenkins, Some(("bob", "t")));
        for (what, status) in try_all(&bob).await {
            let is_allowed = allowed.contains(&what) || (reads.contains(&what) && !permissions.is_empty());
            assert_eq!(status != 403, is_allowed, "{what} with {permissions:?}: {status}");
        }
    }
}

#[tokio::test]
async fn to_bring_a_node_online_connect_is_enough() {
    let jenkins = Jenkins::start(Plan::default().user(User::new("bob").token("t").may(&[Permission::Read, Permission::Connect]))).await;
    jenkins.put(NodeConfig::new("n1"));
    jenkins.mark_offline("n1", Some("m"));
    let bob = Caller::new(&jenkins, Some(("bob", "t")));
    bob.post("computer/n1/toggleOffline", &[]).await.is(302);
    bob.post("computer/n1/toggleOffline", &[]).await.is(403);
}

#[tokio::test]
async fn a_missing_permission_is_named_and_comes_before_everything_else() {
    let jenkins = Jenkins::start(Plan::default().user(User::new("bob").token("t").may(&[Permission::Read]))).await;
    jenkins.put(NodeConfig::new("n1"));
    let refused = Caller::new(&jenkins, Some(("bob", "t"))).create("n1", json!({})).await;
    assert!(refused.is(403).text.contains("bob is missing the Agent/Create permission") && refused.is_signed());
    assert_eq!(refused.header("x-you-are-authenticated-as").unwrap(), "bob");
    assert_eq!(refused.header("x-required-permission").unwrap(), "hudson.model.Computer.Create");
    assert_eq!(refused.headers.get_all("x-permission-implied-by").iter().count(), 2);
}

#[tokio::test]
async fn x_jenkins_is_on_some_answers_only() {
    for (version, on_404) in [(Version::V2_372, false), (Version::V2_452_2, true)] {
        let jenkins = Jenkins::start(Plan::default().version(version)).await;
        let muster = Caller::muster(&jenkins);
        let signed = |answer: &Answer, status: u16, expected: bool| {
            assert_eq!(answer.is(status).header("x-jenkins").as_deref(), expected.then_some(version.text()));
            assert_eq!(answer.header("x-jenkins-session"), expected.then(|| jenkins.session()));
        };
        signed(&muster.create("n1", json!({})).await, 302, false);
        signed(&muster.create("n1", json!({})).await, 400, true);
        signed(&muster.get("computer/n1/config.xml").await, 200, false);
        signed(&muster.get("computer/n1/jenkins-agent.jnlp").await, 200, false);
        signed(&muster.get("jnlpJars/agent.jar").await, 200, false);
        signed(&muster.get("computer/n1/api/json").await, 200, true);
        signed(&muster.get("computer/").await, 200, true);
        signed(&muster.get("computer/none/api/json").await, 404, on_404);
        signed(&muster.post("quietDown", &[]).await, 403, true);
    }
}

#[tokio::test]
async fn pages_and_errors_begin_a_session_each_and_api_answers_do_not() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    for path in ["computer/api/json", "queue/api/json", "jnlpJars/agent.jar"] {
        assert!(!muster.get(path).await.begins_session(), "{path}");
    }
    muster.create("n1", json!({})).await.is(302);
    assert_eq!(jenkins.sessions(), 0);
    for _ in 0..3 {
        assert!(muster.get("computer/none/api/json").await.begins_session());
        assert!(muster.create("n1", json!({})).await.begins_session());
        assert!(muster.get("computer/").await.begins_session());
    }
    assert_eq!(jenkins.sessions(), 9);
}

#[tokio::test]
async fn a_token_can_be_made_and_is_one() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let path = "me/descriptorByName/jenkins.security.ApiTokenProperty/generateNewToken";
    let made = Caller::muster(&jenkins).post(path, &[("newTokenName", "x")]).await;
    let made: serde_json::Value = serde_json::from_str(&made.is(200).text).unwrap();
    let token = made["data"]["tokenValue"].as_str().unwrap();
    assert!(token.starts_with("11") && token.len() == 34 && made["data"]["tokenName"] == "x");
    Caller::new(&jenkins, Some(("muster", token))).create("n1", json!({})).await.is(302);
    assert_eq!((jenkins.count(Op::NewToken), jenkins.count(Op::Create)), (1, 1));
}
