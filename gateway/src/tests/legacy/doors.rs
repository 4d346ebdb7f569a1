//! Who is let in, and what a browser is shown.

use super::*;

const UPGRADE: [&str; 3] =
    ["upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="];

/// The status of a handshake; the socket is dropped.
async fn knock(server: &Server, path: &str, more: &[&str]) -> u16 {
    let mut socket = server.connect().await;
    let headers = [&UPGRADE[..], more].concat();
    let request =
        server.request("GET", path, &headers, "").replace("connection: close", "connection: upgrade");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = vec![0; 12];
    socket.read_exact(&mut head).await.unwrap();
    String::from_utf8(head).unwrap()[9..].parse().unwrap()
}

#[tokio::test]
async fn workers_are_let_in_at_every_path_that_an_sdk_asks_for() {
    let open = Server::start(|_| {}).await;
    for path in [
        "/",
        "/ws",
        "/api/worker/connect",
        "/api/worker/connect/",
        "/api/worker/connect/123456",
        "/api/worker/connect/a/b",
        "/api/worker/connect/api/worker/connect",
        "/123456/api/worker/connect",
        "//api//worker/connect",
        "/api/worker/connect?x=1",
    ] {
        assert_eq!(knock(&open, path, &[]).await, 101, "{path}");
    }
    let keyed = Server::start(|settings| settings.worker_key = Some("s3cr/t {x}".to_owned())).await;
    for (path, status) in [
        ("/api/worker/connect/s3cr/t%20%7Bx%7D", 101),
        ("/api/worker/connect/s3cr/t%20%7Bx%7D/", 101),
        ("/api/worker/connect/s3cr%2Ft%20%7Bx%7D?/api/worker/connect", 101),
        ("/api/worker/connect/s3cr/t%20%7Bx%7D/api/worker/connect", 101),
        ("/s3cr%2Ft%20%7Bx%7D/api/worker/connect", 101),
        ("//api/worker/connect/s3cr/t%20%7Bx%7D", 101),
        ("/", 404),
        ("/ws", 404),
        ("/api/worker/connect", 404),
        ("/api/worker/connect/", 404),
        ("/api/worker/connect/s3cr", 404),
        ("/api/worker/connect/s3cr/t%20%7Bx%7Dx", 404),
        ("/api/worker/connect/api/worker/connect", 404),
        ("/wrong/api/worker/connect", 404),
    ] {
        assert_eq!(knock(&keyed, path, &[]).await, status, "{path}");
    }
}

#[tokio::test]
async fn pages_of_other_sites_start_nothing() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let browser = "user-agent: Mozilla/5.0";
    let evil = "origin: http://evil.example";
    assert_eq!(knock(&server, "/api/worker/connect", &[browser, evil]).await, 403);
    assert_eq!(knock(&server, "/", &["sec-fetch-site: cross-site", evil]).await, 403);
    let body = r#"{"method":"m","params":"forbidden"}"#;
    let form = "content-type: text/plain";
    let (status, head, text) = server.exchange("POST", "/api/execute", &[browser, evil, form], body).await;
    assert_eq!(status, 403, "{text}");
    assert!(
        head.contains("application/problem+json") && text.contains("origin_not_allowed"),
        "{head} {text}"
    );
    let own = format!("origin: http://{}", server.address);
    let (status, _) = server.send("POST", "/api/execute", &[browser, &own, form], r#"{"method":"m"}"#).await;
    assert_eq!(status, 200);
    let first = worker.hear().await.unwrap();
    assert!(first.contains("\"params\":null"), "the forbidden call was executed: {first}");
    assert_eq!(server.handle.workers().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_base_url_that_ends_in_a_slash_works() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let id = id_of(server.post("//api/execute", r#"{"method":"m","params":1}"#).await, "processing");
    assert_eq!(worker.task().await, id);
    worker.answer(&id, "1").await;
    let (status, body) = server.get(&format!("//api//result/{id}?x=1")).await;
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, done(&id, json!(1))));
    assert_eq!(server.get("//no//such").await.0, 404);
}

#[tokio::test]
async fn the_page_shows_what_workers_say_as_text() {
    let server = Server::start(|_| {}).await;
    let _native = native_worker(&server, "add").await;
    let mut legacy = Worker::knock(&server, "/ws").await;
    legacy
        .say(r#"{"group":"</td><img src=x onerror=alert(1)>","methods":[{"name":"a\"><script>","docs":["<svg onload=x>"]}]}"#)
        .await;
    server.workers(2).await;
    let (status, head, page) = server.exchange("GET", "/", &["user-agent: Mozilla/5.0"], "").await;
    assert_eq!(status, 200);
    assert!(page.to_ascii_lowercase().starts_with("<!doctype html"));
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    for markup in ["<script", "<img", "<svg", "onerror=alert(1)>"] {
        assert!(!page.contains(markup), "{markup} in {page}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("&lt;svg onload=x&gt;"));
    assert!(page.contains("<code>add</code> 1.0.0"), "{page}");
    let (status, head, _) = server.exchange("GET", "/page.css", &[], "").await;
    assert!(status == 200 && head.contains("text/css"), "{head}");
}
