//! Workers that leave in good order.

use std::time::{Duration, Instant};

use crewcall_sdk::{WorkerState, proto};
use serde_json::{Value, json};
use tonic::Code;

use super::{adder, client, hold, refusal, soon, start, until_gone};
use crate::harness::Server;

#[tokio::test]
async fn a_drained_worker_finishes_what_it_has_gets_no_more_and_leaves() {
    let server = Server::start();
    let client = client(&server).await;
    let (worker, mut held) = hold(adder(&server).worker_id("leaving"), "held");
    let mut leaving = start(worker).await;
    let call = tokio::spawn(client.task("held").payload(&()).call::<Value>());
    let run = held.next().await;
    client.drain("leaving", "maintenance").await.unwrap();
    soon(leaving.wait_for(|status| status.draining)).await.unwrap();
    assert_eq!(client.workers().await.unwrap()[0].state(), proto::WorkerState::Draining);
    let next = client.task("held").payload(&()).submit().await.unwrap();
    let (worker, mut other) = hold(adder(&server), "held");
    let _other = start(worker).await;
    let moved = other.next().await;
    assert_eq!(moved.context.task_id(), next.task_id);
    moved.succeed(());
    run.succeed("finished");
    assert_eq!(call.await.unwrap().unwrap(), "finished");
    soon(leaving.ended()).await.unwrap();
    assert_eq!(leaving.status().borrow().state, WorkerState::Ended);
    until_gone(&client, "leaving").await;
    let refusal = refusal(client.drain("leaving", "").await.unwrap_err());
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::NotFound, "worker_not_found"));
}

/// The server confirms results now and then; a worker that leaves must not wait for the next occasion.
#[tokio::test]
async fn an_idle_worker_leaves_long_before_the_next_beat() {
    let server = Server::builder().args(["--limits", "beat_ms = 60000, lease_ms = 600000"]).start();
    let client = client(&server).await;
    let worker = start(adder(&server)).await;
    assert_eq!(client.call::<_, i64>("add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
    let begun = Instant::now();
    soon(worker.stop()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_drain_that_takes_too_long_gives_its_work_up() {
    let server = Server::start();
    let client = client(&server).await;
    let (worker, mut held) = hold(adder(&server).drain_timeout(Duration::from_millis(50)), "held");
    let leaving = start(worker).await;
    let id = client.task("held").payload(&()).submit().await.unwrap().task_id;
    let run = held.next().await;
    leaving.drain();
    assert_eq!(run.told_to_stop().await, "the worker stops");
    soon(leaving.stop()).await.unwrap();
    let task = client.get(&id).await.unwrap();
    assert_eq!(task.attempts[0].error.clone().unwrap().code, "worker_lost");
}
