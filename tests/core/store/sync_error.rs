//! A sync fails: whoever asked for it may not say that anything is stored, nor try again.

use std::path::Path;

use crewcall::store::{EmbeddedStore, Store as _, StoreError, StoreOptions};

use super::child::{self, Running, say};
use super::disk::shimmed;
use super::model::{contents, open, put, scratch};

const BATCHES: u8 = 30;

/// In the child: batches until one fails, then attempts that must not succeed either.
pub(super) fn commit_until_it_fails(dir: &Path) {
    let options = StoreOptions { checkpoint_bytes: 100_000, ..StoreOptions::default() };
    let mut store = match EmbeddedStore::open(dir, options) {
        Ok(store) => store,
        Err(error) => return say(format!("not opened: {error:?}")),
    };
    if let Err(error) = store.load(&mut |_, _| {}) {
        return say(format!("not opened: {error:?}"));
    }
    for number in 1..=BATCHES {
        let stored = store.commit(&[put(number, &vec![number; 5_000])]).and_then(|()| {
            say(format!("stored {number}"));
            if number % 7 == 0 { store.idle() } else { Ok(()) }
        });
        if let Err(error) = stored {
            assert!(matches!(error, StoreError::Fatal(_)), "{error:?}");
            // The disk is well again; what the failed sync should have written is not known to be on it.
            assert_eq!(store.commit(&[]), Err(error.clone()));
            assert_eq!(store.idle(), Err(error.clone()));
            assert_eq!(store.read(&[]), Err(error));
            return say("failed");
        }
    }
    say("never failed");
}

/// Each sync of a store's life fails once: of the log, of the tables, of the witness, of the directory.
#[test]
fn nothing_is_acknowledged_after_a_failed_sync() {
    let proof = proof::Proof::begin("every sync fails once", "./test core -- sync_error");
    let (mut failed, mut unharmed) = (0, 0);
    for sync in 1.. {
        let root = scratch();
        let mut command = shimmed(child::command("sync_error", root.path()), root.path());
        command.env("SHIM_EIO", sync.to_string());
        let mut running = Running::start(command);
        let mut acknowledged = Vec::new();
        let end = loop {
            let said = running.hear().unwrap_or_else(|| panic!("sync {sync}: the child died"));
            match said.strip_prefix("stored ") {
                Some(number) => acknowledged.push(number.parse::<u8>().unwrap()),
                None => break said,
            }
        };
        running.kill();
        let mut store = open(root.path()).unwrap();
        let rows = contents(&mut store).unwrap();
        for number in acknowledged {
            assert!(rows.values().any(|data| data.first() == Some(&number)), "sync {sync}: batch {number}");
        }
        if end == "never failed" {
            // SQLite does not mind a directory's sync that fails; five in a row are behind the last.
            unharmed += 1;
            if unharmed == 5 {
                break;
            }
        } else {
            (failed, unharmed) = (failed + 1, 0);
        }
    }
    assert!(failed > usize::from(BATCHES), "only {failed} syncs failed");
    proof.record(&[
        ("stores, each with another of its syncs failing once", proof::count(failed as u64)),
        ("acknowledged batches lost", proof::count(0_u64)),
        ("stores that went on as if nothing had happened", proof::count(0_u64)),
    ]);
}
