//! One call: its answer, its deadlines, its attempts.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crewcall_sdk::{
    CallError, Client, Context, HandlerError, Payload,
    options::RetryPolicy,
    proto::{CallRequest, ExpiredReason, NewTask, TaskFilter, TaskState, outcome, tasks_client::TasksClient},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::{Code, Request};

use super::{adder, client, connect, hold, now_ms, refusal, soon, start};
use crate::harness::Server;

#[tokio::test]
async fn a_call_reaches_a_worker_and_its_result_the_caller() {
    let server = Server::start();
    let _worker = start(adder(&server)).await;
    let client = client(&server).await;
    assert_eq!(client.call::<_, i64>("add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
}

#[tokio::test]
async fn a_payload_arrives_as_it_was_sent_whatever_it_is() {
    let server = Server::start();
    let echo = adder(&server)
        .method_raw("echo", |_: Context, payload: Payload| async move { Ok::<_, HandlerError>(payload) });
    let _worker = start(echo).await;
    let client = client(&server).await;
    for (data, kind) in [
        (&b"9007199254740993"[..], ""),
        (b"1e400", "application/json"),
        (b"\x00\xff\xfe", "image/png"),
        (b"", "text/plain"),
    ] {
        let back = client.task("echo").payload_raw(data, kind).call_raw().await.unwrap();
        assert_eq!((&back.data[..], back.content_type.as_str()), (data, kind));
    }
}

#[tokio::test]
async fn a_failure_is_an_answer_in_the_handlers_words() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let call = tokio::spawn(async move { client.call::<_, Value>("held", &1).await });
    let run = held.next().await;
    assert_eq!((run.context.attempt(), &run.input), (1, &json!(1)));
    run.fail(HandlerError::new("no_luck", "not today").details(Payload::raw("why", "text/plain")));
    let Err(CallError::Failed { code, message, details }) = call.await.unwrap() else {
        panic!("it did not fail")
    };
    assert_eq!((code.as_str(), message.as_str()), ("no_luck", "not today"));
    assert_eq!(details.unwrap().data, &b"why"[..]);
}

#[tokio::test]
async fn the_timeout_of_the_rpc_becomes_the_deadline_of_the_task() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let mut raw = TasksClient::new(connect(&server.url()).await);
    let task = NewTask { method: "held".into(), ..NewTask::default() };
    let mut request = Request::new(CallRequest { task: Some(NewTask { payload: Some(null()), ..task }) });
    request.set_timeout(Duration::from_secs(60));
    let before = now_ms();
    let call = tokio::spawn(async move { raw.call(request).await });
    let run = held.next().await;
    let deadline = run.context.deadline().expect("the worker is told the deadline");
    let deadline =
        i64::try_from(deadline.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap();
    assert!((before + 59_000..=now_ms() + 60_000).contains(&deadline), "{before} {deadline}");
    run.succeed("in time");
    soon(call).await.unwrap().unwrap();
}

fn null() -> Payload {
    Payload::json(&()).unwrap()
}

#[tokio::test]
async fn a_deadline_that_passes_ends_the_task_and_stops_its_run() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let task = client.task("held").payload(&()).deadline(Duration::from_millis(150));
    let call = tokio::spawn(task.call::<Value>());
    let run = held.next().await;
    run.told_to_stop().await;
    assert!(matches!(call.await.unwrap(), Err(CallError::Expired(ExpiredReason::Deadline))));
}

#[tokio::test]
async fn a_task_that_no_worker_takes_expires_at_its_queue_timeout() {
    let server = Server::start();
    let client = client(&server).await;
    let task = client.task("nobody").payload(&()).queue_timeout(Duration::from_millis(50));
    assert!(matches!(task.call::<Value>().await, Err(CallError::Expired(ExpiredReason::QueueTimeout))));
}

#[tokio::test]
async fn a_run_beyond_its_timeout_is_stopped_and_counts_as_failed() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let task = client.task("held").payload(&()).run_timeout(Duration::from_millis(50));
    let call = tokio::spawn(task.call::<Value>());
    let run = held.next().await;
    assert!(run.told_to_stop().await.contains("run timeout"));
    assert_eq!(call.await.unwrap().unwrap_err().code(), Some("run_timeout"));
}

#[tokio::test]
async fn a_caller_that_hangs_up_takes_its_call_along() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let caller = client.clone();
    let call = tokio::spawn(async move { caller.call::<_, Value>("held", &()).await });
    let run = held.next().await;
    call.abort();
    assert_eq!(run.told_to_stop().await, "the caller went away");
    let task = client.get(run.context.task_id()).await.unwrap();
    assert_eq!(task.state(), TaskState::Cancelled);
}

#[tokio::test]
async fn a_caller_whose_process_dies_takes_its_call_along() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let wire = super::Proxy::to(server.address()).await;
    let far = Client::connect(wire.url()).await.unwrap();
    let call = tokio::spawn(async move { far.call::<_, Value>("held", &()).await });
    let run = held.next().await;
    wire.cut();
    run.told_to_stop().await;
    assert!(matches!(call.await.unwrap(), Err(CallError::Transport(_))));
}

#[tokio::test]
async fn attempts_follow_the_policy_and_are_all_on_record() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server).worker_id("w"), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let retry = RetryPolicy { max_attempts: 3, initial_backoff_ms: 20, max_backoff_ms: 40 };
    let call = tokio::spawn(client.task("held").payload(&()).retry(retry).call::<Value>());
    for attempt in 1..=2 {
        let run = held.next().await;
        assert_eq!(run.context.attempt(), attempt);
        run.fail(HandlerError::new("again", format!("attempt {attempt}")));
    }
    let run = held.next().await;
    let id = run.context.task_id().to_owned();
    run.succeed("third");
    assert_eq!(call.await.unwrap().unwrap(), "third");
    let task = client.get(&id).await.unwrap();
    assert_eq!((task.state(), task.attempt), (TaskState::Finished, 3));
    let record: Vec<_> = task
        .attempts
        .iter()
        .map(|attempt| (attempt.number, attempt.worker_id.as_str(), attempt.error.clone().unwrap().message))
        .collect();
    assert_eq!(record, [(1, "w", "attempt 1".to_owned()), (2, "w", "attempt 2".to_owned())]);
    // The wait is drawn from [backoff / 2, backoff].
    let waited = task.attempts[1].started_at_unix_ms - task.attempts[0].ended_at_unix_ms;
    assert!(waited >= 10, "{waited} ms");
    assert_eq!(client.stats().await.unwrap().retried_total, 2);
}

#[tokio::test]
async fn a_worker_has_the_last_word_on_trying_again() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let task = client.task("held").payload(&()).max_attempts(5).submit().await.unwrap();
    let first = held.next().await;
    let answered = now_ms();
    first.fail(HandlerError::new("busy", "later").retry_after(Duration::from_millis(60)));
    let second = held.next().await;
    assert!(now_ms() >= answered + 60, "the worker's own wait replaces the policy's");
    second.fail(HandlerError::new("broken", "for good").not_retryable());
    let task = soon(client.get_wait(task.task_id, Duration::from_secs(30))).await.unwrap();
    assert_eq!((task.state(), task.attempt), (TaskState::Dead, 2));
    let Some(outcome::Kind::Failed(error)) = task.outcome.unwrap().kind else { panic!("it did not fail") };
    assert_eq!(error.code, "broken");
}

#[tokio::test]
async fn a_released_task_runs_again_and_no_attempt_is_counted() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let call = tokio::spawn(async move { client.call::<_, Value>("held", &()).await });
    let first = held.next().await;
    let (lease, release) = (first.context.lease(), first.context.release());
    first.fail(release);
    let second = held.next().await;
    assert!(second.context.lease() > lease, "leases rise");
    assert_eq!(second.context.attempt(), 1);
    second.succeed(());
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_delayed_task_does_not_run_before_its_time() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let at = std::time::SystemTime::now() + Duration::from_millis(200);
    let id = client.task("held").payload(&()).run_at(at).submit().await.unwrap().task_id;
    let task = client.get(&id).await.unwrap();
    assert_eq!(task.state(), TaskState::Delayed);
    let run = held.next().await;
    assert!(std::time::SystemTime::now() >= at - Duration::from_millis(1));
    run.succeed(());
    let task = soon(client.get_wait(&id, Duration::from_secs(30))).await.unwrap();
    assert_eq!(task.state(), TaskState::Finished);
}

#[tokio::test]
async fn higher_priorities_run_first_and_equals_in_order() {
    let server = Server::start();
    let client = client(&server).await;
    let priorities = [4, 0, 9, 4, 7, 9, 0];
    for (number, priority) in priorities.into_iter().enumerate() {
        client.task("rank").payload(&number).priority(priority).submit().await.unwrap();
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = order.clone();
    let worker = adder(&server).concurrency(1).method("rank", move |_: Context, number: usize| {
        seen.lock().unwrap().push(number);
        async move { Ok::<_, HandlerError>(number) }
    });
    let _worker = start(worker).await;
    // The lowest priority and the latest of it: when it has ended all have.
    let last = client.task("rank").payload(&7).priority(0).call::<usize>();
    assert_eq!(soon(last).await.unwrap(), 7);
    assert_eq!(*order.lock().unwrap(), [2, 5, 4, 0, 3, 1, 6, 7]);
}

#[tokio::test]
async fn metadata_reaches_the_worker_unchanged() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let call = tokio::spawn(
        client
            .task("held")
            .payload(&())
            .metadata("traceparent", "00-ab-cd-01")
            .metadata("é", "")
            .call::<Value>(),
    );
    let run = held.next().await;
    let metadata = run.context.metadata();
    assert_eq!(
        (metadata.len(), metadata["traceparent"].as_str(), metadata["é"].as_str()),
        (2, "00-ab-cd-01", "")
    );
    run.succeed(());
    call.await.unwrap().unwrap();
}

/// RELIABILITY: a hundred clients hand in the same key at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_from_a_hundred_clients_is_one_task() {
    const CLIENTS: usize = 100;
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let mut submits = JoinSet::new();
    let mut calls = JoinSet::new();
    for _ in 0..CLIENTS {
        let client = client(&server).await;
        let task = move || client.task("held").payload(&"same").idempotency_key("one");
        submits.spawn(task().submit());
        calls.spawn(task().call::<Value>());
    }
    let mut ids = Vec::new();
    let mut first = 0;
    while let Some(submitted) = soon(submits.join_next()).await {
        let submitted = submitted.unwrap().unwrap();
        first += usize::from(!submitted.attached);
        ids.push(submitted.task_id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one task, the same id to all");
    assert!(first <= 1, "at most one of them was first; else a call was");
    let run = held.next().await;
    assert_eq!(run.context.task_id(), ids[0]);
    run.succeed("once");
    while let Some(result) = soon(calls.join_next()).await {
        assert_eq!(result.unwrap().unwrap(), "once");
    }
    let client = client(&server).await;
    assert_eq!(client.stats().await.unwrap().submitted_total, 1);
    assert!(held.running.try_recv().is_err(), "it ran once");

    let other = client.task("held").payload(&"other").idempotency_key("one").call::<Value>().await;
    let refusal = refusal(other.unwrap_err());
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::AlreadyExists, "idempotency_conflict"));
    assert!(refusal.message.contains("\"one\""), "{}", refusal.message);
}

#[tokio::test]
async fn one_caller_that_leaves_does_not_cancel_what_another_waits_for() {
    // Of three callers one is turned away at this limit: from then on the other two are known to wait.
    let server = Server::builder().args(["--limits", "waiters_per_task = 2"]).start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let mut calls = JoinSet::new();
    let callers: Vec<_> = (0..3)
        .map(|_| calls.spawn(client.task("held").payload(&()).idempotency_key("shared").call::<Value>()))
        .collect();
    let turned_away = soon(calls.join_next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(refusal(turned_away).reason, "server_full");
    let run = held.next().await;
    callers.iter().find(|caller| !caller.is_finished()).unwrap().abort();
    assert!(soon(calls.join_next()).await.unwrap().unwrap_err().is_cancelled());
    // Answered after the hang-up has been: both take the same road to the scheduler.
    client.list(TaskFilter::default(), 0, "").await.unwrap();
    assert!(!run.context.is_cancelled());
    run.succeed("for the other");
    assert_eq!(soon(calls.join_next()).await.unwrap().unwrap().unwrap(), "for the other");
}
