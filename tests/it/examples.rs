//! The modules of `examples/`, each on a real agent from its upload to what it does to the machine.
//!
//! `scripts/guests` builds them into `target/guests/`; one that was not built is passed over, but in CI. `examples/tools` is in `fleet`.

#![expect(clippy::disallowed_methods, reason = "whether this is CI is told by the environment")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::routing::put;
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{House, TEAM};

/// The component of an example; none, and a word about it, if it was not built.
fn built(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/guests/{name}.wasm"));
    if path.exists() {
        return Some(path);
    }
    println!("passed over: {} was not built; scripts/guests builds it", path.display());
    assert!(std::env::var_os("CI").is_none(), "{} was not built, and CI is to have it", path.display());
    None
}

/// A house to which the module was pushed as a team does it, with all the time that this takes; what the server said of it.
async fn house(name: &str, component: &Path) -> (House, Value) {
    let house = House::start().await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["module", "push", "--name", name, "--team", TEAM, "--json", "--server", &house.url(), "--token-file"]);
    command.arg(house.data().join("admin.token")).arg(component).env("NO_PROXY", "*").stdin(std::process::Stdio::null());
    let pushed = command.output().await.unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let module = serde_json::from_slice(&pushed.stdout).unwrap();
    (house, module)
}

/// A policy that grants what the module asks for.
fn granted(name: &str, module: &Value, settings: Value) -> Value {
    let mut grants = module["asks"].clone();
    grants.as_object_mut().unwrap().remove("http");
    json!({"team": TEAM, "module": name, "settings": settings, "grants": grants})
}

/// Applies a policy under which the module finds everything granted, and waits for the verdict of its first run; the reason with it.
async fn provisioned(house: &House, policy: Value) -> (String, String) {
    let applied = house.apply("linux", policy).await;
    assert_eq!(applied["not_granted"], Value::Null);
    let release = applied["release"].clone();
    let ran = |detail: &Value| {
        let newest = &detail["runs"][0];
        newest["release"] == release && newest["verdict"] != "running"
    };
    let detail = house.until_agent("web-1", ran).await;
    let text = |field: &str| detail["runs"][0][field].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("reason"))
}

#[tokio::test(flavor = "multi_thread")]
async fn configure_fills_in_its_templates_and_changes_only_what_changed() {
    let Some(component) = built("configure") else { return };
    let (house, module) = house("configure", &component).await;
    assert_eq!((&module["language"], &module["asks"]), (&json!("JavaScript"), &json!({"write": ["etc/**"]})));
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/configure/templates");
    let read = |path: &str| std::fs::read(tree.join(path)).unwrap();
    let (maven, conf) = (read("maven/settings.xml"), read("agent.conf"));
    house.push_bundle_as("templates", TEAM, &[("maven/settings.xml", &maven), ("agent.conf", &conf)]).await;
    let agent = house.agent_process("web-1", &["linux"]).await;
    let with = |settings: Value| {
        let mut policy = granted("configure", &module, settings);
        policy["bundles"] = json!(["templates"]);
        policy
    };
    let templates = "maven/settings.xml agent.conf";
    let settings = json!({"templates": templates, "repository": "https://artifacts.internal.example/maven", "jdk": "17 é"});
    assert_eq!(provisioned(&house, with(settings)).await, ("provisioned".into(), String::new()));
    let written = |path: &str| std::fs::read_to_string(agent.root.join("etc").join(path)).unwrap();
    assert_eq!(written("agent.conf"), "name = web-1\nexecutors = 1\njdk = 17 é\n");
    let maven = written("maven/settings.xml");
    assert!(maven.contains("<url>https://artifacts.internal.example/maven</url>"), "{maven}");
    assert!(maven.contains(&format!("<localRepository>{}/cache/maven<", agent.root.display())), "{maven}");

    // A place that nothing is known for is refused before anything is written.
    let (verdict, reason) = provisioned(&house, with(json!({"templates": templates, "jdk": "21"}))).await;
    assert_eq!(verdict, "refused-never");
    assert!(reason.contains("`{settings.repository}`"), "{reason}");
    assert_eq!(written("agent.conf"), "name = web-1\nexecutors = 1\njdk = 17 é\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn choose_jdk_believes_what_each_java_says_of_itself() {
    let Some(component) = built("choose-jdk") else { return };
    let (house, module) = house("choose-jdk", &component).await;
    let agent = house.agent_process("web-1", &["linux"]).await;
    let java = agent.root.join("jdk/bin/java");
    std::fs::create_dir_all(java.parent().unwrap()).unwrap();
    std::fs::write(&java, "#!/bin/sh\n[ \"$*\" = -version ] && echo 'openjdk version \"999.0.9\" 2023-10-17' >&2\n").unwrap();
    std::fs::set_permissions(&java, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let with = |settings: Value| {
        let mut policy = granted("choose-jdk", &module, settings);
        // The interpreter is larger than most modules.
        policy["limits"] = json!({"cpu_ms": 20_000, "memory_mib": 128});
        policy
    };
    assert_eq!(provisioned(&house, with(json!({"jdk": "998", "newer": "yes"}))).await, ("provisioned".into(), String::new()));
    let chosen = std::fs::read_to_string(agent.root.join("jdk.conf")).unwrap();
    assert_eq!(chosen, format!("JAVA_HOME='{}'\nJAVA_VERSION=999\n", agent.root.join("jdk").display()));
    let (verdict, reason) = provisioned(&house, with(json!({"jdk": "998"}))).await;
    assert_eq!(verdict, "refused-later");
    assert!(reason.contains("there is no JDK 998 on the machine") && reason.contains(&format!("999 at {}", java.display())), "{reason}");
    assert_eq!(provisioned(&house, with(json!({"jdk": "new"}))).await.0, "refused-never");
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_caches_removes_caches_only_while_there_is_too_little_room() {
    let Some(component) = built("prune-caches") else { return };
    let (house, module) = house("prune-caches", &component).await;
    let agent = house.agent_process("web-1", &["linux"]).await;
    for cache in ["cache/npm", "cache/maven", "cache/other"] {
        std::fs::create_dir_all(agent.root.join(cache)).unwrap();
        std::fs::write(agent.root.join(cache).join("file"), "bits").unwrap();
    }
    let policy =
        |free_mib: &str| granted("prune-caches", &module, json!({"free_mib": free_mib, "caches": " cache/npm  cache/maven cache/none"}));
    assert_eq!(provisioned(&house, policy("0")).await, ("provisioned".into(), String::new()));
    assert!(agent.root.join("cache/npm/file").exists());

    let (verdict, reason) = provisioned(&house, policy("999999999999")).await;
    assert_eq!(verdict, "refused-later");
    assert!(reason.contains("with all caches removed") && reason.contains("999999999999 are wanted"), "{reason}");
    let left: Vec<_> = std::fs::read_dir(agent.root.join("cache")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["other"]);
    assert_eq!(provisioned(&house, policy("much")).await, ("refused-never".into(), "the setting `free_mib` is no number".into()));
}

/// An inventory: what was put where, and the status that it answers with.
#[derive(Clone)]
struct Inventory {
    told: Arc<Mutex<Vec<(String, Value)>>>,
    status: Arc<Mutex<StatusCode>>,
}

async fn machine(State(inventory): State<Inventory>, uri: Uri, axum::Json(machine): axum::Json<Value>) -> (StatusCode, &'static str) {
    inventory.told.lock().unwrap().push((uri.path().to_owned(), machine));
    (*inventory.status.lock().unwrap(), "so it is")
}

#[tokio::test(flavor = "multi_thread")]
async fn announce_tells_an_inventory_over_http_and_minds_its_answer() {
    let Some(component) = built("announce") else { return };
    if !Path::new("/usr/bin/curl").exists() {
        println!("passed over: there is no /usr/bin/curl");
        assert!(std::env::var_os("CI").is_none(), "there is no /usr/bin/curl, and CI is to have it");
        return;
    }
    let inventory = Inventory { told: Arc::default(), status: Arc::new(Mutex::new(StatusCode::CREATED)) };
    let routes = Router::new().route("/api/machines/{name}", put(machine)).with_state(inventory.clone());
    let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });

    let (house, module) = house("announce", &component).await;
    let _agent = house.agent_process("web-1", &["linux"]).await;
    let policy = |note: &str| granted("announce", &module, json!({"inventory": url, "note": note}));
    assert_eq!(provisioned(&house, policy("first")).await, ("provisioned".into(), String::new()));
    let told = inventory.told.lock().unwrap().clone();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, "/api/machines/web-1");
    assert_eq!((&told[0].1["name"], &told[0].1["labels"], &told[0].1["executors"]), (&json!("web-1"), &json!(["linux"]), &json!(1)));

    *inventory.status.lock().unwrap() = StatusCode::FORBIDDEN;
    let (verdict, reason) = provisioned(&house, policy("second")).await;
    assert_eq!((verdict.as_str(), reason.as_str()), ("refused-never", "the inventory does not take the machine: 403 so it is"));
    *inventory.status.lock().unwrap() = StatusCode::SERVICE_UNAVAILABLE;
    assert_eq!(provisioned(&house, policy("third")).await.0, "refused-later");
}

/// `muster` as a team uses it, on this machine alone.
fn muster(arguments: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(arguments).env_remove("MUSTER_TOKEN").stdin(std::process::Stdio::null()).output().unwrap()
}

#[test]
fn a_bench_tells_what_a_module_costs_cold_and_warm() {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tools");
    let (component, tree) = (tools.join("tools.wasm"), format!("tools={}", tools.join("tree").display()));
    let done = muster(&["module", "bench", component.to_str().unwrap(), "--bundle", &tree, "--runs", "10", "--json"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let told: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&told["runs"], &told["verdict"]), (&json!(10), &json!("provisioned")));
    assert!(told["calls"].as_u64().unwrap() >= 3 && told["memory_bytes"].as_u64().unwrap() > 64 * 1024, "{told}");
    let time = |name: &str| told[name].as_f64().unwrap();
    assert!(time("compile_ms") > 0.0 && time("median_ms") <= time("p95_ms") && time("p95_ms") <= time("slowest_ms"), "{told}");
    // Without its bundle the module refuses, which is no measurement.
    let done = muster(&["module", "bench", component.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("run 1 did not succeed"));
}

#[test]
fn what_is_no_project_is_not_built() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_str().unwrap();
    let done = muster(&["module", "build", at]);
    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).contains("there is no muster-module.toml in "));
    for (text, told) in [
        ("name = \"a\"\nlang = \"cobol\"\n", "cobol"),
        ("name = \"a\"\nlang = \"c\"\n[asks]\nrum = []\n", "rum"),
        ("name = \"a\"\nlang = \"c\"\n[asks]\nrun = [\"../x\"]\n", "asks.run"),
    ] {
        std::fs::write(directory.path().join("muster-module.toml"), text).unwrap();
        let done = muster(&["module", "build", at]);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.code() == Some(1) && said.contains(told), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_module_asks_for_is_held_against_what_its_label_grants() {
    let house = House::start().await;
    let asks = muster::api::Asks { run: vec!["/bin/df".into()], write: vec!["cache/**".into()], ..Default::default() };
    let component = muster::sandbox::inspect::asks::carried(crate::guests::component("ok"), "C", asks).unwrap();
    let upload = |name: &str, component: Vec<u8>| {
        let path = format!("/v1/modules?name={name}&team={TEAM}");
        async { house.admin().send(Method::POST, &{ path }, &[("content-type", "application/wasm")], component).await }
    };
    let module = upload("asking", component).await.done();
    let asked = json!({"run": ["/bin/df"], "write": ["cache/**"]});
    assert_eq!(module["asks"], asked);
    let digest = module["digest"].as_str().unwrap();
    assert_eq!(house.admin().get(&format!("/v1/modules/asking/{digest}")).await.expect(200)["asks"], asked);
    assert_eq!(house.admin().get("/v1/modules/asking").await.expect(200)["items"][0]["asks"], asked);

    let policy = |grants: Value| json!({"team": TEAM, "module": "asking", "grants": grants});
    let some = policy(json!({"write": ["**"]}));
    let preview = house.admin().put("/v1/labels/linux?preview=true", some.clone()).await.expect(200);
    assert_eq!(preview["not_granted"], json!(["grants.run /bin/df"]));
    assert_eq!(house.apply("linux", some).await["not_granted"], preview["not_granted"]);
    assert_eq!(house.apply("linux", policy(json!({"write": ["**"], "run": ["/bin/df"]}))).await["not_granted"], Value::Null);
    let releases = house.admin().get("/v1/labels/linux/releases").await.expect(200);
    assert_eq!((&releases["items"][0]["not_granted"], &releases["items"][1]["not_granted"]), (&Value::Null, &preview["not_granted"]));
    let shown = house.admin().get("/v1/labels/linux").await.expect(200);
    assert_eq!((&shown["release"]["asks"], &shown["release"]["not_granted"]), (&asked, &Value::Null));

    // A section that can not be read would show a person something else than what is there.
    let mut odd = crate::guests::component("ok");
    odd.extend(b"\0\x0f\x0dmuster-modulex");
    let problem = upload("odd", odd).await.expect(422);
    assert!(problem["detail"].as_str().unwrap().contains("`muster-module`"), "{problem}");
}
