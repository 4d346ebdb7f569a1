//! One port for everything: gRPC (HTTP/2 with prior knowledge, or by ALPN under TLS), HTTP/1 and WebSocket
//! upgrades, all served by one [`App`].
//!
//! The accept loop is ours because the ready-made ones leave the door open (tonic 0.14.9, axum 0.8.9): no
//! limit on connections, no deadline for a client that says nothing, no way to set the HTTP/2 guards, no
//! `TCP_NODELAY`. What is guarded, and by what:
//!
//! | abuse | guard |
//! |---|---|
//! | a silent connection, half a TLS handshake, half an HTTP/2 preface | [`ListenerSettings::handshake_timeout`] |
//! | request heads dripping in (also of an upgrade), idle keep-alive | [`ListenerSettings::header_timeout`] |
//! | HTTP/1 bodies dripping in | [`ListenerSettings::body_timeout`] |
//! | a client that reads nothing, or a byte now and then | [`ListenerSettings::write_timeout`] |
//! | a dead HTTP/2 peer | pings: [`ListenerSettings::keepalive_interval`] |
//! | too many connections | the caps; more wait in the kernel's queue until one closes |
//! | rapid resets, CONTINUATION and empty DATA floods, header bombs | h2, with the limits set here |
//! | PING, SETTINGS and unknown-frame floods | `meter` |
//! | out of file descriptors | the loop waits a moment and goes on; it never ends on an accept error |

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::ConnectInfo,
    http::{Request, Response},
};
use hyper::body::{Body as _, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, lookup_host},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tower::Service;

use crate::shutdown::Shutdown;

mod admission;
mod meter;
mod patience;
pub mod tls;
mod transport;

use admission::{Admission, Door};
use patience::Pace;
use transport::{Protocol, Stream, TimedBody, Transport};

/// Connections that the kernel holds for us between two accepts: the room for a crew that reconnects at once.
const BACKLOG: u32 = 4096;
/// A whole HTTP/2 request head, decoded.
const MAX_HEAD_BYTES: u32 = 16 * 1024;
/// The read buffer of an HTTP/1 connection, and so the longest request head (431 beyond it). hyper's own is
/// 400 KiB.
const HTTP1_BUFFER: usize = 64 * 1024;
/// What a client may send ahead of the reader: one full message per stream, several per connection.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// h2 closes a connection at 20 by default; an honest client that cancels a batch of calls at once has more.
const MAX_PENDING_RESETS: usize = 200;
/// What the kernel takes of us beyond what is on its way to the client. It tells of room when half of it is gone,
/// and that must be far less than a client at the lowest rate takes within the write timeout.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 32 * 1024;
/// How often a condition that lasts is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Limits and deadlines of the port. The defaults are safe on the open network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    /// Open connections in all. At the limit new ones wait in the kernel's queue. Default 32,768.
    pub max_connections: usize,
    /// Open connections per IPv4 address or IPv6 /64; more are closed at once. A crew behind one router is
    /// one address, hence the generous default: 16,384.
    pub max_connections_per_ip: usize,
    /// Concurrent requests per HTTP/2 connection; more wait at the client. Default 256.
    pub max_streams_per_connection: u32,
    /// From accept until the TLS handshake is done and the client has shown which protocol it speaks.
    /// Default 10 s.
    pub handshake_timeout: Duration,
    /// For one whole HTTP/1 request head. It runs from the end of the request before, so it is also how long
    /// an idle HTTP/1 connection is kept. Default 10 s.
    pub header_timeout: Duration,
    /// The longest pause within an HTTP/1 request body. Default 30 s.
    pub body_timeout: Duration,
    /// How long data may wait for a client that takes less than `min_write_rate`. Every byte that it takes earns
    /// it time, up to this much. Default 30 s.
    pub write_timeout: Duration,
    /// Bytes a second. Who takes what waits at this rate is never too slow. Default 1,024.
    pub min_write_rate: u32,
    /// How often an HTTP/2 peer is pinged. Default 20 s.
    pub keepalive_interval: Duration,
    /// How long an HTTP/2 peer may take to answer a ping before its connection is closed. Default 10 s.
    pub keepalive_timeout: Duration,
}

impl Default for ListenerSettings {
    fn default() -> Self {
        Self {
            max_connections: 32_768,
            max_connections_per_ip: 16_384,
            max_streams_per_connection: 256,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            min_write_rate: 1_024,
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Why an address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; {}", self.advice())]
pub struct BindError {
    /// The address as it was given.
    pub address: String,
    /// What the operating system said.
    pub source: io::Error,
}

impl BindError {
    fn advice(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                "another program has this port: stop it or choose another one (port 0 picks a free one)"
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need a privilege: choose a higher one or grant CAP_NET_BIND_SERVICE"
            }
            io::ErrorKind::AddrNotAvailable => {
                "no network interface of this machine has this address: use 127.0.0.1 (this machine only), \
                 0.0.0.0 (every interface) or an address shown by `ip addr`"
            }
            _ => "the form is HOST:PORT, for example 127.0.0.1:8080 or [::1]:8080",
        }
    }
}

/// Binds `address` (`HOST:PORT`; a name is resolved, its first address that can be bound is taken; port 0
/// picks a free one).
///
/// # Errors
/// [`BindError`] with the address, the reason and what to do about it.
pub async fn bind(address: &str) -> Result<TcpListener, BindError> {
    let failed = |source| BindError { address: address.to_owned(), source };
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
    for candidate in lookup_host(address).await.map_err(failed)? {
        match bind_one(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted server must not wait for the old one's connections to leave TIME_WAIT. Not on Windows,
    // where the option lets two servers share a port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How the port was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Connections that were still open when [`Shutdown::cut`] came.
    pub cut: usize,
}

/// Serves `app` on `listener` until `shutdown`.
///
/// Every request carries [`ConnectInfo<SocketAddr>`] of its peer in its extensions. Once stopping, nothing
/// more is accepted, each connection ends after its open requests, and this returns when the last has ended;
/// on [`Shutdown::cut`] what is left is closed. A connection that was upgraded (WebSocket) belongs to the
/// handler that took it, which should watch the same shutdown; it counts as open until it closes.
pub async fn serve<A>(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    app: A,
    settings: ListenerSettings,
    shutdown: Shutdown,
) -> Closed
where
    A: App,
{
    let door = Door::new(settings.max_connections, settings.max_connections_per_ip);
    // The connections follow a shutdown of ours, so that they are counted before they are cut.
    let connections = Shutdown::new();
    let server = Arc::new(Server {
        http: http_builder(&settings),
        tls: tls.map(TlsAcceptor::from),
        app,
        settings,
        shutdown: connections.clone(),
    });

    tokio::select! {
        biased;
        () = shutdown.stopping() => {}
        never = accept_all(&listener, &door, &server) => match never {},
    }
    // Closing the socket now makes the kernel refuse newcomers, who then try another server.
    drop(listener);
    connections.stop();

    tokio::select! {
        biased;
        () = door.all_closed() => Closed { cut: 0 },
        () = shutdown.cutting() => {
            let closed = Closed { cut: door.open() };
            connections.cut();
            closed
        }
    }
}

async fn accept_all<A: App>(listener: &TcpListener, door: &Door, server: &Arc<Server<A>>) -> Infallible {
    let mut log = LogLimit::default();
    let mut pause = Pause::default();
    loop {
        if door.is_full() && log.allows() {
            let limit = server.settings.max_connections;
            tracing::warn!(limit, "every connection is taken; new ones wait until one closes");
        }
        let Some(place) = door.place().await else { continue };
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if concerns_one_connection(&error) => continue,
            Err(error) => {
                if log.allows() {
                    tracing::error!(%error, "cannot accept connections; trying again (is the limit of open files too low?)");
                }
                pause.wait().await;
                continue;
            }
        };
        pause = Pause::default();
        let Some(admission) = door.admit(place, peer.ip()) else {
            if log.allows() {
                let limit = server.settings.max_connections_per_ip;
                tracing::warn!(peer = %peer.ip(), limit, "connection refused: too many from one address");
            }
            continue;
        };
        let server = Arc::clone(server);
        tokio::spawn(async move {
            if let Err(reason) = server.connection(socket, peer, admission).await {
                tracing::debug!(%peer, %reason, "connection closed");
            }
        });
    }
}

/// What accept says of a client that left before it was accepted; not the listener's trouble.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn http_builder(settings: &ListenerSettings) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // Without a timer hyper silently drops its deadlines.
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_buf_size(HTTP1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams_per_connection)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_header_list_size(MAX_HEAD_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout);
    builder
}

struct Server<A> {
    http: auto::Builder<TokioExecutor>,
    tls: Option<TlsAcceptor>,
    app: A,
    settings: ListenerSettings,
    shutdown: Shutdown,
}

impl<A: App> Server<A> {
    /// One connection from accept to close.
    async fn connection(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        admission: Admission,
    ) -> Result<(), CloseReason> {
        let shutdown = self.shutdown.child();
        let opening = timeout(self.settings.handshake_timeout, self.open(socket, admission));
        let (transport, protocol) = tokio::select! {
            biased;
            opened = opening => opened.map_err(|_| CloseReason::Silent(self.settings.handshake_timeout))??,
            // It has asked for nothing yet, so nothing is lost.
            () = shutdown.stopping() => return Ok(()),
        };
        let body_timeout = (protocol == Protocol::Http1).then_some(self.settings.body_timeout);
        let app = PeerApp { app: self.app.clone(), peer, body_timeout };
        let mut connection = pin!(self.http.serve_connection_with_upgrades(TokioIo::new(transport), app));
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended.map_err(CloseReason::Http),
            () = shutdown.stopping() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            biased;
            ended = connection.as_mut() => ended.map_err(CloseReason::Http),
            () = shutdown.cutting() => Err(CloseReason::Cut),
        }
    }

    async fn open(&self, socket: TcpStream, admission: Admission) -> io::Result<(Transport, Protocol)> {
        // Frames are written whole; waiting to fill a segment only adds the peer's delayed ACK to each call.
        socket.set_nodelay(true)?;
        // Without it the kernel takes megabytes for a client that does not read, and then says for minutes that
        // nothing more fits, while the client does read.
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT)?;
        let stream = match &self.tls {
            Some(tls) => Stream::Tls(Box::new(tls.accept(socket).await?)),
            None => Stream::Plain(socket),
        };
        let pace = Pace { timeout: self.settings.write_timeout, min_rate: self.settings.min_write_rate };
        Transport::open(stream, pace, admission).await
    }
}

/// What answers requests: always ready, and cheap to clone. A [`Router`](axum::Router) is one.
pub trait App:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<A> App for A where
    A: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// The app as seen from one connection.
struct PeerApp<A> {
    app: A,
    peer: SocketAddr,
    /// Set for HTTP/1 only.
    body_timeout: Option<Duration>,
}

impl<A: App> hyper::service::Service<Request<Incoming>> for PeerApp<A> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = A::Future;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = match self.body_timeout {
            Some(limit) if !request.body().is_end_stream() => {
                request.map(|body| Body::new(TimedBody::new(body, limit)))
            }
            _ => request.map(Body::new),
        };
        request.extensions_mut().insert(ConnectInfo(self.peer));
        self.app.clone().call(request)
    }
}

/// Why a connection ended other than by its client's will. For the log.
#[derive(Debug)]
enum CloseReason {
    Silent(Duration),
    Socket(io::Error),
    Http(Box<dyn std::error::Error + Send + Sync>),
    Cut,
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(limit) => write!(f, "no TLS handshake or request began within {limit:?}"),
            Self::Socket(error) => error.fmt(f),
            Self::Http(error) => {
                error.fmt(f)?;
                // hyper says only "connection error"; the reason is below it.
                let mut source = error.source();
                while let Some(error) = source {
                    write!(f, ": {error}")?;
                    source = error.source();
                }
                Ok(())
            }
            Self::Cut => f.write_str("still open at the end of the shutdown's grace"),
        }
    }
}

/// Lets one message through per [`LOG_EVERY`].
#[derive(Default)]
struct LogLimit {
    last: Option<Instant>,
}

impl LogLimit {
    fn allows(&mut self) -> bool {
        let allowed = self.last.is_none_or(|last| last.elapsed() >= LOG_EVERY);
        if allowed {
            self.last = Some(Instant::now());
        }
        allowed
    }
}

/// The wait between accepts while the system lacks file descriptors or memory: 5 ms, doubling up to 1 s.
struct Pause {
    next: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: Duration::from_millis(5) }
    }
}

impl Pause {
    async fn wait(&mut self) {
        sleep(self.next).await;
        self.next = (self.next * 2).min(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests;
