//! Why a request was refused. One table of kinds and stable reasons; each edge matches it exhaustively
//! (gRPC status in `rpc/status.rs`, HTTP problem in the gateway), so edges cannot disagree.

use std::fmt;

/// The class of an error: what the caller can do about it. Edges translate it into their status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request breaks a rule of its fields. Repeating it does not help.
    InvalidArgument,
    /// No such thing, or no longer.
    NotFound,
    /// In conflict with something that exists.
    Conflict,
    /// Not possible in the present state of the task.
    Precondition,
    /// A limit is reached. Waiting helps.
    Exhausted,
    /// The credentials are missing or wrong.
    Unauthenticated,
    /// The caller may not do this to that object.
    Denied,
    /// Overtaken by something newer.
    Aborted,
    /// Not now: starting, stopping, or the store cannot write.
    Unavailable,
    /// A defect of the server. The log knows more; the caller is told no detail.
    Internal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal => $kind:ident;)*) => {
        /// The stable reason of an error, for programs. Never renamed, only added to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All reasons, for documentation and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As it goes over the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The class it belongs to.
            pub const fn kind(self) -> ErrorKind {
                match self { $(Self::$name => ErrorKind::$kind,)* }
            }
        }
    };
}

reasons! {
    /// A field breaks its rule.
    InvalidField = "invalid_field" => InvalidArgument;
    /// A payload is over the limit.
    PayloadTooLarge = "payload_too_large" => InvalidArgument;
    /// A list in a request is over its limit.
    TooManyItems = "too_many_items" => InvalidArgument;
    /// The worker and the server share no protocol version.
    ProtocolUnsupported = "protocol_unsupported" => InvalidArgument;
    /// A stream did not begin as it must.
    HelloExpected = "hello_expected" => InvalidArgument;
    /// No such task: never was, or its retention has passed.
    TaskNotFound = "task_not_found" => NotFound;
    /// No such worker is connected.
    WorkerNotFound = "worker_not_found" => NotFound;
    /// No live worker serves the method, and the caller asked not to wait for one.
    MethodNotServed = "method_not_served" => NotFound;
    /// The idempotency key stands for a different call.
    IdempotencyConflict = "idempotency_conflict" => Conflict;
    /// A call with this number is in flight on the stream.
    CallIdInUse = "call_id_in_use" => Conflict;
    /// The task has ended already.
    TaskEnded = "task_ended" => Precondition;
    /// The task has not ended yet.
    TaskNotEnded = "task_not_ended" => Precondition;
    /// There is a backup of this name.
    BackupExists = "backup_exists" => Conflict;
    /// The task is not a dead letter.
    TaskNotDead = "task_not_dead" => Precondition;
    /// The server keeps everything in memory.
    StoreEphemeral = "store_ephemeral" => Precondition;
    /// A backup is being made; one at a time.
    BackupRunning = "backup_running" => Exhausted;
    /// The queue of the method is full.
    QueueFull = "queue_full" => Exhausted;
    /// The server holds as many tasks, or bytes, as it may.
    ServerFull = "server_full" => Exhausted;
    /// Too many calls in flight on this stream.
    TooManyInFlight = "too_many_in_flight" => Exhausted;
    /// Too many workers are connected.
    TooManyWorkers = "too_many_workers" => Exhausted;
    /// Too many watchers, or this one reads too slowly.
    TooManyWatchers = "too_many_watchers" => Exhausted;
    /// The reader of a stream is too slow.
    SlowReader = "slow_reader" => Exhausted;
    /// The worker key is missing or wrong.
    WorkerKeyRequired = "worker_key_required" => Unauthenticated;
    /// The lease belongs to another worker.
    NotYourLease = "not_your_lease" => Denied;
    /// The lease no longer stands.
    StaleLease = "stale_lease" => Aborted;
    /// The caller withdrew its call, and the task goes on for others.
    CallWithdrawn = "call_withdrawn" => Aborted;
    /// A newer stream of the same worker took over.
    SessionReplaced = "session_replaced" => Aborted;
    /// The worker was silent beyond its lease.
    SessionExpired = "session_expired" => Aborted;
    /// The worker and the server disagree about what is running; reconnect to settle it.
    SessionOutOfStep = "session_out_of_step" => Aborted;
    /// The server is stopping.
    ShuttingDown = "shutting_down" => Unavailable;
    /// The store cannot take writes now.
    StoreUnavailable = "store_unavailable" => Unavailable;
    /// A defect.
    Internal = "internal" => Internal;
}

/// A refusal: a stable reason, a text for a person, and a hint when to come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// For programs.
    pub reason: Reason,
    /// For the person who reads it: what was wrong, with which value, what to do.
    pub message: String,
    /// When waiting helps: how long, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

/// The usual result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with no retry hint, unless its kind always has one (a second for `Exhausted` and
    /// `Unavailable`).
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let retry_after_ms =
            matches!(reason.kind(), ErrorKind::Exhausted | ErrorKind::Unavailable).then_some(1_000);
        Self { reason, message: message.into(), retry_after_ms }
    }

    /// A field that breaks its rule.
    pub fn invalid(field: &str, problem: impl fmt::Display) -> Self {
        Self::new(Reason::InvalidField, format!("{field}: {problem}"))
    }

    /// The class of the error.
    pub const fn kind(&self) -> ErrorKind {
        self.reason.kind()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.reason.as_str())
    }
}

impl std::error::Error for Error {}
