//! `crewcall doctor`: what is left of a data directory, and a copy of it.

use std::path::PathBuf;

use clap::Args;
use crewcall::store::{self, Report, StoreError};
use serde::Serialize;

use crate::exit::Exit;

/// The arguments of `doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
Reads everything and changes nothing. The server must not be running. Ends with 0 when nothing is wrong and with 16 when
something is. With --repair, what can be read is copied into a new data directory, for `crewcall serve --data-dir`.")]
pub(crate) struct DoctorArgs {
    /// The data directory
    #[arg(long, value_name = "DIR", env = "CREWCALL_DATA_DIR", default_value = "crewcall-data")]
    data_dir: PathBuf,

    /// Copy what can be read into this new directory
    #[arg(long, value_name = "DIR")]
    repair: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The report as JSON.
#[derive(Serialize)]
struct Document {
    data_dir: String,
    healthy: bool,
    findings: Vec<String>,
    batches_stored: Option<u64>,
    batches_found: Option<u64>,
    rows_found: u64,
    rows_lost: u64,
}

impl From<&Report> for Document {
    fn from(report: &Report) -> Self {
        Self {
            data_dir: report.dir.display().to_string(),
            healthy: report.is_healthy(),
            findings: report.findings.clone(),
            batches_stored: report.batches_stored,
            batches_found: report.batches_found,
            rows_found: report.rows_found,
            rows_lost: report.rows_lost.iter().map(|lost| lost.stored.saturating_sub(lost.found)).sum(),
        }
    }
}

/// Examines the directory, and copies it when asked.
pub(crate) fn run(args: DoctorArgs) -> Exit {
    let examined = match &args.repair {
        Some(into) => store::repair(&args.data_dir, into),
        None => store::doctor(&args.data_dir),
    };
    let report = match examined {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::from(&error);
        }
    };
    if args.json {
        match serde_json::to_string_pretty(&Document::from(&report)) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("error: {error}");
                return Exit::Failure;
            }
        }
    } else {
        print!("{report}");
        if let Some(into) = &args.repair {
            println!("  copied {} rows into {}", report.rows_found, into.display());
        }
    }
    if report.is_healthy() { Exit::Ok } else { Exit::StoreDamaged }
}

impl From<&StoreError> for Exit {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::InUse(_) => Self::StoreInUse,
            StoreError::Unwritable { .. } => Self::StoreUnwritable,
            StoreError::DiskFull(_) | StoreError::Full(_) => Self::StoreDiskFull,
            StoreError::NewerFormat { .. } => Self::StoreNewer,
            StoreError::Corrupt { .. } => Self::StoreDamaged,
            StoreError::Fatal(_) => Self::Store,
        }
    }
}
