//! `crewcall.head`: how far the store has come, told by a second witness.
//!
//! SQLite takes a log that ends early, or whose last transactions are damaged, for the trace of a crash and
//! opens what comes before. So the number of the last stored batch is also written here, after each batch,
//! and a store that holds fewer is refused. Two slots take turns, so that a torn write spoils one at most.
//! The file is only synced before a checkpoint and in quiet moments: it never runs ahead of the store, after
//! the death of the process it is exact, and after a power cut it may be behind.
//!
//! Its lock is the lock on the directory. It is never renamed or replaced while the store is open.
//!
//! ```text
//! offset 0, 4096:  "crewhead" · format u32 · store id [16] · batch u64 · CRC32C of these u32   (little-endian)
//! ```

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

pub(in crate::store) const FILE: &str = "crewcall.head";
/// A slot in each of two blocks of a disk.
const SLOTS: [u64; 2] = [0, 4096];
const SIZE: usize = 40;
const MAGIC: [u8; 8] = *b"crewhead";
const FORMAT: u32 = 1;

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Head {
    pub(in crate::store) store: [u8; 16],
    pub(in crate::store) batch: u64,
}

/// What was found when it was opened.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum Found {
    /// The store was never used: nothing was acknowledged from it.
    Nothing,
    Head(Head),
    /// Neither slot can be read.
    Damaged,
    Newer(u32),
}

/// The open file, locked for as long as this lives.
#[derive(Debug)]
pub(in crate::store) struct HeadFile {
    file: File,
    synced: bool,
}

impl HeadFile {
    /// None when another process has the lock.
    pub(in crate::store) fn lock(dir: &Path) -> io::Result<Option<Self>> {
        let file = super::open::private()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(FILE))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, synced: true })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    pub(in crate::store) fn read(&mut self) -> io::Result<Found> {
        self.file.rewind()?;
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Ok(Found::Nothing);
        }
        let slots: Vec<Slot> =
            SLOTS.iter().filter_map(|at| bytes.get(*at as usize..).and_then(Slot::decode)).collect();
        if let Some(newer) = slots.iter().map(|slot| slot.format).find(|format| *format > FORMAT) {
            return Ok(Found::Newer(newer));
        }
        Ok(match slots.into_iter().map(|slot| slot.head).max_by_key(|head| head.batch) {
            Some(head) => Found::Head(head),
            None => Found::Damaged,
        })
    }

    /// Both slots, and to the disk.
    pub(super) fn create(&mut self, head: Head) -> io::Result<()> {
        for at in SLOTS {
            self.put(at, head)?;
        }
        self.synced = false;
        self.sync()
    }

    /// One slot, to the operating system.
    pub(super) fn write(&mut self, head: Head) -> io::Result<()> {
        let [even, odd] = SLOTS;
        self.synced = false;
        self.put(if head.batch.is_multiple_of(2) { even } else { odd }, head)
    }

    /// To the disk, unless it is there.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if !self.synced {
            self.file.sync_data()?;
            self.synced = true;
        }
        Ok(())
    }

    fn put(&mut self, at: u64, head: Head) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(at))?;
        self.file.write_all(&Slot { format: FORMAT, head }.encode())
    }
}

struct Slot {
    format: u32,
    head: Head,
}

impl Slot {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SIZE);
        bytes.extend(MAGIC);
        bytes.extend(self.format.to_le_bytes());
        bytes.extend(self.head.store);
        bytes.extend(self.head.batch.to_le_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (bytes, crc) = bytes.get(..SIZE)?.split_last_chunk::<4>()?;
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (format, rest) = rest.split_first_chunk::<4>()?;
        let (store, rest) = rest.split_first_chunk::<16>()?;
        let batch = rest.first_chunk::<8>()?;
        let whole = *magic == MAGIC && crc32c::crc32c(bytes) == u32::from_le_bytes(*crc);
        whole.then(|| Self {
            format: u32::from_le_bytes(*format),
            head: Head { store: *store, batch: u64::from_le_bytes(*batch) },
        })
    }
}
