//! `/metrics` for Prometheus, on a separate listener: the control API accepts only the server. It names neither VMs nor
//! shares, and is off unless a setting gives its address.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{Method, header::CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use ferry_core::{
    metrics::{Exposition, MEDIA_TYPE},
    vm::VmState,
};
use tokio::net::TcpListener;

use crate::Agent;

/// Serves as long as it is polled.
pub async fn serve(agent: Arc<Agent>, listener: TcpListener) {
    let show =
        |State(agent): State<Arc<Agent>>| async move { ([(CONTENT_TYPE, MEDIA_TYPE)], text(&agent)).into_response() };
    let router = Router::new().route("/metrics", get(show)).with_state(agent);
    // It never ends with an error: axum continues after failures of `accept`.
    let _ = axum::serve(listener, router).await;
}

/// Counts every answer of the control API by route and status.
pub(crate) async fn count(State(agent): State<Arc<Agent>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let answer = next.run(request).await;
    let is_ours = [Method::GET, Method::PUT, Method::POST, Method::DELETE].contains(&method);
    let method = if is_ours { method.as_str() } else { "other" };
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    agent.metrics.requests.add([method, route, &answer.status().as_u16().to_string()], 1);
    answer
}

/// Current values and counters.
pub fn text(agent: &Agent) -> String {
    let mut text = Exposition::default();
    text.gauge("ferry_agent_build_info", "The agent's version").sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    text.gauge("ferry_agent_libvirt_reachable", "Whether libvirt answered the last look")
        .sample(&[], f64::from(u8::from(agent.observer.libvirt_answers())));
    let (mut vms, mut shares) = (BTreeMap::<_, u32>::new(), BTreeMap::<_, u32>::new());
    if let Some(seen) = &*agent.observer.latest() {
        for vm in &seen.vms {
            *vms.entry(state(vm.state)).or_default() += 1;
        }
        for share in &seen.shares {
            *shares.entry(if share.trouble.is_none() { "ok" } else { "trouble" }).or_default() += 1;
        }
    }
    let counts = |text: &mut Exposition, name, help: &str, label: &str, counts: BTreeMap<&str, u32>| {
        let mut family = text.gauge(name, help);
        for (value, count) in counts {
            family.sample(&[(label, value)], f64::from(count));
        }
    };
    counts(&mut text, "ferry_agent_vms", "VMs of this host", "state", vms);
    counts(&mut text, "ferry_agent_shares", "Shares that are attached", "state", shares);
    let help = "Sides of live moves that this host has, until they are released";
    counts(&mut text, "ferry_agent_carriers", help, "role", agent.migrations.count_by_role());
    agent.migrations.carried.write(&mut text);
    agent.metrics.requests.write(
        &mut text,
        "ferry_agent_http_requests_total",
        "Requests of the server that were answered",
    );
    text.into_text()
}

/// A state as a label.
fn state(state: VmState) -> &'static str {
    match state {
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::ShutOff => "shut_off",
        VmState::Crashed => "crashed",
        VmState::Suspended => "suspended",
        VmState::Incoming => "incoming",
    }
}
