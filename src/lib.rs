//! crewcall

pub mod clock;
pub mod engine;
pub mod error;
pub mod handle;
pub mod listener;
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
