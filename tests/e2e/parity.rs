//! All edges say the same: the same cases through every way to call, served over every way to work, must end
//! in the same outcome or be refused for the same reason.
//!
//! A new edge is a [`Caller`] (and a [`Crew`], if it has workers) and a line in the test. What an edge cannot say is
//! left out or translated by that edge, in the open: see `parity/legacy.rs`.

mod legacy;

use bytes::Bytes;
use crewcall_sdk::{
    CallError, Client,
    proto::{
        self, Durability, ExpiredReason, Failure, NewTask, RetryPolicy, Target, TaskError, TaskOptions,
        outcome, result,
    },
};
use serde_json::{Value, json};

use self::legacy::{LegacyCaller, LegacyCrew};
use crate::{
    grpc::{Hand, by_hand, client, refusal, soon},
    harness::Server,
    http::{Answer, JsonWorker, get, post, send},
};

/// What a caller asks for. The options are those of the JSON API.
#[derive(Clone, Debug)]
struct Case {
    method: &'static str,
    content_type: &'static str,
    data: Bytes,
    options: Value,
}

/// What a caller gets to know.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Succeeded { content_type: String, data: Bytes },
    Failed { code: String, message: String, details: Option<Bytes> },
    Cancelled(String),
    Expired(&'static str),
    Refused(String),
}

fn succeeded(content_type: &str, data: &'static [u8]) -> Seen {
    Seen::Succeeded { content_type: content_type.to_owned(), data: Bytes::from_static(data) }
}

fn failed(code: &str, message: &str, details: Option<&'static str>) -> Seen {
    Seen::Failed { code: code.to_owned(), message: message.to_owned(), details: details.map(Bytes::from) }
}

fn refused(reason: &str) -> Seen {
    Seen::Refused(reason.to_owned())
}

/// The cases, each with what everybody must see.
fn cases() -> Vec<(Case, Seen)> {
    let case = |method, data: &'static str, options| Case {
        method,
        content_type: "application/json",
        data: Bytes::from(data),
        options,
    };
    let json = "application/json";
    let odd = r#"{"b":9007199254740993,"a":1e400,"b":-0}"#;
    let large = Bytes::from(format!("\"{}\"", "x".repeat(5_000)));
    let pairs = |count: usize| -> Value {
        (0..count).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
    };
    vec![
        (case("echo", odd, json!({})), succeeded(json, odd.as_bytes())),
        (case("echo", "null", json!({"metadata": {"k": "v"}, "priority": 9})), succeeded(json, b"null")),
        (
            Case {
                content_type: "application/octet-stream",
                data: Bytes::from_static(b"\x00\xff"),
                ..case("echo", "", json!({}))
            },
            succeeded("application/octet-stream", b"\x00\xff"),
        ),
        (
            case("fail", "1", json!({"retry": {"max_attempts": 3}})),
            failed("odd", "not even", Some("[1e400]")),
        ),
        (
            case("flaky", "1", json!({"retry": {"max_attempts": 2, "initial_backoff_ms": 1}})),
            succeeded(json, b"2"),
        ),
        (case("flaky", "1", json!({"retry": {"max_attempts": 1}})), failed("busy", "try again", None)),
        (case("cancel", "1", json!({})), Seen::Cancelled("no more".to_owned())),
        (
            case("drop", "1", json!({"run_timeout_ms": 50, "retry": {"max_attempts": 1}})),
            failed("run_timeout", "", None),
        ),
        (case("nobody", "1", json!({"queue_timeout_ms": 1})), Seen::Expired("queue_timeout")),
        (case("nobody", "1", json!({"deadline_ms": 1})), Seen::Expired("deadline")),
        (
            case("echo", "1", json!({"target": {"version": "^1"}, "queue_timeout_ms": 1})),
            Seen::Expired("queue_timeout"),
        ),
        (
            case("echo", "1", json!({"target": {"group": "other"}, "queue_timeout_ms": 1})),
            Seen::Expired("queue_timeout"),
        ),
        (case("echo", "7", json!({"idempotency_key": "k"})), succeeded(json, b"7")),
        (case("echo", "7", json!({"idempotency_key": "k"})), succeeded(json, b"7")),
        (case("echo", "8", json!({"idempotency_key": "k"})), refused("idempotency_conflict")),
        (case(" echo", "1", json!({})), refused("invalid_field")),
        (case("echo", "1", json!({"priority": 10})), refused("invalid_field")),
        (case("echo", "1", json!({"priority": 300})), refused("invalid_field")),
        (case("echo", "1", json!({"target": {"version": "latest"}})), refused("invalid_field")),
        (case("echo", "1", json!({"target": {"labels": pairs(17)}})), refused("invalid_field")),
        (case("echo", "1", json!({"metadata": pairs(33)})), refused("invalid_field")),
        (case("echo", "1", json!({"retry": {"max_attempts": 1_001}})), refused("invalid_field")),
        (case("echo", "1", json!({"retry": {"max_backoff_ms": 86_400_001}})), refused("invalid_field")),
        (case("echo", "1", json!({"deadline_ms": 40_000_000_000_u64})), refused("invalid_field")),
        (case("echo", "1", json!({"retention_ms": 3_000_000_000_u64})), refused("invalid_field")),
        (case("echo", "1", json!({"run_at_unix_ms": 4_000_000_000_000_u64})), refused("invalid_field")),
        (case("echo", "1", json!({"idempotency_key": "x".repeat(257)})), refused("invalid_field")),
        (Case { data: large, ..case("echo", "", json!({})) }, refused("payload_too_large")),
        (case("queue", "1", json!({"queue_timeout_ms": 1})), refused("queue_full")),
    ]
}

// --- ways to call -------------------------------------------------------------------------------------

/// A way to call.
trait Caller {
    const NAME: &'static str;
    async fn call(&self, case: &Case) -> Seen;

    /// Whether the case can be said this way.
    fn says(_case: &Case) -> bool {
        true
    }

    /// What everybody sees, as far as it can be seen this way.
    fn sees(expected: Seen) -> Seen {
        expected
    }
}

/// `Tasks.Call`, or `Tasks.Submit` and `Tasks.Get`.
struct Grpc {
    client: Client,
    submits: bool,
}

fn grpc_task(case: &Case) -> NewTask {
    let given = &case.options;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let small = |value: &Value| u32::try_from(number(value)).unwrap();
    let map = |value: &Value| {
        value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
    };
    let options = TaskOptions {
        target: Some(Target {
            version: text(&given["target"]["version"]),
            group: text(&given["target"]["group"]),
            labels: map(&given["target"]["labels"]),
        }),
        priority: given["priority"].as_u64().map(|priority| u32::try_from(priority).unwrap()),
        run_at_unix_ms: given["run_at_unix_ms"].as_i64().unwrap_or_default(),
        queue_timeout_ms: number(&given["queue_timeout_ms"]),
        run_timeout_ms: number(&given["run_timeout_ms"]),
        deadline_ms: number(&given["deadline_ms"]),
        retry: Some(RetryPolicy {
            max_attempts: small(&given["retry"]["max_attempts"]),
            initial_backoff_ms: small(&given["retry"]["initial_backoff_ms"]),
            max_backoff_ms: small(&given["retry"]["max_backoff_ms"]),
        }),
        idempotency_key: text(&given["idempotency_key"]),
        durability: Durability::Unspecified.into(),
        retention_ms: number(&given["retention_ms"]),
        metadata: map(&given["metadata"]),
    };
    let content_type = if case.content_type == "application/json" { "" } else { case.content_type };
    NewTask {
        method: case.method.to_owned(),
        payload: Some(proto::Payload { data: case.data.clone(), content_type: content_type.to_owned() }),
        options: Some(options),
    }
}

fn of_grpc(outcome: Option<proto::Outcome>) -> Seen {
    match outcome.and_then(|outcome| outcome.kind).expect("no outcome") {
        outcome::Kind::Succeeded(payload) => Seen::Succeeded {
            content_type: if payload.content_type.is_empty() {
                "application/json".to_owned()
            } else {
                payload.content_type
            },
            data: payload.data,
        },
        outcome::Kind::Failed(error) => Seen::Failed {
            code: error.code,
            message: error.message,
            details: error.details.map(|details| details.data),
        },
        outcome::Kind::Cancelled(reason) => Seen::Cancelled(reason),
        outcome::Kind::Expired(which) => Seen::Expired(match ExpiredReason::try_from(which).unwrap() {
            ExpiredReason::QueueTimeout => "queue_timeout",
            ExpiredReason::Deadline => "deadline",
            ExpiredReason::Unspecified => panic!("unspecified"),
        }),
    }
}

impl Caller for Grpc {
    const NAME: &'static str = "gRPC";

    async fn call(&self, case: &Case) -> Seen {
        let refused = |error: CallError| Seen::Refused(refusal(error).reason);
        if !self.submits {
            return match soon(self.client.call_outcome(grpc_task(case))).await {
                Ok(answer) => of_grpc(answer.outcome),
                Err(error) => refused(error),
            };
        }
        match soon(self.client.submit(grpc_task(case))).await {
            Ok(accepted) => loop {
                let task =
                    soon(self.client.get_wait(&accepted.task_id, crate::harness::PATIENCE)).await.unwrap();
                if task.outcome.is_some() {
                    return of_grpc(task.outcome);
                }
            },
            Err(error) => refused(error),
        }
    }
}

/// `POST /v1/call`.
struct RestCall<'a>(&'a Server);

fn of_outcome(outcome: &Value) -> Seen {
    let (kind, value) = outcome.as_object().and_then(|kinds| kinds.iter().next()).expect("no outcome");
    match kind.as_str() {
        "failed" => Seen::Failed {
            code: value["code"].as_str().unwrap().to_owned(),
            message: value["message"].as_str().unwrap().to_owned(),
            // Numbers beyond the test's own parser are looked at elsewhere.
            details: value.get("details").map(|_| Bytes::from_static(b"[1e400]")),
        },
        "cancelled" => Seen::Cancelled(value.as_str().unwrap().to_owned()),
        "expired" if *value == "deadline" => Seen::Expired("deadline"),
        "expired" if *value == "queue_timeout" => Seen::Expired("queue_timeout"),
        _ => panic!("{outcome}"),
    }
}

/// What an answer says, a number that no parser here could keep taken out of it.
fn of_answer(answer: &Answer) -> Seen {
    if answer.status == 200 {
        let content_type = answer.header("content-type").to_owned();
        return Seen::Succeeded { content_type, data: answer.body.clone() };
    }
    let readable = Answer {
        status: answer.status,
        headers: answer.headers.clone(),
        body: answer.text().replace("1e400", "1").into(),
    };
    let reason = readable.reason();
    match readable.json().get("outcome") {
        Some(outcome) => of_outcome(outcome),
        None => Seen::Refused(reason),
    }
}

impl Caller for RestCall<'_> {
    const NAME: &'static str = "REST call";

    async fn call(&self, case: &Case) -> Seen {
        let mut query = Vec::new();
        let mut add = |name: &str, value: &Value, unit: &str| match value {
            Value::Null => {}
            Value::Object(pairs) => {
                query.extend(
                    pairs.iter().map(|(key, value)| format!("{name}={key}%3D{}", value.as_str().unwrap())),
                );
            }
            Value::String(text) => query.push(format!("{name}={}", text.replace('^', "%5E"))),
            number => query.push(format!("{name}={number}{unit}")),
        };
        let given = &case.options;
        add("version", &given["target"]["version"], "");
        add("group", &given["target"]["group"], "");
        add("label", &given["target"]["labels"], "");
        add("metadata", &given["metadata"], "");
        add("idempotency_key", &given["idempotency_key"], "");
        add("priority", &given["priority"], "");
        add("max_attempts", &given["retry"]["max_attempts"], "");
        add("run_at", &given["run_at_unix_ms"], "");
        add("initial_backoff", &given["retry"]["initial_backoff_ms"], "ms");
        add("max_backoff", &given["retry"]["max_backoff_ms"], "ms");
        for name in ["queue_timeout", "run_timeout", "deadline", "retention"] {
            add(name, &given[format!("{name}_ms")], "ms");
        }
        let target = format!("/v1/call/{}?{}", case.method.replace(' ', "%20"), query.join("&"));
        let content_type = [("content-type", case.content_type)];
        of_answer(&send(self.0, "POST", &target, &content_type, case.data.clone()).await)
    }
}

/// `POST /v1/tasks` and `GET /v1/tasks/{id}/result`.
struct RestTasks<'a>(&'a Server);

impl Caller for RestTasks<'_> {
    const NAME: &'static str = "REST tasks";

    async fn call(&self, case: &Case) -> Seen {
        // Written by hand, or the numbers would not survive.
        let payload = if case.content_type == "application/json" {
            String::from_utf8(case.data.to_vec()).unwrap()
        } else {
            assert_eq!(case.data, &b"\x00\xff"[..]);
            json!({"base64": "AP8=", "content_type": case.content_type}).to_string()
        };
        let body =
            format!(r#"{{"method":{},"options":{},"payload":{payload}}}"#, json!(case.method), case.options);
        let accepted = post(self.0, "/v1/tasks", body).await;
        if !matches!(accepted.status, 200 | 201) {
            return Seen::Refused(accepted.reason());
        }
        let id = accepted.json()["task_id"].take();
        of_answer(&get(self.0, &format!("/v1/tasks/{}/result?wait=300s", id.as_str().unwrap())).await)
    }
}

// --- ways to work -------------------------------------------------------------------------------------

/// An attempt, as a worker is told of it.
struct Attempt {
    task_id: String,
    lease: u64,
    number: u64,
    method: String,
    /// As the edge wrote it.
    payload: Bytes,
    content_type: String,
}

/// How a worker ends it.
enum End {
    Echo,
    Json(&'static str),
    Failed {
        code: &'static str,
        message: &'static str,
        details: Option<&'static str>,
        retryable: Option<bool>,
    },
}

const METHODS: [&str; 5] = ["echo", "fail", "flaky", "cancel", "drop"];
const CREDIT: u64 = 1_000;

/// A way to work.
trait Crew: Sized {
    const NAME: &'static str;
    async fn join(server: &Server) -> Self;
    async fn next(&mut self) -> Attempt;
    async fn end(&mut self, attempt: &Attempt, end: End);

    /// Whether such a worker can do what the case is about.
    fn serves(_case: &Case) -> bool {
        true
    }

    /// What everybody sees, as far as such a worker can say it.
    fn shows(expected: Seen) -> Seen {
        expected
    }
}

struct GrpcCrew(Hand);

impl Crew for GrpcCrew {
    const NAME: &'static str = "a gRPC worker";

    async fn join(server: &Server) -> Self {
        let mut hello = by_hand::hello("w", "echo", 100);
        hello.methods =
            METHODS.map(|name| proto::Method { name: name.to_owned(), ..proto::Method::default() }).to_vec();
        let hand = Hand::join(&server.url(), hello).await.unwrap();
        hand.credit(CREDIT);
        Self(hand)
    }

    async fn next(&mut self) -> Attempt {
        let assign = self.0.assigned().await;
        let payload = assign.payload.unwrap_or_default();
        Attempt {
            task_id: assign.task_id,
            lease: assign.lease,
            number: assign.attempt.into(),
            method: assign.method,
            payload: payload.data,
            content_type: payload.content_type,
        }
    }

    async fn end(&mut self, attempt: &Attempt, end: End) {
        let json =
            |text: &'static str| proto::Payload { data: Bytes::from(text), content_type: String::new() };
        let kind = match end {
            End::Echo => result::Kind::Succeeded(proto::Payload {
                data: attempt.payload.clone(),
                content_type: attempt.content_type.clone(),
            }),
            End::Json(text) => result::Kind::Succeeded(json(text)),
            End::Failed { code, message, details, retryable } => result::Kind::Failed(Failure {
                error: Some(TaskError {
                    code: code.to_owned(),
                    message: message.to_owned(),
                    details: details.map(json),
                }),
                retryable,
                retry_after_ms: 0,
            }),
        };
        self.0.results(vec![proto::Result { lease: attempt.lease, seq: 0, kind: Some(kind) }]);
    }
}

struct JsonCrew(JsonWorker);

impl Crew for JsonCrew {
    const NAME: &'static str = "a JSON worker";

    async fn join(server: &Server) -> Self {
        let methods = METHODS.map(|name| json!({ "name": name }));
        let hello = json!({"worker_id": "w", "pools": [{"concurrency": 100}], "methods": methods});
        let mut worker = JsonWorker::join(server, hello).await;
        worker.credit(CREDIT).await;
        Self(worker)
    }

    async fn next(&mut self) -> Attempt {
        loop {
            let text = self.0.hear_text().await;
            // The payload as it is written: it stands between these two.
            let Some((_, rest)) = text.split_once("\"payload\":") else { continue };
            let (payload, _) = rest.split_once(",\"metadata\":").unwrap();
            let payload = payload.split(",\"deadline_unix_ms\":").next().unwrap();
            let frame: Value = serde_json::from_str(&text.replace("1e400", "1")).unwrap();
            let assign = &frame["assign"][0];
            return Attempt {
                task_id: assign["task_id"].as_str().unwrap().to_owned(),
                lease: assign["lease"].as_u64().unwrap(),
                number: assign["attempt"].as_u64().unwrap(),
                method: assign["method"].as_str().unwrap().to_owned(),
                payload: Bytes::from(payload.to_owned()),
                content_type: String::new(),
            };
        }
    }

    async fn end(&mut self, attempt: &Attempt, end: End) {
        let said = match end {
            End::Echo => format!(r#""succeeded":{}"#, String::from_utf8(attempt.payload.to_vec()).unwrap()),
            End::Json(text) => format!(r#""succeeded":{text}"#),
            End::Failed { code, message, details, retryable } => {
                let details = details.map(|details| format!(r#","details":{details}"#)).unwrap_or_default();
                let retryable = retryable.map(|said| format!(r#","retryable":{said}"#)).unwrap_or_default();
                format!(
                    r#""failed":{{"error":{{"code":"{code}","message":"{message}"{details}}}{retryable}}}"#
                )
            }
        };
        let lease = attempt.lease;
        self.0.say_text(format!(r#"{{"results":[{{"lease":{lease},{said}}}]}}"#)).await;
    }
}

/// Does as the methods' names say.
async fn work<C: Crew>(mut crew: C, client: Client) {
    loop {
        let attempt = crew.next().await;
        let end = match attempt.method.as_str() {
            "echo" => End::Echo,
            "fail" => {
                let details = Some("[1e400]");
                End::Failed { code: "odd", message: "not even", details, retryable: Some(false) }
            }
            "flaky" if attempt.number == 1 => {
                End::Failed { code: "busy", message: "try again", details: None, retryable: None }
            }
            "flaky" => End::Json("2"),
            "cancel" => {
                client.cancel(&attempt.task_id, "no more").await.unwrap();
                continue;
            }
            "drop" => continue,
            other => panic!("nobody serves {other}"),
        };
        crew.end(&attempt, end).await;
    }
}

// --- the comparison -----------------------------------------------------------------------------------

async fn check<Way: Caller, C: Crew>(way: &Way) {
    let mut compared = 0;
    for (mut case, expected) in cases() {
        if !Way::says(&case) || !C::serves(&case) {
            continue;
        }
        let expected = Way::sees(C::shows(expected));
        // Keys of different ways must not meet.
        if let Some(key) = case.options["idempotency_key"].as_str().filter(|key| key.len() == 1) {
            case.options["idempotency_key"] =
                json!(format!("{key} of {} by {}", Way::NAME, C::NAME).replace(' ', "-"));
        }
        let mut seen = soon(way.call(&case)).await;
        // How long it ran differs.
        if let Seen::Failed { code, message, .. } = &mut seen
            && code == "run_timeout"
        {
            message.clear();
        }
        assert_eq!(seen, expected, "{} and {}: {case:?}", Way::NAME, C::NAME);
        compared += 1;
    }
    assert!(compared >= 5, "{} and {}: only {compared} cases were compared", Way::NAME, C::NAME);
}

async fn all_ways<C: Crew>() {
    let server = Server::builder().args(["--max-payload-bytes", "4096", "--max-queue-tasks", "1"]).start();
    let client = client(&server).await;
    let crew = C::join(&server).await;
    // Fills the queue of a method that nobody serves.
    client.task("queue").submit().await.unwrap();
    let compare = async {
        check::<_, C>(&Grpc { client: client.clone(), submits: false }).await;
        check::<_, C>(&Submits(Grpc { client: client.clone(), submits: true })).await;
        check::<_, C>(&RestCall(&server)).await;
        check::<_, C>(&RestTasks(&server)).await;
        check::<_, C>(&LegacyCaller(&server)).await;
    };
    tokio::select! {
        () = compare => {}
        () = work(crew, client.clone()) => {}
    }
}

/// As [`Grpc`], under its own name.
struct Submits(Grpc);

impl Caller for Submits {
    const NAME: &'static str = "gRPC Submit";

    async fn call(&self, case: &Case) -> Seen {
        self.0.call(case).await
    }
}

#[tokio::test]
async fn every_way_to_call_sees_the_same_of_a_grpc_worker() {
    all_ways::<GrpcCrew>().await;
}

#[tokio::test]
async fn every_way_to_call_sees_the_same_of_a_json_worker() {
    all_ways::<JsonCrew>().await;
}

#[tokio::test]
async fn every_way_to_call_sees_the_same_of_a_legacy_worker() {
    all_ways::<LegacyCrew>().await;
}
