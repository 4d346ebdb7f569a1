//! What the client does, a file for each kind. Every answer is checked; a wrong one ends the run, unless
//! counting wrong ones is what the load is for.

use crate::{BenchError, case::Load, result::Sample, stage::Stage};

mod backlog;
mod before;
mod idle;
mod legacy;
mod overload;
mod pending;
mod pipe;
mod rest;
mod restart;
mod slow;
mod stored;
mod submit;
mod unary;

pub(crate) use before::before;
pub(crate) use legacy::workers as legacy_workers;
pub(crate) use pending::PendingPipe;

/// Runs a load against the server and workers of the stage, and says what came out.
///
/// # Errors
/// [`BenchError::Failed`] for any wrong answer, or a refusal that the load does not expect.
pub(crate) async fn run(load: &Load, stage: &mut Stage<'_>) -> Result<Sample, BenchError> {
    match *load {
        Load::Pipe { caller, in_flight, durable } => pipe::run(stage, caller, in_flight, durable).await,
        Load::Unary { in_flight, connections } => unary::run(stage, in_flight, connections).await,
        Load::Rest { in_flight } => rest::run(stage, in_flight).await,
        Load::Legacy { in_flight, pause, calls } => legacy::run(stage, in_flight, pause, calls).await,
        Load::Backlog { queued } => backlog::run(stage, queued).await,
        Load::Stored { in_flight } => stored::run(stage, in_flight).await,
        Load::Submit { in_flight } => submit::run(stage, in_flight).await,
        Load::Idle { kind, connections } => idle::run(stage, kind, connections).await,
        Load::Overload { way, times } => overload::run(stage, way, times).await,
        Load::Restart { tasks } => restart::run(stage, tasks).await,
        Load::Slow { callers } => slow::run(stage, callers).await,
    }
}
