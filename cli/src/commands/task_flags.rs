//! A task on the command line: its payload and its options.

use std::{
    fs,
    io::{self, Read as _},
    time::{Duration, SystemTime},
};

use clap::Args;
use crewcall_sdk::{NewTask, TaskBuilder, options::RetryPolicy};

use super::{CommandError, duration, pair, some_duration};
use crate::json;

/// Options of a task. What is not given is left to the server's defaults.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Task options")]
pub(crate) struct TaskFlags {
    /// 0 to 9, higher first. Default: 4
    #[arg(long, value_name = "0-9", value_parser = clap::value_parser!(u32).range(0..=9))]
    pub(crate) priority: Option<u32>,

    /// From now to the outcome, all attempts and waits included; then the task expires
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    pub(crate) deadline: Option<Duration>,

    /// The longest wait for a worker; then the task expires
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    pub(crate) queue_timeout: Option<Duration>,

    /// The longest run of one attempt; then it is stopped and counts as failed
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    pub(crate) run_timeout: Option<Duration>,

    /// Not before this long from now
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) delay: Option<Duration>,

    /// Attempts after a failed first one. Default: 0 for call, 4 for submit
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=999))]
    pub(crate) retry: Option<u32>,

    /// The wait before the first retry; it doubles with each. Default: 1s
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    pub(crate) backoff: Option<Duration>,

    /// A task with this key and method runs once; whoever asks again gets its outcome
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,

    /// Semantic version range of the method, such as ^1.2. Default: the newest version that is served
    #[arg(long, value_name = "RANGE")]
    pub(crate) version_range: Option<String>,

    /// Only workers of this group
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<String>,

    /// Only workers with this label; may be given again, and all must hold
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) labels: Vec<(String, String)>,

    /// Passed to the worker; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) metadata: Vec<(String, String)>,

    /// How long the outcome can be fetched afterwards. Default: 1h for submit, 1m for call
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    pub(crate) retention: Option<Duration>,
}

/// What a task is to survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    Default,
    Yes,
    No,
}

impl TaskFlags {
    /// The task.
    ///
    /// # Errors
    /// Never for payloads that are bytes already; the signature is the builder's.
    pub(crate) fn task(
        &self,
        method: &str,
        payload: &Input,
        durable: Durable,
    ) -> Result<NewTask, CommandError> {
        let mut task =
            TaskBuilder::new(method).payload_raw(payload.data.clone(), payload.content_type.clone());
        if let Some(priority) = self.priority {
            task = task.priority(priority);
        }
        if let Some(deadline) = self.deadline {
            task = task.deadline(deadline);
        }
        if let Some(timeout) = self.queue_timeout {
            task = task.queue_timeout(timeout);
        }
        if let Some(timeout) = self.run_timeout {
            task = task.run_timeout(timeout);
        }
        if let Some(delay) = self.delay {
            let at = SystemTime::now()
                .checked_add(delay)
                .ok_or_else(|| CommandError::Usage("--delay: too far ahead; at most a year".to_owned()))?;
            task = task.run_at(at);
        }
        if self.retry.is_some() || self.backoff.is_some() {
            let backoff = self.backoff.map_or(0, |backoff| backoff.as_millis().max(1));
            task = task.retry(RetryPolicy {
                max_attempts: self.retry.map_or(0, |retries| retries + 1),
                initial_backoff_ms: u32::try_from(backoff).unwrap_or(u32::MAX),
                max_backoff_ms: 0,
            });
        }
        if let Some(key) = &self.idempotency_key {
            task = task.idempotency_key(key);
        }
        if let Some(range) = &self.version_range {
            task = task.version(range);
        }
        if let Some(group) = &self.group {
            task = task.group(group);
        }
        for (key, value) in &self.labels {
            task = task.label(key, value);
        }
        for (key, value) in &self.metadata {
            task = task.metadata(key, value);
        }
        if let Some(retention) = self.retention {
            task = task.retention(retention);
        }
        task = match durable {
            Durable::Default => task,
            Durable::Yes => task.durable(),
            Durable::No => task.ephemeral(),
        };
        Ok(task.build()?)
    }
}

/// What a method is called with.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) data: Vec<u8>,
    pub(crate) content_type: String,
}

impl Input {
    /// JSON that was checked.
    pub(crate) fn json(json: &str) -> Self {
        Self { data: json.as_bytes().to_vec(), content_type: String::new() }
    }

    /// `-` is stdin, `@FILE` a file, anything else the payload itself. JSON unless a content type is given.
    ///
    /// # Errors
    /// A file that cannot be read, and what is not JSON where it should be.
    pub(crate) fn read(argument: &str, content_type: Option<&str>) -> Result<Self, CommandError> {
        let (data, source) = match argument.strip_prefix('@') {
            None if argument == "-" => {
                let mut data = Vec::new();
                io::stdin().lock().read_to_end(&mut data)?;
                (data, "stdin".to_owned())
            }
            Some(path) => {
                let data = fs::read(path)
                    .map_err(|error| CommandError::Usage(format!("{path}: cannot be read: {error}")))?;
                (data, path.to_owned())
            }
            None => (argument.as_bytes().to_vec(), "the payload".to_owned()),
        };
        if let Some(content_type) = content_type {
            return Ok(Self { data, content_type: content_type.to_owned() });
        }
        json::check(&data)
            .map(|json| Self::json(json.get()))
            .map_err(|problem| CommandError::Usage(format!("{source} is not valid JSON: {problem}")))
    }
}
