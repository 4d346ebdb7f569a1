//! A queue far larger than the memory for its payloads: what it costs, how it is found again after kill -9, and that
//! every task runs with what it was submitted with.
//!
//! `./test million` is the same with a million tasks, of a release build.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crewcall_sdk::{Client, Context, HandlerError, TaskBuilder, Worker, proto::NewTask};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{crash::site::Site, grpc::soon};

/// Tasks in one request.
const BATCH: u64 = 1_000;
/// Of the argument, as a JSON text.
const PAYLOAD: usize = 1_024;
/// A queue so long says something about memory: what is not per task is spread thin.
const LONG: u64 = 500_000;
/// More run than this take longer than they show.
const RUN: u64 = 20_000;

fn task(number: u64) -> NewTask {
    let text = json!({"number": number, "rest": ""}).to_string();
    let rest = "x".repeat(PAYLOAD - text.len());
    TaskBuilder::new("sum").payload(&json!({"number": number, "rest": rest})).build().unwrap()
}

async fn submit(client: &Client, tasks: u64) {
    for first in (0..tasks).step_by(BATCH as usize) {
        let batch = (first..tasks.min(first + BATCH)).map(task).collect();
        for result in client.submit_many(batch).await.unwrap() {
            result.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_queue_costs_little_memory_and_outlives_the_server() {
    let tasks = proof::size("CREWCALL_QUEUED", 20_000);
    let proof = proof::Proof::begin("memory", "./test million");
    // A short queue fits into the memory for payloads, unless there is less of it.
    let limits = if tasks >= LONG { "watchers = 1000" } else { "resident_payload_bytes = 100000" };
    let mut site = Site::open(limits).await;
    let client = site.client();
    let empty = site.server().memory();
    let begun = Instant::now();
    submit(&client, tasks).await;
    let submitted = begun.elapsed();
    let each = site.server().memory().saturating_sub(empty) / tasks;

    site.kill();
    let begun = Instant::now();
    site.start();
    let ready = begun.elapsed();
    site.switch().up_again().await;
    let client = site.client();
    assert_eq!(client.stats().await.unwrap().ready, tasks);
    let each_again = site.server().memory().saturating_sub(empty) / tasks;
    let file = std::fs::metadata(site.data().join("crewcall.db")).unwrap().len();
    println!(
        "{tasks} tasks submitted in {submitted:.1?}: {each} bytes of memory each; ready {ready:.2?} after kill -9, \
         with {each_again} bytes each; {} MiB of disk",
        file >> 20
    );
    if tasks >= LONG {
        assert!(each < 400 && each_again < 400, "{each} and {each_again} bytes of memory for each task");
        assert!(ready < Duration::from_secs(20), "ready after {ready:?}");
    }
    run_all(&site, tasks.min(RUN)).await;
    proof.record(&[
        ("queued durable tasks of 1 KiB", proof::count(tasks)),
        ("bytes of memory for each", proof::count(each)),
        ("bytes of memory for each after a restart", proof::count(each_again)),
        ("milliseconds from start to ready", proof::count(ready.as_millis() as u64)),
    ]);
}

/// The first of them, which are the oldest: each runs once, with its own argument.
async fn run_all(site: &Site, tasks: u64) {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let (count, mut counted) = watch::channel(0);
    let sum = {
        let seen = Arc::clone(&seen);
        move |_: Context, argument: Value| {
            let (seen, count) = (Arc::clone(&seen), count.clone());
            async move {
                let number = argument["number"].as_u64().unwrap();
                assert_eq!(argument.to_string().len(), PAYLOAD, "task {number}");
                let mut seen = seen.lock().unwrap();
                assert!(seen.insert(number), "task {number} ran twice");
                count.send_replace(seen.len() as u64);
                Ok::<_, HandlerError>(number)
            }
        }
    };
    let builder = Worker::builder(site.switch().url()).worker_id("w").concurrency(64);
    let worker = builder.method("sum", sum).build().unwrap().start();
    let all = tokio::time::timeout(Duration::from_secs(300), counted.wait_for(|count| *count >= tasks));
    all.await.unwrap().unwrap();
    soon(worker.stop()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.range(..tasks).count() as u64, tasks, "the oldest go first");
}
