//! What there is to measure: a mode, its cases, and of each case what runs and what it is held against.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::floor::Floor;

/// A path through the server; also the word on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Many calls over one stream.
    Pipe,
    /// One gRPC request for each call.
    Call,
    /// One `POST /v1/call/{method}` for each call.
    Rest,
    /// `POST /api/execute`, then `GET /api/result/{id}` until it is there, by a JSON worker's WebSocket.
    Legacy,
    /// Submissions that are acknowledged once they are on the disk.
    Submit,
    /// Calls that are on the disk before they run, and whose outcome is before it is told.
    Durable,
    /// 1, 100 and 1,000 workers.
    Workers,
    /// 1, 100 and 10,000 methods.
    Methods,
    /// Calls beside 1 thousand, 100 thousand and 1 million queued tasks.
    Backlog,
    /// Calls beside 100 thousand finished tasks whose outcome is kept.
    Stored,
    /// Workers that are connected and do nothing.
    Idle,
    /// Twice and ten times of what the workers can do.
    Overload,
    /// kill -9 and a new start over 200 thousand live durable tasks.
    Restart,
    /// A fast method beside a slow one on another worker.
    Slow,
    /// The bare servers that the ways in are held against, by themselves.
    Floor,
}

impl Mode {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 15] = [
        Self::Pipe,
        Self::Call,
        Self::Rest,
        Self::Legacy,
        Self::Submit,
        Self::Durable,
        Self::Workers,
        Self::Methods,
        Self::Backlog,
        Self::Stored,
        Self::Idle,
        Self::Overload,
        Self::Restart,
        Self::Slow,
        Self::Floor,
    ];

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pipe => "pipe",
            Self::Call => "call",
            Self::Rest => "rest",
            Self::Legacy => "legacy",
            Self::Submit => "submit",
            Self::Durable => "durable",
            Self::Workers => "workers",
            Self::Methods => "methods",
            Self::Backlog => "backlog",
            Self::Stored => "stored",
            Self::Idle => "idle",
            Self::Overload => "overload",
            Self::Restart => "restart",
            Self::Slow => "slow",
            Self::Floor => "floor",
        }
    }

    /// The mode of that [`name`](Self::name).
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Case {
    /// The mode it belongs to.
    pub mode: Mode,
    /// What runs, in words; cases of one series differ only in `at`: `awaited`.
    pub series: String,
    /// How much of it: 64.
    pub at: u64,
    /// Of what: `in flight`.
    pub unit: &'static str,
    /// What is measured.
    pub product: Arm,
    /// What it is held against.
    pub against: Option<Against>,
    /// What has to be reached.
    pub goals: Vec<Goal>,
    /// How often; `None`: as often as the settings say.
    pub pairs: Option<u32>,
    /// How long one run takes beside warm-up and window, for the estimate: filling a queue, and the like.
    pub preparation: Duration,
}

/// The other side of a pair.
#[derive(Clone, Debug)]
pub struct Against {
    /// In words: `relay`, `1 worker`.
    pub name: &'static str,
    /// What runs.
    pub arm: Arm,
}

/// One side of a pair: a fresh server, fresh workers, and what the client does to them.
#[derive(Clone, Debug)]
pub struct Arm {
    /// Who is in the middle.
    pub server: Server,
    /// Further flags for `crewcall serve`.
    pub flags: &'static [&'static str],
    /// Who works.
    pub crew: Crew,
    /// What is there before the first call.
    pub before: Before,
    /// What the client does.
    pub load: Load,
}

/// The server of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// `crewcall serve --ephemeral`.
    Ephemeral,
    /// `crewcall serve` over a fresh data directory.
    Durable,
    /// A bare server.
    Floor(Floor),
}

/// The workers of a run: one process with any number of sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crew {
    /// How they speak to the server.
    pub kind: WorkerKind,
    /// How many sessions, each over its own connection. None: no worker process.
    pub workers: u32,
    /// How many methods in all; spread over the workers, where one cannot hold them.
    pub methods: u32,
    /// Number of the first of them. Method 0 is `add`, the others are `add1`, `add2` and so on.
    pub first_method: u32,
    /// How many calls each takes at once.
    pub concurrency: u32,
    /// How long a call takes; zero: it is answered where it is read.
    pub busy: Duration,
}

/// How a worker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerKind {
    /// gRPC, through the SDK for Rust.
    Sdk,
    /// gRPC, a frame of results for each frame of assignments, and nothing else: the cheapest worker there is.
    Bare,
    /// The legacy WebSocket.
    Legacy,
}

/// What the server holds before the first call is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// So many tasks that have ended and whose outcome is kept.
    Finished(u32),
}

/// What the client does within the window.
#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// Calls over one stream, so many in flight, over all methods of the crew in turn.
    Pipe {
        /// Who waits for the answer.
        caller: Caller,
        /// How many at once.
        in_flight: u32,
        /// Whether each call is on the disk before it runs, and its outcome before it is told.
        durable: bool,
    },
    /// Unary calls.
    Unary {
        /// How many at once.
        in_flight: u32,
        /// Over so many connections.
        connections: u32,
    },
    /// `POST /v1/call/add`, each caller over its own connection.
    Rest {
        /// How many at once.
        in_flight: u32,
    },
    /// `POST /api/execute` and `GET /api/result/{id}` until it is there.
    Legacy {
        /// How many at once.
        in_flight: u32,
        /// How long the client sleeps before it asks again when the result was not there: the published SDKs
        /// sleep a second. They ask once before.
        pause: Duration,
        /// Stop after so many calls instead of after the window; zero: the window.
        calls: u64,
    },
    /// Calls that wait in the queue of busy workers: each answer makes a new call, so that the queue stays as
    /// long as it is.
    Backlog {
        /// How many wait or run.
        queued: u32,
    },
    /// Awaited calls over one stream; then `Stats` and a page of `List`, timed.
    Stored {
        /// How many calls at once.
        in_flight: u32,
    },
    /// Durable submissions, each acknowledged; nobody works on them.
    Submit {
        /// How many tasks at once, over 16 requests.
        in_flight: u32,
    },
    /// Connections that say hello and nothing more; their memory at the server.
    Idle {
        /// gRPC session or JSON WebSocket.
        kind: IdleKind,
        /// How many.
        connections: u32,
    },
    /// Calls at a pace, whether or not they are answered.
    Overload {
        /// How they reach the server.
        way: Way,
        /// So many times what the workers can do.
        times: u32,
    },
    /// Durable tasks, kill -9, a new start.
    Restart {
        /// How many live tasks.
        tasks: u32,
    },
    /// A fast method, timed; on another worker a slow one with so many callers.
    Slow {
        /// Callers of the slow method; zero: it is left alone.
        callers: u32,
    },
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A task for each call in flight, through the SDK.
    Awaited,
    /// Nobody: bare slots on the stream, the cheapest client there is.
    Window,
}

/// A way in for callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Many calls over one stream.
    Pipe,
    /// A gRPC request for each.
    Call,
    /// A `POST /v1/call/{method}` for each.
    Rest,
}

/// An idle worker's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleKind {
    /// A `Session`, each over its own connection.
    Grpc,
    /// `/v1/worker`.
    Websocket,
    /// `/api/worker/connect`.
    Legacy,
}

/// A figure to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Of what.
    pub metric: Metric,
    /// Product over floor, pair by pair; else the product's own value.
    pub ratio: bool,
    /// At least so much; else at most.
    pub at_least: bool,
    /// Must be reached; `None`: there is only the claim.
    pub gate: Option<f64>,
    /// Is claimed.
    pub goal: f64,
}

/// Something that a run measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Calls per second.
    Rate,
    /// Median latency.
    P50,
    /// Latency that 99 of 100 calls stay within.
    P99,
    /// Processor time of the server for 1,000 calls.
    Cpu,
    /// Resident memory of the server.
    Rss,
    /// Wrong, missing or doubled answers.
    Wrong,
    /// What only one mode measures.
    #[serde(untagged)]
    Extra(Extra),
}

/// What only one mode measures; a key of [`Sample::extra`](crate::result::Sample::extra).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extra {
    /// From the start of the process to its first answer that names all tasks.
    ReadyMs,
    /// Bytes of the data directory over bytes of the live tasks in it.
    FileShare,
    /// Server memory for each idle connection.
    KibEach,
    /// Calls per second that the workers can do.
    Peak,
    /// Calls that were made over what the workers can do.
    Offered,
    /// Answered in time over what the workers can do.
    Goodput,
    /// Memory at the end of the overload over memory after its first tenth.
    MemoryGrowth,
    /// Until the fast answers are back after an overload.
    RecoverMs,
    /// Answered, but too late to be of use.
    Late,
    /// Refused because there is no room, with a hint when to come back.
    Refused,
    /// Results that never came.
    Lost,
    /// Answers that said done and held nothing.
    Blank,
    /// Results that came twice.
    Doubled,
    /// Requests for a result, over all calls.
    Polls,
    /// Latency of `Stats`, in microseconds.
    StatsUs,
    /// Latency of one page of `List`, in microseconds.
    ListUs,
}

impl Extra {
    /// The key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadyMs => "ready_ms",
            Self::FileShare => "file_share",
            Self::KibEach => "kib_each",
            Self::Peak => "peak",
            Self::Offered => "offered",
            Self::Goodput => "goodput",
            Self::MemoryGrowth => "memory_growth",
            Self::RecoverMs => "recover_ms",
            Self::Late => "late",
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::Blank => "blank",
            Self::Doubled => "doubled",
            Self::Polls => "polls",
            Self::StatsUs => "stats_us",
            Self::ListUs => "list_us",
        }
    }
}

impl Metric {
    /// In words, as in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Cpu => "server CPU",
            Self::Rss => "server memory",
            Self::Wrong => "wrong answers",
            Self::Extra(Extra::ReadyMs) => "ms to ready",
            Self::Extra(Extra::FileShare) => "file / live bytes",
            Self::Extra(Extra::KibEach) => "KiB for each",
            Self::Extra(Extra::Peak) => "peak",
            Self::Extra(Extra::Offered) => "offered",
            Self::Extra(Extra::Goodput) => "goodput",
            Self::Extra(Extra::MemoryGrowth) => "memory growth",
            Self::Extra(Extra::RecoverMs) => "ms to recover",
            Self::Extra(Extra::Late) => "late",
            Self::Extra(Extra::Refused) => "refused",
            Self::Extra(Extra::Lost) => "lost",
            Self::Extra(Extra::Blank) => "blank",
            Self::Extra(Extra::Doubled) => "doubled",
            Self::Extra(Extra::Polls) => "polls",
            Self::Extra(Extra::StatsUs) => "stats µs",
            Self::Extra(Extra::ListUs) => "list µs",
        }
    }
}

impl Goal {
    /// Product over floor must be at least this.
    pub const fn ratio_at_least(metric: Metric, gate: f64, goal: f64) -> Self {
        Self { metric, ratio: true, at_least: true, gate: Some(gate), goal }
    }

    /// Product over floor must be at most this.
    pub const fn ratio_at_most(metric: Metric, gate: f64, goal: f64) -> Self {
        Self { metric, ratio: true, at_least: false, gate: Some(gate), goal }
    }

    /// The product's own value must be at most this.
    pub const fn at_most(metric: Metric, gate: f64, goal: f64) -> Self {
        Self { metric, ratio: false, at_least: false, gate: Some(gate), goal }
    }

    /// The product's own value must be at least this.
    pub const fn at_least(metric: Metric, gate: f64, goal: f64) -> Self {
        Self { metric, ratio: false, at_least: true, gate: Some(gate), goal }
    }

    /// The same without a gate.
    pub const fn claim_only(self) -> Self {
        Self { gate: None, ..self }
    }

    /// Whether a value passes the bar.
    pub fn passes(&self, value: f64, bar: f64) -> bool {
        if self.at_least { value >= bar } else { value <= bar }
    }
}

impl Arm {
    /// A server with nothing in it.
    pub fn new(server: Server, crew: Crew, load: Load) -> Self {
        Self { server, flags: &[], crew, before: Before::Nothing, load }
    }
}

impl Crew {
    /// One worker with one method that takes as much as comes.
    pub fn one(kind: WorkerKind) -> Self {
        Self { kind, workers: 1, methods: 1, first_method: 0, concurrency: 8192, busy: Duration::ZERO }
    }

    /// Nobody.
    pub fn none() -> Self {
        Self { workers: 0, ..Self::one(WorkerKind::Bare) }
    }
}
