//! What the process tells its parent when it ends.

use std::process::ExitCode;

/// Exit codes are a contract with scripts: a code never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done; for `serve`: stopped in order after a signal.
    Ok = 0,
    /// Something failed that has no code of its own; the message says what.
    Failure = 1,
    /// Bad flag, environment variable, configuration file or TLS file. Nothing was started.
    Usage = 2,
    /// The address cannot be listened on.
    Bind = 3,
    /// The store failed while it was in use. Nothing was acknowledged that it does not hold.
    Store = 4,
    /// The task ended with an error.
    TaskFailed = 5,
    /// The task was cancelled.
    TaskCancelled = 6,
    /// A deadline of the task passed.
    TaskExpired = 7,
    /// There is no such task, worker or method, or no longer.
    NotFound = 8,
    /// The server refused the request, or the worker. Repeating it as it is does not help.
    Refused = 9,
    /// The server cannot be reached, the connection broke, or it has no room now. Repeating it later may help.
    Unavailable = 10,
    /// The wait asked for ended before the task did. The task goes on.
    WaitElapsed = 11,
    /// Another process uses the data directory.
    StoreInUse = 12,
    /// The data directory cannot be made or written.
    StoreUnwritable = 13,
    /// The disk that holds the data directory is full.
    StoreDiskFull = 14,
    /// The data directory was written by a newer crewcall.
    StoreNewer = 15,
    /// The data directory is damaged or cut short. Nothing was served from it.
    StoreDamaged = 16,
    /// A second signal ended the process at once (128 + SIGINT, as shells count).
    Interrupted = 130,
}

impl Exit {
    /// For `--help`.
    pub(crate) const HELP: &str = "\
Exit codes:
  0    done; a server or worker: stopped in order after SIGINT or SIGTERM
  1    failed, the message says why
  2    bad flag, argument, environment variable, configuration file or TLS file
  3    the address cannot be listened on
  4    the store failed while it was in use
  5    the task failed
  6    the task was cancelled
  7    the task expired: a deadline of it passed
  8    no such task, worker or method
  9    the server refused it; repeating it as it is does not help
  10   the server cannot be reached or has no room; repeating it later may help
  11   the wait asked for ended before the task; the task goes on
  12   another process uses the data directory
  13   the data directory cannot be made or written
  14   the disk that holds the data directory is full
  15   the data directory was written by a newer crewcall
  16   the data directory is damaged
  130  ended at once by a second signal";

    /// For the help of a command, whose other texts are long enough.
    pub(crate) const SEE_HELP: &str = "Exit codes: see `crewcall --help`.";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
