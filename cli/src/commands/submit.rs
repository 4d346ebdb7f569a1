//! `crewcall submit`: tasks handed in, their ids on stdout.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader},
    time::Duration,
};

use clap::Args;
use crewcall_sdk::{NewTask, Refusal};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::{
    ClientArgs, CommandError, Run, Session, refusal_exit,
    task_flags::{Durable, Input, TaskFlags},
};
use crate::{exit::Exit, json, output::safe, view};

/// A request holds at most so many tasks, and about so many bytes: well within what the server takes.
const REQUEST_TASKS: usize = 1000;
const REQUEST_BYTES: usize = 3 * 1024 * 1024;
/// Lines read ahead of the requests.
const AHEAD: usize = 1024;
/// A line is a task, and a payload is at most 4 MiB; this is room for both.
const LINE_BYTES: u64 = 64 * 1024 * 1024;

/// The arguments of `submit`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  crewcall submit add '{\"a\":1,\"b\":2}' '{\"a\":3,\"b\":4}'
  crewcall submit resize --file payloads.ndjson     one payload a line
  crewcall submit --file tasks.ndjson               one task a line:
    {\"method\":\"add\",\"payload\":{\"a\":1,\"b\":2},\"priority\":7,\"deadline\":\"10s\",\"labels\":{\"gpu\":\"a100\"}}
  A task may have every task option above by its name with underscores; flags fill in what it leaves out.

Prints one id a line, in order; what is refused is told on stderr with its line, and the others are handed in all the
same. Submitted tasks are durable unless --ephemeral is given.

Exit codes: 0 all accepted, 9 or 10 some refused; all of them: `crewcall --help`.")]
pub(crate) struct SubmitArgs {
    /// Name of the method; may be left out with --file
    #[arg(required_unless_present = "file")]
    method: Option<String>,

    /// What to call it with, each its own task: JSON, or @FILE, or - for stdin. Default: one task with null
    #[arg(value_name = "JSON", conflicts_with = "file", allow_negative_numbers = true)]
    payloads: Vec<String>,

    /// NDJSON, - for stdin: payloads if a method is given, else tasks
    #[arg(long, short, value_name = "FILE")]
    file: Option<String>,

    /// The tasks never touch the store
    #[arg(long)]
    ephemeral: bool,

    #[command(flatten)]
    flags: TaskFlags,

    #[command(flatten)]
    client: ClientArgs,
}

/// A task in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskLine {
    method: String,
    payload: Option<Box<RawValue>>,
    priority: Option<u32>,
    #[serde(default, deserialize_with = "some_span")]
    deadline: Option<Duration>,
    #[serde(default, deserialize_with = "some_span")]
    queue_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "some_span")]
    run_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "some_span")]
    delay: Option<Duration>,
    retry: Option<u32>,
    #[serde(default, deserialize_with = "some_span")]
    backoff: Option<Duration>,
    idempotency_key: Option<String>,
    version_range: Option<String>,
    group: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "some_span")]
    retention: Option<Duration>,
}

fn some_span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    super::some_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

impl TaskLine {
    fn into_task(self, flags: &TaskFlags, durable: Durable) -> Result<NewTask, CommandError> {
        let list = |map: Option<BTreeMap<String, String>>, flags: &[(String, String)]| {
            map.map_or_else(|| flags.to_vec(), |map| map.into_iter().collect())
        };
        let input = Input::json(self.payload.as_deref().unwrap_or(RawValue::NULL).get());
        let flags = TaskFlags {
            priority: self.priority.or(flags.priority),
            deadline: self.deadline.or(flags.deadline),
            queue_timeout: self.queue_timeout.or(flags.queue_timeout),
            run_timeout: self.run_timeout.or(flags.run_timeout),
            delay: self.delay.or(flags.delay),
            retry: self.retry.or(flags.retry),
            backoff: self.backoff.or(flags.backoff),
            idempotency_key: self.idempotency_key.or_else(|| flags.idempotency_key.clone()),
            version_range: self.version_range.or_else(|| flags.version_range.clone()),
            group: self.group.or_else(|| flags.group.clone()),
            labels: list(self.labels, &flags.labels),
            metadata: list(self.metadata, &flags.metadata),
            retention: self.retention.or(flags.retention),
        };
        flags.task(&self.method, &input, durable)
    }
}

impl Run for SubmitArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let durable = if self.ephemeral { Durable::No } else { Durable::Default };
        let mut exit = Exit::Ok;
        if let Some(path) = &self.file {
            let mut lines = read_lines(path)?;
            let path = if path == "-" { "stdin" } else { path };
            while let Some(batch) = lines.next_batch().await {
                let mut tasks = Vec::with_capacity(batch.len());
                let mut broken = None;
                for line in batch {
                    let (number, text) = match line {
                        Ok(line) => line,
                        Err(error) => {
                            broken = Some(CommandError::Usage(format!("{path}: cannot be read: {error}")));
                            break;
                        }
                    };
                    match self.line(&text, durable) {
                        Ok(task) => tasks.push((number, task)),
                        Err(error) => {
                            broken = Some(CommandError::Usage(format!("{path} line {number}: {error}")));
                            break;
                        }
                    }
                }
                // What stands before a bad line is handed in: the ids printed say how far it went.
                exit = session.submit(tasks, exit).await?;
                if let Some(error) = broken {
                    return Err(error);
                }
            }
            return Ok(exit);
        }
        let method = self.method.as_deref().unwrap_or_default();
        let mut payloads = self.payloads.clone();
        if payloads.is_empty() {
            payloads.push("null".to_owned());
        }
        let mut tasks = Vec::with_capacity(payloads.len());
        for (number, payload) in (1..).zip(&payloads) {
            let input = Input::read(payload, None)?;
            tasks.push((number, self.flags.task(method, &input, durable)?));
        }
        for batch in tasks.chunks(REQUEST_TASKS) {
            exit = session.submit(batch.to_vec(), exit).await?;
        }
        Ok(exit)
    }
}

impl SubmitArgs {
    /// A task from a line of the file.
    fn line(&self, text: &[u8], durable: Durable) -> Result<NewTask, CommandError> {
        let value = json::check(text)
            .map_err(|problem| CommandError::Usage(format!("it is not valid JSON: {problem}")))?;
        if let Some(method) = &self.method {
            return self.flags.task(method, &Input::json(value.get()), durable);
        }
        let task: TaskLine = serde_json::from_str(value.get()).map_err(|error| {
            CommandError::Usage(format!(
                "it is not a task: {error}\nhint: give a METHOD if each line is a payload"
            ))
        })?;
        task.into_task(&self.flags, durable)
    }
}

impl Session {
    /// Hands the tasks in, each with its number among all. The first refusal decides the exit code.
    async fn submit(&self, tasks: Vec<(u64, NewTask)>, so_far: Exit) -> Result<Exit, CommandError> {
        if tasks.is_empty() {
            return Ok(so_far);
        }
        let (numbers, tasks): (Vec<u64>, Vec<NewTask>) = tasks.into_iter().unzip();
        let results = self.client.submit_many(tasks).await?;
        let (mut exit, mut printed) = (so_far, String::new());
        for (number, result) in numbers.into_iter().zip(results) {
            match result {
                Ok(accepted) => {
                    let crewcall_sdk::Submitted { task_id, attached } = accepted;
                    if self.out.json {
                        let line = view::Submitted::Accepted { task_id, attached };
                        printed.push_str(&serde_json::to_string(&line).map_err(io::Error::from)?);
                    } else {
                        printed.push_str(&task_id);
                    }
                    printed.push('\n');
                }
                Err(refusal) => {
                    if exit == Exit::Ok {
                        exit = refusal_exit(&refusal);
                    }
                    if self.out.json {
                        let line = view::Submitted::Refused { line: number, refusal: refusal_json(refusal) };
                        printed.push_str(&serde_json::to_string(&line).map_err(io::Error::from)?);
                        printed.push('\n');
                    } else {
                        eprintln!("task {number}: {}", safe(&refusal.to_string()));
                    }
                }
            }
        }
        // One write for the lot: a terminal or pipe flushed for each id is slower than the server.
        self.out.bytes(printed.as_bytes())?;
        Ok(exit)
    }
}

fn refusal_json(refusal: Refusal) -> view::Refusal {
    let wait = refusal.retry_after.unwrap_or_default().as_millis();
    view::Refusal {
        reason: refusal.reason,
        message: refusal.message,
        retry_after_ms: u64::try_from(wait).unwrap_or(u64::MAX),
    }
}

type Line = io::Result<(u64, Vec<u8>)>;

/// Lines of a file that may still be written, read by a thread of its own.
struct Lines {
    lines: mpsc::Receiver<Line>,
    /// Read, but too much for the last batch.
    held: Option<Line>,
}

fn read_lines(path: &str) -> Result<Lines, CommandError> {
    let source: Box<dyn BufRead + Send> = if path == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(path)
            .map_err(|error| CommandError::Usage(format!("{path}: cannot be read: {error}")))?;
        Box::new(BufReader::new(file))
    };
    let (sender, lines) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        for line in numbered(source) {
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    Ok(Lines { lines, held: None })
}

/// The lines that are not blank, counted from 1.
fn numbered(mut source: impl BufRead) -> impl Iterator<Item = Line> {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            number += 1;
            let mut line = Vec::new();
            // A limit of its own for each line; `take` counts down over the whole reader.
            match io::Read::take(&mut source, LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(read) if read as u64 == LINE_BYTES => {
                    let problem = format!("line {number} is longer than {LINE_BYTES} bytes");
                    return Some(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
                }
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => return Some(Ok((number, line))),
                Err(error) => return Some(Err(error)),
            }
        }
    })
}

impl Lines {
    /// What is there now, at least one line and no more than a request holds; `None` at the end. A slow writer's
    /// lines are handed in as they come, a fast one's together.
    async fn next_batch(&mut self) -> Option<Vec<Line>> {
        let first = match self.held.take() {
            Some(held) => held,
            None => self.lines.recv().await?,
        };
        let size = |line: &Line| line.as_ref().map_or(0, |(_, text)| text.len());
        let mut bytes = size(&first);
        let mut batch = vec![first];
        while batch.len() < REQUEST_TASKS
            && let Ok(line) = self.lines.try_recv()
        {
            bytes += size(&line);
            if bytes > REQUEST_BYTES {
                self.held = Some(line);
                break;
            }
            batch.push(line);
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_are_counted_and_left_out() {
        let lines: Vec<_> = numbered(&b"1\n\n \n2"[..]).map(Result::unwrap).collect();
        assert_eq!(lines, [(1, b"1\n".to_vec()), (4, b"2".to_vec())]);
    }

    #[tokio::test]
    async fn a_batch_is_no_larger_than_a_request() {
        let (sender, lines) = mpsc::channel(AHEAD);
        for (number, size) in [(1, 10), (2, REQUEST_BYTES), (3, 10)] {
            sender.send(Ok((number, vec![b'1'; size]))).await.unwrap();
        }
        drop(sender);
        let mut lines = Lines { lines, held: None };
        let mut batches = Vec::new();
        while let Some(batch) = lines.next_batch().await {
            batches.push(batch.into_iter().map(|line| line.unwrap().0).collect::<Vec<_>>());
        }
        assert_eq!(batches, [vec![1], vec![2], vec![3]]);
    }
}
