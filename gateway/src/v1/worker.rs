//! `WS /v1/worker`: a worker's session in JSON, for code that has a WebSocket and no gRPC. The words are those
//! of the gRPC session; `docs/worker-websocket.md` shows them.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use crewcall::engine::SessionItem;
use crewcall::error::{Error, ErrorKind, Reason};
use crewcall::handle::Session;
use crewcall::scheduler::{Frame, Tell};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use subtle::ConstantTimeEq as _;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::{self, error::ProtocolError};

use super::Edge;
use super::dto::ProblemDto;
use super::frame::{Said, Unreadable, ending, messages, read, refusals, welcome};
use crate::Problem;

/// A stream that says nothing for so long is not a worker.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long a worker may take to answer the close.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Allocated for each connection at once, so small: ten thousand idle workers must cost little.
const READ_BUFFER: usize = 3 << 10;
/// Refused entries on their way to the worker, and in one message. A worker that reads none of them is read no further.
const REFUSALS: usize = 1_024;
/// Not in the RFC, but in the IANA registry: the server restarts, or is full; come back later.
const SERVICE_RESTART: u16 = 1012;

/// Opens a worker's session: the protocol of `docs/worker-websocket.md`.
#[utoipa::path(
    get,
    path = "/v1/worker",
    tag = "workers",
    params(("Authorization" = Option<String>, Header, description = "`Bearer KEY`, when the server has a worker key; or `key` in hello.")),
    responses(
        (status = 101, description = "A WebSocket; one JSON object a message."),
        (status = 401, description = "`worker_key_required`", body = ProblemDto, content_type = "application/problem+json"),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn connect(
    State(edge): State<Arc<Edge>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|rejection| {
        let detail = format!("this is the address of a WebSocket: {}", rejection.body_text());
        Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", detail)
    })?;
    // A key in the header can be refused in words that every client shows; without one, hello may have it.
    let shown = headers.get(header::AUTHORIZATION);
    let authorized = edge.worker_key.is_none() || shown.is_some();
    if let Some(shown) = shown {
        let key = shown.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        check_key(&edge, key.unwrap_or_default())?;
    }
    let most = edge.handle.limits().document_bytes();
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(most)
        .max_frame_size(most);
    // Split before the future begins: what it is given it holds to its end.
    let serve = move |socket: WebSocket| {
        let (sink, stream) = socket.split();
        serve(edge, sink, stream, peer, authorized)
    };
    Ok(upgrade.on_upgrade(serve).into_response())
}

fn check_key(edge: &Edge, shown: &str) -> Result<(), Error> {
    let Some(key) = &edge.worker_key else { return Ok(()) };
    if bool::from(shown.as_bytes().ct_eq(key.as_bytes())) {
        return Ok(());
    }
    let message = "workers must show the server's worker key: `Authorization: Bearer KEY`, or `key` in hello";
    Err(Error::new(Reason::WorkerKeyRequired, message))
}

/// How a session ends.
#[derive(Debug)]
enum End {
    /// In order: after `bye`.
    Done,
    /// The worker, or its connection, has gone, or took too little of what waited for it.
    Gone,
    /// For a reason that the worker is told.
    Because(u16, Problem),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::Unavailable => SERVICE_RESTART,
            ErrorKind::Exhausted => close_code::AGAIN,
            ErrorKind::Internal => close_code::ERROR,
            ErrorKind::InvalidArgument
            | ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::Precondition
            | ErrorKind::Unauthenticated
            | ErrorKind::Denied
            | ErrorKind::Aborted => close_code::POLICY,
        };
        Self::Because(code, error.into())
    }
}

impl From<Unreadable> for End {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Rule(error) => error.into(),
            Unreadable::Json(detail) => Self::Because(close_code::INVALID, Problem::invalid_json(detail)),
        }
    }
}

async fn serve(
    edge: Arc<Edge>,
    mut sink: SplitSink<WebSocket, Message>,
    stream: SplitStream<WebSocket>,
    peer: SocketAddr,
    authorized: bool,
) {
    let mut inbound = Inbound { stream, peer: peer.to_string(), edge: Arc::clone(&edge) };
    let end = match session(&edge, &mut sink, &mut inbound, authorized).await {
        Ok(end) | Err(end) => end,
    };
    tracing::debug!(%peer, ?end, "a worker's WebSocket ends");
    // Boxed, as is the opening: once in the life of a connection, and the most of its future.
    Box::pin(close(end, sink, inbound)).await;
}

/// Tells the worker why.
async fn close(end: End, mut sink: SplitSink<WebSocket, Message>, mut inbound: Inbound) {
    let close = match end {
        End::Gone => return,
        End::Done => CloseFrame { code: close_code::NORMAL, reason: "bye".into() },
        End::Because(code, problem) => {
            let said = sink.send(Message::Text(ending(&problem).into()));
            if !matches!(timeout(CLOSE_WITHIN, said).await, Ok(Ok(()))) {
                return;
            }
            CloseFrame { code, reason: problem.reason().into() }
        }
    };
    // Reading on until the worker closes too: a socket closed with bytes unread takes back what was just said.
    let closed = async {
        sink.send(Message::Close(Some(close))).await.ok();
        while let Some(Ok(_)) = inbound.stream.next().await {}
    };
    timeout(CLOSE_WITHIN, closed).await.ok();
}

async fn session(
    edge: &Edge,
    sink: &mut SplitSink<WebSocket, Message>,
    inbound: &mut Inbound,
    authorized: bool,
) -> Result<End, End> {
    let leases = Leases::default();
    let opened = Box::pin(open(edge, sink, inbound, authorized, &leases)).await?;
    let Some((first, session)) = opened else { return Ok(End::Gone) };
    let (refused, heard) = (Refused::default(), Notify::new());
    let reader = read_all(inbound, first, &session, &leases, &refused, &heard);
    let writer = write_all(edge, sink, &session, &leases, &refused, &heard);
    tokio::select! {
        end = reader => end,
        end = writer => end,
    }
}

/// From the first message to the welcome: the session, and the rest of that message. `None` when the worker has
/// closed before.
async fn open(
    edge: &Edge,
    sink: &mut SplitSink<WebSocket, Message>,
    inbound: &mut Inbound,
    authorized: bool,
    leases: &Leases,
) -> Result<Option<(Box<Said>, Session)>, End> {
    let first = timeout(HELLO_WITHIN, inbound.first()).await.map_err(|_| {
        let message = format!("no message came within {HELLO_WITHIN:?}; begin with hello");
        Error::new(Reason::HelloExpected, message)
    })??;
    let Some(mut first) = first else { return Ok(None) };
    let Some((hello, key)) = first.hello.take() else {
        return Err(Error::new(Reason::HelloExpected, "the first message must hold hello").into());
    };
    if !authorized {
        check_key(edge, &key)?;
    }
    let (welcomed, session) = edge.handle.join(hello).await?;
    leases.held.lock().extend(&welcomed.keep);
    send(sink, welcome(&welcomed, edge.handle.limits())).await?;
    Ok(Some((first, session)))
}

/// Refused entries, from the reader to the writer. Not a channel, which is most of a kilobyte for each worker, and
/// nearly none has an entry refused.
#[derive(Debug, Default)]
struct Refused {
    entries: Mutex<Vec<(u64, Error)>>,
    added: Notify,
    taken: Notify,
}

impl Refused {
    /// Waits while too many do: a worker that reads none of them is read no further.
    async fn add(&self, entries: Vec<(u64, Error)>) {
        if entries.is_empty() {
            return;
        }
        self.entries.lock().extend(entries);
        self.added.notify_one();
        while self.entries.lock().len() >= REFUSALS {
            self.taken.notified().await;
        }
    }

    /// All there are, as soon as there are any. Cancel-safe.
    async fn take(&self) -> Vec<(u64, Error)> {
        self.added.notified().await;
        let entries = std::mem::take(&mut *self.entries.lock());
        self.taken.notify_one();
        entries
    }
}

/// What a worker has been given and not answered: while the server stops, an idle worker is let go.
#[derive(Debug, Default)]
struct Leases {
    held: Mutex<HashSet<u64>>,
    changed: Notify,
}

impl Leases {
    fn is_empty(&self) -> bool {
        self.held.lock().is_empty()
    }

    fn given(&self, items: &[SessionItem]) {
        let mut held = self.held.lock();
        for item in items {
            match item {
                SessionItem::Assign(assign) => {
                    held.insert(assign.lease);
                }
                SessionItem::Tell(Tell::Cancel(lease, _)) => {
                    held.remove(lease);
                }
                SessionItem::Tell(_) => {}
            }
        }
    }

    fn answered(&self, leases: &[u64]) {
        if leases.is_empty() {
            return;
        }
        let mut held = self.held.lock();
        for lease in leases {
            held.remove(lease);
        }
        drop(held);
        self.changed.notify_one();
    }
}

/// What a worker sends.
struct Inbound {
    stream: SplitStream<WebSocket>,
    peer: String,
    edge: Arc<Edge>,
}

enum Heard {
    Said(Box<Said>),
    /// Only a sign of life.
    Life,
}

impl Inbound {
    /// The next message; `None` when the worker has closed.
    async fn next(&mut self) -> Result<Option<Heard>, End> {
        let text: Bytes = match self.stream.next().await {
            None | Some(Ok(Message::Close(_))) => return Ok(None),
            Some(Ok(Message::Text(text))) => text.into(),
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(Some(Heard::Life)),
            Some(Err(error)) => return Err(self.broken(error)),
        };
        let said = read(&text, &self.peer, self.edge.handle.limits())?;
        Ok(Some(Heard::Said(Box::new(said))))
    }

    /// The first message; `None` when the worker has closed before.
    async fn first(&mut self) -> Result<Option<Box<Said>>, End> {
        loop {
            match self.next().await? {
                None => return Ok(None),
                Some(Heard::Said(said)) => return Ok(Some(said)),
                Some(Heard::Life) => {}
            }
        }
    }

    fn broken(&self, error: axum::Error) -> End {
        let Ok(error) = error.into_inner().downcast::<tungstenite::Error>() else { return End::Gone };
        match *error {
            tungstenite::Error::Capacity(_) => {
                let most = self.edge.handle.limits().document_bytes();
                let message = format!("a message is over {most} bytes, the limit (limits.payload_bytes)");
                End::Because(close_code::SIZE, Error::new(Reason::PayloadTooLarge, message).into())
            }
            tungstenite::Error::Utf8(_) => {
                End::Because(close_code::INVALID, Problem::invalid_json("a text message is not UTF-8"))
            }
            tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Gone,
            tungstenite::Error::Protocol(problem) => {
                let problem =
                    Problem::new(StatusCode::BAD_REQUEST, "websocket_protocol", problem.to_string());
                End::Because(close_code::PROTOCOL, problem)
            }
            _ => End::Gone,
        }
    }
}

/// Hands on what the worker says, until it goes.
async fn read_all(
    inbound: &mut Inbound,
    first: Box<Said>,
    session: &Session,
    leases: &Leases,
    refused: &Refused,
    heard: &Notify,
) -> Result<End, End> {
    let mut said = Some(first);
    loop {
        if let Some(said) = said.take() {
            if said.hello.is_some() {
                return Err(Error::invalid("hello", "belongs in the first message only").into());
            }
            let finished: Vec<u64> = said.finished().collect();
            session.say(said.frame).await?;
            leases.answered(&finished);
            refused.add(said.refused).await;
        }
        match inbound.next().await? {
            None => return Ok(End::Gone),
            Some(Heard::Said(next)) => said = Some(next),
            // The library of a worker answers pings while its handlers run, so a worker need not beat.
            Some(Heard::Life) => session.say(Frame::default()).await?,
        }
        heard.notify_one();
    }
}

/// Tells the worker what is for it, until one of both ends the session.
async fn write_all(
    edge: &Edge,
    sink: &mut SplitSink<WebSocket, Message>,
    session: &Session,
    leases: &Leases,
    refused: &Refused,
    heard: &Notify,
) -> Result<End, End> {
    let mut items = Vec::new();
    let mut moving = false;
    let mut quiet = interval(Duration::from_millis(edge.handle.limits().beat_ms.max(1)));
    quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
    quiet.reset();
    loop {
        if moving && leases.is_empty() {
            return Err(Error::new(Reason::ShuttingDown, "the server is stopping; connect again").into());
        }
        tokio::select! {
            biased;
            taken = session.outbox().take(&mut items) => {
                if !taken? {
                    return Ok(End::Done);
                }
                leases.given(&items);
                moving |= items.iter().any(|item| matches!(item, SessionItem::Tell(Tell::Move(_))));
                for message in messages(&items) {
                    send(sink, message).await?;
                }
                items.clear();
            }
            entries = refused.take() => {
                for entries in entries.chunks(REFUSALS) {
                    send(sink, refusals(entries)).await?;
                }
            }
            () = leases.changed.notified(), if moving => {}
            () = heard.notified() => quiet.reset(),
            _ = quiet.tick() => send_message(sink, Message::Ping(Bytes::new())).await?,
            () = edge.shutdown.cutting() => {
                return Err(Error::new(Reason::ShuttingDown, "the server stops now").into());
            }
        }
    }
}

async fn send(sink: &mut SplitSink<WebSocket, Message>, text: String) -> Result<(), End> {
    send_message(sink, Message::Text(text.into())).await
}

/// How long this may take is the port's rule (`--write-timeout`).
async fn send_message(sink: &mut SplitSink<WebSocket, Message>, message: Message) -> Result<(), End> {
    sink.send(message).await.map_err(|_| End::Gone)
}
