//! What the server holds before the first call is timed.

use std::time::{Duration, Instant};

use crewcall_sdk::{Client, NewTask, proto::StatsResponse};

use crate::{BenchError, case::Before, stage::Stage, task};

/// Tasks in one request.
const LIST: usize = 1000;
/// Requests at once.
const REQUESTS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Puts there what the arm says.
///
/// # Errors
/// When a task is refused.
pub(crate) async fn before(stage: &mut Stage<'_>) -> Result<(), BenchError> {
    match stage.arm.before {
        Before::Nothing => Ok(()),
        Before::Finished(count) => {
            let client = connect(stage.url()).await?;
            submit(&client, count, |number| {
                let mut task = task::task("add", number, task::SMALL, false);
                task.options = Some(crewcall_sdk::TaskOptions {
                    durability: crewcall_sdk::proto::Durability::Ephemeral.into(),
                    retention_ms: 3_600_000,
                    ..Default::default()
                });
                task
            })
            .await?;
            until(&client, |stats| stats.finished >= u64::from(count)).await?;
            Ok(())
        }
    }
}

/// A client of the server under test.
pub(super) async fn connect(url: &str) -> Result<Client, BenchError> {
    Client::connect(url).await.map_err(|error| BenchError::failed("preparation", error))
}

/// Hands in so many tasks; each must be accepted.
pub(super) async fn submit(
    client: &Client,
    count: u32,
    make: impl Fn(u64) -> NewTask,
) -> Result<(), BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::failed("preparation", error);
    let numbers: Vec<u64> = (0..u64::from(count)).collect();
    let mut lists =
        numbers.chunks(LIST).map(|list| list.iter().map(|number| make(*number)).collect::<Vec<_>>());
    let mut requests = tokio::task::JoinSet::new();
    loop {
        while requests.len() < REQUESTS
            && let Some(list) = lists.next()
        {
            let client = client.clone();
            requests.spawn(async move { client.submit_many(list).await });
        }
        let Some(answered) = requests.join_next().await else { return Ok(()) };
        let results = answered.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        for result in results {
            result.map_err(|refusal| failed(&refusal))?;
        }
    }
}

/// Waits until the server's counts are as wanted.
pub(super) async fn until(
    client: &Client,
    wanted: impl Fn(&StatsResponse) -> bool,
) -> Result<StatsResponse, BenchError> {
    let start = Instant::now();
    loop {
        let stats = client.stats().await.map_err(|error| BenchError::failed("preparation", error))?;
        if wanted(&stats) {
            return Ok(stats);
        }
        if start.elapsed() > PATIENCE {
            return Err(BenchError::failed("preparation", format!("still {stats:?} after {PATIENCE:?}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
