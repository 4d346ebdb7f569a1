//! The project's own record: the figures of a run, written into `BENCHMARKS.md`, with plots in `docs/figures`.
//!
//! A run need not measure everything: what it measured takes the place of what was recorded of the same modes
//! before, under the conditions of its own, and the rest stays. `docs/figures/bench.json` holds all of it.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::BenchError;
use crate::case::Mode;
use crate::result::{CaseResult, Conditions, Report};

mod document;
mod plot;

/// For people; between its markers it is written by the run, around them by hand.
const DOCUMENT: &str = "BENCHMARKS.md";
/// For the next run.
const FIGURES: &str = "docs/figures/bench.json";
const PLOTS: &str = "docs/figures";

/// Everything recorded, mode by mode.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Record {
    modes: Vec<ModeRecord>,
}

/// What one run found in one mode.
#[derive(Debug, Deserialize, Serialize)]
struct ModeRecord {
    mode: Mode,
    conditions: Conditions,
    cases: Vec<CaseResult>,
}

impl Record {
    fn merge(&mut self, report: &Report) {
        for mode in Mode::ALL {
            let cases: Vec<_> = report.cases.iter().filter(|case| case.mode == mode).cloned().collect();
            if !cases.is_empty() {
                self.modes.retain(|record| record.mode != mode);
                self.modes.push(ModeRecord { mode, conditions: report.conditions.clone(), cases });
            }
        }
        self.modes.sort_by_key(|record| record.mode);
    }

    fn cases(&self) -> impl Iterator<Item = &CaseResult> {
        self.modes.iter().flat_map(|record| &record.cases)
    }
}

/// Whether a run of this build could be written into the record of the working copy at `root`: better known before
/// it than after.
///
/// # Errors
/// When this is a debug build, or the document cannot be read or lacks a marker.
pub fn recordable(root: &Path) -> Result<(), BenchError> {
    of_release(if cfg!(debug_assertions) { "debug" } else { "release" })?;
    document::complete(&read_document(root)?)
}

/// Writes a run, or a part of one, into the record of the working copy at `root`.
///
/// # Errors
/// When the run is of a debug build, a file cannot be read or written, or the document lacks a marker.
pub fn record(report: &Report, root: &Path) -> Result<(), BenchError> {
    of_release(&report.conditions.build)?;
    let figures = root.join(FIGURES);
    let mut record = match fs::read(&figures) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| {
            BenchError::Usage(format!(
                "{} is not a record: {error}; remove it to begin anew",
                figures.display()
            ))
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Record::default(),
        Err(error) => return Err(error.into()),
    };
    record.merge(report);

    // The figures first: from them the next run writes all the rest.
    let document = document::rewrite(&read_document(root)?, &record)?;
    let mut files = vec![(figures, json(&record)?), (root.join(DOCUMENT), document)];
    for (name, svg) in plot::plots(&record)? {
        files.push((root.join(PLOTS).join(name), svg));
    }
    fs::create_dir_all(root.join(PLOTS))?;
    files.iter().try_for_each(|(path, text)| write(path, text))
}

fn of_release(build: &str) -> Result<(), BenchError> {
    if build == "release" {
        return Ok(());
    }
    Err(BenchError::Usage(format!("the figures of a {build} build are no record: build with --release")))
}

fn read_document(root: &Path) -> Result<String, BenchError> {
    let path = root.join(DOCUMENT);
    fs::read_to_string(&path).map_err(|error| {
        BenchError::Usage(format!(
            "{}: {error}; a record belongs into a working copy of crewcall",
            path.display()
        ))
    })
}

/// As a whole or not at all: a run may be cut short while it writes.
fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    let mut half = path.as_os_str().to_owned();
    half.push(".new");
    fs::write(&half, text)?;
    Ok(fs::rename(&half, path)?)
}

/// A case a line, so that a change shows as one.
fn json(record: &Record) -> Result<String, BenchError> {
    let mut modes = Vec::new();
    for ModeRecord { mode, conditions, cases } in &record.modes {
        let cases = cases.iter().map(line).collect::<Result<Vec<_>, _>>()?.join(",\n");
        let (mode, conditions) = (line(mode)?, line(conditions)?);
        modes.push(format!("{{\"mode\":{mode},\"conditions\":{conditions},\"cases\":[\n{cases}\n]}}"));
    }
    Ok(format!("{{\"modes\":[\n{}\n]}}\n", modes.join(",\n")))
}

fn line(value: &impl Serialize) -> Result<String, BenchError> {
    Ok(serde_json::to_string(value).map_err(std::io::Error::from)?)
}

#[cfg(test)]
mod tests;
