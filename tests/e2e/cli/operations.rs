//! `pause` and `resume`, `dead`, `backup`, and what a restart keeps of them.

use std::{fs, path::Path, process::Stdio};

use serde_json::{Value, json};

use super::{Dev, Ran, Running, command};
use crate::harness::{Server, crewcall};

/// A server whose data directory outlives it.
struct Site {
    home: tempfile::TempDir,
    server: Option<Server>,
}

impl Site {
    fn new() -> Self {
        let mut site = Self { home: tempfile::tempdir().unwrap(), server: None };
        site.start(&[]);
        site
    }

    fn data(&self) -> String {
        self.home.path().join("data").to_str().unwrap().to_owned()
    }

    fn start(&mut self, args: &[&str]) {
        let data = self.data();
        self.server = Some(Server::builder().args(["--data-dir", &data]).args(args).start());
    }

    /// Kills it (a drop is SIGKILL) and starts it again.
    fn restart(&mut self) {
        self.server = None;
        self.start(&[]);
    }

    fn url(&self) -> String {
        self.server.as_ref().unwrap().url()
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Ran {
        Running::start(command(&self.url(), args)).ended()
    }

    /// A worker on which everything fails; it ends with what is returned.
    fn failing(&self, method: &str) -> Running {
        let mut worker = crewcall(["worker", "--method", method, "--worker-id", "w"]);
        worker.env("CREWCALL_SERVER", self.url()).args(["--", "sh", "-c", "echo out of paper >&2; exit 3"]);
        let worker = Running::start(worker);
        worker.until("serves");
        worker
    }

    /// Dead letters of the method, in the order of their submission.
    fn kill_tasks(&self, method: &str, count: usize) -> Vec<String> {
        let worker = self.failing(method);
        let ids: Vec<String> = (0..count)
            .map(|n| self.run(&["submit", method, &n.to_string(), "--retry", "1", "--backoff", "1ms"]).line())
            .collect();
        for id in &ids {
            assert_eq!(self.run(&["get", id, "--wait", "30s"]).code, Some(5));
        }
        drop(worker);
        ids
    }
}

#[test]
fn dead_letters_with_all_attempts_outlive_the_server_and_run_again() {
    let mut site = Site::new();
    let ids = site.kill_tasks("print", 3);
    site.restart();

    let listed = site.run(&["dead", "list", "--json"]).json();
    let died: Vec<&str> =
        listed.as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap()).collect();
    assert_eq!(died, ids.iter().rev().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(listed[0]["attempts"].as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(listed[0]["attempts"][1]["error"]["code"], "exit_3");
    let by_state = site.run(&["tasks", "--state", "dead", "--json"]).json();
    assert_eq!(by_state.as_array().unwrap().len(), 3);
    let table = site.run(&["dead", "list"]).stdout;
    assert!(table.starts_with("ID") && table.contains("exit_3") && table.contains("out of paper"), "{table}");

    let shown = site.run(&["dead", "show", &ids[1], "--json"]).json();
    assert_eq!((&shown["payload"], &shown["state"]), (&json!(1), &json!("dead")));
    assert_eq!(shown["attempts"][0]["number"], 1);

    for none in [
        vec!["dead", "list", "--method", "other"],
        vec!["dead", "list", "--code", "other"],
        vec!["dead", "list", "--older-than", "1h"],
    ] {
        assert_eq!(site.run(&none).stdout, "", "{none:?}");
    }
    assert_eq!(
        site.run(&["dead", "list", "--newer-than", "1h", "--code", "exit_3"]).stdout.lines().count(),
        4
    );

    // Only said, then done, then nothing left to do.
    let dry = site.run(&["dead", "retry", "--method", "print", "--dry-run"]);
    assert_eq!((dry.code, dry.stdout.lines().count()), (Some(0), 3), "{dry:?}");
    assert!(dry.stdout.starts_with(&format!("{} would run again\n", ids[0])), "{dry:?}");
    assert_eq!(site.run(&["dead", "retry", &ids[0]]).line(), format!("{} runs again", ids[0]));
    let again = site.run(&["dead", "retry", &ids[0], "--json"]);
    assert_eq!(again.code, Some(9), "{again:?}");
    assert_eq!(again.json()["refusal"]["reason"], "task_not_dead");
    assert_eq!(site.run(&["get", &ids[0], "--json"]).json()["state"], "ready");
    assert_eq!(site.run(&["dead", "show", &ids[0]]).code, Some(8));

    let discarded = site.run(&["dead", "discard", "--all", "--json"]).lines();
    assert_eq!(discarded.len(), 2, "{discarded:?}");
    assert_eq!(discarded[0], json!({"task_id": ids[1], "changed": true}));
    assert_eq!(site.run(&["dead", "discard", &ids[1]]).code, Some(8));
    site.restart();
    assert_eq!(site.run(&["dead", "list"]).stdout, "");
    assert_eq!(site.run(&["get", &ids[1]]).code, Some(8));
}

#[test]
fn which_dead_letters_are_meant_must_be_said() {
    let dev = Dev::start();
    for args in [
        vec!["dead", "retry"],
        vec!["dead", "discard", "--dry-run"],
        vec!["dead", "retry", "--all", "--method", "add"],
        vec!["dead", "discard", "some-id", "--all"],
        vec!["dead"],
        vec!["dead", "list", "--older-than", "soon"],
    ] {
        let ran = dev.run(&args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args:?}: {ran:?}");
    }
    let ran = dev.run(["dead", "retry", "nonsense"]);
    assert_eq!(ran.code, Some(9), "{ran:?}");
    assert!(ran.stderr.contains("nonsense"), "{ran:?}");
    assert_eq!(dev.run(["dead", "retry", "--all"]).code, Some(0), "none is no error");
}

#[test]
fn a_paused_method_stays_paused_when_the_server_is_killed() {
    let mut site = Site::new();
    let paused = site.run(&["pause", "upper", "--reason", "the printer burns", "--by", "ann", "--json"]);
    assert_eq!(
        paused.json(),
        json!({"method": "upper", "paused": true, "was_paused": false, "known": false})
    );
    let id = site.run(&["submit", "upper", "[1]"]).line();
    site.restart();

    let mut worker = crewcall(["worker", "--method", "upper", "--", "cat"]);
    worker.env("CREWCALL_SERVER", site.url()).stdin(Stdio::null());
    let worker = Running::start(worker);
    worker.until("serves");
    let explained = site.run(&["explain", &id]).stdout;
    assert!(explained.contains("paused") && explained.contains("by ann: the printer burns"), "{explained}");
    let method = &site.run(&["methods", "upper", "--json"]).json()[0];
    assert_eq!((&method["workers"], &method["ready"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&method["pause"]["by"], &method["pause"]["reason"]),
        (&json!("ann"), &json!("the printer burns"))
    );
    assert!(site.run(&["methods"]).stdout.contains("paused"));
    assert!(site.run(&["methods", "upper"]).stdout.contains("by ann: the printer burns"));
    assert_eq!(site.run(&["stats", "--json"]).json()["paused_methods"], 1);
    assert!(site.run(&["stats"]).stdout.contains("1 method"));

    assert_eq!(site.run(&["resume", "upper", "--json"]).json()["was_paused"], true);
    assert_eq!(site.run(&["get", &id, "--wait", "30s", "--result"]).line(), "[1]");
    assert_eq!(site.run(&["resume", "upper"]).line(), "upper was not paused");
    let unknown = site.run(&["pause", "uper"]);
    assert!(unknown.code == Some(0) && unknown.stderr.contains("is that its name?"), "{unknown:?}");
    let refused = site.run(&["pause", " upper"]);
    assert_eq!(refused.code, Some(9), "{refused:?}");
}

#[test]
fn a_backup_made_while_the_server_runs_is_a_data_directory() {
    let site = Site::new();
    let id = site.run(&["submit", "later", "[9007199254740993]"]).line();
    site.run(&["pause", "later"]).line();
    let to = site.home.path().join("copy");
    let to_text = to.to_str().unwrap();
    let made = site.run(&["backup", "--to", to_text, "--json"]).json();
    assert!(made["rows"].as_u64().unwrap() >= 3 && made["bytes"].as_u64().unwrap() > 0, "{made}");
    let again = site.run(&["backup", "--to", to_text]);
    assert_eq!(again.code, Some(13), "{again:?}");

    let kept = site.run(&["backup", "--name", "nightly"]).line();
    assert!(kept.contains("backups/nightly"), "{kept}");
    let twice = site.run(&["backup", "--name", "nightly", "--json"]);
    assert!(twice.code == Some(9) && twice.stderr.contains("backup_exists"), "{twice:?}");
    let outside = site.run(&["backup", "--name", "../elsewhere"]);
    assert!(outside.code == Some(9) && outside.stderr.contains("../elsewhere"), "{outside:?}");
    let in_folder: Vec<_> =
        fs::read_dir(Path::new(&site.data()).join("backups")).unwrap().flatten().collect();
    assert_eq!(in_folder.len(), 1, "nothing is left of the download: {in_folder:?}");
    site.run(&["cancel", &id]).line();

    for dir in [to, Path::new(&site.data()).join("backups/nightly")] {
        let dir = dir.to_str().unwrap();
        let server = Server::builder().args(["--data-dir", dir]).start();
        let task: Value =
            Running::start(command(&server.url(), ["get", &id, "--payload", "--json"])).ended().json();
        assert_eq!(
            (&task["state"], &task["payload"]),
            (&json!("ready"), &json!([9_007_199_254_740_993_u64]))
        );
        let methods = Running::start(command(&server.url(), ["methods", "later", "--json"])).ended().json();
        assert!(methods[0]["pause"].is_object(), "{methods}");
    }

    let dev = Dev::start();
    let nothing = dev.run(["backup", "--to", "nowhere", "--json"]);
    assert!(nothing.code == Some(9) && nothing.stderr.contains("store_ephemeral"), "{nothing:?}");
}

/// What no longer fits waits; what is forgotten makes room for it.
#[test]
fn a_full_store_is_said_and_discards_make_room() {
    let mut site = Site::new();
    site.server = None;
    site.start(&["--max-store-bytes", "1048576"]);
    let room = site.run(&["stats", "--json"]).json()["room"].clone();
    assert_eq!(room["max_store_bytes"], 1_048_576);
    assert!(room["store_bytes"].as_u64().unwrap() > 0 && room.get("store_full").is_none(), "{room}");

    let (_dir, large) = super::file(&format!("\"{}\"", "x".repeat(200_000)));
    let worker = site.failing("print");
    let dead: Vec<String> =
        (0..3).map(|_| site.run(&["submit", "print", &format!("@{large}"), "--retry", "0"]).line()).collect();
    for id in &dead {
        assert_eq!(site.run(&["get", id, "--wait", "30s"]).code, Some(5));
    }
    drop(worker);

    let submit = ["submit", "later", &format!("@{large}")];
    let mut held = Running::start(command(&site.url(), submit));
    let full = loop {
        let room = site.run(&["stats", "--json"]).json()["room"].clone();
        if room.get("store_full").is_some() {
            break room;
        }
        if held.child.try_wait().unwrap().is_some() {
            assert_eq!(held.ended().code, Some(0));
            held = Running::start(command(&site.url(), submit));
        }
    };
    assert!(full["store_full"].as_str().unwrap().contains("no room"), "{full}");
    assert!(site.run(&["stats"]).stdout.contains("full:"));
    for refused in [&submit[..], &["dead", "retry", "--all"], &["pause", "later"]] {
        let refused = site.run(refused);
        assert!(refused.code == Some(10) && refused.stderr.contains("store_unavailable"), "{refused:?}");
    }

    let discarded = site.run(&["dead", "discard", "--all"]);
    assert_eq!((discarded.code, discarded.stdout.lines().count()), (Some(0), 3), "{discarded:?}");
    assert_eq!(held.ended().code, Some(0), "it was acknowledged once it was stored");
    assert!(site.run(&["stats", "--json"]).json()["room"].get("store_full").is_none());
    site.run(&submit).line();
}

/// Runs a command that asks no server.
#[track_caller]
fn alone(args: &[&str]) -> Ran {
    Running::start(crewcall(args)).ended()
}

#[test]
fn what_was_exported_is_imported_as_it_was() {
    let mut site = Site::new();
    let dead = site.kill_tasks("print", 1).remove(0);
    let waiting = site.run(&["submit", "later", "[9007199254740993, 1.50]", "--idempotency-key", "k"]).line();
    let delayed = site.run(&["submit", "later", "null", "--delay", "1h", "--deadline", "2h"]).line();
    let bytes = site.run(&["submit", "later", "{\n}", "--metadata", "a=b"]).line();
    site.run(&["pause", "later", "--reason", "why", "--by", "ann"]).line();
    let before =
        [&dead, &waiting, &delayed, &bytes].map(|id| site.run(&["get", id, "--payload", "--json"]).json());
    let busy = alone(&["export", "--data-dir", &site.data()]);
    assert_eq!(busy.code, Some(12), "{busy:?}");
    site.server = None;

    let exported = alone(&["export", "--data-dir", &site.data()]);
    assert_eq!((exported.code, exported.stderr.as_str()), (Some(0), ""));
    let lines = exported.lines();
    assert_eq!((&lines[0]["crewcall_export"]["version"], lines.len()), (&json!(1), 6), "{exported:?}");

    let (_dir, file) = super::file(&exported.stdout);
    let other = site.home.path().join("other").to_str().unwrap().to_owned();
    let import = ["import", "--file", file.as_str(), "--data-dir", other.as_str(), "--json"];
    assert_eq!(alone(&import).json(), json!({"imported": 4, "known": 0, "paused": 1}));
    assert_eq!(alone(&import).json(), json!({"imported": 0, "known": 4, "paused": 0}));

    let server = Server::builder().args(["--data-dir", &other]).start();
    let run = |args: &[&str]| Running::start(command(&server.url(), args)).ended();
    for before in before {
        let now = run(&["get", before["id"].as_str().unwrap(), "--payload", "--json"]).json();
        assert_eq!(now, before);
    }
    assert_eq!(run(&["methods", "later", "--json"]).json()[0]["pause"]["by"], "ann");
    let same = run(&["submit", "later", "[9007199254740993, 1.50]", "--idempotency-key", "k"]);
    assert_eq!(same.line(), waiting, "the key still stands for it");
}

#[test]
fn a_running_server_tells_what_waits_and_takes_it_once() {
    let site = Site::new();
    let waiting = site.run(&["submit", "later", "[1]", "--priority", "7"]).line();
    let cancelled = site.run(&["submit", "later", "[2]"]).line();
    site.run(&["cancel", &cancelled]).line();
    site.run(&["pause", "later"]).line();
    let exported = site.run(&["export"]);
    let ids: Vec<_> =
        exported.lines().iter().filter_map(|line| line["task"]["id"].as_str().map(String::from)).collect();
    assert_eq!(ids, [waiting.as_str()]);

    let (_dir, file) = super::file(&exported.stdout);
    let other = Site::new();
    let import = ["import", "--file", file.as_str(), "--json"];
    assert_eq!(other.run(&import).json(), json!({"imported": 1, "known": 0, "paused": 1}));
    assert_eq!(other.run(&import).json(), json!({"imported": 0, "known": 1, "paused": 0}));
    let tasks = other.run(&["tasks", "--json"]).json();
    assert_eq!((tasks.as_array().unwrap().len(), &tasks[0]["options"]["priority"]), (1, &json!(7)));
    assert_eq!(tasks[0]["options"]["idempotency_key"], format!("import:{waiting}"));
}

#[test]
fn a_bad_line_is_named_and_nothing_goes_in() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data").to_str().unwrap().to_owned();
    let head = "{\"crewcall_export\":{\"version\":1,\"exported_at_unix_ms\":1}}\n";
    let good = "{\"task\":{\"id\":\"019ab000-0000-7000-8000-000000000000\",\"method\":\"m\",\"state\":\"ready\",\
                \"created_at_unix_ms\":1,\"changed_at_unix_ms\":1,\"options\":{\"priority\":4,\"max_attempts\":1}}}\n";
    for (text, says) in [
        (String::new(), "nothing in it"),
        (good.to_owned(), "line 1: the first line must be"),
        (format!("{head}{good}{head}"), "line 3: a second beginning"),
        (format!("{head}{good}\nx\n"), "line 4: "),
        (format!("{head}{good}{}", good.replace("ready", "asleep")), "line 3: state: \"asleep\""),
        (head.replace("\"version\":1", "\"version\":2"), "line 1: it has version 2"),
    ] {
        let (_dir, file) = super::file(&text);
        let ran = alone(&["import", "--file", &file, "--data-dir", &data]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{text}: {ran:?}");
        assert!(ran.stderr.contains(says), "{text}: {ran:?}");
    }
    let (_dir, file) = super::file(&format!("{head}{good}"));
    let ran = alone(&["import", "--file", &file, "--data-dir", &data, "--json"]);
    assert_eq!(ran.json(), json!({"imported": 1, "known": 0, "paused": 0}), "nothing was left of the others");
    let nowhere = alone(&["export", "--data-dir", home.path().join("none").to_str().unwrap()]);
    assert_eq!(nowhere.code, Some(8), "{nowhere:?}");
}
