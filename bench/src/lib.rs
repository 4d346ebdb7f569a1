//! `crewcall bench`: what a full scheduler costs beside a bare relay on the same stack.
//!
//! Absolute rates say more about the machine than about the program, so everything is measured in pairs: the
//! product, and right before or after it a *floor* that moves the same bytes through the same libraries and
//! does nothing else. Ratios are taken pair by pair, and the order within a pair is swapped each time.
//!
//! Server, workers and client are three processes: the operating system's accounting then says what the server
//! alone took. Every result is checked against what was asked.
//!
//! # Layout
//! - [`case`]: what there is to measure; `matrix`: the cases of each mode and the figures they are held to.
//! - [`run()`]: one pair after the other; `stage`: one run of a pair; [`process`]: its processes; [`worker`]: the
//!   one with the workers.
//! - `load`: what the client does, a file for each kind; [`meter`]: how it is counted; [`task`]: what is called.
//! - [`floor`]: the bare servers, a file for each.
//! - [`result`]: what came out, as JSON; `table`: the same for a person;
//!   `record`: the same for the project, in `BENCHMARKS.md` and plots.

pub mod case;
mod channel;
mod conditions;
mod files;
pub mod floor;
mod http1;
mod load;
mod matrix;
pub mod meter;
pub mod process;
mod record;
pub mod result;
mod run;
pub mod settings;
mod stage;
mod table;
pub mod task;
mod websocket;
pub mod worker;

pub use record::{record, recordable};
pub use result::Report;
pub use run::{estimate, run};
pub use settings::Settings;
pub use table::table;

/// Why a measurement has no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// What was asked for cannot be measured; says why.
    #[error("{0}")]
    Usage(String),
    /// A process of the benchmark did not start, or ended before it should.
    #[error("{what}: {why}")]
    Process {
        /// Which one.
        what: String,
        /// What it said or how it ended.
        why: String,
    },
    /// A call that must succeed did not. No figure is worth having then.
    #[error("{case}: {why}")]
    Failed {
        /// The load, or the case, it happened in.
        case: String,
        /// The answer that was wrong, or the error.
        why: String,
    },
    /// A file, a pipe or a socket.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl BenchError {
    /// A wrong answer, or none.
    pub fn failed(case: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Failed { case: case.into(), why: why.to_string() }
    }
}
