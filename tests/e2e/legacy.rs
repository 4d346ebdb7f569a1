//! The recorded cases of go-server, played against the real binary by their own runner, unedited.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use crate::harness::Server;

/// The one case above a quirk that is not met: a server that takes WebSocket pongs as life cannot. That a truly
/// silent worker is cut is shown by a test of the gateway.
const LIVENESS: &str = "no_pong_ineligible_after_60s_cut_at_90s";

/// With every timing case, so it takes three minutes.
#[test]
fn every_recorded_case_passes_but_those_that_the_docs_name() {
    // Once as most will run it, once with a worker key and the timing of the original.
    let runs = [
        thread::spawn(|| failures(&[], &[])),
        thread::spawn(|| {
            failures(&["--worker-key", "123456", "--legacy-result-hold", "0s"], &["--key", "123456"])
        }),
    ];
    let mut failed = BTreeSet::new();
    for run in runs {
        for (level, name, line) in run.join().unwrap() {
            assert!(level == "quirk" || name == LIVENESS, "{line}");
            failed.insert(name);
        }
    }
    let documented = documented();
    let differ = |name: &String| documented.iter().any(|pattern| matches(pattern, name));
    let silent: Vec<_> = failed.iter().filter(|name| !differ(name)).collect();
    assert!(silent.is_empty(), "not as the original, and docs/legacy.md does not say so: {silent:?}");
    let stale: Vec<_> =
        documented.iter().filter(|pattern| !failed.iter().any(|name| matches(pattern, name))).collect();
    assert!(
        stale.is_empty(),
        "docs/legacy.md says that these are not as the original, but they are: {stale:?}"
    );
}

/// Level, name and line of every case that fails against a server with these arguments.
fn failures(server: &[&str], runner: &[&str]) -> Vec<(String, String, String)> {
    let server = Server::builder().arg("--ephemeral").args(server).start();
    let python = env::var_os("CREWCALL_TEST_PYTHON").expect(
        "CREWCALL_TEST_PYTHON is not set: this test needs Python with requests; run it with ./test e2e",
    );
    let output = Command::new(python)
        .arg(file("tests/e2e/legacy/replay.py"))
        .args(["--url", &server.url(), "--ui", "on", "--level", "all", "--slow"])
        .args(runner)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let passed = text.lines().last().and_then(|line| line.split_once(" passed, "));
    let passed = passed.and_then(|(passed, _)| passed.parse::<usize>().ok());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(passed.is_some_and(|passed| passed > 150), "the runner did not run:\n{text}\n{errors}");
    text.lines()
        .filter_map(|line| {
            let (level, rest) = line.strip_prefix("FAIL [")?.split_once("] ")?;
            let (name, _) = rest.split_once(':')?;
            Some((level.to_owned(), name.to_owned(), line.to_owned()))
        })
        .collect()
}

/// The names in the first column of the table of quirks. A star stands for any text.
fn documented() -> Vec<String> {
    let text = fs::read_to_string(file("docs/legacy.md")).unwrap();
    let (_, table) = text.split_once("## Quirks that are not copied").unwrap();
    let first_columns = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    first_columns
        .flat_map(|column| column.split("`, `"))
        .map(|name| name.trim_matches('`').to_owned())
        .collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((before, after)) => {
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        }
        None => pattern == name,
    }
}

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
