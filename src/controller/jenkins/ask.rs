//! One request: its turn, its credential, and what its answer means.

use std::io::Read as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::controller::jenkins::words::{clean, words};
use crate::controller::jenkins::{About, Jenkins, JenkinsError, Permission};
use crate::limits::{CONTROLLER_ERROR_BYTES_MAX, CONTROLLER_TOKEN_BYTES_MAX};

/// What a request does there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// It only looks, so it can be repeated; of its answer so many bytes are read.
    Read(usize),
    /// It changes something. If its answer is lost, nobody knows whether it did.
    Write,
}

/// An answer that says more than that the controller is away or does not let somebody in.
pub(super) struct Answer {
    pub(super) url: Url,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// All of it for a success of what looks, else its beginning.
    pub(super) body: Vec<u8>,
}

/// Turns to ask: so many at once, and so many a second.
pub(super) struct Turns {
    places: Semaphore,
    gap: Duration,
    next: Mutex<Instant>,
}

impl Turns {
    pub(super) fn new(at_once: usize, per_second: u32) -> Self {
        Self { places: Semaphore::new(at_once.max(1)), gap: Duration::from_secs(1) / per_second.max(1), next: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn, which lasts until what is returned is dropped.
    async fn wait(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        let place = self.places.acquire().await.ok();
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*next).max(Instant::now());
            *next = at + self.gap;
            at
        };
        tokio::time::sleep_until(at.into()).await;
        place
    }
}

/// Whether a refusal of the token is to be believed.
///
/// A controller that restarts refuses a good token for a moment, so that it counts only when it lasts, and nothing else is heard meanwhile.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// The first refusal of those in a row, and the last.
    refused: Option<(Instant, Instant)>,
}

impl Doubt {
    /// Something else was heard, or nothing at all.
    pub(super) fn clear(&mut self) {
        self.refused = None;
    }

    /// It was refused once more; whether that lasts. One that was refused long ago and not asked since begins anew.
    pub(super) fn refused(&mut self, now: Instant, unsure: Duration) -> bool {
        let in_a_row = self.refused.filter(|(_, last)| now.duration_since(*last) <= unsure);
        let (first, _) = in_a_row.unwrap_or((now, now));
        self.refused = Some((first, now));
        now.duration_since(first) >= unsure
    }
}

impl Jenkins {
    /// Asks as the user. What comes back is a success, or an error that the caller knows the meaning of.
    pub(super) async fn ask(&self, act: Act, request: RequestBuilder) -> Result<Answer, JenkinsError> {
        let token = self.token().await?;
        let asked = self.send(act, request.basic_auth(&self.settings.user, Some(token))).await;
        let mut doubt = self.doubt.lock().unwrap_or_else(PoisonError::into_inner);
        match asked {
            Ok(answer) => {
                doubt.clear();
                drop(doubt);
                self.note(&answer);
                Ok(answer)
            }
            Err(Failed::Refused(why)) => match doubt.refused(Instant::now(), self.settings.unsure) {
                true => Err(JenkinsError::Credentials(why)),
                false => Err(JenkinsError::Away(format!("{why}, which it does while it restarts, too"))),
            },
            Err(Failed::Other(error)) => {
                doubt.clear();
                Err(error)
            }
        }
    }

    /// Asks as nobody, for what is everybody's.
    pub(super) async fn ask_as_nobody(&self, act: Act, request: RequestBuilder) -> Result<Answer, JenkinsError> {
        self.send(act, request).await.map_err(|failed| match failed {
            Failed::Refused(why) => JenkinsError::Refused(why),
            Failed::Other(error) => error,
        })
    }

    async fn send(&self, act: Act, request: RequestBuilder) -> Result<Answer, Failed> {
        let _turn = self.turns.wait().await;
        let response = request.send().await.map_err(|error| broken(act, &error))?;
        let (url, status, headers) = (response.url().clone(), response.status(), response.headers().clone());
        let body = match act {
            Act::Read(bytes_max) if status.is_success() => whole(response, bytes_max).await?,
            // Pages of errors are long, and what a write answers is not asked for. What is not read costs a connection, which is less.
            Act::Read(_) | Act::Write => beginning(response).await,
        };
        let answer = Answer { url, status, headers, body };
        answer.judge(act)
    }

    /// Reads the token from its file, each time anew.
    async fn token(&self) -> Result<String, JenkinsError> {
        let file = self.settings.token_file.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            std::fs::File::open(file)?.take(CONTROLLER_TOKEN_BYTES_MAX).read_to_string(&mut text)?;
            let token = text.trim();
            let fits = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
            if fits { Ok(token.to_owned()) } else { Err(std::io::Error::other("it is not one line with a token")) }
        });
        let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        read.map_err(|source| JenkinsError::Token { file: self.settings.token_file.clone(), source })
    }

    /// Keeps what every answer of Jenkins itself says: its version, and which start of it this is.
    fn note(&self, answer: &Answer) {
        if let Some(about) = About::of(&answer.headers) {
            *self.about.lock().unwrap_or_else(PoisonError::into_inner) = Some(about);
        }
    }
}

/// Why there is no answer.
enum Failed {
    /// The credential is not taken: perhaps for now, perhaps for ever.
    Refused(String),
    Other(JenkinsError),
}

impl From<JenkinsError> for Failed {
    fn from(error: JenkinsError) -> Self {
        Self::Other(error)
    }
}

/// What it means that a request broke.
fn broken(act: Act, error: &reqwest::Error) -> JenkinsError {
    let why = if error.is_timeout() { "it took too long".to_owned() } else { clean(&root(error).to_string()) };
    // Without a connection nothing was sent.
    if act != Act::Write || error.is_connect() { JenkinsError::Away(why) } else { JenkinsError::Lost(why) }
}

/// The cause at the bottom. Those above it have the URL in their text, and say nothing more.
fn root<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

async fn whole(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, JenkinsError> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| broken(Act::Read(bytes_max), &error))? {
        if bytes.len() + piece.len() > bytes_max {
            return Err(JenkinsError::Odd(format!("more than {bytes_max} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// What a body begins with, as far as it comes.
async fn beginning(mut response: Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        bytes.extend_from_slice(&piece);
        if bytes.len() >= CONTROLLER_ERROR_BYTES_MAX {
            bytes.truncate(CONTROLLER_ERROR_BYTES_MAX);
            break;
        }
    }
    bytes
}

impl Answer {
    /// Tells apart what says something about the controller, and what about the request.
    fn judge(self, act: Act) -> Result<Self, Failed> {
        match self.status {
            StatusCode::UNAUTHORIZED => Err(Failed::Refused("it refuses the token (401)".into())),
            StatusCode::FORBIDDEN => Err(self.forbidden()),
            StatusCode::SERVICE_UNAVAILABLE => Err(JenkinsError::Away(self.words()).into()),
            // Something between here and there has no answer from it, which may have done it all the same.
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT if act == Act::Write => Err(JenkinsError::Lost(self.words()).into()),
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Err(JenkinsError::Away(self.words()).into()),
            _ => Ok(self),
        }
    }

    fn forbidden(&self) -> Failed {
        let header = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        match header("x-required-permission") {
            // The credential did not arrive: something in between took it away, say.
            Some(_) if header("x-you-are-authenticated-as") == Some("anonymous") => {
                Failed::Refused("it takes the user for anonymous (403)".into())
            }
            Some(id) => Failed::Other(JenkinsError::Permission(Permission::of(id))),
            None if String::from_utf8_lossy(&self.body).contains("No valid crumb") => {
                Failed::Refused("it asks for a crumb, as it does of a password (403)".into())
            }
            None => Failed::Other(JenkinsError::Refused(self.words())),
        }
    }

    /// The controller's own words.
    pub(super) fn words(&self) -> String {
        words(self.status, &self.headers, &self.body)
    }

    /// A header's text.
    pub(super) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<String> {
        self.headers.get(name)?.to_str().ok().map(ToOwned::to_owned)
    }

    /// Takes the redirect with which Jenkins says that a write is done. It leads to the node or to the list of nodes, and is not followed.
    pub(super) fn done(self, what: &str) -> Result<(), JenkinsError> {
        if !self.status.is_redirection() {
            return Err(self.unexpected(what));
        }
        let to = self.header(LOCATION).unwrap_or_default();
        // To a page to log in, say, that something between here and there has.
        let is_jenkins = self.url.join(&to).is_ok_and(|to| to.path().split('/').any(|segment| segment == "computer"));
        if is_jenkins { Ok(()) } else { Err(JenkinsError::Odd(format!("a redirect to `{}`", clean(&to)))) }
    }

    /// Takes a success that has a body.
    pub(super) fn ok(self, what: &str) -> Result<Vec<u8>, JenkinsError> {
        if self.status == StatusCode::OK { Ok(self.body) } else { Err(self.unexpected(what)) }
    }

    /// What a status means that the caller had no other meaning for. `what` is what was asked of.
    pub(super) fn unexpected(&self, what: &str) -> JenkinsError {
        match self.status {
            StatusCode::NOT_FOUND => JenkinsError::Missing(what.into()),
            StatusCode::BAD_REQUEST => JenkinsError::Refused(self.words()),
            status if status.is_redirection() => {
                JenkinsError::Odd(format!("a redirect to `{}`", clean(&self.header(LOCATION).unwrap_or_default())))
            }
            status => JenkinsError::Odd(format!("{}: {}", status.as_u16(), self.words())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_believed_when_it_lasts_and_nothing_else_is_heard() {
        let (begin, unsure) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut doubt = Doubt::default();
        assert_eq!([0, 15, 30, 45, 59].map(|seconds| doubt.refused(at(seconds), unsure)), [false; 5]);
        assert!(doubt.refused(at(60), unsure) && doubt.refused(at(75), unsure));
        doubt.clear();
        assert!(!doubt.refused(at(76), unsure) && doubt.refused(at(136), unsure));
    }

    #[test]
    fn refusals_of_two_restarts_with_nothing_asked_between_do_not_add_up() {
        let (begin, unsure) = (Instant::now(), Duration::from_secs(60));
        let mut doubt = Doubt::default();
        assert!(!doubt.refused(begin, unsure));
        assert!(!doubt.refused(begin + Duration::from_secs(600), unsure));
    }
}
