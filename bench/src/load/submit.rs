//! Durable submissions: each is acknowledged once it is on the disk. Nobody works on them, so what is measured
//! is the way to the disk and nothing behind it.

use std::time::Instant;

use crewcall_sdk::Client;
use tokio::task::JoinSet;

use crate::{BenchError, case::Server, meter::Meter, result::Sample, stage::Stage, task};

/// Tasks in flight are spread over so many requests: a request is a list.
const REQUESTS: u32 = 16;

pub(crate) async fn run(stage: &mut Stage<'_>, in_flight: u32) -> Result<Sample, BenchError> {
    let meter = Meter::new()?;
    let mut callers = JoinSet::new();
    let failed = |error: &dyn std::fmt::Display| BenchError::failed("submit", error);
    let client = Client::connect(stage.url()).await.map_err(|error| failed(&error))?;
    // A floor has no ids to give.
    let has_ids = !matches!(stage.arm.server, Server::Floor(_));
    let requests = REQUESTS.min(in_flight.max(1));
    for request in 0..requests {
        let list = u64::from(in_flight / requests + u32::from(request < in_flight % requests));
        let (client, mut recorder) = (client.clone(), meter.recorder());
        callers.spawn(async move {
            let mut numbers = (u64::from(request)..).step_by(requests as usize);
            while recorder.goes_on() {
                let tasks = numbers
                    .by_ref()
                    .take(usize::try_from(list).unwrap_or(1))
                    .map(|number| task::task("add", number, task::STORED, true))
                    .collect();
                let start = Instant::now();
                let results = client.submit_many(tasks).await.map_err(|error| failed(&error))?;
                let took = start.elapsed();
                for result in results {
                    match result {
                        Ok(submitted) if submitted.task_id.is_empty() != has_ids && !submitted.attached => {
                            recorder.record_duration(took);
                        }
                        other => return Err(failed(&format_args!("a task was answered {other:?}"))),
                    }
                }
            }
            Ok(())
        });
    }
    stage.measure(&meter, callers).await
}
