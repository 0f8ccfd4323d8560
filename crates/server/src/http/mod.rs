//! The REST API over TLS: who may call, one function per route, every error as a problem.

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

/// The largest body that a request of ours has is an enrolment token with a name: far below this.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Shared by all routes.
type AppState = State<Arc<App>>;

/// Who calls.
#[derive(Clone, Debug)]
struct Caller(String);

/// What a handler gives: its answer, or why not.
type Answer<T> = Result<T, Failure>;
