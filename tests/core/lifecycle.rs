//! Every rule of the scheduler as a table: what happens, line by line, and what it brings about.
//!
//! Tasks are `t1`, `t2`…, in the order in which they are made; leases are numbers from 1. A `~` before an
//! effect says that it waits for the store.

mod answered;
mod bench;
mod calls;
mod choice;
mod chunks;
mod dead_letters;
mod deadlines;
mod drains;
mod idempotency;
mod leases;
mod limits;
mod pauses;
mod payloads;
mod restore;
mod retention;
mod retries;
mod sessions;
mod stopping;
mod views;
mod watches;
