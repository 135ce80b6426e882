//! Giving secrets to computers: who may have them, what they ask, what they get.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::{SecretError, Secrets, super_administrator};
use crate::account::signer::SignError;
use crate::account::sms::{self, News, Outgoing};
use crate::account::store::accounts::Operator;
use crate::account::store::secrets::{self, Delivery, Recipient, RecipientState, Secret};
use crate::account::store::{StoreError, Tx, certificates};
use crate::base::encoding::hex;
use crate::base::ids::RequestId;
use crate::base::jwe::RsaJwk;
use crate::base::secret::SecretText;
use crate::policy::Purpose;
use crate::statement::secret_request::Held;
use crate::statement::{SealedSecret, SecretKind, SecretRequest, sealed_secret};

/// Most merchants of one computer that get secrets of an account.
const MERCHANTS: i64 = 16;

/// Most new keys of one computer in a day.
const NEW_KEYS: i64 = 32;

/// The window of [`NEW_KEYS`].
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How far beyond what the service knows a computer's version may be: its database may have been
/// restored from a backup.
const AHEAD: u64 = 1_000_000;

/// What a computer gets.
#[derive(Debug, Clone)]
pub struct Given {
    /// Whether it gets any.
    pub state: RecipientState,
    /// What is newer than what it has, oldest first; JWS compact.
    pub secrets: Vec<String>,
}

impl Secrets {
    /// Lets a computer's key have the secrets, from now on. The caller has checked the login
    /// password again.
    pub async fn admit(
        &self,
        by: &Operator,
        kid: &str,
        request: &RequestId,
    ) -> Result<(), SecretError> {
        self.decide(by, kid, RecipientState::Active, request).await
    }

    /// Ends a computer's key: it gets no secret any more. What it has it may keep using, so a
    /// computer that is lost calls for new secrets.
    pub async fn dismiss(
        &self,
        by: &Operator,
        kid: &str,
        request: &RequestId,
    ) -> Result<(), SecretError> {
        self.decide(by, kid, RecipientState::Ended, request).await
    }

    async fn decide(
        &self,
        by: &Operator,
        kid: &str,
        state: RecipientState,
        request: &RequestId,
    ) -> Result<(), SecretError> {
        super_administrator(by)?;
        let (account, now) = (&by.account, self.clock.now());
        self.store
            .transaction("decide recipient", move |tx| {
                Box::pin(async move {
                    secrets::take_turn(tx, account).await?;
                    // One that another key took the place of does not come back.
                    let found = secrets::find_recipient(tx, account, kid)
                        .await?
                        .filter(|found| !found.replaced())
                        .ok_or(SecretError::RecipientUnknown)?;
                    if state == RecipientState::Active
                        && found.state == RecipientState::Ended
                        && in_use(tx, &found).await?
                    {
                        return Err(SecretError::RecipientUnknown);
                    }
                    let decided =
                        secrets::decide_recipient(tx, account, kid, state, &by.id, now).await?;
                    if !decided {
                        return Err(SecretError::RecipientState { state });
                    }
                    let event = match state {
                        RecipientState::Active => "recipient-active",
                        RecipientState::Waiting | RecipientState::Ended => "recipient-ended",
                    };
                    let body = json!({
                        "key": kid,
                        "computer": found.computer,
                        "merchant": found.merchant,
                        "by": by.id,
                    });
                    self.tell(tx, account, event, request, body).await
                })
            })
            .await
    }

    /// Takes a computer's request: notes what it has, and gives what is newer, if it may have it.
    pub async fn give(&self, compact: &str, request: &RequestId) -> Result<Given, SecretError> {
        let now = self.clock.now();
        let asked = &SecretRequest::verify(compact, self.issuer.anchors(), now)?;
        if asked.claims.aud != *self.challenge_key.origin() {
            return Err(SecretError::Audience);
        }
        let (state, texts) = self
            .store
            .transaction("hear computer", move |tx| {
                Box::pin(self.hear(tx, asked, now, request))
            })
            .await?;
        self.texts.send_all(texts).await;
        let secrets = match state {
            RecipientState::Active => self.newer(asked, now).await?,
            RecipientState::Waiting | RecipientState::Ended => Vec::new(),
        };
        Ok(Given { state, secrets })
    }

    /// The body of the transaction that notes a request.
    async fn hear(
        &self,
        tx: &mut Tx<'_>,
        asked: &SecretRequest,
        now: Timestamp,
        request: &RequestId,
    ) -> Result<(RecipientState, Vec<Outgoing>), SecretError> {
        let claims = &asked.claims;
        let (account, kid) = (&claims.account, claims.sealing_key.kid.as_str());
        secrets::take_turn(tx, account).await?;

        // The certificate is one that was issued here, and is in force at this instant.
        let serial = hex(asked.certificate.serial());
        let certificate = certificates::find(tx, &serial)
            .await?
            .filter(|known| known.der == asked.certificate.der())
            .ok_or(SecretError::CertificateUnknown)?;
        if let Some((at, _)) = certificate.revoked {
            return Err(SecretError::CertificateRevoked { at });
        }

        let signed_at = Timestamp::from_second(claims.iat).unwrap_or(now);
        let Some(known) = secrets::find_recipient(tx, account, kid).await? else {
            let texts = self.add(tx, asked, signed_at, now, request).await?;
            return Ok((RecipientState::Waiting, texts));
        };
        if known.computer != claims.computer || known.merchant != claims.merchant {
            return Err(SecretError::OtherRecipient);
        }
        if signed_at < known.seen_at {
            return Err(SecretError::Stale);
        }
        if known.state != RecipientState::Active {
            // What it says to have counts only once it may have something.
            secrets::heard(tx, account, kid, signed_at, Held::default()).await?;
            return Ok((known.state, Vec::new()));
        }
        for kind in [SecretKind::Api, SecretKind::ApiV3] {
            let (version, last) = (
                claims.held.of(kind),
                secrets::last_version(tx, account, kind).await?,
            );
            if version > last.saturating_add(AHEAD) {
                return Err(SecretError::Version { version });
            }
        }
        secrets::heard(tx, account, kid, signed_at, claims.held).await?;
        for secret in secrets::alive(tx, account, now).await? {
            let Some(version) = secret.version else {
                continue;
            };
            let arrived = version <= claims.held.of(secret.kind)
                && secrets::acknowledge(tx, &secret.id, kid, now).await?;
            if arrived {
                let body = json!({
                    "kind": secret.kind,
                    "version": version,
                    "computer": claims.computer,
                    "merchant": claims.merchant,
                    "key": kid,
                });
                self.records
                    .note::<SecretError>(tx, account, "secret-fetched", request, body)
                    .await?;
            }
        }
        Ok((RecipientState::Active, Vec::new()))
    }

    /// Adds a key that asks for the first time; the administrators are told.
    async fn add(
        &self,
        tx: &mut Tx<'_>,
        asked: &SecretRequest,
        signed_at: Timestamp,
        now: Timestamp,
        request: &RequestId,
    ) -> Result<Vec<Outgoing>, SecretError> {
        let claims = &asked.claims;
        let (account, computer) = (&claims.account, &claims.computer);
        let (new, in_use) = secrets::count_recipients(tx, account, computer, now - DAY).await?;
        for (count, limit, what) in [
            (new, NEW_KEYS, "new keys in a day"),
            (in_use, MERCHANTS, "merchants that ask for secrets"),
        ] {
            if count >= limit {
                return Err(SecretError::TooMany { what, limit });
            }
        }
        let recipient = Recipient {
            account: account.clone(),
            kid: claims.sealing_key.kid.clone(),
            computer: computer.clone(),
            merchant: claims.merchant.clone(),
            operator: asked.operator.clone(),
            state: RecipientState::Waiting,
            asked_at: now,
            seen_at: signed_at,
            decided: None,
            held: Held::default(),
        };
        secrets::insert_recipient(tx, &recipient, now).await?;
        let body = json!({
            "key": recipient.kid,
            "computer": computer,
            "merchant": recipient.merchant,
            "operator": recipient.operator,
        });
        self.tell(tx, account, "recipient-added", request, body)
            .await?;
        let name = certificates::computer_name(tx, account, computer).await?;
        let news = News::SecretsAsked {
            computer_name: name.unwrap_or_else(|| computer.to_string()),
        };
        Ok(sms::to_administrators(tx, &self.texts, account, &news, now).await?)
    }

    /// What is newer than what the computer has, sealed to its key and signed, oldest first. What
    /// was made before is given again.
    async fn newer(
        &self,
        asked: &SecretRequest,
        now: Timestamp,
    ) -> Result<Vec<String>, SecretError> {
        let claims = &asked.claims;
        let (account, kid) = (&claims.account, claims.sealing_key.kid.as_str());
        let (alive, made) = self
            .store
            .read("find secrets", move |tx| {
                Box::pin(async move {
                    let mut alive = Vec::new();
                    for secret in secrets::alive(tx, account, now).await? {
                        if let Some(sealed) = secrets::sealed(tx, &secret.id).await? {
                            alive.push((secret, sealed));
                        }
                    }
                    let made = secrets::deliveries(tx, account, Some(kid)).await?;
                    Ok::<_, SecretError>((alive, made))
                })
            })
            .await?;
        let mut statements = Vec::new();
        for (secret, sealed) in &alive {
            let Some(version) = secret
                .version
                .filter(|version| *version > claims.held.of(secret.kind))
            else {
                continue;
            };
            let earlier = made.iter().find(|delivery| {
                delivery.secret == secret.id && delivery.signed_by == self.challenge_key.kid()
            });
            if let Some(earlier) = earlier {
                statements.push(earlier.statement.clone());
                continue;
            }
            let opened = self.vault.open(secret, sealed).await?;
            let statement = self
                .seal(secret, version, &opened, &claims.sealing_key, now)
                .await?;
            drop(opened);
            let delivery = &Delivery {
                secret: secret.id.clone(),
                kid: kid.to_owned(),
                statement: statement.clone(),
                signed_by: self.challenge_key.kid().to_owned(),
                sealed_at: now,
                acknowledged_at: None,
            };
            let kept = self
                .store
                .transaction("keep delivery", move |tx| {
                    Box::pin(async move {
                        secrets::take_turn(tx, account).await?;
                        // It may have been destroyed, or the key ended, while it was sealed.
                        let there = secrets::sealed(tx, &secret.id).await?.is_some();
                        let active = secrets::find_recipient(tx, account, kid)
                            .await?
                            .is_some_and(|found| found.state == RecipientState::Active);
                        if there && active {
                            secrets::keep_delivery(tx, account, delivery).await?;
                        }
                        Ok::<_, SecretError>(there && active)
                    })
                })
                .await?;
            if kept {
                statements.push(statement);
            }
        }
        Ok(statements)
    }

    /// Seals one secret to a computer's key and signs it.
    async fn seal(
        &self,
        secret: &Secret,
        version: u64,
        opened: &SecretText,
        key: &RsaJwk,
        now: Timestamp,
    ) -> Result<String, SecretError> {
        let claims = SealedSecret {
            iss: self.challenge_key.origin().clone(),
            aud: "opcert".into(),
            iat: now.as_second(),
            sub: secret.account.clone(),
            kind: secret.kind,
            version,
            overlap_until: secret.overlap_until().unwrap_or(now).as_second(),
            jwe: sealed_secret::seal(key, secret.kind, opened)?,
        };
        let input = claims
            .signing_input(self.challenge_key.kid())
            .map_err(SignError::from)?;
        Ok(self
            .challenge_key
            .sign(Purpose::SealedSecret, input)
            .await?)
    }
}

/// Whether another key of the same merchant on the same computer is in use.
async fn in_use(tx: &mut Tx<'_>, found: &Recipient) -> Result<bool, StoreError> {
    let all = secrets::recipients(tx, &found.account).await?;
    Ok(all.iter().any(|other| {
        other.kid != found.kid
            && other.computer == found.computer
            && other.merchant == found.merchant
            && other.state != RecipientState::Ended
    }))
}
