//! `submit`, `get`, `watch`, `cancel`, `retry`, `tasks`, `explain`, and the server as a whole.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

use super::{Dev, Running, command, file};

/// A valid id that no task has.
const UNKNOWN: &str = "019ab000-0000-7000-8000-000000000000";

/// Relays connections to a server until they are cut.
struct Relay {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(server: &str) -> Self {
        let server = server.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let kept = open.clone();
        thread::spawn(move || {
            for inner in listener.incoming().map_while(Result::ok) {
                let outer = TcpStream::connect(&server).unwrap();
                kept.lock().unwrap().push(inner.try_clone().unwrap());
                for (mut from, mut to) in
                    [(inner.try_clone().unwrap(), outer.try_clone().unwrap()), (outer, inner)]
                {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, open }
    }

    /// Cuts what is open, and says how much that was.
    fn cut(&self) -> usize {
        let open = std::mem::take(&mut *self.open.lock().unwrap());
        for stream in &open {
            let _ = stream.shutdown(Shutdown::Both);
        }
        open.len()
    }
}

#[test]
fn a_task_from_submission_to_its_end() {
    let dev = Dev::start();
    let id = dev.run(["submit", "later", "{\"x\":[1]}", "--priority", "7", "--label", "gpu=a100"]).line();

    let explained = dev.run(["explain", &id, "--json"]).json();
    assert_eq!(explained["task"]["state"], "ready");
    let summary = explained["summary"].as_str().unwrap();
    assert!(dev.run(["explain", &id]).stdout.lines().next().unwrap().contains("later"), "{summary}");

    let task = dev.run(["get", &id, "--payload", "--json"]).json();
    assert_eq!(
        (&task["state"], &task["method"], &task["attempt"]),
        (&json!("ready"), &json!("later"), &json!(0))
    );
    assert_eq!(task["payload"], json!({"x": [1]}));
    assert_eq!(
        (&task["options"]["priority"], &task["options"]["labels"]),
        (&json!(7), &json!({"gpu": "a100"}))
    );
    assert_eq!(dev.run(["get", &id, "--wait", "1ms"]).code, Some(11));

    let listed = dev.run(["tasks", "--method", "later", "--state", "ready", "--json"]).json();
    assert_eq!(listed[0]["id"], id.as_str());
    assert!(dev.run(["tasks", "--state", "leased,finished"]).stdout.is_empty());

    // One that is not there does not keep the other from its turn.
    let cancelled = dev.run(["cancel", UNKNOWN, &id, "--reason", "r", "--json"]);
    assert_eq!(cancelled.code, Some(8), "{cancelled:?}");
    assert_eq!(cancelled.json()["outcome"], json!({"kind": "cancelled", "reason": "r"}));
    assert_eq!(dev.run(["get", &id, "--wait", "1s"]).code, Some(6));
    assert_eq!(dev.run(["watch", &id]).code, Some(6));

    assert_eq!(dev.run(["retry", &id]).line(), format!("{id} ready"));
    let again = dev.run(["retry", &id]);
    assert_eq!(again.code, Some(9), "{again:?}");
    assert!(again.stderr.contains("task_not_ended"), "{again:?}");
}

#[test]
fn what_is_not_there_is_not_found() {
    let dev = Dev::start();
    for args in [
        ["get", UNKNOWN],
        ["watch", UNKNOWN],
        ["cancel", UNKNOWN],
        ["retry", UNKNOWN],
        ["explain", UNKNOWN],
        ["methods", "nope"],
        ["drain", "nobody"],
    ] {
        let ran = dev.run(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(8), ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(args[1]), "{ran:?}");
        let ran = dev.run(args.iter().chain(&["--json"]));
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(error["exit_code"], 8);
        assert!(error["error"]["reason"].as_str().unwrap().ends_with("not_found"), "{error}");
    }
}

#[test]
fn get_shows_how_a_task_failed() {
    let dev = Dev::start();
    let fail = ["submit", "fail", "{\"message\":\"out of paper\"}", "--retry", "1", "--backoff", "1ms"];
    let id = dev.run(fail).line();
    let shown = dev.run(["get", &id, "--wait", "30s"]);
    assert_eq!(shown.code, Some(5), "{shown:?}");
    for part in [id.as_str(), "dead", "sample_failure: out of paper", "attempt 1 on dev failed"] {
        assert!(shown.stdout.contains(part), "{shown:?}");
    }
    let task = dev.run(["get", &id, "--json"]).json();
    assert_eq!(task["attempts"].as_array().unwrap().len(), 2, "{task}");
    assert_eq!(task["attempts"][0]["error"], json!({"code": "sample_failure", "message": "out of paper"}));
    assert_eq!(dev.run(["get", &id]).code, Some(0), "without a wait the task is shown, that is all");
}

#[test]
fn many_tasks_come_from_the_command_line_or_a_file() {
    let dev = Dev::start();
    let ids = dev.run(["submit", "echo", "1", "2", "3"]);
    assert_eq!((ids.code, ids.stdout.lines().count()), (Some(0), 3));
    for (id, result) in ids.stdout.lines().zip(["1", "2", "3"]) {
        assert_eq!(dev.run(["get", id, "--wait", "30s", "--result"]).line(), result);
    }

    let tasks = "{\"method\":\"add\",\"payload\":{\"a\":1,\"b\":2},\"priority\":9,\"deadline\":\"1m\"}\n\n\
                 {\"method\":\"\"}\n{\"method\":\"echo\",\"metadata\":{\"k\":\"v\"},\"retry\":0}\n";
    let (_dir, path) = file(tasks);
    let ran = dev.run(["submit", "--file", &path]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (Some(9), 2), "one refused: {ran:?}");
    assert!(ran.stderr.contains("task 3: ") && ran.stderr.contains("method"), "{ran:?}");
    let ran = dev.run_with(["submit", "--file", "-", "--json", "--priority", "2"], tasks);
    let lines = ran.lines();
    assert_eq!((&lines[1]["line"], &lines[1]["refusal"]["reason"]), (&json!(3), &json!("invalid_field")));
    let options = |line: &Value| {
        dev.run(["get", line["task_id"].as_str().unwrap(), "--json"]).json()["options"].clone()
    };
    assert_eq!(
        (&options(&lines[0])["priority"], &options(&lines[0])["deadline_ms"]),
        (&json!(9), &json!(60_000))
    );
    assert_eq!(
        (&options(&lines[2])["priority"], &options(&lines[2])["max_attempts"]),
        (&json!(2), &json!(1))
    );

    for (line, parts) in [
        ("{\"method\":\"add\",\"prio\":1}", ["line 2", "unknown field `prio`"]),
        ("{\"method\":\"add\",\"deadline\":\"soon\"}", ["line 2", "such as 500ms"]),
        ("{\"method\":add}", ["line 2", "found `a`"]),
    ] {
        let ran = dev.run_with(["submit", "--file", "-"], &format!("{{\"method\":\"echo\"}}\n{line}\n"));
        assert_eq!(
            (ran.code, ran.stdout.lines().count()),
            (Some(2), 1),
            "what stands before it went in: {ran:?}"
        );
        assert!(parts.iter().all(|part| ran.stderr.contains(part)), "{ran:?}");
    }
}

#[test]
fn thousands_of_payloads_go_through_a_pipe() {
    let dev = Dev::start();
    let payloads: String = (0..2500).map(|n| format!("{{\"a\":{n},\"b\":{n}}}\n")).collect();
    let ran = dev.run_with(["submit", "add", "--file", "-", "--ephemeral"], &payloads);
    let ids: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!((ran.code, ids.len()), (Some(0), 2500), "{}", ran.stderr);
    assert_eq!(
        dev.run(["get", ids[2499], "--wait", "30s", "--result"]).line(),
        "4998",
        "in the order of the lines"
    );
    let listed = dev.run(["tasks", "--method", "add", "--limit", "1500", "--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), 1500, "more than one page");
}

#[test]
fn watch_tells_states_progress_chunks_and_the_outcome() {
    let dev = Dev::start();
    let id = dev.run(["submit", "countdown", "{\"n\":3,\"every_ms\":1}"]).line();
    let ran = dev.run(["watch", &id]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.ends_with(&format!("{id} countdown finished \"liftoff\"\n")), "{ran:?}");
    assert!(ran.stdout.contains(&format!("{id} chunk 2: 1\n")), "{ran:?}");

    let events = dev.run(["watch", &id, "--json"]).lines();
    let chunks: Vec<&Value> = events.iter().filter(|event| event["event"] == "chunk").collect();
    let shape = json!({"event": "chunk", "task_id": id, "attempt": 1, "index": 0, "data": 3});
    assert_eq!((chunks.len(), chunks[0]), (3, &shape));
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["task"]["state"]), (&json!("task"), &json!("finished")));

    let failed = dev.run(["submit", "fail", "{\"retryable\":false}"]).line();
    assert_eq!(dev.run(["watch", &id, &failed]).code, Some(5), "one of two");
    assert_eq!(dev.run(["watch"]).code, Some(2));
}

#[test]
fn watch_goes_on_after_a_broken_connection() {
    let dev = Dev::start();
    let relay = Relay::to(&dev.url);
    let id = dev.run(["submit", "waits.for.its.worker"]).line();
    let watch = Running::start(command(&format!("http://{}", relay.address), ["watch", &id, "--json"]));
    assert!(watch.line().contains("\"ready\""));
    assert!(relay.cut() > 0);
    dev.run(["cancel", &id]).line();
    watch.until("\"cancelled\"");
    let ended = watch.ended();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(6), ""));
}

#[test]
fn the_server_shows_its_workers_methods_and_counts() {
    let dev = Dev::start();
    let workers = dev.run(["workers", "--json"]).json();
    let worker = &workers[0];
    assert_eq!(
        (&worker["id"], &worker["state"], &worker["group"]),
        (&json!("dev"), &json!("active"), &json!("dev"))
    );
    assert_eq!(worker["pools"][0]["concurrency"], 64);
    let table = dev.run(["workers"]).stdout;
    assert!(table.starts_with("ID   STATE   BUSY") && table.contains("\ndev  active  0/64"), "{table}");

    let methods = dev.run(["methods", "--json"]).json();
    let names: Vec<_> = methods.as_array().unwrap().iter().map(|method| &method["name"]).collect();
    assert_eq!(names, ["add", "countdown", "echo", "fail", "multiply", "sleep"]);
    for method in methods.as_array().unwrap() {
        for member in ["version", "summary", "docs", "input_schema", "output_schema", "examples"] {
            assert!(method.get(member).is_some(), "{member} of {method}");
        }
    }
    let shown = dev.run(["methods", "add"]).stdout;
    for part in ["add 1.0.0\n", "Adds two numbers", "\"required\"", "crewcall call add '{\"a\":1,\"b\":2}'"] {
        assert!(shown.contains(part), "{shown}");
    }

    dev.run(["call", "echo"]).line();
    let stats = dev.run(["stats", "--json"]).json();
    assert_eq!((&stats["totals"]["finished"], &stats["workers"]), (&json!(1), &json!(1)));
    assert!(dev.run(["stats"]).stdout.contains(&dev.url));

    let drained = dev.run(["drain", "dev", "--json"]).json();
    assert_eq!(drained, json!({"worker_id": "dev", "draining": true}));
}
