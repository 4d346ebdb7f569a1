//! A wall clock that jumps, and a process that stands still as in a paused virtual machine.

use std::time::{Duration, SystemTime};

use crewcall_sdk::{Client, HandlerError, Worker, options::RetryPolicy, proto::TaskState};

use super::{Faults, holder, until_state};
use crate::{
    crash::site::Site,
    grpc::{Run, hold, now_ms, soon, until_begun},
};

const HOUR: i64 = 3600;
const HALF_AN_HOUR: Duration = Duration::from_secs(1800);
const LEASE_MS: i64 = 600;
const LIMITS: &str = "lease_ms = 600, beat_ms = 100, resume_ms = 3000";

/// Ends when the server has heard its only worker for longer than a lease. By the server's own clock.
async fn outlive_a_lease(client: &Client) {
    let seen = async || client.workers().await.unwrap()[0].seen_at_unix_ms;
    let begun = seen().await;
    soon(async { while seen().await < begun + 2 * LEASE_MS {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_jumps_ends_no_lease_and_starts_nothing() {
    let proof = proof::Proof::begin("clock jumps", "./test e2e -- faults::clock");
    let faults = Faults::new();
    let mut site = faults.site(LIMITS).await;
    let (worker, mut held) = holder(&site, 8).await;
    let client = site.client();
    let running = client.task("held").submit().await.unwrap().task_id;
    let run = held.next().await;
    let timed = client.task("held").run_timeout(HALF_AN_HOUR).submit().await.unwrap().task_id;
    let timed_run = held.next().await;
    until_state(&client, &timed, TaskState::Leased).await;
    let waiting = client.task("nobody").queue_timeout(HALF_AN_HOUR).submit().await.unwrap().task_id;
    let at = SystemTime::now() + HALF_AN_HOUR;
    let delayed = client.task("held").run_at(at).submit().await.unwrap().task_id;
    let session = client.workers().await.unwrap()[0].session_id.clone();

    let jumps = [HOUR, -HOUR, 0];
    for wrong_by in jumps {
        faults.set_clock(wrong_by);
        outlive_a_lease(&client).await;
        // A backoff is waited for as long as always.
        let retry = RetryPolicy { max_attempts: 2, initial_backoff_ms: 50, max_backoff_ms: 50 };
        let retried = client.task("held").retry(retry).submit().await.unwrap().task_id;
        held.next().await.fail(HandlerError::from("once"));
        let second = held.next().await;
        assert_eq!((second.context.task_id(), second.context.attempt()), (retried.as_str(), 2));
        second.succeed("again");
        until_state(&client, &retried, TaskState::Finished).await;

        assert!(!run.context.is_cancelled(), "{}", run.context.cancel_reason());
        for (id, state) in
            [(&running, TaskState::Leased), (&waiting, TaskState::Ready), (&delayed, TaskState::Delayed)]
        {
            let task = client.get(id).await.unwrap();
            assert_eq!(task.state(), state, "{wrong_by} s off: {task:?}");
        }
        let workers = client.workers().await.unwrap();
        assert_eq!(workers[0].session_id, session, "the worker had to join again");
        assert!((workers[0].seen_at_unix_ms - now_ms()).abs() < 60_000, "{workers:?}");
    }
    assert_eq!(worker.status().borrow().connections, 1);
    timed_run.succeed("in time");
    until_state(&client, &timed, TaskState::Finished).await;

    // The next start reads the clock again: what is due by then runs, and what runs is kept.
    site.kill();
    faults.set_clock(HOUR);
    site.start();
    let begun = held.next().await;
    assert_eq!((begun.context.task_id(), begun.context.attempt()), (delayed.as_str(), 1));
    begun.succeed("by the clock of that start");
    let client = site.client();
    until_state(&client, &delayed, TaskState::Finished).await;
    assert_eq!(client.get(&waiting).await.unwrap().state(), TaskState::Expired);

    // And one that was set back finds its own past ahead of it: time goes on from there.
    site.kill();
    faults.set_clock(-HOUR);
    site.start();
    let client = site.client();
    soon(worker.wait_for(|status| status.connections == 3)).await.unwrap();
    outlive_a_lease(&client).await;
    let new = client.task("held").submit().await.unwrap().task_id;
    let latest = held.next().await;
    assert_eq!((latest.context.task_id(), latest.context.attempt()), (new.as_str(), 1));
    assert!(latest.context.lease() > run.context.lease(), "a lease is never given twice");
    latest.succeed("late");
    let new = until_state(&client, &new, TaskState::Finished).await;
    assert!(new.created_at_unix_ms > now_ms(), "{new:?}");
    assert!(!run.context.is_cancelled(), "{}", run.context.cancel_reason());
    run.succeed("through all of it");
    let task = until_state(&client, &running, TaskState::Finished).await;
    assert_eq!((task.attempt, task.attempts.len()), (1, 0), "{task:?}");
    worker.abort();
    proof.record(&[
        ("jumps of the wall clock while it runs", "+1 h, −1 h and back".to_owned()),
        ("jumps between two runs", "+1 h, then −2 h".to_owned()),
        ("leases ended, attempts repeated by a jump", proof::count(0_u64)),
        ("delays, timeouts and backoffs while it runs", "by the monotonic clock, as asked for".to_owned()),
        ("delays over a restart", "by the wall clock of that start, never before the stored past".to_owned()),
    ]);
}

/// Workers of the site, each with all its places taken.
async fn busy_workers(
    site: &Site,
    workers: usize,
    each: usize,
) -> (Vec<crewcall_sdk::WorkerHandle>, Vec<Run>) {
    let client = site.client();
    let (mut handles, mut runs) = (Vec::new(), Vec::new());
    for index in 0..workers {
        let builder = Worker::builder(site.switch().url()).worker_id(format!("worker-{index}"));
        let (builder, mut held) = hold(builder.concurrency(each as u32), "held");
        let worker = builder.build().unwrap().start();
        soon(worker.wait_connected()).await.unwrap();
        for number in 0..each {
            let id = client.task("held").payload(&number).submit().await.unwrap().task_id;
            runs.push(held.next().await);
            until_begun(&client, &id).await;
        }
        handles.push(worker);
    }
    (handles, runs)
}

/// The workers have gone on sending beats all the time; they lie unread in the server's sockets when it wakes
/// up and finds everyone silent for longer than a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stood_still_does_not_run_everything_again() {
    const WORKERS: usize = 6;
    const EACH: usize = 5;
    let proof = proof::Proof::begin("paused server", "./test e2e -- faults::clock");
    let mut repeated = 0;
    // The first is shorter than what makes a worker look for another way, the others are not.
    let pauses = [LEASE_MS as u64 * 9 / 10, LEASE_MS as u64 * 3 / 2, LEASE_MS as u64 * 3];
    for pause in pauses {
        let site = Site::open(LIMITS).await;
        let (workers, runs) = busy_workers(&site, WORKERS, EACH).await;
        site.server().signal("STOP");
        tokio::time::sleep(Duration::from_millis(pause)).await;
        site.server().signal("CONT");
        let client = site.client();
        // Long enough for whoever is taken for dead to be so.
        let up = async || client.stats().await.unwrap().uptime_ms;
        let woken = up().await;
        soon(async { while up().await < woken + 2 * LEASE_MS as u64 {} }).await;
        for run in runs {
            let (id, lease) = (run.context.task_id().to_owned(), run.context.lease());
            assert!(!run.context.is_cancelled(), "{id}: {}", run.context.cancel_reason());
            run.succeed(lease);
            let task = soon(client.get_wait(&id, Duration::from_secs(20))).await.unwrap();
            assert_eq!(task.state(), TaskState::Finished);
            repeated += task.attempts.len();
            assert_eq!((task.attempt, task.attempts.len()), (1, 0), "after {pause} ms: {task:?}");
        }
        let stats = client.stats().await.unwrap();
        assert_eq!((stats.finished_total, stats.refused_total), ((WORKERS * EACH) as u64, 0));
        workers.iter().for_each(crewcall_sdk::WorkerHandle::abort);
    }
    proof.record(&[
        ("the server was stopped for", format!("{pauses:?} ms, with leases of {LEASE_MS} ms")),
        ("tasks running meanwhile", proof::count(pauses.len() * WORKERS * EACH)),
        ("run again", proof::count(repeated)),
    ]);
}
