//! The server as an agent sees it: its address, and whom it is trusted to be.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::mpsc;
use tokio_tungstenite::Connector;

use super::state::Secret;
use crate::api::{Bundle, Page, Problem, Register, Registered};
use crate::limits::{BODY_BYTES_MAX, CONTENTS_TIMEOUT, MANIFEST_BYTES_MAX, REQUEST_TIMEOUT};
use crate::machine::with_causes;
use crate::names::{BundleName, Digest, NameError};

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

impl Server {
    /// The newest version of a bundle.
    pub(super) async fn newest(&self, bundle: &BundleName, token: &Secret) -> Result<Digest, String> {
        let body = self.get(&format!("/v1/bundles/{bundle}?limit=1"), token, BODY_BYTES_MAX).await?;
        let page: Page<Bundle> = serde_json::from_slice(&body).map_err(|error| format!("an answer that is not understood: {error}"))?;
        let newest = page.items.first().ok_or_else(|| format!("there is no bundle `{bundle}`"))?;
        newest.version.parse().map_err(|error: NameError| error.to_string())
    }

    /// The manifest of a version of a bundle, as text.
    pub(super) async fn manifest(&self, bundle: &BundleName, version: &Digest, token: &Secret) -> Result<Vec<u8>, String> {
        self.get(&format!("/v1/bundles/{bundle}/{version}/manifest"), token, MANIFEST_BYTES_MAX).await
    }

    /// Has contents of a version sent, and passes the pack on.
    pub(super) async fn contents(
        &self,
        bundle: &BundleName,
        version: &Digest,
        contents: &[u32],
        token: &Secret,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), String> {
        let body: Vec<u8> = contents.iter().flat_map(|index| index.to_le_bytes()).collect();
        let url = format!("{}/v1/bundles/{bundle}/{version}/contents", self.base);
        let request = self.client.post(url).bearer_auth(token.reveal()).timeout(CONTENTS_TIMEOUT).body(body);
        let mut response = request.send().await.map_err(|error| with_causes(&error))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        while let Some(piece) = response.chunk().await.map_err(|error| with_causes(&error))? {
            if to.send(piece).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn get(&self, path: &str, token: &Secret, bytes_max: usize) -> Result<Vec<u8>, String> {
        let request = self.client.get(format!("{}{path}", self.base)).bearer_auth(token.reveal()).timeout(CONTENTS_TIMEOUT);
        let mut response = request.send().await.map_err(|error| with_causes(&error))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| with_causes(&error))? {
            if body.len() + piece.len() > bytes_max {
                return Err(format!("an answer of more than {bytes_max} bytes"));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

/// What the server said when it refused.
async fn refused(response: reqwest::Response) -> String {
    match read(response).await {
        Asked::Refused { status, said, .. } => format!("the server refused with status {}: {said}", status.as_u16()),
        Asked::Unreachable(why) => why,
        Asked::Answer(_) => "the server gave another answer than was asked for".into(),
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
