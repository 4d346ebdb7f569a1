//! What operators ordered, and what a restart keeps of it.

use std::sync::Arc;

use crate::clock::Timestamp;

/// Tasks of a method are taken and wait until the order is lifted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// The method, in all its versions.
    pub method: Arc<str>,
    /// For people.
    pub reason: String,
    /// Who ordered it, as they said; nobody checks it.
    pub by: String,
    /// Since when it holds.
    pub since: Timestamp,
}

/// A worker's process was asked to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The worker.
    pub worker_id: Arc<str>,
    /// Its process: a new one of the same name is not meant. Never empty.
    pub boot_id: String,
    /// Told to it.
    pub reason: String,
    /// Since when it holds.
    pub since: Timestamp,
}
