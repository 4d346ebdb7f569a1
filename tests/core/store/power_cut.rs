//! The power fails: everything that was not synced is gone, kept or torn, at any moment of a store's life.
//!
//! `CREWCALL_POWER_CUTS=20000 cargo test --test core power_cut` for more than the usual two hundred;
//! `CREWCALL_SEED` for one seed again.

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use crewcall::store::{EmbeddedStore, Store as _, StoreOptions};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::child::{self, Running, say};
use super::disk::{Disk, Op, OpKind, shimmed, trace as read_trace};
use super::model::{contents, open, put, random_batches, scratch};

const SEED: &str = "CREWCALL_SEED";
const BATCHES: usize = 60;
const CUTS_A_TRACE: usize = 50;
/// In the directory too, so that acknowledgements stand in the trace where they were given.
const ACKS: &str = "acks";

#[test]
fn what_was_acknowledged_survives() {
    let cuts = proof::size("CREWCALL_POWER_CUTS", 200);
    let proof = proof::Proof::begin("power cut", "./test core -- power_cut");
    let seed = number(SEED).unwrap_or_else(rand::random);
    let (mut done, mut later) = (0, 0);
    for seed in seed.. {
        println!("{SEED}={seed}");
        let ops = run(seed);
        for _ in 0..CUTS_A_TRACE.min((cuts - done) as usize) {
            let outcome = cut(&ops, seed.wrapping_add(done << 32), seed);
            later += u64::from(outcome.unwrap_or_else(|lost| panic!("{SEED}={seed}, cut {done}: {lost}")));
            done += 1;
        }
        if done == cuts {
            break;
        }
    }
    println!(
        "{done} power cuts, 0 acknowledged batches lost; in {later} an unacknowledged one survived whole"
    );
    proof.record(&[
        ("power cuts, each with a torn or reordered tail", proof::count(done)),
        ("**acknowledged batches lost**", proof::count(0_u64)),
        ("stores that did not open again, or opened shorter", proof::count(0_u64)),
        ("cuts after which the batch under way was there whole", proof::count(later)),
    ]);
}

/// The test of the test: with a disk that only says that it has synced, the loss is seen.
#[test]
fn a_disk_that_lies_is_found_out() {
    let mut ops = run(1);
    ops.retain(|op| !matches!(op.kind, OpKind::Sync) || op.file.is_empty());
    let lost = (0..20).filter(|number| cut(&ops, *number, 1).is_err()).count();
    assert!(lost > 0, "twenty cuts of an unsynced store went unnoticed");
}

/// In the child: a store's life, each batch acknowledged in the trace.
pub(super) fn trace(root: &Path) {
    let seed = number(SEED).unwrap();
    let batches = random_batches(&mut StdRng::seed_from_u64(seed), BATCHES, true);
    let mut acks = fs::File::create(root.join(ACKS)).unwrap();
    let options = StoreOptions { checkpoint_bytes: 200_000, ..StoreOptions::default() };
    let mut rng = StdRng::seed_from_u64(seed);
    let mut store = None;
    for (number, (batch, _)) in batches.iter().enumerate().skip(1) {
        // Ends in order or as by kill -9, then starts again, now and then.
        if store.is_some() && rng.random_bool(0.05) {
            let ended: EmbeddedStore = store.take().unwrap();
            ended.close().unwrap();
        }
        let store = store.get_or_insert_with(|| {
            let mut store = EmbeddedStore::open(root, options.clone()).unwrap();
            store.load(&mut |_, _| {}).unwrap();
            store
        });
        store.commit(batch).unwrap();
        acks.write_all(&(number as u64).to_le_bytes()).unwrap();
        if rng.random_bool(0.2) {
            store.idle().unwrap();
        }
    }
    store.unwrap().close().unwrap();
    say("done");
}

fn run(seed: u64) -> Vec<Op> {
    let root = scratch();
    let log = root.path().join("log");
    let dir = root.path().join("data");
    fs::create_dir(&dir).unwrap();
    let mut command = shimmed(child::command("trace", &dir), &dir);
    command.env("SHIM_LOG", &log).env(SEED, seed.to_string());
    let mut running = Running::start(command);
    assert_eq!(running.hear().as_deref(), Some("done"));
    drop(running);
    read_trace(&log)
}

/// Cuts the power at a random moment. Whether the batch being stored survived as well, or what was lost.
fn cut(ops: &[Op], chance: u64, seed: u64) -> Result<bool, String> {
    let batches = random_batches(&mut StdRng::seed_from_u64(seed), BATCHES, true);
    let mut rng = StdRng::seed_from_u64(chance);
    let moment = rng.random_range(0..=ops.len());
    let mut disk = Disk::default();
    let mut acknowledged = 0;
    for op in &ops[..moment] {
        match &op.kind {
            OpKind::Write { data, .. } if op.file == ACKS => {
                acknowledged = u64::from_le_bytes(data[..].try_into().unwrap()) as usize;
            }
            _ if op.file == ACKS => {}
            _ => disk.apply(op),
        }
    }
    let root = scratch();
    disk.cut(&mut rng, root.path());

    let mut store = open(root.path()).map_err(|error| format!("after {acknowledged} batches: {error}"))?;
    let found = contents(&mut store).map_err(|error| format!("after {acknowledged} batches: {error}"))?;
    let next = batches.get(acknowledged + 1).is_some_and(|(_, rows)| *rows == found);
    if !next && batches[acknowledged].1 != found {
        let held = batches.iter().position(|(_, rows)| *rows == found);
        return Err(format!("{acknowledged} batches were acknowledged, {held:?} are found"));
    }
    // And it goes on from there.
    store.commit(&[put(201, b"after")]).map_err(|error| error.to_string())?;
    drop(store);
    let mut store = open(root.path()).map_err(|error| error.to_string())?;
    let again = contents(&mut store).map_err(|error| error.to_string())?;
    if again.len() == found.len() + 1 { Ok(next) } else { Err("a batch after the cut is lost".to_owned()) }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
