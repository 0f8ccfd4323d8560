//! The REST API over TLS: authentication, one function per route, and every error as a problem.

mod answer_once;
mod auth;
mod events;
mod form;
mod hosts;
mod jobs;
pub(crate) mod metrics;
pub(crate) mod openapi;
mod problems;
pub(crate) mod router;
mod shares;
mod vms;

use std::sync::Arc;

use axum::extract::State;

use crate::{app::App, failure::Failure};

/// The longest request body. The largest one in use, an enrolment token with a name, is far below this.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Shared by all routes.
type AppState = State<Arc<App>>;

/// The name of the caller's token.
#[derive(Clone, Debug)]
struct Caller(String);

/// A handler's result.
type Answer<T> = Result<T, Failure>;
