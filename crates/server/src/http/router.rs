//! Every route of the REST API, and the layers that each request passes before it.

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::{from_fn, from_fn_with_state},
    routing::{delete, get, post, put},
};

use super::{BODY_BYTES_MAX, answer_once, auth, events, hosts, jobs, metrics, openapi, problems, shares, vms};
use crate::app::App;

/// Every route.
pub(crate) fn router(app: Arc<App>) -> Router {
    let v1 = Router::new()
        .route("/hosts", get(hosts::list).post(hosts::add))
        .route("/hosts/{host}", get(hosts::show).patch(hosts::set).delete(hosts::remove))
        .route("/hosts/{host}/places", get(hosts::places))
        .route(
            "/hosts/{host}/storage-locations",
            put(hosts::add_storage_location).merge(delete(hosts::remove_storage_location)),
        )
        .route("/hosts/{host}/drain", post(hosts::drain))
        .route("/hosts/{host}/resume", post(hosts::resume))
        .route("/shares", get(shares::list).post(shares::add))
        .route("/shares/{share}", get(shares::show).delete(shares::remove))
        .route("/shares/{share}/hosts/{host}", put(shares::attach).merge(delete(shares::detach)))
        .route("/vms", get(vms::list))
        .route("/vms/{vm}", get(vms::show))
        .route("/vms/{vm}/start", post(vms::start))
        .route("/vms/{vm}/shutdown", post(vms::shutdown))
        .route("/vms/{vm}/hosts", get(vms::hosts))
        .route("/vms/{vm}/migrate", post(vms::migrate))
        .route("/vms/{vm}/storage", post(vms::move_storage))
        .route("/migrations", post(vms::migrate_many))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{job}", get(jobs::show))
        .route("/jobs/{job}/cancel", post(jobs::cancel))
        .route("/jobs/{job}/restart", post(jobs::restart))
        .route("/jobs/{job}/retry", post(jobs::retry))
        .route("/jobs/{job}/undo", post(jobs::undo))
        .route("/jobs/{job}/dismiss", post(jobs::dismiss))
        .route("/audit", get(jobs::audit))
        .route("/events", get(events::listen))
        .route("/openapi.json", get(openapi::show));
    Router::new()
        .nest("/api/v1", v1)
        // Inside the layer that stores answers, so that it stores exactly the answer that was sent. Layers outside this
        // one return problems themselves.
        .layer(from_fn(problems::every_error_is_a_problem))
        .layer(from_fn_with_state(app.clone(), answer_once::answer_once))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        // Outside every layer that reads a body: bodies of unauthorised callers are not read.
        .layer(from_fn_with_state(app.clone(), auth::authenticate))
        .layer(from_fn_with_state(app.clone(), metrics::count))
        .with_state(app)
}
