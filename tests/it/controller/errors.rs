//! What goes wrong, and what is told of it.

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use muster::controller::jenkins::{Created, JenkinsError, Permission};
use std::time::Duration;

use super::{Muster, executors, is_away, labels, name, serve, wanted};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::routes::Op;
use crate::jenkins::users::{Permission as Allowed, User};
use crate::jenkins::{Fault, Jenkins, MUSTER_TOKEN, Plan, Version};

const SECRET: &str = "11deadbeefdeadbeefdeadbeefdeadbeef";

#[tokio::test]
async fn a_token_that_is_replaced_in_its_file_counts_from_the_next_call_on() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Muster::with(&jenkins.url(), "muster", SECRET, |_| {});
    assert!(is_away(&muster.list().await));
    std::fs::write(&muster.token_file, MUSTER_TOKEN).unwrap();
    muster.list().await.unwrap();
    std::fs::write(&muster.token_file, "\n").unwrap();
    assert!(matches!(muster.list().await, Err(JenkinsError::Token { .. })));
    std::fs::write(&muster.token_file, format!("{MUSTER_TOKEN}\nmore\n")).unwrap();
    assert!(matches!(muster.list().await, Err(JenkinsError::Token { .. })));
    std::fs::remove_file(&muster.token_file).unwrap();
    let error = muster.list().await.unwrap_err();
    assert!(error.to_string().contains("No such file") && !error.is_passing(), "{error}");
}

#[tokio::test]
async fn a_refused_token_is_not_believed_at_first_and_told_when_it_lasts() {
    let jenkins = Jenkins::start(Plan::default()).await;
    for (user, token) in [("muster", SECRET), ("nobody", MUSTER_TOKEN)] {
        let unsure = Muster::with(&jenkins.url(), user, token, |_| {});
        let sure = Muster::with(&jenkins.url(), user, token, |settings| settings.unsure = Duration::ZERO);
        assert!(is_away(&unsure.list().await) && is_away(&unsure.create(&wanted("n1")).await));
        for error in [sure.list().await.unwrap_err(), sure.create(&wanted("n1")).await.unwrap_err()] {
            let told = format!("{error} {error:?}");
            assert!(matches!(error, JenkinsError::Credentials(_)) && !error.is_passing() && !told.contains(token), "{told}");
        }
    }
    assert!(jenkins.nodes().is_empty());
}

#[tokio::test]
async fn a_password_in_place_of_a_token_is_told_by_the_crumb_that_it_lacks() {
    let user = User::new("bob").password("secret").may(&[Allowed::Administer]);
    let jenkins = Jenkins::start(Plan::default().user(user)).await;
    let muster = Muster::with(&jenkins.url(), "bob", "secret", |settings| settings.unsure = Duration::ZERO);
    muster.list().await.unwrap();
    let error = muster.create(&wanted("n1")).await.unwrap_err();
    assert!(matches!(error, JenkinsError::Credentials(_)) && error.to_string().contains("API token"), "{error}");
}

#[tokio::test]
async fn a_credential_that_did_not_arrive_is_told_apart_from_a_missing_permission() {
    let anonymous = || async {
        let headers = [("x-required-permission", "hudson.model.Hudson.Read"), ("x-you-are-authenticated-as", "anonymous")];
        (StatusCode::FORBIDDEN, headers, "Authentication required")
    };
    let url = serve(Router::new().route("/computer/api/json", get(anonymous))).await;
    let muster = Muster::with(&url, "u", "t", |settings| settings.unsure = Duration::ZERO);
    let error = muster.list().await.unwrap_err();
    assert!(matches!(error, JenkinsError::Credentials(_)) && error.to_string().contains("anonymous"), "{error}");
}

#[tokio::test]
async fn each_call_names_the_permission_that_it_lacks() {
    let bob = User::new("bob").token(SECRET).may(&[Allowed::Read]);
    let nobody = User::new("eve").token(MUSTER_TOKEN);
    for version in [Version::V2_372, Version::V2_452_2] {
        let jenkins = Jenkins::start(Plan::default().version(version).user(bob.clone()).user(nobody.clone())).await;
        jenkins.put(NodeConfig::new("n1"));
        let muster = Muster::with(&jenkins.url(), "bob", SECRET, |settings| settings.unsure = Duration::ZERO);
        let n1 = name("n1");
        let lacked = [
            muster.create(&wanted("n2")).await.map(drop),
            muster.secret(&n1).await.map(drop),
            muster.update(&n1, &labels(&["a"]), executors(1)).await.map(drop),
            muster.set_offline(&n1, "x").await,
            muster.delete(&n1).await.map(drop),
        ]
        .map(|answer| match answer {
            Err(JenkinsError::Permission(permission)) => permission,
            other => panic!("{other:?}"),
        });
        assert_eq!(lacked, Permission::FIVE);
        let error = Muster::with(&jenkins.url(), "eve", MUSTER_TOKEN, |_| {}).list().await.unwrap_err();
        assert_eq!(error.to_string(), "the controller's user lacks the permission Overall/Read");
    }
}

#[tokio::test]
async fn a_page_of_an_error_is_told_in_one_short_line() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Muster::of(&jenkins);
    jenkins.next(Op::Create, Fault::Status(500));
    let error = muster.create(&wanted("n1")).await.unwrap_err();
    assert!(matches!(error, JenkinsError::Odd(_)) && error.to_string().starts_with("the controller answered with 500: "), "{error}");
    // A page without an end, with what a terminal would act on.
    let endless = || async {
        let page = std::iter::once("<title>\u{1b}[2JOops".to_owned()).chain(std::iter::repeat_n("x".repeat(1000), 100_000));
        let body = axum::body::Body::from_stream(futures_util::stream::iter(page.map(Ok::<_, std::io::Error>)));
        (StatusCode::INTERNAL_SERVER_ERROR, body).into_response()
    };
    let url = serve(Router::new().route("/queue/api/json", get(endless))).await;
    let error = Muster::with(&url, "u", "t", |_| {}).queue().await.unwrap_err().to_string();
    assert!(error.chars().count() < 400 && !error.contains(char::is_control), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_too_long_or_something_else_is_refused_without_its_text() {
    let long = || async { vec![b' '; 9 << 20] };
    let page = || async { "<html>secret</html>" };
    let routes = Router::new().route("/queue/api/json", get(long)).route("/computer/api/json", get(page));
    let muster = Muster::with(&serve(routes).await, "u", "t", |_| {});
    assert!(matches!(muster.queue().await, Err(JenkinsError::Odd(_))));
    let error = muster.list().await.unwrap_err().to_string();
    assert_eq!(error, "the controller answered with what is no list of nodes (line 1, column 1)");
}

#[tokio::test]
async fn a_redirect_to_a_page_to_log_in_is_no_success() {
    let login = || async { (StatusCode::FOUND, [("location", "https://sso.example/login?to=/computer/")]) };
    let relative = || async { (StatusCode::FOUND, [("location", ".")]) };
    let bare = || async { StatusCode::OK };
    let routes = Router::new()
        .route("/computer/doCreateItem", post(login))
        .route("/computer/n1/changeOfflineCause", post(relative))
        .route("/computer/n1/doDelete", post(bare))
        .route("/computer/api/json", get(login));
    let muster = Muster::with(&serve(routes).await, "u", "t", |_| {});
    for error in [muster.create(&wanted("n1")).await.unwrap_err(), muster.list().await.unwrap_err()] {
        let told = error.to_string();
        assert_eq!(told, "the controller answered with a redirect to `https://sso.example/login?to=/computer/`");
    }
    muster.set_offline(&name("n1"), "x").await.unwrap();
    assert!(matches!(muster.delete(&name("n1")).await, Err(JenkinsError::Odd(_))));
}

#[tokio::test]
async fn what_goes_between_may_lose_an_answer_of_a_write() {
    let bad = || async { StatusCode::BAD_GATEWAY };
    let routes = Router::new().route("/computer/doCreateItem", post(bad)).route("/queue/api/json", get(bad));
    let muster = Muster::with(&serve(routes).await, "u", "t", |_| {});
    assert!(matches!(muster.create(&wanted("n1")).await, Err(JenkinsError::Lost(_))));
    assert!(is_away(&muster.queue().await));
}

#[tokio::test]
async fn what_is_sent_asks_for_english_and_has_the_token_in_its_header_alone() {
    let (sent, mut seen) = tokio::sync::mpsc::channel::<(String, HeaderMap)>(1);
    let note = move |uri: axum::http::Uri, headers: HeaderMap| async move {
        sent.send((uri.to_string(), headers)).await.unwrap();
        StatusCode::NOT_FOUND
    };
    let muster = Muster::with(&serve(Router::new().fallback(note)).await, "muster", SECRET, |_| {});
    let error = muster.list().await.unwrap_err();
    let (uri, headers) = seen.recv().await.unwrap();
    assert_eq!(headers["accept-language"], "en");
    assert!(headers["authorization"].to_str().unwrap().starts_with("Basic ") && !headers.contains_key("cookie"));
    assert!(!uri.contains(SECRET) && !format!("{error} {error:?}").contains(SECRET));
}

#[tokio::test]
async fn a_name_that_jenkins_takes_and_hides_can_not_be_asked_for() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Muster::of(&jenkins);
    for text in ["built-in", "master", "new", "all", "con", "-x", ".n", "document"] {
        assert_eq!(muster.create(&wanted(text)).await.unwrap(), Created::Made);
        assert_eq!(muster.node(&name(text)).await.unwrap().unwrap().name, text);
        muster.secret(&name(text)).await.unwrap();
        assert!(muster.delete(&name(text)).await.unwrap(), "{text}");
    }
    assert!(jenkins.nodes().is_empty());
}
