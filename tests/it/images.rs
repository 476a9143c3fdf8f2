//! What images cost because they are old, and how far what was baked into them is from what is wanted.

use serde_json::{Value, json};

use crate::fleet::{house_with_tools, is_ready_on, push, tools};
use crate::house::{House, TEAM, claims};

/// Image, boots and bytes of each boot, as the label shows them.
async fn images(house: &House) -> Vec<(Value, u64, u64)> {
    let label = house.admin().get("/v1/labels/linux").await.expect(200);
    let row = |image: &Value| (image["image"].clone(), image["boots"].as_u64().unwrap(), image["bytes_per_boot"].as_u64().unwrap());
    label["images"].as_array().unwrap().iter().map(row).collect()
}

/// What follows this beginning in lines of the metrics, sorted.
async fn figures(house: &House, begin: &str) -> Vec<String> {
    let text = house.admin().get("/metrics").await.text;
    let mut figures: Vec<String> = text.lines().filter_map(|line| line.strip_prefix(begin)).map(ToOwned::to_owned).collect();
    figures.sort();
    figures
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_run_of_each_boot_is_counted_by_its_image_and_no_other() {
    let mut house = house_with_tools().await;
    house.apply("linux", tools("tools", 0)).await;
    let mut agent = house.agent_process("web-1", &["linux"]).await;
    let first = house.until_agent("web-1", |detail| is_ready_on(detail, 1)).await;
    let all = first["runs"][0]["bytes_sent"].as_u64().unwrap();
    assert!(all > 0);
    assert_eq!(images(&house).await, [(Value::Null, 1, all)]);

    // A release while it runs is no boot.
    push(&house, "2.0 is longer\n");
    house.apply("linux", tools("tools", 0)).await;
    house.until_agent("web-1", |detail| is_ready_on(detail, 2)).await;
    assert_eq!(images(&house).await, [(Value::Null, 1, all)]);

    // What changed while it was away is what its image lacks.
    agent.stop();
    push(&house, "3.0\n");
    house.apply("linux", tools("tools", 0)).await;
    agent.image = Some("ami-1".into());
    agent.start();
    house.until_agent("web-1", |detail| is_ready_on(detail, 3)).await;
    let counted = [(Value::Null, 1, all), (json!("ami-1"), 1, 4)];
    assert_eq!(images(&house).await, counted);
    assert_eq!(
        figures(&house, "muster_boot_bytes_total").await,
        [format!("{{label=\"linux\",image=\"-\"}} {all}"), "{label=\"linux\",image=\"ami-1\"} 4".into()]
    );
    assert_eq!(figures(&house, "muster_boots_total{label=\"linux\",image=\"ami-1\"}").await, [" 1"]);
    assert_eq!(figures(&house, "muster_boot_seconds_total").await.len(), 2);

    // The server's own restart is no boot, and neither is being provisioned once more.
    house.restart().await;
    house.until_agent("web-1", |detail| is_ready_on(detail, 3) && detail["agent"]["session"] == true).await;
    house.admin().post("/v1/agents/web-1/provision", json!({})).await.expect(200);
    house.until_agent("web-1", |detail| is_ready_on(detail, 3) && detail["runs"].as_array().unwrap().len() == 4).await;
    assert_eq!(images(&house).await, counted);
    let label = house.admin().get("/v1/labels/linux").await.expect(200);
    let (image, began) = (&label["images"][0], first["runs"][0]["began_us"].as_i64().unwrap());
    assert!(image["seconds_per_boot"].as_f64().unwrap() > 0.0, "{label}");
    assert!(label["images_since_us"].as_i64().unwrap() < began && image["last_boot_us"].as_i64().unwrap() > began, "{label}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_does_not_succeed_is_no_boot_and_the_next_one_is() {
    let house = House::start().await;
    for guest in ["refuse-never", "ok"] {
        house.upload(guest).await;
    }
    house.apply("linux", json!({"team": TEAM, "module": "refuse-never"})).await;
    let _agent = house.agent_process("web-1", &["linux"]).await;
    house.until_state("web-1", "failed").await;
    assert_eq!(images(&house).await, []);
    house.apply("linux", json!({"team": TEAM, "module": "ok"})).await;
    house.until_agent("web-1", |detail| is_ready_on(detail, 2)).await;
    assert_eq!(images(&house).await, [(Value::Null, 1, 0)]);
}

/// Registers an agent that says what was baked into its image: bundles with versions.
async fn register_baked(house: &House, labels: &[&str], baked: &[(&str, &str)]) {
    let token = house.join_token(labels).await;
    let mut said = claims("web-1", labels);
    let baked = baked.iter().map(|(bundle, version)| json!({"bundle": bundle, "version": version, "destination": "/srv/agent/tools"}));
    said["baked"] = baked.collect();
    house.client(Some(&token)).post("/v1/register", said).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_shown_with_what_its_image_lacks_of_what_is_wanted() {
    let mut house = House::start().await;
    house.upload("ok").await;
    let old = house.push_bundle(&[("bin/tool", b"one"), ("same", b"as ever"), ("gone", b"x"), ("moved", b"twelve bytes")]).await;
    let new = house.push_bundle(&[("bin/tool", b"other"), ("same", b"as ever"), ("elsewhere/moved", b"twelve bytes")]).await;
    let extra = house.push_bundle_as("extra", TEAM, &[("a", b"a")]).await;
    let nowhere = "ab".repeat(32);
    house.apply("linux", json!({"team": TEAM, "module": "ok", "bundles": ["tools"]})).await;
    register_baked(&house, &["linux"], &[("tools", &old), ("tools", &new), ("tools", &nowhere), ("tools", &extra), ("extra", &extra)])
        .await;
    // What it said is kept, so that it is the same after a restart.
    for restarted in [false, true] {
        if restarted {
            house.restart().await;
        }
        let detail = house.admin().get("/v1/agents/web-1").await.expect(200);
        let baked = detail["baked"].as_array().unwrap();
        let told = |state: &Value| (state["files"].as_u64(), state["bytes"].as_u64(), state["unknown"].as_str().map(ToOwned::to_owned));
        let unknown = (None, None, Some("the server does not have the version that was baked".to_owned()));
        let expected = [(Some(4), Some(5), None), (Some(0), Some(0), None), unknown.clone(), unknown, (None, None, None)];
        assert_eq!(baked.iter().map(told).collect::<Vec<_>>(), expected, "{detail:#}");
        for state in &baked[..4] {
            assert_eq!((&state["wanted"], &state["labels"]), (&json!(new), &json!(["linux"])));
        }
        assert_eq!((baked[4].get("wanted"), &baked[4]["version"]), (None, &json!(extra)));
        assert_eq!((&baked[0]["version"], &baked[0]["destination"]), (&json!(old), &json!("/srv/agent/tools")));
    }
    // Another release wants something else of it at once.
    house.apply("linux", json!({"team": TEAM, "module": "ok", "bundles": [format!("tools@{old}")]})).await;
    let detail = house.admin().get("/v1/agents/web-1").await.expect(200);
    let bytes: Vec<_> = detail["baked"].as_array().unwrap().iter().map(|state| state["bytes"].as_u64()).collect();
    assert_eq!(bytes[..2], [Some(0), Some(4)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_teams_label_wants_of_an_image_is_not_told() {
    let house = House::start().await;
    house.upload("ok").await;
    house.upload_as("ok", "theirs", "games").await;
    let old = house.push_bundle(&[("a", b"one")]).await;
    let new = house.push_bundle(&[("a", b"other")]).await;
    house.apply("linux", json!({"team": TEAM, "module": "ok", "bundles": [format!("tools@{old}")]})).await;
    house.apply("zone", json!({"team": "games", "module": "theirs", "bundles": ["tools"]})).await;
    register_baked(&house, &["linux", "zone"], &[("tools", &old)]).await;
    for (who, wanted) in [(house.admin().clone(), 2), (house.team(TEAM).await, 1), (house.team("games").await, 1)] {
        let detail = who.get("/v1/agents/web-1").await.expect(200);
        let states = detail["baked"].as_array().unwrap();
        assert_eq!(states.len(), wanted, "{detail:#}");
        assert!(states.iter().all(|state| state["files"] == json!(u8::from(state["wanted"] != json!(old)))), "{detail:#}");
        assert!(states.iter().all(|state| state["labels"] == json!([if state["wanted"] == json!(new) { "zone" } else { "linux" }])));
    }
}
