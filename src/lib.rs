//! crewcall: call any function on any worker, in any language.
//!
//! Workers connect outbound, say which methods they serve and how much they can take. Callers call a method
//! by name. The scheduler picks the least-loaded worker that serves it, pushes the task down the worker's
//! stream and pushes the outcome back. This crate is all of that except the HTTP edge (`gateway/`) and the
//! binary (`cli/`).
//!
//! # A task's life
//!
//! ```text
//!  submit ──▶ ready ──▶ leased ──▶ finished
//! ```
//!
//! and in full:
//!
//! ```text
//!            run_at ahead                 credit, least loaded
//!  submit ──────────────▶ delayed ──▶ ready ─────────────▶ leased ───▶ finished   succeeded
//!     │                      ▲     ▲    ▲ ▲                 │ │ │ └──▶ dead       failed, no attempt left
//!     │                      │     │    │ └── released, ────┘ │ └────▶ cancelled   by a caller, from any state
//!     └──────────────────────┼─────┘    │     recalled,       └──────▶ expired     a deadline, from any state
//!          at once           │          │     not started
//!                            │          │
//!                            └──────────┼──── attempt failed, another is allowed (backoff)
//!                                       └──── Retry withdraws an outcome
//! ```
//!
//! # The straight line
//!
//! edge ([`rpc`], or the gateway) → [`handle`] → [`engine`] → [`scheduler`] → engine → [`outbox`] → the worker's
//! stream, and the same way back. Edges translate; rules live in the scheduler; I/O lives in engine and store.
//!
//! # Layout
//!
//! - [`task`]: the nouns: task, payload, options, outcome, method.
//! - [`scheduler`]: all rules; pure: commands and the time in, rows and effects out.
//! - [`engine`]: one state around it, worked off by whoever brings a message. [`handle`]: the only door to it.
//!   [`outbox`]: the way out of it.
//! - [`store`]: where durable facts lie; [`row`]: their form.
//! - [`rpc`]: the gRPC edge. [`proto`]: the contract it speaks.
//! - [`listener`]: the port, guarded. [`shutdown`]: stopping in order.
//! - [`order`]: what operators ordered and a restart keeps.
//! - [`clock`]: time as an input. [`error`]: why something was refused: one table of reasons.

pub mod clock;
pub mod engine;
pub mod error;
pub mod handle;
pub mod listener;
pub mod order;
pub mod outbox;
pub mod row;
pub mod rpc;
pub mod scheduler;
pub mod shutdown;
pub mod store;
pub mod task;

/// The wire contract, generated from `proto/crewcall/v1`.
pub mod proto {
    #![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, rust_2018_idioms)]
    tonic::include_proto!("crewcall.v1");
    /// For server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("crewcall_descriptor");
}
