//! Ten thousand tasks, called and submitted in every way, over workers in Rust and in stock Python that leave
//! and come back all the time. Every task ends in exactly one outcome, and every sum is right.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crewcall_sdk::{
    CallError, Client, Context, HandlerError, Pipe, TaskBuilder, Worker, WorkerHandle,
    error::outcome_result,
    options::RetryPolicy,
    proto::{NewTask, TaskState},
};
use futures_util::{StreamExt as _, stream};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    grpc::{Proxy, Python, soon},
    harness::Server,
};

const TASKS: u64 = 10_000;
const CALLERS: u64 = 4;
const RUST_WORKERS: u64 = 4;
const PYTHON_WORKERS: u64 = 2;
/// Longer than any task needs, whatever happens to the workers that take it.
const RETRY: RetryPolicy = RetryPolicy { max_attempts: 1000, initial_backoff_ms: 5, max_backoff_ms: 200 };
/// The whole run; about a third of it is used.
const LIMIT: Duration = Duration::from_secs(90);

/// How the answers came out.
#[derive(Debug, Default)]
struct Tally {
    /// Task id and the sum it gave, by the number of the task.
    answers: HashMap<u64, (String, i64)>,
}

type Shared = Arc<Mutex<Tally>>;

/// Attempts in Rust that began, and that came to their end: the others were caught in the middle.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);
/// An attempt of the first worker is in the middle, for 20 ms at least.
static MIDDLE: Notify = Notify::const_new();

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_tasks_over_workers_that_come_and_go() {
    let seed = match std::env::var("CREWCALL_TEST_SEED") {
        Ok(seed) => seed.parse().expect("CREWCALL_TEST_SEED is a number"),
        Err(_) => rand::random::<u64>(),
    };
    println!("again with the same schedule: CREWCALL_TEST_SEED={seed}");
    let python = Python::of_the_test_command();
    let limits = "lease_ms = 1500, beat_ms = 300, resume_ms = 1000";
    let server = Arc::new(Server::builder().args(["--limits", limits]).start());
    let begun = Instant::now();

    let over = CancellationToken::new();
    let mut workers = JoinSet::new();
    for index in 0..RUST_WORKERS {
        let random = StdRng::seed_from_u64(seed ^ index);
        workers.spawn(rust_worker(server.clone(), index, random, over.clone()));
    }
    for index in 0..PYTHON_WORKERS {
        let random = StdRng::seed_from_u64(seed ^ (100 + index));
        workers.spawn(python_worker(server.clone(), python.clone(), index, random, over.clone()));
    }
    let tally = Shared::default();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let random = StdRng::seed_from_u64(seed ^ (200 + caller));
        callers.spawn(call_all(server.url(), caller, random, tally.clone()));
    }
    tokio::time::timeout(LIMIT, async {
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
    })
    .await
    .unwrap_or_else(|_| panic!("only {} answers in {LIMIT:?}", tally.lock().unwrap().answers.len()));
    let took = begun.elapsed();
    over.cancel();
    let mut departures = 0;
    while let Some(left) = soon(workers.join_next()).await {
        departures += left.unwrap();
    }

    let tally = std::mem::take(&mut *tally.lock().unwrap());
    assert_eq!(tally.answers.len() as u64, TASKS);
    for (number, (id, sum)) in &tally.answers {
        assert_eq!(*sum, expected(*number), "task {id}");
    }
    let ids: HashSet<_> = tally.answers.values().map(|(id, _)| id).collect();
    assert_eq!(ids.len() as u64, TASKS, "each task is answered by itself");
    let stats = Client::connect(server.url()).await.unwrap().stats().await.unwrap();
    println!("{TASKS} tasks in {took:?}; workers left {departures} times; {stats:?}");
    assert_eq!(stats.submitted_total, TASKS);
    assert_eq!(stats.finished_total, TASKS, "one outcome each");
    assert_eq!((stats.failed_total, stats.cancelled_total, stats.expired_total), (0, 0, 0));
    assert_eq!((stats.ready, stats.delayed, stats.leased), (0, 0, 0));
    // Of those that went without a word some were caught in the middle.
    let caught = BEGUN.load(Relaxed) - ENDED.load(Relaxed);
    assert!(departures > 10 && caught > 0, "hardly a worker left: {departures}, {caught} caught, {stats:?}");
    assert!(!server.log().contains("panic"), "{}", server.log());
}

// --- Callers ---------------------------------------------------------------------------------------------

fn expected(number: u64) -> i64 {
    i64::try_from(number).unwrap() * 3 - 7
}

fn task(number: u64) -> NewTask {
    let twice = i64::try_from(number).unwrap() * 2 - 7;
    TaskBuilder::new("add").payload(&json!({"a": number, "b": twice})).retry(RETRY).build().unwrap()
}

/// Every `CALLERS`th task: by call, by pipe, or submitted and fetched.
async fn call_all(url: String, caller: u64, mut random: StdRng, tally: Shared) {
    let client = Client::connect(url).await.unwrap();
    let pipe = client.pipe();
    let numbers = (0..TASKS).filter(|number| number % CALLERS == caller);
    let calls = numbers.map(|number| {
        let (client, pipe, way) = (client.clone(), pipe.clone(), random.random_range(0..3));
        async move {
            let answer = match way {
                0 => by_call(&client, number).await,
                1 => by_pipe(&pipe, number).await,
                _ => by_submit(&client, number).await,
            };
            let (id, sum) = answer.unwrap_or_else(|error| panic!("task {number}, way {way}: {error}"));
            (number, id, sum)
        }
    });
    let mut calls = stream::iter(calls).buffer_unordered(64);
    while let Some((number, id, sum)) = calls.next().await {
        let earlier = tally.lock().unwrap().answers.insert(number, (id, sum));
        assert!(earlier.is_none(), "task {number} was answered twice");
    }
}

async fn by_call(client: &Client, number: u64) -> Result<(String, i64), CallError> {
    let answer = client.call_outcome(task(number)).await?;
    Ok((answer.task_id, outcome_result(answer.outcome)?.decode()?))
}

async fn by_pipe(pipe: &Pipe, number: u64) -> Result<(String, i64), CallError> {
    let answer = pipe.call_raw(task(number)).outcome().await?;
    match answer.kind {
        Some(crewcall_sdk::proto::pipe_outcome::Kind::Outcome(outcome)) => {
            Ok((answer.task_id, outcome_result(Some(outcome))?.decode()?))
        }
        other => panic!("task {number}: {other:?}"),
    }
}

async fn by_submit(client: &Client, number: u64) -> Result<(String, i64), CallError> {
    let submitted = client.submit(task(number)).await?;
    loop {
        let task = client.get_wait(&submitted.task_id, Duration::from_secs(60)).await?;
        if task.state() == TaskState::Finished {
            return Ok((submitted.task_id, outcome_result(task.outcome)?.decode()?));
        }
        assert!(task.outcome.is_none(), "it ended otherwise: {task:?}");
    }
}

// --- Workers ---------------------------------------------------------------------------------------------

/// A life in chapters, each ended in its own way. Returns how many.
async fn rust_worker(server: Arc<Server>, index: u64, mut random: StdRng, over: CancellationToken) -> u64 {
    let wire = Proxy::to(server.address()).await;
    let mut departures = 0;
    loop {
        let mut worker = adder(&wire, index, random.random_range(1..=16));
        if index == 0 && departures == 0 {
            // However fast the others are: one at least goes without a word while it runs something, and stays away until
            // that is lost.
            tokio::select! {
                () = MIDDLE.notified() => {}
                () = over.cancelled() => {}
            }
            worker.abort();
            departures += 1;
            lived_to_the_end(&mut random, 1_200..1_300, &over).await;
            continue;
        }
        if lived_to_the_end(&mut random, 100..600, &over).await {
            soon(worker.stop()).await.unwrap();
            return departures;
        }
        departures += 1;
        match random.random_range(0..4) {
            // As if its process were killed.
            0 => worker.abort(),
            // It comes back by itself, and resumes.
            1 => {
                worker.disconnect();
                lived_to_the_end(&mut random, 100..300, &over).await;
                soon(worker.stop()).await.unwrap();
            }
            2 => {
                wire.cut();
                lived_to_the_end(&mut random, 100..300, &over).await;
                worker.abort();
            }
            _ => {
                worker.drain();
                soon(worker.ended()).await.unwrap();
            }
        }
        lived_to_the_end(&mut random, 10..200, &over).await;
    }
}

fn adder(wire: &Proxy, index: u64, concurrency: u32) -> WorkerHandle {
    Worker::builder(wire.url())
        .worker_id(format!("rust-{index}"))
        .concurrency(concurrency)
        .method("add", move |context: Context, terms: Value| async move {
            BEGUN.fetch_add(1, Relaxed);
            // Some answer at once, most take long enough to be caught in the middle.
            if !context.lease().is_multiple_of(4) {
                if index == 0 {
                    MIDDLE.notify_one();
                }
                tokio::time::sleep(Duration::from_millis(20 + context.lease() % 80)).await;
            }
            ENDED.fetch_add(1, Relaxed);
            match (terms["a"].as_i64(), terms["b"].as_i64()) {
                (Some(a), Some(b)) => Ok(a + b),
                _ => Err(HandlerError::new("bad_input", terms.to_string()).not_retryable()),
            }
        })
        .build()
        .unwrap()
        .start()
}

async fn python_worker(
    server: Arc<Server>,
    python: Python,
    index: u64,
    mut random: StdRng,
    over: CancellationToken,
) -> u64 {
    let (name, address) = (format!("python-{index}"), server.address().to_string());
    let mut departures = 0;
    loop {
        let mut worker = python.worker(&address, &name, random.random_range(1..=4)).await;
        let ends = lived_to_the_end(&mut random, 400..1_500, &over).await;
        departures += u64::from(!ends);
        if !ends && random.random_bool(0.5) {
            worker.signal("KILL");
            assert_eq!(worker.exited().await, None);
        } else {
            worker.signal("TERM");
            assert_eq!(worker.exited().await, Some(0));
        }
        if ends {
            return departures;
        }
    }
}

/// Lets some time pass; true when the run is over.
async fn lived_to_the_end(random: &mut StdRng, ms: std::ops::Range<u64>, over: &CancellationToken) -> bool {
    let chapter = Duration::from_millis(random.random_range(ms));
    tokio::select! {
        () = over.cancelled() => true,
        () = tokio::time::sleep(chapter) => false,
    }
}
