//! `crewcall call`: one call, its result on stdout.

use std::time::{Duration, Instant};

use clap::Args;
use crewcall_sdk::{
    NewTask, Payload,
    error::outcome_result,
    proto::{self, TaskState},
};

use super::{
    ClientArgs, CommandError, Run, Session, some_duration,
    task_flags::{Durable, Input, TaskFlags},
};
use crate::{
    exit::Exit,
    output::{Output, safe},
    view::{self, Data},
};

/// After this long a person is told why nothing happens.
const HINT_AFTER: Duration = Duration::from_secs(1);
/// The server waits at most 5 minutes per request.
const WAIT_PER_REQUEST: Duration = Duration::from_secs(60);

/// The arguments of `call`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  crewcall call add '{\"a\":1,\"b\":2}'
  crewcall call report @query.json --wait 10s || crewcall get ID --wait 10m --result
  echo '[1,2,3]' | crewcall call sort -

The result is printed on stdout, laid out on a terminal and on one line elsewhere. A call that nobody waits for any
more, say after ctrl-c, is cancelled, unless it is durable or was given --wait.

Exit codes: 0 result, 5 failed, 6 cancelled, 7 expired, 11 --wait elapsed; all of them: `crewcall --help`.")]
pub(crate) struct CallArgs {
    /// Name of the method
    method: String,

    /// What to call it with: JSON, or @FILE, or - for stdin
    #[arg(
        value_name = "JSON",
        default_value = "null",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    payload: String,

    /// Wait this long for the outcome; then print the id of the task, leave it to go on, and exit with 11. Default: wait
    /// as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    wait: Option<Duration>,

    /// The task survives a restart of the server
    #[arg(long)]
    durable: bool,

    /// Send the payload as it is, with this media type, instead of JSON
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    #[command(flatten)]
    flags: TaskFlags,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for CallArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let input = Input::read(&self.payload, self.content_type.as_deref())?;
        match self.wait {
            None => {
                let durable = if self.durable { Durable::Yes } else { Durable::Default };
                session.call(self.flags.task(&self.method, &input, durable)?).await
            }
            Some(wait) => {
                // A submission with the defaults of a call: waiting less must not change what is run.
                let durable = if self.durable { Durable::Yes } else { Durable::No };
                let mut flags = self.flags;
                flags.retry.get_or_insert(0);
                session.submit_and_wait(flags.task(&self.method, &input, durable)?, wait).await
            }
        }
    }
}

impl Session {
    async fn call(&self, task: NewTask) -> Result<Exit, CommandError> {
        let method = task.method.clone();
        let answer = self.hinting(&method, self.client.call_outcome(task)).await?;
        let proto::CallResponse { task_id, outcome } = answer;
        show(&self.out, task_id, outcome)
    }

    async fn submit_and_wait(&self, task: NewTask, wait: Duration) -> Result<Exit, CommandError> {
        let method = task.method.clone();
        let until = Instant::now() + wait;
        let task_id = self.client.submit(task).await?.task_id;
        let ended = self.hinting(&method, self.wait(&task_id, until)).await?;
        let Some(task) = ended else {
            if self.out.json {
                self.out.document(&view::Called { task_id, outcome: None })?;
            } else {
                self.out.line(&task_id)?;
                eprintln!(
                    "the task has not ended yet and goes on: crewcall get {task_id} --wait 1m --result"
                );
            }
            return Ok(Exit::WaitElapsed);
        };
        show(&self.out, task_id, task.outcome)
    }

    /// The task once it has ended, `None` when the time is up first.
    pub(super) async fn wait(
        &self,
        task_id: &str,
        until: Instant,
    ) -> Result<Option<proto::Task>, CommandError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let task = self.client.get_wait(task_id, left.min(WAIT_PER_REQUEST)).await?;
            if has_ended(task.state()) {
                return Ok(Some(task));
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// Waits, and tells a person after a moment when it is for want of a worker.
    async fn hinting<T, E>(&self, method: &str, answer: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut answer = std::pin::pin!(answer);
        if !self.out.stderr_terminal || self.out.json {
            return answer.await;
        }
        let hint = async {
            tokio::time::sleep(HINT_AFTER).await;
            if let Some(hint) = self.why_waiting(method).await {
                self.out.note(&hint);
            }
        };
        tokio::select! {
            biased;
            answered = &mut answer => return answered,
            () = hint => {}
        }
        answer.await
    }

    /// `None` when a worker serves the method, or the server does not say.
    async fn why_waiting(&self, method: &str) -> Option<String> {
        let serves = |status: &proto::MethodStatus| {
            status.workers > 0 && status.method.as_ref().is_some_and(|found| found.name == method)
        };
        if self.client.methods().await.ok()?.iter().any(serves) {
            return None;
        }
        let filter = proto::TaskFilter {
            method: method.to_owned(),
            states: vec![TaskState::Ready.into()],
            worker_id: String::new(),
        };
        let waiting = self.client.list(filter, 1, "").await.ok()?.tasks;
        let id = waiting.first().map_or("ID", |task| task.id.as_str());
        Some(format!(
            "no worker serves `{}` yet; the call waits for one (`crewcall methods` lists what is served, `crewcall \
             explain {id}` says more)",
            safe(method)
        ))
    }
}

pub(super) fn has_ended(state: TaskState) -> bool {
    matches!(state, TaskState::Finished | TaskState::Dead | TaskState::Cancelled | TaskState::Expired)
}

/// How a task in this state exits.
pub(super) fn state_exit(state: TaskState) -> Exit {
    match state {
        TaskState::Finished => Exit::Ok,
        TaskState::Dead => Exit::TaskFailed,
        TaskState::Cancelled => Exit::TaskCancelled,
        TaskState::Expired => Exit::TaskExpired,
        TaskState::Unspecified | TaskState::Delayed | TaskState::Ready | TaskState::Leased => {
            Exit::WaitElapsed
        }
    }
}

/// The outcome of a call: its result alone, or all of it as JSON.
pub(super) fn show(
    out: &Output,
    task_id: String,
    outcome: Option<proto::Outcome>,
) -> Result<Exit, CommandError> {
    if out.json {
        let kind = outcome.and_then(|outcome| outcome.kind);
        let exit = match &kind {
            Some(proto::outcome::Kind::Succeeded(_)) => Exit::Ok,
            Some(proto::outcome::Kind::Failed(_)) => Exit::TaskFailed,
            Some(proto::outcome::Kind::Cancelled(_)) => Exit::TaskCancelled,
            Some(proto::outcome::Kind::Expired(_)) => Exit::TaskExpired,
            None => Exit::Failure,
        };
        out.document(&view::Called { task_id, outcome: kind.map(Into::into) })?;
        return Ok(exit);
    }
    match outcome_result(outcome) {
        Ok(result) => {
            show_payload(out, &result)?;
            Ok(Exit::Ok)
        }
        Err(error) => {
            let details = match &error {
                crewcall_sdk::CallError::Failed { details: Some(details), .. } => Some(text(out, details)),
                _ => None,
            };
            let error = CommandError::Call(error);
            let exit = error.report(out);
            if let Some(details) = details {
                eprintln!("details: {details}");
            }
            eprintln!("task: {task_id}");
            Ok(exit)
        }
    }
}

/// A payload on stdout: JSON as JSON, anything else as its bytes, which a terminal is spared.
fn show_payload(out: &Output, payload: &Payload) -> Result<(), CommandError> {
    match Data::of(payload) {
        Data::Json(json) => out.value(json.get())?,
        Data::Bytes(_) if out.terminal => out.line(&text(out, payload))?,
        Data::Bytes(_) => out.bytes(&payload.data)?,
    }
    Ok(())
}

/// A payload for a person.
pub(super) fn text(out: &Output, payload: &Payload) -> String {
    match (Data::of(payload), std::str::from_utf8(&payload.data)) {
        (Data::Json(json), _) => crate::json::lay_out(json.get(), out.layout()),
        (Data::Bytes(_), Ok(text)) => safe(text),
        (Data::Bytes(bytes), Err(_)) => {
            format!(
                "({} bytes of {}; redirect stdout to have them)",
                payload.data.len(),
                safe(&bytes.content_type)
            )
        }
    }
}
