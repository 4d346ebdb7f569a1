//! Refusals as gRPC statuses, with google.rpc details, and as list items.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, ErrorKind};
use crate::proto;

/// The domain of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "crewcall";

pub(super) fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict => Code::AlreadyExists,
        ErrorKind::Precondition => Code::FailedPrecondition,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Aborted => Code::Aborted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Internal => Code::Internal,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(error.reason.as_str(), DOMAIN, std::collections::HashMap::new());
        if let Some(ms) = error.retry_after_ms {
            details.set_retry_info(Some(Duration::from_millis(ms)));
        }
        Self::with_error_details(code(error.kind()), error.message, details)
    }
}

impl From<Error> for proto::Refusal {
    fn from(error: Error) -> Self {
        Self {
            code: code(error.kind()) as i32,
            reason: error.reason.as_str().to_owned(),
            retry_after_ms: error.retry_after_ms.unwrap_or_default(),
            message: error.message,
        }
    }
}
