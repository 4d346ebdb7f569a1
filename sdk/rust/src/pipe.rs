//! The fast lane: many calls in flight over one stream. Frames carry lists: whatever is queued when the
//! stream can be written goes out together, so batches form by themselves under load and nothing waits
//! for a timer.
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::Stream;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use slab::Slab;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::Channel;

use crate::batch::{Batch, Weigh};
use crate::error::{CallError, Refusal, outcome_result};
use crate::options::{NewTask, Payload};
use crate::proto::tasks_client::TasksClient;
use crate::proto::{PipeCall, PipeOutcome, PipeRequest, PipeResponse, pipe_outcome};

/// Calls in flight on one pipe; the server's limit for a stream.
pub const IN_FLIGHT_MAX: usize = 65_536;
/// Bytes of calls accepted but not yet written; beyond it calls are refused with a hint to wait.
pub const QUEUED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Many calls over one stream. Clones share the stream. When it breaks, the calls in flight fail with
/// [`CallError::Transport`] and the next call opens a new one.
#[derive(Debug, Clone)]
pub struct Pipe {
    owner: Arc<Owner>,
}

/// The answer to come. Dropping it cancels the call.
#[derive(Debug)]
pub struct PipeReply {
    state: Reply,
}

#[derive(Debug)]
enum Reply {
    Refused(Option<CallError>),
    Waiting { call: CallKey, answer: oneshot::Receiver<Answer>, owner: Arc<Owner> },
    Done,
}

type Answer = Result<PipeOutcome, CallError>;

/// Held by every clone and every reply to come, not by the stream: when it goes, the sending side ends.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lane: Mutex<Lane>,
    client: TasksClient<Channel>,
    runtime: Handle,
}

/// A call is named by its slot and the stream it went out on.
#[derive(Debug, Clone, Copy)]
struct CallKey {
    slot: usize,
    stream: u64,
}

/// Everything the callers, the writer and the reader of a pipe share.
#[derive(Debug, Default)]
struct Lane {
    // Number of the stream now in use; what belongs to an earlier one is ignored.
    stream: u64,
    open: bool,
    // No clone of the Pipe is left.
    closing: bool,
    // By call_id. `None`: the caller has gone, but the id stays taken until the server has answered it.
    pending: Slab<Option<oneshot::Sender<Answer>>>,
    queue: Batch<PipeCall>,
    cancels: Vec<u64>,
    writer: Option<Waker>,
}

impl Pipe {
    pub(crate) fn new(client: TasksClient<Channel>, runtime: Handle) -> Self {
        let shared = Arc::new(Shared { lane: Mutex::default(), client, runtime });
        Self { owner: Arc::new(Owner { shared }) }
    }

    /// Runs a method and waits for its result.
    ///
    /// # Errors
    /// Every kind of [`CallError`]; beyond 65,536 calls in flight [`CallError::Refused`] (`pipe_full`).
    pub async fn call<In, Out>(&self, method: impl Into<String>, input: &In) -> Result<Out, CallError>
    where
        In: Serialize + ?Sized,
        Out: DeserializeOwned,
    {
        let payload = Payload::json(input)?;
        self.call_raw(NewTask { method: method.into(), payload: Some(payload), options: None })
            .await?
            .decode()
    }

    /// Queues a task at once, before the future is first polled; the future yields its result.
    pub fn call_raw(&self, task: NewTask) -> PipeReply {
        let (sender, answer) = oneshot::channel();
        let (call, writer, open_stream) = {
            let mut lane = self.owner.shared.lane.lock();
            let slot = match lane.push(task, sender) {
                Ok(slot) => slot,
                Err(refusal) => return PipeReply { state: Reply::Refused(Some(refusal.into())) },
            };
            let open_stream = !lane.open;
            lane.open = true;
            (CallKey { slot, stream: lane.stream }, lane.writer.take(), open_stream)
        };
        if open_stream {
            let shared = &self.owner.shared;
            shared.runtime.spawn(drive(shared.clone(), call.stream));
        }
        if let Some(writer) = writer {
            writer.wake();
        }
        PipeReply { state: Reply::Waiting { call, answer, owner: self.owner.clone() } }
    }

    /// Calls sent or queued that have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.owner.shared.lane.lock().pending.len()
    }
}

impl PipeReply {
    /// The answer as the server gave it, with the task's id; a method that failed is an answer here.
    ///
    /// # Errors
    /// [`CallError::Refused`] when this side refused the call, [`CallError::Transport`].
    pub async fn outcome(mut self) -> Result<PipeOutcome, CallError> {
        std::future::poll_fn(|context| self.poll_outcome(context)).await
    }

    fn poll_outcome(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        let answer = match &mut self.state {
            Reply::Waiting { answer, .. } => match Pin::new(answer).poll(context) {
                Poll::Pending => return Poll::Pending,
                // The sender is dropped unused only when the runtime itself goes down.
                Poll::Ready(answer) => answer.unwrap_or_else(|_| Err(broken("the runtime has stopped"))),
            },
            Reply::Refused(error) => Err(error.take().unwrap_or_else(|| broken("already answered"))),
            Reply::Done => Err(broken("already answered")),
        };
        self.state = Reply::Done;
        Poll::Ready(answer)
    }
}

impl Future for PipeReply {
    type Output = Result<Payload, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_outcome(context).map(|answer| match answer?.kind {
            Some(pipe_outcome::Kind::Outcome(outcome)) => outcome_result(Some(outcome)),
            Some(pipe_outcome::Kind::Refusal(refusal)) => Err(CallError::Refused(refusal.into())),
            None => Err(CallError::missing("kind")),
        })
    }
}

impl Drop for PipeReply {
    fn drop(&mut self) {
        if let Reply::Waiting { call, owner, .. } = &self.state {
            let writer = owner.shared.lane.lock().abandon(*call);
            if let Some(writer) = writer {
                writer.wake();
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let writer = {
            let mut lane = self.shared.lane.lock();
            lane.closing = true;
            lane.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

impl Lane {
    fn push(&mut self, task: NewTask, sender: oneshot::Sender<Answer>) -> Result<usize, Refusal> {
        if self.pending.len() >= IN_FLIGHT_MAX || self.queue.bytes() > QUEUED_BYTES_MAX {
            return Err(Refusal {
                code: Code::ResourceExhausted,
                reason: "pipe_full".into(),
                message: format!(
                    "{} calls are in flight and {} bytes queued on this pipe (limits {IN_FLIGHT_MAX} and \
                     {QUEUED_BYTES_MAX}): wait for answers or open a second pipe",
                    self.pending.len(),
                    self.queue.bytes()
                ),
                retry_after: Some(Duration::from_millis(100)),
            });
        }
        let slot = self.pending.insert(Some(sender));
        self.queue.push(PipeCall { call_id: slot as u64, task: Some(task) });
        Ok(slot)
    }

    /// The caller has gone: tell the server, unless the call was answered meanwhile.
    fn abandon(&mut self, call: CallKey) -> Option<Waker> {
        if call.stream != self.stream {
            return None;
        }
        let pending = self.pending.get_mut(call.slot)?;
        pending.take()?;
        self.cancels.push(call.slot as u64);
        self.writer.take()
    }

    /// Everything queued, up to the size of a frame; `None` when there is nothing.
    fn next_frame(&mut self) -> Option<PipeRequest> {
        if self.queue.is_empty() && self.cancels.is_empty() {
            return None;
        }
        let calls = self.queue.take(0);
        // A cancel must not overtake its call: those of calls still queued stay behind.
        let cancels = if self.queue.is_empty() {
            std::mem::take(&mut self.cancels)
        } else {
            let queued: std::collections::HashSet<u64> = self.queue.iter().map(|call| call.call_id).collect();
            self.cancels.extract_if(.., |id| !queued.contains(id)).collect()
        };
        Some(PipeRequest { calls, cancels })
    }

    /// Matches answers to callers. Answers to unknown ids are ignored: the server may repeat itself.
    fn settle(
        &mut self,
        outcomes: Vec<PipeOutcome>,
        answered: &mut Vec<(oneshot::Sender<Answer>, PipeOutcome)>,
    ) {
        for outcome in outcomes {
            let slot = usize::try_from(outcome.call_id).unwrap_or(usize::MAX);
            if let Some(Some(sender)) = self.pending.try_remove(slot) {
                answered.push((sender, outcome));
            }
        }
    }

    /// The stream is over: forget everything that belonged to it.
    fn close(&mut self) -> Vec<oneshot::Sender<Answer>> {
        let callers = self.pending.drain().flatten().collect();
        *self = Self { stream: self.stream + 1, closing: self.closing, ..Self::default() };
        callers
    }
}

impl Weigh for PipeCall {
    fn weight(&self) -> usize {
        const OVERHEAD: usize = 64;
        let task = self.task.as_ref();
        let payload = task.and_then(|task| task.payload.as_ref());
        OVERHEAD
            + task.map_or(0, |task| task.method.len())
            + payload.map_or(0, |payload| payload.data.len() + payload.content_type.len())
    }
}

fn broken(why: &str) -> CallError {
    CallError::Transport(format!("the pipe broke: {why}"))
}

/// The sending side of one stream.
struct Writer {
    shared: Arc<Shared>,
    stream: u64,
}

impl Stream for Writer {
    type Item = PipeRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<PipeRequest>> {
        let mut lane = self.shared.lane.lock();
        if lane.stream != self.stream {
            return Poll::Ready(None);
        }
        match lane.next_frame() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if lane.closing => Poll::Ready(None),
            None => {
                lane.writer = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Runs one stream to its end, then fails the calls it leaves behind.
async fn drive(shared: Arc<Shared>, stream: u64) {
    let error = match read(&shared, stream).await {
        Ok(()) => broken("the server closed it"),
        Err(status) => match CallError::from(status) {
            CallError::Transport(text) => broken(&text),
            other => other,
        },
    };
    let (callers, writer) = {
        let mut lane = shared.lane.lock();
        let writer = lane.writer.take();
        (lane.close(), writer)
    };
    if let Some(writer) = writer {
        writer.wake();
    }
    for caller in callers {
        let copy = match &error {
            CallError::Refused(refusal) => CallError::Refused(refusal.clone()),
            other => CallError::Transport(other.to_string()),
        };
        // A caller that has gone meanwhile needs no answer.
        let _ = caller.send(Err(copy));
    }
}

async fn read(shared: &Arc<Shared>, stream: u64) -> Result<(), tonic::Status> {
    let writer = Writer { shared: shared.clone(), stream };
    let mut inbound = shared.client.clone().pipe(writer).await?.into_inner();
    let mut answered = Vec::new();
    while let Some(PipeResponse { outcomes }) = inbound.message().await? {
        shared.lane.lock().settle(outcomes, &mut answered);
        for (sender, outcome) in answered.drain(..) {
            // A caller that has gone meanwhile needs no answer.
            let _ = sender.send(Ok(outcome));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(lane: &mut Lane, bytes: usize) -> (CallKey, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let payload = Some(Payload::raw(vec![0; bytes], ""));
        let task = NewTask { method: "m".into(), payload, options: None };
        (CallKey { slot: lane.push(task, sender).unwrap(), stream: lane.stream }, receiver)
    }

    fn ids(frame: &PipeRequest) -> Vec<u64> {
        frame.calls.iter().map(|call| call.call_id).collect()
    }

    #[test]
    fn what_is_queued_goes_in_one_frame() {
        let mut lane = Lane::default();
        let _replies: Vec<_> = (0..3).map(|_| push(&mut lane, 10)).collect();
        assert_eq!(ids(&lane.next_frame().unwrap()), [0, 1, 2]);
        assert!(lane.next_frame().is_none());
    }

    #[test]
    fn a_dropped_call_is_cancelled_and_its_id_stays_taken_until_answered() {
        let mut lane = Lane::default();
        let (call, _reply) = push(&mut lane, 1);
        lane.next_frame().unwrap();
        lane.abandon(call);
        lane.abandon(call);
        assert_eq!(lane.next_frame().unwrap().cancels, [0]);
        assert_eq!(push(&mut lane, 1).0.slot, 1);
        let mut answered = Vec::new();
        lane.settle(vec![PipeOutcome { call_id: 0, ..Default::default() }], &mut answered);
        assert!(answered.is_empty());
        assert_eq!(push(&mut lane, 1).0.slot, 0);
    }

    #[test]
    fn a_cancel_does_not_overtake_its_call() {
        let mut lane = Lane::default();
        let _first = push(&mut lane, 1_000_000);
        let (call, _reply) = push(&mut lane, 1_000_000);
        lane.abandon(call);
        assert_eq!(lane.next_frame().unwrap().cancels, [0; 0]);
        let frame = lane.next_frame().unwrap();
        assert_eq!((ids(&frame), frame.cancels), (vec![1], vec![1]));
    }

    #[test]
    fn the_limit_refuses_with_a_hint() {
        let mut lane = Lane::default();
        let _replies: Vec<_> = (0..IN_FLIGHT_MAX).map(|_| push(&mut lane, 0)).collect();
        let (sender, _receiver) = oneshot::channel();
        let refusal = lane.push(NewTask::default(), sender).unwrap_err();
        assert_eq!(refusal.reason, "pipe_full");
        assert!(refusal.retry_after.is_some());
    }

    #[test]
    fn answers_find_their_callers_and_a_new_stream_forgets_the_old() {
        let mut lane = Lane::default();
        let (_, mut first) = push(&mut lane, 1);
        let (old, _second) = push(&mut lane, 1);
        let mut answered = Vec::new();
        let outcome = |call_id| PipeOutcome { call_id, task_id: "t".into(), kind: None };
        lane.settle(vec![outcome(0), outcome(0), outcome(u64::MAX)], &mut answered);
        assert_eq!(answered.len(), 1);
        for (sender, outcome) in answered {
            sender.send(Ok(outcome)).unwrap();
        }
        assert_eq!(first.try_recv().unwrap().unwrap().task_id, "t");
        assert_eq!(lane.close().len(), 1);
        let _third = push(&mut lane, 1);
        lane.abandon(old);
        assert!(lane.cancels.is_empty(), "the slot belongs to another call now");
    }

    #[tokio::test]
    async fn a_broken_stream_fails_its_calls_and_the_next_call_opens_another() {
        let mut server = crate::fake_server::FakeServer::start().await;
        let pipe = crate::Client::connect(server.url()).await.unwrap().pipe();
        let task = || NewTask { method: "m".into(), ..NewTask::default() };
        let (first, second) = (pipe.call_raw(task()), pipe.call_raw(task()));
        let mut stream = server.pipes.recv().await.unwrap();
        let mut calls = Vec::new();
        while calls.len() < 2 {
            calls.extend(stream.frame().await.unwrap().calls);
        }
        let kind = crate::proto::outcome::Kind::Succeeded(Payload::raw("1", ""));
        let outcome = pipe_outcome::Kind::Outcome(crate::proto::Outcome { kind: Some(kind) });
        let answer = PipeOutcome { call_id: calls[0].call_id, task_id: "t".into(), kind: Some(outcome) };
        stream.send(PipeResponse { outcomes: vec![answer] });
        assert_eq!(first.await.unwrap().data, &b"1"[..]);
        stream.fail(tonic::Status::unavailable("gone"));
        assert!(matches!(second.await, Err(CallError::Transport(text)) if text.contains("gone")));

        let dropped = pipe.call_raw(task());
        let mut stream = server.pipes.recv().await.unwrap();
        let id = stream.frame().await.unwrap().calls[0].call_id;
        drop(dropped);
        assert_eq!(stream.frame().await.unwrap().cancels, [id]);
        drop(pipe);
        assert!(stream.frame().await.is_none(), "the sending side ends with the last clone");
    }
}
