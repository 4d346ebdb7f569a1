//! The outbox as its several users share it: handlers, the session's reader, its writer and its ticker.
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::context::HandlerError;
use super::outbox::{End, Outbox};
use crate::proto::{Chunk, Payload, Pool, Progress, SessionRequest};

pub(crate) struct Link {
    state: Mutex<State>,
    chunk_room: Notify,
    /// Something ended; whoever waits for the worker to fall quiet looks again.
    pub(crate) settled: Notify,
    max_payload_bytes: AtomicU64,
}

struct State {
    outbox: Outbox,
    writer: Option<Waker>,
}

impl Link {
    pub(crate) fn new(pools: &[Pool]) -> Self {
        Self {
            state: Mutex::new(State { outbox: Outbox::new(pools), writer: None }),
            chunk_room: Notify::new(),
            settled: Notify::new(),
            max_payload_bytes: AtomicU64::new(u64::MAX),
        }
    }

    /// Changes the outbox and lets the writer look, if there is anything to see: woken for nothing, it would
    /// only be in the way of what runs meanwhile.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Outbox) -> T) -> T {
        let (changed, writer) = {
            let mut state = self.state.lock();
            let connection = state.outbox.connection;
            let changed = change(&mut state.outbox);
            let news = state.outbox.has_news() || state.outbox.connection != connection;
            (changed, if news { state.writer.take() } else { None })
        };
        if let Some(writer) = writer {
            writer.wake();
        }
        changed
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Outbox) -> T) -> T {
        look(&self.state.lock().outbox)
    }

    /// The writer has been woken and has not looked yet.
    pub(crate) fn writer_is_due(&self) -> bool {
        self.state.lock().writer.is_none()
    }

    pub(crate) fn progress(&self, lease: u64, progress: Progress) {
        self.update(|outbox| outbox.progress(lease, progress));
    }

    pub(crate) async fn chunk(&self, chunk: Chunk) {
        let mut waiting = chunk;
        loop {
            // Registered before looking, so that room made in between is not missed.
            let room = self.chunk_room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.update(|outbox| outbox.chunk(waiting)) {
                None => return,
                Some(chunk) => waiting = chunk,
            }
            room.await;
        }
    }

    /// A handler that outlived its first poll has ended.
    pub(crate) fn finished(&self, lease: u64, end: End) {
        self.update(|outbox| outbox.finished(lease, end));
        self.settled.notify_one();
    }

    pub(crate) fn set_max_payload(&self, bytes: u64) {
        self.max_payload_bytes.store(if bytes == 0 { u64::MAX } else { bytes }, Ordering::Relaxed);
    }

    /// Refuses what the server would refuse; a refused result would leave its task without an end.
    pub(crate) fn check_size(&self, payload: &Payload) -> Result<(), HandlerError> {
        let (size, limit) = (payload.data.len() as u64, self.max_payload_bytes.load(Ordering::Relaxed));
        if size <= limit {
            return Ok(());
        }
        let message = format!("the payload has {size} bytes, the server takes at most {limit}");
        Err(HandlerError::new("payload_too_large", message).not_retryable())
    }
}

/// The sending side of one connection.
pub(crate) struct Writer {
    link: Arc<Link>,
    connection: u64,
}

impl Writer {
    pub(crate) fn new(link: Arc<Link>, connection: u64) -> Self {
        Self { link, connection }
    }
}

impl Stream for Writer {
    type Item = SessionRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SessionRequest>> {
        let frame = {
            let mut state = self.link.state.lock();
            if state.outbox.connection != self.connection {
                return Poll::Ready(None);
            }
            let frame = state.outbox.next_frame();
            if frame.is_none() {
                state.writer = Some(context.waker().clone());
            }
            frame
        };
        match frame {
            Some(frame) => {
                if !frame.chunks.is_empty() {
                    self.link.chunk_room.notify_waiters();
                }
                Poll::Ready(Some(frame))
            }
            None => Poll::Pending,
        }
    }
}
