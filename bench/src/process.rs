//! The processes of a run: a server in the middle, and one with the workers.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{
    BenchError,
    case::{Crew, Server},
};

/// Far longer than a start takes; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// A free port, and no line of log for each worker that comes.
const SERVE: [&str; 5] = ["serve", "--listen", "127.0.0.1:0", "--log", "warn"];

/// A server of a run. Dropping it kills the process and removes its directory.
#[derive(Debug)]
pub struct ServerProcess {
    process: Option<Process>,
    url: String,
    kind: Server,
    flags: &'static [&'static str],
    dir: TempDir,
}

/// The process with the workers. Dropping it ends it.
#[derive(Debug)]
pub struct CrewProcess {
    _process: Process,
}

#[derive(Debug)]
struct Process {
    child: Child,
    // Kept open: a floor or a crew ends when it closes, however this process ends.
    _stdin: Option<tokio::process::ChildStdin>,
    // Kept open, so that nobody dies of a closed pipe.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl ServerProcess {
    /// Starts one over a fresh directory and waits until it listens.
    ///
    /// # Errors
    /// [`BenchError::Process`] when it does not start, with what it said.
    pub async fn start(
        binary: &Path,
        kind: &Server,
        flags: &'static [&'static str],
    ) -> Result<Self, BenchError> {
        let dir = tempfile::Builder::new().prefix("crewcall-bench-").tempdir_in(Self::place())?;
        let mut server = Self { process: None, url: String::new(), kind: kind.clone(), flags, dir };
        server.run(binary).await?;
        Ok(server)
    }

    /// One that runs already, elsewhere.
    ///
    /// # Errors
    /// When there is no room for temporary files.
    pub fn elsewhere(url: &str) -> Result<Self, BenchError> {
        let dir = tempfile::tempdir()?;
        Ok(Self { process: None, url: url.to_owned(), kind: Server::Ephemeral, flags: &[], dir })
    }

    /// Where data directories are made: beside the current directory's files, where a server would have its own.
    /// A temporary directory is often memory, where a sync costs nothing.
    pub fn place() -> PathBuf {
        let target = Path::new("target");
        if target.is_dir() { target.to_owned() } else { PathBuf::from(".") }
    }

    /// Starts it, again after [`kill`](Self::kill), over the directory it has.
    ///
    /// # Errors
    /// [`BenchError::Process`] when it does not start, with what it said.
    pub async fn run(&mut self, binary: &Path) -> Result<(), BenchError> {
        let mut command = Command::new(binary);
        let data = self.data_dir();
        match &self.kind {
            Server::Ephemeral => {
                command.args(SERVE).arg("--ephemeral").args(self.flags);
            }
            Server::Durable => {
                command.args(SERVE).arg("--data-dir").arg(data).args(self.flags);
            }
            Server::Floor(floor) => {
                command.args(["bench", "floor-server", floor.name(), "--data-dir"]).arg(data);
            }
        }
        let log = self.dir.path().join("log");
        let (process, line) = Process::start(command, &log, " listening on ").await?;
        let address = line.split_once(" listening on ").and_then(|(_, rest)| rest.split(' ').next());
        self.url = address.unwrap_or_default().to_owned();
        self.process = Some(process);
        Ok(())
    }

    /// `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where a durable one has its files.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// kill -9, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self) -> Result<(), BenchError> {
        if let Some(mut process) = self.process.take() {
            process.child.kill().await?;
        }
        Ok(())
    }

    /// Its number; `None` when it runs elsewhere.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref()?.child.id()
    }

    /// Processor time it has used so far, user and system, as the operating system accounts for it; `None` when
    /// it runs elsewhere or the system does not tell.
    pub fn cpu(&self) -> Option<Duration> {
        cpu_of(self.pid()?)
    }

    /// Memory it has resident now, in bytes; `None` when it runs elsewhere or the system does not tell.
    pub fn resident(&self) -> Option<u64> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid()?)).ok()?;
        Some(statm.split(' ').nth(1)?.parse::<u64>().ok()? * page_bytes()?)
    }
}

impl CrewProcess {
    /// Starts the workers and waits until the server has welcomed them all.
    ///
    /// # Errors
    /// [`BenchError::Process`] when they do not start, with what they said.
    pub async fn start(binary: &Path, server: &ServerProcess, crew: &Crew) -> Result<Self, BenchError> {
        let crew = serde_json::to_string(crew).map_err(|error| BenchError::failed("crew", error))?;
        let mut command = Command::new(binary);
        command.args(["bench", "crew", server.url(), &crew]);
        let log = server.dir.path().join("crew-log");
        let (process, _) = Process::start(command, &log, "crew is ready").await?;
        Ok(Self { _process: process })
    }
}

impl Process {
    /// Starts it and waits for the line on its stdout that has `wanted` in it.
    async fn start(mut command: Command, log: &Path, wanted: &str) -> Result<(Self, String), BenchError> {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CREWCALL_") {
                command.env_remove(name);
            }
        }
        command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(log)?);
        let what = format!("{:?}", command.as_std());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let Some(stdout) = child.stdout.take() else {
            return Err(BenchError::Process { what, why: "it has no stdout".to_owned() });
        };
        let mut lines = BufReader::new(stdout).lines();
        let found = tokio::time::timeout(PATIENCE, async {
            while let Some(line) = lines.next_line().await? {
                if line.contains(wanted) {
                    return Ok(Some(line));
                }
            }
            Ok::<_, std::io::Error>(None)
        });
        let why = match found.await {
            Ok(Ok(Some(line))) => return Ok((Self { child, _stdin: stdin, _stdout: lines }, line)),
            Ok(Ok(None)) => format!("it ended ({:?})", child.wait().await?),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it was not ready within {PATIENCE:?}"),
        };
        let said = fs::read_to_string(log).unwrap_or_default();
        Err(BenchError::Process { what, why: format!("{why}: {}", said.trim()) })
    }
}

/// Processor time of a process, its ended threads included.
#[cfg(target_os = "linux")]
fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; behind it the state is field 3, utime 14 and stime 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

#[cfg(not(target_os = "linux"))]
fn cpu_of(_: u32) -> Option<Duration> {
    None
}

#[cfg(unix)]
fn page_bytes() -> Option<u64> {
    u64::try_from(rustix::param::page_size()).ok()
}

#[cfg(not(unix))]
fn page_bytes() -> Option<u64> {
    None
}
