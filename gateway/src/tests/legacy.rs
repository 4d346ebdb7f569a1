//! What the golden cases do not reach: times, races, hang-ups, settings, and workers of both kinds.

use std::time::Instant;

use crewcall::scheduler::{AttemptEnd, AttemptResult, Frame, Hello, PoolSpec};
use crewcall::task::{Method, NewTask, Outcome, Payload, TaskOptions};
use crewcall::{engine::SessionItem, handle::Session};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::*;
use crate::legacy::crypto;

mod doors;
mod life;
mod results;
mod sealed;

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
