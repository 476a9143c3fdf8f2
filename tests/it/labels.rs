//! Labels: what is applied, swapped and rolled back.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{House, TEAM};

fn policy(module: &str, jdk: &str) -> Value {
    json!({"team": TEAM, "module": module, "settings": {"jdk": jdk}})
}

async fn history(house: &House) -> Vec<Value> {
    house.admin().get("/v1/labels/linux/releases").await.expect(200)["items"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_policy_is_release_1_with_everything_pinned_and_again_it_makes_none() {
    let house = House::start().await;
    let digest = house.upload("ok").await;
    let version = house.push_bundle(&[("bin/tool", b"one")]).await;
    let asked = json!({"team": TEAM, "module": "ok", "bundles": ["tools"]});
    let applied = house.apply("linux", asked.clone()).await;
    assert_eq!((&applied["release"], applied.get("previous")), (&json!(1), None), "{applied}");
    assert!(!applied["changes"].as_array().unwrap().is_empty());
    let label = house.admin().get("/v1/labels/linux").await.expect(200);
    assert_eq!(label["team"], TEAM);
    assert_eq!(label["release"]["policy"]["module"], format!("ok@sha256:{digest}"));
    assert_eq!(label["release"]["policy"]["bundles"], json!([format!("tools@sha256:{version}")]));

    let again = house.apply("linux", asked).await;
    assert_eq!(again["changes"], json!([]), "{again}");
    assert_eq!(again["previous"], 1);
    assert_eq!(history(&house).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_tells_the_changes_and_makes_none() {
    let house = House::start().await;
    house.upload("ok").await;
    let first = house.admin().put("/v1/labels/linux?preview=true", policy("ok", "17")).await.expect(200);
    assert!(!first["changes"].as_array().unwrap().is_empty());
    house.admin().get("/v1/labels/linux").await.problem(404);

    house.apply("linux", policy("ok", "17")).await;
    let second = house.admin().put("/v1/labels/linux?preview=true", policy("ok", "21")).await.expect(200);
    assert_eq!(second["previous"], 1);
    assert!(second["changes"][0].as_str().unwrap().contains("jdk"), "{second}");
    assert_eq!(house.admin().get("/v1/labels/linux").await.expect(200)["release"]["policy"]["settings"]["jdk"], "17");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_module_is_refused_with_a_reason_and_never_becomes_a_release() {
    let house = House::start().await;
    house.upload("ok").await;
    house.apply("linux", policy("ok", "17")).await;
    let other = crate::guests::component_of_contract("9.0.0");
    let empty = wat::parse_str("(component)").unwrap();
    let core = wat::parse_str("(module)").unwrap();
    for bytes in [b"#!/bin/sh\n".to_vec(), Vec::new(), empty, core, other] {
        let answer = house.admin().send(Method::POST, "/v1/modules?name=bad&team=media", &[], bytes).await;
        assert_eq!(answer.problem(422)["code"], "not-a-module");
    }
    house.admin().get("/v1/modules/bad").await.problem(404);
    assert_eq!(house.admin().put("/v1/labels/linux", policy("bad", "17")).await.problem(422)["code"], "unknown");
    let nowhere = format!("ok@sha256:{}", "ab".repeat(32));
    assert_eq!(house.admin().put("/v1/labels/linux", policy(&nowhere, "17")).await.problem(422)["code"], "unknown");
    assert_eq!(house.admin().post("/v1/labels/linux/swap", json!({"module": nowhere})).await.problem(422)["code"], "unknown");
    let mut without = policy("ok", "17");
    without["bundles"] = json!(["none"]);
    assert_eq!(house.admin().put("/v1/labels/linux", without).await.problem(422)["code"], "unknown");
    assert_eq!(history(&house).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_changes_the_module_alone_and_a_rollback_is_a_new_release() {
    let house = House::start().await;
    let one = house.upload_as("ok", "base", TEAM).await;
    house.apply("linux", policy("base", "17")).await;
    let two = house.upload_as("calls", "base", TEAM).await;
    assert_eq!(house.admin().get("/v1/labels/linux").await.expect(200)["release"]["release"], 1, "an upload changes no label");

    let swapped = house.admin().post("/v1/labels/linux/swap", json!({"module": "base"})).await.expect(200);
    assert_eq!((&swapped["release"], &swapped["previous"]), (&json!(2), &json!(1)));
    let release = house.admin().get("/v1/labels/linux").await.expect(200)["release"].clone();
    assert_eq!(release["policy"]["module"], format!("base@sha256:{two}"));
    assert_eq!(release["policy"]["settings"]["jdk"], "17");
    assert_eq!(release["how"], "swapped");

    let back = house.admin().post("/v1/labels/linux/rollback", json!({})).await.expect(200);
    assert_eq!((&back["release"], &back["previous"]), (&json!(3), &json!(2)));
    house.admin().send(Method::POST, "/v1/labels/linux/rollback", &[], "").await.expect(200);
    house.admin().post("/v1/labels/linux/rollback", json!({"to": 1})).await.expect(200);
    assert_eq!(house.admin().post("/v1/labels/linux/rollback", json!({"to": 99})).await.problem(422)["code"], "unknown");
    house.admin().post("/v1/labels/other/rollback", json!({})).await.problem(404);
    house.admin().post("/v1/labels/other/swap", json!({"module": "base"})).await.problem(404);

    let history = history(&house).await;
    let told: Vec<_> = history.iter().map(|release| (release["release"].as_i64().unwrap(), release["how"].as_str().unwrap())).collect();
    assert_eq!(told, [(5, "rolled back to 1"), (4, "rolled back to 2"), (3, "rolled back to 1"), (2, "swapped"), (1, "applied")]);
    assert_eq!(history[0]["policy"]["module"], format!("base@sha256:{one}"));
    let page = house.admin().get("/v1/labels/linux/releases?limit=2").await.expect(200);
    let next = house.admin().get(&format!("/v1/labels/linux/releases?limit=2&cursor={}", page["next"].as_str().unwrap())).await.expect(200);
    assert_eq!(next["items"][0]["release"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_at_once_are_releases_one_after_the_other_and_none_undoes_another() {
    let house = House::start().await;
    house.upload_as("ok", "base", TEAM).await;
    house.apply("linux", policy("base", "0")).await;
    let other = house.upload_as("calls", "base", TEAM).await;
    let swap = house.admin().post("/v1/labels/linux/swap", json!({"module": "base"}));
    let jdks: Vec<String> = (1..=6).map(|at| at.to_string()).collect();
    let applies = jdks.iter().map(|jdk| house.admin().put("/v1/labels/linux", policy(&format!("base@sha256:{other}"), jdk)));
    let (swapped, applied) = tokio::join!(swap, futures_util::future::join_all(applies));
    let mut made = BTreeSet::from([1]);
    for answer in applied.into_iter().chain([swapped]) {
        match answer.status {
            200 => assert!(answer.body["release"].as_i64().is_none_or(|release| made.insert(release)), "{}", answer.text),
            _ => assert_eq!(answer.problem(409)["code"], "raced"),
        }
    }
    let history = history(&house).await;
    assert_eq!(history.len(), made.len());
    assert_eq!(made.last().copied(), i64::try_from(made.len()).ok());
    // A swap keeps the settings of the release right before it.
    for pair in history.windows(2).filter(|pair| pair[0]["how"] == "swapped") {
        assert_eq!(pair[0]["policy"]["settings"], pair[1]["policy"]["settings"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_release_in_force_outlives_a_restart() {
    let mut house = House::start().await;
    house.upload("ok").await;
    house.push_bundle(&[("bin/tool", b"one")]).await;
    house.apply("linux", policy("ok", "17")).await;
    house.apply("linux", json!({"team": TEAM, "module": "ok", "bundles": ["tools"]})).await;
    let before = house.admin().get("/v1/labels").await.expect(200);
    house.restart().await;
    assert_eq!(house.admin().get("/v1/labels").await.expect(200), before);
    let again = house.apply("linux", json!({"team": TEAM, "module": "ok", "bundles": ["tools"]})).await;
    assert_eq!(again["changes"], json!([]));
    let back = house.admin().post("/v1/labels/linux/rollback", json!({})).await.expect(200);
    assert_eq!(back["release"], 3);
}
