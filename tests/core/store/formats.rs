//! Data directories of older formats: `format_N` is one, as kill -9 left it.

use std::fs;
use std::path::Path;

use crewcall::row::{Row, RowKey};
use crewcall::store::Store as _;
use crewcall::task::TaskId;

use super::model::{contents, delete, examine, open, put, scratch};

/// Of `format_1`: three submitted tasks with their payloads, one of them large.
const TASKS: [(&str, usize); 3] = [
    ("01a207e0-3e87-7358-9483-814b59c409dc", 7),
    ("01a207e0-3e87-7358-9483-814c02fd9664", 3_002),
    ("01a207e0-3e87-7358-9483-814d17f1878f", 4),
];

fn format_1() -> tempfile::TempDir {
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/core/store/format_1");
    let copy = scratch();
    for entry in fs::read_dir(old).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

#[test]
fn format_1_is_examined_and_opened() {
    let root = format_1();
    let report = examine(root.path()).unwrap();
    assert!(report.is_healthy() && report.rows_found == 7, "{report}");

    let mut store = open(root.path()).unwrap();
    let rows = contents(&mut store).unwrap();
    for (id, size) in TASKS {
        let id = TaskId(id.parse().unwrap());
        let Row::Task(task) = read(&rows, RowKey::Task(id)) else { panic!("{id} is no task") };
        let Row::Payload(_, payload) = read(&rows, RowKey::Payload(id)) else { panic!("{id} is no payload") };
        assert_eq!((&*task.method, task.body.size()), ("add", payload.size() as u64));
        assert_eq!(payload.data.len(), size);
        // It goes on from there: the payload goes with its task.
        store.commit(&[put(1, b"one"), put(240, b"its payload")]).unwrap();
        store.commit(&[delete(1), delete(240)]).unwrap();
    }
    drop(store);
    let mut store = open(root.path()).unwrap();
    assert_eq!(contents(&mut store).unwrap(), rows);
    drop(store);
    assert!(examine(root.path()).unwrap().is_healthy());
}

fn read(rows: &super::model::Rows, key: RowKey) -> Row {
    Row::decode(key, rows[&key.parts()].clone()).unwrap()
}
