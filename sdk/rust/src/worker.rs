//! For workers: serves methods over one outbound stream, comes back by itself when it breaks, leaves in
//! good order.
pub(crate) mod backoff;
mod context;
mod link;
mod outbox;
mod registry;
mod session;

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tracing::{info, warn};
use uuid::Uuid;

use self::backoff::Backoff;
pub use self::context::{Context, HandlerError};
use self::link::Link;
use self::outbox::Outbox;
pub use self::registry::MethodSpec;
use self::registry::{Handler, Registry};
use self::session::{Ending, Session};
use crate::channel;
use crate::error::{Refusal, transport_words};
use crate::proto::{Hello, Payload, Pool, Welcome};

const PROTOCOL: u32 = 1;
const SDK: &str = concat!("crewcall-sdk-rust/", env!("CARGO_PKG_VERSION"));
const BACKOFF_BASE: Duration = Duration::from_millis(100);
const BACKOFF_CAP: Duration = Duration::from_secs(5);
const DEFAULT_CONCURRENCY: u32 = 64;
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_CANCEL_GRACE: Duration = Duration::from_secs(5);

/// Why a worker could not be built, or stopped without being asked to.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// What the builder was given cannot work.
    #[error("the worker cannot be built: {0}")]
    Invalid(String),
    /// The scheduler does not take this worker: wrong key, or something in its description.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another process joined under the same worker id.
    #[error("another process has joined with the id of this worker: give each its own `worker_id`")]
    Replaced,
    /// [`WorkerHandle::abort`], or the runtime went down.
    #[error("the worker was aborted")]
    Aborted,
}

/// A worker that is ready to run. Made by [`Worker::builder`].
pub struct Worker {
    endpoint: Endpoint,
    address: String,
    hello: Hello,
    registry: Arc<Registry>,
    key: Option<String>,
    drain_timeout: Duration,
    cancel_grace: Duration,
}

/// Describes a worker. Everything but the methods may be left out.
#[must_use = "a builder does nothing until `build`"]
pub struct WorkerBuilder {
    address: String,
    hello: Hello,
    concurrency: u32,
    key: Option<String>,
    methods: Vec<(MethodSpec, Handler)>,
    drain_timeout: Duration,
    cancel_grace: Duration,
}

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WorkerState {
    /// Not connected; it keeps trying.
    #[default]
    Connecting,
    /// Connected and served.
    Connected,
    /// It has ended.
    Ended,
}

/// What is known about a worker's connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkerStatus {
    /// Where it stands.
    pub state: WorkerState,
    /// As given, or as chosen by the server; empty before the first connection when none was given.
    pub worker_id: String,
    /// The latest session; empty before the first.
    pub session_id: String,
    /// Connections made so far: rises by one with each welcome, so that a test can wait for the next.
    pub connections: u64,
    /// It takes no more work.
    pub draining: bool,
}

/// A running worker. Dropping the handle leaves the worker running.
#[derive(Debug)]
pub struct WorkerHandle {
    control: Arc<Control>,
    link: LinkHandle,
    task: JoinHandle<Result<(), WorkerError>>,
    // Kept, because a task's result can be taken only once.
    result: Option<Result<(), WorkerError>>,
}

struct LinkHandle(Arc<Link>);

/// Orders to a running worker, and its state.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) drain: CancellationToken,
    pub(crate) disconnect: Notify,
    abort: CancellationToken,
    drain_timeout: Duration,
    drain_until: OnceLock<Instant>,
    status: watch::Sender<WorkerStatus>,
}

impl Worker {
    /// A worker of the scheduler at `http://host:port` or `host:port`.
    pub fn builder(address: impl Into<String>) -> WorkerBuilder {
        WorkerBuilder {
            address: address.into(),
            hello: Hello {
                protocol_min: PROTOCOL,
                protocol_max: PROTOCOL,
                boot_id: Uuid::new_v4().to_string(),
                sdk: SDK.to_owned(),
                host: host(),
                ..Hello::default()
            },
            concurrency: DEFAULT_CONCURRENCY,
            key: None,
            methods: Vec::new(),
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
            cancel_grace: DEFAULT_CANCEL_GRACE,
        }
    }

    /// Runs until `shutdown` completes, then drains: takes no more work, waits for running handlers up to
    /// the drain timeout, says goodbye. Also returns when the scheduler told it to drain.
    ///
    /// # Errors
    /// [`WorkerError::Refused`] and [`WorkerError::Replaced`]; a scheduler that cannot be reached is no
    /// error, the worker keeps trying.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
        let mut handle = self.start();
        tokio::select! {
            ended = handle.ended() => return ended,
            () = shutdown => {}
        }
        handle.stop().await
    }

    /// [`run`](Self::run) until SIGTERM or ctrl-c. A second signal stops at once.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_until_signal(self) -> Result<(), WorkerError> {
        let mut handle = self.start();
        tokio::select! {
            ended = handle.ended() => return ended,
            () = signal() => {}
        }
        info!("draining; a second signal stops at once");
        handle.drain();
        tokio::select! {
            ended = handle.ended() => ended,
            () = signal() => {
                handle.abort();
                Err(WorkerError::Aborted)
            }
        }
    }

    /// Starts on the current tokio runtime and returns at once.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`tokio::spawn`] does.
    pub fn start(self) -> WorkerHandle {
        let worker_id = self.hello.worker_id.clone();
        let control = Arc::new(Control {
            drain: CancellationToken::new(),
            disconnect: Notify::new(),
            abort: CancellationToken::new(),
            drain_timeout: self.drain_timeout,
            drain_until: OnceLock::new(),
            status: watch::Sender::new(WorkerStatus { worker_id, ..WorkerStatus::default() }),
        });
        let link = Arc::new(Link::new(&self.hello.pools));
        let task = tokio::spawn(supervise(self, control.clone(), link.clone()));
        WorkerHandle { control, link: LinkHandle(link), task, result: None }
    }
}

impl WorkerBuilder {
    /// Stable name of the worker, 1 to 128 characters. Default: chosen by the server.
    pub fn worker_id(mut self, id: impl Into<String>) -> Self {
        self.hello.worker_id = id.into();
        self
    }

    /// Workers of one kind.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.hello.group = group.into();
        self
    }

    /// A label that callers can ask for; at most 16.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.hello.labels.insert(key.into(), value.into());
        self
    }

    /// Version of the worker's own program; shown to people.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.hello.version = version.into();
        self
    }

    /// How many tasks run at once in the default pool, 1 to 65,536. Default 64.
    pub fn concurrency(mut self, tasks: u32) -> Self {
        self.concurrency = tasks;
        self
    }

    /// Another pool with its own concurrency, for methods that name it.
    pub fn pool(mut self, name: impl Into<String>, concurrency: u32) -> Self {
        self.hello.pools.push(Pool { name: name.into(), concurrency });
        self
    }

    /// The scheduler's worker key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// How long a drain waits for running handlers. Default 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// How long a handler that was told to stop may go on before it is dropped. Default 5 s.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.cancel_grace = grace;
        self
    }

    /// Serves a method: JSON in, JSON out, schemas from the types. `method` is a name or a [`MethodSpec`].
    ///
    /// The handler is polled once where the stream is read, so that a short one costs no task; it must not
    /// block its thread (use [`tokio::task::spawn_blocking`]).
    pub fn method<In, Out, E, F, Fut>(self, method: impl Into<MethodSpec>, handler: F) -> Self
    where
        In: DeserializeOwned + JsonSchema + Send + 'static,
        Out: Serialize + JsonSchema + 'static,
        E: Into<HandlerError>,
        F: Fn(Context, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, E>> + Send + 'static,
    {
        self.method_without_schema(method.into().with_schemas::<In, Out>(), handler)
    }

    /// [`method`](Self::method) with everything said about it.
    pub fn method_with<In, Out, E, F, Fut>(self, spec: MethodSpec, handler: F) -> Self
    where
        In: DeserializeOwned + JsonSchema + Send + 'static,
        Out: Serialize + JsonSchema + 'static,
        E: Into<HandlerError>,
        F: Fn(Context, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, E>> + Send + 'static,
    {
        self.method(spec, handler)
    }

    /// [`method`](Self::method) for types without [`JsonSchema`].
    pub fn method_without_schema<In, Out, E, F, Fut>(
        mut self,
        method: impl Into<MethodSpec>,
        handler: F,
    ) -> Self
    where
        In: DeserializeOwned + Send + 'static,
        Out: Serialize + 'static,
        E: Into<HandlerError>,
        F: Fn(Context, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, E>> + Send + 'static,
    {
        self.methods.push((method.into(), registry::typed(handler)));
        self
    }

    /// Serves a method on bytes of any media type.
    pub fn method_raw<E, F, Fut>(mut self, method: impl Into<MethodSpec>, handler: F) -> Self
    where
        E: Into<HandlerError>,
        F: Fn(Context, Payload) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Payload, E>> + Send + 'static,
    {
        self.methods.push((method.into(), registry::raw(handler)));
        self
    }

    /// Checks what can be checked without the server.
    ///
    /// # Errors
    /// [`WorkerError::Invalid`]: malformed address or key, no method, one twice, or a pool that is not there.
    pub fn build(self) -> Result<Worker, WorkerError> {
        let invalid = |text: String| Err(WorkerError::Invalid(text));
        let endpoint = channel::endpoint(&self.address).map_err(WorkerError::Invalid)?;
        if self.key.as_deref().is_some_and(|key| bearer(key).is_none()) {
            return invalid("the key holds characters that do not fit into a header".into());
        }
        let mut hello = self.hello;
        hello.pools.insert(0, Pool { name: String::new(), concurrency: self.concurrency });
        for (index, pool) in hello.pools.iter().enumerate() {
            if !(1..=65_536).contains(&pool.concurrency) {
                let Pool { name, concurrency } = pool;
                return invalid(format!("pool `{name}`: concurrency {concurrency} is not in 1 to 65536"));
            }
            if hello.pools.iter().take(index).any(|earlier| earlier.name == pool.name) {
                return invalid(format!("pool `{}` is given twice", pool.name));
            }
        }
        let mut registry = Registry::default();
        for (spec, handler) in self.methods {
            let MethodSpec { mut method, pool, error } = spec;
            if let Some(error) = error {
                return invalid(error);
            }
            method.pool = pool.unwrap_or_default();
            if !hello.pools.iter().any(|pool| pool.name == method.pool) {
                return invalid(format!("method `{}`: there is no pool `{}`", method.name, method.pool));
            }
            let (name, version) = (method.name.clone(), method.version.clone());
            if !registry.insert(method, handler) {
                return invalid(format!("method `{name}` version `{version}` is given twice"));
            }
        }
        if registry.methods().is_empty() {
            return invalid("it serves no method".into());
        }
        hello.methods = registry.methods().to_vec();
        Ok(Worker {
            endpoint,
            address: self.address,
            hello,
            registry: Arc::new(registry),
            key: self.key,
            drain_timeout: self.drain_timeout,
            cancel_grace: self.cancel_grace,
        })
    }
}

impl WorkerHandle {
    /// Begins to drain and returns at once.
    pub fn drain(&self) {
        self.control.begin_drain(&self.link.0);
    }

    /// Drains and waits until the worker has left.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub async fn stop(mut self) -> Result<(), WorkerError> {
        self.drain();
        self.ended().await
    }

    /// Waits until the worker has ended, by [`drain`](Self::drain), by an order of the server or by an
    /// error. Safe to drop and call again.
    ///
    /// # Errors
    /// As [`Worker::run`]; [`WorkerError::Aborted`] after [`abort`](Self::abort).
    pub async fn ended(&mut self) -> Result<(), WorkerError> {
        if let Some(result) = &self.result {
            return result.clone();
        }
        let result = (&mut self.task).await.unwrap_or(Err(WorkerError::Aborted));
        self.result = Some(result.clone());
        result
    }

    /// Waits until the scheduler has welcomed the worker, and so serves its methods; returns at once when
    /// it is connected.
    ///
    /// # Errors
    /// [`WorkerError::Aborted`] when the worker ended first; [`ended`](Self::ended) says why.
    pub async fn wait_connected(&self) -> Result<WorkerStatus, WorkerError> {
        self.wait_for(|status| status.state == WorkerState::Connected).await
    }

    /// Waits until the status is as wanted.
    ///
    /// # Errors
    /// [`WorkerError::Aborted`] when the worker ended first.
    pub async fn wait_for(
        &self,
        mut wanted: impl FnMut(&WorkerStatus) -> bool,
    ) -> Result<WorkerStatus, WorkerError> {
        let mut status = self.status();
        let found = status.wait_for(|status| wanted(status) || status.state == WorkerState::Ended).await;
        match found.map(|status| status.clone()) {
            Ok(status) if wanted(&status) => Ok(status),
            _ => Err(WorkerError::Aborted),
        }
    }

    /// The status, now and as it changes.
    pub fn status(&self) -> watch::Receiver<WorkerStatus> {
        self.control.status.subscribe()
    }

    /// Breaks the connection without a word; the worker comes back and resumes. For tests.
    pub fn disconnect(&self) {
        self.control.disconnect.notify_waiters();
    }

    /// Ends the worker as if its process were killed: no goodbye, running handlers are dropped. For tests,
    /// and for those in a hurry.
    pub fn abort(&self) {
        self.control.abort.cancel();
    }
}

impl Control {
    pub(crate) fn connected(&self, welcome: &Welcome) {
        self.status.send_modify(|status| {
            status.state = WorkerState::Connected;
            status.worker_id.clone_from(&welcome.worker_id);
            status.session_id.clone_from(&welcome.session_id);
            status.connections += 1;
        });
    }

    fn enter(&self, state: WorkerState) {
        self.status.send_modify(|status| status.state = state);
    }

    pub(crate) fn begin_drain(&self, link: &Link) {
        self.drain_until.get_or_init(|| Instant::now() + self.drain_timeout);
        link.update(|outbox| outbox.draining = true);
        self.drain.cancel();
        self.status.send_modify(|status| status.draining = true);
    }

    /// What is left of the drain timeout.
    pub(crate) fn drain_left(&self) -> Duration {
        self.drain_until
            .get()
            .map_or(self.drain_timeout, |until| until.saturating_duration_since(Instant::now()))
    }
}

impl std::fmt::Debug for LinkHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("address", &self.address).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerBuilder").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Keeps a worker connected until it leaves, is refused or is aborted.
async fn supervise(worker: Worker, control: Arc<Control>, link: Arc<Link>) -> Result<(), WorkerError> {
    let result = tokio::select! {
        biased;
        () = control.abort.cancelled() => {
            link.update(|outbox| {
                outbox.disconnect();
                outbox.abort_all();
            });
            Err(WorkerError::Aborted)
        }
        result = keep_connected(worker, &control, &link) => result,
    };
    control.enter(WorkerState::Ended);
    result
}

async fn keep_connected(worker: Worker, control: &Arc<Control>, link: &Arc<Link>) -> Result<(), WorkerError> {
    let Worker { endpoint, address, mut hello, registry, key, drain_timeout: _, cancel_grace } = worker;
    let mut session = Session {
        link: link.clone(),
        registry,
        control: control.clone(),
        authorization: key.as_deref().and_then(bearer),
        cancel_grace,
        welcome: Welcome::default(),
    };
    let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
    let mut away_since = Instant::now();
    loop {
        let connections = control.status.borrow().connections;
        let connected = tokio::select! {
            connected = endpoint.connect() => connected,
            () = gone_for_good(link, control) => return Ok(()),
        };
        // A connection of its own for each session: one that hangs half-open is not used again.
        let (why, announced) = match connected {
            Err(error) => (transport_words(&error), false),
            Ok(channel) => match session.run(channel, hello.clone()).await {
                Ending::Left => return Ok(()),
                Ending::Fatal(error) => return Err(error),
                Ending::Broken(why) => (why, false),
                Ending::Moved(why) => (why, true),
            },
        };
        control.enter(WorkerState::Connecting);
        if control.status.borrow().connections > connections {
            backoff.reset();
            away_since = Instant::now();
            hello.worker_id.clone_from(&session.welcome.worker_id);
        }
        if away_since.elapsed() > Duration::from_millis(session.welcome.resume_ms) {
            // The session cannot be resumed any more, so what runs runs for nobody.
            session.welcome.resume_token.clear();
            for attempt in link.update(Outbox::lose_all) {
                attempt.cancel("the connection was down for too long".into());
            }
        }
        let wait = backoff.next_wait();
        if announced {
            info!(%address, ?wait, "not connected: {why}");
        } else {
            warn!(%address, ?wait, "not connected: {why}");
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = gone_for_good(link, control) => return Ok(()),
        }
    }
}

/// While disconnected and draining: nothing is left to deliver, or the time for it is up.
async fn gone_for_good(link: &Link, control: &Control) {
    control.drain.cancelled().await;
    if tokio::time::timeout(control.drain_left(), session::quiet(link)).await.is_err() {
        for attempt in link.update(Outbox::lose_all) {
            attempt.cancel("the worker stops".into());
        }
    }
}

fn bearer(key: &str) -> Option<MetadataValue<tonic::metadata::Ascii>> {
    let mut value = MetadataValue::try_from(format!("Bearer {key}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn host() -> String {
    let name = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    let name = name.or_else(|| std::fs::read_to_string("/etc/hostname").ok()).unwrap_or_default();
    name.trim().to_owned()
}

async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    // Without a handler for it the signal ends the process by itself; nothing is left to wait for.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
