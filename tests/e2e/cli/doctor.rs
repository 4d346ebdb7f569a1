//! `crewcall doctor`, and what a server says of a data directory it cannot use.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::Server;

fn doctor(dir: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crewcall"))
        .arg("doctor")
        .arg("--data-dir")
        .arg(dir)
        .args(more)
        .output()
        .expect("crewcall runs")
}

fn submit(server: &Server) {
    let done = Command::new(env!("CARGO_BIN_EXE_crewcall"))
        .args(["submit", "later", "1", "--server", &server.url()])
        .output()
        .expect("crewcall runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn the_doctor_finds_damage_and_saves_the_rest() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    let data_dir = dir.to_str().unwrap();
    let server = Server::builder().arg("--data-dir").arg(data_dir).start();
    submit(&server);
    let busy = doctor(&dir, &[]);
    assert_eq!(busy.status.code(), Some(12), "{busy:?}");
    drop(server);

    let healthy = doctor(&dir, &["--json"]);
    assert_eq!(healthy.status.code(), Some(0), "{healthy:?}");
    let report: serde_json::Value = serde_json::from_slice(&healthy.stdout).unwrap();
    assert_eq!((report["healthy"].as_bool(), report["rows_found"].as_u64()), (Some(true), Some(3)));

    // The task was never checkpointed: without the log it is gone, and that must be said, not passed over.
    fs::remove_file(dir.join("crewcall.db-wal")).unwrap();
    let refused = Server::builder().arg("--data-dir").arg(data_dir).fails();
    assert_eq!(refused.status.code(), Some(16), "{}", refused.stderr);
    assert!(refused.stderr.contains("crewcall doctor"), "{}", refused.stderr);
    assert_eq!(doctor(&dir, &[]).status.code(), Some(16));

    let saved = home.path().join("saved");
    assert_eq!(doctor(&dir, &["--repair", saved.to_str().unwrap()]).status.code(), Some(16));
    let _server = Server::builder().arg("--data-dir").arg(saved.to_str().unwrap()).start();
}
