//! What a handler is given, and how it says that it failed.
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::link::Link;
use crate::options::millis;
use crate::proto::{self, Assign, Failure, Payload, Progress, TaskError};

/// The attempt a handler runs. Clones are the same attempt.
#[derive(Clone)]
pub struct Context {
    pub(crate) attempt: Arc<Attempt>,
}

pub(crate) struct Attempt {
    task_id: String,
    pub(crate) lease: u64,
    number: u32,
    method: String,
    version: String,
    deadline_unix_ms: i64,
    metadata: HashMap<String, String>,
    link: Arc<Link>,
    // Made when first asked for: most attempts end before anyone asks.
    cancelled: OnceLock<CancellationToken>,
    cancel_reason: OnceLock<String>,
}

impl Context {
    /// Splits an assignment into what the handler is told and what it works on.
    pub(crate) fn new(assign: Assign, link: Arc<Link>) -> (Self, Payload) {
        let attempt = Attempt {
            task_id: assign.task_id,
            lease: assign.lease,
            number: assign.attempt,
            method: assign.method,
            version: assign.version,
            deadline_unix_ms: assign.deadline_unix_ms,
            metadata: assign.metadata,
            link,
            cancelled: OnceLock::new(),
            cancel_reason: OnceLock::new(),
        };
        (Self { attempt: Arc::new(attempt) }, assign.payload.unwrap_or_default())
    }

    /// Id of the task, the same in every attempt.
    pub fn task_id(&self) -> &str {
        &self.attempt.task_id
    }

    /// The lease of this attempt. It rises with every assignment the scheduler ever makes, so another
    /// system can use it to refuse writes of an attempt that has been replaced.
    pub fn lease(&self) -> u64 {
        self.attempt.lease
    }

    /// Number of this attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.number
    }

    /// The method called.
    pub fn method(&self) -> &str {
        &self.attempt.method
    }

    /// The version of the method that was chosen; empty when it was registered without one.
    pub fn version(&self) -> &str {
        &self.attempt.version
    }

    /// What the caller attached for the worker.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.attempt.metadata
    }

    /// When the attempt will be stopped; `None` if never.
    pub fn deadline(&self) -> Option<SystemTime> {
        let millis = u64::try_from(self.attempt.deadline_unix_ms).ok().filter(|millis| *millis > 0)?;
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }

    /// Cancelled when the attempt must stop: its task was cancelled, it ran into its deadline, or the
    /// lease was lost. A handler that goes on is dropped at its next await a grace period later; its
    /// result would be refused anyway.
    pub fn cancelled(&self) -> &CancellationToken {
        self.attempt.token()
    }

    /// True when the attempt must stop.
    pub fn is_cancelled(&self) -> bool {
        self.attempt.cancelled.get().is_some_and(CancellationToken::is_cancelled)
    }

    /// Why the attempt must stop; empty until then or when no reason was given.
    pub fn cancel_reason(&self) -> &str {
        self.attempt.cancel_reason.get().map_or("", String::as_str)
    }

    /// Tells those who watch how far the work is; `total` 0 means unknown. Only the latest word is sent
    /// when words come faster than the stream takes them. Never waits.
    pub fn progress(&self, current: u64, total: u64, message: impl Into<String>) {
        if !self.is_cancelled() {
            self.attempt
                .link
                .progress(self.attempt.lease, Progress { current, total, message: message.into() });
        }
    }

    /// Sends a piece of output ahead of the result to those who watch. Waits while too many are queued,
    /// and so while the connection is down.
    ///
    /// # Errors
    /// `cancelled` when the attempt must stop, `payload_too_large` when the server would not take the
    /// piece. Both pass through `?`.
    pub async fn chunk(&self, payload: Payload) -> Result<(), HandlerError> {
        let link = &self.attempt.link;
        link.check_size(&payload)?;
        let sent = link.chunk(proto::Chunk { lease: self.attempt.lease, data: Some(payload) });
        tokio::select! {
            biased;
            () = self.attempt.token().cancelled() => Err(HandlerError::cancelled()),
            () = sent => Ok(()),
        }
    }

    /// Hands the task back: return this as the handler's error. Another worker gets it, and the attempt is
    /// not counted.
    pub fn release(&self) -> HandlerError {
        HandlerError::released()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("task_id", &self.attempt.task_id)
            .field("lease", &self.attempt.lease)
            .field("attempt", &self.attempt.number)
            .field("method", &self.attempt.method)
            .finish_non_exhaustive()
    }
}

impl Attempt {
    pub(crate) fn token(&self) -> &CancellationToken {
        self.cancelled.get_or_init(CancellationToken::new)
    }

    pub(crate) fn cancel(&self, reason: String) {
        // The first reason stays.
        let _ = self.cancel_reason.set(reason);
        self.token().cancel();
    }
}

/// Why a handler failed. Made by `?` from any error and from text, then refined:
/// `HandlerError::from("no such user").code("no_user").not_retryable()`.
///
/// It deliberately does not implement [`std::error::Error`]: only so can every error turn into it.
#[derive(Debug, Clone, PartialEq)]
pub struct HandlerError {
    /// For programs. `handler_error` unless chosen.
    pub code: String,
    /// For people. At most 16 KiB; the server cuts longer text.
    pub message: String,
    /// Whether another attempt may follow; `None`: as the task's policy says.
    pub retryable: Option<bool>,
    /// When to try again; replaces the policy's wait.
    pub retry_after: Option<Duration>,
    /// More, in a form that handler and caller agree on.
    pub details: Option<Box<Payload>>,
    released: bool,
}

impl HandlerError {
    /// An error with a code for programs and a message for people.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            retryable: None,
            retry_after: None,
            details: None,
            released: false,
        }
    }

    /// Not a failure: hands the task back unrun, without counting the attempt.
    pub fn released() -> Self {
        Self { released: true, ..Self::new("released", "handed back") }
    }

    /// The handler stopped because it was told to.
    pub fn cancelled() -> Self {
        Self::new("cancelled", "the attempt was told to stop")
    }

    /// Sets the code for programs.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// No further attempt, whatever the task's policy says.
    #[must_use]
    pub fn not_retryable(mut self) -> Self {
        self.retryable = Some(false);
        self
    }

    /// The next attempt, if one is left, comes after this long.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Attaches details that the caller can read.
    #[must_use]
    pub fn details(mut self, details: Payload) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released
    }
}

/// From every error, `&str` and `String`.
impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error: Box<dyn std::error::Error + Send + Sync> = error.into();
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new("handler_error", message)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl From<HandlerError> for Failure {
    fn from(error: HandlerError) -> Self {
        Self {
            error: Some(TaskError {
                code: error.code,
                message: error.message,
                details: error.details.map(|details| *details),
            }),
            retryable: error.retryable,
            retry_after_ms: error.retry_after.map_or(0, millis),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_text_turn_into_handler_errors() {
        fn from_error() -> Result<(), HandlerError> {
            "x".parse::<i32>()?;
            Ok(())
        }
        assert_eq!(from_error().unwrap_err().code, "handler_error");
        assert_eq!(HandlerError::from("text").message, "text");
        assert_eq!(HandlerError::from(String::from("text")).message, "text");
    }

    #[test]
    fn what_the_handler_says_reaches_the_wire() {
        let error = HandlerError::new("busy", "later").not_retryable().retry_after(Duration::from_secs(2));
        let failure = Failure::from(error);
        assert_eq!(failure.error.unwrap().code, "busy");
        assert_eq!((failure.retryable, failure.retry_after_ms), (Some(false), 2000));
        assert_eq!(Failure::from(HandlerError::new("c", "m")).retryable, None);
    }
}
