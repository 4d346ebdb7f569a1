//! Stopping in order: first no new work, then a bounded wait for what runs, then the end.
//!
//! ```text
//! running ──stop()──▶ stopping ──cut()──▶ cut
//!                     nothing new is       what is still open
//!                     accepted; open work  is closed now
//!                     finishes
//! ```
//! Whoever owns the process decides when each step is taken ([`Signals`] tells it when the outside asks);
//! everybody else holds a clone and listens.

use std::fmt;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// The two steps of an orderly end, shared by clones. Steps are only ever taken forward; repeating one
/// changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    stop: CancellationToken,
    cut: CancellationToken,
}

impl Shutdown {
    /// A process that runs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A listener of its own for something short-lived, such as one connection: it follows this one and
    /// shares no lock with its siblings, so that polling it on every wake-up of a busy connection is cheap.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), cut: self.cut.child_token() }
    }

    /// Accept nothing new; finish what is open.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Close what is still open. Implies [`Shutdown::stop`].
    pub fn cut(&self) {
        self.stop.cancel();
        self.cut.cancel();
    }

    /// Whether [`Shutdown::stop`] was called.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Ends when [`Shutdown::stop`] is called, at once if it was.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.stop.cancelled()
    }

    /// Ends when [`Shutdown::cut`] is called, at once if it was.
    pub fn cutting(&self) -> WaitForCancellationFuture<'_> {
        self.cut.cancelled()
    }
}

/// A request from the operating system to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C in a terminal.
    Interrupt,
    /// What service managers and containers send. Unix only.
    Terminate,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// The requests to end, in order. From [`Signals::install`] on they no longer end the process by
/// themselves.
#[derive(Debug)]
pub struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes over SIGINT and SIGTERM (Ctrl-C where there are no signals). Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the operating system refuses the handlers.
    #[cfg(unix)]
    pub fn install() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Takes over Ctrl-C. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Never here; the signature is the one of the other systems.
    #[cfg(not(unix))]
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// The next request to end. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        #[cfg(unix)]
        {
            // `None` means that the driver has gone, with the runtime: nobody is left to tell.
            tokio::select! {
                Some(()) = self.interrupt.recv() => Signal::Interrupt,
                Some(()) = self.terminate.recv() => Signal::Terminate,
                else => std::future::pending().await,
            }
        }
        #[cfg(not(unix))]
        {
            match tokio::signal::ctrl_c().await {
                Ok(()) => Signal::Interrupt,
                Err(_) => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn steps_reach_clones_and_children_and_go_only_forward() {
        let shutdown = Shutdown::new();
        let (clone, child) = (shutdown.clone(), shutdown.child());
        assert!(!clone.is_stopping() && !child.is_stopping());

        shutdown.stop();
        clone.stopping().await;
        child.stopping().await;
        assert!(!child.cut.is_cancelled(), "stopping is not cutting");

        clone.cut();
        child.cutting().await;
        assert!(shutdown.is_stopping());
    }

    #[tokio::test]
    async fn a_child_does_not_stop_its_parent() {
        let shutdown = Shutdown::new();
        shutdown.child().cut();
        assert!(!shutdown.is_stopping());
    }

    #[tokio::test]
    async fn cutting_implies_stopping() {
        let shutdown = Shutdown::new();
        shutdown.cut();
        shutdown.stopping().await;
    }
}
