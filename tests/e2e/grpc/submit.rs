//! Tasks handed in, and everything one may do with them afterwards; what operators see.

use std::time::Duration;

use crewcall_sdk::{
    HandlerError, MethodSpec,
    options::TaskBuilder,
    proto::{GetRequest, NewTask, TaskFilter, TaskState, WorkerState, outcome},
};
use serde_json::Value;
use tonic::Code;

use super::{adder, client, hold, refusal, soon, start};
use crate::harness::Server;

fn task(method: &str) -> NewTask {
    TaskBuilder::new(method).payload(&1).build().unwrap()
}

#[tokio::test]
async fn each_task_of_a_submission_has_its_own_answer() {
    let server = Server::start();
    let client = client(&server).await;
    let too_high = TaskBuilder::new("m").payload(&1).priority(10).build().unwrap();
    let results = client.submit_many(vec![task("m"), too_high, task(" m"), task("m")]).await.unwrap();
    let reasons: Vec<_> =
        results.iter().map(|result| result.as_ref().err().map(|r| r.reason.as_str())).collect();
    assert_eq!(reasons, [None, Some("invalid_field"), Some("invalid_field"), None]);
    assert_eq!(client.stats().await.unwrap().ready, 2);
}

#[tokio::test]
async fn ten_thousand_tasks_fit_into_one_submission_and_not_one_more() {
    let server = Server::start();
    let client = client(&server).await;
    for (count, reason) in [(0, "too_many_items"), (10_001, "too_many_items")] {
        let refusal = refusal(client.submit_many(vec![task("m"); count]).await.unwrap_err());
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::InvalidArgument, reason));
        assert!(refusal.message.contains(&count.to_string()), "{}", refusal.message);
    }
    let results = client.submit_many(vec![task("m"); 10_000]).await.unwrap();
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(client.stats().await.unwrap().ready, 10_000);
}

#[tokio::test]
async fn a_task_is_shown_as_it_stands() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server).worker_id("w"), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let id = client.task("held").payload(&"in").priority(9).submit().await.unwrap().task_id;
    let run = held.next().await;
    run.context.progress(1, 4, "one");
    let task = soon(async {
        loop {
            let task = client.get(&id).await.unwrap();
            if task.progress.is_some() {
                break task;
            }
        }
    })
    .await;
    assert_eq!((task.method.as_str(), task.state(), task.attempt), ("held", TaskState::Leased, 1));
    assert_eq!((task.worker_id.as_str(), task.payload.is_none()), ("w", true));
    let options = task.options.unwrap();
    assert_eq!((options.priority, options.retry.unwrap().max_attempts), (Some(9), 5), "defaults filled in");
    run.succeed("out");
    let task = soon(client.get_wait(&id, Duration::from_secs(30))).await.unwrap();
    assert_eq!((task.state(), task.worker_id.as_str()), (TaskState::Finished, ""));
    assert!(task.created_at_unix_ms <= task.changed_at_unix_ms);
    let Some(outcome::Kind::Succeeded(result)) = task.outcome.unwrap().kind else { panic!("no result") };
    assert_eq!(result.decode::<String>().unwrap(), "out");
    let request = GetRequest { task_id: id, with_payload: true, wait_ms: 0 };
    let payload = client.get_with(request).await.unwrap().payload.unwrap();
    assert_eq!(payload.decode::<String>().unwrap(), "in");
}

#[tokio::test]
async fn an_outcome_is_kept_as_long_as_asked_and_no_longer() {
    let server = Server::start();
    let _worker = start(adder(&server)).await;
    let client = client(&server).await;
    let terms = serde_json::json!({"a": 1, "b": 1});
    let id = client.task("add").payload(&terms).retention(Duration::from_millis(300)).submit().await.unwrap();
    let task = soon(client.get_wait(&id.task_id, Duration::from_secs(30))).await.unwrap();
    assert_eq!(task.state(), TaskState::Finished);
    let error = soon(async {
        loop {
            if let Err(error) = client.get(&id.task_id).await {
                break error;
            }
        }
    })
    .await;
    let refusal = refusal(error);
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::NotFound, "task_not_found"));
}

#[tokio::test]
async fn lists_come_in_pages_newest_first_and_filtered() {
    let server = Server::start();
    let client = client(&server).await;
    let ids: Vec<String> = client
        .submit_many((0..25).map(|n| task(if n % 5 == 0 { "five" } else { "m" })).collect())
        .await
        .unwrap()
        .into_iter()
        .map(|result| result.unwrap().task_id)
        .collect();
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.list(TaskFilter::default(), 10, token).await.unwrap();
        assert!(page.tasks.len() <= 10);
        seen.extend(page.tasks.into_iter().map(|task| task.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(seen, newest_first);
    let filter = |method: &str, state: TaskState| TaskFilter {
        method: method.into(),
        states: vec![state.into()],
        ..TaskFilter::default()
    };
    for (filter, count) in [
        (filter("five", TaskState::Ready), 5),
        (filter("five", TaskState::Leased), 0),
        (filter("", TaskState::Ready), 25),
    ] {
        assert_eq!(client.list(filter.clone(), 0, "").await.unwrap().tasks.len(), count, "{filter:?}");
    }
}

#[tokio::test]
async fn a_cancelled_task_stops_wherever_it_is() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server).concurrency(1), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let id = |result: Result<crewcall_sdk::Submitted, _>| result.unwrap().task_id;
    let running = id(client.submit(task("held")).await);
    let run = held.next().await;
    let queued = id(client.submit(task("held")).await);
    for id in [&queued, &running] {
        let task = client.cancel(id, "not needed").await.unwrap();
        assert_eq!(task.outcome.unwrap().kind, Some(outcome::Kind::Cancelled("not needed".into())));
    }
    assert_eq!(run.told_to_stop().await, "not needed");
    // The answer of the one that was told too late is refused; the worker takes the next task.
    run.succeed("too late");
    let after = id(client.submit(task("held")).await);
    let run = held.next().await;
    assert_eq!(run.context.task_id(), after, "the queued one never ran");
    run.succeed(());
    assert_eq!(client.get(&running).await.unwrap().state(), TaskState::Cancelled);
    assert_eq!(client.cancel(&running, "again").await.unwrap().state(), TaskState::Cancelled);
    soon(client.get_wait(&after, Duration::from_secs(30))).await.unwrap();
    let refusal = refusal(client.cancel(&after, "late").await.unwrap_err());
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::FailedPrecondition, "task_ended"));
}

#[tokio::test]
async fn an_ended_task_can_run_again_under_its_id() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let client = client(&server).await;
    let id = client.task("held").payload(&()).max_attempts(1).submit().await.unwrap().task_id;
    let run = held.next().await;
    let refused = refusal(client.retry(&id).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "task_not_ended"));
    run.fail(HandlerError::new("broken", "once"));
    assert_eq!(soon(client.get_wait(&id, Duration::from_secs(30))).await.unwrap().state(), TaskState::Dead);
    let task = client.retry(&id).await.unwrap();
    assert!(task.outcome.is_none(), "the outcome is withdrawn");
    let run = held.next().await;
    assert_eq!((run.context.task_id(), run.context.attempt()), (id.as_str(), 1));
    run.succeed("mended");
    let task = soon(client.get_wait(&id, Duration::from_secs(30))).await.unwrap();
    assert_eq!(task.state(), TaskState::Finished);
}

#[tokio::test]
async fn explain_names_the_cause() {
    let server = Server::start();
    let client = client(&server).await;
    let id = client.submit(task("held")).await.unwrap().task_id;
    let explained = client.explain(&id).await.unwrap();
    assert!(explained.summary.contains("No live worker serves \"held\""), "{}", explained.summary);

    let (worker, mut held) = hold(adder(&server).worker_id("w").concurrency(1), "held");
    let _worker = start(worker).await;
    let run = held.next().await;
    let explained = client.explain(&id).await.unwrap();
    assert!(explained.summary.contains("Worker w has held it"), "{}", explained.summary);
    let waiting = client.submit(task("held")).await.unwrap().task_id;
    let explained = client.explain(&waiting).await.unwrap();
    assert!(explained.summary.contains("are full"), "{}", explained.summary);
    assert!(explained.details.iter().any(|line| line.contains("worker w runs 1 of 1")), "{explained:?}");

    let elsewhere = client.task("held").payload(&()).group("gpu").submit().await.unwrap().task_id;
    let explained = client.explain(elsewhere).await.unwrap();
    assert!(explained.summary.contains("none fits its target"), "{}", explained.summary);
    run.succeed(());
}

#[tokio::test]
async fn unknown_ids_are_not_found_and_malformed_ones_are_refused() {
    let server = Server::start();
    let client = client(&server).await;
    for (id, code) in
        [("01890a5d-ac96-774b-bcce-b302099a8057", Code::NotFound), ("nonsense", Code::InvalidArgument)]
    {
        let answers = [
            client.get(id).await.map(drop),
            client.cancel(id, "").await.map(drop),
            client.retry(id).await.map(drop),
            client.explain(id).await.map(drop),
            client.watch(id, "").await.map(drop),
        ];
        for answer in answers {
            assert_eq!(refusal(answer.unwrap_err()).code, code, "{id}");
        }
    }
}

#[tokio::test]
async fn operators_see_workers_methods_and_counts() {
    let server = Server::start();
    let spec = MethodSpec::new("held.too").version("1.2.3").summary("Held").docs("# Held").example(&1);
    let (worker, mut held) =
        hold(adder(&server).worker_id("w").group("g").label("zone", "a").version("7").concurrency(3), "held");
    let worker = worker.method_with(spec, |_: crewcall_sdk::Context, value: Value| async move {
        Ok::<_, HandlerError>(value)
    });
    let _worker = start(worker).await;
    let client = client(&server).await;
    client.submit(task("unserved")).await.unwrap();
    client.submit(task("held")).await.unwrap();
    let run = held.next().await;

    let workers = client.workers().await.unwrap();
    let [worker] = &workers[..] else { panic!("{workers:?}") };
    assert_eq!((worker.id.as_str(), worker.group.as_str(), worker.version.as_str()), ("w", "g", "7"));
    assert_eq!((worker.state(), worker.labels["zone"].as_str()), (WorkerState::Active, "a"));
    assert!(worker.sdk.starts_with("crewcall-sdk-rust/"), "{}", worker.sdk);
    assert!(worker.peer.starts_with("127.0.0.1:"), "{}", worker.peer);
    assert!(worker.joined_at_unix_ms <= worker.seen_at_unix_ms);
    let [pool] = &worker.pools[..] else { panic!("{:?}", worker.pools) };
    assert_eq!((pool.concurrency, pool.in_flight, pool.credit), (3, 1, 2));

    let methods = client.methods().await.unwrap();
    let shown: Vec<_> = methods
        .iter()
        .map(|status| (status.method.clone().unwrap().name, status.workers, status.ready))
        .collect();
    let name = str::to_owned;
    assert_eq!(
        shown,
        [(name("add"), 1, 0), (name("held"), 1, 0), (name("held.too"), 1, 0), (name("unserved"), 0, 1)]
    );
    let method = methods[2].method.clone().unwrap();
    assert_eq!((method.version.as_str(), method.docs.as_str()), ("1.2.3", "# Held"));

    run.succeed(());
    let stats = soon(async {
        loop {
            let stats = client.stats().await.unwrap();
            if stats.finished == 1 {
                break stats;
            }
        }
    })
    .await;
    assert_eq!((stats.submitted_total, stats.finished_total, stats.ready, stats.leased), (2, 1, 1, 0));
    assert_eq!((stats.workers, stats.version.as_str()), (1, env!("CARGO_PKG_VERSION")));
}
