//! Who may do what, who somebody is, and crumbs.

use std::collections::BTreeSet;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::controller::Boot;

/// What a user may be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Permission {
    /// `Overall/Read`, without which nothing is allowed.
    Read,
    Create,
    Connect,
    Configure,
    Disconnect,
    Delete,
    /// Off by default in Jenkins: who has nothing but this reads no `config.xml`.
    ExtendedRead,
    Administer,
}

impl Permission {
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Read => "hudson.model.Hudson.Read",
            Self::Create => "hudson.model.Computer.Create",
            Self::Connect => "hudson.model.Computer.Connect",
            Self::Configure => "hudson.model.Computer.Configure",
            Self::Disconnect => "hudson.model.Computer.Disconnect",
            Self::Delete => "hudson.model.Computer.Delete",
            Self::ExtendedRead => "hudson.model.Computer.ExtendedRead",
            Self::Administer => "hudson.model.Hudson.Administer",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Read => "Overall/Read",
            Self::Create => "Agent/Create",
            Self::Connect => "Agent/Connect",
            Self::Configure => "Agent/Configure",
            Self::Disconnect => "Agent/Disconnect",
            Self::Delete => "Agent/Delete",
            Self::ExtendedRead => "Agent/ExtendedRead",
            Self::Administer => "Overall/Administer",
        }
    }

    /// What `X-Permission-Implied-By` lists.
    pub(super) fn implied_by(self) -> &'static [&'static str] {
        match self {
            Self::Read => &["hudson.security.Permission.GenericRead", "hudson.model.Hudson.Administer"],
            Self::Create => &["hudson.security.Permission.GenericCreate", "hudson.model.Hudson.Administer"],
            Self::Connect => &["hudson.model.Computer.Disconnect", "hudson.model.Hudson.Administer"],
            Self::Configure => &["hudson.security.Permission.GenericConfigure", "hudson.model.Hudson.Administer"],
            Self::Disconnect => &["hudson.model.Hudson.Administer"],
            Self::Delete => &["hudson.security.Permission.GenericDelete", "hudson.model.Hudson.Administer"],
            Self::ExtendedRead => &["hudson.model.Computer.Configure", "hudson.model.Hudson.Administer"],
            Self::Administer => &[],
        }
    }
}

/// Somebody whom Jenkins knows.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(super) name: String,
    pub(super) tokens: Vec<String>,
    pub(super) password: Option<String>,
    pub(super) permissions: BTreeSet<Permission>,
}

impl User {
    /// A user who cannot log in and may do nothing.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.into(), tokens: Vec::new(), password: None, permissions: BTreeSet::new() }
    }

    /// Adds an API token.
    pub(crate) fn token(mut self, token: &str) -> Self {
        self.tokens.push(token.into());
        self
    }

    /// Sets the password.
    pub(crate) fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Allows more.
    pub(crate) fn may(mut self, permissions: &[Permission]) -> Self {
        self.permissions.extend(permissions);
        self
    }

    pub(super) fn is_allowed(&self, permission: Permission) -> bool {
        let has = |one| self.permissions.contains(&one);
        let implied = match permission {
            Permission::Connect => has(Permission::Disconnect),
            Permission::ExtendedRead => return has(Permission::Configure) || has(Permission::Administer),
            _ => false,
        };
        has(permission) || implied || has(Permission::Administer)
    }
}

/// Who sent a request.
#[derive(Debug, Clone)]
pub(super) enum Who {
    Anonymous,
    User { user: User, with_token: bool },
}

impl Who {
    /// Finds out. None: the credentials are wrong.
    pub(super) fn of(headers: &HeaderMap, users: &[User]) -> Option<Self> {
        let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // Anything but Basic is as good as nothing.
        let Some(basic) = header.strip_prefix("Basic ") else { return Some(Self::Anonymous) };
        let decoded = String::from_utf8(STANDARD.decode(basic.trim()).ok()?).ok()?;
        let (name, given) = decoded.split_once(':')?;
        let user = users.iter().find(|user| user.name == name)?;
        let with_token = user.tokens.iter().any(|token| token == given);
        let known = with_token || user.password.as_deref() == Some(given);
        known.then(|| Self::User { user: user.clone(), with_token })
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
            Self::User { user, .. } => &user.name,
        }
    }

    pub(super) fn is_allowed(&self, permission: Permission) -> bool {
        matches!(self, Self::User { user, .. } if user.is_allowed(permission))
    }

    /// Whether a POST may go on: a token needs no crumb, everybody else one that fits the session.
    pub(super) fn may_post(&self, headers: &HeaderMap, boot: &Boot) -> bool {
        if matches!(self, Self::User { with_token: true, .. }) {
            return true;
        }
        let given = headers.get("Jenkins-Crumb").and_then(|value| value.to_str().ok());
        session(headers, boot).is_some_and(|session| given == Some(&crumb(self, &session, boot)))
    }
}

/// The session of a request's cookie, if Jenkins knows it.
pub(super) fn session(headers: &HeaderMap, boot: &Boot) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let mut ids = cookies.filter_map(|cookie| cookie.trim().split_once('=')).filter(|(name, _)| name.starts_with("JSESSIONID"));
    ids.find_map(|(_, id)| boot.sessions.get(id.trim()).cloned())
}

/// The crumb of somebody in a session.
pub(super) fn crumb(who: &Who, session: &str, boot: &Boot) -> String {
    hex::encode(Sha256::new().chain_update(boot.salt).chain_update(who.name()).chain_update("\0").chain_update(session).finalize())
}

/// A new API token.
pub(super) fn new_token() -> String {
    format!("11{}", hex::encode(rand::random::<[u8; 16]>()))
}
