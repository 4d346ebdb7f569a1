//! `crewcall bench`: what the server does here, and what it costs beside a bare relay.

use std::{
    env, iter,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, builder::PossibleValuesParser, builder::TypedValueParser as _};
use crewcall_bench::{
    BenchError, Report, Settings,
    case::{Crew, Mode},
    floor::{self, Floor, FloorSettings},
    settings::Size,
    worker,
};

use super::some_duration;
use crate::{exit::Exit, output::Output};

/// What a newcomer is shown: a row for each way in, within a minute.
const SHORT: [Mode; 6] = [Mode::Pipe, Mode::Call, Mode::Rest, Mode::Legacy, Mode::Submit, Mode::Durable];
/// Repetitions when there is something to compare with.
const PAIRS: u32 = 8;

/// The arguments of `bench`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  crewcall bench
  crewcall bench pipe --compare floor
  crewcall bench call rest --in-flight 1,64 --seconds 3
  crewcall bench all --compare floor --json figures.json

Starts its own servers and workers on free ports of this machine, and data directories in ./target, or here. Every
result is checked. With --compare floor each case runs in turns with a bare server on the same libraries that moves
the same bytes and does nothing else; modes about growth are held against themselves at the small end.

Modes: pipe (many calls over one stream), call (a gRPC request each), rest, legacy, submit (acknowledged once on the
disk), durable (its outcome too), workers, methods, backlog, stored, idle, overload, restart, slow, floor (the
bare servers by themselves); all."
)]
pub(crate) struct BenchArgs {
    /// What to measure. Default: a short look at pipe, call, rest, legacy, submit and durable
    #[arg(value_name = "MODE", value_parser = modes(), hide_possible_values = true)]
    modes: Vec<String>,

    /// Calls at once, separated by commas. Default: as each mode does
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: Vec<u32>,

    /// Connections of the mode call, separated by commas. Default: 1 and 4
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: Vec<u32>,

    /// How long each run is measured
    #[arg(long, value_name = "SECONDS", default_value = "1.5", value_parser = seconds)]
    seconds: Duration,

    /// How long the mode overload goes on
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    overload: Duration,

    /// How often each case runs. Default: 8 with --compare, else once
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: Option<u32>,

    /// Hold each case against this, in the same minutes
    #[arg(long, value_name = "WHAT", value_parser = ["floor"])]
    compare: Option<String>,

    /// Write the figures to this file, as JSON; - for stdout, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Also write the figures into BENCHMARKS.md and docs/figures here, in a working copy of crewcall
    #[arg(long, requires = "compare", conflicts_with_all = ["quick", "target"])]
    write: bool,

    /// Measure this server, http://HOST:PORT, instead of starting one. What it used is then not known
    #[arg(long, value_name = "URL")]
    target: Option<String>,

    /// Tiny sizes and short runs: whether it works, not how fast
    #[arg(long)]
    quick: bool,

    #[command(subcommand)]
    part: Option<Part>,
}

/// The processes of a benchmark beside the one that measures.
#[derive(Debug, Subcommand)]
enum Part {
    /// A bare server
    #[command(hide = true)]
    FloorServer {
        #[arg(value_parser = floor_named)]
        floor: Floor,
        #[arg(long)]
        data_dir: Option<PathBuf>,
    },
    /// Workers
    #[command(hide = true)]
    Crew {
        server: String,
        /// As JSON
        crew: String,
    },
}

/// Runs it, or one of its processes.
pub(crate) fn run(args: BenchArgs) -> Exit {
    let out = Output::new(false);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let done = runtime.block_on(async {
        match args.part {
            Some(Part::FloorServer { floor, data_dir }) => {
                floor::serve(FloorSettings { floor, data_dir }).await.map(|()| Exit::Ok)
            }
            Some(Part::Crew { server, crew }) => {
                let crew: Crew = serde_json::from_str(&crew)
                    .map_err(|error| BenchError::Usage(format!("the crew: {error}")))?;
                worker::serve(&server, &crew).await.map(|()| Exit::Ok)
            }
            None => measure(args, out).await,
        }
    });
    // A thread that reads stdin would hold the process until a line comes.
    runtime.shutdown_background();
    done.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &BenchError) -> Exit {
    eprintln!("error: {error}");
    match error {
        BenchError::Usage(_) => Exit::Usage,
        BenchError::Process { .. } | BenchError::Failed { .. } | BenchError::Io(_) => Exit::Failure,
    }
}

async fn measure(args: BenchArgs, out: Output) -> Result<Exit, BenchError> {
    let settings = settings(&args)?;
    if cfg!(debug_assertions) {
        eprintln!("note: a debug build; its figures say nothing. Build with `cargo build --release`");
    }
    let length = Duration::from_secs(crewcall_bench::estimate(&settings).as_secs().max(1));
    eprintln!("this takes about {}", humantime::format_duration(length));
    let here = Path::new(".");
    if args.write {
        crewcall_bench::recordable(here)?;
    }
    let report = crewcall_bench::run(&settings, |mode| {
        if args.write {
            crewcall_bench::record(mode, here)?;
            let name = mode.cases.first().map_or("nothing", |case| case.mode.name());
            eprintln!("{name} is recorded");
        }
        Ok(())
    })
    .await?;
    match args.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => out.bytes(json(&report)?.as_bytes())?,
        Some(path) => {
            std::fs::write(path, json(&report)?)?;
            out.bytes(crewcall_bench::table(&report).as_bytes())?;
        }
        None => out.bytes(crewcall_bench::table(&report).as_bytes())?,
    }
    Ok(Exit::Ok)
}

fn settings(args: &BenchArgs) -> Result<Settings, BenchError> {
    let short = args.modes.is_empty() && !args.quick;
    let modes = match args.modes.as_slice() {
        [] if short => SHORT.to_vec(),
        [] => Mode::ALL.to_vec(),
        names if names.iter().any(|name| name == "all") => Mode::ALL.to_vec(),
        names => names.iter().filter_map(|name| Mode::parse(name)).collect(),
    };
    let compare = args.compare.is_some();
    let in_flight = if short && args.in_flight.is_empty() { vec![64] } else { args.in_flight.clone() };
    Ok(Settings {
        binary: env::current_exe()?,
        modes,
        in_flight,
        connections: args.connections.clone(),
        seconds: if args.quick { Duration::from_millis(100) } else { args.seconds },
        warm_up: Duration::from_millis(if args.quick { 20 } else { 500 }),
        overload: if args.quick { Duration::from_millis(600) } else { args.overload },
        pairs: args.pairs.unwrap_or(if compare && !args.quick { PAIRS } else { 1 }),
        compare,
        target: args.target.clone(),
        size: if args.quick || short { Size::Tiny } else { Size::Full },
        // Wherever the binary lies: the record is for others.
        command: iter::once("crewcall".to_owned()).chain(env::args().skip(1)).collect::<Vec<_>>().join(" "),
    })
}

fn json(report: &Report) -> Result<String, BenchError> {
    let text = serde_json::to_string_pretty(report).map_err(std::io::Error::from)?;
    Ok(text + "\n")
}

fn modes() -> impl clap::builder::IntoResettable<clap::builder::ValueParser> {
    let names = Mode::ALL.iter().map(|mode| mode.name()).chain(["all"]);
    PossibleValuesParser::new(names).map(|name| name)
}

fn floor_named(name: &str) -> Result<Floor, String> {
    Floor::parse(name).ok_or_else(|| {
        let names: Vec<_> = Floor::ALL.iter().map(|floor| floor.name()).collect();
        format!("the floors are {}", names.join(", "))
    })
}

/// `1.5`, or `1500ms`.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) => Err("must be above 0 and at most 3600".to_owned()),
        Err(_) => some_duration(text),
    }
}
