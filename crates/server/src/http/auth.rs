//! Every call carries a token; the database holds only the hashes of tokens.

use axum::{
    extract::{Request, State},
    http::{
        HeaderValue,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use ferry_core::{
    api::problem::Title,
    finding::{Action, Finding, FindingId, Message},
};

use super::{AppState, Caller};
use crate::failure::Failure;

/// Lets calls with a valid token pass, and records the token's name as the caller.
pub(super) async fn authenticate(State(app): AppState, mut request: Request, next: Next) -> Response {
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim().to_owned());
    let message = match token {
        None => Message::NoToken,
        Some(token) => match app.store.token_name(&ferry_trust::token_hash(&token)).await {
            Ok(Some(name)) => {
                request.extensions_mut().insert(Caller(name));
                return next.run(request).await;
            }
            Ok(None) => Message::TokenNotValid,
            Err(error) => return Failure::Store(error).into_response(),
        },
    };
    let finding = Finding::blocks(FindingId::AuthToken, "token", message, Action::UseToken);
    let mut refusal = Failure::found(Title::NotAuthorised, finding).into_response();
    refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    refusal
}
