use uuid::Uuid;

use super::*;
use crate::store::{EmbeddedStore, MemoryStore, StoreOptions};
use crate::task::TaskId;

fn key(number: u32) -> RowKey {
    RowKey::Task(TaskId(Uuid::from_u128(u128::from(number) << 64)))
}

fn put(number: u32, data: &[u8]) -> RowChange {
    RowChange::Put(key(number), Bytes::copy_from_slice(data))
}

/// In memory, with errors to come: each commit takes the next one.
#[derive(Default)]
struct Scripted {
    rows: MemoryStore,
    commits: std::vec::IntoIter<Result<(), StoreError>>,
    idles: Option<Sender<()>>,
}

impl Store for Scripted {
    fn describe(&self) -> String {
        "scripted".to_owned()
    }
    fn load(&mut self, take: &mut dyn FnMut(RowKey, Bytes)) -> Result<(), StoreError> {
        self.rows.load(take)
    }
    fn read(&mut self, keys: &[RowKey]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.rows.read(keys)
    }
    fn scan(&mut self, after: Option<RowKey>, most: usize) -> Result<Vec<(RowKey, Bytes)>, StoreError> {
        self.rows.scan(after, most)
    }
    fn commit(&mut self, batch: &[RowChange]) -> Result<(), StoreError> {
        self.commits.next().unwrap_or(Ok(()))?;
        self.rows.commit(batch)
    }
    fn idle(&mut self) -> Result<(), StoreError> {
        if let Some(idles) = &self.idles {
            idles.send(()).ok();
        }
        Ok(())
    }
    fn size(&self) -> u64 {
        4_711
    }
}

#[tokio::test]
async fn a_full_batch_is_kept_and_may_grow() {
    let full = StoreError::Full("no space".to_owned());
    let commits = vec![Err(full.clone()), Err(full.clone()), Ok(())].into_iter();
    let (committer, mut stored) =
        Committer::start(Box::new(Scripted { commits, ..Scripted::default() })).unwrap();
    committer.store(vec![put(1, b"one")]);
    for next in [vec![put(2, b"more"), put(3, b"more")], Vec::new()] {
        let Done::Full(reason) = stored.next().await.unwrap() else { panic!("not full") };
        assert_eq!(reason, full);
        // Reads are answered meanwhile, and nothing of the batch is there.
        committer.read(vec![key(1)]);
        let Done::Read { rows: read, .. } = stored.next().await.unwrap() else { panic!("not read") };
        assert_eq!(read, Ok(vec![None]));
        committer.store(next);
    }
    let Done::Stored { batches, buffer } = stored.next().await.unwrap() else { panic!("not stored") };
    assert!(batches == 3 && buffer.is_empty());
    committer.read(vec![key(3), key(9), key(1)]);
    let Done::Read { keys, rows } = stored.next().await.unwrap() else { panic!("not read") };
    assert_eq!(keys, [key(3), key(9), key(1)]);
    assert_eq!(rows, Ok(vec![Some(Bytes::from_static(b"more")), None, Some(Bytes::from_static(b"one"))]));
    assert_eq!(committer.size(), 4_711);
}

/// However batches are put together, each is told of once, and rows asked for are those of the batches before.
#[tokio::test]
async fn batches_that_wait_are_stored_together_but_not_past_a_read() {
    let (committer, mut done) = Committer::start(Box::new(MemoryStore::default())).unwrap();
    for number in 0..100 {
        committer.store(vec![put(number, b"one"), put(number, b"two")]);
        committer.store(vec![put(number + 1_000, b"three")]);
        committer.read(vec![key(number), key(number + 1)]);
    }
    let (mut stored, mut read) = (0, 0);
    while stored < 200 || read < 100 {
        match done.next().await.unwrap() {
            Done::Stored { batches, .. } => stored += batches,
            Done::Read { rows, .. } => {
                assert_eq!(rows, Ok(vec![Some(Bytes::from_static(b"two")), None]));
                read += 1;
                assert_eq!(stored, read * 2);
            }
            Done::Full(reason) => panic!("{reason}"),
        }
    }
}

#[test]
fn the_last_change_of_a_row_counts_and_what_makes_room_comes_first() {
    let mut batch = vec![
        put(3, b"submitted"),
        put(2, b"submitted"),
        put(9, b"submitted"),
        put(3, b"leased"),
        RowChange::Delete(key(9)),
        RowChange::Delete(key(1)),
        put(3, b"over"),
        put(1, b"again"),
    ];
    RowChange::settle(&mut batch);
    let settled = batch.iter().map(|change| match change {
        RowChange::Put(key, data) => (*key, Some(&data[..])),
        RowChange::Delete(key) => (*key, None),
    });
    let expected = [
        (key(9), None),
        (key(1), Some(&b"again"[..])),
        (key(2), Some(b"submitted")),
        (key(3), Some(b"over")),
    ];
    assert!(settled.eq(expected), "{batch:?}");
}

#[tokio::test]
async fn a_failure_ends_it_for_good() {
    let failed = StoreError::Fatal("fsync: EIO".to_owned());
    let commits = vec![Ok(()), Err(failed.clone()), Ok(())].into_iter();
    let (committer, mut stored) =
        Committer::start(Box::new(Scripted { commits, ..Scripted::default() })).unwrap();
    committer.store(vec![put(1, b"one")]);
    assert!(matches!(stored.next().await, Ok(Done::Stored { .. })));
    committer.store(vec![put(2, b"two")]);
    assert_eq!(stored.next().await.unwrap_err(), failed);
    committer.store(vec![put(2, b"two")]);
    assert!(matches!(stored.next().await, Err(StoreError::Fatal(_))));
}

#[tokio::test]
async fn quiet_moments_are_used_once() {
    let (idles, idle) = channel();
    let (committer, mut stored) =
        Committer::start(Box::new(Scripted { idles: Some(idles), ..Scripted::default() })).unwrap();
    for _ in 0..3 {
        committer.store(vec![put(1, b"one")]);
        assert!(matches!(stored.next().await, Ok(Done::Stored { .. })));
        idle.recv().unwrap();
    }
    drop(committer);
    assert!(idle.try_recv().is_err());
}

#[tokio::test]
async fn a_backup_is_made_between_batches() {
    let root = tempfile::tempdir().unwrap();
    let into = root.path().join("backup");
    let mut store = EmbeddedStore::open(&root.path().join("data"), StoreOptions::default()).unwrap();
    let rows: Vec<_> = (0..4_000).map(|number| put(number, &number.to_le_bytes())).collect();
    store.commit(&rows).unwrap();
    let (committer, mut stored) = Committer::start(Box::new(store)).unwrap();
    let mut answer = committer.backup(into.clone());
    let second = committer.backup(root.path().join("second"));
    let mut batches = 0;
    let copied = loop {
        committer.store(vec![put(batches, b"changed")]);
        assert!(matches!(stored.next().await, Ok(Done::Stored { .. })));
        batches += 1;
        if let Ok(answer) = answer.try_recv() {
            break answer.unwrap();
        }
    };
    assert!(batches > 3, "only {batches} batches were stored meanwhile");
    assert!(matches!(second.await, Ok(Err(StoreError::InUse(_)))), "two at a time");
    assert_eq!(copied, 4_000);
    let report = crate::store::doctor(&into).unwrap();
    assert!(report.is_healthy() && report.rows_found == 4_000, "{report}");
    assert!(!root.path().join("backup.partial").exists());
}

#[tokio::test]
async fn a_backup_goes_into_a_place_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let (committer, _stored) = Committer::start(Box::new(MemoryStore::default())).unwrap();
    let refused = committer.backup(root.path().to_owned()).await.unwrap();
    assert!(matches!(refused, Err(StoreError::Unwritable { .. })), "{refused:?}");
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(committer.backup(file.join("backup")).await.unwrap().is_err());
    // Nobody waits for this one any more.
    drop(committer.backup(root.path().join("unwanted")));
    drop(committer);
    assert!(!root.path().join("unwanted.partial").exists());
}
