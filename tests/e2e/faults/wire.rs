//! A wire that is cut while a result is on it.

use std::time::Duration;

use crewcall_sdk::{Worker, proto::TaskState};
use serde_json::{Value, json};

use super::until_state;
use crate::{
    grpc::{
        Proxy, Run, client, hold,
        proxy::{Cut, Way},
        soon, until_begun,
    },
    harness::Server,
};

/// Wherever the bytes of the result, or of the server's word that it is safe, are cut off: the worker comes
/// back, says it again if it must, and it counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_cut_off_at_any_byte_counts_once() {
    let proof = proof::Proof::begin("cut while sending a result", "./test e2e -- faults::wire");
    // Confirmations may wait for a beat.
    let server = Server::builder().args(["--limits", "lease_ms = 5000, beat_ms = 100"]).start();
    let client = client(&server).await;
    let proxy = Proxy::to(server.address()).await;
    let (builder, mut held) = hold(Worker::builder(proxy.url()).worker_id("far away"), "held");
    let worker = builder.build().unwrap().start();
    soon(worker.wait_connected()).await.unwrap();

    // A result's frame is some hundred bytes; what the server says to it some twenty.
    let to_server = (0..150).step_by(4).map(|bytes| (Way::ToServer, bytes));
    let from_server = (0..40).step_by(3).map(|bytes| (Way::FromServer, bytes));
    let cuts: Vec<_> = to_server.chain(from_server).collect();
    for (index, (way, bytes)) in cuts.iter().enumerate() {
        let connections = worker.status().borrow().connections;
        let task = client.task("held").payload(&index);
        // Of both kinds: what is not stored is confirmed at once, what is stored later.
        let task = if index % 2 == 0 { task.durable() } else { task.ephemeral() };
        let id = task.submit().await.unwrap().task_id;
        let mut run = held.next().await;
        assert_eq!((run.context.task_id(), run.context.attempt()), (id.as_str(), 1));
        // A task that the server does not know to have begun would go to someone else at once.
        until_begun(&client, &id).await;
        // A machine so busy that beats cross assignments breaks connections too, and then it went to the next one.
        let lease = |run: &Run| format!("lease {}", run.context.lease());
        while !client.explain(&id).await.unwrap().details.contains(&lease(&run)) {
            run = held.next().await;
        }
        let result = json!({"number": index, "padding": "x".repeat(60)});
        proxy.cut_after(*way, *bytes, if index % 4 < 2 { Cut::Reset } else { Cut::Close });
        run.succeed(result.clone());
        proxy.has_cut().await;
        let end =
            tokio::time::timeout(Duration::from_secs(20), until_state(&client, &id, TaskState::Finished));
        let Ok(task) = end.await else {
            let worker = worker.status().borrow().clone();
            let why = client.explain(&id).await;
            panic!("{way:?} after {bytes} bytes: it does not end: {why:?}, {worker:?}, {}", server.log());
        };
        let told = crewcall_sdk::error::outcome_result(task.outcome.clone()).unwrap();
        assert_eq!(told.decode::<Value>().unwrap(), result, "{way:?} after {bytes} bytes");
        assert_eq!((task.attempt, task.attempts.len()), (1, 0), "{way:?} after {bytes} bytes: {task:?}");
        soon(worker.wait_for(|status| status.connections > connections)).await.unwrap();
    }
    let stats = client.stats().await.unwrap();
    assert_eq!(stats.finished_total, cuts.len() as u64);
    assert_eq!((stats.retried_total, stats.refused_total), (0, 0));
    worker.abort();
    proof.record(&[
        (
            "connections cut, each at another byte of a result or of its confirmation",
            proof::count(cuts.len()),
        ),
        ("results accepted", proof::count(stats.finished_total)),
        ("lost, accepted twice, run again", proof::count(0_u64)),
    ]);
}
