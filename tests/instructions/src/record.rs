//! What is recorded: `counts.toml` with the counts of each case, oldest first, of which the last one stands;
//! and BENCHMARKS.md, which must give a reason for each that is larger than the one before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cases::Case;

const COUNTS: &str = "tests/instructions/counts.toml";
const DOCUMENT: &str = "BENCHMARKS.md";
const HEADER: &str = "\
# Instructions per task, of the pure scheduler; the cases are in src/cases.rs. Written by
# `./test instructions -- record`. Oldest first, the last one stands: `./test instructions` fails when a case
# is more than a tenth above it. A count larger than the one before it needs its line in BENCHMARKS.md.
";
const BEGIN: &str = "<!-- written by: ./test instructions -- record -->\n";
const END: &str = "<!-- end -->\n";

/// The recorded counts, and the document with the reasons.
pub(crate) struct Record {
    root: PathBuf,
    counts: BTreeMap<String, Vec<u64>>,
    document: String,
}

impl Record {
    pub(crate) fn load(root: &Path) -> Result<Self, String> {
        let read = |name: &str| {
            std::fs::read_to_string(root.join(name)).map_err(|error| format!("cannot read {name}: {error}"))
        };
        let counts = toml::from_str(&read(COUNTS)?).map_err(|error| format!("{COUNTS}: {error}"))?;
        Ok(Self { root: root.to_owned(), counts, document: read(DOCUMENT)? })
    }

    /// The count that stands.
    fn standing(&self, case: &str) -> Option<u64> {
        self.counts.get(case)?.last().copied()
    }

    /// What is to be said of a count that was found, and whether it is an error.
    pub(crate) fn judge(&self, case: &str, found: u64) -> Result<String, String> {
        let Some(standing) = self.standing(case) else {
            return Err(format!("no count is recorded in {COUNTS}; found {found}"));
        };
        if found == standing {
            return Ok("as recorded".to_owned());
        }
        let said = format!("{} than the {standing} recorded", compared(standing, found));
        if is_too_much(standing, found) { Err(said) } else { Ok(said) }
    }

    /// Enters a count that was found when it is smaller than the one that stands, or too much above it: steps
    /// that are allowed must not add up.
    pub(crate) fn enter(&mut self, case: &str, found: u64) -> String {
        let standing = self.standing(case);
        let entries = self.counts.entry(case.to_owned()).or_default();
        match standing {
            Some(standing) if found >= standing && !is_too_much(standing, found) => {
                format!("{} than the {standing} recorded, which stands", compared(standing, found))
            }
            Some(standing) => {
                entries.push(found);
                format!("recorded: {} than the {standing} before", compared(standing, found))
            }
            None => {
                entries.push(found);
                "recorded: the first".to_owned()
            }
        }
    }

    /// Every count that is larger than the one before it has its reason.
    pub(crate) fn check_reasons(&self) -> Result<(), String> {
        let mut missing = Vec::new();
        for (case, counts) in &self.counts {
            for step in counts.windows(2) {
                let [old, new] = step else { continue };
                if new > old && !has_reason(&self.document, case, *old, *new) {
                    missing.push(format!("- {case} {old} → {new}: why"));
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{COUNTS} records a rise without a reason. Write into {DOCUMENT}, in \"Instruction counts\", what it \
             buys:\n  {}",
            missing.join("\n  ")
        ))
    }

    /// Writes the counts, and the table of the document.
    pub(crate) fn save(&self, cases: &[Case]) -> Result<(), String> {
        let lines = self.counts.iter().map(|(case, counts)| format!("{case} = {counts:?}\n"));
        let counts = format!("{HEADER}\n{}", lines.collect::<String>());
        let rows = cases.iter().filter_map(|case| {
            Some(format!("| `{}` | {} | {} |\n", case.name, case.about, self.standing(case.name)?))
        });
        let table =
            format!("| case | what | instructions per task |\n|---|---|---|\n{}", rows.collect::<String>());
        let document = with_table(&self.document, &table)
            .ok_or_else(|| format!("{DOCUMENT} has no place for the table: {BEGIN}…\n{END}"))?;
        let write = |name: &str, text: &str| {
            std::fs::write(self.root.join(name), text)
                .map_err(|error| format!("cannot write {name}: {error}"))
        };
        write(COUNTS, &counts)?;
        write(DOCUMENT, &document)
    }
}

/// More than a tenth above what is recorded.
fn is_too_much(standing: u64, found: u64) -> bool {
    found * 10 > standing * 11
}

/// "3.1 % more", as far as there is something to compare with.
fn compared(before: u64, now: u64) -> String {
    let percent = (now as f64 / before.max(1) as f64 - 1.0) * 100.0;
    let word = if now < before { "less" } else { "more" };
    format!("{:.1} % {word}", percent.abs())
}

/// Whether a line `- CASE OLD → NEW: some words` stands in the document.
fn has_reason(document: &str, case: &str, old: u64, new: u64) -> bool {
    let start = format!("- {case} {old} → {new}:");
    document
        .lines()
        .filter_map(|line| line.strip_prefix(&start))
        .any(|reason| reason.split_whitespace().count() > 2)
}

fn with_table(document: &str, table: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(counts: &[u64], document: &str) -> Record {
        let counts = BTreeMap::from([("call".to_owned(), counts.to_vec())]);
        Record { root: PathBuf::new(), counts, document: document.to_owned() }
    }

    #[test]
    fn a_tenth_is_allowed_and_no_more() {
        let record = record(&[900, 1_000], "");
        assert_eq!(record.judge("call", 1_000).unwrap(), "as recorded");
        assert_eq!(record.judge("call", 500).unwrap(), "50.0 % less than the 1000 recorded");
        assert_eq!(record.judge("call", 1_100).unwrap(), "10.0 % more than the 1000 recorded");
        assert_eq!(record.judge("call", 1_101).unwrap_err(), "10.1 % more than the 1000 recorded");
        assert!(record.judge("other", 1).unwrap_err().contains("no count is recorded"));
    }

    #[test]
    fn allowed_steps_do_not_add_up() {
        let mut record = record(&[1_000], "");
        record.enter("call", 1_090);
        record.enter("call", 1_099);
        assert_eq!(record.standing("call"), Some(1_000));
        assert!(record.judge("call", 1_150).is_err());
    }

    #[test]
    fn a_gain_becomes_the_measure() {
        let mut record = record(&[1_000], "");
        record.enter("call", 800);
        assert!(record.judge("call", 890).is_err());
        record.check_reasons().unwrap();
    }

    #[test]
    fn a_rise_needs_a_reason_of_its_own() {
        let mut growing = record(&[1_000], "");
        growing.enter("call", 1_200);
        let problem = growing.check_reasons().unwrap_err();
        assert!(problem.contains("- call 1000 → 1200: why"), "{problem}");

        let checked = |document: &str| record(&[1_000, 1_200], document).check_reasons();
        checked("text\n- call 1000 → 1200: leases are fenced by epoch\ntext").unwrap();
        checked("- call 1000 → 1200:\n").unwrap_err();
        checked("- call 1000 → 1200: because\n").unwrap_err();
        checked("- call 1000 → 1201: leases are fenced by epoch\n").unwrap_err();
        checked("- calls_64 1000 → 1200: leases are fenced by epoch\n").unwrap_err();
        // A reason given once does not serve the next rise.
        let again = record(&[1_000, 1_200, 1_400], "- call 1000 → 1200: leases are fenced by epoch");
        assert!(again.check_reasons().unwrap_err().contains("- call 1200 → 1400"));
    }

    #[test]
    fn the_table_is_replaced_where_it_stands() {
        let document = format!("before\n{BEGIN}old\n{END}after\n");
        let new = with_table(&document, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}\nnew\n\n{END}after\n"));
        assert_eq!(with_table("no place", "new\n"), None);
    }
}
