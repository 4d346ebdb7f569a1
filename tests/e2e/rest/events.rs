//! Server-sent events: of one task, of many, resumed.

use serde_json::json;

use crate::{
    harness::Server,
    http::{Events, JsonWorker, get, post},
};

#[tokio::test]
async fn the_life_of_a_task_as_events_resumed_in_the_middle() {
    let server = Server::start();
    let id = post(&server, "/v1/tasks", r#"{"method":"m","payload":1}"#).await.json()["task_id"].take();
    let id = id.as_str().unwrap();
    let target = format!("/v1/tasks/{id}/events");
    let mut events = Events::open(&server, &target, "").await;
    let first = events.next().await.unwrap();
    assert_eq!((first.name.as_str(), &first.json()["state"]), ("task", &json!("ready")));

    let mut worker = JsonWorker::join(&server, json!({"methods": [{"name": "m"}]})).await;
    worker.credit(1).await;
    let task = worker.assigned().await;
    let lease = &task["lease"];
    assert_eq!(events.next().await.unwrap().json()["state"], "leased");
    worker.say(&json!({"progress": [{"lease": lease, "progress": {"current": 1, "total": 2, "message": "half"}}]})).await;
    let progress = events.next().await.unwrap();
    assert_eq!(progress.name, "progress");
    assert_eq!(
        progress.json(),
        json!({"task_id": id, "progress": {"current": 1, "total": 2, "message": "half"}})
    );
    worker.say_text(format!("{{\"chunks\":[{{\"lease\":{lease},\"data\":{{\"n\":\r\n 1e400}}}}]}}")).await;
    let chunk = events.next().await.unwrap();
    assert_eq!(chunk.name, "chunk");
    assert!(chunk.data.ends_with(r#""attempt":1,"index":0,"data":{"n":   1e400}}"#), "{chunk:?}");
    worker.say(&json!({"chunks": [{"lease": lease, "data": "two"}]})).await;
    assert_eq!(events.next().await.unwrap().json()["index"], 1);
    drop(events);

    // Whoever comes back is told what was missed, and nothing twice.
    let mut events = Events::open(&server, &target, &chunk.id).await;
    let missed = events.next().await.unwrap();
    assert_eq!((missed.name.as_str(), &missed.json()["data"]), ("chunk", &json!("two")));
    let mut seen = events.next().await.unwrap();
    assert_eq!((seen.name.as_str(), &seen.json()["state"]), ("task", &json!("leased")));
    worker.end(lease, json!({"succeeded": {"done": true}})).await;
    while seen.name != "task" || seen.json()["state"] != "finished" {
        seen = events.next().await.unwrap();
    }
    assert_eq!(seen.json()["outcome"], json!({"succeeded": {"done": true}}));
    assert_eq!(events.next().await, None, "the stream ends after the outcome");

    // An EventSource that comes back after the end is sent away for good, until the task lives again.
    let last = [("last-event-id", seen.id.as_str())];
    let over = crate::http::send(&server, "GET", &target, &last, "").await;
    assert_eq!((over.status, over.text()), (204, ""));
    assert_eq!(post(&server, &format!("/v1/tasks/{id}/retry"), "").await.status, 200);
    let mut events = Events::open(&server, &target, &seen.id).await;
    assert_eq!(events.next().await.unwrap().json()["state"], "ready");
}

#[tokio::test]
async fn many_tasks_are_followed_by_a_filter() {
    let server = Server::start();
    let before = post(&server, "/v1/tasks", r#"{"method":"m"}"#).await.json()["task_id"].take();
    let mut events = Events::open(&server, "/v1/events?method=m", "").await;
    assert_eq!(events.next().await.unwrap().json()["id"], before);
    post(&server, "/v1/tasks", r#"{"method":"other"}"#).await;
    let after = post(&server, "/v1/tasks", r#"{"method":"m"}"#).await.json()["task_id"].take();
    let seen = events.next().await.unwrap();
    assert_eq!(seen.json()["id"], after);
    drop(events);
    let later = post(&server, "/v1/tasks", r#"{"method":"m"}"#).await.json()["task_id"].take();
    // As a browser does: its first query, and the newer header.
    let mut events = Events::open(&server, "/v1/events?method=m&cursor=0-0", &seen.id).await;
    assert_eq!(events.next().await.unwrap().json()["id"], later);
}

#[tokio::test]
async fn a_server_that_stops_says_so_and_does_not_wait_for_followers() {
    let mut server = Server::start();
    let mut events = Events::open(&server, "/v1/events", "").await;
    // So that the stream is known to be open.
    post(&server, "/v1/tasks", r#"{"method":"m","options":{"durability":"ephemeral"}}"#).await;
    assert_eq!(events.next().await.unwrap().name, "task");
    server.signal("TERM");
    let mut last = events.next().await.unwrap();
    while last.name == "task" {
        last = events.next().await.unwrap();
    }
    assert_eq!((last.name.as_str(), &last.json()["reason"]), ("closed", &json!("shutting_down")));
    assert_eq!(events.next().await, None);
    assert!(server.wait().success());
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused() {
    let server = Server::start();
    let unknown = get(&server, "/v1/tasks/0192f0c1-2345-7000-8000-000000000000/events").await;
    assert_eq!((unknown.status, unknown.reason().as_str()), (404, "task_not_found"));
    let answer = get(&server, "/v1/events?cursor=soon").await;
    assert_eq!((answer.status, answer.reason().as_str()), (400, "invalid_field"));
}
