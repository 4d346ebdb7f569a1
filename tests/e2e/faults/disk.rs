//! A disk that fails, fills up or is slow.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crewcall_sdk::{Client, HandlerError, TaskBuilder, Worker, proto::TaskState};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::Code;

use super::{Faults, holder, until_state};
use crate::{
    crash::{
        ledger::{Ledger, all_tasks},
        site::Site,
    },
    grpc::{refusal, soon},
    http::{get, post},
};

const DEFAULTS: &str = "";

/// A failed sync is not asked again: nobody knows what it has written. The disk is well again at once, so a
/// server that tried again would succeed, and would lose what the first time was to write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_ends_the_server_and_nothing_acknowledged_goes_with_it() {
    const FAILURES: u64 = 8;
    let proof = proof::Proof::begin("failed fsync", "./test e2e -- faults::disk");
    let mut random = StdRng::seed_from_u64(crate::crash::seed());
    let faults = Faults::new();
    let mut site = faults.site(DEFAULTS).await;
    let ledger = Arc::new(Ledger::default());
    for failure in 0..FAILURES {
        let enough = ledger.acknowledged() + random.random_range(20..120);
        let mut callers = JoinSet::new();
        for caller in 0..8_u64 {
            let (client, ledger) = (site.client(), ledger.clone());
            callers.spawn(async move {
                for number in (0..).map(|turn| (failure << 32) + turn * 8 + caller) {
                    match client.task("nobody").payload(&number).submit().await {
                        Ok(task) => ledger.accepted(number, None, &task.task_id, task.attached),
                        Err(error) => return error,
                    }
                }
                unreachable!("there are more numbers than time");
            });
        }
        soon(async {
            while ledger.acknowledged() < enough {
                tokio::task::yield_now().await;
            }
        })
        .await;
        faults.fail_a_sync();
        while let Some(error) = soon(callers.join_next()).await {
            let error = error.unwrap();
            assert!(error.is_transient(), "{error:?}");
        }
        let (code, log) = site.ended();
        assert!(faults.has_failed_a_sync());
        assert_eq!(code, Some(4), "{log}");
        assert!(log.contains("error: the store failed: ") && log.contains("next start"), "{log}");
        site.start();
        assert_eq!(soon(ledger.compare(&site.client())).await, 0);
        ledger.assert_kept(&site.log());
    }
    let stored = all_tasks(&site.client()).await.len();
    proof.record(&[
        ("syncs that failed with EIO, under 8 callers", proof::count(FAILURES)),
        ("exit code each time", "4".to_owned()),
        ("acknowledged tasks", proof::count(ledger.acknowledged())),
        ("lost", proof::count(0_u64)),
        ("stored without an answer", proof::count(stored - ledger.acknowledged())),
    ]);
}

/// Submits until it is refused for want of room: the log may have some left that it need not ask for. What is
/// on its way to the store meanwhile stays on its way.
async fn until_refused(client: &Client, ledger: &Ledger) -> crewcall_sdk::Refusal {
    let mut waiting = JoinSet::new();
    loop {
        waiting.spawn(client.task("nobody").submit());
        let answer = tokio::time::timeout(Duration::from_millis(50), waiting.join_next()).await;
        match answer.ok().flatten().map(Result::unwrap) {
            None => {}
            Some(Ok(task)) => ledger.accepted(0, None, &task.task_id, task.attached),
            Some(Err(error)) => return refusal(error),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_durable_work_and_nothing_else_until_there_is_room() {
    let proof = proof::Proof::begin("full disk", "./test e2e -- faults::disk");
    let faults = Faults::new();
    let mut site = faults.site(DEFAULTS).await;
    let (worker, mut held) = holder(&site, 8).await;
    let client = site.client();
    let ledger = Ledger::default();
    for number in 0..20 {
        let task = client.task("nobody").payload(&number).submit().await.unwrap();
        ledger.accepted(number, None, &task.task_id, task.attached);
    }
    let running = client.task("held").submit().await.unwrap().task_id;
    let run = held.next().await;
    until_state(&client, &running, TaskState::Leased).await;

    faults.leave_room(0);
    let refused = soon(until_refused(&client, &ledger)).await;
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Unavailable, "store_unavailable"));
    assert!(
        refused.message.contains("no room") && refused.message.contains("free some space"),
        "{refused:?}"
    );
    assert!(refused.retry_after.is_some(), "{refused:?}");
    let over_rest = soon(post(site.server(), "/v1/tasks", r#"{"method":"nobody"}"#)).await;
    assert_eq!((over_rest.status, over_rest.reason().as_str()), (507, "store_unavailable"));
    assert!(!over_rest.header("retry-after").is_empty(), "{over_rest:?}");

    // What does not need the disk goes on.
    for number in 0..20 {
        let call = client.task("held").payload(&number).call::<Value>();
        let (answer, ()) = tokio::join!(soon(call), async {
            let run = held.next().await;
            let input = run.input.clone();
            run.succeed(input);
        });
        assert_eq!(answer.unwrap(), number);
    }
    // What is stored can be read.
    let stored = ledger.open();
    assert_eq!(soon(ledger.compare(&client)).await, 0);
    for id in &stored {
        assert_eq!(soon(client.get(id)).await.unwrap().state(), TaskState::Ready);
        let over_rest = soon(get(site.server(), &format!("/v1/tasks/{id}"))).await;
        assert_eq!((over_rest.status, &over_rest.json()["state"]), (200, &json!("ready")));
    }
    // A result that is not stored is nobody's yet.
    run.succeed("ran on a full disk");
    let end = client.get_wait(&running, Duration::from_secs(30));
    tokio::pin!(end);
    tokio::select! {
        task = &mut end => panic!("told before it is stored: {task:?}"),
        _ = soon(until_refused(&client, &ledger)) => {}
    }

    faults.free_room();
    let task = soon(end).await.unwrap();
    assert_eq!((task.state(), task.attempt), (TaskState::Finished, 1));
    let again = soon(async {
        loop {
            match client.task("nobody").payload(&20).submit().await {
                Ok(task) => return task,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    })
    .await;
    ledger.accepted(20, None, &again.task_id, again.attached);
    assert_eq!(soon(ledger.compare(&client)).await, 0);

    site.kill_and_start();
    let client = site.client();
    assert_eq!(soon(ledger.compare(&client)).await, 0);
    ledger.assert_kept(&site.log());
    assert_eq!(soon(client.get(&running)).await.unwrap().outcome, task.outcome);
    worker.abort();
    proof.record(&[
        ("durable work on a full disk", "refused: `UNAVAILABLE` over gRPC, 507 over REST".to_owned()),
        ("ephemeral calls meanwhile", "20 of 20 answered".to_owned()),
        ("stored tasks meanwhile", format!("{0} of {0} readable", stored.len())),
        ("with room again, without a restart", "accepted; the waiting result is stored once".to_owned()),
        ("acknowledged tasks lost, also over a kill -9", proof::count(0_u64)),
    ]);
}

/// p50 and p99 of ephemeral calls one after the other, while others keep the disk busy.
async fn ephemeral_latency(site: &Site, calls: usize) -> (Duration, Duration) {
    let client = site.client();
    let mut durable = JoinSet::new();
    for _ in 0..4 {
        let client = client.clone();
        durable.spawn(async move {
            loop {
                client.task("nobody").submit().await.unwrap();
            }
        });
    }
    let mut times = Vec::new();
    for number in 0..calls {
        let begun = Instant::now();
        assert_eq!(client.call::<_, Value>("echo", &number).await.unwrap(), number);
        times.push(begun.elapsed());
    }
    durable.abort_all();
    times.sort_unstable();
    (times[calls / 2], times[calls * 99 / 100])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ephemeral_calls_do_not_wait_for_the_disk() {
    let proof = proof::Proof::begin("slow disk", "./test e2e -- faults::disk");
    let faults = Faults::new();
    let site = faults.site(DEFAULTS).await;
    let echo = |_, input: Value| async { Ok::<_, HandlerError>(input) };
    let worker = Worker::builder(site.switch().url()).method("echo", echo).build().unwrap().start();
    soon(worker.wait_connected()).await.unwrap();
    let client = site.client();

    faults.block_syncs();
    let durable = tokio::spawn(client.task("nobody").submit());
    faults.until_blocked().await;
    let pipe = client.pipe();
    for number in 0..200 {
        assert_eq!(soon(pipe.call::<_, Value>("echo", &number)).await.unwrap(), number);
        assert_eq!(soon(client.call::<_, Value>("echo", &number)).await.unwrap(), number);
    }
    let ephemeral = TaskBuilder::new("echo").payload(&1).ephemeral().build().unwrap();
    let ephemeral = soon(client.submit(ephemeral)).await.unwrap().task_id;
    let end = soon(client.get_wait(ephemeral, Duration::from_secs(20))).await.unwrap();
    assert_eq!(end.state(), TaskState::Finished);
    assert!(!durable.is_finished(), "acknowledged before it was synced");
    faults.let_syncs_go();
    soon(durable).await.unwrap().unwrap();

    let calls = proof::size("CREWCALL_LATENCY_CALLS", 300) as usize;
    let fast = soon(ephemeral_latency(&site, calls)).await;
    faults.delay_syncs(200);
    let slow = soon(ephemeral_latency(&site, calls)).await;
    let shown = |(p50, p99): (Duration, Duration)| format!("p50 {p50:.0?}, p99 {p99:.0?}");
    println!("fast disk: {}; 200 ms a sync: {}", shown(fast), shown(slow));
    worker.abort();
    proof.record(&[
        ("ephemeral calls answered while one sync stood still", "401 of 401".to_owned()),
        ("ephemeral calls beside 4 durable callers, disk as it is", shown(fast)),
        ("the same, each sync 200 ms longer", shown(slow)),
    ]);
}
