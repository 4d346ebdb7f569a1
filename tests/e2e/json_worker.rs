//! `WS /v1/worker`: workers that speak JSON, among and beside those that speak gRPC.

mod examples;

use std::time::Duration;

use crewcall_sdk::proto::TaskState;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use crate::{
    grpc::{adder, client, hold, soon, start, until_gone},
    harness::Server,
    http::{JsonWorker, get, post},
};

fn serves(worker_id: &str, method: &str) -> Value {
    json!({"worker_id": worker_id, "boot_id": "b", "pools": [{"concurrency": 2}], "methods": [{"name": method}]})
}

#[tokio::test]
async fn grpc_callers_are_served_in_json_and_rest_callers_in_grpc() {
    let server = Server::start();
    let client = client(&server).await;
    let mut worker = JsonWorker::join(&server, serves("json", "double")).await;
    assert_eq!(worker.welcome["worker_id"], "json");
    assert_eq!(worker.welcome["max_payload_bytes"], 4 << 20);
    worker.credit(2).await;
    let (answer, ()) =
        tokio::join!(client.task("double").payload(&21).metadata("k", "v").call::<u64>(), async {
            let task = worker.assigned().await;
            assert_eq!(
                (&task["method"], &task["payload"], &task["attempt"]),
                (&json!("double"), &json!(21), &json!(1))
            );
            assert_eq!((&task["metadata"], &task["pool"]), (&json!({"k": "v"}), &json!("")));
            worker.end(&task["lease"], json!({"succeeded": 42})).await;
        });
    assert_eq!(answer.unwrap(), 42);

    let _other = start(adder(&server)).await;
    assert_eq!(post(&server, "/v1/call/add", r#"{"a":40,"b":2}"#).await.text(), "42");
    let workers = get(&server, "/v1/workers").await.json()["workers"].take();
    assert_eq!(workers.as_array().map(Vec::len), Some(2), "{workers}");

    // A failure, as the worker words it.
    worker.credit(1).await;
    let (answer, ()) = tokio::join!(client.task("double").payload(&1).call_raw(), async {
        let task = worker.assigned().await;
        let error = json!({"code": "odd", "message": "not even", "details": {"n": 1}});
        worker.end(&task["lease"], json!({"failed": {"error": error, "retryable": false}})).await;
    });
    let Err(crewcall_sdk::CallError::Failed { code, message, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!((code.as_str(), message.as_str()), ("odd", "not even"));

    worker.say(&json!({"beat": {}})).await;
    assert!(worker.hear_of("durable_seq").await.as_u64().is_some_and(|seq| seq >= 1));
    worker.say(&json!({"bye": {"reason": "done"}})).await;
    assert_eq!(worker.closed().await, (Value::Null, 1000, "bye".to_owned()));
    until_gone(&client, "json").await;
}

#[tokio::test]
async fn work_goes_by_credit_and_in_batches() {
    let server = Server::start();
    let tasks: Vec<Value> = (0..1_000).map(|n| json!({"method": "m", "payload": n})).collect();
    assert_eq!(post(&server, "/v1/tasks", Value::from(tasks).to_string()).await.status, 201);
    let mut worker =
        JsonWorker::join(&server, json!({"pools": [{"concurrency": 1000}], "methods": [{"name": "m"}]}))
            .await;
    worker.say(&json!({"credits": [{"total": 3}]})).await;
    // Repeated, it changes nothing.
    worker.say(&json!({"credits": [{"total": 3}]})).await;
    let first = worker.hear_of("assign").await;
    assert_eq!(first.as_array().map(Vec::len), Some(3));
    worker.say(&json!({"credits": [{"total": 1_000}]})).await;
    let mut all = first.as_array().unwrap().clone();
    let mut messages = 1;
    while all.len() < 1_000 {
        all.extend(worker.hear_of("assign").await.as_array().unwrap().iter().cloned());
        messages += 1;
    }
    assert!(messages < 50, "{messages} messages for 1,000 tasks");
    let results: Vec<Value> = all
        .iter()
        .enumerate()
        .map(|(n, task)| json!({"lease": task["lease"], "seq": n + 1, "succeeded": task["payload"]}))
        .collect();
    worker.say(&json!({"results": results})).await;
    let last = all[999]["task_id"].as_str().unwrap();
    let done = get(&server, &format!("/v1/tasks/{last}/result?wait=300s")).await;
    assert_eq!(done.text(), all[999]["payload"].to_string());
    let stats = get(&server, "/v1/stats").await.json();
    assert_eq!((&stats["finished"], &stats["refused_total"]), (&json!(1_000), &json!(0)));
}

#[tokio::test]
async fn a_broken_socket_is_resumed_with_its_leases() {
    let server = Server::start();
    let id = post(&server, "/v1/tasks", r#"{"method":"m"}"#).await.json()["task_id"].take();
    let mut worker = JsonWorker::join(&server, serves("w", "m")).await;
    worker.credit(1).await;
    let task = worker.assigned().await;
    worker.say(&json!({"started": [{"lease": task["lease"]}]})).await;
    let token = worker.welcome["resume_token"].clone();
    drop(worker);
    let mut hello = serves("w", "m");
    hello["resume_token"] = token;
    hello["in_flight"] = json!([task["lease"], 4_000_000_000_u64]);
    let mut worker = JsonWorker::join(&server, hello).await;
    assert_eq!(worker.welcome["keep"], json!([task["lease"]]));
    assert_eq!(worker.welcome["drop"], json!([4_000_000_000_u64]));
    worker.end(&task["lease"], json!({"succeeded": "kept"})).await;
    let done = get(&server, &format!("/v1/tasks/{}/result?wait=300s", id.as_str().unwrap())).await;
    assert_eq!(done.text(), r#""kept""#);
}

#[tokio::test]
async fn a_cancelled_task_is_told_to_its_worker_and_its_result_refused() {
    let server = Server::start();
    let id = post(&server, "/v1/tasks", r#"{"method":"m"}"#).await.json()["task_id"].take();
    let mut worker = JsonWorker::join(&server, serves("w", "m")).await;
    worker.credit(1).await;
    let task = worker.assigned().await;
    crate::http::send(&server, "DELETE", &format!("/v1/tasks/{}?reason=no", id.as_str().unwrap()), &[], "")
        .await;
    assert_eq!(worker.hear_of("cancel").await, json!([{"lease": task["lease"], "reason": "no"}]));
    worker.end(&task["lease"], json!({"succeeded": 1})).await;
    let errors = worker.hear_of("errors").await;
    assert_eq!((&errors[0]["lease"], &errors[0]["reason"]), (&task["lease"], &json!("stale_lease")));
}

#[tokio::test]
async fn a_bad_entry_costs_the_entry_and_a_bad_message_its_worker_only() {
    let server = Server::start();
    let (bystander, mut held) = hold(adder(&server), "held");
    let _bystander = start(bystander).await;
    let client = client(&server).await;
    let call = tokio::spawn(client.task("held").payload(&1).call::<Value>());
    let run = held.next().await;

    let mut worker = JsonWorker::join(&server, serves("w", "m")).await;
    worker.credit(1).await;
    let id = post(&server, "/v1/tasks", r#"{"method":"m"}"#).await.json()["task_id"].take();
    let lease = worker.assigned().await["lease"].clone();
    worker.say(&json!({"results": [{"lease": lease, "succeeded": {"base64": "?", "content_type": "x"}}, [lease, 1], 7]})).await;
    let errors = worker.hear_of("errors").await;
    let refused: Vec<(&Value, &Value)> =
        errors.as_array().unwrap().iter().map(|error| (&error["lease"], &error["reason"])).collect();
    let reason = json!("invalid_field");
    assert_eq!(refused, [(&lease, &reason), (&json!(0), &reason), (&json!(0), &reason)]);
    worker.end(&lease, json!({"succeeded": "after all"})).await;
    let done = get(&server, &format!("/v1/tasks/{}/result?wait=300s", id.as_str().unwrap())).await;
    assert_eq!(done.text(), r#""after all""#);

    let deep = format!("{{\"results\":{}", "[".repeat(1_000_000));
    let cases: [(Message, u16, &str); 8] = [
        (Message::text("nonsense"), 1007, "invalid_json"),
        (Message::text(deep), 1007, "invalid_json"),
        (Message::binary(&b"\xff"[..]), 1007, "invalid_json"),
        (Message::text("[]"), 1008, "invalid_field"),
        (Message::text(r#"{"credit":[]}"#), 1008, "invalid_field"),
        (Message::text(r#"{"hello":{}}"#), 1008, "invalid_field"),
        (Message::text(format!(r#"{{"released":[{}1]}}"#, "1,".repeat(65_536))), 1008, "too_many_items"),
        (Message::text(r#"{"update":{"methods":[{"name":"m","version":"latest"}]}}"#), 1008, "invalid_field"),
    ];
    for (message, code, reason) in cases {
        let mut worker = JsonWorker::join(&server, serves("bad", "m")).await;
        soon(worker.socket.send(message)).await.unwrap();
        let (error, closed, why) = worker.closed().await;
        assert_eq!((closed, why.as_str(), &error["reason"]), (code, reason, &json!(reason)), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
    let mut worker = JsonWorker::join(&server, serves("big", "m")).await;
    let big = Message::text(" ".repeat(10 << 20));
    // The server may close while this is being sent.
    let _ = soon(worker.socket.send(big)).await;
    if let Some(Ok(Message::Text(text))) = soon(worker.socket.next()).await {
        assert!(text.contains("payload_too_large"), "{text}");
    }

    run.succeed(5);
    assert_eq!(soon(call).await.unwrap().unwrap(), 5);
}

#[tokio::test]
async fn a_session_begins_with_hello() {
    let server = Server::start();
    let cases = [
        (r#"{"credits":[{"total":1}]}"#, 1008, "hello_expected"),
        ("{}", 1008, "hello_expected"),
        (r#"{"hello":{"protocol_min":9,"protocol_max":9}}"#, 1008, "protocol_unsupported"),
        (r#"{"hello":{"methods":[{"name":"m","pool":"nowhere"}]}}"#, 1008, "invalid_field"),
        (r#"{"hello":{"methods":[{"nmae":"m"}]}}"#, 1008, "invalid_field"),
        (r#"{"hello":{"worker_id":7}}"#, 1008, "invalid_field"),
        ("hello", 1007, "invalid_json"),
    ];
    for (text, code, reason) in cases {
        let mut socket = JsonWorker::connect(&server, &[]).await.unwrap();
        soon(socket.send(Message::text(text))).await.unwrap();
        let Some(Ok(Message::Text(error))) = soon(socket.next()).await else { panic!("{text}") };
        let error: Value = serde_json::from_str(&error).unwrap();
        assert_eq!(error["error"]["reason"], reason, "{text}: {error}");
        let Some(Ok(Message::Close(Some(close)))) = soon(socket.next()).await else { panic!("{text}") };
        assert_eq!((u16::from(close.code), close.reason.as_str()), (code, reason), "{text}");
    }
    // One that says nothing is sent away.
    let mut socket = JsonWorker::connect(&server, &[]).await.unwrap();
    let Some(Ok(Message::Text(error))) = soon(socket.next()).await else { panic!("no word") };
    assert!(error.contains("hello_expected"), "{error}");
    assert_eq!(get(&server, "/v1/workers").await.json()["workers"], json!([]));
}

#[tokio::test]
async fn only_the_worker_key_opens_the_door() {
    let server =
        Server::builder().env("CREWCALL_WORKER_KEY", "canary-91").env("CREWCALL_LOG", "trace").start();
    for header in ["Bearer canary-9", "canary-91", "Bearer "] {
        match JsonWorker::connect(&server, &[("authorization", header)]).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), 401),
            other => panic!("{header}: {other:?}"),
        }
    }
    for hello in [json!({}), json!({"key": "canary-911"})] {
        let mut socket = JsonWorker::connect(&server, &[]).await.unwrap();
        soon(socket.send(Message::text(json!({ "hello": hello }).to_string()))).await.unwrap();
        let Some(Ok(Message::Text(error))) = soon(socket.next()).await else { panic!("no word") };
        assert!(error.contains("worker_key_required") && !error.contains("canary"), "{error}");
    }
    let by_header = JsonWorker::connect(&server, &[("authorization", "Bearer canary-91")]).await.unwrap();
    let by_hello = JsonWorker::connect(&server, &[]).await.unwrap();
    for (mut socket, hello) in [(by_header, json!({})), (by_hello, json!({"key": "canary-91"}))] {
        soon(socket.send(Message::text(json!({ "hello": hello }).to_string()))).await.unwrap();
        let Some(Ok(Message::Text(text))) = soon(socket.next()).await else { panic!("no word") };
        assert!(text.starts_with(r#"{"welcome":"#), "{text}");
    }
    let log = server.log();
    assert!(log.contains("DEBUG") && !log.contains("canary"), "the key is in the log");
}

#[tokio::test]
async fn answering_pings_is_life_enough_and_silence_is_not() {
    let server =
        Server::builder().args(["--limits", "lease_ms = 600, beat_ms = 100, resume_ms = 200"]).start();
    let client = client(&server).await;
    let mut alive = JsonWorker::join(&server, serves("alive", "m")).await;
    let mut silent = JsonWorker::join(&server, serves("silent", "other")).await;
    alive.credit(1).await;
    // Its library answers pings while this reads; it never beats.
    let reading = tokio::spawn(async move {
        let task = alive.assigned().await;
        (alive, task)
    });
    // The silent one reads nothing, so nothing answers for it.
    until_gone(&client, "silent").await;
    let call = tokio::spawn(client.task("m").payload(&1).call::<u64>());
    let (mut alive, task) = soon(reading).await.unwrap();
    alive.end(&task["lease"], json!({"succeeded": 2})).await;
    assert_eq!(soon(call).await.unwrap().unwrap(), 2);
    let (error, code, _) = silent.closed().await;
    assert_eq!((&error["reason"], code), (&json!("session_expired"), 1008));
}

#[tokio::test]
async fn a_worker_that_stops_reading_is_cut_and_holds_up_nobody() {
    let server = Server::builder().args(["--write-timeout", "500ms"]).start();
    let _other = start(adder(&server)).await;
    let client = client(&server).await;
    let mut stuck = JsonWorker::join(
        &server,
        json!({"worker_id": "stuck", "pools": [{"concurrency": 100}], "methods": [{"name": "m"}]}),
    )
    .await;
    stuck.credit(100).await;
    // Far more than the buffers of two kernels.
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    let mut ids = Vec::new();
    for _ in 0..50 {
        let task = json!({"method": "m", "payload": serde_json::from_str::<Value>(&large).unwrap()});
        ids.push(post(&server, "/v1/tasks", task.to_string()).await.json()["task_id"].take());
        assert_eq!(client.call::<_, i64>("add", &json!({"a": 1, "b": 1})).await.unwrap(), 2);
    }
    // Beats alone do not save it.
    let gone = async {
        loop {
            let _ = stuck.socket.send(Message::text(r#"{"beat":{}}"#)).await;
            let workers = client.workers().await.unwrap();
            if !workers.iter().any(|worker| worker.id == "stuck") {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    soon(gone).await;
    for id in ids {
        let task = client.get(id.as_str().unwrap()).await.unwrap();
        assert_eq!(task.state(), TaskState::Ready, "it goes to another");
    }
}

#[tokio::test]
async fn a_server_that_stops_lets_workers_finish() {
    let mut server = Server::start();
    let client = client(&server).await;
    let mut idle = JsonWorker::join(&server, serves("idle", "other")).await;
    let mut busy = JsonWorker::join(&server, serves("busy", "m")).await;
    busy.credit(1).await;
    let call = tokio::spawn(client.task("m").payload(&1).call::<u64>());
    let task = busy.assigned().await;
    server.signal("TERM");
    assert_eq!(busy.hear_of("control").await["kind"], "move");
    let (error, code, _) = idle.closed().await;
    assert_eq!((&error["reason"], code), (&json!("shutting_down"), 1012));
    busy.end(&task["lease"], json!({"succeeded": 7})).await;
    assert_eq!(soon(call).await.unwrap().unwrap(), 7);
    assert_eq!(busy.closed().await.1, 1012);
    drop(client);
    assert!(server.wait().success());
}

#[tokio::test]
async fn a_drained_worker_is_asked_to_leave() {
    let server = Server::start();
    let mut worker = JsonWorker::join(&server, serves("w", "m")).await;
    assert_eq!(post(&server, "/v1/workers/w/drain?reason=rest", "").await.status, 204);
    assert_eq!(worker.hear_of("control").await, json!({"kind": "drain", "reason": "rest"}));
}

#[tokio::test]
async fn half_an_upgrade_and_broken_frames_are_closed() {
    let server = Server::builder().args(["--header-timeout", "300ms"]).start();
    let half = "GET /v1/worker HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    let mut slow = crate::raw::connect(server.address()).unwrap();
    std::io::Write::write_all(&mut slow, half.as_bytes()).unwrap();
    assert!(
        tokio::task::spawn_blocking(move || crate::raw::closes_within(&mut slow, Duration::from_secs(8)))
            .await
            .unwrap()
    );
    // A frame without a mask, which no client may send.
    let socket = JsonWorker::connect(&server, &[]).await.unwrap();
    let mut stream = socket.into_inner();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"\x81\x02{}").await.unwrap();
    let mut bytes = Vec::new();
    soon(tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes)).await.ok();
    let said = String::from_utf8_lossy(&bytes).into_owned();
    assert!(said.is_empty() || said.contains("websocket_protocol"), "{said}");
    // Control frames are answered before hello, too.
    let mut socket = JsonWorker::connect(&server, &[]).await.unwrap();
    soon(socket.send(Message::Ping(Bytes::from_static(b"x")))).await.unwrap();
    assert!(matches!(soon(socket.next()).await, Some(Ok(Message::Pong(_)))));
}
