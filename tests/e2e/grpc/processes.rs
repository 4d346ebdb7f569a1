//! Workers as processes: stopped, killed, and the samples of the SDK as they stand.

use std::{
    env,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crewcall_sdk::{
    Watch, WatchEvent, Worker,
    options::RetryPolicy,
    proto::{Task, TaskState},
};
use serde_json::json;

use super::{Python, client, hold, now_ms, soon, start, until_begun};
use crate::harness::{Server, wait};

const LEASE_MS: i64 = 700;
const QUICK: &str = "lease_ms = 700\nbeat_ms = 200\nresume_ms = 700\n";

fn quick_server() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crewcall.toml");
    std::fs::write(&file, format!("[limits]\n{QUICK}")).unwrap();
    (Server::builder().arg("--config").arg(&file).start(), dir)
}

/// At once: the tests measure the lease, not the backoff.
const RETRY: RetryPolicy = RetryPolicy { max_attempts: 3, initial_backoff_ms: 1, max_backoff_ms: 1 };

async fn until_state(watch: &mut Watch, wanted: impl Fn(&Task) -> bool) -> Task {
    loop {
        match soon(watch.next()).await.expect("the watch ended").unwrap() {
            WatchEvent::Task(task) if wanted(&task) => return *task,
            _ => {}
        }
    }
}

/// RELIABILITY: a worker stopped for longer than its lease. Its task moves on, its late result is refused.
#[tokio::test]
async fn a_stopped_workers_task_moves_on_and_its_late_result_counts_for_nothing() {
    let (server, _config) = quick_server();
    let client = client(&server).await;
    let python = Python::of_the_test_command();
    let mut stopped = python.worker(&server.address().to_string(), "stopped", 1).await;
    let slow = json!({"steps": 1, "step_ms": 200});
    let id = client.task("py.slow").payload(&slow).retry(RETRY).submit().await.unwrap().task_id;
    let mut watch = client.watch(id.as_str(), "").await.unwrap();
    until_state(&mut watch, |task| task.state() == TaskState::Leased).await;
    until_begun(&client, &id).await;
    let stopped_at = now_ms();
    stopped.signal("STOP");
    let (other, mut held) = hold(Worker::builder(server.url()).worker_id("other"), "py.slow");
    let _other = start(other).await;
    let run = held.next().await;
    assert_eq!(run.context.attempt(), 2);
    let leased = until_state(&mut watch, |task| task.attempt == 2).await;
    let took = leased.changed_at_unix_ms - stopped_at;
    assert!(took <= LEASE_MS + 1_000, "re-leased {took} ms after the stop");
    stopped.signal("CONT");
    stopped.expect("joined as stopped").await;
    // It is back, and its handler has long ended; whatever it says about it has been said by now.
    let again = client.task("py.slow").payload(&slow).group("").submit().await.unwrap();
    soon(client.get_wait(again.task_id, Duration::from_secs(30))).await.unwrap();
    assert_eq!(client.get(&id).await.unwrap().state(), TaskState::Leased, "the second attempt stands");
    run.succeed("the second attempt's");
    let task = soon(client.get_wait(&id, Duration::from_secs(30))).await.unwrap();
    assert_eq!((task.state(), task.attempt, task.attempts.len()), (TaskState::Finished, 2, 1));
    assert_eq!(task.attempts[0].error.clone().unwrap().code, "worker_lost");
    let result = crewcall_sdk::error::outcome_result(task.outcome).unwrap();
    assert_eq!(result.decode::<String>().unwrap(), "the second attempt's");
}

/// RELIABILITY: `kill -9` in the middle of a task.
#[tokio::test]
async fn a_killed_workers_task_is_leased_again_within_the_lease_and_a_second() {
    let (server, _config) = quick_server();
    let client = client(&server).await;
    let python = Python::of_the_test_command();
    let mut killed = python.worker(&server.address().to_string(), "killed", 1).await;
    let slow = json!({"steps": 1000, "step_ms": 10});
    let id = client.task("py.slow").payload(&slow).retry(RETRY).submit().await.unwrap().task_id;
    let mut watch = client.watch(id.as_str(), "").await.unwrap();
    while !matches!(soon(watch.next()).await.unwrap().unwrap(), WatchEvent::Progress(_)) {}
    let (other, mut held) = hold(Worker::builder(server.url()).worker_id("other"), "py.slow");
    let _other = start(other).await;
    let killed_at = now_ms();
    killed.signal("KILL");
    assert_eq!(killed.exited().await, None);
    let run = held.next().await;
    assert_eq!((run.context.task_id(), run.context.attempt()), (id.as_str(), 2));
    let leased = until_state(&mut watch, |task| task.attempt == 2).await;
    let took = leased.changed_at_unix_ms - killed_at;
    assert!(took <= LEASE_MS + 1_000, "re-leased {took} ms after the kill");
    run.succeed(());
    let task = soon(client.get_wait(&id, Duration::from_secs(30))).await.unwrap();
    assert_eq!((task.state(), task.attempts.len()), (TaskState::Finished, 1));
}

#[tokio::test]
async fn a_cancelled_run_stops_at_a_worker_in_another_language_within_a_beat() {
    let (server, _config) = quick_server();
    let client = client(&server).await;
    let _worker = Python::of_the_test_command().worker(&server.address().to_string(), "py", 1).await;
    let endless = json!({"steps": 1_000_000, "step_ms": 10});
    let id = client.task("py.slow").payload(&endless).submit().await.unwrap().task_id;
    let mut watch = client.watch(id.as_str(), "").await.unwrap();
    while !matches!(soon(watch.next()).await.unwrap().unwrap(), WatchEvent::Progress(_)) {}
    let cancelled = Instant::now();
    client.cancel(&id, "enough").await.unwrap();
    // Its only slot is free again as soon as the handler has stopped.
    let sum = client.task("add").payload(&json!({"a": 1, "b": 2})).call::<i64>();
    assert_eq!(soon(sum).await.unwrap(), 3);
    // Two beats: one for the machine that runs all these tests at once.
    assert!(cancelled.elapsed() < Duration::from_millis(400), "{:?}", cancelled.elapsed());
}

/// Builds the samples of the SDK as the test command does, and returns where they are.
fn examples() -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--locked", "--workspace", "--examples", "--quiet"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Path::new(env!("CARGO_BIN_EXE_crewcall")).with_file_name("examples")
}

#[test]
fn the_samples_of_the_sdk_do_what_they_say() {
    let server = Server::start();
    let examples = examples();
    let sample = |name: &str| {
        let mut command = Command::new(examples.join(name));
        command.env("CREWCALL_SERVER", server.url()).stdin(Stdio::null());
        command
    };
    let said = |name: &str| {
        let mut child = sample(name).stdout(Stdio::piped()).spawn().unwrap();
        let status = wait(&mut child);
        let mut stdout = String::new();
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        assert!(status.success(), "{name}: {status}: {stdout}");
        stdout
    };
    let mut worker = sample("worker").spawn().unwrap();
    assert_eq!(said("call"), "1 + 2 = 3\ndoubled: [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]\n");
    let retry = said("retry");
    assert_eq!(retry, "attempt 1 failed: attempt 1\nattempt 2 failed: attempt 2\nsucceeded at attempt 3\n");
    let mut cancel: Vec<_> = said("cancel").lines().map(str::to_owned).collect();
    cancel.sort();
    assert_eq!(cancel, ["the handler stops: changed my mind", "the task is cancelled"]);

    let told = Instant::now();
    let kill = Command::new("kill").args(["-s", "TERM", &worker.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let status = worker.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(2), "an idle worker left after {:?}", told.elapsed());
}
