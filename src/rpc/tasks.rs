//! `Tasks`: the callers' service.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{
    Shown, Verb, filter, new_task, new_task_as, outcome_out, payload_out, progress_out, task_out,
};
use super::frames::{PipeFrame, Turns, answer_size, next_frame};
use super::lane::Lane;
use crate::error::{Error, Result};
use crate::handle::{Handle, Pipe, Watch};
use crate::proto;
use crate::proto::tasks_server::Tasks;
use crate::proto::watch_response::Event as WatchEvent;
use crate::scheduler::{Cursor, Event, EventKind, Filter, Reply};
use crate::task::{Chunk, TaskId, TaskIds};

/// Tasks of a page.
const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1_000;
/// Refused calls of a pipe whose answers wait; at this many its caller is not read from until it reads.
const REFUSALS: usize = 1_024;

#[derive(Clone)]
pub(super) struct TasksEdge {
    handle: Handle,
}

impl TasksEdge {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn task_id(text: &str) -> Result<TaskId> {
    text.parse()
}

#[tonic::async_trait]
impl Tasks for TasksEdge {
    async fn call(&self, request: Request<proto::CallRequest>) -> Answer<proto::CallResponse> {
        let grpc_timeout = grpc_timeout_ms(request.metadata());
        let mut task = new_task(request.into_inner().task, Verb::Call)?;
        if let Some(ms) = grpc_timeout
            && (task.options.deadline_ms == 0 || ms < task.options.deadline_ms)
        {
            Arc::make_mut(&mut task.options).deadline_ms = ms.max(1);
        }
        let (id, outcome) = self.handle.call(task).await?;
        answer(proto::CallResponse { task_id: id.to_string(), outcome: Some(outcome_out(outcome)) })
    }

    async fn submit(&self, request: Request<proto::SubmitRequest>) -> Answer<proto::SubmitResponse> {
        let given = request.into_inner().tasks;
        self.handle.limits().check_submit(given.len())?;
        let mut results = Vec::with_capacity(given.len());
        let (mut tasks, mut places) = (Vec::with_capacity(given.len()), Vec::with_capacity(given.len()));
        for task in given {
            match new_task(Some(task), Verb::Submit) {
                Ok(task) => {
                    places.push(results.len());
                    tasks.push(task);
                    results.push(proto::SubmitResult::default());
                }
                Err(error) => results.push(refused(error)),
            }
        }
        if !tasks.is_empty() {
            for (place, result) in places.into_iter().zip(self.handle.submit(tasks).await?) {
                if let Some(slot) = results.get_mut(place) {
                    *slot = match result {
                        Ok(accepted) => proto::SubmitResult {
                            task_id: accepted.id.to_string(),
                            attached: accepted.attached,
                            refusal: None,
                        },
                        Err(error) => refused(error),
                    };
                }
            }
        }
        answer(proto::SubmitResponse { results })
    }

    type PipeStream = futures_util::stream::Empty<std::result::Result<proto::PipeResponse, Status>>;

    async fn pipe(&self, _: Request<Streaming<proto::PipeRequest>>) -> Answer<Self::PipeStream> {
        Err(Status::unimplemented("served as a lane"))
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Answer<WatchStream> {
        let request = request.into_inner();
        let ids = request.task_ids.iter().map(|id| task_id(id)).collect::<Result<Vec<_>>>()?;
        if !ids.is_empty() && request.filter.is_some() {
            return Err(Error::invalid("filter", "give either task_ids or a filter").into());
        }
        let filter = if ids.is_empty() { filter(request.filter)? } else { Filter::default() };
        let cursor = cursor_in(&request.cursor)?;
        let watch = self.handle.watch(ids, filter, cursor).await?;
        answer(WatchStream { watch, items: Vec::new() })
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Answer<proto::GetResponse> {
        let request = request.into_inner();
        let id = task_id(&request.task_id)?;
        let wait = Duration::from_millis(request.wait_ms);
        self.handle.limits().check_wait("wait_ms", wait)?;
        if !wait.is_zero() {
            self.handle.wait(id, wait).await?;
        }
        let view = match request.with_payload {
            true => self.handle.get_with_payload(id).await?,
            false => self.handle.get(id).await?,
        };
        let shown = Shown { payload: request.with_payload, attempts: true };
        answer(proto::GetResponse { task: Some(task_out(view, shown)) })
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Answer<proto::ListResponse> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse::<TaskId>().map_err(|_| {
                Error::invalid("page_token", "is not one that this server gave; leave it empty to begin")
            })?),
        };
        let (tasks, next) = self.handle.list(filter(request.filter)?, after, size).await?;
        answer(proto::ListResponse {
            tasks: tasks.into_iter().map(|view| task_out(view, Shown::default())).collect(),
            next_page_token: next.map(|id| id.to_string()).unwrap_or_default(),
        })
    }

    async fn cancel(&self, request: Request<proto::CancelRequest>) -> Answer<proto::CancelResponse> {
        let request = request.into_inner();
        let view = self.handle.cancel(task_id(&request.task_id)?, request.reason).await?;
        answer(proto::CancelResponse { task: Some(task_out(view, Shown::default())) })
    }

    async fn retry(&self, request: Request<proto::RetryRequest>) -> Answer<proto::RetryResponse> {
        let view = self.handle.retry(task_id(&request.into_inner().task_id)?).await?;
        answer(proto::RetryResponse { task: Some(task_out(view, Shown::default())) })
    }

    async fn explain(&self, request: Request<proto::ExplainRequest>) -> Answer<proto::ExplainResponse> {
        let explanation = self.handle.explain(task_id(&request.into_inner().task_id)?).await?;
        answer(proto::ExplainResponse {
            task: Some(task_out(explanation.task, Shown::default())),
            summary: explanation.summary,
            details: explanation.details,
        })
    }
}

/// How many tasks a page may hold.
pub(super) fn page_size(given: u32) -> Result<usize> {
    match given {
        0 => Ok(DEFAULT_PAGE as usize),
        size if size <= MAX_PAGE => Ok(size as usize),
        size => Err(Error::invalid("page_size", format_args!("is {size}; at most {MAX_PAGE}"))),
    }
}

fn refused(error: Error) -> proto::SubmitResult {
    proto::SubmitResult { task_id: String::new(), attached: false, refusal: Some(error.into()) }
}

/// The deadline of the call itself, as every gRPC client sends it: at most eight digits and a unit
/// (gRPC over HTTP/2, "Timeout"). What cannot be read is left to the transport.
fn grpc_timeout_ms(metadata: &tonic::metadata::MetadataMap) -> Option<u64> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => value.checked_mul(3_600_000),
        "M" => value.checked_mul(60_000),
        "S" => value.checked_mul(1_000),
        "m" => Some(value),
        "u" => Some(value / 1_000),
        "n" => Some(value / 1_000_000),
        _ => None,
    }
}

// --- Pipe ---------------------------------------------------------------------------------------------

/// The pipe.
impl Lane for TasksEdge {
    const PATH: &'static str = "/crewcall.v1.Tasks/Pipe";
    type In = proto::PipeRequest;
    type Out = PipeFrame;
    type Frames = PipeStream;

    async fn open(self, request: Request<Streaming<proto::PipeRequest>>) -> Answer<PipeStream> {
        let pipe = Arc::new(self.handle.pipe().await?);
        let (refusals, refused) = tokio::sync::mpsc::channel(REFUSALS);
        let reader = tokio::spawn(read_calls(Arc::clone(&pipe), request.into_inner(), refusals));
        answer(PipeStream { pipe, reader, refused, reading: true, items: VecDeque::new() })
    }
}

/// Reads the caller's frames until it ends them, or breaks.
async fn read_calls(
    pipe: Arc<Pipe>,
    mut frames: Streaming<proto::PipeRequest>,
    refusals: tokio::sync::mpsc::Sender<(u64, Error)>,
) -> std::result::Result<(), Status> {
    let mut turns = Turns::default();
    while let Some(frame) = frames.message().await? {
        let entries = frame.calls.len();
        pipe.check_frame(entries)?;
        let mut calls = Vec::with_capacity(entries);
        let mut ids = TaskIds::begin();
        for call in frame.calls {
            match new_task_as(|| ids.draw(), call.task, Verb::Call) {
                Ok(task) => calls.push((call.call_id, task)),
                Err(error) => refuse(&refusals, call.call_id, error).await,
            }
        }
        for (call_id, error) in pipe.call(calls).await? {
            refuse(&refusals, call_id, error).await;
        }
        for call_id in frame.cancels {
            pipe.cancel(call_id).await?;
        }
        turns.took(entries).await;
    }
    Ok(())
}

async fn refuse(refusals: &tokio::sync::mpsc::Sender<(u64, Error)>, call_id: u64, error: Error) {
    // Fails only when the stream it is for has gone.
    refusals.send((call_id, error)).await.ok();
}

/// Answers of a pipe: whatever is there, in as few frames as may be.
pub(super) struct PipeStream {
    pipe: Arc<Pipe>,
    reader: tokio::task::JoinHandle<std::result::Result<(), Status>>,
    /// Calls refused before they reached the scheduler.
    refused: tokio::sync::mpsc::Receiver<(u64, Error)>,
    reading: bool,
    items: VecDeque<(u64, Reply)>,
}

impl Stream for PipeStream {
    type Item = std::result::Result<PipeFrame, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.reading
            && let Poll::Ready(ended) = Pin::new(&mut this.reader).poll(cx)
        {
            this.reading = false;
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(status)) => return Poll::Ready(Some(Err(status))),
                Err(_) => return Poll::Ready(Some(Err(Status::internal("internal error")))),
            }
        }
        let mut frame = PipeFrame::default();
        while let Poll::Ready(Some(refused)) = this.refused.poll_recv(cx) {
            frame.refused.push(refused);
        }
        if this.items.is_empty() {
            let mut items = Vec::from(std::mem::take(&mut this.items));
            let taken = this.pipe.poll_outcomes(cx, &mut items);
            this.items = items.into();
            match taken {
                Poll::Ready(Ok(true)) | Poll::Pending => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(None),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
        frame.answers = next_frame(&mut this.items, answer_size);
        if !frame.is_empty() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if !this.reading && this.pipe.is_idle() {
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

impl Drop for PipeStream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

// --- Watch --------------------------------------------------------------------------------------------

/// Events of a watch, one a message.
pub(super) struct WatchStream {
    watch: Watch,
    /// Taken and not yet sent, last first.
    items: Vec<Event>,
}

impl Stream for WatchStream {
    type Item = std::result::Result<proto::WatchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.items.is_empty() {
            match std::task::ready!(this.watch.outbox().poll_take(cx, &mut this.items)) {
                Ok(true) => this.items.reverse(),
                Ok(false) => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
        Poll::Ready(this.items.pop().map(|event| Ok(event_out(event))))
    }
}

fn event_out(event: Event) -> proto::WatchResponse {
    let cursor = format!("{:x}-{:x}", event.cursor.epoch, event.cursor.seq);
    let event = match event.kind {
        EventKind::Task(view) => WatchEvent::Task(task_out(view, Shown::default())),
        EventKind::Progress(id, progress) => WatchEvent::Progress(proto::ProgressEvent {
            task_id: id.to_string(),
            progress: Some(progress_out(progress)),
        }),
        EventKind::Chunk(id, Chunk { attempt, index, data }) => WatchEvent::Chunk(proto::ChunkEvent {
            task_id: id.to_string(),
            attempt,
            index,
            data: Some(payload_out(data)),
        }),
    };
    proto::WatchResponse { cursor, event: Some(event) }
}

fn cursor_in(text: &str) -> Result<Option<Cursor>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.split_once('-').and_then(|(epoch, seq)| {
        Some(Cursor { epoch: u64::from_str_radix(epoch, 16).ok()?, seq: u64::from_str_radix(seq, 16).ok()? })
    });
    parsed
        .map(Some)
        .ok_or_else(|| Error::invalid("cursor", "is not one that this server gave; leave it empty to begin"))
}
