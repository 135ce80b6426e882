//! Where PINs come from, and how it is made sure that none is tried twice.
//!
//! A token locks after a few wrong PINs, and what is on it is lost. So a PIN that failed once is
//! never tried again by the machine: not in a loop, not after a crash, not after a restart.
//!
//! `pin-blocks.json` in the state directory holds one entry per token (serial and label) whose PIN
//! must not be tried. Before a PIN goes to a token, an entry `attempting` is made durable; a login
//! that succeeded, or surely spent no try, removes it; one that failed turns it into `refused`.
//! A crash in between leaves `attempting`, which blocks just as well: whether a try was spent is
//! not known. Only a person who supplies a PIN (`opcert token unlock`) gets past an entry.
//!
//! If that PIN is right but the configured source holds another one, the entry stays as
//! `source-stale`, so that the next start does not spend a try on the source.
//!
//! The file holds nothing about the PIN itself: a hash of a few digits is guessed at once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};
use zeroize::{Zeroize, Zeroizing};

use crate::base::clock::Clock;
use crate::base::files::{FileError, Readers, read_checked, write_atomic};
use crate::base::pkcs11::TokenId;
use crate::base::secret::Pin;
use crate::device::config::PinSource;
use crate::device::error::DeviceError;
use crate::device::frames::PIN_MAX;

/// The file in the state directory.
const FILE: &str = "pin-blocks.json";

/// The most bytes of that file.
const FILE_MAX: u64 = 1024 * 1024;

/// The most bytes of a PIN's file: the PIN and the end of its line.
const PIN_FILE_MAX: u64 = PIN_MAX as u64 + 2;

/// One login of a token at a time.
type Turn = Arc<Mutex<()>>;

/// Remembers which PINs must not be tried.
pub struct PinGuard {
    path: PathBuf,
    clock: Clock,
    blocks: Mutex<Vec<Block>>,
    /// By serial and label: two modules may show the same token.
    turns: std::sync::Mutex<HashMap<(String, String), Turn>>,
}

/// A token whose PIN must not be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Block {
    serial: String,
    label: String,
    /// The module through which it happened.
    module: String,
    state: BlockState,
    /// Whether the configured source is known to hold another PIN than the token's.
    #[serde(default)]
    source_stale: bool,
    /// RFC 3339.
    when: String,
    /// The return value's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum BlockState {
    /// A login is under way, or was when the program ended.
    Attempting,
    /// The token refused a PIN.
    Refused,
    /// Logged in, but with a PIN that the source does not hold.
    SourceStale,
}

/// What a login tried to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinOrigin {
    /// The configured source.
    Source,
    /// A PIN that worked before in this process.
    Kept,
}

/// Leave to try a PIN once, and what was known before.
#[must_use]
pub struct Attempt {
    token: TokenId,
    before: Option<Block>,
}

/// How a login ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The token took the PIN. Whether the configured source holds another one stays as it was.
    Taken,
    /// The token took the PIN, and the configured source holds it.
    TakenFromSource,
    /// The token took the PIN, and the configured source holds another one.
    TakenNotFromSource,
    /// No try was spent: all is as before.
    NotTried,
    /// A try was spent, or may have been.
    Refused(String),
}

impl PinGuard {
    /// Reads what an earlier process left.
    pub fn open(state_directory: &Path, clock: Clock) -> Result<Self, DeviceError> {
        let path = state_directory.join(FILE);
        let blocks = match read_checked(&path, Readers::Group, FILE_MAX) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| FileError::Unreadable {
                path: path.clone(),
                source: error.into(),
            }),
            Err(FileError::Unreadable { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
        .map_err(record_error)?;
        Ok(Self {
            path,
            clock,
            blocks: Mutex::new(blocks),
            turns: std::sync::Mutex::default(),
        })
    }

    /// Waits until nobody else logs in to `token`. Whoever looks for an entry and then makes one
    /// holds this over both.
    pub async fn turn(&self, token: &TokenId) -> OwnedMutexGuard<()> {
        let turn = self
            .turns
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .entry((token.serial.clone(), token.label.clone()))
            .or_default()
            .clone();
        turn.lock_owned().await
    }

    /// Why the machine must not try a PIN of `token`, if so.
    pub async fn blocked(&self, token: &TokenId, origin: PinOrigin) -> Option<String> {
        reason(&self.blocks.lock().await, token, origin)
    }

    /// Makes durable that a PIN of `token` is about to be tried. Nothing may be tried before.
    ///
    /// A person's PIN may be tried whatever happened; the machine's own (`origin`) only where
    /// nothing blocks it, also nothing that began since [`PinGuard::blocked`] was asked: two
    /// modules may show the same token.
    pub async fn begin(
        &self,
        token: &TokenId,
        origin: Option<PinOrigin>,
    ) -> Result<Attempt, DeviceError> {
        let mut blocks = self.blocks.lock().await;
        if let Some(reason) = origin.and_then(|origin| reason(&blocks, token, origin)) {
            return Err(DeviceError::PinBlocked {
                token: token.to_string(),
                reason,
            });
        }
        let mut next = blocks.clone();
        let before = next.iter().find(|block| block.is_of(token)).cloned();
        next.retain(|block| !block.is_of(token));
        next.push(Block {
            serial: token.serial.clone(),
            label: token.label.clone(),
            module: token.module.clone(),
            state: BlockState::Attempting,
            source_stale: before.as_ref().is_some_and(|block| block.source_stale),
            when: self.clock.now().to_string(),
            code: None,
        });
        self.write(&next).await?;
        *blocks = next;
        Ok(Attempt {
            token: token.clone(),
            before,
        })
    }

    /// Makes durable how the login that [`PinGuard::begin`] announced ended.
    pub async fn settle(&self, attempt: Attempt, how: Settled) -> Result<(), DeviceError> {
        let Attempt { token, before } = attempt;
        let was_stale = before.as_ref().is_some_and(|block| block.source_stale);
        let block = |state, source_stale, code| Block {
            serial: token.serial.clone(),
            label: token.label.clone(),
            module: token.module.clone(),
            state,
            source_stale,
            when: self.clock.now().to_string(),
            code,
        };
        let after = match how {
            Settled::Taken => was_stale.then(|| block(BlockState::SourceStale, true, None)),
            Settled::TakenFromSource => None,
            Settled::TakenNotFromSource => Some(block(BlockState::SourceStale, true, None)),
            Settled::NotTried => before,
            Settled::Refused(code) => Some(block(BlockState::Refused, was_stale, Some(code))),
        };
        let mut blocks = self.blocks.lock().await;
        let mut next = blocks.clone();
        next.retain(|block| !block.is_of(&token));
        next.extend(after);
        self.write(&next).await?;
        *blocks = next;
        Ok(())
    }

    async fn write(&self, blocks: &[Block]) -> Result<(), DeviceError> {
        let path = self.path.clone();
        let failed = |source| FileError::Unwritable {
            path: self.path.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(blocks)
            .map_err(|error| record_error(failed(error.into())))?;
        tokio::task::spawn_blocking(move || write_atomic(&path, &text, 0o600))
            .await
            .unwrap_or_else(|panic| Err(failed(std::io::Error::other(panic))))
            .map_err(record_error)
    }
}

fn reason(blocks: &[Block], token: &TokenId, origin: PinOrigin) -> Option<String> {
    let block = blocks.iter().find(|block| block.is_of(token))?;
    let code = block.code.as_deref().unwrap_or("no code");
    match block.state {
        BlockState::Attempting => Some(format!(
            "a login at {} was interrupted, so whether a try was spent is not known",
            block.when
        )),
        BlockState::Refused => Some(format!("a PIN was refused at {} with {code}", block.when)),
        BlockState::SourceStale if origin == PinOrigin::Source => {
            Some("the configured source holds another PIN than the token's".into())
        }
        BlockState::SourceStale => None,
    }
}

impl Block {
    fn is_of(&self, token: &TokenId) -> bool {
        self.serial == token.serial && self.label == token.label
    }
}

fn record_error(error: FileError) -> DeviceError {
    DeviceError::PinRecord {
        source: Arc::new(error),
    }
}

/// Reads the PIN that the configuration points to.
pub fn read_pin(source: &PinSource) -> Result<Pin, DeviceError> {
    let bytes = match source {
        PinSource::File(path) => read_checked(path, Readers::Owner, PIN_FILE_MAX),
        PinSource::Credential(name) => read_credential(name),
        // A person is asked elsewhere; there is nothing to read.
        PinSource::Pinentry => return Err(PIN_LENGTH),
    };
    let bytes = Zeroizing::new(bytes.map_err(file_error)?);
    let text = std::str::from_utf8(bytes.trim_ascii_end());
    checked(Pin::new(text.map_err(|_| PIN_LENGTH)?.to_owned()))
}

/// A credential lies in a directory that systemd keeps private and gets its access from an ACL,
/// which shows as group access; so its mode says nothing.
fn read_credential(name: &str) -> Result<Vec<u8>, FileError> {
    let unreadable = |path: PathBuf, source| FileError::Unreadable { path, source };
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
        let none = std::io::Error::other("$CREDENTIALS_DIRECTORY is not set; systemd sets it");
        return Err(unreadable(name.into(), none));
    };
    let path = PathBuf::from(directory).join(name);
    let size = std::fs::metadata(&path).map_err(|error| unreadable(path.clone(), error))?;
    if size.len() > PIN_FILE_MAX {
        return Err(FileError::TooLarge {
            path,
            limit: PIN_FILE_MAX,
        });
    }
    std::fs::read(&path).map_err(|error| unreadable(path, error))
}

fn file_error(error: FileError) -> DeviceError {
    match error {
        FileError::Permissions { path, problem } => {
            DeviceError::PinFileNotPrivate { path, problem }
        }
        other => DeviceError::PinFileUnreadable {
            source: Arc::new(other),
        },
    }
}

const PIN_LENGTH: DeviceError = DeviceError::PinLength { limit: PIN_MAX };

/// A PIN of possible length.
pub fn checked(pin: Pin) -> Result<Pin, DeviceError> {
    if (1..=PIN_MAX).contains(&pin.expose().len()) {
        Ok(pin)
    } else {
        Err(PIN_LENGTH)
    }
}

/// Whether two PINs are the same.
pub fn same(one: &Pin, other: &Pin) -> bool {
    one.expose() == other.expose()
}

/// Wipes a frame that held a PIN.
pub fn wipe(mut frame: Vec<u8>) {
    frame.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn token() -> TokenId {
        TokenId {
            module: "m".into(),
            label: "l".into(),
            serial: "s".into(),
        }
    }

    fn open(directory: &Path) -> PinGuard {
        PinGuard::open(directory, Clock::system()).unwrap()
    }

    #[tokio::test]
    async fn an_attempt_blocks_until_it_is_settled_also_in_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        let guard = open(directory.path());
        assert_eq!(guard.blocked(&token(), PinOrigin::Source).await, None);
        let attempt = guard.begin(&token(), None).await.unwrap();

        let after_crash = open(directory.path());
        assert!(
            after_crash
                .blocked(&token(), PinOrigin::Source)
                .await
                .is_some()
        );
        assert!(
            after_crash
                .blocked(&token(), PinOrigin::Kept)
                .await
                .is_some()
        );

        guard.settle(attempt, Settled::Taken).await.unwrap();
        let after_success = open(directory.path());
        assert_eq!(
            after_success.blocked(&token(), PinOrigin::Source).await,
            None
        );
        assert_eq!(*after_success.blocks.lock().await, []);
    }

    #[tokio::test]
    async fn the_machine_tries_nothing_while_another_login_is_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let guard = open(directory.path());
        let first = guard.begin(&token(), Some(PinOrigin::Source)).await;
        let second = guard.begin(&token(), Some(PinOrigin::Kept)).await;
        assert!(first.is_ok());
        assert!(matches!(second, Err(DeviceError::PinBlocked { .. })));
    }

    #[tokio::test]
    async fn a_refused_pin_stays_refused_also_when_another_was_not_tried() {
        let directory = tempfile::tempdir().unwrap();
        let guard = open(directory.path());
        let attempt = guard.begin(&token(), None).await.unwrap();
        let refused = Settled::Refused("CKR_PIN_INCORRECT".into());
        guard.settle(attempt, refused).await.unwrap();
        let attempt = guard.begin(&token(), None).await.unwrap();
        guard.settle(attempt, Settled::NotTried).await.unwrap();
        let reason = open(directory.path())
            .blocked(&token(), PinOrigin::Kept)
            .await
            .unwrap();
        assert!(reason.contains("CKR_PIN_INCORRECT"), "{reason}");
    }

    #[tokio::test]
    async fn a_stale_source_is_not_tried_though_another_pin_works() {
        let directory = tempfile::tempdir().unwrap();
        let guard = open(directory.path());
        let attempt = guard.begin(&token(), None).await.unwrap();
        let settled = guard.settle(attempt, Settled::TakenNotFromSource).await;
        settled.unwrap();
        // A later login with the kept PIN does not make the source right.
        let attempt = guard.begin(&token(), None).await.unwrap();
        guard.settle(attempt, Settled::Taken).await.unwrap();
        let next = open(directory.path());
        assert!(next.blocked(&token(), PinOrigin::Source).await.is_some());
        assert_eq!(next.blocked(&token(), PinOrigin::Kept).await, None);
        let attempt = next.begin(&token(), None).await.unwrap();
        next.settle(attempt, Settled::TakenFromSource)
            .await
            .unwrap();
        assert_eq!(next.blocked(&token(), PinOrigin::Source).await, None);
    }

    #[test]
    fn a_pin_file_is_private_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        std::fs::write(&path, "1234\n").unwrap();
        let source = PinSource::File(path.clone());
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match read_pin(&source) {
                Ok(pin) => assert!(good && pin.expose() == "1234", "{mode:o}"),
                Err(DeviceError::PinFileNotPrivate { .. }) => assert!(!good, "{mode:o}"),
                Err(other) => panic!("{mode:o}: {other}"),
            }
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(
            read_pin(&source),
            Err(DeviceError::PinLength { .. })
        ));
        assert!(matches!(
            read_pin(&PinSource::File(directory.path().join("none"))),
            Err(DeviceError::PinFileUnreadable { .. })
        ));
    }

    #[tokio::test]
    async fn what_happens_to_one_token_is_nothing_to_another() {
        let directory = tempfile::tempdir().unwrap();
        let guard = open(directory.path());
        let others = [
            TokenId {
                label: "other".into(),
                ..token()
            },
            TokenId {
                serial: "other".into(),
                ..token()
            },
        ];
        let refused = |code: &str| Settled::Refused(code.into());
        for (token, code) in [
            (&token(), "ONE"),
            (&others[0], "TWO"),
            (&others[1], "THREE"),
        ] {
            assert_eq!(guard.blocked(token, PinOrigin::Kept).await, None);
            let attempt = guard.begin(token, Some(PinOrigin::Source)).await.unwrap();
            guard.settle(attempt, refused(code)).await.unwrap();
        }
        // A person unlocks one of them.
        let attempt = guard.begin(&token(), None).await.unwrap();
        guard
            .settle(attempt, Settled::TakenFromSource)
            .await
            .unwrap();
        let next = open(directory.path());
        assert_eq!(next.blocked(&token(), PinOrigin::Kept).await, None);
        for (token, code) in others.iter().zip(["TWO", "THREE"]) {
            let reason = next.blocked(token, PinOrigin::Kept).await.unwrap();
            assert!(reason.contains(code), "{reason}");
        }
    }

    #[tokio::test]
    async fn a_token_that_two_modules_show_is_one_token() {
        let directory = tempfile::tempdir().unwrap();
        let guard = open(directory.path());
        let elsewhere = TokenId {
            module: "other".into(),
            ..token()
        };
        let turn = guard.turn(&token()).await;
        let second = guard.turn(&elsewhere);
        tokio::pin!(second);
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx)));
        assert!(polled.await.is_pending());
        let attempt = guard.begin(&token(), None).await.unwrap();
        let refused = Settled::Refused("CKR_PIN_INCORRECT".into());
        guard.settle(attempt, refused).await.unwrap();
        drop(turn);
        let _turn = second.await;
        assert!(guard.blocked(&elsewhere, PinOrigin::Kept).await.is_some());
    }

    #[tokio::test]
    async fn a_refusal_does_not_make_a_stale_source_right() {
        let directory = tempfile::tempdir().unwrap();
        let guard = open(directory.path());
        for how in [
            Settled::TakenNotFromSource,
            Settled::Refused("CKR_PIN_INCORRECT".into()),
            Settled::Taken,
        ] {
            let attempt = guard.begin(&token(), None).await.unwrap();
            guard.settle(attempt, how).await.unwrap();
        }
        let next = open(directory.path());
        assert!(next.blocked(&token(), PinOrigin::Source).await.is_some());
        assert_eq!(next.blocked(&token(), PinOrigin::Kept).await, None);
    }

    #[test]
    fn a_record_that_cannot_be_read_stops_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for text in ["", "{", "[{\"serial\": 1}]"] {
            crate::base::files::write_atomic(&path, text.as_bytes(), 0o600).unwrap();
            let opened = PinGuard::open(directory.path(), Clock::system());
            assert!(
                matches!(opened, Err(DeviceError::PinRecord { .. })),
                "{text}"
            );
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let opened = PinGuard::open(directory.path(), Clock::system());
        assert!(matches!(opened, Err(DeviceError::PinRecord { .. })));
    }

    #[test]
    fn a_pin_has_a_length_that_a_token_can_take() {
        let of = |length: usize| checked(Pin::new("1".repeat(length)));
        for length in [1, PIN_MAX] {
            assert_eq!(of(length).unwrap().expose().len(), length);
        }
        for length in [0, PIN_MAX + 1] {
            assert!(matches!(
                of(length),
                Err(DeviceError::PinLength { limit: PIN_MAX })
            ));
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        let source = PinSource::File(path.clone());
        for (ending, good) in [("", true), ("\n", true), ("\r\n", true), ("1", false)] {
            let text = format!("{}{ending}", "1".repeat(PIN_MAX));
            crate::base::files::write_atomic(&path, text.as_bytes(), 0o600).unwrap();
            match read_pin(&source) {
                Ok(pin) => assert!(good && pin.expose().len() == PIN_MAX, "{ending:?}"),
                Err(error) => assert!(!good, "{ending:?}: {error}"),
            }
        }
    }

    #[tokio::test]
    async fn an_interrupted_try_blocks_the_kept_pin_of_a_stale_source_too() {
        let directory = tempfile::tempdir().unwrap();
        let guard = open(directory.path());
        let attempt = guard.begin(&token(), None).await.unwrap();
        let settled = guard.settle(attempt, Settled::TakenNotFromSource).await;
        settled.unwrap();
        let _interrupted = guard.begin(&token(), Some(PinOrigin::Kept)).await.unwrap();
        let next = open(directory.path());
        for origin in [PinOrigin::Kept, PinOrigin::Source] {
            let reason = next.blocked(&token(), origin).await.unwrap();
            assert!(reason.contains("interrupted"), "{reason}");
        }
    }
}
