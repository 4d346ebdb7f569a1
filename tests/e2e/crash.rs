//! The server is killed and comes back: what it has acknowledged is there, what ran goes on.

pub(crate) mod ledger;
pub(crate) mod site;
mod trials;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crewcall_sdk::{
    HandlerError, TaskBuilder, Worker, WorkerHandle,
    proto::{Outcome, Task, TaskState, outcome::Kind},
};
use futures_util::{StreamExt as _, stream};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{sync::Mutex, task::JoinSet};

use self::{
    ledger::{Ledger, all_tasks},
    site::{Site, copy_files},
};
use crate::grpc::{Held, hold, now_ms, refusal, soon};

/// Nothing but what is said.
const DEFAULTS: &str = "";

/// Of a run that can be repeated, as far as the machine allows.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("CREWCALL_TEST_SEED") {
        Ok(seed) => seed.parse().expect("CREWCALL_TEST_SEED is a number"),
        Err(_) => rand::random::<u64>(),
    };
    println!("again with the same schedule: CREWCALL_TEST_SEED={seed}");
    seed
}

/// A worker whose method `held` ends when the test says so.
async fn holder(site: &Site) -> (WorkerHandle, Held) {
    let (builder, held) = hold(Worker::builder(site.switch().url()).worker_id("holder"), "held");
    let worker = builder.build().unwrap().start();
    soon(worker.wait_connected()).await.unwrap();
    (worker, held)
}

fn result_of(task: &Task) -> Value {
    match task.outcome.as_ref().and_then(|outcome| outcome.kind.as_ref()) {
        Some(Kind::Succeeded(result)) => result.decode().unwrap(),
        other => panic!("{} ended as {other:?}", task.id),
    }
}

/// What would happen to the trials if the server broke its promises.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_notices_a_history_that_is_cut_short() {
    let mut site = Site::open(DEFAULTS).await;
    let ledger = Ledger::default();
    let client = site.client();
    let older = tempfile::tempdir().unwrap();
    for number in 0..2 {
        let key = format!("key {number}");
        let task = client.task("nobody").idempotency_key(&key).submit().await.unwrap();
        ledger.accepted(number, Some(&key), &task.task_id, task.attached);
        let cancelled = client.cancel(&task.task_id, "no longer wanted").await.unwrap();
        ledger.ended(&task.task_id, &cancelled.outcome.unwrap());
        if number == 0 {
            site.kill();
            copy_files(site.data(), older.path());
            site.start();
            site.switch().up_again().await;
        }
    }
    assert_eq!(ledger.compare(&site.client()).await, 0);
    ledger.assert_kept(&site.log());

    site.kill();
    site.replace_data(older.path());
    site.start();
    let client = site.client();
    assert_eq!(ledger.compare(&client).await, 1);
    let second = client.task("nobody").idempotency_key("key 1").submit().await.unwrap();
    ledger.accepted(1, Some("key 1"), &second.task_id, second.attached);
    let broken = ledger.broken();
    assert!(broken[0].ends_with("was acknowledged and is lost"), "{broken:?}");
    assert!(broken[1].starts_with("key key 1 has two tasks"), "{broken:?}");
}

#[test]
fn the_ledger_notices_what_happens_twice() {
    let ledger = Ledger::default();
    let outcome = |lease: u64| {
        let payload = crewcall_sdk::Payload::json(&json!({"number": 7, "lease": lease})).unwrap();
        Outcome { kind: Some(Kind::Succeeded(payload)) }
    };
    ledger.accepted(7, None, "a", false);
    ledger.leased(1, "a", 1);
    ledger.leased(2, "a", 2);
    ledger.leased(3, "b", 1);
    ledger.ended("a", &outcome(1));
    ledger.ended("a", &outcome(1));
    assert_eq!(ledger.broken(), Vec::<String>::new());
    ledger.ended("a", &outcome(2));
    assert_eq!(ledger.broken().len(), 1, "another outcome");
    ledger.leased(2, "b", 1);
    assert_eq!(ledger.broken().len(), 1, "a lease of another attempt");
    ledger.accepted(8, None, "a", false);
    assert_eq!(ledger.broken().len(), 2, "an id that is taken");
    ledger.accepted(9, None, "c", false);
    ledger.ended("c", &outcome(3));
    assert_eq!(ledger.broken().len(), 1, "the result of another task");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_come_back_keep_what_they_run() {
    let mut site = Site::open(DEFAULTS).await;
    let (worker, mut held) = holder(&site).await;
    let client = site.client();
    let mut runs = Vec::new();
    for name in ["ends while nobody serves", "ends later"] {
        let id = client.task("held").payload(name).submit().await.unwrap().task_id;
        let run = held.next().await;
        assert_eq!((run.context.task_id(), run.context.attempt()), (id.as_str(), 1));
        // Not before this is told is it stored that the worker holds it.
        assert_eq!(client.get(&id).await.unwrap().state(), TaskState::Leased);
        runs.push((id, run.context.lease(), run));
    }
    let (second, first) = (runs.pop().unwrap(), runs.pop().unwrap());

    site.kill();
    first.2.succeed("first");
    site.start();
    soon(worker.wait_for(|status| status.connections == 2)).await.unwrap();
    assert!(!second.2.context.is_cancelled(), "{}", second.2.context.cancel_reason());
    second.2.succeed("second");
    let client = site.client();
    for ((id, lease), result) in [((first.0, first.1), "first"), ((second.0, second.1), "second")] {
        let task = client.get_wait(&id, Duration::from_secs(20)).await.unwrap();
        assert_eq!(result_of(&task), result, "under lease {lease}");
        assert_eq!((task.attempt, task.attempts.len()), (1, 0), "{task:?}");
    }
    // Neither was run again: what comes next is what is asked for next.
    let id = client.task("held").payload("next").submit().await.unwrap().task_id;
    let run = held.next().await;
    assert_eq!(run.context.task_id(), id);
    assert!(run.context.lease() > second.1, "a lease is never given twice");
    assert_eq!(client.stats().await.unwrap().finished_total, 2, "each result was accepted once");
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_come_back_loses_its_work_to_another() {
    let mut site = Site::open("lease_ms = 500, beat_ms = 100, resume_ms = 500").await;
    let (worker, mut held) = holder(&site).await;
    let client = site.client();
    let task = client.task("held").max_attempts(3).submit().await.unwrap();
    let first = held.next().await;
    assert_eq!(client.get(&task.task_id).await.unwrap().state(), TaskState::Leased);
    site.kill();
    worker.abort();
    site.start();

    let (builder, mut held) = hold(Worker::builder(site.switch().url()).worker_id("another"), "held");
    let another = builder.build().unwrap().start();
    let second = held.next().await;
    assert_eq!((second.context.task_id(), second.context.attempt()), (task.task_id.as_str(), 2));
    assert!(second.context.lease() > first.context.lease());
    second.succeed("done");
    let task = site.client().get_wait(&task.task_id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(result_of(&task), "done");
    let error = task.attempts[0].error.as_ref().unwrap();
    assert_eq!(error.code, "worker_lost", "{error:?}");
    another.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_nobody_has_fetched_are_still_there() {
    let mut site = Site::open(DEFAULTS).await;
    let (worker, mut held) = holder(&site).await;
    let client = site.client();
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(client.task("held").payload(&number).submit().await.unwrap().task_id);
    }
    let big = "y".repeat(1 << 20);
    held.next().await.succeed(big.clone());
    held.next().await.fail(HandlerError::new("broken", "for good").not_retryable());
    held.next().await;
    client.cancel(&ids[2], "no longer wanted").await.unwrap();
    soon(async {
        loop {
            let stats = client.stats().await.unwrap();
            if stats.finished_total + stats.failed_total == 2 {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The counts are told before it is stored. What is acknowledged later was stored later.
    let _ = client.task("nobody").submit().await.unwrap();
    worker.abort();
    site.kill_and_start();

    let client = site.client();
    let mut tasks = Vec::new();
    for id in &ids {
        tasks.push(client.get(id).await.unwrap());
    }
    assert_eq!(result_of(&tasks[0]), big);
    let kinds: Vec<_> = tasks.into_iter().map(|task| task.outcome.unwrap().kind.unwrap()).collect();
    assert!(matches!(&kinds[1], Kind::Failed(error) if error.code == "broken"), "{kinds:?}");
    assert!(matches!(&kinds[2], Kind::Cancelled(reason) if reason == "no longer wanted"), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delays_and_backoffs_go_on() {
    let mut site = Site::open(DEFAULTS).await;
    let (worker, mut held) = holder(&site).await;
    let client = site.client();
    let at = SystemTime::now() + Duration::from_millis(4000);
    let delayed = client.task("held").payload("delayed").run_at(at).submit().await.unwrap().task_id;
    let retried = client.task("held").payload("retried").max_attempts(2).submit().await.unwrap().task_id;
    held.next().await.fail(HandlerError::from("once").retry_after(Duration::from_millis(3500)));
    let until_delayed = async {
        loop {
            let task = client.get(&retried).await.unwrap();
            if task.state() == TaskState::Delayed {
                break task;
            }
        }
    };
    let before = [client.get(&delayed).await.unwrap(), soon(until_delayed).await];
    site.kill_and_start();

    let client = site.client();
    for task in &before {
        let after = client.get(&task.id).await.unwrap();
        assert_eq!(
            (after.state(), after.run_at_unix_ms, after.attempts.clone()),
            (TaskState::Delayed, task.run_at_unix_ms, task.attempts.clone()),
            "{after:?}"
        );
    }
    for _ in &before {
        let run = held.next().await;
        let task = before.iter().find(|task| task.id == run.context.task_id()).unwrap();
        assert!(now_ms() >= task.run_at_unix_ms, "{task:?}");
        run.succeed("done");
    }
    for task in &before {
        assert_eq!(result_of(&client.get_wait(&task.id, Duration::from_secs(20)).await.unwrap()), "done");
    }
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_refused_and_the_first_goes_on() {
    let site = Site::open(DEFAULTS).await;
    let client = site.client();
    let id = client.task("nobody").submit().await.unwrap().task_id;
    let ended = tokio::task::block_in_place(|| site.builder().fails());
    assert_eq!(ended.status.code(), Some(12), "{ended:?}");
    let dir = site.data().display().to_string();
    assert!(ended.stderr.contains(&dir) && ended.stderr.contains("another process"), "{}", ended.stderr);
    assert!(!ended.stdout.contains("listening"), "{}", ended.stdout);
    client.task("nobody").submit().await.unwrap();
    assert_eq!(client.get(&id).await.unwrap().state(), TaskState::Ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_durable_load_loses_no_acknowledgement() {
    let proof = proof::Proof::begin("SIGTERM under load", "./test e2e -- sigterm");
    let mut random = StdRng::seed_from_u64(seed());
    let mut site = Site::open(DEFAULTS).await;
    let ledger = Arc::new(Ledger::default());
    let serve = || {
        let ledger = ledger.clone();
        let builder = Worker::builder(site.switch().url());
        builder.method("work", move |context: crewcall_sdk::Context, number: u64| {
            ledger.leased(context.lease(), context.task_id(), context.attempt());
            async move { Ok::<_, HandlerError>(json!({"number": number, "lease": context.lease()})) }
        })
    };
    let worker = serve().build().unwrap().start();
    let mut callers = JoinSet::new();
    for caller in 0..8_u64 {
        let (client, ledger) = (site.client(), ledger.clone());
        callers.spawn(async move {
            for number in (0..).map(|turn| turn * 8 + caller) {
                let task =
                    TaskBuilder::new("work").payload(&number).durable().retention(Duration::from_secs(3600));
                if number % 3 == 0 {
                    let Ok(answer) = client.call_outcome(task.build().unwrap()).await else { return };
                    ledger.accepted(number, None, &answer.task_id, false);
                    ledger.ended(&answer.task_id, &answer.outcome.unwrap());
                } else {
                    let Ok(submitted) = client.submit(task.build().unwrap()).await else { return };
                    ledger.accepted(number, None, &submitted.task_id, submitted.attached);
                }
            }
        });
    }
    let enough = random.random_range(200..400);
    soon(async {
        while ledger.acknowledged() < enough {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(site.terminate(), Some(0));
    while let Some(caller) = soon(callers.join_next()).await {
        caller.unwrap();
    }
    site.start();
    let client = site.client();
    let open = ledger.open();
    let ends = open.iter().map(|id| client.get_wait(id, Duration::from_secs(20)));
    let ends: Vec<_> = stream::iter(ends).buffer_unordered(64).collect().await;
    for end in ends {
        let task = end.unwrap();
        ledger.ended(&task.id, &task.outcome.expect("it ends"));
    }
    assert_eq!(soon(ledger.compare(&client)).await, 0);
    ledger.assert_kept(&site.log());
    println!("{} acknowledged, {} leases, none lost", ledger.acknowledged(), ledger.leases());
    proof.record(&[
        ("exit code, with 8 callers at work", "0".to_owned()),
        ("acknowledged tasks", proof::count(ledger.acknowledged())),
        ("of them still open at the end, and ended by the next server", proof::count(open.len())),
        ("lost, or ended twice", proof::count(0_u64)),
    ]);
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_with_one_key_get_one_task_across_a_restart() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut site = Site::open(DEFAULTS).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        let (switch, told) = (site.switch().clone(), told.clone());
        let patience = Duration::from_millis(random.random_range(0..60));
        clients.spawn(async move {
            let client = switch.client();
            tokio::time::sleep(patience).await;
            loop {
                match client.task("held").payload("once").idempotency_key("one").submit().await {
                    Ok(submitted) => return told.lock().await.push(submitted),
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
                switch.up_again().await;
            }
        });
    }
    // Some have been told, some have asked, some have not.
    soon(async {
        while told.lock().await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    site.kill_and_start();
    while let Some(client) = soon(clients.join_next()).await {
        client.unwrap();
    }
    let told = told.lock().await;
    assert_eq!(told.len(), 100);
    let ids: HashSet<&str> = told.iter().map(|submitted| submitted.task_id.as_str()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert!(told.iter().filter(|submitted| !submitted.attached).count() <= 1);
    assert_eq!(all_tasks(&site.client()).await.len(), 1);

    let (worker, mut held) = holder(&site).await;
    held.next().await.succeed("the only one");
    let task = site.client().get_wait(&told[0].task_id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(result_of(&task), "the only one");
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ephemeral_tasks_are_gone_after_a_restart() {
    let mut site = Site::open(DEFAULTS).await;
    let client = site.client();
    let ephemeral = client.task("nobody").ephemeral().submit().await.unwrap().task_id;
    let durable = client.task("nobody").submit().await.unwrap().task_id;
    assert_eq!(client.get(&ephemeral).await.unwrap().state(), TaskState::Ready);
    site.kill_and_start();

    let client = site.client();
    let refusal = refusal(client.get(&ephemeral).await.unwrap_err());
    assert_eq!(refusal.reason, "task_not_found", "{refusal:?}");
    assert_eq!(client.get(&durable).await.unwrap().state(), TaskState::Ready);
}
