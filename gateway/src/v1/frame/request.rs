//! `SessionRequest`: what a worker says.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use crewcall::error::{Error, Reason, Result};
use crewcall::scheduler::{AttemptEnd, AttemptResult, Frame, Hello, Limits, PoolSpec, Update};
use crewcall::task::{Method, Progress, TaskError};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::BeatDto;
use crate::v1::object::{self, Object};
use crate::v1::payload::embedded;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RequestDto<'a> {
    #[serde(deserialize_with = "object::maybe")]
    hello: Option<HelloDto>,
    #[serde(deserialize_with = "object::many")]
    credits: Vec<CreditDto>,
    // Entries about attempts are read one by one: one that cannot be read is refused for itself.
    #[serde(borrow)]
    started: Vec<&'a RawValue>,
    #[serde(borrow)]
    progress: Vec<&'a RawValue>,
    #[serde(borrow)]
    chunks: Vec<&'a RawValue>,
    #[serde(borrow)]
    results: Vec<&'a RawValue>,
    #[serde(borrow)]
    released: Vec<&'a RawValue>,
    #[serde(deserialize_with = "object::maybe")]
    beat: Option<BeatDto>,
    #[serde(deserialize_with = "object::maybe")]
    update: Option<UpdateDto>,
    #[serde(deserialize_with = "object::maybe")]
    bye: Option<ByeDto>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HelloDto {
    /// The worker key, for clients that cannot set a header.
    key: String,
    protocol_min: u32,
    protocol_max: u32,
    worker_id: String,
    boot_id: String,
    resume_token: String,
    group: String,
    labels: BTreeMap<String, String>,
    version: String,
    sdk: String,
    host: String,
    #[serde(deserialize_with = "object::many")]
    pools: Vec<PoolDto>,
    #[serde(deserialize_with = "object::many")]
    methods: Vec<MethodDto>,
    in_flight: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolDto {
    #[serde(default)]
    name: String,
    concurrency: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MethodDto {
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    summary: String,
    #[serde(default)]
    docs: String,
    #[serde(default)]
    input_schema: String,
    #[serde(default)]
    output_schema: String,
    #[serde(default)]
    examples: Vec<String>,
    #[serde(default)]
    pool: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreditDto {
    #[serde(default)]
    pool: String,
    total: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateDto {
    #[serde(default, deserialize_with = "object::many")]
    pools: Vec<PoolDto>,
    #[serde(default, deserialize_with = "object::many")]
    methods: Vec<MethodDto>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByeDto {
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseDto {
    lease: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgressReportDto {
    lease: u64,
    #[serde(deserialize_with = "object::one")]
    progress: ProgressDto,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgressDto {
    #[serde(default)]
    current: u64,
    #[serde(default)]
    total: u64,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChunkDto<'a> {
    lease: u64,
    #[serde(default, borrow, deserialize_with = "crate::v1::payload::present")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultDto<'a> {
    lease: u64,
    #[serde(default)]
    seq: u64,
    #[serde(default, borrow, deserialize_with = "crate::v1::payload::present")]
    succeeded: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "object::maybe")]
    failed: Option<FailureDto<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FailureDto<'a> {
    #[serde(default, borrow, deserialize_with = "object::maybe")]
    error: Option<TaskErrorDto<'a>>,
    #[serde(default)]
    retryable: Option<bool>,
    #[serde(default)]
    retry_after_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskErrorDto<'a> {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default, borrow, deserialize_with = "crate::v1::payload::present")]
    details: Option<&'a RawValue>,
}

/// What a worker said in one message.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Who it is, with the key that it showed.
    pub(crate) hello: Option<(Hello, String)>,
    pub(crate) frame: Frame,
    /// Entries that could not be read, with their lease as far as it could be.
    pub(crate) refused: Vec<(u64, Error)>,
}

impl Said {
    /// Leases about which the worker has said its last word.
    pub(crate) fn finished(&self) -> impl Iterator<Item = u64> {
        let results = self.frame.results.iter().map(|result| result.lease);
        results.chain(self.frame.released.iter().copied())
    }
}

/// Why a message could not be read.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// It is not JSON.
    Json(String),
    /// It is, and breaks a rule.
    Rule(Error),
}

impl From<Error> for Unreadable {
    fn from(error: Error) -> Self {
        Self::Rule(error)
    }
}

/// Reads one message. `peer` is where it came from, for people.
///
/// # Errors
/// When the message as a whole makes no sense.
pub(crate) fn read(text: &Bytes, peer: &str, limits: &Limits) -> Result<Said, Unreadable> {
    let Object(request): Object<RequestDto<'_>> = serde_json::from_slice(text).map_err(|problem| {
        if problem.is_data() {
            Unreadable::Rule(Error::invalid("message", problem))
        } else {
            Unreadable::Json(format!("the message is not valid JSON: {problem}"))
        }
    })?;
    let entries = [&request.started, &request.progress, &request.chunks, &request.results, &request.released];
    let entries = entries.iter().map(|list| list.len()).sum::<usize>() + request.credits.len();
    if entries > limits.frame_entries {
        let message = format!(
            "{entries} entries in one message; at most {} (limits.frame_entries)",
            limits.frame_entries
        );
        return Err(Error::new(Reason::TooManyItems, message).into());
    }
    let hello = match request.hello {
        None => None,
        Some(said) => {
            let key = said.key.clone();
            Some((hello(said, peer)?, key))
        }
    };
    let update = match request.update {
        None => None,
        Some(update) => Some(Update { pools: pools(update.pools), methods: methods(update.methods)? }),
    };
    let mut refused = Vec::new();
    let mut reader = Entries { document: text, refused: &mut refused };
    let frame = Frame {
        update,
        started: reader.all("started", &request.started, |entry: LeaseDto, _| Ok(entry.lease)),
        progress: reader.all("progress", &request.progress, |entry: ProgressReportDto, _| {
            let ProgressDto { current, total, message } = entry.progress;
            Ok((entry.lease, Progress { current, total, message }))
        }),
        chunks: reader.all("chunks", &request.chunks, |entry: ChunkDto<'_>, document| {
            Ok((entry.lease, embedded(entry.data, document, "data")?))
        }),
        results: reader.all("results", &request.results, result),
        released: reader.all("released", &request.released, |entry: LeaseDto, _| Ok(entry.lease)),
        credits: request.credits.into_iter().map(|credit| (credit.pool, credit.total)).collect(),
        beat: request.beat.map(|beat| (beat.in_flight, beat.digest)),
        bye: request.bye.map(|bye| bye.reason),
    };
    Ok(Said { hello, frame, refused })
}

/// Reads entries one by one.
struct Entries<'a> {
    document: &'a Bytes,
    refused: &'a mut Vec<(u64, Error)>,
}

impl<'a> Entries<'a> {
    fn all<D: Deserialize<'a>, T>(
        &mut self,
        list: &str,
        given: &[&'a RawValue],
        convert: impl Fn(D, &Bytes) -> Result<T>,
    ) -> Vec<T> {
        let mut read = Vec::with_capacity(given.len());
        for entry in given {
            let converted = serde_json::from_str::<Object<D>>(entry.get())
                .map_err(|problem| Error::invalid(list, problem))
                .and_then(|Object(entry)| convert(entry, self.document));
            match converted {
                Ok(entry) => read.push(entry),
                Err(error) => self.refused.push((lease_of(entry), error)),
            }
        }
        read
    }
}

/// The lease that an unreadable entry is about; 0 when not even that can be read.
fn lease_of(entry: &RawValue) -> u64 {
    #[derive(Deserialize)]
    struct OnlyLease {
        lease: u64,
    }
    serde_json::from_str::<OnlyLease>(entry.get()).map_or(0, |entry| entry.lease)
}

fn result(entry: ResultDto<'_>, document: &Bytes) -> Result<AttemptResult> {
    let end = match (entry.succeeded, entry.failed) {
        (Some(_), Some(_)) => return Err(Error::invalid("results", "say either succeeded or failed")),
        (succeeded, None) => AttemptEnd::Succeeded(embedded(succeeded, document, "succeeded")?),
        (None, Some(failure)) => AttemptEnd::Failed {
            error: match failure.error {
                None => TaskError::default(),
                Some(error) => TaskError {
                    code: error.code,
                    message: error.message,
                    details: match error.details {
                        None => None,
                        details => Some(embedded(details, document, "details")?),
                    },
                },
            },
            retryable: failure.retryable,
            retry_after_ms: failure.retry_after_ms,
        },
    };
    Ok(AttemptResult { lease: entry.lease, seq: entry.seq, end })
}

fn hello(hello: HelloDto, peer: &str) -> Result<Hello> {
    let resume_token = match hello.resume_token.as_str() {
        "" => None,
        // A token that is not ours resumes nothing, which is what a wrong token does.
        text => u128::from_str_radix(text, 16).ok(),
    };
    Ok(Hello {
        protocol: (hello.protocol_min, hello.protocol_max),
        worker_id: hello.worker_id,
        boot_id: hello.boot_id,
        resume_token,
        group: hello.group,
        labels: hello.labels,
        version: hello.version,
        sdk: hello.sdk,
        host: hello.host,
        peer: peer.to_owned(),
        pools: pools(hello.pools),
        methods: methods(hello.methods)?,
        in_flight: hello.in_flight,
        starts_on_receipt: false,
    })
}

fn pools(pools: Vec<PoolDto>) -> Vec<PoolSpec> {
    let pools = pools.into_iter();
    kept(pools.map(|pool| PoolSpec { name: pool.name, concurrency: pool.concurrency }).collect())
}

/// Without the room for more that a list has while it is read: the session keeps it.
fn kept<T>(mut list: Vec<T>) -> Vec<T> {
    list.shrink_to_fit();
    list
}

fn methods(methods: Vec<MethodDto>) -> Result<Vec<Method>> {
    let methods: Result<Vec<Method>> = methods
        .into_iter()
        .map(|method| {
            Ok(Method {
                version: Method::parse_version(&method.name, &method.version)?,
                name: Arc::from(method.name),
                version_text: method.version,
                summary: method.summary,
                docs: method.docs,
                input_schema: method.input_schema,
                output_schema: method.output_schema,
                examples: method.examples,
                pool: method.pool,
            })
        })
        .collect();
    Ok(kept(methods?))
}
