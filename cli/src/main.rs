//! The `crewcall` command: the scheduler and its clients in one binary.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

mod config;
mod exit;
mod log;
mod serve;

use config::Config;
use exit::Exit;

// Small allocations on every call are most of what the server asks of the allocator; mimalloc serves them
// from thread-local pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Call any function on any worker, in any language.
///
/// Without a command: `crewcall serve`.
#[derive(Debug, Parser)]
#[command(name = "crewcall", version, after_help = Exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the scheduler: gRPC and HTTP on one port (the default command)
    Serve(Box<Config>),
}

fn main() -> ExitCode {
    let matches = match config::matches(Cli::command(), std::env::args_os()) {
        Ok(matches) => matches,
        Err(error) => return error.report().into(),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return config::ParseError::from(error).report().into(),
    };
    let exit = match cli.command {
        Some(Command::Serve(config)) => serve::run(*config),
        // `matches` names the default command, so clap always finds one.
        None => Exit::Usage,
    };
    exit.into()
}
