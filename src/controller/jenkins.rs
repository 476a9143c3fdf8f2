//! A Jenkins controller, from outside: its REST interface, with the rights of an ordinary user.
//!
//! What it really does was measured with 2.372 and 2.452.2, and is other than it looks in many places. Answers of writes are redirects that
//! are not followed: they lead to pages of megabytes. An error's page is read in its first part alone. While a controller starts or ends, a
//! good token is refused for a while too, so a refusal counts only when it lasts. A write whose answer was lost may have been done: the
//! caller looks before it asks again.

mod ask;
pub mod jar;
mod node;
pub mod start;
mod words;
mod xml;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT_LANGUAGE, CONTENT_TYPE, HeaderMap, HeaderValue, IF_MODIFIED_SINCE, LAST_MODIFIED};
use reqwest::{Certificate, Client, Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use self::node::{Executors, Node, NodeName, NodeNameError, Wanted};
use crate::controller::jenkins::ask::{Act, Doubt, Turns};
use crate::controller::jenkins::node::{NODE_TREE, NodeJson, text_of};
use crate::controller::jenkins::words::clean;
use crate::controller::jenkins::xml::Document;
use crate::limits::{CONTROLLER_ANSWER_BYTES_MAX, CONTROLLER_JAR_BYTES_MAX, CONTROLLER_JAR_TIMEOUT};
use crate::names::LabelName;

/// How a controller is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its URL, as people see it.
    pub url: Url,
    /// The user.
    pub user: String,
    /// The file of the user's API token; read anew for each call, so that a new one is taken.
    pub token_file: PathBuf,
    /// Certificates to trust instead of those of the machine, as PEM.
    pub ca: Option<Vec<u8>>,
    /// How long one request may take.
    pub timeout: Duration,
    /// Requests under way at once.
    pub at_once: usize,
    /// Requests that begin in a second.
    pub per_second: u32,
    /// For how long a refusal of the token is not believed.
    pub unsure: Duration,
}

/// A controller.
pub struct Jenkins {
    settings: Settings,
    http: Client,
    turns: Turns,
    doubt: Mutex<Doubt>,
    about: Mutex<Option<About>>,
}

/// Why a controller did not do what it was asked for. None holds a token, a secret or a page.
#[derive(Debug, thiserror::Error)]
pub enum JenkinsError {
    /// It is stopped, starting, restarting, or not reached. It is waited for.
    #[error("the controller is away: {0}")]
    Away(String),
    /// The answer to a write was lost: it may have been done. The caller looks before it asks again.
    #[error("the controller's answer was lost: {0}")]
    Lost(String),
    /// It does not let this user in, and that lasts.
    #[error("the controller does not let its user in: {0}; the token's file is to hold an API token of that user")]
    Credentials(String),
    /// The user may not do this.
    #[error("the controller's user lacks the permission {0}")]
    Permission(Permission),
    /// There is no such thing.
    #[error("the controller has no {0}")]
    Missing(String),
    /// It refuses, in its own words.
    #[error("the controller refuses: {0}")]
    Refused(String),
    /// It answered with what is not understood.
    #[error("the controller answered with {0}")]
    Odd(String),
    /// The token can not be read.
    #[error("the token of the controller's user can not be read from {}: {source}", file.display())]
    Token {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl JenkinsError {
    /// Whether it may pass by itself.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Lost(_))
    }
}

/// What a user needs to be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// To read anything.
    Read,
    /// To make nodes.
    Create,
    /// To read their secrets.
    Connect,
    /// To read and change how they are set up.
    Configure,
    /// To take them out.
    Disconnect,
    /// To remove them.
    Delete,
    /// Another one, by the controller's own id.
    Other(String),
}

impl Permission {
    /// The five that a node's life needs, beside reading.
    pub const FIVE: [Self; 5] = [Self::Create, Self::Connect, Self::Configure, Self::Disconnect, Self::Delete];

    fn of(id: &str) -> Self {
        match id {
            "hudson.model.Hudson.Read" => Self::Read,
            "hudson.model.Computer.Create" => Self::Create,
            "hudson.model.Computer.Connect" => Self::Connect,
            // What can be given apart from it is off in Jenkins unless somebody turns it on, and whoever may configure may read.
            "hudson.model.Computer.Configure" | "hudson.model.Computer.ExtendedRead" => Self::Configure,
            "hudson.model.Computer.Disconnect" => Self::Disconnect,
            "hudson.model.Computer.Delete" => Self::Delete,
            other => Self::Other(clean(other)),
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "Overall/Read",
            Self::Create => "Agent/Create",
            Self::Connect => "Agent/Connect",
            Self::Configure => "Agent/Configure",
            Self::Disconnect => "Agent/Disconnect",
            Self::Delete => "Agent/Delete",
            Self::Other(id) => id,
        })
    }
}

/// What a controller says of itself with its answers: not with those of writes, which are bare redirects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its version.
    pub version: String,
    /// Which start of it this is.
    pub session: String,
}

impl About {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).map(|value| clean(&String::from_utf8_lossy(value.as_bytes())));
        Some(Self { version: text("x-jenkins")?, session: text("x-jenkins-session").unwrap_or_default() })
    }
}

/// Who the controller takes the user for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WhoAmI {
    /// The name.
    pub name: String,
    /// Whether that is nobody.
    pub anonymous: bool,
}

/// What came of asking for a node to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It was made.
    Made,
    /// There is one of this name already.
    There(Node),
}

/// How a node is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// What people read of it.
    pub description: String,
    /// Its labels as they were given, without those that Jenkins gives by itself.
    pub labels: BTreeSet<String>,
    /// Its executors.
    pub executors: i64,
    /// Its root on the agent's machine.
    pub remote_root: String,
    document: Document,
}

/// What an agent needs to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The secret of the node's name: the same for ever, whoever asks.
    pub secret: String,
    /// The URL that the controller believes it has.
    pub url: String,
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound").field("url", &self.url).finish_non_exhaustive()
    }
}

/// What is to be built: a job, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(default)]
pub struct Task {
    /// Its name, which jobs in different folders may share.
    pub name: String,
    /// Its URL.
    pub url: String,
}

/// A build that waits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Queued {
    /// Its number in the queue.
    pub id: u64,
    /// Why it waits, in the controller's words.
    #[serde(default, deserialize_with = "or_default")]
    pub why: String,
    /// Since when, in milliseconds since 1970.
    #[serde(default)]
    pub in_queue_since: i64,
    /// What is to be built.
    #[serde(default)]
    pub task: Task,
    /// Whether it waits for something else than an executor.
    #[serde(default)]
    pub blocked: bool,
    /// Whether it waits for an executor.
    #[serde(default)]
    pub buildable: bool,
    /// Whether it has waited for longer than it should.
    #[serde(default)]
    pub stuck: bool,
}

/// How a label is used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelUse {
    /// Executors that build.
    pub busy: u64,
    /// Executors that could.
    pub idle: u64,
    /// The nodes that carry it.
    pub nodes: Vec<String>,
    /// The jobs that are tied to it.
    pub jobs: Vec<Task>,
}

/// An `agent.jar`.
pub struct Jar {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What to say the next time, to be told that it has not changed. A restart changes it too, so the bytes are known by their hash.
    pub modified: Option<String>,
}

fn or_default<'de, T: Deserialize<'de> + Default, D: serde::Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Jenkins {
    /// A controller that is not asked anything yet.
    ///
    /// # Errors
    /// When the certificates are none.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let mut headers = HeaderMap::new();
        // Its words are in the language of who asks.
        headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_static("en"));
        let mut http = Client::builder()
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            // What the environment names is for people's own programs: this token goes to the controller and nowhere else.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(settings.timeout)
            .default_headers(headers);
        if let Some(ca) = &settings.ca {
            http = http.tls_certs_only(Certificate::from_pem_bundle(ca)?);
        }
        Ok(Self {
            http: http.build()?,
            turns: Turns::new(settings.at_once, settings.per_second),
            doubt: Mutex::default(),
            about: Mutex::default(),
            settings,
        })
    }

    /// Its URL, with a slash at its end.
    pub fn url(&self) -> &Url {
        &self.settings.url
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.settings.user
    }

    /// What it said of itself with its last answer that did.
    pub fn last_about(&self) -> Option<About> {
        self.about.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks whether it is ready, and which version it is. Not for a loop: for each of these Jenkins begins a session, and what is told is told by
    /// other answers as well.
    ///
    /// # Errors
    /// When it is away, or no Jenkins.
    pub async fn about(&self) -> Result<About, JenkinsError> {
        let answer = self.ask_as_nobody(Act::Read(CONTROLLER_ANSWER_BYTES_MAX), self.request(Method::GET, &["login"], &[])).await?;
        let about = About::of(&answer.headers);
        answer.ok("page to log in")?;
        about.ok_or_else(|| JenkinsError::Odd("what is no Jenkins: there is no `X-Jenkins`".into()))
    }

    /// Asks who it takes the user for.
    ///
    /// # Errors
    /// When it is away, or does not let the user in.
    pub async fn who_am_i(&self) -> Result<WhoAmI, JenkinsError> {
        self.json(&["whoAmI", "api", "json"], "", "word on who asks").await
    }

    /// Lists the nodes, without Jenkins' own.
    ///
    /// # Errors
    /// As any call.
    pub async fn list(&self) -> Result<Vec<Node>, JenkinsError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            computer: Vec<NodeJson>,
        }
        let list: List = self.json(&["computer", "api", "json"], &format!("computer[{NODE_TREE}]"), "list of nodes").await?;
        Ok(list.computer.into_iter().filter_map(NodeJson::into_node).collect())
    }

    /// Looks at a node; none if there is none. For one that is likely to be missing, [`Jenkins::list`] costs Jenkins less.
    ///
    /// # Errors
    /// As any call.
    pub async fn node(&self, name: &NodeName) -> Result<Option<Node>, JenkinsError> {
        match self.json::<NodeJson>(&["computer", name.as_str(), "api", "json"], NODE_TREE, "node").await {
            Ok(node) => match node.into_node() {
                Some(node) if node.name == name.as_str() => Ok(Some(node)),
                _ => Err(JenkinsError::Odd(format!("another thing at the URL of the node `{name}`"))),
            },
            Err(JenkinsError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a node, unless there is one of its name.
    ///
    /// # Errors
    /// As any write. What it refuses may be a node that it has on its disk and does not show.
    pub async fn create(&self, wanted: &Wanted) -> Result<Created, JenkinsError> {
        let request = self.form(&["computer", "doCreateItem"], &wanted.form());
        let answer = self.ask(Act::Write, request).await?;
        if answer.status == StatusCode::BAD_REQUEST {
            // Its words are for people, and differ from version to version.
            if let Some(node) = self.node(&wanted.name).await? {
                return Ok(Created::There(node));
            }
        }
        answer.done("way to make a node").map(|()| Created::Made)
    }

    /// Reads how a node is set up.
    ///
    /// # Errors
    /// As any call; and when what comes is another node's.
    pub async fn config(&self, name: &NodeName) -> Result<NodeConfig, JenkinsError> {
        let request = self.request(Method::GET, &["computer", name.as_str(), "config.xml"], &[]);
        let answer = self.ask(Act::Read(CONTROLLER_ANSWER_BYTES_MAX), request).await?;
        let text = String::from_utf8(answer.ok(&node(name))?).map_err(|_| odd_config(name))?;
        NodeConfig::read(name, &text)
    }

    /// Sets labels and executors of a node, if they differ, and leaves the rest as it is; whether anything was changed. An agent that is
    /// connected stays so.
    ///
    /// Who changes the node in between is not noticed: Jenkins has no way to say so.
    ///
    /// # Errors
    /// As any write. Nothing is sent that would rename it.
    pub async fn update(&self, name: &NodeName, labels: &[LabelName], executors: Executors) -> Result<bool, JenkinsError> {
        let config = self.config(name).await?;
        let wanted: BTreeSet<String> = labels.iter().map(ToString::to_string).collect();
        if config.labels == wanted && config.executors == i64::from(executors.get()) {
            return Ok(false);
        }
        let changed = config.with(name, labels, executors)?;
        let request = self.request(Method::POST, &["computer", name.as_str(), "config.xml"], &[]);
        let answer = self.ask(Act::Write, request.header(CONTENT_TYPE, "application/xml").body(changed)).await?;
        answer.ok(&node(name)).map(|_| true)
    }

    /// Reads what an agent needs to connect as a node.
    ///
    /// # Errors
    /// As any call.
    pub async fn secret(&self, name: &NodeName) -> Result<Inbound, JenkinsError> {
        let request = self.request(Method::GET, &["computer", name.as_str(), "jenkins-agent.jnlp"], &[]);
        let answer = self.ask(Act::Read(CONTROLLER_ANSWER_BYTES_MAX), request).await?;
        let text = String::from_utf8(answer.ok(&node(name))?).unwrap_or_default();
        // What is wrong with it is not told: it may be a secret.
        Inbound::read(name, &text).ok_or_else(|| JenkinsError::Odd(format!("what holds no secret of the node `{name}`")))
    }

    /// Takes a node out, or changes why it is out. What runs there goes on, and nothing more begins.
    ///
    /// # Errors
    /// As any write; asked again, it does the same again.
    pub async fn set_offline(&self, name: &NodeName, why: &str) -> Result<(), JenkinsError> {
        let request = self.form(&["computer", name.as_str(), "changeOfflineCause"], &[("offlineMessage", clean(why))]);
        self.ask(Act::Write, request).await?.done(&node(name))
    }

    /// Puts a node back that was taken out; whether it was. The only call that does so toggles, so it is looked at first, and never asked
    /// twice without a look.
    ///
    /// After a restart Jenkins does not know what was taken out until the agent is back: then this does nothing, rather than the opposite.
    ///
    /// # Errors
    /// As any write.
    pub async fn set_online(&self, name: &NodeName) -> Result<bool, JenkinsError> {
        let found = self.node(name).await?.ok_or_else(|| JenkinsError::Missing(node(name)))?;
        if !found.is_marked {
            return Ok(false);
        }
        let request = self.form(&["computer", name.as_str(), "toggleOffline"], &[("offlineMessage", String::new())]);
        self.ask(Act::Write, request).await?.done(&node(name)).map(|()| true)
    }

    /// Removes a node, whatever runs there; whether there was one.
    ///
    /// # Errors
    /// As any write.
    pub async fn delete(&self, name: &NodeName) -> Result<bool, JenkinsError> {
        let request = self.form(&["computer", name.as_str(), "doDelete"], &[]);
        match self.ask(Act::Write, request).await?.done(&node(name)) {
            Ok(()) => Ok(true),
            Err(JenkinsError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fetches its `agent.jar`; none if it is what `modified` stands for.
    ///
    /// # Errors
    /// As any call.
    pub async fn jar(&self, modified: Option<&str>) -> Result<Option<Jar>, JenkinsError> {
        let mut request = self.request(Method::GET, &["jnlpJars", "agent.jar"], &[]).timeout(CONTROLLER_JAR_TIMEOUT);
        if let Some(modified) = modified {
            request = request.header(IF_MODIFIED_SINCE, modified);
        }
        let answer = self.ask_as_nobody(Act::Read(CONTROLLER_JAR_BYTES_MAX), request).await?;
        if answer.status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let modified = answer.header(LAST_MODIFIED);
        let bytes = answer.ok("agent.jar")?;
        // A page to log in, say, that something between here and there has.
        if !bytes.starts_with(b"PK") {
            return Err(JenkinsError::Odd("what is no agent.jar".into()));
        }
        Ok(Some(Jar { bytes, modified }))
    }

    /// Reads what waits to be built.
    ///
    /// # Errors
    /// As any call.
    pub async fn queue(&self) -> Result<Vec<Queued>, JenkinsError> {
        #[derive(Deserialize)]
        struct Queue {
            #[serde(default)]
            items: Vec<Queued>,
        }
        let tree = "items[id,why,stuck,blocked,buildable,inQueueSince,task[name,url]]";
        Ok(self.json::<Queue>(&["queue", "api", "json"], tree, "queue").await?.items)
    }

    /// Reads how a label is used. One that nobody has is used by nobody.
    ///
    /// # Errors
    /// As any call.
    pub async fn label(&self, label: &LabelName) -> Result<LabelUse, JenkinsError> {
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Use {
            busy_executors: u64,
            idle_executors: u64,
            nodes: Vec<NodeOfLabel>,
            tied_jobs: Vec<Task>,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct NodeOfLabel {
            node_name: String,
        }
        let tree = "busyExecutors,idleExecutors,nodes[nodeName],tiedJobs[name,url]";
        let found: Use = self.json(&["label", label.as_str(), "api", "json"], tree, "label").await?;
        let nodes = found.nodes.into_iter().map(|node| node.node_name).collect();
        Ok(LabelUse { busy: found.busy_executors, idle: found.idle_executors, nodes, jobs: found.tied_jobs })
    }

    async fn json<T: DeserializeOwned>(&self, path: &[&str], tree: &str, what: &str) -> Result<T, JenkinsError> {
        let query: &[(&str, &str)] = if tree.is_empty() { &[] } else { &[("tree", tree)] };
        let answer = self.ask(Act::Read(CONTROLLER_ANSWER_BYTES_MAX), self.request(Method::GET, path, query)).await?;
        let body = answer.ok(what)?;
        serde_json::from_slice(&body)
            .map_err(|error| JenkinsError::Odd(format!("what is no {what} (line {}, column {})", error.line(), error.column())))
    }

    fn form(&self, path: &[&str], fields: &[(&str, String)]) -> RequestBuilder {
        let body = serde_urlencoded::to_string(fields).unwrap_or_default();
        self.request(Method::POST, path, &[]).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.settings.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url)
    }
}

fn node(name: &NodeName) -> String {
    format!("node `{name}`")
}

fn odd_config(name: &NodeName) -> JenkinsError {
    JenkinsError::Odd(format!("what is no config.xml of the node `{name}`"))
}

impl NodeConfig {
    fn read(name: &NodeName, text: &str) -> Result<Self, JenkinsError> {
        let document = Document::parse(text, "slave").ok_or_else(|| odd_config(name))?;
        let text_of = |child| document.text_of(child);
        // To send back what has another name would rename the node, over another one if there is one of that name.
        if text_of("name").as_deref() != Some(name.as_str()) {
            return Err(odd_config(name));
        }
        let executors = text_of("numExecutors").and_then(|text| text.trim().parse().ok()).ok_or_else(|| odd_config(name))?;
        Ok(Self {
            description: text_of("description").unwrap_or_default(),
            labels: text_of("label").unwrap_or_default().split_whitespace().map(ToOwned::to_owned).collect(),
            executors,
            remote_root: text_of("remoteFS").unwrap_or_default(),
            document,
        })
    }

    /// The text with other labels and executors. It is read again, so that nothing is sent that is not what was wanted.
    fn with(&self, name: &NodeName, labels: &[LabelName], executors: Executors) -> Result<String, JenkinsError> {
        let text = self.document.set("label", &text_of(labels)).ok_or_else(|| odd_config(name))?;
        let document = Document::parse(&text, "slave").ok_or_else(|| odd_config(name))?;
        let text = document.set("numExecutors", &executors.get().to_string()).ok_or_else(|| odd_config(name))?;
        let read = Self::read(name, &text)?;
        if read.executors == i64::from(executors.get()) && read.labels.len() <= labels.len() { Ok(text) } else { Err(odd_config(name)) }
    }
}

impl Inbound {
    /// Reads the one line of a jnlp: secret, name, and the controller's URL after `-url`.
    fn read(name: &NodeName, text: &str) -> Option<Self> {
        let arguments: Option<Vec<String>> =
            text.split("<argument>").skip(1).map(|rest| xml::unescape(rest.split_once("</argument>")?.0)).collect();
        let arguments = arguments?;
        let (secret, named) = (arguments.first()?, arguments.get(1)?);
        let is_secret = secret.len() == 64 && secret.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let url = arguments.iter().skip_while(|argument| *argument != "-url").nth(1)?;
        (is_secret && named == name.as_str()).then(|| Self { secret: secret.clone(), url: url.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_64_digits_of_the_node_that_was_asked_for_and_is_not_shown() {
        let name: NodeName = "n1".parse().unwrap();
        let secret = "ab".repeat(32);
        let jnlp = |secret: &str, name: &str| {
            format!(
                "<jnlp><application-desc><argument>{secret}</argument><argument>{name}</argument><argument>-webSocket</argument><argument>-url</argument><argument>http://h/?a&amp;b</argument></application-desc></jnlp>"
            )
        };
        let read = Inbound::read(&name, &jnlp(&secret, "n1")).unwrap();
        assert_eq!((read.secret.as_str(), read.url.as_str()), (secret.as_str(), "http://h/?a&b"));
        assert!(!format!("{read:?}").contains(&secret));
        for bad in [jnlp(&secret, "n2"), jnlp(&secret.to_uppercase(), "n1"), jnlp("short", "n1"), String::new(), "<argument>".into()] {
            assert_eq!(Inbound::read(&name, &bad), None);
        }
    }
}
