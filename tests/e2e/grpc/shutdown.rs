//! A server that is stopped under load.

use std::time::{Duration, Instant};

use crewcall_sdk::{
    CallError, Client, WorkerState,
    proto::{SessionRequest, Started, TaskFilter, control::Kind},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::Code;

use super::{Hand, adder, by_hand::hello, client, hold, refusal, soon, start};
use crate::harness::Server;

async fn exit_code(mut server: Server) -> Option<i32> {
    tokio::task::spawn_blocking(move || server.wait().code()).await.unwrap()
}

#[tokio::test]
async fn what_runs_is_finished_and_what_waits_is_turned_away() {
    let server = Server::start();
    let client = client(&server).await;
    let (worker, mut held) = hold(adder(&server).concurrency(3), "held");
    let worker = start(worker).await;
    let (mut running, mut waiting) = (JoinSet::new(), JoinSet::new());
    let mut runs = Vec::new();
    for n in 0..3 {
        running.spawn(client.task("held").payload(&n).call::<Value>());
        runs.push(held.next().await);
    }
    for n in 0..20 {
        let method = if n % 2 == 0 { "held" } else { "unserved" };
        waiting.spawn(client.task(method).payload(&n).call::<Value>());
    }
    soon(async { while client.stats().await.unwrap().ready < 20 {} }).await;

    server.signal("TERM");
    while let Some(turned_away) = soon(waiting.join_next()).await {
        let refusal = refusal(turned_away.unwrap().unwrap_err());
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "shutting_down"));
        assert!(refusal.retry_after.is_some());
    }
    for run in runs {
        assert!(!run.context.is_cancelled());
        let input = run.input.clone();
        run.succeed(input);
    }
    let mut answers = Vec::new();
    while let Some(answer) = soon(running.join_next()).await {
        answers.push(answer.unwrap().unwrap().as_i64().unwrap());
    }
    answers.sort_unstable();
    assert_eq!(answers, [0, 1, 2]);
    drop(client);
    assert_eq!(exit_code(server).await, Some(0));
    // The worker stays, and waits for a server to come back.
    soon(worker.wait_for(|status| status.state == WorkerState::Connecting)).await.unwrap();
    soon(worker.stop()).await.unwrap();
}

/// RELIABILITY: SIGTERM under load. Whatever was accepted is answered; whatever is not is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_full_load_every_call_has_one_answer() {
    let server = Server::start();
    let _worker = start(adder(&server).concurrency(64)).await;
    let (answered, mut answers) = mpsc::unbounded_channel();
    let mut callers = JoinSet::new();
    for caller in 0..4_u64 {
        let (client, answered) = (Client::connect(server.url()).await.unwrap(), answered.clone());
        callers.spawn(async move {
            let pipe = client.pipe();
            let call = |n: u64| {
                let pipe = pipe.clone();
                async move { (n, pipe.call::<_, u64>("add", &json!({"a": n, "b": caller})).await) }
            };
            let mut flight: FuturesUnordered<_> = (0..200).map(call).collect();
            let (mut next, mut ended) = (200, None);
            while let Some((n, answer)) = flight.next().await {
                match answer {
                    Ok(sum) => {
                        assert_eq!(sum, n + caller);
                        let _ = answered.send(());
                        if ended.is_none() {
                            flight.push(call(next));
                            next += 1;
                        }
                    }
                    Err(error) => ended = Some(error),
                }
            }
            ended.unwrap()
        });
    }
    for _ in 0..2_000 {
        soon(answers.recv()).await.unwrap();
    }
    server.signal("TERM");
    while let Some(error) = soon(callers.join_next()).await {
        match error.unwrap() {
            CallError::Refused(refusal) => assert_eq!(refusal.reason, "shutting_down"),
            CallError::Transport(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(exit_code(server).await, Some(0));
}

#[tokio::test]
async fn streams_that_would_never_end_do_not_hold_it_up() {
    let server = Server::builder().args(["--shutdown-grace", "20s"]).start();
    let client = client(&server).await;
    let _worker = start(adder(&server)).await;
    let mut watch = client.watch(TaskFilter::default(), "").await.unwrap();
    let pipe = client.pipe();
    let _: i64 = pipe.call("add", &json!({"a": 1, "b": 1})).await.unwrap();
    soon(watch.next()).await.unwrap().unwrap();
    let begun = Instant::now();
    server.signal("TERM");
    assert_eq!(exit_code(server).await, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_worker_that_does_not_let_go_is_cut_at_the_grace() {
    let server = Server::builder().args(["--shutdown-grace", "300ms"]).start();
    let client = client(&server).await;
    let mut hand = Hand::join(&server.url(), hello("h", "m", 1)).await.unwrap();
    hand.credit(1);
    let call = tokio::spawn(client.task("m").payload(&()).call::<Value>());
    let lease = hand.assigned().await.lease;
    hand.say(SessionRequest { started: vec![Started { lease }], ..SessionRequest::default() });
    server.signal("TERM");
    let order = hand.until(|frame| frame.control.is_some()).await;
    assert_eq!(order.control.unwrap().kind(), Kind::Move);
    assert!(soon(call).await.unwrap().is_err());
    assert_eq!(exit_code(server).await, Some(0));
}
