//! The URLs of other servers, for machines that still call them: each is there if its section is in `muster.toml`.
//!
//! Such a machine has no credential of its own. Who may call is said by networks, and by a token if the section names one; as whom and
//! for which labels an agent is admitted is said by the section too. A URL with a token in it is logged nowhere: of a request, the log
//! has the path alone.

pub(crate) mod dynaslave;
pub(crate) mod swarm;

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use subtle::ConstantTimeEq as _;

use crate::api::{Register, TokenKind};
use crate::config::compat as config;
use crate::http::App;
use crate::http::problem::Fault;
use crate::http::receive::body;
use crate::journal::now_us;
use crate::limits::{AGENT_LABELS_MAX, BODY_BYTES_MAX, CONFIG_BYTES_MAX};
use crate::names::{Digest, LabelName, TeamName};
use crate::roster::visitors;
use crate::store::tokens::TokenRow;
use crate::telemetry::RegistrationOutcome;

/// What the sections of `[compat]` say.
#[derive(Default)]
pub struct Compat {
    dynaslave: Option<dynaslave::Rules>,
    swarm: Option<swarm::Rules>,
}

impl Compat {
    /// Takes the configuration, and reads the tokens' files.
    ///
    /// # Errors
    /// When a token's file can not be read, or is empty.
    pub fn open(config: &config::Compat) -> Result<Self, String> {
        let dynaslave = config.dynaslave.as_ref().map(|section| {
            let secret = secret("compat.dynaslave.token_file", section.token_file.as_deref())?;
            let door = Door::new(visitors::DYNASLAVE, &section.team, &section.labels, &section.default_labels, &section.networks, secret);
            Ok::<_, String>(dynaslave::Rules { door, prefix: section.prefix.clone(), any_host: section.any_host })
        });
        let swarm = config.swarm.as_ref().map(|section| {
            let secret = secret("compat.swarm.token_file", section.token_file.as_deref())?;
            let door = Door::new(visitors::SWARM, &section.team, &section.labels, &section.default_labels, &section.networks, secret);
            Ok::<_, String>(swarm::Rules { door, ssh: section.ssh })
        });
        Ok(Self { dynaslave: dynaslave.transpose()?, swarm: swarm.transpose()? })
    }
}

/// The hash of what a token's file holds.
fn secret(setting: &str, file: Option<&Path>) -> Result<Option<Digest>, String> {
    let Some(file) = file else { return Ok(None) };
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|opened| opened.take(CONFIG_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| format!("{setting}: {} can not be read: {error}", file.display()))?;
    match text.trim() {
        "" => Err(format!("{setting}: {} is empty", file.display())),
        token => Ok(Some(Digest::of(token.as_bytes()))),
    }
}

/// Who may call the URLs of one section, and what an agent is admitted with.
struct Door {
    /// What stands for a join token. Its id is the section's name.
    rule: TokenRow,
    default_labels: Vec<LabelName>,
    networks: Vec<IpNet>,
    secret: Option<Digest>,
}

/// The token in a query.
#[derive(Deserialize)]
struct InQuery {
    token: Option<String>,
}

impl Door {
    fn new(
        section: &str,
        team: &TeamName,
        labels: &[LabelName],
        default_labels: &[LabelName],
        networks: &[IpNet],
        secret: Option<Digest>,
    ) -> Self {
        let rule = TokenRow {
            id: section.to_owned(),
            kind: TokenKind::Join,
            team: Some(team.clone()),
            labels: labels.iter().chain(default_labels).cloned().collect(),
            // It fits no credential: nobody comes with this one.
            secret_hash: String::new(),
            made_us: now_us(),
            revoked_us: None,
        };
        Self { rule, default_labels: default_labels.to_vec(), networks: networks.to_vec(), secret }
    }

    /// Lets a call in, and answers from which address it comes.
    fn enter(&self, request: &Request) -> Result<IpAddr, Fault> {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let ConnectInfo(peer) = peer.ok_or_else(|| Fault::internal("the connection's other side is not known"))?;
        // On a socket for both, an IPv4 address is written as one of IPv6.
        let address = peer.ip().to_canonical();
        if !self.networks.iter().any(|network| network.contains(&address)) {
            return Err(Fault::forbidden("network", format!("{address} is in none of the networks that may call this"))
                .with_hint(format!("an admin lists them in `{}.networks` of muster.toml", self.rule.id)));
        }
        let Some(secret) = &self.secret else { return Ok(address) };
        let in_query = serde_urlencoded::from_str::<InQuery>(request.uri().query().unwrap_or_default()).ok().and_then(|query| query.token);
        let fits = |token: String| bool::from(Digest::of(token.trim().as_bytes()).as_bytes().ct_eq(secret.as_bytes()));
        if [in_header(request.headers()), in_query].into_iter().flatten().any(fits) {
            return Ok(address);
        }
        Err(Fault::unauthorized("the request has no token, or another one than this takes")
            .with_hint(format!("the token is in the file that `{}.token_file` of muster.toml names", self.rule.id)))
    }

    /// Takes the labels that are asked for, separated by spaces, and adds those that every agent carries.
    fn labels(&self, asked: &str) -> Result<Vec<LabelName>, Fault> {
        let mut labels: Vec<LabelName> = Vec::new();
        for (at, text) in asked.split_ascii_whitespace().enumerate() {
            let wrong = |problem: String| Err(Fault::unprocessable("claim", format!("labels: {problem}")));
            if at >= AGENT_LABELS_MAX {
                return wrong(format!("an agent carries at most {AGENT_LABELS_MAX}"));
            }
            match text.parse::<LabelName>() {
                Err(error) => return wrong(error.to_string()),
                Ok(label) if !self.rule.labels.contains(&label) => {
                    let fault = Fault::forbidden("labels", format!("the label `{label}` may not be asked for here"));
                    return Err(fault.with_hint(format!("an admin lists those that may in `{}.labels` of muster.toml", self.rule.id)));
                }
                Ok(label) if labels.contains(&label) => {}
                Ok(label) => labels.push(label),
            }
        }
        for label in &self.default_labels {
            if !labels.contains(label) {
                labels.push(label.clone());
            }
        }
        Ok(labels)
    }

    /// Takes the word of an agent that was let in.
    async fn visit(&self, app: &App, claims: Register) -> Result<(), Fault> {
        match app.roster.visit(&self.rule, claims).await {
            Ok(true) => app.metrics.registered(RegistrationOutcome::Admitted),
            Ok(false) => {
                app.metrics.polls.inc();
            }
            Err(error) => {
                app.metrics.registered(RegistrationOutcome::Refused);
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// The token in a header: a bearer's, or the password that goes with any user's name.
fn in_header(headers: &HeaderMap) -> Option<String> {
    let (scheme, text) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(text.to_owned());
    }
    let pair = scheme.eq_ignore_ascii_case("basic").then(|| BASE64.decode(text.trim()).ok()).flatten()?;
    let (_, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Some(password.to_owned())
}

/// What a request asks: in its query, and in its body if that is a form. What is not known is passed over, as these URLs always did.
async fn asked<T: DeserializeOwned>(request: Request) -> Result<T, Fault> {
    let (parts, content) = request.into_parts();
    let mut text = parts.uri.query().unwrap_or_default().to_owned();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
        let form = body(content, BODY_BYTES_MAX).await?;
        let form = std::str::from_utf8(&form).map_err(|_| Fault::bad_request("form", "the form is not text"))?;
        text = format!("{text}&{form}");
    }
    serde_urlencoded::from_str(&text).map_err(|error| Fault::bad_request("query", format!("what is asked can not be read: {error}")))
}

/// An error for routes whose section is not there.
fn off(section: &str) -> Fault {
    Fault::not_found("no-route", "there is no such route").with_hint(format!("an admin adds `[{section}]` to muster.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> Door {
        let names = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<LabelName>>();
        let networks = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        Door::new("compat.test", &"media".parse().unwrap(), &names(&["a", "b"]), &names(&["all"]), &networks, Some(Digest::of(b"s:cret")))
    }

    fn request(address: &str, authorization: Option<String>, uri: &str) -> Request {
        let mut request = Request::builder().uri(uri).extension(ConnectInfo(SocketAddr::new(address.parse().unwrap(), 1)));
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.body(axum::body::Body::empty()).unwrap()
    }

    #[test]
    fn a_call_is_let_in_from_its_network_with_the_token_however_it_is_sent() {
        let basic = |pair: &str| Some(format!("Basic {}", BASE64.encode(pair)));
        let bearer = |token: &str| Some(format!("bearer {token}"));
        for (authorization, uri) in [
            (bearer("s:cret"), "/"),
            (basic("anybody:s:cret"), "/"),
            (basic(":s:cret"), "/"),
            (None, "/?a=1&token=s%3Acret"),
            (bearer("other"), "/?token=s:cret"),
        ] {
            for address in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
                assert!(door().enter(&request(address, authorization.clone(), uri)).is_ok(), "{authorization:?} {uri}");
            }
            for address in ["11.0.0.1", "127.0.0.1", "::1", "::ffff:11.0.0.1", "fe80::1"] {
                assert!(door().enter(&request(address, authorization.clone(), uri)).is_err(), "{address}");
            }
        }
        let odd = [
            None,
            bearer(""),
            bearer("s"),
            basic("s:cret"),
            basic("s:cret:"),
            basic("none"),
            Some("Basic ?".into()),
            Some("s:cret".into()),
        ];
        for authorization in odd {
            assert!(door().enter(&request("10.1.2.3", authorization.clone(), "/?token=&x=s:cret")).is_err(), "{authorization:?}");
        }
    }

    #[test]
    fn labels_are_those_that_may_be_asked_for_and_those_that_all_carry() {
        let texts = |asked| door().labels(asked).map(|labels| labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        assert_eq!(texts(" b  a b\ta ").unwrap(), "b a all");
        assert_eq!(texts("").unwrap(), "all");
        assert_eq!(texts("all a").unwrap(), "all a");
        assert!(texts("c").is_err() && texts("a,b").is_err() && texts(&"a ".repeat(AGENT_LABELS_MAX + 1)).is_err());
    }
}
