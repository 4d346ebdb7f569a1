//! The disk fills up, and space returns.

use std::fs;
use std::path::Path;
use std::process::Command;

use crewcall::store::{EmbeddedStore, Store as _, StoreError, StoreOptions};

use super::child::{self, Running, say};
use super::disk::shimmed;
use super::model::{apply, contents, delete, locks_are_inherited, open, put, scratch};

const ROOM: &str = "SHIM_ROOM";

/// In the child: the disk is full at each of many places within a batch; the batch waits, is stored once
/// there is room, and nothing else has changed meanwhile.
pub(super) fn fill(dir: &Path) {
    let control = std::env::var(ROOM).unwrap();
    let options = StoreOptions { checkpoint_bytes: 150_000, ..StoreOptions::default() };
    let mut store = EmbeddedStore::open(dir, options).unwrap();
    let mut rows = contents(&mut store).unwrap();
    let mut refused = 0;
    for round in 0..120_usize {
        let number = (round % 50) as u8 + 1;
        let batch = [put(number, &vec![round as u8; 700 * (round % 60)]), put(100, &round.to_le_bytes())];
        fs::write(&control, (round * 977 % 40_000).to_string()).unwrap();
        match store.commit(&batch) {
            Ok(()) => {}
            Err(StoreError::Full(_)) => {
                refused += 1;
                // Still full; reads go on, and so does what is stored.
                assert!(matches!(store.commit(&batch), Err(StoreError::Full(_)) | Ok(())));
                store.idle().unwrap();
                fs::remove_file(&control).unwrap();
                store.commit(&batch).unwrap();
            }
            Err(error) => panic!("round {round}: {error:?}"),
        }
        apply(&mut rows, &batch);
        assert_eq!(store.scan(None, usize::MAX).unwrap().len(), rows.len());
    }
    fs::remove_file(&control).ok();
    assert_eq!(contents(&mut store).unwrap(), rows);
    drop(store);
    assert_eq!(contents(&mut open(dir).unwrap()).unwrap(), rows);
    say(refused);
}

#[test]
fn a_batch_waits_for_space_wherever_it_ran_out() {
    let root = scratch();
    let dir = root.path().join("data");
    let mut command = shimmed(child::command("full", &dir), &dir);
    command.env(ROOM, root.path().join("room"));
    let refused = Running::start(command).hear().expect("the child died");
    assert!(refused.parse::<usize>().unwrap() > 10, "the disk was full only {refused} times");
}

/// On a real file system of 2 MiB, where mounting one is permitted; the shim covers the rest.
#[test]
fn a_full_file_system_refuses_and_recovers() {
    let root = scratch();
    let guard = locks_are_inherited();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(root.path()).output();
    drop(guard);
    if !mounted.is_ok_and(|mount| mount.status.success()) {
        println!("not permitted to mount: the shim's ENOSPC stands for a full file system");
        return;
    }
    let ballast = root.path().join("ballast");
    let dir = root.path().join("data");
    let outcome = std::panic::catch_unwind(|| {
        let mut store = open(&dir).unwrap();
        store.commit(&[put(1, b"first")]).unwrap();
        fs::write(&ballast, vec![0; 4 << 20]).unwrap_err();
        let batch = [put(2, &vec![2; 300_000])];
        assert!(matches!(store.commit(&batch), Err(StoreError::Full(_))));
        assert!(matches!(store.commit(&batch), Err(StoreError::Full(_))));
        assert_eq!(store.scan(None, 10).unwrap().len(), 1);
        fs::remove_file(&ballast).unwrap();
        store.commit(&batch).unwrap();
        store.commit(&[delete(1)]).unwrap();
        drop(store);

        // And at start.
        fs::write(&ballast, vec![0; 4 << 20]).unwrap_err();
        let fresh = open(&root.path().join("fresh"));
        assert!(matches!(fresh, Err(StoreError::DiskFull(_))), "{fresh:?}");
        fs::remove_file(&ballast).unwrap();
        assert_eq!(contents(&mut open(&dir).unwrap()).unwrap().len(), 1);
    });
    let guard = locks_are_inherited();
    Command::new("umount").arg(root.path()).status().unwrap();
    drop(guard);
    outcome.unwrap();
}

#[test]
fn the_cap_on_size_is_a_full_disk_too() {
    let root = scratch();
    let options = StoreOptions { max_bytes: Some(400_000), ..StoreOptions::default() };
    let mut store = EmbeddedStore::open(root.path(), options).unwrap();
    let full = (1..=60).find(|number| store.commit(&[put(*number, &[1; 10_000])]).is_err()).unwrap();
    assert!((20..60).contains(&full), "full at {full}");
    let refused = store.commit(&[put(full, &[1; 10_000])]);
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    store.commit(&[delete(1), delete(2)]).unwrap();
    store.commit(&[put(full, &[1; 10_000])]).unwrap();
}
