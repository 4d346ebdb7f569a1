//! What every store does. A new one is one more `Subject` and one more line in `conformance!`.

use std::path::PathBuf;

use bytes::Bytes;
use crewcall::store::{EmbeddedStore, MemoryStore, Store};
use proptest::prelude::*;

use super::model::{Rows, apply, contents, delete, key, open, put, scratch};

/// A store under test.
trait Subject: Sized {
    fn new() -> Self;
    fn store(&mut self) -> &mut dyn Store;
    /// Ends the store and opens what survives; false if nothing does.
    fn reopen(&mut self) -> bool;
}

struct Memory(MemoryStore);

impl Subject for Memory {
    fn new() -> Self {
        Self(MemoryStore::default())
    }
    fn store(&mut self) -> &mut dyn Store {
        &mut self.0
    }
    fn reopen(&mut self) -> bool {
        false
    }
}

struct Embedded {
    store: Option<EmbeddedStore>,
    dir: PathBuf,
    _root: tempfile::TempDir,
}

impl Subject for Embedded {
    fn new() -> Self {
        let root = scratch();
        let dir = root.path().join("data");
        Self { store: Some(open(&dir).unwrap()), dir, _root: root }
    }
    fn store(&mut self) -> &mut dyn Store {
        self.store.as_mut().unwrap()
    }
    fn reopen(&mut self) -> bool {
        self.store.take();
        self.store = Some(open(&self.dir).unwrap());
        true
    }
}

macro_rules! conformance {
    ($($name:ident: $subject:ty),+) => {$(
        mod $name {
            use super::*;

            #[test]
            fn begins_empty() { super::begins_empty::<$subject>(); }
            #[test]
            fn keeps_what_was_put() { super::keeps_what_was_put::<$subject>(); }
            #[test]
            fn applies_changes_in_order() { super::applies_changes_in_order::<$subject>(); }
            #[test]
            fn reads_in_the_order_asked() { super::reads_in_the_order_asked::<$subject>(); }
            #[test]
            fn loads_no_row_that_is_read_when_wanted() { super::loads_no_row_that_is_read_when_wanted::<$subject>(); }
            #[test]
            fn scans_in_the_order_of_keys() { super::scans_in_the_order_of_keys::<$subject>(); }
            #[test]
            fn takes_rows_of_any_size() { super::takes_rows_of_any_size::<$subject>(); }
            #[test]
            fn goes_on_after_quiet_moments() { super::goes_on_after_quiet_moments::<$subject>(); }

            proptest! {
                #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..<_>::default() })]
                #[test]
                fn equals_the_model(steps in proptest::collection::vec(step(), 1..40)) {
                    super::equals_the_model::<$subject>(steps);
                }
            }
        }
    )+};
}

conformance!(memory: Memory, embedded: Embedded);

fn begins_empty<S: Subject>() {
    let mut subject = S::new();
    assert_eq!(contents(subject.store()).unwrap(), Rows::new());
    assert_eq!(subject.store().read(&[key(1)]).unwrap(), [None]);
    subject.store().commit(&[]).unwrap();
    subject.reopen();
    assert_eq!(contents(subject.store()).unwrap(), Rows::new());
}

fn keeps_what_was_put<S: Subject>() {
    let mut subject = S::new();
    subject.store().commit(&[put(1, b"one"), put(0, b"none")]).unwrap();
    subject.store().commit(&[put(2, b"two")]).unwrap();
    let stored = contents(subject.store()).unwrap();
    assert_eq!(stored.len(), 3);
    if subject.reopen() {
        assert_eq!(contents(subject.store()).unwrap(), stored);
    }
}

fn applies_changes_in_order<S: Subject>() {
    let mut subject = S::new();
    let store = subject.store();
    store.commit(&[put(1, b"a"), put(1, b"b"), put(2, b"c"), delete(2), delete(3), put(3, b"d")]).unwrap();
    assert_eq!(
        store.read(&[key(1), key(2), key(3)]).unwrap(),
        [Some(Bytes::from_static(b"b")), None, Some(Bytes::from_static(b"d"))]
    );
    store.commit(&[delete(1), delete(1), delete(9)]).unwrap();
    assert_eq!(store.read(&[key(1)]).unwrap(), [None]);
}

fn reads_in_the_order_asked<S: Subject>() {
    let mut subject = S::new();
    let store = subject.store();
    store.commit(&[put(1, b"one"), put(3, b"three")]).unwrap();
    let (one, three) = (Some(Bytes::from_static(b"one")), Some(Bytes::from_static(b"three")));
    assert_eq!(store.read(&[key(3), key(2), key(1), key(3)]).unwrap(), [three.clone(), None, one, three]);
    assert_eq!(store.read(&[]).unwrap(), []);
}

fn loads_no_row_that_is_read_when_wanted<S: Subject>() {
    let mut subject = S::new();
    subject.store().commit(&[put(240, b"payload"), put(1, b"task"), put(241, b"gone"), delete(241)]).unwrap();
    subject.reopen();
    let mut loaded = Vec::new();
    subject.store().load(&mut |key, _| loaded.push(key)).unwrap();
    assert_eq!(loaded, [key(1)]);
    let payload = Some(Bytes::from_static(b"payload"));
    assert_eq!(subject.store().read(&[key(240), key(241)]).unwrap(), [payload, None]);
    assert_eq!(subject.store().scan(None, 9).unwrap().len(), 2);
}

fn scans_in_the_order_of_keys<S: Subject>() {
    let mut subject = S::new();
    let store = subject.store();
    let numbers = [5, 241, 1, 0, 9, 240, 3];
    store.commit(&numbers.map(|number| put(number, &[number]))).unwrap();
    let all = store.scan(None, usize::MAX).unwrap();
    assert!(all.is_sorted_by_key(|(key, _)| key.parts()), "{all:?}");
    assert_eq!(all.len(), numbers.len());
    for (index, (key, _)) in all.iter().enumerate() {
        assert_eq!(
            store.scan(Some(*key), 2).unwrap(),
            all[index + 1..].iter().take(2).cloned().collect::<Vec<_>>()
        );
    }
    assert_eq!(store.scan(None, 0).unwrap(), []);
}

fn takes_rows_of_any_size<S: Subject>() {
    let mut subject = S::new();
    let sizes = [0, 1, 1_000, 2_040, 8_192, 100_000, 4 << 20];
    let batch: Vec<_> = (1..).zip(sizes).map(|(number, size)| put(number, &vec![number; size])).collect();
    subject.store().commit(&batch).unwrap();
    let mut rows = Rows::new();
    apply(&mut rows, &batch);
    assert_eq!(contents(subject.store()).unwrap(), rows);
    if subject.reopen() {
        assert_eq!(contents(subject.store()).unwrap(), rows);
    }
}

fn goes_on_after_quiet_moments<S: Subject>() {
    let mut subject = S::new();
    let mut rows = Rows::new();
    for round in 0..5_u8 {
        let batch: Vec<_> = (1..40).map(|number| put(number, &vec![round; 9_000])).collect();
        subject.store().commit(&batch).unwrap();
        apply(&mut rows, &batch);
        subject.store().idle().unwrap();
        subject.store().idle().unwrap();
    }
    assert_eq!(contents(subject.store()).unwrap(), rows);
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(u8, Option<Vec<u8>>)>),
    Idle,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let data = prop_oneof![
        20 => proptest::collection::vec(any::<u8>(), 0..200),
        1 => proptest::collection::vec(any::<u8>(), 2_000..30_000),
    ];
    let number = prop_oneof![3 => 0..30_u8, 1 => 240..250_u8];
    let change = (number, proptest::option::weighted(0.7, data));
    prop_oneof![
        8 => proptest::collection::vec(change, 0..30).prop_map(Step::Commit),
        1 => Just(Step::Idle),
        1 => Just(Step::Reopen),
    ]
}

fn equals_the_model<S: Subject>(steps: Vec<Step>) {
    let mut subject = S::new();
    let mut rows = Rows::new();
    for step in steps {
        match step {
            Step::Commit(changes) => {
                let change = |(number, data): (u8, Option<Vec<u8>>)| {
                    data.map_or_else(|| delete(number), |data| put(number, &data))
                };
                let batch: Vec<_> = changes.into_iter().map(change).collect();
                subject.store().commit(&batch).unwrap();
                apply(&mut rows, &batch);
            }
            Step::Idle => subject.store().idle().unwrap(),
            Step::Reopen => {
                if subject.reopen() {
                    assert_eq!(contents(subject.store()).unwrap(), rows);
                }
            }
        }
    }
    assert_eq!(contents(subject.store()).unwrap(), rows);
    if subject.reopen() {
        assert_eq!(contents(subject.store()).unwrap(), rows);
    }
}
