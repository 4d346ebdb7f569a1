//! What stands in the path, the query and the headers of a request, read strictly: an unknown name is an
//! error, because a misspelt `deadline` that is silently ignored is worse.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path};
use axum::http::{HeaderMap, header, request::Parts};
use bytes::Bytes;
use crewcall::error::{Error, Result};
use crewcall::scheduler::Limits;
use crewcall::task::TaskId;

use crate::{Problem, body};

/// The one variable of a path, decoded.
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let segment = Path::<String>::from_request_parts(parts, state).await;
        segment.map(|Path(segment)| Self(segment)).map_err(|_| {
            Error::invalid("path", format_args!("{:?} is not percent-encoded UTF-8", parts.uri.path())).into()
        })
    }
}

impl Segment {
    pub(super) fn task_id(&self) -> Result<TaskId> {
        self.0.parse()
    }
}

/// The parameters of a query, each to be taken once.
pub(super) struct Params {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl Params {
    pub(super) fn parse(query: &str) -> Self {
        Self { left: form_urlencoded::parse(query.as_bytes()).into_owned().collect(), known: Vec::new() }
    }

    /// Whether every parameter that was given has been taken.
    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Every value of a parameter that may be repeated, in order.
    pub(super) fn all(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        let (taken, left) = std::mem::take(&mut self.left).into_iter().partition(|(found, _)| found == name);
        self.left = left;
        Vec::into_iter(taken).map(|(_, value)| value).collect()
    }

    /// The value of a parameter that stands once, or not at all.
    pub(super) fn one(&mut self, name: &'static str) -> Result<Option<String>> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(Error::invalid(name, format_args!("is given {} times", values.len())));
        }
        Ok(values.pop())
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool> {
        match self.one(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(other) => Err(Error::invalid(name, format_args!("{other:?} is neither true nor false"))),
        }
    }

    /// `wait`: how long to wait for the outcome.
    pub(super) fn wait(&mut self, limits: &Limits) -> Result<Option<Duration>> {
        let Some(text) = self.one("wait")? else { return Ok(None) };
        let wait = duration("wait", &text)?;
        limits.check_wait("wait", wait)?;
        Ok(Some(wait))
    }

    /// Nothing may be left.
    pub(super) fn finish(self) -> Result<()> {
        let Some((name, _)) = self.left.first() else { return Ok(()) };
        let shown: String = name.chars().take(64).collect();
        if self.known.is_empty() {
            return Err(Error::invalid("query", format_args!("{shown:?} is unknown; this route takes none")));
        }
        let known = self.known.join(", ");
        Err(Error::invalid("query", format_args!("{shown:?} is unknown; this route takes {known}")))
    }
}

/// A duration with its unit, such as `500ms`, `30s` or `1h 30m`.
pub(super) fn duration(field: &str, text: &str) -> Result<Duration> {
    humantime::parse_duration(text).map_err(|problem| {
        Error::invalid(
            field,
            format_args!("{text:?}: {problem}; write a number with its unit, such as 500ms, 30s or 5m"),
        )
    })
}

/// The whole body, at most `most` bytes of it.
///
/// # Errors
/// 413 before anything is buffered when the length is announced, else as soon as it is over; 400 when the
/// body breaks off.
pub(super) async fn read_body(headers: &HeaderMap, body: Body, most: usize) -> Result<Bytes, Problem> {
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > most as u64) {
        return Err(too_large(most));
    }
    body::read(body, most).await.map_err(|error| {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(cause) = source {
            if cause.is::<http_body_util::LengthLimitError>() {
                return too_large(most);
            }
            source = cause.source();
        }
        Problem::new(
            axum::http::StatusCode::BAD_REQUEST,
            "body_unreadable",
            format!("the body broke off: {error}"),
        )
    })
}

fn too_large(most: usize) -> Problem {
    let message = format!("the body is over {most} bytes, the limit (limits.payload_bytes)");
    Error::new(crewcall::error::Reason::PayloadTooLarge, message).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_taken_once_and_none_may_be_left() {
        let mut params = Params::parse("state=ready&state=dead&wait=1s&method=a%2Fb+c&x=");
        assert_eq!(params.all("state"), ["ready", "dead"]);
        assert_eq!(params.one("method").unwrap().as_deref(), Some("a/b c"));
        assert_eq!(params.wait(&Limits::default()).unwrap(), Some(Duration::from_secs(1)));
        let error = params.finish().unwrap_err();
        assert_eq!(error.message, "query: \"x\" is unknown; this route takes state, method, wait");
        assert!(Params::parse("a=1&a=2").one("a").is_err());
        for bad in ["wait=30", "wait=-1s", "wait=301s", "wait=s", "wait="] {
            assert!(Params::parse(bad).wait(&Limits::default()).is_err(), "{bad}");
        }
    }
}
