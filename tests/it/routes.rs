//! Every route of the document, with input that it can not take.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{BareAgent, Client, House, TEAM, claims};

/// Who a route is for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Anyone,
    Joining,
    Agent,
    Person,
    Admin,
}

/// What a route takes as its body.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Takes {
    Nothing,
    Json,
    JsonOrNothing,
    Upload,
    Indices,
}

use Takes::{Indices, Json, JsonOrNothing, Nothing, Upload};
use Who::{Admin, Anyone, Joining, Person};

/// Every route that there is.
const ROUTES: &[(&str, &str, Who, Takes)] = &[
    ("post", "/v1/register", Joining, Json),
    ("get", "/v1/session", Who::Agent, Nothing),
    ("get", "/v1/poll", Who::Agent, Nothing),
    ("get", "/v1/poll/{step}/input", Who::Agent, Nothing),
    ("put", "/v1/poll/{step}/out", Who::Agent, Nothing),
    ("put", "/v1/poll/{step}/err", Who::Agent, Nothing),
    ("post", "/v1/poll/{step}/done", Who::Agent, Nothing),
    ("post", "/v1/modules", Person, Upload),
    ("get", "/v1/modules", Person, Nothing),
    ("get", "/v1/modules/{name}", Person, Nothing),
    ("get", "/v1/modules/{name}/{digest}", Person, Nothing),
    ("get", "/v1/modules/{name}/{digest}/script", Person, Nothing),
    ("post", "/v1/contents/missing", Person, Json),
    ("post", "/v1/contents", Person, Upload),
    ("put", "/v1/bundles/{name}", Person, Upload),
    ("get", "/v1/bundles", Person, Nothing),
    ("get", "/v1/bundles/{name}", Person, Nothing),
    ("get", "/v1/bundles/{name}/{version}", Person, Nothing),
    ("get", "/v1/bundles/{name}/{version}/manifest", Person, Nothing),
    ("post", "/v1/bundles/{name}/{version}/contents", Person, Indices),
    ("put", "/v1/labels/{label}", Person, Json),
    ("get", "/v1/labels", Person, Nothing),
    ("get", "/v1/labels/{label}", Person, Nothing),
    ("get", "/v1/labels/{label}/releases", Person, Nothing),
    ("post", "/v1/labels/{label}/swap", Person, Json),
    ("post", "/v1/labels/{label}/rollback", Person, JsonOrNothing),
    ("get", "/v1/labels/{label}/demand", Person, Nothing),
    ("get", "/v1/controllers", Admin, Nothing),
    ("post", "/v1/controllers/{name}/check", Admin, Nothing),
    ("get", "/v1/agents", Person, Nothing),
    ("get", "/v1/agents/{name}", Person, Nothing),
    ("get", "/v1/agents/{name}/explain", Person, Nothing),
    ("post", "/v1/agents/{name}/provision", Person, JsonOrNothing),
    ("post", "/v1/agents/{name}/drain", Person, JsonOrNothing),
    ("post", "/v1/agents/{name}/quarantine", Person, JsonOrNothing),
    ("delete", "/v1/agents/{name}", Person, JsonOrNothing),
    ("get", "/v1/runs", Person, Nothing),
    ("get", "/v1/runs/{id}", Person, Nothing),
    ("get", "/v1/runs/{id}/log", Person, Nothing),
    ("get", "/v1/runs/{id}/journal", Person, Nothing),
    ("get", "/v1/runs/{id}/recording", Person, Nothing),
    ("get", "/v1/runs/{id}/module", Person, Nothing),
    ("post", "/v1/tokens", Admin, Json),
    ("get", "/v1/tokens", Admin, Nothing),
    ("delete", "/v1/tokens/{id}", Admin, Nothing),
    ("get", "/muster-poll", Anyone, Nothing),
    ("get", "/healthz", Anyone, Nothing),
    ("get", "/readyz", Anyone, Nothing),
    ("get", "/metrics", Anyone, Nothing),
    ("get", "/plugin/dynaslave/createSlave", Anyone, Nothing),
    ("post", "/plugin/dynaslave/createSlave", Anyone, Nothing),
    ("get", "/computer/{name}", Anyone, Nothing),
    ("post", "/plugin/swarm/createSlave", Anyone, Nothing),
    ("get", "/plugin/swarm/getSlaveLabels", Anyone, Nothing),
    ("post", "/plugin/swarm/addSlaveLabels", Anyone, Nothing),
    ("post", "/plugin/swarm/removeSlaveLabels", Anyone, Nothing),
];

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// A server with one of each thing, and one of each credential.
struct Full {
    house: House,
    agent: BareAgent,
    joining: Client,
    team: Client,
}

async fn full() -> Full {
    let house = House::plan().poll(Duration::from_secs(600)).start().await;
    house.upload("ok").await;
    house.push_bundle(&[("bin/tool", b"one")]).await;
    house.apply("linux", json!({"team": TEAM, "module": "ok"})).await;
    let mut agent = house.register("web-1", &["linux"]).await;
    agent.claims["link"] = "poll".into();
    agent.poll().await.expect(200);
    let joining = house.client(Some(&house.join_token(&["linux"]).await));
    let team = house.team(TEAM).await;
    Full { house, agent, joining, team }
}

impl Full {
    /// Whoever may call a route.
    fn right(&self, who: Who) -> &Client {
        match who {
            Joining => &self.joining,
            Who::Agent => &self.agent.client,
            Anyone | Person | Admin => self.house.admin(),
        }
    }

    /// Everything that is listed.
    async fn lists(&self) -> Vec<Value> {
        let mut lists = Vec::new();
        for list in ["modules", "bundles", "labels", "labels/linux/releases", "agents", "agents?state=gone", "runs", "tokens"] {
            let mut list = self.house.admin().get(&format!("/v1/{list}")).await.expect(200);
            for item in list["items"].as_array_mut().unwrap() {
                item.as_object_mut().unwrap().remove("last_seen_us");
            }
            lists.push(list);
        }
        lists
    }
}

fn method(text: &str) -> Method {
    text.to_uppercase().parse().unwrap()
}

/// A route's path with what is there, or at least could be, in its places.
fn filled(path: &str) -> String {
    let path = path.replace("{label}", "linux").replace("{id}", &"0".repeat(32)).replace("{step}", "7");
    let path = path.replace("{digest}", &"ab".repeat(32)).replace("{version}", &"ab".repeat(32));
    let name = match path.split('/').nth(2) {
        Some("modules") => "ok",
        Some("bundles") => "tools",
        _ => "web-1",
    };
    path.replace("{name}", name)
}

/// A route's path with the query that it needs.
fn asked(method: &str, path: &str) -> String {
    match (method, path) {
        ("post", "/v1/modules") => format!("{path}?name=bad&team={TEAM}"),
        ("put", "/v1/bundles/{name}") => format!("{}?team={TEAM}", filled(path)),
        ("post", "/v1/poll/{step}/done") => format!("{}?status=0", filled(path)),
        _ => filled(path),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_describes_every_route_and_no_other() {
    let house = House::start().await;
    let document = house.client(None).get("/openapi.json").await.expect(200);
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, call) in item.as_object().unwrap() {
            described.insert((method.as_str(), path.as_str()));
            assert!(call["responses"].as_object().is_some_and(|responses| !responses.is_empty()), "{method} {path}");
        }
    }
    let routes = ROUTES.iter().map(|(method, path, _, _)| (*method, *path)).collect();
    assert_eq!(described, routes);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_credential_or_with_one_of_another_kind_nothing_is_answered() {
    let full = full().await;
    let before = full.lists().await;
    let (nobody, admin) = (full.house.client(None), full.house.admin());
    let made_up = full.house.client(Some(&format!("mst_{}_{}", "0".repeat(32), "0".repeat(64))));
    let nonsense = full.house.client(Some("nonsense"));
    let of_another = full.house.client(Some(&full.agent.credential.replace("msa_", "mst_")));
    for (verb, path, who, _) in ROUTES.iter().filter(|(_, _, who, _)| *who != Anyone) {
        let url = asked(verb, path);
        for stranger in [&nobody, &made_up, &nonsense, &of_another] {
            let answer = stranger.send(method(verb), &url, &JSON, "{").await;
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            assert_eq!(answer.problem(401)["code"], "unauthorized");
        }
        for scheme in ["Basic bXN0", "Bearer", "bearer ", "Bearer mst_0_0", "mst_0_0"] {
            nobody.send(method(verb), &url, &[("authorization", scheme)], "").await.problem(401);
        }
        let others: &[&Client] = match who {
            Joining => &[&full.team, admin],
            Who::Agent => &[&full.team, admin, &full.joining],
            Person => &[&full.joining, &full.agent.client],
            Admin => &[&full.joining, &full.agent.client, &full.team],
            Anyone => &[],
        };
        for other in others {
            let body = if *who == Joining { claims("web-2", &["linux"]).to_string() } else { "{}".into() };
            assert_eq!(other.send(method(verb), &url, &JSON, body).await.problem(403)["code"], "kind");
        }
    }
    assert_eq!(full.lists().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_a_route_can_not_take_are_refused_and_change_nothing() {
    let full = full().await;
    let before = full.lists().await;
    for (verb, path, who, takes) in ROUTES {
        let (client, url) = (full.right(*who), asked(verb, path));
        let send = async |headers: &[(&str, &str)], body: Vec<u8>| client.send(method(verb), &url, headers, body).await;
        match takes {
            Nothing => {}
            Json | JsonOrNothing => {
                let large = if *path == "/v1/contents/missing" { 4_000_001 } else { 256 * 1024 + 1 };
                assert_eq!(send(&JSON, vec![b' '; large]).await.problem(413)["code"], "too-large");
                for cut in ["{", "{\"", "nonsense", "\u{fc}"] {
                    assert_eq!(send(&JSON, cut.into()).await.problem(400)["code"], "json");
                }
                send(&JSON, b"{\"\xff\": 1}".to_vec()).await.problem(400);
                for wrong in
                    ["1", "\"text\"", "{\"no-such-field\": 1}", "{\"reason\": 1, \"to\": {}, \"name\": 1, \"kind\": 1, \"team\": 1}"]
                {
                    assert_eq!(send(&JSON, wrong.into()).await.problem(422)["code"], "body");
                }
                let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
                let refused = send(&JSON, deep.into()).await.status;
                assert!([400, 422].contains(&refused), "{verb} {path}: {refused}");
                for kind in ["text/plain", "application/x-www-form-urlencoded", "", "application/json-seq"] {
                    assert_eq!(send(&[("content-type", kind)], b"{}".to_vec()).await.problem(415)["code"], "not-json");
                }
                if *takes == Json {
                    send(&[], Vec::new()).await.problem(415);
                    send(&JSON, Vec::new()).await.problem(400);
                }
            }
            Upload => {
                for wrong in [&b"\0asm"[..], b"{}", b"\xff\xfe\xff", &[0x28, 0xb5, 0x2f, 0xfd, 0, 0]] {
                    send(&[], wrong.to_vec()).await.problem(422);
                }
            }
            Indices => {
                for wrong in [1, 2, 3, 5, 1001] {
                    assert_eq!(send(&[], vec![0; wrong]).await.problem(422)["code"], "contents");
                }
            }
        }
    }
    assert_eq!(full.lists().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_measured_however_it_is_cut() {
    let house = House::start().await;
    const ALLOWED: usize = 256 * 1024;
    for (pieces, status) in [(vec![ALLOWED], 400), (vec![ALLOWED, 1], 413), (vec![1, ALLOWED], 413), (vec![1, ALLOWED - 1], 400)] {
        // Each is sent when the one before was taken, so that the server sees them one by one.
        let body = futures_util::stream::iter(pieces.clone().into_iter().map(|bytes| Ok::<_, std::io::Error>(vec![b' '; bytes])));
        let answer = house.admin().send(Method::POST, "/v1/tokens", &JSON, reqwest::Body::wrap_stream(body)).await;
        answer.problem(status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_wrong_about_a_content_makes_no_version() {
    let house = House::start().await;
    house.push_bundle(&[("VERSION", b"1.0\n")]).await;
    let digest = muster::names::Digest::of(b"1.0\n");
    for (size, status) in [(4, 201), (5, 422), (0, 422)] {
        let manifest = format!("muster-manifest 2\nf 644 0 {size} {digest} odd\n");
        let answer = house.admin().send(Method::PUT, &format!("/v1/bundles/odd-{size}?team={TEAM}"), &[], manifest).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        assert_eq!(house.admin().get(&format!("/v1/bundles/odd-{size}")).await.status, if status == 201 { 200 } else { 404 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_over_its_limit_is_refused() {
    let full = full().await;
    let answer = full.house.admin().send(Method::POST, "/v1/modules?name=bad&team=media", &[], vec![0; 64 * 1024 * 1024 + 1]).await;
    assert_eq!(answer.problem(413)["code"], "too-large");
    full.house.admin().get("/v1/modules/bad").await.problem(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_none_are_refused_wherever_they_stand() {
    let full = full().await;
    let before = full.lists().await;
    let long = "a".repeat(10 * 1024);
    for (verb, path, who, _) in ROUTES.iter().filter(|(_, path, _, _)| path.contains('{')) {
        for bad in ["%ff", "..%2f..", "%2e%2e%2fetc", "%00", "a%00", "-o", "%20", "a%0ab", "%e2%80%ae", "a'--", &long] {
            let mut url = path.to_string();
            while let Some((at, end)) = url.find('{').zip(url.find('}')) {
                url.replace_range(at..=end, bad);
            }
            let client = full.right(*who);
            let problem = client.send(method(verb), &url, &JSON, "{}").await.problem(400);
            assert!(["name", "path"].contains(&problem["code"].as_str().unwrap()), "{problem}");
            assert!(problem.to_string().len() < 20 * 1024, "an answer as long as the question");
        }
    }
    // In a body and in a query they are refused too.
    for bad in ["../..", "a/b", "-o", "", "\u{0}", "a b", "é", &long] {
        full.joining.post("/v1/register", claims(bad, &["linux"])).await.problem(422);
        full.joining.post("/v1/register", claims("web-2", &[bad])).await.problem(422);
        full.house.admin().post("/v1/tokens", json!({"kind": "team", "team": bad})).await.problem(422);
        full.house.admin().put("/v1/labels/linux", json!({"team": TEAM, "module": bad})).await.problem(422);
        full.house.admin().put("/v1/labels/linux", json!({"team": TEAM, "module": "ok", "bundles": [bad]})).await.problem(422);
        full.house.admin().post("/v1/labels/linux/swap", json!({"module": bad})).await.problem(422);
        full.house.admin().post("/v1/contents/missing", json!({"digests": [bad]})).await.problem(422);
    }
    for query in [
        "modules?name=..%2f&team=media",
        "modules?name=ok&team=%00",
        "modules?name=%ff&team=media",
        "modules?name=ok&team=media&x=1",
        "modules",
    ] {
        full.house.admin().send(Method::POST, &format!("/v1/{query}"), &[], "").await.problem(400);
    }
    assert_eq!(full.lists().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_make_no_sense_are_refused() {
    let full = full().await;
    let admin = full.house.admin();
    for list in [
        "modules",
        "modules/ok",
        "bundles",
        "bundles/tools",
        "labels",
        "labels/linux/releases",
        "agents",
        "agents?state=gone",
        "runs",
        "controllers",
        "tokens",
    ] {
        // What is sorted by ids takes nothing else for one.
        if ["agents?state=gone", "runs", "tokens"].contains(&list) {
            let and = if list.contains('?') { '&' } else { '?' };
            assert_eq!(admin.get(&format!("/v1/{list}{and}cursor=zz")).await.problem(400)["code"], "cursor");
        }
        let and = if list.contains('?') { '&' } else { '?' };
        for cursor in ["%00", "a%20b", "", &"9".repeat(64)] {
            let problem = admin.get(&format!("/v1/{list}{and}cursor={cursor}")).await.problem(400);
            assert_eq!(problem["code"], "cursor", "{list}: {problem}");
        }
        for query in ["limit=x", "limit=-1", "limit=99999999999999999999", "no-such=1", "cursor=%ff", "limit=1&limit=2"] {
            let problem = admin.get(&format!("/v1/{list}{and}{query}")).await.problem(400);
            assert!(["query", "cursor"].contains(&problem["code"].as_str().unwrap()), "{list}?{query}: {problem}");
        }
        for fine in ["limit=0", "limit=1", "limit=4000000000"] {
            assert!(admin.get(&format!("/v1/{list}{and}{fine}")).await.expect(200)["items"].is_array());
        }
    }
    for query in ["state=nonsense", "label=..", "state="] {
        admin.get(&format!("/v1/agents?{query}")).await.problem(400);
    }
    admin.get("/v1/runs?agent=..%2f").await.problem(400);
    admin.put("/v1/labels/linux?preview=perhaps", json!({"team": TEAM, "module": "ok"})).await.problem(400);
    full.agent.client.get("/v1/session").await.problem(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let full = full().await;
    let before = full.lists().await;
    for (verb, path, who, takes) in
        ROUTES.iter().filter(|(verb, path, _, takes)| path.contains('{') && (*verb != "put" || *takes == Nothing))
    {
        let url =
            asked(verb, path).replace("/ok", "/none").replace("/tools", "/none").replace("/linux", "/none").replace("/web-1", "/none");
        let body = match takes {
            Json => json!({"module": "ok"}).to_string(),
            _ => String::new(),
        };
        full.right(*who).send(method(verb), &url, &JSON, body).await.problem(404);
    }
    let admin = full.house.admin();
    for path in [
        "/v1",
        "/v2/agents",
        "/v1/agents/",
        "/v1/agents/web-1/",
        "/v1/agents/web-1/no",
        "//v1/agents",
        "/v1/agents/web-1/explain/more",
        "/%ff",
    ] {
        assert_eq!(admin.get(path).await.problem(404)["code"], "no-route");
    }
    assert_eq!(full.lists().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_a_route_does_not_know_is_refused() {
    let full = full().await;
    let before = full.lists().await;
    let paths: BTreeSet<_> = ROUTES.iter().map(|(_, path, _, _)| *path).collect();
    for path in paths {
        let known: Vec<_> = ROUTES.iter().filter(|route| route.1 == path).map(|route| route.0).collect();
        for verb in ["get", "post", "put", "delete", "patch"].into_iter().filter(|verb| !known.contains(verb)) {
            let answer = full.house.admin().send(method(verb), &filled(path), &JSON, "{}").await;
            let allow = answer.headers.get("allow").map(|value| value.to_str().unwrap().to_lowercase()).unwrap_or_default();
            assert!(known.iter().all(|known| allow.contains(known)), "{path}: allow: {allow}");
            assert_eq!(answer.problem(405)["code"], "method");
        }
    }
    assert_eq!(full.lists().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requests_id_is_the_servers_own() {
    let house = House::start().await;
    let answer = house.admin().send(Method::GET, "/v1/agents/none", &[("x-request-id", "chosen")], "").await;
    assert_ne!(answer.problem(404)["request"], "chosen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_says_that_it_lives_is_ready_and_counts() {
    let house = House::start().await;
    let anybody = house.client(None);
    assert_eq!(anybody.get("/healthz").await.text, "ok\n");
    assert_eq!(anybody.get("/readyz").await.text, "ready\n");
    house.register("web-1", &["linux"]).await;
    let figures = anybody.get("/metrics").await;
    assert_eq!(figures.status, 200);
    assert!(figures.text.contains("registered") && figures.text.ends_with("# EOF\n"), "{}", figures.text);

    let private = House::plan().with(|config| config.metrics.public = false).start().await;
    private.client(None).get("/metrics").await.problem(401);
    private.team(TEAM).await.get("/metrics").await.problem(403);
    assert_eq!(private.admin().get("/metrics").await.status, 200);
}
