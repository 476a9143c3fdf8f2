//! Who calls, and what they may reach.

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;

use std::sync::Arc;

use crate::api::TokenKind;
use crate::credential::{Credential, Holder};
use crate::http::App;
use crate::http::problem::Fault;
use crate::names::{LabelName, TeamName};
use crate::roster::agent::Agent;
use crate::shelf::Author;
use crate::store::tokens::TokenRow;

/// Whoever presented a credential that is valid.
pub(crate) enum Caller {
    /// The holder of a token.
    Token(TokenRow),
    /// An agent.
    Agent(Arc<Agent>),
}

impl FromRequestParts<App> for Caller {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        let text = parts
            .headers
            .get(header::AUTHORIZATION)
            .ok_or_else(|| Fault::unauthorized("the request has no credential").with_hint("send `Authorization: Bearer TOKEN`"))?;
        let text = text.to_str().ok().and_then(|text| text.split_once(' '));
        let credential =
            text.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).and_then(|(_, text)| Credential::parse(text.trim()));
        let credential = credential.ok_or_else(|| Fault::unauthorized("the credential is not one of this server's"))?;
        // One text for all that is wrong, so that ids can not be tried out.
        let unknown = || Fault::unauthorized("the credential is not valid, or was revoked");
        match credential.holder {
            Holder::Agent => app.roster.authenticate(&credential).map(Self::Agent).ok_or_else(unknown),
            Holder::Token => {
                let row = app.store.token(&credential.id).await?.ok_or_else(unknown)?;
                let valid = credential.fits(&row.secret_hash) && row.revoked_us.is_none();
                if valid { Ok(Self::Token(row)) } else { Err(unknown()) }
            }
        }
    }
}

/// A person or a program with an admin's token or a team's.
#[derive(Debug, Clone)]
pub(crate) struct Person(pub(crate) Author);

impl FromRequestParts<App> for Person {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        let forbidden =
            |what: &str| Err(Fault::forbidden("kind", format!("{what} can not do this; it takes a team's token or an admin's")));
        match Caller::from_request_parts(parts, app).await? {
            Caller::Token(TokenRow { id, kind: TokenKind::Admin, .. }) => Ok(Self(Author { token: id, team: None })),
            Caller::Token(TokenRow { id, kind: TokenKind::Team, team: Some(team), .. }) => Ok(Self(Author { token: id, team: Some(team) })),
            Caller::Token(_) => forbidden("a join token"),
            Caller::Agent(_) => forbidden("an agent"),
        }
    }
}

/// A person or a program with an admin's token.
#[derive(Debug, Clone)]
pub(crate) struct Admin(pub(crate) Author);

impl FromRequestParts<App> for Admin {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        let Person(author) = Person::from_request_parts(parts, app).await?;
        match author.team {
            None => Ok(Self(author)),
            Some(_) => Err(Fault::forbidden("kind", "a team's token can not do this; it takes an admin's")),
        }
    }
}

impl Person {
    /// The team for which something is made: the token's own, or the one that an admin names.
    pub(crate) fn team_for(&self, named: Option<TeamName>) -> Result<TeamName, Fault> {
        match (&self.0.team, named) {
            (Some(own), Some(named)) if *own != named => {
                Err(Fault::forbidden("not-yours", format!("the token acts for team `{own}`, not for `{named}`")))
            }
            (Some(own), _) => Ok(own.clone()),
            (None, Some(named)) => Ok(named),
            (None, None) => {
                Err(Fault::unprocessable("team", "an admin says for which team").with_hint("add `?team=NAME`, or `--team NAME`"))
            }
        }
    }

    /// Whether something of a team is the caller's to see.
    pub(crate) fn sees(&self, team: &TeamName) -> bool {
        self.0.team.as_ref().is_none_or(|own| own == team)
    }

    /// The labels that are the caller's; none stands for all.
    pub(crate) fn labels(&self, app: &App) -> Option<Vec<LabelName>> {
        let own = self.0.team.as_ref()?;
        let releases = app.shelf.releases();
        Some(releases.values().filter(|release| release.policy.team == *own).map(|release| release.label.clone()).collect())
    }

    /// Whether an agent is the caller's to see and to act on: it registered with the team's token, or carries a label of the team's.
    pub(crate) fn reaches(&self, labels: Option<&[LabelName]>, agent: &Agent) -> bool {
        match (&self.0.team, labels) {
            (None, _) | (_, None) => true,
            (Some(own), Some(labels)) => agent.team().as_ref() == Some(own) || agent.carries_any(labels),
        }
    }
}
