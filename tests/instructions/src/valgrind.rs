//! Runs a case of this same program under valgrind and reads the count.

use std::process::Command;

use crate::cases::Case;
use crate::measured;

/// Instructions for each task.
pub(crate) fn count(case: &Case) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| format!("where is this program? {error}"))?;
    // Kept beside the program: `callgrind_annotate` shows where the instructions go.
    let profile = program.with_file_name(format!("callgrind.{}", case.name));
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--toggle-collect={}", measured::NAMES))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(&program)
        .args(["run", case.name])
        // Heap checks of the libc would be counted.
        .env_remove("MALLOC_CHECK_")
        .output()
        .map_err(|error| format!("valgrind cannot be run (on Debian: apt-get install valgrind): {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("case {} failed under valgrind, {}:\n{said}", case.name, output.status));
    }
    let counted = collected(&said).ok_or_else(|| format!("valgrind names no count:\n{said}"))?;
    if counted == 0 {
        // As when the functions were inlined, or renamed.
        return Err(format!("valgrind saw no call of {}", measured::NAMES));
    }
    Ok(counted / case.counted())
}

/// The number in `==123== Collected : 456`.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find_map(|line| line.split_once("Collected : "))?;
    line.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found() {
        let said = "==7== Events    : Ir\n==7== Collected : 1234567\n==7== \n";
        assert_eq!(collected(said), Some(1_234_567));
        assert_eq!(collected("==7== Collected : \n"), None);
        assert_eq!(collected(""), None);
    }
}
