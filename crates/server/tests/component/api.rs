//! The form of the REST API: problems, idempotency, the document.

use ferry_core::api::problem::{PROBLEM_MEDIA_TYPE, Problem};
use reqwest::{
    Client, Method, RequestBuilder,
    header::{ALLOW, CONTENT_TYPE},
};

use crate::support::{Lab, in_lab};

/// Plain HTTP calls, for requests that the typed client cannot make.
struct Plain {
    client: Client,
    base: String,
    token: String,
}

impl Plain {
    fn new(lab: &Lab) -> Self {
        let (base, pin, token) = lab.access();
        let tls = ferry_trust::client_config(None, pin).expect("usable");
        let client = Client::builder().tls_backend_preconfigured((*tls).clone()).build().expect("usable");
        Self { client, base: format!("{base}/api/v1"), token }
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    fn post(&self, path: &str, body: &str) -> RequestBuilder {
        self.call(Method::POST, path).header(CONTENT_TYPE, "application/json").body(body.to_owned())
    }
}

async fn answer(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.text().await.expect("a body"))
}

#[test]
fn every_error_is_a_problem_with_a_finding() {
    in_lab(async |lab| {
        let plain = Plain::new(lab);
        let long = format!("{{\"name\":\"{}\"}}", "x".repeat(100_000));
        let rows: Vec<(&str, RequestBuilder, u16)> = vec![
            ("no such path", plain.call(Method::GET, "/nope"), 404),
            ("wrong method", plain.call(Method::PATCH, "/hosts"), 405),
            ("no JSON", plain.post("/shares", "{"), 400),
            ("wrong field", plain.post("/shares", "{\"name\":1}"), 422),
            ("no content type", plain.call(Method::POST, "/shares").body("{}"), 415),
            ("too long", plain.post("/shares", &long), 413),
            ("too long, with a key", plain.post("/shares", &long).header("Idempotency-Key", "k"), 413),
            ("bad query", plain.call(Method::GET, "/jobs?limit=x"), 400),
            ("bad key", plain.post("/shares", "{}").header("Idempotency-Key", "k".repeat(200)), 400),
            ("bad path encoding", plain.call(Method::GET, "/vms/%FF"), 400),
            ("no such job", plain.call(Method::GET, "/jobs/0"), 404),
            ("no such share", plain.call(Method::DELETE, "/shares/x"), 404),
        ];
        for (row, request, status) in rows {
            let response = request.send().await.expect(row);
            assert_eq!(response.status().as_u16(), status, "{row}");
            let media = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            assert_eq!(media, Some(PROBLEM_MEDIA_TYPE), "{row}");
            assert_eq!(response.headers().contains_key(ALLOW), status == 405, "{row}");
            let problem: Problem = response.json().await.expect(row);
            assert_eq!((problem.status, problem.findings.len()), (status, 1), "{row}: {problem:?}");
        }
        let stranger = plain.client.get(format!("{}/openapi.json", plain.base));
        assert_eq!(answer(stranger).await.0, 401);
    });
}

#[test]
fn a_request_with_a_key_is_done_once() {
    in_lab(async |lab| {
        let plain = Plain::new(lab);
        let add = |unc: &str| {
            let body = serde_json::json!({ "name": "vms", "unc": unc }).to_string();
            plain.post("/shares", &body).header("Idempotency-Key", "one")
        };
        let (status, first) = answer(add("//fs1.ferry.lab/vms")).await;
        assert_eq!(status, 201, "{first}");
        assert_eq!(answer(add("//fs1.ferry.lab/vms")).await, (201, first.clone()), "the first answer again");
        let (status, other) = answer(add("//fs2.ferry.lab/vms")).await;
        assert!(status == 409 && other.contains("request.idempotency"), "{status} {other}");
        let refused = || plain.post("/shares", "{\"name\":\"x\",\"unc\":\"x\"}").header("Idempotency-Key", "two");
        let (status, refusal) = answer(refused()).await;
        assert_eq!(status, 400, "{refusal}");
        assert_eq!(answer(refused()).await, (400, refusal), "a refusal too");
        for (row, body, expected) in [("a wrong type", "{\"name\":{},\"unc\":\"x\"}", 422), ("no JSON", "]", 400)] {
            let malformed = || plain.post("/shares", body).header("Idempotency-Key", row.replace(' ', "-"));
            let (status, first) = answer(malformed()).await;
            assert!(status == expected && serde_json::from_str::<Problem>(&first).is_ok(), "{row}: {status} {first}");
            assert_eq!(answer(malformed()).await, (status, first), "{row}");
        }
        let (one, two) = tokio::join!(
            answer(
                plain.post("/shares", "{\"name\":\"b\",\"unc\":\"//fs2.ferry.lab/b\"}").header("Idempotency-Key", "3")
            ),
            answer(
                plain.post("/shares", "{\"name\":\"b\",\"unc\":\"//fs2.ferry.lab/b\"}").header("Idempotency-Key", "3")
            ),
        );
        assert_eq!(one, two, "also when both come at once");
        lab.stop_server().await;
        lab.start_server().await;
        let plain = Plain::new(lab);
        let body = serde_json::json!({ "name": "vms", "unc": "//fs1.ferry.lab/vms" }).to_string();
        let again = plain.post("/shares", &body).header("Idempotency-Key", "one");
        assert_eq!(answer(again).await, (201, first), "also after a restart");
    });
}

#[test]
fn the_document_that_is_checked_in_is_the_one_that_is_served() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../api/server.json");
    let stored = std::fs::read_to_string(path).expect("api/server.json is checked in");
    let made = ferry_server::openapi_document();
    assert!(stored == made, "write it anew: cargo run -p ferry-server -- openapi > api/server.json");
    let document: serde_json::Value = serde_json::from_str(&made).expect("JSON");
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
}

#[test]
fn every_documented_path_is_served() {
    in_lab(async |lab| {
        let plain = Plain::new(lab);
        let document: serde_json::Value = serde_json::from_str(&ferry_server::openapi_document()).expect("JSON");
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for method in methods.as_object().expect("methods").keys() {
                let path = path.strip_prefix("/api/v1").expect("below the version");
                let path = path.replace(['{', '}'], "");
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
                if path == "/events" {
                    continue;
                }
                let (status, body) = answer(plain.call(method.clone(), &path)).await;
                assert!(!body.contains("There is no ") && status != 405, "{method} {path}: {status} {body}");
            }
        }
    });
}

#[test]
fn a_second_server_on_one_state_directory_is_refused() {
    in_lab(async |lab| {
        let config = lab.config().clone();
        let second = ferry_server::Server::start(&config).await;
        let error = second.err().expect("refused").to_string();
        assert!(error.contains("Another ferry-server"), "{error}");
        // A new token takes effect at once.
        let (_, _, old) = lab.access();
        ferry_server::renew_token(&config).await.expect("renewed");
        assert_ne!(lab.access().2, old);
        assert!(lab.client.hosts().await.is_err());
        let plain = Plain::new(lab);
        assert_eq!(answer(plain.call(Method::GET, "/hosts")).await, (200, "[]".to_owned()));
    });
}

#[test]
fn secrets_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    in_lab(async |lab| {
        let state = lab.config().state_dir.clone();
        let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o700);
        for file in ["admin.token", "rest.key", "agents.key", "ferry.db"] {
            assert_eq!(mode(&state.join(file)), 0o600, "{file}");
        }
        let (_, pin, token) = lab.access();
        let stored = std::fs::read_to_string(state.join("server.pin")).expect("there");
        assert_eq!(stored.trim(), pin.to_string());
        lab.stop_server().await;
        let database = std::fs::read(state.join("ferry.db")).expect("there");
        let holds = |text: &str| database.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(holds("CREATE TABLE token") && !holds(&token), "only the hash is stored");
    });
}
