//! Whether a certificate is good, at this instant (OCSP, RFC 6960).
//!
//! The authority itself signs the answers, with the key that signed the certificate. One without a
//! nonce is kept and given again until half its time is over or the state of its certificate changes,
//! which every question looks up; so a revocation shows at once and the token signs little. A
//! question with a nonce is signed for itself. A serial number that was never issued is `unknown`, and
//! its answer is not kept: strangers could fill the memory with them.

mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use const_oid::db::rfc5912;
use der::Encode;
use der::asn1::Null;
use jiff::Timestamp;

use super::issuing::{Authority, RevocationReason};
use super::signer::SignError;
use super::store::{Store, StoreError, certificates};
use crate::base::Clock;
use crate::base::encoding::hex;
use crate::policy::Purpose;

use wire::{CertId, CertStatus, Question, ResponseData, RevokedInfo, SingleResponse, Status};

/// How long an answer is valid.
pub const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// Certificates that one question may be about.
const QUESTIONS: usize = 16;

/// Answers kept; the oldest go when there are more.
const KEPT: usize = 10_000;

/// Largest question that is read, in bytes.
pub const QUESTION_MAX: usize = 8 * 1024;

/// Why there is no signed answer.
#[derive(Debug, thiserror::Error)]
enum OcspError {
    #[error("the question is malformed")]
    Malformed,
    #[error("cannot encode an answer")]
    Encode(#[from] der::Error),
    #[error("no key of the authority is published")]
    NoKey,
    #[error("the authority did not sign")]
    Sign(#[from] SignError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Answers questions about certificates; cloning shares what is kept.
#[derive(Clone)]
pub struct Responder(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    /// The one that signs certificates first.
    authorities: Vec<Known>,
    kept: Mutex<HashMap<Key, Kept>>,
}

/// A key of the authority, and how questions name it.
struct Known {
    authority: Authority,
    key: String,
    sha1: IssuerHashes,
    sha256: IssuerHashes,
}

/// How a question names the authority.
struct IssuerHashes {
    name: Vec<u8>,
    key: Vec<u8>,
}

/// Serial number, hexadecimal, and whether the question hashed with SHA-256.
type Key = (String, bool);

struct Kept {
    state: State,
    made_at: Timestamp,
    der: Arc<[u8]>,
}

/// What the database says of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Good,
    Revoked(Timestamp, String),
    Unknown,
}

impl Known {
    fn new(authority: Authority) -> Self {
        let certificate = authority.certificate.inner().tbs_certificate();
        // A name or key that was parsed can be written again.
        let name = certificate.subject().to_der().unwrap_or_default();
        let key = certificate
            .subject_public_key_info()
            .subject_public_key
            .raw_bytes();
        let hashes = |algorithm| IssuerHashes {
            name: digest::digest(algorithm, &name).as_ref().to_vec(),
            key: digest::digest(algorithm, key).as_ref().to_vec(),
        };
        let (sha1, sha256) = (
            hashes(&digest::SHA1_FOR_LEGACY_USE_ONLY),
            hashes(&digest::SHA256),
        );
        Self {
            key: authority.key(),
            authority,
            sha1,
            sha256,
        }
    }

    /// Whether a question is about a certificate that this key signed.
    fn is_meant(&self, id: &CertId) -> bool {
        let hashes = if is_sha256(id) {
            &self.sha256
        } else if id.hash_algorithm.oid == rfc5912::ID_SHA_1 {
            &self.sha1
        } else {
            return false;
        };
        id.issuer_name_hash.as_bytes() == hashes.name && id.issuer_key_hash.as_bytes() == hashes.key
    }
}

impl Responder {
    /// Answers for the keys of the authority; there is at least one, and the one that signs
    /// certificates comes first.
    pub fn new(store: Store, clock: Clock, authorities: Vec<Authority>) -> Self {
        Self(Arc::new(Inner {
            store,
            clock,
            authorities: authorities.into_iter().map(Known::new).collect(),
            kept: Mutex::default(),
        }))
    }

    /// Answers a question, DER. There is an answer to everything; what cannot be answered is
    /// logged where it is a fault of ours.
    pub async fn answer(&self, question: &[u8]) -> Arc<[u8]> {
        match self.0.answer(question).await {
            Ok(answer) => answer,
            Err(error) => {
                let status = match &error {
                    OcspError::Malformed => Status::MalformedRequest,
                    OcspError::Sign(_) | OcspError::Store(_) => Status::TryLater,
                    OcspError::Encode(_) | OcspError::NoKey => Status::InternalError,
                };
                if status != Status::MalformedRequest {
                    tracing::error!(error = %crate::telemetry::Chain(&error), "cannot answer an OCSP question");
                }
                wire::refusal(status).into()
            }
        }
    }
}

impl Inner {
    async fn answer(&self, question: &[u8]) -> Result<Arc<[u8]>, OcspError> {
        let question = Question::parse(question).ok_or(OcspError::Malformed)?;
        if !(1..=QUESTIONS).contains(&question.requests.len()) {
            return Err(OcspError::Malformed);
        }
        let now = self.clock.now();
        // One key signs the answer, and it can speak for its own certificates only: what one
        // question asks of other keys as well is unknown to it.
        let authorities = &self.authorities;
        let known = question
            .requests
            .iter()
            .find_map(|request| {
                authorities
                    .iter()
                    .find(|one| one.is_meant(&request.req_cert))
            })
            .or(authorities.first())
            .ok_or(OcspError::NoKey)?;
        let mut states = Vec::with_capacity(question.requests.len());
        for request in &question.requests {
            states.push(self.state(known, &request.req_cert).await?);
        }
        // What is said of one known certificate without a nonce can be said again.
        let key = match (&question.requests[..], &states[..], &question.nonce) {
            ([_], [State::Unknown], _) => None,
            ([request], [_], None) => {
                Some((serial(&request.req_cert), is_sha256(&request.req_cert)))
            }
            _ => None,
        };
        if let (Some(key), [state]) = (&key, &states[..])
            && let Some(answer) = self.find(key, state, now)
        {
            return Ok(answer);
        }
        let ids = question.requests.iter().map(|request| &request.req_cert);
        let responses = ids
            .zip(&states)
            .map(|(id, state)| single(id, state, now))
            .collect::<Result<Vec<_>, der::Error>>()?;
        let data = ResponseData {
            responder_id: wire::by_key(&known.sha1.key)?,
            produced_at: wire::time(now)?,
            responses,
            extensions: question.nonce.map(|nonce| vec![nonce]),
        }
        .to_der()?;
        let signer = &known.authority.signer;
        let scheme = signer.public_key().default_scheme();
        let signature = signer.sign(Purpose::Ocsp, scheme, &data).await?;
        let bits = signature
            .to_x509(scheme)
            .map_err(|_| der::ErrorKind::Failed)
            .map_err(der::Error::from)?;
        let der: Arc<[u8]> = wire::signed(&data, scheme.x509_algorithm(), bits)?.into();
        if let (Some(key), Some(state)) = (key, states.pop()) {
            self.keep(key, state, now, der.clone());
        }
        Ok(der)
    }

    /// What the database says; a certificate that another key signed is unknown.
    async fn state(&self, known: &Known, id: &CertId) -> Result<State, StoreError> {
        if !known.is_meant(id) {
            return Ok(State::Unknown);
        }
        let serial = &serial(id);
        let found = self
            .store
            .read("find certificate", move |tx| {
                Box::pin(certificates::find(tx, serial))
            })
            .await?;
        Ok(match found.filter(|found| found.issuer == known.key) {
            None => State::Unknown,
            Some(certificate) => match certificate.revoked {
                None => State::Good,
                Some((at, reason)) => State::Revoked(at, reason),
            },
        })
    }

    fn find(&self, key: &Key, state: &State, now: Timestamp) -> Option<Arc<[u8]>> {
        let kept = self.kept.lock().ok()?;
        let found = kept.get(key)?;
        let fresh =
            found.state == *state && found.made_at <= now && now < found.made_at + LIFETIME / 2;
        fresh.then(|| found.der.clone())
    }

    fn keep(&self, key: Key, state: State, now: Timestamp, der: Arc<[u8]>) {
        // A poisoned lock means only that answers are signed anew.
        let Ok(mut kept) = self.kept.lock() else {
            return;
        };
        if kept.len() >= KEPT {
            let limit = now - LIFETIME / 2;
            kept.retain(|_, answer| answer.made_at > limit);
            if kept.len() >= KEPT {
                kept.clear();
            }
        }
        kept.insert(
            key,
            Kept {
                state,
                made_at: now,
                der,
            },
        );
    }
}

/// For the fuzz target of questions: what is read can be answered, in DER.
#[cfg(fuzzing)]
pub fn fuzz_question(der: &[u8]) {
    let Some(question) = Question::parse(der) else {
        return;
    };
    let now = Timestamp::UNIX_EPOCH;
    let revoked = State::Revoked(now, "key-compromise".into());
    let answer = || {
        let mut responses = Vec::new();
        for request in &question.requests {
            let id = &request.req_cert;
            assert!(serial(id).len().is_multiple_of(2), "{id:?}");
            for state in [&State::Good, &State::Unknown, &revoked] {
                responses.push(single(id, state, now)?);
            }
        }
        ResponseData {
            responder_id: wire::by_key(&[0; 20])?,
            produced_at: wire::time(now)?,
            responses,
            extensions: question.nonce.clone().map(|nonce| vec![nonce]),
        }
        .to_der()
    };
    let answer: Result<Vec<u8>, der::Error> = answer();
    assert!(answer.is_ok(), "{answer:?}");
}

fn is_sha256(id: &CertId) -> bool {
    id.hash_algorithm.oid == rfc5912::ID_SHA_256
}

/// The serial number as the database has it.
fn serial(id: &CertId) -> String {
    let bytes = id.serial_number.as_bytes();
    // DER puts a zero before a number whose first bit is set.
    let bytes = match bytes {
        [0, rest @ ..] if !rest.is_empty() => rest,
        bytes => bytes,
    };
    hex(bytes)
}

fn single(id: &CertId, state: &State, now: Timestamp) -> Result<SingleResponse, der::Error> {
    let cert_status = match state {
        State::Good => CertStatus::Good(Null),
        State::Unknown => CertStatus::Unknown(Null),
        State::Revoked(at, reason) => CertStatus::Revoked(RevokedInfo {
            revocation_time: wire::time(*at)?,
            revocation_reason: reason
                .parse::<RevocationReason>()
                .ok()
                .and_then(RevocationReason::entry),
        }),
    };
    Ok(SingleResponse {
        cert_id: id.clone(),
        cert_status,
        this_update: wire::time(now)?,
        next_update: Some(wire::time(now + LIFETIME)?),
    })
}
