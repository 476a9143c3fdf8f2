//! What is behind which URL.
//!
//! Jenkins finds its objects by walking a path, segment by segment, so a node can be hidden by a method of the list of nodes that has its
//! name. This file walks in the same way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT_LANGUAGE, CONTENT_TYPE, HOST};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::agents;
use super::config::{Complaint, NodeConfig, Rejected, check_name};
use super::controller::{Build, BuildState, Cause, Controller, Job, Outcome, is_built_in};
use super::door::{Cut, Phase};
use super::pages::{jar, jetty, no_crumb, not_ready, unauthorized};
use super::users::{Permission, Who, crumb, new_token};
use super::words::Language;
use super::xml::{Element, escape};
use super::{Fault, Inner, Seen};

/// How much of a request's body is taken.
const BODY_BYTES_MAX: usize = 16 << 20;
/// The longest name of a file on the controller's disk.
const FILE_NAME_BYTES_MAX: usize = 255;

/// What a request asks for. Requests are counted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Op {
    /// `/login`.
    Login,
    /// `/whoAmI/api/json`.
    WhoAmI,
    /// `/crumbIssuer/api/json`.
    Crumb,
    /// `…/generateNewToken`.
    NewToken,
    /// `/api/json`.
    Root,
    /// `/computer/api/json`.
    List,
    /// `/computer/`: the page of megabytes that redirects lead to.
    ListPage,
    /// `/computer/NAME/api/json`.
    Node,
    /// `/computer/NAME/`: a page that redirects lead to, too.
    NodePage,
    /// `/computer/doCreateItem`.
    Create,
    /// `/computer/createItem`.
    Copy,
    /// `…/doDelete`.
    Delete,
    /// GET of `…/config.xml`.
    ReadConfig,
    /// POST to `…/config.xml`.
    WriteConfig,
    /// `…/toggleOffline`.
    Toggle,
    /// `…/changeOfflineCause`.
    ChangeCause,
    /// `…/doDisconnect`.
    Disconnect,
    /// `…/launchSlaveAgent`.
    Launch,
    /// `…/jenkins-agent.jnlp`.
    Jnlp,
    /// `/jnlpJars/…`.
    Jar,
    /// `/wsagents/`.
    Agent,
    /// `/queue/…`.
    Queue,
    /// `/label/…`.
    Label,
    /// `…/loadStatistics` and `/overallLoad`.
    Load,
    /// `/job/…` and `/createItem`.
    Job,
    /// `/quietDown` and `/cancelQuietDown`.
    QuietDown,
    /// `/restart` and `/safeRestart`.
    Restart,
    /// Everything else.
    Other,
}

/// What a request asks for, and of whom.
struct Route {
    op: Op,
    /// The node, the label, the job, or the last segment.
    name: String,
    rest: Vec<String>,
}

impl Route {
    fn find(method: &Method, segments: &[String]) -> Self {
        let texts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (op, name, rest): (Op, &str, &[&str]) = match texts.as_slice() {
            [] | ["api", "json"] => (Op::Root, "", &[]),
            ["login"] => (Op::Login, "", &[]),
            ["whoAmI", "api", "json"] => (Op::WhoAmI, "", &[]),
            ["crumbIssuer", "api", "json"] => (Op::Crumb, "", &[]),
            ["me", "descriptorByName", "jenkins.security.ApiTokenProperty", "generateNewToken"] => (Op::NewToken, "", &[]),
            ["jnlpJars", name] => (Op::Jar, name, &[]),
            ["jnlpJars"] => (Op::Jar, "", &[]),
            ["wsagents"] => (Op::Agent, "", &[]),
            ["queue", rest @ ..] => (Op::Queue, "", rest),
            ["overallLoad", "api", "json"] => (Op::Load, "", &[]),
            ["label", label, "loadStatistics", "api", "json"] => (Op::Load, label, &[]),
            ["label", label, "api", "json"] => (Op::Label, label, &[]),
            ["job", job, rest @ ..] => (Op::Job, job, rest),
            ["createItem"] => (Op::Job, "", &[]),
            [name @ ("quietDown" | "cancelQuietDown")] => (Op::QuietDown, name, &[]),
            [name @ ("restart" | "safeRestart")] => (Op::Restart, name, &[]),
            ["computer"] => (Op::ListPage, "", &[]),
            ["computer", "api", "json"] => (Op::List, "", &[]),
            ["computer", "api" | "_all", ..] => (Op::Other, "", &[]),
            ["computer", "doCreateItem", ..] => (Op::Create, "", &[]),
            ["computer", "createItem", ..] => (Op::Copy, "", &[]),
            ["computer", name] => (Op::NodePage, name, &[]),
            ["computer", name, "api", "json"] => (Op::Node, name, &[]),
            ["computer", name, "doDelete"] => (Op::Delete, name, &[]),
            ["computer", name, "config.xml"] if *method == Method::POST => (Op::WriteConfig, name, &[]),
            ["computer", name, "config.xml"] => (Op::ReadConfig, name, &[]),
            ["computer", name, "toggleOffline"] => (Op::Toggle, name, &[]),
            ["computer", name, "changeOfflineCause"] => (Op::ChangeCause, name, &[]),
            ["computer", name, "doDisconnect"] => (Op::Disconnect, name, &[]),
            ["computer", name, "launchSlaveAgent"] => (Op::Launch, name, &[]),
            ["computer", name, "jenkins-agent.jnlp" | "slave-agent.jnlp"] => (Op::Jnlp, name, &[]),
            _ => (Op::Other, "", &[]),
        };
        Self { op, name: name.to_owned(), rest: rest.iter().map(ToString::to_string).collect() }
    }
}

/// A request, taken apart.
pub(super) struct Asked {
    pub(super) inner: Arc<Inner>,
    pub(super) who: Who,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) language: Language,
    /// The root's URL as the client sees it, with a slash at its end.
    pub(super) root: String,
    route: Route,
    ends_with_slash: bool,
    parameters: Vec<(String, String)>,
    body: Bytes,
}

/// Answers a request.
pub(super) async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let cut = request.extensions().get::<Cut>().unwrap().clone();
    // A servlet goes on when its client is gone, so the work is not part of the connection's task.
    match tokio::spawn(answer_whole(inner, request)).await.unwrap() {
        Some(response) => response,
        None => cut.cut().await,
    }
}

/// Answers, or resets the connection.
async fn answer_whole(inner: Arc<Inner>, request: Request) -> Option<Response> {
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let segments = segments(parts.uri.path());
    let route = Route::find(&parts.method, &segments);
    let op = route.op;
    let mut seen = Seen::new(&parts, op);
    let _under_way = inner.arrive(op);
    // All of it, so that a client that goes away changes nothing any more.
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.ok()?;
    let phase = inner.answering_phase().await;
    let fault = inner.next_fault(op);
    if matches!(fault, Some(Fault::Refuse)) {
        inner.note(seen);
        return None;
    }
    tokio::time::sleep(inner.pause(fault.as_ref())).await;
    let version = inner.plan.version;
    let response = if let Some(Fault::Status(status)) = fault {
        jetty(version, status, "", parts.uri.path())
    } else if phase == Phase::Ready {
        admit(&inner, parts, route, body, &mut seen).await
    } else {
        between_lives(&inner, phase, &parts)
    };
    inner.take_time(op, response.status(), began).await;
    seen.status = response.status().as_u16();
    seen.took = began.elapsed();
    inner.note(seen);
    Some(response).filter(|_| !matches!(fault, Some(Fault::Lose)))
}

/// What a client gets while Jenkins is not there.
fn between_lives(inner: &Inner, phase: Phase, parts: &Parts) -> Response {
    let version = inner.plan.version;
    match phase {
        Phase::Restarting => not_ready("restarting"),
        Phase::Unauthorized if parts.headers.contains_key("authorization") => unauthorized(version, parts.uri.path()),
        Phase::NoCrumb if parts.method == Method::POST => no_crumb(version, parts.uri.path()),
        _ => not_ready("getting ready to work"),
    }
}

/// Lets in who may come in: credentials first, then the crumb, then `Overall/Read`.
async fn admit(inner: &Arc<Inner>, parts: Parts, route: Route, body: Bytes, seen: &mut Seen) -> Response {
    let version = inner.plan.version;
    let path = parts.uri.path().to_owned();
    let (who, may_post) = inner.read(|controller| {
        let who = Who::of(&parts.headers, &controller.users);
        let may_post = who.as_ref().is_some_and(|who| who.may_post(&parts.headers, &controller.boot));
        (who, may_post)
    });
    let Some(who) = who else { return unauthorized(version, &path) };
    seen.user = who.name().to_owned();
    if matches!(who, Who::User { with_token: false, .. }) {
        inner.take_password_time().await;
    }
    if parts.method == Method::POST && !may_post {
        return no_crumb(version, &path);
    }
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let proto = Some(header("x-forwarded-proto")).filter(|proto| !proto.is_empty()).unwrap_or("http");
    let host = Some(header("x-forwarded-host")).filter(|host| !host.is_empty()).unwrap_or_else(|| header(HOST.as_str()));
    let asked = Asked {
        inner: inner.clone(),
        who,
        method: parts.method.clone(),
        language: Language::accepted(header(ACCEPT_LANGUAGE.as_str())).unwrap_or(inner.plan.language),
        root: format!("{proto}://{host}/"),
        ends_with_slash: path.ends_with('/'),
        parameters: parameters(&parts, &body),
        headers: parts.headers.clone(),
        path,
        route,
        body,
    };
    if asked.route.op == Op::Agent {
        return agents::handshake(&asked, parts).await;
    }
    let open = match asked.route.op {
        Op::Login | Op::WhoAmI | Op::Jar => true,
        Op::Jnlp => asked.is_encrypted_jnlp(),
        // Where a TCP agent looks for a port that there is not.
        Op::Other => asked.path.trim_end_matches('/') == "/tcpSlaveAgentListener",
        _ => false,
    };
    if !open && !asked.who.is_allowed(Permission::Read) {
        return asked.forbid(Permission::Read);
    }
    asked.dispatch().await
}

/// The decoded segments of a path.
fn segments(path: &str) -> Vec<String> {
    path.split('/').filter(|segment| !segment.is_empty()).map(percent_decode).collect()
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let code = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten().and_then(|code| u8::from_str_radix(code, 16).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The parameters of the query, then those of a form, plain or in parts.
fn parameters(parts: &Parts, body: &[u8]) -> Vec<(String, String)> {
    let pairs = |text: &str| serde_urlencoded::from_str::<Vec<(String, String)>>(text).unwrap_or_default();
    let mut all = pairs(parts.uri.query().unwrap_or_default());
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("application/x-www-form-urlencoded") {
        all.extend(pairs(&String::from_utf8_lossy(body)));
    } else if let Some((_, boundary)) = content_type.split_once("boundary=").filter(|_| content_type.starts_with("multipart/form-data")) {
        all.extend(form_parts(&String::from_utf8_lossy(body), boundary.trim_matches('"')));
    }
    all
}

fn form_parts(body: &str, boundary: &str) -> Vec<(String, String)> {
    let part = |part: &str| {
        let (head, content) = part.split_once("\r\n\r\n")?;
        let (_, name) = head.split_once("name=\"")?;
        Some((name.split_once('"')?.0.to_owned(), content.strip_suffix("\r\n").unwrap_or(content).to_owned()))
    };
    body.split(&format!("--{boundary}")).filter_map(part).collect()
}

impl Asked {
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn is_post(&self) -> bool {
        self.method == Method::POST
    }

    fn is_encrypted_jnlp(&self) -> bool {
        self.param("encrypt") == Some("true")
    }

    fn is_form(&self) -> bool {
        let content_type = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        content_type.is_some_and(|content_type| content_type.starts_with("application/x-www-form-urlencoded"))
    }

    /// What Jenkins answers to somebody who may be here.
    async fn dispatch(&self) -> Response {
        let name = self.route.name.as_str();
        match self.route.op {
            Op::Login => self.small_page("Sign in", "<form name=\"login\"></form>"),
            Op::WhoAmI => self.who_am_i(),
            Op::Crumb => self.crumb(),
            Op::NewToken => self.new_token(),
            Op::Root => self.root(),
            Op::List => self.json(&self.inner.read(|controller| controller.computers_json(self.language, &self.root))),
            Op::ListPage if !self.ends_with_slash => self.redirect("computer/"),
            Op::ListPage => self.node_list(),
            Op::Create => self.create().await,
            Op::Copy => self.copy().await,
            Op::Jar => self.jar(name),
            Op::Queue => self.queue(),
            Op::Label => self.json(&self.inner.read(|controller| controller.label_json(name, &self.root))),
            Op::Load => self.load(name),
            Op::Job => self.job(name),
            Op::QuietDown => self.quiet_down(name == "quietDown"),
            Op::Restart => self.restart(name == "safeRestart"),
            Op::Agent | Op::Other => self.not_found(),
            _ if self.inner.read(|controller| controller.computer(name).is_none()) => self.not_found(),
            Op::Node => self.node(name),
            Op::NodePage if !self.ends_with_slash => self.redirect(&format!("computer/{}/", encode(name))),
            // Whatever the method: nothing is deleted here.
            Op::NodePage => self.page(200, name, &format!("<h1>Agent {name}</h1>")),
            Op::Delete => self.delete(name).await,
            Op::ReadConfig => self.read_config(name),
            Op::WriteConfig => self.write_config(name).await,
            Op::Toggle => self.toggle(name),
            Op::ChangeCause => self.change_cause(name),
            Op::Disconnect => self.disconnect(name),
            Op::Launch => self.launch(name),
            Op::Jnlp => self.jnlp(name),
        }
    }

    fn who_am_i(&self) -> Response {
        let anonymous = matches!(self.who, Who::Anonymous);
        self.json(&json!({
            "_class": "hudson.security.WhoAmI",
            "anonymous": anonymous,
            "authenticated": true,
            "authorities": [if anonymous { "anonymous" } else { "authenticated" }],
            "name": self.who.name(),
        }))
    }

    fn crumb(&self) -> Response {
        let mut held = Response::default();
        let session = self.begin_session(&mut held);
        let crumb = self.inner.read(|controller| crumb(&self.who, &session, &controller.boot));
        let class = "hudson.security.csrf.DefaultCrumbIssuer";
        let mut response = self.json(&json!({"_class": class, "crumb": crumb, "crumbRequestField": "Jenkins-Crumb"}));
        response.headers_mut().extend(held.headers().clone());
        response
    }

    fn new_token(&self) -> Response {
        if !self.is_post() {
            return self.needs_post();
        }
        let token = new_token();
        self.inner.change(|controller| {
            let user = controller.users.iter_mut().find(|user| user.name == self.who.name()).unwrap();
            user.tokens.push(token.clone());
        });
        let name = self.param("newTokenName").unwrap_or("Token");
        let uuid = uuid::Uuid::new_v4().to_string();
        self.json(&json!({"status": "ok", "data": {"tokenName": name, "tokenUuid": uuid, "tokenValue": token}}))
    }

    fn root(&self) -> Response {
        if !self.path.ends_with("json") {
            return self.page(200, "Dashboard", "<h1>Welcome to Jenkins!</h1>");
        }
        self.json(&self.inner.read(|controller| {
            json!({
                "_class": "hudson.model.Hudson",
                "mode": "NORMAL",
                "nodeDescription": "the Jenkins controller's built-in node",
                "nodeName": "",
                "numExecutors": controller.built_in_executors,
                "jobs": controller.jobs.keys().map(|name| json!({
                    "_class": "hudson.model.FreeStyleProject", "name": name, "url": format!("{}job/{name}/", self.root), "color": "notbuilt",
                })).collect::<Value>(),
                "quietingDown": controller.quieting_down,
                "url": self.inner.plan.root_url(self.inner.port.address),
                "useCrumbs": true,
                "useSecurity": true,
            })
        }))
    }

    /// A GET is 404, and not 405: the name is that of a node then, which is none.
    async fn create(&self) -> Response {
        if !self.is_post() {
            return self.not_found();
        }
        if !self.who.is_allowed(Permission::Create) {
            return self.forbid(Permission::Create);
        }
        let _turn = self.inner.turn(Op::Create).await;
        let name = self.param("name").unwrap_or_default().trim_matches(|letter| letter <= ' ').to_owned();
        if let Err(complaint) = self.check_new_name(&name) {
            return self.complain(&complaint);
        }
        let Some(form) = self.param("json") else { return self.jetty(400, "This page expects a form submission") };
        let Ok(form @ Value::Object(_)) = serde_json::from_str(form) else { return self.oops() };
        if !matches!(self.param("type"), Some("hudson.slaves.DumbSlave" | "hudson.slaves.DumbSlave$DescriptorImpl")) {
            return self.oops();
        }
        let Some(config) = NodeConfig::from_form(&name, &form).filter(|_| name.len() <= FILE_NAME_BYTES_MAX) else { return self.oops() };
        self.inner.change(|controller| controller.keep(config));
        self.redirect("computer/")
    }

    fn check_new_name(&self, name: &str) -> Result<(), Complaint> {
        if name.is_empty() {
            return Err(Complaint::NameRequired);
        }
        check_name(name)?;
        if self.inner.read(|controller| controller.nodes.contains_key(name)) {
            return Err(Complaint::Exists(name.into()));
        }
        Ok(())
    }

    async fn copy(&self) -> Response {
        if !self.is_post() {
            return self.not_found();
        }
        if !self.who.is_allowed(Permission::Create) {
            return self.forbid(Permission::Create);
        }
        let _turn = self.inner.turn(Op::Create).await;
        let name = self.param("name").unwrap_or_default().trim().to_owned();
        if let Err(complaint) = self.check_new_name(&name) {
            return self.complain(&complaint);
        }
        match self.param("mode") {
            None => self.complain(&Complaint::NoMode),
            Some("copy") => {
                let from = self.param("from").unwrap_or_default();
                let Some(mut config) = self.inner.read(|controller| controller.nodes.get(from).map(|node| node.config.clone())) else {
                    return self.complain(&Complaint::NoSuchAgent(from.into()));
                };
                config.name.clone_from(&name);
                self.inner.change(|controller| controller.keep(config));
                self.redirect(&format!("computer/{}/configure", encode(&name)))
            }
            Some(_) => self.page(200, "New node", "<form></form>"),
        }
    }

    fn node(&self, name: &str) -> Response {
        match self.inner.read(|controller| controller.computer_json(name, self.language, &self.root)) {
            Some(node) => self.json(&node),
            None => self.not_found(),
        }
    }

    async fn delete(&self, name: &str) -> Response {
        if !self.is_post() {
            return self.needs_post();
        }
        if !self.who.is_allowed(Permission::Delete) {
            return self.forbid(Permission::Delete);
        }
        if is_built_in(name) {
            return self.empty(400);
        }
        // Whoever found the node before it was deleted deletes it, too.
        let _turn = self.inner.turn(Op::Delete).await;
        self.inner.delete(name);
        self.redirect("computer/")
    }

    fn read_config(&self, name: &str) -> Response {
        if !self.who.is_allowed(Permission::ExtendedRead) {
            return self.forbid(Permission::ExtendedRead);
        }
        let version = self.inner.plan.version;
        let xml = || self.inner.read(|controller| controller.nodes.get(name).map(|node| node.config.to_xml(version)));
        match xml().filter(|_| !is_built_in(name)) {
            Some(xml) => self.unsigned("application/xml", xml),
            None => self.empty(400),
        }
    }

    async fn write_config(&self, name: &str) -> Response {
        if !self.who.is_allowed(Permission::Configure) {
            return self.forbid(Permission::Configure);
        }
        if is_built_in(name) {
            return self.empty(400);
        }
        if self.is_form() {
            return self.oops();
        }
        let _turn = self.inner.turn(Op::WriteConfig).await;
        match NodeConfig::from_xml(&String::from_utf8_lossy(&self.body)) {
            Ok(config) => {
                self.inner.change(|controller| controller.replace(name, config));
                self.empty(200)
            }
            Err(Rejected::Broken) => self.oops(),
            Err(Rejected::Complaint(complaint)) => self.complain(&complaint),
        }
    }

    fn to_node(&self, name: &str) -> Response {
        self.redirect(&format!("computer/{}/", encode(name)))
    }

    fn offline_message(&self) -> Cause {
        Cause::user(self.who.name(), self.param("offlineMessage").unwrap_or_default())
    }

    fn toggle(&self, name: &str) -> Response {
        if !self.is_post() {
            return self.needs_post();
        }
        let is_offline = self.inner.read(|controller| controller.computer(name).is_some_and(|computer| computer.temporarily_offline));
        let needed = if is_offline { Permission::Connect } else { Permission::Disconnect };
        if !self.who.is_allowed(needed) {
            return self.forbid(needed);
        }
        self.inner.change(|controller| controller.mark(name, (!is_offline).then(|| self.offline_message())));
        self.to_node(name)
    }

    fn change_cause(&self, name: &str) -> Response {
        if !self.is_post() {
            return self.needs_post();
        }
        if !self.who.is_allowed(Permission::Disconnect) {
            return self.forbid(Permission::Disconnect);
        }
        self.inner.change(|controller| controller.mark(name, Some(self.offline_message())));
        self.to_node(name)
    }

    /// The agent comes back by itself, and what is said here is forgotten when its connection ends.
    fn disconnect(&self, name: &str) -> Response {
        if !self.is_post() {
            return self.needs_post();
        }
        let connected = |asked: &Self| {
            let channel = asked.inner.read(|controller| controller.computers.get(name)?.channel.as_ref().map(|it| it.close.clone()));
            channel.filter(|_| !is_built_in(name))
        };
        if let Some(close) = connected(self) {
            if !self.who.is_allowed(Permission::Disconnect) {
                return self.forbid(Permission::Disconnect);
            }
            close.cancel();
        }
        self.to_node(name)
    }

    fn launch(&self, name: &str) -> Response {
        if !self.is_post() {
            return self.needs_post();
        }
        if !self.who.is_allowed(Permission::Connect) {
            return self.forbid(Permission::Connect);
        }
        if self.inner.read(|controller| controller.computer(name).is_some_and(|computer| computer.is_connected())) {
            return self.page(200, name, "<p>This agent is already launched.</p>");
        }
        self.inner.change(|controller| controller.launch_failed(name));
        self.redirect(&format!("computer/{}/log", encode(name)))
    }

    fn jnlp(&self, name: &str) -> Response {
        let encrypted = self.is_encrypted_jnlp();
        if !encrypted && !self.who.is_allowed(Permission::Connect) {
            return self.forbid(Permission::Connect);
        }
        let found = self.inner.read(|controller| {
            let node = controller.nodes.get(name).filter(|_| !is_built_in(name))?;
            Some((node.config.clone(), controller.secret(name)))
        });
        let Some((config, secret)) = found else { return self.not_found() };
        let jnlp = jnlp(&config, &secret, &self.inner.plan.root_url(self.inner.port.address));
        if encrypted {
            return self.unsigned("application/octet-stream", encrypt(&jnlp, &secret));
        }
        self.unsigned("application/x-java-jnlp-file", jnlp)
    }

    fn jar(&self, name: &str) -> Response {
        if !matches!(name, "agent.jar" | "slave.jar" | "remoting.jar") {
            return self.oops();
        }
        let unpacked = self.inner.read(|controller| controller.boot.unpacked);
        jar(&self.inner.jar, unpacked, &self.headers)
    }

    fn queue(&self) -> Response {
        let rest: Vec<&str> = self.route.rest.iter().map(String::as_str).collect();
        match rest.as_slice() {
            ["api", "json"] => self.json(&self.inner.read(|controller| controller.queue_json(self.language, &self.root))),
            ["item", id, "api", "json"] => {
                let item = self.inner.read(|controller| {
                    let id = id.parse::<usize>().ok()?.checked_sub(1)?;
                    Some(controller.item_json(id, controller.builds.get(id)?, self.language, &self.root))
                });
                item.map_or_else(|| self.not_found(), |item| self.json(&item))
            }
            _ => self.not_found(),
        }
    }

    /// Moving averages, and none of what waits for a label that no node has: nothing to decide by.
    fn load(&self, label: &str) -> Response {
        let (queue, executors) = self.inner.read(|controller| {
            let totals = controller.computers_json(self.language, &self.root);
            (u32::try_from(controller.waiting().count()).unwrap(), totals["totalExecutors"].as_f64().unwrap_or_default())
        });
        let series = |latest: f64| json!({"hour": {"latest": latest}, "min": {"latest": latest}, "sec10": {"latest": latest}});
        let (queue, executors) = if label.is_empty() { (f64::from(queue) * 0.27, executors) } else { (0.0, 0.0) };
        self.json(&json!({
            "_class": "hudson.model.OverallLoadStatistics",
            "busyExecutors": series(0.0),
            "queueLength": series(queue),
            "totalExecutors": series(executors),
        }))
    }

    /// Jobs: made and read by those who administer.
    fn job(&self, name: &str) -> Response {
        let rest: Vec<&str> = self.route.rest.iter().map(String::as_str).collect();
        let known = self.inner.read(|controller| controller.jobs.contains_key(name));
        if self.is_post() && !self.who.is_allowed(Permission::Administer) {
            return self.forbid(Permission::Administer);
        }
        match rest.as_slice() {
            [] if name.is_empty() && self.is_post() => self.create_job(),
            _ if !known => self.not_found(),
            ["build"] if self.is_post() => {
                let id = self.inner.change(|controller| controller.enqueue(name, None));
                let mut response = self.redirect(&format!("queue/item/{}/", id + 1));
                *response.status_mut() = StatusCode::CREATED;
                response
            }
            ["build"] => self.needs_post(),
            ["doDelete"] if self.is_post() => {
                self.inner.change(|controller| controller.jobs.remove(name));
                self.redirect("")
            }
            [number, "api", "json"] => {
                let build = self.inner.read(|controller| controller.build_json(name, number, &self.root));
                build.map_or_else(|| self.not_found(), |build| self.json(&build))
            }
            [number, "stop"] if self.is_post() => {
                let running = |controller: &Controller| {
                    let is_it = |build: &Build| build.job == name && build.number.to_string() == *number;
                    controller.builds.iter().position(|build| is_it(build) && build.state == BuildState::Running)
                };
                if let Some(id) = self.inner.read(running) {
                    self.inner.end(id, Outcome::Failure);
                }
                self.redirect(&format!("job/{}/", encode(name)))
            }
            _ => self.not_found(),
        }
    }

    /// Takes a job's label and the `sleep` of its command from its XML, and leaves the rest.
    fn create_job(&self) -> Response {
        let Some(name) = self.param("name").filter(|name| !name.is_empty()) else { return self.complain(&Complaint::NameRequired) };
        let xml = String::from_utf8_lossy(&self.body);
        let Some(root) = Element::parse(&xml) else { return self.oops() };
        let label = Some(root.text_of("assignedNode")).filter(|label| !label.is_empty()).map(ToOwned::to_owned);
        let sleep = xml
            .split_once("sleep ")
            .and_then(|(_, rest)| rest.split(|letter: char| !(letter.is_ascii_digit() || letter == '.')).next()?.parse().ok());
        let job = Job { label, lasts: sleep.map(Duration::from_secs_f64), builds: 0 };
        self.inner.change(|controller| controller.jobs.insert(name.into(), job));
        self.empty(200)
    }

    fn quiet_down(&self, quiet: bool) -> Response {
        if !self.is_post() {
            return self.needs_post();
        }
        if !self.who.is_allowed(Permission::Administer) {
            return self.forbid(Permission::Administer);
        }
        self.inner.change(|controller| controller.quieting_down = quiet);
        self.redirect("")
    }

    fn restart(&self, is_safe: bool) -> Response {
        if !self.is_post() {
            return self.needs_post();
        }
        if !self.who.is_allowed(Permission::Administer) {
            return self.forbid(Permission::Administer);
        }
        self.inner.restart(is_safe);
        self.redirect("")
    }
}

/// A segment of a URL.
fn encode(name: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~()'!*".contains(&byte);
    name.bytes().map(|byte| if kept(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The one line that has the secret.
fn jnlp(config: &NodeConfig, secret: &str, root: &str) -> String {
    let mut arguments = vec![secret.to_owned(), config.name.clone()];
    let launcher = config.launcher.clone();
    if let Some(launcher) = launcher.as_ref() {
        if launcher.web_socket {
            arguments.push("-webSocket".into());
        }
        if !launcher.work_dir_disabled {
            let path = if launcher.work_dir_path.is_empty() { &config.remote_fs } else { &launcher.work_dir_path };
            arguments.extend(["-workDir", path, "-internalDir", &launcher.internal_dir].map(ToOwned::to_owned));
            if launcher.fail_if_work_dir_is_missing {
                arguments.push("-failIfWorkDirIsMissing".into());
            }
        }
        if let Some(tunnel) = &launcher.tunnel {
            arguments.extend(["-tunnel".to_owned(), tunnel.clone()]);
        }
    }
    arguments.extend(["-url".to_owned(), root.to_owned()]);
    let arguments: String = arguments.iter().map(|argument| format!("<argument>{}</argument>", escape(argument))).collect();
    format!("<jnlp><application-desc>{arguments}</application-desc></jnlp>")
}

/// Hides a text from who does not have the secret: where Jenkins uses AES, a key stream of SHA-256 does for a stand-in.
fn encrypt(text: &str, secret: &str) -> Vec<u8> {
    let start: [u8; 16] = rand::random();
    let block = |number: usize| Sha256::new().chain_update(secret).chain_update(start).chain_update(number.to_string()).finalize();
    let mut out = start.to_vec();
    for (number, chunk) in text.as_bytes().chunks(32).enumerate() {
        out.extend(chunk.iter().zip(block(number)).map(|(byte, key)| byte ^ key));
    }
    out
}

/// The real thing's median and the 95th percentile, in milliseconds, and how much of it nobody else can write, with so many nodes.
pub(super) struct Pace {
    pub(super) median: f64,
    pub(super) p95: f64,
    pub(super) alone: f64,
}

impl Pace {
    /// What was measured of 2.452.2, warm.
    pub(super) fn of(op: Op, status: StatusCode, nodes: usize) -> Self {
        let thousands = f64::from(u32::try_from(nodes).unwrap_or(u32::MAX)) / 1000.0;
        let (median, p95, alone) = match (op, status.as_u16()) {
            (_, 401) => (87.0, 143.0, 0.0),
            (Op::Create | Op::Copy, 400) => (30.0, 55.0, 11.5),
            (Op::Create | Op::Copy, _) => (39.0 + 14.0 * thousands, 60.0 + 14.0 * thousands, 11.5 + 9.0 * thousands),
            (Op::Delete, 302) => (20.0 + 21.0 * thousands, 28.0 + 21.0 * thousands, 7.0 + 5.7 * thousands),
            (_, 404) => (22.0, 48.0, 0.0),
            (Op::WriteConfig, _) => (33.0, 45.0, 10.0),
            (Op::Jnlp, _) => (16.0, 24.0, 0.0),
            (Op::Toggle | Op::ChangeCause | Op::Disconnect | Op::Launch, _) => (26.0, 52.0, 0.0),
            (Op::List, _) => (12.0 + 30.0 * thousands, 26.0 + 30.0 * thousands, 0.0),
            (Op::ListPage, 200) => (20.0 + 2200.0 * thousands, 40.0 + 2200.0 * thousands, 0.0),
            (Op::Queue, _) => (12.0, 19.0, 0.0),
            (Op::Label, _) => (13.0, 24.0, 0.0),
            (Op::Jar, 304) => (3.0, 10.0, 0.0),
            (Op::Jar, _) => (5.0, 12.0, 0.0),
            _ => (12.0, 20.0, 0.0),
        };
        Self { median, p95, alone }
    }
}
