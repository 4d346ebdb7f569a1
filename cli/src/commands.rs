//! What a person does with a running server. Each command: its arguments, then what it does with them.

use std::{io, time::Duration};

use clap::Args;
use crewcall_sdk::{CallError, Client, Refusal, WorkerError};
use serde::Serialize;
use tonic::Code;

use crate::{
    exit::Exit,
    output::{Output, safe},
    view,
};

mod backup;
mod bench;
mod call;
mod control;
mod dead;
mod dev;
mod doctor;
mod exec;
mod export;
mod get;
mod import;
mod methods;
mod pause;
mod sample;
mod server;
mod submit;
mod task_flags;
mod tasks;
mod watch;
mod worker;

pub(crate) use backup::BackupArgs;
pub(crate) use bench::{BenchArgs, run as bench};
pub(crate) use call::CallArgs;
pub(crate) use control::{CancelArgs, DrainArgs, RetryArgs};
pub(crate) use dead::DeadArgs;
pub(crate) use dev::{DevArgs, run as dev};
pub(crate) use doctor::{DoctorArgs, run as doctor};
pub(crate) use export::{ExportArgs, run as export};
pub(crate) use get::{ExplainArgs, GetArgs};
pub(crate) use import::{ImportArgs, run as import};
pub(crate) use methods::MethodsArgs;
pub(crate) use pause::{PauseArgs, ResumeArgs};
pub(crate) use server::{StatsArgs, WorkersArgs};
pub(crate) use submit::SubmitArgs;
pub(crate) use tasks::TasksArgs;
pub(crate) use watch::WatchArgs;
pub(crate) use worker::{WorkerArgs, run as worker};

/// What every client command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientArgs {
    /// The server, http://HOST:PORT
    #[arg(long, value_name = "URL", env = "CREWCALL_SERVER", default_value = "http://127.0.0.1:8080")]
    server: String,

    /// Answer as JSON; the shapes are described in docs/cli.md. Errors are then JSON on stderr
    #[arg(long)]
    json: bool,
}

/// A command at work: where it asks and how it answers.
pub(crate) struct Session {
    client: Client,
    server: String,
    out: Output,
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The person can put it right.
    #[error("{0}")]
    Usage(String),
    /// There is no connection.
    #[error(
        "{problem}\nhint: start a server with `crewcall serve`, or `crewcall dev` for one with methods to try; \
         name another with --server or CREWCALL_SERVER"
    )]
    Unreachable { problem: String },
    /// The server, or the connection to it, said no.
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A file, a pipe or the terminal.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The rest, with its code.
    #[error("{message}")]
    Other { exit: Exit, message: String },
}

/// A client command.
pub(crate) trait Run {
    fn client(&self) -> &ClientArgs;

    /// Does it, and says how to exit when nothing went wrong on the way.
    async fn run(self, session: &Session) -> Result<Exit, CommandError>;
}

/// Runs a client command to its end.
pub(crate) fn run(command: impl Run) -> Exit {
    let ClientArgs { server, json } = command.client().clone();
    let out = Output::new(json);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return CommandError::Io(error).report(&out),
    };
    let result = runtime.block_on(async {
        let client = connect(&server).await?;
        command.run(&Session { client, server, out }).await
    });
    // A thread that reads stdin would hold the process until a line comes.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| error.report(&out))
}

async fn connect(server: &str) -> Result<Client, CommandError> {
    // Finds what is wrong with the address itself, which no running server could put right.
    Client::connect_lazy(server).map_err(|error| match error {
        CallError::Transport(problem) => CommandError::Usage(format!("--server: {problem}")),
        other => other.into(),
    })?;
    Client::connect(server).await.map_err(|error| match error {
        CallError::Transport(problem) => CommandError::Unreachable { problem },
        other => other.into(),
    })
}

impl CommandError {
    fn other(exit: Exit, message: impl Into<String>) -> Self {
        Self::Other { exit, message: message.into() }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Worker(WorkerError::Invalid(_)) => Exit::Usage,
            Self::Unreachable { .. } | Self::Call(CallError::Transport(_)) => Exit::Unavailable,
            Self::Call(CallError::Failed { .. }) => Exit::TaskFailed,
            Self::Call(CallError::Cancelled(_)) => Exit::TaskCancelled,
            Self::Call(CallError::Expired(_)) => Exit::TaskExpired,
            Self::Call(CallError::Refused(refusal)) | Self::Worker(WorkerError::Refused(refusal)) => {
                refusal_exit(refusal)
            }
            Self::Worker(WorkerError::Aborted) => Exit::Interrupted,
            Self::Call(_) | Self::Worker(_) | Self::Io(_) => Exit::Failure,
            Self::Other { exit, .. } => *exit,
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Usage(_) => "usage",
            Self::Unreachable { .. } | Self::Call(CallError::Transport(_)) => "unreachable",
            Self::Call(error) => error.code().unwrap_or("unreadable_answer"),
            Self::Worker(WorkerError::Refused(refusal)) => &refusal.reason,
            Self::Worker(_) => "worker",
            Self::Io(_) => "io",
            Self::Other { exit, .. } => match exit {
                Exit::NotFound => "not_found",
                _ => "failed",
            },
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Call(CallError::Refused(refusal)) => refusal.retry_after,
            _ => None,
        }
    }

    /// Tells it on stderr, and says how to exit.
    pub(crate) fn report(&self, out: &Output) -> Exit {
        // Whoever closed stdout, as `head` does, has seen enough.
        if matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return Exit::Ok;
        }
        if out.json {
            #[derive(Serialize)]
            struct Document {
                error: view::Refusal,
                exit_code: u8,
            }
            let retry_after_ms =
                self.retry_after().and_then(|wait| u64::try_from(wait.as_millis()).ok()).unwrap_or_default();
            let error =
                view::Refusal { reason: self.reason().to_owned(), message: self.to_string(), retry_after_ms };
            let document = Document { error, exit_code: self.exit() as u8 };
            eprintln!("{}", serde_json::to_string(&document).unwrap_or_default());
        } else {
            eprintln!("error: {}", safe(&self.to_string()));
            if let Some(wait) = self.retry_after() {
                eprintln!("hint: try again in {}", humantime::format_duration(wait));
            }
        }
        self.exit()
    }
}

/// What a refusal means to a script.
fn refusal_exit(refusal: &Refusal) -> Exit {
    match refusal.code {
        Code::NotFound => Exit::NotFound,
        Code::Unavailable | Code::ResourceExhausted => Exit::Unavailable,
        _ => Exit::Refused,
    }
}

/// `10s`, `1m 30s`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number with its unit, such as 500ms, 15s or 2m"))
}

/// A duration that is not zero.
fn some_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than zero; leave it out for none".to_owned()),
        some => Ok(some),
    }
}

/// `key=value`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}
