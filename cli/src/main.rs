//! The `crewcall` command: the scheduler and its clients in one binary.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

mod archive;
mod commands;
mod config;
mod exit;
mod json;
mod log;
mod open_files;
mod output;
mod serve;
mod view;

use commands::{
    BackupArgs, BenchArgs, CallArgs, CancelArgs, DeadArgs, DevArgs, DoctorArgs, DrainArgs, ExplainArgs,
    ExportArgs, GetArgs, ImportArgs, MethodsArgs, PauseArgs, ResumeArgs, RetryArgs, StatsArgs, SubmitArgs,
    TasksArgs, WatchArgs, WorkerArgs, WorkersArgs,
};
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
    /// Run a server with sample methods, to try things
    Dev(Box<DevArgs>),
    /// Call a method and print its result
    Call(Box<CallArgs>),
    /// Hand in tasks and print their ids
    Submit(Box<SubmitArgs>),
    /// Show one task
    Get(Box<GetArgs>),
    /// Follow tasks as they move
    Watch(Box<WatchArgs>),
    /// Cancel tasks
    Cancel(Box<CancelArgs>),
    /// Run ended tasks again
    Retry(Box<RetryArgs>),
    /// List tasks
    Tasks(Box<TasksArgs>),
    /// Say why a task is where it is
    Explain(Box<ExplainArgs>),
    /// List the workers connected
    Workers(Box<WorkersArgs>),
    /// List the methods served, or show one
    Methods(Box<MethodsArgs>),
    /// Show counts of the whole server
    Stats(Box<StatsArgs>),
    /// Ask a worker to finish what it has and leave
    Drain(Box<DrainArgs>),
    /// Let the tasks of a method wait
    Pause(Box<PauseArgs>),
    /// Let them wait no longer
    Resume(Box<ResumeArgs>),
    /// Look through tasks that failed for good, run them again, discard them
    Dead(Box<DeadArgs>),
    /// Copy everything stored, while the server goes on
    Backup(Box<BackupArgs>),
    /// Write stored tasks as NDJSON
    Export(Box<ExportArgs>),
    /// Read them back, into a data directory or a server
    Import(Box<ImportArgs>),
    /// Serve methods with any executable
    Worker(Box<WorkerArgs>),
    /// Examine a data directory, and save what can be read of a damaged one
    Doctor(Box<DoctorArgs>),
    /// Measure a server here, and what it costs beside a bare relay
    Bench(Box<BenchArgs>),
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
        Some(Command::Dev(args)) => commands::dev(*args),
        Some(Command::Call(args)) => commands::run(*args),
        Some(Command::Submit(args)) => commands::run(*args),
        Some(Command::Get(args)) => commands::run(*args),
        Some(Command::Watch(args)) => commands::run(*args),
        Some(Command::Cancel(args)) => commands::run(*args),
        Some(Command::Retry(args)) => commands::run(*args),
        Some(Command::Tasks(args)) => commands::run(*args),
        Some(Command::Explain(args)) => commands::run(*args),
        Some(Command::Workers(args)) => commands::run(*args),
        Some(Command::Methods(args)) => commands::run(*args),
        Some(Command::Stats(args)) => commands::run(*args),
        Some(Command::Drain(args)) => commands::run(*args),
        Some(Command::Pause(args)) => commands::run(*args),
        Some(Command::Resume(args)) => commands::run(*args),
        Some(Command::Dead(args)) => commands::run(*args),
        Some(Command::Backup(args)) => commands::run(*args),
        Some(Command::Export(args)) => commands::export(*args),
        Some(Command::Import(args)) => commands::import(*args),
        Some(Command::Worker(args)) => commands::worker(*args),
        Some(Command::Doctor(args)) => commands::doctor(*args),
        Some(Command::Bench(args)) => commands::bench(*args),
        // `matches` names the default command, so clap always finds one.
        None => Exit::Usage,
    };
    exit.into()
}
