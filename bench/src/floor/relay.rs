//! The bare two-hop relay: client stream → server → worker stream → back. A pending map, round robin over the
//! workers, and nothing else: no queue, no credit, no leases, no task state, no timeouts, no ids to store.
//!
//! It speaks the product's own messages over the same tonic, so what a task costs more there is what a scheduler
//! costs. With a log it also writes what the product would have to make durable: the call and its outcome.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crewcall::proto::tasks_server::{Tasks, TasksServer};
use crewcall::proto::worker_server::{Worker, WorkerServer};
use crewcall::proto::{self, Durability, outcome, pipe_outcome, result};
use futures_util::Stream;
use parking_lot::Mutex;
use slab::Slab;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::log::Log;
use super::outbox::Outbox;

/// Entries of one message.
const BATCH: usize = 64;
/// A worker that keeps its results until they are confirmed is told this often.
const CONFIRM_EVERY: u64 = 256;
/// As the product: one full message ahead of the reader for each stream, several for each connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Serves until the process ends. With a log, durable calls are written to it.
///
/// # Errors
/// When the listener fails.
pub(super) async fn serve(listener: TcpListener, relay: Arc<Relay>) -> Result<(), tonic::transport::Error> {
    let edge = Edge { relay };
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(TasksServer::new(edge.clone()).max_decoding_message_size(usize::MAX))
        .add_service(WorkerServer::new(edge).max_decoding_message_size(usize::MAX))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
}

type Answers = Arc<Outbox<proto::PipeOutcome>>;
type Work = Arc<Outbox<proto::Assign, News>>;

/// What a worker is told beside its work.
#[derive(Debug, Default, PartialEq)]
struct News {
    beat: Option<proto::Beat>,
    confirmed: u64,
}

#[derive(Debug, Default)]
pub(super) struct Relay {
    state: Mutex<State>,
    log: Option<Log<Stored>>,
}

#[derive(Debug, Default)]
struct State {
    /// By lease.
    pending: Slab<Pending>,
    pipes: Slab<Pipe>,
    workers: Vec<Work>,
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

#[derive(Debug)]
struct Pipe {
    answers: Answers,
    in_flight: usize,
    /// The caller sends no more.
    ended: bool,
}

/// What waits for a record.
#[derive(Debug)]
pub(super) enum Stored {
    Submitted(oneshot::Sender<()>),
    Ended(Answers, proto::PipeOutcome),
    Called(oneshot::Sender<proto::Outcome>, proto::Outcome),
}

impl Relay {
    /// Appends what is durable to the file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn with_log(path: &std::path::Path) -> std::io::Result<Self> {
        Ok(Self { log: Some(Log::open(path, deliver)?), ..Self::default() })
    }

    /// Takes the calls of one frame in, and hands them to one worker.
    fn dispatch(
        &self,
        calls: impl ExactSizeIterator<Item = (proto::NewTask, impl FnOnce(&mut State) -> Caller)>,
    ) -> Result<(), Status> {
        let mut assigns = Vec::with_capacity(calls.len());
        let mut state = self.state.lock();
        let turn = state.next;
        state.next = turn.wrapping_add(1);
        let turn = turn.checked_rem(state.workers.len());
        let Some(worker) = turn.and_then(|turn| state.workers.get(turn)).cloned() else {
            return Err(Status::unavailable("the floor has no worker: let one join first"));
        };
        for (task, caller) in calls {
            let caller = caller(&mut state);
            let durable = self.log.is_some() && is_durable(&task);
            let lease = state.pending.insert(Pending { caller, durable }) as u64;
            if durable && let Some(log) = &self.log {
                log.append(|bytes, _| record(bytes, lease, task.method.as_bytes(), payload(&task)));
            }
            assigns.push(proto::Assign {
                lease,
                attempt: 1,
                method: task.method,
                payload: task.payload,
                ..Default::default()
            });
        }
        drop(state);
        worker.extend(assigns);
        Ok(())
    }

    /// Matches the results of one frame with those who wait for them.
    fn settle(&self, results: Vec<proto::Result>) {
        let mut settled = Vec::with_capacity(results.len());
        let mut state = self.state.lock();
        let state_now = &mut *state;
        for result in results {
            let Ok(lease) = usize::try_from(result.lease) else { continue };
            let Some(pending) = state_now.pending.try_remove(lease) else { continue };
            let answers = match &pending.caller {
                Caller::Call(_) => None,
                Caller::Pipe { pipe, .. } => state_now.pipes.get_mut(*pipe).map(|pipe| {
                    pipe.in_flight -= 1;
                    Arc::clone(&pipe.answers)
                }),
            };
            settled.push((pending, answers, result));
        }
        drop(state);
    }
}
