//! The floors: bare servers on the same libraries and the same messages, which move the bytes and do nothing
//! else. They are the limit of the stack, not products: no ids to keep, no timeouts, no credits, no recovery.
//!
//! A floor runs as a process of the same binary (`crewcall bench floor-server NAME`), so compiler, allocator and
//! libraries are those of the server it is compared with. It listens on a free port of 127.0.0.1, says so in one
//! line on stdout, `floor NAME listening on http://ADDRESS`, and ends when its stdin does.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use axum::serve::{Listener, ListenerExt as _};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::BenchError;

mod idle;
mod legacy;
mod log;
mod outbox;
mod relay;
mod rest;

/// Which floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Floor {
    /// Two hops over gRPC: `Pipe` and unary `Call` in front, `Session` behind; a pending map and round robin.
    Relay,
    /// [`Relay`](Self::Relay) and one log: `Submit`, and durable calls of `Pipe`, are acknowledged once a group
    /// of records is appended and fdatasynced; the outcome of a durable call is logged too.
    Log,
    /// `POST /v1/call/{method}` in front, a gRPC `Session` behind.
    Rest,
    /// The legacy messages: `POST /api/execute`, then a held `GET /api/result/{id}`; a WebSocket worker behind.
    Legacy,
    /// A `Session` that answers `hello` with `welcome` and then holds the stream: an idle gRPC worker.
    IdleGrpc,
    /// A WebSocket that is held, with read and write buffers of 4 KiB: an idle WebSocket worker.
    IdleWebsocket,
}

impl Floor {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Relay, Self::Log, Self::Rest, Self::Legacy, Self::IdleGrpc, Self::IdleWebsocket];

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Log => "log",
            Self::Rest => "rest",
            Self::Legacy => "legacy",
            Self::IdleGrpc => "idle-grpc",
            Self::IdleWebsocket => "idle-websocket",
        }
    }

    /// The floor of that [`name`](Self::name).
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|floor| floor.name() == name)
    }
}

/// What a floor process is told.
#[derive(Clone, Debug)]
pub struct FloorSettings {
    /// Which one.
    pub floor: Floor,
    /// Where [`Floor::Log`] puts its log; the others need none.
    pub data_dir: Option<PathBuf>,
}

/// Runs a floor until stdin ends.
///
/// # Errors
/// When it cannot listen, or [`Floor::Log`] cannot write its log.
pub async fn serve(settings: FloorSettings) -> Result<(), BenchError> {
    let log = match (settings.floor, &settings.data_dir) {
        (Floor::Log, None) => {
            return Err(BenchError::Usage("the floor log needs a data directory".to_owned()));
        }
        (Floor::Log, Some(directory)) => {
            std::fs::create_dir_all(directory)?;
            Some(directory.join("log"))
        }
        _ => None,
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    println!("floor {} listening on http://{address}", settings.floor.name());
    tokio::select! {
        ended = serve_on(settings.floor, listener, log.as_deref()) => ended?,
        () = end_of_stdin() => {}
    }
    Ok(())
}

async fn serve_on(floor: Floor, listener: TcpListener, log: Option<&Path>) -> io::Result<()> {
    match floor {
        Floor::Relay | Floor::Log => relay::serve(listener, log).await,
        Floor::Rest => rest::serve(listener).await,
        Floor::Legacy => legacy::serve(listener).await,
        Floor::IdleGrpc => idle::serve_grpc(listener).await,
        Floor::IdleWebsocket => idle::serve_websocket(listener).await,
    }
}

/// A thread of its own: tokio's stdin would keep the runtime from ending.
async fn end_of_stdin() {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        // An error is an end as well.
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
        ended.send(()).ok();
    });
    end.await.ok();
}

/// Axum leaves Nagle's algorithm on.
fn without_delay(listener: TcpListener) -> impl Listener<Addr = SocketAddr> {
    listener.tap_io(|stream| {
        // Fails only for a connection that is gone.
        stream.set_nodelay(true).ok();
    })
}

#[cfg(test)]
mod tests;
