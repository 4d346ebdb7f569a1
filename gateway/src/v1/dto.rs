//! The JSON documents of REST v1. Their fields are those of `proto/crewcall/v1` under the same names; what
//! is not set is left out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crewcall::clock::Timestamp;
use crewcall::error::{Error, Result};
use crewcall::scheduler::{Explanation, MethodView, Stats, TaskView, WorkerState, WorkerView};
use crewcall::task::{
    Attempt, Durability, ExpiredReason, Method, Outcome, Payload, Progress, State, StateName, TaskError,
    TaskOptions,
};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::orders::{PauseDto, RoomDto};
use super::payload::Embedded;

/// Which verb's defaults apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Call,
    Submit,
}

// --- in -----------------------------------------------------------------------------------------------

/// What to run.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewTask)]
pub(super) struct NewTaskDto<'a> {
    /// 1 to 256 bytes, without control characters and without white space at either end.
    pub(super) method: String,
    /// Any JSON value, kept as it is written; or an envelope of base64. Left out: nothing.
    #[serde(default, borrow, deserialize_with = "super::payload::present")]
    #[schema(value_type = PayloadDto, required = false)]
    pub(super) payload: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "super::object::maybe")]
    pub(super) options: Option<TaskOptionsDto>,
}

/// One task, or a list of 1 to 10,000.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, clippy::large_enum_variant)] // for the schema
#[schema(as = NewTasks)]
pub(super) enum NewTasksDto<'a> {
    One(NewTaskDto<'a>),
    List(Vec<NewTaskDto<'a>>),
}

/// The answer for one task, or for a list.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code)] // for the schema
#[schema(as = SubmitAnswer)]
pub(super) enum SubmitAnswerDto {
    One(AcceptedDto),
    List(SubmittedDto),
}

/// How a task is to be run. Every field may be left out; 0 means not set, as in the gRPC API.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = TaskOptions)]
pub(super) struct TaskOptionsDto {
    #[serde(skip_serializing_if = "TargetDto::is_empty", deserialize_with = "super::object::one")]
    pub(super) target: TargetDto,
    /// 0 to 9, higher first. Default 4. A waiting task gains one step every 30 s.
    #[schema(maximum = 9)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<u32>,
    /// Not before this time. At most a year ahead.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) run_at_unix_ms: u64,
    /// Longest wait for a worker, counted anew from each time the task becomes ready; then it expires.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) queue_timeout_ms: u64,
    /// Longest run of one attempt; then the worker is told to stop and the attempt counts as failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) run_timeout_ms: u64,
    /// From submission to outcome, all attempts and waits included; then it expires.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) deadline_ms: u64,
    #[serde(deserialize_with = "super::object::one")]
    pub(super) retry: RetryPolicyDto,
    /// At most 256 bytes. While a task with this key and method is known, a second one is not made.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) idempotency_key: String,
    /// Default: ephemeral for a call, durable for a submitted task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) durability: Option<DurabilityDto>,
    /// How long the outcome can be fetched after the end. At most 30 days.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) retention_ms: u64,
    /// Passed to the worker unchanged. At most 32 entries, 4 KiB in all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) metadata: BTreeMap<String, String>,
}

/// Which workers may run a task. All given conditions must hold.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = Target)]
pub(super) struct TargetDto {
    /// Semantic version range of the method, such as `^1.2`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) version: String,
    /// Only workers of this group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) group: String,
    /// Only workers that carry all of these labels. At most 16.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) labels: BTreeMap<String, String>,
}

impl TargetDto {
    fn is_empty(&self) -> bool {
        self.version.is_empty() && self.group.is_empty() && self.labels.is_empty()
    }
}

/// What to do when an attempt fails.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = RetryPolicy)]
pub(super) struct RetryPolicyDto {
    /// Attempts in all, the first included. Default: 1 for a call, 5 for a submitted task. At most 1000.
    pub(super) max_attempts: u32,
    /// Wait before the second attempt. Default 1000, at most a day.
    pub(super) initial_backoff_ms: u64,
    /// The wait doubles with each attempt up to this. Default 60000, at most a day.
    pub(super) max_backoff_ms: u64,
}

/// What a task's life must survive.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Durability)]
pub(super) enum DurabilityDto {
    /// A restart of the server loses it.
    Ephemeral,
    /// Acknowledged only once the store has it.
    Durable,
}

impl TaskOptionsDto {
    /// The options in full, and the idempotency key. The shared default is returned when nothing is set, which the scheduler need
    /// not check.
    ///
    /// # Errors
    /// `invalid_field` for what cannot be said in the words of the core; the scheduler checks the rest.
    pub(super) fn fill_in(self, verb: Verb) -> Result<(Arc<TaskOptions>, String)> {
        let default = match verb {
            Verb::Call => TaskOptions::shared_call(),
            Verb::Submit => TaskOptions::shared_submit(),
        };
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let priority = self.priority.map_or(Ok(default.priority), |priority| {
            u8::try_from(priority)
                .map_err(|_| Error::invalid("options.priority", format_args!("is {priority}; at most 9")))
        })?;
        let retry = self.retry;
        let options = TaskOptions {
            target: crewcall::task::Target {
                version: self.target.version,
                group: self.target.group,
                labels: self.target.labels,
            },
            priority,
            run_at: (self.run_at_unix_ms > 0).then_some(Timestamp(self.run_at_unix_ms)),
            queue_timeout_ms: self.queue_timeout_ms,
            run_timeout_ms: self.run_timeout_ms,
            deadline_ms: self.deadline_ms,
            retry: crewcall::task::RetryPolicy {
                max_attempts: match retry.max_attempts {
                    0 => default.retry.max_attempts,
                    given => given,
                },
                initial_backoff_ms: or(retry.initial_backoff_ms, default.retry.initial_backoff_ms),
                max_backoff_ms: or(retry.max_backoff_ms, default.retry.max_backoff_ms),
            },
            durability: match self.durability {
                Some(DurabilityDto::Ephemeral) => Durability::Ephemeral,
                Some(DurabilityDto::Durable) => Durability::Durable,
                None => default.durability,
            },
            retention_ms: (self.retention_ms > 0).then_some(self.retention_ms),
            metadata: self.metadata,
        };
        let options = if options == *default { default } else { Arc::new(options) };
        Ok((options, self.idempotency_key))
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The name of a state.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TaskState)]
#[allow(dead_code)] // the schema of what `StateName::as_str` writes
pub(super) enum TaskStateDto {
    Delayed,
    Ready,
    Leased,
    Finished,
    Dead,
    Cancelled,
    Expired,
}

// --- out ----------------------------------------------------------------------------------------------

/// As seen by the description of the API.
pub(super) type PayloadDto = Embedded<'static>;

impl PartialSchema for Embedded<'_> {
    fn schema() -> RefOr<Schema> {
        let text = "Any JSON value: the payload itself, as it was written. A payload that is not JSON, or looks like \
                    this object, is `{\"base64\": \"...\", \"content_type\": \"...\"}`.";
        // Without a type: anything.
        ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(text)).into()
    }
}

impl ToSchema for Embedded<'_> {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Payload")
    }
}

/// A task as anyone may see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Task)]
pub(super) struct TaskDto<'a> {
    #[schema(format = "uuid")]
    id: String,
    method: &'a str,
    #[schema(value_type = TaskStateDto)]
    state: &'static str,
    /// The current attempt, from 1; 0 before the first.
    attempt: u32,
    /// The worker that holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_id: Option<&'a str>,
    created_at_unix_ms: u64,
    /// When it entered its present state.
    changed_at_unix_ms: u64,
    /// When it will leave the state delayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at_unix_ms: Option<u64>,
    /// As given, with defaults filled in.
    options: TaskOptionsDto,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<ProgressDto<'a>>,
    /// Set once the task has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<OutcomeDto<'a>>,
    /// Only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = PayloadDto, required = false)]
    payload: Option<Embedded<'a>>,
    /// Finished attempts that failed, oldest first; the last 16. Only of a single task.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<AttemptDto<'a>>>,
}

/// How much of a task to show.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shown {
    pub(super) payload: bool,
    pub(super) attempts: bool,
}

impl<'a> TaskDto<'a> {
    pub(super) fn new(view: &'a TaskView, shown: Shown) -> Self {
        let (worker_id, run_at) = match &view.state {
            State::Leased { worker_id, .. } => (Some(&**worker_id), None),
            State::Delayed { until } => (None, Some(until.0)),
            State::Ready | State::Ended(_) => (None, None),
        };
        Self {
            id: view.id.to_string(),
            method: &view.method,
            state: view.state.name().as_str(),
            attempt: view.attempt,
            worker_id,
            created_at_unix_ms: view.created_at.0,
            changed_at_unix_ms: view.changed_at.0,
            run_at_unix_ms: run_at,
            options: options_out(&view.options, &view.idempotency_key),
            progress: view.progress.as_ref().map(ProgressDto::new),
            outcome: view.state.outcome().map(OutcomeDto::new),
            payload: view.payload.as_ref().filter(|_| shown.payload).map(Embedded),
            attempts: shown.attempts.then(|| view.attempts.iter().map(AttemptDto::new).collect()),
        }
    }
}

fn options_out(options: &TaskOptions, idempotency_key: &str) -> TaskOptionsDto {
    TaskOptionsDto {
        target: TargetDto {
            version: options.target.version.clone(),
            group: options.target.group.clone(),
            labels: options.target.labels.clone(),
        },
        priority: Some(options.priority.into()),
        run_at_unix_ms: options.run_at.map_or(0, |at| at.0),
        queue_timeout_ms: options.queue_timeout_ms,
        run_timeout_ms: options.run_timeout_ms,
        deadline_ms: options.deadline_ms,
        retry: RetryPolicyDto {
            max_attempts: options.retry.max_attempts,
            initial_backoff_ms: options.retry.initial_backoff_ms,
            max_backoff_ms: options.retry.max_backoff_ms,
        },
        idempotency_key: idempotency_key.to_owned(),
        durability: Some(match options.durability {
            Durability::Ephemeral => DurabilityDto::Ephemeral,
            Durability::Durable => DurabilityDto::Durable,
        }),
        retention_ms: options.retention_ms.unwrap_or_default(),
        metadata: options.metadata.clone(),
    }
}

/// How a task ended: exactly one of these.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Outcome)]
pub(super) enum OutcomeDto<'a> {
    /// What the handler returned.
    Succeeded(Embedded<'a>),
    /// The last attempt's error.
    Failed(TaskErrorDto<'a>),
    /// Cancelled, with the reason given.
    Cancelled(&'a str),
    /// The deadline that passed: `queue_timeout` or `deadline`.
    Expired(&'static str),
}

impl<'a> OutcomeDto<'a> {
    pub(super) fn new(outcome: &'a Outcome) -> Self {
        match outcome {
            Outcome::Succeeded(payload) => Self::Succeeded(Embedded(payload)),
            Outcome::Failed(error) => Self::Failed(TaskErrorDto::new(error)),
            Outcome::Cancelled(reason) => Self::Cancelled(reason),
            Outcome::Expired(ExpiredReason::QueueTimeout) => Self::Expired("queue_timeout"),
            Outcome::Expired(ExpiredReason::Deadline) => Self::Expired("deadline"),
        }
    }
}

/// Why an attempt, and in the end a task, failed.
#[derive(Serialize, ToSchema)]
#[schema(as = TaskError)]
pub(super) struct TaskErrorDto<'a> {
    /// For programs: `handler_error`, `worker_lost`, `run_timeout`, or what the handler chose.
    code: &'a str,
    /// For people.
    message: &'a str,
    /// More, as handler and caller agree.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = PayloadDto, required = false)]
    details: Option<Embedded<'a>>,
}

impl<'a> TaskErrorDto<'a> {
    fn new(error: &'a TaskError) -> Self {
        Self { code: &error.code, message: &error.message, details: error.details.as_ref().map(Embedded) }
    }
}

/// The latest word from a running handler.
#[derive(Serialize, ToSchema)]
#[schema(as = Progress)]
pub(super) struct ProgressDto<'a> {
    /// Done so far, in the handler's own unit.
    current: u64,
    /// Of so much. 0 means unknown.
    total: u64,
    message: &'a str,
}

impl<'a> ProgressDto<'a> {
    pub(super) fn new(progress: &'a Progress) -> Self {
        Self { current: progress.current, total: progress.total, message: &progress.message }
    }
}

/// One finished try.
#[derive(Serialize, ToSchema)]
#[schema(as = Attempt)]
struct AttemptDto<'a> {
    number: u32,
    worker_id: &'a str,
    started_at_unix_ms: u64,
    ended_at_unix_ms: u64,
    error: TaskErrorDto<'a>,
}

impl<'a> AttemptDto<'a> {
    fn new(attempt: &'a Attempt) -> Self {
        Self {
            number: attempt.number,
            worker_id: &attempt.worker_id,
            started_at_unix_ms: attempt.started_at.0,
            ended_at_unix_ms: attempt.ended_at.0,
            error: TaskErrorDto::new(&attempt.error),
        }
    }
}

/// A task that was accepted.
#[derive(Serialize, ToSchema)]
#[schema(as = Accepted)]
pub(super) struct AcceptedDto {
    #[schema(format = "uuid")]
    pub(super) task_id: String,
    /// An earlier task with the same idempotency key was there already, and this is its id.
    pub(super) attached: bool,
    pub(super) links: LinksDto,
}

/// Where to go on.
#[derive(Serialize, ToSchema)]
#[schema(as = Links)]
pub(super) struct LinksDto {
    #[serde(rename = "self")]
    task: String,
    events: String,
    result: String,
}

impl LinksDto {
    pub(super) fn new(id: &str) -> Self {
        let task = format!("/v1/tasks/{id}");
        Self { events: format!("{task}/events"), result: format!("{task}/result"), task }
    }
}

/// The answer to a list of tasks.
#[derive(Serialize, ToSchema)]
#[schema(as = Submitted)]
pub(super) struct SubmittedDto {
    /// One for each task, in the order of the request.
    pub(super) results: Vec<SubmitResultDto>,
}

/// One task's fate.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = SubmitResult)]
pub(super) enum SubmitResultDto {
    Accepted {
        #[schema(format = "uuid")]
        task_id: String,
        /// An earlier task with the same idempotency key was there already, and this is its id.
        attached: bool,
    },
    Refused {
        refusal: RefusalDto,
    },
}

/// Why one item was refused.
#[derive(Serialize, ToSchema)]
#[schema(as = Refusal)]
pub(super) struct RefusalDto {
    /// The HTTP status that the item alone would have had.
    pub(super) status: u16,
    /// Stable, for programs.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) message: String,
    /// When waiting helps: how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retry_after_ms: Option<u64>,
}

/// A page of tasks, newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = TaskPage)]
pub(super) struct TaskPageDto<'a> {
    pub(super) tasks: Vec<TaskDto<'a>>,
    /// Give it as `page` to go on. Left out on the last page. A page can be short, even empty, and still
    /// have a next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_page: Option<String>,
}

/// Why a task is where it is.
#[derive(Serialize, ToSchema)]
#[schema(as = Explanation)]
pub(super) struct ExplanationDto<'a> {
    task: TaskDto<'a>,
    /// One sentence: the state and its cause.
    summary: &'a str,
    /// The facts behind it, the decisive one first.
    details: &'a [String],
}

impl<'a> ExplanationDto<'a> {
    pub(super) fn new(explanation: &'a Explanation) -> Self {
        Self {
            task: TaskDto::new(&explanation.task, Shown::default()),
            summary: &explanation.summary,
            details: &explanation.details,
        }
    }
}

/// Connected workers, and those that may come back, by id.
#[derive(Serialize, ToSchema)]
#[schema(as = Workers)]
pub(super) struct WorkersDto<'a> {
    pub(super) workers: Vec<WorkerDto<'a>>,
}

/// A worker.
#[derive(Serialize, ToSchema)]
#[schema(as = WorkerStatus)]
pub(super) struct WorkerDto<'a> {
    id: &'a str,
    session_id: String,
    /// `active`; `draining`: gets no more work; `away`: its stream broke, its leases wait for it.
    state: &'static str,
    group: &'a str,
    labels: &'a BTreeMap<String, String>,
    version: &'a str,
    sdk: &'a str,
    host: &'a str,
    /// Address that it connected from.
    peer: &'a str,
    joined_at_unix_ms: u64,
    /// When anything was last heard.
    seen_at_unix_ms: u64,
    pools: Vec<PoolDto<'a>>,
    /// Names, with `@version` where one was given.
    methods: Vec<String>,
    /// Results accepted from it since it joined.
    finished: u64,
}

/// A share of a worker's capacity.
#[derive(Serialize, ToSchema)]
#[schema(as = PoolStatus)]
struct PoolDto<'a> {
    name: &'a str,
    concurrency: u32,
    in_flight: u32,
    /// Credit not used yet.
    credit: u64,
}

impl<'a> WorkerDto<'a> {
    pub(super) fn new(worker: &'a WorkerView) -> Self {
        let pools = worker.pools.iter().map(|pool| PoolDto {
            name: &pool.name,
            concurrency: pool.concurrency,
            in_flight: pool.in_flight,
            credit: pool.credit,
        });
        let methods = worker.methods.iter().map(|method| match method.version_text.as_str() {
            "" => method.name.to_string(),
            version => format!("{}@{version}", method.name),
        });
        Self {
            id: &worker.id,
            session_id: worker.session.0.to_string(),
            state: match worker.state {
                WorkerState::Active => "active",
                WorkerState::Draining => "draining",
                WorkerState::Away => "away",
            },
            group: &worker.group,
            labels: &worker.labels,
            version: &worker.version,
            sdk: &worker.sdk,
            host: &worker.host,
            peer: &worker.peer,
            joined_at_unix_ms: worker.joined_at.0,
            seen_at_unix_ms: worker.seen_at.0,
            pools: pools.collect(),
            methods: methods.collect(),
            finished: worker.finished,
        }
    }
}

/// Methods that live workers serve, or that tasks wait for, by name and version.
#[derive(Serialize, ToSchema)]
#[schema(as = Methods)]
pub(super) struct MethodsDto<'a> {
    pub(super) methods: Vec<MethodStatusDto<'a>>,
}

/// A method.
#[derive(Serialize, ToSchema)]
#[schema(as = MethodStatus)]
pub(super) struct MethodStatusDto<'a> {
    /// As registered by the worker that joined last. Only `name` is set when no worker serves it.
    method: MethodDto<'a>,
    /// Live workers that serve this version.
    workers: u32,
    /// Tasks of the method, of any version, that wait for a worker.
    ready: u64,
    /// Set while they wait because an operator says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause: Option<PauseDto>,
}

/// A function that workers serve, in the words of a worker: untrusted text.
#[derive(Serialize, ToSchema)]
#[schema(as = Method)]
struct MethodDto<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    /// One line.
    #[serde(skip_serializing_if = "str::is_empty")]
    summary: &'a str,
    /// Markdown. Show it with all HTML made inert.
    #[serde(skip_serializing_if = "str::is_empty")]
    docs: &'a str,
    /// JSON Schema of the payload, as text.
    #[serde(skip_serializing_if = "str::is_empty")]
    input_schema: &'a str,
    /// JSON Schema of the result, as text.
    #[serde(skip_serializing_if = "str::is_empty")]
    output_schema: &'a str,
    /// Payloads to try, as JSON text.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    examples: &'a [String],
    /// The pool it runs in.
    #[serde(skip_serializing_if = "str::is_empty")]
    pool: &'a str,
}

impl<'a> MethodStatusDto<'a> {
    pub(super) fn new(view: &'a MethodView) -> Self {
        let method = match view.method.as_deref() {
            Some(method) => MethodDto::new(method),
            None => MethodDto {
                name: &view.name,
                version: "",
                summary: "",
                docs: "",
                input_schema: "",
                output_schema: "",
                examples: &[],
                pool: "",
            },
        };
        let pause = view.paused.as_ref().map(PauseDto::new);
        Self { method, workers: view.workers, ready: view.ready, pause }
    }
}

impl<'a> MethodDto<'a> {
    fn new(method: &'a Method) -> Self {
        Self {
            name: &method.name,
            version: &method.version_text,
            summary: &method.summary,
            docs: &method.docs,
            input_schema: &method.input_schema,
            output_schema: &method.output_schema,
            examples: &method.examples,
            pool: &method.pool,
        }
    }
}

/// Counts of tasks and workers.
#[derive(Serialize, ToSchema)]
#[schema(as = Stats)]
pub(super) struct StatsDto {
    /// Tasks by state, now.
    delayed: u64,
    ready: u64,
    leased: u64,
    finished: u64,
    dead: u64,
    cancelled: u64,
    expired: u64,
    /// Since the server started.
    submitted_total: u64,
    finished_total: u64,
    failed_total: u64,
    cancelled_total: u64,
    expired_total: u64,
    retried_total: u64,
    /// Entries from workers that were refused (stale or foreign leases).
    refused_total: u64,
    workers: u32,
    uptime_ms: u64,
    /// Of the server.
    version: &'static str,
    /// Methods whose tasks wait because an operator says so.
    paused_methods: u32,
    room: RoomDto,
}

impl StatsDto {
    pub(super) fn new(stats: &Stats) -> Self {
        Self {
            delayed: stats.in_state(StateName::Delayed),
            ready: stats.in_state(StateName::Ready),
            leased: stats.in_state(StateName::Leased),
            finished: stats.in_state(StateName::Finished),
            dead: stats.in_state(StateName::Dead),
            cancelled: stats.in_state(StateName::Cancelled),
            expired: stats.in_state(StateName::Expired),
            submitted_total: stats.totals.submitted,
            finished_total: stats.totals.finished,
            failed_total: stats.totals.failed,
            cancelled_total: stats.totals.cancelled,
            expired_total: stats.totals.expired,
            retried_total: stats.totals.retried,
            refused_total: stats.totals.refused,
            workers: stats.workers,
            uptime_ms: stats.uptime_ms,
            version: env!("CARGO_PKG_VERSION"),
            paused_methods: stats.paused_methods,
            room: RoomDto::new(&stats.room),
        }
    }
}

/// A word from a handler, as an event.
#[derive(Serialize, ToSchema)]
#[schema(as = ProgressEvent)]
pub(super) struct ProgressEventDto<'a> {
    pub(super) task_id: String,
    pub(super) progress: ProgressDto<'a>,
}

/// A piece of output ahead of the result, as an event.
#[derive(Serialize, ToSchema)]
#[schema(as = ChunkEvent)]
pub(super) struct ChunkEventDto<'a> {
    pub(super) task_id: String,
    /// The attempt that sent it.
    pub(super) attempt: u32,
    /// From 0 within the attempt; a jump means that the server no longer has those between.
    pub(super) index: u64,
    pub(super) data: Embedded<'a>,
}

/// An error, as `application/problem+json` (RFC 9457).
#[derive(ToSchema)]
#[schema(as = Problem)]
#[allow(dead_code)] // the schema of what `Problem` writes
pub(super) struct ProblemDto {
    /// Where the reason is explained.
    #[schema(rename = "type")]
    kind: String,
    /// The HTTP status in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// For people: what was wrong, with which value, what to do.
    detail: String,
    /// Stable, for programs.
    reason: String,
    /// The path of the request.
    instance: Option<String>,
    /// When waiting helps: how long.
    retry_after_ms: Option<u64>,
    /// The task that ended other than in success.
    task_id: Option<String>,
    /// How it ended.
    outcome: Option<OutcomeDto<'static>>,
}

/// JSON text of a value that this crate made.
pub(super) fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_else(|problem| {
        tracing::error!(%problem, "a document cannot be written");
        RawValue::NULL.to_owned()
    })
}

/// What a payload that is not embedded says of itself, as a header.
pub(super) fn content_type(payload: &Payload) -> axum::http::HeaderValue {
    use axum::http::HeaderValue;
    if payload.content_type.is_empty() {
        return HeaderValue::from_static(super::payload::JSON);
    }
    // A worker may say anything.
    HeaderValue::from_str(&payload.content_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

/// Documents that no route names as its body.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(ProgressEventDto<'static>, ChunkEventDto<'static>)))]
pub(super) struct Extra;
