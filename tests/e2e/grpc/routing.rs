//! Which worker: versions, groups, labels, pools.

use std::time::Duration;

use crewcall_sdk::{Client, Context, HandlerError, MethodSpec, Worker, WorkerBuilder};
use serde_json::Value;

use super::{client, hold, refusal, start, until_gone};
use crate::harness::Server;

/// Serves `who`, which answers with the worker's name.
fn who(server: &Server, name: &'static str, version: &str) -> WorkerBuilder {
    let method = MethodSpec::new("who").version(version);
    Worker::builder(server.url())
        .worker_id(name)
        .method(method, move |_: Context, (): ()| async move { Ok::<_, HandlerError>(name) })
}

async fn asked(client: &Client, version: &str) -> String {
    client.task("who").payload(&()).version(version).call().await.unwrap()
}

#[tokio::test]
async fn a_range_picks_the_version_and_none_means_the_newest_alive() {
    let server = Server::start();
    let client = client(&server).await;
    let _old = start(who(&server, "old", "1.4.0")).await;
    let new = start(who(&server, "new", "2.0.1")).await;
    for (range, name) in
        [("", "new"), ("^1", "old"), ("^2.0", "new"), ("<2", "old"), (">=1, <3", "new"), ("=1.4.0", "old")]
    {
        assert_eq!(asked(&client, range).await, name, "{range:?}");
    }
    new.stop().await.unwrap();
    until_gone(&client, "new").await;
    assert_eq!(asked(&client, "").await, "old");
    let waits = client.task("who").payload(&()).version("^2").queue_timeout(Duration::from_millis(50));
    assert!(waits.call::<Value>().await.is_err(), "nobody serves it any more");
    let wrong = client.task("who").payload(&()).version("not a range").call::<Value>().await;
    assert_eq!(refusal(wrong.unwrap_err()).reason, "invalid_field");
}

#[tokio::test]
async fn a_version_that_waits_goes_to_the_worker_that_brings_it() {
    let server = Server::start();
    let client = client(&server).await;
    let _old = start(who(&server, "old", "1.0.0")).await;
    let id = client.task("who").payload(&()).version("^3").submit().await.unwrap().task_id;
    assert_eq!(asked(&client, "").await, "old");
    let _third = start(who(&server, "third", "3.1.0")).await;
    let task = client.get_wait(id, Duration::from_secs(30)).await.unwrap();
    let outcome = crewcall_sdk::error::outcome_result(task.outcome).unwrap();
    assert_eq!(outcome.decode::<String>().unwrap(), "third");
}

#[tokio::test]
async fn groups_and_labels_must_all_hold() {
    let server = Server::start();
    let client = client(&server).await;
    let _a = start(who(&server, "a", "").group("blue").label("gpu", "yes").label("zone", "1")).await;
    let _b = start(who(&server, "b", "").group("blue").label("zone", "2")).await;
    let _c = start(who(&server, "c", "").group("red").label("gpu", "yes").label("zone", "2")).await;
    let task = || client.task("who").payload(&());
    for _ in 0..3 {
        assert_eq!(task().group("red").call::<String>().await.unwrap(), "c");
        assert_eq!(task().group("blue").label("zone", "2").call::<String>().await.unwrap(), "b");
        assert_eq!(task().label("gpu", "yes").label("zone", "1").call::<String>().await.unwrap(), "a");
    }
    let nobody = task().group("red").label("zone", "1").queue_timeout(Duration::from_millis(50));
    assert!(nobody.call::<String>().await.is_err());
}

#[tokio::test]
async fn a_full_pool_does_not_hold_up_another() {
    let server = Server::start();
    let client = client(&server).await;
    let (worker, mut light) = hold(Worker::builder(server.url()).pool("heavy", 1).concurrency(1), "light");
    let (worker, mut heavy) = hold(worker, MethodSpec::new("heavy").pool("heavy"));
    let _worker = start(worker).await;
    let first = tokio::spawn(client.task("heavy").payload(&1).call::<Value>());
    let run = heavy.next().await;
    let second = client.task("heavy").payload(&2).submit().await.unwrap();
    let default = tokio::spawn(client.task("light").payload(&()).call::<Value>());
    light.next().await.succeed("not held up");
    assert_eq!(default.await.unwrap().unwrap(), "not held up");
    run.succeed(1);
    first.await.unwrap().unwrap();
    let run = heavy.next().await;
    assert_eq!(run.context.task_id(), second.task_id);
    run.succeed(2);
}
