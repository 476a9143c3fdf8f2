//! The program `muster` as a person runs it, against a server of a few answers.

use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde_json::{Value, json};

/// What a run of the program came to.
struct Ran {
    status: i32,
    out: String,
    err: String,
}

async fn muster(server: &str, token: Option<&str>, arguments: &[&str]) -> Ran {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(arguments).env_remove("MUSTER_TOKEN").env("MUSTER_URL", server).stdin(std::process::Stdio::null());
    if let Some(token) = token {
        command.env("MUSTER_TOKEN", token);
    }
    let done = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { status: done.status.code().unwrap(), out: text(done.stdout), err: text(done.stderr) }
}

/// A server that answers with these routes alone; its URL.
async fn serve(routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

const NOWHERE: &str = "http://127.0.0.1:9";

#[tokio::test]
async fn what_can_not_be_meant_exits_with_2() {
    for arguments in [&["nonsense"][..], &[], &["agent", "show", "a/b"], &["label", "apply"]] {
        let ran = muster(NOWHERE, Some("t"), arguments).await;
        assert_eq!((ran.status, ran.out.as_str()), (2, ""), "{arguments:?}: {}", ran.err);
    }
    assert_eq!(muster(NOWHERE, None, &["--version"]).await.status, 0);
}

#[tokio::test]
async fn without_a_token_it_says_how_to_give_one() {
    let ran = muster(NOWHERE, None, &["agent", "ls"]).await;
    assert_eq!(ran.status, 2);
    assert!(ran.err.starts_with("error: no token is given\n\nhint: pass --token-file FILE or set MUSTER_TOKEN;"), "{}", ran.err);
    let ran = muster(NOWHERE, None, &["agent", "ls", "--token-file", "/nowhere/token"]).await;
    assert!(ran.err.starts_with("error: can not read /nowhere/token: No such file"), "{}", ran.err);
}

#[tokio::test]
async fn a_wrong_url_is_a_usage_error() {
    let ran = muster("ftp://h", Some("t"), &["agent", "ls"]).await;
    assert_eq!(ran.status, 2);
    assert!(
        ran.err.starts_with("error: `ftp://h` is no URL of a server") && ran.err.contains("\n\nhint: pass --server URL"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn where_nothing_listens_it_says_so() {
    // A port that was free a moment ago, and that nobody is told of.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let ran = muster(&url, Some("t"), &["agent", "ls"]).await;
    assert_eq!(ran.status, 1);
    assert!(ran.err.starts_with(&format!("error: can not list the agents: no server answers at {url}: Connection refused")), "{}", ran.err);
    assert!(ran.err.contains("\n\nhint: start one with `muster serve`"), "{}", ran.err);
}

#[tokio::test]
async fn a_first_start_whose_address_is_taken_makes_nothing_so_that_the_next_is_the_first() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path().join("data");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = muster(NOWHERE, None, &["serve", "--data", data.to_str().unwrap(), "--listen", &address]).await;
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains(&format!("can not listen on {address}")), "{}", ran.err);
    assert!(!data.join("admin.token").exists());
}

fn agent(name: &str) -> Value {
    json!({
        "id": name, "name": name, "labels": ["linux"], "state": "ready", "reason": "all modules succeeded", "since_us": 0, "last_seen_us": 0,
        "registered_us": 0, "session": true, "releases": {"linux": 2}, "executors": 1, "root": "/srv", "os": "linux", "arch": "x86_64",
        "attributes": {}
    })
}

/// Seven agents, three a page at most; anybody with the token `t` may ask.
async fn seven_agents(headers: HeaderMap, Query(query): Query<HashMap<String, String>>) -> Response {
    if headers.get("authorization").is_none_or(|token| token != "Bearer t") {
        let problem =
            json!({"title": "Unauthorized", "status": 401, "code": "token", "detail": "the token is not known", "hint": "make one"});
        return (StatusCode::UNAUTHORIZED, [("content-type", "application/problem+json")], problem.to_string()).into_response();
    }
    let from: usize = query.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
    let rows = query["limit"].parse::<usize>().unwrap().min(3);
    let to = (from + rows).min(7);
    let items: Vec<Value> = (from..to).map(|at| agent(&format!("web-{at}"))).collect();
    let page = if to < 7 { json!({"items": items, "next": to.to_string()}) } else { json!({ "items": items }) };
    axum::Json(page).into_response()
}

#[tokio::test]
async fn a_listing_follows_its_pages() {
    let url = serve(Router::new().route("/v1/agents", get(seven_agents))).await;
    let ran = muster(&url, Some("t\n"), &["agent", "ls"]).await;
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 7);
    assert_eq!(lines[6], "web-6\tready\t1970-01-01T00:00:00Z\tlinux\tlinux=2\tall modules succeeded");

    let ran = muster(&url, Some("t"), &["agent", "ls", "--json", "--limit", "5"]).await;
    let agents: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(agents.len(), 5);
    assert_eq!(agents[4]["name"], "web-4");
}

#[tokio::test]
async fn a_refusal_shows_the_servers_reason_and_hint_and_never_the_token() {
    let url = serve(Router::new().route("/v1/agents", get(seven_agents))).await;
    let ran = muster(&url, Some("a-wrong-secret"), &["agent", "ls"]).await;
    assert_eq!(ran.status, 1);
    assert_eq!(ran.err, "error: can not list the agents: the token is not known\n\nhint: make one\n");
}

#[tokio::test]
async fn a_server_that_is_none_is_told_from_one_that_refuses() {
    let url = serve(Router::new().route("/v1/agents", get(|| async { "<html>" }))).await;
    let ran = muster(&url, Some("t"), &["agent", "ls"]).await;
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("the answer is not a Muster server's") && ran.err.contains("hint: check that --server"), "{}", ran.err);
}

#[tokio::test]
async fn a_call_that_only_looks_is_tried_again() {
    let tries = Arc::new(Mutex::new(0));
    let counted = tries.clone();
    let answer = move || async move {
        let mut tries = counted.lock().unwrap();
        *tries += 1;
        if *tries < 3 { StatusCode::SERVICE_UNAVAILABLE.into_response() } else { axum::Json(json!({"items": []})).into_response() }
    };
    let refused = || async { StatusCode::SERVICE_UNAVAILABLE };
    let url = serve(Router::new().route("/v1/runs", get(answer)).route("/v1/agents/a/drain", post(refused))).await;
    assert_eq!(muster(&url, Some("t"), &["run", "ls"]).await.status, 0);
    assert_eq!(*tries.lock().unwrap(), 3);
    let ran = muster(&url, Some("t"), &["agent", "drain", "a"]).await;
    assert_eq!(ran.err, "error: can not drain the agent a: the server answered 503 Service Unavailable\n");
}

#[tokio::test]
async fn a_module_is_uploaded_as_it_is() {
    let seen = Arc::new(Mutex::new((HashMap::new(), Bytes::new(), HeaderMap::new())));
    let saved = seen.clone();
    let upload = move |Query(query): Query<HashMap<String, String>>, headers: HeaderMap, body: Bytes| async move {
        *saved.lock().unwrap() = (query, body, headers);
        let module = json!({"digest": "ab".repeat(32), "name": "base", "team": "media", "size_bytes": 5, "world": "w", "imports": [], "uploaded_us": 0});
        (StatusCode::CREATED, axum::Json(module))
    };
    let url = serve(Router::new().route("/v1/modules", post(upload))).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hook.wasm");
    std::fs::write(&file, b"bytes").unwrap();
    let ran = muster(&url, Some("t"), &["module", "push", text(&file), "--name", "base", "--team", "media"]).await;
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(ran.out, format!("base@sha256:{}\n", "ab".repeat(32)));
    let (query, body, headers) = seen.lock().unwrap().clone();
    assert_eq!((query["name"].as_str(), query["team"].as_str(), &body[..]), ("base", "media", &b"bytes"[..]));
    assert_eq!(headers["content-length"], "5");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A label's PUT: previews come to one change, and what is not a preview is written down.
fn label_routes(applied: Arc<Mutex<Vec<Value>>>) -> Router {
    let apply = move |Query(query): Query<HashMap<String, String>>, axum::Json(policy): axum::Json<Value>| async move {
        if query["preview"] == "false" {
            applied.lock().unwrap().push(policy);
        }
        let release = if query["preview"] == "false" { 5 } else { 4 };
        axum::Json(json!({"label": "linux", "release": release, "previous": 4, "changes": ["~ module: a → b"], "agents": 12}))
    };
    Router::new().route("/v1/labels/linux", put(apply.clone())).route("/v1/labels/linux/swap", post(apply))
}

#[tokio::test]
async fn a_policy_is_shown_and_takes_effect_only_after_a_yes() {
    let applied = Arc::new(Mutex::new(Vec::new()));
    let url = serve(label_routes(applied.clone())).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.toml");
    std::fs::write(&file, "[label.linux]\nteam = \"media\"\nmodule = \"base\"\n").unwrap();

    let ran = muster(&url, Some("t"), &["label", "apply", "-f", text(&file)]).await;
    assert_eq!(ran.status, 2);
    assert_eq!(ran.out, "linux: 12 agents\n  ~ module: a → b\n");
    assert!(ran.err.contains("no terminal to ask on\n\nhint: pass --yes\n"), "{}", ran.err);
    assert!(applied.lock().unwrap().is_empty());

    let ran = muster(&url, Some("t"), &["label", "apply", "-f", text(&file), "--yes"]).await;
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(ran.out, "linux: 12 agents\n  ~ module: a → b\nlinux: release 5 is in force, before it 4\n");
    assert_eq!(applied.lock().unwrap()[0]["module"], "base");

    let ran = muster(&url, Some("t"), &["label", "swap", "linux", "--module", "base", "--yes", "--json"]).await;
    let answer: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer[0]["release"], 5);
    assert!(ran.err.contains("~ module: a → b"), "{}", ran.err);
}

#[tokio::test]
async fn a_policy_that_can_not_be_is_refused_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.toml");
    std::fs::write(&file, "[label.linux]\nteam = \"media\"\nmodul = \"base\"\n").unwrap();
    let ran = muster(NOWHERE, Some("t"), &["label", "apply", "-f", text(&file)]).await;
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("policy.toml: TOML parse error at line 3") && ran.err.contains("modul"), "{}", ran.err);
}

#[tokio::test]
async fn a_log_is_followed_to_its_end_across_a_cut() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let log = move |request: Request| async move {
        let last = request.headers().get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
        seen.lock().unwrap().push(last.clone());
        let line = |seq: i64| {
            let line = json!({"seq": seq, "at_us": 1_000 * seq, "level": "step", "text": format!("step {seq}")});
            format!("id: {seq}\nevent: line\ndata: {line}\n\n")
        };
        // The second answer repeats a line, as a server may.
        let body = if last.is_none() { line(0) + &line(1) } else { line(1) + &line(2) + "event: end\ndata: provisioned\n\n" };
        ([("content-type", "text/event-stream")], body)
    };
    let url = serve(Router::new().route("/v1/runs/r1/log", get(log))).await;
    let ran = muster(&url, Some("t"), &["run", "logs", "r1", "--follow"]).await;
    assert_eq!((ran.status, ran.err.as_str()), (0, "the stream was cut; taking it up again\n"));
    let lines: Vec<&str> = ran.out.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(lines, ["step   step 0", "step   step 1", "step   step 2", "run ended: provisioned"]);
    assert_eq!(*asked.lock().unwrap(), [None, Some("1".into())]);
}

#[tokio::test]
async fn a_secret_is_alone_on_standard_output() {
    let make = |axum::Json(asked): axum::Json<Value>| async move {
        let token = json!({"id": "t1", "kind": asked["kind"], "team": asked["team"], "labels": asked["labels"], "made_us": 0});
        (StatusCode::CREATED, axum::Json(json!({"token": token, "secret": "s3cret"})))
    };
    let url = serve(Router::new().route("/v1/tokens", post(make))).await;
    let ran = muster(&url, Some("t"), &["token", "create", "--kind", "join", "--team", "media", "--label", "linux"]).await;
    assert_eq!((ran.status, ran.out.as_str()), (0, "s3cret\n"));
    assert!(ran.err.contains("token t1"), "{}", ran.err);
}

#[tokio::test]
async fn completions_and_pages_need_no_server() {
    let ran = muster(NOWHERE, None, &["completions", "bash"]).await;
    assert!(ran.status == 0 && ran.out.contains("muster__"), "{}", ran.err);
    let ran = muster(NOWHERE, None, &["man"]).await;
    assert!(ran.status == 0 && ran.out.contains(".TH muster"), "{}", ran.err);
}

#[tokio::test]
async fn a_file_is_inspected_without_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.wasm");
    std::fs::write(&file, wat::parse_str("(component (import \"muster:provision/log@0.1.0\" (instance)))").unwrap()).unwrap();
    let ran = muster(NOWHERE, None, &["module", "inspect", text(&file)]).await;
    assert!(ran.status == 0 && ran.out.contains("import\tmuster:provision/log@0.1.0\n"), "{}{}", ran.out, ran.err);
    std::fs::write(&file, "no").unwrap();
    let ran = muster(NOWHERE, None, &["module", "inspect", text(&file)]).await;
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("a.wasm: this is not a WebAssembly component"), "{}", ran.err);
}

/// A server that lacks what it was not sent, and loses its contents once if told so.
fn bundle_routes(packs: Arc<Mutex<Vec<Bytes>>>, asked: Arc<Mutex<Vec<usize>>>, loses: bool) -> Router {
    let (had, puts) = (packs.clone(), Arc::new(Mutex::new(0)));
    let missing = move |axum::Json(body): axum::Json<Value>| async move {
        asked.lock().unwrap().push(body["digests"].as_array().unwrap().len());
        let lost = had.lock().unwrap().is_empty();
        axum::Json(json!({"missing": if lost { body["digests"].clone() } else { json!([]) }}))
    };
    let kept = packs.clone();
    let store = move |body: Bytes| async move {
        kept.lock().unwrap().push(body);
        axum::Json(json!({"stored": 1, "bytes": 1}))
    };
    let put_bundle = move |body: Bytes| async move {
        let mut puts = puts.lock().unwrap();
        *puts += 1;
        if loses && *puts == 1 {
            packs.lock().unwrap().clear();
            let problem = json!({"title": "Conflict", "status": 409, "code": "contents-missing"});
            return (StatusCode::CONFLICT, axum::Json(problem)).into_response();
        }
        let version = muster::names::Digest::of(&body).to_string();
        let files = std::str::from_utf8(&body).unwrap().lines().filter(|line| line.starts_with("f ")).count();
        axum::Json(json!({"name": "tools", "version": version, "team": "media", "files": files, "bytes": 6, "pushed_us": 0}))
            .into_response()
    };
    Router::new()
        .route("/v1/contents/missing", post(missing))
        .route("/v1/contents", post(store))
        .route("/v1/bundles/tools", put(put_bundle))
}

#[tokio::test]
async fn a_bundle_is_pushed_and_what_the_server_has_is_not_sent_again() {
    let (packs, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let url = serve(bundle_routes(packs.clone(), asked.clone(), false)).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), "one").unwrap();
    std::fs::write(directory.path().join("b"), "two").unwrap();
    std::fs::write(directory.path().join("c"), "one").unwrap();
    let push = ["bundle", "push", text(directory.path()), "--name", "tools"];
    let ran = muster(&url, Some("t"), &push).await;
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert!(
        ran.out.starts_with("tools@sha256:") && ran.out.contains("files\t3\n") && ran.out.contains("contents sent\t2\n"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("bytes sent\t6\n"), "{}", ran.out);
    let wire = format!("bytes on the wire\t{}\n", packs.lock().unwrap()[0].len());
    assert!(ran.out.contains(&wire), "{}", ran.out);

    let ran = muster(&url, Some("t"), &[&push[..], &["--json"]].concat()).await;
    let pushed: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&pushed["name"], &pushed["contents_sent"]), (&json!("tools"), &json!(0)));
    assert_eq!((packs.lock().unwrap().len(), asked.lock().unwrap().as_slice()), (1, &[2, 2][..]));
}

#[tokio::test]
async fn contents_that_the_server_cleared_away_meanwhile_are_sent_once_more() {
    let (packs, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let url = serve(bundle_routes(packs, asked.clone(), true)).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), "one").unwrap();
    let ran = muster(&url, Some("t"), &["bundle", "push", text(directory.path()), "--name", "tools"]).await;
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(*asked.lock().unwrap(), [1, 1]);
    let ran = muster(&url, Some("t"), &["bundle", "push", "/nowhere", "--name", "tools"]).await;
    assert!(ran.status == 1 && ran.err.starts_with("error: can not read /nowhere: No such file"), "{}", ran.err);
}

#[tokio::test]
async fn two_versions_are_compared_by_their_manifests() {
    use muster::bits::manifest::{Entry, Kind, Manifest};
    use muster::bits::path::TreePath;
    use muster::names::Digest;
    let manifest = |content: &[u8]| {
        let kind = Kind::File { size: content.len() as u64, mtime: 0, digest: Digest::of(content), chunks: Box::default() };
        Manifest::new(vec![Entry { path: TreePath::from_bytes(b"a").unwrap(), mode: 0o644, kind }]).unwrap()
    };
    let (one, two) = (manifest(b"one"), manifest(b"other"));
    let (one_at, two_at) = (one.version().to_string(), two.version().to_string());
    let newest = json!({"items": [{"name": "tools", "version": two_at, "team": "media", "files": 1, "bytes": 5, "pushed_us": 0}]});
    let routes = Router::new()
        .route(&format!("/v1/bundles/tools/{one_at}/manifest"), get(move || async move { one.to_bytes() }))
        .route(&format!("/v1/bundles/tools/{two_at}/manifest"), get(move || async move { two.to_bytes() }))
        .route("/v1/bundles/tools", get(move || async move { axum::Json(newest) }));
    let url = serve(routes).await;
    let ran = muster(&url, Some("t"), &["bundle", "diff", &format!("tools@sha256:{one_at}"), "tools"]).await;
    assert_eq!((ran.status, ran.out.as_str()), (0, "~ a  3 → 5\n"));
    assert_eq!(ran.err, "0 added, 0 removed, 1 changed; 5 bytes of content are new\n");
}
