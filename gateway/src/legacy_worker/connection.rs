//! One worker's socket, from the handshake to the close.
//!
//! ```text
//! reader  ── first message: registration ──▶ Handle::join
//!         ── answers ──▶ Crew::finish ──▶ the session that holds the task
//! writer  ◀── outbox: tasks;  every ping interval a JSON ping and a WebSocket ping
//! keeper  ── keeps the session alive while the socket is; ends it when the worker is silent or the
//!            server stops
//! ```
//! The three run side by side in one tokio task; the first to end ends all. So a worker that does not read
//! keeps nobody waiting but its own writer, and that only for a time.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use crewcall::engine::SessionItem;
use crewcall::error::Error;
use crewcall::scheduler::{AttemptEnd, AttemptResult, Frame, Tell};
use crewcall::task::{TaskError, TaskId};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::SetOnce;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::Visitor;
use super::crew::{Listed, Member};
use super::message::{self, PING};
use super::registration::Registration;
use crate::legacy::{DISCONNECTED, Legacy, TIMED_OUT};

/// Allocated for each socket at once; the library's own is 128 KiB.
const READ_BUFFER: usize = 3 << 10;
/// Messages are gathered up to this much before they are written; longer ones go out by themselves.
const WRITE_BUFFER: usize = 16 << 10;
/// The smallest limit of a worker's message; a larger payload limit raises it.
const MESSAGE_BYTES: usize = 16 << 20;
/// Tasks that may wait to be written to one worker. The protocol has no bound for tasks in a worker's
/// hands, so credit is renewed as tasks are written.
const WINDOW: u64 = 1_024;
/// Answers that are handed to the scheduler together.
const ANSWERS: usize = 256;
/// For a closing frame to a worker that may not read.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The worker closed, with this code.
    Closed(Option<u16>),
    /// The stream broke, or the worker broke the WebSocket protocol.
    Broken(tungstenite::Error),
    /// The registration makes no sense.
    Registration(String),
    /// Nothing was heard for so long.
    Silent(Duration),
    /// Took too little of what was sent to it.
    Unread,
    /// The scheduler ended the session, or refused it.
    Session(Error),
    /// The server stops, and the worker has nothing more to do.
    Stopped,
    /// The server stops now.
    Cut,
}

impl End {
    fn broken(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => Self::Unread,
            error => Self::Broken(error),
        }
    }

    /// What the callers of its tasks read.
    fn told_to_callers(&self) -> &'static str {
        match self {
            Self::Silent(_) | Self::Unread => TIMED_OUT,
            _ => DISCONNECTED,
        }
    }

    /// The close frame, when there is somebody to read it.
    fn close_frame(&self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::Closed(_) | Self::Unread | Self::Cut => return None,
            Self::Broken(tungstenite::Error::Capacity(problem)) => (CloseCode::Size, problem.to_string()),
            Self::Broken(tungstenite::Error::Protocol(problem)) => (CloseCode::Protocol, problem.to_string()),
            Self::Broken(tungstenite::Error::Utf8(_)) => (CloseCode::Invalid, "not UTF-8".to_owned()),
            Self::Broken(_) => return None,
            Self::Registration(why) => (CloseCode::Policy, why.clone()),
            Self::Silent(time) => (CloseCode::Away, format!("nothing was heard for {time:?}")),
            Self::Session(error) => (CloseCode::Again, error.to_string()),
            Self::Stopped => (CloseCode::Away, "the server is stopping".to_owned()),
        };
        // A control frame carries 125 bytes, two of them the code.
        let reason = reason.get(..reason.floor_char_boundary(120)).unwrap_or_default().into();
        Some(CloseFrame { code, reason })
    }
}

/// One worker. Whoever serves it holds it: an async function that takes it would hold it twice.
#[derive(Debug)]
pub(super) struct Connection {
    legacy: Arc<Legacy>,
    visitor: Visitor,
    since: Instant,
    /// When anything was last heard, in milliseconds since `since`.
    heard: AtomicU64,
    /// A message may be half written: nothing else may be written any more.
    writing: AtomicBool,
    /// The server stops: the scheduler gives it no more.
    stopping: AtomicBool,
    /// Who it is, once it has registered.
    joined: SetOnce<Joined>,
}

#[derive(Debug)]
struct Joined {
    member: Arc<Member>,
    listed: Arc<Listed>,
}

impl Connection {
    pub(super) fn new(legacy: Arc<Legacy>, visitor: Visitor) -> Self {
        Self {
            legacy,
            visitor,
            since: Instant::now(),
            heard: AtomicU64::new(0),
            writing: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            joined: SetOnce::new(),
        }
    }

    /// Serves the socket until it closes.
    pub(super) async fn serve(&self, upgraded: Upgraded) {
        let largest = self.legacy.handle.limits().payload_bytes.saturating_mul(2).max(MESSAGE_BYTES);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(largest))
            .max_frame_size(Some(largest));
        // Boxed, so that the socket lies there and not, once more for every step that it is handed through, in the
        // future of the connection.
        let halves = Box::pin(async move {
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await.split()
        });
        let (mut sink, mut stream) = halves.await;
        let end = tokio::select! {
            // The writer first: what the scheduler has sent is known before anything else is decided.
            biased;
            end = self.write(&mut sink) => end,
            end = self.read(&mut stream) => end,
            end = self.keep() => end,
        };
        tracing::debug!(ip = %self.visitor.ip, sdk = self.visitor.sdk, ?end, "a legacy worker's connection ends");
        if let Some(Joined { member, .. }) = self.joined.get() {
            Box::pin(self.legacy.crew.leave(member, end.told_to_callers())).await;
        }
        if !self.writing.load(Ordering::Relaxed) {
            // Nobody is told when it fails: the socket is gone either way.
            timeout(CLOSE_WITHIN, Box::pin(close(sink, stream, &end))).await.ok();
        }
    }

    // --- reader -----------------------------------------------------------------------------------

    async fn read(&self, stream: &mut SplitStream<Socket>) -> End {
        let mut answers = Vec::new();
        loop {
            let mut next = stream.next().await;
            self.hear();
            let end = loop {
                if let Err(end) = self.take(next, &mut answers).await {
                    break Some(end);
                }
                if answers.len() >= ANSWERS {
                    break None;
                }
                // What is there already goes along.
                match poll_fn(|cx| Poll::Ready(stream.poll_next_unpin(cx))).await {
                    Poll::Ready(more) => next = more,
                    Poll::Pending => break None,
                }
            };
            if !answers.is_empty() {
                self.legacy.crew.finish(answers.drain(..)).await;
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// What has come; an answer is put to the others.
    async fn take(
        &self,
        message: Option<Result<Message, tungstenite::Error>>,
        answers: &mut Vec<(TaskId, AttemptEnd)>,
    ) -> Result<(), End> {
        let message = message.unwrap_or(Err(tungstenite::Error::ConnectionClosed)).map_err(End::broken)?;
        let text: Bytes = match message {
            Message::Text(text) => text.into(),
            Message::Binary(data) => data,
            Message::Close(frame) => return Err(End::Closed(frame.map(|frame| frame.code.into()))),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(()),
        };
        if self.joined.initialized() {
            answers.extend(message::read(&text).map(|answer| (answer.id, answer.end)));
            return Ok(());
        }
        // Boxed, as is what comes at the end: once in the life of a connection, and the most of its future.
        Box::pin(self.register(&text)).await
    }

    fn hear(&self) {
        self.heard.store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
        if let Some(Joined { listed, .. }) = self.joined.get() {
            listed.seen();
        }
    }

    async fn register(&self, text: &[u8]) -> Result<(), End> {
        let registration = Registration::parse(text).map_err(End::Registration)?;
        let (handle, visitor) = (&self.legacy.handle, &self.visitor);
        // The worker is never told its name. Version 4, as the original's were.
        let id = uuid::Uuid::new_v4().to_string();
        let hello = registration.hello(id.clone(), visitor.sdk, &visitor.ip, handle.limits());
        let methods = registration.methods_json();
        let count = registration.methods.len();
        let listed = Arc::new(Listed::new(registration.group, methods, count, visitor.ip.clone()));
        // Before the scheduler knows it, so that whoever lists the workers finds both.
        self.legacy.crew.enter(id.clone(), Arc::clone(&listed));
        let session = match handle.join(hello).await {
            Ok((_, session)) => session,
            Err(error) => {
                self.legacy.crew.strike(&id);
                return Err(End::Session(error));
            }
        };
        let member = Member::new(id, session);
        self.say(&member, credit(WINDOW)).await?;
        // Set once: only the reader registers.
        self.joined.set(Joined { member, listed }).ok();
        Ok(())
    }

    fn say(&self, member: &Member, frame: Frame) -> impl Future<Output = Result<(), End>> {
        let said = member.session.say(frame);
        async { said.await.map_err(End::Session) }
    }

    // --- writer -----------------------------------------------------------------------------------

    async fn write(&self, sink: &mut SplitSink<Socket, Message>) -> End {
        match self.write_all(sink).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn write_all(
        &self,
        sink: &mut SplitSink<Socket, Message>,
    ) -> Result<std::convert::Infallible, End> {
        let every = self.legacy.settings.legacy_ping_interval;
        let mut pings = ticks(every);
        let member = loop {
            tokio::select! {
                joined = self.joined.wait() => break &joined.member,
                // Not registered yet: only a WebSocket ping, which the library of every SDK answers.
                _ = pings.tick() => self.send(sink, vec![Message::Ping(Bytes::new())]).await?,
            }
        };
        // The first ping comes one interval after the registration.
        pings.reset();
        let (mut items, mut messages) = (Vec::new(), Vec::new());
        let (mut written, mut granted) = (0_u64, WINDOW);
        loop {
            tokio::select! {
                biased;
                taken = member.session.outbox().take(&mut items) => match taken {
                    Ok(true) => {}
                    Ok(false) => return Err(End::Stopped),
                    Err(error) => return Err(End::Session(error)),
                },
                _ = pings.tick() => {
                    messages.push(Message::text(PING));
                    messages.push(Message::Ping(Bytes::new()));
                }
            }
            for item in items.drain(..) {
                if let Some(message) = self.message(member, item).await? {
                    messages.push(message);
                    written += 1;
                }
                if messages.len() >= 64 {
                    self.send(sink, std::mem::take(&mut messages)).await?;
                }
            }
            self.send(sink, std::mem::take(&mut messages)).await?;
            if granted - written <= WINDOW / 2 {
                granted = written + WINDOW;
                self.say(member, credit(granted)).await?;
            }
        }
    }

    /// The message for something that the scheduler says, if the protocol has one.
    async fn message(&self, member: &Arc<Member>, item: SessionItem) -> Result<Option<Message>, End> {
        match item {
            SessionItem::Assign(assign) => match message::task(&assign) {
                Ok(text) => {
                    self.legacy.crew.hold(member, assign.id, assign.lease);
                    Ok(Some(Message::text(text)))
                }
                Err(problem) => {
                    // No other legacy worker could take it either, and one of another kind is not told apart.
                    let error = TaskError::new("payload_not_json", problem);
                    let end = AttemptEnd::Failed { error, retryable: Some(false), retry_after_ms: 0 };
                    self.say(member, result(AttemptResult { lease: assign.lease, seq: 0, end })).await?;
                    Ok(None)
                }
            },
            // The protocol cannot tell a worker to stop; its answer will find nobody.
            SessionItem::Tell(Tell::Cancel(lease, _)) => {
                self.legacy.crew.withdraw(member, lease);
                Ok(None)
            }
            SessionItem::Tell(Tell::Move(_)) => {
                self.stopping.store(true, Ordering::Relaxed);
                member.freed.notify_one();
                Ok(None)
            }
            SessionItem::Tell(Tell::Refused(lease, error)) => {
                tracing::debug!(lease, %error, "an answer of a legacy worker was refused");
                Ok(None)
            }
            // An operator's drain too: closed, the SDK would come back at once and take work again.
            SessionItem::Tell(Tell::Drain(_) | Tell::Recall(_) | Tell::DurableSeq(_) | Tell::Beat(..)) => {
                Ok(None)
            }
        }
    }

    async fn send(&self, sink: &mut SplitSink<Socket, Message>, messages: Vec<Message>) -> Result<(), End> {
        if messages.is_empty() {
            return Ok(());
        }
        self.writing.store(true, Ordering::Relaxed);
        let sending = async {
            for message in messages {
                sink.feed(message).await?;
            }
            sink.flush().await
        };
        // How long this may take is the port's rule (`--write-timeout`).
        sending.await.map_err(End::broken)?;
        self.writing.store(false, Ordering::Relaxed);
        Ok(())
    }

    // --- keeper -----------------------------------------------------------------------------------

    async fn keep(&self) -> End {
        let settings = &self.legacy.settings;
        let every = settings.legacy_ping_interval;
        // As the original: looked at with each ping, so a worker is cut after three to four intervals.
        let patience = every * 3;
        let lease = Duration::from_millis(self.legacy.handle.limits().lease_ms);
        let (mut looks, mut beats) = (ticks(every), ticks((lease / 3).max(Duration::from_millis(10))));
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
                    let silent = self.since.elapsed().saturating_sub(heard);
                    if silent >= patience {
                        return End::Silent(silent);
                    }
                }
                // An empty frame: the scheduler hears the socket, not the worker, whose time is judged above.
                _ = beats.tick() => {
                    if let Some(Joined { member, .. }) = self.joined.get()
                        && let Err(end) = self.say(member, Frame::default()).await
                    {
                        return end;
                    }
                }
                () = settings.shutdown.cutting() => return End::Cut,
                () = self.let_go() => return End::Stopped,
            }
        }
    }

    /// Ends when the server is stopping and the worker has nothing more to do.
    async fn let_go(&self) {
        self.legacy.settings.shutdown.stopping().await;
        let Some(Joined { member, .. }) = self.joined.get() else { return };
        while !(self.stopping.load(Ordering::Relaxed) && member.is_idle()) {
            member.freed.notified().await;
        }
    }
}

// Frames are made in functions of their own: a literal that is filled up from a default stays in the future of whoever
// awaits what is done with it, and a frame is large.

fn credit(total: u64) -> Frame {
    Frame { credits: vec![(String::new(), total)], ..Frame::default() }
}

fn result(result: AttemptResult) -> Frame {
    Frame { results: vec![result], ..Frame::default() }
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The closing handshake, and the end of the TCP connection.
async fn close(
    sink: SplitSink<Socket, Message>,
    stream: SplitStream<Socket>,
    end: &End,
) -> Result<(), tungstenite::Error> {
    // They belong together: it cannot fail.
    let Ok(mut socket) = stream.reunite(sink) else { return Ok(()) };
    match end {
        End::Closed(code) => {
            // The library would echo the reason too, which the original does not.
            let frame = match code.map(u16::to_be_bytes) {
                Some([high, low]) => vec![0x88, 2, high, low],
                None => vec![0x88, 0],
            };
            socket.get_mut().write_all(&frame).await?;
        }
        other => {
            if let Some(frame) = other.close_frame() {
                socket.close(Some(frame)).await?;
            }
        }
    }
    socket.get_mut().shutdown().await?;
    Ok(())
}
