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
    /// The store failed or cannot be read. Nothing that was acknowledged depends on what it did not store.
    Store = 4,
    /// A second signal ended the process at once (128 + SIGINT, as shells count).
    Interrupted = 130,
}

impl Exit {
    /// For `--help`.
    pub(crate) const HELP: &str = "\
Exit codes:
  0    done; a server: stopped in order after SIGINT or SIGTERM
  1    failed, the message says why
  2    bad flag, environment variable, configuration file or TLS file
  3    the address cannot be listened on
  4    the store failed or cannot be read
  130  ended at once by a second signal";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
