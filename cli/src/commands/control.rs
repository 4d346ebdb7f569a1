//! `crewcall cancel`, `retry` and `drain`: orders about tasks and workers.

use clap::Args;
use crewcall_sdk::{CallError, proto};
use serde::Serialize;

use super::{ClientArgs, CommandError, Run, Session};
use crate::{
    exit::Exit,
    output::{on_one_line, safe},
    view,
};

/// The arguments of `cancel`.
#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
pub(crate) struct CancelArgs {
    /// Ids of the tasks
    #[arg(required = true)]
    ids: Vec<String>,

    /// Shown to the worker and in the outcome
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for CancelArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let mut exit = Exit::Ok;
        for id in self.ids {
            let answer = session.client.cancel(&id, &self.reason).await;
            exit = session.tell(answer, exit)?;
        }
        Ok(exit)
    }
}

/// The arguments of `retry`.
#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
pub(crate) struct RetryArgs {
    /// Ids of tasks that have ended
    #[arg(required = true)]
    ids: Vec<String>,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for RetryArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let mut exit = Exit::Ok;
        for id in self.ids {
            let answer = session.client.retry(&id).await;
            exit = session.tell(answer, exit)?;
        }
        Ok(exit)
    }
}

impl Session {
    /// Tells how one of several tasks fared. A refusal of one does not keep the others from their turn; the first one
    /// decides the exit code.
    fn tell(&self, answer: Result<proto::Task, CallError>, so_far: Exit) -> Result<Exit, CommandError> {
        match answer {
            Ok(task) => {
                let task = view::Task::from(task);
                if self.out.json {
                    self.out.item(&task)?;
                } else {
                    self.out.line(&format!("{} {}", task.id, task.state))?;
                }
                Ok(so_far)
            }
            Err(error @ CallError::Refused(_)) => {
                let exit = CommandError::Call(error).report(&self.out);
                Ok(if so_far == Exit::Ok { exit } else { so_far })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The arguments of `drain`.
#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
pub(crate) struct DrainArgs {
    /// Id of the worker, as `crewcall workers` shows it
    worker: String,

    /// Told to the worker
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for DrainArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        #[derive(Serialize)]
        struct Answer {
            worker_id: String,
            draining: bool,
        }
        session.client.drain(&self.worker, &self.reason).await?;
        if session.out.json {
            session.out.document(&Answer { worker_id: self.worker, draining: true })?;
        } else {
            let worker = on_one_line(&safe(&self.worker));
            session.out.line(&format!("{worker} takes no more tasks, finishes what it has and leaves"))?;
        }
        Ok(Exit::Ok)
    }
}
