//! What comes in: everything anyone can ask of the scheduler.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dead_letters::{DeadChange, DeadFilter, DeadPlace, DeadSelection};
use crate::task::{Method, NewTask, Payload, Progress, StateName, TaskError, TaskId};

/// Where an answer goes. Opaque to the scheduler: the engine makes it and understands it.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter {
    /// The connection, in the engine's table.
    pub conn: u32,
    /// The question, on that connection.
    pub tag: u64,
}

/// The stream of a session, or of a watcher, in the engine's table.
pub type ConnId = u32;

/// Names a session for as long as it lives, across resumed streams. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Everything anyone can ask.
#[derive(Debug)]
pub enum Command {
    /// Run a task; the waiter gets its outcome.
    Call {
        /// What to run.
        task: NewTask,
        /// Who waits.
        waiter: Waiter,
    },
    /// Take tasks; the waiter gets one acceptance or refusal for each.
    Submit {
        /// What to run.
        tasks: Vec<NewTask>,
        /// Who asks.
        waiter: Waiter,
    },
    /// The waiter gets the outcome once there is one.
    Await {
        /// The task.
        id: TaskId,
        /// Who waits.
        waiter: Waiter,
    },
    /// The waiter of a Call or Await waits no longer.
    Abandon {
        /// The task.
        id: TaskId,
        /// Who waited.
        waiter: Waiter,
        /// It did not go away but withdrew its call: it is answered, and a durable task is cancelled too.
        cancel: bool,
    },
    /// One task.
    Get {
        /// The task.
        id: TaskId,
        /// Forget the task when it has ended: its outcome is read once.
        take: bool,
        /// Show its payload too.
        with_payload: bool,
        /// Who asks.
        waiter: Waiter,
    },
    /// A page of tasks, newest first.
    List {
        /// Which.
        filter: Filter,
        /// The last task of the page before.
        after: Option<TaskId>,
        /// At most so many.
        limit: usize,
        /// Who asks.
        waiter: Waiter,
    },
    /// End a task.
    Cancel {
        /// The task.
        id: TaskId,
        /// Told to the worker and kept in the outcome.
        reason: String,
        /// Who asks.
        waiter: Waiter,
    },
    /// Run an ended task again.
    Retry {
        /// The task.
        id: TaskId,
        /// Who asks.
        waiter: Waiter,
    },
    /// Why is it not running?
    Explain {
        /// The task.
        id: TaskId,
        /// Who asks.
        waiter: Waiter,
    },
    /// Begin to follow tasks.
    Watch {
        /// These, or
        ids: Vec<TaskId>,
        /// all that match; used when `ids` is empty.
        filter: Filter,
        /// Go on after this.
        cursor: Option<Cursor>,
        /// The stream events go to.
        conn: ConnId,
        /// Who asks; answered once, before the first event.
        waiter: Waiter,
    },
    /// The watcher has gone.
    Unwatch {
        /// Its stream.
        conn: ConnId,
    },
    /// A worker opens a stream.
    Join {
        /// Who it is.
        hello: Box<Hello>,
        /// The stream.
        conn: ConnId,
        /// Random, from the edge: names this stream's right to resume.
        token: u128,
        /// Who asks.
        waiter: Waiter,
    },
    /// A worker's frame.
    Frame {
        /// Which session.
        session: SessionId,
        /// The stream it came over; a frame of a stream that was replaced is dropped.
        conn: ConnId,
        /// What it says.
        frame: Box<Frame>,
    },
    /// A worker's stream has ended without `bye`.
    Broken {
        /// Which session.
        session: SessionId,
        /// The stream.
        conn: ConnId,
    },
    /// Connected workers.
    Workers {
        /// Who asks.
        waiter: Waiter,
    },
    /// Methods served or waited for.
    Methods {
        /// Who asks.
        waiter: Waiter,
    },
    /// Counts.
    Stats {
        /// Who asks.
        waiter: Waiter,
    },
    /// Ask one worker to leave.
    Drain {
        /// Which.
        worker_id: String,
        /// Told to it.
        reason: String,
        /// Who asks.
        waiter: Waiter,
    },
    /// Let a method's tasks wait.
    Pause {
        /// Which.
        method: String,
        /// For people.
        reason: String,
        /// Who says so; for people.
        by: String,
        /// Who asks.
        waiter: Waiter,
    },
    /// Let them wait no longer.
    Resume {
        /// Which.
        method: String,
        /// Who asks.
        waiter: Waiter,
    },
    /// A page of dead letters, those that died last first.
    ListDead {
        /// Which.
        filter: DeadFilter,
        /// Where the page before ended.
        after: Option<DeadPlace>,
        /// At most so many.
        limit: usize,
        /// Who asks.
        waiter: Waiter,
    },
    /// Run dead letters again, or forget them.
    ChangeDead {
        /// What.
        change: DeadChange,
        /// Which.
        selection: DeadSelection,
        /// Only say what would be changed.
        dry_run: bool,
        /// Who asks.
        waiter: Waiter,
    },
    /// The server stops: no new tasks, no new workers, and every worker is asked to leave.
    Shutdown,
}

impl Command {
    /// Says where the answer goes, for commands that have one.
    pub fn set_waiter(&mut self, to: Waiter) {
        match self {
            Self::Call { waiter, .. }
            | Self::Submit { waiter, .. }
            | Self::Await { waiter, .. }
            | Self::Abandon { waiter, .. }
            | Self::Get { waiter, .. }
            | Self::List { waiter, .. }
            | Self::Cancel { waiter, .. }
            | Self::Retry { waiter, .. }
            | Self::Explain { waiter, .. }
            | Self::Watch { waiter, .. }
            | Self::Join { waiter, .. }
            | Self::Workers { waiter }
            | Self::Methods { waiter }
            | Self::Stats { waiter }
            | Self::Drain { waiter, .. }
            | Self::Pause { waiter, .. }
            | Self::Resume { waiter, .. }
            | Self::ListDead { waiter, .. }
            | Self::ChangeDead { waiter, .. } => *waiter = to,
            Self::Unwatch { .. } | Self::Frame { .. } | Self::Broken { .. } | Self::Shutdown => {}
        }
    }
}

/// Which tasks. All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Exact name; empty is any.
    pub method: String,
    /// Any of these; empty is any.
    pub states: Vec<StateName>,
    /// Held by this worker; empty is any.
    pub worker_id: String,
}

/// A place in what a watcher has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The run of the scheduler it belongs to.
    pub epoch: u64,
    /// The last event seen.
    pub seq: u64,
}

/// Who a worker is and what it serves.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// Protocol versions it speaks.
    pub protocol: (u32, u32),
    /// Stable name; empty lets the scheduler choose.
    pub worker_id: String,
    /// New for each start of its process.
    pub boot_id: String,
    /// From an earlier welcome.
    pub resume_token: Option<u128>,
    /// Workers of one kind.
    pub group: String,
    /// For targets.
    pub labels: BTreeMap<String, String>,
    /// Of its program; for people.
    pub version: String,
    /// For people.
    pub sdk: String,
    /// For people.
    pub host: String,
    /// Where its stream came from; for people.
    pub peer: String,
    /// Shares of its capacity.
    pub pools: Vec<PoolSpec>,
    /// What it serves.
    pub methods: Vec<Method>,
    /// Leases it still holds.
    pub in_flight: Vec<u64>,
    /// It begins each task on receipt and never says `started`.
    pub starts_on_receipt: bool,
}

/// A share of a worker's capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its name.
    pub name: String,
    /// How many tasks run at once.
    pub concurrency: u32,
}

/// Everything a worker says at once. Applied in the order of the fields.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Changed pools and methods.
    pub update: Option<Update>,
    /// Handlers that have begun.
    pub started: Vec<u64>,
    /// Words from running handlers.
    pub progress: Vec<(u64, Progress)>,
    /// Pieces of output.
    pub chunks: Vec<(u64, Payload)>,
    /// Attempts that have ended.
    pub results: Vec<AttemptResult>,
    /// Leases handed back.
    pub released: Vec<u64>,
    /// Pool name and running total.
    pub credits: Vec<(String, u64)>,
    /// How many leases it holds, and their XOR.
    pub beat: Option<(u32, u64)>,
    /// It leaves.
    pub bye: Option<String>,
}

/// A change of what was said in the hello. Empty lists change nothing.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// The new pools.
    pub pools: Vec<PoolSpec>,
    /// The new methods.
    pub methods: Vec<Method>,
}

/// How an attempt ended, in the worker's words.
#[derive(Clone, Debug)]
pub struct AttemptResult {
    /// Which attempt.
    pub lease: u64,
    /// The worker's running number.
    pub seq: u64,
    /// What happened.
    pub end: AttemptEnd,
}

/// Success or failure of an attempt.
#[derive(Clone, Debug)]
pub enum AttemptEnd {
    /// What the handler returned.
    Succeeded(Payload),
    /// Why it failed.
    Failed {
        /// The error.
        error: TaskError,
        /// `Some(false)`: do not try again.
        retryable: Option<bool>,
        /// Replaces the policy's backoff; 0 does not.
        retry_after_ms: u64,
    },
}

/// The name of a worker, shared by all that mention it.
pub type WorkerId = Arc<str>;
