//! The engine with a disk that does what it is told: what waits for it, what does not, and in which order.

use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;

use super::*;
use crate::handle::Session;
use crate::row::{RowChange, RowKey};
use crate::scheduler::{AttemptEnd, AttemptResult, Filter, Frame, Hello, PoolSpec};
use crate::store::MemoryStore;
use crate::task::{Method, Outcome, Payload, StateName, TaskOptions};

/// Rows in memory, handed on from one engine to the next; each commit and each read takes a permit when
/// permits are asked for.
struct Disk {
    rows: Arc<parking_lot::Mutex<MemoryStore>>,
    commits: Option<mpsc::Receiver<()>>,
    reads: Option<mpsc::Receiver<()>>,
}

impl Store for Disk {
    fn describe(&self) -> String {
        "a disk under test".to_owned()
    }
    fn load(&mut self, take: &mut dyn FnMut(RowKey, Bytes)) -> Result<(), StoreError> {
        self.rows.lock().load(take)
    }
    fn read(&mut self, keys: &[RowKey]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.reads.as_ref().map(mpsc::Receiver::recv);
        self.rows.lock().read(keys)
    }
    fn scan(&mut self, after: Option<RowKey>, most: usize) -> Result<Vec<(RowKey, Bytes)>, StoreError> {
        self.rows.lock().scan(after, most)
    }
    fn commit(&mut self, batch: &[RowChange]) -> Result<(), StoreError> {
        // The first, which reserves leases, is the engine's start.
        let first = matches!(batch, [RowChange::Put(RowKey::LeasesReserved, _)]);
        self.commits.as_ref().filter(|_| !first).map(mpsc::Receiver::recv);
        self.rows.lock().commit(batch)
    }
    fn idle(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn size(&self) -> u64 {
        0
    }
}

#[derive(Default)]
struct Site {
    rows: Arc<parking_lot::Mutex<MemoryStore>>,
}

impl Site {
    fn start(
        &self,
        commits: Option<mpsc::Receiver<()>>,
        reads: Option<mpsc::Receiver<()>>,
    ) -> (Handle, EngineTask) {
        let disk = Disk { rows: Arc::clone(&self.rows), commits, reads };
        start(Limits::default(), Box::new(disk)).unwrap()
    }

    /// Stores `count` tasks and stops, so that the next engine finds them on the disk only.
    async fn with_tasks(count: usize) -> (Self, Vec<TaskId>) {
        let site = Self::default();
        let (handle, engine) = site.start(None, None);
        let tasks: Vec<NewTask> = (0..count).map(durable).collect();
        let ids = tasks.iter().map(|task| task.id).collect();
        handle.submit(tasks).await.unwrap();
        handle.halt().await;
        engine.await.unwrap().unwrap();
        (site, ids)
    }
}

fn durable(number: usize) -> NewTask {
    let payload = Payload::json(number.to_string());
    NewTask { options: TaskOptions::shared_submit(), ..NewTask::call("stored", payload) }
}

async fn worker(handle: &Handle, name: &str, methods: &[&str], credit: u64) -> Session {
    let method = |name: &&str| Method {
        name: Arc::from(*name),
        version: semver::Version::new(0, 0, 0),
        version_text: String::new(),
        summary: String::new(),
        docs: String::new(),
        input_schema: String::new(),
        output_schema: String::new(),
        examples: Vec::new(),
        pool: String::new(),
    };
    let hello = Hello {
        worker_id: name.to_owned(),
        pools: vec![PoolSpec { name: String::new(), concurrency: 64 }],
        methods: methods.iter().map(method).collect(),
        ..Hello::default()
    };
    let (_, session) = handle.join(hello).await.unwrap();
    session.say(Frame { credits: vec![(String::new(), credit)], ..Frame::default() }).await.unwrap();
    session
}

async fn told(session: &Session) -> Vec<String> {
    let mut items = Vec::new();
    session.outbox().take(&mut items).await.unwrap();
    let text = |item: SessionItem| match item {
        SessionItem::Assign(assign) => {
            format!("run {} {}", assign.lease, String::from_utf8_lossy(&assign.payload.data))
        }
        SessionItem::Tell(Tell::Cancel(lease, _)) => format!("cancel {lease}"),
        SessionItem::Tell(other) => format!("{other:?}"),
    };
    items.into_iter().map(text).collect()
}

fn done(lease: u64) -> Frame {
    let end = AttemptEnd::Succeeded(Payload::json("done"));
    Frame { results: vec![AttemptResult { lease, seq: 0, end }], ..Frame::default() }
}

fn lease_of(text: &str) -> u64 {
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn ephemeral_calls_go_on_while_the_disk_stands_still() {
    let (permit, commits) = mpsc::channel();
    let site = Site::default();
    let (handle, engine) = site.start(Some(commits), None);
    let session = worker(&handle, "w", &["call", "stored"], 1_000).await;
    let submitting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.submit(vec![durable(7)]).await }
    });
    // Dispatched before it is acknowledged; its outcome waits for the disk, that of others does not.
    let run = told(&session).await;
    session.say(done(lease_of(&run[0]))).await.unwrap();
    for number in 0..200 {
        let call = NewTask::call("call", Payload::json(number.to_string()));
        let (ended, ()) = tokio::join!(handle.call(call), async {
            let run = told(&session).await;
            session.say(done(lease_of(&run[0]))).await.unwrap();
        });
        assert_eq!(ended.unwrap().1, Outcome::Succeeded(Payload::json("done")));
    }
    let seen = handle.list(Filter { method: "call".into(), ..Filter::default() }, None, 5).await.unwrap();
    assert_eq!(seen.0.len(), 5);
    assert!(!submitting.is_finished(), "acknowledged, and not stored");
    drop(permit);
    submitting.await.unwrap().unwrap();
    handle.halt().await;
    engine.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_names_a_lease_waits_behind_its_payload_and_nothing_else_does() {
    let (site, ids) = Site::with_tasks(2).await;
    let (permit, reads) = mpsc::channel();
    let (handle, engine) = site.start(None, Some(reads));
    let session = worker(&handle, "w", &["stored", "call"], 3).await;
    // Both are given out; neither payload has been read.
    while handle.stats().await.unwrap().in_state(StateName::Leased) < 2 {}
    // Acknowledged once it is stored, which comes after the reads.
    let cancelled = tokio::spawn({
        let (handle, id) = (handle.clone(), ids[0]);
        async move { handle.cancel(id, "enough".to_owned()).await }
    });
    while handle.stats().await.unwrap().in_state(StateName::Cancelled) < 1 {}
    // Another call goes past them.
    let (ended, ()) = tokio::join!(handle.call(NewTask::call("call", Payload::json("9"))), async {
        let run = told(&session).await;
        assert!(run.len() == 1 && run[0].ends_with(" 9"), "{run:?}");
        session.say(done(lease_of(&run[0]))).await.unwrap();
    });
    ended.unwrap();
    drop(permit);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(told(&session).await);
    }
    let (first, second) = (lease_of(&seen[0]), lease_of(&seen[2]));
    assert_eq!(seen, [format!("run {first} 0"), format!("cancel {first}"), format!("run {second} 1")]);
    cancelled.await.unwrap().unwrap();
    handle.halt().await;
    engine.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_task_shows_its_payload_wherever_it_is() {
    let (site, ids) = Site::with_tasks(1).await;
    let (handle, engine) = site.start(None, None);
    let payload = handle.get_with_payload(ids[0]).await.unwrap().payload;
    assert_eq!(payload, Some(Payload::json("0")));
    assert_eq!(handle.get(ids[0]).await.unwrap().payload, None);
    let held = durable(5);
    let id = held.id;
    handle.submit(vec![held]).await.unwrap();
    assert_eq!(handle.get_with_payload(id).await.unwrap().payload, Some(Payload::json("5")));
    handle.halt().await;
    engine.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_payload_that_is_missing_stops_the_engine_as_damage() {
    let (site, ids) = Site::with_tasks(1).await;
    site.rows.lock().commit(&[RowChange::Delete(RowKey::Payload(ids[0]))]).unwrap();
    let (handle, engine) = site.start(None, None);
    let _session = worker(&handle, "w", &["stored"], 1).await;
    let ended = engine.await.unwrap();
    assert!(matches!(ended, Err(EngineError::Store(StoreError::Corrupt { .. }))), "{ended:?}");
}

/// More than is read ahead for one stream, and far more than may be held.
#[tokio::test]
async fn a_queue_larger_than_memory_is_run_in_order_and_no_faster_than_it_is_read() {
    const TASKS: usize = 48;
    let site = Site::default();
    let limits = Limits { resident_payload_bytes: 2 << 20, ..Limits::default() };
    let open = || {
        let disk = Disk { rows: Arc::clone(&site.rows), commits: None, reads: None };
        start(limits.clone(), Box::new(disk)).unwrap()
    };
    let big = |number: usize| {
        let mut data = vec![b'x'; 1 << 20];
        data[..4].copy_from_slice(format!("{number:04}").as_bytes());
        NewTask { options: TaskOptions::shared_submit(), ..NewTask::call("stored", Payload::json(data)) }
    };
    let (handle, engine) = open();
    for number in 0..TASKS / 2 {
        handle.submit(vec![big(number)]).await.unwrap();
    }
    handle.halt().await;
    engine.await.unwrap().unwrap();
    let (handle, engine) = open();
    for number in TASKS / 2..TASKS {
        handle.submit(vec![big(number)]).await.unwrap();
    }
    let session = worker(&handle, "w", &["stored"], TASKS as u64).await;
    let (mut next, mut items) = (0, Vec::new());
    while next < TASKS {
        session.outbox().take(&mut items).await.unwrap();
        let bytes: usize = items
            .iter()
            .map(|item| if let SessionItem::Assign(assign) = item { assign.payload.size() } else { 0 })
            .sum();
        assert!(bytes <= 12 << 20, "{bytes} bytes wait for one stream");
        for item in items.drain(..) {
            let SessionItem::Assign(assign) = item else { continue };
            assert_eq!(
                (&assign.payload.data[..4], assign.payload.data.len()),
                (format!("{next:04}").as_bytes(), 1 << 20)
            );
            session.say(done(assign.lease)).await.unwrap();
            next += 1;
        }
    }
    while handle.stats().await.unwrap().in_state(StateName::Finished) < TASKS as u64 {}
    handle.halt().await;
    engine.await.unwrap().unwrap();
}

/// Whoever finds somebody else at work leaves its message to that one: a message left lying would never be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_message_is_worked_off_whoever_is_at_work() {
    let (handle, engine) = Site::default().start(None, None);
    let asking: Vec<_> = (0..16)
        .map(|_| {
            let handle = handle.clone();
            tokio::spawn(async move {
                for _ in 0..500 {
                    handle.stats().await.unwrap();
                }
            })
        })
        .collect();
    for asked in asking {
        asked.await.unwrap();
    }
    handle.halt().await;
    engine.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_engine_ends_with_its_last_handle() {
    let (handle, engine) = Site::default().start(None, None);
    let another = handle.clone();
    drop(handle);
    another.submit(vec![durable(1)]).await.unwrap();
    drop(another);
    engine.await.unwrap().unwrap();
}
