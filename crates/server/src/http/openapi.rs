//! The OpenAPI document, made from the handlers. `api/server.json` holds it for those who do not run the server.

use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Components, SecurityRequirement,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{events, hosts, jobs, shares, vms};

#[derive(OpenApi)]
#[openapi(
    info(title = "Ferry", description = "Moves running VMs between hosts. Errors are problem details (RFC 9457) with findings."),
    paths(
        hosts::list, hosts::add, hosts::show, hosts::remove, hosts::set, hosts::drain,
        hosts::resume, hosts::places, hosts::add_storage_location, hosts::remove_storage_location,
        shares::list, shares::add, shares::show, shares::remove, shares::attach, shares::detach,
        vms::list, vms::show, vms::start, vms::shutdown, vms::hosts, vms::migrate, vms::move_storage, vms::migrate_many,
        jobs::list, jobs::show, jobs::cancel, jobs::restart, jobs::retry, jobs::undo, jobs::dismiss,
        jobs::audit,
        events::listen,
        show,
    ),
    modifiers(&Bearer)
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        let components = document.components.get_or_insert_with(Components::new);
        components.add_security_scheme("token", scheme);
        document.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    }
}

/// The OpenAPI 3.1 document, with a line feed at its end.
pub fn openapi_document() -> String {
    let mut text = Document::openapi().to_pretty_json().expect("our types have text keys only");
    text.push('\n');
    text
}

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "api", responses((status = 200, content_type = "application/json")))]
pub(super) async fn show() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
