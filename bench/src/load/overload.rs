//! More calls than the workers can do, for as long as it takes to see where they go: first the peak, then calls
//! at a multiple of it whether or not they are answered, then silence until all is as it was.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinError, JoinSet},
    time::MissedTickBehavior,
};

use crate::{
    BenchError,
    case::{Extra, Way},
    meter::{Meter, Recorder},
    result::Sample,
    stage::Stage,
};

mod entry;

use entry::{Answer, Entry};

/// Enough callers that the workers never wait for work.
const PEAK_CALLERS: u32 = 256;
/// Calls are made in small groups, at this pace.
const TICK: Duration = Duration::from_millis(5);
/// An answer after this is of no use to its caller.
const IN_TIME: Duration = Duration::from_secs(1);
/// It is as before once a lone call takes at most so many times what it took before.
const AS_BEFORE: f64 = 1.5;
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// What became of the calls.
#[derive(Debug)]
struct Tally {
    latency: Recorder,
    in_time: u64,
    late: u64,
    refused: u64,
    /// Neither a right answer nor a refusal with a hint.
    wrong: u64,
    first_wrong: Option<String>,
}

/// How one call ended, and when after it was made.
type Ended = (Result<Answer, String>, Duration);

pub(crate) async fn run(stage: &mut Stage<'_>, way: Way, times: u32) -> Result<Sample, BenchError> {
    let entry = Arc::new(Entry::open(way, stage.url()).await?);
    let alone = lone_call(&entry).await?;
    let peak = peak(stage, &entry).await?;

    let meter = Meter::new()?;
    meter.begin();
    let mut tally = Tally::new(meter.recorder());
    let length = stage.settings.overload;
    let (start, cpu) = (Instant::now(), stage.server.cpu());
    let pace = peak * f64::from(times);
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
            let entry = Arc::clone(&entry);
            calls.spawn(async move {
                let start = Instant::now();
                (entry.call(number).await, start.elapsed())
            });
        }
        made = made.max(due);
        while let Some(ended) = calls.try_join_next() {
            tally.count(ended)?;
        }
        if early_memory.is_none() && start.elapsed() > length / 10 {
            early_memory = stage.server.resident();
        }
    }
    let (seconds, cpu_after) = (start.elapsed().as_secs_f64(), stage.server.cpu());
    let memory = stage.server.resident();
    let recovered = recover(&entry, alone, &mut calls, &mut tally).await?;

    let Tally { latency, in_time, late, refused, wrong, first_wrong } = tally;
    drop(latency);
    let rate = in_time as f64 / seconds;
    let mut extra = vec![
        (Extra::Peak, peak),
        (Extra::Offered, made as f64 / seconds / peak),
        (Extra::Goodput, rate / peak),
        (Extra::RecoverMs, recovered.as_secs_f64() * 1e3),
        (Extra::Late, late as f64),
        (Extra::Refused, refused as f64),
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
        wrong,
        extra: extra.into_iter().map(|(extra, value)| (extra.as_str().to_owned(), value)).collect(),
        note: first_wrong,
    })
}

/// Calls per second that the workers can do when callers wait for them.
async fn peak(stage: &Stage<'_>, entry: &Arc<Entry>) -> Result<f64, BenchError> {
    let meter = Meter::new()?;
    let mut callers = JoinSet::new();
    for slot in 0..u64::from(PEAK_CALLERS) {
        let (entry, mut recorder) = (Arc::clone(entry), meter.recorder());
        callers.spawn(async move {
            let mut number = slot;
            while recorder.goes_on() {
                let start = Instant::now();
                must_answer(&entry, number).await?;
                recorder.record(start);
                number += u64::from(PEAK_CALLERS);
            }
            Ok(())
        });
    }
    Ok(stage.measure(&meter, callers).await?.rate)
}

/// The median of a few calls, one after the other.
async fn lone_call(entry: &Entry) -> Result<Duration, BenchError> {
    let mut took = Vec::new();
    for number in 0..5 {
        let start = Instant::now();
        must_answer(entry, number).await?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    Ok(took.get(took.len() / 2).copied().unwrap_or_default())
}

async fn must_answer(entry: &Entry, number: u64) -> Result<(), BenchError> {
    let why = match entry.call(number).await {
        Ok(Answer::Result) => return Ok(()),
        Ok(Answer::Shed) => "it was refused though there is room".to_owned(),
        Err(why) => why,
    };
    Err(BenchError::failed("overload", format_args!("call {number}, made without any overload: {why}")))
}

/// Nobody calls any more: how long until everybody has an answer, and a lone call takes what it took before.
async fn recover(
    entry: &Entry,
    alone: Duration,
    calls: &mut JoinSet<Ended>,
    tally: &mut Tally,
) -> Result<Duration, BenchError> {
    let silence = Instant::now();
    let answers = async {
        while let Some(ended) = calls.join_next().await {
            tally.count(ended)?;
        }
        Ok::<_, BenchError>(())
    };
    match tokio::time::timeout(RECOVERY_MAX, answers).await {
        Ok(counted) => counted?,
        Err(_) => {
            tally.wrong += calls.len() as u64;
            tally.first_wrong = Some(format!("{} calls have no answer {RECOVERY_MAX:?} later", calls.len()));
            return Ok(silence.elapsed());
        }
    }
    while lone_call(entry).await? > alone.mul_f64(AS_BEFORE) && silence.elapsed() < RECOVERY_MAX {}
    Ok(silence.elapsed())
}

impl Tally {
    fn new(latency: Recorder) -> Self {
        Self { latency, in_time: 0, late: 0, refused: 0, wrong: 0, first_wrong: None }
    }

    fn count(&mut self, ended: Result<Ended, JoinError>) -> Result<(), BenchError> {
        let (answer, took) = ended.map_err(|error| BenchError::failed("overload", error))?;
        match answer {
            Ok(Answer::Result) => {
                let count = if took <= IN_TIME { &mut self.in_time } else { &mut self.late };
                *count += 1;
                self.latency.record_duration(took);
            }
            Ok(Answer::Shed) => self.refused += 1,
            Err(why) => {
                self.wrong += 1;
                self.first_wrong.get_or_insert(why);
            }
        }
        Ok(())
    }
}
