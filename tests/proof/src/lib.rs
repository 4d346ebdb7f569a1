//! What a run has proven, written down by the run: figures in `RELIABILITY.md` are never typed by hand.
//!
//! ```no_run
//! let trials = proof::size("CREWCALL_CRASH_TRIALS", 30);
//! let proof = proof::Proof::begin("kill -9", "./test e2e -- crash::trials");
//! // … the run …
//! proof.record(&[("trials", proof::count(trials)), ("lost", proof::count(0))]);
//! ```
//!
//! With `CREWCALL_RECORD=1` in the environment [`Proof::record`] rewrites the section of that name in the
//! repository's `RELIABILITY.md`; without it, it does nothing. A section stands between two comments, so the
//! prose around it is free. Tests of several processes may record at the same time.

mod document;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

const DOCUMENT: &str = "RELIABILITY.md";

/// One section of the document, from the moment its run begins: what it says about the code is what stood in
/// the working tree then.
#[derive(Debug)]
pub struct Proof {
    section: String,
    command: String,
    begun: Instant,
    /// None when nothing is to be recorded.
    origin: Option<Origin>,
}

/// What was run, and on what.
#[derive(Debug)]
struct Origin {
    root: PathBuf,
    commit: String,
}

impl Proof {
    /// Begins the run behind `section`. `command` repeats it; the sizes that were set in the environment
    /// (`CREWCALL_CRASH_TRIALS=1000`) are put before it.
    pub fn begin(section: &str, command: &str) -> Self {
        let wanted = env::var_os("CREWCALL_RECORD").is_some_and(|value| !value.is_empty() && value != "0");
        let origin = wanted.then(|| {
            let root = root();
            let commit = commit(&root);
            Origin { root, commit }
        });
        Self { section: section.to_owned(), command: command.to_owned(), begun: Instant::now(), origin }
    }

    /// Writes the section: commit, day, machine, duration, command and these facts, in their order.
    ///
    /// # Panics
    /// When the document cannot be written: a proof that was asked for and is not recorded fails its test.
    #[allow(clippy::panic, reason = "it is a test that calls this, and so it fails")]
    pub fn record(&self, facts: &[(&str, String)]) {
        let Some(origin) = &self.origin else { return };
        let body = self.body(origin, facts);
        if let Err(error) = replace(&origin.root, &self.section, &body) {
            panic!("section {:?} of {DOCUMENT} cannot be recorded: {error}", self.section);
        }
    }

    fn body(&self, origin: &Origin, facts: &[(&str, String)]) -> String {
        let sizes: Vec<_> = env::vars().filter(|(name, _)| is_size(name)).collect();
        let command = command(sizes, &self.command);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let origin = format!(
            "Recorded {} at commit {} ({profile} build, {cores} cores, {}-{}) in {:.0} s.",
            document::day(seconds),
            origin.commit,
            env::consts::OS,
            env::consts::ARCH,
            self.begun.elapsed().as_secs_f64(),
        );
        document::body(&origin, &command, facts)
    }
}

/// A number that the environment may set: how often, how long, how many.
///
/// # Panics
/// When the variable is set and is no whole number.
#[allow(clippy::panic, reason = "a run of another size than the one asked for proves something else")]
pub fn size(variable: &str, default: u64) -> u64 {
    let Ok(text) = env::var(variable) else { return default };
    match text.replace('_', "").parse() {
        Ok(number) => number,
        Err(error) => panic!("{variable}={text} is no whole number: {error}"),
    }
}

/// With separators: 1,000,000.
pub fn count(number: impl TryInto<u64>) -> String {
    let digits = number.try_into().unwrap_or(u64::MAX).to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Whether a variable changes what a run does, not where it finds its tools or what it prints.
fn is_size(name: &str) -> bool {
    name.strip_prefix("CREWCALL_")
        .is_some_and(|rest| !rest.starts_with("TEST_") && !["RECORD", "LEGACY", "BLESS"].contains(&rest))
}

fn command(mut sizes: Vec<(String, String)>, command: &str) -> String {
    sizes.sort();
    let mut line = String::new();
    for (name, value) in sizes {
        line.push_str(&format!("{name}={value} "));
    }
    line + command
}

/// Of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).to_path_buf()
}

fn commit(root: &Path) -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").current_dir(root).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".to_owned() };
    // The document itself is being written by this very run.
    let excluded = format!(":!{DOCUMENT}");
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", &excluded]);
    let dirty = changed.is_none_or(|files| !files.is_empty());
    format!("`{commit}`{}", if dirty { " + changes" } else { "" })
}

fn replace(root: &Path, section: &str, body: &str) -> io::Result<()> {
    let cache = root.join(".cache");
    fs::create_dir_all(&cache)?;
    // The document is replaced, so a lock on it would be a lock on what was there before.
    let lock = fs::File::create(cache.join("record.lock"))?;
    lock.lock()?;
    let path = root.join(DOCUMENT);
    let old = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let new = root.join(".RELIABILITY.md.new");
    fs::write(&new, document::replace(&old, section, body))?;
    fs::rename(&new, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let counted = [0, 999, 1_000, 123_456, 5_000_000].map(count);
        assert_eq!(counted, ["0", "999", "1,000", "123,456", "5,000,000"]);
    }

    #[test]
    fn the_command_holds_the_sizes_and_nothing_of_the_machine() {
        let names =
            ["CREWCALL_CRASH_TRIALS", "CREWCALL_RECORD", "CREWCALL_TEST_PYTHON", "CREWCALL_LEGACY", "HOME"];
        assert_eq!(names.map(is_size), [true, false, false, false, false]);
        let sizes = vec![("B".to_owned(), "2".to_owned()), ("A".to_owned(), "1".to_owned())];
        assert_eq!(command(sizes, "./test core"), "A=1 B=2 ./test core");
    }

    #[test]
    fn many_record_at_once_and_none_is_lost() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(DOCUMENT), "# Reliability\n\nBefore.\n").unwrap();
        thread::scope(|scope| {
            for writer in 0..8 {
                let root = root.path();
                scope.spawn(move || {
                    for round in 0..20 {
                        replace(root, &format!("section {writer}"), &format!("round {round}\n")).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(root.path().join(DOCUMENT)).unwrap();
        assert!(text.starts_with("# Reliability\n\nBefore.\n"), "{text}");
        assert_eq!(text.matches("round 19\n").count(), 8, "{text}");
        assert_eq!(text.matches("round ").count(), 8, "{text}");
    }
}
