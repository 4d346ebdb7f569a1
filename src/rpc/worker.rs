//! `Worker`: the session of a worker.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use subtle::ConstantTimeEq;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{frame, hello};
use super::frames::{SessionFrame, Turns, next_frame, session_item_size};
use super::lane::Lane;
use crate::engine::SessionItem;
use crate::error::{Error, Reason};
use crate::handle::{Handle, Session};
use crate::proto;
use crate::proto::worker_server::Worker;
use crate::scheduler::{Limits, Welcome};

/// A stream that says nothing for so long is not a worker.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// A worker that leaves so much unread is not read from, until it has; beyond its lease it is then silent.
const UNREAD_MAX: usize = 65_536;

#[derive(Clone)]
pub(super) struct WorkerEdge {
    handle: Handle,
    key: Option<Arc<str>>,
}

impl WorkerEdge {
    pub(super) fn new(handle: Handle, key: Option<String>) -> Self {
        Self { handle, key: key.map(Arc::from) }
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

/// Its one stream is a lane.
#[tonic::async_trait]
impl Worker for WorkerEdge {
    type SessionStream = futures_util::stream::Empty<Result<proto::SessionResponse, Status>>;

    async fn session(
        &self,
        _: Request<Streaming<proto::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("served as a lane"))
    }
}

impl Lane for WorkerEdge {
    const PATH: &'static str = "/crewcall.v1.Worker/Session";
    type In = proto::SessionRequest;
    type Out = SessionFrame;
    type Frames = SessionStream;

    async fn open(
        self,
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
        let limits = self.handle.limits().clone();
        let reader = tokio::spawn(read_frames(self.handle, frames, peer, joined));
        let items = VecDeque::new();
        Ok(Response::new(SessionStream { reader, limits, stage: Stage::Joining(joining), items }))
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
    let mut turns = Turns::default();
    while let Some(request) = frames.message().await? {
        let entries = request.results.len();
        session.say(frame(request)?).await?;
        session.outbox().below(UNREAD_MAX).await;
        turns.took(entries).await;
    }
    Ok(())
}

/// What a worker is told: its welcome, then whatever is there, in as few frames as may be.
pub(super) struct SessionStream {
    reader: tokio::task::JoinHandle<Result<(), Status>>,
    limits: Limits,
    stage: Stage,
    items: VecDeque<SessionItem>,
}

enum Stage {
    Joining(tokio::sync::oneshot::Receiver<Joined>),
    Open(Arc<Session>),
    NotJoined,
    Over,
}

impl Stream for SessionStream {
    type Item = Result<SessionFrame, Status>;

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
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<SessionFrame, Status>>> {
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
                if !self.items.is_empty() {
                    let items = next_frame(&mut self.items, session_item_size);
                    return Poll::Ready(Some(Ok(SessionFrame::Items(items))));
                }
                let mut items = Vec::from(std::mem::take(&mut self.items));
                let taken = session.outbox().poll_take(cx, &mut items);
                self.items = items.into();
                match taken {
                    Poll::Ready(Ok(true)) => {
                        let items = next_frame(&mut self.items, session_item_size);
                        return Poll::Ready(Some(Ok(SessionFrame::Items(items))));
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

    fn welcome(&self, welcome: Welcome) -> SessionFrame {
        let welcome = proto::Welcome {
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
        };
        let response = proto::SessionResponse { welcome: Some(welcome), ..proto::SessionResponse::default() };
        SessionFrame::Welcome(Box::new(response))
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        // With the reader the last share of the session goes, which tells the scheduler.
        self.reader.abort();
    }
}
