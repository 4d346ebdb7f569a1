//! What the golden cases do not reach: times, races, hang-ups, settings, and workers of both kinds.

use std::time::Instant;

use crewcall::scheduler::{AttemptEnd, AttemptResult, Frame, Hello, PoolSpec};
use crewcall::task::{Method, NewTask, Outcome, Payload, TaskOptions};
use crewcall::{engine::SessionItem, handle::Session};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::*;
use crate::legacy::crypto;

const NO_WORKER: &str = "服务不可用";

/// A worker that joins as the SDKs of this project do.
async fn native_worker(server: &Server, method: &str) -> Session {
    let method = Method {
        name: method.into(),
        version: semver::Version::new(1, 0, 0),
        version_text: "1.0.0".to_owned(),
        summary: "adds <b>".to_owned(),
        docs: "<script>alert(1)</script>".to_owned(),
        input_schema: String::new(),
        output_schema: String::new(),
        examples: Vec::new(),
        pool: String::new(),
    };
    let pools = vec![PoolSpec { name: String::new(), concurrency: 4 }];
    let hello = Hello { pools, methods: vec![method], group: "native".to_owned(), ..Hello::default() };
    let (_, session) = server.handle.join(hello).await.unwrap();
    session.say(Frame { credits: vec![(String::new(), 4)], ..Frame::default() }).await.unwrap();
    session
}

/// Answers the next task of a native worker; what it was given.
async fn native_answer(session: &Session, result: Payload) -> Payload {
    let mut items = Vec::new();
    loop {
        assert!(session.outbox().take(&mut items).await.unwrap());
        for item in items.drain(..) {
            if let SessionItem::Assign(assign) = item {
                let end = AttemptEnd::Succeeded(result);
                let results = vec![AttemptResult { lease: assign.lease, seq: 1, end }];
                session.say(Frame { results, ..Frame::default() }).await.unwrap();
                return assign.payload;
            }
        }
    }
}

async fn submit(server: &Server, method: &str, params: &str) -> String {
    let body = format!(r#"{{"method":"{method}","params":{params}}}"#);
    id_of(server.post("/api/execute", &body).await, "processing")
}

fn id_of((status, body): (u16, String), expected: &str) -> String {
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, answer["status"].as_str().unwrap()), (200, expected), "{body}");
    answer["taskId"].as_str().unwrap().to_owned()
}

async fn result(server: &Server, id: &str) -> Value {
    let (status, body) = server.get(&format!("/api/result/{id}")).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn done(id: &str, result: Value) -> Value {
    json!({"status": "done", "taskId": id, "result": result})
}

fn failed(id: &str, error: &str) -> Value {
    json!({"status": "error", "taskId": id, "result": error})
}

/// A text frame as a client sends it, under a mask of zeroes.
fn text_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u8::try_from(text.len()) {
        Ok(length) if length < 126 => frame.push(0x80 | length),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// A worker as bytes: it answers nothing by itself, not even pings.
async fn mute_worker(server: &Server, methods: &[&str], mut socket: TcpStream) -> TcpStream {
    let count = server.handle.workers().await.unwrap().len();
    let request = format!(
        "GET /api/worker/connect HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        server.address
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    let methods: Vec<Value> = methods.iter().map(|name| json!({"name": name})).collect();
    let registration = json!({"group": "mute", "methods": methods}).to_string();
    socket.write_all(&text_frame(&registration)).await.unwrap();
    server.workers(count + 1).await;
    socket
}

// --- life ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_truly_silent_worker_is_cut_and_its_callers_are_told() {
    let every = Duration::from_millis(100);
    let server = Server::start(|settings| settings.legacy_ping_interval = every).await;
    let mut mute = mute_worker(&server, &["m"], server.connect().await).await;
    let joined = Instant::now();
    let id = submit(&server, "m", "1").await;
    assert_eq!(result(&server, &id).await, failed(&id, "Worker timeout"));
    assert!(joined.elapsed() >= every * 2, "cut after {:?}", joined.elapsed());
    server.workers(0).await;

    let mut told = Vec::new();
    mute.read_to_end(&mut told).await.unwrap();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.contains("\"type\":\"task\"") && told.contains("{\"type\":\"ping\"}\n"), "{told}");
    assert!(told.contains("nothing was heard"), "{told}");
    let body = r#"{"method":"m"}"#;
    id_of(server.post("/api/execute", body).await, "error");
}

#[tokio::test]
async fn an_unregistered_silent_socket_is_cut_too() {
    let server = Server::start(|settings| settings.legacy_ping_interval = Duration::from_millis(50)).await;
    let mut socket = server.connect().await;
    let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut told = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut told)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&told).contains("nothing was heard"));
}

#[tokio::test]
async fn websocket_pongs_and_any_message_are_life() {
    let server = Server::start(|settings| settings.legacy_ping_interval = Duration::from_millis(60)).await;
    // The library answers WebSocket pings while it is read; nothing answers the JSON ones.
    let mut ponging = Worker::join(&server, "ponging").await;
    let talking = mute_worker(&server, &["talking"], server.connect().await).await;
    let (mut pings, (mut said, mut saying)) = (0, talking.into_split());
    let reading = tokio::spawn(async move { said.read_to_end(&mut Vec::new()).await });
    while pings < 8 {
        let message = ponging.socket.next().await.unwrap().unwrap();
        if matches!(&message, Message::Text(text) if text.as_str() == "{\"type\":\"ping\"}\n") {
            pings += 1;
            saying.write_all(&text_frame(r#"{"type":"anything"}"#)).await.unwrap();
        }
    }
    assert_eq!(server.handle.workers().await.unwrap().len(), 2);
    reading.abort();
}

/// A worker that does not read, and the task that waits for it: more than the kernel takes for a client like this.
async fn stuck_worker(server: &Server) -> (TcpStream, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let socket = socket.connect(server.address).await.unwrap();
    let stuck = mute_worker(server, &["m", "only"], socket).await;
    let params = format!("\"{}\"", "x".repeat(4_000_000));
    (stuck, submit(server, "only", &params).await)
}

#[tokio::test]
async fn a_worker_that_stops_reading_hurts_nobody_else() {
    // Nothing is cut in this test, however slow the machine is.
    let port = ListenerSettings { write_timeout: PATIENCE * 100, ..ListenerSettings::default() };
    let server = Server::start_on(port, |settings| settings.legacy_ping_interval = PATIENCE * 100).await;
    let (_stuck, _task) = stuck_worker(&server).await;
    let mut reader = Worker::join(&server, "m").await;
    let answering = tokio::spawn(async move {
        loop {
            let id = reader.task().await;
            reader.answer(&id, "1").await;
        }
    });
    for _ in 0..10 {
        let id = submit(&server, "m", "1").await;
        assert_eq!(result(&server, &id).await, done(&id, json!(1)));
    }
    assert_eq!(server.handle.workers().await.unwrap().len(), 2);
    answering.abort();
}

#[tokio::test]
async fn a_worker_that_stops_reading_is_cut() {
    let port = ListenerSettings { write_timeout: Duration::from_millis(500), ..ListenerSettings::default() };
    let server = Server::start_on(port, |_| {}).await;
    let (_stuck, id) = stuck_worker(&server).await;
    assert_eq!(result(&server, &id).await, failed(&id, "Worker timeout"));
    server.workers(0).await;
}

#[tokio::test]
async fn a_stopping_server_lets_a_worker_finish_first() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let mut unregistered = Worker::knock(&server, "/").await;
    let mut call = Box::pin(server.handle.call(NewTask::call("m", Payload::json("1"))));
    let id = tokio::select! {
        _ = &mut call => panic!("answered before its worker"),
        id = worker.task() => id,
    };
    server.shutdown.stop();
    let mut stopping = Box::pin(server.handle.shutdown());
    tokio::select! {
        biased;
        () = &mut stopping => panic!("stopped with a task running"),
        _ = &mut call => panic!("answered before its worker"),
        // It had nothing to do.
        told = unregistered.hear() => assert_eq!(told, None),
    }
    worker.answer(&id, "7").await;
    let ((), outcome, told) = tokio::join!(stopping, call, worker.hear());
    assert_eq!(outcome.unwrap().1, Outcome::Succeeded(Payload::json("7")));
    assert_eq!(told, None);
    let closed = tokio::time::timeout(PATIENCE, server.edges).await.unwrap().unwrap();
    assert_eq!(closed.cut, 0);
}

// --- results ------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_use_up_the_outcome() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    for round in 0..20 {
        let id = submit(&server, "m", "1").await;
        assert_eq!(worker.task().await, id);
        let mut caller = server.connect().await;
        let request = server.request("GET", &format!("/api/result/{id}"), &[], "");
        caller.write_all(request.as_bytes()).await.unwrap();
        caller.shutdown().await.unwrap();
        // The server has seen that it is gone when it closes in turn.
        let mut rest = Vec::new();
        caller.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        worker.answer(&id, &round.to_string()).await;
        assert_eq!(result(&server, &id).await, done(&id, json!(round)));
    }
}

#[tokio::test]
async fn of_many_readers_exactly_one_gets_the_outcome() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    for held in [true, false] {
        let id = submit(&server, "m", "1").await;
        assert_eq!(worker.task().await, id);
        if !held {
            worker.answer(&id, "3").await;
        }
        let path = format!("/api/result/{id}");
        let mut readers: Vec<_> = (0..64).map(|_| Box::pin(server.get(&path))).collect();
        if held {
            // All of them are on their way before the answer is.
            for reader in &mut readers {
                tokio::select! {
                    biased;
                    _ = reader => panic!("answered before its worker"),
                    () = tokio::task::yield_now() => {}
                }
            }
            worker.answer(&id, "3").await;
        }
        let mut served = 0;
        for answer in futures_util::future::join_all(readers).await {
            match answer {
                (200, body) => {
                    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), done(&id, json!(3)));
                    served += 1;
                }
                (status, body) => assert_eq!((status, &*body), (404, "task not found\n")),
            }
        }
        assert_eq!(served, 1, "held: {held}");
    }
}

#[tokio::test]
async fn of_many_readers_one_reads_that_there_was_no_worker() {
    let server = Server::start(|_| {}).await;
    let id = id_of(server.post("/api/execute", r#"{"method":"nobody"}"#).await, "error");
    let path = format!("/api/result/{id}");
    let answers = futures_util::future::join_all((0..64).map(|_| server.get(&path))).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 1);
    assert!(answers.iter().any(|(_, body)| body.contains(NO_WORKER)));
}

#[tokio::test]
async fn without_a_hold_a_request_never_waits() {
    let server = Server::start(|settings| settings.legacy_result_hold = Duration::ZERO).await;
    let _worker = Worker::join(&server, "m").await;
    let id = submit(&server, "m", "1").await;
    let expected = json!({"status": "processing", "taskId": id, "result": null});
    assert_eq!(result(&server, &id).await, expected);
}

#[tokio::test]
async fn a_hold_ends_with_processing() {
    let hold = Duration::from_millis(150);
    let server = Server::start(|settings| settings.legacy_result_hold = hold).await;
    let _worker = Worker::join(&server, "m").await;
    let id = submit(&server, "m", "1").await;
    let began = Instant::now();
    assert_eq!(result(&server, &id).await["status"], "processing");
    assert!(began.elapsed() >= hold, "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_first_answer_counts_from_whomever_it_comes() {
    let server = Server::start(|_| {}).await;
    let mut owner = Worker::join(&server, "m").await;
    let mut other = Worker::join(&server, "other").await;
    let id = submit(&server, "m", "1").await;
    assert_eq!(owner.task().await, id);
    other.answer(&id, "1").await;
    other.answer(&id, "2").await;
    // In order behind both: the same socket.
    let after = submit(&server, "other", "1").await;
    assert_eq!(other.task().await, after);
    other.answer(&after, "0").await;
    assert_eq!(result(&server, &after).await, done(&after, json!(0)));
    owner.answer(&id, "3").await;
    assert_eq!(result(&server, &id).await, done(&id, json!(1)));
}

#[tokio::test]
async fn an_unreadable_message_fails_its_task_and_not_its_worker() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let (first, second) = (submit(&server, "m", "1").await, submit(&server, "m", "2").await);
    worker.say("not json").await;
    worker.say("[1]").await;
    worker
        .say(&format!(r#"{{"type": "result", "taskId": "{first}", "status": "success", "result": NaN}}"#))
        .await;
    worker.answer(&second, "2").await;
    let outcome = result(&server, &first).await;
    assert_eq!(outcome["status"], "error");
    assert!(outcome["result"].as_str().unwrap().contains("invalid character 'N'"), "{outcome}");
    assert_eq!(result(&server, &second).await, done(&second, json!(2)));
}

// --- values -------------------------------------------------------------------------------------------

#[tokio::test]
async fn values_pass_as_they_are_spelled_however_deep() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    // The body itself is one level.
    let deep = format!("{}1e400,9007199254740993{}", "[".repeat(9_999), "]".repeat(9_999));
    for value in [&*deep, r#"{"z":1.0,"a":-0,"a":"\ud800","":[]}"#] {
        let id = submit(&server, "m", value).await;
        let message = worker.hear().await.unwrap();
        assert_eq!(
            message,
            format!("{{\"method\":\"m\",\"params\":{value},\"taskId\":\"{id}\",\"type\":\"task\"}}\n")
        );
        let answer = value.strip_prefix('[').and_then(|value| value.strip_suffix(']')).unwrap_or(value);
        worker.answer(&id, answer).await;
        let (_, body) = server.get(&format!("/api/result/{id}")).await;
        assert_eq!(body, format!("{{\"result\":{answer},\"status\":\"done\",\"taskId\":\"{id}\"}}\n"));
    }
    for depth in [10_000, 100_000] {
        let body = format!(r#"{{"method":"m","params":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let refused = (400, "invalid character '[' exceeded max depth\n".to_owned());
        assert_eq!(server.post("/api/execute", &body).await, refused);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_in_clear_words() {
    let server = Server::start(|_| {}).await;
    let _worker = Worker::join(&server, "m").await;
    let body = format!(r#"{{"method":"m","params":"{}"}}"#, "x".repeat(5 << 20));
    let (status, text) = server.post("/api/execute", &body).await;
    assert_eq!(status, 413, "{text}");
    // Within the body's limit, over the payload's.
    let body = format!(r#"{{"method":"m","params":"{}"}}"#, "x".repeat((4 << 20) + 10));
    let (status, text) = server.post("/api/execute", &body).await;
    assert_eq!(status, 413);
    assert!(text.contains("limits.payload_bytes"), "{text}");
}

// --- both kinds of workers and callers ----------------------------------------------------------------

#[tokio::test]
async fn a_legacy_caller_is_served_by_a_native_worker() {
    let server = Server::start(|_| {}).await;
    let session = native_worker(&server, "add").await;
    let answers = [
        (Payload::json("{ \"sum\": 3 }"), done("", json!({"sum": 3}))),
        (Payload::default(), done("", Value::Null)),
        (Payload::json("{"), failed("", "the payload is not JSON: unexpected EOF")),
    ];
    for (answer, mut expected) in answers {
        let id = submit(&server, "add", "{\"a\": 1}").await;
        let given = native_answer(&session, answer).await;
        assert_eq!(given, Payload::json("{\"a\":1}"));
        expected["taskId"] = json!(id);
        assert_eq!(result(&server, &id).await, expected);
    }
    let id = submit(&server, "add", "1").await;
    let image = Payload { data: "GIF89a".into(), content_type: "image/gif".to_owned() };
    native_answer(&session, image).await;
    assert!(result(&server, &id).await["result"].as_str().unwrap().contains("image/gif"));

    let status: Value = serde_json::from_str(&server.get("/api/status").await.1).unwrap();
    assert_eq!(status["workers"][0]["group"], "native");
    assert_eq!(status["workers"][0]["methods"][0]["name"], "add");
    assert_eq!(status["totalMethods"], 1);
}

#[tokio::test]
async fn a_native_caller_is_served_by_a_legacy_worker() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let call = server.handle.call(NewTask::call("m", Payload::json("[1, 2]")));
    let serve = async {
        let message = worker.hear().await.unwrap();
        assert!(message.contains("\"params\":[1,2]"), "{message}");
        let id = serde_json::from_str::<Value>(&message).unwrap()["taskId"].as_str().unwrap().to_owned();
        worker.answer(&id, "{\"x\": 1}").await;
        id
    };
    let (outcome, id) = tokio::join!(call, serve);
    assert_eq!(outcome.unwrap().1, Outcome::Succeeded(Payload::json("{\"x\":1}")));
    // Not a legacy call: the legacy edge does not know it, and cannot use it up.
    assert_eq!(server.get(&format!("/api/result/{id}")).await.0, 404);

    let image = Payload { data: "GIF89a".into(), content_type: "image/gif".to_owned() };
    let (_, outcome) = server.handle.call(NewTask::call("m", image)).await.unwrap();
    let Outcome::Failed(error) = outcome else { panic!("{outcome:?}") };
    assert_eq!(error.code, "payload_not_json");
}

#[tokio::test]
async fn a_cancelled_task_leaves_its_worker_and_its_late_answer_finds_nobody() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let id = submit(&server, "m", "1").await;
    assert_eq!(worker.task().await, id);
    server.handle.cancel(id.parse().unwrap(), "enough".to_owned()).await.unwrap();
    assert_eq!(result(&server, &id).await, failed(&id, "cancelled: enough"));
    worker.answer(&id, "1").await;
    let id = submit(&server, "m", "2").await;
    assert_eq!(worker.task().await, id);
    worker.answer(&id, "2").await;
    assert_eq!(result(&server, &id).await, done(&id, json!(2)));
    let workers = server.handle.workers().await.unwrap();
    assert_eq!(workers[0].pools[0].in_flight, 0);
}

#[tokio::test]
async fn tasks_of_native_callers_are_tried_again_elsewhere_when_a_legacy_worker_is_lost() {
    let server = Server::start(|_| {}).await;
    let mut first = Worker::join(&server, "m").await;
    let mut retry = TaskOptions::call();
    retry.retry.max_attempts = 2;
    retry.retry.initial_backoff_ms = 1;
    let task = NewTask { options: retry.into(), ..NewTask::call("m", Payload::json("1")) };
    let call = server.handle.call(task);
    let serve = async {
        let id = first.task().await;
        let mut second = Worker::join(&server, "m").await;
        drop(first);
        assert_eq!(second.task().await, id);
        second.answer(&id, "\"second\"").await;
        second
    };
    let (outcome, _second) = tokio::join!(call, serve);
    assert_eq!(outcome.unwrap().1, Outcome::Succeeded(Payload::json("\"second\"")));
}

// --- credit -------------------------------------------------------------------------------------------

#[tokio::test]
async fn tasks_are_pushed_at_once_however_many_there_are() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let options = TaskOptions::shared_submit();
    let tasks: Vec<_> = (0..5_000)
        .map(|_| NewTask { options: options.clone(), ..NewTask::call("m", Payload::json("1")) })
        .collect();
    for accepted in server.handle.submit(tasks).await.unwrap() {
        accepted.unwrap();
    }
    for _ in 0..5_000 {
        worker.task().await;
    }
}

// --- doors --------------------------------------------------------------------------------------------

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

// --- the page -----------------------------------------------------------------------------------------

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

// --- encryption ---------------------------------------------------------------------------------------

fn sealed_call(secret: &str, salt: &str, params: &str) -> String {
    json!({
        "method": "m",
        "params": crypto::seal(params.as_bytes(), secret).unwrap(),
        "key": crypto::seal(secret.as_bytes(), salt).unwrap(),
        "crypto": salt,
    })
    .to_string()
}

#[tokio::test]
async fn sealed_calls_are_relayed_unopened_by_default() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let call = sealed_call("k", "12", "{\"a\":1}");
    let id = id_of(server.post("/api/encrypted/execute", &call).await, "processing");
    let message: Value = serde_json::from_str(&worker.hear().await.unwrap()).unwrap();
    let sent: Value = serde_json::from_str(&call).unwrap();
    assert_eq!(message["type"], "encrypted_task");
    for field in ["method", "params", "key", "crypto"] {
        assert_eq!(message[field], sent[field], "{field}");
    }
    worker.answer(&id, "\"sealed\"").await;
    assert_eq!(server.get(&format!("/api/result/{id}")).await, (404, "task not found\n".to_owned()));
    let (_, body) = server.get(&format!("/api/encrypted/result/{id}")).await;
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), done(&id, json!("sealed")));
    let old = r#"{"method":"m","key":"k","salt":1,"params":{}}"#;
    assert_eq!(server.post("/api/execute-encrypted", old).await.0, 404);
}

#[tokio::test]
async fn sealed_calls_are_opened_when_the_operator_asks_for_it() {
    let server = Server::start(|settings| settings.legacy_open_encrypted = true).await;
    let mut worker = Worker::join(&server, "m").await;
    let (secret, params) = ("k-钥匙", "{\"a\": 9007199254740993}");
    let old = format!(r#"{{"method":"m","key":"{secret}","salt":7,"params":{params}}}"#);
    let sealed = sealed_call(secret, "-7", params);
    for (path, call) in [("/api/encrypted/execute", &sealed), ("/api/execute-encrypted", &old)] {
        for plainly in [false, true] {
            let id = id_of(server.post(path, call).await, "processing");
            let message = worker.hear().await.unwrap();
            assert!(message.contains("\"params\":{\"a\":9007199254740993}"), "{message}");
            assert!(message.contains("\"type\":\"task\"") && message.contains(&id), "{message}");
            worker.answer(&id, "{\"sum\": 3}").await;
            if plainly {
                let expected = json!({"status": "completed", "taskId": id, "result": {"sum": 3}});
                assert_eq!(result(&server, &id).await, expected);
            } else {
                let (_, body) = server.get(&format!("/api/encrypted/result/{id}")).await;
                let answer: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(answer["status"], "done");
                let opened = crypto::open(answer["result"].as_str().unwrap(), secret).unwrap();
                assert_eq!(opened, b"{\"sum\":3}");
            }
        }
    }
    // What cannot be opened is relayed as ever.
    let nonsense = r#"{"method":"m","params":"UEFSQU1T","key":"S0VZ","crypto":"1"}"#;
    let id = id_of(server.post("/api/encrypted/execute", nonsense).await, "processing");
    assert!(worker.hear().await.unwrap().contains("\"type\":\"encrypted_task\""));
    worker.say(&format!(r#"{{"type":"result","taskId":"{id}","error":"boom"}}"#)).await;
    let (_, body) = server.get(&format!("/api/encrypted/result/{id}")).await;
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), failed(&id, "boom"));
}
