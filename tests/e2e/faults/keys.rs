//! Many who want the same at once.

use std::{collections::HashSet, sync::Arc};

use serde_json::json;
use tokio::{sync::Barrier, task::JoinSet};

use crate::{
    crash::ledger::all_tasks,
    grpc::{client, soon},
    harness::Server,
    http::send_to,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_with_one_key_over_grpc_and_rest_get_one_task() {
    const CLIENTS: usize = 100;
    let rounds = proof::size("CREWCALL_KEY_ROUNDS", 5);
    let proof = proof::Proof::begin("one key, many clients", "./test e2e -- faults::keys");
    let server = Server::start();
    for round in 0..rounds {
        let key = format!("key {round}");
        let start = Arc::new(Barrier::new(CLIENTS));
        let mut clients = JoinSet::new();
        for index in 0..CLIENTS {
            let (start, key, address) = (start.clone(), key.clone(), server.address());
            let client = client(&server).await;
            clients.spawn(async move {
                start.wait().await;
                if index % 2 == 0 {
                    let task = client.task("nobody").payload(&round).idempotency_key(key);
                    let submitted = task.submit().await.unwrap();
                    return (submitted.task_id, submitted.attached);
                }
                let task = json!({"method": "nobody", "payload": round, "options": {"idempotency_key": key}});
                let answer = send_to(address, "POST", "/v1/tasks", &[], task.to_string()).await;
                assert!(matches!(answer.status, 200 | 201), "{answer:?}");
                let body = answer.json();
                let attached = body["attached"].as_bool().unwrap();
                assert_eq!(attached, answer.status == 200);
                (body["task_id"].as_str().unwrap().to_owned(), attached)
            });
        }
        let mut told = Vec::new();
        while let Some(client) = soon(clients.join_next()).await {
            told.push(client.unwrap());
        }
        let ids: HashSet<_> = told.iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), 1, "{ids:?}");
        assert_eq!(told.iter().filter(|(_, attached)| !attached).count(), 1, "one of them made it");
    }
    assert_eq!(all_tasks(&client(&server).await).await.len() as u64, rounds);
    proof.record(&[
        ("clients at once, half over gRPC, half over REST", proof::count(CLIENTS)),
        ("keys", proof::count(rounds)),
        ("tasks", proof::count(rounds)),
        ("ids told for one key", "1".to_owned()),
    ]);
}
