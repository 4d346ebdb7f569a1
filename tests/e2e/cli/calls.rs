//! `call`: results, outcomes, waits, and what is found before anything is sent.

use serde_json::{Value, json};

use super::{Dev, Running, file};

#[test]
fn results_are_printed_as_they_came() {
    let dev = Dev::start();
    let (_dir, path) = file("{\"a\": 20, \"b\": 22}\n");
    let from_file = format!("@{path}");
    for (args, result) in [
        (vec!["add", "{\"a\":1,\"b\":2}"], "3\n"),
        (vec!["add", &from_file], "42\n"),
        (vec!["multiply", "{\"a\":6,\"b\":0.5}"], "3.0\n"),
        (vec!["echo"], "null\n"),
        (vec!["echo", "-5"], "-5\n"),
        // Neither number survives a parser that makes doubles of them.
        (vec!["echo", " [ 1e400, 9007199254740993 ] "], "[1e400,9007199254740993]\n"),
        (vec!["echo", "plain", "--content-type", "text/plain"], "plain"),
        (
            vec![
                "echo",
                "1",
                "--priority",
                "9",
                "--metadata",
                "k=v",
                "--group",
                "dev",
                "--version-range",
                "^1",
            ],
            "1\n",
        ),
    ] {
        let ran = dev.run(std::iter::once("call").chain(args.iter().copied()));
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), result, ""), "{args:?}");
    }
    assert_eq!(dev.run_with(["call", "echo", "-"], "[1,\n2]\n").line(), "[1,2]");

    let called = dev.run(["call", "add", "{\"a\":1,\"b\":2}", "--json"]).json();
    assert_eq!(called["outcome"], json!({"kind": "succeeded", "result": 3}));
    assert_eq!(called["task_id"].as_str().unwrap().len(), 36);
    let called = dev.run(["call", "echo", "hi", "--content-type", "text/plain", "--json"]).json();
    let bytes = json!({"content_type": "text/plain", "base64": "aGk="});
    assert_eq!(called["outcome"], json!({"kind": "succeeded", "result_bytes": bytes}));
}

#[test]
fn every_way_to_end_has_its_exit_code() {
    let dev = Dev::start();
    let failed = dev.run(["call", "fail", "{\"message\":\"out of paper\",\"code\":\"printer\"}"]);
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(5), ""));
    assert!(failed.stderr.contains("(printer): out of paper"), "{failed:?}");
    let failed = dev.run(["call", "fail", "{\"message\":\"m\",\"code\":\"c\"}", "--json"]);
    assert_eq!(failed.code, Some(5));
    assert_eq!(failed.json()["outcome"], json!({"kind": "failed", "error": {"code": "c", "message": "m"}}));

    let retried = dev.run(["call", "fail", "{\"succeed_at_attempt\":3}", "--retry", "2", "--backoff", "1ms"]);
    assert_eq!(retried.line(), "\"succeeded at attempt 3\"");

    let expired = dev.run(["call", "nobody.serves.it", "--queue-timeout", "20ms", "--json"]);
    assert_eq!(expired.code, Some(7));
    assert_eq!(expired.json()["outcome"], json!({"kind": "expired", "reason": "queue_timeout"}));
    let expired = dev.run(["call", "sleep", "{\"ms\":60000}", "--deadline", "20ms"]);
    assert_eq!((expired.code, expired.stdout.as_str()), (Some(7), ""));

    let refused = dev.run(["call", ""]);
    assert_eq!(refused.code, Some(9), "{refused:?}");
    assert!(refused.stderr.contains("method"), "{refused:?}");
}

#[test]
fn a_call_that_is_cancelled_says_why() {
    let dev = Dev::start();
    let watch = Running::start(dev.command(["watch", "--method", "sleep", "--json"]));
    let call = Running::start(dev.command(["call", "sleep", "{\"ms\":600000}"]));
    let event: Value = serde_json::from_str(&watch.until("\"leased\"")).unwrap();
    let id = event["task"]["id"].as_str().unwrap();
    let cancelled = dev.run(["cancel", id, "--reason", "changed my mind"]);
    assert_eq!(cancelled.line(), format!("{id} cancelled"));
    let ended = call.ended();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(6), ""));
    assert!(ended.stderr.contains("changed my mind"), "{ended:?}");
}

#[test]
fn a_wait_that_elapses_leaves_the_task_to_go_on() {
    let dev = Dev::start();
    let ran = dev.run(["call", "sleep", "{\"ms\":300}", "--wait", "1ms"]);
    assert_eq!(ran.code, Some(11), "{ran:?}");
    let id = ran.stdout.trim_end();
    assert_eq!(dev.run(["get", id, "--result"]).code, Some(11));
    assert_eq!(dev.run(["get", id, "--wait", "30s", "--result"]).line(), "{\"slept_ms\":300}");

    // In time it is a call like any other, with the defaults of one: no second attempt.
    assert_eq!(dev.run(["call", "add", "{\"a\":1,\"b\":2}", "--wait", "30s"]).line(), "3");
    assert_eq!(dev.run(["call", "fail", "{\"succeed_at_attempt\":2}", "--wait", "30s"]).code, Some(5));
    let elapsed = dev.run(["call", "nobody.serves.it", "--wait", "1ms", "--json"]);
    assert_eq!(elapsed.code, Some(11));
    assert_eq!(elapsed.json().as_object().unwrap().keys().collect::<Vec<_>>(), ["task_id"]);
}

#[test]
fn what_is_no_json_is_found_before_anything_is_sent() {
    let dev = Dev::start();
    let (_dir, path) = file("{\n  \"a\": nil\n}\n");
    let from_file = format!("@{path}");
    for (payload, parts) in [
        ("{a:1}", ["line 1 column 2, found `a`", "  {a:1}\n   ^\n", "double quotes"]),
        ("hello", ["line 1 column 1, found `h`", "  hello\n  ^\n", "'\"text\"'"]),
        ("{\"a\":", ["found the end", "  {\"a\":\n       ^\n", "hint:"]),
        ("'{}'", ["found `'`", "  '{}'\n  ^\n", "single quotes reached"]),
        (&from_file, ["line 2 column 9", &path, "\"a\": nil"]),
        ("@/no/such/file", ["/no/such/file", "cannot be read", "No such file"]),
    ] {
        let ran = dev.run(["call", "echo", payload]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        for part in parts {
            assert!(ran.stderr.contains(part), "{payload}: {part:?} is not in {}", ran.stderr);
        }
    }
    for flag in
        [["--wait", "10"], ["--deadline", "0s"], ["--priority", "10"], ["--label", "x"], ["--retry", "1000"]]
    {
        let ran = dev.run(["call", "echo", "1"].iter().chain(&flag));
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains(flag[0]), "{ran:?}");
    }
    assert_eq!(dev.run(["stats", "--json"]).json()["totals"]["submitted"], 0);
}

#[test]
fn one_key_is_one_task() {
    let dev = Dev::start();
    let submit = || dev.run(["submit", "echo", "1", "--idempotency-key", "k", "--json"]).json();
    let (first, second) = (submit(), submit());
    assert_eq!(first["task_id"], second["task_id"]);
    assert_eq!((&first["attached"], &second["attached"]), (&json!(false), &json!(true)));
    let other = dev.run(["submit", "echo", "2", "--idempotency-key", "k"]);
    assert_eq!(other.code, Some(9));
    assert!(other.stderr.contains("idempotency_conflict"), "{other:?}");
}
