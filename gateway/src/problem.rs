//! Errors as `application/problem+json` (RFC 9457), and the one place that gives a reason its HTTP status.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use crewcall::error::{Error, ErrorKind, Reason};
use serde::Serialize;
use serde_json::value::RawValue;

/// Where the reasons are explained, each at an anchor of its name.
const TYPES: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/rest.md");

/// An error answer. `reason` is stable and meant for programs, `detail` for people.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    reason: &'static str,
    detail: String,
    retry_after_ms: Option<u64>,
    /// The task that ended so, and its outcome as JSON.
    ended: Option<Box<(String, Box<RawValue>)>>,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a RawValue>,
}

impl Problem {
    /// A problem with its HTTP status, a stable reason in snake case, and a sentence that says what was
    /// wrong.
    pub fn new(status: StatusCode, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { status, reason, detail: detail.into(), retry_after_ms: None, ended: None }
    }

    /// A request body, or a part of it, that cannot be read.
    pub(crate) fn invalid_json(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", detail)
    }

    /// Adds the task that ended so.
    pub(crate) fn with_outcome(mut self, task_id: String, outcome: Box<RawValue>) -> Self {
        self.ended = Some(Box::new((task_id, outcome)));
        self
    }

    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) fn retry_after_ms(&self) -> Option<u64> {
        self.retry_after_ms
    }

    /// The problem as JSON; `instance` is the path of the request that met it.
    pub(crate) fn to_json(&self, instance: Option<&str>) -> String {
        let document = Document {
            kind: &format!("{TYPES}#{}", self.reason),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            reason: self.reason,
            instance,
            retry_after_ms: self.retry_after_ms,
            task_id: self.ended.as_ref().map(|ended| ended.0.as_str()),
            outcome: self.ended.as_ref().map(|ended| &*ended.1),
        };
        // Strings, numbers and valid JSON: nothing in it can fail.
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// The answer, naming the path of the request.
    pub(crate) fn at(self, instance: &str) -> Response {
        let body = self.to_json(Some(instance));
        self.answer(body)
    }

    fn answer(self, body: String) -> Response {
        let mut response = (self.status, Body::from(body)).into_response();
        self.write_headers(response.headers_mut());
        response.extensions_mut().insert(self);
        response
    }

    fn write_headers(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
    }
}

/// The HTTP status of a refusal.
pub(crate) fn status_of(reason: Reason) -> StatusCode {
    match reason {
        Reason::PayloadTooLarge => return StatusCode::PAYLOAD_TOO_LARGE,
        Reason::StoreUnavailable => return StatusCode::INSUFFICIENT_STORAGE,
        _ => {}
    }
    match reason.kind() {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        // 412 is for conditional requests, which these are not.
        ErrorKind::Conflict | ErrorKind::Precondition | ErrorKind::Aborted => StatusCode::CONFLICT,
        ErrorKind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let retry_after_ms = error.retry_after_ms;
        let problem = Self::new(status_of(error.reason), error.reason.as_str(), error.message);
        Self { retry_after_ms, ..problem }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = self.to_json(None);
        self.answer(body)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Reasons that only the HTTP edge has.
    const OWN: &[(&str, u16)] = &[
        ("invalid_json", 400),
        ("body_unreadable", 400),
        ("websocket_protocol", 400),
        ("origin_not_allowed", 403),
        ("not_found", 404),
        ("method_not_allowed", 405),
        ("task_cancelled", 409),
        ("host_not_allowed", 421),
        ("task_failed", 422),
        ("upgrade_required", 426),
        ("task_expired", 504),
    ];

    #[test]
    fn every_reason_is_explained_where_its_type_points_to() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rest.md");
        let docs = fs::read_to_string(docs).unwrap();
        let core = Reason::ALL.iter().map(|reason| (reason.as_str(), status_of(*reason).as_u16()));
        for (reason, status) in core.chain(OWN.iter().copied()) {
            let line = format!("| <a id=\"{reason}\"></a>`{reason}` | {status} |");
            assert!(docs.contains(&line), "docs/rest.md has no line {line:?}");
        }
        let explained = docs.matches("<a id=").count();
        assert_eq!(explained, Reason::ALL.len() + OWN.len(), "docs/rest.md explains what is not there");
    }
}
