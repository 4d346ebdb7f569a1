//! A worker against a server whose every frame the test writes itself.
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;
use tonic::{Code, Status};

use super::*;
use crate::fake_server::{Conversation, FakeServer};
use crate::proto::{
    Assign, Beat, CancelLease, Control as Order, SessionRequest, SessionResponse, control, result,
};

type Session = Conversation<SessionRequest, SessionResponse>;

fn builder(server: &FakeServer) -> WorkerBuilder {
    Worker::builder(server.url())
        .worker_id("w")
        .concurrency(2)
        .method("echo", |_: Context, value: Value| async move { Ok::<_, HandlerError>(value) })
}

/// Takes the next connection as far as the welcome; returns what the worker said in `hello`.
async fn welcome(server: &mut FakeServer, keep: &[u64]) -> (Session, Hello) {
    welcome_with(server, Welcome { keep: keep.to_vec(), ..quiet_welcome() }).await
}

async fn welcome_with(server: &mut FakeServer, welcome: Welcome) -> (Session, Hello) {
    let mut session = server.sessions.recv().await.unwrap();
    let hello = session.frame().await.unwrap().hello.unwrap();
    session.send(SessionResponse { welcome: Some(welcome), ..SessionResponse::default() });
    (session, hello)
}

/// Times so long that nothing happens by itself.
fn quiet_welcome() -> Welcome {
    Welcome {
        protocol: 1,
        session_id: "s".into(),
        worker_id: "w".into(),
        resume_token: "again".into(),
        beat_ms: 60_000,
        lease_ms: 600_000,
        resume_ms: 600_000,
        max_payload_bytes: 1000,
        ..Welcome::default()
    }
}

fn assign(lease: u64, method: &str, input: &str) -> Assign {
    let payload = Some(Payload::raw(input.to_owned(), ""));
    Assign { lease, method: method.into(), payload, attempt: 1, ..Assign::default() }
}

fn send(session: &Session, assign: Vec<Assign>) {
    session.send(SessionResponse { assign, ..SessionResponse::default() });
}

fn confirm(session: &Session, durable_seq: u64) {
    session.send(SessionResponse { durable_seq, ..SessionResponse::default() });
}

/// Reads frames until one is as wanted.
async fn until(session: &mut Session, wanted: impl Fn(&SessionRequest) -> bool) -> SessionRequest {
    loop {
        let frame = session.frame().await.expect("the worker broke the stream");
        if wanted(&frame) {
            return frame;
        }
    }
}

async fn result(session: &mut Session) -> (u64, Result<String, String>) {
    let frame = until(session, |frame| !frame.results.is_empty()).await;
    assert_eq!(frame.results.len(), 1);
    let result = frame.results.into_iter().next().unwrap();
    match result.kind.unwrap() {
        result::Kind::Succeeded(payload) => {
            (result.lease, Ok(String::from_utf8(payload.data.to_vec()).unwrap()))
        }
        result::Kind::Failed(failure) => (result.lease, Err(failure.error.unwrap().code)),
    }
}

#[tokio::test]
async fn a_handler_that_ends_at_once_is_answered_in_one_frame() {
    let mut server = FakeServer::start().await;
    let worker = builder(&server).key("secret").label("k", "v").build().unwrap().start();
    let (mut session, hello) = welcome(&mut server, &[]).await;
    assert_eq!(session.authorization.as_deref(), Some("Bearer secret"));
    assert_eq!((hello.worker_id.as_str(), hello.labels["k"].as_str()), ("w", "v"));
    assert_eq!(hello.methods[0].name, "echo");
    let credits = until(&mut session, |frame| !frame.credits.is_empty()).await.credits;
    assert_eq!(credits[0].total, 2);
    assert_eq!(worker.wait_connected().await.unwrap().session_id, "s");

    send(&session, vec![assign(1, "echo", "9007199254740993"), assign(2, "echo", "{")]);
    let frame = until(&mut session, |frame| !frame.results.is_empty()).await;
    assert!(frame.started.is_empty());
    assert_eq!(frame.results.iter().map(|result| result.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(frame.credits[0].total, 4);
    let Some(result::Kind::Failed(failure)) = &frame.results[1].kind else { panic!("bad JSON was accepted") };
    assert_eq!(failure.error.as_ref().unwrap().code, "invalid_input");
    assert_eq!(failure.retryable, Some(false));
}

#[tokio::test]
async fn a_cancelled_handler_hears_of_it_and_its_result_is_suppressed() {
    let mut server = FakeServer::start().await;
    let _worker = builder(&server)
        .method("wait", |context: Context, _: Value| async move {
            context.cancelled().cancelled().await;
            Ok::<_, HandlerError>(context.cancel_reason().to_owned())
        })
        .build()
        .unwrap()
        .start();
    let (mut session, _) = welcome(&mut server, &[]).await;
    send(&session, vec![assign(5, "wait", "0")]);
    let frame = until(&mut session, |frame| !frame.started.is_empty()).await;
    assert_eq!(frame.started[0].lease, 5);
    let cancel = vec![CancelLease { lease: 5, reason: "enough".into() }];
    session.send(SessionResponse { cancel, ..SessionResponse::default() });
    let frame = until(&mut session, |frame| !frame.credits.is_empty() || !frame.results.is_empty()).await;
    assert_eq!((frame.credits[0].total, frame.results.len()), (3, 0));
}

#[tokio::test]
async fn a_handler_that_ignores_its_cancellation_is_dropped() {
    let mut server = FakeServer::start().await;
    let _worker = builder(&server)
        .cancel_grace(Duration::ZERO)
        .method("deaf", |_: Context, _: Value| std::future::pending::<Result<(), HandlerError>>())
        .build()
        .unwrap()
        .start();
    let (mut session, _) = welcome(&mut server, &[]).await;
    send(&session, vec![assign(5, "deaf", "0")]);
    until(&mut session, |frame| !frame.started.is_empty()).await;
    let cancel = vec![CancelLease { lease: 5, reason: String::new() }];
    session.send(SessionResponse { cancel, ..SessionResponse::default() });
    until(&mut session, |frame| frame.credits.iter().any(|credit| credit.total == 3)).await;
}

#[tokio::test]
async fn a_panic_ends_the_attempt_and_not_the_worker() {
    let mut server = FakeServer::start().await;
    let _worker = builder(&server)
        .method("now", |_: Context, value: Value| async move {
            if value.is_null() { panic!("on null") } else { Ok::<_, HandlerError>(value) }
        })
        .method("later", |_: Context, _: Value| async move {
            tokio::task::yield_now().await;
            Ok::<i32, HandlerError>("no number".parse().unwrap())
        })
        .build()
        .unwrap()
        .start();
    let (mut session, _) = welcome(&mut server, &[]).await;
    send(&session, vec![assign(1, "now", "null")]);
    assert_eq!(result(&mut session).await, (1, Err("handler_panic".into())));
    send(&session, vec![assign(2, "later", "0")]);
    assert_eq!(result(&mut session).await, (2, Err("handler_panic".into())));
    send(&session, vec![assign(3, "now", "3")]);
    assert_eq!(result(&mut session).await, (3, Ok("3".into())));
}

#[tokio::test]
async fn results_that_the_server_would_refuse_become_errors() {
    let mut server = FakeServer::start().await;
    let _worker = builder(&server)
        .method("large", |_: Context, _: Value| async move { Ok::<_, HandlerError>("x".repeat(2000)) })
        .method("back", |context: Context, _: Value| async move { Err::<(), _>(context.release()) })
        .build()
        .unwrap()
        .start();
    let (mut session, _) = welcome(&mut server, &[]).await;
    send(&session, vec![assign(1, "large", "0")]);
    assert_eq!(result(&mut session).await, (1, Err("payload_too_large".into())));
    send(&session, vec![assign(2, "back", "0")]);
    let frame = until(&mut session, |frame| !frame.released.is_empty()).await;
    assert_eq!((frame.released[0].lease, frame.results.len()), (2, 0));
    send(&session, vec![assign(3, "unheard_of", "0")]);
    assert_eq!(result(&mut session).await, (3, Err("method_not_served".into())));
}

#[tokio::test]
async fn a_broken_connection_is_resumed_and_what_stands_is_sent_again() {
    let mut server = FakeServer::start().await;
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    let worker = builder(&server)
        .method("gated", move |_: Context, value: Value| {
            let gate = gate.clone();
            async move {
                gate.notified().await;
                Ok::<_, HandlerError>(value)
            }
        })
        .build()
        .unwrap()
        .start();
    let (mut session, first) = welcome(&mut server, &[]).await;
    send(&session, vec![assign(1, "echo", "1"), assign(2, "gated", "2")]);
    assert_eq!(result(&mut session).await, (1, Ok("1".into())));
    worker.disconnect();

    let (mut session, mut hello) = welcome(&mut server, &[1, 2]).await;
    hello.in_flight.sort_unstable();
    assert_eq!((hello.resume_token.as_str(), hello.in_flight), ("again", vec![1, 2]));
    assert_eq!(hello.boot_id, first.boot_id);
    assert_eq!(result(&mut session).await, (1, Ok("1".into())));
    confirm(&session, 1);
    go.notify_one();
    assert_eq!(result(&mut session).await, (2, Ok("2".into())));
    assert_eq!(worker.wait_for(|status| status.connections == 2).await.unwrap().connections, 2);
    session.end();
    let (_session, hello) = welcome(&mut server, &[]).await;
    assert_eq!(hello.in_flight, [2], "the first was confirmed, the second was not");
}

#[tokio::test]
async fn a_silent_server_is_left_and_a_beating_one_is_not() {
    let mut server = FakeServer::start().await;
    let _worker = builder(&server).build().unwrap().start();
    let times = Welcome { beat_ms: 20, lease_ms: 200, ..quiet_welcome() };
    let (mut session, _) = welcome_with(&mut server, times.clone()).await;
    for _ in 0..20 {
        let beat = until(&mut session, |frame| frame.beat.is_some()).await.beat;
        session.send(SessionResponse { beat, ..SessionResponse::default() });
    }
    // From here on the server says nothing.
    let (_next, hello) = welcome_with(&mut server, times).await;
    assert_eq!(hello.resume_token, "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_blocks_does_not_stop_the_beats() {
    let mut server = FakeServer::start().await;
    let (open, gate) = sync_channel::<()>(0);
    let gate = Arc::new(parking_lot::Mutex::new(gate));
    let _worker = builder(&server)
        .method("block", move |_: Context, value: Value| {
            let gate = gate.clone();
            async move {
                gate.lock().recv()?;
                Ok::<_, HandlerError>(value)
            }
        })
        .build()
        .unwrap()
        .start();
    let times = Welcome { beat_ms: 20, lease_ms: 600_000, ..quiet_welcome() };
    let (mut session, _) = welcome_with(&mut server, times).await;
    send(&session, vec![assign(6, "block", "6")]);
    let held = |frame: &SessionRequest| frame.beat == Some(Beat { in_flight: 1, digest: 6 });
    for _ in 0..3 {
        until(&mut session, held).await;
    }
    open.send(()).unwrap();
    assert_eq!(result(&mut session).await, (6, Ok("6".into())));
}

#[tokio::test]
async fn a_drained_worker_finishes_what_runs_and_says_goodbye() {
    let mut server = FakeServer::start().await;
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    let worker = builder(&server)
        .method("gated", move |_: Context, value: Value| {
            let gate = gate.clone();
            async move {
                gate.notified().await;
                Ok::<_, HandlerError>(value)
            }
        })
        .build()
        .unwrap()
        .start();
    let (mut session, _) = welcome(&mut server, &[]).await;
    send(&session, vec![assign(1, "gated", "1")]);
    until(&mut session, |frame| !frame.started.is_empty()).await;
    let order = Order { kind: control::Kind::Drain.into(), reason: String::new() };
    session.send(SessionResponse {
        control: Some(order),
        assign: vec![assign(2, "gated", "2")],
        ..SessionResponse::default()
    });
    worker.wait_for(|status| status.draining).await.unwrap();
    send(&session, vec![assign(3, "gated", "3")]);
    let frame = until(&mut session, |frame| !frame.released.is_empty()).await;
    assert_eq!(frame.released[0].lease, 3);
    go.notify_one();
    assert_eq!(result(&mut session).await.1, Ok("1".into()));
    go.notify_one();
    assert_eq!(result(&mut session).await.1, Ok("2".into()));
    confirm(&session, 2);
    let frame = until(&mut session, |frame| frame.bye.is_some()).await;
    assert!(frame.results.is_empty());
    session.end();
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_drained_worker_asks_whether_its_last_result_is_safe() {
    let mut server = FakeServer::start().await;
    let worker = builder(&server).build().unwrap().start();
    let (mut session, _) = welcome(&mut server, &[]).await;
    until(&mut session, |frame| frame.beat.is_some()).await;
    send(&session, vec![assign(1, "echo", "1")]);
    assert_eq!(result(&mut session).await.1, Ok("1".into()));
    worker.drain();
    let frame = until(&mut session, |frame| frame.beat.is_some()).await;
    assert_eq!((frame.beat, frame.bye), (Some(Beat::default()), None));
    confirm(&session, 1);
    until(&mut session, |frame| frame.bye.is_some()).await;
    session.end();
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_idle_worker_leaves_at_once_and_an_unconnected_one_too() {
    let mut server = FakeServer::start().await;
    let worker = builder(&server).build().unwrap().start();
    let (mut session, _) = welcome(&mut server, &[]).await;
    worker.drain();
    until(&mut session, |frame| frame.bye.is_some()).await;
    session.end();
    worker.stop().await.unwrap();

    let nobody = Worker::builder("127.0.0.1:1")
        .method("echo", |_: Context, value: Value| async move { Ok::<_, HandlerError>(value) });
    nobody.build().unwrap().start().stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_is_not_wanted_stops_with_the_reason() {
    let mut server = FakeServer::start().await;
    let mut worker = builder(&server).build().unwrap().start();
    let mut session = server.sessions.recv().await.unwrap();
    session.fail(Status::unauthenticated("the worker key is wrong"));
    let error = worker.ended().await.unwrap_err();
    assert!(
        matches!(&error, WorkerError::Refused(refusal) if refusal.code == Code::Unauthenticated),
        "{error}"
    );
    assert!(worker.ended().await.is_err(), "asked twice, answered twice");
    assert!(worker.wait_connected().await.is_err());
}

#[tokio::test]
async fn an_aborted_worker_goes_without_a_word() {
    let mut server = FakeServer::start().await;
    let mut worker = builder(&server).build().unwrap().start();
    let (mut session, _) = welcome(&mut server, &[]).await;
    worker.wait_connected().await.unwrap();
    worker.abort();
    assert!(matches!(worker.ended().await, Err(WorkerError::Aborted)));
    while let Some(frame) = session.frame().await {
        assert!(frame.bye.is_none());
    }
}

#[test]
fn a_worker_that_cannot_work_is_not_built() {
    let echo = |_: Context, value: Value| async move { Ok::<_, HandlerError>(value) };
    let new = || Worker::builder("127.0.0.1:1").method("echo", echo);
    for (builder, word) in [
        (Worker::builder("127.0.0.1:1"), "no method"),
        (Worker::builder("ftp://x").method("echo", echo), "ftp"),
        (new().method("echo", echo), "twice"),
        (new().concurrency(0), "concurrency 0"),
        (new().pool("gpu", 1).pool("gpu", 2), "twice"),
        (new().method(MethodSpec::new("x").pool("gpu"), echo), "no pool `gpu`"),
        (new().key("new\nline"), "key"),
    ] {
        let error = builder.build().unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}
