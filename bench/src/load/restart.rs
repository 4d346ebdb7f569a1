//! kill -9 over live durable tasks, and a new start: until the server answers again and names every one of them.

use std::{fs, path::Path, time::Instant};

use crewcall_sdk::{NewTask, TaskOptions, proto::Durability};
use prost::Message as _;

use crate::{
    BenchError,
    case::Extra,
    load::before::{connect, submit, until},
    result::Sample,
    stage::Stage,
    task,
};

/// A task in the store has an id of 16 bytes besides what it was submitted with.
const ID_BYTES: u64 = 16;

pub(crate) async fn run(stage: &mut Stage<'_>, tasks: u32) -> Result<Sample, BenchError> {
    let client = connect(stage.url()).await?;
    // As many again that come and go, so that the files have seen more than they hold.
    submit(&client, tasks, |number| {
        let mut task = task::task("add", number, task::STORED, true);
        task.options = Some(durable(1));
        task
    })
    .await?;
    until(&client, |stats| stats.ready + stats.leased + stats.finished == 0).await?;
    submit(&client, tasks, parked).await?;
    let seen = until(&client, |stats| stats.ready == u64::from(tasks)).await?;
    stage.server.kill().await?;
    let bytes = bytes_below(&stage.server.data_dir())?;

    let start = Instant::now();
    stage.server.run(&stage.settings.binary).await?;
    let client = connect(stage.url()).await?;
    let stats = client.stats().await.map_err(|error| BenchError::failed("restart", error))?;
    let ready = start.elapsed();
    let lost = seen.ready.abs_diff(stats.ready);
    if lost > 0 {
        let why = format!("{} tasks before kill -9, {} after it", seen.ready, stats.ready);
        return Err(BenchError::failed("restart", why));
    }
    let live: u64 = (0..u64::from(tasks)).map(|number| parked(number).encoded_len() as u64 + ID_BYTES).sum();
    Ok(Sample {
        calls: u64::from(tasks),
        seconds: ready.as_secs_f64(),
        rate: f64::from(tasks) / ready.as_secs_f64(),
        server_rss_mib: stage.server.resident().map(|bytes| bytes as f64 / f64::from(1 << 20)),
        extra: [
            (Extra::ReadyMs, ready.as_secs_f64() * 1e3),
            (Extra::FileShare, bytes as f64 / live as f64),
            (Extra::Lost, lost as f64),
        ]
        .map(|(extra, value)| (extra.as_str().to_owned(), value))
        .into(),
        ..Sample::default()
    })
}

/// Waits for a worker that never comes.
fn parked(number: u64) -> NewTask {
    let mut task = task::task("parked", number, task::STORED, true);
    task.options = Some(durable(0));
    task
}

fn durable(retention_ms: u64) -> TaskOptions {
    TaskOptions { durability: Durability::Durable.into(), retention_ms, ..TaskOptions::default() }
}

fn bytes_below(dir: &Path) -> Result<u64, BenchError> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.metadata()?;
        bytes += if kind.is_dir() { bytes_below(&entry.path())? } else { kind.len() };
    }
    Ok(bytes)
}
