//! The stand-in does what the reference says: a test for each trap.

mod access;
mod agents;
mod create;
mod demand;
mod faults;
mod offline;
mod read;
mod restart;
mod secret;
mod update;

use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::{ADMIN_TOKEN, Jenkins, MUSTER_TOKEN};

/// Somebody who talks to Jenkins.
struct Caller {
    http: reqwest::Client,
    root: String,
    login: Option<(String, String)>,
}

/// What Jenkins answered.
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Caller {
    fn new(jenkins: &Jenkins, login: Option<(&str, &str)>) -> Self {
        let http = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        Self { http, root: jenkins.url(), login: login.map(|(name, secret)| (name.into(), secret.into())) }
    }

    fn admin(jenkins: &Jenkins) -> Self {
        Self::new(jenkins, Some(("admin", ADMIN_TOKEN)))
    }

    fn muster(jenkins: &Jenkins) -> Self {
        Self::new(jenkins, Some(("muster", MUSTER_TOKEN)))
    }

    fn anonymous(jenkins: &Jenkins) -> Self {
        Self::new(jenkins, None)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.root));
        match &self.login {
            Some((name, secret)) => request.basic_auth(name, Some(secret)),
            None => request,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path).ask().await
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        serde_json::from_str(&answer.text).unwrap()
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.request(Method::POST, path).form_of(fields).ask().await
    }

    /// Creates a node from the form that Jenkins' own pages send, with changes.
    async fn create(&self, name: &str, changes: Value) -> Answer {
        self.post("computer/doCreateItem", &[("name", name), ("type", DUMB), ("json", &node_form(changes).to_string())]).await
    }

    async fn write_config(&self, name: &str, xml: &str) -> Answer {
        self.request(Method::POST, &format!("computer/{name}/config.xml")).body(xml.to_owned()).ask().await
    }
}

const DUMB: &str = "hudson.slaves.DumbSlave";

fn node_form(changes: Value) -> Value {
    let mut form = json!({
        "name": "ignored", "nodeDescription": "d", "numExecutors": "2", "remoteFS": "/srv/agent", "labelString": "a b", "mode": "EXCLUSIVE",
        "launcher": {"stapler-class": "hudson.slaves.JNLPLauncher", "webSocket": true, "workDirSettings": {
            "disabled": false, "workDirPath": "", "internalDir": "remoting", "failIfWorkDirIsMissing": false}},
        "retentionStrategy": {"stapler-class": "hudson.slaves.RetentionStrategy$Always"},
        "nodeProperties": {"stapler-class-bag": "true"}, "type": DUMB,
    });
    for (key, value) in changes.as_object().unwrap() {
        form[key] = value.clone();
    }
    form
}

/// What the calls of a test need more than `reqwest` has.
trait Ask {
    fn form_of(self, fields: &[(&str, &str)]) -> Self;
    async fn ask(self) -> Answer;
}

impl Ask for RequestBuilder {
    fn form_of(self, fields: &[(&str, &str)]) -> Self {
        let body = serde_urlencoded::to_string(fields).unwrap();
        self.header("content-type", "application/x-www-form-urlencoded").body(body)
    }

    async fn ask(self) -> Answer {
        let answer = self.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned();
        Answer { status, headers, text }
    }
}

impl Answer {
    /// A header as Latin-1, which is what it is in.
    fn header(&self, name: &str) -> Option<String> {
        Some(self.headers.get(name)?.as_bytes().iter().map(|byte| char::from(*byte)).collect())
    }

    fn location(&self) -> String {
        self.header("location").unwrap()
    }

    fn error(&self) -> String {
        self.header("x-error").unwrap()
    }

    fn is_signed(&self) -> bool {
        self.headers.contains_key("x-jenkins")
    }

    fn begins_session(&self) -> bool {
        self.headers.get_all("set-cookie").iter().any(|value| value.to_str().unwrap().starts_with("JSESSIONID"))
    }

    #[track_caller]
    fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{}", self.text.chars().take(500).collect::<String>());
        self
    }
}
