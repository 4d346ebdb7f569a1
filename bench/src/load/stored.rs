//! Calls beside finished tasks that are kept, and what people look at meanwhile.

use std::time::Instant;

use crewcall_sdk::{CallError, proto::TaskFilter};

use crate::{
    BenchError,
    case::{Caller, Extra},
    load::{before::connect, pipe},
    result::{Sample, Spread},
    stage::Stage,
};

/// The median of so many looks.
const LOOKS: u32 = 101;
const PAGE: u32 = 100;

pub(crate) async fn run(stage: &mut Stage<'_>, in_flight: u32) -> Result<Sample, BenchError> {
    let mut sample = pipe::run(stage, Caller::Awaited, in_flight, false).await?;
    let client = connect(stage.url()).await?;
    let stats = timed(async || client.stats().await).await?;
    let list = timed(async || client.list(TaskFilter::default(), PAGE, "").await).await?;
    for (extra, micros) in [(Extra::StatsUs, stats), (Extra::ListUs, list)] {
        sample.extra.insert(extra.as_str().to_owned(), micros);
    }
    Ok(sample)
}

/// The median in microseconds.
async fn timed<T>(look: impl AsyncFn() -> Result<T, CallError>) -> Result<f64, BenchError> {
    let mut took = Vec::new();
    for _ in 0..LOOKS {
        let start = Instant::now();
        look().await.map_err(|error| BenchError::failed("stored", error))?;
        took.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Spread::of(took).map_or(0.0, |spread| spread.median))
}
