//! `crewcall dead`: tasks that failed for good, looked through, run again, discarded.

use std::time::Duration;

use clap::{Args, Subcommand};
use crewcall_sdk::proto::{self, TaskState, outcome};
use serde::Serialize;

use super::{ClientArgs, CommandError, Run, Session, refusal_exit, some_duration};
use crate::{
    exit::Exit,
    output::{age, now_unix_ms, on_one_line, safe},
    view,
};

/// The most that one request may ask for.
const PAGE: u32 = 1000;

/// The arguments of `dead`.
#[derive(Args, Debug)]
pub(crate) struct DeadArgs {
    #[command(subcommand)]
    command: Dead,
}

#[derive(Debug, Subcommand)]
enum Dead {
    /// List dead letters, those that died last first
    List(ListArgs),
    /// Show one with its payload and all its attempts
    Show(ShowArgs),
    /// Run dead letters again, from attempt 1
    Retry(ChangeArgs),
    /// Forget dead letters now
    Discard(ChangeArgs),
}

/// Which dead letters; all that is given must hold.
#[derive(Args, Clone, Debug)]
struct FilterArgs {
    /// Only tasks of this method
    #[arg(long, value_name = "NAME")]
    method: Option<String>,

    /// Only those whose last error has this code
    #[arg(long, value_name = "CODE")]
    code: Option<String>,

    /// Only those that died longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    older_than: Option<Duration>,

    /// Only those that died within this time
    #[arg(long, value_name = "DURATION", value_parser = some_duration)]
    newer_than: Option<Duration>,
}

impl From<FilterArgs> for proto::DeadFilter {
    fn from(filter: FilterArgs) -> Self {
        let ago = |ago: Option<Duration>| {
            let ms = ago.map(|ago| i64::try_from(ago.as_millis()).unwrap_or(i64::MAX));
            ms.map_or(0, |ms| now_unix_ms().saturating_sub(ms).max(1))
        };
        Self {
            died_before_unix_ms: ago(filter.older_than),
            died_after_unix_ms: ago(filter.newer_than),
            method: filter.method.unwrap_or_default(),
            error_code: filter.code.unwrap_or_default(),
        }
    }
}

#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,

    /// The most to list
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
struct ShowArgs {
    /// Id of the task
    id: String,

    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  crewcall dead retry ID ID                           these
  crewcall dead retry --method resize --dry-run       those of a method; only say which
  crewcall dead discard --code bad_input --older-than 7d
  crewcall dead retry --all

Prints one line for each. Repeating it is harmless: what runs again, or is forgotten, is no dead letter.

Exit codes: 0 all done, 8 or 9 some of the ids are no dead letters; all of them: `crewcall --help`.")]
struct ChangeArgs {
    /// Ids of tasks
    #[arg(required_unless_present_any = ["method", "code", "older_than", "newer_than", "all"],
          conflicts_with_all = ["method", "code", "older_than", "newer_than", "all"])]
    ids: Vec<String>,

    #[command(flatten)]
    filter: FilterArgs,

    /// Every dead letter
    #[arg(long, conflicts_with_all = ["method", "code", "older_than", "newer_than"])]
    all: bool,

    /// Change nothing, only say what would be changed
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    client: ClientArgs,
}

impl Run for DeadArgs {
    fn client(&self) -> &ClientArgs {
        match &self.command {
            Dead::List(args) => &args.client,
            Dead::Show(args) => &args.client,
            Dead::Retry(args) | Dead::Discard(args) => &args.client,
        }
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        match self.command {
            Dead::List(args) => session.list_dead(args).await,
            Dead::Show(args) => session.show_dead(args).await,
            Dead::Retry(args) => session.change_dead(args, Change::Retry).await,
            Dead::Discard(args) => session.change_dead(args, Change::Discard).await,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Retry,
    Discard,
}

impl Change {
    fn word(self, dry_run: bool) -> &'static str {
        match (self, dry_run) {
            (Self::Retry, false) => "runs again",
            (Self::Retry, true) => "would run again",
            (Self::Discard, false) => "discarded",
            (Self::Discard, true) => "would be discarded",
        }
    }
}

/// One line of `dead retry` and `dead discard`.
#[derive(Serialize)]
struct Line {
    task_id: String,
    changed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<view::Refusal>,
}

impl Session {
    async fn list_dead(&self, args: ListArgs) -> Result<Exit, CommandError> {
        let limit = args.limit as usize;
        let filter = proto::DeadFilter::from(args.filter);
        let (mut tasks, mut page_token) = (Vec::new(), String::new());
        let more = loop {
            let page_size = u32::try_from(limit - tasks.len()).unwrap_or(PAGE).min(PAGE);
            let request = proto::ListDeadRequest { filter: Some(filter.clone()), page_size, page_token };
            let page = self.client.list_dead(request).await?;
            tasks.extend(page.tasks);
            page_token = page.next_page_token;
            if page_token.is_empty() || tasks.len() >= limit {
                break !page_token.is_empty();
            }
        };
        if self.out.json {
            self.out.document(&tasks.into_iter().map(view::Task::from).collect::<Vec<_>>())?;
            return Ok(Exit::Ok);
        }
        let row = |task: proto::Task| {
            let error = match task.outcome.and_then(|outcome| outcome.kind) {
                Some(outcome::Kind::Failed(error)) => error,
                _ => proto::TaskError::default(),
            };
            let (attempts, died) = (task.attempt.to_string(), age(task.changed_at_unix_ms));
            [task.id, task.method, attempts, died, error.code, error.message.chars().take(80).collect()]
        };
        let rows: Vec<[String; 6]> = tasks.into_iter().map(row).collect();
        self.out.table(["ID", "METHOD", "ATTEMPTS", "DIED", "CODE", "MESSAGE"], &rows, "no dead letters")?;
        if more {
            self.out.note(&format!("there are more than these {}: see --limit", rows.len()));
        }
        Ok(Exit::Ok)
    }

    async fn show_dead(&self, args: ShowArgs) -> Result<Exit, CommandError> {
        let request = proto::GetRequest { task_id: args.id, with_payload: true, wait_ms: 0 };
        let task = self.client.get_with(request).await?;
        if task.state() != TaskState::Dead {
            let state = view::state(task.state());
            let message = format!("task {} is not a dead letter: it is {state}", task.id);
            return Err(CommandError::other(Exit::NotFound, message));
        }
        if self.out.json {
            self.out.document(&view::Task::from(task))?;
        } else {
            self.show_task(task)?;
        }
        Ok(Exit::Ok)
    }

    async fn change_dead(&self, args: ChangeArgs, change: Change) -> Result<Exit, CommandError> {
        let ChangeArgs { ids, filter, all, dry_run, .. } = args;
        let filter = proto::DeadFilter::from(filter);
        let select = |task_ids: Vec<String>, page_token: String| {
            let filter = (filter != proto::DeadFilter::default()).then(|| filter.clone());
            proto::DeadSelection { task_ids, filter, all, limit: 0, page_token, dry_run }
        };
        let (mut exit, mut total) = (Exit::Ok, 0);
        let mut parts = ids.chunks(PAGE as usize).map(<[String]>::to_vec);
        let mut selection = select(parts.next().unwrap_or_default(), String::new());
        loop {
            let (changed, results, next) = match change {
                Change::Retry => {
                    let answer = self.client.retry_dead(selection).await?;
                    (answer.changed, answer.results, answer.next_page_token)
                }
                Change::Discard => {
                    let answer = self.client.discard_dead(selection).await?;
                    (answer.changed, answer.results, answer.next_page_token)
                }
            };
            total += changed;
            for result in results {
                exit = self.tell_dead(result, change.word(dry_run), dry_run, exit)?;
            }
            selection = match parts.next() {
                Some(part) => select(part, String::new()),
                None if next.is_empty() => break,
                None => select(Vec::new(), next),
            };
        }
        self.out.note(&format!("dead letters: {total} {}", change.word(dry_run)));
        Ok(exit)
    }

    /// Tells how one of several fared. The first refusal decides the exit code.
    fn tell_dead(
        &self,
        result: proto::DeadResult,
        word: &str,
        dry_run: bool,
        so_far: Exit,
    ) -> Result<Exit, CommandError> {
        let proto::DeadResult { task_id, refusal } = result;
        let refusal = refusal.map(crewcall_sdk::Refusal::from);
        let exit = match &refusal {
            Some(refusal) if so_far == Exit::Ok => refusal_exit(refusal),
            _ => so_far,
        };
        if self.out.json {
            let changed = refusal.is_none();
            let refusal = refusal.map(|refusal| view::Refusal {
                reason: refusal.reason,
                message: refusal.message,
                retry_after_ms: 0,
            });
            self.out.item(&Line { task_id, changed, dry_run, refusal })?;
        } else if let Some(refusal) = refusal {
            eprintln!("{task_id}: {}", on_one_line(&safe(&refusal.to_string())));
        } else {
            self.out.line(&format!("{task_id} {word}"))?;
        }
        Ok(exit)
    }
}
