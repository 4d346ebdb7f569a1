//! The parts of the document that a run writes. Each stands between `<!-- bench:NAME -->` and
//! `<!-- /bench:NAME -->`; everything else is left as it is.

use std::fmt::Write as _;

use super::{ModeRecord, Record};
use crate::BenchError;
use crate::case::{Metric, Mode};
use crate::result::{CaseResult, Conditions, GoalResult, Latency, Spread};
use crate::table::{count, figure, spread, time};

/// The document with its parts written anew.
///
/// # Errors
/// When a marker is missing.
pub(super) fn rewrite(document: &str, record: &Record) -> Result<String, BenchError> {
    let mut text = replace(document, "goals", &goals(record))?;
    for record in &record.modes {
        text = replace(&text, record.mode.name(), &section(record))?;
    }
    Ok(text)
}

/// Whether there is a place for everything that a run may measure.
///
/// # Errors
/// When a marker is missing.
pub(super) fn complete(document: &str) -> Result<(), BenchError> {
    let mut names = Mode::ALL.iter().map(|mode| mode.name()).chain(["goals"]);
    names.try_for_each(|name| replace(document, name, "").map(drop))
}

fn replace(document: &str, name: &str, content: &str) -> Result<String, BenchError> {
    let (opening, closing) = (format!("<!-- bench:{name} -->"), format!("<!-- /bench:{name} -->"));
    let found = document.split_once(&opening).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&closing)?;
        Some(format!("{before}{opening}\n{content}{closing}{after}"))
    });
    found.ok_or_else(|| {
        BenchError::Usage(format!(
            "BENCHMARKS.md has no `{opening}` with a `{closing}` behind it: add them where the figures belong"
        ))
    })
}

/// Every figure that has to be reached, over all modes.
fn goals(record: &Record) -> String {
    let mut text = String::from(
        "| what | of | against | median (min–max) | gate | goal | |\n|---|---|---|---|---|---|---|\n",
    );
    for case in record.cases() {
        for result in &case.goals {
            let against = if result.goal.ratio { case.against.as_str() } else { "–" };
            let sign = if result.goal.at_least { "≥" } else { "≤" };
            let unit = if result.goal.ratio { " ×" } else { "" };
            let bar = |bar: f64| format!("{sign} {}{unit}", figure(bar));
            let _ = writeln!(
                text,
                "| {} | {} | {against} | {} | {} | {} | {} |",
                case.title(),
                result.goal.metric.name(),
                result.reached.map_or_else(|| "not measured".to_owned(), spread),
                result.goal.gate.map_or_else(|| "–".to_owned(), bar),
                bar(result.goal.goal),
                verdict(result),
            );
        }
    }
    text
}

fn verdict(result: &GoalResult) -> &'static str {
    let passes = |bar| result.reached.is_some_and(|reached| result.goal.passes(reached.median, bar));
    if passes(result.goal.goal) {
        "goal reached"
    } else if result.goal.gate.is_some_and(passes) {
        "gate passed"
    } else {
        "**not reached**"
    }
}

/// One mode: under which conditions, and a row for each side of each case.
fn section(record: &ModeRecord) -> String {
    let mut text = conditions(&record.conditions);
    text.push_str(
        "\n| case | | calls/s | p50 | p90 | p99 | max | CPU ms/1000 | MiB |\n|---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for case in &record.cases {
        rows(&mut text, case, record.mode);
    }
    let extras: Vec<String> = record.cases.iter().filter_map(extras).collect();
    if !extras.is_empty() {
        let _ = write!(text, "\n{}\n", extras.join("\n"));
    }
    text
}

fn conditions(of: &Conditions) -> String {
    let mut facts = vec![
        format!("commit `{}`", if of.commit.is_empty() { "unknown" } else { of.commit.as_str() }),
        format!("crewcall {} ({} build)", of.version, of.build),
        format!("{} × {}", of.cpus, of.cpu),
        format!("{} MiB", count(of.memory_mib as f64)),
        of.system.clone(),
        of.disk.clone(),
        of.started.clone(),
    ];
    facts.extend(of.steal.map(|steal| format!("{:.1} % of the processors stolen", steal * 100.0)));
    facts.extend(of.load_average.map(|load| format!("load {load:.2} when it began")));
    facts.retain(|fact| !fact.is_empty());
    format!("`{}`\n\n{}.\n", program(&of.command), facts.join(" · "))
}

/// The command without the folder of the machine that it ran on.
fn program(command: &str) -> String {
    let (program, rest) = command.split_once(' ').unwrap_or((command, ""));
    let name = program.rsplit(['/', '\\']).next().unwrap_or(program);
    format!("{name} {rest}").trim_end().to_owned()
}

fn rows(text: &mut String, case: &CaseResult, mode: Mode) {
    let title = case.title();
    let title = title.strip_prefix(mode.name()).map_or(title.as_str(), |rest| rest.trim_start_matches(", "));
    row(
        text,
        title,
        "crewcall",
        |metric| case.product(metric),
        |of| Spread::of(case.pairs.iter().filter_map(|pair| pair.product.latency.as_ref().map(of))),
    );
    if case.against.is_empty() {
        return;
    }
    row(
        text,
        "",
        &case.against,
        |metric| case.floor(metric),
        |of| Spread::of(case.pairs.iter().filter_map(|pair| pair.floor.as_ref()?.latency.as_ref().map(of))),
    );
    let ratio = |metric| case.ratio(metric).map_or_else(String::new, spread);
    let _ = writeln!(
        text,
        "| | *ratio* | {} | {} | | {} | | {} | {} |",
        ratio(Metric::Rate),
        ratio(Metric::P50),
        ratio(Metric::P99),
        ratio(Metric::Cpu),
        ratio(Metric::Rss),
    );
}

fn row(
    text: &mut String,
    title: &str,
    side: &str,
    value: impl Fn(Metric) -> Option<Spread>,
    latency: impl Fn(fn(&Latency) -> f64) -> Option<Spread>,
) {
    let median = |spread: Option<Spread>, show: fn(f64) -> String| {
        spread.filter(|spread| spread.median > 0.0).map_or_else(String::new, |spread| show(spread.median))
    };
    let _ = writeln!(
        text,
        "| {title} | {side} | {} | {} | {} | {} | {} | {} | {} |",
        median(value(Metric::Rate), count),
        median(value(Metric::P50), time),
        median(latency(|latency| latency.p90_us), time),
        median(value(Metric::P99), time),
        median(latency(|latency| latency.max_us), time),
        median(value(Metric::Cpu), figure),
        median(value(Metric::Rss), figure),
    );
}

/// What only this mode measures, a line for each case.
fn extras(case: &CaseResult) -> Option<String> {
    let mut names: Vec<&String> = case.pairs.iter().flat_map(|pair| pair.product.extra.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let values = names.into_iter().filter_map(|name| {
        let product = Spread::of(case.pairs.iter().filter_map(|pair| pair.product.extra.get(name).copied()))?;
        let floor =
            Spread::of(case.pairs.iter().filter_map(|pair| pair.floor.as_ref()?.extra.get(name).copied()));
        let floor = floor.map_or_else(String::new, |floor| format!(", {} {}", case.against, spread(floor)));
        Some(format!("{name} {}{floor}", spread(product)))
    });
    let values: Vec<String> = values.collect();
    (!values.is_empty()).then(|| format!("- {}: {}", case.title(), values.join("; ")))
}
