//! A task as a process: the payload on stdin, the result on stdout, what went wrong on stderr.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    process::{ExitStatus, Stdio},
    time::{Duration, UNIX_EPOCH},
};

use crewcall_sdk::{Context, HandlerError, Payload};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    json::{self, Layout},
    output::safe,
};

/// How much of the end of stderr becomes the error's message.
const STDERR_TAIL: usize = 4 * 1024;
/// For the pipes to run dry after everything in the process group has ended; only a process that left the group can
/// hold them longer.
const AFTER_END: Duration = Duration::from_secs(1);

/// What a worker runs for each task.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) program: OsString,
    pub(super) args: Vec<OsString>,
    /// For programs that call back.
    pub(super) server: String,
    pub(super) timeout: Option<Duration>,
    /// From SIGTERM to SIGKILL.
    pub(super) kill_grace: Duration,
    pub(super) max_output: usize,
}

/// Why a process was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    Cancelled,
    TimedOut,
    TooMuchOutput,
}

impl Program {
    /// Runs one attempt to its end. Dropping the future kills the process and its children.
    pub(super) async fn run(&self, context: &Context, payload: Payload) -> Result<Payload, HandlerError> {
        let mut child = self.spawn(context, &payload.content_type).map_err(|error| {
            HandlerError::new("spawn_failed", format!("`{}` cannot be run: {error}", self.name()))
        })?;
        let mut group = Group::of(&child);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (mut result, mut tail) = (Vec::new(), Tail::default());
        let too_much = CancellationToken::new();

        let mut talking = Box::pin(async {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A program that does not read all of its input is none the worse for it.
                    let _ = stdin.write_all(&payload.data).await;
                }
            };
            let read = async {
                if let Some(stdout) = stdout
                    && !read_up_to(stdout, self.max_output, &mut result).await
                {
                    too_much.cancel();
                }
            };
            let complain = async {
                if let Some(stderr) = stderr {
                    tail.read(stderr).await;
                }
            };
            tokio::join!(feed, read, complain);
        });
        let stop = async {
            tokio::select! {
                () = context.cancelled().cancelled() => Stopped::Cancelled,
                () = too_much.cancelled() => Stopped::TooMuchOutput,
                () = elapsed(self.timeout) => Stopped::TimedOut,
            }
        };
        let mut stop = std::pin::pin!(stop);
        let mut kill = std::pin::pin!(sleep(Duration::ZERO));
        let (mut talked, mut stopped, mut killed) = (false, None, false);
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                () = &mut talking, if !talked => talked = true,
                why = &mut stop, if stopped.is_none() => {
                    stopped = Some(why);
                    group.terminate(&mut child);
                    kill.as_mut().reset(Instant::now() + self.kill_grace);
                }
                () = &mut kill, if stopped.is_some() && !killed => {
                    killed = true;
                    group.kill(&mut child);
                }
            }
        };
        // The attempt is over: nothing of it may run on.
        group.end(&mut child);
        if !talked {
            let _ = timeout(AFTER_END, &mut talking).await;
        }
        drop(talking);
        // It may have ended before it could be stopped.
        if too_much.is_cancelled() {
            stopped.get_or_insert(Stopped::TooMuchOutput);
        }
        let status = status.map_err(|error| HandlerError::new("wait_failed", error.to_string()))?;
        self.judge(status, stopped, &result, &tail)
    }

    fn spawn(&self, context: &Context, content_type: &str) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // The key lets workers join; what they run has no need of it.
            .env_remove("CREWCALL_WORKER_KEY")
            .env("CREWCALL_SERVER", &self.server)
            .env("CREWCALL_TASK_ID", context.task_id())
            .env("CREWCALL_METHOD", context.method())
            .env("CREWCALL_ATTEMPT", context.attempt().to_string())
            .env("CREWCALL_LEASE", context.lease().to_string())
            .env(
                "CREWCALL_CONTENT_TYPE",
                if content_type.is_empty() { "application/json" } else { content_type },
            );
        if let Some(since) = context.deadline().and_then(|deadline| deadline.duration_since(UNIX_EPOCH).ok())
        {
            command.env("CREWCALL_DEADLINE_UNIX_MS", since.as_millis().to_string());
        }
        // A group of its own: it can be stopped with everything it starts, and ctrl-c reaches the worker alone, which
        // then lets it finish.
        #[cfg(unix)]
        command.process_group(0);
        command.spawn()
    }

    fn judge(
        &self,
        status: ExitStatus,
        stopped: Option<Stopped>,
        result: &[u8],
        tail: &Tail,
    ) -> Result<Payload, HandlerError> {
        let name = self.name();
        match stopped {
            Some(Stopped::Cancelled) => return Err(HandlerError::cancelled()),
            Some(Stopped::TimedOut) => {
                let limit = humantime::format_duration(self.timeout.unwrap_or_default());
                let text = tail.after(&format!("`{name}` was stopped: it ran longer than {limit}"));
                return Err(HandlerError::new("timeout", text));
            }
            Some(Stopped::TooMuchOutput) => {
                let text = format!(
                    "`{name}` wrote more than {} bytes to stdout, the limit (--max-output)",
                    self.max_output
                );
                return Err(HandlerError::new("output_too_large", text).not_retryable());
            }
            None => {}
        }
        if !status.success() {
            let (code, words) = match status.code() {
                Some(code) => (format!("exit_{code}"), format!("`{name}` exited with {code}")),
                None => {
                    let signal = signal_of(status);
                    (format!("signal_{signal}"), format!("`{name}` was killed by signal {signal}"))
                }
            };
            let message = tail.text();
            let message =
                if message.is_empty() { format!("{words} and wrote nothing to stderr") } else { message };
            return Err(HandlerError::new(code, message));
        }
        if result.trim_ascii().is_empty() {
            return Ok(Payload::raw("null", ""));
        }
        match json::check(result) {
            Ok(json) => Ok(Payload::raw(json::lay_out(json.get(), Layout::Compact), "")),
            Err(problem) => {
                let text = format!("`{name}` wrote no valid JSON to stdout: {}", problem.without_hint());
                Err(HandlerError::new("invalid_output", text).not_retryable())
            }
        }
    }

    fn name(&self) -> String {
        safe(&self.program.to_string_lossy())
    }
}

async fn elapsed(limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// False when there was more than `limit`. A pipe that breaks is a pipe that ends.
async fn read_up_to(pipe: impl AsyncRead + Unpin, limit: usize, into: &mut Vec<u8>) -> bool {
    let mut pipe = pipe.take(u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1));
    let _ = pipe.read_to_end(into).await;
    into.len() <= limit
}

/// The end of what a process wrote to stderr. It is also passed on to ours, for the worker's own log.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    async fn read(&mut self, mut pipe: impl AsyncRead + Unpin) {
        let mut stderr = tokio::io::stderr();
        let mut buffer = [0; 4096];
        while let Ok(read) = pipe.read(&mut buffer).await {
            let Some(new) = buffer.get(..read).filter(|new| !new.is_empty()) else { return };
            self.push(new);
            let _ = stderr.write_all(new).await;
            let _ = stderr.flush().await;
        }
    }

    fn push(&mut self, new: &[u8]) {
        self.bytes.extend(new);
        let over = self.bytes.len().saturating_sub(STDERR_TAIL);
        self.cut |= over > 0;
        self.bytes.drain(..over);
    }

    /// Whole lines, as far as there are any.
    fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let whole = match text.split_once('\n') {
            Some((_, rest)) if self.cut && !rest.trim().is_empty() => rest,
            _ => &text,
        };
        whole.trim().to_owned()
    }

    fn after(&self, words: &str) -> String {
        match self.text() {
            text if text.is_empty() => words.to_owned(),
            text => format!("{words}; the end of its stderr:\n{text}"),
        }
    }
}

/// The process and everything it started that did not leave its group. Dropping it kills them.
struct Group {
    #[cfg(unix)]
    id: Option<rustix::process::Pid>,
}

#[cfg(unix)]
impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self { id: id.and_then(rustix::process::Pid::from_raw) }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        if let Some(id) = self.id {
            // Fails when nobody is left, which is what it is for.
            let _ = rustix::process::kill_process_group(id, signal);
        }
    }

    fn terminate(&self, _child: &mut Child) {
        self.signal(rustix::process::Signal::TERM);
    }

    fn kill(&self, _child: &mut Child) {
        self.signal(rustix::process::Signal::KILL);
    }

    /// Kills what is left; to be called once the process itself has ended, and at once, before its number can be
    /// given to another.
    fn end(&mut self, child: &mut Child) {
        self.kill(child);
        self.id = None;
    }
}

#[cfg(unix)]
impl Drop for Group {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::KILL);
    }
}

#[cfg(not(unix))]
impl Group {
    fn of(_child: &Child) -> Self {
        Self {}
    }

    /// Without signals there is no asking.
    fn terminate(&self, child: &mut Child) {
        self.kill(child);
    }

    fn kill(&self, child: &mut Child) {
        let _ = child.start_kill();
    }

    fn end(&mut self, _child: &mut Child) {}
}

#[cfg(unix)]
fn signal_of(status: ExitStatus) -> i32 {
    std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default()
}

#[cfg(not(unix))]
fn signal_of(_status: ExitStatus) -> i32 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_last_whole_lines() {
        let mut tail = Tail::default();
        assert_eq!(tail.text(), "");
        tail.push(b" one\n");
        assert_eq!(tail.text(), "one");
        tail.push(&[b'x'; STDERR_TAIL]);
        tail.push(b"\nlast \xff\n");
        assert_eq!(tail.text(), "last \u{fffd}");
        assert_eq!(tail.bytes.len(), STDERR_TAIL);
    }

    #[test]
    fn one_endless_line_is_cut() {
        let mut tail = Tail::default();
        tail.push(&[b'x'; 2 * STDERR_TAIL]);
        assert_eq!(tail.text().len(), STDERR_TAIL);
    }

    #[tokio::test]
    async fn output_is_read_up_to_its_limit() {
        let mut into = Vec::new();
        assert!(read_up_to(&b"12345"[..], 5, &mut into).await);
        assert!(!read_up_to(&b"123456"[..], 5, &mut Vec::new()).await);
    }
}
