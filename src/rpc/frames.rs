//! Frames that hold many entries: assignments to a worker, answers to a pipe. They are written straight from the
//! words of the core, because that is most of what a loaded server writes: the generated messages would copy every
//! name and make a text of every id first. What they write is what the generated messages would, byte for byte.

use std::collections::VecDeque;
use std::task::Poll;

use bytes::BufMut;
use prost::Message;
use prost::encoding::{
    WireType, btree_map, encode_key, encode_varint, encoded_len_varint, key_len, message, string,
};
use uuid::fmt::Hyphenated;

use super::convert::{outcome_out, time_out};
use crate::engine::SessionItem;
use crate::error::{Error, Reason};
use crate::proto::{self, pipe_outcome};
use crate::scheduler::{Assign, Reply, Tell};
use crate::task::{Outcome, Payload, TaskId};

/// A frame is closed before it grows beyond this, unless a single entry is larger: gRPC libraries refuse messages of
/// more than 4 MiB if they are not told otherwise.
const FRAME_BYTES: usize = 1 << 20;
/// Nor does it hold more entries: a peer that has a long frame to read does nothing else meanwhile, and so does whoever
/// waits for its answers. Client, server and worker then work one after the other, with cores idle.
const FRAME_ENTRIES: usize = 256;
/// What an entry takes beside its payload, generously.
const ENTRY_BYTES: usize = 128;

/// One message of a stream, as it is to be written.
pub(super) trait Frame: Send + 'static {
    /// About how many bytes it takes, so that the buffer has room at once.
    fn size(&self) -> usize;
    /// Writes it.
    fn write(self, buf: &mut impl BufMut);
}

/// What a reader of many small frames keeps to, so that a long run of them moves on as pieces which several threads, and
/// the peers, work on at once. For the reason of [`FRAME_ENTRIES`]; a turn for each frame would cost more than it brings.
#[derive(Debug, Default)]
pub(super) struct Turns {
    entries: usize,
}

impl Turns {
    /// So many entries were read: now and then others have a turn.
    pub(super) async fn took(&mut self, entries: usize) {
        self.entries += entries;
        if self.entries >= FRAME_ENTRIES {
            self.entries = 0;
            stand_back().await;
        }
    }
}

/// To the end of the line of this thread. Not tokio's `yield_now`, which lets the thread look after sockets and timers first:
/// 5 % of the server's time with a window of 1,024 calls.
async fn stand_back() {
    let mut stood_back = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut stood_back, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The next items, as many as go into one frame: at least one, if there are any.
pub(super) fn next_frame<T>(items: &mut VecDeque<T>, size: impl Fn(&T) -> usize) -> Vec<T> {
    let mut total = 0;
    let fits = |item: &&T| {
        total += size(item);
        total <= FRAME_BYTES
    };
    let fitting = items.iter().take(FRAME_ENTRIES).take_while(fits).count().max(1);
    items.drain(..fitting.min(items.len())).collect()
}

// --- To workers ---------------------------------------------------------------------------------------

/// What a worker is told.
#[derive(Debug)]
pub(super) enum SessionFrame {
    /// First.
    Welcome(Box<proto::SessionResponse>),
    /// Then whatever is there.
    Items(Vec<SessionItem>),
}

impl Frame for SessionFrame {
    fn size(&self) -> usize {
        match self {
            Self::Welcome(response) => response.encoded_len(),
            Self::Items(items) => items.iter().map(session_item_size).sum(),
        }
    }

    fn write(self, buf: &mut impl BufMut) {
        match self {
            Self::Welcome(response) => response.encode_raw(buf),
            Self::Items(items) => {
                // The assignments' tag is lower than all others, so this is the order of the generated message too.
                let mut rest = None;
                for item in items {
                    match item {
                        SessionItem::Assign(assign) => write_assign(&assign, buf),
                        SessionItem::Tell(tell) => add(rest.get_or_insert_default(), tell),
                    }
                }
                if let Some(rest) = rest {
                    let rest: proto::SessionResponse = rest;
                    rest.encode_raw(buf);
                }
            }
        }
    }
}

/// About what the item takes on the wire.
pub(super) fn session_item_size(item: &SessionItem) -> usize {
    match item {
        SessionItem::Assign(assign) => {
            let metadata = assign.options.metadata.iter().map(|(key, value)| key.len() + value.len());
            ENTRY_BYTES + assign.payload.size() + assign.method.len() + metadata.sum::<usize>()
        }
        SessionItem::Tell(_) => ENTRY_BYTES,
    }
}

fn write_assign(assign: &Assign, buf: &mut impl BufMut) {
    let deadline = time_out(assign.deadline).cast_unsigned();
    let metadata = &assign.options.metadata;
    let length = ID_LEN
        + number_len(2, assign.lease)
        + number_len(3, assign.attempt.into())
        + text_len(4, &assign.method)
        + text_len(5, &assign.version)
        + payload_len(6, &assign.payload)
        + number_len(7, deadline)
        + if metadata.is_empty() {
            0
        } else {
            btree_map::encoded_len(string::encoded_len, string::encoded_len, 8, metadata)
        }
        + text_len(9, &assign.pool);
    begin(2, length, buf);
    write_id(1, assign.id, buf);
    write_number(2, assign.lease, buf);
    write_number(3, assign.attempt.into(), buf);
    write_text(4, &assign.method, buf);
    write_text(5, &assign.version, buf);
    write_payload(6, &assign.payload, buf);
    write_number(7, deadline, buf);
    if !metadata.is_empty() {
        btree_map::encode(
            string::encode,
            string::encoded_len,
            string::encode,
            string::encoded_len,
            8,
            metadata,
            buf,
        );
    }
    write_text(9, &assign.pool, buf);
}

fn add(response: &mut proto::SessionResponse, tell: Tell) {
    match tell {
        Tell::Cancel(lease, reason) => response.cancel.push(proto::CancelLease { lease, reason }),
        Tell::Recall(lease) => response.recall.push(proto::Recall { lease }),
        Tell::DurableSeq(seq) => response.durable_seq = seq,
        Tell::Beat(in_flight, digest) => response.beat = Some(proto::Beat { in_flight, digest }),
        Tell::Drain(reason) => {
            response.control = Some(proto::Control { kind: proto::control::Kind::Drain.into(), reason });
        }
        Tell::Move(reason) => {
            response.control = Some(proto::Control { kind: proto::control::Kind::Move.into(), reason });
        }
        Tell::Refused(lease, error) => {
            response.errors.push(proto::EntryError {
                lease,
                reason: error.reason.as_str().to_owned(),
                message: error.message,
            });
        }
    }
}

// --- To pipes -----------------------------------------------------------------------------------------

/// What a pipe is answered.
#[derive(Debug, Default)]
pub(super) struct PipeFrame {
    /// Calls that did not reach the scheduler.
    pub(super) refused: Vec<(u64, Error)>,
    /// What the scheduler says to the others.
    pub(super) answers: Vec<(u64, Reply)>,
}

impl PipeFrame {
    pub(super) fn is_empty(&self) -> bool {
        self.refused.is_empty() && self.answers.is_empty()
    }
}

impl Frame for PipeFrame {
    fn size(&self) -> usize {
        self.refused.len() * ENTRY_BYTES + self.answers.iter().map(answer_size).sum::<usize>()
    }

    fn write(self, buf: &mut impl BufMut) {
        for (call_id, error) in self.refused {
            message::encode(1, &refusal_out(call_id, error), buf);
        }
        for (call_id, reply) in self.answers {
            match reply {
                Reply::Ended(id, Outcome::Succeeded(payload)) => write_success(call_id, id, &payload, buf),
                Reply::Ended(id, outcome) => {
                    let kind = Some(pipe_outcome::Kind::Outcome(outcome_out(outcome)));
                    message::encode(1, &proto::PipeOutcome { call_id, task_id: id.to_string(), kind }, buf);
                }
                Reply::Refused(error) => message::encode(1, &refusal_out(call_id, error), buf),
                other => {
                    tracing::error!(?other, "an answer that does not fit a call");
                    let error = Error::new(Reason::Internal, "internal error");
                    message::encode(1, &refusal_out(call_id, error), buf);
                }
            }
        }
    }
}

/// About what the answer takes on the wire.
pub(super) fn answer_size((_, reply): &(u64, Reply)) -> usize {
    let content = match reply {
        Reply::Ended(_, Outcome::Succeeded(payload)) => payload.size(),
        Reply::Ended(_, Outcome::Failed(error)) => {
            error.message.len() + error.details.as_ref().map_or(0, Payload::size)
        }
        _ => 0,
    };
    ENTRY_BYTES + content
}

fn write_success(call_id: u64, id: TaskId, payload: &Payload, buf: &mut impl BufMut) {
    let outcome = payload_len(1, payload);
    begin(1, number_len(1, call_id) + ID_LEN + block_len(3, outcome), buf);
    write_number(1, call_id, buf);
    write_id(2, id, buf);
    begin(3, outcome, buf);
    write_payload(1, payload, buf);
}

fn refusal_out(call_id: u64, error: Error) -> proto::PipeOutcome {
    let kind = Some(pipe_outcome::Kind::Refusal(error.into()));
    proto::PipeOutcome { call_id, task_id: String::new(), kind }
}

// --- The wire -----------------------------------------------------------------------------------------
// As proto3 has it: what has its default value is left out.

/// An id under a tag below 16.
const ID_LEN: usize = 2 + Hyphenated::LENGTH;

fn begin(tag: u32, length: usize, buf: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buf);
    encode_varint(length as u64, buf);
}

fn block_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

fn write_id(tag: u32, id: TaskId, buf: &mut impl BufMut) {
    begin(tag, Hyphenated::LENGTH, buf);
    let mut text = [0; Hyphenated::LENGTH];
    buf.put_slice(id.0.hyphenated().encode_lower(&mut text).as_bytes());
}

fn number_len(tag: u32, value: u64) -> usize {
    if value == 0 { 0 } else { key_len(tag) + encoded_len_varint(value) }
}

fn write_number(tag: u32, value: u64, buf: &mut impl BufMut) {
    if value != 0 {
        encode_key(tag, WireType::Varint, buf);
        encode_varint(value, buf);
    }
}

fn text_len(tag: u32, text: &str) -> usize {
    if text.is_empty() { 0 } else { block_len(tag, text.len()) }
}

fn write_text(tag: u32, text: &str, buf: &mut impl BufMut) {
    write_bytes(tag, text.as_bytes(), buf);
}

fn write_bytes(tag: u32, bytes: &[u8], buf: &mut impl BufMut) {
    if !bytes.is_empty() {
        begin(tag, bytes.len(), buf);
        buf.put_slice(bytes);
    }
}

fn payload_content_len(payload: &Payload) -> usize {
    let data = if payload.data.is_empty() { 0 } else { block_len(1, payload.data.len()) };
    data + text_len(2, &payload.content_type)
}

fn payload_len(tag: u32, payload: &Payload) -> usize {
    block_len(tag, payload_content_len(payload))
}

/// Also an empty one: that it is there says something.
fn write_payload(tag: u32, payload: &Payload, buf: &mut impl BufMut) {
    begin(tag, payload_content_len(payload), buf);
    write_bytes(1, &payload.data, buf);
    write_text(2, &payload.content_type, buf);
}

#[cfg(test)]
mod tests;
