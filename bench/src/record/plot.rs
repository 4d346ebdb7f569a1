//! The plots: rate and latency against calls in flight, and what a call costs against what grows.
//!
//! They stand on no background of their own and draw their text in the reader's own colours, light or dark;
//! the colours of the lines have at least three to one against either.

use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::Record;
use crate::BenchError;
use crate::case::{Metric, Mode};
use crate::result::CaseResult;

const SIZE: (u32, u32) = (860, 440);
/// The lines' names stand to the right of the plot.
const NAMES: u32 = 200;
const TEXT: u32 = 14;
const FONT: &str = "sans-serif";
/// Replaced by the reader's own; no line has it.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_TEXT: &str = "#010203";
/// Text in light and in dark surroundings.
const STYLE: &str = "<style>svg{color:#57606a}@media(prefers-color-scheme:dark){svg{color:#a9b4c0}}</style>";
const COLOURS: [RGBColor; 6] = [
    RGBColor(59, 130, 246),
    RGBColor(217, 119, 6),
    RGBColor(22, 163, 74),
    RGBColor(168, 85, 247),
    RGBColor(239, 68, 68),
    RGBColor(13, 148, 136),
];

/// A plot and its file's name. One that there are no figures for is left out.
///
/// # Errors
/// When a plot cannot be drawn.
pub(super) fn plots(record: &Record) -> Result<Vec<(&'static str, String)>, BenchError> {
    let mut files = Vec::new();
    let figures = [
        (
            "rate.svg",
            Plot {
                title: "Calls per second, by calls in flight",
                x: "calls in flight",
                y: "calls/s",
                base: (4.0, 10.0),
                show_y: amount,
                lines: in_flight(record, Metric::Rate),
            },
        ),
        (
            "p99.svg",
            Plot {
                title: "99th percentile of latency, by calls in flight",
                x: "calls in flight",
                y: "p99",
                base: (4.0, 10.0),
                show_y: micros,
                lines: in_flight(record, Metric::P99),
            },
        ),
        (
            "growth.svg",
            Plot {
                title: "Server CPU per call, against itself at the small end",
                x: "how many",
                y: "times the cost",
                base: (10.0, 2.0),
                show_y: |times| format!("{times:.0}×"),
                lines: growth(record),
            },
        ),
    ];
    for (name, plot) in figures {
        if !plot.lines.is_empty() {
            files.push((name, plot.draw()?));
        }
    }
    Ok(files)
}

struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    /// One colour for what is measured and what it is held against.
    colour: RGBColor,
    dashed: bool,
}

fn colours() -> impl Iterator<Item = RGBColor> {
    COLOURS.into_iter().cycle()
}

/// What is measured in a line, what it is held against in a dashed one.
fn in_flight(record: &Record, metric: Metric) -> Vec<Line> {
    const SERIES: [(Mode, &str); 6] = [
        (Mode::Pipe, "awaited"),
        (Mode::Pipe, "window"),
        (Mode::Call, "1 connection"),
        (Mode::Rest, "POST /v1/call"),
        (Mode::Legacy, "at once"),
        (Mode::Durable, "awaited"),
    ];
    let mut lines = Vec::new();
    for ((mode, series), colour) in SERIES.into_iter().zip(colours()) {
        let cases = || record.cases().filter(move |case| case.mode == mode && case.series == series);
        let points = |value: fn(&CaseResult, Metric) -> Option<f64>| -> Vec<(f64, f64)> {
            cases().filter_map(|case| Some((case.at as f64, value(case, metric)?))).collect()
        };
        let product = points(|case, metric| Some(case.product(metric)?.median));
        let floor = points(|case, metric| Some(case.floor(metric)?.median));
        let name = match mode {
            Mode::Pipe | Mode::Durable => format!("{}, {series}", mode.name()),
            _ => mode.name().to_owned(),
        };
        let against = cases().map(|case| case.against.clone()).next().unwrap_or_default();
        lines.push(Line { name, points: product, colour, dashed: false });
        lines.push(Line { name: against, points: floor, colour, dashed: true });
    }
    lines.retain(|line| !line.points.is_empty());
    lines
}

/// Each mode that grows something, from 1 at its small end.
fn growth(record: &Record) -> Vec<Line> {
    let mut lines = Vec::new();
    for (mode, colour) in
        [Mode::Workers, Mode::Methods, Mode::Backlog, Mode::Stored].into_iter().zip(colours())
    {
        let cases = || record.cases().filter(move |case| case.mode == mode);
        let Some(first) = cases().next() else { continue };
        let name = first.unit.clone();
        // `1,000 queued` is the small end in words; `none kept` is no place on a scale of powers.
        let digits: String = first.against.chars().filter(char::is_ascii_digit).collect();
        let start = digits.parse().unwrap_or(1.0);
        let grown = cases().filter_map(|case| Some((case.at as f64, case.ratio(Metric::Cpu)?.median)));
        let points: Vec<_> = std::iter::once((start, 1.0)).chain(grown).collect();
        if points.len() > 1 {
            lines.push(Line { name, points, colour, dashed: false });
        }
    }
    lines
}

struct Plot {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    /// The steps of the scales are powers of these.
    base: (f64, f64),
    show_y: fn(f64) -> String,
    lines: Vec<Line>,
}

impl Plot {
    fn draw(&self) -> Result<String, BenchError> {
        let mut svg = String::new();
        self.draw_into(&mut svg).map_err(|error| BenchError::failed(self.title, error))?;
        let svg = svg.replace(&format!("\"{INK_TEXT}\""), "\"currentColor\"");
        let head = format!("<title>{}</title>{STYLE}", self.title);
        Ok(svg.split_once('>').map_or_else(|| svg.clone(), |(svg, rest)| format!("{svg}>\n{head}{rest}")))
    }

    fn draw_into(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let (left, right) = area.split_horizontally(SIZE.0 - NAMES);
        let text = (FONT, TEXT).into_font().color(&INK);
        let ((x_from, x_to), (y_from, y_to)) =
            (self.range(self.base.0, |point| point.0), self.range(self.base.1, |point| point.1));
        let mut chart = ChartBuilder::on(&left)
            .caption(self.title, (FONT, TEXT + 2).into_font().color(&INK))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(
                (x_from..x_to).log_scale().base(self.base.0),
                (y_from..y_to).log_scale().base(self.base.1),
            )?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_labels(8)
            .y_labels(8)
            .max_light_lines(0)
            .axis_style(INK.mix(0.6))
            .bold_line_style(INK.mix(0.2))
            .light_line_style(INK.mix(0.0))
            .label_style(text.clone())
            .x_label_formatter(&|x| amount(*x))
            .y_label_formatter(&|y| (self.show_y)(*y))
            .draw()?;
        for line in &self.lines {
            let style = line.colour.stroke_width(2);
            if line.dashed {
                chart.draw_series(DashedLineSeries::new(line.points.iter().copied(), 6, 4, style))?;
            } else {
                chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
            }
            let dot = |point: &(f64, f64)| Circle::new(*point, 3, line.colour.filled());
            chart.draw_series(line.points.iter().map(dot))?;
        }
        for (line, y) in self.lines.iter().zip((44..).step_by(22)) {
            let ends = vec![(0, y), (28, y)];
            let style = line.colour.stroke_width(2);
            if line.dashed {
                right.draw(&DashedPathElement::new(ends, 6, 4, style))?;
            } else {
                right.draw(&PathElement::new(ends, style))?;
            }
            right.draw(&Text::new(line.name.as_str(), (36, y - 7), text.clone()))?;
        }
        area.present()?;
        drop(chart);
        Ok(())
    }

    /// From the step at or below the smallest value to the one at or above the largest.
    fn range(&self, base: f64, of: fn(&(f64, f64)) -> f64) -> (f64, f64) {
        let values =
            || self.lines.iter().flat_map(|line| line.points.iter().map(of)).filter(|value| *value > 0.0);
        let least = values().fold(f64::INFINITY, f64::min);
        let most = values().fold(0.0, f64::max);
        if most == 0.0 {
            return (1.0, base);
        }
        let from = base.powf(least.log(base).floor());
        // A little more, so that the last step is drawn however the powers are rounded.
        let to = base.powf(most.log(base).ceil().max(least.log(base).floor() + 1.0)) * 1.001;
        (from * 0.999, to)
    }
}

/// `250k`, `1M`.
fn amount(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.0}M", value / 1e6),
        value if value >= 10_000.0 => format!("{:.0}k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

/// Microseconds in the unit that says it best.
fn micros(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.0} s", value / 1e6),
        value if value >= 1e3 => format!("{:.0} ms", value / 1e3),
        value => format!("{value:.0} µs"),
    }
}
