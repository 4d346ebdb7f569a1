//! `crewcall bench`: whether every mode measures what it says, at tiny sizes. How fast is nobody's business here.

use serde_json::Value;

use super::Ran;
use crate::harness::crewcall;

/// Every mode there is, as `--help` names them.
const MODES: [&str; 14] = [
    "pipe", "call", "rest", "legacy", "submit", "durable", "workers", "methods", "backlog", "stored", "idle",
    "overload", "restart", "slow",
];

fn bench(args: &[&str]) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let mut command = crewcall([&["bench", "--quick"], args].concat());
    let output = command.current_dir(dir.path()).output().unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn every_mode_measures_and_its_figures_are_whole() {
    let ran = bench(&["all", "--compare", "floor", "--json", "-"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report = ran.json();
    assert_eq!(report["format"], 1);
    for condition in ["version", "command", "build", "started"] {
        assert!(!report["conditions"][condition].as_str().unwrap().is_empty(), "{condition}");
    }
    let cases = report["cases"].as_array().unwrap();
    for mode in MODES {
        assert!(cases.iter().any(|case| case["mode"] == mode), "nothing of {mode}");
    }
    for case in cases {
        let pairs = case["pairs"].as_array().unwrap();
        assert!(!pairs.is_empty(), "{case}");
        for pair in pairs {
            whole(&pair["product"], case);
            assert_eq!(pair["floor"].is_null(), case["against"] == "", "{case}");
            if !pair["floor"].is_null() {
                whole(&pair["floor"], case);
            }
        }
        assert_eq!(case["goals"], serde_json::json!([]), "tiny sizes are held to nothing: {case}");
    }
}

/// A run that measured something, and found nothing wrong with the answers.
#[track_caller]
fn whole(sample: &Value, case: &Value) {
    assert_eq!(sample["wrong"], 0, "{case}");
    // Idle connections are the one thing that is not called.
    assert!(sample["calls"].as_u64().unwrap() > 0 || case["mode"] == "idle", "{case}");
    if let Some(latency) = sample["latency"].as_object() {
        let [p50, p90, p99, max] =
            ["p50_us", "p90_us", "p99_us", "max_us"].map(|name| latency[name].as_f64());
        assert!(Some(0.0) < p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{case}");
    }
}

#[test]
fn the_table_is_for_people_and_says_what_it_compares_with() {
    let ran = bench(&["pipe", "--in-flight", "8", "--compare", "floor"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for text in ["pipe, awaited, 8 in flight", "pipe, window, 8 in flight", "relay", "calls/s", "p99"] {
        assert!(ran.stdout.contains(text), "{text}: {ran:?}");
    }
    assert!(ran.stderr.contains("this takes about"), "{ran:?}");
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_starts() {
    for (args, words) in [
        (&["restart", "--target", "http://127.0.0.1:1"][..], "needs a server of its own"),
        (&["nothing"][..], "invalid value 'nothing'"),
        (&["pipe", "--in-flight", "0"][..], "1..=65536"),
    ] {
        let ran = bench(args);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
}
