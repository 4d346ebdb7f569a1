//! Tasks: as they are handed in, as they stand, and how they ended.

use crewcall::scheduler::{Explanation, TaskView};
use crewcall::task::{Attempt, ExpiredReason, Outcome, Progress, State, TaskError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{PayloadDto, TaskOptionsDto};
use crate::v1::payload::Embedded;

/// What to run.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewTask)]
pub(crate) struct NewTaskDto<'a> {
    /// 1 to 256 bytes, without control characters and without white space at either end.
    pub(crate) method: String,
    /// Any JSON value, kept as it is written; or an envelope of base64. Left out: nothing.
    #[serde(default, borrow, deserialize_with = "crate::v1::payload::present")]
    #[schema(value_type = PayloadDto, required = false)]
    pub(crate) payload: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "crate::v1::object::maybe")]
    pub(crate) options: Option<TaskOptionsDto>,
}

/// One task, or a list of 1 to 10,000.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, clippy::large_enum_variant)] // for the schema
#[schema(as = NewTasks)]
pub(crate) enum NewTasksDto<'a> {
    One(NewTaskDto<'a>),
    List(Vec<NewTaskDto<'a>>),
}

/// The answer for one task, or for a list.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code)] // for the schema
#[schema(as = SubmitAnswer)]
pub(crate) enum SubmitAnswerDto {
    One(AcceptedDto),
    List(SubmittedDto),
}

/// The name of a state.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TaskState)]
#[allow(dead_code)] // the schema of what `StateName::as_str` writes
pub(crate) enum TaskStateDto {
    Delayed,
    Ready,
    Leased,
    Finished,
    Dead,
    Cancelled,
    Expired,
}

/// A task as anyone may see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Task)]
pub(crate) struct TaskDto<'a> {
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
pub(crate) struct Shown {
    pub(crate) payload: bool,
    pub(crate) attempts: bool,
}

impl<'a> TaskDto<'a> {
    pub(crate) fn new(view: &'a TaskView, shown: Shown) -> Self {
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
            options: TaskOptionsDto::new(&view.options, &view.idempotency_key),
            progress: view.progress.as_ref().map(ProgressDto::new),
            outcome: view.state.outcome().map(OutcomeDto::new),
            payload: view.payload.as_ref().filter(|_| shown.payload).map(Embedded),
            attempts: shown.attempts.then(|| view.attempts.iter().map(AttemptDto::new).collect()),
        }
    }
}

/// How a task ended: exactly one of these.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Outcome)]
pub(crate) enum OutcomeDto<'a> {
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
    pub(crate) fn new(outcome: &'a Outcome) -> Self {
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
pub(crate) struct TaskErrorDto<'a> {
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
pub(crate) struct ProgressDto<'a> {
    /// Done so far, in the handler's own unit.
    current: u64,
    /// Of so much. 0 means unknown.
    total: u64,
    message: &'a str,
}

impl<'a> ProgressDto<'a> {
    pub(crate) fn new(progress: &'a Progress) -> Self {
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
pub(crate) struct AcceptedDto {
    #[schema(format = "uuid")]
    pub(crate) task_id: String,
    /// An earlier task with the same idempotency key was there already, and this is its id.
    pub(crate) attached: bool,
    pub(crate) links: LinksDto,
}

/// Where to go on.
#[derive(Serialize, ToSchema)]
#[schema(as = Links)]
pub(crate) struct LinksDto {
    #[serde(rename = "self")]
    task: String,
    events: String,
    result: String,
}

impl LinksDto {
    pub(crate) fn new(id: &str) -> Self {
        let task = format!("/v1/tasks/{id}");
        Self { events: format!("{task}/events"), result: format!("{task}/result"), task }
    }
}

/// The answer to a list of tasks.
#[derive(Serialize, ToSchema)]
#[schema(as = Submitted)]
pub(crate) struct SubmittedDto {
    /// One for each task, in the order of the request.
    pub(crate) results: Vec<SubmitResultDto>,
}

/// One task's fate.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = SubmitResult)]
pub(crate) enum SubmitResultDto {
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
pub(crate) struct RefusalDto {
    /// The HTTP status that the item alone would have had.
    pub(crate) status: u16,
    /// Stable, for programs.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
    /// When waiting helps: how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_ms: Option<u64>,
}

/// A page of tasks, newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = TaskPage)]
pub(crate) struct TaskPageDto<'a> {
    pub(crate) tasks: Vec<TaskDto<'a>>,
    /// Give it as `page` to go on. Left out on the last page. A page can be short, even empty, and still
    /// have a next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_page: Option<String>,
}

/// Why a task is where it is.
#[derive(Serialize, ToSchema)]
#[schema(as = Explanation)]
pub(crate) struct ExplanationDto<'a> {
    task: TaskDto<'a>,
    /// One sentence: the state and its cause.
    summary: &'a str,
    /// The facts behind it, the decisive one first.
    details: &'a [String],
}

impl<'a> ExplanationDto<'a> {
    pub(crate) fn new(explanation: &'a Explanation) -> Self {
        Self {
            task: TaskDto::new(&explanation.task, Shown::default()),
            summary: &explanation.summary,
            details: &explanation.details,
        }
    }
}

/// A word from a handler, as an event.
#[derive(Serialize, ToSchema)]
#[schema(as = ProgressEvent)]
pub(crate) struct ProgressEventDto<'a> {
    pub(crate) task_id: String,
    pub(crate) progress: ProgressDto<'a>,
}

/// A piece of output ahead of the result, as an event.
#[derive(Serialize, ToSchema)]
#[schema(as = ChunkEvent)]
pub(crate) struct ChunkEventDto<'a> {
    pub(crate) task_id: String,
    /// The attempt that sent it.
    pub(crate) attempt: u32,
    /// From 0 within the attempt; a jump means that the server no longer has those between.
    pub(crate) index: u64,
    pub(crate) data: Embedded<'a>,
}
