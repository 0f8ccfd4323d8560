//! Every error is answered with problem details, including those of the HTTP library.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{
        HeaderValue, Method, StatusCode, Uri,
        header::{ALLOW, CONTENT_TYPE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use ferry_core::{
    api::problem::{PROBLEM_MEDIA_TYPE, Problem, Title},
    finding::{ByHand, Finding, FindingId, Message},
};

use crate::failure::Failure;

/// The longest error text of the HTTP library; its texts are one line.
const ERROR_TEXT_BYTES_MAX: usize = 4096;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        response(&self.into_problem())
    }
}

/// A problem as an HTTP response.
fn response(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(problem).expect("our types have text keys only");
    (status, [(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE))], body).into_response()
}

/// The answer to a malformed request.
pub(super) fn invalid(status: StatusCode, object: &str, message: Message, fix: ByHand) -> Response {
    let finding = Finding::blocks(FindingId::RequestInvalid, object, message, fix);
    response(&Problem::refused(status.as_u16(), Title::NotWellFormed, vec![finding]))
}

/// Turns the errors of routing and extraction (wrong path, method or body) into problems.
pub(super) async fn every_error_is_a_problem(request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let answer = next.run(request).await;
    let status = answer.status();
    let is_problem = answer.headers().get(CONTENT_TYPE).is_some_and(|value| value == PROBLEM_MEDIA_TYPE);
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return answer;
    }
    let (parts, body) = answer.into_parts();
    let mut problem = of_status(status, &object(&method, &uri), text_of(body).await);
    problem.headers_mut().extend(parts.headers.get(ALLOW).map(|methods| (ALLOW, methods.clone())));
    problem
}

/// The object of a request, as problems name it.
pub(super) fn object(method: &Method, uri: &Uri) -> String {
    format!("{method} {}", uri.path())
}

/// A problem about which only the status, and perhaps a text for people, is known.
pub(super) fn of_status(status: StatusCode, object: &str, text: String) -> Response {
    let text = if text.is_empty() { Message::NotUnderstood } else { Message::Verbatim { text } };
    let of = object.to_owned();
    let (message, fix) = match status {
        StatusCode::NOT_FOUND => (Message::NothingThere { object: of }, ByHand::SeeWhatThereIs),
        StatusCode::METHOD_NOT_ALLOWED => (Message::NotPossible { object: of }, ByHand::SeeWhatIsPossible),
        StatusCode::PAYLOAD_TOO_LARGE => (Message::BodyTooLong, ByHand::SendLess),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => (text, ByHand::SendJson),
        _ => (text, ByHand::SeeForm),
    };
    invalid(status, object, message, fix)
}

async fn text_of(body: Body) -> String {
    let bytes = to_bytes(body, ERROR_TEXT_BYTES_MAX).await.unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}
