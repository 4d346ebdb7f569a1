//! Bits change and files are cut: found when the store is opened or read, or without any consequence. Never a
//! shorter history, never a changed row.
//!
//! `CREWCALL_BIT_FLIPS=5000 cargo test --test core damage` for more than the usual hundred places;
//! `CREWCALL_SEED` for one seed again.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crewcall::store::{EmbeddedStore, Store as _, StoreError, StoreOptions, repair};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::model::{Rows, contents, examine, open, put, random_batches, scratch};

const FILES: [&str; 3] = ["crewcall.db", "crewcall.db-wal", "crewcall.head"];

/// A data directory as kill -9 leaves it, to be damaged again and again.
struct Victim {
    /// `FILES`, in order.
    files: [Vec<u8>; 3],
    rows: Rows,
}

impl Victim {
    /// With tables, with a log that has something the tables lack, and with free pages.
    fn new(rng: &mut StdRng, payloads: bool) -> Self {
        let root = scratch();
        let mut store = open(root.path()).unwrap();
        let batches = random_batches(rng, 80, payloads);
        for (number, (batch, _)) in batches.iter().enumerate() {
            store.commit(batch).unwrap();
            if number == 40 {
                let wide: Vec<_> = (61..120).map(|number| put(number, &[number; 3_000])).collect();
                store.commit(&wide).unwrap();
                store.idle().unwrap();
            }
        }
        let files = FILES.map(|file| fs::read(root.path().join(file)).unwrap());
        let mut rows = batches.last().unwrap().1.clone();
        let wide = (61..120).map(|number| put(number, &[number; 3_000]));
        super::model::apply(&mut rows, &wide.collect::<Vec<_>>());
        Self { files, rows }
    }

    fn restore(&self, dir: &Path) {
        for (file, bytes) in FILES.iter().zip(&self.files) {
            fs::write(dir.join(file), bytes).unwrap();
        }
    }
}

/// What a start makes of it: the refusal, or nothing if all rows are there.
fn outcome(dir: &Path, rows: &Rows) -> Option<StoreError> {
    let found = open(dir).and_then(|mut store| contents(&mut store));
    match found {
        Err(error) => {
            // It says so, and keeps saying so.
            assert!(
                matches!(error, StoreError::Corrupt { .. } | StoreError::NewerFormat { .. }),
                "{error:?}"
            );
            assert!(open(dir).and_then(|mut store| contents(&mut store)).is_err(), "{error} went away");
            Some(error)
        }
        Ok(found) if found == *rows => None,
        Ok(found) => panic!("{} of {} rows were served, or others", found.len(), rows.len()),
    }
}

fn seeded() -> StdRng {
    let seed = env::var("CREWCALL_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    println!("CREWCALL_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

#[test]
fn a_changed_bit_is_found_or_harmless() {
    let mut rng = seeded();
    let flips = proof::size("CREWCALL_BIT_FLIPS", 100);
    let proof = proof::Proof::begin("bit flips", "./test core -- damage");
    let victim = Victim::new(&mut rng, true);
    let dir = scratch();
    let mut facts = vec![("served changed, missing or made up", proof::count(0_u64))];
    for (number, file) in FILES.iter().enumerate() {
        let (mut found, mut harmless) = (0, 0);
        for _ in 0..flips {
            victim.restore(dir.path());
            let mut bytes = victim.files[number].clone();
            let (at, bit) = (rng.random_range(0..bytes.len()), rng.random_range(0..8));
            bytes[at] ^= 1 << bit;
            fs::write(dir.path().join(file), bytes).unwrap();
            println!("{file} byte {at} bit {bit}");
            match outcome(dir.path(), &victim.rows) {
                Some(_) => found += 1,
                None => harmless += 1,
            }
        }
        println!("{file}: {flips} bits changed: {found} found, {harmless} harmless");
        facts.push((
            file,
            format!("{} bits changed: {found} found, {harmless} harmless", proof::count(flips)),
        ));
    }
    proof.record(&facts);
}

#[test]
fn a_cut_file_is_found_or_harmless() {
    let cuts = proof::size("CREWCALL_TRUNCATIONS", 40);
    let proof = proof::Proof::begin("truncation", "./test core -- damage");
    let mut facts = vec![("opened shorter", proof::count(0_u64))];
    let mut rng = seeded();
    let victim = Victim::new(&mut rng, true);
    let dir = scratch();
    for (number, file) in FILES.iter().enumerate() {
        let mut found = 0;
        for _ in 0..cuts {
            victim.restore(dir.path());
            let length = rng.random_range(0..victim.files[number].len());
            fs::write(dir.path().join(file), &victim.files[number][..length]).unwrap();
            println!("{file} cut to {length}");
            found += usize::from(outcome(dir.path(), &victim.rows).is_some());
        }
        // Only what an earlier round of the log left behind it is nobody's.
        assert!(found > 0 || *file == "crewcall.head");
        let harmless = cuts as usize - found;
        facts.push((file, format!("cut short {cuts} times: {found} found, {harmless} harmless")));
    }
    proof.record(&facts);
}

/// The witness says nothing after a power cut; what follows the damage does.
#[test]
fn damage_inside_the_log_needs_no_witness() {
    let mut rng = seeded();
    let victim = Victim::new(&mut rng, true);
    let dir = scratch();
    let root = scratch();
    drop(open(root.path()).unwrap());
    // As of the start: synced then, and not since.
    let mut early = victim.files[2].clone();
    for slot in [0, 4096] {
        early[slot + 28..slot + 36].copy_from_slice(&1_u64.to_le_bytes());
        let crc = crc32c::crc32c(&early[slot..slot + 36]).to_le_bytes();
        early[slot + 36..slot + 40].copy_from_slice(&crc);
    }
    // Of this round of the log: those with the salts of its header.
    let log = &victim.files[1];
    let frames = log[32..].chunks(24 + 8192).filter(|frame| frame[8..16] == log[16..24]).count();
    // The last transactions may be taken for torn ones; they are a few dozen pages.
    let until = 32 + (frames - 60) * (24 + 8192);
    for _ in 0..60 {
        victim.restore(dir.path());
        fs::write(dir.path().join("crewcall.head"), &early).unwrap();
        let mut log = victim.files[1].clone();
        let at = rng.random_range(32..until);
        log[at] ^= 4;
        fs::write(dir.path().join("crewcall.db-wal"), log).unwrap();
        println!("byte {at}");
        assert!(outcome(dir.path(), &victim.rows).is_some());
    }
}

#[test]
fn the_doctor_says_what_would_be_lost_and_saves_the_rest() {
    let mut rng = seeded();
    let victim = Victim::new(&mut rng, false);
    for round in 0..40 {
        let root = scratch();
        let dir = root.path().join("data");
        fs::create_dir(&dir).unwrap();
        victim.restore(&dir);
        let file = FILES[round % 2];
        let mut bytes = victim.files[round % 2].clone();
        if rng.random_bool(0.3) {
            bytes.truncate(rng.random_range(bytes.len() / 2..bytes.len()));
        } else {
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << rng.random_range(0..8);
        }
        fs::write(dir.join(file), &bytes).unwrap();
        let refused = {
            let copy = copy(&dir);
            outcome(copy.path(), &victim.rows)
        };
        let report = match examine(&dir) {
            Ok(report) => report,
            Err(StoreError::NewerFormat { .. }) if refused.is_some() => continue,
            Err(error) => panic!("{error}"),
        };
        // The doctor looks at more than a start does.
        assert!(refused.is_none() || !report.is_healthy(), "{refused:?}, but {report}");
        assert_eq!(fs::read(dir.join(file)).unwrap(), bytes, "the doctor changed what it examined");

        let into = root.path().join("saved");
        let repaired = repair(&dir, &into).unwrap();
        assert_eq!(repaired.rows_found, report.rows_found);
        let saved = contents(&mut open(&into).unwrap()).unwrap();
        assert_eq!(saved.len() as u64, report.rows_found, "{report}");
        // Each was once stored like this: nothing is made up.
        if report.batches_found == report.batches_stored && refused.is_some() {
            for (key, data) in &saved {
                assert_eq!(victim.rows.get(key), Some(data));
            }
            let lost: u64 = report.rows_lost.iter().map(|lost| lost.stored - lost.found).sum();
            assert_eq!(saved.len() as u64 + lost, victim.rows.len() as u64, "{report}");
        }
        assert!(repair(&dir, &into).is_err(), "what was saved was overwritten");
    }
}

/// A log damaged where the tables have everything already costs nothing: they have more without it.
#[test]
fn the_doctor_finds_tables_that_need_no_log() {
    let root = scratch();
    let dir = root.path().join("data");
    let options = StoreOptions { checkpoint_bytes: 1 << 30, ..StoreOptions::default() };
    let mut store = EmbeddedStore::open(&dir, options).unwrap();
    for number in 1..100 {
        store.commit(&[put(number, &[number; 3_000])]).unwrap();
    }
    let rows = contents(&mut store).unwrap();
    store.close().unwrap();
    let mut log = fs::read(dir.join("crewcall.db-wal")).unwrap();
    let middle = log.len() / 2;
    log[middle] ^= 1;
    fs::write(dir.join("crewcall.db-wal"), log).unwrap();
    assert!(outcome(&dir, &rows).is_some());
    let report = examine(&dir).unwrap();
    assert!(report.without_log && report.rows_lost.is_empty(), "{report}");
    let into = root.path().join("saved");
    repair(&dir, &into).unwrap();
    assert_eq!(contents(&mut open(&into).unwrap()).unwrap(), rows);
}

fn copy(dir: &Path) -> tempfile::TempDir {
    let copy = scratch();
    for entry in fs::read_dir(dir).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}
