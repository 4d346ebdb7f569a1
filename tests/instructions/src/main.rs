//! How many instructions one task costs the pure scheduler, from being handed in to its outcome: counted by
//! valgrind, so that a busy machine changes nothing.
//!
//! ```text
//! instructions              counts every case; fails when one is more than a tenth above its record
//! instructions record       writes the present counts into counts.toml and the table of BENCHMARKS.md
//! instructions run CASE     only runs it, to be counted or looked at from outside
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod bench;
mod cases;
mod measured;
mod record;
mod valgrind;

use cases::CASES;
use record::Record;

// The server's allocator: what it costs belongs to the count, and it comes with us, unlike a libc.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: instructions [record | run CASE]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [] => check(),
        ["record"] => rewrite(),
        ["run", name] => run(name),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("instructions: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str) -> Result<(), String> {
    let case = CASES.iter().find(|case| case.name == name).ok_or_else(|| {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        format!("no case is called `{name}`; there are: {}", names.join(", "))
    })?;
    case.run()
}

fn check() -> Result<(), String> {
    let record = Record::load(&root())?;
    record.check_reasons()?;
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("The recorded counts are those of x86-64 Linux; here they are shown, not compared.");
    }
    let mut problems = Vec::new();
    for case in CASES {
        let count = valgrind::count(case)?;
        let judged = record.judge(case.name, count);
        println!("{:<14} {count:>7}  {}", case.name, judged.as_ref().unwrap_or_else(|problem| problem));
        problems.extend(judged.err().map(|problem| format!("{}: {problem}", case.name)));
    }
    if problems.is_empty() || !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Ok(());
    }
    Err(format!(
        "a task costs more instructions than is recorded:\n  {}\nEither it can cost less, or what it buys is \
         worth it: then `./test instructions -- record`, and write why into BENCHMARKS.md",
        problems.join("\n  ")
    ))
}

fn rewrite() -> Result<(), String> {
    let mut record = Record::load(&root())?;
    for case in CASES {
        let count = valgrind::count(case)?;
        let change = record.enter(case.name, count);
        println!("{:<14} {count:>7}  {change}", case.name);
    }
    record.save(CASES)?;
    record.check_reasons()
}

/// The repository that this program was built from.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
