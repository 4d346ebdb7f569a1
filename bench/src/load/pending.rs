//! The awaited client of a floor: a pending map and a oneshot for each call, as in an SDK, and nothing of what
//! else an SDK does: no errors of its own, no cancelling, no reconnecting, no limits.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crewcall_sdk::NewTask;
use crewcall_sdk::proto::tasks_client::TasksClient;
use crewcall_sdk::proto::{PipeCall, PipeOutcome, PipeRequest};
use futures_util::Stream;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::oneshot;
use tonic::transport::Endpoint;

use crate::BenchError;

/// Calls of one frame, as in a bare window.
const FRAME_CALLS: usize = 64;

/// Many calls over one stream. Its clones share the stream.
#[derive(Clone, Debug)]
pub(crate) struct PendingPipe {
    lane: Arc<Mutex<Lane>>,
}

#[derive(Debug, Default)]
struct Lane {
    pending: Slab<oneshot::Sender<PipeOutcome>>,
    queue: Vec<PipeCall>,
    writer: Option<Waker>,
}

impl PendingPipe {
    /// Opens the stream.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub(crate) async fn open(url: &str) -> Result<Self, BenchError> {
        let failed = |error: &dyn std::fmt::Display| BenchError::failed("pipe", error);
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| failed(&error))?;
        let channel = endpoint.tcp_nodelay(true).connect().await.map_err(|error| failed(&error))?;
        let lane = Arc::new(Mutex::new(Lane::default()));
        let calls = Calls { lane: Arc::clone(&lane), taken: Vec::new().into_iter() };
        let mut client = TasksClient::new(channel).max_decoding_message_size(usize::MAX);
        let mut answers = client.pipe(calls).await.map_err(|status| failed(&status))?.into_inner();
        let reader = Arc::clone(&lane);
        tokio::spawn(async move {
            let mut answered = Vec::new();
            // When the stream ends, so does every call that is still awaited: its sender goes with the lane.
            while let Ok(Some(frame)) = answers.message().await {
                {
                    let mut lane = reader.lock();
                    for outcome in frame.outcomes {
                        let id = usize::try_from(outcome.call_id).unwrap_or(usize::MAX);
                        answered.extend(lane.pending.try_remove(id).map(|caller| (caller, outcome)));
                    }
                }
                for (caller, outcome) in answered.drain(..) {
                    // A caller that has gone meanwhile needs no answer.
                    caller.send(outcome).ok();
                }
            }
            reader.lock().pending.clear();
        });
        Ok(Self { lane })
    }

    /// Runs a task and waits for its outcome.
    ///
    /// # Errors
    /// When the stream ends before.
    pub(crate) async fn call(&self, task: NewTask) -> Result<PipeOutcome, BenchError> {
        let (sender, outcome) = oneshot::channel();
        let writer = {
            let mut lane = self.lane.lock();
            let call_id = lane.pending.insert(sender) as u64;
            lane.queue.push(PipeCall { call_id, task: Some(task) });
            lane.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
        outcome.await.map_err(|_| BenchError::failed("pipe", "the server ended the stream"))
    }
}

/// The sending side: everything queued goes out, a frame after the other.
struct Calls {
    lane: Arc<Mutex<Lane>>,
    taken: std::vec::IntoIter<PipeCall>,
}

impl Stream for Calls {
    type Item = PipeRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PipeRequest>> {
        let this = self.get_mut();
        if this.taken.as_slice().is_empty() {
            let mut lane = this.lane.lock();
            if lane.queue.is_empty() {
                lane.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            this.taken = std::mem::take(&mut lane.queue).into_iter();
        }
        let calls = this.taken.by_ref().take(FRAME_CALLS).collect();
        Poll::Ready(Some(PipeRequest { calls, cancels: Vec::new() }))
    }
}
