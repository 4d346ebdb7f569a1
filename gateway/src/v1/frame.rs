//! The messages of a worker's WebSocket: `SessionRequest` and `SessionResponse` of
//! `proto/crewcall/v1/worker.proto` as JSON objects, one a message.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use crewcall::engine::SessionItem;
use crewcall::error::{Error, Reason, Result};
use crewcall::scheduler::{
    Assign, AttemptEnd, AttemptResult, Frame, Hello, Limits, PoolSpec, Tell, Update, Welcome,
};
use crewcall::task::{Method, Progress, TaskError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::object::{self, Object};
use super::payload::{Embedded, embedded};
use crate::Problem;

/// A message is closed at this size and the rest goes into the next, so that no worker has to take all that
/// waits for it at once.
const MESSAGE_BYTES: usize = 256 << 10;

// --- in -----------------------------------------------------------------------------------------------

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

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct BeatDto {
    #[serde(default)]
    in_flight: u32,
    #[serde(default)]
    digest: u64,
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
    #[serde(default, borrow, deserialize_with = "super::payload::present")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultDto<'a> {
    lease: u64,
    #[serde(default)]
    seq: u64,
    #[serde(default, borrow, deserialize_with = "super::payload::present")]
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
    #[serde(default, borrow, deserialize_with = "super::payload::present")]
    details: Option<&'a RawValue>,
}

/// What a worker said in one message.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Who it is, with the key that it showed.
    pub(super) hello: Option<(Hello, String)>,
    pub(super) frame: Frame,
    /// Entries that could not be read, with their lease as far as it could be.
    pub(super) refused: Vec<(u64, Error)>,
}

impl Said {
    /// Leases about which the worker has said its last word.
    pub(super) fn finished(&self) -> impl Iterator<Item = u64> {
        let results = self.frame.results.iter().map(|result| result.lease);
        results.chain(self.frame.released.iter().copied())
    }
}

/// Why a message could not be read.
#[derive(Debug)]
pub(super) enum Unreadable {
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
pub(super) fn read(text: &Bytes, peer: &str, limits: &Limits) -> Result<Said, Unreadable> {
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
    pools.into_iter().map(|pool| PoolSpec { name: pool.name, concurrency: pool.concurrency }).collect()
}

fn methods(methods: Vec<MethodDto>) -> Result<Vec<Method>> {
    methods
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
        .collect()
}

// --- out ----------------------------------------------------------------------------------------------

#[derive(Default, Serialize)]
struct ResponseDto<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    welcome: Option<WelcomeDto<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    assign: Vec<AssignDto<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cancel: Vec<CancelDto<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recall: Vec<RecallDto>,
    #[serde(skip_serializing_if = "Option::is_none")]
    durable_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<ControlDto<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beat: Option<BeatDto>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<EntryErrorDto<'a>>,
    /// Why the server ends the session; the last message before the close.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDto<'a>>,
}

#[derive(Serialize)]
struct WelcomeDto<'a> {
    protocol: u32,
    session_id: String,
    worker_id: &'a str,
    resume_token: String,
    keep: &'a [u64],
    drop: &'a [u64],
    beat_ms: u64,
    lease_ms: u64,
    resume_ms: u64,
    max_payload_bytes: usize,
}

#[derive(Serialize)]
struct AssignDto<'a> {
    task_id: String,
    lease: u64,
    attempt: u32,
    method: &'a str,
    version: &'a str,
    payload: Embedded<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_unix_ms: Option<u64>,
    metadata: &'a BTreeMap<String, String>,
    pool: &'a str,
}

#[derive(Serialize)]
struct CancelDto<'a> {
    lease: u64,
    reason: &'a str,
}

#[derive(Serialize)]
struct RecallDto {
    lease: u64,
}

#[derive(Serialize)]
struct ControlDto<'a> {
    kind: &'static str,
    reason: &'a str,
}

#[derive(Serialize)]
struct EntryErrorDto<'a> {
    lease: u64,
    reason: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct ErrorDto<'a> {
    reason: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

fn text(response: &ResponseDto<'_>) -> String {
    super::dto::raw(response).get().to_owned()
}

/// The answer to a hello.
pub(super) fn welcome(welcome: &Welcome, limits: &Limits) -> String {
    let welcome = WelcomeDto {
        protocol: 1,
        session_id: welcome.session.0.to_string(),
        worker_id: &welcome.worker_id,
        resume_token: format!("{:032x}", welcome.token),
        keep: &welcome.keep,
        drop: &welcome.drop,
        beat_ms: limits.beat_ms,
        lease_ms: limits.lease_ms,
        resume_ms: limits.resume_ms,
        max_payload_bytes: limits.payload_bytes,
    };
    text(&ResponseDto { welcome: Some(welcome), ..ResponseDto::default() })
}

/// Why the session ends.
pub(super) fn ending(problem: &Problem) -> String {
    let error = ErrorDto {
        reason: problem.reason(),
        message: problem.detail(),
        retry_after_ms: problem.retry_after_ms(),
    };
    text(&ResponseDto { error: Some(error), ..ResponseDto::default() })
}

/// Entries that could not be read.
pub(super) fn refusals<'a>(refused: impl IntoIterator<Item = &'a (u64, Error)>) -> String {
    let errors = refused.into_iter().map(|(lease, error)| entry_error(*lease, error)).collect();
    text(&ResponseDto { errors, ..ResponseDto::default() })
}

/// What a worker is told, in as few messages as their size allows.
pub(super) fn messages(items: &[SessionItem]) -> impl Iterator<Item = String> {
    let mut items = items.iter();
    std::iter::from_fn(move || {
        let mut response = ResponseDto::default();
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES {
            let Some(item) = items.next() else { break };
            bytes += add(&mut response, item);
        }
        (bytes > 0).then(|| text(&response))
    })
}

/// Adds an item; says about how large it is.
fn add<'a>(response: &mut ResponseDto<'a>, item: &'a SessionItem) -> usize {
    const USUAL: usize = 128;
    match item {
        SessionItem::Assign(assign) => {
            response.assign.push(assign_out(assign));
            return 2 * USUAL + assign.payload.size();
        }
        SessionItem::Tell(Tell::Cancel(lease, reason)) => {
            response.cancel.push(CancelDto { lease: *lease, reason });
        }
        SessionItem::Tell(Tell::Recall(lease)) => response.recall.push(RecallDto { lease: *lease }),
        SessionItem::Tell(Tell::DurableSeq(seq)) => response.durable_seq = Some(*seq),
        SessionItem::Tell(Tell::Beat(in_flight, digest)) => {
            response.beat = Some(BeatDto { in_flight: *in_flight, digest: *digest });
        }
        SessionItem::Tell(Tell::Drain(reason)) => {
            response.control = Some(ControlDto { kind: "drain", reason });
        }
        SessionItem::Tell(Tell::Move(reason)) => {
            response.control = Some(ControlDto { kind: "move", reason });
        }
        SessionItem::Tell(Tell::Refused(lease, error)) => response.errors.push(entry_error(*lease, error)),
    }
    USUAL
}

fn assign_out(assign: &Assign) -> AssignDto<'_> {
    AssignDto {
        task_id: assign.id.to_string(),
        lease: assign.lease,
        attempt: assign.attempt,
        method: &assign.method,
        version: &assign.version,
        payload: Embedded(&assign.payload),
        deadline_unix_ms: (assign.deadline != crewcall::clock::Timestamp::NEVER).then_some(assign.deadline.0),
        metadata: &assign.options.metadata,
        pool: &assign.pool,
    }
}

fn entry_error(lease: u64, error: &Error) -> EntryErrorDto<'_> {
    EntryErrorDto { lease, reason: error.reason.as_str(), message: &error.message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<Said, Unreadable> {
        read(&Bytes::copy_from_slice(text.as_bytes()), "peer", &Limits::default())
    }

    #[test]
    fn a_message_may_say_everything_at_once() {
        let said = said(
            r#"{"credits":[{"total":2},{"pool":"p","total":1}],"started":[{"lease":1}],
                "progress":[{"lease":1,"progress":{"current":1,"total":2,"message":"m"}}],
                "chunks":[{"lease":1,"data":{"n":9007199254740993}}],
                "results":[{"lease":1,"seq":1,"succeeded":1e400},{"lease":2,"seq":2,"succeeded":null},
                    {"lease":3,"seq":3,"failed":{"error":{"code":"c","message":"m","details":[1]},"retryable":false,"retry_after_ms":5}}],
                "released":[{"lease":4}],"beat":{"in_flight":1,"digest":1},"bye":{"reason":"r"}}"#,
        )
        .unwrap();
        assert!(said.hello.is_none() && said.refused.is_empty());
        let frame = &said.frame;
        assert_eq!(frame.credits, [(String::new(), 2), ("p".to_owned(), 1)]);
        assert_eq!((frame.started.as_slice(), frame.released.as_slice()), (&[1][..], &[4][..]));
        assert_eq!(frame.chunks[0].1.data, r#"{"n":9007199254740993}"#);
        assert!(matches!(&frame.results[0].end, AttemptEnd::Succeeded(payload) if payload.data == "1e400"));
        assert!(matches!(&frame.results[1].end, AttemptEnd::Succeeded(payload) if payload.data == "null"));
        assert!(
            matches!(&frame.results[2].end, AttemptEnd::Failed { error, retryable: Some(false), retry_after_ms: 5 }
            if error.code == "c" && error.details.as_ref().is_some_and(|details| details.data == "[1]"))
        );
        assert_eq!((frame.beat, frame.bye.as_deref()), (Some((1, 1)), Some("r")));
        assert_eq!(said.finished().collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_bad_entry_is_refused_for_itself() {
        let said = said(
            r#"{"results":[{"lease":1,"succeeded":1,"failed":{}},{"lease":2,"succeeded":{"base64":"?","content_type":"x"}},
                {"lease":3,"sucesss":1},{"lease":"4"},{"lease":5,"succeeded":5}],"started":[{},7]}"#,
        )
        .unwrap();
        assert_eq!(said.frame.results.len(), 1);
        let leases: Vec<u64> = said.refused.iter().map(|(lease, _)| *lease).collect();
        assert_eq!(leases, [0, 0, 1, 2, 3, 0]);
        assert!(said.refused.iter().all(|(_, error)| error.reason == Reason::InvalidField));
        assert!(
            refusals(&said.refused)
                .starts_with(r#"{"errors":[{"lease":0,"reason":"invalid_field","message":"#)
        );
    }

    #[test]
    fn a_message_that_makes_no_sense_is_refused_as_a_whole() {
        for text in
            ["", "{", "nonsense", "\u{feff}{}", "{} {}", "{\"beat\":NaN}", "{\"bye\":{\"reason\":\"\u{1}\"}}"]
        {
            assert!(matches!(said(text), Err(Unreadable::Json(_))), "{text:?}");
        }
        for text in [
            "[]",
            "1",
            r#"{"credit":[]}"#,
            r#"{"credits":[{"total":-1}]}"#,
            r#"{"beat":{},"beat":{}}"#,
            r#"{"hello":[]}"#,
        ] {
            assert!(matches!(said(text), Err(Unreadable::Rule(_))), "{text:?}");
        }
        let deep = format!(r#"{{"results":[{}1{}]}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(said(&deep).unwrap().refused.len(), 1);
        let many = format!(r#"{{"started":[{}1]}}"#, "1,".repeat(65_536));
        assert!(matches!(said(&many), Err(Unreadable::Rule(error)) if error.reason == Reason::TooManyItems));
    }

    #[test]
    fn what_waits_is_cut_into_messages() {
        let items: Vec<SessionItem> =
            (0..10_000).map(|lease| SessionItem::Tell(Tell::Recall(lease))).collect();
        let messages: Vec<String> = messages(&items).collect();
        assert_eq!(messages.len(), 5);
        assert!(messages[0].starts_with(r#"{"recall":[{"lease":0},"#));
        assert!(messages.iter().all(|message| message.len() < MESSAGE_BYTES));
    }
}
