//! House rules, checked instead of remembered. A rule that stands here needs no reviewer.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Names that the files of a module must not use, wherever in a path they stand.
const FORBIDDEN_NAMES: &[(&str, &[&str])] = &[
    // Time and chance come in as arguments, or no race could be run again from its seed.
    ("src/scheduler", &["tokio", "tonic", "Clock", "Instant", "SystemTime", "rand", "getrandom"]),
    // The gateway speaks JSON, and to the core through its handle.
    ("gateway/src", &["tonic", "prost"]),
];

/// `crate::` modules that a module must not reach: the arrows of the house.
const FORBIDDEN_MODULES: &[(&str, &[&str])] = &[
    ("src/scheduler", &["engine", "handle", "listener", "rpc", "shutdown", "store"]),
    ("src/store", &["engine", "handle", "listener", "rpc", "scheduler"]),
    ("src/engine", &["listener", "rpc"]),
    ("src/handle", &["listener", "rpc"]),
];

/// What a package must not depend on: it could not even be imported.
const FORBIDDEN_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("gateway/Cargo.toml", &["tonic", "tonic-prost", "prost", "crewcall-sdk"]),
    // The SDK is what a stranger could have written from the .proto.
    ("sdk/rust/Cargo.toml", &["crewcall", "crewcall-gateway"]),
    ("Cargo.toml", &["crewcall-gateway", "crewcall-sdk"]),
];

/// A second copy of one of these splits types, or settings, in two.
const ONCE_IN_THE_LOCK: &[&str] = &["axum", "h2", "hyper", "prost", "tokio", "tonic"];

// Written in two halves, so that this file keeps its own rules.
const MACHINE_PATHS: &[&str] =
    &[concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];
const LEFTOVERS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];
const IGNORED: &str = concat!("#[ign", "ore");

const TEXT: &[&str] = &[
    "css", "go", "html", "js", "json", "md", "mjs", "proto", "py", "rs", "sh", "sql", "toml", "ts", "txt",
    "yaml", "yml",
];
const CODE: &[&str] = &["go", "js", "mjs", "proto", "py", "rs", "sh", "sql", "ts"];
const NOT_OURS: &[&str] = &[".cache", ".git", ".venv", "__pycache__", "node_modules", "target"];

#[test]
fn modules_use_no_name_they_must_not() {
    let mut offences = Vec::new();
    for (module, names) in FORBIDDEN_NAMES {
        for file in module_files(module).unwrap() {
            for (number, line) in code_lines(&file.text) {
                let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
                offences.extend(
                    words
                        .filter(|word| names.contains(word))
                        .map(|word| format!("{}:{number}: `{word}` is not for {module}", file.name)),
                );
            }
        }
    }
    assert_none(&offences);
}

#[test]
fn arrows_between_modules_point_one_way() {
    let mut offences = Vec::new();
    for (module, targets) in FORBIDDEN_MODULES {
        for file in module_files(module).unwrap() {
            let code: String = code_lines(&file.text).map(|(_, line)| format!("{line}\n")).collect();
            offences.extend(
                crate_modules(&code)
                    .into_iter()
                    .filter(|reached| targets.contains(&reached.as_str()))
                    .map(|reached| format!("{}: `crate::{reached}` is not for {module}", file.name)),
            );
        }
    }
    assert_none(&offences);
}

#[test]
fn packages_depend_on_nothing_they_must_not() {
    let mut offences = Vec::new();
    for (manifest, names) in FORBIDDEN_DEPENDENCIES {
        let text = fs::read_to_string(root().join(manifest)).unwrap();
        // Sections of the package itself: `[workspace.dependencies]` only names versions.
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            }
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            let package_section = section.ends_with("dependencies]") && !section.starts_with("[workspace");
            if package_section && names.contains(&name) {
                offences.push(format!("{manifest}: {section} has `{name}`"));
            }
        }
    }
    assert_none(&offences);
}

#[test]
fn core_crates_stand_once_in_the_lock_file() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let offences: Vec<String> = ONCE_IN_THE_LOCK
        .iter()
        .map(|name| (name, lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count()))
        .filter(|(_, count)| *count != 1)
        .map(|(name, count)| format!("Cargo.lock has {count} versions of `{name}`: see `cargo tree -d`"))
        .collect();
    assert_none(&offences);
}

#[test]
fn no_test_is_ignored() {
    let mut offences = Vec::new();
    for file in files(&root(), &["rs"]).unwrap() {
        for (number, line) in code_lines(&file.text) {
            if line.contains(IGNORED) {
                offences.push(format!("{}:{number}: a test that never runs tests nothing", file.name));
            }
        }
    }
    assert_none(&offences);
}

#[test]
fn no_file_names_a_path_of_someones_machine() {
    let mut offences = Vec::new();
    for file in files(&root(), TEXT).unwrap() {
        for (number, line) in file.text.lines().enumerate() {
            for path in MACHINE_PATHS {
                // In the middle of a longer path it is a folder like any other, or part of a URL.
                let begins = |at: usize| {
                    line.get(..at).is_none_or(|before| {
                        !before.ends_with(|c: char| c.is_alphanumeric() || "_-./*{}<>$~".contains(c))
                    })
                };
                if line.match_indices(path).any(|(at, _)| begins(at)) {
                    offences.push(format!("{}:{}: {path}", file.name, number + 1));
                }
            }
        }
    }
    assert_none(&offences);
}

#[test]
fn no_leftovers() {
    let mut offences = Vec::new();
    for file in files(&root(), CODE).unwrap() {
        for (number, line) in file.text.lines().enumerate() {
            if LEFTOVERS.iter().any(|word| line.contains(word)) {
                offences.push(format!("{}:{}: {}", file.name, number + 1, line.trim()));
            }
        }
    }
    assert_none(&offences);
}

#[test]
fn the_rules_catch_what_they_are_for() {
    let code = "use crate::{\n    error::{Error, store},\n    store::Store,\n};\nfn f() { crate::rpc::g() }";
    assert_eq!(crate_modules(code), ["error", "store", "rpc"]);
    let lines: Vec<_> = code_lines("//! tokio\nlet a = 1; // tokio\nlet url = \"http://x\";\n").collect();
    assert_eq!(lines, [(2, "let a = 1; "), (3, "let url = \"http://x\";")]);
    // A module moved elsewhere must not leave its rule behind, watching nothing.
    for module in ["src/scheduler", "gateway/src"] {
        assert!(!module_files(module).unwrap().is_empty(), "{module} has no files");
    }
}

struct File {
    /// From the root of the repository.
    name: String,
    text: String,
}

#[track_caller]
fn assert_none(offences: &[String]) {
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// `module.rs` and everything below `module/`.
fn module_files(module: &str) -> io::Result<Vec<File>> {
    let mut found = Vec::new();
    let own = format!("{module}.rs");
    if root().join(&own).exists() {
        found.push(File { text: fs::read_to_string(root().join(&own))?, name: own });
    }
    if root().join(module).exists() {
        found.extend(files(&root().join(module), &["rs"])?);
    }
    Ok(found)
}

/// Every file below `folder` with one of these extensions that belongs to the repository. Symbolic links
/// are left out: what they point to is found where it is.
fn files(folder: &Path, extensions: &[&str]) -> io::Result<Vec<File>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                let name = entry.file_name();
                if !NOT_OURS.iter().any(|other| name == *other) {
                    folders.push(path);
                }
            } else if entry.file_type()?.is_file()
                && path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted))
            {
                let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
                found.push(File { name, text: fs::read_to_string(&path)? });
            }
        }
    }
    Ok(found)
}

/// Lines with their numbers, without `//` comments. A `//` after a colon is a URL.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            let comment = line
                .match_indices("//")
                .find(|(at, _)| !line.get(..*at).is_some_and(|before| before.ends_with(':')));
            (index + 1, comment.and_then(|(at, _)| line.get(..at)).unwrap_or(line))
        })
        .filter(|(_, line)| !line.trim().is_empty())
}

/// The modules that `crate::…` paths in `code` begin with, those inside `crate::{…}` included.
fn crate_modules(code: &str) -> Vec<String> {
    let name =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut modules = Vec::new();
    for (at, marker) in code.match_indices("crate::") {
        let Some(rest) = code.get(at + marker.len()..) else { continue };
        let Some(group) = rest.strip_prefix('{') else {
            modules.push(name(rest));
            continue;
        };
        let mut depth = 0_usize;
        let mut first = true;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => first = true,
                _ if c.is_whitespace() => {}
                _ if first => {
                    modules.extend(group.get(at..).map(name));
                    first = false;
                }
                _ => {}
            }
        }
    }
    modules
}
