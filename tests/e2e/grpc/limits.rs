//! Readers that do not read, and what that costs the server.

use std::time::Duration;

use crewcall_sdk::{
    Context, HandlerError, Payload, Worker,
    options::TaskBuilder,
    proto::{
        Credit, NewTask, PipeCall, PipeRequest, Result as AttemptResult, SessionRequest, WatchRequest,
        tasks_client::TasksClient, worker_client::WorkerClient,
    },
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::Code;

use super::{Hand, adder, by_hand, by_hand::hello, client, connect, hold, soon, start};
use crate::harness::Server;

const MIB: u64 = 1 << 20;

/// The server answers others, and holds no more memory than `most` above what it held before.
async fn unharmed(server: &Server, before: u64, most: u64) {
    let client = client(server).await;
    assert_eq!(soon(client.call::<_, i64>("add", &json!({"a": 1, "b": 2}))).await.unwrap(), 3);
    let grown = server.peak_memory().saturating_sub(before);
    assert!(grown < most, "{} MiB more than before", grown / MIB);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_let_go_with_the_reason() {
    let server = Server::builder().args(["--limits", "watch_backlog = 100"]).start();
    let _adder = start(adder(&server)).await;
    let (worker, mut held) = hold(Worker::builder(server.url()), "held");
    let _worker = start(worker).await;
    let near = client(&server).await;
    let id = near.task("held").payload(&()).submit().await.unwrap().task_id;
    let run = held.next().await;
    let mut raw = TasksClient::new(connect(&server.url()).await);
    let request = WatchRequest { task_ids: vec![id], ..WatchRequest::default() };
    let mut unread = raw.watch(request).await.unwrap().into_inner();
    let before = server.peak_memory();
    let piece = Payload::raw(vec![b'x'; 16 * 1024], "text/plain");
    // Far more than the windows of the connection and the backlog hold.
    for _ in 0..4_000 {
        run.context.chunk(piece.clone()).await.unwrap();
    }
    run.succeed(());
    unharmed(&server, before, 64 * MIB).await;
    let (mut seen, mut last) = (0, None);
    let status = loop {
        match soon(unread.message()).await {
            Ok(Some(event)) => (seen, last) = (seen + 1, Some(event.cursor)),
            Ok(None) => panic!("it ended as if nothing had been left out"),
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), by_hand::reason(&status).as_str()), (Code::ResourceExhausted, "slow_reader"));
    assert!((1..4_000).contains(&seen), "{seen} events were seen");
    assert!(last.is_some_and(|cursor| !cursor.is_empty()), "it can go on from there");
}

/// A caller that sends calls for ever and reads no answer is held back at its socket.
#[tokio::test]
async fn a_caller_that_reads_no_answer_is_held_back() {
    let server = Server::builder().args(["--limits", "pipe_calls = 1000"]).start();
    let echo = adder(&server)
        .method_raw("echo", |_: Context, payload: Payload| async move { Ok::<_, HandlerError>(payload) });
    let _worker = start(echo).await;
    let mut raw = TasksClient::new(connect(&server.url()).await);
    let (frames, outbound) = mpsc::channel(1);
    let unread = raw.pipe(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    let before = server.peak_memory();
    let calls = |first: u64, task: &NewTask| PipeRequest {
        calls: (first..first + 500).map(|call_id| PipeCall { call_id, task: Some(task.clone()) }).collect(),
        cancels: Vec::new(),
    };
    let wrong = TaskBuilder::new(" refused ").payload(&()).build().unwrap();
    let right = TaskBuilder::new("echo").payload_raw(vec![b'x'; 1024], "").build().unwrap();
    let mut sent = 0;
    for round in 0..4_000 {
        let task = if round % 2 == 0 { &wrong } else { &right };
        match frames.send_timeout(calls(sent, task), Duration::from_millis(500)).await {
            Ok(()) => sent += 500,
            Err(_) => break,
        }
    }
    assert!(sent < 2_000_000, "it took all of {sent} calls");
    unharmed(&server, before, 64 * MIB).await;
    drop(unread);
}

/// A worker that sends nonsense for ever and reads no answer: it is read from no more, and then it is silent.
#[tokio::test]
async fn a_worker_that_reads_no_answer_is_held_back_and_let_go() {
    let server = Server::builder().args(["--limits", "lease_ms = 1000, beat_ms = 300"]).start();
    let _worker = start(adder(&server)).await;
    let mut hand = Hand::join(&server.url(), hello("deaf", "m", 1)).await.unwrap();
    let before = server.peak_memory();
    let forged = |lease| AttemptResult { lease, seq: 0, kind: None };
    for _ in 0..200 {
        let results = (1_000_000..1_030_000).map(forged).collect();
        hand.say(SessionRequest { results, ..SessionRequest::default() });
    }
    let client = client(&server).await;
    soon(async { while client.workers().await.unwrap().len() > 1 {} }).await;
    unharmed(&server, before, 256 * MIB).await;
    assert_eq!(by_hand::reason(&hand.ended().await.unwrap_err()), "session_expired");
}

/// Frames stay within what gRPC libraries take unasked, however much there is to say.
#[tokio::test]
async fn large_payloads_are_not_heaped_into_one_frame() {
    const SIZE: usize = 3 << 20;
    let server = Server::start();
    let mut raw = WorkerClient::new(connect(&server.url()).await).max_decoding_message_size(4 << 20);
    let (frames, outbound) = mpsc::unbounded_channel();
    let first = SessionRequest { hello: Some(hello("h", "m", 8)), ..SessionRequest::default() };
    frames.send(first).unwrap();
    let mut inbound = raw.session(UnboundedReceiverStream::new(outbound)).await.unwrap().into_inner();
    soon(inbound.message()).await.unwrap().unwrap();
    let client = client(&server).await;
    for _ in 0..8 {
        client.task("m").payload_raw(vec![0; SIZE], "").submit().await.unwrap();
    }
    // All eight at once.
    let credits = vec![Credit { pool: String::new(), total: 8 }];
    frames.send(SessionRequest { credits, ..SessionRequest::default() }).unwrap();
    let mut assigned = 0;
    while assigned < 8 {
        let frame = soon(inbound.message()).await.expect("a frame over 4 MiB").unwrap();
        assigned += frame.assign.len();
    }
}

/// The connection itself stands still: nothing that is sent arrives.
#[tokio::test]
async fn a_connection_that_takes_nothing_is_closed_and_its_calls_cancelled() {
    let server =
        Server::builder().args(["--keepalive-interval", "200ms", "--keepalive-timeout", "200ms"]).start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let wire = super::Proxy::to(server.address()).await;
    let mut raw = TasksClient::new(connect(&wire.url()).await);
    let (frames, outbound) = mpsc::unbounded_channel();
    let _unread = raw.pipe(UnboundedReceiverStream::new(outbound)).await.unwrap().into_inner();
    let task = TaskBuilder::new("held").payload(&Value::Null).build().unwrap();
    frames
        .send(PipeRequest { calls: vec![PipeCall { call_id: 1, task: Some(task) }], cancels: vec![] })
        .unwrap();
    let run = held.next().await;
    wire.stall();
    run.told_to_stop().await;
}
