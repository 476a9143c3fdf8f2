//! Who reaches what: teams their own, join tokens registering, agents themselves.

use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{BareAgent, Client, House, claims};

/// A server with two teams, each with a module, a bundle, a label and an agent that was provisioned.
struct Two {
    house: House,
    red: Client,
    blue: Client,
    blue_module: String,
    blue_bundle: String,
    _blue_agent: BareAgent,
}

fn policy(team: &str) -> Value {
    json!({
        "team": team,
        "module": format!("{team}-module"),
        "bundles": [format!("{team}-bundle")],
        "grants": {"run": ["/usr/bin/true"], "write": ["work/**"], "read": ["/etc/os-release"], "secrets": ["token"]},
    })
}

async fn two() -> Two {
    let house = House::start().await;
    let (mut module, mut bundle) = (String::new(), String::new());
    for team in ["red", "blue"] {
        module = house.upload_as("ok", &format!("{team}-module"), team).await;
        bundle = house.push_bundle_as(&format!("{team}-bundle"), team, &[("file", team.as_bytes())]).await;
        house.apply(&format!("{team}-label"), policy(team)).await;
    }
    let agent = house.register("blue-agent", &["blue-label"]).await;
    let (red, blue) = (house.team("red").await, house.team("blue").await);
    Two { house, red, blue, blue_module: module, blue_bundle: bundle, _blue_agent: agent }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_another_teams_is_answered_like_what_is_not_there() {
    let two = two().await;
    let before = two.blue.get("/v1/labels/blue-label").await.expect(200);
    let (module, bundle) = (&two.blue_module, &two.blue_bundle);
    let swap = json!({"module": "red-module"}).to_string();
    let taking = policy("red").to_string();
    let calls: Vec<(Method, String, &str)> = vec![
        (Method::GET, "/v1/modules/blue-module".into(), ""),
        (Method::GET, format!("/v1/modules/blue-module/{module}"), ""),
        (Method::GET, "/v1/bundles/blue-bundle".into(), ""),
        (Method::GET, format!("/v1/bundles/blue-bundle/{bundle}"), ""),
        (Method::GET, format!("/v1/bundles/blue-bundle/{bundle}/manifest"), ""),
        (Method::GET, "/v1/labels/blue-label".into(), ""),
        (Method::GET, "/v1/labels/blue-label/releases".into(), ""),
        (Method::PUT, "/v1/labels/blue-label".into(), &taking),
        (Method::POST, "/v1/labels/blue-label/swap".into(), &swap),
        (Method::POST, "/v1/labels/blue-label/rollback".into(), "{}"),
        (Method::POST, "/v1/labels/blue-label/rollback".into(), "{\"to\": 7}"),
        (Method::GET, "/v1/agents/blue-agent".into(), ""),
        (Method::GET, "/v1/agents/blue-agent/explain".into(), ""),
        (Method::POST, "/v1/agents/blue-agent/provision".into(), ""),
        (Method::POST, "/v1/agents/blue-agent/drain".into(), ""),
        (Method::POST, "/v1/agents/blue-agent/quarantine".into(), ""),
        (Method::DELETE, "/v1/agents/blue-agent".into(), ""),
    ];
    for (method, path, body) in calls {
        let json = [("content-type", "application/json")];
        let foreign = two.red.send(method.clone(), &path, &json, body.to_owned()).await;
        assert!([403, 404].contains(&foreign.status), "{method} {path}: {} {}", foreign.status, foreign.text);
        let status = foreign.status;
        let mut told = foreign.problem(status);
        let nothing = two.red.send(method.clone(), &path.replace("/blue-", "/gone-"), &json, body.to_owned()).await;
        let mut absent = nothing.problem(status);
        for problem in [&mut told, &mut absent] {
            problem["request"] = Value::Null;
        }
        assert_eq!(told.to_string().replace("blue-", "gone-"), absent.to_string(), "{method} {path}");
    }
    for list in ["modules", "bundles", "labels", "agents", "agents?state=gone", "runs", "agents?label=blue-label", "runs?label=blue-label"]
    {
        let text = two.red.get(&format!("/v1/{list}")).await.expect(200).to_string();
        assert!(!text.contains("blue"), "{list}: {text}");
    }
    assert_eq!(two.blue.get("/v1/labels/blue-label").await.expect(200)["release"], before["release"]);
    assert_eq!(two.blue.get("/v1/agents/blue-agent").await.expect(200)["agent"]["name"], "blue-agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_can_not_use_or_overwrite_what_another_team_has() {
    let two = two().await;
    for (field, value) in [("module", json!("blue-module")), ("bundles", json!(["blue-bundle"]))] {
        let mut wrong = policy("red");
        wrong[field] = value;
        let foreign = two.red.put("/v1/labels/red-label", wrong.clone()).await.problem(422);
        let text = wrong.to_string().replace("blue-", "gone-");
        let absent = two.red.put("/v1/labels/red-label", serde_json::from_str(&text).unwrap()).await.problem(422);
        assert_eq!(foreign["detail"].as_str().unwrap().replace("blue-", "gone-"), absent["detail"].as_str().unwrap());
    }
    two.red.post("/v1/labels/red-label/swap", json!({"module": "blue-module"})).await.problem(422);
    let module = crate::guests::component("calls");
    for path in ["/v1/modules?name=blue-module", "/v1/modules?name=new&team=blue", "/v1/modules?name=blue-module&team=red"] {
        assert_eq!(two.red.send(Method::POST, path, &[], module.clone()).await.problem(403)["code"], "not-yours");
    }
    let manifest = two.red.get("/v1/bundles/red-bundle").await.expect(200);
    let version = manifest["items"][0]["version"].as_str().unwrap();
    let manifest = two.red.get(&format!("/v1/bundles/red-bundle/{version}/manifest")).await.text;
    for path in ["/v1/bundles/blue-bundle", "/v1/bundles/new?team=blue"] {
        assert_eq!(two.red.send(Method::PUT, path, &[], manifest.clone()).await.problem(403)["code"], "not-yours");
    }
    assert_eq!(two.blue.get("/v1/modules/blue-module").await.expect(200)["items"].as_array().unwrap().len(), 1);
    assert_eq!(two.blue.get("/v1/bundles/blue-bundle").await.expect(200)["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_changes_its_label_within_what_an_admin_granted() {
    let two = two().await;
    two.red.send(Method::POST, "/v1/modules?name=red-module", &[], crate::guests::component("calls")).await.expect(201);
    assert_eq!(two.red.post("/v1/labels/red-label/swap", json!({"module": "red-module"})).await.expect(200)["release"], 2);
    let mut narrower = policy("red");
    narrower["settings"] = json!({"a": "b"});
    narrower["limits"] = json!({"cpu_ms": 100});
    narrower["launch"] = json!({"command": ["/usr/bin/true", "--once"]});
    assert_eq!(two.red.put("/v1/labels/red-label", narrower.clone()).await.expect(200)["release"], 3);

    for (pointer, value) in [
        ("/grants/run/1", json!("/bin/sh")),
        ("/grants/run/0", json!("/usr/bin/*")),
        ("/grants/write/1", json!("/etc/**")),
        ("/grants/read/1", json!("/etc/shadow")),
        ("/grants/secrets/1", json!("root-password")),
        ("/limits/cpu_ms", json!(101)),
        ("/limits/memory_mib", json!(65)),
        ("/limits/run_seconds", json!(601)),
        ("/limits/calls", json!(10_001)),
        ("/team", json!("blue")),
        ("/mirror_foreign", json!("delete")),
        ("/launch/command", json!(["/bin/sh", "-c", "true"])),
    ] {
        let mut wider = narrower.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match wider.pointer_mut(parent).unwrap() {
            Value::Array(items) if key == "1" => items.push(value),
            Value::Array(items) => items[0] = value,
            parent => parent[key] = value,
        }
        let problem = two.red.put("/v1/labels/red-label", wider.clone()).await.problem(403);
        assert_eq!(problem["code"], "not-yours", "{pointer}: {problem}");
        two.red.put("/v1/labels/red-label?preview=true", wider).await.problem(403);
    }
    assert_eq!(two.red.get("/v1/labels/red-label").await.expect(200)["release"]["release"], 3);
    // What is narrower now was an admin's to widen: going back to release 1 would raise a limit.
    two.red.post("/v1/labels/red-label/rollback", json!({"to": 1})).await.problem(403);
    two.house.admin().post("/v1/labels/red-label/rollback", json!({"to": 1})).await.expect(200);
    two.red.put("/v1/labels/new-label", policy("red")).await.problem(403);
    two.house.admin().get("/v1/labels/new-label").await.problem(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_admin_gave_a_label_of_another_team_stays_usable_there() {
    let two = two().await;
    let mut shared = policy("red");
    shared["bundles"] = json!(["red-bundle", "blue-bundle"]);
    two.house.apply("red-label", shared).await;
    two.red.send(Method::POST, "/v1/modules?name=red-module", &[], crate::guests::component("calls")).await.expect(201);
    two.red.post("/v1/labels/red-label/swap", json!({"module": "red-module"})).await.expect(200);
    two.red.get("/v1/bundles/blue-bundle").await.problem(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_acts_on_agents_that_carry_its_labels_or_joined_with_its_token() {
    let two = two().await;
    let token = two.house.token(json!({"kind": "join", "team": "red", "labels": ["unused"]})).await;
    two.house.client(Some(&token)).post("/v1/register", claims("red-agent", &["unused"])).await.expect(201);
    for (team, agent) in [(&two.red, "red-agent"), (&two.blue, "blue-agent")] {
        assert_eq!(
            team.post(&format!("/v1/agents/{agent}/drain"), json!({"reason": "maintenance"})).await.expect(200)["state"],
            "draining"
        );
        let events = team.get(&format!("/v1/agents/{agent}")).await.expect(200)["events"].clone();
        assert!(events[0]["cause"].as_str().unwrap().ends_with("maintenance"), "{events}");
        team.post(&format!("/v1/agents/{agent}/quarantine"), json!({"reason": "a\nb"})).await.problem(422);
        team.delete(&format!("/v1/agents/{agent}")).await.expect(204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_worth_nothing_at_once() {
    let house = House::start().await;
    let made = house.admin().post("/v1/tokens", json!({"kind": "team", "team": "red"})).await.expect(201);
    let red = house.client(made["secret"].as_str());
    red.get("/v1/modules").await.expect(200);
    let path = format!("/v1/tokens/{}", made["token"]["id"].as_str().unwrap());
    house.admin().delete(&path).await.expect(204);
    red.get("/v1/modules").await.problem(401);
    house.admin().delete(&path).await.problem(404);
    let listed = house.admin().get("/v1/tokens").await.expect(200).to_string();
    assert!(!listed.contains(made["secret"].as_str().unwrap()));
    assert!(!listed.contains("secret") && !listed.contains("hash"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_makes_no_sense_is_not_made() {
    let house = House::start().await;
    let before = house.admin().get("/v1/tokens").await.expect(200);
    for asked in [
        json!({"kind": "join"}),
        json!({"kind": "join", "labels": []}),
        json!({"kind": "team"}),
        json!({"kind": "team", "team": "red", "labels": ["a"]}),
        json!({"kind": "admin", "team": "red"}),
        json!({"kind": "admin", "labels": ["a"]}),
        json!({"kind": "root"}),
        json!({"kind": "join", "labels": (0..33).map(|at| format!("l{at}")).collect::<Vec<_>>()}),
    ] {
        house.admin().post("/v1/tokens", asked).await.problem(422);
    }
    assert_eq!(house.admin().get("/v1/tokens").await.expect(200), before);
}
