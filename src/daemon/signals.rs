//! The signals that the daemon answers to.
//!
//! What it does about them is in the daemon's page.

use tokio::signal::unix::{self, SignalKind};

use super::failure::Failure;
use crate::base::sysexits::EX_OSERR;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// To end; with the signal's name.
    Stop(&'static str),
    /// To read the configuration again.
    Reload,
}

/// Receives them. From [`Signals::new`] on none of them kills the process.
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    /// Begins to receive. Needs the runtime.
    pub fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            unix::signal(kind)
                .map_err(|error| Failure::system(EX_OSERR, "signals cannot be received", &error))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The next one. Several of a kind that come at once count as one.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Signal::Stop("SIGINT"),
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }
}
