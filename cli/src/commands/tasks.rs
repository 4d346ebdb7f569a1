//! `crewcall tasks`: a list of tasks.

use clap::{Args, ValueEnum};
use crewcall_sdk::proto::{self, TaskState};

use super::{ClientArgs, CommandError, Run, Session};
use crate::{
    exit::Exit,
    output::{Output, Style, age},
    view,
};

/// The most that one request may ask for.
const PAGE: u32 = 1000;

/// Which tasks; all that is given must hold.
#[derive(Args, Clone, Debug)]
pub(crate) struct FilterArgs {
    /// Only tasks of this method
    #[arg(long, value_name = "NAME")]
    pub(crate) method: Option<String>,

    /// Only tasks in this state; may be given again, or several with commas
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',')]
    pub(crate) states: Vec<State>,

    /// Only tasks that this worker holds
    #[arg(long, value_name = "ID")]
    pub(crate) worker: Option<String>,
}

/// The states of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    /// Waits for its time
    Delayed,
    /// Waits for a worker
    Ready,
    /// A worker holds it
    Leased,
    /// Succeeded
    Finished,
    /// Failed for good
    Dead,
    /// Cancelled by a caller
    Cancelled,
    /// A deadline passed
    Expired,
}

impl From<State> for TaskState {
    fn from(state: State) -> Self {
        match state {
            State::Delayed => Self::Delayed,
            State::Ready => Self::Ready,
            State::Leased => Self::Leased,
            State::Finished => Self::Finished,
            State::Dead => Self::Dead,
            State::Cancelled => Self::Cancelled,
            State::Expired => Self::Expired,
        }
    }
}

impl FilterArgs {
    pub(crate) fn is_empty(&self) -> bool {
        self.method.is_none() && self.states.is_empty() && self.worker.is_none()
    }
}

impl From<FilterArgs> for proto::TaskFilter {
    fn from(filter: FilterArgs) -> Self {
        Self {
            method: filter.method.unwrap_or_default(),
            states: filter.states.into_iter().map(|state| TaskState::from(state).into()).collect(),
            worker_id: filter.worker.unwrap_or_default(),
        }
    }
}

/// The arguments of `tasks`.
#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
pub(crate) struct TasksArgs {
    #[command(flatten)]
    filter: FilterArgs,

    /// The most tasks to list, newest first
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for TasksArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let limit = self.limit as usize;
        let filter = proto::TaskFilter::from(self.filter);
        let (mut tasks, mut token) = (Vec::new(), String::new());
        let more = loop {
            let left = u32::try_from(limit - tasks.len()).unwrap_or(PAGE).min(PAGE);
            let page = session.client.list(filter.clone(), left, token).await?;
            tasks.extend(page.tasks.into_iter().map(view::Task::from));
            token = page.next_page_token;
            if token.is_empty() || tasks.len() >= limit {
                break !token.is_empty();
            }
        };
        let out = &session.out;
        if out.json {
            out.document(&tasks)?;
            return Ok(Exit::Ok);
        }
        let rows: Vec<[String; 6]> = tasks
            .into_iter()
            .map(|task| {
                let attempt = if task.attempt == 0 { "-".to_owned() } else { task.attempt.to_string() };
                let created = age(task.created_at_unix_ms);
                [task.id, task.method, task.state.to_owned(), attempt, created, task.worker_id]
            })
            .collect();
        out.table(["ID", "METHOD", "STATE", "ATTEMPT", "AGE", "WORKER"], &rows, "no task matches")?;
        if more {
            out.note(&format!("there are more than these {}: see --limit", rows.len()));
        }
        Ok(Exit::Ok)
    }
}

/// The word for a state, in its colour.
pub(super) fn styled(out: &Output, state: &str) -> String {
    let style = match state {
        "finished" => Style::Good,
        "dead" | "expired" => Style::Bad,
        "leased" => Style::Busy,
        _ => Style::Faint,
    };
    out.style(style, state)
}
