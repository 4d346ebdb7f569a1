//! A process of its own for what only a process can do: hold a lock, be someone else, have a bad disk.

use std::collections::HashMap;
use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::model;

const ROLE: &str = "CREWCALL_TEST_STORE_ROLE";
const DIR: &str = "CREWCALL_TEST_STORE_DIR";
/// Lines that are for the parent; libtest writes some of its own.
const MARK: &str = "child: ";

type Role = fn(&Path);

/// Not a test when run by itself: the children of other tests come in here.
#[test]
fn child() {
    let roles: HashMap<&str, Role> = HashMap::from([
        ("open", open as Role),
        #[cfg(target_os = "linux")]
        ("trace", super::power_cut::trace),
        #[cfg(target_os = "linux")]
        ("full", super::full::fill),
        #[cfg(target_os = "linux")]
        ("sync_error", super::sync_error::commit_until_it_fails),
    ]);
    if let (Ok(role), Some(dir)) = (env::var(ROLE), env::var_os(DIR)) {
        roles[role.as_str()](&PathBuf::from(dir));
    }
}

/// Opens, says how that went and stays until its input ends.
fn open(dir: &Path) {
    let opened = model::open(dir);
    say(opened.as_ref().map_or_else(|error| format!("{error:?}"), |_| "open".to_owned()));
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

pub(super) fn say(line: impl std::fmt::Display) {
    let mut out = io::stdout();
    writeln!(out, "{MARK}{line}").unwrap();
    out.flush().unwrap();
}

/// This binary in a role. Environment and identity are for the caller to add.
pub(super) fn command(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "store::child::child", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(DIR, dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// A running child, killed when dropped.
pub(super) struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    pub(super) fn start(mut command: Command) -> Self {
        let _no_store = model::locks_are_inherited();
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        // libtest's first line, an empty one: the child has let go of what was ours.
        lines.read_line(&mut String::new()).unwrap();
        Self { child, lines }
    }

    /// The next thing it says; none when it has ended.
    pub(super) fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            // libtest begins lines without ending them.
            if let Some((_, said)) = line.trim_end().split_once(MARK) {
                return Some(said.to_owned());
            }
            line.clear();
        }
        None
    }

    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
