//! The real binary, started on a free port, killed when the test ends.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Far more than anything here needs; reached only when something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server to be started.
#[derive(Debug)]
pub(crate) struct ServerBuilder {
    command: Command,
    listen: String,
    dir: TempDir,
}

/// A running `crewcall serve`. Dropping it kills the process and removes its directory.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    address: SocketAddr,
    /// What it printed on stdout until it was up.
    pub(crate) announcement: Vec<String>,
}

/// A server that ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary under test with the arguments, and nothing of this process's `CREWCALL_*` environment. A run of
/// hours names a copy in `CREWCALL_TEST_BINARY`, so that a build meanwhile does not change what it tests.
pub(crate) fn crewcall<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let built = env!("CARGO_BIN_EXE_crewcall").into();
    let mut command = Command::new(std::env::var_os("CREWCALL_TEST_BINARY").unwrap_or(built));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CREWCALL_") {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

impl Server {
    /// With default settings, on a free port.
    pub(crate) fn start() -> Self {
        Self::builder().start()
    }

    pub(crate) fn builder() -> ServerBuilder {
        let dir = tempfile::tempdir().unwrap();
        let mut command = crewcall(["serve"]);
        command.current_dir(dir.path());
        ServerBuilder { command, listen: "127.0.0.1:0".to_owned(), dir }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// For gRPC clients and HTTP/1 alike, without a trailing slash.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(log_file(self.dir.path())).unwrap_or_default()
    }

    /// Sends a signal by its name without SIG: `TERM`, `INT`, `KILL`, `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(status.success(), "kill -s {name} {pid}: {status}");
    }

    /// The most memory it has held so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.memory_of("VmHWM:")
    }

    /// The memory it holds, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.memory_of("VmRSS:")
    }

    fn memory_of(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix(what)?.strip_suffix("kB"));
        kib.unwrap().trim().parse::<u64>().unwrap() * 1024
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of the server at {} ---\n{}", self.address, self.log());
        }
    }
}

impl ServerBuilder {
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Instead of a free port of 127.0.0.1.
    pub(crate) fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = address.into();
        self
    }

    /// Starts it and waits until it says where it listens.
    pub(crate) fn start(mut self) -> Server {
        let log = File::create(log_file(self.dir.path())).unwrap();
        self.command.args(["--listen", &self.listen]);
        let mut child = self.command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let lines = lines(&mut child);
        let mut announcement = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        // The store is the last thing that it announces.
        while !announcement.last().is_some_and(|line: &String| line.starts_with("store: ")) {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => announcement.push(line),
                Err(error) => {
                    let _ = child.kill();
                    let log = fs::read_to_string(log_file(self.dir.path())).unwrap_or_default();
                    let how = match error {
                        RecvTimeoutError::Timeout => "said nothing for too long",
                        RecvTimeoutError::Disconnected => "ended at once",
                    };
                    panic!("the server {how}; stdout: {announcement:?}; stderr:\n{log}");
                }
            }
        }
        let address = listening_address(&announcement);
        Server { child, dir: self.dir, address, announcement }
    }

    /// Runs a server that is expected to end by itself.
    pub(crate) fn fails(mut self) -> Ended {
        self.command.args(["--listen", &self.listen]);
        let mut child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let status = wait(&mut child);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Ended { status, stdout, stderr }
    }
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("server.log")
}

/// The address in `crewcall VERSION listening on http://ADDRESS (gRPC and HTTP)`.
fn listening_address(announcement: &[String]) -> SocketAddr {
    announcement
        .iter()
        .find_map(|line| line.split_once(" listening on "))
        .and_then(|(_, rest)| rest.split_once("://"))
        .and_then(|(_, rest)| rest.split(' ').next())
        .and_then(|address| address.parse().ok())
        .unwrap_or_else(|| panic!("no address in {announcement:?}"))
}

/// The lines of stdout as they come. Goes on reading, so that the child never blocks on a full pipe.
fn lines(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// The standard library can wait for ever or not at all; a thread that waits would need the child for itself.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            panic!("the process did not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
