//! The life of a node, and demand, call by call.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use muster::controller::jenkins::jar::AgentJar;
use muster::controller::jenkins::{Created, Executors, JenkinsError};
use muster::names::LabelName;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Site, sites};
use crate::house::House;

#[tokio::test]
async fn a_node_is_made_told_changed_taken_out_put_back_and_removed() {
    for site in sites().await {
        let (muster, name) = (site.muster(), site.create("life").await);
        let Created::There(there) = muster.create(&site.wanted(&name)).await.unwrap() else { panic!("it was made twice") };
        let labels = BTreeSet::from(["linux".to_owned(), format!("l-{name}")]);
        assert_eq!((there.name.as_str(), there.executors, &there.labels), (name.as_str(), 2, &labels));
        assert!(there.is_offline && !there.is_marked && there.is_idle && there.reason.is_empty());
        let config = muster.config(&name).await.unwrap();
        assert_eq!((config.executors, &config.labels, config.description.as_str()), (2, &labels, "an agent of Muster's"));
        assert_eq!(config.remote_root, site.wanted(&name).remote_root);

        let small: Vec<LabelName> = vec!["small".parse().unwrap(), "linux".parse().unwrap()];
        assert!(muster.update(&name, &small, Executors::new(3).unwrap()).await.unwrap());
        assert!(!muster.update(&name, &small, Executors::new(3).unwrap()).await.unwrap());
        let changed = muster.config(&name).await.unwrap();
        assert_eq!((changed.executors, changed.labels), (3, BTreeSet::from(["small".to_owned(), "linux".to_owned()])));
        assert_eq!((changed.description, changed.remote_root), (config.description, config.remote_root));
        let xml = site.as_admin(Method::GET, &format!("computer/{name}/config.xml")).send().await.unwrap().text().await.unwrap();
        for kept in ["<mode>EXCLUSIVE</mode>", "<webSocket>true</webSocket>", "TRIED", "a &lt;b&gt; &amp; "] {
            assert!(xml.contains(kept), "{kept} is not in {xml}");
        }

        assert!(!muster.set_online(&name).await.unwrap());
        muster.set_offline(&name, "first").await.unwrap();
        muster.set_offline(&name, "second <b> é").await.unwrap();
        let out = muster.node(&name).await.unwrap().unwrap();
        assert_eq!((out.is_marked, out.reason.as_str()), (true, "second <b> é"));
        assert!(muster.set_online(&name).await.unwrap());
        assert!(!muster.node(&name).await.unwrap().unwrap().is_marked);

        assert!(muster.delete(&name).await.unwrap());
        assert!(!muster.delete(&name).await.unwrap());
        assert_eq!(muster.node(&name).await.unwrap(), None);
        assert!(matches!(muster.secret(&name).await, Err(JenkinsError::Missing(_))));
        assert!(matches!(muster.config(&name).await, Err(JenkinsError::Missing(_))));
        assert!(matches!(muster.set_offline(&name, "x").await, Err(JenkinsError::Missing(_))));
    }
}

#[tokio::test]
async fn of_many_who_make_one_node_one_does_and_the_others_find_it() {
    for site in sites().await {
        let (muster, name) = (site.muster(), site.name("race"));
        let node = site.wanted(&name);
        let all = join_all((0..8).map(|_| muster.create(&node))).await;
        assert_eq!(all.into_iter().filter(|created| *created.as_ref().unwrap() == Created::Made).count(), 1);
    }
}

#[tokio::test]
async fn the_list_has_nodes_and_not_jenkins_itself() {
    for site in sites().await {
        let name = site.create("list").await;
        let nodes = site.muster().list().await.unwrap();
        assert!(nodes.iter().any(|node| node.name == name.as_str()));
        assert!(nodes.iter().all(|node| !["Built-In Node", "(built-in)"].contains(&node.name.as_str())), "{nodes:?}");
    }
}

#[tokio::test]
async fn a_secret_is_its_names_for_ever_and_comes_with_jenkins_own_url() {
    for site in sites().await {
        let (muster, name) = (site.muster(), site.create("secret").await);
        let first = muster.secret(&name).await.unwrap();
        assert_eq!(first.url, site.url);
        muster.delete(&name).await.unwrap();
        muster.create(&site.wanted(&name)).await.unwrap();
        assert!(muster.secret(&name).await.unwrap() == first, "the secret is another one");
        let other = site.create("secret").await;
        assert!(muster.secret(&other).await.unwrap().secret != first.secret);
    }
}

#[tokio::test]
async fn the_jar_is_fetched_once_and_says_which_java_it_needs() {
    for site in sites().await {
        let muster = site.muster();
        let jar = muster.jar(None).await.unwrap().unwrap();
        assert!(muster.jar(jar.modified.as_deref()).await.unwrap().is_none());
        let read = AgentJar::read(&jar.bytes).unwrap();
        // What is measured is for these two, and both run with Java 11.
        if ["2.372", "2.452.2"].contains(&site.version.as_str()) {
            let remoting = if site.version == "2.372" { "3063.v26e24490f041" } else { "3206.vb_15dcf73f6a_9" };
            assert_eq!((read.remoting.to_string().as_str(), read.java_for(&site.version)), (remoting, 11));
        }
    }
}

#[tokio::test]
async fn a_token_that_is_wrong_is_told_so() {
    for site in sites().await {
        let (user, wrong) = (&site.user, "11cccccccccccccccccccccccccccccccc");
        let error = site.muster_as(user, wrong, Duration::ZERO).who_am_i().await.unwrap_err();
        assert!(matches!(error, JenkinsError::Credentials(_)) && !error.to_string().contains(wrong), "{error}");
        let known = site.muster().who_am_i().await.unwrap();
        assert_eq!((known.name.as_str(), known.anonymous), (user.as_str(), false));
    }
}

#[tokio::test]
async fn what_waits_for_a_label_is_told_with_its_reason() {
    for site in sites().await {
        let muster = site.muster();
        let label: LabelName = site.name("nobody").as_str().parse().unwrap();
        let unknown = muster.label(&label).await.unwrap();
        assert_eq!((unknown.busy, unknown.idle, unknown.nodes.len(), unknown.jobs.len()), (0, 0, 0, 0));
        let job = site.build(label.as_str(), 0.1).await;
        let item = site.until("it waits", async || muster.queue().await.unwrap().into_iter().find(|item| item.task.name == job)).await;
        let words = "There are no nodes with the label";
        site.until("it says why", async || {
            let queue = muster.queue().await.unwrap();
            queue.into_iter().find(|found| found.id == item.id && found.why.starts_with(words) && found.why.contains(label.as_str()))
        })
        .await;
        let tied = muster.label(&label).await.unwrap();
        assert_eq!(tied.jobs.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), [job.as_str()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_that_nothing_is_missing_and_leaves_nothing() {
    for site in sites().await {
        let house = house(&site).await;
        let checked = house.admin().post("/v1/controllers/main/check", json!({})).await.expect(200);
        let expected = json!({
            "name": "main", "url": site.url, "answers": true, "version": site.version, "user": site.user, "missing": [], "unseen": [],
        });
        assert_eq!(checked, expected);
        assert!(site.muster().list().await.unwrap().iter().all(|node| !node.name.starts_with("muster-check-")));
    }
}

#[tokio::test]
async fn with_the_five_permissions_nothing_else_is_allowed() {
    for site in sites().await.into_iter().filter(|site| site.is_least) {
        let refused = site.as_muster(Method::POST, "restart").send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert_eq!(refused.headers()["x-required-permission"], "hudson.model.Hudson.Administer");
        let xml = site.as_muster(Method::POST, "createItem?name=x").header("content-type", "application/xml").body("<project/>");
        assert_eq!(xml.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn what_the_client_relies_on_is_so() {
    for site in sites().await {
        let (name, other) = (site.create("traps").await, site.create("traps").await);
        let status = async |method: Method, path: String| site.as_muster(method, &path).send().await.unwrap().status().as_u16();
        // Neither removes anything.
        status(Method::DELETE, format!("computer/{name}/")).await;
        assert_eq!(status(Method::GET, format!("computer/{name}/doDelete")).await, 405);
        assert!(site.muster().node(&name).await.unwrap().is_some());
        // A write is answered with a redirect to a page that is not wanted.
        let form = [("name", site.name("form").to_string()), ("type", "hudson.slaves.DumbSlave".into()), ("json", "{}".into())];
        let made = site.as_muster(Method::POST, "computer/doCreateItem").header("content-type", "application/x-www-form-urlencoded");
        let made = made.body(serde_urlencoded::to_string(&form).unwrap()).send().await.unwrap();
        assert_eq!(
            (made.status().as_u16(), made.headers()["location"].to_str().unwrap()),
            (302, format!("{}computer/", site.url).as_str())
        );
        // What is refused has its reason in a header, in the language that is asked for, with blanks for quotes.
        let again = site.as_muster(Method::POST, "computer/doCreateItem").header("content-type", "application/x-www-form-urlencoded");
        let again = again.header("accept-language", "en").body(serde_urlencoded::to_string(&form).unwrap()).send().await.unwrap();
        let told: String = again.headers()["x-error"].as_bytes().iter().map(|byte| char::from(*byte)).collect();
        assert_eq!((again.status().as_u16(), told), (400, format!("Agent called  {}  already exists", form[0].1)));
        // Another name in what is written renames, over whoever has it: so the client never writes one.
        let path = format!("computer/{name}/config.xml");
        let xml = site.as_muster(Method::GET, &path).send().await.unwrap().text().await.unwrap();
        let renamed = xml.replace(&format!("<name>{name}</name>"), &format!("<name>{other}</name>"));
        assert_ne!(renamed, xml);
        assert_eq!(site.as_muster(Method::POST, &path).body(renamed).send().await.unwrap().status(), StatusCode::OK);
        assert_eq!(site.muster().node(&name).await.unwrap(), None);
        // Who says nothing of itself is refused with 403, and who says what is wrong with 401.
        assert_eq!(site.request(None, Method::GET, "api/json").send().await.unwrap().status(), StatusCode::FORBIDDEN);
        let wrong = site.request(Some((&site.user, "wrong")), Method::GET, "api/json").send().await.unwrap();
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn a_node_without_executors_is_kept_and_not_shown() {
    for site in sites().await {
        let name = site.name("ghost");
        let json = json!({"numExecutors": "0", "remoteFS": "/srv", "retentionStrategy": {"stapler-class": "hudson.slaves.RetentionStrategy$Always"}});
        let form = [("name", name.to_string()), ("type", "hudson.slaves.DumbSlave".into()), ("json", json.to_string())];
        let ask = site.as_muster(Method::POST, "computer/doCreateItem").header("content-type", "application/x-www-form-urlencoded");
        assert_eq!(ask.body(serde_urlencoded::to_string(&form).unwrap()).send().await.unwrap().status(), StatusCode::FOUND);
        let muster = site.muster();
        assert_eq!(muster.node(&name).await.unwrap(), None);
        assert!(!muster.delete(&name).await.unwrap());
        assert!(matches!(muster.create(&site.wanted(&name)).await, Err(JenkinsError::Refused(_))));
    }
}

/// A server that knows this Jenkins as `main`.
pub(super) async fn house(site: &Site) -> House {
    use muster::config::controller::{Controller, ControllerUrl};
    let token_file = site.directory.path().join("token-of-the-house");
    std::fs::write(&token_file, &site.token).unwrap();
    let mut controller = Controller::new(ControllerUrl::try_from(site.url.clone()).unwrap(), &site.user, token_file);
    controller.requests_per_second = 100;
    controller.demand_seconds = 1;
    House::plan().with(|config| drop(config.controller.insert("main".parse().unwrap(), controller))).start().await
}

/// What a server says waits for a label.
#[tokio::test(flavor = "multi_thread")]
async fn a_label_grows_by_what_waits_for_it() {
    for site in sites().await {
        let house = house(&site).await;
        house.upload("ok").await;
        let label = site.name("demand").to_string();
        house.apply(&label, json!({"team": crate::house::TEAM, "module": "ok", "launch": {"controller": "main"}})).await;
        site.build(&label, 0.1).await;
        let path = format!("/v1/labels/{label}/demand");
        let told = async || Some(house.admin().get(&path).await).filter(|answer| answer.status == 200 && answer.body["queued"] == 1);
        let demand: Value = site.until("one waits", told).await.body;
        assert_eq!((&demand["should_grow"], &demand["reasons"]), (&json!(1), &json!({"no-nodes": 1})));
    }
}
