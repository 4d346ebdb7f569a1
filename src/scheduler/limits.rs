//! A limit for everything that can grow. At a limit the request is refused with a reason; nothing stalls.

use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Reason, Result};
use crate::task::Payload;

/// All limits and periods of the scheduler, with their defaults. The unit is in the name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest payload, result or chunk.
    pub payload_bytes: usize,
    /// Room in a message or a JSON document for what stands around one payload of the largest size.
    pub overhead_bytes: usize,
    /// Longest wait for the outcome of a task in one request. Over it: `invalid_field`.
    pub wait_ms: u64,
    /// Tasks known at once, ended ones included. At the limit: `server_full`.
    pub tasks: usize,
    /// Payloads and outcomes held in memory, of all tasks together. At the limit: `server_full`.
    pub total_bytes: usize,
    /// Payloads of durable tasks held in memory. Those of tasks that wait beyond it lie in the store only, and are
    /// read back when a worker gets the task; nothing is refused. After a restart all of them do.
    pub resident_payload_bytes: usize,
    /// Tasks that wait for workers in one queue. At the limit: `queue_full`.
    pub queue_tasks: usize,
    /// Distinct queues (method and target). At the limit: `server_full`.
    pub queues: usize,
    /// Tasks in one Submit. Over it: `too_many_items`.
    pub submit_tasks: usize,
    /// Calls in flight on one pipe. Over it: `too_many_in_flight`.
    pub pipe_calls: usize,
    /// Callers that wait for one task. Over it: `server_full`.
    pub waiters_per_task: usize,
    /// Watch streams. Over it: `too_many_watchers`.
    pub watchers: usize,
    /// Tasks named in one Watch. Over it: `too_many_items`.
    pub watch_tasks: usize,
    /// Events one watcher may leave unread. Beyond, its stream ends with `slow_reader`.
    pub watch_backlog: usize,
    /// Recent events kept so that a filter Watch can go on from its cursor.
    pub events_kept: usize,
    /// Chunks kept of one task; older ones are dropped.
    pub chunks_per_task: usize,
    /// Bytes of chunks kept of one task; older ones are dropped.
    pub chunk_bytes_per_task: usize,
    /// Ended calls whose caller got the outcome, kept for people to look at. The oldest is forgotten.
    pub answered_tasks: usize,
    /// Bytes of those. The oldest is forgotten.
    pub answered_bytes: usize,
    /// Sessions at once, broken ones that may come back included. Over it: `too_many_workers`.
    pub sessions: usize,
    /// Methods of one worker. Over it: `too_many_items`.
    pub methods_per_worker: usize,
    /// Pools of one worker. Over it: `too_many_items`.
    pub pools_per_worker: usize,
    /// Labels of one worker, or of one target. Over it: `too_many_items`.
    pub labels: usize,
    /// Docs, or one schema, of a method. Over it: `invalid_field`.
    pub docs_bytes: usize,
    /// Examples of one method. Over it: `too_many_items`.
    pub examples: usize,
    /// Credit beyond what is assigned, and concurrency, of one pool. More is cut to it.
    pub credit_per_pool: u32,
    /// Entries in one frame of a worker. Over it the stream ends with `too_many_items`.
    pub frame_entries: usize,
    /// Silence that ends all leases of a session.
    pub lease_ms: u64,
    /// How often a worker must send a beat. Well below `lease_ms`.
    pub beat_ms: u64,
    /// How long a broken session can be resumed.
    pub resume_ms: u64,
    /// A waiting task gains one step of priority each time this passes.
    pub ageing_ms: u64,
    /// Retention of submitted tasks that name none.
    pub retention_ms: u64,
    /// Retention of durable tasks that died and name none: the dead letters.
    pub dead_retention_ms: u64,
    /// Dead letters kept for `dead_retention_ms`. At the limit a task that dies is kept for `retention_ms`.
    pub dead_tasks: usize,
    /// Bytes of those. At the limit likewise.
    pub dead_bytes: usize,
    /// Dead letters retried, discarded or named in one request. Over it: `too_many_items`.
    pub dead_batch: usize,
    /// Paused methods. At the limit: `server_full`.
    pub pauses: usize,
    /// Workers that were asked to leave and have not left. At the limit: `server_full`.
    pub drains: usize,
    /// How long a worker that was asked to leave, and is not connected, stays asked.
    pub drain_ms: u64,
    /// Retention of calls whose caller got the outcome.
    pub answered_retention_ms: u64,
}

impl Limits {
    /// The largest message of an edge that carries payloads as they are.
    #[must_use]
    pub const fn message_bytes(&self) -> usize {
        self.payload_bytes.saturating_add(self.overhead_bytes)
    }

    /// The largest JSON document, in which a payload may stand in base64.
    #[must_use]
    pub const fn document_bytes(&self) -> usize {
        self.payload_bytes.div_ceil(3).saturating_mul(4).saturating_add(self.overhead_bytes)
    }

    /// How long a request may wait for an outcome. `field` names it in the error.
    ///
    /// # Errors
    /// `invalid_field` beyond `wait_ms`.
    pub fn check_wait(&self, field: &str, wait: Duration) -> Result<()> {
        let most = Duration::from_millis(self.wait_ms);
        if wait <= most {
            return Ok(());
        }
        Err(Error::invalid(field, format_args!("is {wait:?}; at most {most:?} (limits.wait_ms)")))
    }

    /// How many tasks one Submit may hold. Edges ask before they look at each task, so that a message of a
    /// million empty ones costs nothing more.
    ///
    /// # Errors
    /// `too_many_items` for none and for more than `submit_tasks`.
    pub fn check_submit(&self, count: usize) -> Result<()> {
        if (1..=self.submit_tasks).contains(&count) {
            return Ok(());
        }
        let message = format!("tasks: {count} given; hand in 1 to {} at once", self.submit_tasks);
        Err(Error::new(Reason::TooManyItems, message))
    }

    /// Whether a payload, result or chunk may be as large as it is. `what` names it in the error.
    ///
    /// # Errors
    /// `payload_too_large`; `invalid_field` for a content type over 256 bytes.
    pub fn check_payload(&self, what: &str, payload: &Payload) -> Result<()> {
        let (size, max) = (payload.data.len(), self.payload_bytes);
        if size > max {
            let message = format!("{what}: {size} bytes; at most {max} (limits.payload_bytes)");
            return Err(Error::new(Reason::PayloadTooLarge, message));
        }
        let (size, max) = (payload.content_type.len(), 256);
        if size > max {
            let field = format!("{what}.content_type");
            return Err(Error::invalid(&field, format_args!("{size} bytes; at most {max}")));
        }
        Ok(())
    }

    /// How many calls one frame of a pipe may hold.
    ///
    /// # Errors
    /// `too_many_items` for more than may be in flight at all.
    pub fn check_pipe_frame(&self, count: usize) -> Result<()> {
        if count <= self.pipe_calls {
            return Ok(());
        }
        let message = format!("calls: {count} in one frame; at most {} (limits.pipe_calls)", self.pipe_calls);
        Err(Error::new(Reason::TooManyItems, message))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes: 4 << 20,
            overhead_bytes: 4 << 20,
            wait_ms: 300_000,
            tasks: 2_000_000,
            total_bytes: 2 << 30,
            resident_payload_bytes: 16 << 20,
            queue_tasks: 1_000_000,
            queues: 100_000,
            submit_tasks: 10_000,
            pipe_calls: 65_536,
            waiters_per_task: 1_000,
            watchers: 1_000,
            watch_tasks: 1_000,
            watch_backlog: 10_000,
            events_kept: 10_000,
            chunks_per_task: 256,
            chunk_bytes_per_task: 1 << 20,
            answered_tasks: 10_000,
            answered_bytes: 64 << 20,
            sessions: 20_000,
            methods_per_worker: 1_000,
            pools_per_worker: 16,
            labels: 16,
            docs_bytes: 64 << 10,
            examples: 16,
            credit_per_pool: 65_536,
            frame_entries: 65_536,
            lease_ms: 10_000,
            beat_ms: 3_000,
            resume_ms: 10_000,
            ageing_ms: 30_000,
            retention_ms: 3_600_000,
            dead_retention_ms: 2_592_000_000,
            dead_tasks: 100_000,
            dead_bytes: 256 << 20,
            dead_batch: 1_000,
            pauses: 1_000,
            drains: 20_000,
            drain_ms: 3_600_000,
            answered_retention_ms: 60_000,
        }
    }
}
