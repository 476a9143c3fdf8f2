//! `muster token`: what admits agents, teams and admins.

use clap::ValueEnum;
use reqwest::Method;

use crate::api::{Token, TokenAsked, TokenKind, TokenMade};
use crate::cli::client::Client;
use crate::cli::output::Output;
use crate::cli::{CliError, doing, id};
use crate::names::{LabelName, TeamName};

/// What `muster token` does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Makes a token and prints its secret, which is shown this once
    Create {
        /// What it is for
        #[arg(long)]
        kind: Kind,
        /// The team that it acts for, or that its agents belong to
        #[arg(long)]
        team: Option<TeamName>,
        /// A label that its agents may carry; may be repeated
        #[arg(long = "label", value_name = "LABEL")]
        labels: Vec<LabelName>,
    },
    /// Lists the tokens, without their secrets
    Ls {
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Makes a token worthless
    Revoke {
        /// Its id
        #[arg(value_parser = id)]
        id: String,
    },
}

/// What a token is for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// Admits agents
    Join,
    /// Acts for a team
    Team,
    /// Does everything
    Admin,
}

/// Does it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        Command::Create { kind, team, labels } => {
            let asked = asked(kind, team, labels)?;
            let made: TokenMade = client.send(Method::POST, &["tokens"], &[], &asked).await.map_err(doing("make the token"))?;
            if output.json() {
                return output.value(&made);
            }
            output.aside(&format!("token {}; its secret is shown this once:", made.token.id))?;
            output.line(&made.secret)
        }
        Command::Ls { limit } => {
            let tokens: Vec<Token> = client.list(&["tokens"], &[], limit).await.map_err(doing("list the tokens"))?;
            output.listing(&tokens, ["ID", "KIND", "TEAM", "LABELS", "MADE", "REVOKED"], |output, token| {
                [
                    token.id.clone(),
                    word(token.kind).into(),
                    token.team.clone().unwrap_or_default(),
                    token.labels.join(","),
                    output.age(token.made_us),
                    token.revoked_us.map(|at| output.age(at)).unwrap_or_default(),
                ]
            })
        }
        Command::Revoke { id } => {
            client.delete(&["tokens", &id]).await.map_err(doing(format!("revoke the token {id}")))?;
            output.done(&serde_json::json!({ "revoked": id }), &format!("revoked {id}"))
        }
    }
}

/// What the server would refuse anyway, told before anything is sent.
fn asked(kind: Kind, team: Option<TeamName>, labels: Vec<LabelName>) -> Result<TokenAsked, CliError> {
    let kind = match kind {
        Kind::Join if labels.is_empty() => {
            return Err(CliError::usage("a join token names the labels that its agents may carry", "add --label"));
        }
        Kind::Join => TokenKind::Join,
        Kind::Team if team.is_none() => return Err(CliError::usage("a team's token names the team", "add --team")),
        Kind::Team => TokenKind::Team,
        Kind::Admin => TokenKind::Admin,
    };
    Ok(TokenAsked { kind, team, labels })
}

fn word(kind: TokenKind) -> &'static str {
    match kind {
        TokenKind::Join => "join",
        TokenKind::Team => "team",
        TokenKind::Admin => "admin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_can_not_be_is_not_asked_for() {
        let team = || Some("media".parse().unwrap());
        assert!(asked(Kind::Join, team(), Vec::new()).is_err());
        assert!(asked(Kind::Team, None, Vec::new()).is_err());
        assert!(asked(Kind::Admin, None, Vec::new()).is_ok());
        assert!(asked(Kind::Join, team(), vec!["linux".parse().unwrap()]).is_ok());
    }
}
