use std::collections::BTreeMap;

use super::*;
use crate::case::{Extra, Goal, Metric};
use crate::result::{GoalResult, Latency, Pair, Sample, Spread};

fn sample(rate: f64) -> Sample {
    Sample {
        calls: 1000,
        seconds: 1.0,
        rate,
        latency: Some(Latency { p50_us: 100.0, p90_us: 150.0, p99_us: 2e8 / rate, max_us: 5000.0 }),
        server_cpu_ms_per_1000: Some(1e6 / rate),
        server_rss_mib: Some(30.0),
        ..Sample::default()
    }
}

fn case(mode: Mode, series: &str, at: u64, against: &str, rates: &[(f64, f64)]) -> CaseResult {
    let pair = |(product, floor): &(f64, f64)| Pair {
        product: sample(*product),
        floor: (!against.is_empty()).then(|| sample(*floor)),
        floor_first: false,
    };
    CaseResult {
        mode,
        series: series.to_owned(),
        at,
        unit: "in flight".to_owned(),
        against: against.to_owned(),
        pairs: rates.iter().map(pair).collect(),
        goals: Vec::new(),
    }
}

fn report(commit: &str, cases: Vec<CaseResult>) -> Report {
    let conditions = Conditions {
        commit: commit.to_owned(),
        build: "release".to_owned(),
        command: "/somewhere/target/release/crewcall bench pipe".to_owned(),
        ..Conditions::default()
    };
    Report { format: 1, conditions, cases }
}

fn reached(mut case: CaseResult, goal: Goal, value: Option<f64>) -> CaseResult {
    let reached = value.map(|value| Spread { median: value, min: value, max: value });
    case.goals.push(GoalResult { goal, reached });
    case
}

fn document() -> String {
    let names = ["goals"].into_iter().chain(Mode::ALL.iter().map(|mode| mode.name()));
    let parts =
        names.map(|name| format!("words about {name}\n<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->\n"));
    parts.collect()
}

/// A working copy with a document in it.
fn working_copy() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join(DOCUMENT), document()).unwrap();
    root
}

#[test]
fn a_run_replaces_its_modes_and_leaves_the_rest() {
    let root = working_copy();
    let read = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
    let pipe = |rate| case(Mode::Pipe, "awaited", 64, "relay", &[(rate, 200_000.0)]);
    let rest = case(Mode::Rest, "POST /v1/call", 64, "bare REST", &[(40_000.0, 50_000.0)]);
    record(&report("aaaa", vec![pipe(100_000.0), rest]), root.path()).unwrap();
    record(&report("bbbb", vec![pipe(150_000.0)]), root.path()).unwrap();
    let text = read(DOCUMENT);
    let part = |name: &str| {
        let (_, rest) = text.split_once(&format!("<!-- bench:{name} -->")).unwrap();
        rest.split_once("<!-- /bench").unwrap().0.to_owned()
    };
    assert!(part("pipe").contains("commit `bbbb`") && part("pipe").contains("150,000"), "{}", part("pipe"));
    assert!(part("rest").contains("commit `aaaa`") && part("rest").contains("| bare REST | 50,000 |"));
    assert!(part("pipe").contains("`crewcall bench pipe`"), "the folder of the binary is nobody's business");
    assert_eq!(part("durable"), "\nold\n", "a mode that was never run");
    assert!(text.starts_with("words about goals\n"));
    let again = read(FIGURES);
    record(&report("bbbb", vec![pipe(150_000.0)]), root.path()).unwrap();
    assert_eq!((read(DOCUMENT), read(FIGURES)), (text, again), "the same run again changes nothing");
    for folder in [root.path(), &root.path().join(PLOTS)] {
        let mut names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.all(|name| !name.to_string_lossy().ends_with(".new")), "what was half written is left");
    }
}

#[test]
fn ratios_are_of_pairs() {
    let root = working_copy();
    let rates = [(100.0, 200.0), (300.0, 400.0), (90.0, 100.0)];
    record(&report("a", vec![case(Mode::Pipe, "awaited", 1, "relay", &rates)]), root.path()).unwrap();
    let text = fs::read_to_string(root.path().join(DOCUMENT)).unwrap();
    assert!(text.contains("| | *ratio* | 0.75 (0.50–0.90) |"), "{text}");
}

#[test]
fn goals_say_whether_they_are_reached() {
    let root = working_copy();
    let at_least = Goal::ratio_at_least(Metric::Rate, 0.45, 0.65);
    let none = Goal::at_most(Metric::Extra(Extra::Lost), 0.0, 0.0);
    let awaited =
        |at, value| reached(case(Mode::Pipe, "awaited", at, "relay", &[(1.0, 1.0)]), at_least, value);
    let mut counted = case(Mode::Legacy, "counted", 7, "", &[(1.0, 1.0)]);
    counted.pairs[0].product.extra = BTreeMap::from([("lost".to_owned(), 0.0)]);
    let cases = vec![
        awaited(1, Some(0.7)),
        awaited(2, Some(0.5)),
        awaited(3, Some(0.4)),
        awaited(4, None),
        reached(counted, none, Some(0.0)),
    ];
    record(&report("a", cases), root.path()).unwrap();
    let text = fs::read_to_string(root.path().join(DOCUMENT)).unwrap();
    let row = |title: &str| text.lines().find(|line| line.starts_with(&format!("| {title}"))).unwrap();
    assert_eq!(
        row("pipe, awaited, 1 in flight"),
        "| pipe, awaited, 1 in flight | rate | relay | 0.70 (0.70–0.70) | ≥ 0.45 × | ≥ 0.65 × | goal reached |"
    );
    assert!(row("pipe, awaited, 2 in flight").ends_with("| gate passed |"));
    assert!(row("pipe, awaited, 3 in flight").ends_with("| **not reached** |"));
    assert!(row("pipe, awaited, 4 in flight").contains("| not measured |"));
    assert!(
        row("legacy, counted, 7 in flight").contains("| lost | – | 0 (0–0) | ≤ 0 | ≤ 0 | goal reached |")
    );
    assert!(text.contains("- legacy, counted, 7 in flight: lost 0 (0–0)\n"));
}

#[test]
fn what_is_no_record_is_refused() {
    let root = working_copy();
    let mut debug = report("a", vec![case(Mode::Pipe, "awaited", 1, "", &[(1.0, 1.0)])]);
    debug.conditions.build = "debug".to_owned();
    assert!(record(&debug, root.path()).unwrap_err().to_string().contains("--release"));
    debug.conditions.build = "release".to_owned();
    fs::write(root.path().join(DOCUMENT), document().replace("<!-- bench:pipe -->", "")).unwrap();
    let error = record(&debug, root.path()).unwrap_err().to_string();
    assert!(error.contains("<!-- bench:pipe -->"), "{error}");
    assert_eq!(document::complete(&document()).map_err(|error| error.to_string()), Ok(()));
    assert!(document::complete(&document().replace("<!-- /bench:slow -->", "")).is_err());
    assert!(!root.path().join(FIGURES).exists(), "nothing is half written");
}

#[test]
fn plots_have_a_line_for_each_series_and_no_colour_of_their_own_for_text() {
    let mut cases = Vec::new();
    for at in [1_u32, 64, 256, 1024] {
        let rate = f64::from(at).powf(0.7) * 6000.0;
        cases.push(case(Mode::Pipe, "awaited", at.into(), "relay", &[(rate * 0.7, rate)]));
        cases.push(case(Mode::Pipe, "window", at.into(), "relay", &[(rate, rate * 1.3)]));
    }
    for at in [1_u32, 64, 256] {
        let rate = f64::from(at).powf(0.4) * 4000.0;
        cases.push(case(Mode::Call, "1 connection", at.into(), "bare unary", &[(rate * 0.8, rate)]));
        cases.push(case(Mode::Rest, "POST /v1/call", at.into(), "bare REST", &[(rate * 1.1, rate * 1.3)]));
        cases.push(case(Mode::Legacy, "at once", at.into(), "bare legacy", &[(rate * 0.6, rate * 0.8)]));
    }
    for (mode, unit, against, at, cost) in [
        (Mode::Workers, "workers", "1 worker", 100, 5.0),
        (Mode::Workers, "workers", "1 worker", 1000, 20.0),
        (Mode::Methods, "methods", "1 method", 10_000, 1.1),
        (Mode::Backlog, "queued", "1,000 queued", 1_000_000, 1.04),
    ] {
        let mut case = case(mode, "growth", at, against, &[(1000.0, 1000.0 * cost)]);
        case.unit = unit.to_owned();
        cases.push(case);
    }
    let mut record = Record::default();
    record.merge(&report("a", cases));
    let plots = plot::plots(&record).unwrap();
    let names: Vec<_> = plots.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["rate.svg", "p99.svg", "growth.svg"]);
    for (_, svg) in &plots {
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("prefers-color-scheme:dark") && svg.contains("currentColor"));
        assert!(!svg.contains("#010203") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
    let words = |svg: &str, word: &str| svg.lines().filter(|line| line.trim() == word).count();
    let (_, rate) = &plots[0];
    assert_eq!((words(rate, "pipe, awaited"), words(rate, "relay"), words(rate, "rest")), (1, 2, 1));
    assert!(plot::plots(&Record::default()).unwrap().is_empty());
}
