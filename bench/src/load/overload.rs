//! More calls than the workers can do, for as long as it takes to see where they go: first the peak, then calls
//! at a multiple of it whether or not they are answered, then silence until all is as it was.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crewcall_sdk::{CallError, Pipe, proto::pipe_outcome};
use tokio::{task::JoinSet, time::MissedTickBehavior};

use crate::{
    BenchError,
    case::Extra,
    load::{
        before::connect,
        pipe::{Work, awaited},
    },
    meter::{Meter, Recorder},
    result::Sample,
    stage::Stage,
    task,
};

/// Enough callers that the workers never wait for work.
const PEAK_CALLERS: u32 = 256;
/// How long it goes on.
const OVERLOAD: Duration = Duration::from_secs(60);
/// Calls are made in small groups, at this pace.
const TICK: Duration = Duration::from_millis(5);
/// An answer after this is of no use to its caller.
const IN_TIME: Duration = Duration::from_secs(1);
/// It is as before once a lone call takes at most so many times what it took before.
const AS_BEFORE: f64 = 1.5;
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// What became of the calls.
#[derive(Debug, Default)]
struct Tally {
    in_time: AtomicU64,
    late: AtomicU64,
    refused: AtomicU64,
}

pub(crate) async fn run(stage: &mut Stage<'_>, times: u32) -> Result<Sample, BenchError> {
    let client = connect(stage.url()).await?;
    let pipe = client.pipe();
    let alone = lone_call(&pipe).await?;
    let peak = peak(stage).await?;

    let meter = Meter::new()?;
    meter.begin();
    let tally = Arc::new(Tally::default());
    let length = stage.settings.size.time(OVERLOAD);
    let (start, cpu) = (Instant::now(), stage.server.cpu());
    let pace = peak.rate * f64::from(times);
    let mut calls = JoinSet::new();
    let mut early_memory = None;
    let mut ticks = tokio::time::interval(TICK);
    // Late calls are made up for: the pace is the point.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut made = 0_u64;
    while start.elapsed() < length {
        ticks.tick().await;
        let due = (start.elapsed().as_secs_f64() * pace) as u64;
        for number in made..due {
            calls.spawn(offered(pipe.clone(), number, tally.clone(), meter.recorder()));
        }
        made = made.max(due);
        while let Some(ended) = calls.try_join_next() {
            ended.map_err(|error| BenchError::failed("overload", error))??;
        }
        if early_memory.is_none() && start.elapsed() > length / 10 {
            early_memory = stage.server.resident();
        }
    }
    let (seconds, cpu_after) = (start.elapsed().as_secs_f64(), stage.server.cpu());
    let memory = stage.server.resident();
    let silence = Instant::now();
    while let Some(ended) = calls.join_next().await {
        ended.map_err(|error| BenchError::failed("overload", error))??;
    }
    while lone_call(&pipe).await? > alone.mul_f64(AS_BEFORE) && silence.elapsed() < RECOVERY_MAX {}
    let recovered = silence.elapsed();

    let in_time = tally.in_time.load(Ordering::Relaxed);
    let rate = in_time as f64 / seconds;
    let mut extra = vec![
        (Extra::Goodput, rate / peak.rate),
        (Extra::RecoverMs, recovered.as_secs_f64() * 1e3),
        (Extra::Late, tally.late.load(Ordering::Relaxed) as f64),
    ];
    if let Some((late, early)) = memory.zip(early_memory) {
        extra.push((Extra::MemoryGrowth, late as f64 / early as f64));
    }
    Ok(Sample {
        calls: in_time,
        seconds,
        rate,
        latency: meter.latency(),
        server_cpu_ms_per_1000: cpu_after
            .zip(cpu)
            .map(|(after, before)| after.saturating_sub(before).as_secs_f64() * 1e6 / in_time.max(1) as f64),
        server_rss_mib: memory.map(|bytes| bytes as f64 / f64::from(1 << 20)),
        refused: tally.refused.load(Ordering::Relaxed),
        extra: extra.into_iter().map(|(extra, value)| (extra.as_str().to_owned(), value)).collect(),
        ..Sample::default()
    })
}

/// What the workers can do when callers wait for them.
async fn peak(stage: &Stage<'_>) -> Result<Sample, BenchError> {
    let meter = Meter::new()?;
    let mut callers = JoinSet::new();
    let work = Work { methods: stage.methods(), size: task::SMALL, durable: false };
    awaited(stage.url(), PEAK_CALLERS, &work, &meter, &mut callers).await?;
    stage.measure(&meter, callers).await
}

/// The median of a few calls, one after the other.
async fn lone_call(pipe: &Pipe) -> Result<Duration, BenchError> {
    let mut took = Vec::new();
    for number in 0..5 {
        let start = Instant::now();
        let reply = pipe.call_raw(task::task("add", number, task::SMALL, false)).outcome().await;
        let outcome = reply.map_err(|error| BenchError::failed("overload", error))?;
        task::check(number, &outcome).map_err(|why| BenchError::failed("overload", why))?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    Ok(took.get(took.len() / 2).copied().unwrap_or_default())
}

/// One call that is answered, or refused as the contract says: no room, and when there may be some.
async fn offered(
    pipe: Pipe,
    number: u64,
    tally: Arc<Tally>,
    mut recorder: Recorder,
) -> Result<(), BenchError> {
    let start = Instant::now();
    let reply = pipe.call_raw(task::task("add", number, task::SMALL, false)).outcome().await;
    let took = start.elapsed();
    let hinted = match &reply {
        Ok(outcome) => match &outcome.kind {
            Some(pipe_outcome::Kind::Refusal(refusal)) => {
                refusal.code == tonic::Code::ResourceExhausted as i32 && refusal.retry_after_ms > 0
            }
            _ => false,
        },
        // The SDK's own limit of calls on a stream.
        Err(CallError::Refused(refusal)) => {
            refusal.code == tonic::Code::ResourceExhausted && refusal.retry_after.is_some()
        }
        Err(_) => false,
    };
    if hinted {
        tally.refused.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let outcome = reply.map_err(|error| BenchError::failed("overload", error))?;
    task::check(number, &outcome).map_err(|why| BenchError::failed("overload", why))?;
    if took <= IN_TIME {
        tally.in_time.fetch_add(1, Ordering::Relaxed);
        recorder.record_duration(took);
    } else {
        tally.late.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
