//! What answers look like: statuses, headers, and the size of pages.

use std::time::SystemTime;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, IF_MODIFIED_SINCE, LAST_MODIFIED, LOCATION, RANGE, SET_COOKIE,
    WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::Value;

use super::Version;
use super::config::Complaint;
use super::routes::Asked;
use super::tree::Tree;
use super::users::{Permission, session};

/// How big a whole page of 2.452.2 is, and one of 2.372.
const PAGE_BYTES: usize = 72_000;
const OLD_PAGE_BYTES: usize = 8_000;
/// How much the list of nodes grows with each.
const LIST_ROW_BYTES: usize = 6_000;

const HTML: &str = "text/html;charset=utf-8";

/// An answer with a status, a type and a body.
fn plain(status: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    set(&mut response, CONTENT_TYPE, content_type);
    set(&mut response, HeaderName::from_static("x-content-type-options"), "nosniff");
    response
}

fn set(response: &mut Response, name: HeaderName, value: impl AsRef<[u8]>) {
    response.headers_mut().append(name, HeaderValue::from_bytes(value.as_ref()).unwrap());
}

/// A page of the servlet container: no `X-Jenkins`, Latin-1, some 500 bytes.
pub(super) fn jetty(version: Version, status: u16, message: &str, path: &str) -> Response {
    let reason = StatusCode::from_u16(status).unwrap().canonical_reason().unwrap_or_default();
    let engine = match version {
        Version::V2_372 => "10.0.12",
        Version::V2_452_2 => "10.0.20",
    };
    let body = format!(
        "<html>\n<head>\n<meta http-equiv=\"Content-Type\" content=\"text/html;charset=ISO-8859-1\"/>\n<title>Error {status} {message}</title>\n\
         </head>\n<body><h2>HTTP ERROR {status} {message}</h2>\n<table>\n<tr><th>URI:</th><td>{}</td></tr>\n\
         <tr><th>STATUS:</th><td>{status}</td></tr>\n<tr><th>MESSAGE:</th><td>{}</td></tr>\n<tr><th>SERVLET:</th><td>Stapler</td></tr>\n\
         </table>\n<hr/><a href=\"https://eclipse.org/jetty\">Powered by Jetty:// {engine}</a><hr/>\n\n</body>\n</html>\n",
        escape(path),
        if message.is_empty() { reason } else { message },
    );
    let mut response = plain(status, "text/html;charset=iso-8859-1", body);
    set(&mut response, CACHE_CONTROL, "must-revalidate,no-cache,no-store");
    response
}

/// Wrong credentials, or a Jenkins that is about to go.
pub(super) fn unauthorized(version: Version, path: &str) -> Response {
    let mut response = jetty(version, 401, "Unauthorized", path);
    set(&mut response, WWW_AUTHENTICATE, "Basic realm=\"Jenkins\"");
    set(&mut response, SET_COOKIE, "remember-me=; Path=/; Max-Age=0; Expires=Thu, 01-Jan-1970 00:00:00 GMT");
    response
}

/// A POST without a crumb that counts.
pub(super) fn no_crumb(version: Version, path: &str) -> Response {
    jetty(version, 403, "No valid crumb was included in the request", path)
}

/// A Jenkins that is not ready, or not any more.
pub(super) fn not_ready(what: &str) -> Response {
    let body = format!(
        "<!DOCTYPE html><html><head resURL=\"/static/0\"><title>Jenkins</title></head><body><h1>Please wait while Jenkins is {what}\
         <span id=\"loading\">...</span></h1><p>Your browser will reload automatically when Jenkins is ready.</p></body></html>"
    );
    plain(503, HTML, body)
}

/// The bytes of `agent.jar`, or a part of them, or nothing new.
pub(super) fn jar(bytes: &[u8], unpacked: SystemTime, headers: &HeaderMap) -> Response {
    let modified = http_date(unpacked);
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let known = header(IF_MODIFIED_SINCE).and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    let mut response = if known.is_some_and(|known| known.timestamp() >= Timestamp::try_from(unpacked).unwrap()) {
        let mut response = plain(304, "application/java-archive", Body::empty());
        response.headers_mut().remove(CONTENT_TYPE);
        response
    } else if let Some((from, to)) = header(RANGE).and_then(|range| part(range, bytes.len())) {
        let mut response = plain(206, "application/java-archive", bytes[from..to].to_vec());
        set(&mut response, CONTENT_RANGE, format!("bytes {from}-{}/{}", to - 1, bytes.len()));
        response
    } else {
        plain(200, "application/java-archive", bytes.to_vec())
    };
    set(&mut response, LAST_MODIFIED, modified);
    set(&mut response, ACCEPT_RANGES, "bytes");
    response
}

fn part(range: &str, length: usize) -> Option<(usize, usize)> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let from: usize = from.parse().ok()?;
    let to = if to.is_empty() { length } else { to.parse::<usize>().ok()?.checked_add(1)?.min(length) };
    (from < to).then_some((from, to))
}

fn http_date(time: SystemTime) -> String {
    DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::try_from(time).unwrap()).unwrap()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Asked {
    fn version(&self) -> Version {
        self.inner.plan.version
    }

    /// Adds what an answer of Jenkins itself has.
    fn signed(&self, mut response: Response) -> Response {
        let boot = self.inner.read(|controller| controller.boot.session.clone());
        set(&mut response, HeaderName::from_static("x-hudson"), "1.395");
        set(&mut response, HeaderName::from_static("x-jenkins"), self.version().text());
        set(&mut response, HeaderName::from_static("x-jenkins-session"), boot);
        response
    }

    /// A page of Jenkins, at least so long. It begins a session, if there is none.
    fn html(&self, status: u16, title: &str, body: &str, bytes: usize) -> Response {
        let mut page = format!("<!DOCTYPE html><html><head><title>{title} [Jenkins]</title></head><body id=\"jenkins\">{body}");
        // What Jenkins has around everything: scripts, menus, icons.
        let around = bytes.saturating_sub(page.len() + "<!---->".len() + "</body></html>".len());
        page.push_str(&format!("<!--{}-->", ".".repeat(around)));
        page.push_str("</body></html>");
        let mut response = self.signed(plain(status, HTML, page));
        self.begin_session(&mut response);
        response
    }

    /// Gives the client a session that Jenkins has to keep, unless it shows one; its id.
    pub(super) fn begin_session(&self, response: &mut Response) -> String {
        if let Some(known) = self.inner.read(|controller| session(&self.headers, &controller.boot)) {
            return known;
        }
        let id = format!("node0{}.node0", hex::encode(rand::random::<[u8; 12]>()));
        self.inner.change(|controller| controller.boot.sessions.insert(id.clone()));
        let port = self.inner.port.address.port();
        set(response, SET_COOKIE, format!("JSESSIONID.{port:08x}={id}; Path=/; HttpOnly; SameSite=Lax"));
        id
    }

    pub(super) fn page(&self, status: u16, title: &str, body: &str) -> Response {
        self.html(status, title, body, self.page_bytes())
    }

    /// A small page, as the one to log in.
    pub(super) fn small_page(&self, title: &str, body: &str) -> Response {
        self.html(200, title, body, 2_000)
    }

    fn page_bytes(&self) -> usize {
        match self.version() {
            Version::V2_372 => OLD_PAGE_BYTES,
            Version::V2_452_2 => PAGE_BYTES,
        }
    }

    /// The list of nodes for people: 6 MB of them for a thousand.
    pub(super) fn node_list(&self) -> Response {
        let nodes = self.inner.read(|controller| controller.computers.len());
        self.html(200, "Nodes", "<h1>Nodes</h1>", self.page_bytes() + nodes * LIST_ROW_BYTES)
    }

    /// JSON, or the part of it that `tree` names.
    pub(super) fn json(&self, value: &Value) -> Response {
        let value = match self.param("tree").map(Tree::parse) {
            None => at_no_depth(value),
            Some(Some(tree)) => tree.prune(value),
            Some(None) => return self.oops(),
        };
        self.signed(plain(200, "application/json;charset=utf-8", value.to_string()))
    }

    /// An empty 302 to a path below the root of the request.
    pub(super) fn redirect(&self, path: &str) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::FOUND;
        set(&mut response, LOCATION, format!("{}{path}", self.root));
        response
    }

    /// An empty answer without a mark of Jenkins.
    pub(super) fn empty(&self, status: u16) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    }

    /// Something without a mark of Jenkins.
    pub(super) fn unsigned(&self, content_type: &'static str, body: impl Into<Body>) -> Response {
        plain(200, content_type, body)
    }

    pub(super) fn not_found(&self) -> Response {
        match self.version() {
            Version::V2_372 => jetty(self.version(), 404, "Not Found", &self.path),
            Version::V2_452_2 if self.who.name() == "anonymous" => self.html(404, "Not Found", "<h1>Not Found</h1>", OLD_PAGE_BYTES),
            Version::V2_452_2 => {
                self.page(404, "Not Found", "<h1>Not Found</h1><p>This page may not exist, or you may not have permission to see it.</p>")
            }
        }
    }

    pub(super) fn needs_post(&self) -> Response {
        self.page(405, "Method Not Allowed", "<p>This URL requires POST</p><form method=\"POST\"><button>Proceed</button></form>")
    }

    pub(super) fn jetty(&self, status: u16, message: &str) -> Response {
        jetty(self.version(), status, message, &self.path)
    }

    /// A page with an `X-Error`: in Latin-1, with blanks for what is beyond it, as the servlet container writes headers.
    pub(super) fn complain(&self, complaint: &Complaint) -> Response {
        let words = self.language.complaint(complaint);
        let mut response = self.page(400, "Error", &format!("<h1>Error</h1><p>{}</p>", escape(&words)));
        let in_latin_1 = |letter: char| u8::try_from(u32::from(letter)).ok().filter(|_| !letter.is_control());
        let blanked = words.chars().map(|letter| in_latin_1(letter).unwrap_or(b' '));
        set(&mut response, HeaderName::from_static("x-error"), blanked.collect::<Vec<u8>>());
        response
    }

    /// What Jenkins answers when it throws.
    pub(super) fn oops(&self) -> Response {
        let id = uuid::Uuid::new_v4();
        self.page(500, "Jenkins", &format!("<h1>Oops!</h1><p>A problem occurred while processing the request.</p><p>Logging ID={id}</p>"))
    }

    /// Refuses for want of a permission. Anonymous is asked to log in.
    pub(super) fn forbid(&self, permission: Permission) -> Response {
        let name = self.who.name();
        let mut response = if name == "anonymous" {
            let to = format!("/login?from={}", self.path.replace('/', "%2F"));
            let body = format!(
                "<html><head><meta http-equiv='refresh' content='1;url={to}'/><script id='redirect' data-redirect-url='{to}' src='/static/0/scripts/redirect.js'>\
                 </script></head><body style='background-color:white; color:white;'>\nAuthentication required\n<!--\n-->\n</body></html>"
            );
            let mut response = self.signed(plain(403, HTML, body));
            self.begin_session(&mut response);
            response
        } else {
            self.page(
                403,
                "Access Denied",
                &format!("<h1>Access Denied</h1><p>{name} is missing the {} permission</p>", permission.title()),
            )
        };
        set(&mut response, HeaderName::from_static("x-you-are-authenticated-as"), name);
        set(&mut response, HeaderName::from_static("x-required-permission"), permission.id());
        for implied in permission.implied_by() {
            set(&mut response, HeaderName::from_static("x-permission-implied-by"), implied);
        }
        response
    }
}

/// What is shown of a value when no `tree` is given: executors are empty objects.
fn at_no_depth(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(at_no_depth).collect(),
        Value::Object(fields) => {
            let shown = fields.iter().map(|(name, value)| match value {
                Value::Array(list) if name == "executors" => {
                    (name.clone(), list.iter().map(|_| Value::Object(serde_json::Map::new())).collect())
                }
                value => (name.clone(), at_no_depth(value)),
            });
            Value::Object(shown.collect())
        }
        value => value.clone(),
    }
}
