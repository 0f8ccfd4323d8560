//! `/api/v1/vms`

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use ferry_core::api::{
    agent::Power,
    problem::Problem,
    server::{Candidate, JobView, MigrateMany, MigrateVm, MoveStorage, StoragePlan, VmView},
};

use super::{Answer, AppState, Caller, form::Body};
use crate::app::{accept::Moved, migrate_many, migrate_vm, move_storage, power_vm, show_candidates, show_vms};

/// Every VM on every host.
#[utoipa::path(get, path = "/api/v1/vms", tag = "vms", responses((status = 200, body = [VmView])))]
pub(super) async fn list(State(app): AppState) -> Answer<Json<Vec<VmView>>> {
    Ok(Json(show_vms::list(&app).await?))
}

/// One VM.
#[utoipa::path(get, path = "/api/v1/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "Name, UUID, or HOST/NAME (percent-encoded)")),
    responses((status = 200, body = VmView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn show(State(app): AppState, Path(vm): Path<String>) -> Answer<Json<VmView>> {
    Ok(Json(show_vms::one(&app, &vm).await?))
}

/// Starts a VM.
#[utoipa::path(post, path = "/api/v1/vms/{vm}/start", tag = "vms",
    params(("vm" = String, Path, description = "Name, UUID, or HOST/NAME (percent-encoded)"),
        ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 200, body = VmView), (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn start(State(app): AppState, Path(vm): Path<String>) -> Answer<Json<VmView>> {
    Ok(Json(power_vm::power_vm(&app, &vm, Power::Start).await?))
}

/// Asks a VM's guest to shut down.
#[utoipa::path(post, path = "/api/v1/vms/{vm}/shutdown", tag = "vms",
    params(("vm" = String, Path, description = "Name, UUID, or HOST/NAME (percent-encoded)"),
        ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 200, body = VmView), (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn shutdown(State(app): AppState, Path(vm): Path<String>) -> Answer<Json<VmView>> {
    Ok(Json(power_vm::power_vm(&app, &vm, Power::Shutdown).await?))
}

/// Judges every host as the destination of a VM: the kind of move, and its findings.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/hosts", tag = "vms",
    params(("vm" = String, Path, description = "Name, UUID, or HOST/NAME (percent-encoded)")),
    responses((status = 200, body = [Candidate]), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn hosts(State(app): AppState, Path(vm): Path<String>) -> Answer<Json<Vec<Candidate>>> {
    Ok(Json(show_candidates::candidates(&app, &vm).await?))
}

/// Moves a VM, or with `dry_run` returns the plan of the move.
#[utoipa::path(post, path = "/api/v1/vms/{vm}/migrate", tag = "vms", request_body = MigrateVm,
    params(("vm" = String, Path, description = "Name, UUID, or HOST/NAME (percent-encoded)"),
        ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 202, description = "A job was accepted", body = JobView),
        (status = 200, description = "With dry_run", body = Candidate),
        (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn migrate(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Path(vm): Path<String>,
    Body(body): Body<MigrateVm>,
) -> Answer<Response> {
    Ok(match migrate_vm::migrate_vm(&app, &vm, &body, &by).await? {
        Moved::Tried(candidate) => Json(candidate).into_response(),
        Moved::Accepted(job) => (StatusCode::ACCEPTED, Json(job)).into_response(),
    })
}

/// Moves disks of a running VM to other files on the same host, or with `dry_run` returns the plan.
#[utoipa::path(post, path = "/api/v1/vms/{vm}/storage", tag = "vms", request_body = MoveStorage,
    params(("vm" = String, Path, description = "Name, UUID, or HOST/NAME (percent-encoded)"),
        ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 202, description = "A job was accepted", body = JobView),
        (status = 200, description = "With dry_run", body = StoragePlan),
        (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn move_storage(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Path(vm): Path<String>,
    Body(body): Body<MoveStorage>,
) -> Answer<Response> {
    Ok(match move_storage::move_storage(&app, &vm, &body, &by).await? {
        Moved::Tried(plan) => Json(plan).into_response(),
        Moved::Accepted(job) => (StatusCode::ACCEPTED, Json(job)).into_response(),
    })
}

/// Moves several VMs to one host. Either all are accepted or none.
#[utoipa::path(post, path = "/api/v1/migrations", tag = "vms", request_body = MigrateMany,
    params(("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 202, description = "A job was accepted, with a part for each VM", body = JobView),
        (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn migrate_many(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Body(body): Body<MigrateMany>,
) -> Answer<(StatusCode, Json<JobView>)> {
    Ok((StatusCode::ACCEPTED, Json(migrate_many::migrate_many(&app, &body, &by).await?)))
}
