//! Stores: one conformance suite for all of them, and what happens to the durable one when the disk, the
//! operator or the power fails.
//!
//! Faults that need a process of their own run in a child: this very binary, told by `child.rs` what to be.
//! Faults of the disk come from `disk_shim.c`, preloaded into it.

mod child;
mod conformance;
mod damage;
#[cfg(target_os = "linux")]
mod disk;
mod embedded;
mod formats;
#[cfg(target_os = "linux")]
mod full;
mod halves;
mod model;
#[cfg(target_os = "linux")]
mod power_cut;
mod refusals;
#[cfg(target_os = "linux")]
mod shim;
#[cfg(target_os = "linux")]
mod sync_error;
