//! One pair after the other.

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    BenchError, Report, Settings,
    case::{Case, Mode},
    conditions, files, matrix,
    result::{CaseResult, GoalResult, Pair},
    settings::Size,
    stage::Stage,
};

/// Starting and stopping the processes of one run.
const OVERHEAD: Duration = Duration::from_millis(250);
/// Modes that need a server of their own, with its settings and its end in their hands.
const OWN_SERVER: [Mode; 5] = [Mode::Backlog, Mode::Stored, Mode::Idle, Mode::Overload, Mode::Restart];

/// How long a run will take, about.
pub fn estimate(settings: &Settings) -> Duration {
    settings
        .modes
        .iter()
        .flat_map(|mode| matrix::cases(*mode, settings))
        .map(|case| time(&case, settings))
        .sum()
}

fn time(case: &Case, settings: &Settings) -> Duration {
    let run = settings.warm_up + settings.seconds + OVERHEAD + settings.size.time(case.preparation);
    run * pairs(case, settings) * if settings.compare && case.against.is_some() { 2 } else { 1 }
}

fn pairs(case: &Case, settings: &Settings) -> u32 {
    case.pairs.map_or(settings.pairs, |pairs| pairs.min(settings.pairs.max(1))).max(1)
}

/// Runs everything that was asked for, with a progress bar where a person watches stderr. `each` is told what
/// came of each mode as soon as it is done, so that a run that is cut short keeps what it measured.
///
/// # Errors
/// [`BenchError`]: what was asked for makes no sense, a process failed, an answer was wrong, or what `each` says.
pub async fn run(
    settings: &Settings,
    mut each: impl FnMut(&Report) -> Result<(), BenchError>,
) -> Result<Report, BenchError> {
    check(settings)?;
    files::raise_limit();
    let modes: Vec<Vec<Case>> = settings.modes.iter().map(|mode| matrix::cases(*mode, settings)).collect();
    let bar = progress(settings, modes.iter().flatten());
    let conditions = conditions::now(settings);
    let steal = conditions::steal();
    let mut report = Report { format: 1, conditions, cases: Vec::new() };
    for cases in &modes {
        let steal = conditions::steal();
        let mut mode =
            Report { format: report.format, conditions: report.conditions.clone(), cases: Vec::new() };
        for case in cases {
            mode.cases.push(measure(case, settings, &bar).await?);
        }
        mode.conditions.steal = conditions::stolen_since(steal);
        bar.suspend(|| each(&mode))?;
        report.cases.append(&mut mode.cases);
    }
    bar.finish_and_clear();
    report.conditions.steal = conditions::stolen_since(steal);
    Ok(report)
}

async fn measure(case: &Case, settings: &Settings, bar: &ProgressBar) -> Result<CaseResult, BenchError> {
    let mut result = empty(case, settings);
    bar.set_message(result.title());
    for round in 0..pairs(case, settings) {
        let pair = pair(case, settings, round).await.map_err(|error| match error {
            BenchError::Failed { case, why } => {
                BenchError::failed(format!("{} ({case})", result.title()), why)
            }
            other => other,
        })?;
        result.pairs.push(pair);
        bar.inc(1);
    }
    if settings.size == Size::Full {
        result.goals = goals(case, &result);
    }
    Ok(result)
}

fn check(settings: &Settings) -> Result<(), BenchError> {
    let usage = |text: String| Err(BenchError::Usage(text));
    if settings.seconds.is_zero() {
        return usage("a window of no length counts nothing".to_owned());
    }
    if let Some(mode) =
        settings.modes.iter().find(|mode| settings.target.is_some() && OWN_SERVER.contains(mode))
    {
        return usage(format!("{} needs a server of its own: leave --target out", mode.name()));
    }
    Ok(())
}

fn empty(case: &Case, settings: &Settings) -> CaseResult {
    let against = case.against.as_ref().filter(|_| settings.compare);
    CaseResult {
        mode: case.mode,
        series: case.series.clone(),
        at: case.at,
        unit: case.unit.to_owned(),
        against: against.map_or_else(String::new, |against| against.name.to_owned()),
        pairs: Vec::new(),
        goals: Vec::new(),
    }
}

/// One repetition: product and floor, in an order that changes each time, so that neither always finds the
/// machine as the other left it.
async fn pair(case: &Case, settings: &Settings, round: u32) -> Result<Pair, BenchError> {
    let against = case.against.as_ref().filter(|_| settings.compare);
    let floor_first = round % 2 == 1;
    let Some(against) = against else {
        let product = Stage::play(settings, &case.product).await?;
        return Ok(Pair { product, floor: None, floor_first: false });
    };
    let (product, floor) = if floor_first {
        let floor = Stage::play(settings, &against.arm).await?;
        (Stage::play(settings, &case.product).await?, floor)
    } else {
        let product = Stage::play(settings, &case.product).await?;
        (product, Stage::play(settings, &against.arm).await?)
    };
    Ok(Pair { product, floor: Some(floor), floor_first })
}

fn goals(case: &Case, result: &CaseResult) -> Vec<GoalResult> {
    let reached = |goal: &crate::case::Goal| {
        if goal.ratio { result.ratio(goal.metric) } else { result.product(goal.metric) }
    };
    // A ratio needs something to compare with.
    let asked = case.goals.iter().filter(|goal| !goal.ratio || !result.against.is_empty());
    asked.map(|goal| GoalResult { goal: *goal, reached: reached(goal) }).collect()
}

fn progress<'a>(settings: &Settings, cases: impl Iterator<Item = &'a Case>) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let rounds = cases.map(|case| u64::from(pairs(case, settings))).sum();
    let bar = ProgressBar::with_draw_target(Some(rounds), target);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} of about {eta} left  {msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
