//! The only door to the engine: cloneable, one async function for each thing one can ask. Every edge builds
//! the same commands here, so edges cannot disagree.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::engine::{Inbox, Message, SessionItem, Stream};
use crate::error::{Error, Reason, Result};
use crate::outbox::Outbox;
use crate::scheduler::{
    Accepted, Command, ConnId, Cursor, DeadChange, DeadChanged, DeadFilter, DeadPlace, DeadSelection, Event,
    Explanation, Filter, Frame, Hello, Limits, MethodView, Paused, Reply, SessionId, Stats, TaskView, Waiter,
    Welcome, WorkerView,
};
use crate::task::{NewTask, Outcome, TaskId};
pub use backups::{BackupMade, BackupToSend};

pub(crate) mod backups;

/// The way to a running engine. Clones are cheap and share it.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inbox: Inbox,
    limits: Limits,
    /// Of a store that has one.
    data_dir: Option<PathBuf>,
    next_tag: AtomicU64,
    /// Stream ids; 0 stands for questions.
    next_conn: AtomicU32,
}

impl Handle {
    pub(crate) fn new(inbox: Inbox, limits: Limits, data_dir: Option<PathBuf>) -> Self {
        let (next_tag, next_conn) = (AtomicU64::new(1), AtomicU32::new(1));
        Self { shared: Arc::new(Shared { inbox, limits, data_dir, next_tag, next_conn }) }
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    // --- callers ----------------------------------------------------------------------------------

    /// Runs a task and waits for its outcome. Dropping the future tells the scheduler that the caller has
    /// gone, which cancels the task unless it is durable or others wait for it.
    ///
    /// # Errors
    /// When the task is refused. A task that fails is not an error but an outcome.
    pub async fn call(&self, task: NewTask) -> Result<(TaskId, Outcome)> {
        let id = task.id;
        self.outcome_of(id, Command::Call { task, waiter: Waiter::default() }).await
    }

    /// Takes tasks; each is accepted or refused for itself. A durable one is accepted once it is stored.
    ///
    /// # Errors
    /// When the list as a whole is refused: empty, or too long.
    pub async fn submit(&self, tasks: Vec<NewTask>) -> Result<Vec<Result<Accepted>>> {
        match self.ask(Command::Submit { tasks, waiter: Waiter::default() }).await? {
            Reply::Submitted(results) => Ok(results),
            other => Err(unexpected(other)),
        }
    }

    /// A pipe: many calls in flight over one pair of streams.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn pipe(&self) -> Result<Pipe> {
        let conn = self.new_conn();
        let outbox = Outbox::default();
        self.send(Message::Open { conn, stream: Stream::Pipe(outbox.clone()) }).await?;
        Ok(Pipe { handle: self.clone(), conn, outbox, calls: Mutex::default() })
    }

    /// A stream that tells of the ends of the tasks that are handed in with it.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn ends(&self) -> Result<Ends> {
        let conn = self.new_conn();
        let outbox = Outbox::default();
        self.send(Message::Open { conn, stream: Stream::Pipe(outbox.clone()) }).await?;
        Ok(Ends { handle: self.clone(), conn, outbox })
    }

    /// One task as it stands, without its payload.
    ///
    /// # Errors
    /// `task_not_found`; `store_unavailable` while the store has no room and does not have the task's last change.
    pub async fn get(&self, id: TaskId) -> Result<TaskView> {
        let (take, with_payload) = (false, false);
        self.ask_task(Command::Get { id, take, with_payload, waiter: Waiter::default() }).await
    }

    /// One task as it stands, with its payload.
    ///
    /// # Errors
    /// `task_not_found`; `store_unavailable` as above.
    pub async fn get_with_payload(&self, id: TaskId) -> Result<TaskView> {
        let (take, with_payload) = (false, true);
        self.ask_task(Command::Get { id, take, with_payload, waiter: Waiter::default() }).await
    }

    /// Forgets the task if it has ended: its outcome has been read. Whether it is there is not told.
    pub fn forget(&self, id: TaskId) {
        let (take, with_payload) = (true, false);
        let command = Command::Get { id, take, with_payload, waiter: Waiter::default() };
        self.send_later(Message::Command(command));
    }

    /// Waits until the task has ended, or `wait` has passed. The outcome stays where it is.
    ///
    /// # Errors
    /// `task_not_found`.
    pub async fn wait(&self, id: TaskId, wait: Duration) -> Result<()> {
        let ended = self.outcome_of(id, Command::Await { id, waiter: Waiter::default() });
        match tokio::time::timeout(wait, ended).await {
            Ok(ended) => ended.map(|_| ()),
            Err(_) => Ok(()),
        }
    }

    /// A page of tasks, newest first, and where the next one begins.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn list(
        &self,
        filter: Filter,
        after: Option<TaskId>,
        limit: usize,
    ) -> Result<(Vec<TaskView>, Option<TaskId>)> {
        match self.ask(Command::List { filter, after, limit, waiter: Waiter::default() }).await? {
            Reply::Tasks(tasks, next) => Ok((tasks, next)),
            other => Err(unexpected(other)),
        }
    }

    /// Ends a task.
    ///
    /// # Errors
    /// `task_not_found`, `task_ended`.
    pub async fn cancel(&self, id: TaskId, reason: String) -> Result<TaskView> {
        self.ask_task(Command::Cancel { id, reason, waiter: Waiter::default() }).await
    }

    /// Runs an ended task again.
    ///
    /// # Errors
    /// `task_not_found`, `task_not_ended`, `shutting_down`.
    pub async fn retry(&self, id: TaskId) -> Result<TaskView> {
        self.ask_task(Command::Retry { id, waiter: Waiter::default() }).await
    }

    /// Why is it where it is?
    ///
    /// # Errors
    /// `task_not_found`.
    pub async fn explain(&self, id: TaskId) -> Result<Explanation> {
        match self.ask(Command::Explain { id, waiter: Waiter::default() }).await? {
            Reply::Explained(explanation) => Ok(*explanation),
            other => Err(unexpected(other)),
        }
    }

    /// Follows tasks: those named, or those that match when none is named.
    ///
    /// # Errors
    /// `task_not_found`, `too_many_items`, `too_many_watchers`.
    pub async fn watch(&self, ids: Vec<TaskId>, filter: Filter, cursor: Option<Cursor>) -> Result<Watch> {
        let conn = self.new_conn();
        let outbox = Outbox::default();
        self.send(Message::Open { conn, stream: Stream::Watch(outbox.clone()) }).await?;
        // From here on its drop closes the stream.
        let watch = Watch { handle: self.clone(), conn, outbox };
        let waiter = Waiter::default();
        match self.ask(Command::Watch { ids, filter, cursor, conn, waiter }).await? {
            Reply::Watching => Ok(watch),
            other => Err(unexpected(other)),
        }
    }

    // --- workers ----------------------------------------------------------------------------------

    /// Opens, or resumes, a worker's session.
    ///
    /// # Errors
    /// When the hello breaks a rule, too many workers are connected, or the server is stopping.
    pub async fn join(&self, hello: Hello) -> Result<(Welcome, Session)> {
        let conn = self.new_conn();
        let outbox = Outbox::default();
        self.send(Message::Open { conn, stream: Stream::Session(outbox.clone()) }).await?;
        let token = uuid::Uuid::new_v4().as_u128();
        let command = Command::Join { hello: Box::new(hello), conn, token, waiter: Waiter::default() };
        match self.ask(command).await {
            Ok(Reply::Joined(welcome)) => {
                let session = Session { handle: self.clone(), conn, id: welcome.session, outbox };
                Ok((*welcome, session))
            }
            Ok(other) => Err(unexpected(other)),
            Err(error) => {
                self.send_later(Message::Gone { conn });
                Err(error)
            }
        }
    }

    // --- operators --------------------------------------------------------------------------------

    /// Connected workers, by name.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn workers(&self) -> Result<Vec<WorkerView>> {
        match self.ask(Command::Workers { waiter: Waiter::default() }).await? {
            Reply::Workers(workers) => Ok(workers),
            other => Err(unexpected(other)),
        }
    }

    /// Methods served or waited for, by name and version.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn methods(&self) -> Result<Vec<MethodView>> {
        match self.ask(Command::Methods { waiter: Waiter::default() }).await? {
            Reply::Methods(methods) => Ok(methods),
            other => Err(unexpected(other)),
        }
    }

    /// Counts.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn stats(&self) -> Result<Stats> {
        match self.ask(Command::Stats { waiter: Waiter::default() }).await? {
            Reply::Stats(stats) => Ok(*stats),
            other => Err(unexpected(other)),
        }
    }

    /// Asks a worker to take no more, finish and leave.
    ///
    /// # Errors
    /// `worker_not_found`.
    pub async fn drain(&self, worker_id: String, reason: String) -> Result<()> {
        match self.ask(Command::Drain { worker_id, reason, waiter: Waiter::default() }).await? {
            Reply::Draining => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Lets the tasks of a method wait; they are taken all the same. What handlers have begun goes on.
    ///
    /// # Errors
    /// `invalid_field`, `server_full` when too many methods are paused, `store_unavailable`.
    pub async fn pause(&self, method: String, reason: String, by: String) -> Result<Paused> {
        match self.ask(Command::Pause { method, reason, by, waiter: Waiter::default() }).await? {
            Reply::Paused(paused) => Ok(*paused),
            other => Err(unexpected(other)),
        }
    }

    /// Lets them wait no longer. Says whether the method was paused.
    ///
    /// # Errors
    /// `invalid_field`, `store_unavailable`.
    pub async fn resume(&self, method: String) -> Result<bool> {
        match self.ask(Command::Resume { method, waiter: Waiter::default() }).await? {
            Reply::Resumed { was_paused } => Ok(was_paused),
            other => Err(unexpected(other)),
        }
    }

    /// A page of dead letters, those that died last first, and where the next one begins.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn list_dead(
        &self,
        filter: DeadFilter,
        after: Option<DeadPlace>,
        limit: usize,
    ) -> Result<(Vec<TaskView>, Option<DeadPlace>)> {
        match self.ask(Command::ListDead { filter, after, limit, waiter: Waiter::default() }).await? {
            Reply::DeadLetters(tasks, next) => Ok((tasks, next)),
            other => Err(unexpected(other)),
        }
    }

    /// Runs dead letters again, or forgets them; with `dry_run` only says which it would be.
    ///
    /// # Errors
    /// `shutting_down` and `store_unavailable` for a retry. What is wrong with a single one is in its result.
    pub async fn change_dead(
        &self,
        change: DeadChange,
        selection: DeadSelection,
        dry_run: bool,
    ) -> Result<DeadChanged> {
        let waiter = Waiter::default();
        match self.ask(Command::ChangeDead { change, selection, dry_run, waiter }).await? {
            Reply::DeadChanged(changed) => Ok(changed),
            other => Err(unexpected(other)),
        }
    }

    /// Begins to stop: nothing new is taken, workers are asked to leave, callers whose task no worker has
    /// begun are refused with `shutting_down`. Returns when no worker runs anything any more; give it a
    /// time limit.
    pub async fn shutdown(&self) {
        let (idle, done) = oneshot::channel();
        if self.send(Message::Shutdown { idle }).await.is_ok() {
            done.await.ok();
        }
    }

    /// Stops the engine. What was handed to the store is stored first.
    pub async fn halt(&self) {
        self.send(Message::Halt).await.ok();
    }

    // --- how ----------------------------------------------------------------------------------------

    fn new_conn(&self) -> ConnId {
        loop {
            // 0 stands for questions; it comes round once in four thousand million streams.
            let conn = self.shared.next_conn.fetch_add(1, Ordering::Relaxed);
            if conn != 0 {
                return conn;
            }
        }
    }

    /// Sends at once when there is room. The wait for it is rare, and boxed: inline, it and the message would be most
    /// of every future that may say something, and so of what an idle connection costs.
    fn send(&self, message: Message) -> impl Future<Output = Result<()>> + Send + '_ {
        let inbox = &self.shared.inbox;
        let sent = inbox.try_put(message).map(|full| full.map(|message| Box::pin(inbox.put(message))));
        async move {
            match sent {
                Ok(None) => Ok(()),
                Ok(Some(waiting)) => waiting.await.map_err(|_| stopped()),
                Err(_) => Err(stopped()),
            }
        }
    }

    /// For drops, which cannot wait: at once when there is room, else from a task of its own.
    fn send_later(&self, message: Message) {
        if let Ok(Some(message)) = self.shared.inbox.try_put(message)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let shared = Arc::clone(&self.shared);
            runtime.spawn(async move { shared.inbox.put(message).await.ok() });
        }
    }

    async fn ask(&self, command: Command) -> Result<Reply> {
        let tag = self.shared.next_tag.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.send(Message::Ask { command, tag, reply }).await?;
        match answer.await {
            Ok(Reply::Refused(error)) => Err(error),
            Ok(reply) => Ok(reply),
            Err(_) => Err(stopped()),
        }
    }

    async fn ask_task(&self, command: Command) -> Result<TaskView> {
        match self.ask(command).await? {
            Reply::Task(view) => Ok(*view),
            other => Err(unexpected(other)),
        }
    }

    /// Sends a command that is answered at the end of task `id`; when the future is dropped before, the
    /// scheduler hears of it.
    async fn outcome_of(&self, id: TaskId, command: Command) -> Result<(TaskId, Outcome)> {
        let tag = self.shared.next_tag.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.send(Message::Ask { command, tag, reply }).await?;
        let mut guard = LeaveGuard { handle: self, id, tag, armed: true };
        let answer = answer.await;
        guard.armed = false;
        match answer {
            Ok(Reply::Ended(id, outcome)) => Ok((id, outcome)),
            Ok(other) => Err(unexpected(other)),
            Err(_) => Err(stopped()),
        }
    }
}

/// Tells the scheduler when a caller stops waiting.
struct LeaveGuard<'a> {
    handle: &'a Handle,
    id: TaskId,
    tag: u64,
    armed: bool,
}

impl Drop for LeaveGuard<'_> {
    fn drop(&mut self) {
        if self.armed {
            let waiter = Waiter { conn: 0, tag: self.tag };
            let command = Command::Abandon { id: self.id, waiter, cancel: false };
            self.handle.send_later(Message::Command(command));
            self.handle.send_later(Message::Unask { tag: self.tag });
        }
    }
}

/// Many calls in flight over one pair of streams. Dropping it tells the scheduler that the caller of all
/// that is in flight has gone.
#[derive(Debug)]
pub struct Pipe {
    handle: Handle,
    conn: ConnId,
    outbox: Outbox<(u64, Reply)>,
    /// In flight, by the caller's number: handed in, and not yet taken out of the outbox. Shared by the
    /// reading and the writing half of one stream, locked once a frame.
    calls: Mutex<HashMap<u64, TaskId, foldhash::fast::RandomState>>,
}

impl Pipe {
    /// Hands in calls. Those that cannot be taken are returned with the reason; the rest is answered
    /// through `poll_outcomes`.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn call(&self, mut calls: Vec<(u64, NewTask)>) -> Result<Vec<(u64, Error)>> {
        let mut refused = Vec::new();
        {
            let most = self.handle.limits().pipe_calls;
            let mut known = self.calls.lock();
            calls.retain(|(number, task)| {
                let error = if known.len() >= most {
                    let message =
                        format!("{most} calls are in flight on this pipe, the limit (limits.pipe_calls)");
                    Error::new(Reason::TooManyInFlight, message)
                } else if known.contains_key(number) {
                    Error::new(Reason::CallIdInUse, format!("call_id {number} is in flight on this pipe"))
                } else {
                    known.insert(*number, task.id);
                    return true;
                };
                refused.push((*number, error));
                false
            });
        }
        if !calls.is_empty() {
            self.handle.send(Message::Calls { conn: self.conn, calls }).await?;
        }
        Ok(refused)
    }

    /// Whether a frame may hold so many calls.
    ///
    /// # Errors
    /// `too_many_items`.
    pub fn check_frame(&self, calls: usize) -> Result<()> {
        self.handle.limits().check_pipe_frame(calls)
    }

    /// Withdraws a call in flight, by its number; one that is not in flight is no error. Its task is
    /// cancelled, unless others have an interest in it: then only the call ends, refused with `call_withdrawn`.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn cancel(&self, number: u64) -> Result<()> {
        let id = self.calls.lock().get(&number).copied();
        let Some(id) = id else { return Ok(()) };
        let waiter = Waiter { conn: self.conn, tag: number };
        self.handle.send(Message::Command(Command::Abandon { id, waiter, cancel: true })).await
    }

    /// Everything that has been answered, in `items`, which must be empty. See [`Outbox::poll_take`].
    pub fn poll_outcomes(
        &self,
        cx: &mut Context<'_>,
        items: &mut Vec<(u64, Reply)>,
    ) -> Poll<Result<bool, Error>> {
        let ready = self.outbox.poll_take(cx, items);
        if matches!(ready, Poll::Ready(Ok(true))) {
            let mut known = self.calls.lock();
            for (number, _) in items.iter() {
                known.remove(number);
            }
        }
        ready
    }

    /// Whether every call has been answered and the answers taken.
    pub fn is_idle(&self) -> bool {
        self.calls.lock().is_empty()
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let calls = self.calls.get_mut().drain().collect();
        self.handle.send_later(Message::HungUp { conn: self.conn, calls });
    }
}

/// Tasks handed in one by one, whose ends are told together: one wake-up for all that end in a round of the engine,
/// and no question asked for each of them. Dropping it ends the stream, and no task.
#[derive(Debug)]
pub struct Ends {
    handle: Handle,
    conn: ConnId,
    outbox: Outbox<(u64, Reply)>,
}

impl Ends {
    /// Takes a task as [`Handle::submit`] does. Its end, or that there will be none while the server stops, is told
    /// under `number`.
    ///
    /// # Errors
    /// When the task is refused.
    pub async fn submit(&self, number: u64, task: NewTask) -> Result<Accepted> {
        let (id, waiter) = (task.id, Waiter { conn: self.conn, tag: number });
        let tag = self.handle.shared.next_tag.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let command = Command::Submit { tasks: vec![task], waiter: Waiter::default() };
        self.handle.send(Message::Ask { command, tag, reply }).await?;
        // Not after the answer: the engine takes both in one round.
        self.handle.send(Message::Command(Command::Await { id, waiter })).await?;
        match answer.await.map_err(|_| stopped())? {
            Reply::Submitted(mut results) => {
                results.pop().unwrap_or_else(|| Err(Error::new(Reason::Internal, "internal error")))
            }
            other => Err(unexpected(other)),
        }
    }

    /// `Ended`, or `Refused` with the reason why nothing more will be told: of a task that was not accepted
    /// `task_not_found`. Ends normally with this stream.
    pub fn outbox(&self) -> Outbox<(u64, Reply)> {
        self.outbox.clone()
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.outbox.close(None);
        self.handle.send_later(Message::Gone { conn: self.conn });
    }
}

/// A worker's session. Dropping it means that its stream broke.
#[derive(Debug)]
pub struct Session {
    handle: Handle,
    conn: ConnId,
    id: SessionId,
    outbox: Outbox<SessionItem>,
}

impl Session {
    /// Its name.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// What the worker says.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn say(&self, frame: Frame) -> impl Future<Output = Result<()>> + Send + '_ {
        let frame = Box::new(frame);
        let command = Command::Frame { session: self.id, conn: self.conn, frame };
        self.handle.send(Message::Command(command))
    }

    /// What the worker is told. Ends with the reason when the session is over.
    pub fn outbox(&self) -> &Outbox<SessionItem> {
        &self.outbox
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.handle.send_later(Message::Command(Command::Broken { session: self.id, conn: self.conn }));
        self.handle.send_later(Message::Gone { conn: self.conn });
    }
}

/// A watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    handle: Handle,
    conn: ConnId,
    outbox: Outbox<Event>,
}

impl Watch {
    /// What happens. Ends normally once all named tasks have ended.
    pub fn outbox(&self) -> &Outbox<Event> {
        &self.outbox
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.send_later(Message::Command(Command::Unwatch { conn: self.conn }));
        self.handle.send_later(Message::Gone { conn: self.conn });
    }
}

fn stopped() -> Error {
    Error::new(Reason::ShuttingDown, "the server is stopping")
}

fn unexpected(reply: Reply) -> Error {
    match reply {
        Reply::Refused(error) => error,
        other => {
            tracing::error!(?other, "an answer that does not fit its question");
            Error::new(Reason::Internal, "internal error")
        }
    }
}
