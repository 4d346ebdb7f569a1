//! Every setting of the server: one struct, one table.
//!
//! Each field is a flag, an environment variable and a key of the TOML file, by one rule:
//! `shutdown_grace` is `--shutdown-grace`, `CREWCALL_SHUTDOWN_GRACE` and `shutdown_grace = "10s"`.
//! A flag wins over the environment, that over the file, that over the default.
//!
//! It lives in the binary's crate, not in the library: the table *is* the clap struct, and the library should
//! not carry a command-line parser. What the library needs it gets as its own types ([`ListenerSettings`],
//! [`Limits`]), which know nothing of flags or files.

use std::{
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{
    ArgAction, ArgMatches, Args, Command,
    builder::{BoolishValueParser, OsStr},
    error::ErrorKind,
};
use crewcall::{listener::ListenerSettings, scheduler::Limits, shutdown::Shutdown, store::StoreOptions};

use crate::{
    exit::Exit,
    log::{LogFilter, LogFormat},
};

/// The settings of `serve`. The doc comment of a field is its help text.
#[allow(
    rustdoc::bare_urls,
    rustdoc::broken_intra_doc_links,
    reason = "the comments are help texts, read in a terminal"
)]
#[derive(Args, Clone, Debug)]
pub(crate) struct Config {
    /// TOML file with settings; its keys are the flags with underscores. An unknown key is an error. Default:
    /// no file
    #[arg(long, value_name = "FILE", env = "CREWCALL_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// Address for gRPC and HTTP, HOST:PORT. Port 0 picks a free one
    #[arg(long, value_name = "ADDR", env = "CREWCALL_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,

    /// Secret that a worker must present to join. Better given by environment or file: others on this machine
    /// can read a process's flags. Default: none, every worker is let in
    #[arg(long, value_name = "KEY", env = "CREWCALL_WORKER_KEY", hide_env_values = true)]
    pub(crate) worker_key: Option<Secret>,

    /// Directory that holds the durable tasks; it is made when it is not there. One server at a time
    #[arg(long, value_name = "DIR", env = "CREWCALL_DATA_DIR", default_value = "crewcall-data")]
    pub(crate) data_dir: PathBuf,

    /// Keep everything in memory; nothing survives a restart, and the data directory is not touched
    #[arg(long, value_name = "BOOL", env = "CREWCALL_EPHEMERAL", default_value = "false",
          action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new())]
    pub(crate) ephemeral: bool,

    /// PEM file with the TLS certificate chain, the server's own certificate first. Default: none, no TLS
    #[arg(long, value_name = "FILE", env = "CREWCALL_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// PEM file with the private key of the TLS certificate. Default: none, no TLS
    #[arg(long, value_name = "FILE", env = "CREWCALL_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,

    /// How long a shutdown waits for workers to finish and callers to be answered
    #[arg(long, value_name = "DURATION", env = "CREWCALL_SHUTDOWN_GRACE",
          default_value = "10s", value_parser = duration)]
    pub(crate) shutdown_grace: Duration,

    /// Open connections in all; more wait until one closes
    #[arg(long, value_name = "COUNT", env = "CREWCALL_MAX_CONNECTIONS",
          default_value = "32768", value_parser = count)]
    pub(crate) max_connections: u32,

    /// Open connections per IPv4 address or IPv6 /64; more are refused
    #[arg(long, value_name = "COUNT", env = "CREWCALL_MAX_CONNECTIONS_PER_IP",
          default_value = "16384", value_parser = count)]
    pub(crate) max_connections_per_ip: u32,

    /// Concurrent requests per HTTP/2 connection; more wait at the client
    #[arg(long, value_name = "COUNT", env = "CREWCALL_MAX_STREAMS_PER_CONNECTION",
          default_value = "256", value_parser = count)]
    pub(crate) max_streams_per_connection: u32,

    /// From accept until the TLS handshake is done and the client's protocol is known
    #[arg(long, value_name = "DURATION", env = "CREWCALL_HANDSHAKE_TIMEOUT",
          default_value = "10s", value_parser = timeout)]
    pub(crate) handshake_timeout: Duration,

    /// For one whole HTTP/1 request head; an idle HTTP/1 connection is kept as long
    #[arg(long, value_name = "DURATION", env = "CREWCALL_HEADER_TIMEOUT",
          default_value = "10s", value_parser = timeout)]
    pub(crate) header_timeout: Duration,

    /// The longest pause within an HTTP/1 request body
    #[arg(long, value_name = "DURATION", env = "CREWCALL_BODY_TIMEOUT",
          default_value = "30s", value_parser = timeout)]
    pub(crate) body_timeout: Duration,

    /// How long data may wait for a client that takes less of it than the minimum rate; then it is cut
    #[arg(long, value_name = "DURATION", env = "CREWCALL_WRITE_TIMEOUT",
          default_value = "30s", value_parser = timeout)]
    pub(crate) write_timeout: Duration,

    /// Bytes a second at which a client must take what waits for it; every byte taken earns it time, up to the
    /// write timeout
    #[arg(long, value_name = "BYTES", env = "CREWCALL_MIN_WRITE_RATE",
          default_value = "1024", value_parser = count)]
    pub(crate) min_write_rate: u32,

    /// How often an HTTP/2 peer is pinged
    #[arg(long, value_name = "DURATION", env = "CREWCALL_KEEPALIVE_INTERVAL",
          default_value = "20s", value_parser = timeout)]
    pub(crate) keepalive_interval: Duration,

    /// How long an HTTP/2 peer may take to answer a ping
    #[arg(long, value_name = "DURATION", env = "CREWCALL_KEEPALIVE_TIMEOUT",
          default_value = "10s", value_parser = timeout)]
    pub(crate) keepalive_timeout: Duration,

    /// Origins whose pages may use this server in a browser, such as https://ops.example, separated by commas.
    /// Default: none but its own
    #[arg(long, value_name = "ORIGINS", env = "CREWCALL_ALLOWED_ORIGINS", value_parser = origins)]
    pub(crate) allowed_origins: Option<Origins>,

    /// How long a request for a legacy result waits for the outcome; 0s never waits, as go-server
    #[arg(long, value_name = "DURATION", env = "CREWCALL_LEGACY_RESULT_HOLD", default_value = "4s", value_parser = duration)]
    pub(crate) legacy_result_hold: Duration,

    /// Open encrypted legacy calls, so that every worker can serve them; the server then reads their payloads
    #[arg(long, value_name = "BOOL", env = "CREWCALL_LEGACY_OPEN_ENCRYPTED", default_value = "false",
          action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new())]
    pub(crate) legacy_open_encrypted: bool,

    /// Largest payload, result or chunk, in bytes. Default: 4194304, or payload_bytes of the limits
    #[arg(long, value_name = "BYTES", env = "CREWCALL_MAX_PAYLOAD_BYTES", value_parser = count)]
    pub(crate) max_payload_bytes: Option<u32>,

    /// Tasks known at once, ended ones included; more are refused. Default: 2000000, or tasks of the limits
    #[arg(long, value_name = "COUNT", env = "CREWCALL_MAX_TASKS", value_parser = count)]
    pub(crate) max_tasks: Option<u32>,

    /// Tasks that wait for workers in one queue; more are refused. Default: 1000000, or queue_tasks of the
    /// limits
    #[arg(long, value_name = "COUNT", env = "CREWCALL_MAX_QUEUE_TASKS", value_parser = count)]
    pub(crate) max_queue_tasks: Option<u32>,

    /// Most bytes of disk that the tables of the store may take; durable work is refused beyond. Its log, some 16 MiB,
    /// comes on top. Default: none, as much as there is
    #[arg(long, value_name = "BYTES", env = "CREWCALL_MAX_STORE_BYTES",
          value_parser = clap::value_parser!(u64).range(1_048_576..))]
    pub(crate) max_store_bytes: Option<u64>,

    /// Any limits of the scheduler, as TOML: 'tasks = 1000, lease_ms = 5000'. In the file: a table [limits];
    /// this replaces it. Default: see docs/config.md
    #[arg(long, value_name = "TABLE", env = "CREWCALL_LIMITS", value_parser = table)]
    pub(crate) limits: Option<toml::Table>,

    /// What to log to stderr: error, warn, info, debug, trace, or target=level pairs separated by commas
    #[arg(long, value_name = "FILTER", env = "CREWCALL_LOG", default_value = "info")]
    pub(crate) log: LogFilter,

    /// The form of log lines
    #[arg(long, value_name = "FORMAT", env = "CREWCALL_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

impl Config {
    /// What the port needs.
    pub(crate) fn listener(&self) -> ListenerSettings {
        ListenerSettings {
            max_connections: self.max_connections as usize,
            max_connections_per_ip: self.max_connections_per_ip as usize,
            max_streams_per_connection: self.max_streams_per_connection,
            handshake_timeout: self.handshake_timeout,
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            write_timeout: self.write_timeout,
            min_write_rate: self.min_write_rate,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
        }
    }

    /// What the HTTP edge needs.
    pub(crate) fn gateway(&self, shutdown: Shutdown) -> crewcall_gateway::Settings {
        crewcall_gateway::Settings {
            allowed_origins: self.allowed_origins.clone().unwrap_or_default().0,
            worker_key: self.worker_key.as_ref().map(|key| key.expose().to_owned()),
            legacy_result_hold: self.legacy_result_hold,
            legacy_open_encrypted: self.legacy_open_encrypted,
            ..crewcall_gateway::Settings::new(shutdown)
        }
    }

    /// What the durable store needs.
    pub(crate) fn store(&self) -> StoreOptions {
        StoreOptions { max_bytes: self.max_store_bytes, ..StoreOptions::default() }
    }

    /// The scheduler's limits: the table, and over it the flags for single ones.
    ///
    /// # Errors
    /// An unknown limit, a value of the wrong type, or values that exclude each other.
    pub(crate) fn limits(&self) -> Result<Limits, String> {
        let limits = self.limits.clone().unwrap_or_default();
        let mut limits: Limits =
            limits.try_into().map_err(|error: toml::de::Error| format!("limits: {}", error.message()))?;
        let single = [
            (self.max_payload_bytes, &mut limits.payload_bytes),
            (self.max_tasks, &mut limits.tasks),
            (self.max_queue_tasks, &mut limits.queue_tasks),
        ];
        for (flag, limit) in single {
            if let Some(value) = flag {
                *limit = value as usize;
            }
        }
        if limits.beat_ms == 0 || limits.beat_ms >= limits.lease_ms {
            return Err(format!(
                "limits: beat_ms ({}) must be above 0 and well below lease_ms ({}), or every lease would end between \
                 two beats",
                limits.beat_ms, limits.lease_ms
            ));
        }
        Ok(limits)
    }

    /// The TLS certificate and key files, if TLS is wanted.
    ///
    /// # Errors
    /// When only one of the two is set.
    pub(crate) fn tls(&self) -> Result<Option<(&Path, &Path)>, String> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (None, None) => Ok(None),
            (Some(_), None) => Err("tls_cert is set but tls_key is not: TLS needs both".to_owned()),
            (None, Some(_)) => Err("tls_key is set but tls_cert is not: TLS needs both".to_owned()),
        }
    }
}

/// Web origins. A list of its own, so that clap takes the whole text as one value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origins(Vec<String>);

/// A value that is never shown, by `{:?}` or otherwise.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The value itself, for the one place that compares it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Secret {
    type Err = &'static str;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        if value.is_empty() {
            return Err("a secret cannot be empty; leave it out to have none");
        }
        Ok(Self(value.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number with its unit, such as 500ms, 15s or 2m"))
}

fn origins(text: &str) -> Result<Origins, String> {
    let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
    origins
        .map(|origin| match origin.split_once("://") {
            Some((_, authority)) if !authority.is_empty() && !authority.contains('/') => {
                Ok(origin.to_owned())
            }
            _ => Err(format!("{origin:?} is not an origin such as https://ops.example:8443, without a path")),
        })
        .collect::<Result<_, _>>()
        .map(Origins)
}

fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("a deadline of zero would close every connection".to_owned()),
        timeout => Ok(timeout),
    }
}

fn count(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}; write a whole number")),
    }
}

fn table(text: &str) -> Result<toml::Table, String> {
    #[derive(serde::Deserialize)]
    struct Wrapped {
        table: toml::Table,
    }
    toml::from_str(&format!("table = {{ {text} }}"))
        .map(|Wrapped { table }| table)
        .map_err(|error| format!("{}; write 'name = value, name = value'", error.message()))
}

/// Why the command line, the environment and the file did not make a configuration.
#[derive(Debug)]
pub(crate) enum ParseError {
    /// Also carries the answers to `--help` and `--version`.
    Clap(clap::Error),
    File {
        path: PathBuf,
        problem: String,
    },
}

impl From<clap::Error> for ParseError {
    fn from(error: clap::Error) -> Self {
        Self::Clap(error)
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clap(error) => error.fmt(f),
            Self::File { path, problem } => write!(f, "configuration file {}: {problem}", path.display()),
        }
    }
}

impl ParseError {
    /// Prints it where it belongs, and says how to exit.
    pub(crate) fn report(&self) -> Exit {
        match self {
            Self::Clap(error) => {
                // A closed pipe behind `--help` is no failure.
                let _ = error.print();
                if error.use_stderr() { Exit::Usage } else { Exit::Ok }
            }
            Self::File { .. } => {
                eprintln!("error: {self}");
                Exit::Usage
            }
        }
    }
}

/// Parses the command line. No command means `serve`. When the command has a `--config` and it is set, by
/// flag or by environment, each value of the file becomes the default of its flag; so precedence and checks
/// are clap's alone.
///
/// # Errors
/// What clap finds, and a file that cannot be read, is not TOML, or has a key or a value that no setting
/// takes.
pub(crate) fn matches(
    command: Command,
    args: impl IntoIterator<Item = OsString>,
) -> Result<ArgMatches, ParseError> {
    let mut args: Vec<_> = args.into_iter().collect();
    if args.len() <= 1 {
        args.resize_with(1, || "crewcall".into());
        args.push("serve".into());
    }
    let first = command.clone().try_get_matches_from(&args)?;
    let Some((name, chosen)) = first.subcommand() else { return Ok(first) };
    let Ok(Some(path)) = chosen.try_get_one::<PathBuf>("config") else { return Ok(first) };

    let failed = |problem: String| ParseError::File { path: path.clone(), problem };
    let text = fs::read_to_string(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| failed(error.to_string()))?;
    let mut problem = None;
    let with_file = command.mut_subcommand(name, |subcommand| {
        with_defaults(subcommand.clone(), &table).unwrap_or_else(|found| {
            problem = Some(found);
            subcommand
        })
    });
    if let Some(problem) = problem {
        return Err(failed(problem));
    }
    // The flags and the environment passed the first time, so what fails now is the file's.
    with_file.try_get_matches_from(&args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.into(),
        _ => failed(first_line(&error)),
    })
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// The command with the file's values as defaults.
fn with_defaults(mut command: Command, file: &toml::Table) -> Result<Command, String> {
    let known: Vec<String> = keys(&command);
    for (key, value) in file {
        if !known.iter().any(|known| known == key) {
            return Err(format!("unknown key `{key}`; the keys are {}", known.join(", ")));
        }
        let value: OsStr = match value {
            toml::Value::String(text) => text.clone().into(),
            toml::Value::Integer(_) | toml::Value::Boolean(_) => value.to_string().into(),
            // The only setting that is a table. As text it is what its flag takes.
            toml::Value::Table(table) if key == "limits" => inline(table).into(),
            other => {
                let kind = other.type_str();
                return Err(format!("`{key}` must be a string, a whole number or a boolean, not a {kind}"));
            }
        };
        command = command.mut_arg(key, |arg| arg.default_value(value));
    }
    Ok(command)
}

fn inline(table: &toml::Table) -> String {
    table.iter().map(|(key, value)| format!("{key:?} = {value}")).collect::<Vec<_>>().join(", ")
}

/// What may stand in the file: every setting but the file itself.
fn keys(command: &Command) -> Vec<String> {
    command
        .get_arguments()
        .filter(|arg| arg.get_env().is_some())
        .map(|arg| arg.get_id().to_string())
        .filter(|id| id != "config")
        .collect()
}

#[cfg(test)]
mod tests;
