//! `/api/v1/events`: server-sent events, resumable by their id.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{self, KeepAlive, Sse},
};
use ferry_core::api::server::Event;
use futures_util::{Stream, stream};

use super::AppState;

/// Shorter than the time after which clients and middleboxes close a silent connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Streams changes from now on, or all changes after `Last-Event-ID`. `data:` is an Event.
#[utoipa::path(get, path = "/api/v1/events", tag = "events",
    params(("Last-Event-ID" = Option<u64>, Header, description = "The id of the last received event")),
    responses((status = 200, body = Event, content_type = "text/event-stream")))]
pub(super) async fn listen(
    State(app): AppState,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(|id| {
        // This server never issued that id: the listener is told to read everything again.
        id.trim().parse().unwrap_or(0)
    });
    let subscription = app.events.subscribe(last);
    let stop = app.stop.clone();
    let events = stream::unfold((subscription, stop), |(mut subscription, stop)| async move {
        // Open streams would delay the server's stop.
        let event = tokio::select! {
            () = stop.cancelled() => None,
            event = subscription.next() => event,
        }?;
        let sent = sse::Event::default().id(event.sequence.to_string()).event(event.name).data(&*event.json);
        Some((Ok(sent), (subscription, stop)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}
