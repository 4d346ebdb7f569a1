//! Many calls over one stream.

use std::collections::HashMap;

use crewcall_sdk::{
    CallError, Payload,
    options::TaskBuilder,
    proto::{
        NewTask, PipeCall, PipeOutcome, PipeRequest, PipeResponse, pipe_outcome, tasks_client::TasksClient,
    },
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming};

use super::{Proxy, adder, client, connect, hold, refusal, soon, start};
use crate::harness::Server;

/// A pipe whose every frame the test writes itself.
struct RawPipe {
    frames: mpsc::UnboundedSender<PipeRequest>,
    answers: Streaming<PipeResponse>,
}

impl RawPipe {
    async fn open(server: &Server) -> Self {
        let (frames, outbound) = mpsc::unbounded_channel();
        let mut client = TasksClient::new(connect(&server.url()).await);
        let answers = soon(client.pipe(UnboundedReceiverStream::new(outbound))).await.unwrap().into_inner();
        Self { frames, answers }
    }

    fn call(&self, calls: Vec<(u64, NewTask)>) {
        let calls = calls.into_iter().map(|(call_id, task)| PipeCall { call_id, task: Some(task) }).collect();
        self.frames.send(PipeRequest { calls, cancels: Vec::new() }).unwrap();
    }

    async fn answers(&mut self, count: usize) -> HashMap<u64, PipeOutcome> {
        let mut answers = HashMap::new();
        while answers.len() < count {
            let frame = soon(self.answers.message()).await.unwrap().expect("the pipe ended");
            for outcome in frame.outcomes {
                assert!(answers.insert(outcome.call_id, outcome).is_none(), "answered twice");
            }
        }
        answers
    }
}

fn sum(a: u64, b: u64) -> NewTask {
    TaskBuilder::new("add").payload(&json!({"a": a, "b": b})).build().unwrap()
}

fn held() -> NewTask {
    TaskBuilder::new("held").payload(&()).build().unwrap()
}

fn reason(answer: &PipeOutcome) -> &str {
    match &answer.kind {
        Some(pipe_outcome::Kind::Refusal(refusal)) => &refusal.reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_has_its_own_answer() {
    let server = Server::start();
    let _worker = start(adder(&server).concurrency(256)).await;
    let pipe = client(&server).await.pipe();
    let mut calls = FuturesUnordered::new();
    for n in 0..5_000_u64 {
        let reply = pipe.call_raw(sum(n, 1));
        calls.push(async move { (n, reply.await.unwrap().decode::<u64>().unwrap()) });
    }
    let mut count = 0;
    while let Some((n, sum)) = soon(calls.next()).await {
        assert_eq!(sum, n + 1);
        count += 1;
    }
    assert_eq!((count, pipe.in_flight()), (5_000, 0));
}

#[tokio::test]
async fn a_wrong_call_is_refused_and_its_neighbours_run() {
    let server = Server::start();
    let _worker = start(adder(&server)).await;
    let mut pipe = RawPipe::open(&server).await;
    pipe.call(vec![(1, sum(1, 1)), (2, NewTask::default()), (3, sum(2, 2))]);
    pipe.frames
        .send(PipeRequest { calls: vec![PipeCall { call_id: 4, task: None }], cancels: vec![77] })
        .unwrap();
    let answers = pipe.answers(4).await;
    assert!(matches!(answers[&1].kind, Some(pipe_outcome::Kind::Outcome(_))));
    assert!(matches!(answers[&3].kind, Some(pipe_outcome::Kind::Outcome(_))));
    assert_eq!((reason(&answers[&2]), reason(&answers[&4])), ("invalid_field", "invalid_field"));
}

#[tokio::test]
async fn a_number_in_flight_cannot_be_used_again_until_it_is_answered() {
    let server = Server::start();
    let (worker, mut runs) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let mut pipe = RawPipe::open(&server).await;
    pipe.call(vec![(1, held())]);
    let run = runs.next().await;
    pipe.call(vec![(1, held())]);
    assert_eq!(reason(&pipe.answers(1).await[&1]), "call_id_in_use");
    run.succeed(());
    pipe.answers(1).await;
    pipe.call(vec![(1, sum(3, 4))]);
    assert!(matches!(pipe.answers(1).await[&1].kind, Some(pipe_outcome::Kind::Outcome(_))));
}

#[tokio::test]
async fn calls_beyond_the_limit_are_refused_and_the_pipe_goes_on() {
    let server = Server::builder().args(["--limits", "pipe_calls = 2"]).start();
    let (worker, mut runs) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let mut pipe = RawPipe::open(&server).await;
    pipe.call(vec![(1, held()), (2, held())]);
    pipe.call(vec![(3, held())]);
    assert_eq!(reason(&pipe.answers(1).await[&3]), "too_many_in_flight");
    let (first, second) = (runs.next().await, runs.next().await);
    first.succeed(1);
    second.succeed(2);
    pipe.answers(2).await;
}

#[tokio::test]
async fn ending_the_sending_side_lets_the_calls_in_flight_finish() {
    let server = Server::start();
    let (worker, mut runs) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let pipe = RawPipe::open(&server).await;
    pipe.call(vec![(1, held()), (2, held())]);
    let (first, second) = (runs.next().await, runs.next().await);
    let RawPipe { frames, mut answers } = pipe;
    drop(frames);
    for run in [first, second] {
        assert!(!run.context.is_cancelled());
        run.succeed(());
    }
    let mut count = 0;
    while let Some(frame) = soon(answers.message()).await.unwrap() {
        count += frame.outcomes.len();
    }
    assert_eq!(count, 2, "and then the stream ends");
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_and_the_others_go_on() {
    let server = Server::start();
    let (worker, mut runs) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let pipe = client(&server).await.pipe();
    let dropped = pipe.call_raw(held());
    let run = runs.next().await;
    let kept = pipe.call_raw(sum(1, 2));
    drop(dropped);
    run.told_to_stop().await;
    assert_eq!(kept.await.unwrap().decode::<u64>().unwrap(), 3);
}

#[tokio::test]
async fn a_broken_pipe_takes_its_calls_along_and_the_next_call_opens_another() {
    let server = Server::start();
    let (worker, mut runs) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let wire = Proxy::to(server.address()).await;
    let pipe = crewcall_sdk::Client::connect(wire.url()).await.unwrap().pipe();
    let call = pipe.call_raw(held());
    let run = runs.next().await;
    wire.cut();
    run.told_to_stop().await;
    assert!(matches!(call.await, Err(CallError::Transport(_))));
    let sum: Value = soon(pipe.call("add", &json!({"a": 1, "b": 2}))).await.unwrap();
    assert_eq!(sum, 3);
}

#[tokio::test]
async fn a_refusal_reaches_the_caller_of_the_sdk() {
    let server = Server::start();
    let pipe = client(&server).await.pipe();
    let task = NewTask { method: "no\nsuch".into(), payload: Some(Payload::default()), options: None };
    let refusal = refusal(pipe.call_raw(task).await.unwrap_err());
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::InvalidArgument, "invalid_field"));
}
