//! The bare two-hop relay: client stream → server → worker stream → back. A pending map, round robin over the
//! workers, and nothing else: no queue, no credit, no leases, no task state, no timeouts, no ids to make.
//!
//! It speaks the product's own messages over the same tonic, so what a task costs more there is what a scheduler
//! costs. With a log it also writes what the product has to make durable: the call and its outcome.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crewcall::proto::{self, Durability, outcome, pipe_outcome, result};
use parking_lot::Mutex;
use slab::Slab;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

pub(super) use self::edge::Edge;
use super::log::Log;
use super::outbox::Outbox;

mod edge;

/// As the product: one full message ahead of the reader for each stream, several for each connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Serves until the process ends. With `log`, what is durable is appended to that file.
///
/// # Errors
/// When the file cannot be opened, or the listener fails.
pub(super) async fn serve(listener: TcpListener, log: Option<&Path>) -> io::Result<()> {
    let log = log.map(|path| Log::open(path, deliver)).transpose()?;
    let edge = Edge::new(Arc::new(Relay { state: Mutex::default(), log }));
    let (tasks, worker) = edge.services();
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(tasks)
        .add_service(worker)
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .map_err(io::Error::other)
}

type Answers = Outbox<proto::PipeOutcome, Ending>;
type Work = Outbox<proto::Assign, News>;

/// What a caller's stream is told beside outcomes.
#[derive(Debug)]
enum Ending {
    /// The caller sends no more.
    LastCall,
    Broken(tonic::Status),
}

/// What a worker is told beside its work.
#[derive(Debug, Default)]
struct News {
    beat: Option<proto::Beat>,
    confirmed: u64,
    /// It has left, or its stream broke.
    end: bool,
}

/// The state between callers and workers.
#[derive(Debug, Default)]
pub(super) struct Relay {
    state: Mutex<State>,
    log: Option<Log<Stored>>,
}

#[derive(Debug, Default)]
struct State {
    /// By lease.
    pending: Slab<Pending>,
    /// By number, which is never used again: a call may outlive its pipe.
    pipes: Vec<Option<Arc<Answers>>>,
    workers: Vec<Arc<Work>>,
    next: usize,
}

/// Who waits for an outcome.
#[derive(Debug)]
struct Pending {
    caller: Caller,
    durable: bool,
}

#[derive(Debug)]
enum Caller {
    Pipe { pipe: usize, call_id: u64 },
    Call(oneshot::Sender<proto::Outcome>),
}

/// What waits for a record.
#[derive(Debug)]
enum Stored {
    Submitted(oneshot::Sender<()>),
    Piped(Arc<Answers>, proto::PipeOutcome),
    Called(oneshot::Sender<proto::Outcome>, proto::Outcome),
}

#[derive(Debug)]
struct NoWorker;

impl Relay {
    /// Takes calls in, and hands them all to one worker.
    fn dispatch(&self, calls: impl Iterator<Item = (Caller, proto::NewTask)>) -> Result<(), NoWorker> {
        let mut records = Vec::new();
        let mut assigns = Vec::with_capacity(calls.size_hint().0);
        let worker = {
            let mut state = self.state.lock();
            let turn = state.next.checked_rem(state.workers.len()).ok_or(NoWorker)?;
            state.next = state.next.wrapping_add(1);
            for (caller, task) in calls {
                let durable = self.log.is_some() && is_durable(&task);
                let lease = state.pending.insert(Pending { caller, durable }) as u64;
                if durable {
                    record(&mut records, lease, task.method.as_bytes(), data(task.payload.as_ref()));
                }
                assigns.push(assign(lease, task));
            }
            state.workers.get(turn).map(Arc::clone).ok_or(NoWorker)?
        };
        // The log first, so that no outcome is stored before its call. The worker does not wait for the disk:
        // nobody was told of the call yet.
        self.store(&mut records, &mut Vec::new());
        worker.extend(assigns);
        Ok(())
    }

    /// One call and its outcome; `None` without a worker, or when it left.
    pub(super) async fn call(&self, task: proto::NewTask) -> Option<proto::Outcome> {
        let (sender, outcome) = oneshot::channel();
        self.dispatch([(Caller::Call(sender), task)].into_iter()).ok()?;
        outcome.await.ok()
    }

    /// Matches results with those who wait for them.
    fn settle(&self, results: Vec<proto::Result>) {
        let mut pipes: Vec<(usize, Arc<Answers>, Vec<proto::PipeOutcome>)> = Vec::new();
        let mut calls = Vec::new();
        let (mut records, mut stored) = (Vec::new(), Vec::new());
        let mut left = results.len();
        {
            let mut state = self.state.lock();
            for result in results {
                let lease = result.lease;
                let pending = usize::try_from(lease).ok().and_then(|lease| state.pending.try_remove(lease));
                let Some(Pending { caller, durable }) = pending else { continue };
                let outcome = outcome_of(result.kind);
                if durable {
                    record(&mut records, lease, b"", outcome_data(&outcome));
                }
                match caller {
                    Caller::Call(caller) if durable => stored.push(Stored::Called(caller, outcome)),
                    Caller::Call(caller) => calls.push((caller, outcome)),
                    Caller::Pipe { pipe, call_id } => {
                        let kind = Some(pipe_outcome::Kind::Outcome(outcome));
                        let answer = proto::PipeOutcome { call_id, task_id: String::new(), kind };
                        if !durable
                            && let Some((last, _, answers)) = pipes.last_mut()
                            && *last == pipe
                        {
                            answers.push(answer);
                        } else if let Some(Some(answers)) = state.pipes.get(pipe) {
                            let answers = Arc::clone(answers);
                            match durable {
                                true => stored.push(Stored::Piped(answers, answer)),
                                false => {
                                    let mut batch = Vec::with_capacity(left);
                                    batch.push(answer);
                                    pipes.push((pipe, answers, batch));
                                }
                            }
                        }
                    }
                }
                left -= 1;
            }
        }
        self.store(&mut records, &mut stored);
        for (_, answers, batch) in pipes {
            answers.extend(batch);
        }
        for (caller, outcome) in calls {
            // A caller that has gone meanwhile needs no answer.
            caller.send(outcome).ok();
        }
    }

    /// Writes a list of tasks to the log; the answer comes once they are on the disk.
    fn submit(&self, tasks: &[proto::NewTask]) -> Option<oneshot::Receiver<()>> {
        let log = self.log.as_ref()?;
        let (sender, stored) = oneshot::channel();
        log.append(|bytes, waiting| {
            for (index, task) in tasks.iter().enumerate() {
                record(bytes, index as u64, task.method.as_bytes(), data(task.payload.as_ref()));
            }
            waiting.push(Stored::Submitted(sender));
        });
        Some(stored)
    }

    /// Gives a worker no more.
    fn leave(&self, worker: &Arc<Work>) {
        self.state.lock().workers.retain(|other| !Arc::ptr_eq(other, worker));
    }

    fn store(&self, records: &mut Vec<u8>, stored: &mut Vec<Stored>) {
        if !records.is_empty()
            && let Some(log) = &self.log
        {
            log.append(|bytes, waiting| {
                bytes.append(records);
                waiting.append(stored);
            });
        }
    }
}

/// Answers those whose records are on the disk now, stream by stream.
fn deliver(group: &mut Vec<Stored>) {
    let mut batch: Option<(Arc<Answers>, Vec<proto::PipeOutcome>)> = None;
    for stored in group.drain(..) {
        match stored {
            // Fails only when the caller has gone meanwhile.
            Stored::Submitted(caller) => drop(caller.send(())),
            Stored::Called(caller, outcome) => drop(caller.send(outcome)),
            Stored::Piped(answers, answer) => match &mut batch {
                Some((last, batch)) if Arc::ptr_eq(last, &answers) => batch.push(answer),
                _ => {
                    if let Some((answers, batch)) = batch.replace((answers, vec![answer])) {
                        answers.extend(batch);
                    }
                }
            },
        }
    }
    if let Some((answers, batch)) = batch {
        answers.extend(batch);
    }
}

fn assign(lease: u64, task: proto::NewTask) -> proto::Assign {
    proto::Assign { lease, attempt: 1, method: task.method, payload: task.payload, ..Default::default() }
}

fn is_durable(task: &proto::NewTask) -> bool {
    task.options.as_ref().is_some_and(|options| options.durability() == Durability::Durable)
}

fn outcome_of(kind: Option<result::Kind>) -> proto::Outcome {
    let kind = match kind {
        Some(result::Kind::Succeeded(payload)) => outcome::Kind::Succeeded(payload),
        Some(result::Kind::Failed(failure)) => outcome::Kind::Failed(failure.error.unwrap_or_default()),
        None => outcome::Kind::Succeeded(proto::Payload::default()),
    };
    proto::Outcome { kind: Some(kind) }
}

fn data(payload: Option<&proto::Payload>) -> &[u8] {
    payload.map_or(&[], |payload| &payload.data)
}

fn outcome_data(outcome: &proto::Outcome) -> &[u8] {
    match &outcome.kind {
        Some(outcome::Kind::Succeeded(payload)) => &payload.data,
        Some(outcome::Kind::Failed(error)) => error.message.as_bytes(),
        _ => &[],
    }
}

/// The least that could be read back: lengths, the number, the name and the bytes.
fn record(into: &mut Vec<u8>, number: u64, name: &[u8], data: &[u8]) {
    into.extend_from_slice(&(name.len() as u32).to_le_bytes());
    into.extend_from_slice(&(data.len() as u32).to_le_bytes());
    into.extend_from_slice(&number.to_le_bytes());
    into.extend_from_slice(name);
    into.extend_from_slice(data);
}
