//! What operators do, over both edges: the same request must have the same answer, and outlive the server.

use crewcall_sdk::{CallError, Client, HandlerError, Worker, proto};
use serde_json::{Value, json};

use crate::{
    grpc::{Hand, by_hand, client, refusal, soon, start},
    harness::Server,
    http::{get, post},
};

fn durable(dir: &tempfile::TempDir) -> Server {
    Server::builder().args(["--data-dir", dir.path().join("data").to_str().unwrap()]).start()
}

/// Dead letters, in the order of their deaths; the even ones are of `even`, with the code `even`.
async fn dead(server: &Server, count: usize) -> Vec<String> {
    let fail = |code: &'static str| {
        move |_, _: Value| async move { Err::<(), _>(HandlerError::new(code, "no luck").not_retryable()) }
    };
    let worker = Worker::builder(server.url()).method("even", fail("even")).method("odd", fail("odd"));
    let worker = start(worker).await;
    let client = client(server).await;
    let mut ids = Vec::new();
    for n in 0..count {
        let method = if n % 2 == 0 { "even" } else { "odd" };
        let id = client.task(method).payload(&n).submit().await.unwrap().task_id;
        soon(client.get_wait(&id, crate::harness::PATIENCE)).await.unwrap();
        ids.push(id);
    }
    soon(worker.stop()).await.unwrap();
    ids
}

fn ids_of(page: &Value) -> Vec<&str> {
    page["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap()).collect()
}

async fn retry(client: &Client, selection: proto::DeadSelection) -> Result<(u32, usize, String), CallError> {
    let answer = soon(client.retry_dead(selection)).await?;
    Ok((answer.changed, answer.results.len(), answer.next_page_token))
}

#[tokio::test]
async fn both_edges_see_and_change_the_same_dead_letters() {
    let server = Server::start();
    let ids = dead(&server, 5).await;
    let client = client(&server).await;
    let newest: Vec<&str> = ids.iter().rev().map(String::as_str).collect();

    let first = get(&server, "/v1/dead?limit=3").await.json();
    assert_eq!(ids_of(&first), newest[..3]);
    assert_eq!(first["tasks"][0]["attempts"][0]["error"]["code"], "even");
    let rest = get(&server, &format!("/v1/dead?page={}", first["next_page"].as_str().unwrap())).await.json();
    assert_eq!((ids_of(&rest), rest.get("next_page")), (newest[3..].to_vec(), None));
    assert_eq!(ids_of(&get(&server, "/v1/tasks?state=dead").await.json()), newest);
    assert_eq!(ids_of(&get(&server, "/v1/dead?method=odd").await.json()), [newest[1], newest[3]]);
    assert_eq!(ids_of(&get(&server, "/v1/dead?error_code=even&limit=1").await.json()), newest[..1]);
    assert!(ids_of(&get(&server, "/v1/dead?died_before=1").await.json()).is_empty());

    let filter = proto::DeadFilter { error_code: "odd".to_owned(), ..proto::DeadFilter::default() };
    let request =
        proto::ListDeadRequest { filter: Some(filter.clone()), page_size: 1, page_token: String::new() };
    let page = client.list_dead(request).await.unwrap();
    assert_eq!((page.tasks[0].id.as_str(), page.tasks[0].attempts.len()), (newest[1], 1));
    assert!(!page.next_page_token.is_empty());

    // Only said; then a part; then the rest.
    let select = |dry_run, limit, page_token: &str| proto::DeadSelection {
        filter: Some(filter.clone()),
        dry_run,
        limit,
        page_token: page_token.to_owned(),
        ..proto::DeadSelection::default()
    };
    assert_eq!(retry(&client, select(true, 0, "")).await.unwrap(), (2, 2, String::new()));
    let (changed, _, more) = retry(&client, select(false, 1, "")).await.unwrap();
    assert!(changed == 1 && !more.is_empty());
    assert_eq!(retry(&client, select(false, 0, &more)).await.unwrap(), (1, 1, String::new()));
    assert_eq!(client.get(&ids[1]).await.unwrap().state(), proto::TaskState::Ready);

    let body = json!({"task_ids": [ids[0], ids[1], "019ab000-0000-7000-8000-000000000000"]});
    let discarded = post(&server, "/v1/dead/discard", body.to_string()).await.json();
    assert_eq!((&discarded["changed"], &discarded["results"][0]), (&json!(1), &json!({"task_id": ids[0]})));
    let reasons: Vec<&Value> =
        discarded["results"].as_array().unwrap().iter().map(|result| &result["refusal"]["reason"]).collect();
    assert_eq!(reasons, [&Value::Null, &json!("task_not_dead"), &json!("task_not_found")]);
    assert_eq!(discarded["results"][1]["refusal"]["status"], 409);
    let all = post(&server, "/v1/dead/discard", r#"{"all":true,"dry_run":true}"#).await.json();
    assert_eq!(all["changed"], 2);
    let all = post(&server, "/v1/dead/discard", r#"{"all":true}"#).await.json();
    assert_eq!(all["changed"], 2);
    assert!(ids_of(&get(&server, "/v1/tasks?state=dead").await.json()).is_empty());
}

#[tokio::test]
async fn what_does_not_say_which_dead_letters_is_refused_by_both_edges() {
    let server = Server::builder().args(["--limits", "dead_batch = 2"]).start();
    let client = client(&server).await;
    let id = || "019ab000-0000-7000-8000-000000000000".to_owned();
    let default = proto::DeadSelection::default;
    let filter = || Some(proto::DeadFilter { method: "add".to_owned(), ..proto::DeadFilter::default() });
    for (rest, grpc, reason) in [
        (json!({}), default(), "invalid_field"),
        (
            json!({"filter": {}}),
            proto::DeadSelection { filter: Some(<_>::default()), ..default() },
            "invalid_field",
        ),
        (
            json!({"all": true, "filter": {"method": "add"}}),
            proto::DeadSelection { all: true, filter: filter(), ..default() },
            "invalid_field",
        ),
        (
            json!({"task_ids": ["x"]}),
            proto::DeadSelection { task_ids: vec!["x".to_owned()], ..default() },
            "invalid_field",
        ),
        (
            json!({"task_ids": [id(), id(), id()]}),
            proto::DeadSelection { task_ids: vec![id(), id(), id()], ..default() },
            "too_many_items",
        ),
        (
            json!({"all": true, "limit": 3}),
            proto::DeadSelection { all: true, limit: 3, ..default() },
            "too_many_items",
        ),
        (
            json!({"all": true, "page": "x"}),
            proto::DeadSelection { all: true, page_token: "x".to_owned(), ..default() },
            "invalid_field",
        ),
    ] {
        for verb in ["retry", "discard"] {
            let answer = post(&server, &format!("/v1/dead/{verb}"), rest.to_string()).await;
            assert_eq!((answer.status, answer.reason().as_str()), (400, reason), "{rest}");
        }
        assert_eq!(refusal(retry(&client, grpc.clone()).await.unwrap_err()).reason, reason, "{grpc:?}");
        assert_eq!(refusal(client.discard_dead(grpc.clone()).await.unwrap_err()).reason, reason, "{grpc:?}");
    }
    for (body, reason) in [("", "invalid_json"), ("[]", "invalid_json"), (r#"{"al":true}"#, "invalid_json")] {
        assert_eq!(post(&server, "/v1/dead/retry", body).await.reason(), reason, "{body}");
    }
    for wrong in ["limit=0", "limit=1001", "page=x", "died_before=soon", "methd=x"] {
        assert_eq!(get(&server, &format!("/v1/dead?{wrong}")).await.reason(), "invalid_field", "{wrong}");
    }
    let page = proto::ListDeadRequest { page_size: 1001, ..proto::ListDeadRequest::default() };
    assert_eq!(refusal(client.list_dead(page).await.unwrap_err()).reason, "invalid_field");
}

#[tokio::test]
async fn a_pause_of_one_edge_is_seen_and_lifted_by_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let server = durable(&dir);
    let answer = post(&server, "/v1/methods/a%2Fb/pause?reason=why&by=ann", "").await.json();
    assert_eq!((&answer["was_paused"], &answer["known"]), (&json!(false), &json!(false)));
    assert_eq!((&answer["pause"]["reason"], &answer["pause"]["by"]), (&json!("why"), &json!("ann")));
    drop(server);

    let server = durable(&dir);
    let client = client(&server).await;
    let methods = client.methods().await.unwrap();
    let pause = methods[0].pause.clone().unwrap();
    assert_eq!((pause.reason.as_str(), pause.by.as_str()), ("why", "ann"));
    assert_eq!(pause.since_unix_ms, answer["pause"]["since_unix_ms"].as_i64().unwrap());
    let request = proto::PauseRequest { method: "a/b".to_owned(), ..proto::PauseRequest::default() };
    let again = client.pause(request).await.unwrap();
    assert_eq!((again.was_paused, again.pause.unwrap().since_unix_ms), (true, pause.since_unix_ms));
    assert_eq!(get(&server, "/v1/stats").await.json()["paused_methods"], 1);
    assert!(client.resume("a/b").await.unwrap());
    assert_eq!(post(&server, "/v1/methods/a%2Fb/resume", "").await.json(), json!({"was_paused": false}));

    let long = "x".repeat(2_000);
    for wrong in
        ["/v1/methods/%20x/pause", &format!("/v1/methods/x/pause?reason={long}"), "/v1/methods/x/pause?why=x"]
    {
        assert_eq!(post(&server, wrong, "").await.reason(), "invalid_field", "{wrong}");
    }
    for (method, reason) in [(" x", ""), ("", ""), ("x", long.as_str())] {
        let request =
            proto::PauseRequest { method: method.to_owned(), reason: reason.to_owned(), by: String::new() };
        assert_eq!(refusal(client.pause(request).await.unwrap_err()).reason, "invalid_field");
    }
}

#[tokio::test]
async fn a_drained_process_stays_drained_when_the_server_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let server = durable(&dir);
    let _hand = Hand::join(&server.url(), by_hand::hello("w", "m", 1)).await.unwrap();
    client(&server).await.drain("w", "maintenance").await.unwrap();
    drop(server);

    let server = durable(&dir);
    let client = client(&server).await;
    let mut same = Hand::join(&server.url(), by_hand::hello("w", "m", 1)).await.unwrap();
    let told = same.until(|frame| frame.control.is_some()).await.control.unwrap();
    assert_eq!((told.kind(), told.reason.as_str()), (proto::control::Kind::Drain, "maintenance"));
    assert_eq!(client.workers().await.unwrap()[0].state(), proto::WorkerState::Draining);
    let other = proto::Hello { boot_id: "another process".to_owned(), ..by_hand::hello("w", "m", 1) };
    let _other = Hand::join(&server.url(), other).await.unwrap();
    assert_eq!(client.workers().await.unwrap()[0].state(), proto::WorkerState::Active);
}

#[tokio::test]
async fn a_backup_over_rest_and_what_there_is_room_for() {
    let dir = tempfile::tempdir().unwrap();
    let server = durable(&dir);
    client(&server).await.task("later").payload(&1).submit().await.unwrap();
    let made = post(&server, "/v1/backups?name=one", "").await;
    assert_eq!((made.status, &made.json()["name"]), (201, &json!("one")));
    assert!(made.json()["rows"].as_u64().unwrap() >= 2);
    assert!(dir.path().join("data/backups/one/crewcall.db").is_file());
    assert_eq!(post(&server, "/v1/backups?name=one", "").await.reason(), "backup_exists");
    for name in ["..", "a%2Fb", ".hidden", "x.partial"] {
        assert_eq!(post(&server, &format!("/v1/backups?name={name}"), "").await.reason(), "invalid_field");
    }
    let chosen = post(&server, "/v1/backups", "").await.json();
    assert!(chosen["name"].as_str().unwrap().starts_with("backup-"), "{chosen}");

    let room = get(&server, "/v1/stats").await.json()["room"].clone();
    let over_grpc = client(&server).await.stats().await.unwrap().room.unwrap();
    assert_eq!(room["max_tasks"], over_grpc.max_tasks);
    assert_eq!(room["max_memory_bytes"], over_grpc.max_memory_bytes);
    assert!(room["store_bytes"].as_u64().unwrap() > 0 && over_grpc.store_bytes > 0);
    assert!(room.get("max_store_bytes").is_none() && over_grpc.max_store_bytes == 0);

    let memory = Server::builder().arg("--ephemeral").start();
    assert_eq!(post(&memory, "/v1/backups", "").await.reason(), "store_ephemeral");
    assert_eq!(get(&memory, "/v1/stats").await.json()["room"]["store_bytes"], 0);
}
