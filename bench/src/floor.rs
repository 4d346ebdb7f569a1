//! The floors: bare servers on the same libraries and the same messages, which move the bytes and do nothing
//! else. They are the limit of the stack, not products: no ids to keep, no timeouts, no credits, no recovery.
//!
//! A floor runs as a process of the same binary (`crewcall bench floor-server NAME`), so compiler, allocator and
//! libraries are those of the server it is compared with. It listens on a free port of 127.0.0.1, says so in one
//! line on stdout, `floor NAME listening on http://ADDRESS`, and ends when its stdin does.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::BenchError;

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
    Err(BenchError::Usage(format!("there is no floor {} yet", settings.floor.name())))
}
