//! The real binary over real sockets.

// clippy.toml lets `#[test]` functions panic, which is how they fail; their helpers here do the same.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod abuse;
mod backlog;
mod cli;
mod crash;
mod crowd;
#[cfg(target_os = "linux")]
mod faults;
mod grpc;
mod harness;
mod http;
mod json_worker;
mod legacy;
mod operations;
mod parity;
mod raw;
mod rest;
mod serve;
mod slow_readers;
