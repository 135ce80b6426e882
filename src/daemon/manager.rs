//! What the service manager is told (sd_notify(3)); nothing happens without one.

use sd_notify::NotifyState;

/// A change in the daemon's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// It serves, or serves again after a reload.
    Ready,
    /// It reads its configuration again. [`Notice::Ready`] has to follow.
    Reloading,
    /// It serves nobody new.
    Stopping,
    /// It is well.
    Alive,
}

/// Tells it. A manager that cannot be told is no reason to stop serving.
pub fn tell(notice: Notice) {
    let told = match notice {
        Notice::Ready => sd_notify::notify(&[NotifyState::Ready]),
        // systemd from 253 on tells by the time which reload is meant.
        Notice::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        Notice::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        Notice::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, ?notice, "the service manager cannot be told");
    }
}
