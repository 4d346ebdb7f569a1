//! A fast method on one worker, timed, while callers wait for a slow one on another.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::{
    BenchError,
    case::{Crew, WorkerKind},
    load::{
        before::connect,
        pipe::{Work, awaited},
    },
    meter::Meter,
    result::Sample,
    stage::Stage,
    task,
};

/// Fast calls in flight.
const FAST: u32 = 16;
/// How long the slow method takes.
const SLOW: Duration = Duration::from_secs(1);

pub(crate) async fn run(stage: &mut Stage<'_>, callers: u32) -> Result<Sample, BenchError> {
    let crew =
        Crew { first_method: 1, concurrency: callers.max(1), busy: SLOW, ..Crew::one(WorkerKind::Sdk) };
    let slow_crew = stage.hire(&crew).await?;
    let pipe = connect(stage.url()).await?.pipe();
    let mut slow = JoinSet::new();
    for number in 0..u64::from(callers) {
        let pipe = pipe.clone();
        slow.spawn(async move {
            loop {
                let reply = pipe.call_raw(task::task("add1", number, task::SMALL, false)).outcome().await;
                let checked = reply.map_err(|error| error.to_string());
                if let Err(why) = checked.and_then(|outcome| task::check(number, &outcome)) {
                    return BenchError::failed("slow method", why);
                }
            }
        });
    }
    let meter = Meter::new()?;
    let mut fast = JoinSet::new();
    let work = Work { methods: stage.methods(), size: task::SMALL, durable: false };
    awaited(stage.url(), FAST, &work, &meter, &mut fast).await?;
    let sample = tokio::select! {
        sample = stage.measure(&meter, fast) => sample?,
        Some(ended) = slow.join_next() => {
            return Err(ended.unwrap_or_else(|error| BenchError::failed("slow method", error)));
        }
    };
    drop(slow_crew);
    Ok(sample)
}
