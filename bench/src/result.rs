//! What came out, as it is written to JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::case::{Goal, Metric, Mode};

/// Everything one run of `crewcall bench` found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this form; 1.
    pub format: u32,
    /// Under which conditions.
    pub conditions: Conditions,
    /// In the order in which they were measured.
    pub cases: Vec<CaseResult>,
}

/// Whoever wants to repeat it needs these.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Conditions {
    /// Version of crewcall.
    pub version: String,
    /// `git rev-parse --short HEAD`, with `-dirty` when files differ from it; empty outside a working copy.
    pub commit: String,
    /// The command as typed.
    pub command: String,
    /// `release` or `debug`.
    pub build: String,
    /// `YYYY-MM-DDTHH:MM:SSZ`, when the run began.
    pub started: String,
    /// Name of the processor.
    pub cpu: String,
    /// How many of them this process may use.
    pub cpus: usize,
    /// Of the machine, in MiB.
    pub memory_mib: u64,
    /// Operating system and its version.
    pub system: String,
    /// File system of the data directory's place, as far as known.
    pub disk: String,
    /// Share of processor time that the hypervisor gave to others, 0 to 1; `None` where it is not told.
    pub steal: Option<f64>,
    /// One-minute load average when the run began; `None` where it is not told.
    pub load_average: Option<f64>,
}

/// One case: the pairs, and what they come to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaseResult {
    /// The mode it belongs to.
    pub mode: Mode,
    /// What runs, in words: `awaited`.
    pub series: String,
    /// How much of it: 64.
    pub at: u64,
    /// Of what: `in flight`.
    pub unit: String,
    /// What it was compared with: `relay`, `1 worker`; empty when with nothing.
    pub against: String,
    /// One for each repetition, in order.
    pub pairs: Vec<Pair>,
    /// The figures of the issue that this case is held to.
    pub goals: Vec<GoalResult>,
}

/// The two runs of one repetition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pair {
    /// What is measured.
    pub product: Sample,
    /// What it is measured against.
    pub floor: Option<Sample>,
    /// Whether the floor ran first.
    pub floor_first: bool,
}

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Answered within the window; each was checked.
    pub calls: u64,
    /// Length of the window.
    pub seconds: f64,
    /// Calls per second.
    pub rate: f64,
    /// `None` when there was nothing to time.
    pub latency: Option<Latency>,
    /// Processor time of the server process, user and system; `None` for a server elsewhere.
    pub server_cpu_ms_per_1000: Option<f64>,
    /// Resident memory of the server process at the end of the window; `None` for a server elsewhere.
    pub server_rss_mib: Option<f64>,
    /// Answers that were wrong, missing or given twice. A load that allows none of them fails instead.
    pub wrong: u64,
    /// What only this mode measures, with the unit in the name: `ready_ms`, `kib_each`.
    pub extra: BTreeMap<String, f64>,
    /// What a person should know of it: the first answer that nobody expects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// From the sending of a call to its answer, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the calls took at most this.
    pub p50_us: f64,
    /// 90 of 100.
    pub p90_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// All of them.
    pub max_us: f64,
}

/// Median with the range it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// A figure to reach, and what was reached.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct GoalResult {
    /// What was asked for.
    pub goal: Goal,
    /// What there is; `None` when it could not be measured.
    pub reached: Option<Spread>,
}

impl Sample {
    /// The value of a metric; `None` when this run did not measure it.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Rate => Some(self.rate),
            Metric::P50 => self.latency.map(|latency| latency.p50_us),
            Metric::P99 => self.latency.map(|latency| latency.p99_us),
            Metric::Cpu => self.server_cpu_ms_per_1000,
            Metric::Rss => self.server_rss_mib,
            Metric::Wrong => Some(self.wrong as f64),
            Metric::Extra(name) => self.extra.get(name.as_str()).copied(),
        }
    }
}

impl Pair {
    /// Product over floor; `None` when either did not measure it.
    pub fn ratio(&self, metric: Metric) -> Option<f64> {
        let floor = self.floor.as_ref()?.get(metric)?;
        let product = self.product.get(metric)?;
        (floor > 0.0).then_some(product / floor)
    }
}

impl CaseResult {
    /// The case in words: `pipe, awaited, 64 in flight`.
    pub fn title(&self) -> String {
        // 1 worker, 2 workers.
        let unit = if self.at == 1 { self.unit.strip_suffix('s').unwrap_or(&self.unit) } else { &self.unit };
        format!("{}, {}, {} {unit}", self.mode.name(), self.series, self.at)
    }

    /// A metric of what is measured, over all repetitions.
    pub fn product(&self, metric: Metric) -> Option<Spread> {
        Spread::of(self.pairs.iter().filter_map(|pair| pair.product.get(metric)))
    }

    /// The same of what it is measured against.
    pub fn floor(&self, metric: Metric) -> Option<Spread> {
        Spread::of(self.pairs.iter().filter_map(|pair| pair.floor.as_ref()?.get(metric)))
    }

    /// Ratios, pair by pair.
    pub fn ratio(&self, metric: Metric) -> Option<Spread> {
        Spread::of(self.pairs.iter().filter_map(|pair| pair.ratio(metric)))
    }
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_middle_and_the_ends() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }
}
