//! A POST with an `Idempotency-Key` is executed once: a repetition of the key with the same request gets the first
//! answer.

use std::time::Duration;

use axum::{
    Extension,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header::CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse, Response},
};
use ferry_core::{
    api::problem::PROBLEM_MEDIA_TYPE,
    api::problem::Title,
    finding::{ByHand, Finding, FindingId, Message},
};

use super::{AppState, BODY_BYTES_MAX, Caller, problems};
use crate::{
    app::App,
    clock::now_ms,
    failure::Failure,
    store::{Answer, Begun},
};

pub(super) const HEADER: &str = "idempotency-key";
/// The longest key. Keys are usually UUIDs.
pub(super) const KEY_LENGTH_MAX: usize = 128;
/// The characters of a key: visible ASCII.
pub(super) const KEY_PATTERN: &str = "^[!-~]+$";
/// The longest stored answer. Every answer to a POST is one object.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long a repeated request waits for the first one's answer.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(100);
const POLL_EVERY: Duration = Duration::from_millis(50);

pub(super) async fn answer_once(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = request.headers().get(HEADER).filter(|_| request.method() == Method::POST) else {
        return next.run(request).await;
    };
    let key = match key.to_str() {
        Ok(key) if is_key(key) => format!("{} {key}", caller.0),
        _ => {
            let message = Message::KeyForm { length: KEY_LENGTH_MAX as u64 };
            return problems::invalid(StatusCode::BAD_REQUEST, HEADER, message, ByHand::UseNewUuid);
        }
    };
    let (parts, body) = request.into_parts();
    let object = problems::object(&parts.method, &parts.uri);
    let failed = |status| problems::of_status(status, &object, String::new());
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return failed(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let asked = format!("{} {}\n{}", parts.method, parts.uri, String::from_utf8_lossy(&body));
    let request_hash = ferry_trust::token_hash(&asked);
    match first(&app, &key, &request_hash).await {
        Ok(Begun::New) => {}
        Ok(Begun::Answered(answer)) => return repeat(answer),
        Ok(Begun::Working) => {
            return refused(Message::KeyWorkedOn, ByHand::AskLater);
        }
        Ok(Begun::Other) => {
            return refused(Message::KeyUsed, ByHand::UseNewKey);
        }
        Err(failure) => return failure.into_response(),
    }
    // In its own task: if the caller disconnects, the work is still finished and the key still gets its answer.
    let work = tokio::spawn(async move {
        let answer = next.run(Request::from_parts(parts, Body::from(body))).await;
        keep(&app, &key, answer).await
    });
    work.await.ok().flatten().unwrap_or_else(|| failed(StatusCode::INTERNAL_SERVER_ERROR))
}

/// Whether the key matches [`KEY_PATTERN`] and [`KEY_LENGTH_MAX`].
fn is_key(key: &str) -> bool {
    (1..=KEY_LENGTH_MAX).contains(&key.len()) && key.chars().all(|character| character.is_ascii_graphic())
}

/// Claims the key, or waits for the answer of the request that claimed it.
async fn first(app: &App, key: &str, request_hash: &str) -> Result<Begun, Failure> {
    let end = tokio::time::Instant::now() + FIRST_ANSWER_WITHIN;
    loop {
        let begun = app.store.begin_answer(key, request_hash, now_ms()).await?;
        if begun != Begun::Working || tokio::time::Instant::now() >= end || app.stop.is_cancelled() {
            return Ok(begun);
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// Stores the answer and returns it. A server error is not stored, because the same request may succeed later. `None`:
/// the answer is longer than [`ANSWER_BYTES_MAX`].
async fn keep(app: &App, key: &str, answer: Response) -> Option<Response> {
    let (parts, body) = answer.into_parts();
    let body = to_bytes(body, ANSWER_BYTES_MAX).await.ok()?;
    let kept = Answer { status: parts.status.as_u16(), body: String::from_utf8_lossy(&body).into_owned() };
    let stored = app.store.end_answer(key, Some(&kept).filter(|_| !parts.status.is_server_error())).await;
    if let Err(error) = stored {
        return Some(Failure::Store(error).into_response());
    }
    Some(Response::from_parts(parts, Body::from(body)))
}

fn repeat(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let media = if status.is_success() { "application/json" } else { PROBLEM_MEDIA_TYPE };
    (status, [(CONTENT_TYPE, HeaderValue::from_static(media))], answer.body).into_response()
}

fn refused(message: Message, fix: ByHand) -> Response {
    let finding = Finding::blocks(FindingId::RequestIdempotency, HEADER, message, fix);
    Failure::found(Title::NotDone, finding).into_response()
}
