//! The kill -9 ledger: clients that write down every acknowledgement, while the server is killed at random
//! moments and the workers with it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crewcall_sdk::{
    CallError, Client, Context, HandlerError, TaskBuilder, Worker, WorkerHandle, options::RetryPolicy,
    proto::NewTask,
};
use futures_util::{StreamExt as _, stream};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{ledger::Ledger, seed, site::Site};
use crate::grpc::{now_ms, soon};

/// Data directories in use at once: while one waits for its disk, another runs.
const LANES: u64 = 3;
/// Trials over one data directory: what the first of them acknowledged is looked at after the last.
const TRIALS_PER_LIFE: u64 = 10;
const CALLERS: u64 = 3;
/// Of each caller.
const IN_FLIGHT: usize = 6;
const WORKERS: u64 = 3;
/// Enough for every moment of a kill to meet work, few enough to be done soon.
const TASKS_PER_TRIAL: u64 = 250;
/// With next to no room for payloads in memory: nearly all are read back when their task is dispatched.
const LIMITS: &str = "lease_ms = 400, beat_ms = 100, resume_ms = 300, resident_payload_bytes = 2000";
/// More attempts than any task can lose.
const RETRY: RetryPolicy = RetryPolicy { max_attempts: 1000, initial_backoff_ms: 10, max_backoff_ms: 60 };
/// Longer than the whole run.
const RETENTION: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Default)]
struct Tally {
    trials: AtomicU64,
    kills: AtomicU64,
    workers_killed: AtomicU64,
    acknowledged: AtomicU64,
    outcomes: AtomicU64,
    leases: AtomicU64,
    keys: AtomicU64,
    /// Requests that nobody answered.
    unanswered: AtomicU64,
    lost: AtomicU64,
}

/// What everyone of a trial shares.
#[derive(Clone, Debug)]
struct Trial {
    ledger: Arc<Ledger>,
    tally: Arc<Tally>,
    switch: super::site::Switch,
    numbers: Arc<AtomicU64>,
    last: u64,
    /// The trial's own keys begin with it.
    name: String,
    /// No more kills.
    calm: CancellationToken,
    /// Everything has ended.
    over: CancellationToken,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_to_kill_9() {
    let seed = seed();
    let trials = proof::size("CREWCALL_CRASH_TRIALS", 30);
    let proof = proof::Proof::begin("kill -9", "./test e2e -- crash::trials");
    let begun = Instant::now();
    let tally = Arc::new(Tally::default());
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let share = trials / LANES + u64::from(lane < trials % LANES);
        lanes.spawn(run_lane(lane, share, StdRng::seed_from_u64(seed ^ (lane << 32)), tally.clone()));
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
    println!("kill -9 in {:?}: {tally:?}", begun.elapsed());
    let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
    assert_eq!(count(&tally.trials), trials);
    assert_eq!(count(&tally.lost), 0);
    assert!(count(&tally.kills) >= 3 * trials && count(&tally.acknowledged) >= 20 * trials, "{tally:?}");
    let shown = |number: &AtomicU64| proof::count(count(number));
    proof.record(&[
        ("trials", shown(&tally.trials)),
        ("kill -9 of the server", shown(&tally.kills)),
        ("kill -9 of a worker", shown(&tally.workers_killed)),
        ("acknowledged tasks", shown(&tally.acknowledged)),
        ("requests that nobody answered", shown(&tally.unanswered)),
        ("attempts (leases handed out)", shown(&tally.leases)),
        ("**acknowledged tasks lost**", shown(&tally.lost)),
        ("**acknowledged outcomes changed or ended twice**", proof::count(0_u64)),
        ("idempotency keys", shown(&tally.keys)),
        ("**keys with two tasks**", proof::count(0_u64)),
        ("payloads or results that were not those handed in", proof::count(0_u64)),
        ("acknowledged tasks that had not ended after their trial", proof::count(0_u64)),
    ]);
}

async fn run_lane(lane: u64, trials: u64, mut random: StdRng, tally: Arc<Tally>) {
    let mut done = 0;
    while done < trials {
        let mut site = Site::open(LIMITS).await;
        let ledger = Arc::new(Ledger::default());
        let numbers = Arc::new(AtomicU64::new(0));
        let chapter = TRIALS_PER_LIFE.min(trials - done);
        for _ in 0..chapter {
            let trial = Trial {
                ledger: ledger.clone(),
                tally: tally.clone(),
                switch: site.switch().clone(),
                last: numbers.load(Ordering::Relaxed) + TASKS_PER_TRIAL,
                numbers: numbers.clone(),
                name: format!("lane {lane} trial {done}"),
                calm: CancellationToken::new(),
                over: CancellationToken::new(),
            };
            run_trial(&mut site, trial, &mut random).await;
            done += 1;
            tally.trials.fetch_add(1, Ordering::Relaxed);
        }
        // What the last trial has ended is looked at once more by a server that has not seen it.
        site.kill_and_start();
        tally.kills.fetch_add(1, Ordering::Relaxed);
        look_at_everything(&site, &ledger, &tally).await;
        assert_eq!(ledger.outcomes(), ledger.acknowledged(), "all have ended");
        tally.acknowledged.fetch_add(ledger.acknowledged() as u64, Ordering::Relaxed);
        tally.outcomes.fetch_add(ledger.outcomes() as u64, Ordering::Relaxed);
        tally.leases.fetch_add(ledger.leases() as u64, Ordering::Relaxed);
        tally.keys.fetch_add(ledger.keys() as u64, Ordering::Relaxed);
    }
}

async fn run_trial(site: &mut Site, trial: Trial, random: &mut StdRng) {
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(caller(trial.clone(), StdRng::seed_from_u64(random.next_u64())));
    }
    let mut workers = JoinSet::new();
    for index in 0..WORKERS {
        workers.spawn(worker(trial.clone(), index, StdRng::seed_from_u64(random.next_u64())));
    }
    for _ in 0..random.random_range(3..=5) {
        // Some die before they have served anyone.
        let life = if random.random_bool(0.2) { 0..5 } else { 20..180 };
        tokio::time::sleep(Duration::from_millis(random.random_range(life))).await;
        site.kill();
        trial.tally.kills.fetch_add(1, Ordering::Relaxed);
        if random.random_bool(0.2) {
            tokio::time::sleep(Duration::from_millis(random.random_range(5..100))).await;
        }
        site.start();
    }
    trial.calm.cancel();
    while let Some(caller) = soon(callers.join_next()).await {
        caller.unwrap();
    }
    let client = site.client();
    let ends = trial.ledger.open().into_iter().map(|id| {
        let client = client.clone();
        async move { (client.get_wait(&id, Duration::from_secs(20)).await, id) }
    });
    let mut ends = stream::iter(ends).buffer_unordered(64);
    while let Some((task, id)) = ends.next().await {
        match task.map(|task| task.outcome) {
            Ok(Some(outcome)) => trial.ledger.ended(&id, &outcome),
            other => {
                let why = client.explain(&id).await;
                trial.ledger.broke(format!("{}: {id} does not end: {other:?}, {why:?}", trial.name));
            }
        }
    }
    look_at_everything(site, &trial.ledger, &trial.tally).await;
    trial.over.cancel();
    while let Some(worker) = soon(workers.join_next()).await {
        worker.unwrap();
    }
}

async fn look_at_everything(site: &Site, ledger: &Ledger, tally: &Tally) {
    let lost = soon(ledger.compare(&site.client())).await;
    tally.lost.fetch_add(lost as u64, Ordering::Relaxed);
    ledger.assert_kept(&site.log());
}

// --- Callers ---------------------------------------------------------------------------------------------

/// Until it is calm, several things at once.
async fn caller(trial: Trial, mut random: StdRng) {
    let client = trial.switch.client();
    let acts = std::iter::repeat_with(|| StdRng::seed_from_u64(random.next_u64()));
    let acts = acts.take_while(|_| !trial.calm.is_cancelled());
    let acts = acts.map(|random| act(&trial, &client, random));
    stream::iter(acts).buffer_unordered(IN_FLIGHT).collect::<()>().await;
}

async fn act(trial: &Trial, client: &Client, mut random: StdRng) {
    match random.random_range(0..10) {
        0..=2 => submit(trial, client, &mut random).await,
        3 => submit_many(trial, client, &mut random).await,
        4..=5 => submit_with_key(trial, client, &mut random).await,
        6 => call(trial, client, &mut random).await,
        7 => call_with_key(trial, client, &mut random).await,
        8 => cancel(trial, client, &mut random).await,
        _ => read(trial, client, &mut random).await,
    }
}

impl Trial {
    fn next_number(&self) -> Option<u64> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        // Without more tasks there is still time to kill: they are read meanwhile.
        (number < self.last).then_some(number)
    }

    /// What to do about an answer that is none.
    async fn unanswered(&self, what: &str, error: CallError) {
        if !error.is_transient() {
            self.ledger.broke(format!("{}: {what}: {error}", self.name));
        }
        self.tally.unanswered.fetch_add(1, Ordering::Relaxed);
        self.switch.up_again().await;
    }
}

/// What tells one large payload from all others.
fn blob(number: u64, bytes: usize) -> String {
    let line = format!("{number} ");
    line.chars().cycle().take(bytes).collect()
}

fn task(number: u64, random: &mut StdRng) -> NewTask {
    let builder = TaskBuilder::new("work").retention(RETENTION).retry(RETRY).durable();
    let task = match random.random_range(0..10) {
        0..=3 => builder.payload(&json!({"number": number})),
        4..=5 => builder.payload(&json!({"number": number, "ms": random.random_range(1..80)})),
        6 => builder.payload(&json!({"number": number, "fail_below": random.random_range(2..4)})),
        7 => builder.payload(&json!({"number": number, "fail_below": 1000})).max_attempts(2),
        8 => {
            // Payloads, and results, that take rows and pages of their own.
            let bytes = random.random_range(1_000..150_000);
            builder.payload(&json!({"number": number, "bytes": bytes, "blob": blob(number, bytes)}))
        }
        _ => {
            let wait = Duration::from_millis(random.random_range(20..500));
            let at = SystemTime::now() + wait;
            let not_before = now_ms() + i64::try_from(wait.as_millis()).unwrap() - 1;
            builder.payload(&json!({"number": number, "not_before": not_before})).run_at(at)
        }
    };
    task.build().unwrap()
}

/// The same task for everyone who asks for the same key. Each trial has 20 of them.
fn task_with_key(trial: &Trial, random: &mut StdRng) -> (u64, String, NewTask) {
    let number = u64::from(random.random_range(0..20_u32));
    let key = format!("{} key {number}", trial.name);
    // Above every number that is counted up.
    let number = (1 << 40) + trial.last * 100 + number;
    // A large one is told from another also when neither is in memory.
    let bytes = if number.is_multiple_of(5) { 70_000 } else { 0 };
    let payload = json!({"number": number, "ms": number % 30, "bytes": bytes, "blob": blob(number, bytes)});
    let task = TaskBuilder::new("work")
        .payload(&payload)
        .idempotency_key(key.clone())
        .retention(RETENTION)
        .retry(RETRY)
        .durable();
    (number, key, task.build().unwrap())
}

async fn submit(trial: &Trial, client: &Client, random: &mut StdRng) {
    let Some(number) = trial.next_number() else { return read(trial, client, random).await };
    match client.submit(task(number, random)).await {
        Ok(submitted) => trial.ledger.accepted(number, None, &submitted.task_id, submitted.attached),
        Err(error) => trial.unanswered("submit", error).await,
    }
}

async fn submit_many(trial: &Trial, client: &Client, random: &mut StdRng) {
    let numbers: Vec<u64> = (0..random.random_range(2..20)).map_while(|_| trial.next_number()).collect();
    if numbers.is_empty() {
        return read(trial, client, random).await;
    }
    let tasks = numbers.iter().map(|number| task(*number, random)).collect();
    match client.submit_many(tasks).await {
        Ok(results) => {
            for (number, result) in numbers.into_iter().zip(results) {
                match result {
                    Ok(submitted) => {
                        trial.ledger.accepted(number, None, &submitted.task_id, submitted.attached);
                    }
                    Err(refusal) => trial.unanswered("submit_many", refusal.into()).await,
                }
            }
        }
        Err(error) => trial.unanswered("submit_many", error).await,
    }
}

async fn submit_with_key(trial: &Trial, client: &Client, random: &mut StdRng) {
    let (number, key, task) = task_with_key(trial, random);
    loop {
        match client.submit(task.clone()).await {
            Ok(submitted) => {
                return trial.ledger.accepted(number, Some(&key), &submitted.task_id, submitted.attached);
            }
            Err(error) => trial.unanswered("submit with key", error).await,
        }
    }
}

async fn call(trial: &Trial, client: &Client, random: &mut StdRng) {
    let Some(number) = trial.next_number() else { return read(trial, client, random).await };
    match client.call_outcome(task(number, random)).await {
        Ok(answer) => {
            trial.ledger.accepted(number, None, &answer.task_id, false);
            trial.ledger.ended(&answer.task_id, &answer.outcome.expect("an outcome"));
        }
        Err(error) => trial.unanswered("call", error).await,
    }
}

async fn call_with_key(trial: &Trial, client: &Client, random: &mut StdRng) {
    let (number, key, task) = task_with_key(trial, random);
    loop {
        match client.call_outcome(task.clone()).await {
            Ok(answer) => {
                trial.ledger.accepted(number, Some(&key), &answer.task_id, true);
                return trial.ledger.ended(&answer.task_id, &answer.outcome.expect("an outcome"));
            }
            Err(error) => trial.unanswered("call with key", error).await,
        }
    }
}

async fn cancel(trial: &Trial, client: &Client, random: &mut StdRng) {
    let Some(id) = trial.ledger.any(random.random_range(0..1_000_000)) else { return };
    match client.cancel(&id, "no longer wanted").await {
        Ok(task) => trial.ledger.ended(&id, &task.outcome.expect("it has ended")),
        Err(CallError::Refused(refusal)) if refusal.reason == "task_ended" => {}
        Err(error) => trial.unanswered("cancel", error).await,
    }
}

async fn read(trial: &Trial, client: &Client, random: &mut StdRng) {
    let Some(id) = trial.ledger.any(random.random_range(0..1_000_000)) else { return };
    match client.get_wait(&id, Duration::from_millis(random.random_range(1..100))).await {
        Ok(task) => {
            if let Some(outcome) = &task.outcome {
                trial.ledger.ended(&id, outcome);
            }
        }
        Err(CallError::Refused(refusal)) if refusal.code == Code::NotFound => {
            trial.ledger.broke(format!("{id} was acknowledged and is lost"));
        }
        Err(error) => trial.unanswered("get", error).await,
    }
}

// --- Workers ---------------------------------------------------------------------------------------------

/// A life in chapters, most of them ended without a word, until it is calm; then one that stays.
async fn worker(trial: Trial, index: u64, mut random: StdRng) {
    loop {
        // Under its old name the server hears at once that a worker is dead, under a new one it has to wait.
        let name = if random.random_bool(0.5) { 0 } else { random.next_u64() };
        let worker = start(&trial, format!("worker-{index}-{name}"));
        let mut calm = false;
        while !calm {
            let chapter = Duration::from_millis(random.random_range(50..500));
            tokio::select! {
                () = trial.calm.cancelled() => calm = true,
                () = tokio::time::sleep(chapter) => {}
            }
            if calm || random.random_bool(0.6) {
                break;
            }
            worker.disconnect();
        }
        if calm {
            trial.over.cancelled().await;
            worker.abort();
            return;
        }
        worker.abort();
        trial.tally.workers_killed.fetch_add(1, Ordering::Relaxed);
    }
}

fn start(trial: &Trial, name: String) -> WorkerHandle {
    let ledger = trial.ledger.clone();
    Worker::builder(trial.switch.url())
        .worker_id(name)
        .concurrency(16)
        .method("work", move |context: Context, input: Value| {
            ledger.leased(context.lease(), context.task_id(), context.attempt());
            let late = input["not_before"].as_i64().is_none_or(|at| now_ms() >= at);
            if !late {
                ledger.broke(format!("{} runs before its time: {input}", context.task_id()));
            }
            let number = input["number"].as_u64().expect("every task has one");
            let bytes = input["bytes"].as_u64().unwrap_or(0) as usize;
            if bytes > 0 && input["blob"] != blob(number, bytes) {
                ledger.broke(format!("{} runs with another payload: {input}", context.task_id()));
            }
            async move {
                if let Some(ms) = input["ms"].as_u64() {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
                if input["fail_below"].as_u64().is_some_and(|below| u64::from(context.attempt()) < below) {
                    return Err(HandlerError::new("not_yet", format!("attempt {}", context.attempt())));
                }
                // The lease tells apart the results of two attempts.
                let blob = blob(number, bytes / 2);
                Ok(json!({"number": number, "lease": context.lease(), "blob": blob}))
            }
        })
        .build()
        .unwrap()
        .start()
}
