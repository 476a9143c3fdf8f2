//! Nodes are created: what is taken, what is refused, and what is taken and should not be.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Ask as _, Caller, DUMB, node_form};
use crate::jenkins::config::{Launcher, Mode, NodeConfig, Retention};
use crate::jenkins::words::Language;
use crate::jenkins::{Jenkins, Plan, Version};

#[tokio::test]
async fn a_created_node_is_a_redirect_that_leads_to_a_page_of_megabytes() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    let made = muster.create("n1", json!({})).await;
    assert_eq!((made.is(302).text.as_str(), made.location()), ("", format!("{}computer/", jenkins.url())));
    for number in 0..999 {
        jenkins.put(NodeConfig::new(&format!("m{number}")));
    }
    assert_eq!(jenkins.followed(), 0);
    let length = muster.get("computer/").await.is(200).text.len();
    assert!((6_000_000..6_200_000).contains(&length), "{length}");
    assert_eq!(jenkins.followed(), 1);
}

#[tokio::test]
async fn a_redirect_leads_where_the_request_says_that_it_came_from() {
    let jenkins = Jenkins::start(Plan::default().root_url_is("https://configured.example/")).await;
    let muster = Caller::muster(&jenkins);
    let form = [("name", "n1"), ("type", DUMB), ("json", "{}")];
    let forwarded = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "ci.example")];
    let request = muster.request(Method::POST, "computer/doCreateItem").form_of(&form);
    let request = forwarded.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    assert_eq!(request.ask().await.is(302).location(), "https://ci.example/computer/");
    let other = muster.request(Method::POST, "computer/n1/doDelete").header("Host", "other.example");
    assert_eq!(other.ask().await.location(), "http://other.example/computer/");
}

#[tokio::test]
async fn a_form_a_query_and_parts_make_a_node_and_json_does_not() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    let json = node_form(json!({})).to_string();
    let query = serde_urlencoded::to_string([("name", "q"), ("type", DUMB), ("json", &json)]).unwrap();
    muster.request(Method::POST, &format!("computer/doCreateItem?{query}")).ask().await.is(302);
    let part = |name: &str, value: &str| format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let parts = [part("name", "p"), part("type", DUMB), part("json", &json), "--B--\r\n".into()].concat();
    let multipart = muster.request(Method::POST, "computer/doCreateItem").header("content-type", "multipart/form-data; boundary=B");
    multipart.body(parts).ask().await.is(302);
    let whole = json!({"name": "j", "type": DUMB, "json": json}).to_string();
    let refused = muster.request(Method::POST, "computer/doCreateItem").header("content-type", "application/json").body(whole).ask().await;
    assert_eq!(refused.is(400).error(), "Query parameter 'name' is required");
    assert_eq!(jenkins.nodes().into_keys().collect::<Vec<_>>(), ["p", "q"]);
    muster.get("computer/doCreateItem").await.is(404);
}

#[tokio::test]
async fn the_name_of_the_form_wins_is_trimmed_and_has_a_case() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    muster.create("  n1\t", json!({"name": "other"})).await.is(302);
    muster.create("N1", json!({})).await.is(302);
    assert_eq!(jenkins.nodes().into_keys().collect::<Vec<_>>(), ["N1", "n1"]);
}

#[tokio::test]
async fn a_form_is_taken_as_jenkins_takes_it() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    muster.create("whole", json!({})).await.is(302);
    let launcher = Launcher { web_socket: true, ..Launcher::default() };
    let whole = NodeConfig {
        description: "d".into(),
        executors: 2,
        mode: Mode::Exclusive,
        launcher: Some(launcher),
        ..NodeConfig::new("whole").label("a b")
    };
    assert_eq!(jenkins.node("whole").unwrap().config, whole);
    let environment = |env: Value| json!({"stapler-class-bag": "true", "hudson-slaves-EnvironmentVariablesNodeProperty": {"env": env}});
    let other = json!({
        "launcher": {"$class": "hudson.slaves.JNLPLauncher"}, "numExecutors": 3, "mode": null,
        "retentionStrategy": {"$class": "hudson.slaves.RetentionStrategy$Demand", "inDemandDelay": "0"},
        "nodeProperties": environment(json!({"key": "K", "value": "V"})),
    });
    muster.create("other", other).await.is(302);
    let other = jenkins.node("other").unwrap().config;
    assert_eq!((other.executors, other.mode, other.launcher.unwrap().web_socket), (3, Mode::Normal, false));
    assert_eq!(other.retention, Some(Retention::Demand { in_demand_delay: 0, idle_delay: 1 }));
    assert_eq!(other.environment, [("K".into(), "V".into())]);
    let list = json!([{"key": "K", "value": "V"}, {"key": "L", "value": "W"}]);
    muster.create("list", json!({"nodeProperties": environment(list)})).await.is(302);
    assert_eq!(jenkins.node("list").unwrap().config.environment.len(), 2);
    let fields = [("name", "empty"), ("type", "hudson.slaves.DumbSlave$DescriptorImpl"), ("json", "{}")];
    muster.post("computer/doCreateItem", &fields).await.is(302);
    let empty = jenkins.node("empty").unwrap().config;
    assert_eq!((empty.launcher, empty.remote_fs.as_str(), empty.executors), (None, "", 1));
    let long = "x".repeat(300_000);
    muster.create("long", json!({"nodeDescription": long})).await.is(302);
    assert_eq!(jenkins.node("long").unwrap().config.description, long);
}

#[tokio::test]
async fn what_is_refused_is_400_with_an_x_error_that_has_blanks_for_quotes() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    let cases = [
        ("n1", "Agent called  n1  already exists"),
        ("", "Query parameter 'name' is required"),
        ("  ", "Query parameter 'name' is required"),
        (".", ".  is not an allowed name"),
        ("..", "..  is not an allowed name"),
        ("a/b", "/  is an unsafe character"),
        ("a[b", "[  is an unsafe character"),
        ("a]b", "]  is an unsafe character"),
        ("100%", "%  is an unsafe character"),
        ("n1.", "A name cannot end with  ."),
        ("a\tb", "No control code is allowed: a\\u9;b"),
    ];
    for (name, error) in cases {
        let refused = muster.create(name, json!({})).await;
        assert_eq!(refused.is(400).error().trim(), error, "{name:?}");
        assert!(refused.is_signed(), "{name:?}");
    }
    for letter in "?*/\\%!@#$^&|<>[]:;".chars() {
        muster.create(&format!("a{letter}b"), json!({})).await.is(400);
    }
    let no_form = muster.post("computer/doCreateItem", &[("name", "n2"), ("type", DUMB)]).await;
    assert!(no_form.is(400).text.contains("This page expects a form submission") && no_form.header("x-error").is_none());
    assert_eq!(jenkins.nodes().len(), 1);
}

#[tokio::test]
async fn an_x_error_is_in_the_client_s_language_and_in_latin_1() {
    let jenkins = Jenkins::start(Plan::default().language(Language::German)).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1"));
    let words = async |language: Option<&str>| {
        let request = muster.request(Method::POST, "computer/doCreateItem").form_of(&[("name", "n1")]);
        let request = if let Some(language) = language { request.header("Accept-Language", language) } else { request };
        request.ask().await
    };
    assert_eq!(words(Some("en")).await.error(), "Agent called  n1  already exists");
    assert_eq!(words(Some("de-AT,en;q=0.5")).await.error(), "Ein Agent mit dem Namen  n1  existiert bereits.");
    assert_eq!(words(None).await.error(), "Ein Agent mit dem Namen  n1  existiert bereits.");
    let french = words(Some("en;q=0.1, fr")).await;
    assert_eq!(french.error(), "L'agent  n1  existe déjà");
    assert!(french.headers["x-error"].to_str().is_err() && french.headers["x-error"].as_bytes().ends_with(b"existe d\xe9j\xe0"));
}

#[tokio::test]
async fn error_pages_are_much_bigger_than_what_they_say() {
    for (version, x_error, missing) in [(Version::V2_372, 8_000, 300..600), (Version::V2_452_2, 72_000, 70_000..74_000)] {
        let jenkins = Jenkins::start(Plan::default().version(version)).await;
        let muster = Caller::muster(&jenkins);
        let length = muster.create("", json!({})).await.is(400).text.len();
        assert_eq!(length, x_error);
        let length = muster.get("computer/none/api/json").await.is(404).text.len();
        assert!(missing.contains(&length), "{length}");
        let head = muster.request(Method::HEAD, "computer/none/api/json").ask().await;
        assert_eq!(head.is(404).text, "");
    }
}

#[tokio::test]
async fn what_jenkins_does_not_understand_is_500_and_creates_nothing() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    let whole = node_form(json!({})).to_string();
    for fields in [
        [("name", "n"), ("type", DUMB), ("json", "no json")],
        [("name", "n"), ("type", "DumbSlave"), ("json", &whole)],
        [("name", "n"), ("type", "permanent"), ("json", &whole)],
        [("name", "n"), ("typo", DUMB), ("json", &whole)],
    ] {
        let broken = muster.post("computer/doCreateItem", &fields).await;
        assert!(broken.is(500).text.contains("Oops!") && broken.text.contains("Logging ID="));
    }
    muster.create("n", json!({"mode": "WRONG"})).await.is(500);
    muster.create("n", json!({"launcher": {"stapler-class": "hudson.slaves.NoLauncher"}})).await.is(500);
    muster.create(&"n".repeat(256), json!({})).await.is(500);
    assert!(jenkins.nodes().is_empty());
    muster.create(&"n".repeat(255), json!({})).await.is(302);
}

#[tokio::test]
async fn a_node_without_executors_is_a_ghost_that_nothing_but_the_disk_knows() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    for (name, executors) in [("zero", json!(0)), ("less", json!("-1")), ("empty", json!("")), ("text", json!("two"))] {
        muster.create(name, json!({"numExecutors": executors})).await.is(302);
        assert!(jenkins.node(name).unwrap().is_ghost, "{name}");
        muster.get(&format!("computer/{name}/api/json")).await.is(404);
        muster.get(&format!("computer/{name}/config.xml")).await.is(404);
        muster.post(&format!("computer/{name}/doDelete"), &[]).await.is(404);
        assert_eq!(muster.create(name, json!({})).await.is(400).error(), format!("Agent called  {name}  already exists"));
        assert_eq!(jenkins.connect(name).await.err(), Some(400));
    }
    assert!(jenkins.listed().is_empty());
    jenkins.put(NodeConfig::new("n1"));
    muster.write_config("n1", "<slave><name>n1</name><numExecutors>0</numExecutors></slave>").await.is(200);
    assert!(jenkins.node("n1").unwrap().is_ghost);
    muster.create("many", json!({"numExecutors": "100000"})).await.is(302);
    assert!(!jenkins.node("many").unwrap().is_ghost);
}

#[tokio::test]
async fn some_names_are_taken_and_their_urls_lead_elsewhere() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    for (name, delete) in [("api", 404), ("_all", 404), ("(built-in)", 400), ("(master)", 400), ("doCreateItem", 400)] {
        muster.create(name, json!({})).await.is(302);
        assert!(jenkins.listed().contains(&name.to_owned()), "{name}");
        muster.post(&format!("computer/{name}/doDelete"), &[]).await.is(delete);
        assert!(jenkins.node(name).is_some(), "{name}");
    }
    let own = muster.json("computer/(built-in)/api/json").await;
    assert_eq!(own["_class"], "hudson.model.Hudson$MasterComputer");
    for name in ["built-in", "master", "new", "all", "con", "-x", ".n", "a b", "é", "🙂", "it's"] {
        muster.create(name, json!({})).await.is(302);
        assert_eq!(muster.json(&format!("computer/{name}/api/json")).await["displayName"], name);
        muster.post(&format!("computer/{name}/doDelete"), &[]).await.is(302);
        assert!(jenkins.node(name).is_none(), "{name}");
    }
}

#[tokio::test]
async fn labels_are_split_at_white_space_but_for_quotes() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    let cases: [(&str, &[&str]); 5] = [
        ("b a", &["a", "b", "n"]),
        ("a,b", &["a,b", "n"]),
        ("\"x y\" z", &["n", "x y", "z"]),
        ("a && b", &["&&", "a", "b", "n"]),
        (" \t", &["n"]),
    ];
    for (given, labels) in cases {
        muster.create("n", json!({"labelString": given})).await.is(302);
        assert!(jenkins.node("n").unwrap().labels.iter().eq(labels), "{given}");
        let node = muster.json("computer/n/api/json?tree=assignedLabels[name]").await;
        let names = node["assignedLabels"].as_array().unwrap().iter().map(|label| label["name"].as_str().unwrap());
        assert!(names.eq(labels.iter().copied()), "{given}");
        jenkins.delete("n");
    }
}

#[tokio::test]
async fn of_those_who_create_one_name_at_once_one_succeeds() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    let answers = join_all((0..16).map(|_| muster.create("n1", json!({})))).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [[302].as_slice(), &[400; 15]].concat());
}

#[tokio::test]
async fn a_node_can_be_a_copy_and_cannot_be_made_from_xml() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    jenkins.put(NodeConfig::new("n1").label("l").executors(3));
    let copied = muster.post("computer/createItem", &[("name", "n2"), ("mode", "copy"), ("from", "n1")]).await;
    assert_eq!(copied.is(302).location(), format!("{}computer/n2/configure", jenkins.url()));
    assert_eq!(jenkins.node("n2").unwrap().config, NodeConfig::new("n2").label("l").executors(3));
    let unknown = muster.post("computer/createItem", &[("name", "n3"), ("mode", "copy"), ("from", "x")]).await;
    assert_eq!(unknown.is(400).error(), "No such agent: x");
    let xml = muster.request(Method::POST, "computer/createItem?name=n3").header("content-type", "application/xml").body("<slave/>");
    assert_eq!(xml.ask().await.is(400).error(), "No mode given");
}
