//! What lies in `crewcall.db`, and how it is read.
//!
//! ```text
//! rows   kind, id -> crc, data    the rows, keyed by `RowKey::parts`; in the row of a task also
//!        payload_crc, payload     its payload if it is small (rows.rs)
//! state  one row                  batch: how many were stored · store: the id of this store
//!                                 totals: for each kind, how many rows and the sum of their digests
//! ```
//!
//! `crc` is the CRC32C of kind, id and data: SQLite has no checksums of pages. The totals change with each
//! batch in the same transaction, so a row that damage hides (a wrong count of cells in a page is enough) is
//! missed even though every row still found is whole.
//!
//! # Changing the format
//! 1. Raise [`FORMAT`], which stands in `user_version`.
//! 2. Append to [`UPGRADES`] the function that takes a store from the format before; it runs in a transaction
//!    of its own when such a store is opened. Functions in the list are never changed again.
//! 3. Keep a data directory of the old format among the tests.
//!
//! Rows themselves are protobuf and change by adding fields: see `row.rs`.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use crate::row::RowKey;

pub(in crate::store) const FILE: &str = "crewcall.db";
/// "crew", so that `file` and SQLite's own tools see whose it is.
pub(in crate::store) const APPLICATION: u32 = 0x6372_6577;
pub(in crate::store) const FORMAT: u32 = 2;

/// From format `index + 1` to the next.
type Upgrade = fn(&Transaction<'_>) -> rusqlite::Result<()>;
const UPGRADES: &[Upgrade] = &[payloads_beside_tasks];
const _: () = assert!(UPGRADES.len() + 1 == FORMAT as usize);

/// Each statement stands in `sqlite_schema` as written here, which is compared when a store is opened.
pub(super) const SCHEMA: [&str; 2] = [
    "CREATE TABLE rows (kind INTEGER NOT NULL, id BLOB NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL, \
     payload_crc INTEGER, payload BLOB, PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID",
    "CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), batch INTEGER NOT NULL, \
     store BLOB NOT NULL, totals BLOB NOT NULL, crc INTEGER NOT NULL) STRICT",
];

/// Applies what lies between `found` and today's format.
pub(super) fn upgrade(connection: &mut Connection, found: u32) -> rusqlite::Result<()> {
    for (step, format) in UPGRADES.iter().zip(2_u32..).skip(found.saturating_sub(1) as usize) {
        let transaction = connection.transaction()?;
        step(&transaction)?;
        transaction.pragma_update(None, "user_version", format)?;
        transaction.commit()?;
        tracing::info!(format, "store upgraded");
    }
    Ok(())
}

/// Payloads of before stay where they are, in rows of their own.
fn payloads_beside_tasks(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "ALTER TABLE rows RENAME TO old_rows; \
         CREATE TABLE rows (kind INTEGER NOT NULL, id BLOB NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL, \
         payload_crc INTEGER, payload BLOB, PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID; \
         INSERT INTO rows (kind, id, crc, data) SELECT kind, id, crc, data FROM old_rows; \
         DROP TABLE old_rows",
    )
}

/// The checksum of a row.
pub(in crate::store) fn row_crc(kind: u8, id: &[u8; 16], data: &[u8]) -> u32 {
    let mut key = [kind; 17];
    if let Some(rest) = key.last_chunk_mut() {
        *rest = *id;
    }
    crc32c::crc32c_append(crc32c::crc32c(&key), data)
}

/// The row of `state`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct State {
    pub(in crate::store) batch: u64,
    pub(in crate::store) store: [u8; 16],
    pub(in crate::store) totals: Totals,
}

/// For each kind that ever had rows, in order of kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Totals(Vec<Total>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Total {
    pub(in crate::store) kind: u8,
    pub(in crate::store) rows: u64,
    /// Sum over the rows: in any order the same, and each row can be taken out again.
    pub(in crate::store) digest: u64,
}

impl Totals {
    pub(in crate::store) fn add(&mut self, kind: u8, crc: u32) {
        let total = self.of(kind);
        total.rows = total.rows.wrapping_add(1);
        total.digest = total.digest.wrapping_add(spread(crc));
    }

    pub(in crate::store) fn remove(&mut self, kind: u8, crc: u32) {
        let total = self.of(kind);
        total.rows = total.rows.wrapping_sub(1);
        total.digest = total.digest.wrapping_sub(spread(crc));
    }

    pub(in crate::store) fn all(&self) -> impl Iterator<Item = Total> + '_ {
        self.0.iter().copied()
    }

    pub(in crate::store) fn get(&self, kind: u8) -> Total {
        self.all().find(|total| total.kind == kind).unwrap_or(Total { kind, ..Total::default() })
    }

    fn of(&mut self, kind: u8) -> &mut Total {
        let at = match self.0.binary_search_by_key(&kind, |total| total.kind) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, Total { kind, ..Total::default() });
                at
            }
        };
        #[allow(clippy::indexing_slicing, reason = "the index was found or made above")]
        &mut self.0[at]
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for total in &self.0 {
            bytes.push(total.kind);
            bytes.extend(total.rows.to_le_bytes());
            bytes.extend(total.digest.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (totals, []) = bytes.as_chunks::<17>() else { return None };
        let total = |bytes: &[u8; 17]| {
            let (kind, rest) = bytes.split_first()?;
            let (rows, digest) = rest.split_first_chunk::<8>()?;
            let digest = digest.first_chunk::<8>()?;
            Some(Total { kind: *kind, rows: u64::from_le_bytes(*rows), digest: u64::from_le_bytes(*digest) })
        };
        totals.iter().map(total).collect::<Option<_>>().map(Self)
    }
}

/// SplitMix64's finish: sums of checksums that differ in few bits differ in many.
const fn spread(crc: u32) -> u64 {
    let x = (crc as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl State {
    pub(super) fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        let totals = self.totals.encode();
        let crc = self.crc(&totals);
        connection
            .prepare_cached("REPLACE INTO state (one, batch, store, totals, crc) VALUES (1, ?1, ?2, ?3, ?4)")?
            .execute(params![self.batch as i64, self.store, totals, crc])?;
        Ok(())
    }

    /// None when there is no such row, or it is not as it was written.
    pub(in crate::store) fn read(connection: &Connection) -> rusqlite::Result<Option<Self>> {
        let row = connection
            .query_row("SELECT batch, store, totals, crc FROM state WHERE one = 1", [], |row| {
                let batch: i64 = row.get(0)?;
                let store: Vec<u8> = row.get(1)?;
                let totals: Vec<u8> = row.get(2)?;
                let crc: u32 = row.get(3)?;
                Ok((batch as u64, store, totals, crc))
            })
            .optional()?;
        Ok(row.and_then(|(batch, store, bytes, crc)| {
            let store = store.try_into().ok()?;
            let state = Self { batch, store, totals: Totals::decode(&bytes)? };
            (state.crc(&bytes) == crc).then_some(state)
        }))
    }

    fn crc(&self, totals: &[u8]) -> u32 {
        let crc = crc32c::crc32c(&self.batch.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(crc, &self.store), totals)
    }
}

/// A row as found.
pub(in crate::store) struct Stored {
    pub(in crate::store) kind: u8,
    pub(in crate::store) key: RowKey,
    pub(in crate::store) crc: u32,
    pub(in crate::store) data: bytes::Bytes,
}

/// Reads `kind, id, crc, data` of a row and verifies it. The inner error says what is wrong with the row.
pub(in crate::store) fn stored(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<Stored, BadRow>> {
    verify(number(row, 0)?, bytes(row, 1)?, number(row, 2)?, bytes(row, 3)?)
}

/// Reads `kind, id, crc, data, payload_crc, payload`: the payload, if there is one in the row.
pub(in crate::store) fn beside(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Result<Stored, BadRow>>> {
    if row.get_ref(4)? == ValueRef::Null && row.get_ref(5)? == ValueRef::Null {
        return Ok(None);
    }
    let kind = i64::from(RowKey::READ_WHEN_WANTED);
    verify(kind, bytes(row, 1)?, number(row, 4)?, bytes(row, 5)?).map(Some)
}

/// Reads `kind, id`; none if they are no key.
pub(in crate::store) fn key(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<(u8, [u8; 16])>> {
    let (kind, id) = (u8::try_from(number(row, 0)?), <[u8; 16]>::try_from(bytes(row, 1)?));
    Ok(kind.ok().zip(id.ok()))
}

fn number(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<i64> {
    row.get_ref(column).map(|value| value.as_i64().unwrap_or(-1))
}

fn bytes<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    row.get_ref(column).map(|value| value.as_bytes().unwrap_or_default())
}

fn verify(kind: i64, id: &[u8], crc: i64, data: &[u8]) -> rusqlite::Result<Result<Stored, BadRow>> {
    let bad = |problem| Ok(Err(BadRow { kind, id: id.to_vec(), problem }));
    let (Ok(kind), Ok(id), Ok(crc)) = (u8::try_from(kind), <&[u8; 16]>::try_from(id), u32::try_from(crc))
    else {
        return bad("its key or checksum has no such form");
    };
    if row_crc(kind, id, data) != crc {
        return bad("its checksum does not match");
    }
    match RowKey::from_parts(kind, *id) {
        Some(key) => Ok(Ok(Stored { kind, key, crc, data: bytes::Bytes::copy_from_slice(data) })),
        None => bad("its kind is unknown to this crewcall"),
    }
}

/// A row that is not as it was written.
#[derive(Debug)]
pub(in crate::store) struct BadRow {
    kind: i64,
    id: Vec<u8>,
    pub(in crate::store) problem: &'static str,
}

impl std::fmt::Display for BadRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{FILE}, row {} ", self.kind)?;
        self.id.iter().take(16).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
