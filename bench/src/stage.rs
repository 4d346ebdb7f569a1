//! One run: a server, a crew, what was there before; and the window within which calls count.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::{
    BenchError,
    case::{Arm, Crew, Server},
    load,
    meter::Meter,
    process::{CrewProcess, ServerProcess},
    result::Sample,
    settings::Settings,
};

/// Callers finish the call they are at; reached only when one never gets its answer.
const PATIENCE: Duration = Duration::from_secs(30);

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The processes of one run.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) arm: &'a Arm,
    pub(crate) server: ServerProcess,
    _crew: Option<CrewProcess>,
}

impl<'a> Stage<'a> {
    /// Starts everything afresh, measures, and takes it down.
    pub(crate) async fn play(settings: &'a Settings, arm: &'a Arm) -> Result<Sample, BenchError> {
        let mut stage = Self::set(settings, arm).await?;
        let sample = load::run(&arm.load, &mut stage).await;
        sample.map_err(|error| match (&error, stage.server.log().trim()) {
            (BenchError::Failed { case, why }, log) if !log.is_empty() => {
                BenchError::failed(case, format!("{why}; the server said: {log}"))
            }
            _ => error,
        })
    }

    async fn set(settings: &'a Settings, arm: &'a Arm) -> Result<Self, BenchError> {
        let server = match (&settings.target, &arm.server) {
            (Some(url), Server::Ephemeral | Server::Durable) => ServerProcess::elsewhere(url)?,
            (_, server) => ServerProcess::start(&settings.binary, server, arm.flags).await?,
        };
        let crew = match arm.crew.workers {
            0 => None,
            _ => Some(CrewProcess::start(&settings.binary, &server, &arm.crew).await?),
        };
        let mut stage = Self { settings, arm, server, _crew: crew };
        load::before(&mut stage).await?;
        Ok(stage)
    }

    /// More workers, besides those of the arm, for as long as they are held.
    pub(crate) async fn hire(&self, crew: &Crew) -> Result<CrewProcess, BenchError> {
        CrewProcess::start(&self.settings.binary, &self.server, crew).await
    }

    /// The names of the crew's methods.
    pub(crate) fn methods(&self) -> Vec<String> {
        let crew = &self.arm.crew;
        (crew.first_method..crew.first_method + crew.methods).map(crate::task::method).collect()
    }

    /// `http://HOST:PORT` of the server.
    pub(crate) fn url(&self) -> &str {
        self.server.url()
    }

    /// Waits out warm-up and window while the callers call, then for the callers. Each ends by itself after
    /// the meter's end; the first error ends the run.
    pub(crate) async fn measure(
        &self,
        meter: &Meter,
        mut callers: JoinSet<Result<(), BenchError>>,
    ) -> Result<Sample, BenchError> {
        unless_failed(&mut callers, self.settings.warm_up).await?;
        let (cpu, start) = (self.server.cpu(), Instant::now());
        meter.begin();
        unless_failed(&mut callers, self.settings.seconds).await?;
        // On a busy machine nothing may have come back yet. A window without a call would say nothing.
        while !meter.any() && start.elapsed() < self.settings.seconds + PATIENCE {
            unless_failed(&mut callers, LOOK_EVERY).await?;
        }
        meter.end();
        let (seconds, cpu_after) = (start.elapsed().as_secs_f64(), self.server.cpu());
        let resident = self.server.resident();
        let finish = async {
            while let Some(ended) = callers.join_next().await {
                ended.map_err(|error| BenchError::failed("caller", error))??;
            }
            Ok::<_, BenchError>(())
        };
        tokio::time::timeout(PATIENCE, finish).await.map_err(|_| {
            BenchError::failed("callers", format!("no answer within {PATIENCE:?} of the window's end"))
        })??;
        let calls = meter.calls();
        Ok(Sample {
            calls,
            seconds,
            rate: calls as f64 / seconds,
            latency: meter.latency(),
            server_cpu_ms_per_1000: cpu_after
                .zip(cpu)
                .filter(|_| calls > 0)
                .map(|(after, before)| after.saturating_sub(before).as_secs_f64() * 1e6 / calls as f64),
            server_rss_mib: resident.map(|bytes| bytes as f64 / f64::from(1 << 20)),
            ..Sample::default()
        })
    }
}

/// Sleeps, unless a caller ends first: before the end of the window none may.
async fn unless_failed(
    callers: &mut JoinSet<Result<(), BenchError>>,
    time: Duration,
) -> Result<(), BenchError> {
    let sleep = tokio::time::sleep(time);
    tokio::select! {
        () = sleep => Ok(()),
        Some(ended) = callers.join_next() => {
            ended.map_err(|error| BenchError::failed("caller", error))??;
            Err(BenchError::failed("caller", "it ended before the window did"))
        }
    }
}
