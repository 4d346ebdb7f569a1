//! SQLite's write-ahead log, read before SQLite reads it.
//!
//! SQLite recovers the log up to the first frame that does not check and forgets the rest, whatever the
//! reason. A crash can spoil only the last transaction: each one was synced before the next began. So when
//! frames of the same generation follow a whole transaction behind the first bad frame, what is spoiled had
//! been acknowledged, and the store is refused instead of opened shorter.
//!
//! The format is <https://sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

pub(in crate::store) const FILE: &str = "crewcall.db-wal";
pub(super) const HEADER: u64 = 32;
pub(super) const FRAME_HEADER: u64 = 24;

/// What the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct LogState {
    /// Frames up to the first bad one.
    pub(in crate::store) good: u64,
    /// Whole transactions that begin at or behind the first bad frame and were acknowledged, at least. They
    /// are lost if the log is used as it is.
    pub(in crate::store) acknowledged_beyond: u64,
}

/// Reads the log in `dir`. None when there is no such file.
pub(in crate::store) fn inspect(dir: &Path) -> io::Result<Option<LogState>> {
    let file = match File::open(dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    scan(BufReader::with_capacity(1 << 16, file)).map(Some)
}

fn scan(mut log: impl Read) -> io::Result<LogState> {
    let mut header = [0; HEADER as usize];
    if !fill(&mut log, &mut header)? {
        return Ok(LogState::default());
    }
    let [magic, _version, page_size, _sequence, salt_1, salt_2, sum_1, sum_2] = words(&header);
    let big_endian = match magic {
        0x377f_0682 => false,
        0x377f_0683 => true,
        // Not a log, or its beginning is damaged: SQLite ignores it as a whole, and `head.rs` tells whether
        // that loses anything.
        _ => return Ok(LogState::default()),
    };
    let (mut sum, sane) = (Sum { one: 0, two: 0, big_endian }, (512..=65_536).contains(&page_size));
    sum.add(header.first_chunk::<24>().map_or(&[][..], |bytes| bytes));
    if !sane || (sum.one, sum.two) != (sum_1, sum_2) {
        return Ok(LogState::default());
    }

    let mut state = LogState::default();
    let mut bad = false;
    // Behind the first bad frame: whole transactions, and whether the next frame proves them synced.
    let mut ended = 0;
    let mut frame = [0; FRAME_HEADER as usize];
    let mut page = vec![0; page_size as usize];
    while fill(&mut log, &mut frame)? && fill(&mut log, &mut page)? {
        let [page_number, commit, frame_salt_1, frame_salt_2, sum_1, sum_2] = words(&frame);
        let ours = (frame_salt_1, frame_salt_2) == (salt_1, salt_2);
        if !bad {
            sum.add(frame.first_chunk::<8>().map_or(&[][..], |bytes| bytes));
            sum.add(&page);
            bad = !ours || page_number == 0 || (sum.one, sum.two) != (sum_1, sum_2);
            state.good += u64::from(!bad);
        }
        if bad && ours {
            state.acknowledged_beyond = ended;
            ended += u64::from(commit != 0);
        }
    }
    Ok(state)
}

/// False at the end of the log.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    words
}

/// SQLite's running checksum.
struct Sum {
    one: u32,
    two: u32,
    big_endian: bool,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let (mut one, mut two) = (self.one, self.two);
        for [a, b, c, d, e, f, g, h] in bytes.as_chunks::<8>().0.iter().copied() {
            let (left, right) = if self.big_endian {
                (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
            } else {
                (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
            };
            one = one.wrapping_add(left).wrapping_add(two);
            two = two.wrapping_add(right).wrapping_add(one);
        }
        (self.one, self.two) = (one, two);
    }
}
