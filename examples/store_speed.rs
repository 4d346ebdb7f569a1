//! How fast the embedded store commits, against the floor: a bare append and fdatasync in the same run.
//!
//! `cargo run --release --example store_speed [DIRECTORY]`; the directory must lie on the disk in question.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crewcall::row::{RowChange, RowKey};
use crewcall::store::{EmbeddedStore, Store as _, StoreOptions};
use crewcall::task::TaskId;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A queue-like load: tasks are put with their payloads; those of the batch before are put again; older ones are
/// deleted.
const ROW: usize = 150;
const PAYLOAD: usize = 320;
/// Batches until a task is deleted.
const KEPT: usize = 20;
const LOADED: usize = 200_000;

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "target/store_speed".to_owned());
    let dir = Path::new(&dir);
    std::fs::remove_dir_all(dir).ok();
    std::fs::create_dir_all(dir)?;
    println!("| batch | append + fdatasync p50 / p99 | embedded p50 / p99 | ratio | changes/s |");
    println!("|---|---|---|---|---|");
    for (size, rounds) in [(1, 3_000), (64, 2_000), (512, 600), (4_096, 150)] {
        let [(floor, floor_late), (store, store_late)] = compare(dir, size, rounds)?;
        println!(
            "| {size} | {:.2} / {:.2} ms | {:.2} / {:.2} ms | {:.2} | {:.0} |",
            ms(floor),
            ms(floor_late),
            ms(store),
            ms(store_late),
            ms(store) / ms(floor),
            size as f64 / store.as_secs_f64(),
        );
    }
    restart(&dir.join("restart"))?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// In turns, so that whatever else the disk has to do falls on both.
fn compare(dir: &Path, size: usize, rounds: usize) -> Result<[(Duration, Duration); 2]> {
    let mut file = File::create(dir.join("floor"))?;
    let tasks = size.div_ceil(3);
    let bytes = vec![7; tasks * (2 * ROW + PAYLOAD + 3 * 40)];
    let mut store = EmbeddedStore::open(&dir.join(format!("store-{size}")), StoreOptions::default())?;
    store.load(&mut |_, _| {})?;
    let (row, payload) = (Bytes::from(vec![7; ROW]), Bytes::from(vec![7; PAYLOAD]));
    let mut made: VecDeque<Vec<TaskId>> = VecDeque::new();
    let (mut floor, mut stored) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for _ in 0..rounds {
        let mut batch = Vec::new();
        for id in made.back().into_iter().flatten() {
            batch.push(RowChange::Put(RowKey::Task(*id), row.clone()));
        }
        let new: Vec<_> = (0..tasks).map(|_| TaskId::generate()).collect();
        for id in &new {
            batch.push(RowChange::Put(RowKey::Task(*id), row.clone()));
            batch.push(RowChange::Put(RowKey::Payload(*id), payload.clone()));
        }
        made.push_back(new);
        if made.len() > KEPT {
            for id in made.pop_front().into_iter().flatten() {
                batch.push(RowChange::Delete(RowKey::Task(id)));
                batch.push(RowChange::Delete(RowKey::Payload(id)));
            }
        }
        RowChange::settle(&mut batch);
        let begun = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        floor.push(begun.elapsed());
        let begun = Instant::now();
        store.commit(&batch)?;
        stored.push(begun.elapsed());
    }
    Ok([floor, stored].map(percentiles))
}

fn restart(dir: &Path) -> Result<()> {
    let mut store = EmbeddedStore::open(dir, StoreOptions::default())?;
    let (row, payload) = (Bytes::from(vec![7; ROW]), Bytes::from(vec![7; PAYLOAD]));
    for _ in 0..LOADED / 512 {
        let ids = (0..512).map(|_| TaskId::generate());
        let rows = ids.flat_map(|id| {
            [
                RowChange::Put(RowKey::Task(id), row.clone()),
                RowChange::Put(RowKey::Payload(id), payload.clone()),
            ]
        });
        let mut batch = rows.collect();
        RowChange::settle(&mut batch);
        store.commit(&batch)?;
    }
    // As after kill -9: with a log to read.
    let killed = dir.with_extension("killed");
    std::fs::create_dir_all(&killed)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        std::fs::copy(entry.path(), killed.join(entry.file_name()))?;
    }
    store.close()?;
    for (name, dir) in [("after a clean end", dir), ("after kill -9", &killed)] {
        let begun = Instant::now();
        let mut store = EmbeddedStore::open(dir, StoreOptions::default())?;
        let opened = begun.elapsed();
        let mut rows = 0_usize;
        store.load(&mut |_, data| rows += usize::from(data.len() == ROW))?;
        let size = store.size() >> 20;
        println!(
            "restart {name}: open {:.0} ms, with load of {rows} rows {:.0} ms, {size} MiB",
            ms(opened),
            ms(begun.elapsed())
        );
    }
    Ok(())
}

fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    (at(50), at(99))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
