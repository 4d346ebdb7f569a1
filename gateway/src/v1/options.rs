//! The options of a call as query parameters or headers: `?queue_timeout=5s` is `Crewcall-Queue-Timeout: 5s`.
//!
//! | parameter | value |
//! |---|---|
//! | `priority` | 0 to 9 |
//! | `deadline` `queue_timeout` `run_timeout` `retention` `initial_backoff` `max_backoff` | a duration: `500ms`, `30s`, `5m` |
//! | `max_attempts` | 1 to 1000 |
//! | `run_at` | RFC 3339 in UTC, or milliseconds since 1970 |
//! | `durability` | `ephemeral` or `durable` |
//! | `version` `group` | which workers |
//! | `label` `metadata` | `key=value`; may be repeated |
//! | `idempotency_key` | or the header `Idempotency-Key` |
//!
//! `traceparent` and `tracestate` (W3C Trace Context) go to the worker as metadata.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::http::{HeaderMap, HeaderName};
use crewcall::error::{Error, Result};
use crewcall::task::TaskOptions;

use super::dto::{DurabilityDto, RetryPolicyDto, TargetDto, TaskOptionsDto, Verb};
use super::params::{Params, duration};

const PREFIX: &str = "crewcall-";
const TRACE_CONTEXT: [&str; 2] = ["traceparent", "tracestate"];
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Takes the options and the idempotency key out of the query and the headers.
///
/// # Errors
/// `invalid_field`, naming the parameter: unknown, repeated, given in both places, or unreadable.
pub(super) fn options(params: &mut Params, headers: &HeaderMap) -> Result<(Arc<TaskOptions>, String)> {
    // Most calls name no option. Asking for each of them by name allocates dozens of times.
    if params.is_empty() && !headers.keys().any(is_option) {
        return Ok((TaskOptions::shared_call(), String::new()));
    }
    let mut given = Given { params, headers, known: Vec::new() };
    let mut options = TaskOptionsDto {
        priority: given.number("priority")?,
        deadline_ms: given.duration_ms("deadline")?,
        queue_timeout_ms: given.duration_ms("queue_timeout")?,
        run_timeout_ms: given.duration_ms("run_timeout")?,
        retention_ms: given.duration_ms("retention")?,
        retry: RetryPolicyDto {
            max_attempts: given.attempts("max_attempts")?,
            initial_backoff_ms: given.duration_ms("initial_backoff")?,
            max_backoff_ms: given.duration_ms("max_backoff")?,
        },
        run_at_unix_ms: given.time_ms("run_at")?,
        durability: given.durability("durability")?,
        target: TargetDto {
            version: given.one("version")?.unwrap_or_default(),
            group: given.one("group")?.unwrap_or_default(),
            labels: given.pairs("label")?,
        },
        metadata: given.pairs("metadata")?,
        idempotency_key: given.idempotency_key()?,
    };
    given.finish()?;
    for name in TRACE_CONTEXT {
        if let Some(value) = headers.get(name) {
            options.metadata.entry(name.to_owned()).or_insert(text(name, value)?);
        }
    }
    options.fill_in(Verb::Call)
}

/// Whether the header says something about the call.
fn is_option(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with(PREFIX) || name == IDEMPOTENCY_KEY || TRACE_CONTEXT.contains(&name)
}

struct Given<'a> {
    params: &'a mut Params,
    headers: &'a HeaderMap,
    /// Headers asked for so far.
    known: Vec<String>,
}

impl Given<'_> {
    fn all(&mut self, name: &'static str) -> Result<Vec<String>> {
        let header = format!("{PREFIX}{}", name.replace('_', "-"));
        let mut values = self.params.all(name);
        let headers = self.headers.get_all(&header);
        if !values.is_empty() && headers.iter().next().is_some() {
            return Err(Error::invalid(
                name,
                format_args!("is given in the query and as the header {header}"),
            ));
        }
        for value in headers {
            values.push(text(&header, value)?);
        }
        self.known.push(header);
        Ok(values)
    }

    fn one(&mut self, name: &'static str) -> Result<Option<String>> {
        let mut values = self.all(name)?;
        if values.len() > 1 {
            return Err(Error::invalid(name, format_args!("is given {} times", values.len())));
        }
        Ok(values.pop())
    }

    fn number(&mut self, name: &'static str) -> Result<Option<u32>> {
        let Some(given) = self.one(name)? else { return Ok(None) };
        let number = given.parse();
        number.map(Some).map_err(|problem| Error::invalid(name, format_args!("{given:?}: {problem}")))
    }

    fn attempts(&mut self, name: &'static str) -> Result<u32> {
        match self.number(name)? {
            Some(0) => Err(Error::invalid(name, "is 0; at least 1")),
            attempts => Ok(attempts.unwrap_or(0)),
        }
    }

    fn durability(&mut self, name: &'static str) -> Result<Option<DurabilityDto>> {
        match self.one(name)?.as_deref() {
            None => Ok(None),
            Some("ephemeral") => Ok(Some(DurabilityDto::Ephemeral)),
            Some("durable") => Ok(Some(DurabilityDto::Durable)),
            Some(other) => {
                Err(Error::invalid(name, format_args!("{other:?} is neither ephemeral nor durable")))
            }
        }
    }

    fn duration_ms(&mut self, name: &'static str) -> Result<u64> {
        let Some(given) = self.one(name)? else { return Ok(0) };
        match duration(name, &given)?.as_millis() {
            // 0 would mean "not set", which is not what it says.
            0 => Err(Error::invalid(name, format_args!("is {given}; at least 1ms, or leave it out"))),
            ms => Ok(u64::try_from(ms).unwrap_or(u64::MAX)),
        }
    }

    fn time_ms(&mut self, name: &'static str) -> Result<u64> {
        let Some(given) = self.one(name)? else { return Ok(0) };
        if let Ok(ms) = given.parse() {
            return Ok(ms);
        }
        let since = humantime::parse_rfc3339(&given).ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        since.and_then(|since| u64::try_from(since.as_millis()).ok()).ok_or_else(|| {
            let problem = "is neither a time such as 2026-01-31T12:00:00Z nor milliseconds since 1970";
            Error::invalid(name, format_args!("{given:?} {problem}"))
        })
    }

    fn pairs(&mut self, name: &'static str) -> Result<BTreeMap<String, String>> {
        let mut pairs = BTreeMap::new();
        for given in self.all(name)? {
            let Some((key, value)) = given.split_once('=') else {
                return Err(Error::invalid(name, format_args!("{given:?} is not key=value")));
            };
            if pairs.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(Error::invalid(name, format_args!("{key:?} is given twice")));
            }
        }
        Ok(pairs)
    }

    fn idempotency_key(&mut self) -> Result<String> {
        let own = self.one("idempotency_key")?;
        let Some(usual) = self.headers.get(IDEMPOTENCY_KEY) else { return Ok(own.unwrap_or_default()) };
        if own.is_some() {
            return Err(Error::invalid("idempotency_key", "is given beside the header idempotency-key"));
        }
        text(IDEMPOTENCY_KEY, usual)
    }

    fn finish(self) -> Result<()> {
        let unknown = self.headers.keys().find(|name| {
            name.as_str().starts_with(PREFIX) && !self.known.iter().any(|known| name.as_str() == known)
        });
        match unknown {
            None => Ok(()),
            Some(name) => {
                let known = self.known.join(", ");
                Err(Error::invalid("header", format_args!("{name} is unknown; a call takes {known}")))
            }
        }
    }
}

fn text(name: &str, value: &axum::http::HeaderValue) -> Result<String> {
    std::str::from_utf8(value.as_bytes()).map(str::to_owned).map_err(|_| Error::invalid(name, "is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use axum::extract::FromRequestParts as _;
    use crewcall::clock::Timestamp;
    use crewcall::task::Durability;

    use super::*;

    fn read(query: &str, lines: &[(&'static str, &str)]) -> Result<(Arc<TaskOptions>, String)> {
        let mut request = axum::http::Request::get(format!("/?{query}"));
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let mut params = futures_util::FutureExt::now_or_never(Params::from_request_parts(&mut parts, &()))
            .unwrap()
            .unwrap();
        let read = options(&mut params, &parts.headers)?;
        params.finish()?;
        Ok(read)
    }

    #[test]
    fn a_call_without_options_shares_the_default() {
        let (options, key) = read("", &[("content-type", "application/json"), ("host", "a")]).unwrap();
        assert!(Arc::ptr_eq(&options, &TaskOptions::shared_call()));
        assert_eq!(key, "");
    }

    #[test]
    fn a_single_header_is_not_missed() {
        let options = |name, value| read("", &[("host", "a"), (name, value)]).unwrap();
        assert_eq!(options("crewcall-priority", "9").0.priority, 9);
        assert_eq!(options("idempotency-key", "key").1, "key");
        assert_eq!(options("tracestate", "a=b").0.metadata.len(), 1);
    }

    #[test]
    fn every_option_by_query_is_the_same_by_header() {
        let by_query = read(
            "priority=9&deadline=1m&queue_timeout=500ms&run_timeout=1h&retention=1day&initial_backoff=2s\
             &max_backoff=3s&max_attempts=7&run_at=1700000000000&durability=durable&version=^1.2&group=g\
             &label=a%3D1&label=b%3Dx%3Dy&metadata=k%3Dv&idempotency_key=key",
            &[],
        )
        .unwrap();
        let by_header = read(
            "",
            &[
                ("crewcall-priority", "9"),
                ("crewcall-deadline", "60s"),
                ("crewcall-queue-timeout", "500ms"),
                ("crewcall-run-timeout", "60m"),
                ("crewcall-retention", "24h"),
                ("crewcall-initial-backoff", "2000ms"),
                ("crewcall-max-backoff", "3s"),
                ("crewcall-max-attempts", "7"),
                ("crewcall-run-at", "2023-11-14T22:13:20Z"),
                ("crewcall-durability", "durable"),
                ("crewcall-version", "^1.2"),
                ("crewcall-group", "g"),
                ("crewcall-label", "a=1"),
                ("crewcall-label", "b=x=y"),
                ("crewcall-metadata", "k=v"),
                ("idempotency-key", "key"),
            ],
        )
        .unwrap();
        assert_eq!(by_query, by_header);
        let (by_query, key) = by_query;
        assert_eq!(key, "key");
        assert_eq!((by_query.deadline_ms, by_query.queue_timeout_ms), (60_000, 500));
        assert_eq!(by_query.run_at, Some(Timestamp(1_700_000_000_000)));
        assert_eq!(by_query.durability, Durability::Durable);
        assert_eq!(by_query.target.labels.get("b").map(String::as_str), Some("x=y"));
    }

    #[test]
    fn trace_context_goes_along() {
        let (options, _) = read("", &[("traceparent", "00-0-0-01"), ("tracestate", "a=b")]).unwrap();
        assert_eq!(options.metadata.get("traceparent").map(String::as_str), Some("00-0-0-01"));
        assert_eq!(options.metadata.get("tracestate").map(String::as_str), Some("a=b"));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        type Lines<'a> = &'a [(&'static str, &'a str)];
        let table: &[(&str, Lines<'_>, &str)] = &[
            ("priority=high", &[], "priority: \"high\": "),
            ("priority=300", &[], "options.priority: is 300"),
            ("deadline=5", &[], "deadline: \"5\": "),
            ("deadline=0s", &[], "deadline: is 0s; at least 1ms"),
            ("max_attempts=0", &[], "max_attempts: is 0"),
            ("run_at=tomorrow", &[], "run_at: \"tomorrow\" is neither"),
            ("run_at=1969-12-31T23:59:59Z", &[], "run_at: "),
            ("durability=forever", &[], "durability: \"forever\""),
            ("label=a", &[], "label: \"a\" is not key=value"),
            ("metadata=a%3D1&metadata=a%3D2", &[], "metadata: \"a\" is given twice"),
            ("priority=1&priority=2", &[], "priority: is given 2 times"),
            (
                "priority=1",
                &[("crewcall-priority", "1")],
                "priority: is given in the query and as the header",
            ),
            ("idempotency_key=a", &[("idempotency-key", "a")], "idempotency_key: is given beside"),
            ("dedline=1s", &[], "query: \"dedline\" is unknown"),
            ("", &[("crewcall-dedline", "1s")], "header: crewcall-dedline is unknown"),
        ];
        for (query, headers, expected) in table {
            let error = read(query, headers).unwrap_err();
            assert!(error.message.starts_with(expected), "{query} {headers:?}: {}", error.message);
        }
    }
}
