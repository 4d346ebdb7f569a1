use std::sync::Arc;

use prost::Message as _;

use super::super::{LeaseRow, PayloadRow, StateRow, TaskRow};
use super::*;
use crate::task::{Attempt, Body, IdempotencyKey, TaskError, TaskId, TaskOptions};

/// What is to be written, in the words of what is read.
impl From<&Task> for TaskRow {
    fn from(task: &Task) -> Self {
        let state = match &task.state {
            State::Ready => None,
            State::Delayed { until } => Some(StateRow::DelayedUntil(until.0)),
            State::Leased { lease, worker_id } => {
                Some(StateRow::Leased(LeaseRow { lease: *lease, worker_id: worker_id.to_string() }))
            }
            State::Ended(Outcome::Succeeded(payload)) => Some(StateRow::Succeeded(payload.into())),
            State::Ended(Outcome::Failed(error)) => Some(StateRow::Failed((&**error).into())),
            State::Ended(Outcome::Cancelled(reason)) => Some(StateRow::Cancelled(reason.clone())),
            State::Ended(Outcome::Expired(ExpiredReason::QueueTimeout)) => Some(StateRow::Expired(1)),
            State::Ended(Outcome::Expired(ExpiredReason::Deadline)) => Some(StateRow::Expired(2)),
        };
        Self {
            method: task.method.to_string(),
            options: Some(OptionsRow::from(&*task.options).encode_to_vec().into()),
            created_at: task.created_at.0,
            changed_at: task.changed_at.0,
            since: task.since.0,
            attempt: task.attempt,
            attempts: task.attempts.iter().map(AttemptRow::from).collect(),
            forget_at: if task.forget_at == Timestamp::NEVER { 0 } else { task.forget_at.0 },
            payload_bytes: task.body.size(),
            idempotency_key: task.idempotency_key().to_owned(),
            payload_digest: task.key.as_ref().map_or(0, |key| key.digest),
            state,
        }
    }
}

fn payload_of(data: &[u8], content_type: &str) -> Payload {
    Payload { data: Bytes::copy_from_slice(data), content_type: content_type.to_owned() }
}

#[test]
fn a_task_is_written_as_it_is_read() {
    let error = TaskError {
        code: "INTERNAL".to_owned(),
        message: "no such file".to_owned(),
        details: Some(payload_of(&[7; 200], "text/plain")),
    };
    let attempt = Attempt {
        number: 1,
        worker_id: Arc::from("w1"),
        started_at: Timestamp(5),
        ended_at: Timestamp(6),
        error: error.clone(),
    };
    let states = [
        State::Ready,
        State::Delayed { until: Timestamp(0) },
        State::Delayed { until: Timestamp(1 << 40) },
        State::Leased { lease: 0, worker_id: Arc::from("") },
        State::Leased { lease: u64::MAX, worker_id: Arc::from("worker-1") },
        State::Ended(Outcome::Succeeded(Payload::default())),
        State::Ended(Outcome::Succeeded(payload_of(&[1; 300], "application/json"))),
        State::Ended(Outcome::Failed(Box::default())),
        State::Ended(Outcome::Failed(Box::new(error))),
        State::Ended(Outcome::Cancelled(String::new())),
        State::Ended(Outcome::Cancelled("not needed".to_owned())),
        State::Ended(Outcome::Expired(ExpiredReason::QueueTimeout)),
        State::Ended(Outcome::Expired(ExpiredReason::Deadline)),
    ];
    let bare = Task {
        id: TaskId(uuid::Uuid::from_u128(1)),
        method: Arc::from("add"),
        body: Body::Held(Payload::default()),
        options: Arc::new(TaskOptions::submit()),
        key: None,
        created_at: Timestamp(0),
        since: Timestamp(0),
        changed_at: Timestamp(0),
        state: State::Ready,
        attempt: 0,
        attempts: [].into_iter().collect(),
        forget_at: Timestamp::NEVER,
    };
    let mut options = TaskOptions { priority: 9, run_at: Some(Timestamp(0)), ..TaskOptions::submit() };
    options.metadata.insert("traceparent".to_owned(), "00-1".to_owned());
    let full = Task {
        body: Body::Stored(1_000),
        options: Arc::new(options),
        key: Some(Box::new(IdempotencyKey { text: "order 1".to_owned(), digest: 77 })),
        created_at: Timestamp(1_700_000_000_000),
        since: Timestamp(1_700_000_000_001),
        changed_at: Timestamp(1_700_000_000_002),
        attempt: 300,
        attempts: [attempt.clone(), attempt].into_iter().collect(),
        forget_at: Timestamp(1_800_000_000_000),
        ..bare.clone()
    };
    for task in [bare, full] {
        for state in &states {
            let task = Task { state: state.clone(), ..task.clone() };
            assert_eq!(super::task(&task), TaskRow::from(&task).encode_to_vec(), "{task:?}");
        }
    }
}

#[test]
fn a_payload_is_written_as_it_is_read() {
    for written in [
        Payload::default(),
        payload_of(&[3; 128], ""),
        payload_of(b"", "text/plain"),
        payload_of(b"{}", "a/b"),
    ] {
        assert_eq!(payload(&written), PayloadRow::from(&written).encode_to_vec());
    }
}
