//! Which callbacks were delivered.
//!
//! The same event comes again until it is answered, up to fifteen times in a day, each time signed
//! anew: its id is remembered longer than that. The same *message* comes again only if somebody
//! repeats it, within the five minutes in which its signature counts.
//!
//! Both are remembered as SHA-256 over merchant and name. Each opened callback leaves both in its
//! audit record, which is durable before the content leaves; after a restart they are read back
//! from there.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::MerchantError;
use crate::audit::Record;
use crate::audit::verify::VerifyError;
use crate::base::encoding::{from_hex, sha256};
use crate::wechatpay::MerchantId;
use crate::wechatpay::v3::{Delivery, Seen};

/// The platform's last delivery of an event is 24 hours and 4 minutes after the first.
const EVENTS_KEPT: Duration = Duration::from_secs(25 * 3_600);

/// The most events remembered: five a second, day and night.
const MOST_EVENTS: usize = 524_288;

/// The most messages remembered: a hundred a second for ten minutes.
const MOST_MESSAGES: usize = 65_536;

#[derive(Debug)]
pub(super) struct Memory(Mutex<State>);

#[derive(Debug)]
struct State {
    messages: Seen,
    events: Seen,
}

/// The names under which one delivery is remembered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    pub message: [u8; 32],
    pub event: [u8; 32],
}

/// The earliest record that still matters, and an hour for clocks that were set back since.
pub(super) fn restore_since(now: Timestamp) -> Timestamp {
    let kept = SignedDuration::try_from(EVENTS_KEPT).unwrap_or(SignedDuration::ZERO);
    now.checked_sub(kept + SignedDuration::from_hours(1))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Names {
    pub fn new(merchant: &MerchantId, fingerprint: &[u8], id: &str) -> Self {
        let name = |kind: &[u8], rest: &[u8]| {
            sha256(&[kind, merchant.as_str().as_bytes(), b"\0", rest].concat())
        };
        Self {
            message: name(b"message\0", fingerprint),
            event: name(b"event\0", id.as_bytes()),
        }
    }
}

impl Memory {
    pub fn new() -> Self {
        Self::holding(MOST_MESSAGES, MOST_EVENTS)
    }

    fn holding(messages: usize, events: usize) -> Self {
        Self(Mutex::new(State {
            messages: Seen::new(messages, Seen::MIN_RETENTION),
            events: Seen::new(events, EVENTS_KEPT),
        }))
    }

    /// Remembers a delivery. A repeated message is an error, a repeated event is not.
    pub fn deliver(&self, names: Names, now: Timestamp) -> Result<Delivery, MerchantError> {
        let mut state = self.lock();
        let message = state
            .messages
            .observe_digest(names.message, now)
            .map_err(|_| MerchantError::MemoryFull)?;
        if let Delivery::Again { first } = message {
            return Err(MerchantError::Replayed { first });
        }
        match state.events.observe_digest(names.event, now) {
            Ok(delivery) => Ok(delivery),
            Err(_) => {
                state.messages.forget_digest(names.message);
                Err(MerchantError::MemoryFull)
            }
        }
    }

    /// Takes back a delivery whose content did not leave after all.
    pub fn take_back(&self, names: Names, delivery: Delivery) {
        let mut state = self.lock();
        state.messages.forget_digest(names.message);
        if delivery == Delivery::First {
            state.events.forget_digest(names.event);
        }
    }

    /// Remembers what the records of earlier runs tell.
    pub fn restore(
        &self,
        records: impl Iterator<Item = Result<Record, VerifyError>>,
    ) -> Result<(), MerchantError> {
        #[derive(Deserialize)]
        struct Body {
            message: String,
            event: String,
        }
        let mut state = self.lock();
        for record in records {
            let record = record.map_err(MerchantError::Log)?;
            if record.kind != "wechatpay" {
                continue;
            }
            // Uses that open no callback have no such names.
            let Ok(body) = serde_json::from_str::<Body>(record.body.get()) else {
                continue;
            };
            let digest = |text: &str| from_hex(text).and_then(|bytes| bytes.try_into().ok());
            if let (Some(message), Some(event)) = (digest(&body.message), digest(&body.event)) {
                // A memory that is full says so at the next callback.
                let _ = state.messages.observe_digest(message, record.time);
                let _ = state.events.observe_digest(event, record.time);
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_once_and_an_event_is_told_again() {
        let memory = Memory::new();
        let at = |second| Timestamp::from_second(second).unwrap();
        let merchant: MerchantId = "1900007291".parse().unwrap();
        let other: MerchantId = "1900009191".parse().unwrap();
        let first = Names::new(&merchant, b"one", "EV-1");
        assert_eq!(memory.deliver(first, at(100)).unwrap(), Delivery::First);
        assert!(matches!(
            memory.deliver(first, at(101)),
            Err(MerchantError::Replayed { .. })
        ));
        let again = Names::new(&merchant, b"two", "EV-1");
        let Delivery::Again { first: when } = memory.deliver(again, at(102)).unwrap() else {
            panic!("it was there");
        };
        assert_eq!(when, at(100));
        // Another merchant's event of the same id is another event.
        let theirs = Names::new(&other, b"one", "EV-1");
        assert_eq!(memory.deliver(theirs, at(103)).unwrap(), Delivery::First);
        memory.take_back(theirs, Delivery::First);
        assert_eq!(memory.deliver(theirs, at(104)).unwrap(), Delivery::First);
    }

    #[test]
    fn a_full_memory_says_so_and_forgets_nothing() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let merchant: MerchantId = "1900007291".parse().unwrap();
        let names = |message: &[u8], id| Names::new(&merchant, message, id);
        for (messages, events) in [(2, 8), (8, 2)] {
            let memory = Memory::holding(messages, events);
            for (message, id) in [(b"one", "EV-1"), (b"two", "EV-2")] {
                assert_eq!(
                    memory.deliver(names(message, id), at(100)).unwrap(),
                    Delivery::First
                );
            }
            for _ in 0..2 {
                let third = memory.deliver(names(b"three", "EV-3"), at(101));
                assert!(matches!(third, Err(MerchantError::MemoryFull)));
            }
            let replayed = memory.deliver(names(b"one", "EV-1"), at(101));
            assert!(matches!(replayed, Err(MerchantError::Replayed { .. })));
        }
    }
}
