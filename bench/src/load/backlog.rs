//! Calls that wait in the queue of busy workers. The workers take fewer at once than there are calls, and each
//! answer makes a new call: the queue stays as long as it is while it moves.

use std::time::{Duration, Instant};

use crewcall_sdk::Client;
use tokio::task::JoinSet;

use crate::{
    BenchError,
    load::pipe::{Work, window},
    meter::Meter,
    result::Sample,
    stage::Stage,
    task,
};

/// A stream holds 65,536 calls; the same number of streams for every length, so that only the length differs.
const STREAMS: u32 = 16;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) async fn run(stage: &mut Stage<'_>, queued: u32) -> Result<Sample, BenchError> {
    let meter = Meter::new()?;
    let mut callers = JoinSet::new();
    let streams = STREAMS.min(queued.max(1));
    for stream in 0..streams {
        let in_flight = queued / streams + u32::from(stream < queued % streams);
        let work = Work { methods: stage.methods(), size: task::SMALL, durable: false };
        callers.spawn(window(stage.url().to_owned(), in_flight, work, meter.recorder()));
    }
    filled(stage.url(), u64::from(queued), &mut callers).await?;
    stage.measure(&meter, callers).await
}

/// Waits until the queue is as long as it will be. Answered calls that have not been replaced yet are missing.
async fn filled(
    url: &str,
    queued: u64,
    callers: &mut JoinSet<Result<(), BenchError>>,
) -> Result<(), BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::failed("backlog", error);
    let client = Client::connect(url).await.map_err(|error| failed(&error))?;
    let start = Instant::now();
    loop {
        let stats = client.stats().await.map_err(|error| failed(&error))?;
        if (stats.ready + stats.leased) * 10 >= queued * 9 {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(failed(&format_args!("{stats:?} after {PATIENCE:?}; {queued} were to be queued")));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(ended) = callers.join_next() => {
                ended.map_err(|error| failed(&error))??;
                return Err(failed(&"a caller ended before the queue was filled"));
            }
        }
    }
}
