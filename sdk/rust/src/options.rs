//! How a task is to be run.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;

use crate::error::CallError;
pub use crate::proto::{Durability, NewTask, Payload, RetryPolicy, Target, TaskOptions};

/// Builds a task step by step. Every option may be left out; limits and defaults stand in
/// `proto/crewcall/v1/task.proto`.
///
/// From [`Client::task`](crate::Client::task) it can be sent at once; from [`TaskBuilder::new`] it ends in
/// [`build`](TaskBuilder::build), for [`Client::submit_many`](crate::Client::submit_many) and
/// [`Pipe::call_raw`](crate::Pipe::call_raw).
#[derive(Debug)]
#[must_use = "a task that is built but not sent does nothing"]
pub struct TaskBuilder<C = ()> {
    pub(crate) client: C,
    task: NewTask,
    // Kept until the end so that the setters chain.
    error: Option<CallError>,
}

impl TaskBuilder {
    /// A task of this method, not bound to a client.
    pub fn new(method: impl Into<String>) -> Self {
        Self::bound(method, ())
    }
}

impl<C> TaskBuilder<C> {
    pub(crate) fn bound(method: impl Into<String>, client: C) -> Self {
        Self { client, task: NewTask { method: method.into(), ..NewTask::default() }, error: None }
    }

    /// The input, as JSON. A value that cannot be written is reported when the task is sent or built.
    pub fn payload<In: Serialize + ?Sized>(mut self, input: &In) -> Self {
        match Payload::json(input) {
            Ok(payload) => self.task.payload = Some(payload),
            Err(error) => self.error = Some(error),
        }
        self
    }

    /// The input as bytes of any media type; an empty type means `application/json`.
    pub fn payload_raw(mut self, data: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        self.task.payload = Some(Payload::raw(data, content_type));
        self
    }

    /// Replaces all options set so far.
    pub fn options(mut self, options: TaskOptions) -> Self {
        self.task.options = Some(options);
        self
    }

    /// Semantic version range of the method, for example `^1.2`. Default: the newest version that has a
    /// live worker.
    pub fn version(mut self, range: impl Into<String>) -> Self {
        self.target().version = range.into();
        self
    }

    /// Only workers of this group.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.target().group = group.into();
        self
    }

    /// Only workers that carry this label; several must all hold.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.target().labels.insert(key.into(), value.into());
        self
    }

    /// 0 to 9, higher first. Default 4.
    pub fn priority(mut self, priority: u32) -> Self {
        self.set().priority = Some(priority);
        self
    }

    /// Not before this time.
    pub fn run_at(mut self, at: SystemTime) -> Self {
        let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.set().run_at_unix_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        self
    }

    /// Longest wait for a worker, counted anew each time the task becomes ready.
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.set().queue_timeout_ms = millis(timeout);
        self
    }

    /// Longest run of one attempt.
    pub fn run_timeout(mut self, timeout: Duration) -> Self {
        self.set().run_timeout_ms = millis(timeout);
        self
    }

    /// From submission to outcome, all attempts and waits included.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.set().deadline_ms = millis(deadline);
        self
    }

    /// What to do when an attempt fails.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.set().retry = Some(policy);
        self
    }

    /// Attempts in all, the first included, with the default waits between them unless [`retry`](Self::retry)
    /// set others.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.set().retry.get_or_insert_default().max_attempts = attempts;
        self
    }

    /// A second task with this key and method does not run; its caller gets the first one's outcome.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.set().idempotency_key = key.into();
        self
    }

    /// Acknowledged only once stored; survives a restart of the scheduler. The default of `submit`.
    pub fn durable(mut self) -> Self {
        self.set().durability = Durability::Durable.into();
        self
    }

    /// Never stored. The default of `call`.
    pub fn ephemeral(mut self) -> Self {
        self.set().durability = Durability::Ephemeral.into();
        self
    }

    /// How long the outcome can be fetched after the end.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.set().retention_ms = millis(retention);
        self
    }

    /// Passed to the worker unchanged.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.set().metadata.insert(key.into(), value.into());
        self
    }

    /// The finished task.
    ///
    /// # Errors
    /// [`CallError::Encode`] when the payload could not be written as JSON.
    pub fn build(self) -> Result<NewTask, CallError> {
        self.into_parts().map(|(_, task)| task)
    }

    pub(crate) fn into_parts(self) -> Result<(C, NewTask), CallError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok((self.client, self.task)),
        }
    }

    fn set(&mut self) -> &mut TaskOptions {
        self.task.options.get_or_insert_default()
    }

    fn target(&mut self) -> &mut Target {
        self.set().target.get_or_insert_default()
    }
}

/// Whole milliseconds, rounded up: 0 would mean "not set".
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_land_in_their_fields() {
        let task = TaskBuilder::new("add")
            .payload(&1)
            .version("^1")
            .label("gpu", "a100")
            .group("g")
            .priority(0)
            .deadline(Duration::from_micros(1))
            .max_attempts(3)
            .durable()
            .metadata("k", "v")
            .build()
            .unwrap();
        let options = task.options.unwrap();
        let target = options.target.unwrap();
        assert_eq!(task.method, "add");
        assert_eq!((target.version.as_str(), target.group.as_str()), ("^1", "g"));
        assert_eq!(target.labels["gpu"], "a100");
        assert_eq!(options.priority, Some(0));
        assert_eq!(options.deadline_ms, 1, "a short deadline is not rounded down to none");
        assert_eq!(options.retry.unwrap().max_attempts, 3);
        assert_eq!(options.durability, i32::from(Durability::Durable));
        assert_eq!(options.metadata["k"], "v");
    }

    #[test]
    fn an_input_that_is_no_json_is_reported_at_the_end() {
        let bad = std::collections::HashMap::from([(vec![1], 1)]);
        let error = TaskBuilder::new("add").payload(&bad).priority(1).build().unwrap_err();
        assert!(matches!(error, CallError::Encode(_)), "{error:?}");
    }
}
