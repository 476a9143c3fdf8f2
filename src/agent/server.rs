//! The server as an agent sees it: its address, and whom it is trusted to be.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio_tungstenite::Connector;

use super::state::Secret;
use crate::api::{Problem, Register, Registered};
use crate::limits::{BODY_BYTES_MAX, REQUEST_TIMEOUT};
use crate::machine::with_causes;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause that a server can ask for with `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Why the server's address or certificate can not be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The URL is none, or not one of http or https.
    #[error("`{0}` is no http or https URL without a query")]
    Url(String),
    /// The certificates can not be read.
    #[error("the certificates of the authority hold no usable one")]
    Ca,
    /// The HTTP client can not be made.
    #[error("the HTTP client")]
    Client(#[from] reqwest::Error),
}

/// What came of asking the server.
#[derive(Debug)]
pub enum Asked {
    /// It answered.
    Answer(Box<Registered>),
    /// It refused.
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The stable word for why, if it gave one.
        code: Option<String>,
        /// What it said about it.
        said: String,
        /// How long to stay away at least.
        retry_after: Option<Duration>,
    },
    /// It was not reached, or did not answer what can be understood.
    Unreachable(String),
}

/// The server.
#[derive(Debug, Clone)]
pub struct Server {
    base: String,
    client: reqwest::Client,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Server {
    /// Takes the server's URL and, as PEM, the only authority that its certificate may be from; the machine's authorities if none.
    ///
    /// # Errors
    /// When the URL or the certificates are not of use.
    pub fn new(url: &str, ca: Option<&[u8]>) -> Result<Self, ServerError> {
        let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(parsed) = parsed.filter(|url| url.query().is_none() && url.fragment().is_none() && url.username().is_empty()) else {
            return Err(ServerError::Url(url.to_owned()));
        };
        // A redirect would carry the token to wherever it points; a proxy is not used by the session either.
        let mut client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .user_agent(concat!("muster-agent/", env!("CARGO_PKG_VERSION")));
        let mut tls = None;
        if let Some(pem) = ca {
            client = client.tls_certs_only(Certificate::from_pem_bundle(pem)?);
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots.add(certificate.map_err(|_| ServerError::Ca)?).map_err(|_| ServerError::Ca)?;
            }
            if roots.is_empty() {
                return Err(ServerError::Ca);
            }
            tls = Some(Arc::new(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()));
        }
        Ok(Self { base: parsed.as_str().trim_end_matches('/').to_owned(), client: client.build()?, tls })
    }

    /// The server's URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Whether what is said to it can be read on the way. There is no way to a server on this machine.
    pub fn is_plain(&self) -> bool {
        let here = |url: Url| match url.host_str() {
            Some("localhost" | "[::1]") => true,
            host => host.and_then(|host| host.parse::<Ipv4Addr>().ok()).is_some_and(|address| address.is_loopback()),
        };
        self.base.starts_with("http:") && !Url::parse(&self.base).is_ok_and(here)
    }

    /// The URL of a session at a path that the server named; none if it is not a path.
    pub(super) fn session_url(&self, path: &str) -> Option<String> {
        // `http` becomes `ws`, `https` becomes `wss`. The path begins with a slash, so that it can not change the host.
        let rest = self.base.strip_prefix("http")?;
        path.starts_with('/').then(|| format!("ws{rest}{path}"))
    }

    /// How a session trusts the server.
    pub(super) fn connector(&self) -> Option<Connector> {
        self.tls.clone().map(Connector::Rustls)
    }

    /// Registers or polls, which is the same. `key` goes along when the agent asks to be admitted.
    pub(super) async fn register(&self, body: &Register, bearer: &Secret, key: Option<&Secret>) -> Asked {
        let mut request = self.client.post(format!("{}/v1/register", self.base)).bearer_auth(bearer.reveal()).json(body);
        if let Some(key) = key {
            request = request.header("idempotency-key", key.reveal());
        }
        match request.send().await {
            Ok(response) => read(response).await,
            Err(error) => Asked::Unreachable(with_causes(&error)),
        }
    }
}

async fn read(mut response: reqwest::Response) -> Asked {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(piece)) if body.len() + piece.len() <= BODY_BYTES_MAX => body.extend_from_slice(&piece),
            Ok(Some(_)) => return Asked::Unreachable(format!("an answer of more than {BODY_BYTES_MAX} bytes")),
            Ok(None) => break,
            Err(error) => return Asked::Unreachable(with_causes(&error)),
        }
    }
    if status.is_success() {
        return match serde_json::from_slice(&body) {
            Ok(registered) => Asked::Answer(Box::new(registered)),
            // The error's text could quote the credential.
            Err(error) => Asked::Unreachable(format!("an answer that is not understood, at column {}", error.column())),
        };
    }
    let (code, said) = match serde_json::from_slice::<Problem>(&body) {
        Ok(Problem { title, code, detail, hint, .. }) => {
            let hint = hint.map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            (Some(code), format!("{}{hint}", detail.unwrap_or(title)))
        }
        Err(_) => (None, String::from("no reason that is understood")),
    };
    Asked::Refused { status, code, said, retry_after }
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    let seconds = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}
