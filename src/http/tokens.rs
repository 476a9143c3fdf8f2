//! Tokens: made, listed, revoked. By admins alone.

use axum::extract::State;
use axum::http::StatusCode;

use crate::api::{Page, Token, TokenAsked, TokenKind, TokenMade};
use crate::credential::{self, Holder};
use crate::http::App;
use crate::http::access::Admin;
use crate::http::problem::Fault;
use crate::http::receive::{Asked, Id, Json, Name, Paging, page};
use crate::journal::now_us;
use crate::limits::AGENT_LABELS_MAX;
use crate::store::tokens::TokenRow;

impl From<TokenRow> for Token {
    fn from(row: TokenRow) -> Self {
        Self {
            id: row.id,
            kind: row.kind,
            team: row.team.map(|team| team.to_string()),
            labels: row.labels.iter().map(ToString::to_string).collect(),
            made_us: row.made_us,
            revoked_us: row.revoked_us,
        }
    }
}

/// Makes a token. Its secret is in this answer and nowhere else.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", request_body = TokenAsked,
    responses((status = 201, body = TokenMade), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn create(
    State(app): State<App>,
    Admin(author): Admin,
    Json(asked): Json<TokenAsked>,
) -> Result<(StatusCode, axum::Json<TokenMade>), Fault> {
    let wrong = |detail: &str| Err(Fault::unprocessable("token", detail));
    match asked.kind {
        TokenKind::Join if asked.labels.is_empty() => return wrong("a join token is bound to at least one label"),
        TokenKind::Team if asked.team.is_none() => return wrong("a team's token says for which team it is"),
        TokenKind::Team | TokenKind::Admin if !asked.labels.is_empty() => return wrong("only a join token is bound to labels"),
        TokenKind::Admin if asked.team.is_some() => return wrong("an admin's token is for no team"),
        _ if asked.labels.len() > AGENT_LABELS_MAX => return wrong("a token is bound to fewer labels"),
        _ => {}
    }
    let made = credential::make(Holder::Token, credential::new_id());
    let row = TokenRow {
        id: made.id,
        kind: asked.kind,
        team: asked.team,
        labels: asked.labels,
        secret_hash: made.hash,
        made_us: now_us(),
        revoked_us: None,
    };
    app.store.insert_token(&row).await?;
    tracing::info!(token = row.id, kind = ?row.kind, by = author.token, "token {} was made", row.id);
    Ok((StatusCode::CREATED, axum::Json(TokenMade { token: row.into(), secret: made.text })))
}

/// Lists the tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", params(Paging), responses((status = 200, body = Page<Token>)))]
pub(crate) async fn list(State(app): State<App>, _admin: Admin, Asked(asked): Asked<Paging>) -> Result<axum::Json<Page<Token>>, Fault> {
    let rows = app.store.tokens(&page(asked.cursor, asked.limit)).await?;
    Ok(axum::Json(Page { items: rows.items.into_iter().map(Token::from).collect(), next: rows.next }))
}

/// Revokes a token. Agents that it admitted keep their own credentials.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)), responses((status = 204), (status = "4XX", body = crate::api::Problem)))]
pub(crate) async fn revoke(State(app): State<App>, Admin(author): Admin, Name(id): Name<Id>) -> Result<StatusCode, Fault> {
    if !app.store.revoke_token(&id.0, now_us()).await? {
        return Err(
            Fault::not_found("no-token", "there is no such token, or it is revoked already").with_hint("`muster token ls` lists them")
        );
    }
    tracing::info!(token = id.0, by = author.token, "token {} was revoked", id.0);
    Ok(StatusCode::NO_CONTENT)
}
