//! One connection of a worker: hello, welcome, then frames until it ends.
use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;
use tracing::{debug, warn};

use super::context::{Context, HandlerError};
use super::link::{Link, Writer};
use super::outbox::{End, Ended, Outbox, Running};
use super::registry::Registry;
use super::{Control, WorkerError};
use crate::channel::MESSAGE_BYTES_MAX;
use crate::error::{CallError, transport_words};
use crate::proto::worker_client::WorkerClient;
use crate::proto::{Assign, Hello, Payload, SessionResponse, Welcome, control, result};

const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// After `bye` the server ends the stream; no need to wait for ever if it does not.
const BYE_TIMEOUT: Duration = Duration::from_secs(5);
/// Results of handlers that end at once are gathered no longer than this, nor more of them.
const GATHER_TIME: Duration = Duration::from_micros(500);
const GATHER_COUNT: usize = 256;

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// After `bye`.
    Left,
    /// Try again.
    Broken(String),
    /// Try again; the server said that it stops.
    Moved(String),
    /// Trying again would not help.
    Fatal(WorkerError),
}

/// What outlives a connection.
pub(crate) struct Session {
    pub(crate) link: Arc<Link>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) control: Arc<Control>,
    pub(crate) authorization: Option<MetadataValue<Ascii>>,
    pub(crate) cancel_grace: Duration,
    /// The latest; empty before the first.
    pub(crate) welcome: Welcome,
}

impl Session {
    /// Runs one connection to its end.
    pub(crate) async fn run(&mut self, channel: Channel, mut hello: Hello) -> Ending {
        hello.resume_token.clone_from(&self.welcome.resume_token);
        let connection = self.link.update(|outbox| outbox.connect(hello));
        let ending = self.converse(channel, connection).await;
        self.link.update(Outbox::disconnect);
        ending
    }

    async fn converse(&mut self, channel: Channel, connection: u64) -> Ending {
        let mut client = WorkerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut request = Request::new(Writer::new(self.link.clone(), connection));
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        let joined = timeout(WELCOME_TIMEOUT, async {
            let mut inbound = client.session(request).await?.into_inner();
            Ok((inbound.message().await?, inbound))
        });
        let (first, inbound) = match joined.await {
            Err(_) => return Ending::Broken(format!("no welcome within {WELCOME_TIMEOUT:?}")),
            Ok(Err(status)) => return ending(status),
            Ok(Ok((None, _))) => return Ending::Broken("the server closed the stream at once".into()),
            Ok(Ok((Some(first), inbound))) => (first, inbound),
        };
        let Some(welcome) = first.welcome.clone() else {
            return Ending::Broken("the server's first frame was not a welcome".into());
        };
        self.link.set_max_payload(welcome.max_payload_bytes);
        for attempt in self.link.update(|outbox| outbox.welcome(&welcome.keep)) {
            attempt.cancel("the lease was lost while the connection was down".into());
        }
        self.control.connected(&welcome);
        let heard = Arc::new(Heard::default());
        let ticker = Ticker::start(
            self.link.clone(),
            heard.clone(),
            Duration::from_millis(welcome.beat_ms.clamp(10, 60_000)),
            Duration::from_millis(welcome.lease_ms.max(100)),
        );
        let ticker = match ticker {
            Ok(ticker) => ticker,
            Err(error) => return Ending::Broken(format!("no thread for the beats: {error}")),
        };
        self.welcome = welcome;
        heard.busy();
        self.handle(first).await;
        heard.idle();
        self.listen(inbound, &heard, ticker).await
    }

    async fn listen(
        &self,
        mut inbound: Streaming<SessionResponse>,
        heard: &Heard,
        mut ticker: Ticker,
    ) -> Ending {
        let left = leave(&self.link, &self.control);
        let disconnect = self.control.disconnect.notified();
        tokio::pin!(left, disconnect);
        loop {
            tokio::select! {
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => {
                        heard.busy();
                        self.handle(frame).await;
                        heard.idle();
                    }
                    Ok(None) if self.has_left() => return Ending::Left,
                    Ok(None) => return Ending::Broken("the server ended the stream".into()),
                    Err(status) => return ending(status),
                },
                () = &mut left => return Ending::Left,
                () = &mut disconnect => return Ending::Broken("disconnected on request".into()),
                _ = &mut ticker.silent => return Ending::Broken(format!(
                    "the server was silent for {} ms", self.welcome.lease_ms
                )),
            }
        }
    }

    fn has_left(&self) -> bool {
        self.control.drain.is_cancelled() && self.link.read(Outbox::is_quiet)
    }

    async fn handle(&self, frame: SessionResponse) {
        if !frame.assign.is_empty() {
            self.run_all(frame.assign).await;
        }
        for cancel in frame.cancel {
            if let Some(attempt) = self.link.update(|outbox| outbox.cancel(cancel.lease)) {
                attempt.cancel(cancel.reason);
            }
        }
        // `recall` needs no answer: every task is started on receipt, and only what has not started is
        // given back.
        if !frame.errors.is_empty() {
            for error in &frame.errors {
                debug!(lease = error.lease, reason = %error.reason, "refused: {}", error.message);
            }
            let leases: HashSet<u64> = frame.errors.iter().map(|error| error.lease).collect();
            self.link.update(|outbox| outbox.refused(&leases));
        }
        if frame.durable_seq > 0 {
            self.link.update(|outbox| outbox.confirmed(frame.durable_seq));
        }
        if frame.control.is_some_and(|order| order.kind() == control::Kind::Drain) {
            self.control.begin_drain(&self.link);
        }
        if self.control.drain.is_cancelled() {
            self.link.settled.notify_one();
        }
    }

    /// Polls each handler once; what ends at once is answered without a task, a `started` or a timer.
    async fn run_all(&self, assigns: Vec<Assign>) {
        let accepted: Vec<(usize, Assign)> = self.link.update(|outbox| {
            assigns.into_iter().filter_map(|assign| Some((outbox.accept(&assign)?, assign))).collect()
        });
        self.give_way().await;
        let mut ended = Vec::with_capacity(accepted.len().min(GATHER_COUNT));
        let mut gathering_since = Instant::now();
        for (pool, assign) in accepted {
            ended.extend(self.run_one(pool, assign));
            if ended.len() >= GATHER_COUNT || gathering_since.elapsed() >= GATHER_TIME {
                self.report(&mut ended);
                self.give_way().await;
                gathering_since = Instant::now();
            }
        }
        self.report(&mut ended);
    }

    /// Lets the writer run before the next handler does. Woken from here it sits in this thread's own slot,
    /// where no other thread can take it while a handler keeps this one.
    async fn give_way(&self) {
        if self.link.writer_is_due() {
            tokio::task::yield_now().await;
        }
    }

    fn report(&self, ended: &mut Vec<Ended>) {
        if !ended.is_empty() {
            self.link.update(|outbox| ended.drain(..).for_each(|ended| outbox.ended(ended)));
        }
    }

    /// `Some` when the handler ended at its first poll.
    fn run_one(&self, pool: usize, assign: Assign) -> Option<Ended> {
        let lease = assign.lease;
        let Some(handler) = self.registry.find(&assign.method, &assign.version) else {
            let message = format!("this worker does not serve `{}` {}", assign.method, assign.version);
            let end = to_end(&self.link, Ok(Err(HandlerError::new("method_not_served", message))));
            return Some(Ended { lease, pool, end });
        };
        let (context, payload) = Context::new(assign, self.link.clone());
        let attempt = context.attempt.clone();
        // A panic ends the attempt, never the worker; what the handler shared is its own affair.
        let mut running = AssertUnwindSafe(handler(context, payload)).catch_unwind();
        let mut polled = std::task::Context::from_waker(std::task::Waker::noop());
        if let Poll::Ready(returned) = running.poll_unpin(&mut polled) {
            return Some(Ended { lease, pool, end: to_end(&self.link, returned) });
        }
        let (link, grace) = (self.link.clone(), self.cancel_grace);
        let stopping = attempt.clone();
        // Under the lock, so that the attempt is known before its end can be reported.
        self.link.update(|outbox| {
            let task = tokio::spawn(async move {
                let overdue = async {
                    stopping.token().cancelled().await;
                    tokio::time::sleep(grace).await;
                };
                let returned = tokio::select! {
                    biased;
                    returned = running => returned,
                    () = overdue => Ok(Err(HandlerError::cancelled())),
                };
                link.finished(lease, to_end(&link, returned));
            });
            outbox.started(Running::new(attempt, pool, task.abort_handle()));
        });
        None
    }
}

type Returned = std::thread::Result<Result<Payload, HandlerError>>;

fn to_end(link: &Link, returned: Returned) -> End {
    let returned = match returned {
        Ok(returned) => returned,
        Err(panic) => Err(HandlerError::new("handler_panic", panic_words(panic.as_ref()))),
    };
    match returned.and_then(|payload| link.check_size(&payload).map(|()| payload)) {
        Ok(payload) => End::Result(result::Kind::Succeeded(payload)),
        Err(error) if error.is_released() => End::Released,
        Err(error) => End::Result(result::Kind::Failed(error.into())),
    }
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("no message"))
}

/// When the server was last heard. While a frame is being handled, what waits unread is not silence.
#[derive(Default)]
struct Heard {
    idle_since: Mutex<Option<Instant>>,
}

impl Heard {
    fn busy(&self) {
        *self.idle_since.lock() = None;
    }

    fn idle(&self) {
        *self.idle_since.lock() = Some(Instant::now());
    }

    fn silent_for(&self) -> Duration {
        self.idle_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Beats from a thread of its own. A handler that blocks a thread of the runtime can stop all of the
/// runtime's timers with it (nobody is left to turn its driver); a wake-up from outside sets it going
/// again, so the worker keeps its leases.
struct Ticker {
    /// The server, which answers every beat, has been silent for as long as a lease.
    silent: oneshot::Receiver<()>,
    // Dropped with the session, which ends the thread.
    _stop: std::sync::mpsc::Sender<()>,
}

impl Ticker {
    fn start(link: Arc<Link>, heard: Arc<Heard>, beat: Duration, lease: Duration) -> std::io::Result<Self> {
        let (silence, silent) = oneshot::channel();
        let (stop, stopped) = std::sync::mpsc::channel();
        // A little early: "at least this often".
        let period = beat.mul_f64(0.8);
        std::thread::Builder::new().name("crewcall-beat".into()).spawn(move || {
            while heard.silent_for() < lease {
                link.update(Outbox::beat);
                if stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
            // The session may have ended for another reason meanwhile.
            let _ = silence.send(());
        })?;
        Ok(Self { silent, _stop: stop })
    }
}

/// Once draining: waits until the worker has fallen quiet or its time is up, says `bye` and waits for the
/// server to end the stream.
async fn leave(link: &Link, control: &Control) {
    control.drain.cancelled().await;
    if timeout(control.drain_left(), settle(link)).await.is_err() {
        warn!("handlers still run after the drain timeout; their attempts are given up");
        for attempt in link.update(Outbox::lose_all) {
            attempt.cancel("the worker stops".into());
        }
    }
    link.update(|outbox| outbox.bye("drained"));
    tokio::time::sleep(BYE_TIMEOUT).await;
}

/// Waits until nothing runs and every result is safe. The server says what is safe only now and then, and
/// in answer to a beat; so the last result is followed by one, and not by a wait for the next.
async fn settle(link: &Link) {
    let mut asked = None;
    while !link.read(Outbox::is_quiet) {
        link.update(|outbox| {
            if outbox.is_idle() && asked.replace(outbox.last_seq()) != Some(outbox.last_seq()) {
                outbox.beat();
            }
        });
        link.settled.notified().await;
    }
}

pub(crate) async fn quiet(link: &Link) {
    while !link.read(Outbox::is_quiet) {
        link.settled.notified().await;
    }
}

fn ending(status: Status) -> Ending {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => {
            match CallError::from(status) {
                CallError::Refused(refusal) => Ending::Fatal(WorkerError::Refused(refusal)),
                other => Ending::Broken(other.to_string()),
            }
        }
        Code::Unavailable if reason == "shutting_down" => Ending::Moved(status.message().to_owned()),
        Code::Aborted if reason == "session_replaced" => Ending::Fatal(WorkerError::Replaced),
        _ => Ending::Broken(transport_words(&status)),
    }
}
