//! NDJSON of stored tasks: what `crewcall export` writes and `crewcall import` reads. The shapes are described in
//! docs/cli.md; a later version only adds to them, or raises [`VERSION`].

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use crewcall::clock::Timestamp;
use crewcall::order::Pause;
use crewcall::task::{
    ATTEMPTS_KEPT, Attempt, Body, Durability, ExpiredReason, IdempotencyKey, Outcome, Payload, RetryPolicy,
    State, Target, Task, TaskError, TaskId, TaskOptions, check_method_name,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// Of the form of the lines.
pub(crate) const VERSION: u32 = 1;

/// A line: an object with one member that says what it is about.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// The first line, and only that.
    CrewcallExport(Header),
    Task(Box<TaskLine>),
    Pause(PauseLine),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) exported_at_unix_ms: u64,
    /// Leases below this may have been handed out: whoever goes on from here must not hand them out again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) leases_below: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PauseLine {
    pub(crate) method: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) by: String,
    pub(crate) since_unix_ms: u64,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TaskLine {
    pub(crate) id: String,
    pub(crate) method: String,
    /// `delayed`, `ready`, `leased`, `finished`, `dead`, `cancelled` or `expired`.
    pub(crate) state: String,
    #[serde(skip_serializing_if = "is_zero")]
    attempt: u32,
    /// Who holds it, and under which lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    worker_id: String,
    #[serde(skip_serializing_if = "is_zero")]
    lease: u64,
    created_at_unix_ms: u64,
    /// When its present life began, if that was not when it was created.
    #[serde(skip_serializing_if = "is_zero")]
    since_unix_ms: u64,
    changed_at_unix_ms: u64,
    /// When it will leave the state delayed.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) run_at_unix_ms: u64,
    /// When an ended one is forgotten.
    #[serde(skip_serializing_if = "is_zero")]
    forget_at_unix_ms: u64,
    pub(crate) options: OptionsLine,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    payload: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_bytes: Option<BytesLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<OutcomeLine>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<AttemptLine>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OptionsLine {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) group: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) priority: u8,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) run_at_unix_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) queue_timeout_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) run_timeout_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) deadline_ms: u64,
    pub(crate) max_attempts: u32,
    pub(crate) initial_backoff_ms: u64,
    pub(crate) max_backoff_ms: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) idempotency_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retention_ms: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct OutcomeLine {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_bytes: Option<BytesLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorLine>,
    /// Why it was cancelled, or which deadline passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct ErrorLine {
    code: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    details: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details_bytes: Option<BytesLine>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct AttemptLine {
    number: u32,
    worker_id: String,
    started_at_unix_ms: u64,
    ended_at_unix_ms: u64,
    error: ErrorLine,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct BytesLine {
    content_type: String,
    base64: String,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

/// Keeps the difference between `null`, which is a payload, and nothing.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

// --- payloads: JSON as it is written where that can stand on one line, else bytes -----------------------

type Members = (Option<Box<RawValue>>, Option<BytesLine>);

fn payload_out(payload: &Payload) -> Members {
    if payload.content_type.is_empty() {
        if payload.data.is_empty() {
            return (None, None);
        }
        let one_line = !payload.data.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
        // Byte for byte, or not at all: an idempotency key stands for these bytes.
        if one_line
            && let Ok(raw) = crate::json::check(&payload.data)
            && raw.get().len() == payload.data.len()
        {
            return (Some(raw.to_owned()), None);
        }
    }
    let content_type = payload.content_type.clone();
    (None, Some(BytesLine { content_type, base64: STANDARD.encode(&payload.data) }))
}

fn payload_in(name: &str, json: Option<Box<RawValue>>, bytes: Option<BytesLine>) -> Result<Payload, String> {
    match (json, bytes) {
        (None, None) => Ok(Payload::default()),
        (Some(json), None) => Ok(Payload::json(json.get().to_owned())),
        (None, Some(bytes)) => {
            let data =
                STANDARD.decode(&bytes.base64).map_err(|error| format!("{name}_bytes.base64: {error}"))?;
            Ok(Payload { data: data.into(), content_type: bytes.content_type })
        }
        (Some(_), Some(_)) => Err(format!("{name} and {name}_bytes are both given")),
    }
}

// --- errors, attempts, options, outcomes ----------------------------------------------------------------

impl From<&TaskError> for ErrorLine {
    fn from(error: &TaskError) -> Self {
        // Empty details are no details: what is left out is read so.
        let (details, details_bytes) = error.details.as_ref().map_or((None, None), payload_out);
        Self { code: error.code.clone(), message: error.message.clone(), details, details_bytes }
    }
}

impl ErrorLine {
    fn into_error(self) -> Result<TaskError, String> {
        let given = self.details.is_some() || self.details_bytes.is_some();
        let details = payload_in("details", self.details, self.details_bytes)?;
        Ok(TaskError { code: self.code, message: self.message, details: given.then_some(details) })
    }
}

impl From<&TaskOptions> for OptionsLine {
    fn from(options: &TaskOptions) -> Self {
        Self {
            version: options.target.version.clone(),
            group: options.target.group.clone(),
            labels: options.target.labels.clone(),
            priority: options.priority,
            run_at_unix_ms: options.run_at.map_or(0, |at| at.0),
            queue_timeout_ms: options.queue_timeout_ms,
            run_timeout_ms: options.run_timeout_ms,
            deadline_ms: options.deadline_ms,
            max_attempts: options.retry.max_attempts,
            initial_backoff_ms: options.retry.initial_backoff_ms,
            max_backoff_ms: options.retry.max_backoff_ms,
            // A fact about the task, filled in there.
            idempotency_key: String::new(),
            retention_ms: options.retention_ms,
            metadata: options.metadata.clone(),
        }
    }
}

impl OptionsLine {
    fn into_options(self) -> Result<TaskOptions, String> {
        let target = Target { version: self.version, group: self.group, labels: self.labels };
        target.range().map_err(|error| error.message)?;
        if self.priority > 9 {
            return Err(format!("options.priority is {}; at most 9", self.priority));
        }
        if self.max_attempts == 0 {
            return Err("options.max_attempts is 0; at least 1".to_owned());
        }
        Ok(TaskOptions {
            target,
            priority: self.priority,
            run_at: (self.run_at_unix_ms > 0).then_some(Timestamp(self.run_at_unix_ms)),
            queue_timeout_ms: self.queue_timeout_ms,
            run_timeout_ms: self.run_timeout_ms,
            deadline_ms: self.deadline_ms,
            retry: RetryPolicy {
                max_attempts: self.max_attempts,
                initial_backoff_ms: self.initial_backoff_ms,
                max_backoff_ms: self.max_backoff_ms,
            },
            durability: Durability::Durable,
            retention_ms: self.retention_ms,
            metadata: self.metadata,
        })
    }
}

impl From<&Outcome> for OutcomeLine {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Succeeded(payload) => {
                let (result, result_bytes) = payload_out(payload);
                Self { kind: "succeeded".to_owned(), result, result_bytes, ..Self::default() }
            }
            Outcome::Failed(error) => {
                Self { kind: "failed".to_owned(), error: Some((&**error).into()), ..Self::default() }
            }
            Outcome::Cancelled(reason) => {
                Self { kind: "cancelled".to_owned(), reason: Some(reason.clone()), ..Self::default() }
            }
            Outcome::Expired(which) => {
                let reason = match which {
                    ExpiredReason::QueueTimeout => "queue_timeout",
                    ExpiredReason::Deadline => "deadline",
                };
                Self { kind: "expired".to_owned(), reason: Some(reason.to_owned()), ..Self::default() }
            }
        }
    }
}

impl OutcomeLine {
    fn into_outcome(self) -> Result<Outcome, String> {
        match (self.kind.as_str(), self.reason.as_deref()) {
            ("succeeded", None) => {
                payload_in("result", self.result, self.result_bytes).map(Outcome::Succeeded)
            }
            ("failed", None) => {
                let error = self.error.unwrap_or_default().into_error()?;
                Ok(Outcome::Failed(Box::new(error)))
            }
            ("cancelled", reason) => Ok(Outcome::Cancelled(reason.unwrap_or_default().to_owned())),
            ("expired", Some("queue_timeout")) => Ok(Outcome::Expired(ExpiredReason::QueueTimeout)),
            ("expired", Some("deadline")) => Ok(Outcome::Expired(ExpiredReason::Deadline)),
            (kind, reason) => {
                Err(format!("outcome: there is none of kind {kind:?} with the reason {reason:?}"))
            }
        }
    }
}

// --- tasks and pauses -----------------------------------------------------------------------------------

impl TaskLine {
    pub(crate) fn new(task: &Task, payload: &Payload) -> Self {
        let (json, bytes) = payload_out(payload);
        let mut line = Self {
            id: task.id.to_string(),
            method: task.method.to_string(),
            state: task.state.name().as_str().to_owned(),
            attempt: task.attempt,
            created_at_unix_ms: task.created_at.0,
            since_unix_ms: if task.since == task.created_at { 0 } else { task.since.0 },
            changed_at_unix_ms: task.changed_at.0,
            forget_at_unix_ms: if task.forget_at == Timestamp::NEVER { 0 } else { task.forget_at.0 },
            options: task.options.as_ref().into(),
            payload: json,
            payload_bytes: bytes,
            outcome: task.state.outcome().map(Into::into),
            ..Self::default()
        };
        line.options.idempotency_key = task.idempotency_key().to_owned();
        match &task.state {
            State::Delayed { until } => line.run_at_unix_ms = until.0,
            State::Leased { lease, worker_id } => {
                (line.lease, line.worker_id) = (*lease, worker_id.to_string());
            }
            State::Ready | State::Ended(_) => {}
        }
        let attempts = task.attempts.iter().map(|attempt| AttemptLine {
            number: attempt.number,
            worker_id: attempt.worker_id.to_string(),
            started_at_unix_ms: attempt.started_at.0,
            ended_at_unix_ms: attempt.ended_at.0,
            error: (&attempt.error).into(),
        });
        line.attempts = attempts.collect();
        line
    }

    /// When the present life began.
    pub(crate) const fn since(&self) -> u64 {
        if self.since_unix_ms == 0 { self.created_at_unix_ms } else { self.since_unix_ms }
    }

    /// Takes the payload out.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn take_payload(&mut self) -> Result<Payload, String> {
        payload_in("payload", self.payload.take(), self.payload_bytes.take())
    }

    /// The task as it was, and its payload.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn into_task(mut self) -> Result<(Task, Payload), String> {
        let payload = self.take_payload()?;
        let id: TaskId = self.id.parse().map_err(|error: crewcall::error::Error| error.message)?;
        check_method_name(&self.method).map_err(|error| error.message)?;
        let since = self.since();
        if self.created_at_unix_ms == 0 || self.changed_at_unix_ms < since || since < self.created_at_unix_ms
        {
            return Err(
                "created_at_unix_ms, since_unix_ms and changed_at_unix_ms are not in order".to_owned()
            );
        }
        let outcome = self.outcome.map(OutcomeLine::into_outcome).transpose()?;
        let state = match (self.state.as_str(), outcome) {
            ("ready", None) => State::Ready,
            ("delayed", None) => State::Delayed { until: Timestamp(self.run_at_unix_ms) },
            ("leased", None) if self.lease > 0 && !self.worker_id.is_empty() => {
                State::Leased { lease: self.lease, worker_id: Arc::from(self.worker_id) }
            }
            ("leased", None) => return Err("state: a leased task has a lease and a worker_id".to_owned()),
            (name, Some(outcome)) => {
                let state = State::Ended(outcome);
                if state.name().as_str() != name || self.forget_at_unix_ms == 0 {
                    return Err(format!(
                        "state: {name:?} with another outcome, or without forget_at_unix_ms"
                    ));
                }
                state
            }
            (name, None) => return Err(format!("state: {name:?} is no state, or lacks its outcome")),
        };
        if self.attempts.len() > ATTEMPTS_KEPT {
            return Err(format!("attempts: {}; at most {ATTEMPTS_KEPT} are kept", self.attempts.len()));
        }
        let attempt = |line: AttemptLine| {
            Ok(Attempt {
                number: line.number,
                worker_id: Arc::from(line.worker_id),
                started_at: Timestamp(line.started_at_unix_ms),
                ended_at: Timestamp(line.ended_at_unix_ms),
                error: line.error.into_error()?,
            })
        };
        let ended = state.outcome().is_some();
        let text = std::mem::take(&mut self.options.idempotency_key);
        let key = IdempotencyKey { digest: payload.digest(), text };
        let task = Task {
            id,
            method: Arc::from(self.method),
            body: Body::Held(payload.clone()),
            options: Arc::new(self.options.into_options()?),
            key: (!key.text.is_empty()).then(|| Box::new(key)),
            created_at: Timestamp(self.created_at_unix_ms),
            since: Timestamp(since),
            changed_at: Timestamp(self.changed_at_unix_ms),
            state,
            attempt: self.attempt,
            attempts: self.attempts.into_iter().map(attempt).collect::<Result<_, String>>()?,
            forget_at: if ended { Timestamp(self.forget_at_unix_ms) } else { Timestamp::NEVER },
        };
        Ok((task, payload))
    }
}

impl From<&Pause> for PauseLine {
    fn from(pause: &Pause) -> Self {
        Self {
            method: pause.method.to_string(),
            reason: pause.reason.clone(),
            by: pause.by.clone(),
            since_unix_ms: pause.since.0,
        }
    }
}

impl PauseLine {
    /// The order as it was.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn into_pause(self) -> Result<Pause, String> {
        check_method_name(&self.method).map_err(|error| error.message)?;
        let since = Timestamp(self.since_unix_ms);
        Ok(Pause { method: Arc::from(self.method), reason: self.reason, by: self.by, since })
    }
}

#[cfg(test)]
mod tests;
