//! What came out, for a person.

use std::fmt::Write as _;

use crate::{
    case::Metric,
    result::{CaseResult, GoalResult, Report, Spread},
};

/// A table: a row for each case; with ratios where there is something to compare with.
pub fn table(report: &Report) -> String {
    let compared = report.cases.iter().any(|case| !case.against.is_empty());
    let mut headers = vec!["case", "calls/s", "p50", "p90", "p99", "max", "CPU ms/1000", "MiB"];
    if compared {
        headers.extend(["against", "rate", "p50", "p99", "CPU"]);
    }
    let rows: Vec<Vec<String>> = report.cases.iter().map(|case| row(case, compared)).collect();
    let mut text = laid_out(&headers, &rows);
    if compared {
        text.push_str("\nRatios are crewcall / what it is held against, pair by pair: median (min–max).\n");
    }
    let reached: Vec<String> = report.cases.iter().flat_map(verdicts).collect();
    if !reached.is_empty() {
        text.push('\n');
        text.push_str(&reached.join("\n"));
        text.push('\n');
    }
    text
}

fn row(case: &CaseResult, compared: bool) -> Vec<String> {
    let value = |metric, show: fn(f64) -> String| {
        case.product(metric).map_or_else(String::new, |spread: Spread| show(spread.median))
    };
    let latency = |of: fn(&crate::result::Latency) -> f64| {
        let all = case.pairs.iter().filter_map(|pair| pair.product.latency.as_ref().map(of));
        Spread::of(all).map_or_else(String::new, |spread| time(spread.median))
    };
    // Connections that do nothing have no rate.
    let calls: u64 = case.pairs.iter().map(|pair| pair.product.calls).sum();
    let mut cells = vec![
        case.title(),
        if calls == 0 { String::new() } else { value(Metric::Rate, count) },
        value(Metric::P50, time),
        latency(|latency| latency.p90_us),
        value(Metric::P99, time),
        latency(|latency| latency.max_us),
        value(Metric::Cpu, figure),
        value(Metric::Rss, figure),
    ];
    if compared {
        let ratio = |metric| case.ratio(metric).map_or_else(String::new, spread);
        cells.push(case.against.clone());
        cells.extend([Metric::Rate, Metric::P50, Metric::P99, Metric::Cpu].map(ratio));
    }
    cells
}

/// One line for each figure that the case is held to, or that only it measures.
fn verdicts(case: &CaseResult) -> Vec<String> {
    let title = case.title();
    let mut lines: Vec<String> =
        case.goals.iter().map(|goal| format!("{title}: {}", verdict(case, goal))).collect();
    let mut extras: Vec<&String> = case.pairs.iter().flat_map(|pair| pair.product.extra.keys()).collect();
    extras.sort_unstable();
    extras.dedup();
    let told = |name: &str| {
        case.goals.iter().any(|goal| {
            !goal.goal.ratio && matches!(goal.goal.metric, Metric::Extra(extra) if extra.as_str() == name)
        })
    };
    for name in extras.into_iter().filter(|name| !told(name)) {
        let values = case.pairs.iter().filter_map(|pair| pair.product.extra.get(name).copied());
        if let Some(values) = Spread::of(values).filter(|values| values.max != 0.0) {
            lines.push(format!("{title}: {name} = {}", spread(values)));
        }
    }
    let notes = case.pairs.iter().filter_map(|pair| pair.product.note.as_ref());
    lines.extend(notes.map(|note| format!("{title}: {note}")));
    lines
}

fn verdict(case: &CaseResult, result: &GoalResult) -> String {
    let goal = result.goal;
    let what = if goal.ratio {
        format!("{} / {}", goal.metric.name(), case.against)
    } else {
        goal.metric.name().to_owned()
    };
    let Some(reached) = result.reached else { return format!("{what}: not measured") };
    let sign = if goal.at_least { '≥' } else { '≤' };
    let word = if goal.passes(reached.median, goal.goal) {
        "goal reached"
    } else if goal.gate.is_some_and(|gate| goal.passes(reached.median, gate)) {
        "gate passed"
    } else {
        "MISSED"
    };
    let gate = goal.gate.map_or_else(String::new, |gate| format!("gate {sign} {}, ", figure(gate)));
    format!("{what} {} ({gate}goal {sign} {}): {word}", spread(reached), figure(goal.goal))
}

/// Columns as wide as their widest cell; the first to the left, the others to the right.
fn laid_out(headers: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headers.iter().map(|header| header.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let headers = headers.iter().map(|header| (*header).to_owned()).collect();
    for row in std::iter::once(&headers).chain(rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ =
                if column == 0 { write!(line, "{cell:width$}") } else { write!(line, "  {cell:>width$}") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Median and range.
pub(crate) fn spread(spread: Spread) -> String {
    format!("{} ({}–{})", figure(spread.median), figure(spread.min), figure(spread.max))
}

/// Three figures or so.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => count(value),
    }
}

/// Whole, in groups of three.
pub(crate) fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds in the unit that says it best.
pub(crate) fn time(micros: f64) -> String {
    match micros {
        micros if micros < 1_000.0 => format!("{micros:.0} µs"),
        micros if micros < 100_000.0 => format!("{:.1} ms", micros / 1e3),
        micros if micros < 1_000_000.0 => format!("{:.0} ms", micros / 1e3),
        micros => format!("{:.1} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [0.0, 0.654, 12.34, 123.4, 1234.5, 1_234_567.0].map(figure),
            ["0", "0.65", "12.3", "123", "1,234", "1,234,567"]
        );
        assert_eq!([12.3, 1_234.0, 123_456.0, 1_234_567.0].map(time), ["12 µs", "1.2 ms", "123 ms", "1.2 s"]);
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["µ".to_owned(), "1".to_owned()], vec!["long".to_owned(), "22".to_owned()]];
        assert_eq!(laid_out(&["a", "b"], &rows), "a      b\nµ      1\nlong  22\n");
    }
}
