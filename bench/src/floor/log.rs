//! One file and one thread that writes whatever queued up, syncs it, and then lets go of what waited for it.
//! Nothing is ever read back or compacted: this is the price of the disk alone.

use std::fs::File;
use std::io::{self, Write as _};
use std::mem;
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};

/// What is to be written, and what waits for it (`D`). The thread ends with it.
#[derive(Debug)]
pub(super) struct Log<D> {
    shared: Arc<Shared<D>>,
}

#[derive(Debug)]
struct Shared<D> {
    group: Mutex<Group<D>>,
    gathered: Condvar,
}

#[derive(Debug)]
struct Group<D> {
    bytes: Vec<u8>,
    waiting: Vec<D>,
    ended: bool,
}

impl<D: Send + 'static> Log<D> {
    /// Appends to the file at `path`. `deliver` is given all that waited for a group, once the group is on the
    /// disk.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub(super) fn open(path: &Path, deliver: impl FnMut(&mut Vec<D>) + Send + 'static) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let group = Group { bytes: Vec::new(), waiting: Vec::new(), ended: false };
        let shared = Arc::new(Shared { group: Mutex::new(group), gathered: Condvar::new() });
        let reader = Arc::clone(&shared);
        thread::Builder::new().name("floor-log".into()).spawn(move || {
            if let Err(error) = write_groups(&reader, file, deliver) {
                // Nobody may be told that his record is safe, and a floor that waits for ever measures nothing.
                eprintln!("error: the log of the floor cannot be written: {error}");
                process::exit(1);
            }
        })?;
        Ok(Self { shared })
    }

    /// Adds records, and what waits for them, to the next group.
    pub(super) fn append(&self, add: impl FnOnce(&mut Vec<u8>, &mut Vec<D>)) {
        let mut group = self.shared.group.lock();
        let now = &mut *group;
        add(&mut now.bytes, &mut now.waiting);
        drop(group);
        self.shared.gathered.notify_one();
    }
}

impl<D> Drop for Log<D> {
    fn drop(&mut self) {
        self.shared.group.lock().ended = true;
        self.shared.gathered.notify_one();
    }
}

fn write_groups<D>(
    shared: &Shared<D>,
    mut file: File,
    mut deliver: impl FnMut(&mut Vec<D>),
) -> io::Result<()> {
    let (mut bytes, mut waiting) = (Vec::new(), Vec::new());
    loop {
        {
            let mut group = shared.group.lock();
            while group.bytes.is_empty() {
                if group.ended {
                    return Ok(());
                }
                shared.gathered.wait(&mut group);
            }
            mem::swap(&mut group.bytes, &mut bytes);
            mem::swap(&mut group.waiting, &mut waiting);
        }
        file.write_all(&bytes)?;
        file.sync_data()?;
        bytes.clear();
        deliver(&mut waiting);
        waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_waits_is_let_go_in_order_once_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (sender, receiver) = mpsc::channel();
        let at = path.clone();
        let log = Log::open(&path, move |waiting: &mut Vec<u8>| {
            let written = std::fs::read(&at).unwrap();
            waiting.drain(..).for_each(|record| sender.send((record, written.contains(&record))).unwrap());
        })
        .unwrap();
        for record in 0..100 {
            log.append(|bytes, waiting| {
                bytes.push(record);
                waiting.push(record);
            });
        }
        drop(log);
        let released: Vec<_> = receiver.iter().collect();
        assert_eq!(released, (0..100).map(|record| (record, true)).collect::<Vec<_>>());
    }
}
