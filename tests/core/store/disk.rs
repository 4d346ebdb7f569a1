//! A disk seen from below: `disk_shim.c` preloaded into a child, and what of its trace a power cut leaves.
//!
//! The model is harsher than most disks: what was written since the last sync of a file survives whole, in
//! part or not at all, in any order, and the last write may be torn anywhere; names survive in order, and
//! for certain only once their directory is synced.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use rand::{RngExt as _, rngs::StdRng};

/// `command` with the shim, watching `dir`.
pub(super) fn shimmed(mut command: Command, dir: &Path) -> Command {
    let library = {
        let _no_store = super::model::locks_are_inherited();
        super::shim::library()
    };
    command.env("LD_PRELOAD", library).env("SHIM_DIR", dir);
    command
}

/// One thing that happened to a file, or to the directory (whose name is empty).
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub(super) file: String,
    pub(super) kind: OpKind,
}

#[derive(Clone, Debug)]
pub(super) enum OpKind {
    Create,
    Write { at: usize, data: Vec<u8> },
    Truncate { to: usize },
    Sync,
    Rename { to: String },
    Unlink,
}

/// Reads what the shim recorded.
pub(super) fn trace(log: &Path) -> Vec<Op> {
    let bytes = fs::read(log).unwrap();
    let mut rest = &bytes[..];
    let mut take = |length: usize| {
        let (taken, left) = rest.split_at(length);
        rest = left;
        taken
    };
    let mut ops = Vec::new();
    let mut left = bytes.len();
    while left > 0 {
        let op = take(1)[0];
        let name = u16::from_le_bytes(take(2).try_into().unwrap()) as usize;
        let file = String::from_utf8(take(name).to_vec()).unwrap();
        let mut number = || u64::from_le_bytes(take(8).try_into().unwrap()) as usize;
        let (one, two) = (number(), number());
        left -= 1 + 2 + name + 16;
        let mut data = |length: usize| {
            left -= length;
            take(length).to_vec()
        };
        let kind = match op {
            b'C' => OpKind::Create,
            b'W' => OpKind::Write { at: one, data: data(two) },
            b'T' => OpKind::Truncate { to: one },
            b'S' => OpKind::Sync,
            b'R' => OpKind::Rename { to: String::from_utf8(data(one)).unwrap() },
            b'U' => OpKind::Unlink,
            other => panic!("no such record: {other}"),
        };
        ops.push(Op { file, kind });
    }
    ops
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    /// Writes and truncations since the last sync.
    pending: Vec<OpKind>,
}

/// A directory and its files, as far as the power cut is concerned.
#[derive(Debug, Default)]
pub(super) struct Disk {
    inodes: Vec<Inode>,
    /// As the process sees it.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// States of `names` since the directory was last synced.
    pending_names: Vec<BTreeMap<String, usize>>,
}

impl Disk {
    pub(super) fn apply(&mut self, op: &Op) {
        match &op.kind {
            OpKind::Create => {
                self.names.insert(op.file.clone(), self.inodes.len());
                self.inodes.push(Inode::default());
                self.pending_names.push(self.names.clone());
            }
            OpKind::Rename { to } => {
                if let Some(inode) = self.names.remove(&op.file) {
                    self.names.insert(to.clone(), inode);
                    self.pending_names.push(self.names.clone());
                }
            }
            OpKind::Unlink => {
                self.names.remove(&op.file);
                self.pending_names.push(self.names.clone());
            }
            OpKind::Sync if op.file.is_empty() => {
                self.durable_names = self.names.clone();
                self.pending_names.clear();
            }
            OpKind::Sync => {
                if let Some(inode) = self.inode(&op.file) {
                    for pending in std::mem::take(&mut inode.pending) {
                        write(&mut inode.durable, &pending);
                    }
                }
            }
            OpKind::Write { .. } | OpKind::Truncate { .. } => {
                if let Some(inode) = self.inode(&op.file) {
                    inode.pending.push(op.kind.clone());
                }
            }
        }
    }

    /// Writes into `dir` what is left when the power fails now.
    pub(super) fn cut(&self, rng: &mut StdRng, dir: &Path) {
        let kept = rng.random_range(0..=self.pending_names.len());
        let names = kept.checked_sub(1).map_or(&self.durable_names, |last| &self.pending_names[last]);
        for (name, inode) in names {
            fs::write(dir.join(name), self.inodes[*inode].cut(rng)).unwrap();
        }
    }

    /// A file renamed while it is open keeps being reported under the name it was opened with; all that
    /// happens to one here is a sync.
    fn inode(&mut self, file: &str) -> Option<&mut Inode> {
        self.names.get(file).map(|inode| &mut self.inodes[*inode])
    }
}

impl Inode {
    fn cut(&self, rng: &mut StdRng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        // Each with the same chance: nothing, all, everything up to some point, any of them.
        let (all_until, chance) = match rng.random_range(0..4) {
            0 => (0, 0.0),
            1 => (self.pending.len(), 0.0),
            2 => (rng.random_range(0..=self.pending.len()), 0.0),
            _ => (0, 0.5),
        };
        let survivors: Vec<&OpKind> = (0..)
            .zip(&self.pending)
            .filter(|(index, _)| *index < all_until || rng.random_bool(chance))
            .map(|(_, op)| op)
            .collect();
        for (index, op) in survivors.iter().enumerate() {
            match op {
                OpKind::Write { at, data } if index + 1 == survivors.len() && rng.random_bool(0.5) => {
                    // At the end of a sector, or where it hurts.
                    let torn = rng.random_range(0..=data.len());
                    let torn = if rng.random_bool(0.5) { torn / 512 * 512 } else { torn };
                    write(&mut bytes, &OpKind::Write { at: *at, data: data[..torn].to_vec() });
                }
                _ => write(&mut bytes, op),
            }
        }
        bytes
    }
}

fn write(bytes: &mut Vec<u8>, op: &OpKind) {
    match op {
        OpKind::Write { at, data } => {
            bytes.resize(bytes.len().max(at + data.len()), 0);
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
        OpKind::Truncate { to } => bytes.resize(*to, 0),
        _ => {}
    }
}
