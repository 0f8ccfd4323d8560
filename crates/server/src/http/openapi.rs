//! The OpenAPI document, generated from the handlers. `api/server.json` holds a copy for readers who do not run the
//! server.

use axum::Json;
use ferry_core::api::problem::PROBLEM_MEDIA_TYPE;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Components, ContentBuilder, HttpMethod, ObjectBuilder, PathItem, Ref, RefOr, Response, ResponseBuilder,
        SecurityRequirement,
        path::{Operation, Parameter, ParameterIn},
        schema::Type,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{answer_once, events, hosts, jobs, shares, vms};

/// Error answers that do not depend on the operation: status, name in the document, and cause.
const ANSWERS: [(&str, &str, &str); 7] = [
    ("400", "NotWellFormed", "The path, a header or the query is malformed"),
    ("401", "NoToken", "The call carries no valid token"),
    ("404", "NotThere", "No object has this name or number"),
    ("409", "KeyOfAnother", "The key belongs to another request, or the current state prevents this one"),
    ("413", "TooLong", "The body is too long"),
    ("415", "NotJson", "The content type is not JSON"),
    ("422", "OtherForm", "The body does not match the schema"),
];

#[derive(OpenApi)]
#[openapi(
    info(title = "Ferry", description = "Moves running VMs between hosts. Errors are problem details (RFC 9457) with findings. Unknown properties of a body are ignored."),
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
    modifiers(&Bearer, &Problems, &Keys)
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

/// Adds error answers that do not depend on the operation, and sets the media type of all error answers.
struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_with(Components::new);
        for (_, name, when) in ANSWERS {
            components.responses.insert(name.to_owned(), problem(when).into());
        }
        for (method, operation) in document.paths.paths.values_mut().flat_map(operations) {
            let names = parameters(operation).any(|found| found.parameter_in == ParameterIn::Path);
            let with_body = operation.request_body.is_some();
            for answer in operation.responses.responses.iter_mut() {
                if let (status, RefOr::T(answer)) = answer
                    && status.starts_with(['4', '5'])
                {
                    *answer = problem(&answer.description);
                }
            }
            for (status, name, _) in ANSWERS {
                let may_be = match status {
                    "400" | "401" => true,
                    "404" => names,
                    "409" => method == HttpMethod::Post,
                    _ => with_body,
                };
                if may_be {
                    let given = operation.responses.responses.entry(status.to_owned());
                    given.or_insert_with(|| RefOr::Ref(Ref::from_response_name(name)));
                }
            }
        }
    }
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    let all = [
        (HttpMethod::Get, &mut path.get),
        (HttpMethod::Put, &mut path.put),
        (HttpMethod::Post, &mut path.post),
        (HttpMethod::Patch, &mut path.patch),
        (HttpMethod::Delete, &mut path.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

fn parameters(operation: &mut Operation) -> impl Iterator<Item = &mut Parameter> {
    operation.parameters.iter_mut().flatten().filter_map(|parameter| match parameter {
        RefOr::T(parameter) => Some(parameter),
        RefOr::Ref(_) => None,
    })
}

fn problem(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(description).content(PROBLEM_MEDIA_TYPE, content).build()
}

/// Adds the form of idempotency keys.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let key = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(answer_once::KEY_LENGTH_MAX))
            .pattern(Some(answer_once::KEY_PATTERN));
        let schema = RefOr::from(key.build());
        for (_, operation) in document.paths.paths.values_mut().flat_map(operations) {
            let keys = parameters(operation).filter(|found| found.name.eq_ignore_ascii_case(answer_once::HEADER));
            for found in keys {
                found.schema = Some(schema.clone());
            }
        }
    }
}

/// The OpenAPI 3.1 document, with a line feed at its end.
pub fn openapi_document() -> String {
    let mut text = Document::openapi().to_pretty_json().expect("our types have text keys only");
    text.push('\n');
    text
}

/// Returns this document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "api", responses((status = 200, content_type = "application/json")))]
pub(super) async fn show() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
