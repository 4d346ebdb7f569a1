//! The rules, checked without a process or a socket; and the house rules.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking; the settings for tests do not reach its helpers"
)]

mod lifecycle;
mod model;
mod simulation;
mod store;
mod tidy;
