//! `crewcall export`: stored tasks as NDJSON.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use crewcall::{
    clock::Timestamp,
    row::{Row, RowKey},
    store::{EmbeddedStore, Store as _, StoreError, StoreOptions},
    task::{
        Attempt, Body, Durability, IdempotencyKey, Payload, RetryPolicy, State, Target, Task, TaskError,
        TaskId, TaskOptions,
    },
};
use crewcall_sdk::proto::{self, TaskState};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::{ClientArgs, CommandError, Run, Session};
use crate::{
    archive::{Header, Line, TaskLine, VERSION},
    exit::Exit,
    output::{Output, now_unix_ms},
};

/// Rows read, and tasks asked for, at a time.
const SLICE: usize = 500;
/// Tasks asked for at once.
const IN_FLIGHT: usize = 64;

/// The arguments of `export`.
#[derive(Args, Debug)]
#[command(after_help = "\
Of a data directory that no server uses, or of a backup: every stored task with all there is to it, and what is paused.
Of a running server: durable tasks that have not ended, with their payloads; one that a worker holds is written as one
that waits. The lines are described in docs/cli.md; `crewcall import` reads them.

Exit codes: 12 to 16 as of `serve`; all of them: `crewcall --help`.")]
pub(crate) struct ExportArgs {
    /// Read this data directory instead of asking a server
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Write here, - for stdout; a file must not be there yet
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    file: String,

    #[command(flatten)]
    client: ClientArgs,
}

/// Exports a data directory, or what a server tells.
pub(crate) fn run(args: ExportArgs) -> Exit {
    let Some(dir) = &args.data_dir else { return super::run(args) };
    let out = Output::new(args.client.json);
    match sink(&args.file).and_then(|sink| of_directory(dir, sink)) {
        Ok(()) => Exit::Ok,
        Err(error) => error.report(&out),
    }
}

type Sink = BufWriter<Box<dyn Write>>;

fn sink(file: &str) -> Result<Sink, CommandError> {
    let sink: Box<dyn Write> = match file {
        "-" => Box::new(io::stdout().lock()),
        path => {
            let created = File::options().write(true).create_new(true).open(path);
            Box::new(
                created.map_err(|error| CommandError::Usage(format!("{path}: cannot be made: {error}")))?,
            )
        }
    };
    Ok(BufWriter::new(sink))
}

fn write(sink: &mut Sink, line: &Line) -> Result<(), CommandError> {
    serde_json::to_writer(&mut *sink, line).map_err(io::Error::from)?;
    Ok(sink.write_all(b"\n")?)
}

fn header(leases_below: u64) -> Line {
    let exported_at_unix_ms = u64::try_from(now_unix_ms()).unwrap_or_default();
    Line::CrewcallExport(Header { version: VERSION, exported_at_unix_ms, leases_below })
}

pub(super) fn store_error(error: StoreError) -> CommandError {
    CommandError::other(Exit::from(&error), error.to_string())
}

fn of_directory(dir: &Path, mut sink: Sink) -> Result<(), CommandError> {
    if !dir.join("crewcall.db").exists() {
        let message = format!("{} is no data directory: there is no crewcall.db in it", dir.display());
        return Err(CommandError::other(Exit::NotFound, message));
    }
    let mut store = EmbeddedStore::open(dir, StoreOptions::default()).map_err(store_error)?;
    // Finds what is missing or exchanged.
    store.load(&mut |_, _| {}).map_err(store_error)?;
    let damaged = |error: crewcall::row::RowError| CommandError::other(Exit::StoreDamaged, error.to_string());
    let reserved = store.read(&[RowKey::LeasesReserved]).map_err(store_error)?.pop().flatten();
    let reserved =
        reserved.map(|data| Row::decode(RowKey::LeasesReserved, data)).transpose().map_err(damaged)?;
    write(&mut sink, &header(if let Some(Row::LeasesReserved(below)) = reserved { below } else { 0 }))?;
    let mut after = None;
    loop {
        let rows = store.scan(after, SLICE).map_err(store_error)?;
        let Some((last, _)) = rows.last() else { break };
        after = Some(*last);
        if matches!(last, RowKey::Payload(_)) && matches!(rows.first(), Some((RowKey::Payload(_), _))) {
            // Payloads come last, and are read with their tasks.
            break;
        }
        for (key, data) in rows {
            match key {
                RowKey::Task(_) | RowKey::Pause(_) => {}
                RowKey::LeasesReserved | RowKey::Drain(_) | RowKey::Payload(_) => continue,
            }
            match Row::decode(key, data).map_err(damaged)? {
                Row::Task(task) => {
                    let payload = payload_of(&mut store, &task)?;
                    write(&mut sink, &Line::Task(Box::new(TaskLine::new(&task, &payload))))?;
                }
                Row::Pause(_, pause) => write(&mut sink, &Line::Pause((&*pause).into()))?,
                Row::LeasesReserved(_) | Row::Drain(..) | Row::Payload(..) => {}
            }
        }
    }
    sink.flush()?;
    Ok(())
}

fn payload_of(store: &mut EmbeddedStore, task: &Task) -> Result<Payload, CommandError> {
    if let Body::Held(payload) = &task.body {
        return Ok(payload.clone());
    }
    let key = RowKey::Payload(task.id);
    let row = store.read(&[key]).map_err(store_error)?.pop().flatten();
    match row.map(|data| Row::decode(key, data)) {
        Some(Ok(Row::Payload(_, payload))) => Ok(payload),
        Some(Err(error)) => Err(CommandError::other(Exit::StoreDamaged, error.to_string())),
        _ => {
            let message =
                format!("the payload of task {} is missing; `crewcall doctor` examines the rest", task.id);
            Err(CommandError::other(Exit::StoreDamaged, message))
        }
    }
}

impl Run for ExportArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let mut sink = sink(&self.file)?;
        write(&mut sink, &header(0))?;
        for method in session.client.methods().await? {
            let (name, pause) = (method.method.unwrap_or_default().name, method.pause);
            if let Some(pause) = pause {
                let since = u64::try_from(pause.since_unix_ms).unwrap_or_default();
                let line = crate::archive::PauseLine {
                    method: name,
                    reason: pause.reason,
                    by: pause.by,
                    since_unix_ms: since,
                };
                write(&mut sink, &Line::Pause(line))?;
            }
        }
        let states = [TaskState::Delayed, TaskState::Ready, TaskState::Leased].map(Into::into).to_vec();
        let filter = proto::TaskFilter { states, ..proto::TaskFilter::default() };
        let mut token = String::new();
        loop {
            let page = session.client.list(filter.clone(), SLICE as u32, token).await?;
            let durable = |task: &proto::Task| {
                task.options.as_ref().is_some_and(|o| o.durability() == proto::Durability::Durable)
            };
            let ids = page.tasks.into_iter().filter(durable).map(|task| task.id);
            let ask = |id: String| async move {
                let request = proto::GetRequest { task_id: id, with_payload: true, wait_ms: 0 };
                match session.client.get_with(request).await {
                    // It has ended and was forgotten since it was listed.
                    Err(crewcall_sdk::CallError::Refused(refusal)) if refusal.reason == "task_not_found" => {
                        Ok(None)
                    }
                    answer => answer.map(Some),
                }
            };
            let mut tasks = futures_util::stream::iter(ids.map(ask)).buffered(IN_FLIGHT);
            while let Some(task) = tasks.try_next().await? {
                if let Some((task, payload)) = task.and_then(waiting) {
                    write(&mut sink, &Line::Task(Box::new(TaskLine::new(&task, &payload))))?;
                }
            }
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        sink.flush()?;
        Ok(Exit::Ok)
    }
}

/// As one that waits; none when it has ended meanwhile.
fn waiting(task: proto::Task) -> Option<(Task, Payload)> {
    let at = |unix_ms: i64| Timestamp(u64::try_from(unix_ms).unwrap_or_default());
    let (state, attempt) = match task.state() {
        TaskState::Delayed => (State::Delayed { until: at(task.run_at_unix_ms) }, task.attempt),
        TaskState::Ready => (State::Ready, task.attempt),
        TaskState::Leased => (State::Ready, task.attempt.saturating_sub(1)),
        _ => return None,
    };
    let (given, id) = (task.options.unwrap_or_default(), task.id.parse::<TaskId>().ok()?);
    let (target, retry) = (given.target.unwrap_or_default(), given.retry.unwrap_or_default());
    let payload = task.payload.unwrap_or_default();
    let options = TaskOptions {
        target: Target {
            version: target.version,
            group: target.group,
            labels: target.labels.into_iter().collect(),
        },
        priority: given.priority.and_then(|priority| u8::try_from(priority).ok()).unwrap_or_default(),
        run_at: (given.run_at_unix_ms > 0).then(|| at(given.run_at_unix_ms)),
        queue_timeout_ms: given.queue_timeout_ms,
        run_timeout_ms: given.run_timeout_ms,
        deadline_ms: given.deadline_ms,
        retry: RetryPolicy {
            max_attempts: retry.max_attempts,
            initial_backoff_ms: retry.initial_backoff_ms.into(),
            max_backoff_ms: retry.max_backoff_ms.into(),
        },
        durability: Durability::Durable,
        retention_ms: (given.retention_ms > 0).then_some(given.retention_ms),
        metadata: given.metadata.into_iter().collect(),
    };
    let attempts = task.attempts.into_iter().map(|attempt| {
        let error = attempt.error.unwrap_or_default();
        Attempt {
            number: attempt.number,
            worker_id: Arc::from(attempt.worker_id),
            started_at: at(attempt.started_at_unix_ms),
            ended_at: at(attempt.ended_at_unix_ms),
            error: TaskError::new(error.code, error.message),
        }
    });
    let payload = Payload { data: payload.data, content_type: payload.content_type };
    let key = IdempotencyKey { text: given.idempotency_key, digest: payload.digest() };
    let task = Task {
        id,
        method: Arc::from(task.method),
        body: Body::Stored(payload.size() as u64),
        key: (!key.text.is_empty()).then(|| Box::new(key)),
        options: Arc::new(options),
        created_at: at(task.created_at_unix_ms),
        since: at(task.created_at_unix_ms),
        changed_at: at(task.changed_at_unix_ms),
        state,
        attempt,
        attempts: attempts.collect(),
        forget_at: Timestamp::NEVER,
    };
    Some((task, payload))
}
