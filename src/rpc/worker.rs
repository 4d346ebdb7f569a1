//! `Worker`: the session of a worker.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use subtle::ConstantTimeEq;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{frame, hello, payload_out, time_out};
use super::{ENTRY_BYTES, fitting};
use crate::engine::SessionItem;
use crate::error::{Error, Reason};
use crate::handle::{Handle, Session};
use crate::proto;
use crate::proto::worker_server::Worker;
use crate::scheduler::{Assign, Limits, Tell, Welcome};

/// A stream that says nothing for so long is not a worker.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// A worker that leaves so much unread is not read from, until it has; beyond its lease it is then silent.
const UNREAD_MAX: usize = 65_536;

pub(super) struct WorkerEdge {
    handle: Handle,
    key: Option<String>,
}

impl WorkerEdge {
    pub(super) fn new(handle: Handle, key: Option<String>) -> Self {
        Self { handle, key }
    }

    fn check_key(&self, request: &Request<Streaming<proto::SessionRequest>>) -> Result<(), Error> {
        let Some(key) = &self.key else { return Ok(()) };
        let shown = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .unwrap_or_default();
        if bool::from(shown.as_bytes().ct_eq(key.as_bytes())) {
            return Ok(());
        }
        let message = "workers must show the server's worker key: metadata `authorization: Bearer <key>`";
        Err(Error::new(Reason::WorkerKeyRequired, message))
    }
}

#[tonic::async_trait]
impl Worker for WorkerEdge {
    type SessionStream = SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<proto::SessionRequest>>,
    ) -> Result<Response<SessionStream>, Status> {
        self.check_key(&request)?;
        let peer = request
            .extensions()
            .get::<axum::extract::ConnectInfo<std::net::SocketAddr>>()
            .map(|peer| peer.0.to_string())
            .unwrap_or_default();
        let frames = request.into_inner();
        // The response begins at once: some clients (grpc-java, grpc-python's sync stubs) wait for its
        // headers before they send anything.
        let (joined, joining) = tokio::sync::oneshot::channel();
        let reader = tokio::spawn(read_frames(self.handle.clone(), frames, peer, joined));
        let limits = self.handle.limits().clone();
        Ok(Response::new(SessionStream { reader, limits, stage: Stage::Joining(joining), items: Vec::new() }))
    }
}

type Joined = (Box<Welcome>, Arc<Session>);

/// Reads a worker's frames: its hello first, then whatever it says, until it ends or breaks.
async fn read_frames(
    handle: Handle,
    mut frames: Streaming<proto::SessionRequest>,
    peer: String,
    joined: tokio::sync::oneshot::Sender<Joined>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_WITHIN, frames.message()).await.map_err(|_| {
        Error::new(Reason::HelloExpected, format!("no frame came within {HELLO_WITHIN:?}; begin with hello"))
    })??;
    let mut first = first.unwrap_or_default();
    let said = first
        .hello
        .take()
        .ok_or_else(|| Error::new(Reason::HelloExpected, "the first frame must hold hello"))?;
    let rest = frame(first)?;
    let (welcome, session) = handle.join(hello(said, peer)?).await?;
    let session = Arc::new(session);
    if joined.send((Box::new(welcome), Arc::clone(&session))).is_err() {
        return Ok(());
    }
    session.say(rest).await?;
    while let Some(request) = frames.message().await? {
        session.say(frame(request)?).await?;
        session.outbox().below(UNREAD_MAX).await;
    }
    Ok(())
}

/// What a worker is told: its welcome, then whatever is there, in one frame unless it is too much for one.
pub(super) struct SessionStream {
    reader: tokio::task::JoinHandle<Result<(), Status>>,
    limits: Limits,
    stage: Stage,
    items: Vec<SessionItem>,
}

enum Stage {
    Joining(tokio::sync::oneshot::Receiver<Joined>),
    Open(Arc<Session>),
    NotJoined,
    Over,
}

impl Stream for SessionStream {
    type Item = Result<proto::SessionResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let polled = this.poll_frame(cx);
        if !matches!(polled, Poll::Ready(Some(Ok(_))) | Poll::Pending) {
            this.stage = Stage::Over;
        }
        polled
    }
}

impl SessionStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<proto::SessionResponse, Status>>> {
        match &mut self.stage {
            Stage::Joining(joining) => {
                match Pin::new(joining).poll(cx) {
                    Poll::Ready(Ok((welcome, session))) => {
                        self.stage = Stage::Open(session);
                        return Poll::Ready(Some(Ok(self.welcome(*welcome))));
                    }
                    // The reader did not get so far; it says why when it ends.
                    Poll::Ready(Err(_)) => self.stage = Stage::NotJoined,
                    Poll::Pending => {}
                }
            }
            Stage::Open(session) => {
                let taken = match self.items.is_empty() {
                    true => session.outbox().poll_take(cx, &mut self.items),
                    false => Poll::Ready(Ok(true)),
                };
                match taken {
                    Poll::Ready(Ok(true)) => {
                        let mut response = proto::SessionResponse::default();
                        for item in self.items.drain(..fitting(&self.items, size)) {
                            add(&mut response, item);
                        }
                        return Poll::Ready(Some(Ok(response)));
                    }
                    Poll::Ready(Ok(false)) => return Poll::Ready(None),
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                    Poll::Pending => {}
                }
            }
            Stage::NotJoined => {}
            Stage::Over => return Poll::Ready(None),
        }
        // The worker's own end, or what it did wrong, ends the session too.
        match std::task::ready!(Pin::new(&mut self.reader).poll(cx)) {
            Ok(Ok(())) => Poll::Ready(None),
            Ok(Err(status)) => Poll::Ready(Some(Err(status))),
            Err(_) => Poll::Ready(Some(Err(Status::internal("internal error")))),
        }
    }

    fn welcome(&self, welcome: Welcome) -> proto::SessionResponse {
        proto::SessionResponse {
            welcome: Some(proto::Welcome {
                protocol: 1,
                session_id: welcome.session.0.to_string(),
                worker_id: welcome.worker_id.to_string(),
                resume_token: format!("{:032x}", welcome.token),
                keep: welcome.keep,
                drop: welcome.drop,
                beat_ms: self.limits.beat_ms,
                lease_ms: self.limits.lease_ms,
                resume_ms: self.limits.resume_ms,
                max_payload_bytes: self.limits.payload_bytes as u64,
            }),
            ..proto::SessionResponse::default()
        }
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        // With the reader the last share of the session goes, which tells the scheduler.
        self.reader.abort();
    }
}

/// About what the item takes on the wire.
fn size(item: &SessionItem) -> usize {
    match item {
        SessionItem::Assign(assign) => {
            let metadata = assign.options.metadata.iter().map(|(key, value)| key.len() + value.len());
            ENTRY_BYTES + assign.payload.size() + assign.method.len() + metadata.sum::<usize>()
        }
        SessionItem::Tell(_) => ENTRY_BYTES,
    }
}

fn add(response: &mut proto::SessionResponse, item: SessionItem) {
    match item {
        SessionItem::Assign(assign) => response.assign.push(assign_out(*assign)),
        SessionItem::Tell(Tell::Cancel(lease, reason)) => {
            response.cancel.push(proto::CancelLease { lease, reason });
        }
        SessionItem::Tell(Tell::Recall(lease)) => response.recall.push(proto::Recall { lease }),
        SessionItem::Tell(Tell::DurableSeq(seq)) => response.durable_seq = seq,
        SessionItem::Tell(Tell::Beat(in_flight, digest)) => {
            response.beat = Some(proto::Beat { in_flight, digest });
        }
        SessionItem::Tell(Tell::Drain(reason)) => {
            response.control = Some(proto::Control { kind: proto::control::Kind::Drain.into(), reason });
        }
        SessionItem::Tell(Tell::Move(reason)) => {
            response.control = Some(proto::Control { kind: proto::control::Kind::Move.into(), reason });
        }
        SessionItem::Tell(Tell::Refused(lease, error)) => {
            response.errors.push(proto::EntryError {
                lease,
                reason: error.reason.as_str().to_owned(),
                message: error.message,
            });
        }
    }
}

fn assign_out(assign: Assign) -> proto::Assign {
    proto::Assign {
        task_id: assign.id.to_string(),
        lease: assign.lease,
        attempt: assign.attempt,
        method: assign.method.to_string(),
        version: assign.version.to_string(),
        payload: Some(payload_out(assign.payload)),
        deadline_unix_ms: time_out(assign.deadline),
        metadata: assign.options.metadata.clone().into_iter().collect(),
        pool: assign.pool.to_string(),
    }
}
