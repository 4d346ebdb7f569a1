//! What the store holds: for each durable task a row, which is rewritten whenever its state changes, and one
//! with its payload, which is not; and a few single rows. Both the scheduler, which
//! says how rows change, and the stores, which keep them, speak of rows; neither knows the other.
//!
//! # Changing the format
//! Rows are protobuf messages (hand-declared below, field numbers are the format). To add a fact:
//! 1. add a field with a new number; readers of older rows see its default, which must be right for them;
//! 2. never change the meaning or type of a number, never reuse one;
//! 3. what cannot be said that way raises the format version that the durable store keeps beside its
//!    rows, with the conversion written next to it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::clock::Timestamp;
use crate::order::{Drain, Pause};
use crate::task::{
    Attempt, Body, Durability, ExpiredReason, IdempotencyKey, Outcome, Payload, RetryPolicy, State, Target,
    Task, TaskError, TaskId, TaskOptions,
};

mod encoding;

/// Names a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// A durable task.
    Task(TaskId),
    /// Leases below the number in it may have been handed out.
    LeasesReserved,
    /// A paused method, under the number of the order.
    Pause(u64),
    /// A worker that was asked to leave, under the number of the order.
    Drain(u64),
    /// The payload of a durable task: put once with the task, and deleted with it. Empty ones have none.
    Payload(TaskId),
}

impl RowKey {
    /// Kinds from here on are read back when they are wanted; those below are loaded at start.
    pub const READ_WHEN_WANTED: u8 = 128;

    /// The key as stored: the number of its kind, which is format and never changes its meaning, and
    /// sixteen bytes that name the row within the kind. Stores keep rows in the order of these two.
    pub const fn parts(&self) -> (u8, [u8; 16]) {
        match self {
            Self::Task(id) => (1, *id.0.as_bytes()),
            Self::LeasesReserved => (2, [0; 16]),
            Self::Pause(number) => (3, (*number as u128).to_be_bytes()),
            Self::Drain(number) => (4, (*number as u128).to_be_bytes()),
            Self::Payload(id) => (128, *id.0.as_bytes()),
        }
    }

    /// The key with these parts; none when the kind is unknown here: a newer crewcall wrote it, or damage.
    pub const fn from_parts(kind: u8, id: [u8; 16]) -> Option<Self> {
        match kind {
            1 => Some(Self::Task(TaskId(uuid::Uuid::from_bytes(id)))),
            2 => Some(Self::LeasesReserved),
            3 | 4 => {
                let number = u128::from_be_bytes(id);
                match (kind, number >> 64) {
                    (3, 0) => Some(Self::Pause(number as u64)),
                    (_, 0) => Some(Self::Drain(number as u64)),
                    _ => None,
                }
            }
            128 => Some(Self::Payload(TaskId(uuid::Uuid::from_bytes(id)))),
            _ => None,
        }
    }

    /// Whether the scheduler needs the row to start. All others are read when they are wanted.
    pub const fn is_loaded_at_start(&self) -> bool {
        self.parts().0 < Self::READ_WHEN_WANTED
    }
}

/// One change of a batch. A batch is stored whole or not at all.
#[derive(Clone, Debug)]
pub enum RowChange {
    /// Insert or replace.
    Put(RowKey, Bytes),
    /// Remove; removing what is not there is no error.
    Delete(RowKey),
}

impl RowChange {
    /// The row that it is about.
    pub const fn key(&self) -> RowKey {
        let (Self::Put(key, _) | Self::Delete(key)) = self;
        *key
    }

    /// Makes of `batch` one that has the same effect and costs a store least: only the last change of each row, what
    /// makes room before what needs it, and rows that lie side by side one after the other.
    pub fn settle(batch: &mut Vec<Self>) {
        // Places are sorted instead of changes: they are compared as numbers, and each change is moved once.
        let place = |(index, change): (usize, &Self)| {
            let (kind, id) = change.key().parts();
            (kind, u128::from_be_bytes(id), index)
        };
        let mut places: Vec<_> = batch.iter().enumerate().map(place).collect();
        places.sort_unstable();
        // The last change of a row is the last of those with its key.
        places.dedup_by(|later, kept| {
            let same = (later.0, later.1) == (kept.0, kept.1);
            if same {
                kept.2 = later.2;
            }
            same
        });
        let is_put = |index: usize| matches!(batch.get(index), Some(Self::Put(..)));
        places.sort_by_key(|(.., index)| is_put(*index));
        let nothing = Self::Delete(RowKey::LeasesReserved);
        let take = |(.., index): &(u8, u128, usize)| {
            batch
                .get_mut(*index)
                .map_or_else(|| nothing.clone(), |change| mem::replace(change, nothing.clone()))
        };
        let settled: Vec<_> = places.iter().map(take).collect();
        *batch = settled;
    }

    /// `batch` as [`settle`](Self::settle) leaves it.
    pub fn settled(batch: &[Self]) -> Cow<'_, [Self]> {
        if batch.is_sorted_by(|one, next| one.place() < next.place()) {
            return Cow::Borrowed(batch);
        }
        let mut batch = batch.to_vec();
        Self::settle(&mut batch);
        Cow::Owned(batch)
    }

    const fn place(&self) -> (bool, RowKey) {
        (matches!(self, Self::Put(..)), self.key())
    }
}

/// A row, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A durable task, without its payload.
    Task(Box<Task>),
    /// Leases below this may have been handed out.
    LeasesReserved(u64),
    /// A paused method, and the number of the order.
    Pause(u64, Box<Pause>),
    /// A worker that was asked to leave, and the number of the order.
    Drain(u64, Box<Drain>),
    /// The payload of a durable task.
    Payload(TaskId, Payload),
}

/// A row that cannot be read: it was damaged, or written by something else.
#[derive(Debug, thiserror::Error)]
#[error("row {key:?} cannot be read: {problem}")]
pub struct RowError {
    key: RowKey,
    problem: String,
}

impl Row {
    /// As stored.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Task(task) => Self::encode_task(task),
            Self::LeasesReserved(below) => below.encode_to_vec().into(),
            Self::Pause(_, pause) => PauseRow::from(&**pause).encode_to_vec().into(),
            Self::Drain(_, drain) => DrainRow::from(&**drain).encode_to_vec().into(),
            Self::Payload(_, payload) => Self::encode_payload(payload),
        }
    }

    /// As stored, without taking the task.
    pub fn encode_task(task: &Task) -> Bytes {
        encoding::task(task)
    }

    /// As stored, without taking the payload.
    pub fn encode_payload(payload: &Payload) -> Bytes {
        encoding::payload(payload)
    }

    /// Reads the row stored under `key`. Of many rows, [`RowReader`] reads each faster.
    ///
    /// # Errors
    /// When `data` is not what was stored under such a key.
    pub fn decode(key: RowKey, data: Bytes) -> Result<Self, RowError> {
        RowReader::default().read(key, data)
    }
}

/// Reads rows. What many tasks have in common, their method and their options, they share afterwards.
#[derive(Debug, Default)]
pub struct RowReader {
    methods: HashSet<Arc<str>, foldhash::fast::RandomState>,
    /// By what is stored of them.
    options: HashMap<Bytes, Arc<TaskOptions>, foldhash::fast::RandomState>,
}

impl RowReader {
    /// Reads the row stored under `key`.
    ///
    /// # Errors
    /// When `data` is not what was stored under such a key.
    pub fn read(&mut self, key: RowKey, data: Bytes) -> Result<Row, RowError> {
        let damaged = |problem: String| RowError { key, problem };
        match key {
            RowKey::LeasesReserved => {
                u64::decode(data).map(Row::LeasesReserved).map_err(|problem| damaged(problem.to_string()))
            }
            RowKey::Pause(number) => PauseRow::decode(data)
                .map(|row| Row::Pause(number, Box::new(row.into())))
                .map_err(|problem| damaged(problem.to_string())),
            RowKey::Drain(number) => DrainRow::decode(data)
                .map(|row| Row::Drain(number, Box::new(row.into())))
                .map_err(|problem| damaged(problem.to_string())),
            RowKey::Task(id) => {
                let row = TaskRow::decode(data).map_err(|problem| damaged(problem.to_string()))?;
                let task = self.task(id, row).map_err(damaged)?;
                Ok(Row::Task(Box::new(task)))
            }
            RowKey::Payload(id) => PayloadRow::decode(data)
                .map(|row| Row::Payload(id, row.into()))
                .map_err(|problem| damaged(problem.to_string())),
        }
    }

    fn task(&mut self, id: TaskId, row: TaskRow) -> Result<Task, String> {
        let method = match self.methods.get(&*row.method) {
            Some(method) => Arc::clone(method),
            None => {
                let method: Arc<str> = Arc::from(&*row.method);
                self.methods.insert(Arc::clone(&method));
                method
            }
        };
        let stored = row.options.clone().ok_or("it has no options")?;
        let options = match self.options.get(&stored) {
            Some(options) => Arc::clone(options),
            None => {
                let read = OptionsRow::decode(&*stored).map_err(|problem| problem.to_string())?;
                let options = Arc::new(TaskOptions::from(read));
                // A copy: the bytes at hand are a part of the row, and would keep all of it.
                self.options.insert(Bytes::copy_from_slice(&stored), Arc::clone(&options));
                options
            }
        };
        row.into_task(id, method, options).map_err(str::to_owned)
    }
}

#[derive(Clone, PartialEq, Message)]
struct PauseRow {
    #[prost(string, tag = "1")]
    method: String,
    #[prost(string, tag = "2")]
    reason: String,
    #[prost(string, tag = "3")]
    by: String,
    #[prost(uint64, tag = "4")]
    since: u64,
}

impl From<&Pause> for PauseRow {
    fn from(pause: &Pause) -> Self {
        let Pause { method, reason, by, since } = pause.clone();
        Self { method: method.to_string(), reason, by, since: since.0 }
    }
}

impl From<PauseRow> for Pause {
    fn from(row: PauseRow) -> Self {
        let PauseRow { method, reason, by, since } = row;
        Self { method: Arc::from(method), reason, by, since: Timestamp(since) }
    }
}

#[derive(Clone, PartialEq, Message)]
struct DrainRow {
    #[prost(string, tag = "1")]
    worker_id: String,
    #[prost(string, tag = "2")]
    boot_id: String,
    #[prost(string, tag = "3")]
    reason: String,
    #[prost(uint64, tag = "4")]
    since: u64,
}

impl From<&Drain> for DrainRow {
    fn from(drain: &Drain) -> Self {
        let Drain { worker_id, boot_id, reason, since } = drain.clone();
        Self { worker_id: worker_id.to_string(), boot_id, reason, since: since.0 }
    }
}

impl From<DrainRow> for Drain {
    fn from(row: DrainRow) -> Self {
        let DrainRow { worker_id, boot_id, reason, since } = row;
        Self { worker_id: Arc::from(worker_id), boot_id, reason, since: Timestamp(since) }
    }
}

#[derive(Clone, PartialEq, Message)]
struct PayloadRow {
    #[prost(bytes = "bytes", tag = "1")]
    data: Bytes,
    #[prost(string, tag = "2")]
    content_type: String,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorRow {
    #[prost(string, tag = "1")]
    code: String,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, optional, tag = "3")]
    details: Option<PayloadRow>,
}

#[derive(Clone, PartialEq, Message)]
struct AttemptRow {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(string, tag = "2")]
    worker_id: String,
    #[prost(uint64, tag = "3")]
    started_at: u64,
    #[prost(uint64, tag = "4")]
    ended_at: u64,
    #[prost(message, optional, tag = "5")]
    error: Option<ErrorRow>,
}

#[derive(Clone, PartialEq, Message)]
struct LeaseRow {
    #[prost(uint64, tag = "1")]
    lease: u64,
    #[prost(string, tag = "2")]
    worker_id: String,
}

/// The state, as a oneof: no arm set means ready.
#[derive(Clone, PartialEq, prost::Oneof)]
enum StateRow {
    #[prost(uint64, tag = "20")]
    DelayedUntil(u64),
    #[prost(message, tag = "21")]
    Leased(LeaseRow),
    #[prost(message, tag = "22")]
    Succeeded(PayloadRow),
    #[prost(message, tag = "23")]
    Failed(ErrorRow),
    #[prost(string, tag = "24")]
    Cancelled(String),
    /// 1 queue timeout, 2 deadline.
    #[prost(uint32, tag = "25")]
    Expired(u32),
}

#[derive(Clone, PartialEq, Message)]
struct OptionsRow {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    group: String,
    // In order, so that equal tasks are equal bytes.
    #[prost(btree_map = "string, string", tag = "3")]
    labels: BTreeMap<String, String>,
    #[prost(uint32, tag = "4")]
    priority: u32,
    #[prost(uint64, optional, tag = "5")]
    run_at: Option<u64>,
    #[prost(uint64, tag = "6")]
    queue_timeout_ms: u64,
    #[prost(uint64, tag = "7")]
    run_timeout_ms: u64,
    #[prost(uint64, tag = "8")]
    deadline_ms: u64,
    #[prost(uint32, tag = "9")]
    max_attempts: u32,
    #[prost(uint64, tag = "10")]
    initial_backoff_ms: u64,
    #[prost(uint64, tag = "11")]
    max_backoff_ms: u64,
    #[prost(uint64, optional, tag = "13")]
    retention_ms: Option<u64>,
    #[prost(btree_map = "string, string", tag = "14")]
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct TaskRow {
    #[prost(string, tag = "1")]
    method: String,
    /// An `OptionsRow`, read once for all tasks that have the same.
    #[prost(bytes = "bytes", optional, tag = "3")]
    options: Option<Bytes>,
    #[prost(uint64, tag = "4")]
    created_at: u64,
    #[prost(uint64, tag = "5")]
    changed_at: u64,
    #[prost(uint64, tag = "6")]
    since: u64,
    #[prost(uint32, tag = "7")]
    attempt: u32,
    #[prost(message, repeated, tag = "8")]
    attempts: Vec<AttemptRow>,
    /// 0 is never.
    #[prost(uint64, tag = "9")]
    forget_at: u64,
    /// Of the payload, which lies in a row of its own unless it is empty.
    #[prost(uint64, tag = "10")]
    payload_bytes: u64,
    #[prost(string, tag = "11")]
    idempotency_key: String,
    /// Of tasks with such a key.
    #[prost(fixed64, tag = "12")]
    payload_digest: u64,
    #[prost(oneof = "StateRow", tags = "20, 21, 22, 23, 24, 25")]
    state: Option<StateRow>,
}

impl From<&Payload> for PayloadRow {
    fn from(payload: &Payload) -> Self {
        Self { data: payload.data.clone(), content_type: payload.content_type.clone() }
    }
}

impl From<PayloadRow> for Payload {
    fn from(row: PayloadRow) -> Self {
        Self { data: row.data, content_type: row.content_type }
    }
}

impl From<&TaskError> for ErrorRow {
    fn from(error: &TaskError) -> Self {
        Self {
            code: error.code.clone(),
            message: error.message.clone(),
            details: error.details.as_ref().map(PayloadRow::from),
        }
    }
}

impl From<ErrorRow> for TaskError {
    fn from(row: ErrorRow) -> Self {
        Self { code: row.code, message: row.message, details: row.details.map(Payload::from) }
    }
}

impl From<&TaskOptions> for OptionsRow {
    fn from(options: &TaskOptions) -> Self {
        Self {
            version: options.target.version.clone(),
            group: options.target.group.clone(),
            labels: options.target.labels.clone(),
            priority: options.priority.into(),
            run_at: options.run_at.map(|at| at.0),
            queue_timeout_ms: options.queue_timeout_ms,
            run_timeout_ms: options.run_timeout_ms,
            deadline_ms: options.deadline_ms,
            max_attempts: options.retry.max_attempts,
            initial_backoff_ms: options.retry.initial_backoff_ms,
            max_backoff_ms: options.retry.max_backoff_ms,
            retention_ms: options.retention_ms,
            metadata: options.metadata.clone(),
        }
    }
}

impl From<OptionsRow> for TaskOptions {
    fn from(row: OptionsRow) -> Self {
        Self {
            target: Target { version: row.version, group: row.group, labels: row.labels },
            priority: row.priority.min(9) as u8,
            run_at: row.run_at.map(Timestamp),
            queue_timeout_ms: row.queue_timeout_ms,
            run_timeout_ms: row.run_timeout_ms,
            deadline_ms: row.deadline_ms,
            retry: RetryPolicy {
                max_attempts: row.max_attempts,
                initial_backoff_ms: row.initial_backoff_ms,
                max_backoff_ms: row.max_backoff_ms,
            },
            // Only durable tasks have rows.
            durability: Durability::Durable,
            retention_ms: row.retention_ms,
            metadata: row.metadata,
        }
    }
}

impl From<&Attempt> for AttemptRow {
    fn from(attempt: &Attempt) -> Self {
        Self {
            number: attempt.number,
            worker_id: attempt.worker_id.to_string(),
            started_at: attempt.started_at.0,
            ended_at: attempt.ended_at.0,
            error: Some((&attempt.error).into()),
        }
    }
}

impl TaskRow {
    fn into_task(
        self,
        id: TaskId,
        method: Arc<str>,
        options: Arc<TaskOptions>,
    ) -> Result<Task, &'static str> {
        let state = match self.state {
            None => State::Ready,
            Some(StateRow::DelayedUntil(until)) => State::Delayed { until: Timestamp(until) },
            Some(StateRow::Leased(row)) => {
                State::Leased { lease: row.lease, worker_id: Arc::from(row.worker_id) }
            }
            Some(StateRow::Succeeded(payload)) => State::Ended(Outcome::Succeeded(payload.into())),
            Some(StateRow::Failed(error)) => State::Ended(Outcome::Failed(Box::new(error.into()))),
            Some(StateRow::Cancelled(reason)) => State::Ended(Outcome::Cancelled(reason)),
            Some(StateRow::Expired(1)) => State::Ended(Outcome::Expired(ExpiredReason::QueueTimeout)),
            Some(StateRow::Expired(2)) => State::Ended(Outcome::Expired(ExpiredReason::Deadline)),
            Some(StateRow::Expired(_)) => return Err("unknown kind of expiry"),
        };
        let attempts = self.attempts.into_iter().map(|row| Attempt {
            number: row.number,
            worker_id: Arc::from(row.worker_id),
            started_at: Timestamp(row.started_at),
            ended_at: Timestamp(row.ended_at),
            error: row.error.map(TaskError::from).unwrap_or_default(),
        });
        Ok(Task {
            id,
            method,
            body: Body::Stored(self.payload_bytes).stored(),
            options,
            key: (!self.idempotency_key.is_empty()).then(|| {
                Box::new(IdempotencyKey { text: self.idempotency_key, digest: self.payload_digest })
            }),
            created_at: Timestamp(self.created_at),
            since: Timestamp(self.since),
            changed_at: Timestamp(self.changed_at),
            state,
            attempt: self.attempt,
            attempts: attempts.collect(),
            forget_at: if self.forget_at == 0 { Timestamp::NEVER } else { Timestamp(self.forget_at) },
        })
    }
}
