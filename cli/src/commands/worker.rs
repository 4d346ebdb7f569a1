//! `crewcall worker`: any executable as a worker.

use std::{env, ffi::OsString, fs, path::Path, sync::Arc, time::Duration};

use clap::Args;
use crewcall::shutdown::Signals;
use crewcall_sdk::{MethodSpec, Worker, WorkerError, WorkerState};
use serde::Serialize;

use super::{ClientArgs, CommandError, duration, exec::Program, pair, some_duration};
use crate::{
    config::Secret,
    exit::Exit,
    json,
    log::{self, LogFilter, LogFormat},
    output::{Output, on_one_line},
};

/// From the end of the grace until the SDK drops a handler: SIGKILL does its work in less.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// The arguments of `worker`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  crewcall worker --method sum -- jq add
  crewcall worker --method render --concurrency 4 --timeout 5m --label gpu=a100 -- ./render.sh

The command is started once for each task, without a shell:
  stdin    the payload
  stdout   the result, one JSON value; nothing means null
  stderr   passed on; its end is the error message when the command fails
  exit     0: succeeded. N: failed with the code exit_N, and tried again as the task's retry policy says
  env      CREWCALL_TASK_ID, CREWCALL_METHOD, CREWCALL_ATTEMPT (from 1), CREWCALL_LEASE (rises with every attempt of
           any task), CREWCALL_CONTENT_TYPE, CREWCALL_DEADLINE_UNIX_MS (if there is one), CREWCALL_SERVER
When the task is cancelled, its deadline passes or --timeout is over, the command and everything it started get
SIGTERM, and SIGKILL after --kill-grace. Further error codes: signal_N, timeout, output_too_large, invalid_output,
spawn_failed.

On SIGTERM or ctrl-c the worker takes no more tasks, finishes what runs and leaves; a second signal ends it at once.

Exit codes: 0 left in order, 9 the server refused the worker; all of them: `crewcall --help`.")]
pub(crate) struct WorkerArgs {
    /// Name of a method to serve; may be given again, CREWCALL_METHOD tells the command which
    #[arg(long = "method", value_name = "NAME", required = true)]
    methods: Vec<String>,

    /// How many tasks run at once, 1 to 65536
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    concurrency: u32,

    /// Name of the worker, the same after a restart. Default: chosen by the server
    #[arg(long, value_name = "ID")]
    worker_id: Option<String>,

    /// Workers of one kind, for callers who ask for it
    #[arg(long, value_name = "NAME")]
    group: Option<String>,

    /// A label for callers who ask for it; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,

    /// The server's worker key. Better given by environment: others on this machine can read a process's flags
    #[arg(long, value_name = "KEY", env = "CREWCALL_WORKER_KEY", hide_env_values = true)]
    key: Option<Secret>,

    /// Semantic version of the methods. Default: 0.0.0
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,

    /// What the methods do, in one line
    #[arg(long, value_name = "TEXT")]
    summary: Option<String>,

    /// Documentation of the methods, Markdown, or @FILE
    #[arg(long, value_name = "TEXT")]
    docs: Option<String>,

    /// JSON Schema of the payload, or @FILE
    #[arg(long, value_name = "JSON")]
    input_schema: Option<String>,

    /// JSON Schema of the result, or @FILE
    #[arg(long, value_name = "JSON")]
    output_schema: Option<String>,

    /// The longest run of the command. Default: none
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    timeout: Option<Duration>,

    /// From SIGTERM to SIGKILL
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    kill_grace: Duration,

    /// How long leaving waits for running commands
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    drain_timeout: Duration,

    /// The longest result, in bytes. The server has a limit too, 4 MiB by default
    #[arg(long, value_name = "BYTES", default_value_t = 4 * 1024 * 1024)]
    max_output: usize,

    /// What to log to stderr: error, warn, info, debug, trace, or target=level pairs separated by commas
    #[arg(long, value_name = "FILTER", env = "CREWCALL_LOG", default_value = "warn")]
    log: LogFilter,

    #[command(flatten)]
    client: ClientArgs,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// A line of `worker --json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Connected { worker_id: &'a str, session_id: &'a str, methods: &'a [String] },
    Disconnected { worker_id: &'a str },
    Draining,
    Left,
}

/// Runs the worker until a signal, or the server, ends it.
pub(crate) fn run(args: WorkerArgs) -> Exit {
    log::start(&args.log, LogFormat::Text);
    let out = Output::new(args.client.json);
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Io)
        .and_then(|runtime| runtime.block_on(serve(args, out)));
    result.unwrap_or_else(|error| error.report(&out))
}

async fn serve(args: WorkerArgs, out: Output) -> Result<Exit, CommandError> {
    let (methods, server) = (args.methods.clone(), args.client.server.clone());
    let worker = build(args)?;
    let mut signals = Signals::install()?;
    let mut handle = worker.start();
    let mut status = handle.status();
    let told = Told { out, methods, server };
    let mut connections = 0;
    loop {
        tokio::select! {
            biased;
            ended = handle.ended() => {
                ended?;
                told.left()?;
                return Ok(Exit::Ok);
            }
            changed = status.changed() => {
                let now = status.borrow_and_update().clone();
                if changed.is_ok() && now.state == WorkerState::Connected && now.connections > connections {
                    connections = now.connections;
                    told.connected(&now.worker_id, &now.session_id)?;
                } else if changed.is_ok() && now.state == WorkerState::Connecting && connections > 0 {
                    told.disconnected(&now.worker_id)?;
                }
            }
            _ = signals.next() => break,
        }
    }
    told.draining()?;
    handle.drain();
    tokio::select! {
        ended = handle.ended() => ended?,
        _ = signals.next() => {
            handle.abort();
            return Err(WorkerError::Aborted.into());
        }
    }
    told.left()?;
    Ok(Exit::Ok)
}

fn build(args: WorkerArgs) -> Result<Worker, CommandError> {
    let mut command = args.command.into_iter();
    let program = command.next().unwrap_or_default();
    if !can_be_found(&program) {
        let name = program.to_string_lossy();
        return Err(CommandError::Usage(format!(
            "command `{name}` is not found; it is run without a shell, so for shell syntax write: -- sh -c '…'"
        )));
    }
    let docs = args.docs.as_deref().map(text_or_file).transpose()?;
    let input_schema = args.input_schema.as_deref().map(|text| schema("--input-schema", text)).transpose()?;
    let output_schema =
        args.output_schema.as_deref().map(|text| schema("--output-schema", text)).transpose()?;
    let program = Arc::new(Program {
        program,
        args: command.collect(),
        server: args.client.server.clone(),
        timeout: args.timeout,
        kill_grace: args.kill_grace,
        max_output: args.max_output,
    });
    let mut builder = Worker::builder(args.client.server)
        .concurrency(args.concurrency)
        .cancel_grace(args.kill_grace.saturating_add(AFTER_KILL))
        .drain_timeout(args.drain_timeout);
    if let Some(id) = args.worker_id {
        builder = builder.worker_id(id);
    }
    if let Some(group) = args.group {
        builder = builder.group(group);
    }
    for (key, value) in args.labels {
        builder = builder.label(key, value);
    }
    if let Some(key) = &args.key {
        builder = builder.key(key.expose());
    }
    if let Some(version) = &args.version {
        builder = builder.version(version);
    }
    for method in args.methods {
        let mut spec = MethodSpec::new(method)
            .version(args.version.clone().unwrap_or_default())
            .summary(args.summary.clone().unwrap_or_default())
            .docs(docs.clone().unwrap_or_default());
        if let Some(schema) = &input_schema {
            spec = spec.input_schema(schema);
        }
        if let Some(schema) = &output_schema {
            spec = spec.output_schema(schema);
        }
        let program = program.clone();
        builder = builder.method_raw(spec, move |context, payload| {
            let program = program.clone();
            async move { program.run(&context, payload).await }
        });
    }
    Ok(builder.build()?)
}

/// Better now than with the first task.
fn can_be_found(program: &OsString) -> bool {
    if Path::new(program).components().count() != 1 {
        return Path::new(program).is_file();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let extension = env::consts::EXE_SUFFIX;
    env::split_paths(&path).any(|folder| {
        let file = folder.join(program);
        let mut with_extension = file.clone().into_os_string();
        with_extension.push(extension);
        file.is_file() || Path::new(&with_extension).is_file()
    })
}

fn text_or_file(argument: &str) -> Result<String, CommandError> {
    match argument.strip_prefix('@') {
        Some(path) => fs::read_to_string(path)
            .map_err(|error| CommandError::Usage(format!("{path}: cannot be read: {error}"))),
        None => Ok(argument.to_owned()),
    }
}

fn schema(flag: &str, argument: &str) -> Result<String, CommandError> {
    let text = text_or_file(argument)?;
    json::check(text.as_bytes())
        .map(|schema| schema.get().to_owned())
        .map_err(|problem| CommandError::Usage(format!("{flag} is not valid JSON: {problem}")))
}

/// What the worker tells of itself, one line each.
struct Told {
    out: Output,
    methods: Vec<String>,
    server: String,
}

impl Told {
    fn tell(&self, event: &Event<'_>, words: &str) -> Result<(), CommandError> {
        if self.out.json {
            self.out.item(event)?;
        } else {
            self.out.line(&on_one_line(words))?;
        }
        Ok(())
    }

    fn connected(&self, worker_id: &str, session_id: &str) -> Result<(), CommandError> {
        let methods = self.methods.join(", ");
        let words = format!("worker {worker_id} serves {methods} at {}", self.server);
        self.tell(&Event::Connected { worker_id, session_id, methods: &self.methods }, &words)
    }

    fn disconnected(&self, worker_id: &str) -> Result<(), CommandError> {
        self.tell(&Event::Disconnected { worker_id }, "the connection broke; trying again")
    }

    fn draining(&self) -> Result<(), CommandError> {
        self.tell(&Event::Draining, "leaving: finishing what runs; a second signal ends at once")
    }

    fn left(&self) -> Result<(), CommandError> {
        self.tell(&Event::Left, "left")
    }
}
