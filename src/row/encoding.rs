//! How the rows of tasks are written: no other is written as often, so straight from the task into one buffer,
//! without a `TaskRow` in between and the strings it would hold. The test holds one against the other.

use bytes::Bytes;
use prost::encoding::{
    WireType, encode_key, encode_varint, encoded_len_varint, fixed64, message, string, uint32, uint64,
};

use super::{AttemptRow, ErrorRow, OptionsRow};
use crate::clock::Timestamp;
use crate::task::{ExpiredReason, Outcome, Payload, State, Task};

/// Room for all that is not text.
const NUMBERS: usize = 128;

pub(super) fn task(task: &Task) -> Bytes {
    let outcome = task.state.outcome().map_or(0, Outcome::size);
    let key = task.idempotency_key();
    let room = NUMBERS + task.method.len() + key.len() + outcome;
    let mut row = Vec::with_capacity(room);
    text(1, task.method.as_bytes(), &mut row);
    message::encode(3, &OptionsRow::from(&*task.options), &mut row);
    number(4, task.created_at.0, &mut row);
    number(5, task.changed_at.0, &mut row);
    number(6, task.since.0, &mut row);
    number(7, task.attempt.into(), &mut row);
    for attempt in task.attempts.iter() {
        message::encode(8, &AttemptRow::from(attempt), &mut row);
    }
    number(9, if task.forget_at == Timestamp::NEVER { 0 } else { task.forget_at.0 }, &mut row);
    number(10, task.body.size(), &mut row);
    text(11, key.as_bytes(), &mut row);
    if let Some(key) = &task.key
        && key.digest != 0
    {
        fixed64::encode(12, &key.digest, &mut row);
    }
    state(&task.state, &mut row);
    row.into()
}

pub(super) fn payload(payload: &Payload) -> Bytes {
    let mut row = Vec::with_capacity(payload_len(payload));
    payload_fields(payload, &mut row);
    row.into()
}

/// One of a oneof is written also when it is its type's default.
fn state(state: &State, row: &mut Vec<u8>) {
    match state {
        State::Ready => {}
        State::Delayed { until } => uint64::encode(20, &until.0, row),
        State::Leased { lease, worker_id } => {
            nested(21, number_len(*lease) + text_len(worker_id.as_bytes()), row);
            number(1, *lease, row);
            text(2, worker_id.as_bytes(), row);
        }
        State::Ended(Outcome::Succeeded(payload)) => {
            nested(22, payload_len(payload), row);
            payload_fields(payload, row);
        }
        State::Ended(Outcome::Failed(error)) => message::encode(23, &ErrorRow::from(&**error), row),
        State::Ended(Outcome::Cancelled(reason)) => string::encode(24, reason, row),
        State::Ended(Outcome::Expired(ExpiredReason::QueueTimeout)) => uint32::encode(25, &1, row),
        State::Ended(Outcome::Expired(ExpiredReason::Deadline)) => uint32::encode(25, &2, row),
    }
}

fn payload_fields(payload: &Payload, row: &mut Vec<u8>) {
    text(1, &payload.data, row);
    text(2, payload.content_type.as_bytes(), row);
}

fn payload_len(payload: &Payload) -> usize {
    text_len(&payload.data) + text_len(payload.content_type.as_bytes())
}

fn nested(tag: u32, len: usize, row: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, row);
    encode_varint(len as u64, row);
}

/// Strings and bytes look the same; empty ones are left out.
fn text(tag: u32, text: &[u8], row: &mut Vec<u8>) {
    if !text.is_empty() {
        nested(tag, text.len(), row);
        row.extend_from_slice(text);
    }
}

/// With a tag below 16, which is one byte.
fn text_len(text: &[u8]) -> usize {
    if text.is_empty() { 0 } else { 1 + encoded_len_varint(text.len() as u64) + text.len() }
}

/// Zeros are left out.
fn number(tag: u32, number: u64, row: &mut Vec<u8>) {
    if number != 0 {
        uint64::encode(tag, &number, row);
    }
}

/// With a tag below 16, which is one byte.
fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + encoded_len_varint(number) }
}

#[cfg(test)]
mod tests;
