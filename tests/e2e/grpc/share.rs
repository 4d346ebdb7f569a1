//! Load in proportion to capacity.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crewcall_sdk::{Client, Context, HandlerError, Pipe, WorkerBuilder, options::TaskBuilder};
use futures_util::{StreamExt as _, stream};

use super::{adder, client, hold, soon, start};
use crate::harness::Server;

#[tokio::test]
async fn what_runs_at_once_is_shared_in_proportion() {
    let server = Server::start();
    let client = client(&server).await;
    let (small, mut of_small) = hold(adder(&server).worker_id("small").concurrency(10), "held");
    let (large, mut of_large) = hold(adder(&server).worker_id("large").concurrency(30), "held");
    let (_small, _large) = (start(small).await, start(large).await);
    until_ready(&client, 40).await;
    let tasks = vec![TaskBuilder::new("held").payload(&()).build().unwrap(); 20];
    client.submit_many(tasks).await.unwrap();
    let mut runs = Vec::new();
    for _ in 0..20 {
        let run = soon(async {
            tokio::select! {
                run = of_small.running.recv() => run,
                run = of_large.running.recv() => run,
            }
        });
        runs.push(run.await.unwrap());
    }
    let in_flight: Vec<u32> =
        client.workers().await.unwrap().iter().map(|worker| worker.pools[0].in_flight).collect();
    assert_eq!(in_flight, [15, 5], "large, small");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_many_tasks_each_worker_does_its_share() {
    const TASKS: usize = 4_000;
    let server = Server::start();
    let client = client(&server).await;
    let counts = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
    let worker = |index: usize, concurrency: u32| {
        let count = counts[index].clone();
        counting(adder(&server).concurrency(concurrency), count)
    };
    let (_small, _large) = (start(worker(0, 10)).await, start(worker(1, 30)).await);
    until_ready(&client, 40).await;
    let pipe = client.pipe();
    // More than both can take, so that both are always full.
    let calls = stream::iter(0..TASKS).map(|n| work(&pipe, n)).buffer_unordered(200);
    let done: Vec<usize> = soon(calls.collect()).await;
    assert_eq!(done.len(), TASKS);
    let [small, large] = counts.map(|count| count.load(Ordering::Relaxed));
    assert_eq!(small + large, TASKS as u64, "each ran once");
    let share = large as f64 / TASKS as f64;
    assert!((0.65..0.85).contains(&share), "the large one has 30 of 40 slots and did {share}");
}

/// Ends when the workers have said that they can take so much.
async fn until_ready(client: &Client, credit: u64) {
    let ready = async || -> u64 {
        client.workers().await.unwrap().iter().flat_map(|worker| &worker.pools).map(|pool| pool.credit).sum()
    };
    soon(async { while ready().await < credit {} }).await;
}

async fn work(pipe: &Pipe, n: usize) -> usize {
    pipe.call("work", &n).await.unwrap()
}

fn counting(builder: WorkerBuilder, count: Arc<AtomicU64>) -> WorkerBuilder {
    builder.method("work", move |_: Context, n: usize| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            // The work itself: both workers take equally long for each.
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok::<_, HandlerError>(n)
        }
    })
}
