//! The doors' certificate, renewed while they serve.
//!
//! All TLS doors present the same one. Whether it is time for another is a question to the wall
//! clock, asked every hour: a computer that slept, or whose clock was set, is an hour late at the
//! most, and the last third of the certificate's life has 30 days.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::api::local_ca::{LocalCa, LocalCaError};
use crate::base::Clock;
use crate::http::tls::Presented;
use crate::telemetry::Chain;

/// How often the wall clock is asked.
const LOOK: Duration = Duration::from_secs(3_600);

/// Presents a certificate of the local authority that is in force.
pub struct DoorCertificate {
    authority: Arc<LocalCa>,
    clock: Clock,
    presented: Arc<Presented>,
}

/// What a look at the clock came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Good,
    Renewed,
}

impl DoorCertificate {
    /// Takes the certificate that there is, or has it made. Waits for the disk.
    pub fn new(authority: Arc<LocalCa>, clock: Clock) -> Result<Self, LocalCaError> {
        let identity = authority.server_identity(clock.now())?;
        Ok(Self {
            presented: Arc::new(Presented::new(identity)?),
            authority,
            clock,
        })
    }

    /// What doors present.
    pub fn presented(&self) -> Arc<Presented> {
        self.presented.clone()
    }

    /// Replaces it in time, until it is aborted. What goes wrong is logged and tried again: the
    /// certificate that there is stays in use.
    pub async fn renew_in_time(self) {
        let this = Arc::new(self);
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let looking = this.clone();
            match tokio::task::spawn_blocking(move || looking.look()).await {
                Ok(Ok(Look::Good)) => {}
                Ok(Ok(Look::Renewed)) => tracing::info!("the doors have a new certificate"),
                Ok(Err(error)) => {
                    tracing::error!(error = %Chain(&error), "the doors' certificate cannot be renewed");
                }
                Err(error) => tracing::error!(%error, "the doors' certificate was not looked at"),
            }
        }
    }

    fn look(&self) -> Result<Look, LocalCaError> {
        let identity = self.authority.server_identity(self.clock.now())?;
        if self.presented.is(&identity) {
            return Ok(Look::Good);
        }
        self.presented.replace(identity)?;
        Ok(Look::Renewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use jiff::Timestamp;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::time_provider::TimeProvider;
    use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

    use crate::base::clock::ClockHand;
    use crate::base::x509::Certificate;
    use crate::http::tls;

    /// A client's clock.
    #[derive(Debug)]
    struct At(Clock);

    impl TimeProvider for At {
        fn current_time(&self) -> Option<UnixTime> {
            let seconds = u64::try_from(self.0.now().as_second()).ok()?;
            Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
        }
    }

    /// The certificate that a client gets to see in a handshake.
    fn shown(
        settings: &Arc<ServerConfig>,
        authority: &LocalCa,
        clock: &Clock,
    ) -> CertificateDer<'static> {
        let trust = tls::roots([authority.certificate().der().to_vec().into()]).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_details(provider, Arc::new(At(clock.clone())))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(trust)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(settings.clone()).unwrap();
        while client.is_handshaking() {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            while client.wants_write() {
                client.write_tls(&mut there).unwrap();
            }
            let mut there = there.as_slice();
            while !there.is_empty() {
                server.read_tls(&mut there).unwrap();
                server.process_new_packets().unwrap();
            }
            while server.wants_write() {
                server.write_tls(&mut back).unwrap();
            }
            let mut back = back.as_slice();
            while !back.is_empty() {
                client.read_tls(&mut back).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        client.peer_certificates().unwrap()[0].clone()
    }

    /// A door, what renews its certificate, and their clock.
    struct Door {
        directory: tempfile::TempDir,
        authority: Arc<LocalCa>,
        settings: Arc<ServerConfig>,
        clock: Clock,
        hand: ClockHand,
        renewing: tokio::task::JoinHandle<()>,
    }

    impl Door {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (clock, hand) = Clock::manual(Timestamp::now());
            let authority = Arc::new(LocalCa::open(directory.path(), clock.now()).unwrap());
            let certificate = DoorCertificate::new(authority.clone(), clock.clone()).unwrap();
            let trust = tls::roots([authority.certificate().der().to_vec().into()]).unwrap();
            let settings = tls::browser(certificate.presented(), trust).unwrap();
            let renewing = tokio::spawn(certificate.renew_in_time());
            Self {
                directory,
                authority,
                settings,
                clock,
                hand,
                renewing,
            }
        }

        /// What a client sees after it was looked whether the certificate is still good.
        async fn shown_after_a_look(&self) -> CertificateDer<'static> {
            // By the paused clock: the next look is due within this, and nothing else takes time.
            tokio::time::sleep(LOOK * 2).await;
            shown(&self.settings, &self.authority, &self.clock)
        }
    }

    impl Drop for Door {
        fn drop(&mut self) {
            self.renewing.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn doors_present_a_new_certificate_before_theirs_is_over() {
        let door = Door::new();
        let first = door.shown_after_a_look().await;
        door.hand.advance(Duration::from_secs(59 * 86_400));
        assert_eq!(door.shown_after_a_look().await, first);

        door.hand.advance(Duration::from_secs(2 * 86_400));
        let second = door.shown_after_a_look().await;
        assert_ne!(second, first);
        let ends = |der: &CertificateDer<'_>| Certificate::from_der(der).unwrap().not_after();
        assert!(ends(&second) > ends(&first));

        // A start finds the same one.
        let again = LocalCa::open(door.directory.path(), door.clock.now()).unwrap();
        let kept = again.server_identity(door.clock.now()).unwrap();
        assert_eq!(kept.chain[0], second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_fails_leaves_the_certificate_and_is_tried_again() {
        let door = Door::new();
        let first = door.shown_after_a_look().await;

        // Neither a key nor a directory can be where the other is.
        let key = door.directory.path().join("server-key.pem");
        std::fs::remove_file(&key).unwrap();
        std::fs::create_dir(&key).unwrap();
        door.hand.advance(Duration::from_secs(61 * 86_400));
        assert_eq!(door.shown_after_a_look().await, first);

        std::fs::remove_dir(&key).unwrap();
        assert_ne!(door.shown_after_a_look().await, first);
    }
}
