//! What goes out: who must be told what.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::command::{ConnId, Cursor, SessionId, Waiter, WorkerId};
use super::dead_letters::{DeadChanged, DeadPlace};
use super::pauses::Paused;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::order::Pause;
use crate::task::{
    Attempts, Chunk, Method, Outcome, Payload, Progress, State, StateName, TaskId, TaskOptions,
};

/// Somebody must be told something. Effects are carried out in order.
#[derive(Debug)]
pub struct Effect {
    /// It states a durable fact: it may leave only when every record made so far is stored.
    pub gated: bool,
    /// To whom, and what.
    pub kind: EffectKind,
}

/// To whom, and what.
#[derive(Debug)]
pub enum EffectKind {
    /// An answer.
    Reply(Waiter, Reply),
    /// As `Reply` with `Reply::Task`, but the payload, which was asked for, lies in the store and is `None` here.
    ReplyStored(Waiter, Box<TaskView>),
    /// Work for a session.
    Assign(ConnId, Box<Assign>),
    /// As `Assign`, but the payload lies in the store ([`RowKey::Payload`](crate::row::RowKey::Payload)) and is
    /// empty here: it is to be read and put in before anyone sees it. Nothing else that names the lease may
    /// overtake it.
    AssignStored {
        /// The session's stream.
        conn: ConnId,
        /// What to run.
        assign: Box<Assign>,
        /// How large the payload is.
        bytes: u64,
    },
    /// Something else for a session.
    Tell(ConnId, Tell),
    /// An event for a watcher.
    Event(ConnId, Box<Event>),
    /// A stream ends: a session's or a watcher's. `None` is a normal end.
    Close(ConnId, Option<Error>),
}

/// The answer to a command.
#[derive(Debug)]
pub enum Reply {
    /// To anything.
    Refused(Error),
    /// To Call and Await.
    Ended(TaskId, Outcome),
    /// To Submit.
    Submitted(Vec<Result<Accepted, Error>>),
    /// To Get, Cancel, Retry.
    Task(Box<TaskView>),
    /// To List. The id is where the next page begins.
    Tasks(Vec<TaskView>, Option<TaskId>),
    /// To Explain.
    Explained(Box<Explanation>),
    /// To Watch.
    Watching,
    /// To Join.
    Joined(Box<Welcome>),
    /// To Workers.
    Workers(Vec<WorkerView>),
    /// To Methods.
    Methods(Vec<MethodView>),
    /// To Stats.
    Stats(Box<Stats>),
    /// To Drain.
    Draining,
    /// To Pause.
    Paused(Box<Paused>),
    /// To Resume.
    Resumed {
        /// The method was paused.
        was_paused: bool,
    },
    /// To ListDead. The place is where the next page begins.
    DeadLetters(Vec<TaskView>, Option<DeadPlace>),
    /// To ChangeDead.
    DeadChanged(DeadChanged),
}

/// A task that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its name.
    pub id: TaskId,
    /// It was there already, under the same idempotency key.
    pub attached: bool,
}

/// A task as anyone may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// Its name.
    pub id: TaskId,
    /// The method.
    pub method: Arc<str>,
    /// The argument, for who asked for it.
    pub payload: Option<Payload>,
    /// How it is run.
    pub options: Arc<TaskOptions>,
    /// Empty is none.
    pub idempotency_key: String,
    /// Where it stands.
    pub state: State,
    /// The current attempt.
    pub attempt: u32,
    /// Failed attempts.
    pub attempts: Attempts,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When it entered its present state.
    pub changed_at: Timestamp,
    /// The latest word from its handler.
    pub progress: Option<Progress>,
}

/// Why a task is where it is.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The task.
    pub task: TaskView,
    /// One sentence.
    pub summary: String,
    /// The facts behind it, the decisive one first.
    pub details: Vec<String>,
}

/// Run this.
#[derive(Clone, Debug)]
pub struct Assign {
    /// The task.
    pub id: TaskId,
    /// The fence.
    pub lease: u64,
    /// From 1.
    pub attempt: u32,
    /// What to call.
    pub method: Arc<str>,
    /// The version chosen, as the worker wrote it.
    pub version: SharedText,
    /// The argument.
    pub payload: Payload,
    /// When the attempt will be stopped.
    pub deadline: Timestamp,
    /// Whose `metadata` goes along.
    pub options: AssignOptions,
    /// Whose credit it uses.
    pub pool: SharedText,
}

/// A text shared by all that mention it, and nearly always empty: then nothing is counted. The counts of what every
/// assignment mentions would go back and forth between the processors, which costs more than all else about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedText(Option<Arc<str>>);

impl std::ops::Deref for SharedText {
    type Target = str;
    fn deref(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl From<&Arc<str>> for SharedText {
    fn from(text: &Arc<str>) -> Self {
        Self((!text.is_empty()).then(|| Arc::clone(text)))
    }
}

impl From<&str> for SharedText {
    fn from(text: &str) -> Self {
        Self((!text.is_empty()).then(|| Arc::from(text)))
    }
}

impl From<String> for SharedText {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

/// The options of a task that is assigned; those that most calls share are not counted, as in [`SharedText`].
#[derive(Clone, Debug)]
pub struct AssignOptions(Option<Arc<TaskOptions>>);

impl std::ops::Deref for AssignOptions {
    type Target = TaskOptions;
    fn deref(&self) -> &TaskOptions {
        self.0.as_ref().unwrap_or_else(|| TaskOptions::default_call())
    }
}

impl From<&Arc<TaskOptions>> for AssignOptions {
    fn from(options: &Arc<TaskOptions>) -> Self {
        let is_default = Arc::ptr_eq(options, TaskOptions::default_call());
        Self((!is_default).then(|| Arc::clone(options)))
    }
}

impl From<Arc<TaskOptions>> for AssignOptions {
    fn from(options: Arc<TaskOptions>) -> Self {
        Self::from(&options)
    }
}

/// Something a session is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Stop this run.
    Cancel(u64, String),
    /// Give this back if it has not started.
    Recall(u64),
    /// Results up to this number are safe.
    DurableSeq(u64),
    /// Answer to a beat: leases held, and their XOR.
    Beat(u32, u64),
    /// Take no more, finish, leave.
    Drain(String),
    /// The server is stopping: finish, and connect again when the stream ends.
    Move(String),
    /// An entry was refused.
    Refused(u64, Error),
}

/// What a watcher sees.
#[derive(Clone, Debug)]
pub struct Event {
    /// Where to go on from.
    pub cursor: Cursor,
    /// What.
    pub kind: EventKind,
}

/// What a watcher sees.
#[derive(Clone, Debug)]
pub enum EventKind {
    /// A task as it stands.
    Task(TaskView),
    /// A word from a handler.
    Progress(TaskId, Progress),
    /// A piece of output.
    Chunk(TaskId, Chunk),
}

/// The answer to a hello.
#[derive(Clone, Debug)]
pub struct Welcome {
    /// Names the session.
    pub session: SessionId,
    /// The worker's name, given or chosen.
    pub worker_id: WorkerId,
    /// To resume.
    pub token: u128,
    /// Leases that still stand.
    pub keep: Vec<u64>,
    /// Leases that do not.
    pub drop: Vec<u64>,
}

/// A worker as anyone may see it.
#[derive(Clone, Debug)]
pub struct WorkerView {
    /// Its name.
    pub id: WorkerId,
    /// Its session.
    pub session: SessionId,
    /// How it stands.
    pub state: WorkerState,
    /// Workers of one kind.
    pub group: String,
    /// For targets.
    pub labels: BTreeMap<String, String>,
    /// Of its program.
    pub version: String,
    /// For people.
    pub sdk: String,
    /// For people.
    pub host: String,
    /// Where its stream came from.
    pub peer: String,
    /// When it joined.
    pub joined_at: Timestamp,
    /// When anything was last heard.
    pub seen_at: Timestamp,
    /// Its pools.
    pub pools: Vec<PoolView>,
    /// What it serves.
    pub methods: Vec<Arc<Method>>,
    /// Results accepted since it joined.
    pub finished: u64,
}

/// How a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Connected and served.
    Active,
    /// Connected, gets no more work.
    Draining,
    /// Its stream broke; it may come back.
    Away,
}

/// A pool as anyone may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    /// Its name.
    pub name: Arc<str>,
    /// How many tasks run at once.
    pub concurrency: u32,
    /// Tasks held.
    pub in_flight: u32,
    /// Credit not used yet.
    pub credit: u64,
}

/// A method as anyone may see it.
#[derive(Clone, Debug)]
pub struct MethodView {
    /// Its name.
    pub name: Arc<str>,
    /// As registered last; `None` when tasks wait for it and nobody serves it.
    pub method: Option<Arc<Method>>,
    /// Live workers that serve this version.
    pub workers: u32,
    /// Tasks of any version that wait for a worker.
    pub ready: u64,
    /// They wait because an operator says so.
    pub paused: Option<Pause>,
}

/// Counts of tasks and workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tasks in each state, in the order of `StateName::ALL`.
    pub tasks: [u64; 7],
    /// Since the start.
    pub totals: Totals,
    /// Sessions, broken ones that may come back included.
    pub workers: u32,
    /// Since the first command.
    pub uptime_ms: u64,
    /// Methods whose tasks wait because an operator says so.
    pub paused_methods: u32,
    /// Room for tasks, used and in all.
    pub room: Room,
}

/// How much is used of what there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// The most tasks that may be known.
    pub max_tasks: u64,
    /// Payloads and outcomes held in memory, in bytes.
    pub memory_bytes: u64,
    /// The most that those may take.
    pub max_memory_bytes: u64,
    /// Dead letters beyond so many are kept no longer than any other ended task.
    pub max_dead: u64,
    /// Bytes of disk that the store takes.
    pub store_bytes: u64,
    /// The most that its tables may take; `None` is as much as there is.
    pub max_store_bytes: Option<u64>,
    /// Why the store takes nothing more; `None` while it does.
    pub store_full: Option<String>,
}

impl Stats {
    /// Tasks in `state`.
    pub fn in_state(&self, state: StateName) -> u64 {
        self.tasks.get(state as usize).copied().unwrap_or_default()
    }
}

/// Counts since the start; they only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tasks accepted.
    pub submitted: u64,
    /// Ended in success.
    pub finished: u64,
    /// Ended in failure.
    pub failed: u64,
    /// Ended by cancel.
    pub cancelled: u64,
    /// Ended by a deadline.
    pub expired: u64,
    /// Attempts that failed and were tried again.
    pub retried: u64,
    /// Entries from workers that were refused.
    pub refused: u64,
}
