//! `crewcall serve`: from settings to a listening server, and from a signal to an orderly end.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use axum::Router;
use crewcall::{
    engine::{self, EngineError, EngineTask},
    handle::Handle,
    listener::{self, BindError, tls},
    rpc::{self, RpcSettings},
    shutdown::{Shutdown, Signals},
    store::{EmbeddedStore, MemoryStore, Store},
};
use crewcall_gateway::Gateway;
use tokio::task::{JoinError, JoinHandle};
use tonic::service::Routes;

use crate::{config::Config, exit::Exit, log, open_files};

/// Runs the server until a signal ends it.
pub(crate) fn run(config: Config) -> Exit {
    run_with(config, |_| None)
}

/// What runs in the same process and needs the server. It must end at the signal that ends the server, which waits
/// for it.
pub(crate) type Companion = JoinHandle<()>;

/// [`run`]; `ready` is told the address once it is open, within the server's runtime.
pub(crate) fn run_with(config: Config, ready: impl FnOnce(SocketAddr) -> Option<Companion>) -> Exit {
    log::start(&config.log, config.log_format);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ServeError::System)
        .and_then(|runtime| runtime.block_on(serve(config, ready)));
    match outcome {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit()
        }
    }
}

/// Why the server did not start, or did not end in order.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("{0}")]
    Settings(String),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("cannot start: {0}")]
    System(io::Error),
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A panic in a loop that must not end. Its message is in the log.
    #[error("a part of the server failed: {0}")]
    Part(#[from] JoinError),
}

impl ServeError {
    fn exit(&self) -> Exit {
        match self {
            Self::Settings(_) | Self::Tls(_) => Exit::Usage,
            Self::Bind(_) => Exit::Bind,
            Self::Engine(EngineError::Store(error)) => Exit::from(error),
            Self::Engine(EngineError::Row(_)) => Exit::StoreDamaged,
            Self::System(_) | Self::Engine(_) | Self::Part(_) => Exit::Failure,
        }
    }
}

async fn serve(
    config: Config,
    ready: impl FnOnce(SocketAddr) -> Option<Companion>,
) -> Result<Exit, ServeError> {
    // Everything that can be wrong with the settings is found before anybody is told that the server is up.
    let tls = match config.tls().map_err(ServeError::Settings)? {
        Some((cert, key)) => Some(tls::load(cert, key)?),
        None => None,
    };
    let limits = config.limits().map_err(ServeError::Settings)?;
    // From here on a signal ends the server in order, however early it comes.
    let mut signals = Signals::install().map_err(ServeError::System)?;
    open_files::raise_limit();
    let listener = listener::bind(&config.listen).await?;
    let address = listener.local_addr().map_err(ServeError::System)?;

    let store: Box<dyn Store> = if config.ephemeral {
        Box::new(MemoryStore::default())
    } else {
        Box::new(EmbeddedStore::open(&config.data_dir, config.store()).map_err(EngineError::Store)?)
    };
    let described = store.describe();
    let (handle, engine) = engine::start(limits, store)?;
    let shutdown = Shutdown::new();
    let rpc = RpcSettings {
        worker_key: config.worker_key.as_ref().map(|key| key.expose().to_owned()),
        shutdown: shutdown.clone(),
    };
    let gateway = Gateway::new(handle.clone(), config.gateway(shutdown.clone()));
    let app = gateway.front(app(rpc::routes(&handle, &rpc).await, gateway.router()));
    warn_if_open(&config, address);
    announce(address, tls.is_some(), &described);
    let edges = tokio::spawn(listener::serve(listener, tls, app, config.listener(), shutdown.clone()));
    let companion = ready(address);
    Running { companion, shutdown, edges, handle, engine, grace: config.shutdown_grace }
        .until_ended(&mut signals)
        .await
}

/// gRPC and HTTP as one router, with one fallback that answers each in its own words.
fn app(mut services: Routes, gateway: Router) -> Router {
    // tonic's routes come with a fallback of their own, and axum refuses to merge two.
    std::mem::take(services.axum_router_mut())
        .reset_fallback()
        .merge(gateway.clone())
        .fallback_service(crewcall_gateway::fallback(gateway))
}

/// Every long-lived part of the server, started together and stopped together.
struct Running {
    companion: Option<Companion>,
    shutdown: Shutdown,
    edges: JoinHandle<listener::Closed>,
    handle: Handle,
    engine: EngineTask,
    grace: Duration,
}

impl Running {
    /// Waits for a signal, then ends in order: nothing new comes in, the workers finish and the callers are
    /// answered, the connections close, the engine stops. What is not done within the grace is cut; a second
    /// signal ends everything at once.
    async fn until_ended(mut self, signals: &mut Signals) -> Result<Exit, ServeError> {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            // Neither ends by itself unless it failed.
            ended = &mut self.engine => return ended?.map(|()| Exit::Failure).map_err(Into::into),
            ended = &mut self.edges => return ended.map(|_| Exit::Failure).map_err(Into::into),
        };
        tracing::info!(%signal, grace = ?self.grace, "stopping: finishing what runs; a second signal ends at once");
        tokio::select! {
            ended = self.end() => ended,
            signal = signals.next() => {
                tracing::warn!(%signal, "ended at once by a second signal");
                Ok(Exit::Interrupted)
            }
        }
    }

    async fn end(self) -> Result<Exit, ServeError> {
        let Self { companion, shutdown, mut edges, handle, engine, grace } = self;
        let deadline = tokio::time::Instant::now() + grace;
        if let Some(companion) = companion {
            // Told by the server that it stops, it would look for the next one, and complain that there is none.
            tokio::time::timeout_at(deadline, companion).await.ok();
        }
        shutdown.stop();
        if tokio::time::timeout_at(deadline, handle.shutdown()).await.is_err() {
            tracing::warn!("some tasks still run after the grace; their workers may come back with them");
        }
        // Stores what was decided until now, and ends the streams of workers and watchers, who would stay.
        handle.halt().await;
        engine.await??;
        let closed = match tokio::time::timeout_at(deadline, &mut edges).await {
            Ok(closed) => closed?,
            Err(_) => {
                shutdown.cut();
                edges.await?
            }
        };
        if closed.cut > 0 {
            tracing::warn!(
                connections = closed.cut,
                "closed connections that were still open after the grace"
            );
        }
        tracing::info!("stopped");
        Ok(Exit::Ok)
    }
}

/// Anyone who reaches an open port can register a worker and be given other people's tasks.
fn warn_if_open(config: &Config, address: SocketAddr) {
    if !address.ip().is_loopback() && config.worker_key.is_none() {
        eprintln!(
            "WARNING: {address} can be reached from other machines and there is no worker key: anyone who \
             connects can become a worker and receive tasks.\n\
             WARNING: set CREWCALL_WORKER_KEY, or listen on 127.0.0.1."
        );
    }
}

/// Tells on stdout where to find the server, one fact per line. Scripts parse these lines: they are part of
/// the public contract.
fn announce(address: SocketAddr, tls: bool, store: &str) {
    let scheme = if tls { "https" } else { "http" };
    let version = env!("CARGO_PKG_VERSION");
    let lines = format!(
        "crewcall {version} listening on {scheme}://{address} (gRPC and HTTP)\n\
         web page: {scheme}://{address}/\n\
         store: {store}\n"
    );
    let mut stdout = io::stdout().lock();
    // A parent that closed our stdout does not want to know; the server runs all the same.
    let _ = stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush());
}
