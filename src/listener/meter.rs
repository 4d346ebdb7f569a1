//! Counts what an HTTP/2 peer spends on frames that carry no work, and says when it is a flood.
//!
//! The h2 library bounds rapid resets, CONTINUATION frames and empty DATA frames, but answers PING and
//! SETTINGS at line rate for as long as they come, and reads frames of unknown types for ever. The idea of
//! weighing overhead against useful bytes, both ways, is nginx's (its "http2 flood detected").

use std::time::{Duration, Instant};

/// Bytes of overhead that a peer may send ahead of useful traffic: about 3,000 PINGs.
const ALLOWANCE: i64 = 256 * 1024;
/// A peer that needs longer than this to use up the allowance is idle with keepalive, not flooding.
const REFILL_EVERY: Duration = Duration::from_secs(10);
/// Bytes of overhead earned per useful byte. Clients that probe the path's bandwidth send a PING for each
/// DATA frame they receive (grpc-go, several thousand a second on loopback); the smallest gRPC message
/// must pay for it.
const EARNED_PER_BYTE: i64 = 4;

const FRAME_HEADER: usize = 9;
const PING_FRAME: i64 = 17;
const SETTINGS_ACK: i64 = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const ACK: u8 = 0x1;

/// Follows the frames of one connection, starting right after the client's preface.
#[derive(Debug)]
pub(super) struct FrameMeter {
    /// The frame header being read, when it is spread over several reads.
    header: [u8; FRAME_HEADER],
    filled: usize,
    /// Bytes of the current frame's payload still to come.
    payload: usize,
    /// Overhead that the peer may still send. Never above [`ALLOWANCE`].
    credit: i64,
    refilled: Instant,
}

/// The peer sent far more overhead than work.
#[derive(Debug, thiserror::Error)]
#[error(
    "HTTP/2 flood: more than {} KiB of PING, SETTINGS and other frames without work within {} s",
    ALLOWANCE / 1024,
    REFILL_EVERY.as_secs()
)]
pub(super) struct Flood;

impl FrameMeter {
    pub(super) fn new() -> Self {
        Self { header: [0; FRAME_HEADER], filled: 0, payload: 0, credit: ALLOWANCE, refilled: Instant::now() }
    }

    /// Bytes came from the peer.
    pub(super) fn received(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len());
                self.payload -= skipped;
                bytes = bytes.get(skipped..).unwrap_or_default();
            } else if self.filled == 0
                && let Some((header, rest)) = bytes.split_first_chunk()
            {
                bytes = rest;
                self.frame(*header)?;
            } else if let Some((byte, rest)) = bytes.split_first() {
                bytes = rest;
                if let Some(slot) = self.header.get_mut(self.filled) {
                    *slot = *byte;
                }
                self.filled += 1;
                if self.filled == FRAME_HEADER {
                    self.filled = 0;
                    self.frame(self.header)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes were written to the peer.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.earn(bytes);
    }

    fn frame(&mut self, [l0, l1, l2, kind, flags, ..]: [u8; FRAME_HEADER]) -> Result<(), Flood> {
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        self.payload = length as usize;
        let size = i64::from(length) + FRAME_HEADER as i64;
        let is_request = flags & ACK == 0;
        match kind {
            DATA | HEADERS if length > 0 => {
                self.earn(length as usize);
                Ok(())
            }
            // What the answer will earn when it is written is taken back here.
            PING if is_request => self.spend(size + EARNED_PER_BYTE * PING_FRAME),
            SETTINGS if is_request => self.spend(size + EARNED_PER_BYTE * SETTINGS_ACK),
            _ => self.spend(size),
        }
    }

    fn earn(&mut self, bytes: usize) {
        let earned = i64::try_from(bytes).unwrap_or(ALLOWANCE).saturating_mul(EARNED_PER_BYTE);
        self.credit = self.credit.saturating_add(earned).min(ALLOWANCE);
    }

    fn spend(&mut self, bytes: i64) -> Result<(), Flood> {
        self.credit -= bytes;
        if self.credit >= 0 {
            return Ok(());
        }
        // The clock is read only here, so honest traffic never pays for it.
        if self.refilled.elapsed() < REFILL_EVERY {
            return Err(Flood);
        }
        self.refilled = Instant::now();
        self.credit = ALLOWANCE;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.extend_from_slice(payload);
        bytes
    }

    fn frames_until_flood(meter: &mut FrameMeter, bytes: &[u8], answer: usize) -> Option<usize> {
        (0..100_000).find(|_| {
            let flood = meter.received(bytes).is_err();
            meter.sent(answer);
            flood
        })
    }

    #[test]
    fn ping_settings_and_unknown_frames_alone_are_a_flood() {
        for (name, bytes, answer) in [
            ("PING", frame(PING, 0, &[0; 8]), 17),
            ("PING that answers nothing", frame(PING, ACK, &[0; 8]), 0),
            ("SETTINGS", frame(SETTINGS, 0, &[]), 9),
            ("SETTINGS with values", frame(SETTINGS, 0, &[0; 36]), 9),
            ("PRIORITY", frame(0x2, 0, &[0; 5]), 0),
            ("unknown type", frame(0xee, 0, &[0; 64]), 0),
            ("empty DATA", frame(DATA, 0, &[]), 0),
        ] {
            let count = frames_until_flood(&mut FrameMeter::new(), &bytes, answer);
            assert!(count.is_some_and(|n| n > 1_000), "{name}: closed after {count:?} frames");
        }
    }

    #[test]
    fn work_pays_for_bandwidth_probes() {
        // A PING for every received message of 20 bytes (5 of them the gRPC prefix), both ways.
        let ping = frame(PING, 0, &[0; 8]);
        let answer_and_message = 17 + FRAME_HEADER + 20;
        assert_eq!(frames_until_flood(&mut FrameMeter::new(), &ping, answer_and_message), None);

        let mut request_and_ping = frame(DATA, 0, &[0; 25]);
        request_and_ping.extend(ping);
        assert_eq!(frames_until_flood(&mut FrameMeter::new(), &request_and_ping, 17), None);
    }

    #[test]
    fn payload_is_never_taken_for_frames() {
        // 1 MiB of payload that looks like PING frames.
        let mut bytes = Vec::new();
        for _ in 0..1024 {
            bytes.extend(frame(DATA, 0, &frame(PING, 0, &[0; 8]).repeat(60)));
        }
        let mut meter = FrameMeter::new();
        meter.received(&bytes).unwrap();
        assert_eq!(meter.credit, ALLOWANCE);
    }

    #[test]
    fn the_cut_of_the_reads_does_not_matter() {
        let mut bytes = frame(SETTINGS, 0, &[1; 12]);
        bytes.extend(frame(HEADERS, 4, &[7; 40]));
        bytes.extend(frame(PING, 0, &[9; 8]));
        bytes.extend(frame(0x8, 0, &[0; 4]));
        let mut whole = FrameMeter::new();
        whole.received(&bytes).unwrap();
        for size in 1..bytes.len() {
            let mut pieces = FrameMeter::new();
            for piece in bytes.chunks(size) {
                pieces.received(piece).unwrap();
            }
            assert_eq!((pieces.credit, pieces.payload, pieces.filled), (whole.credit, 0, 0), "size {size}");
        }
    }
}
