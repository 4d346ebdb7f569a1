//! What the client does, a file for each kind. Every answer is checked; a wrong one ends the run, unless
//! counting wrong ones is what the load is for.

use crate::{BenchError, case::Load, result::Sample, stage::Stage};

/// Runs a load against the servers and workers of the stage, and says what came out.
///
/// # Errors
/// [`BenchError::Failed`] for any wrong answer, or a refusal that the load does not expect.
pub(crate) async fn run(load: &Load, stage: &mut Stage) -> Result<Sample, BenchError> {
    let _ = (load, stage);
    Err(BenchError::Usage("not yet".to_owned()))
}
