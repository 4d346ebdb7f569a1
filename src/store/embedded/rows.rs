//! How rows lie in their table, and how a batch changes them.
//!
//! A payload of up to [`BESIDE`] bytes lies in the row of its task, in two columns of its own: a durable task is then
//! one search in the tree instead of two. Any other payload, and one whose task is not there, is a row **apart**.
//! No payload is ever in both places. Whoever uses the store sees none of this: a payload has its own key, its own
//! checksum and its own place in the totals, wherever it lies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::functions::FunctionFlags;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};

use super::format::{self, BadRow, Stored, Totals};
use crate::row::{RowChange, RowKey};
use crate::task::TaskId;

/// Bytes of a payload's row that lies in the row of its task. A start reads past it, and every change of the task
/// writes it again, so it is small; no overflow page is ever rewritten for a change of state.
const BESIDE: usize = 512;

const TASK: u8 = 1;
const PAYLOAD: u8 = RowKey::READ_WHEN_WANTED;

/// What is known of the table beside what is in it.
#[derive(Debug)]
pub(super) struct Table {
    replaced: Replaced,
    /// No payload with a greater id lies apart: ids grow with time, so nobody looks there for that of a new task.
    newest_apart: Option<TaskId>,
}

impl Table {
    pub(super) fn new(connection: &Connection) -> rusqlite::Result<Self> {
        let newest = "SELECT id FROM rows WHERE kind = ?1 ORDER BY id DESC LIMIT 1";
        let newest = connection.query_row(newest, [PAYLOAD], |row| row.get::<_, Vec<u8>>(0)).optional()?;
        let newest_apart = newest.map(|id| {
            // Another length is damage, found when the row is read.
            let id = <[u8; 16]>::try_from(id).unwrap_or([u8::MAX; 16]);
            TaskId(uuid::Uuid::from_bytes(id))
        });
        Ok(Self { replaced: Replaced::note(connection)?, newest_apart })
    }

    /// Applies `batch`, which is [settled](RowChange::settle).
    pub(super) fn apply(
        &mut self,
        connection: &Connection,
        batch: &[RowChange],
        totals: &mut Totals,
    ) -> rusqlite::Result<()> {
        // Of a put that had no room.
        self.replaced.take();
        let mut change = Change { table: self, totals, statements: Statements::prepare(connection)? };
        let (deletes, puts) = batch.split_at(batch.partition_point(|it| matches!(it, RowChange::Delete(_))));
        let is_payload = |it: &RowChange| matches!(it.key(), RowKey::Payload(_));

        let (deletes, payloads) = deletes.split_at(deletes.partition_point(|it| !is_payload(it)));
        let mut payloads = payloads.iter().filter_map(|it| payload_of(it.key())).peekable();
        for delete in deletes {
            let RowKey::Task(id) = delete.key() else {
                change.delete(delete.key())?;
                continue;
            };
            while let Some(lone) = payloads.next_if(|other| *other < id) {
                change.delete_payload(lone)?;
            }
            let with_payload = payloads.next_if_eq(&id).is_some();
            change.delete_task(id, with_payload)?;
        }
        payloads.try_for_each(|lone| change.delete_payload(lone))?;

        let (puts, payloads) = puts.split_at(puts.partition_point(|it| !is_payload(it)));
        let mut payloads = payloads
            .iter()
            .filter_map(|it| match it {
                RowChange::Put(RowKey::Payload(id), data) => Some((*id, &data[..])),
                _ => None,
            })
            .peekable();
        for put in puts {
            let RowChange::Put(key, data) = put else { continue };
            let RowKey::Task(id) = *key else {
                change.put(*key, data)?;
                continue;
            };
            while let Some((lone, payload)) = payloads.next_if(|(other, _)| *other < id) {
                change.put_payload(lone, payload)?;
            }
            match payloads.next_if(|(other, _)| *other == id) {
                None => {
                    change.put(*key, data)?;
                }
                Some((_, payload)) if payload.len() <= BESIDE => change.put_both(id, data, payload)?,
                Some((_, payload)) => match change.put(*key, data)? {
                    New => change.put_apart(id, payload)?,
                    Known => change.put_payload(id, payload)?,
                },
            }
        }
        payloads.try_for_each(|(lone, payload)| change.put_payload(lone, payload))
    }
}

const fn payload_of(key: RowKey) -> Option<TaskId> {
    if let RowKey::Payload(id) = key { Some(id) } else { None }
}

// One changed bit makes a column NULL: a payload is there as long as one of its two columns says so, and if only one
// does, it is damaged.

/// The row stored under `key`. The inner error says what is wrong with it.
pub(super) fn read(connection: &Connection, key: RowKey) -> rusqlite::Result<Option<Result<Stored, BadRow>>> {
    if let RowKey::Payload(id) = key {
        let beside = "SELECT 128, id, payload_crc, payload FROM rows \
                      WHERE kind = 1 AND id = ?1 AND (payload_crc IS NOT NULL OR payload IS NOT NULL)";
        let found =
            connection.prepare_cached(beside)?.query_row([id.0.as_bytes()], format::stored).optional()?;
        if found.is_some() {
            return Ok(found);
        }
    }
    connection
        .prepare_cached("SELECT kind, id, crc, data FROM rows WHERE kind = ?1 AND id = ?2")?
        .query_row(key.parts(), format::stored)
        .optional()
}

/// Up to `most` rows that follow `after`, in order.
pub(super) fn scan(
    connection: &Connection,
    after: Option<RowKey>,
    most: usize,
) -> rusqlite::Result<Vec<Result<Stored, BadRow>>> {
    // An empty id comes before every other of its kind.
    let (kind, id) = after.map_or((0, Vec::new()), |key| (key.parts().0, key.parts().1.to_vec()));
    let limit = |most: usize| i64::try_from(most).unwrap_or(i64::MAX);
    let mut rows = Vec::new();
    if kind < PAYLOAD {
        let mut statement = connection.prepare_cached(
            "SELECT kind, id, crc, data FROM rows WHERE (kind, id) > (?1, ?2) AND kind < 128 \
             ORDER BY kind, id LIMIT ?3",
        )?;
        for row in statement.query_map(params![kind, id, limit(most)], format::stored)? {
            rows.push(row?);
        }
    }
    let id = if kind < PAYLOAD { Vec::new() } else { id };
    let mut statement = connection.prepare_cached(
        "SELECT 128, id, payload_crc, payload FROM rows \
         WHERE kind = 1 AND id > ?1 AND (payload_crc IS NOT NULL OR payload IS NOT NULL) \
         UNION ALL SELECT kind, id, crc, data FROM rows WHERE kind = 128 AND id > ?1 ORDER BY 2 LIMIT ?2",
    )?;
    for row in statement.query_map(params![id, limit(most - rows.len())], format::stored)? {
        rows.push(row?);
    }
    Ok(rows)
}

/// Whether a row was there before it was put.
enum Before {
    New,
    Known,
}
use Before::{Known, New};

/// A batch on its way into the table.
struct Change<'a> {
    table: &'a mut Table,
    totals: &'a mut Totals,
    statements: Statements<'a>,
}

struct Statements<'a> {
    put: CachedStatement<'a>,
    put_both: CachedStatement<'a>,
    delete: CachedStatement<'a>,
    delete_task: CachedStatement<'a>,
    /// The checksum of the payload beside a task.
    beside: CachedStatement<'a>,
    put_beside: CachedStatement<'a>,
    move_apart: CachedStatement<'a>,
}

impl<'a> Statements<'a> {
    fn prepare(connection: &'a Connection) -> rusqlite::Result<Self> {
        let prepare = |text| connection.prepare_cached(text);
        Ok(Self {
            // One search in the tree for each put, whether or not the row is there.
            put: prepare(
                "INSERT INTO rows (kind, id, crc, data) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (kind, id) \
                 DO UPDATE SET crc = replacing(crc, payload_crc, excluded.crc), data = excluded.data",
            )?,
            put_both: prepare(
                "INSERT INTO rows (kind, id, crc, data, payload_crc, payload) VALUES (1, ?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (kind, id) DO UPDATE SET crc = replacing(crc, payload_crc, excluded.crc), \
                 data = excluded.data, payload_crc = excluded.payload_crc, payload = excluded.payload",
            )?,
            delete: prepare("DELETE FROM rows WHERE kind = ?1 AND id = ?2 RETURNING crc")?,
            delete_task: prepare("DELETE FROM rows WHERE kind = 1 AND id = ?1 RETURNING crc, payload_crc")?,
            beside: prepare("SELECT payload_crc FROM rows WHERE kind = 1 AND id = ?1")?,
            put_beside: prepare("UPDATE rows SET payload_crc = ?2, payload = ?3 WHERE kind = 1 AND id = ?1")?,
            move_apart: prepare(
                "INSERT INTO rows (kind, id, crc, data) SELECT 128, id, payload_crc, payload FROM rows \
                 WHERE kind = 1 AND id = ?1 AND payload_crc IS NOT NULL",
            )?,
        })
    }
}

impl Change<'_> {
    fn put(&mut self, key: RowKey, data: &[u8]) -> rusqlite::Result<Before> {
        let (kind, id) = key.parts();
        let crc = format::row_crc(kind, &id, data);
        self.statements.put.execute(params![kind, id, crc, data])?;
        self.totals.add(kind, crc);
        let Some((replaced, _)) = self.table.replaced.take() else { return Ok(New) };
        self.totals.remove(kind, replaced);
        Ok(Known)
    }

    /// A task and its payload, which lies beside it.
    fn put_both(&mut self, id: TaskId, data: &[u8], payload: &[u8]) -> rusqlite::Result<()> {
        let bytes = id.0.as_bytes();
        let (crc, payload_crc) =
            (format::row_crc(TASK, bytes, data), format::row_crc(PAYLOAD, bytes, payload));
        self.statements.put_both.execute(params![bytes, crc, data, payload_crc, payload])?;
        self.totals.add(TASK, crc);
        self.totals.add(PAYLOAD, payload_crc);
        let replaced = self.table.replaced.take();
        if let Some((crc, _)) = replaced {
            self.totals.remove(TASK, crc);
        }
        match replaced {
            Some((_, Some(payload_crc))) => self.totals.remove(PAYLOAD, payload_crc),
            _ => self.delete_apart(id)?,
        }
        Ok(())
    }

    /// Beside its task if it is small and the task is there.
    fn put_payload(&mut self, id: TaskId, payload: &[u8]) -> rusqlite::Result<()> {
        let small = payload.len() <= BESIDE;
        match self.beside(id)? {
            Some(before) if small => {
                let crc = format::row_crc(PAYLOAD, id.0.as_bytes(), payload);
                self.statements.put_beside.execute(params![id.0.as_bytes(), crc, payload])?;
                self.totals.add(PAYLOAD, crc);
                match before {
                    Some(replaced) => self.totals.remove(PAYLOAD, replaced),
                    None => self.delete_apart(id)?,
                }
                Ok(())
            }
            Some(Some(replaced)) => {
                self.clear_beside(id, replaced)?;
                self.put_apart(id, payload)
            }
            _ => self.put_apart(id, payload),
        }
    }

    fn put_apart(&mut self, id: TaskId, payload: &[u8]) -> rusqlite::Result<()> {
        self.table.newest_apart = self.table.newest_apart.max(Some(id));
        self.put(RowKey::Payload(id), payload).map(drop)
    }

    fn delete(&mut self, key: RowKey) -> rusqlite::Result<()> {
        let (kind, id) = key.parts();
        let crc = self.statements.delete.query_row(params![kind, id], |row| row.get(0)).optional()?;
        if let Some(crc) = crc {
            self.totals.remove(kind, crc);
        }
        Ok(())
    }

    fn delete_task(&mut self, id: TaskId, with_payload: bool) -> rusqlite::Result<()> {
        let bytes = id.0.as_bytes();
        if !with_payload && self.statements.move_apart.execute([bytes])? > 0 {
            self.table.newest_apart = self.table.newest_apart.max(Some(id));
        }
        let gone = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let gone = self.statements.delete_task.query_row([bytes], gone).optional()?;
        if let Some((crc, _)) = gone {
            self.totals.remove(TASK, crc);
        }
        match gone {
            _ if !with_payload => {}
            Some((_, Some(payload_crc))) => self.totals.remove(PAYLOAD, payload_crc),
            _ => self.delete_apart(id)?,
        }
        Ok(())
    }

    /// Without its task.
    fn delete_payload(&mut self, id: TaskId) -> rusqlite::Result<()> {
        match self.beside(id)? {
            Some(Some(crc)) => self.clear_beside(id, crc),
            _ => self.delete_apart(id),
        }
    }

    fn delete_apart(&mut self, id: TaskId) -> rusqlite::Result<()> {
        if Some(id) > self.table.newest_apart { Ok(()) } else { self.delete(RowKey::Payload(id)) }
    }

    /// None when there is no such task; inside, the checksum of the payload beside it, if there is one.
    fn beside(&mut self, id: TaskId) -> rusqlite::Result<Option<Option<u32>>> {
        self.statements.beside.query_row([id.0.as_bytes()], |row| row.get(0)).optional()
    }

    fn clear_beside(&mut self, id: TaskId, crc: u32) -> rusqlite::Result<()> {
        let nothing = rusqlite::types::Null;
        self.statements.put_beside.execute(params![id.0.as_bytes(), nothing, nothing])?;
        self.totals.remove(PAYLOAD, crc);
        Ok(())
    }
}

/// The checksums in the row that the last put took the place of: the totals lose what is no longer there.
#[derive(Debug)]
struct Replaced(Arc<[AtomicU64; 2]>);

impl Replaced {
    const NONE: u64 = u64::MAX;

    /// Gives `connection` the function `replacing(crc, payload_crc, new)`, which notes the first two and is `new`.
    fn note(connection: &Connection) -> rusqlite::Result<Self> {
        let noted = Arc::new([const { AtomicU64::new(Self::NONE) }; 2]);
        let note = Arc::clone(&noted);
        connection.create_scalar_function(
            "replacing",
            3,
            FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY,
            move |arguments| {
                let [crc, payload_crc] = &*note;
                crc.store(arguments.get::<u32>(0)?.into(), Ordering::Relaxed);
                let payload = arguments.get::<Option<u32>>(1)?.map_or(Self::NONE, u64::from);
                payload_crc.store(payload, Ordering::Relaxed);
                arguments.get::<u32>(2)
            },
        )?;
        Ok(Self(noted))
    }

    fn take(&self) -> Option<(u32, Option<u32>)> {
        let [crc, payload_crc] = &*self.0;
        let crc = u32::try_from(crc.swap(Self::NONE, Ordering::Relaxed)).ok()?;
        Some((crc, u32::try_from(payload_crc.load(Ordering::Relaxed)).ok()))
    }
}
