//! The table of settings holds what it promises: the rule for names, the precedence, the help, the
//! documentation.

use std::{fmt::Write as _, io::Write as _};

use clap::{Arg, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    Serve(Box<Config>),
}

fn table() -> Command {
    Config::augment_args(Command::new("serve"))
}

fn settings(command: &Command) -> Vec<&Arg> {
    command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())).collect()
}

fn parse(args: &[&str]) -> Result<Config, ParseError> {
    let args = ["crewcall", "serve"].iter().chain(args).map(OsString::from);
    let matches = matches(Cli::command(), args)?;
    let Sub::Serve(config) = Cli::from_arg_matches(&matches)?.command;
    Ok(*config)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn parse_with_file(text: &str, args: &[&str]) -> Result<Config, String> {
    let file = file(text);
    let path = file.path().to_str().unwrap();
    let args: Vec<_> = args.iter().copied().chain(["--config", path]).collect();
    parse(&args).map_err(|error| error.to_string())
}

#[test]
fn every_setting_is_flag_variable_and_key_by_one_rule() {
    let command = table();
    let keys = keys(&command);
    for arg in settings(&command) {
        let id = arg.get_id().as_str();
        assert_eq!(arg.get_long(), Some(id.replace('_', "-").as_str()), "flag of {id}");
        let variable = format!("CREWCALL_{}", id.to_uppercase());
        assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(variable.as_str()), "variable of {id}");
        assert!(id == "config" || keys.iter().any(|key| key == id), "TOML key of {id}");
    }
}

#[test]
fn help_shows_the_unit_and_the_default_of_every_setting() {
    let command = table();
    for arg in settings(&command) {
        let id = arg.get_id();
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(
            !arg.get_default_values().is_empty() || help.contains("Default: "),
            "{id}: no default in the help"
        );
        assert!(
            arg.get_value_names().is_some_and(|names| {
                [
                    "DURATION", "COUNT", "BYTES", "FILE", "DIR", "ADDR", "KEY", "BOOL", "FILTER", "FORMAT",
                    "TABLE", "ORIGINS",
                ]
                .contains(&names[0].as_str())
            }),
            "{id}: its placeholder does not name a unit"
        );
    }
    let help = command.clone().term_width(0).render_long_help().to_string();
    assert!(help.contains("--shutdown-grace <DURATION>") && help.contains("[default: 10s]"), "{help}");
}

#[test]
fn the_defaults_are_the_library_s() {
    assert_eq!(parse(&[]).unwrap().listener(), ListenerSettings::default());
}

#[test]
fn the_file_sets_what_no_flag_sets() {
    let text = "listen = '127.0.0.1:1'\nshutdown_grace = '3s'\nephemeral = true\nmax_connections = 7\nlog_format = 'json'";
    let config = parse_with_file(text, &["--shutdown-grace", "4s"]).unwrap();
    assert_eq!(config.listen, "127.0.0.1:1");
    assert_eq!(config.shutdown_grace, Duration::from_secs(4), "the flag wins");
    assert!(config.ephemeral);
    assert_eq!(config.max_connections, 7);
    assert_eq!(config.log_format, LogFormat::Json);
    assert!(
        !parse_with_file(text, &["--ephemeral=false"]).unwrap().ephemeral,
        "the flag wins, also to say no"
    );
}

#[test]
fn a_switch_takes_what_people_write_in_environments() {
    for (value, on) in
        [("--ephemeral", true), ("--ephemeral=1", true), ("--ephemeral=yes", true), ("--ephemeral=0", false)]
    {
        assert_eq!(parse(&[value]).unwrap().ephemeral, on, "{value}");
    }
    assert!(parse(&["--ephemeral=perhaps"]).is_err());
}

#[test]
fn a_fault_in_the_file_names_the_file_and_the_key() {
    for (text, says) in [
        ("lissten = 'x'", "unknown key `lissten`; the keys are listen,"),
        ("config = 'x'", "unknown key `config`"),
        ("help = true", "unknown key `help`"),
        ("shutdown_grace = '10'", "'10' for '--shutdown-grace <DURATION>'"),
        ("max_connections = 0", "must be at least 1"),
        (
            "max_connections = [1]",
            "`max_connections` must be a string, a whole number or a boolean, not a array",
        ),
        ("header_timeout = '0s'", "a deadline of zero"),
        ("listen = ", "TOML parse error at line 1"),
        ("worker_key = ''", "a secret cannot be empty"),
    ] {
        let error = parse_with_file(text, &[]).unwrap_err();
        assert!(error.starts_with("configuration file /") && error.contains(says), "{text}: {error}");
    }
    let missing = parse(&["--config", "/nowhere/crewcall.toml"]).unwrap_err().to_string();
    assert!(missing.contains("/nowhere/crewcall.toml: cannot be read"), "{missing}");
}

#[test]
fn a_fault_in_a_flag_is_not_blamed_on_the_file() {
    let error = parse_with_file("max_connections = 0", &["--header-timeout", "soon"]).unwrap_err();
    assert!(error.contains("'soon' for '--header-timeout <DURATION>'"), "{error}");
    assert!(!error.contains("configuration file"), "{error}");
}

#[test]
fn limits_come_from_the_table_and_single_flags_win() {
    assert_eq!(parse(&[]).unwrap().limits().unwrap(), Limits::default());
    let file = "max_queue_tasks = 3\n[limits]\ntasks = 1\nqueue_tasks = 2\nlease_ms = 9_000\n";
    let limits = parse_with_file(file, &["--max-tasks", "5"]).unwrap().limits().unwrap();
    assert_eq!((limits.tasks, limits.queue_tasks, limits.lease_ms), (5, 3, 9_000));
    let limits = parse_with_file(file, &["--limits", "tasks = 7"]).unwrap().limits().unwrap();
    assert_eq!((limits.tasks, limits.lease_ms), (7, Limits::default().lease_ms), "it replaces the table");

    for (table, says) in [
        ("task = 1", "unknown field `task`"),
        ("tasks = -1", "-1"),
        ("tasks = 'many'", "many"),
        ("beat_ms = 10000", "beat_ms (10000)"),
        ("\"tasks\" = { a = 1 }", "map"),
    ] {
        let from_flag = parse(&["--limits", table]).unwrap().limits().unwrap_err();
        let from_file = parse_with_file(&format!("[limits]\n{table}"), &[]).unwrap().limits().unwrap_err();
        assert!(from_flag.contains(says) && from_flag == from_file, "{table}: {from_flag} / {from_file}");
    }
    let error = parse(&["--limits", "tasks 7"]).unwrap_err().to_string();
    assert!(error.contains("write 'name = value, name = value'"), "{error}");
}

#[test]
fn the_help_of_single_limits_names_their_defaults() {
    let (command, limits) = (table(), Limits::default());
    for (id, default) in [
        ("max_payload_bytes", limits.payload_bytes),
        ("max_tasks", limits.tasks),
        ("max_queue_tasks", limits.queue_tasks),
    ] {
        let arg = settings(&command).into_iter().find(|arg| arg.get_id() == id).unwrap();
        let help = arg.get_help().unwrap().to_string();
        assert!(help.contains(&format!("Default: {default},")), "{id}: {help}");
    }
}

#[test]
fn origins_are_a_list_and_have_no_path() {
    let allowed = |text| parse(&["--allowed-origins", text]).map(|config| config.gateway(Shutdown::new()));
    let settings = allowed("https://ops.example, http://10.0.0.7:8080").unwrap();
    assert_eq!(settings.allowed_origins, ["https://ops.example", "http://10.0.0.7:8080"]);
    for wrong in ["ops.example", "https://ops.example/", "https://"] {
        let error = allowed(wrong).unwrap_err().to_string();
        assert!(error.contains("is not an origin such as https://ops.example:8443"), "{wrong}: {error}");
    }
    assert_eq!(parse(&[]).unwrap().gateway(Shutdown::new()).legacy_result_hold, Duration::from_secs(4));
}

#[test]
fn secrets_are_never_shown() {
    let config = parse(&["--worker-key", "canary-7431"]).unwrap();
    assert!(config.worker_key.is_some());
    assert!(!format!("{config:?}").contains("canary"), "{config:?}");
    let command = table();
    let key = settings(&command).into_iter().find(|arg| arg.get_id() == "worker_key").unwrap();
    assert!(key.is_hide_env_values_set(), "--help would print it");
}

#[test]
fn half_of_tls_is_an_error() {
    for (flag, says) in [("--tls-cert", "tls_key is not"), ("--tls-key", "tls_cert is not")] {
        let error = parse(&[flag, "x.pem"]).unwrap().tls().unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

/// docs/config.md is written by this test when `CREWCALL_BLESS` is set, and compared with the table
/// otherwise.
#[test]
fn the_documented_table_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
    let expected = documentation();
    if std::env::var_os("CREWCALL_BLESS").is_some() {
        fs::write(path, &expected).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/config.md is stale: run this test with CREWCALL_BLESS=1 and commit the file"
    );
}

fn documentation() -> String {
    let mut text = String::from(
        "# Settings of the server\n\n\
         <!-- Written by a test from cli/src/config.rs: CREWCALL_BLESS=1 cargo test -p crewcall-cli documented -->\n\n\
         Every setting of `crewcall serve` is a flag, an environment variable and a key of the TOML file that\n\
         `--config FILE` or `CREWCALL_CONFIG` names. A flag wins over the environment, the environment over the file,\n\
         the file over the default. An unknown key in the file is an error. Durations are written with their unit:\n\
         `500ms`, `15s`, `2m`. Secrets are never printed or logged.\n\n\
         | flag | environment | TOML key | default | what |\n|---|---|---|---|---|\n",
    );
    let command = table();
    for arg in settings(&command) {
        let id = arg.get_id().as_str();
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let (what, unset) = help.split_once(" Default: ").unwrap_or((&help, ""));
        let default = match arg.get_default_values() {
            [] => unset.to_owned(),
            values => format!("`{}`", values.join(std::ffi::OsStr::new(",")).to_string_lossy()),
        };
        let key = if id == "config" { "".to_owned() } else { format!("`{id}`") };
        let what = what.trim_end_matches('.');
        writeln!(
            text,
            "| `--{} {}` | `{}` | {key} | {default} | {what} |",
            id.replace('_', "-"),
            arg.get_value_names().map(|names| names[0].as_str()).unwrap_or_default(),
            arg.get_env().unwrap_or_default().to_string_lossy(),
        )
        .unwrap();
    }
    text.push_str(
        "\n## Limits\n\n\
         Keys of the table `[limits]`, or of `--limits`. The unit is in the name (`_ms`: milliseconds). At a limit the\n\
         request is refused with the reason named here; nothing stalls.\n\n\
         | key | default | what |\n|---|---|---|\n",
    );
    for (name, what) in limits() {
        writeln!(text, "| `{name}` | {} | {what} |", limit_default(name)).unwrap();
    }
    text
}

/// Name and doc comment of each field of [`Limits`], from its source: comments are nowhere else.
fn limits() -> Vec<(&'static str, String)> {
    let source = include_str!("../../../src/scheduler/limits.rs");
    let (_, fields) = source.split_once("pub struct Limits {").unwrap();
    let (fields, _) = fields.split_once("\n}").unwrap();
    let mut limits = Vec::new();
    let mut comment = Vec::new();
    for line in fields.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|line| line.split_once(':')) {
            limits.push((name, comment.join(" ")));
            comment.clear();
        }
    }
    limits
}

fn limit_default(name: &str) -> String {
    let all = format!("{:#?}", Limits::default());
    let line = all.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}: ")));
    line.unwrap().trim_end_matches(',').to_owned()
}
