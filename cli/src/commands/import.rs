//! `crewcall import`: what `export` wrote, into a data directory or a running server.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use clap::Args;
use crewcall::{
    row::{Row, RowChange, RowKey},
    store::{EmbeddedStore, Store as _, StoreOptions},
    task::{Task, TaskId},
};
use crewcall_sdk::proto;
use serde::Serialize;

use super::{ClientArgs, CommandError, Run, Session, export::store_error, refusal_exit};
use crate::{
    archive::{Header, Line, PauseLine, TaskLine, VERSION},
    exit::Exit,
    output::{Output, now_unix_ms, safe},
};

/// A request holds at most so many tasks, and about so many bytes.
const REQUEST_TASKS: usize = 1000;
const REQUEST_BYTES: usize = 3 * 1024 * 1024;

/// The arguments of `import`.
#[derive(Args, Debug)]
#[command(after_help = "\
Into a data directory that no server uses: tasks as they were, with their ids, attempts, deadlines, outcomes and
idempotency keys, and what was paused; all of it or, after an error, nothing. A task whose id is there is left out, so it
can be repeated.
Into a running server: tasks that had not ended are submitted anew, so with new ids, from attempt 1, with what was left
of their deadlines. Each goes in under its idempotency key, or one made of its old id, so it can be repeated while the
server knows them.

Every line is checked before anything is changed. Exit codes: 2 a line cannot be read, 9 or 10 some tasks were refused,
12 to 16 as of `serve`; all of them: `crewcall --help`.")]
pub(crate) struct ImportArgs {
    /// NDJSON as `crewcall export` writes it, - for stdin
    #[arg(long, short, value_name = "FILE")]
    file: String,

    /// Write into this data directory instead of asking a server; it is made when it is not there
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    client: ClientArgs,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Answer {
    imported: u64,
    /// Were there already.
    known: u64,
    /// Had ended, or their deadline has passed: not for a running server.
    #[serde(skip_serializing_if = "is_zero")]
    ended: u64,
    #[serde(skip_serializing_if = "is_zero")]
    refused: u64,
    paused: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Answer {
    fn tell(&self, out: &Output) -> Result<(), CommandError> {
        if out.json {
            out.document(self)?;
            return Ok(());
        }
        let Self { imported, known, ended, refused, paused } = self;
        out.line(&format!(
            "{imported} imported, {known} known already, {ended} left out because they had ended, {refused} refused; \
             {paused} methods paused"
        ))?;
        Ok(())
    }
}

/// Imports into a data directory, or asks a server to take the tasks.
pub(crate) fn run(args: ImportArgs) -> Exit {
    let Some(dir) = &args.data_dir else { return super::run(args) };
    let out = Output::new(args.client.json);
    let imported = read(&args.file).and_then(|found| into_directory(found, dir)?.tell(&out));
    imported.map_or_else(|error| error.report(&out), |()| Exit::Ok)
}

/// Everything in a file, each with its line.
struct Found {
    header: Header,
    tasks: Vec<(usize, TaskLine)>,
    pauses: Vec<(usize, PauseLine)>,
}

fn bad_line(number: usize, problem: impl std::fmt::Display) -> CommandError {
    CommandError::Usage(format!("line {number}: {problem}"))
}

fn read(file: &str) -> Result<Found, CommandError> {
    let source: Box<dyn BufRead> = match file {
        "-" => Box::new(BufReader::new(io::stdin())),
        path => {
            let opened = File::open(path);
            let file =
                opened.map_err(|error| CommandError::Usage(format!("{path}: cannot be read: {error}")))?;
            Box::new(BufReader::new(file))
        }
    };
    let (mut header, mut tasks, mut pauses) = (None, Vec::new(), Vec::new());
    for (number, line) in (1..).zip(source.split(b'\n')) {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_slice(&line).map_err(|error| bad_line(number, error))?;
        match line {
            Line::CrewcallExport(found) if header.is_none() && tasks.is_empty() && pauses.is_empty() => {
                if found.version != VERSION {
                    let problem =
                        format!("it has version {}; this crewcall reads version {VERSION}", found.version);
                    return Err(bad_line(number, problem));
                }
                header = Some(found);
            }
            Line::CrewcallExport(_) => {
                return Err(bad_line(number, "a second beginning; import one file at a time"));
            }
            _ if header.is_none() => {
                return Err(bad_line(
                    number,
                    "the first line must be {\"crewcall_export\": …}: is the file whole?",
                ));
            }
            Line::Task(task) => tasks.push((number, *task)),
            Line::Pause(pause) => pauses.push((number, pause)),
        }
    }
    let header = header.ok_or_else(|| CommandError::Usage(format!("{file}: there is nothing in it")))?;
    Ok(Found { header, tasks, pauses })
}

// --- into a data directory ------------------------------------------------------------------------------

/// What a data directory holds already.
#[derive(Default)]
struct Known {
    ids: HashSet<TaskId>,
    keys: HashMap<(String, String), TaskId>,
    pauses: HashSet<String>,
    next_pause: u64,
    leases_below: u64,
}

impl Known {
    fn of(store: &mut EmbeddedStore) -> Result<Self, CommandError> {
        let (mut known, mut unreadable) = (Self { next_pause: 1, ..Self::default() }, None);
        let loaded = store.load(&mut |key, data| match Row::decode(key, data) {
            Ok(Row::Task(task)) => {
                known.add(&task);
            }
            Ok(Row::LeasesReserved(below)) => known.leases_below = below,
            Ok(Row::Pause(number, pause)) => {
                known.next_pause = known.next_pause.max(number + 1);
                known.pauses.insert(pause.method.to_string());
            }
            Ok(Row::Drain(..) | Row::Payload(..)) => {}
            Err(error) => unreadable = Some(error),
        });
        loaded.map_err(store_error)?;
        match unreadable {
            Some(error) => Err(CommandError::other(Exit::StoreDamaged, error.to_string())),
            None => Ok(known),
        }
    }

    /// The other task that has its idempotency key, if there is one.
    fn add(&mut self, task: &Task) -> Option<TaskId> {
        self.ids.insert(task.id);
        let key = task.idempotency_key().to_owned();
        let other = (!key.is_empty()).then(|| self.keys.insert((task.method.to_string(), key), task.id));
        other.flatten().filter(|other| *other != task.id)
    }
}

fn into_directory(found: Found, dir: &Path) -> Result<Answer, CommandError> {
    let mut store = EmbeddedStore::open(dir, StoreOptions::default()).map_err(store_error)?;
    let mut known = Known::of(&mut store)?;
    let (mut answer, mut batch) = (Answer::default(), Vec::with_capacity(found.tasks.len() + 1));
    for (number, line) in found.tasks {
        let (task, payload) = line.into_task().map_err(|problem| bad_line(number, problem))?;
        if known.ids.contains(&task.id) {
            answer.known += 1;
            continue;
        }
        if let Some(other) = known.add(&task) {
            let problem = format!(
                "task {} has the idempotency key {:?}, which stands for task {other} of the same method",
                task.id,
                task.idempotency_key()
            );
            return Err(bad_line(number, problem));
        }
        answer.imported += 1;
        batch.push(RowChange::Put(RowKey::Task(task.id), Row::encode_task(&task)));
        if payload.size() > 0 {
            batch.push(RowChange::Put(RowKey::Payload(task.id), Row::encode_payload(&payload)));
        }
    }
    for (number, line) in found.pauses {
        let pause = line.into_pause().map_err(|problem| bad_line(number, problem))?;
        if known.pauses.insert(pause.method.to_string()) {
            let row = Row::Pause(known.next_pause, Box::new(pause));
            batch.push(RowChange::Put(RowKey::Pause(known.next_pause), row.encode()));
            known.next_pause += 1;
            answer.paused += 1;
        }
    }
    if found.header.leases_below > known.leases_below {
        let row = Row::LeasesReserved(found.header.leases_below);
        batch.push(RowChange::Put(RowKey::LeasesReserved, row.encode()));
    }
    // One batch: all of it, or nothing.
    store.commit(&batch).map_err(store_error)?;
    store.close().map_err(store_error)?;
    Ok(answer)
}

// --- into a running server ------------------------------------------------------------------------------

impl Run for ImportArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let found = read(&self.file)?;
        let (mut answer, mut tasks, now) =
            (Answer::default(), Vec::new(), u64::try_from(now_unix_ms()).unwrap_or_default());
        for (number, line) in found.tasks {
            match new_task(line, now).map_err(|problem| bad_line(number, problem))? {
                Some(task) => tasks.push((number, task)),
                None => answer.ended += 1,
            }
        }
        // Before the tasks, or some would begin.
        for (_, PauseLine { method, reason, by, .. }) in found.pauses {
            let paused = session.client.pause(proto::PauseRequest { method, reason, by }).await?;
            answer.paused += u64::from(!paused.was_paused);
        }
        let mut exit = Exit::Ok;
        let mut tasks = tasks.into_iter().peekable();
        while tasks.peek().is_some() {
            let (mut numbers, mut request, mut bytes) = (Vec::new(), Vec::new(), 0);
            while request.len() < REQUEST_TASKS
                && (bytes < REQUEST_BYTES || request.is_empty())
                && let Some((number, task)) = tasks.next()
            {
                bytes += task.payload.as_ref().map_or(0, |payload| payload.data.len());
                numbers.push(number);
                request.push(task);
            }
            for (number, result) in numbers.into_iter().zip(session.client.submit_many(request).await?) {
                match result {
                    Ok(accepted) if accepted.attached => answer.known += 1,
                    Ok(_) => answer.imported += 1,
                    Err(refusal) => {
                        answer.refused += 1;
                        exit = if exit == Exit::Ok { refusal_exit(&refusal) } else { exit };
                        eprintln!("line {number}: {}", safe(&refusal.to_string()));
                    }
                }
            }
        }
        answer.tell(&session.out)?;
        Ok(exit)
    }
}

/// The task to be submitted; none when it has ended, or what was left of its deadline has passed.
fn new_task(line: TaskLine, now: u64) -> Result<Option<proto::NewTask>, String> {
    let (since, run_at) = (line.since(), line.run_at_unix_ms);
    let (task, payload) = line.into_task()?;
    if task.state.outcome().is_some() {
        return Ok(None);
    }
    let options = &task.options;
    let deadline_ms = match options.deadline_ms {
        0 => 0,
        ms => match (since + ms).checked_sub(now) {
            None | Some(0) => return Ok(None),
            Some(left) => left,
        },
    };
    let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    let key = match task.idempotency_key() {
        "" => format!("import:{}", task.id),
        key => key.to_owned(),
    };
    Ok(Some(proto::NewTask {
        method: task.method.to_string(),
        payload: Some(proto::Payload { data: payload.data, content_type: payload.content_type }),
        options: Some(proto::TaskOptions {
            target: Some(proto::Target {
                version: options.target.version.clone(),
                group: options.target.group.clone(),
                labels: options.target.labels.clone().into_iter().collect(),
            }),
            priority: Some(options.priority.into()),
            run_at_unix_ms: i64::try_from(run_at).unwrap_or_default(),
            queue_timeout_ms: options.queue_timeout_ms,
            run_timeout_ms: options.run_timeout_ms,
            deadline_ms,
            retry: Some(proto::RetryPolicy {
                max_attempts: options.retry.max_attempts,
                initial_backoff_ms: ms(options.retry.initial_backoff_ms),
                max_backoff_ms: ms(options.retry.max_backoff_ms),
            }),
            idempotency_key: key,
            durability: proto::Durability::Durable.into(),
            retention_ms: options.retention_ms.unwrap_or_default(),
            metadata: options.metadata.clone().into_iter().collect(),
        }),
    }))
}
