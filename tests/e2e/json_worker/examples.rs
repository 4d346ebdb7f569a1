//! The workers of docs/worker-websocket.md run as they stand, but for the address.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::{grpc::soon, harness::Server, http::post};

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The code block of a language, pointed at the server under test.
fn block(language: &str, server: &Server) -> String {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/worker-websocket.md");
    let docs = fs::read_to_string(docs).unwrap();
    let (_, code) = docs.split_once(&format!("```{language}\n")).expect("no such block");
    let (code, _) = code.split_once("```").unwrap();
    assert!(code.lines().count() < 40, "short enough to be read");
    code.replace("127.0.0.1:8080", &server.address().to_string())
}

fn of_the_test_command(name: &str) -> PathBuf {
    PathBuf::from(
        env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run this test with ./test e2e")),
    )
}

async fn says_hello(server: &Server, mut command: Command) {
    let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let _worker = Running(child);
    // The calls wait for the worker, however late it comes; there are more of them than it has credit.
    let calls = (0..20).map(|_| post(server, "/v1/call/hello?queue_timeout=30s", "\"Ada\""));
    for answer in soon(futures_util::future::join_all(calls)).await {
        assert_eq!((answer.status, answer.text().trim()), (200, "\"Hello, Ada!\""));
    }
}

#[tokio::test]
async fn the_worker_in_python() {
    let server = Server::start();
    let mut command = Command::new(of_the_test_command("CREWCALL_TEST_PYTHON"));
    command.arg("-c").arg(block("python", &server));
    says_hello(&server, command).await;
}

#[cfg(unix)]
#[tokio::test]
async fn the_worker_in_node() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let modules = of_the_test_command("CREWCALL_LEGACY").join("node/node_modules");
    std::os::unix::fs::symlink(modules, folder.path().join("node_modules")).unwrap();
    let script = folder.path().join("json_worker.mjs");
    fs::write(&script, block("javascript", &server)).unwrap();
    let mut command = Command::new("node");
    command.arg("--preserve-symlinks").arg(script);
    says_hello(&server, command).await;
}
