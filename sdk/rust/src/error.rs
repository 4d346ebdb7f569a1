//! What can go wrong with a call, by what the caller can do about it.
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::proto::{self, ExpiredReason, Outcome, Payload, TaskError, outcome};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The method ran and failed, or its worker was lost, and no attempt is left.
    #[error("the method failed ({code}): {message}")]
    Failed {
        /// For programs: what the handler chose, else `handler_error`; from the scheduler `worker_lost`
        /// or `run_timeout`.
        code: String,
        /// For people.
        message: String,
        /// More, in a form that handler and caller agree on.
        details: Option<Payload>,
    },
    /// The task was cancelled, with the reason given.
    #[error("the task was cancelled: {0}")]
    Cancelled(String),
    /// A deadline passed before the task ended.
    #[error("the task expired: {}", expired_words(*.0))]
    Expired(ExpiredReason),
    /// The scheduler did not accept the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection could not be opened or broke. What became of the task is not known; an idempotency
    /// key makes it safe to ask again.
    #[error("no answer from the scheduler: {0}")]
    Transport(String),
    /// The input could not be written as JSON; nothing was sent.
    #[error("the input cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// The answer arrived but is not what was expected.
    #[error("the answer cannot be read: {0}")]
    Decode(String),
}

/// A request, or one item of a list, that the scheduler did not accept. Nothing was executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused ({}): {message}", if reason.is_empty() { code.description() } else { reason.as_str() })]
pub struct Refusal {
    /// The kind of refusal.
    pub code: Code,
    /// Stable, for programs; empty when the server gave none.
    pub reason: String,
    /// For people.
    pub message: String,
    /// How long to wait before asking again, when waiting helps.
    pub retry_after: Option<Duration>,
}

impl CallError {
    /// True when the same request may well succeed later: the connection broke or the server was full or
    /// leaving. Says nothing about whether the task ran.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Transport(_) => true,
            Self::Refused(refusal) => {
                refusal.retry_after.is_some()
                    || matches!(refusal.code, Code::Unavailable | Code::ResourceExhausted)
            }
            _ => false,
        }
    }

    /// The refusal's stable reason or the failure's code; `None` for every other kind.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Failed { code, .. } => Some(code),
            Self::Refused(refusal) => Some(&refusal.reason),
            _ => None,
        }
    }

    pub(crate) fn missing(field: &str) -> Self {
        Self::Decode(format!("the server's answer lacks `{field}`: is it a crewcall server of this version?"))
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info();
        // A status with a source was made on this side, by the connection; without ErrorInfo, UNAVAILABLE
        // and UNKNOWN come from proxies and broken streams, never from a crewcall server.
        if std::error::Error::source(&status).is_some()
            || (info.is_none()
                && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled))
        {
            return Self::Transport(transport_words(&status));
        }
        Self::Refused(Refusal {
            code: status.code(),
            reason: info.map(|info| info.reason).unwrap_or_default(),
            message: status.message().to_owned(),
            retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
        })
    }
}

impl From<proto::Refusal> for Refusal {
    fn from(refusal: proto::Refusal) -> Self {
        Self {
            code: Code::from_i32(refusal.code),
            reason: refusal.reason,
            message: refusal.message,
            retry_after: (refusal.retry_after_ms > 0).then(|| Duration::from_millis(refusal.retry_after_ms)),
        }
    }
}

/// The result of a task, or why there is none.
///
/// # Errors
/// [`CallError::Failed`], [`CallError::Cancelled`] or [`CallError::Expired`], as the outcome says.
pub fn outcome_result(outcome: Option<Outcome>) -> Result<Payload, CallError> {
    match outcome.and_then(|outcome| outcome.kind) {
        Some(outcome::Kind::Succeeded(payload)) => Ok(payload),
        Some(outcome::Kind::Failed(TaskError { code, message, details })) => {
            Err(CallError::Failed { code, message, details })
        }
        Some(outcome::Kind::Cancelled(reason)) => Err(CallError::Cancelled(reason)),
        Some(outcome::Kind::Expired(reason)) => {
            Err(CallError::Expired(ExpiredReason::try_from(reason).unwrap_or_default()))
        }
        None => Err(CallError::missing("outcome")),
    }
}

fn expired_words(reason: ExpiredReason) -> &'static str {
    match reason {
        ExpiredReason::QueueTimeout => "no worker took it within its queue timeout",
        ExpiredReason::Deadline => "its deadline passed",
        ExpiredReason::Unspecified => "a deadline passed",
    }
}

/// tonic says "transport error"; what went wrong is in the chain of sources.
pub(crate) fn transport_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = match error.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_status_with_details_is_a_refusal() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("queue_full", "crewcall", HashMap::new())
            .set_retry_info(Some(Duration::from_secs(2)));
        let status = Status::with_error_details(Code::ResourceExhausted, "the queue is full", details);
        let CallError::Refused(refusal) = CallError::from(status) else { panic!("not a refusal") };
        assert_eq!(refusal.code, Code::ResourceExhausted);
        assert_eq!(refusal.reason, "queue_full");
        assert_eq!(refusal.message, "the queue is full");
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(2)));
        assert!(CallError::from(refusal).is_transient());
    }

    #[test]
    fn a_bare_unavailable_is_the_connection() {
        let error = CallError::from(Status::unavailable("gone"));
        assert!(matches!(&error, CallError::Transport(text) if text == "gone"), "{error:?}");
        let error = CallError::from(Status::unauthenticated("no key"));
        assert!(matches!(&error, CallError::Refused(refusal) if refusal.code == Code::Unauthenticated));
    }

    #[test]
    fn each_outcome_has_its_error() {
        let of = |kind| outcome_result(Some(Outcome { kind: Some(kind) }));
        assert_eq!(of(outcome::Kind::Succeeded(Payload::raw("1", ""))).unwrap().data, &b"1"[..]);
        let failed = TaskError { code: "c".into(), message: "m".into(), details: None };
        assert_eq!(of(outcome::Kind::Failed(failed)).unwrap_err().code(), Some("c"));
        assert!(
            matches!(of(outcome::Kind::Cancelled("why".into())), Err(CallError::Cancelled(why)) if why == "why")
        );
        assert!(matches!(of(outcome::Kind::Expired(2)), Err(CallError::Expired(ExpiredReason::Deadline))));
        assert!(matches!(
            of(outcome::Kind::Expired(77)),
            Err(CallError::Expired(ExpiredReason::Unspecified))
        ));
        assert!(matches!(outcome_result(None), Err(CallError::Decode(_))));
    }
}
