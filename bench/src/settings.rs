//! What one run of `crewcall bench` was asked for.

use std::{path::PathBuf, time::Duration};

use crate::case::Mode;

/// Everything the command line says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The `crewcall` binary: server, floors and workers are started from it.
    pub binary: PathBuf,
    /// Which modes, in order.
    pub modes: Vec<Mode>,
    /// Calls in flight, for the modes that vary it; empty: as each mode does.
    pub in_flight: Vec<u32>,
    /// Connections of unary calls; empty: 1 and 4.
    pub connections: Vec<u32>,
    /// Length of a window.
    pub seconds: Duration,
    /// Before it.
    pub warm_up: Duration,
    /// How long an overload goes on.
    pub overload: Duration,
    /// How often each case runs.
    pub pairs: u32,
    /// Whether the floors run too.
    pub compare: bool,
    /// A running server to measure instead of starting one.
    pub target: Option<String>,
    /// How large the large things are.
    pub size: Size,
    /// The command as typed, for the record.
    pub command: String,
}

/// How large the large things are: queues, crews, crowds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// As the modes say.
    Full,
    /// A thousandth or so: to see that everything works.
    Tiny,
}

impl Size {
    /// So many, or a thousandth of it, at least one.
    pub fn of(self, full: u32) -> u32 {
        match self {
            Self::Full => full,
            Self::Tiny => (full / 1000).max(1),
        }
    }

    /// So long, or a hundredth of it.
    pub fn time(self, full: Duration) -> Duration {
        match self {
            Self::Full => full,
            Self::Tiny => full / 100,
        }
    }
}
