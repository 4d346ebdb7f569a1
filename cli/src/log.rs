//! Logs go to stderr; stdout belongs to answers.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for log collectors.
    Json,
}

/// What to log, as written in `--log`: a level, or `target=level` pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFilter(String);

impl std::str::FromStr for LogFilter {
    type Err = String;

    fn from_str(filter: &str) -> Result<Self, String> {
        EnvFilter::builder()
            .parse(filter)
            .map(|_| Self(filter.to_owned()))
            .map_err(|error| format!("{error}; write a level (error, warn, info, debug, trace) or target=level pairs, such as info,crewcall=debug"))
    }
}

/// Whether the person asked for no colours (see no-color.org).
pub(crate) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Starts logging; to be called once.
pub(crate) fn start(filter: &LogFilter, format: LogFormat) {
    // The HTTP libraries warn about what peers do, at the peers' pace: only when they are asked for by name.
    let directives = format!("h2=error,hyper=error,tokio_tungstenite=error,tungstenite=error,{}", filter.0);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse_lossy(directives))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !no_color());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
