//! `crewcall serve`: from settings to a listening server, and from a signal to an orderly end.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use axum::Router;
use crewcall::{
    listener::{self, BindError, tls},
    shutdown::{Shutdown, Signals},
};
use tonic::service::Routes;

use crate::{config::Config, exit::Exit, log};

/// Runs the server until a signal ends it.
pub(crate) fn run(config: Config) -> Exit {
    log::start(&config.log, config.log_format);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)
        .and_then(|runtime| runtime.block_on(serve(config)));
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
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("the listener failed: {0}")]
    Listener(#[from] tokio::task::JoinError),
}

impl ServeError {
    fn exit(&self) -> Exit {
        match self {
            Self::Settings(_) | Self::Tls(_) => Exit::Usage,
            Self::Bind(_) => Exit::Bind,
            Self::Runtime(_) | Self::Listener(_) => Exit::Failure,
        }
    }
}

async fn serve(config: Config) -> Result<Exit, ServeError> {
    // Everything that can be wrong with the settings is found before anybody is told that the server is up.
    let tls = match config.tls().map_err(ServeError::Settings)? {
        Some((cert, key)) => Some(tls::load(cert, key)?),
        None => None,
    };
    // From here on a signal ends the server in order, however early it comes.
    let signals = Signals::install().map_err(ServeError::Runtime)?;
    let listener = listener::bind(&config.listen).await?;
    let address = listener.local_addr().map_err(ServeError::Runtime)?;

    let shutdown = Shutdown::new();
    let app = app(services().await, crewcall_gateway::Settings { shutdown: shutdown.clone() });
    warn_if_open(&config, address);
    announce(address, tls.is_some());
    let serving = tokio::spawn(listener::serve(listener, tls, app, config.listener(), shutdown.clone()));
    end_in_order(signals, shutdown, serving, async || {}, config.shutdown_grace).await
}

/// The gRPC services.
async fn services() -> Routes {
    Routes::default()
}

/// gRPC and HTTP as one router, with one fallback that answers each in its own words.
fn app(mut services: Routes, settings: crewcall_gateway::Settings) -> Router {
    // tonic's routes come with a fallback of their own, and axum refuses to merge two.
    std::mem::take(services.axum_router_mut())
        .reset_fallback()
        .merge(crewcall_gateway::router(settings))
        .fallback(crewcall_gateway::fallback)
}

/// Waits for a signal, then ends edges first: nothing new comes in, `drain` lets the workers finish and answers the
/// callers, the connections close. All of it within `grace`; a second signal ends everything at once.
async fn end_in_order(
    mut signals: Signals,
    shutdown: Shutdown,
    mut serving: tokio::task::JoinHandle<listener::Closed>,
    drain: impl AsyncFnOnce(),
    grace: Duration,
) -> Result<Exit, ServeError> {
    let signal = tokio::select! {
        signal = signals.next() => signal,
        ended = &mut serving => return ended.map(|_| Exit::Ok).map_err(Into::into),
    };
    tracing::info!(%signal, ?grace, "stopping: finishing what runs; a second signal ends at once");
    shutdown.stop();
    let orderly = async {
        drain().await;
        (&mut serving).await
    };
    let closed = tokio::select! {
        closed = tokio::time::timeout(grace, orderly) => closed,
        signal = signals.next() => {
            tracing::warn!(%signal, "ended at once by a second signal");
            return Ok(Exit::Interrupted);
        }
    };
    let closed = match closed {
        Ok(closed) => closed?,
        Err(_) => {
            shutdown.cut();
            serving.await?
        }
    };
    if closed.cut > 0 {
        tracing::warn!(connections = closed.cut, "closed connections that were still open after the grace");
    }
    tracing::info!("stopped");
    Ok(Exit::Ok)
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

/// Tells on stdout where to find the server, one fact per line. Scripts parse these lines: they are part of the
/// public contract.
fn announce(address: SocketAddr, tls: bool) {
    let scheme = if tls { "https" } else { "http" };
    let version = env!("CARGO_PKG_VERSION");
    let lines = format!(
        "crewcall {version} listening on {scheme}://{address} (gRPC and HTTP)\n\
         web page: {scheme}://{address}/\n\
         store: memory (nothing survives a restart)\n"
    );
    let mut stdout = io::stdout().lock();
    // A parent that closed our stdout does not want to know; the server runs all the same.
    let _ = stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush());
}
