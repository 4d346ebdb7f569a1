//! Client and worker for crewcall: call any function on any worker, in any language.
//!
//! ```no_run
//! # async fn run() -> Result<(), crewcall_sdk::CallError> {
//! let client = crewcall_sdk::Client::connect("http://127.0.0.1:8080").await?;
//! let sum: i64 = client.call("add", &serde_json::json!({"a": 1, "b": 2})).await?;
//! # Ok(()) }
//! ```
//!
//! # Layout
//! - [`client`]: one call, one submission, everything one may do with a task afterwards.
//! - [`pipe`]: the fast lane, many calls in flight over one stream.
//! - [`watch`]: follows tasks and picks up again where a broken connection left off.
//! - [`worker`]: serves methods over one outbound stream.
//! - [`options`]: how a task is to be run. [`error`]: what can go wrong, by what the caller can do about it.
//! - [`proto`]: the wire contract as generated, for everything the rest does not cover.

mod admin;
mod batch;
mod channel;
pub mod client;
pub mod error;
#[cfg(test)]
mod fake_server;
pub mod options;
mod payload;
pub mod pipe;
pub mod watch;
pub mod worker;

/// The messages and clients generated from `proto/crewcall/v1`; their documentation is there.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("crewcall.v1");
}

pub use client::{Client, Submitted};
pub use error::{CallError, Refusal};
pub use options::{NewTask, Payload, TaskBuilder, TaskOptions};
pub use pipe::{Pipe, PipeReply};
pub use watch::{Watch, WatchEvent, WatchTarget};
pub use worker::{
    Context, HandlerError, MethodSpec, Worker, WorkerBuilder, WorkerError, WorkerHandle, WorkerState,
    WorkerStatus,
};
