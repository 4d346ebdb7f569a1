//! The JSON that `--json` prints. These shapes are a contract, described in docs/cli.md: members are added, never
//! renamed. They use the words of the .proto; what is not set is left out.

use std::collections::{BTreeMap, HashMap};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use crewcall_sdk::proto::{self, ExpiredReason, TaskState, outcome};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::json;

/// A payload: as JSON if it is JSON, else as bytes.
#[derive(Debug)]
pub(crate) enum Data {
    Json(Box<RawValue>),
    Bytes(Bytes),
}

/// A payload that is not JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Bytes {
    pub(crate) content_type: String,
    pub(crate) base64: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) method: String,
    pub(crate) state: &'static str,
    pub(crate) attempt: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) worker_id: String,
    pub(crate) created_at_unix_ms: i64,
    pub(crate) changed_at_unix_ms: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) run_at_unix_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) options: Option<Options>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) progress: Option<Progress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload_bytes: Option<Bytes>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) attempts: Vec<Attempt>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Options {
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(skip_serializing_if = "is_zero")]
    queue_timeout_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    run_timeout_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    deadline_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max_attempts: u32,
    #[serde(skip_serializing_if = "is_zero")]
    initial_backoff_ms: u32,
    #[serde(skip_serializing_if = "is_zero")]
    max_backoff_ms: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    idempotency_key: String,
    durable: bool,
    #[serde(skip_serializing_if = "is_zero")]
    retention_ms: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Progress {
    pub(crate) current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) total: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// `succeeded`, `failed`, `cancelled` or `expired`.
    pub(crate) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result_bytes: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<TaskError>,
    /// Why it was cancelled, or which deadline passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct TaskError {
    pub(crate) code: String,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) details: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) details_bytes: Option<Bytes>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Attempt {
    pub(crate) number: u32,
    pub(crate) worker_id: String,
    pub(crate) started_at_unix_ms: i64,
    pub(crate) ended_at_unix_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<TaskError>,
}

/// The answer of `call`.
#[derive(Debug, Serialize)]
pub(crate) struct Called {
    pub(crate) task_id: String,
    /// Not there when the wait elapsed first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<Outcome>,
}

/// One line of `submit`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Submitted {
    Accepted { task_id: String, attached: bool },
    Refused { line: u64, refusal: Refusal },
}

#[derive(Debug, Serialize)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) retry_after_ms: u64,
}

/// One line of `watch`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    Task {
        task: Box<Task>,
    },
    Progress {
        task_id: String,
        progress: Progress,
    },
    Chunk {
        task_id: String,
        attempt: u32,
        index: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<Box<RawValue>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        data_bytes: Option<Bytes>,
    },
}

#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    pub(crate) summary: String,
    pub(crate) details: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<Task>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Worker {
    pub(crate) id: String,
    pub(crate) session_id: String,
    pub(crate) state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) group: String,
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) sdk: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) host: String,
    pub(crate) peer: String,
    pub(crate) joined_at_unix_ms: i64,
    pub(crate) seen_at_unix_ms: i64,
    pub(crate) pools: Vec<Pool>,
    pub(crate) methods: Vec<String>,
    pub(crate) finished: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) concurrency: u32,
    pub(crate) in_flight: u32,
    pub(crate) credit: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Method {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) workers: u32,
    pub(crate) ready: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pause: Option<Pause>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) summary: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) docs: String,
    /// Left out when it is not given, or is no JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input_schema: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_schema: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) examples: Vec<Box<RawValue>>,
}

/// Why a method's tasks wait, and since when.
#[derive(Debug, Serialize)]
pub(crate) struct Pause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) by: String,
    pub(crate) since_unix_ms: i64,
}

/// How much is used of what there is.
#[derive(Debug, Serialize)]
pub(crate) struct Room {
    pub(crate) max_tasks: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) max_memory_bytes: u64,
    pub(crate) max_dead: u64,
    pub(crate) store_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) max_store_bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) store_full: String,
}

impl From<proto::Room> for Room {
    fn from(room: proto::Room) -> Self {
        let proto::Room {
            max_tasks,
            memory_bytes,
            max_memory_bytes,
            max_dead,
            store_bytes,
            max_store_bytes,
            store_full,
        } = room;
        Self { max_tasks, memory_bytes, max_memory_bytes, max_dead, store_bytes, max_store_bytes, store_full }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Stats {
    pub(crate) tasks: BTreeMap<&'static str, u64>,
    pub(crate) totals: BTreeMap<&'static str, u64>,
    pub(crate) paused_methods: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) room: Option<Room>,
    pub(crate) workers: u32,
    pub(crate) uptime_ms: u64,
    pub(crate) version: String,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

fn sorted(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

/// JSON text that comes from elsewhere; `None` when it is not there or not JSON.
fn raw(text: &str) -> Option<Box<RawValue>> {
    json::check(text.as_bytes()).ok().map(ToOwned::to_owned)
}

impl Data {
    /// As JSON if it is, whatever it calls itself; an empty payload without a type is null.
    pub(crate) fn of(payload: &proto::Payload) -> Self {
        if payload.data.is_empty() && payload.content_type.is_empty() {
            return Self::Json(RawValue::NULL.to_owned());
        }
        match json::check(&payload.data) {
            Ok(json) if payload.content_type.is_empty() || payload.content_type.contains("json") => {
                Self::Json(json.to_owned())
            }
            _ => Self::Bytes(Bytes {
                content_type: payload.content_type.clone(),
                base64: STANDARD.encode(&payload.data),
            }),
        }
    }

    fn split(self) -> (Option<Box<RawValue>>, Option<Bytes>) {
        match self {
            Self::Json(json) => (Some(json), None),
            Self::Bytes(bytes) => (None, Some(bytes)),
        }
    }
}

fn split(payload: Option<&proto::Payload>) -> (Option<Box<RawValue>>, Option<Bytes>) {
    payload.map_or((None, None), |payload| Data::of(payload).split())
}

/// The word for a state, the same as in the UI and the docs.
pub(crate) fn state(state: TaskState) -> &'static str {
    match state {
        TaskState::Unspecified => "unknown",
        TaskState::Delayed => "delayed",
        TaskState::Ready => "ready",
        TaskState::Leased => "leased",
        TaskState::Finished => "finished",
        TaskState::Dead => "dead",
        TaskState::Cancelled => "cancelled",
        TaskState::Expired => "expired",
    }
}

impl From<proto::Task> for Task {
    fn from(task: proto::Task) -> Self {
        let (payload, payload_bytes) = split(task.payload.as_ref());
        Self {
            state: state(task.state()),
            id: task.id,
            method: task.method,
            attempt: task.attempt,
            worker_id: task.worker_id,
            created_at_unix_ms: task.created_at_unix_ms,
            changed_at_unix_ms: task.changed_at_unix_ms,
            run_at_unix_ms: task.run_at_unix_ms,
            options: task.options.map(Into::into),
            progress: task.progress.map(Into::into),
            outcome: task.outcome.and_then(|outcome| outcome.kind).map(Into::into),
            payload,
            payload_bytes,
            attempts: task.attempts.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<proto::TaskOptions> for Options {
    fn from(options: proto::TaskOptions) -> Self {
        let durable = options.durability() == proto::Durability::Durable;
        let (target, retry) = (options.target.unwrap_or_default(), options.retry.unwrap_or_default());
        Self {
            version: target.version,
            group: target.group,
            labels: sorted(target.labels),
            priority: options.priority,
            queue_timeout_ms: options.queue_timeout_ms,
            run_timeout_ms: options.run_timeout_ms,
            deadline_ms: options.deadline_ms,
            max_attempts: retry.max_attempts,
            initial_backoff_ms: retry.initial_backoff_ms,
            max_backoff_ms: retry.max_backoff_ms,
            idempotency_key: options.idempotency_key,
            durable,
            retention_ms: options.retention_ms,
            metadata: sorted(options.metadata),
        }
    }
}

impl From<proto::Progress> for Progress {
    fn from(progress: proto::Progress) -> Self {
        Self { current: progress.current, total: progress.total, message: progress.message }
    }
}

impl From<outcome::Kind> for Outcome {
    fn from(kind: outcome::Kind) -> Self {
        match kind {
            outcome::Kind::Succeeded(payload) => {
                let (result, result_bytes) = Data::of(&payload).split();
                Self { kind: "succeeded", result, result_bytes, ..Self::default() }
            }
            outcome::Kind::Failed(error) => {
                Self { kind: "failed", error: Some(error.into()), ..Self::default() }
            }
            outcome::Kind::Cancelled(reason) => {
                Self { kind: "cancelled", reason: Some(reason), ..Self::default() }
            }
            outcome::Kind::Expired(reason) => {
                let reason = match ExpiredReason::try_from(reason).unwrap_or_default() {
                    ExpiredReason::QueueTimeout => "queue_timeout",
                    ExpiredReason::Deadline => "deadline",
                    ExpiredReason::Unspecified => "unknown",
                };
                Self { kind: "expired", reason: Some(reason.to_owned()), ..Self::default() }
            }
        }
    }
}

impl From<proto::TaskError> for TaskError {
    fn from(error: proto::TaskError) -> Self {
        let (details, details_bytes) = split(error.details.as_ref());
        Self { code: error.code, message: error.message, details, details_bytes }
    }
}

impl From<proto::Attempt> for Attempt {
    fn from(attempt: proto::Attempt) -> Self {
        Self {
            number: attempt.number,
            worker_id: attempt.worker_id,
            started_at_unix_ms: attempt.started_at_unix_ms,
            ended_at_unix_ms: attempt.ended_at_unix_ms,
            error: attempt.error.map(Into::into),
        }
    }
}

impl From<crewcall_sdk::WatchEvent> for Event {
    fn from(event: crewcall_sdk::WatchEvent) -> Self {
        match event {
            crewcall_sdk::WatchEvent::Task(task) => Self::Task { task: Box::new((*task).into()) },
            crewcall_sdk::WatchEvent::Progress(event) => {
                Self::Progress { task_id: event.task_id, progress: event.progress.unwrap_or_default().into() }
            }
            crewcall_sdk::WatchEvent::Chunk(event) => {
                let (data, data_bytes) = split(event.data.as_ref());
                let (attempt, index) = (event.attempt, event.index);
                Self::Chunk { task_id: event.task_id, attempt, index, data, data_bytes }
            }
        }
    }
}

impl From<proto::ExplainResponse> for Explanation {
    fn from(answer: proto::ExplainResponse) -> Self {
        Self { summary: answer.summary, details: answer.details, task: answer.task.map(Into::into) }
    }
}

impl From<proto::WorkerStatus> for Worker {
    fn from(worker: proto::WorkerStatus) -> Self {
        Self {
            state: match worker.state() {
                proto::WorkerState::Unspecified => "unknown",
                proto::WorkerState::Active => "active",
                proto::WorkerState::Draining => "draining",
                proto::WorkerState::Away => "away",
            },
            id: worker.id,
            session_id: worker.session_id,
            group: worker.group,
            labels: sorted(worker.labels),
            version: worker.version,
            sdk: worker.sdk,
            host: worker.host,
            peer: worker.peer,
            joined_at_unix_ms: worker.joined_at_unix_ms,
            seen_at_unix_ms: worker.seen_at_unix_ms,
            pools: worker.pools.into_iter().map(Into::into).collect(),
            methods: worker.methods,
            finished: worker.finished,
        }
    }
}

impl From<proto::PoolStatus> for Pool {
    fn from(pool: proto::PoolStatus) -> Self {
        let proto::PoolStatus { name, concurrency, in_flight, credit } = pool;
        Self { name, concurrency, in_flight, credit }
    }
}

impl From<proto::MethodStatus> for Method {
    fn from(status: proto::MethodStatus) -> Self {
        let method = status.method.unwrap_or_default();
        Self {
            name: method.name,
            version: method.version,
            workers: status.workers,
            ready: status.ready,
            pause: status.pause.map(|pause| Pause {
                reason: pause.reason,
                by: pause.by,
                since_unix_ms: pause.since_unix_ms,
            }),
            summary: method.summary,
            docs: method.docs,
            input_schema: raw(&method.input_schema),
            output_schema: raw(&method.output_schema),
            examples: method.examples.iter().filter_map(|example| raw(example)).collect(),
        }
    }
}

impl From<proto::StatsResponse> for Stats {
    fn from(stats: proto::StatsResponse) -> Self {
        Self {
            tasks: BTreeMap::from([
                ("delayed", stats.delayed),
                ("ready", stats.ready),
                ("leased", stats.leased),
                ("finished", stats.finished),
                ("dead", stats.dead),
                ("cancelled", stats.cancelled),
                ("expired", stats.expired),
            ]),
            totals: BTreeMap::from([
                ("submitted", stats.submitted_total),
                ("finished", stats.finished_total),
                ("failed", stats.failed_total),
                ("cancelled", stats.cancelled_total),
                ("expired", stats.expired_total),
                ("retried", stats.retried_total),
                ("refused", stats.refused_total),
            ]),
            paused_methods: stats.paused_methods,
            room: stats.room.map(Into::into),
            workers: stats.workers,
            uptime_ms: stats.uptime_ms,
            version: stats.version,
        }
    }
}
