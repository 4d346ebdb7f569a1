//! `crewcall watch`: tasks as they move.

use std::collections::HashMap;

use clap::Args;
use crewcall_sdk::{
    WatchEvent, WatchTarget,
    proto::{self, TaskState},
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{
    ClientArgs, CommandError, Run, Session,
    call::{has_ended, state_exit, text},
    get::progress,
    tasks::{FilterArgs, styled},
};
use crate::{
    exit::Exit,
    log::no_color,
    output::{Output, on_one_line},
    view,
};

/// Bars shown at once; what goes beyond is told by its lines alone.
const BARS: usize = 20;

/// The arguments of `watch`.
#[derive(Args, Debug)]
#[command(after_help = "\
With ids it ends when all of them have; with a filter it goes on until ctrl-c. A connection that breaks is taken up
again where it broke.

Exit codes, with ids: 0 all succeeded; else that of the first that did not: 5 failed, 6 cancelled, 7 expired.")]
pub(crate) struct WatchArgs {
    /// Ids of the tasks, at most 1000
    #[arg(conflicts_with_all = ["method", "states", "worker"])]
    ids: Vec<String>,

    #[command(flatten)]
    filter: FilterArgs,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for WatchArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let target = match (self.ids.is_empty(), self.filter.is_empty()) {
            (false, _) => WatchTarget::Ids(self.ids),
            (true, false) => WatchTarget::Filter(self.filter.into()),
            (true, true) => {
                let what = "name the tasks to watch, or a filter such as --method NAME".to_owned();
                return Err(CommandError::Usage(what));
            }
        };
        let by_id = matches!(target, WatchTarget::Ids(_));
        let mut watch = session.client.watch(target, "").await?;
        let mut screen = Screen::new(session.out);
        let mut exit = Exit::Ok;
        while let Some(event) = watch.next().await {
            let event = event?;
            if let (true, Exit::Ok, WatchEvent::Task(task)) = (by_id, exit, &event)
                && has_ended(task.state())
            {
                exit = state_exit(task.state());
            }
            screen.show(event)?;
        }
        Ok(exit)
    }
}

/// What was told so far: lines, and on a terminal a bar for each task that runs.
struct Screen {
    out: Output,
    bars: Option<MultiProgress>,
    running: HashMap<String, ProgressBar>,
    /// The state last told of each task that has not ended, so that what did not change is told once.
    told: HashMap<String, (TaskState, u32)>,
}

impl Screen {
    fn new(out: Output) -> Self {
        // Bars are drawn on stderr; lines go to stdout. Only where both are the same screen may they mix.
        let bars = (out.terminal && out.stderr_terminal && !out.json).then(MultiProgress::new);
        Self { out, bars, running: HashMap::new(), told: HashMap::new() }
    }

    fn show(&mut self, event: WatchEvent) -> Result<(), CommandError> {
        if self.out.json {
            return Ok(self.out.item(&view::Event::from(event))?);
        }
        match event {
            WatchEvent::Task(task) => self.task(*task),
            WatchEvent::Progress(event) => {
                let progress = event.progress.unwrap_or_default();
                self.progress(&event.task_id, progress)
            }
            WatchEvent::Chunk(event) => {
                let data = event.data.as_ref().map(|data| text(&self.out, data)).unwrap_or_default();
                self.line(&format!("{} chunk {}: {}", event.task_id, event.index, on_one_line(&data)))
            }
        }
    }

    fn task(&mut self, task: proto::Task) -> Result<(), CommandError> {
        let state = task.state();
        let first_progress = task.progress.clone();
        let id = task.id.clone();
        let now = (state, task.attempt);
        if self.told.get(&id) != Some(&now) {
            let line = describe(&self.out, task);
            self.line(&line)?;
        }
        if has_ended(state) {
            self.told.remove(&id);
        } else {
            self.told.insert(id.clone(), now);
        }
        match state {
            TaskState::Leased => {
                if let Some(progress) = first_progress {
                    self.progress(&id, progress)?;
                }
            }
            _ => {
                if let Some(bar) = self.running.remove(&id) {
                    bar.finish_and_clear();
                }
            }
        }
        Ok(())
    }

    fn progress(&mut self, id: &str, now: proto::Progress) -> Result<(), CommandError> {
        let Some(bar) = self.bar(id) else {
            return self.line(&format!("{id} progress {}", progress(now.into())));
        };
        bar.set_style(style(now.total > 0));
        if now.total > 0 {
            bar.set_length(now.total);
        }
        bar.set_position(now.current);
        bar.set_message(on_one_line(&now.message));
        Ok(())
    }

    /// The task's bar, a new one if there is room.
    fn bar(&mut self, id: &str) -> Option<&ProgressBar> {
        let bars = self.bars.as_ref()?;
        if !self.running.contains_key(id) {
            if self.running.len() >= BARS {
                return None;
            }
            let bar = bars.add(ProgressBar::no_length()).with_prefix(id.to_owned());
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            self.running.insert(id.to_owned(), bar);
        }
        self.running.get(id)
    }

    fn line(&self, line: &str) -> Result<(), CommandError> {
        match &self.bars {
            Some(bars) => bars.suspend(|| self.out.line(line))?,
            None => self.out.line(line)?,
        }
        Ok(())
    }
}

fn style(known: bool) -> ProgressStyle {
    let template = match (known, no_color()) {
        (true, false) => "{prefix:.dim} {bar:16.cyan/dim} {pos}/{len} {wide_msg}",
        (true, true) => "{prefix} {bar:16} {pos}/{len} {wide_msg}",
        (false, false) => "{prefix:.dim} {spinner:.cyan} {pos} {wide_msg} {elapsed}",
        (false, true) => "{prefix} {spinner} {pos} {wide_msg} {elapsed}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A task on one line: its id, its state, and what goes with it.
fn describe(out: &Output, task: proto::Task) -> String {
    let task = view::Task::from(task);
    let detail = match (task.outcome, task.state) {
        (Some(outcome), _) => match (outcome.result, outcome.error, outcome.reason) {
            (Some(result), ..) => result.get().to_owned(),
            (_, Some(error), _) => format!("{}: {}", error.code, error.message),
            (.., Some(reason)) => reason,
            _ => String::new(),
        },
        (None, "leased") => format!("attempt {} on {}", task.attempt, task.worker_id),
        (None, "delayed") if task.attempt > 0 => format!("after attempt {}", task.attempt),
        (None, _) => String::new(),
    };
    let line = format!("{} {} {} ", task.id, task.method, styled(out, task.state));
    format!("{line}{}", on_one_line(&detail)).trim_end().to_owned()
}
