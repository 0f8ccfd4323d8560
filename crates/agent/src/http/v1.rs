//! Version 1 of the move routes, for a server of the previous version: one set of routes per kind, with verbs in the
//! path. Bodies and answers are those of version 2 except for tags, names of stages and a few fields.

use std::sync::Arc;

use super::{
    answer::{Answered, Refusal, Shared, invalid},
    moves::{Attempt, News, release},
};
use crate::Agent;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    routing::{get, put},
};
use ferry_core::{
    api::agent::{Check, Prepare, Ready, Report, Role, Stage, Verb},
    finding::Message,
    id::{Generation, JobId, VmId},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// A kind of move, as named in its routes.
#[derive(Clone, Copy)]
enum Kind {
    Live,
    Offline,
    Storage,
}

pub(super) fn routes() -> Router<Arc<Agent>> {
    let of = |router: Router<Arc<Agent>>, name: &str, kind: Kind| {
        let report = move |agent: Shared, attempt: Attempt, news: Query<News>| report(kind, agent, attempt, news);
        let ask =
            move |agent: Shared, asked: Path<(JobId, Generation, String)>, body: Bytes| ask(kind, agent, asked, body);
        router
            .route(&format!("/v1/{name}/{{job}}/{{generation}}"), get(report).delete(release))
            .route(&format!("/v1/{name}/{{job}}/{{generation}}/{{verb}}"), put(ask))
    };
    let router = of(Router::new(), "migrations", Kind::Live);
    let router = of(router, "offline-moves", Kind::Offline);
    of(router, "storage-moves", Kind::Storage)
        .route("/v1/storage-moves/{job}/{generation}", put(prepare_storage))
        .route("/v1/vms/{vm}/arrivals/check", put(check_incoming))
        .route("/v1/offline-moves/check", put(check_offline))
        .route("/v1/storage-moves/check", put(check_storage))
}

/// Converts a body to version 2.
fn body<T: DeserializeOwned>(bytes: &Bytes, tags: Value) -> Result<T, Refusal> {
    let read = || {
        let mut body: Map<String, Value> = if bytes.is_empty() { Map::new() } else { serde_json::from_slice(bytes)? };
        body.extend(tags.as_object().cloned().unwrap_or_default());
        serde_json::from_value(Value::Object(body))
    };
    read().map_err(|error: serde_json::Error| invalid(422, Message::Verbatim { text: error.to_string() }))
}

async fn check_incoming(State(agent): Shared, Path(vm): Path<VmId>, bytes: Bytes) -> Result<StatusCode, Refusal> {
    let disks: Value =
        serde_json::from_slice(&bytes).map_err(|error| invalid(422, Message::Verbatim { text: error.to_string() }))?;
    let check = body(&Bytes::new(), json!({"part": "live_destination", "vm": vm, "disks": disks}))?;
    agent.check(check).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn check_offline(State(agent): Shared, bytes: Bytes) -> Result<StatusCode, Refusal> {
    agent.check(body::<Check>(&bytes, json!({"part": "offline_destination"}))?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn check_storage(State(agent): Shared, bytes: Bytes) -> Answered<Value> {
    Ok(Json(json!(agent.check(body::<Check>(&bytes, json!({"part": "storage"}))?).await?)))
}

async fn prepare_storage(State(agent): Shared, Path((job, generation)): Attempt, bytes: Bytes) -> Answered<Value> {
    let ready = agent.prepare(job, generation, body(&bytes, json!({"part": "storage"}))?).await?;
    Ok(Json(ready_body(Kind::Storage, &ready)))
}

async fn ask(
    kind: Kind,
    State(agent): Shared,
    Path((job, generation, verb)): Path<(JobId, Generation, String)>,
    bytes: Bytes,
) -> Answered<Value> {
    let part = match (kind, &*verb) {
        (Kind::Live, "destination") => "live_destination",
        (Kind::Live, "source") => "live_source",
        (Kind::Offline, "destination") => "offline_destination",
        (Kind::Offline, "source") => "offline_source",
        (Kind::Live | Kind::Offline | Kind::Storage, _) => {
            let tags = match &*verb {
                "confirm" if matches!(kind, Kind::Storage) => json!({"verb": "confirm", "autostart": false}),
                verb => json!({"verb": verb.replace('-', "_")}),
            };
            let report = agent.act(job, generation, body::<Verb>(&bytes, tags)?).await?;
            return Ok(Json(report_body(kind, &report)));
        }
    };
    let ready = agent.prepare(job, generation, body::<Prepare>(&bytes, json!({"part": part}))?).await?;
    Ok(Json(ready_body(kind, &ready)))
}

async fn report(
    kind: Kind,
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Query(news): Query<News>,
) -> Answered<Value> {
    Ok(Json(report_body(kind, &agent.report(job, generation, news.after, news.wait()).await?)))
}

fn ready_body(kind: Kind, ready: &Ready) -> Value {
    match ready {
        Ready::Reported(report) => report_body(kind, report),
        Ready::LiveDestination(_) | Ready::LiveSource(_) | Ready::OfflineDestination(_) => json!(ready),
    }
}

/// Converts a report to version 1.
fn report_body(kind: Kind, report: &Report) -> Value {
    let mut body = json!(report);
    match (kind, report.stage) {
        (Kind::Offline | Kind::Storage, Stage::Performing) => body["stage"] = json!("copying"),
        (Kind::Storage, Stage::Delivered) => body["stage"] = json!("moved"),
        (Kind::Offline, Stage::Delivered) => {
            body["stage"] = json!(if report.role == Role::Source { "copied" } else { "defined" });
        }
        _ => {}
    }
    if matches!(kind, Kind::Offline) {
        // No server asks here whether the source started the VM at boot.
        let mut more = json!({"files": report.disks, "wire": report.figures.disk_wire, "autostart": false});
        more["remarks"] = report.findings.iter().map(|finding| finding.message.to_string()).collect();
        body.as_object_mut().expect("a report is one").extend(more.as_object().cloned().unwrap_or_default());
    }
    body
}
