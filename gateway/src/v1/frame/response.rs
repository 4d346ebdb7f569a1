//! `SessionResponse`: what a worker is told.

use std::collections::BTreeMap;

use crewcall::engine::SessionItem;
use crewcall::error::Error;
use crewcall::scheduler::{Assign, Limits, Tell, Welcome};
use serde::Serialize;

use super::BeatDto;
use crate::Problem;
use crate::v1::dto;
use crate::v1::payload::Embedded;

/// A message is closed at this size and the rest goes into the next, so that no worker has to take all that
/// waits for it at once.
pub(super) const MESSAGE_BYTES: usize = 256 << 10;

#[derive(Default, Serialize)]
struct ResponseDto<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    welcome: Option<WelcomeDto<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    assign: Vec<AssignDto<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cancel: Vec<CancelDto<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recall: Vec<RecallDto>,
    #[serde(skip_serializing_if = "Option::is_none")]
    durable_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<ControlDto<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beat: Option<BeatDto>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<EntryErrorDto<'a>>,
    /// Why the server ends the session; the last message before the close.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDto<'a>>,
}

#[derive(Serialize)]
struct WelcomeDto<'a> {
    protocol: u32,
    session_id: String,
    worker_id: &'a str,
    resume_token: String,
    keep: &'a [u64],
    drop: &'a [u64],
    beat_ms: u64,
    lease_ms: u64,
    resume_ms: u64,
    max_payload_bytes: usize,
}

#[derive(Serialize)]
struct AssignDto<'a> {
    task_id: String,
    lease: u64,
    attempt: u32,
    method: &'a str,
    version: &'a str,
    payload: Embedded<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_unix_ms: Option<u64>,
    metadata: &'a BTreeMap<String, String>,
    pool: &'a str,
}

#[derive(Serialize)]
struct CancelDto<'a> {
    lease: u64,
    reason: &'a str,
}

#[derive(Serialize)]
struct RecallDto {
    lease: u64,
}

#[derive(Serialize)]
struct ControlDto<'a> {
    kind: &'static str,
    reason: &'a str,
}

#[derive(Serialize)]
struct EntryErrorDto<'a> {
    lease: u64,
    reason: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct ErrorDto<'a> {
    reason: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

fn text(response: &ResponseDto<'_>) -> String {
    dto::raw(response).get().to_owned()
}

/// The answer to a hello.
pub(crate) fn welcome(welcome: &Welcome, limits: &Limits) -> String {
    let welcome = WelcomeDto {
        protocol: 1,
        session_id: welcome.session.0.to_string(),
        worker_id: &welcome.worker_id,
        resume_token: format!("{:032x}", welcome.token),
        keep: &welcome.keep,
        drop: &welcome.drop,
        beat_ms: limits.beat_ms,
        lease_ms: limits.lease_ms,
        resume_ms: limits.resume_ms,
        max_payload_bytes: limits.payload_bytes,
    };
    text(&ResponseDto { welcome: Some(welcome), ..ResponseDto::default() })
}

/// Why the session ends.
pub(crate) fn ending(problem: &Problem) -> String {
    let error = ErrorDto {
        reason: problem.reason(),
        message: problem.detail(),
        retry_after_ms: problem.retry_after_ms(),
    };
    text(&ResponseDto { error: Some(error), ..ResponseDto::default() })
}

/// Entries that could not be read.
pub(crate) fn refusals<'a>(refused: impl IntoIterator<Item = &'a (u64, Error)>) -> String {
    let errors = refused.into_iter().map(|(lease, error)| entry_error(*lease, error)).collect();
    text(&ResponseDto { errors, ..ResponseDto::default() })
}

/// What a worker is told, in as few messages as their size allows.
pub(crate) fn messages(items: &[SessionItem]) -> impl Iterator<Item = String> {
    let mut items = items.iter();
    std::iter::from_fn(move || {
        let mut response = ResponseDto::default();
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES {
            let Some(item) = items.next() else { break };
            bytes += add(&mut response, item);
        }
        (bytes > 0).then(|| text(&response))
    })
}

/// Adds an item; says about how large it is.
fn add<'a>(response: &mut ResponseDto<'a>, item: &'a SessionItem) -> usize {
    const USUAL: usize = 128;
    match item {
        SessionItem::Assign(assign) => {
            response.assign.push(assign_out(assign));
            return 2 * USUAL + assign.payload.size();
        }
        SessionItem::Tell(Tell::Cancel(lease, reason)) => {
            response.cancel.push(CancelDto { lease: *lease, reason });
        }
        SessionItem::Tell(Tell::Recall(lease)) => response.recall.push(RecallDto { lease: *lease }),
        SessionItem::Tell(Tell::DurableSeq(seq)) => response.durable_seq = Some(*seq),
        SessionItem::Tell(Tell::Beat(in_flight, digest)) => {
            response.beat = Some(BeatDto { in_flight: *in_flight, digest: *digest });
        }
        SessionItem::Tell(Tell::Drain(reason)) => {
            response.control = Some(ControlDto { kind: "drain", reason });
        }
        SessionItem::Tell(Tell::Move(reason)) => {
            response.control = Some(ControlDto { kind: "move", reason });
        }
        SessionItem::Tell(Tell::Refused(lease, error)) => response.errors.push(entry_error(*lease, error)),
    }
    USUAL
}

fn assign_out(assign: &Assign) -> AssignDto<'_> {
    AssignDto {
        task_id: assign.id.to_string(),
        lease: assign.lease,
        attempt: assign.attempt,
        method: &assign.method,
        version: &assign.version,
        payload: Embedded(&assign.payload),
        deadline_unix_ms: (assign.deadline != crewcall::clock::Timestamp::NEVER).then_some(assign.deadline.0),
        metadata: &assign.options.metadata,
        pool: &assign.pool,
    }
}

fn entry_error(lease: u64, error: &Error) -> EntryErrorDto<'_> {
    EntryErrorDto { lease, reason: error.reason.as_str(), message: &error.message }
}
