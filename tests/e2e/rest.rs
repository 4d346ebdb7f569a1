//! REST v1: every route and option, bad input, browsers, and callers that hang up.

mod events;
mod refusals;

use serde_json::{Value, json};

use crate::{
    grpc::{self, adder, client, hold, now_ms, soon, start},
    harness::Server,
    http::{get, post, send},
};

#[tokio::test]
async fn a_call_is_its_body_and_its_answer_the_result_byte_for_byte() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let answer = post(&server, "/v1/call/add", r#"{"a":1,"b":2}"#).await;
    assert_eq!((answer.status, answer.text()), (200, "3"));
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("content-security-policy"), "sandbox");
    let id = answer.header("crewcall-task-id").to_owned();
    let task = get(&server, &format!("/v1/tasks/{id}?payload=true")).await.json();
    assert_eq!((&task["id"], &task["state"], &task["attempt"]), (&json!(id), &json!("finished"), &json!(1)));
    assert_eq!(task["payload"], json!({"a": 1, "b": 2}));
    assert_eq!(task["outcome"], json!({"succeeded": 3}));
    assert_eq!(task["options"]["durability"], "ephemeral");

    // The worker sees what the caller wrote, and the caller what the worker did.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let call = send(&server, "POST", "/v1/call/held", &form, r#"{"as":"curl -d"}"#);
    let (answer, ()) = tokio::join!(call, async {
        let run = held.next().await;
        assert_eq!(run.input, json!({"as": "curl -d"}));
        run.succeed("done");
    });
    assert_eq!(answer.text(), r#""done""#);
}

#[tokio::test]
async fn every_option_reaches_the_task_and_its_worker() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server).label("zone", "a=1").group("g"), "h/ä b");
    let _worker = start(worker).await;
    let target =
        "/v1/call/h%2F%C3%A4%20b?wait=0s&deadline=1m&label=zone%3Da%3D1&metadata=k%3Dv&run_at=1700000000000";
    let headers = [
        ("crewcall-priority", "7"),
        ("crewcall-queue-timeout", "50s"),
        ("crewcall-run-timeout", "40s"),
        ("crewcall-max-attempts", "3"),
        ("crewcall-initial-backoff", "1ms"),
        ("crewcall-max-backoff", "2ms"),
        ("crewcall-retention", "2h"),
        ("crewcall-durability", "durable"),
        ("crewcall-version", ">=0"),
        ("crewcall-group", "g"),
        ("idempotency-key", "once"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let accepted = send(&server, "POST", target, &headers, "[1]").await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let body = accepted.json();
    let id = body["task_id"].as_str().unwrap();
    assert_eq!(accepted.header("location"), format!("/v1/tasks/{id}"));
    assert_eq!(body["links"]["self"], accepted.header("location"));
    assert_eq!(body["attached"], false);
    let again = send(&server, "POST", target, &headers, "[1]").await.json();
    assert_eq!((&again["task_id"], &again["attached"]), (&body["task_id"], &json!(true)));

    let options = get(&server, accepted.header("location")).await.json()["options"].take();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(
        options,
        json!({
            "target": {"version": ">=0", "group": "g", "labels": {"zone": "a=1"}},
            "priority": 7, "run_at_unix_ms": 1_700_000_000_000_u64, "deadline_ms": 60_000,
            "queue_timeout_ms": 50_000, "run_timeout_ms": 40_000,
            "retry": {"max_attempts": 3, "initial_backoff_ms": 1, "max_backoff_ms": 2},
            "idempotency_key": "once", "durability": "durable", "retention_ms": 7_200_000,
            "metadata": {"k": "v", "traceparent": trace},
        })
    );
    let run = held.next().await;
    assert_eq!(run.context.metadata().get("traceparent").map(String::as_str), Some(trace));
    run.fail(crewcall_sdk::HandlerError::new("busy", "try again"));
    let run = held.next().await;
    assert_eq!(run.context.attempt(), 2);
    run.succeed(json!({"n": 1}));
    // The wait ends with the outcome, not with its time.
    let task = get(&server, &format!("/v1/tasks/{id}?wait=300s")).await.json();
    assert_eq!(task["outcome"], json!({"succeeded": {"n": 1}}));
    assert_eq!(task["attempts"][0]["error"], json!({"code": "busy", "message": "try again"}));
    let result = get(&server, &format!("/v1/tasks/{id}/result")).await;
    assert_eq!((result.status, result.text()), (200, r#"{"n":1}"#));
    // And so does the wait of the call itself.
    let done = send(&server, "POST", &target.replace("wait=0s", "wait=300s"), &headers, "[1]").await;
    assert_eq!((done.status, done.text()), (200, r#"{"n":1}"#));
    let conflict = send(&server, "POST", target, &headers, "[2]").await;
    assert_eq!((conflict.status, conflict.reason().as_str()), (409, "idempotency_conflict"));
}

#[tokio::test]
async fn a_call_that_does_not_succeed_is_a_problem_that_says_how_it_ended() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let answer = post(&server, "/v1/call/add", "{}").await;
    assert_eq!((answer.status, answer.reason().as_str()), (422, "task_failed"));
    let problem = answer.json();
    assert_eq!(problem["instance"], "/v1/call/add");
    assert_eq!(problem["outcome"]["failed"]["code"], "bad_input");
    assert!(problem["outcome"]["failed"]["message"].as_str().unwrap().starts_with("no terms"));

    let answer = post(&server, "/v1/call/nobody?queue_timeout=1ms", "1").await;
    assert_eq!((answer.status, answer.reason().as_str()), (504, "task_expired"));
    assert_eq!(answer.json()["outcome"], json!({"expired": "queue_timeout"}));
    let answer = post(&server, "/v1/call/nobody?deadline=1ms", "1").await;
    assert_eq!((answer.status, answer.reason().as_str()), (504, "task_expired"));
    assert_eq!(answer.json()["outcome"], json!({"expired": "deadline"}));

    let (answer, ()) = tokio::join!(post(&server, "/v1/call/held", "1"), async {
        let run = held.next().await;
        let target = format!("/v1/tasks/{}?reason=no%20more", run.context.task_id());
        let cancelled = send(&server, "DELETE", &target, &[], "").await;
        assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("cancelled")));
        assert_eq!(run.told_to_stop().await, "no more");
    });
    assert_eq!((answer.status, answer.reason().as_str()), (409, "task_cancelled"));
    assert_eq!(answer.json()["outcome"], json!({"cancelled": "no more"}));
    let id = answer.json()["task_id"].as_str().unwrap().to_owned();
    // Cancelling a cancelled task succeeds again; its result is the same problem.
    assert_eq!(send(&server, "DELETE", &format!("/v1/tasks/{id}"), &[], "").await.status, 200);
    assert_eq!(get(&server, &format!("/v1/tasks/{id}/result")).await.reason(), "task_cancelled");
}

#[tokio::test]
async fn a_caller_that_hangs_up_cancels_its_call_with_and_without_a_wait() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    for target in ["/v1/call/held", "/v1/call/held?wait=300s"] {
        let address = server.address();
        let call = tokio::spawn(async move {
            crate::http::begin(address, "POST", target, &[], "1").await;
        });
        let run = held.next().await;
        call.abort();
        assert_eq!(run.told_to_stop().await, "the caller went away", "{target}");
    }
    // One that others may share, or that is stored, goes on.
    for target in ["/v1/call/held?wait=300s&idempotency_key=k", "/v1/call/held?durability=durable"] {
        let address = server.address();
        let call = tokio::spawn(async move {
            crate::http::begin(address, "POST", target, &[], "1").await;
        });
        let run = held.next().await;
        call.abort();
        let id = run.context.task_id().to_owned();
        run.succeed(5);
        let result = get(&server, &format!("/v1/tasks/{id}/result?wait=300s")).await;
        assert_eq!((result.status, result.text()), (200, "5"), "{target}");
    }
}

#[tokio::test]
async fn tasks_are_handed_in_one_by_one_or_as_a_list() {
    let server = Server::start();
    let one = json!({"method": "add", "payload": {"a": 1, "b": 1}, "options": {"idempotency_key": "k"}});
    let answer = post(&server, "/v1/tasks", one.to_string()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let id = answer.json()["task_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("/v1/tasks/{id}"));
    let again = post(&server, "/v1/tasks", one.to_string()).await;
    assert_eq!((again.status, &again.json()["attached"]), (200, &json!(true)));

    let list = json!([
        {"method": "add", "payload": {"a": 1, "b": 2}},
        {"method": " add"},
        {"method": "add", "payload": {"a": 9, "b": 9}, "options": {"idempotency_key": "k"}},
        {"method": "add", "options": {"prio": 1}},
        7,
        one,
    ]);
    let answer = post(&server, "/v1/tasks", list.to_string()).await;
    assert_eq!(answer.status, 207);
    let results = answer.json()["results"].take();
    let fates: Vec<&str> = results
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["refusal"]["reason"].as_str().unwrap_or("accepted"))
        .collect();
    let expected =
        ["accepted", "invalid_field", "idempotency_conflict", "invalid_field", "invalid_field", "accepted"];
    assert_eq!(fates, expected, "{results}");
    assert_eq!((&results[5]["task_id"], &results[5]["attached"]), (&json!(id), &json!(true)));
    assert_eq!(results[2]["refusal"]["status"], 409);
    assert!(results[3]["refusal"]["message"].as_str().unwrap().contains("unknown field `prio`"), "{results}");

    let many: Vec<Value> =
        (0..10_000).map(|n| json!({"method": "add", "payload": {"a": n, "b": 0}})).collect();
    let answer = post(&server, "/v1/tasks", Value::from(many.clone()).to_string()).await;
    assert_eq!((answer.status, answer.json()["results"].as_array().unwrap().len()), (201, 10_000));
    let _worker = start(adder(&server).concurrency(100)).await;
    let last = answer.json()["results"][9_999]["task_id"].as_str().unwrap().to_owned();
    let task = get(&server, &format!("/v1/tasks/{last}?wait=300s")).await.json();
    assert_eq!(
        (&task["outcome"], &task["options"]["retry"]["max_attempts"]),
        (&json!({"succeeded": 9_999}), &json!(5))
    );
    assert_eq!(task["options"]["durability"], "durable");
    let one_more = Value::from([many.as_slice(), &[json!({"method": "add"})]].concat()).to_string();
    for body in ["[]".to_owned(), one_more] {
        let answer = post(&server, "/v1/tasks", body).await;
        assert_eq!((answer.status, answer.reason().as_str()), (400, "too_many_items"));
    }
}

#[tokio::test]
async fn payloads_pass_through_as_they_are_written() {
    let server = Server::start();
    let client = client(&server).await;
    let mut worker = crate::http::JsonWorker::join(&server, json!({"methods": [{"name": "m"}]})).await;
    worker.credit(100).await;
    let deep = "[".repeat(5_000) + &"]".repeat(5_000);
    for payload in
        [r#"{"b":9007199254740993,"a":1e400,"a":-0.0}"#, r#""\ud800""#, "null", &deep, "  [1,\n2]  "]
    {
        let call = post(&server, "/v1/call/m", payload.to_owned());
        let (answer, ()) = tokio::join!(call, async {
            let text = worker.hear_text().await;
            assert!(text.contains(&format!("\"payload\":{}", payload.trim())), "{payload:.100}");
            let lease = text.split_once("\"lease\":").unwrap().1.split_once(',').unwrap().0.to_owned();
            worker.say_text(format!(r#"{{"results":[{{"lease":{lease},"succeeded":{payload}}}]}}"#)).await;
        });
        assert_eq!((answer.status, answer.text()), (200, payload.trim()));
        let id = answer.header("crewcall-task-id");
        let shown = get(&server, &format!("/v1/tasks/{id}?payload=true")).await;
        let shown = shown.text();
        assert!(shown.contains(&format!("\"payload\":{}", payload.trim())), "{payload:.100}");
        assert!(shown.contains(&format!("\"succeeded\":{}", payload.trim())), "{payload:.100}");
    }
    // Other types keep their bytes and their type.
    let png = [("content-type", "image/png")];
    let call = send(&server, "POST", "/v1/call/m", &png, &b"\x00\xff"[..]);
    let (answer, ()) = tokio::join!(call, async {
        let task = worker.assigned().await;
        assert_eq!(task["payload"], json!({"base64": "AP8=", "content_type": "image/png"}));
        worker.end(&task["lease"], json!({"succeeded": task["payload"]})).await;
    });
    assert_eq!((answer.status, &answer.body[..]), (200, &b"\x00\xff"[..]));
    assert_eq!(answer.header("content-type"), "image/png");
    // Nothing at all.
    let (answer, ()) = tokio::join!(post(&server, "/v1/call/m", ""), async {
        let task = worker.assigned().await;
        assert_eq!(task["payload"], Value::Null);
        worker.end(&task["lease"], json!({})).await;
    });
    assert_eq!((answer.status, answer.text()), (204, ""));
    // What a gRPC caller says is JSON, and is none.
    let raw = client.task("m").payload_raw("oops", "").call_raw();
    let (answer, ()) = tokio::join!(raw, async {
        let task = worker.assigned().await;
        assert_eq!(task["payload"], json!({"base64": "b29wcw==", "content_type": "application/json"}));
        worker.end(&task["lease"], json!({"succeeded": task["payload"]})).await;
    });
    assert_eq!(answer.unwrap().data, "oops");
}

#[tokio::test]
async fn operators_see_and_steer() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server).worker_id("w/1").group("g").label("zone", "a"), "held");
    let mut worker = start(worker).await;
    let waiting = post(&server, "/v1/tasks", r#"{"method":"nobody"}"#).await.json()["task_id"].take();
    let running =
        post(&server, "/v1/tasks", r#"{"method":"held","payload":1}"#).await.json()["task_id"].take();
    let run = held.next().await;

    let workers = get(&server, "/v1/workers").await.json()["workers"].take();
    assert_eq!(
        (&workers[0]["id"], &workers[0]["state"], &workers[0]["group"]),
        (&json!("w/1"), &json!("active"), &json!("g"))
    );
    assert_eq!(workers[0]["labels"], json!({"zone": "a"}));
    assert_eq!(workers[0]["pools"][0]["in_flight"], 1);
    let joined = workers[0]["joined_at_unix_ms"].as_i64().unwrap();
    assert!((0..60_000).contains(&(now_ms() - joined)), "{workers}");
    let methods = get(&server, "/v1/methods").await.json()["methods"].take();
    let names: Vec<&str> =
        methods.as_array().unwrap().iter().map(|m| m["method"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["add", "held", "nobody"]);
    assert_eq!((&methods[2]["workers"], &methods[2]["ready"]), (&json!(0), &json!(1)));
    let stats = get(&server, "/v1/stats").await.json();
    assert_eq!((&stats["ready"], &stats["leased"], &stats["workers"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));

    let explained = get(&server, &format!("/v1/tasks/{}/explain", waiting.as_str().unwrap())).await.json();
    assert_eq!(explained["task"]["id"], waiting);
    assert!(!explained["summary"].as_str().unwrap().is_empty() && explained["details"].is_array());

    let list = async |query: &str| get(&server, &format!("/v1/tasks{query}")).await.json();
    let ids = |page: &Value| -> Value {
        page["tasks"].as_array().unwrap().iter().map(|task| task["id"].clone()).collect()
    };
    assert_eq!(ids(&list("").await), json!([running, waiting]), "newest first");
    assert_eq!(ids(&list("?method=nobody").await), json!([waiting]));
    assert_eq!(ids(&list("?state=leased").await), json!([running]));
    assert_eq!(ids(&list("?state=leased,ready&state=dead").await).as_array().map(Vec::len), Some(2));
    assert_eq!(ids(&list("?worker=w%2F1").await), json!([running]));
    let page = list("?limit=1").await;
    assert_eq!(ids(&page), json!([running]));
    let next = list(&format!("?limit=1&page={}", page["next_page"].as_str().unwrap())).await;
    assert_eq!(ids(&next), json!([waiting]));

    // Not before it has ended; then again from the start.
    let retry = format!("/v1/tasks/{}/retry", running.as_str().unwrap());
    let early = post(&server, &retry, "").await;
    assert_eq!((early.status, early.reason().as_str()), (409, "task_not_ended"));
    let result = format!("/v1/tasks/{}/result", running.as_str().unwrap());
    assert_eq!(get(&server, &result).await.reason(), "task_not_ended");
    run.succeed(1);
    assert_eq!(get(&server, &format!("{result}?wait=300s")).await.text(), "1");
    let over = send(&server, "DELETE", &format!("/v1/tasks/{}", running.as_str().unwrap()), &[], "").await;
    assert_eq!((over.status, over.reason().as_str()), (409, "task_ended"));
    assert_eq!(post(&server, &retry, "").await.status, 200);
    held.next().await.succeed(2);
    assert_eq!(get(&server, &format!("{result}?wait=300s")).await.text(), "2");

    let nobody = post(&server, "/v1/workers/nobody/drain", "").await;
    assert_eq!((nobody.status, nobody.reason().as_str()), (404, "worker_not_found"));
    let drained = post(&server, "/v1/workers/w%2F1/drain?reason=rest", "").await;
    assert_eq!((drained.status, drained.text()), (204, ""));
    soon(worker.ended()).await.unwrap();
    grpc::until_gone(&client(&server).await, "w/1").await;
}

#[tokio::test]
async fn the_description_is_served() {
    let server = Server::start();
    let answer = get(&server, "/openapi.json").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    assert!(answer.text() == include_str!("../../gateway/openapi.json"), "not the one that is checked in");
}
