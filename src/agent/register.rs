//! Registers with the server, and polls it from then on: the same call, again and again.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::backoff::Backoff;
use super::calls::Machine;
use super::server::{Asked, Server};
use super::session::{Ending, serve};
use super::state::{Secret, State, StateError};
use super::{AgentError, JoinToken};
use crate::api::{AgentState, Register, Registered};
use crate::limits::{POLL_INTERVAL_MAX, POLL_INTERVAL_MIN, SESSION_AGAIN_WITHIN, SESSION_SILENCE_MAX};
use crate::machine::with_causes;

/// One agent on its way through life.
pub(super) struct Member {
    pub(super) server: Server,
    pub(super) state: State,
    pub(super) join_token: JoinToken,
    pub(super) claim: Register,
    pub(super) machine: Arc<Machine>,
    pub(super) ending: Ending,
    /// The session's task.
    pub(super) sessions: TaskTracker,
}

/// The session as the polls see it: open or not, and not opened too often.
struct Sessions {
    open: Option<(Instant, JoinHandle<()>)>,
    backoff: Backoff,
    not_before: Instant,
}

impl Sessions {
    /// Waits until it is time to poll. When the session ends meanwhile, that is soon: only a poll brings another, and one that was given up
    /// by the server finds out by it.
    async fn pause(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        if let Some((_, task)) = self.open.as_mut().filter(|(_, task)| !task.is_finished()) {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                _ = task => {}
            }
            let soon = SESSION_AGAIN_WITHIN.mul_f64(rand::random_range(0.1..=1.0));
            tokio::time::sleep_until(until.min(Instant::now() + soon)).await;
        } else {
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Member {
    /// Polls until there is nothing to go on with, and answers why.
    pub(super) async fn poll(&self) -> AgentError {
        let mut backoff = Backoff::new();
        let mut sessions = Sessions { open: None, backoff: Backoff::new(), not_before: Instant::now() };
        let mut state = None;
        loop {
            // What it keeps there, and what it was brought to, are gone with it: going on would be another agent under this one's name.
            if !self.machine.root.is_in_place() {
                return AgentError::RootGone(self.machine.root.path().display().to_string());
            }
            let pause = match self.round(&mut backoff, &mut sessions, &mut state).await {
                Ok(pause) => pause,
                Err(error) => {
                    let pause = backoff.pause();
                    tracing::error!("registering failed; trying again in {pause:.1?}: {}", with_causes(&error));
                    pause
                }
            };
            sessions.pause(pause).await;
        }
    }

    /// Asks once, and does what the answer says. Answers when to ask again.
    async fn round(&self, backoff: &mut Backoff, sessions: &mut Sessions, state: &mut Option<AgentState>) -> Result<Duration, AgentError> {
        let credential = self.state.credential()?;
        match self.ask(credential.as_ref()).await? {
            Asked::Answer(registered) => {
                self.heard(&registered, credential.is_some(), state)?;
                let pause = Duration::from_millis(registered.poll_after_ms).clamp(POLL_INTERVAL_MIN, POLL_INTERVAL_MAX);
                backoff.keep_within(pause);
                sessions.backoff.keep_within(pause);
                backoff.reset();
                self.attend_session(&registered, sessions)?;
                // One that is wanted and may not be opened yet is opened as soon as it may be.
                let early = registered.session.is_some() && sessions.open.is_none();
                Ok(if early { pause.min(sessions.not_before.saturating_duration_since(Instant::now())) } else { pause })
            }
            Asked::Refused { code, said, .. } if credential.is_some() && code.as_deref() == Some("other-name") => {
                let pause = backoff.pause();
                tracing::warn!(
                    "this agent's credential is another's; asking to be admitted as `{}` in {pause:.1?}: {said}",
                    self.claim.name
                );
                // Without a join token it could not be admitted, and under its former name it still can.
                self.join_token.read().await?;
                self.state.forget()?;
                Ok(pause)
            }
            Asked::Refused { status, said, retry_after, .. } => {
                // What is wrong with the token or with what is said does not pass by itself.
                let lasting = credential.is_none()
                    && matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::UNPROCESSABLE_ENTITY);
                let pause = if lasting { backoff.longest_pause() } else { backoff.pause() }.max(retry_after.unwrap_or_default());
                if lasting {
                    tracing::error!(
                        "the server does not admit this agent; asking again in {pause:.1?}, with what is in the token's file then: {said}"
                    );
                } else if status == StatusCode::UNAUTHORIZED && credential.is_some() {
                    tracing::warn!(
                        "the server does not know this agent's credential any more; asking to be admitted anew in {pause:.1?}: {said}"
                    );
                    self.state.forget()?;
                } else {
                    tracing::warn!("the server refused with status {}; trying again in {pause:.1?}: {said}", status.as_u16());
                }
                Ok(pause)
            }
            Asked::Unreachable(why) => {
                let pause = backoff.pause();
                // The session was lost with the server; it is not to blame for that, and the polls' own pauses spread the agents.
                sessions.backoff.reset();
                tracing::warn!("the server {} is not reached; trying again in {pause:.1?}: {why}", self.server.base());
                Ok(pause)
            }
        }
    }

    async fn ask(&self, credential: Option<&Secret>) -> Result<Asked, AgentError> {
        if let Some(credential) = credential {
            return Ok(self.server.register(&self.claim, credential, None).await);
        }
        let key = self.state.registration_key()?;
        match self.join_token.read().await {
            Ok(token) => Ok(self.server.register(&self.claim, &token, Some(&key)).await),
            // It may be there again in a moment: whoever turns it over may have removed it first.
            Err(error) => Ok(Asked::Unreachable(with_causes(&error))),
        }
    }

    fn heard(&self, registered: &Registered, known: bool, state: &mut Option<AgentState>) -> Result<(), AgentError> {
        let agent = &registered.agent;
        match registered.credential.as_deref().and_then(Secret::from_text) {
            Some(credential) => {
                self.state.admitted(&credential)?;
                tracing::info!(agent.name = agent.name, agent.id = agent.id, "admitted as `{}` by {}", agent.name, self.server.base());
            }
            None if known => {}
            None => return Err(AgentError::NoCredential),
        }
        if state.replace(agent.state) != Some(agent.state) {
            let reason = agent.reason.as_deref().unwrap_or("no reason given").escape_default();
            tracing::info!(agent.name = agent.name, "`{}` is {}: {reason}", agent.name, agent.state.as_str());
        }
        Ok(())
    }

    fn attend_session(&self, registered: &Registered, sessions: &mut Sessions) -> Result<(), StateError> {
        match sessions.open.take() {
            Some((since, task)) if task.is_finished() => {
                if since.elapsed() >= SESSION_SILENCE_MAX {
                    sessions.backoff.reset();
                }
                sessions.not_before = Instant::now() + sessions.backoff.pause();
            }
            open => sessions.open = open,
        }
        let Some(path) = registered.session.clone() else { return Ok(()) };
        if sessions.open.is_some() || Instant::now() < sessions.not_before {
            return Ok(());
        }
        let Some(credential) = self.state.credential()? else { return Ok(()) };
        let (server, machine, ending) = (self.server.clone(), self.machine.clone(), self.ending.clone());
        let instance = self.claim.instance.clone().unwrap_or_default();
        let task = self.sessions.spawn(async move {
            match serve(&server, &path, &credential, machine, &instance, &ending).await {
                Ok(()) => tracing::info!("the session is closed"),
                Err(error) => tracing::warn!("the session ended: {}", with_causes(&error)),
            }
        });
        sessions.open = Some((Instant::now(), task));
        Ok(())
    }
}
