//! The relay's streams: messages in, messages out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::vec;

use crewcall::proto;
use crewcall::proto::tasks_server::{Tasks, TasksServer};
use crewcall::proto::worker_server::{Worker, WorkerServer};
use futures_util::Stream;
use futures_util::stream;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, Caller, Ending, News, NoWorker, Relay, Work};

/// Entries of one message.
const BATCH: usize = 64;
/// A worker that keeps its results until they are confirmed is told at least this often.
const CONFIRM_EVERY: u64 = 256;

#[derive(Clone, Debug)]
pub(in crate::floor) struct Edge {
    relay: Arc<Relay>,
}

impl Edge {
    pub(in crate::floor) fn new(relay: Arc<Relay>) -> Self {
        Self { relay }
    }

    pub(in crate::floor) fn services(self) -> (TasksServer<Self>, WorkerServer<Self>) {
        (
            TasksServer::new(self.clone()).max_decoding_message_size(usize::MAX),
            WorkerServer::new(self).max_decoding_message_size(usize::MAX),
        )
    }
}

impl From<NoWorker> for Status {
    fn from(NoWorker: NoWorker) -> Self {
        Self::unavailable("the floor has no worker: let one join first")
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("a floor relays calls and stores submissions, and nothing else"))
}

#[tonic::async_trait]
impl Tasks for Edge {
    async fn call(&self, request: Request<proto::CallRequest>) -> Answer<proto::CallResponse> {
        let task = request.into_inner().task.unwrap_or_default();
        let outcome = self.relay.call(task).await.ok_or(NoWorker)?;
        Ok(Response::new(proto::CallResponse { task_id: String::new(), outcome: Some(outcome) }))
    }

    async fn submit(&self, request: Request<proto::SubmitRequest>) -> Answer<proto::SubmitResponse> {
        let tasks = request.into_inner().tasks;
        let results = vec![proto::SubmitResult::default(); tasks.len()];
        if let Some(stored) = self.relay.submit(&tasks) {
            stored.await.map_err(|_| Status::unavailable("the log is closed"))?;
        }
        Ok(Response::new(proto::SubmitResponse { results }))
    }

    type PipeStream = PipeStream;

    async fn pipe(&self, request: Request<Streaming<proto::PipeRequest>>) -> Answer<PipeStream> {
        let caller = Arc::new(PipeState::default());
        let pipe = {
            let mut state = self.relay.state.lock();
            state.pipes.push(Some(Arc::clone(&caller.answers)));
            state.pipes.len() - 1
        };
        let reader = read_calls(Arc::clone(&self.relay), pipe, Arc::clone(&caller), request.into_inner());
        Ok(Response::new(PipeStream {
            relay: Arc::clone(&self.relay),
            pipe,
            caller,
            reader: tokio::spawn(reader),
            last_call: false,
            taken: Vec::new().into_iter(),
        }))
    }

    type WatchStream = stream::Empty<Result<proto::WatchResponse, Status>>;

    async fn watch(&self, _: Request<proto::WatchRequest>) -> Answer<Self::WatchStream> {
        absent()
    }

    async fn get(&self, _: Request<proto::GetRequest>) -> Answer<proto::GetResponse> {
        absent()
    }

    async fn list(&self, _: Request<proto::ListRequest>) -> Answer<proto::ListResponse> {
        absent()
    }

    async fn cancel(&self, _: Request<proto::CancelRequest>) -> Answer<proto::CancelResponse> {
        absent()
    }

    async fn retry(&self, _: Request<proto::RetryRequest>) -> Answer<proto::RetryResponse> {
        absent()
    }

    async fn explain(&self, _: Request<proto::ExplainRequest>) -> Answer<proto::ExplainResponse> {
        absent()
    }
}

// --- Callers ------------------------------------------------------------------------------------------

#[derive(Debug, Default)]
struct PipeState {
    answers: Arc<Answers>,
    /// Calls that were not answered yet.
    owed: AtomicUsize,
}

async fn read_calls(
    relay: Arc<Relay>,
    pipe: usize,
    caller: Arc<PipeState>,
    mut frames: Streaming<proto::PipeRequest>,
) {
    let ending = loop {
        match frames.message().await {
            Ok(Some(frame)) => {
                caller.owed.fetch_add(frame.calls.len(), Ordering::Relaxed);
                let calls = frame.calls.into_iter().map(|call| {
                    (Caller::Pipe { pipe, call_id: call.call_id }, call.task.unwrap_or_default())
                });
                if let Err(problem) = relay.dispatch(calls) {
                    break Ending::Broken(problem.into());
                }
            }
            Ok(None) => break Ending::LastCall,
            Err(status) => break Ending::Broken(status),
        }
    };
    caller.answers.update(|_, ended| *ended = Some(ending));
}

/// The answers of one pipe: whatever is there goes out, a batch a message.
#[derive(Debug)]
pub(in crate::floor) struct PipeStream {
    relay: Arc<Relay>,
    pipe: usize,
    caller: Arc<PipeState>,
    reader: JoinHandle<()>,
    last_call: bool,
    taken: vec::IntoIter<proto::PipeOutcome>,
}

impl Stream for PipeStream {
    type Item = Result<proto::PipeResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let outcomes = next_batch(&mut this.taken);
            if !outcomes.is_empty() {
                this.caller.owed.fetch_sub(outcomes.len(), Ordering::Relaxed);
                return Poll::Ready(Some(Ok(proto::PipeResponse { outcomes })));
            }
            if this.last_call && this.caller.owed.load(Ordering::Relaxed) == 0 {
                return Poll::Ready(None);
            }
            let mut entries = Vec::new();
            match ready!(this.caller.answers.poll_take(cx, &mut entries)) {
                Some(Ending::Broken(status)) => return Poll::Ready(Some(Err(status))),
                Some(Ending::LastCall) => this.last_call = true,
                None => {}
            }
            this.taken = entries.into_iter();
        }
    }
}

impl Drop for PipeStream {
    fn drop(&mut self) {
        self.reader.abort();
        if let Some(pipe) = self.relay.state.lock().pipes.get_mut(self.pipe) {
            *pipe = None;
        }
    }
}

// --- Workers ------------------------------------------------------------------------------------------

#[tonic::async_trait]
impl Worker for Edge {
    type SessionStream = SessionStream;

    async fn session(&self, request: Request<Streaming<proto::SessionRequest>>) -> Answer<SessionStream> {
        let mut frames = request.into_inner();
        let hello = frames.message().await?.and_then(|frame| frame.hello);
        let Some(hello) = hello else {
            return Err(Status::invalid_argument("the first frame must hold `hello`"));
        };
        let work = Arc::new(Work::default());
        self.relay.state.lock().workers.push(Arc::clone(&work));
        let reader = tokio::spawn(read_results(Arc::clone(&self.relay), Arc::clone(&work), frames));
        Ok(Response::new(SessionStream {
            relay: Arc::clone(&self.relay),
            work,
            reader,
            welcome: Some(welcome(hello)),
            taken: Vec::new().into_iter(),
        }))
    }
}

fn welcome(hello: proto::Hello) -> proto::Welcome {
    proto::Welcome {
        protocol: 1,
        session_id: "floor".to_owned(),
        worker_id: hello.worker_id,
        beat_ms: 10_000,
        lease_ms: 60_000,
        max_payload_bytes: 4 << 20,
        ..Default::default()
    }
}

async fn read_results(relay: Arc<Relay>, work: Arc<Work>, mut frames: Streaming<proto::SessionRequest>) {
    let (mut seen, mut confirmed) = (0, 0);
    // A stream that breaks ends like one that is closed: there is nobody to tell.
    while let Ok(Some(frame)) = frames.message().await {
        if let Some(last) = frame.results.last() {
            seen = last.seq;
            relay.settle(frame.results);
        }
        if frame.beat.is_some() || seen >= confirmed + CONFIRM_EVERY {
            confirmed = seen;
            work.update(|_, news| {
                let news = news.get_or_insert_default();
                news.beat = frame.beat.or(news.beat);
                news.confirmed = confirmed;
            });
        }
        if frame.bye.is_some() {
            break;
        }
    }
    relay.leave(&work);
    work.update(|_, news| news.get_or_insert_default().end = true);
}

/// The work of one worker: whatever is there goes out, a batch a message.
#[derive(Debug)]
pub(in crate::floor) struct SessionStream {
    relay: Arc<Relay>,
    work: Arc<Work>,
    reader: JoinHandle<()>,
    welcome: Option<proto::Welcome>,
    taken: vec::IntoIter<proto::Assign>,
}

impl Stream for SessionStream {
    type Item = Result<proto::SessionResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(welcome) = this.welcome.take() {
            let welcome = Some(welcome);
            return Poll::Ready(Some(Ok(proto::SessionResponse { welcome, ..Default::default() })));
        }
        let mut news = None;
        if this.taken.as_slice().is_empty() {
            let mut entries = Vec::new();
            news = ready!(this.work.poll_take(cx, &mut entries));
            this.taken = entries.into_iter();
        }
        let News { beat, confirmed, end } = news.unwrap_or_default();
        if end {
            return Poll::Ready(None);
        }
        let assign = next_batch(&mut this.taken);
        Poll::Ready(Some(Ok(proto::SessionResponse {
            assign,
            beat,
            durable_seq: confirmed,
            ..Default::default()
        })))
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        self.reader.abort();
        self.relay.leave(&self.work);
    }
}

fn next_batch<T>(taken: &mut vec::IntoIter<T>) -> Vec<T> {
    taken.by_ref().take(BATCH).collect()
}
