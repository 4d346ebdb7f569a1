//! `crewcall get` and `crewcall explain`: one task.

use std::time::{Duration, Instant};

use clap::Args;
use crewcall_sdk::{Payload, proto};

use super::{
    ClientArgs, CommandError, Run, Session,
    call::{has_ended, show, state_exit, text},
    some_duration,
};
use crate::{
    exit::Exit,
    output::{moment, on_one_line, safe, span},
    view::{self, Data},
};

/// The arguments of `get`.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes: 0 the task is shown, whatever its state. With --wait or --result it is the task's: 0 succeeded, 5 failed,
6 cancelled, 7 expired, 11 not ended.")]
pub(crate) struct GetArgs {
    /// Id of the task
    id: String,

    /// Wait up to this long for the outcome
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    wait: Option<Duration>,

    /// Also show what the task was submitted with
    #[arg(long)]
    payload: bool,

    /// Print the result alone, as `call` does
    #[arg(long, conflicts_with = "payload")]
    result: bool,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for GetArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        if let Some(wait) = self.wait {
            session.wait(&self.id, Instant::now() + wait).await?;
        }
        let request = proto::GetRequest { task_id: self.id.clone(), with_payload: self.payload, wait_ms: 0 };
        let task = session.client.get_with(request).await?;
        let state = task.state();
        if self.result && has_ended(state) {
            return show(&session.out, task.id, task.outcome);
        }
        if self.result {
            if session.out.json {
                session.out.document(&view::Called { task_id: task.id, outcome: None })?;
            } else {
                eprintln!("the task has not ended yet: it is {}", view::state(state));
            }
            return Ok(Exit::WaitElapsed);
        }
        let exit = if self.wait.is_some() { state_exit(state) } else { Exit::Ok };
        if session.out.json {
            session.out.document(&view::Task::from(task))?;
        } else {
            session.show_task(task)?;
        }
        Ok(exit)
    }
}

impl Session {
    pub(super) fn show_task(&self, task: proto::Task) -> Result<(), CommandError> {
        let out = &self.out;
        let word = |payload: &Payload| match Data::of(payload) {
            Data::Json(json) => json.get().to_owned(),
            Data::Bytes(_) => text(out, payload),
        };
        let payload = task.payload.as_ref().map(word).unwrap_or_default();
        let outcome = task.outcome.clone().and_then(|outcome| outcome.kind);
        let result = match &outcome {
            Some(proto::outcome::Kind::Succeeded(result)) => word(result),
            _ => String::new(),
        };
        let task = view::Task::from(task);
        let options = task.options.as_ref().and_then(|options| serde_json::to_string(options).ok());
        let (error, reason) = match task.outcome {
            Some(view::Outcome { error: Some(error), .. }) => {
                let details = error.details.map_or(String::new(), |details| format!(" {}", details.get()));
                (format!("{}: {}{details}", error.code, error.message), String::new())
            }
            Some(outcome) => (String::new(), outcome.reason.unwrap_or_default()),
            None => (String::new(), String::new()),
        };
        let attempt = if task.attempt == 0 { String::new() } else { task.attempt.to_string() };
        let elapsed = u64::try_from(task.changed_at_unix_ms - task.created_at_unix_ms).unwrap_or_default();
        out.facts(&[
            ("id", task.id),
            ("method", task.method),
            ("state", task.state.to_owned()),
            ("attempt", attempt),
            ("worker", task.worker_id),
            ("created", moment(task.created_at_unix_ms)),
            ("changed", moment(task.changed_at_unix_ms)),
            ("after", span(elapsed)),
            ("due", moment(task.run_at_unix_ms)),
            ("options", options.unwrap_or_default()),
            ("progress", task.progress.map(progress).unwrap_or_default()),
            ("payload", payload),
            ("result", result),
            ("error", error),
            ("reason", reason),
        ])?;
        for attempt in task.attempts {
            let error = attempt.error.map(|error| format!("{}: {}", error.code, error.message));
            out.line(&format!(
                "  attempt {} on {} failed at {}: {}",
                attempt.number,
                safe(&attempt.worker_id),
                moment(attempt.ended_at_unix_ms),
                on_one_line(&error.unwrap_or_default())
            ))?;
        }
        Ok(())
    }
}

/// `3/10 (30%) message`.
pub(super) fn progress(progress: view::Progress) -> String {
    let view::Progress { current, total, message } = progress;
    let counts = match total {
        0 => current.to_string(),
        total => format!("{current}/{total} ({}%)", u128::from(current) * 100 / u128::from(total)),
    };
    let text = if message.is_empty() { counts } else { format!("{counts} {message}") };
    on_one_line(&text)
}

/// The arguments of `explain`.
#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
pub(crate) struct ExplainArgs {
    /// Id of the task
    id: String,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for ExplainArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let answer = view::Explanation::from(session.client.explain(self.id).await?);
        if session.out.json {
            session.out.document(&answer)?;
        } else {
            session.out.line(&safe(&answer.summary))?;
            for detail in &answer.details {
                session.out.line(&format!("  - {}", safe(detail)))?;
            }
        }
        Ok(Exit::Ok)
    }
}
