//! What a stranger, a broken client or a web page may send: a clear answer in one shape, nothing executed,
//! nobody else disturbed.

use serde_json::json;

use crate::{
    grpc::{adder, start},
    harness::Server,
    http::{Answer, get, post, send},
};

/// Nothing was handed in.
async fn untouched(server: &Server) {
    assert_eq!(get(server, "/v1/stats").await.json()["submitted_total"], 0);
}

#[track_caller]
fn refused(answer: &Answer, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{answer:?}");
}

#[tokio::test]
async fn bad_json_is_refused_with_its_place_and_reaches_nobody() {
    let server = Server::start();
    let _worker = start(adder(&server)).await;
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    let open = "[".repeat(1_000_000);
    let cases: &[(&[u8], &str, &str)] = &[
        (b"{\"a\": 1,\n  \"b\" 2}", "invalid_json", "line 2 column 7"),
        (b"NaN", "invalid_json", "line 1 column 1"),
        (b"1 2", "invalid_json", "trailing characters at line 1 column 3"),
        (b"{\"a\":01}", "invalid_json", "line 1"),
        (b"\xef\xbb\xbf{}", "invalid_json", "line 1"),
        (b"\"\xff\"", "invalid_json", "line 1"),
        (b"\"\x01\"", "invalid_json", "line 1"),
        (b"{'a':1}", "invalid_json", "line 1"),
        (b"{\"a\":1", "invalid_json", "EOF"),
        (b" ", "invalid_json", "EOF"),
        (open.as_bytes(), "invalid_json", "EOF"),
        (deep.as_bytes(), "invalid_field", "is nested 1000000 deep; at most 10000"),
    ];
    for (body, reason, detail) in cases {
        for (target, headers) in [
            ("/v1/call/add", &[][..]),
            ("/v1/call/add?wait=1s", &[("content-type", "application/vnd.x+json")][..]),
        ] {
            let answer = send(&server, "POST", target, headers, body.to_vec()).await;
            refused(&answer, 400, reason);
            assert!(answer.json()["detail"].as_str().unwrap().contains(detail), "{answer:?}");
        }
    }
    let tasks: &[&str] = &["", "{", "[{]", "\u{feff}[]", "nonsense", &open];
    for body in tasks {
        refused(&post(&server, "/v1/tasks", body.to_string()).await, 400, "invalid_json");
    }
    let deep_payload = format!(r#"{{"method":"add","payload":{deep}}}"#);
    let wrong: &[&str] = &[
        "1",
        "{}",
        r#"{"method":7}"#,
        r#"{"method":"add","method":"add"}"#,
        r#"{"method":"\ud800"}"#,
        r#"{"method":"add","options":[]}"#,
        r#"{"method":"add","options":{"target":["^1"]}}"#,
        r#"{"method":"add","options":{"priority":-1}}"#,
        r#"{"method":"add","options":{"priority":10}}"#,
        r#"{"method":"add","options":{"deadline_ms":1.5}}"#,
        r#"{"method":"add","options":{"durability":"DURABLE"}}"#,
        r#"{"method":"add","options":{"retry":{"max_attempts":1001}}}"#,
        r#"{"method":"add","options":{"target":{"version":"latest"}}}"#,
        r#"{"method":"add","payload":{"base64":"?","content_type":"x"}}"#,
        r#"{"method":"","payload":1}"#,
        &deep_payload,
    ];
    for body in wrong {
        refused(&post(&server, "/v1/tasks", body.to_string()).await, 400, "invalid_field");
    }
    untouched(&server).await;
    assert_eq!(post(&server, "/v1/call/add", r#"{"a":1,"b":2}"#).await.text(), "3");
}

#[tokio::test]
async fn every_refusal_has_the_same_shape() {
    let server = Server::start();
    let id = "0192f0c1-2345-7000-8000-000000000000";
    let long = "x".repeat(257);
    let cases = [
        ("GET", "/v1/nothing".to_owned(), 404, "not_found"),
        ("GET", "/v1/call/add".to_owned(), 405, "method_not_allowed"),
        ("PUT", "/v1/tasks".to_owned(), 405, "method_not_allowed"),
        ("GET", format!("/v1/tasks/{id}/retry"), 405, "method_not_allowed"),
        ("GET", "/v1/tasks/7".to_owned(), 400, "invalid_field"),
        ("GET", format!("/v1/tasks/{id}"), 404, "task_not_found"),
        ("GET", format!("/v1/tasks/{id}?wait=1s"), 404, "task_not_found"),
        ("GET", format!("/v1/tasks/{id}/result"), 404, "task_not_found"),
        ("GET", format!("/v1/tasks/{id}/explain"), 404, "task_not_found"),
        ("DELETE", format!("/v1/tasks/{id}"), 404, "task_not_found"),
        ("DELETE", format!("/v1/tasks/{id}?reason={}", "x".repeat(1025)), 400, "invalid_field"),
        ("POST", format!("/v1/tasks/{id}/retry"), 404, "task_not_found"),
        ("GET", format!("/v1/tasks/{id}?wiat=1s"), 400, "invalid_field"),
        ("GET", format!("/v1/tasks/{id}?wait=301s"), 400, "invalid_field"),
        ("GET", format!("/v1/tasks/{id}?payload=maybe"), 400, "invalid_field"),
        ("GET", "/v1/tasks?limit=0".to_owned(), 400, "invalid_field"),
        ("GET", "/v1/tasks?limit=1001".to_owned(), 400, "invalid_field"),
        ("GET", "/v1/tasks?page=7".to_owned(), 400, "invalid_field"),
        ("GET", "/v1/tasks?state=running".to_owned(), 400, "invalid_field"),
        ("GET", "/v1/stats?x=1".to_owned(), 400, "invalid_field"),
        ("GET", "/v1/worker".to_owned(), 426, "upgrade_required"),
        ("POST", format!("/v1/call/{long}"), 400, "invalid_field"),
        ("POST", "/v1/call/%20add".to_owned(), 400, "invalid_field"),
        ("POST", "/v1/call/a%00b".to_owned(), 400, "invalid_field"),
        ("POST", "/v1/call/%ff".to_owned(), 400, "invalid_field"),
        ("POST", "/v1/call/add?deadline=yesterday".to_owned(), 400, "invalid_field"),
        ("POST", "/v1/call/add?priority=10".to_owned(), 400, "invalid_field"),
    ];
    for (method, target, status, reason) in cases {
        let answer = send(&server, method, &target, &[], "").await;
        refused(&answer, status, reason);
        if reason != "not_found" {
            let path = target.split('?').next().unwrap();
            assert_eq!(answer.json()["instance"], path, "{answer:?}");
        }
        if status == 405 {
            assert!(!answer.header("allow").is_empty(), "{answer:?}");
        }
    }
    untouched(&server).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let server = Server::builder().args(["--max-payload-bytes", "1000"]).start();
    let _worker = start(adder(&server)).await;
    for target in ["/v1/call/add", "/v1/tasks"] {
        // A hundred million bytes are announced; none is sent.
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 100000000\r\n\r\n"
        );
        let answer = crate::raw::exchange(server.address(), head.as_bytes()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"payload_too_large\""), "{answer}");
        // In pieces, nobody knows before.
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        let piece = format!("{:x}\r\n{}\r\n", 65_536, " ".repeat(65_536));
        let bytes = [head.as_bytes(), piece.repeat(100).as_bytes()].concat();
        let answer = crate::raw::exchange(server.address(), &bytes[..head.len() + 80 * piece.len()]);
        assert!(answer.is_err() || answer.unwrap().starts_with("HTTP/1.1 413 "), "{target}");
    }
    let just = |size: usize| format!(r#"{{"a":1,"b":2{}}}"#, " ".repeat(size - 13));
    assert_eq!(post(&server, "/v1/call/add", just(1000)).await.status, 200);
    refused(&post(&server, "/v1/call/add", just(1001)).await, 413, "payload_too_large");
    let listed = format!(r#"[{{"method":"add","payload":{}}}]"#, just(1001));
    let refusal = post(&server, "/v1/tasks", listed).await.json()["results"][0]["refusal"].take();
    assert_eq!((&refusal["status"], &refusal["reason"]), (&json!(413), &json!("payload_too_large")));
}

#[tokio::test]
async fn a_full_server_says_when_to_come_back() {
    let server = Server::builder().args(["--max-queue-tasks", "1"]).start();
    assert_eq!(post(&server, "/v1/tasks", r#"{"method":"m"}"#).await.status, 201);
    let answer = post(&server, "/v1/call/m", "1").await;
    refused(&answer, 429, "queue_full");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.json()["retry_after_ms"], 1_000);
}

#[tokio::test]
async fn pages_of_other_sites_can_do_nothing() {
    let server = Server::builder().args(["--allowed-origins", "https://ops.example"]).start();
    let own = format!("http://{}", server.address());
    let foreign: &[&[(&str, &str)]] = &[
        &[("origin", "https://evil.example"), ("user-agent", "Mozilla/5.0")],
        &[("origin", "null"), ("user-agent", "Mozilla/5.0")],
        &[("origin", "https://evil.example")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site"), ("content-type", "text/plain")],
    ];
    for headers in foreign {
        for (method, target) in [("POST", "/v1/call/add"), ("POST", "/v1/tasks"), ("DELETE", "/v1/tasks/x")] {
            let answer = send(&server, method, target, headers, r#"{"method":"add"}"#).await;
            refused(&answer, 403, "origin_not_allowed");
        }
        let mut upgrade = headers.to_vec();
        upgrade.extend([
            ("user-agent", "Mozilla/5.0"),
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        refused(&send(&server, "GET", "/v1/worker", &upgrade, "").await, 403, "origin_not_allowed");
    }
    let rebound =
        [("host", "evil.example"), ("origin", "http://evil.example"), ("user-agent", "Mozilla/5.0")];
    refused(&send(&server, "POST", "/v1/call/add", &rebound, "1").await, 421, "host_not_allowed");
    refused(&send(&server, "GET", "/v1/stats", &rebound, "").await, 421, "host_not_allowed");
    untouched(&server).await;

    let task = r#"{"method":"add"}"#;
    let at_home = [("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(send(&server, "POST", "/v1/tasks", &at_home, task).await.status, 201);
    let allowed = [("origin", "https://ops.example"), ("sec-fetch-site", "cross-site")];
    let answer = send(&server, "POST", "/v1/tasks", &allowed, task).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (201, "https://ops.example"));
    let preflight = [
        ("origin", "https://ops.example"),
        ("access-control-request-method", "DELETE"),
        ("access-control-request-headers", "content-type,crewcall-deadline"),
    ];
    let answer = send(&server, "OPTIONS", "/v1/tasks/x", &preflight, "").await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-headers"), "content-type,crewcall-deadline");
    assert!(answer.header("access-control-allow-methods").contains("DELETE"));
    let stranger = [("origin", "https://evil.example"), ("access-control-request-method", "DELETE")];
    let answer = send(&server, "OPTIONS", "/v1/tasks/x", &stranger, "").await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn what_workers_say_of_themselves_is_shown_as_data() {
    let server = Server::start();
    let docs = "<img src=x onerror=alert(1)> [x](javascript:alert(1)) \u{202e}";
    let hello = json!({"methods": [{"name": "m", "docs": docs, "summary": "<script>alert(1)</script>"}]});
    let mut worker = crate::http::JsonWorker::join(&server, hello).await;
    let answer = get(&server, "/v1/methods").await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.json()["methods"][0]["method"]["docs"], docs);
    // A result is not a page of this server, whatever its worker calls it.
    worker.credit(1).await;
    let (answer, ()) = tokio::join!(post(&server, "/v1/call/m", "1"), async {
        let task = worker.assigned().await;
        let html = json!({"base64": "PHNjcmlwdD4=", "content_type": "text/html\r\nset-cookie: a=b"});
        worker.end(&task["lease"], json!({"succeeded": html})).await;
    });
    assert_eq!((answer.text(), answer.header("content-type")), ("<script>", "application/octet-stream"));
    assert_eq!(answer.header("content-security-policy"), "sandbox");
    assert!(answer.headers.get("set-cookie").is_none());
}
