//! How a task is to be run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crewcall::clock::Timestamp;
use crewcall::error::{Error, Result};
use crewcall::task::{Durability, TaskOptions};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which verb's defaults apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Call,
    Submit,
}

/// How a task is to be run. Every field may be left out; 0 means not set, as in the gRPC API.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = TaskOptions)]
pub(crate) struct TaskOptionsDto {
    #[serde(skip_serializing_if = "TargetDto::is_empty", deserialize_with = "crate::v1::object::one")]
    pub(crate) target: TargetDto,
    /// 0 to 9, higher first. Default 4. A waiting task gains one step every 30 s.
    #[schema(maximum = 9)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u32>,
    /// Not before this time. At most a year ahead.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) run_at_unix_ms: u64,
    /// Longest wait for a worker, counted anew from each time the task becomes ready; then it expires.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) queue_timeout_ms: u64,
    /// Longest run of one attempt; then the worker is told to stop and the attempt counts as failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) run_timeout_ms: u64,
    /// From submission to outcome, all attempts and waits included; then it expires.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) deadline_ms: u64,
    #[serde(deserialize_with = "crate::v1::object::one")]
    pub(crate) retry: RetryPolicyDto,
    /// At most 256 bytes. While a task with this key and method is known, a second one is not made.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) idempotency_key: String,
    /// Default: ephemeral for a call, durable for a submitted task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) durability: Option<DurabilityDto>,
    /// How long the outcome can be fetched after the end. At most 30 days.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) retention_ms: u64,
    /// Passed to the worker unchanged. At most 32 entries, 4 KiB in all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Which workers may run a task. All given conditions must hold.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = Target)]
pub(crate) struct TargetDto {
    /// Semantic version range of the method, such as `^1.2`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) version: String,
    /// Only workers of this group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) group: String,
    /// Only workers that carry all of these labels. At most 16.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
}

impl TargetDto {
    fn is_empty(&self) -> bool {
        self.version.is_empty() && self.group.is_empty() && self.labels.is_empty()
    }
}

/// What to do when an attempt fails.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = RetryPolicy)]
pub(crate) struct RetryPolicyDto {
    /// Attempts in all, the first included. Default: 1 for a call, 5 for a submitted task. At most 1000.
    pub(crate) max_attempts: u32,
    /// Wait before the second attempt. Default 1000, at most a day.
    pub(crate) initial_backoff_ms: u64,
    /// The wait doubles with each attempt up to this. Default 60000, at most a day.
    pub(crate) max_backoff_ms: u64,
}

/// What a task's life must survive.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Durability)]
pub(crate) enum DurabilityDto {
    /// A restart of the server loses it.
    Ephemeral,
    /// Acknowledged only once the store has it.
    Durable,
}

impl TaskOptionsDto {
    /// As they are, with defaults filled in.
    pub(super) fn new(options: &TaskOptions, idempotency_key: &str) -> Self {
        Self {
            target: TargetDto {
                version: options.target.version.clone(),
                group: options.target.group.clone(),
                labels: options.target.labels.clone(),
            },
            priority: Some(options.priority.into()),
            run_at_unix_ms: options.run_at.map_or(0, |at| at.0),
            queue_timeout_ms: options.queue_timeout_ms,
            run_timeout_ms: options.run_timeout_ms,
            deadline_ms: options.deadline_ms,
            retry: RetryPolicyDto {
                max_attempts: options.retry.max_attempts,
                initial_backoff_ms: options.retry.initial_backoff_ms,
                max_backoff_ms: options.retry.max_backoff_ms,
            },
            idempotency_key: idempotency_key.to_owned(),
            durability: Some(match options.durability {
                Durability::Ephemeral => DurabilityDto::Ephemeral,
                Durability::Durable => DurabilityDto::Durable,
            }),
            retention_ms: options.retention_ms.unwrap_or_default(),
            metadata: options.metadata.clone(),
        }
    }

    /// The options in full, and the idempotency key. The shared default is returned when nothing is set, which the scheduler need
    /// not check.
    ///
    /// # Errors
    /// `invalid_field` for what cannot be said in the words of the core; the scheduler checks the rest.
    pub(crate) fn fill_in(self, verb: Verb) -> Result<(Arc<TaskOptions>, String)> {
        let default = match verb {
            Verb::Call => TaskOptions::shared_call(),
            Verb::Submit => TaskOptions::shared_submit(),
        };
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let priority = self.priority.map_or(Ok(default.priority), |priority| {
            u8::try_from(priority)
                .map_err(|_| Error::invalid("options.priority", format_args!("is {priority}; at most 9")))
        })?;
        let retry = self.retry;
        let options = TaskOptions {
            target: crewcall::task::Target {
                version: self.target.version,
                group: self.target.group,
                labels: self.target.labels,
            },
            priority,
            run_at: (self.run_at_unix_ms > 0).then_some(Timestamp(self.run_at_unix_ms)),
            queue_timeout_ms: self.queue_timeout_ms,
            run_timeout_ms: self.run_timeout_ms,
            deadline_ms: self.deadline_ms,
            retry: crewcall::task::RetryPolicy {
                max_attempts: match retry.max_attempts {
                    0 => default.retry.max_attempts,
                    given => given,
                },
                initial_backoff_ms: or(retry.initial_backoff_ms, default.retry.initial_backoff_ms),
                max_backoff_ms: or(retry.max_backoff_ms, default.retry.max_backoff_ms),
            },
            durability: match self.durability {
                Some(DurabilityDto::Ephemeral) => Durability::Ephemeral,
                Some(DurabilityDto::Durable) => Durability::Durable,
                None => default.durability,
            },
            retention_ms: (self.retention_ms > 0).then_some(self.retention_ms),
            metadata: self.metadata,
        };
        let options = if options == *default { default } else { Arc::new(options) };
        Ok((options, self.idempotency_key))
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(value: &u64) -> bool {
    *value == 0
}
