//! Under which conditions a run was made: what whoever repeats it needs to know.

use std::{fs, process::Command, time::SystemTime};

use crate::{Settings, process::ServerProcess, result::Conditions};

/// Processor time of the whole machine so far, in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    steal: u64,
    all: u64,
}

/// As they are now.
pub(crate) fn now(settings: &Settings) -> Conditions {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kib = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default();
    Conditions {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: commit(),
        command: settings.command.clone(),
        build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        cpu: field(&read("/proc/cpuinfo"), "model name"),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: kib / 1024,
        system: system(&read("/proc/sys/kernel/osrelease")),
        disk: disk(&read("/proc/self/mounts")),
        steal: None,
        load_average: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()),
    }
}

/// `None` where the system does not tell.
pub(crate) fn steal() -> Option<Ticks> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = stat.lines().next()?.split_whitespace().skip(1).flat_map(str::parse).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; the guests after them are counted in user already.
    Some(Ticks { steal: *ticks.get(7)?, all: ticks.iter().take(8).sum() })
}

/// The share stolen since then, 0 to 1; `None` where the system does not tell.
pub(crate) fn stolen_since(before: Option<Ticks>) -> Option<f64> {
    let (before, now) = before.zip(steal())?;
    let all = now.all.checked_sub(before.all).filter(|all| *all > 0)?;
    Some(now.steal.saturating_sub(before.steal) as f64 / all as f64)
}

fn system(release: &str) -> String {
    format!("{} {}", std::env::consts::OS, release.trim()).trim().to_owned()
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return String::new() };
    // The records that runs write do not change what was measured.
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!*.md", ":!docs"]);
    if changed.is_some_and(|changed| changed.is_empty()) { commit } else { format!("{commit}-dirty") }
}

/// The file system below the place of the data directories.
fn disk(mounts: &str) -> String {
    let Ok(place) = ServerProcess::place().canonicalize() else { return String::new() };
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.next()?, fields.next()?, fields.next()?))
    });
    mounts
        .filter(|(_, at, _)| place.starts_with(at))
        .max_by_key(|(_, at, _)| at.len())
        .map(|(device, _, kind)| format!("{kind} on {device}"))
        .unwrap_or_default()
}
