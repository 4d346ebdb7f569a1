//! Between the words of the wire and the words of the core. What is missing on the wire gets its default
//! here; what breaks a rule is left to the scheduler, except what cannot be said in core words at all.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::error::{Error, Reason, Result};
use crate::proto;
use crate::scheduler::{
    AttemptEnd, AttemptResult, DeadFilter, Filter, Frame, Hello, PoolSpec, TaskView, Update,
};
use crate::task::{
    Attempt, Durability, ExpiredReason, Method, NewTask, Outcome, Payload, Progress, RetryPolicy, State,
    StateName, Target, TaskError, TaskId, TaskOptions,
};

/// Which verb's defaults apply.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    Call,
    Submit,
}

// --- in -----------------------------------------------------------------------------------------------

pub(super) fn new_task(task: Option<proto::NewTask>, verb: Verb) -> Result<NewTask> {
    new_task_as(TaskId::generate, task, verb)
}

/// As `new_task`, with an id from elsewhere.
pub(super) fn new_task_as(
    id: impl FnOnce() -> TaskId,
    task: Option<proto::NewTask>,
    verb: Verb,
) -> Result<NewTask> {
    let mut task = task.ok_or_else(|| Error::invalid("task", "is missing"))?;
    let idempotency_key =
        task.options.as_mut().map(|given| std::mem::take(&mut given.idempotency_key)).unwrap_or_default();
    let options = match (task.options, verb) {
        (None, Verb::Call) => TaskOptions::shared_call(),
        (None, Verb::Submit) => TaskOptions::shared_submit(),
        (Some(given), verb) => Arc::new(options(*given, verb)?),
    };
    Ok(NewTask {
        id: id(),
        method: task.method,
        payload: task.payload.map(payload).unwrap_or_default(),
        options,
        idempotency_key,
        only_if_served: false,
    })
}

fn options(given: proto::TaskOptions, verb: Verb) -> Result<TaskOptions> {
    let default = match verb {
        Verb::Call => TaskOptions::call(),
        Verb::Submit => TaskOptions::submit(),
    };
    let target = given.target.unwrap_or_default();
    let retry = given.retry.unwrap_or_default();
    let or = |value: u32, default: u64| if value == 0 { default } else { value.into() };
    let priority = given.priority.map_or(Ok(default.priority), |priority| {
        u8::try_from(priority)
            .map_err(|_| Error::invalid("options.priority", format_args!("is {priority}; at most 9")))
    })?;
    Ok(TaskOptions {
        target: Target {
            version: target.version,
            group: target.group,
            labels: target.labels.into_iter().collect(),
        },
        priority,
        run_at: time(given.run_at_unix_ms, "options.run_at_unix_ms")?,
        queue_timeout_ms: given.queue_timeout_ms,
        run_timeout_ms: given.run_timeout_ms,
        deadline_ms: given.deadline_ms,
        retry: RetryPolicy {
            max_attempts: if retry.max_attempts == 0 {
                default.retry.max_attempts
            } else {
                retry.max_attempts
            },
            initial_backoff_ms: or(retry.initial_backoff_ms, default.retry.initial_backoff_ms),
            max_backoff_ms: or(retry.max_backoff_ms, default.retry.max_backoff_ms),
        },
        durability: match proto::Durability::try_from(given.durability) {
            Ok(proto::Durability::Unspecified) => default.durability,
            Ok(proto::Durability::Ephemeral) => Durability::Ephemeral,
            Ok(proto::Durability::Durable) => Durability::Durable,
            Err(_) => {
                let problem = format!("{} is not a value of the enum", given.durability);
                return Err(Error::invalid("options.durability", problem));
            }
        },
        retention_ms: (given.retention_ms > 0).then_some(given.retention_ms),
        metadata: given.metadata.into_iter().collect(),
    })
}

pub(super) fn time(unix_ms: i64, field: &str) -> Result<Option<Timestamp>> {
    match u64::try_from(unix_ms) {
        Ok(0) => Ok(None),
        Ok(ms) => Ok(Some(Timestamp(ms))),
        Err(_) => Err(Error::invalid(field, format_args!("{unix_ms} lies before 1970"))),
    }
}

pub(super) fn payload(payload: proto::Payload) -> Payload {
    Payload { data: payload.data, content_type: payload.content_type }
}

pub(super) fn filter(filter: Option<proto::TaskFilter>) -> Result<Filter> {
    let filter = filter.unwrap_or_default();
    let states = filter
        .states
        .into_iter()
        .map(|raw| match proto::TaskState::try_from(raw) {
            Ok(proto::TaskState::Delayed) => Ok(StateName::Delayed),
            Ok(proto::TaskState::Ready) => Ok(StateName::Ready),
            Ok(proto::TaskState::Leased) => Ok(StateName::Leased),
            Ok(proto::TaskState::Finished) => Ok(StateName::Finished),
            Ok(proto::TaskState::Dead) => Ok(StateName::Dead),
            Ok(proto::TaskState::Cancelled) => Ok(StateName::Cancelled),
            Ok(proto::TaskState::Expired) => Ok(StateName::Expired),
            Ok(proto::TaskState::Unspecified) | Err(_) => {
                Err(Error::invalid("filter.states", format_args!("{raw} is not a state")))
            }
        })
        .collect::<Result<_>>()?;
    Ok(Filter { method: filter.method, states, worker_id: filter.worker_id })
}

pub(super) fn dead_filter(filter: Option<proto::DeadFilter>) -> Result<DeadFilter> {
    let filter = filter.unwrap_or_default();
    Ok(DeadFilter {
        method: filter.method,
        error_code: filter.error_code,
        died_before: time(filter.died_before_unix_ms, "filter.died_before_unix_ms")?,
        died_after: time(filter.died_after_unix_ms, "filter.died_after_unix_ms")?,
    })
}

pub(super) fn hello(hello: proto::Hello, peer: String) -> Result<Hello> {
    let resume_token = match hello.resume_token.as_str() {
        "" => None,
        // A token that is not ours resumes nothing, which is what a wrong token does.
        text => u128::from_str_radix(text, 16).ok(),
    };
    Ok(Hello {
        protocol: (hello.protocol_min, hello.protocol_max),
        worker_id: hello.worker_id,
        boot_id: hello.boot_id,
        resume_token,
        group: hello.group,
        labels: hello.labels.into_iter().collect(),
        version: hello.version,
        sdk: hello.sdk,
        host: hello.host,
        peer,
        pools: pools(hello.pools),
        methods: methods(hello.methods)?,
        in_flight: hello.in_flight,
        starts_on_receipt: false,
    })
}

fn pools(pools: Vec<proto::Pool>) -> Vec<PoolSpec> {
    pools.into_iter().map(|pool| PoolSpec { name: pool.name, concurrency: pool.concurrency }).collect()
}

fn methods(methods: Vec<proto::Method>) -> Result<Vec<Method>> {
    methods
        .into_iter()
        .map(|method| {
            Ok(Method {
                version: Method::parse_version(&method.name, &method.version)?,
                name: Arc::from(method.name),
                version_text: method.version,
                summary: method.summary,
                docs: method.docs,
                input_schema: method.input_schema,
                output_schema: method.output_schema,
                examples: method.examples,
                pool: method.pool,
            })
        })
        .collect()
}

pub(super) fn frame(request: proto::SessionRequest) -> Result<Frame> {
    if request.hello.is_some() {
        return Err(Error::new(Reason::InvalidField, "hello: belongs in the first frame only"));
    }
    let update = match request.update {
        None => None,
        Some(update) => Some(Update { pools: pools(update.pools), methods: methods(update.methods)? }),
    };
    Ok(Frame {
        update,
        started: request.started.into_iter().map(|started| started.lease).collect(),
        progress: request
            .progress
            .into_iter()
            .map(|report| (report.lease, progress(report.progress.unwrap_or_default())))
            .collect(),
        chunks: request
            .chunks
            .into_iter()
            .map(|chunk| (chunk.lease, chunk.data.map(payload).unwrap_or_default()))
            .collect(),
        results: request.results.into_iter().map(result).collect(),
        released: request.released.into_iter().map(|released| released.lease).collect(),
        credits: request.credits.into_iter().map(|credit| (credit.pool, credit.total)).collect(),
        beat: request.beat.map(|beat| (beat.in_flight, beat.digest)),
        bye: request.bye.map(|bye| bye.reason),
    })
}

fn progress(progress: proto::Progress) -> Progress {
    Progress { current: progress.current, total: progress.total, message: progress.message }
}

fn result(result: proto::Result) -> AttemptResult {
    let end = match result.kind {
        Some(proto::result::Kind::Succeeded(value)) => AttemptEnd::Succeeded(payload(value)),
        Some(proto::result::Kind::Failed(failure)) => AttemptEnd::Failed {
            error: failure.error.map(task_error_in).unwrap_or_default(),
            retryable: failure.retryable,
            retry_after_ms: failure.retry_after_ms,
        },
        // Proto3 leaves an empty message out in some languages: nothing said is an empty result.
        None => AttemptEnd::Succeeded(Payload::default()),
    };
    AttemptResult { lease: result.lease, seq: result.seq, end }
}

fn task_error_in(error: proto::TaskError) -> TaskError {
    TaskError { code: error.code, message: error.message, details: error.details.map(payload) }
}

// --- out ----------------------------------------------------------------------------------------------

pub(super) fn payload_out(payload: Payload) -> proto::Payload {
    proto::Payload { data: payload.data, content_type: payload.content_type }
}

pub(super) fn outcome_out(outcome: Outcome) -> proto::Outcome {
    use proto::outcome::Kind;
    let kind = match outcome {
        Outcome::Succeeded(payload) => Kind::Succeeded(payload_out(payload)),
        Outcome::Failed(error) => Kind::Failed(task_error_out(*error)),
        Outcome::Cancelled(reason) => Kind::Cancelled(reason),
        Outcome::Expired(ExpiredReason::QueueTimeout) => {
            Kind::Expired(proto::ExpiredReason::QueueTimeout.into())
        }
        Outcome::Expired(ExpiredReason::Deadline) => Kind::Expired(proto::ExpiredReason::Deadline.into()),
    };
    proto::Outcome { kind: Some(kind) }
}

pub(super) fn task_error_out(error: TaskError) -> proto::TaskError {
    proto::TaskError { code: error.code, message: error.message, details: error.details.map(payload_out) }
}

pub(super) fn progress_out(progress: Progress) -> proto::Progress {
    proto::Progress { current: progress.current, total: progress.total, message: progress.message }
}

pub(super) fn time_out(at: Timestamp) -> i64 {
    if at == Timestamp::NEVER { 0 } else { i64::try_from(at.0).unwrap_or(i64::MAX) }
}

fn state_out(state: StateName) -> proto::TaskState {
    match state {
        StateName::Delayed => proto::TaskState::Delayed,
        StateName::Ready => proto::TaskState::Ready,
        StateName::Leased => proto::TaskState::Leased,
        StateName::Finished => proto::TaskState::Finished,
        StateName::Dead => proto::TaskState::Dead,
        StateName::Cancelled => proto::TaskState::Cancelled,
        StateName::Expired => proto::TaskState::Expired,
    }
}

/// How much of a task to show.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shown {
    pub(super) payload: bool,
    pub(super) attempts: bool,
}

pub(super) fn task_out(view: TaskView, shown: Shown) -> proto::Task {
    let state = state_out(view.state.name());
    let (worker_id, run_at) = match &view.state {
        State::Leased { worker_id, .. } => (worker_id.to_string(), 0),
        State::Delayed { until } => (String::new(), time_out(*until)),
        State::Ready | State::Ended(_) => (String::new(), 0),
    };
    proto::Task {
        id: view.id.to_string(),
        method: view.method.to_string(),
        state: state.into(),
        attempt: view.attempt,
        worker_id,
        created_at_unix_ms: time_out(view.created_at),
        changed_at_unix_ms: time_out(view.changed_at),
        run_at_unix_ms: run_at,
        options: Some(options_out(&view.options, view.idempotency_key)),
        progress: view.progress.map(progress_out),
        outcome: match view.state {
            State::Ended(outcome) => Some(outcome_out(outcome)),
            _ => None,
        },
        payload: view.payload.filter(|_| shown.payload).map(payload_out),
        attempts: if shown.attempts {
            view.attempts.iter().cloned().map(attempt_out).collect()
        } else {
            Vec::new()
        },
    }
}

fn attempt_out(attempt: Attempt) -> proto::Attempt {
    proto::Attempt {
        number: attempt.number,
        worker_id: attempt.worker_id.to_string(),
        started_at_unix_ms: time_out(attempt.started_at),
        ended_at_unix_ms: time_out(attempt.ended_at),
        error: Some(task_error_out(attempt.error)),
    }
}

fn options_out(options: &TaskOptions, idempotency_key: String) -> proto::TaskOptions {
    let target = &options.target;
    let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    proto::TaskOptions {
        target: (*target != Target::default()).then(|| proto::Target {
            version: target.version.clone(),
            group: target.group.clone(),
            labels: target.labels.clone().into_iter().collect(),
        }),
        priority: Some(options.priority.into()),
        run_at_unix_ms: options.run_at.map(time_out).unwrap_or_default(),
        queue_timeout_ms: options.queue_timeout_ms,
        run_timeout_ms: options.run_timeout_ms,
        deadline_ms: options.deadline_ms,
        retry: Some(proto::RetryPolicy {
            max_attempts: options.retry.max_attempts,
            initial_backoff_ms: ms(options.retry.initial_backoff_ms),
            max_backoff_ms: ms(options.retry.max_backoff_ms),
        }),
        idempotency_key,
        durability: match options.durability {
            Durability::Ephemeral => proto::Durability::Ephemeral,
            Durability::Durable => proto::Durability::Durable,
        }
        .into(),
        retention_ms: options.retention_ms.unwrap_or_default(),
        metadata: options.metadata.clone().into_iter().collect(),
    }
}

pub(super) fn method_out(method: &Method) -> proto::Method {
    proto::Method {
        name: method.name.to_string(),
        version: method.version_text.clone(),
        summary: method.summary.clone(),
        docs: method.docs.clone(),
        input_schema: method.input_schema.clone(),
        output_schema: method.output_schema.clone(),
        examples: method.examples.clone(),
        pool: method.pool.clone(),
    }
}
