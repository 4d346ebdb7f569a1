//! The nouns: a task, what it carries, how it may be run, how it ends. Plain data without I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use semver::{Version, VersionReq};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// Names a task: a UUIDv7, so ids sort by the time they were made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub Uuid);

impl TaskId {
    /// A new id, never seen before.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

/// New ids for tasks that come together: as unique as those of [`TaskId::generate`], in rising order, and only the
/// first costs a look at the clock and random bits.
#[derive(Clone, Debug)]
pub struct TaskIds {
    next: u128,
}

impl TaskIds {
    /// The last 32 bits of an id are random; all others are never the same for two ids of this process, because they
    /// hold a counter. So these may be counted up freely, as long as they have room.
    const ROOM: u128 = 1 << 31;

    /// A series of its own, for at most 2,147,483,648 ids.
    pub fn begin() -> Self {
        Self { next: TaskId::generate().0.as_u128() & !Self::ROOM }
    }

    /// The next id.
    pub fn draw(&mut self) -> TaskId {
        let id = TaskId(Uuid::from_u128(self.next));
        self.next += 1;
        id
    }
}

impl FromStr for TaskId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Uuid::try_parse(text).map(Self).map_err(|_| {
            let shown: String = text.chars().take(64).collect();
            Error::invalid("task_id", format_args!("{shown:?} is not a UUID"))
        })
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes and what they are. Cloning shares the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// The content; never looked into.
    pub data: Bytes,
    /// A media type; empty means `application/json`.
    pub content_type: String,
}

impl Payload {
    /// A JSON payload.
    pub fn json(data: impl Into<Bytes>) -> Self {
        Self { data: data.into(), content_type: String::new() }
    }

    /// What it counts against limits, in bytes.
    pub fn size(&self) -> usize {
        self.data.len() + self.content_type.len()
    }

    /// A number that two payloads share only if they are equal, as good as surely. It tells whether a repeated
    /// call is the same call, and is stored for that: it never changes.
    pub fn digest(&self) -> u64 {
        let digest = digest_of(self.content_type.len() as u64, self.content_type.as_bytes());
        digest_of(digest ^ self.data.len() as u64, &self.data)
    }
}

/// Eight bytes at a time through SplitMix64's finish.
fn digest_of(seed: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    words.iter().chain([&last]).fold(seed, |digest, word| {
        let x = (digest ^ u64::from_le_bytes(*word)).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    })
}

/// A task's argument: in memory, or only in the store. A queue may be far larger than memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// In memory.
    Held(Payload),
    /// Only in the store, in a row of its own ([`RowKey::Payload`](crate::row::RowKey::Payload)). So many bytes,
    /// as [`Payload::size`] counts them.
    Stored(u64),
}

impl Body {
    /// Bytes of memory that it takes.
    pub fn resident(&self) -> usize {
        match self {
            Self::Held(payload) => payload.size(),
            Self::Stored(_) => 0,
        }
    }

    /// Bytes, wherever they are. An empty payload has no row of its own.
    pub fn size(&self) -> u64 {
        match self {
            Self::Held(payload) => payload.size() as u64,
            Self::Stored(size) => *size,
        }
    }

    /// As a start finds it: in the store, unless it is empty.
    pub fn stored(&self) -> Self {
        match self.size() {
            0 => Self::Held(Payload::default()),
            size => Self::Stored(size),
        }
    }
}

/// What a task's life must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Never touches the store.
    Ephemeral,
    /// Acknowledged only once the store has it.
    Durable,
}

/// What to do when an attempt fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// Attempts in all, from 1.
    pub max_attempts: u32,
    /// Wait before the second attempt.
    pub initial_backoff_ms: u64,
    /// The wait doubles up to this.
    pub max_backoff_ms: u64,
}

impl RetryPolicy {
    /// One attempt.
    pub const NONE: Self = Self { max_attempts: 1, initial_backoff_ms: 1_000, max_backoff_ms: 60_000 };
    /// The default of submitted tasks.
    pub const SUBMIT: Self = Self { max_attempts: 5, ..Self::NONE };

    /// The wait after failed attempt `attempt`, drawn by `seed` from [full / 2, full], where full doubles
    /// with each attempt. Half is kept so that a retry never comes at once ("equal jitter", as in the AWS
    /// Architecture Blog's "Exponential Backoff And Jitter").
    pub fn backoff_ms(&self, attempt: u32, seed: u64) -> u64 {
        let doublings = attempt.saturating_sub(1).min(32);
        let full = self.initial_backoff_ms.saturating_mul(1 << doublings).min(self.max_backoff_ms);
        let half = full / 2;
        // SplitMix64's finalizer: spreads neighbouring (seed, attempt) pairs over the whole range.
        let mut x = seed ^ (u64::from(attempt)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        full - half + x % (half + 1)
    }
}

/// Which workers may run a task. All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// As written by the caller; empty means the newest version that has a live worker. Kept as text
    /// because it is the identity of the queue; `range` is what it means.
    pub version: String,
    /// Only workers of this group; empty means any.
    pub group: String,
    /// Only workers that carry all of these.
    pub labels: BTreeMap<String, String>,
}

impl Target {
    /// The range that `version` means; `None` when it is empty.
    ///
    /// # Errors
    /// `invalid_field` when it is not a semantic version range.
    pub fn range(&self) -> Result<Option<VersionReq>> {
        if self.version.is_empty() {
            return Ok(None);
        }
        VersionReq::parse(&self.version).map(Some).map_err(|problem| {
            Error::invalid(
                "options.target.version",
                format_args!("{:?} is not a version range such as ^1.2: {problem}", self.version),
            )
        })
    }
}

/// How a task is to be run, with defaults filled in. Tasks with equal options share them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TaskOptions {
    /// Which workers.
    pub target: Target,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// Not before this time.
    pub run_at: Option<Timestamp>,
    /// Longest wait for a worker; 0 is no limit.
    pub queue_timeout_ms: u64,
    /// Longest run of one attempt; 0 is no limit.
    pub run_timeout_ms: u64,
    /// From submission to outcome; 0 is no limit.
    pub deadline_ms: u64,
    /// What to do when an attempt fails.
    pub retry: RetryPolicy,
    /// What the task's life must survive.
    pub durability: Durability,
    /// How long the outcome can be fetched; `None` is the default of the verb.
    pub retention_ms: Option<u64>,
    /// Passed to the worker unchanged.
    pub metadata: BTreeMap<String, String>,
}

/// The default priority: room above and below.
pub const DEFAULT_PRIORITY: u8 = 4;

impl TaskOptions {
    /// The defaults of Call and Pipe: ephemeral, one attempt.
    pub fn call() -> Self {
        Self {
            target: Target::default(),
            priority: DEFAULT_PRIORITY,
            run_at: None,
            queue_timeout_ms: 0,
            run_timeout_ms: 0,
            deadline_ms: 0,
            retry: RetryPolicy::NONE,
            durability: Durability::Ephemeral,
            retention_ms: None,
            metadata: BTreeMap::new(),
        }
    }

    /// The defaults of Submit: durable, five attempts.
    pub fn submit() -> Self {
        Self { retry: RetryPolicy::SUBMIT, durability: Durability::Durable, ..Self::call() }
    }

    /// The shared default of Call and Pipe: most calls name no option, and then none is allocated.
    pub fn shared_call() -> Arc<Self> {
        Arc::clone(Self::default_call())
    }

    /// The same, only looked at.
    pub fn default_call() -> &'static Arc<Self> {
        static SHARED: LazyLock<Arc<TaskOptions>> = LazyLock::new(|| Arc::new(TaskOptions::call()));
        &SHARED
    }

    /// The shared default of Submit.
    pub fn shared_submit() -> Arc<Self> {
        static SHARED: LazyLock<Arc<TaskOptions>> = LazyLock::new(|| Arc::new(TaskOptions::submit()));
        Arc::clone(&SHARED)
    }
}

/// What a caller hands in.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Made by the edge, so that the scheduler draws no randomness.
    pub id: TaskId,
    /// The method to call.
    pub method: String,
    /// Its argument.
    pub payload: Payload,
    /// How to run it.
    pub options: Arc<TaskOptions>,
    /// While a task with this key and method is known, no second one is made. Empty is none.
    pub idempotency_key: String,
    /// Refuse with `method_not_served` instead of waiting when no live worker serves the method.
    pub only_if_served: bool,
}

impl NewTask {
    /// A call with the defaults of Call.
    pub fn call(method: impl Into<String>, payload: Payload) -> Self {
        Self {
            id: TaskId::generate(),
            method: method.into(),
            payload,
            options: TaskOptions::shared_call(),
            idempotency_key: String::new(),
            only_if_served: false,
        }
    }
}

/// Why an attempt, and in the end a task, failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskError {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// More, as handler and caller agree.
    pub details: Option<Payload>,
}

impl TaskError {
    /// Code of an attempt whose worker was lost.
    pub const WORKER_LOST: &'static str = "worker_lost";
    /// Code of an attempt that ran longer than it may.
    pub const RUN_TIMEOUT: &'static str = "run_timeout";
    /// Code of a handler's error that names none.
    pub const HANDLER_ERROR: &'static str = "handler_error";

    /// An error without details.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), details: None }
    }
}

/// A deadline that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiredReason {
    /// No worker took it in time.
    QueueTimeout,
    /// The total deadline passed.
    Deadline,
}

/// How a task ended. Exactly one, and it never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What the handler returned.
    Succeeded(Payload),
    /// The last attempt's error. Boxed: it is large and rare, and every task has room for an outcome.
    Failed(Box<TaskError>),
    /// Cancelled, with the reason given.
    Cancelled(String),
    /// A deadline passed.
    Expired(ExpiredReason),
}

impl Outcome {
    /// What it counts against limits, in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Succeeded(payload) => payload.size(),
            Self::Failed(error) => {
                error.code.len() + error.message.len() + error.details.as_ref().map_or(0, Payload::size)
            }
            Self::Cancelled(reason) => reason.len(),
            Self::Expired(_) => 0,
        }
    }
}

/// Where a task stands, without what comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateName {
    /// Waits for its time.
    Delayed,
    /// Waits for a worker.
    Ready,
    /// A worker holds it.
    Leased,
    /// Succeeded.
    Finished,
    /// Failed for good.
    Dead,
    /// Cancelled.
    Cancelled,
    /// A deadline passed.
    Expired,
}

impl StateName {
    /// All, in the order of a task's life.
    pub const ALL: [Self; 7] = [
        Self::Delayed,
        Self::Ready,
        Self::Leased,
        Self::Finished,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Lower case, as in JSON and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delayed => "delayed",
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Finished => "finished",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits until then.
    Delayed {
        /// When it becomes ready.
        until: Timestamp,
    },
    /// Waits for a worker.
    Ready,
    /// A worker holds it.
    Leased {
        /// The fence.
        lease: u64,
        /// Who.
        worker_id: Arc<str>,
    },
    /// Over.
    Ended(Outcome),
}

impl State {
    /// The name of the state.
    pub const fn name(&self) -> StateName {
        match self {
            Self::Delayed { .. } => StateName::Delayed,
            Self::Ready => StateName::Ready,
            Self::Leased { .. } => StateName::Leased,
            Self::Ended(Outcome::Succeeded(_)) => StateName::Finished,
            Self::Ended(Outcome::Failed(_)) => StateName::Dead,
            Self::Ended(Outcome::Cancelled(_)) => StateName::Cancelled,
            Self::Ended(Outcome::Expired(_)) => StateName::Expired,
        }
    }

    /// The outcome, once there is one.
    pub const fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }
}

/// One finished try that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Who tried.
    pub worker_id: Arc<str>,
    /// When it was assigned.
    pub started_at: Timestamp,
    /// When it failed.
    pub ended_at: Timestamp,
    /// Why.
    pub error: TaskError,
}

/// Failed attempts, oldest first. A pointer's worth of memory for the many tasks that have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts(
    #[allow(clippy::box_collection, reason = "a third of a Vec's size")] Option<Box<Vec<Attempt>>>,
);

impl Attempts {
    /// Appends one; keeps the last [`ATTEMPTS_KEPT`].
    pub fn keep(&mut self, attempt: Attempt) {
        let attempts = self.0.get_or_insert_default();
        if attempts.len() == ATTEMPTS_KEPT {
            attempts.remove(0);
        }
        attempts.push(attempt);
    }
}

impl std::ops::Deref for Attempts {
    type Target = [Attempt];
    fn deref(&self) -> &[Attempt] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl FromIterator<Attempt> for Attempts {
    fn from_iter<I: IntoIterator<Item = Attempt>>(attempts: I) -> Self {
        let attempts: Vec<Attempt> = attempts.into_iter().collect();
        Self((!attempts.is_empty()).then(|| Box::new(attempts)))
    }
}

/// What makes a repeated call one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// As given.
    pub text: String,
    /// Of the payload it was given with: see [`Payload::digest`].
    pub digest: u64,
}

/// One call of a method: the durable facts about it, and nothing else. What is not here does not survive
/// a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name.
    pub id: TaskId,
    /// The method called.
    pub method: Arc<str>,
    /// The argument.
    pub body: Body,
    /// How to run it.
    pub options: Arc<TaskOptions>,
    /// What a repeated call would name; few have one.
    pub key: Option<Box<IdempotencyKey>>,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When its present life began: submission, or the last Retry. The total deadline counts from here.
    pub since: Timestamp,
    /// When it entered its present state.
    pub changed_at: Timestamp,
    /// Where it stands.
    pub state: State,
    /// The current attempt; 0 before the first.
    pub attempt: u32,
    /// Failed attempts, oldest first; the last [`ATTEMPTS_KEPT`].
    pub attempts: Attempts,
    /// When an ended task is forgotten; `NEVER` until it has ended.
    pub forget_at: Timestamp,
}

/// Failed attempts kept of one task.
pub const ATTEMPTS_KEPT: usize = 16;

impl Task {
    /// When the total deadline passes.
    pub fn deadline(&self) -> Timestamp {
        match self.options.deadline_ms {
            0 => Timestamp::NEVER,
            ms => self.since + ms,
        }
    }

    /// Whether its facts go to the store.
    pub fn is_durable(&self) -> bool {
        self.options.durability == Durability::Durable
    }

    /// The idempotency key; empty when there is none.
    pub fn idempotency_key(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.text)
    }

    /// Bytes of payload and outcome, wherever they are.
    pub fn size(&self) -> usize {
        self.body.size() as usize + self.state.outcome().map_or(0, Outcome::size)
    }

    /// Those of them that are in memory.
    pub fn resident(&self) -> usize {
        self.body.resident() + self.state.outcome().map_or(0, Outcome::size)
    }
}

/// The latest word from a running handler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Done so far.
    pub current: u64,
    /// Of so much; 0 is unknown.
    pub total: u64,
    /// For people.
    pub message: String,
}

/// A piece of output ahead of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The attempt that sent it.
    pub attempt: u32,
    /// From 0 within the attempt.
    pub index: u64,
    /// The piece.
    pub data: Payload,
}

/// A function that a worker serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its name.
    pub name: Arc<str>,
    /// Its version; 0.0.0 when none was given.
    pub version: Version,
    /// As given; empty when none was.
    pub version_text: String,
    /// One line.
    pub summary: String,
    /// Markdown. Untrusted.
    pub docs: String,
    /// JSON Schema as text.
    pub input_schema: String,
    /// JSON Schema as text.
    pub output_schema: String,
    /// Payloads to try.
    pub examples: Vec<String>,
    /// The pool it runs in.
    pub pool: String,
}

impl Method {
    /// The version that `text` means; 0.0.0 when it is empty.
    ///
    /// # Errors
    /// `invalid_field` when it is not a semantic version.
    pub fn parse_version(name: &str, text: &str) -> Result<Version> {
        if text.is_empty() {
            return Ok(Version::new(0, 0, 0));
        }
        Version::parse(text).map_err(|problem| {
            let field = format!("methods[{name:?}].version");
            Error::invalid(
                &field,
                format_args!("{text:?} is not a semantic version such as 1.2.0: {problem}"),
            )
        })
    }
}

/// Checks a method's name: 1 to 256 bytes, no control characters, no white space at either end. Nothing
/// stricter: existing systems use names of every script and style.
///
/// # Errors
/// `invalid_field` that says what is wrong with it.
pub fn check_method_name(name: &str) -> Result<()> {
    const MAX: usize = 256;
    if name.is_empty() {
        return Err(Error::invalid("method", "is empty; name the method to call"));
    }
    if name.len() > MAX {
        return Err(Error::invalid("method", format_args!("is {} bytes long; at most {MAX}", name.len())));
    }
    if name.chars().any(char::is_control) || name.trim().len() != name.len() {
        return Err(Error::invalid(
            "method",
            format_args!("{name:?} has control characters or white space at an end"),
        ));
    }
    Ok(())
}

// A million tasks may wait. With its place in lists and indexes each is to take less than 400 bytes, a share of
// the payloads that are held included; and what is small is also moved faster.
const _: () = assert!(size_of::<Task>() <= 208);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_of_a_series_rise_and_meet_no_other() {
        let mut all = BTreeSet::new();
        for _ in 0..100 {
            let mut ids = TaskIds::begin();
            let series: Vec<TaskId> = (0..100).map(|_| ids.draw()).collect();
            assert!(series.is_sorted());
            assert!(series.iter().all(|id| id.0.get_version_num() == 7));
            all.extend(series);
        }
        assert_eq!(all.len(), 10_000);
    }
}
