//! The sample worker in stock Python, as a process of its own.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use tokio::sync::mpsc;

use super::soon;

/// An interpreter with grpcio, and stubs generated from `proto/`.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    interpreter: PathBuf,
    stubs: PathBuf,
}

/// Killed when dropped.
#[derive(Debug)]
pub(crate) struct PythonWorker {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Python {
    /// What `./test` has made.
    pub(crate) fn of_the_test_command() -> Self {
        let path = |name| {
            PathBuf::from(env::var_os(name).unwrap_or_else(|| {
                panic!("{name} is not set: this test needs Python with grpcio; run it with ./test e2e")
            }))
        };
        Self { interpreter: path("CREWCALL_TEST_PYTHON"), stubs: path("CREWCALL_TEST_STUBS") }
    }

    /// Starts `worker.py` and waits until it has joined.
    pub(crate) async fn worker(&self, address: &str, worker_id: &str, concurrency: u32) -> PythonWorker {
        let mut worker = self.start(address, worker_id, concurrency);
        worker.expect("joined as").await;
        worker
    }

    /// Starts `worker.py`.
    pub(crate) fn start(&self, address: &str, worker_id: &str, concurrency: u32) -> PythonWorker {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/e2e/python/worker.py");
        let mut child = Command::new(&self.interpreter)
            .arg(script)
            .args(["--server", address, "--worker-id", worker_id])
            .args(["--concurrency", &concurrency.to_string()])
            .env("PYTHONPATH", &self.stubs)
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run ./test setup", self.interpreter.display()));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        PythonWorker { child, lines }
    }
}

impl PythonWorker {
    /// The first line, from here on, that holds `text`.
    pub(crate) async fn expect(&mut self, text: &str) -> String {
        loop {
            let line = soon(self.lines.recv()).await;
            let line = line.unwrap_or_else(|| panic!("the Python worker ended before it said {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Sends a signal by its name without SIG.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(status.success(), "kill -s {name} {pid}: {status}");
    }

    /// Waits until its process has ended; `None` when a signal ended it.
    pub(crate) async fn exited(&mut self) -> Option<i32> {
        // Its output ends with it.
        while soon(self.lines.recv()).await.is_some() {}
        self.child.wait().unwrap().code()
    }
}

impl Drop for PythonWorker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
