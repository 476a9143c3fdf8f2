//! The HTTP client of the tools: typed calls, errors with their hints, pages, uploads and streams of events.

use bytes::Bytes;
use futures_util::TryStream;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{Page, Problem};
use crate::cli::client::events::{Event, Events};
use crate::limits::{ANSWER_BYTES_MAX, CONNECT_TIMEOUT, GET_RETRY_PAUSE, GET_TRIES, PAGE_ROWS_MAX, REQUEST_TIMEOUT};

pub(crate) mod events;

/// A server, and who asks it.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
}

/// Why a call was not answered as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The server's URL can not be one.
    #[error("`{url}` is no URL of a server: {problem}")]
    Url {
        /// The URL as it was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The token can not be one.
    #[error("the token holds characters that no token has")]
    Token,
    /// Nothing answers.
    #[error("no server answers at {url}")]
    NoServer {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke, or took too long.
    #[error("the connection to the server failed")]
    Connection(#[source] reqwest::Error),
    /// The server refused.
    #[error("{}", .0.detail.as_ref().unwrap_or(&.0.title))]
    Refused(Box<Problem>),
    /// It answers, but not as a Muster server does.
    #[error("the answer is not a Muster server's: {0}")]
    Answer(String),
    /// The answer is larger than any should be.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
}

impl ClientError {
    /// What to do next, if anything can be said.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Url { .. } => Some("pass --server URL or set MUSTER_URL: http://127.0.0.1:7700, say".into()),
            Self::Token => Some("a token is one line of letters and digits, as `muster token create` printed it".into()),
            Self::NoServer { .. } => Some("start one with `muster serve`, or say with --server or MUSTER_URL where it is".into()),
            Self::Refused(problem) => problem.hint.clone(),
            Self::Answer(_) => Some("check that --server or MUSTER_URL names a Muster server".into()),
            Self::Connection(_) | Self::TooLarge(_) => None,
        }
    }

    /// The stable word for the reason, if the server gave one.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(problem) => Some(&problem.code),
            _ => None,
        }
    }

    /// Whether the same call may succeed in a moment.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Connection(_) => true,
            Self::Refused(problem) => matches!(problem.status, 429 | 502..=504),
            _ => false,
        }
    }
}

/// What is added to a path: `?name=value`.
pub(crate) type Query<'a> = &'a [(&'a str, Option<String>)];

impl Client {
    /// A client of the server at `server`, which sends `token` with each call.
    pub(crate) fn new(server: &str, token: &str) -> Result<Self, ClientError> {
        let base = parse_url(server)?;
        let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| ClientError::Token)?;
        bearer.set_sensitive(true);
        let http = reqwest::Client::builder()
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, bearer)]))
            .connect_timeout(CONNECT_TIMEOUT)
            // A token is not sent to wherever an answer points.
            .redirect(reqwest::redirect::Policy::none());
        let http = if is_loopback(&base) { http.no_proxy() } else { http };
        Ok(Self { http: http.build().map_err(ClientError::Connection)?, base })
    }

    /// Asks for something. Tried again when the connection breaks, for nothing changes by asking.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: Query<'_>) -> Result<T, ClientError> {
        let answer = self.get_bytes(path, query, "application/json", ANSWER_BYTES_MAX).await?;
        decode(&answer)
    }

    /// Asks for a text of at most `bytes_max` bytes.
    pub(crate) async fn get_text(&self, path: &[&str], bytes_max: usize) -> Result<String, ClientError> {
        let answer = self.get_bytes(path, &[], "text/plain", bytes_max).await?;
        String::from_utf8(answer).map_err(|_| ClientError::Answer("it is no UTF-8".into()))
    }

    /// Asks for bytes of a kind, at most `bytes_max` of them.
    pub(crate) async fn get_raw(&self, path: &[&str], accept: &'static str, bytes_max: usize) -> Result<Vec<u8>, ClientError> {
        self.get_bytes(path, &[], accept, bytes_max).await
    }

    /// Asks for all rows of a listing, page after page, or for at most `limit`.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
        limit: Option<u32>,
    ) -> Result<Vec<T>, ClientError> {
        let mut rows = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let wanted = limit.map_or(PAGE_ROWS_MAX, |limit| limit.saturating_sub(count(&rows)).min(PAGE_ROWS_MAX));
            if wanted == 0 {
                return Ok(rows);
            }
            let mut query = query.to_vec();
            query.extend([("limit", Some(wanted.to_string())), ("cursor", cursor.clone())]);
            let page: Page<T> = self.get(path, &query).await?;
            let brought = !page.items.is_empty();
            rows.extend(page.items.into_iter().take(usize::try_from(wanted).unwrap_or(usize::MAX)));
            match page.next {
                Some(next) if brought && cursor.as_ref() != Some(&next) => cursor = Some(next),
                Some(_) => return Err(ClientError::Answer("its pages do not come to an end".into())),
                None => return Ok(rows),
            }
        }
    }

    /// Sends a value and reads the answer. Sent once.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self.request(method, path, query).timeout(REQUEST_TIMEOUT + CONNECT_TIMEOUT).json(body);
        let answer = self.answer(request).await?;
        decode(&read(answer, ANSWER_BYTES_MAX).await?)
    }

    /// Removes something.
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, path, &[]).timeout(REQUEST_TIMEOUT + CONNECT_TIMEOUT);
        self.answer(request).await.map(drop)
    }

    /// Sends bytes as they come and reads the answer. It may take as long as it takes.
    pub(crate) async fn upload<T: DeserializeOwned, S>(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        length: Option<u64>,
        body: S,
    ) -> Result<T, ClientError>
    where
        S: TryStream + Send + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        Bytes: From<S::Ok>,
    {
        let mut request = self.request(method, path, query).header(CONTENT_TYPE, "application/octet-stream");
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        let answer = self.answer(request.body(reqwest::Body::wrap_stream(body))).await?;
        decode(&read(answer, ANSWER_BYTES_MAX).await?)
    }

    /// Opens a stream of events, from the one after `last` on.
    pub(crate) async fn follow(&self, path: &[&str], last: Option<&str>) -> Result<Follow, ClientError> {
        let mut request = self.request(Method::GET, path, &[]).header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = self.answer(request).await?;
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        if !kind.starts_with("text/event-stream") {
            return Err(ClientError::Answer(format!("a stream of events was asked for, and `{kind}` came")));
        }
        Ok(Follow { answer, events: Events::default() })
    }

    async fn get_bytes(&self, path: &[&str], query: Query<'_>, accept: &'static str, bytes_max: usize) -> Result<Vec<u8>, ClientError> {
        let mut pause = GET_RETRY_PAUSE;
        for _ in 1..GET_TRIES {
            match self.get_once(path, query, accept, bytes_max).await {
                Err(error) if error.passes() => tokio::time::sleep(pause).await,
                done => return done,
            }
            pause *= 2;
        }
        self.get_once(path, query, accept, bytes_max).await
    }

    async fn get_once(&self, path: &[&str], query: Query<'_>, accept: &'static str, bytes_max: usize) -> Result<Vec<u8>, ClientError> {
        let request = self.request(Method::GET, path, query).header(ACCEPT, accept).timeout(REQUEST_TIMEOUT + CONNECT_TIMEOUT);
        read(self.answer(request).await?, bytes_max).await
    }

    fn request(&self, method: Method, path: &[&str], query: Query<'_>) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        let query: Vec<(&str, &String)> = query.iter().filter_map(|(name, value)| value.as_ref().map(|value| (*name, value))).collect();
        let request = self.http.request(method, url);
        if query.is_empty() { request } else { request.query(&query) }
    }

    /// Sends a request; an answer that is an error becomes one.
    async fn answer(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let sent = request.send().await.map_err(reqwest::Error::without_url);
        let answer = sent.map_err(|source| match source.is_connect() {
            true => ClientError::NoServer { url: self.base.as_str().trim_end_matches('/').into(), source },
            false => ClientError::Connection(source),
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = read(answer, ANSWER_BYTES_MAX).await?;
        Err(problem(status, &body))
    }
}

/// A stream of events that is being read.
pub(crate) struct Follow {
    answer: Response,
    events: Events,
}

impl Follow {
    /// The next event; none when the stream has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(event) = self.events.next() {
                return Ok(Some(event));
            }
            match self.answer.chunk().await.map_err(|error| ClientError::Connection(error.without_url()))? {
                Some(piece) => self.events.feed(&piece).map_err(|error| ClientError::Answer(error.to_string()))?,
                None => return Ok(None),
            }
        }
    }
}

/// A bar on standard error that counts bytes; not shown where there is no terminal.
pub(crate) fn byte_bar(what: &'static str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_message(what);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn parse_url(server: &str) -> Result<Url, ClientError> {
    let shown = server.chars().take(200).collect::<String>();
    let wrong = |problem: String| ClientError::Url { url: shown.clone(), problem };
    let url = Url::parse(server).map_err(|error| wrong(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong("it begins with http:// or https:// and names a host".into()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Not shown again: it may be a secret.
        return Err(ClientError::Url { url: "…@…".into(), problem: "a user or a password has no place in it".into() });
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it ends with its path".into()));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

async fn read(mut answer: Response, bytes_max: usize) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| ClientError::Connection(error.without_url()))? {
        if bytes.len() + piece.len() > bytes_max {
            return Err(ClientError::TooLarge(bytes_max));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| ClientError::Answer(error.to_string()))
}

/// The problem that a body tells, or one made of the status alone when something between here and the server answered.
fn problem(status: StatusCode, body: &[u8]) -> ClientError {
    let told = serde_json::from_slice::<Problem>(body);
    ClientError::Refused(Box::new(told.unwrap_or_else(|_| Problem {
        title: format!("the server answered {status}"),
        status: status.as_u16(),
        code: String::new(),
        detail: None,
        hint: None,
        request: None,
    })))
}

fn count<T>(rows: &[T]) -> u32 {
    u32::try_from(rows.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_scheme_and_host_alone() {
        for good in ["http://127.0.0.1:7700", "https://muster.example/", "https://h/base/path"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in ["", "muster.example", "ftp://h", "http://", "http://u:secret@h", "http://h/?a=b", "http://h/#x"] {
            let error = parse_url(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_path_is_escaped_and_a_base_is_kept() {
        let url = |base: &str, path: &[&str], query: Query<'_>| {
            Client::new(base, "t").unwrap().request(Method::GET, path, query).build().unwrap().url().to_string()
        };
        assert_eq!(url("http://h", &["runs", "a/b?c"], &[]), "http://h/v1/runs/a%2Fb%3Fc");
        assert_eq!(url("http://h/x/", &["runs"], &[("a", Some("b c".into())), ("d", None)]), "http://h/x/v1/runs?a=b+c");
    }

    #[test]
    fn a_token_is_not_shown() {
        assert!(matches!(Client::new("http://h", "a\nb"), Err(ClientError::Token)));
        let request = Client::new("http://h", "secret").unwrap().request(Method::GET, &[], &[]);
        assert!(!format!("{request:?}").contains("secret"));
    }

    #[test]
    fn a_problem_gives_its_detail_its_hint_and_its_code() {
        let body = br#"{"title":"Conflict","status":409,"code":"contents-missing","detail":"2 contents lack","hint":"push again"}"#;
        let error = problem(StatusCode::CONFLICT, body);
        assert_eq!(
            (error.to_string().as_str(), error.hint().as_deref(), error.code()),
            ("2 contents lack", Some("push again"), Some("contents-missing"))
        );
        let error = problem(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(error.to_string(), "the server answered 502 Bad Gateway");
        assert!(error.passes());
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (url, here) in [("http://127.0.0.1:1", true), ("http://[::1]", true), ("http://localhost", true), ("http://10.0.0.1", false)] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), here, "{url}");
        }
    }
}
