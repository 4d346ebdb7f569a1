use std::time::Duration;

use crewcall_sdk::proto::tasks_client::TasksClient;
use crewcall_sdk::proto::worker_client::WorkerClient;
use crewcall_sdk::proto::{self, SessionRequest, SubmitRequest};
use crewcall_sdk::{Client, Context, HandlerError, Payload, Worker, WorkerHandle};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::case::{Crew, WorkerKind};
use crate::http1::Connection;
use crate::load::{PendingPipe, legacy_workers};
use crate::{task, websocket};

/// A floor on a port of its own; it ends with the test's runtime.
async fn start(floor: Floor, log: Option<&Path>) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let log = log.map(Path::to_owned);
    tokio::spawn(async move { serve_on(floor, listener, log.as_deref()).await.unwrap() });
    url
}

async fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).unwrap().connect().await.unwrap()
}

/// A worker of the SDK that adds, and says who it is to `whoami`.
async fn worker(url: &str, name: &'static str) -> WorkerHandle {
    let add = |_: Context, payload: Payload| async move {
        let data =
            task::answer(&payload.data).ok_or_else(|| HandlerError::new("bad", "not a call of ours"))?;
        Ok::<_, HandlerError>(Payload { data, content_type: String::new() })
    };
    let whoami = move |_: Context, _: Payload| async move {
        Ok::<_, HandlerError>(Payload { data: name.into(), content_type: String::new() })
    };
    let worker = Worker::builder(url).method_raw("add", add).method_raw("whoami", whoami).build().unwrap();
    let worker = worker.start();
    worker.wait_connected().await.unwrap();
    worker
}

#[tokio::test]
async fn the_relay_answers_every_call_of_every_pipe_with_its_own_result() {
    let url = start(Floor::Relay, None).await;
    let _worker = worker(&url, "a").await;
    let mut callers = JoinSet::new();
    for pipe in 0..3 {
        let pending = PendingPipe::open(&url).await.unwrap();
        for slot in 0..200_u64 {
            let pending = pending.clone();
            callers.spawn(async move {
                let number = pipe * 1000 + slot;
                let outcome = pending.call(task::task("add", number, task::SMALL, false)).await.unwrap();
                task::check(number, &outcome).unwrap();
            });
        }
    }
    let client = Client::connect(&url).await.unwrap();
    for number in 0..50 {
        let client = client.clone();
        callers.spawn(async move {
            let answer = client.call_outcome(task::task("add", number, task::SMALL, false)).await.unwrap();
            let Some(proto::outcome::Kind::Succeeded(result)) = answer.outcome.unwrap().kind else {
                panic!("not succeeded")
            };
            assert!(task::is_answer(number, &result.data));
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_failure_is_relayed_as_a_failure() {
    let url = start(Floor::Relay, None).await;
    let _worker = worker(&url, "a").await;
    let pipe = PendingPipe::open(&url).await.unwrap();
    let mut task = task::task("add", 1, task::SMALL, false);
    task.payload = None;
    let outcome = pipe.call(task).await.unwrap();
    assert!(format!("{outcome:?}").contains("not a call of ours"), "{outcome:?}");
}

#[tokio::test]
async fn workers_take_turns_until_they_leave() {
    let url = start(Floor::Relay, None).await;
    let client = Client::connect(&url).await.unwrap();
    let whoami = async || client.call::<_, serde_json::Value>("whoami", &()).await;
    assert!(whoami().await.is_err(), "there is no worker yet");
    let (one, two) = (worker(&url, "1").await, worker(&url, "2").await);
    let turns = [whoami().await.unwrap(), whoami().await.unwrap(), whoami().await.unwrap()];
    assert_eq!(turns, [1, 2, 1]);
    // The server ends the stream of a worker that says goodbye.
    one.stop().await.unwrap();
    assert_eq!([whoami().await.unwrap(), whoami().await.unwrap()], [2, 2]);
    two.stop().await.unwrap();
    assert!(whoami().await.is_err());
}

#[tokio::test]
async fn the_rest_of_a_pipe_is_answered_after_its_last_call() {
    let url = start(Floor::Relay, None).await;
    let _worker = worker(&url, "a").await;
    let calls = (0..100)
        .map(|number| proto::PipeCall {
            call_id: number,
            task: Some(task::task("add", number, task::SMALL, false)),
        })
        .collect();
    let frames = tokio_stream::iter([proto::PipeRequest { calls, cancels: Vec::new() }]);
    let mut answers = TasksClient::new(channel(&url).await).pipe(frames).await.unwrap().into_inner();
    let mut answered = 0;
    while let Some(frame) = answers.message().await.unwrap() {
        assert!(frame.outcomes.len() <= 64, "{} in one message", frame.outcomes.len());
        answered += frame.outcomes.len();
        frame.outcomes.iter().for_each(|outcome| task::check(outcome.call_id, outcome).unwrap());
    }
    assert_eq!(answered, 100);
}

#[tokio::test]
async fn what_was_acknowledged_is_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let url = start(Floor::Log, Some(&path)).await;
    let submitted: Vec<_> = (0..10).map(|number| task::task("add", number, task::STORED, true)).collect();
    let request = SubmitRequest { tasks: submitted.clone() };
    let response = TasksClient::new(channel(&url).await).submit(request).await.unwrap().into_inner();
    assert_eq!(response.results.len(), 10);
    let contains = |wanted: &[u8]| {
        let log = std::fs::read(&path).unwrap();
        log.windows(wanted.len()).any(|window| window == wanted)
    };
    assert!(submitted.iter().all(|task| contains(&task.payload.as_ref().unwrap().data)));

    let _worker = worker(&url, "a").await;
    let pipe = PendingPipe::open(&url).await.unwrap();
    let call = task::task("add", 4_711, task::STORED, true);
    let outcome = pipe.call(call.clone()).await.unwrap();
    task::check(4_711, &outcome).unwrap();
    let payload = call.payload.unwrap().data;
    assert!(contains(&payload) && contains(&task::answer(&payload).unwrap()));
    let before = std::fs::metadata(&path).unwrap().len();
    task::check(1, &pipe.call(task::task("add", 1, task::STORED, false)).await.unwrap()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before, "nobody asked for it to be durable");
}

#[tokio::test]
async fn the_rest_floor_answers_with_the_result() {
    let url = start(Floor::Rest, None).await;
    let mut connection = Connection::open(&url).await.unwrap();
    let body = task::params(7, task::SMALL);
    assert_eq!(connection.post("/v1/call/add", &body).await.unwrap().status, 503);
    let _worker = worker(&url, "a").await;
    let answer = connection.post("/v1/call/add", &body).await.unwrap();
    assert!(answer.status == 200 && task::is_answer(7, &answer.body), "{answer:?}");
    assert_eq!(connection.post("/v1/call/add", b"{}").await.unwrap().status, 422);
}

#[tokio::test]
async fn the_legacy_floor_holds_the_get_and_gives_each_result_once() {
    let url = start(Floor::Legacy, None).await;
    let mut connection = Connection::open(&url).await.unwrap();
    let execute = b"{\"method\":\"add\",\"params\":{\"a\":1,\"b\":2}}";
    assert_eq!(connection.post("/api/execute", execute).await.unwrap().status, 503);
    let mut workers = JoinSet::new();
    legacy_workers(&url, &Crew::one(WorkerKind::Legacy), &mut workers).await.unwrap();
    for _ in 0..100 {
        let answer = connection.post("/api/execute", execute).await.unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        let id = answer["taskId"].as_str().unwrap();
        assert_eq!(answer["status"], "processing");
        let answer = connection.get(&format!("/api/result/{id}")).await.unwrap();
        let wanted = format!("{{\"result\":3,\"status\":\"done\",\"taskId\":\"{id}\"}}\n");
        assert_eq!(answer.body, wanted);
        assert_eq!(connection.get(&format!("/api/result/{id}")).await.unwrap().status, 404);
    }
}

#[tokio::test]
async fn idle_workers_are_welcomed_and_kept() {
    let url = start(Floor::IdleGrpc, None).await;
    let (sender, frames) = tokio::sync::mpsc::unbounded_channel();
    let frames = tokio_stream::wrappers::UnboundedReceiverStream::new(frames);
    let hello = SessionRequest { hello: Some(proto::Hello::default()), ..SessionRequest::default() };
    sender.send(hello).unwrap();
    let session = WorkerClient::new(channel(&url).await).session(frames).await.unwrap();
    let mut session = session.into_inner();
    assert!(session.message().await.unwrap().unwrap().welcome.is_some());
    let beat = proto::Beat { in_flight: 0, digest: 7 };
    sender.send(SessionRequest { beat: Some(beat), ..SessionRequest::default() }).unwrap();
    assert_eq!(session.message().await.unwrap().unwrap().beat, Some(beat));

    let url = start(Floor::IdleWebsocket, None).await;
    let mut socket = websocket::open(&url, "/v1/worker", "{}".to_owned()).await.unwrap();
    let next = tokio::time::timeout(Duration::from_millis(1), futures_util::StreamExt::next(&mut socket));
    assert!(next.await.is_err(), "it is neither told anything nor closed");
}
