//! Controllers, as Muster sees them: its client against a Jenkins with all its traps, what a check finds out, and demand.

mod check;
mod demand;
mod errors;
mod nodes;
mod pace;
mod restart;
mod start;

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use muster::controller::jenkins::{Executors, Jenkins as Client, JenkinsError, NodeName, Settings, Wanted};
use muster::names::LabelName;
use reqwest::Url;
use tempfile::TempDir;

use crate::jenkins::{Jenkins, MUSTER_TOKEN};

/// Muster's client of a Jenkins, and the file of its token.
struct Muster {
    client: Client,
    token_file: PathBuf,
    _directory: TempDir,
}

impl Muster {
    /// The client of the user `muster`, as it is set up unless a test says otherwise.
    fn of(jenkins: &Jenkins) -> Self {
        Self::with(&jenkins.url(), "muster", MUSTER_TOKEN, |_| {})
    }

    fn with(url: &str, user: &str, token: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let directory = TempDir::new().unwrap();
        let token_file = directory.path().join("token");
        std::fs::write(&token_file, format!("{token}\n")).unwrap();
        let mut settings = Settings {
            url: Url::parse(url).unwrap(),
            user: user.into(),
            token_file: token_file.clone(),
            ca: None,
            timeout: Duration::from_secs(20),
            at_once: 4,
            per_second: 1000,
            unsure: Duration::from_secs(60),
        };
        change(&mut settings);
        Self { client: Client::new(settings).unwrap(), token_file, _directory: directory }
    }
}

impl std::ops::Deref for Muster {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn executors(count: u32) -> Executors {
    Executors::new(count).unwrap()
}

fn labels(texts: &[&str]) -> Vec<LabelName> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn wanted(text: &str) -> Wanted {
    Wanted {
        name: name(text),
        description: "an agent of Muster's".into(),
        executors: executors(2),
        remote_root: "/srv/agent".into(),
        labels: labels(&["linux", "large"]),
        is_exclusive: true,
        environment: vec![("JAVA".into(), "a <b> & \"c\"".into())],
    }
}

/// Something that answers with these routes alone; its URL.
async fn serve(routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

/// Asks until the answer is no longer one that passes by itself, as a caller does.
async fn patiently<T, F: Future<Output = Result<T, JenkinsError>>>(mut ask: impl FnMut() -> F) -> Result<T, JenkinsError> {
    let look = || {
        let asked = ask();
        async move {
            match asked.await {
                Err(error) if error.is_passing() => None,
                done => Some(done),
            }
        }
    };
    crate::house::eventually(look).await.expect("it does not pass")
}

fn is_away<T: std::fmt::Debug>(answer: &Result<T, JenkinsError>) -> bool {
    matches!(answer, Err(JenkinsError::Away(_)))
}
