//! Workers as processes that die, or stand still, in the middle of a task.
//!
//! The processes are this very binary, told by its environment what to be.

use std::{
    env,
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use crewcall_sdk::{Context, HandlerError, Worker, options::RetryPolicy, proto::TaskState};
use serde_json::Value;

use super::{holder, until_state};
use crate::{
    crash::site::Site,
    grpc::{now_ms, soon, until_begun},
};

const URL: &str = "CREWCALL_TEST_WORKER_OF";
/// Lines that are for the parent; libtest writes some of its own.
const MARK: &str = "child: ";
const LEASE_MS: i64 = 500;
const LIMITS: &str = "lease_ms = 500, beat_ms = 100, resume_ms = 500";
/// At once: what is measured is the lease, not the backoff.
const RETRY: RetryPolicy = RetryPolicy { max_attempts: 3, initial_backoff_ms: 1, max_backoff_ms: 1 };

/// Not a test when run by itself: the processes of other tests come in here. Its one method never ends by
/// itself.
#[tokio::test]
async fn child() {
    let Ok(url) = env::var(URL) else { return };
    let worker = Worker::builder(url).method("held", |context: Context, _: Value| async move {
        println!("{MARK}began {}", context.attempt());
        context.cancelled().cancelled().await;
        println!("{MARK}told to stop: {}", context.cancel_reason());
        Err::<(), _>(HandlerError::from("stopped"))
    });
    worker.build().unwrap().run(std::future::pending()).await.unwrap();
}

/// A worker's process, killed when dropped.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(url: &str) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "faults::worker::child", "--nocapture", "--test-threads=1"]);
        let mut child = command.env(URL, url).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next thing that it says.
    fn hear(&mut self) -> String {
        tokio::task::block_in_place(|| {
            loop {
                let line = self.lines.next().expect("the process has ended").unwrap();
                // libtest begins lines without ending them.
                if let Some((_, said)) = line.split_once(MARK) {
                    return said.to_owned();
                }
            }
        })
    }

    fn signal(&self, name: &str) {
        let kill = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_workers_are_killed_is_tried_as_often_as_it_may_then_dead() {
    let proof = proof::Proof::begin("kill -9 of workers", "./test e2e -- faults::worker");
    let site = Site::open(LIMITS).await;
    let client = site.client();
    let id = client.task("held").retry(RETRY).submit().await.unwrap().task_id;
    let mut slowest = 0;
    let mut killed_at = now_ms();
    for attempt in 1..=RETRY.max_attempts {
        let mut process = Process::start(&site.server().url());
        assert_eq!(process.hear(), format!("began {attempt}"));
        until_begun(&client, &id).await;
        let task = client.get(&id).await.unwrap();
        assert_eq!((task.state(), task.attempt), (TaskState::Leased, attempt));
        if attempt > 1 {
            // There was nobody to take it before: until it was ready is what counts.
            let ready = task.attempts.last().unwrap().ended_at_unix_ms;
            slowest = slowest.max(ready - killed_at);
        }
        killed_at = now_ms();
        drop(process);
    }
    let task = soon(client.get_wait(&id, Duration::from_secs(20))).await.unwrap();
    assert_eq!((task.state(), task.attempt, task.attempts.len()), (TaskState::Dead, 3, 3), "{task:?}");
    slowest = slowest.max(task.attempts[2].ended_at_unix_ms - killed_at);
    assert!(slowest <= LEASE_MS + 1_000, "given up {slowest} ms after the kill");
    for attempt in &task.attempts {
        assert_eq!(attempt.error.as_ref().unwrap().code, "worker_lost", "{task:?}");
    }
    // Nobody is given it again.
    let (worker, mut held) = holder(&site, 2).await;
    let next = client.task("held").submit().await.unwrap().task_id;
    assert_eq!(held.next().await.context.task_id(), next);
    worker.abort();
    proof.record(&[
        ("workers killed with the task in hand", proof::count(RETRY.max_attempts)),
        ("attempts, of at most 3", proof::count(task.attempt)),
        ("then", "dead, with all three errors".to_owned()),
        (
            "from a kill until the task may go on, at most",
            format!("{slowest} ms, with leases of {LEASE_MS} ms"),
        ),
    ]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_stopped_beyond_its_lease_is_told_and_the_new_result_stands() {
    let proof = proof::Proof::begin("SIGSTOP of a worker", "./test e2e -- faults::worker");
    let site = Site::open(LIMITS).await;
    let client = site.client();
    let mut process = Process::start(&site.server().url());
    let id = client.task("held").retry(RETRY).submit().await.unwrap().task_id;
    assert_eq!(process.hear(), "began 1");
    until_begun(&client, &id).await;
    let stopped_at = now_ms();
    process.signal("STOP");
    let (worker, mut held) = holder(&site, 1).await;
    let second = held.next().await;
    assert_eq!((second.context.task_id(), second.context.attempt()), (id.as_str(), 2));
    let lost = client.get(&id).await.unwrap().attempts[0].ended_at_unix_ms - stopped_at;
    assert!((1..=LEASE_MS + 1_000).contains(&lost), "{lost}");
    // Beyond twice its lease.
    let up = async || client.stats().await.unwrap().uptime_ms;
    let now = up().await;
    soon(async { while up().await < now + 2 * LEASE_MS as u64 {} }).await;
    process.signal("CONT");
    let told = process.hear();
    assert!(told.starts_with("told to stop: "), "{told}");
    assert_eq!(client.get(&id).await.unwrap().state(), TaskState::Leased, "the second attempt stands");
    second.succeed("the second attempt's");
    let task = until_state(&client, &id, TaskState::Finished).await;
    assert_eq!((task.attempt, task.attempts.len()), (2, 1));
    assert_eq!(task.attempts[0].error.as_ref().unwrap().code, "worker_lost");
    let result = crewcall_sdk::error::outcome_result(task.outcome).unwrap();
    assert_eq!(result.decode::<String>().unwrap(), "the second attempt's");
    worker.abort();
    proof.record(&[
        ("the task went on", format!("{lost} ms after the stop, with leases of {LEASE_MS} ms")),
        ("the stopped worker, when it went on", told),
        ("the result that stands", "the second attempt's".to_owned()),
    ]);
}
