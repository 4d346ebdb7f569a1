//! A task's row and its payload's: the doctor misses the one without the other, and a repair leaves it out.

use crewcall::row::{Row, RowChange, RowKey};
use crewcall::scheduler::{Command, Limits, Output, Scheduler, Waiter};
use crewcall::store::{EmbeddedStore, Store as _, StoreOptions, doctor, repair};
use crewcall::task::{NewTask, Payload, TaskId, TaskOptions};

use super::model::{open, scratch};

/// The rows of three tasks, the last without a payload, as the scheduler writes them.
fn rows() -> (Vec<TaskId>, Vec<RowChange>) {
    let (mut scheduler, mut out) = (Scheduler::new(Limits::default(), 7), Output::default());
    scheduler.start(&mut out);
    let tasks: Vec<NewTask> = ["1", "2", ""]
        .into_iter()
        .map(|data| NewTask {
            options: TaskOptions::shared_submit(),
            ..NewTask::call("m", Payload::json(data))
        })
        .collect();
    let ids = tasks.iter().map(|task| task.id).collect();
    let command = Command::Submit { tasks, waiter: Waiter::default() };
    scheduler.handle(crewcall::clock::Timestamp(1), command, &mut out);
    (ids, out.rows)
}

#[test]
fn a_payload_lies_beside_its_task_and_is_not_loaded_at_start() {
    let root = scratch();
    let (ids, rows) = rows();
    let mut store = open(root.path()).unwrap();
    store.commit(&rows).unwrap();
    let mut loaded = Vec::new();
    drop(store);
    let mut store = open(root.path()).unwrap();
    store.load(&mut |key, data| loaded.push((key, data))).unwrap();
    assert_eq!(loaded.iter().filter(|(key, _)| matches!(key, RowKey::Task(_))).count(), 3);
    assert!(!loaded.iter().any(|(key, _)| matches!(key, RowKey::Payload(_))));
    let keys: Vec<RowKey> = ids.iter().map(|id| RowKey::Payload(*id)).collect();
    let read = store.read(&keys).unwrap();
    assert_eq!(read.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
    let row = Row::decode(keys[1], read[1].clone().unwrap()).unwrap();
    assert_eq!(row, Row::Payload(ids[1], Payload::json("2")));
    drop(store);
    assert!(doctor(root.path()).unwrap().is_healthy());
}

#[test]
fn one_half_without_the_other_is_found_and_left_out() {
    let root = scratch();
    let (dir, into) = (root.path().join("data"), root.path().join("saved"));
    let (ids, rows) = rows();
    let mut store = EmbeddedStore::open(&dir, StoreOptions::default()).unwrap();
    store.commit(&rows).unwrap();
    store
        .commit(&[RowChange::Delete(RowKey::Payload(ids[0])), RowChange::Delete(RowKey::Task(ids[1]))])
        .unwrap();
    drop(store);
    let report = doctor(&dir).unwrap();
    assert_eq!((report.tasks_without_payload, report.findings.len()), (1, 2), "{report}");
    let text = report.to_string();
    for part in [format!("lack their payload: {}", ids[0]), format!("lack their task: {}", ids[1])] {
        assert!(text.contains(&part), "{text}");
    }
    repair(&dir, &into).unwrap();
    assert!(doctor(&into).unwrap().is_healthy());
    let mut saved = open(&into).unwrap();
    let mut left = Vec::new();
    saved.load(&mut |key, _| left.push(key)).unwrap();
    assert_eq!(left, [RowKey::Task(ids[2]), RowKey::LeasesReserved]);
    assert_eq!(saved.read(&[RowKey::Payload(ids[1])]).unwrap(), [None]);
}
