//! Clients that read a little now and then, and never enough: each is cut, what it held goes back, and nobody else
//! notices. One rule for every protocol, in the port (`--write-timeout`, `--min-write-rate`).

use std::{
    io::Read as _,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::{
    grpc::{adder, client, start},
    harness::{PATIENCE, Server},
    http::{JsonWorker, get, post, send_to},
    raw::{self, END_HEADERS, END_STREAM, HEADERS, Http2, SETTINGS, frame, head},
};

/// A worker, or a caller, gets far more than the kernel takes for a client like this.
const LARGE: usize = 3 << 20;
const WINDOW_UPDATE: u8 = 0x8;

/// Asks for more than the clients here take, so that each of them is too slow, though it takes something all the time.
fn server() -> Server {
    let limits = "lease_ms = 60000, beat_ms = 20000, resume_ms = 200";
    Server::builder()
        .args(["--write-timeout", "1s", "--min-write-rate", "4000000", "--limits", limits, "--ephemeral"])
        .start()
}

fn large() -> Value {
    Value::String("x".repeat(LARGE))
}

/// A connection whose kernel takes little ahead of its program.
async fn connect(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    let stream = socket.connect(server.address()).await.unwrap().into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads a little at a time until the server closes: how much it was in all.
async fn drip(mut stream: TcpStream) -> usize {
    let reading = move || {
        let (began, mut read, mut buffer) = (Instant::now(), 0, [0; 1 << 10]);
        loop {
            assert!(began.elapsed() < PATIENCE, "not cut, {read} bytes taken");
            match stream.read(&mut buffer) {
                Ok(0) => return read,
                Ok(bytes) => read += bytes,
                Err(error) => {
                    assert!(!raw::is_timeout(&error), "neither told nor closed, {read} bytes taken");
                    return read;
                }
            }
            // The pace of the client: 100 KB a second.
            thread::sleep(Duration::from_millis(10));
        }
    };
    tokio::task::spawn_blocking(reading).await.unwrap()
}

/// The client is cut before it has all, while others are served.
async fn is_cut(server: &Server, stream: TcpStream) {
    let _adder = start(adder(server)).await;
    let caller = client(server).await;
    let mut dripping = tokio::spawn(drip(stream));
    let (ones, mut served) = (json!({"a": 1, "b": 1}), 0);
    let read = loop {
        tokio::select! {
            biased;
            read = &mut dripping => break read.unwrap(),
            sum = caller.call::<_, i64>("add", &ones) => {
                assert_eq!(sum.unwrap(), 2);
                served += 1;
            }
        }
    };
    assert!(read < LARGE, "it got everything, {read} bytes");
    assert!(served > 0, "nobody else was served");
    let peak = server.peak_memory();
    assert!(peak < 200 << 20, "{peak} bytes of memory for one slow client");
}

/// Asks with HTTP/1 and lets the answer wait.
async fn asks(server: &Server, target: &str) -> TcpStream {
    let mut stream = connect(server).await;
    let request = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    stream
}

/// Opens a worker's WebSocket and says these texts, below 64 KiB each, under a mask of zeroes.
async fn worker(server: &Server, path: &str, texts: &[Value]) -> TcpStream {
    let mut stream = connect(server).await;
    let mut bytes = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    .into_bytes();
    for text in texts {
        let text = text.to_string();
        bytes.extend([0x81, 0x80 | 126]);
        bytes.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(text.as_bytes());
    }
    std::io::Write::write_all(&mut stream, &bytes).unwrap();
    stream
}

async fn serves(server: &Server, method: &str) {
    let served = async { while !get(server, "/v1/methods").await.text().contains(&format!("{method:?}")) {} };
    crate::grpc::soon(served).await;
}

/// A task that has ended with a large result: its id.
async fn ended(server: &Server) -> String {
    let id = post(server, "/v1/tasks", r#"{"method":"m"}"#).await.json()["task_id"].take();
    let mut worker =
        JsonWorker::join(server, json!({"pools": [{"concurrency": 1}], "methods": [{"name": "m"}]})).await;
    worker.credit(1).await;
    let task = worker.assigned().await;
    worker.end(&task["lease"], json!({"succeeded": large()})).await;
    let id = id.as_str().unwrap().to_owned();
    assert_eq!(get(server, &format!("/v1/tasks/{id}?wait=300s")).await.json()["state"], "finished");
    id
}

#[tokio::test]
async fn a_legacy_worker() {
    let server = server();
    let registration = json!({"group": "slow", "methods": [{"name": "m", "docs": []}]});
    let stream = worker(&server, "/api/worker/connect", &[registration]).await;
    serves(&server, "m").await;
    let call = json!({"method": "m", "params": large()}).to_string();
    let id = post(&server, "/api/execute", call).await.json()["taskId"].take();
    is_cut(&server, stream).await;
    let answer = get(&server, &format!("/api/result/{}", id.as_str().unwrap())).await.json();
    assert_eq!((&answer["status"], &answer["result"]), (&json!("error"), &json!("Worker timeout")));
}

#[tokio::test]
async fn a_json_worker() {
    let server = server();
    let hello = json!({"worker_id": "slow", "pools": [{"concurrency": 9}], "methods": [{"name": "m"}]});
    let credit = json!({"credits": [{"total": 9}]});
    let stream = worker(&server, "/v1/worker", &[json!({ "hello": hello }), credit]).await;
    serves(&server, "m").await;
    let task = json!({"method": "m", "payload": large()}).to_string();
    let id = post(&server, "/v1/tasks", task).await.json()["task_id"].take();
    is_cut(&server, stream).await;
    let hello = json!({"worker_id": "quick", "pools": [{"concurrency": 9}], "methods": [{"name": "m"}]});
    let mut quick = JsonWorker::join(&server, hello).await;
    quick.credit(1).await;
    let task = quick.assigned().await;
    assert_eq!(task["task_id"], id, "it goes to another");
    quick.end(&task["lease"], json!({"succeeded": 1})).await;
}

#[tokio::test]
async fn a_follower_of_events() {
    let server = server();
    let id = post(&server, "/v1/tasks", r#"{"method":"m"}"#).await.json()["task_id"].take();
    let hello = json!({"pools": [{"concurrency": 1}], "methods": [{"name": "m"}]});
    let mut worker = JsonWorker::join(&server, hello).await;
    worker.credit(1).await;
    let task = worker.assigned().await;
    let stream = asks(&server, &format!("/v1/tasks/{}/events", id.as_str().unwrap())).await;
    let chunk = json!({"chunks": [{"lease": task["lease"], "data": "x".repeat(256 << 10)}]});
    for _ in 0..LARGE / (256 << 10) {
        worker.say(&chunk).await;
    }
    is_cut(&server, stream).await;
    worker.end(&task["lease"], json!({"succeeded": 1})).await;
    let result = format!("/v1/tasks/{}/result?wait=300s", id.as_str().unwrap());
    assert_eq!(get(&server, &result).await.text(), "1");
}

#[tokio::test]
async fn a_caller_of_rest() {
    let server = server();
    let target = format!("/v1/tasks/{}/result", ended(&server).await);
    is_cut(&server, asks(&server, &target).await).await;
    assert!(get(&server, &target).await.body.len() > LARGE);
}

#[tokio::test]
async fn a_legacy_caller() {
    let server = server();
    let registration = json!({"group": "slow", "methods": [{"name": "m", "docs": []}]}).to_string();
    let url = format!("ws://{}/ws", server.address());
    let stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let (mut worker, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    let said = tokio_tungstenite::tungstenite::Message::text(registration);
    futures_util::SinkExt::send(&mut worker, said).await.unwrap();
    serves(&server, "m").await;
    let id = post(&server, "/api/execute", r#"{"method":"m"}"#).await.json()["taskId"].take();
    let id = id.as_str().unwrap();
    let answer = json!({"type": "result", "taskId": id, "result": large()}).to_string();
    let said = tokio_tungstenite::tungstenite::Message::text(answer);
    futures_util::SinkExt::send(&mut worker, said).await.unwrap();
    is_cut(&server, asks(&server, &format!("/api/result/{id}")).await).await;
}

#[tokio::test]
async fn a_caller_over_http2() {
    let server = server();
    let target = format!("/v1/tasks/{}/result", ended(&server).await);
    let mut caller = Http2::over(connect(&server).await).unwrap();
    // Windows that hold everything: what is slow is its reading.
    let window = u32::try_from(2 * LARGE).unwrap().to_be_bytes();
    let initial = [&[0, 4][..], &window].concat();
    caller.send(&frame(SETTINGS, 0, 0, &initial)).unwrap();
    caller.send(&frame(WINDOW_UPDATE, 0, 0, &window)).unwrap();
    caller.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head("GET", &target))).unwrap();
    is_cut(&server, caller.stream).await;
    let whole = send_to(server.address(), "GET", &target, &[], "").await;
    assert!(whole.body.len() > LARGE);
}
