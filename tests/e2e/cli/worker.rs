//! `worker`: any executable, from its stdin to its end.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use super::{Running, command, crewcall};
use crate::harness::Server;

/// A server without methods of its own.
struct Site {
    server: Server,
}

impl Site {
    fn new() -> Self {
        Self { server: Server::start() }
    }

    /// A worker that serves `run` with a shell script; it serves it when this returns.
    fn serve(&self, flags: &[&str], script: &str) -> Running {
        let worker = self.start(flags, &["sh", "-c", script]);
        worker.until("serves run");
        worker
    }

    fn start(&self, flags: &[&str], program: &[&str]) -> Running {
        let args = ["worker", "--method", "run"].iter().chain(flags).chain(&["--"]).chain(program);
        Running::start(command(&self.server.url(), args))
    }

    fn run(&self, args: &[&str]) -> super::Ran {
        Running::start(command(&self.server.url(), args)).ended()
    }

    /// The error of a call that fails, its code and message.
    #[track_caller]
    fn failure(&self, payload: &str) -> (String, String) {
        let ran = self.run(&["call", "run", payload, "--json"]);
        assert_eq!(ran.code, Some(5), "{ran:?}");
        let error = ran.json()["outcome"]["error"].clone();
        let text = |member: &str| error[member].as_str().unwrap().to_owned();
        (text("code"), text("message"))
    }
}

#[test]
fn json_goes_in_and_json_comes_out() {
    let site = Site::new();
    let _worker = site.serve(&[], "cat");
    assert_eq!(
        site.run(&["call", "run", "{\"a\": [1e400, 9007199254740993]}"]).line(),
        "{\"a\":[1e400,9007199254740993]}"
    );
    // More than a pipe holds, both ways.
    let long = format!("\"{}\"", "x".repeat(100_000));
    assert_eq!(site.run(&["call", "run", &long]).line(), long);
    // Bytes that are not read are nobody's trouble, and no output is null.
    let _other = site.start(&["--method", "nothing", "--worker-id", "w2"], &["true"]);
    _other.until("serves");
    let ran = site.run(&["call", "nothing", &long]);
    assert_eq!(ran.line(), "null");
}

#[test]
fn the_command_is_told_what_it_runs() {
    let site = Site::new();
    let script = "printf '[\"%s\",\"%s\",%s,%s,\"%s\",\"%s\"]' $CREWCALL_TASK_ID $CREWCALL_METHOD $CREWCALL_ATTEMPT \
                  $CREWCALL_LEASE $CREWCALL_CONTENT_TYPE \"$CREWCALL_SERVER${CREWCALL_WORKER_KEY:+ and the key}\"";
    let _worker = site.serve(
        &[
            "--version",
            "1.2.3",
            "--group",
            "g",
            "--label",
            "l=v",
            "--summary",
            "Tells",
            "--worker-id",
            "w",
            "--key",
            "k",
        ],
        script,
    );
    let called = site
        .run(&["call", "run", "--group", "g", "--label", "l=v", "--version-range", "^1.2", "--json"])
        .json();
    let told = &called["outcome"]["result"];
    assert_eq!(told[0], called["task_id"]);
    assert_eq!((&told[1], &told[2]), (&json!("run"), &json!(1)));
    assert!(told[3].as_u64().unwrap() > 0);
    assert_eq!((&told[4], &told[5]), (&json!("application/json"), &json!(site.server.url())));
    let methods = site.run(&["methods", "run", "--json"]).json();
    assert_eq!((&methods[0]["version"], &methods[0]["summary"]), (&json!("1.2.3"), &json!("Tells")));
}

#[test]
fn a_command_that_fails_says_so_with_the_end_of_its_stderr() {
    let site = Site::new();
    let script = r#"read how; case $how in
        1) echo "first line" >&2; echo "out of paper" >&2; exit 3;;
        2) exit 4;;
        3) kill -9 $$;;
        4) echo '{"a":';;
        5) head -c 2000 /dev/zero;;
        6) echo "tired" >&2; sleep 600;;
        7) [ "$CREWCALL_ATTEMPT" = 2 ] && echo '"second time lucky"';;
    esac"#;
    let worker = site.serve(&["--timeout", "500ms", "--max-output", "1000"], script);
    assert_eq!(site.failure("1"), ("exit_3".to_owned(), "first line\nout of paper".to_owned()));
    worker.until_stderr("out of paper");
    let (code, message) = site.failure("2");
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("exit_4", "`sh` exited with 4 and wrote nothing to stderr")
    );
    assert_eq!(site.failure("3").0, "signal_9");
    let (code, message) = site.failure("4");
    assert_eq!(code, "invalid_output");
    assert!(
        message.contains("EOF while parsing a value at line 1") && message.contains("{\"a\":"),
        "{message}"
    );
    let (code, message) = site.failure("5");
    assert_eq!((code.as_str(), message.contains("1000 bytes")), ("output_too_large", true), "{message}");
    let (code, message) = site.failure("6");
    assert_eq!(
        (code.as_str(), message.contains("500ms") && message.ends_with("tired")),
        ("timeout", true),
        "{message}"
    );
    assert_eq!(
        site.run(&["call", "run", "7", "--retry", "1", "--backoff", "1ms"]).line(),
        "\"second time lucky\""
    );
}

/// Whether the process is there and not a zombie.
fn is_alive(pid: &str) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid).join("status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

/// Cancels a running command, waits until the worker has room again, and returns what the command wrote until then.
fn cancel_one(site: &Site, worker: &Running) -> Vec<String> {
    let id = site.run(&["submit", "run", "1"]).line();
    let started = worker.until_stderr("pids ");
    let pids: Vec<String> = started.split(' ').skip(1).map(str::to_owned).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| is_alive(pid)), "{pids:?}");
    site.run(&["cancel", &id]).line();
    // One at a time: the next begins when the cancelled one has come to its end.
    assert_eq!(site.run(&["call", "run", "2"]).line(), "2");
    pids
}

#[test]
fn a_cancelled_command_is_stopped_with_all_it_started() {
    let site = Site::new();
    let script = "read n; [ $n = 2 ] && echo 2 && exit; \
                  trap 'echo asked to stop >&2; exit 1' TERM; sleep 600 & echo \"pids $$ $!\" >&2; wait";
    let worker = site.serve(&[], script);
    let pids = cancel_one(&site, &worker);
    worker.until_stderr("asked to stop");
    assert!(!pids.iter().any(|pid| is_alive(pid)), "{pids:?}");
}

#[test]
fn a_command_that_does_not_stop_is_killed() {
    let site = Site::new();
    let script = "read n; [ $n = 2 ] && echo 2 && exit; \
                  trap '' TERM; sleep 600 & echo \"pids $$ $!\" >&2; while :; do wait; done";
    let worker = site.serve(&["--kill-grace", "50ms"], script);
    let pids = cancel_one(&site, &worker);
    assert!(!pids.iter().any(|pid| is_alive(pid)), "{pids:?}");
}

#[test]
fn what_a_command_leaves_behind_does_not_outlive_it() {
    let site = Site::new();
    // The child holds stdout and stderr open; nobody waits for it.
    let worker = site.serve(&[], "sleep 600 & echo \"pids $!\" >&2; echo 1");
    assert_eq!(site.run(&["call", "run"]).line(), "1");
    let left = worker.until_stderr("pids ");
    assert!(!is_alive(left.strip_prefix("pids ").unwrap()));
}

#[test]
fn a_signal_lets_the_worker_finish_and_leave() {
    let site = Site::new();
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
    let worker = site.serve(&[], &format!("echo started >&2; cat '{}'", gate.display()));
    let call = Running::start(command(&site.server.url(), ["call", "run"]));
    worker.until_stderr("started");
    worker.signal("TERM");
    worker.until("leaving");
    std::fs::write(&gate, "\"finished\"").unwrap();
    assert_eq!(call.ended().line(), "\"finished\"");
    let ended = worker.ended();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "left\n"), "{ended:?}");
}

#[test]
fn a_second_signal_ends_the_worker_and_its_commands_at_once() {
    let site = Site::new();
    let worker = site.serve(&[], "sleep 600 & echo \"pids $$ $!\" >&2; wait");
    site.run(&["submit", "run"]).line();
    let pids = worker.until_stderr("pids ");
    worker.signal("INT");
    worker.until("leaving");
    worker.signal("INT");
    let ended = worker.ended();
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(!pids.split(' ').skip(1).any(is_alive), "{pids}");
}

#[test]
fn a_drained_worker_leaves_by_itself() {
    let site = Site::new();
    let worker = site.start(&["--worker-id", "w", "--json"], &["cat"]);
    let connected: Value = serde_json::from_str(&worker.line()).unwrap();
    assert_eq!((&connected["event"], &connected["worker_id"]), (&json!("connected"), &json!("w")));
    assert_eq!(connected["methods"], json!(["run"]));
    assert_eq!(site.run(&["drain", "w"]).code, Some(0));
    let ended = worker.ended();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "{\"event\":\"left\"}\n"), "{ended:?}");
}

#[test]
fn a_worker_that_cannot_work_says_why() {
    let site = Site { server: Server::builder().env("CREWCALL_WORKER_KEY", "secret").start() };
    let refused = site.start(&["--key", "wrong"], &["cat"]).ended();
    assert_eq!(refused.code, Some(9), "{refused:?}");
    assert!(refused.stderr.contains("worker_key_required"), "{refused:?}");

    let mut right = command(&site.server.url(), ["worker", "--method", "run", "--", "cat"]);
    right.env("CREWCALL_WORKER_KEY", "secret");
    Running::start(right).until("serves run");

    for (args, part) in [
        (vec!["worker", "--method", "m", "--", "no-such-command"], "`no-such-command` is not found"),
        (vec!["worker", "--method", "m", "--", "./no/such"], "is not found"),
        (
            vec!["worker", "--method", "m", "--input-schema", "{", "--", "cat"],
            "--input-schema is not valid JSON",
        ),
        (vec!["worker", "--", "cat"], "--method"),
        (vec!["worker", "--method", "m"], "COMMAND"),
    ] {
        let ran = Running::start(crewcall(args)).ended();
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains(part), "{ran:?}");
    }
}
