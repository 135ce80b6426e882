//! Texts to mobile numbers: what they say, and the gateway they go through.
//!
//! A text may hold a code, so it is never stored: a row says that there is one, where it goes and
//! what became of it. The `webhook` gateway gets a signed request with the row's id as its key
//! against duplicates, and gets it again, after 1 s, 2 s, 4 s and so on, until it takes it or the
//! text is no longer of use; a process that ends meanwhile takes the text with it, and the person
//! asks for another code.

use std::io::Write;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::Sms;
use super::outgoing::{self, Endpoint, EndpointError};
use super::store::accounts::{self, Language, Mobile};
use super::store::codes::CodeUse;
use super::store::messages::{self, Message};
use super::store::{Store, StoreError, Tx};
use crate::base::Clock;
use crate::base::backoff::doubling;
use crate::base::ids::{AccountId, Jti};
use crate::base::secret::SecretText;
use crate::statement::SecretKind;

/// The first delay of the webhook gateway, doubled after each try.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The longest.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// How long a text without a code is of use.
pub const NEWS_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// The configured gateway.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayKind {
    /// One line on standard output: for a trial, not for people's money.
    #[default]
    Console,
    /// A signed HTTP request to the address in `[sms.webhook]`.
    Webhook,
}

/// How texts reach a mobile number.
#[derive(Clone)]
pub enum Gateway {
    /// See [`GatewayKind::Console`].
    Console,
    /// See [`GatewayKind::Webhook`].
    Webhook(Arc<Endpoint>),
    /// A handset in this process, which gets the line that [`Gateway::Console`] would print. No
    /// configuration leads here; a test holds the other end.
    Handset(mpsc::Sender<SecretText>),
}

impl Gateway {
    /// The gateway that the configuration names.
    pub fn open(config: &Sms) -> Result<Self, EndpointError> {
        match (config.gateway, &config.webhook) {
            (GatewayKind::Webhook, Some(webhook)) => {
                let trust = outgoing::trust(webhook.ca_file.as_deref())?;
                let secret = outgoing::secret(&webhook.secret_file)?;
                let endpoint = Endpoint::new(&webhook.url, trust, &secret)?;
                Ok(Self::Webhook(Arc::new(endpoint)))
            }
            // The check of the configuration refuses a webhook without its address.
            (GatewayKind::Webhook, None) | (GatewayKind::Console, _) => Ok(Self::Console),
        }
    }
}

/// The text could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum SmsError {
    /// Standard output is gone.
    #[error("cannot print the SMS")]
    Console {
        /// Why.
        #[from]
        source: std::io::Error,
    },
    /// Nobody holds the handset.
    #[error("the handset is gone")]
    Handset,
}

/// What the text with a code says: purpose, computer, account, code, and never more.
pub fn code_text(
    code: &SecretText,
    purpose: &CodeUse,
    account: &AccountId,
    language: Language,
    minutes: u64,
) -> SecretText {
    let code = code.expose();
    SecretText::new(match language {
        Language::En => {
            let what = match purpose {
                CodeUse::Install { computer_name, .. } => format!(
                    "Install an operating certificate on computer \"{computer_name}\" for account \
                     {account}"
                ),
                CodeUse::SecretChange { subject } => {
                    format!("Change the {} of account {account}", secret_name(subject))
                }
                CodeUse::Recovery { .. } => {
                    format!("Ask for a new way into account {account} after a loss")
                }
            };
            format!("opcert code {code}. {what}. Valid {minutes} minutes. Tell nobody.")
        }
        Language::Zh => {
            let what = match purpose {
                CodeUse::Install { computer_name, .. } => {
                    format!("您正在电脑“{computer_name}”上为商户 {account} 安装操作证书")
                }
                CodeUse::SecretChange { subject } => {
                    format!("您正在修改商户 {account} 的{}", secret_name_zh(subject))
                }
                CodeUse::Recovery { .. } => format!("您正在申请恢复商户 {account} 的操作权限"),
            };
            format!("opcert 验证码 {code}。{what}，{minutes} 分钟内有效，请勿告诉任何人。")
        }
    })
}

fn secret_name(subject: &str) -> &'static str {
    if subject == "apiv3" {
        "APIv3 secret"
    } else {
        "API secret"
    }
}

fn secret_name_zh(subject: &str) -> &'static str {
    if subject == "apiv3" {
        "APIv3 密钥"
    } else {
        "API 密钥"
    }
}

/// Something a person is told by SMS, without a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A certificate was installed.
    Installed {
        /// On this computer.
        computer_name: String,
    },
    /// A certificate was deleted.
    Deleted {
        /// On this computer.
        computer_name: String,
    },
    /// A secret was set.
    SecretSet {
        /// Which.
        kind: SecretKind,
    },
    /// A computer asks for the secrets of the account.
    SecretsAsked {
        /// What its operators call it.
        computer_name: String,
    },
    /// A new mobile number, or a new computer after a loss, was granted; until then it can be
    /// stopped.
    Granted {
        /// When it takes effect.
        at: Timestamp,
    },
}

/// What news say.
pub fn news_text(news: &News, account: &AccountId, language: Language) -> SecretText {
    SecretText::new(match (language, news) {
        (Language::En, News::Installed { computer_name }) => format!(
            "opcert: an operating certificate of account {account} was installed on computer \
             \"{computer_name}\". If nobody of yours did that, delete it at once."
        ),
        (Language::Zh, News::Installed { computer_name }) => format!(
            "opcert：商户 {account} 的操作证书已安装到电脑“{computer_name}”。如非本人操作，请立即删除。"
        ),
        (Language::En, News::Deleted { computer_name }) => format!(
            "opcert: an operating certificate of account {account} on computer \
             \"{computer_name}\" was deleted."
        ),
        (Language::Zh, News::Deleted { computer_name }) => {
            format!("opcert：商户 {account} 在电脑“{computer_name}”上的操作证书已删除。")
        }
        (Language::En, News::SecretSet { kind }) => format!(
            "opcert: the {} of account {account} was changed. If nobody of yours did that, log in \
             and look at API Security at once.",
            secret_name(kind.as_str())
        ),
        (Language::Zh, News::SecretSet { kind }) => format!(
            "opcert：商户 {account} 的{}已修改。如非本人操作，请立即登录并查看“API 安全”。",
            secret_name_zh(kind.as_str())
        ),
        (Language::En, News::SecretsAsked { computer_name }) => format!(
            "opcert: computer \"{computer_name}\" asks for the API secrets of account {account}. \
             The super administrator decides about it under API Security."
        ),
        (Language::Zh, News::SecretsAsked { computer_name }) => format!(
            "opcert：电脑“{computer_name}”申请获取商户 {account} 的 API 密钥，请超级管理员在“API 安全”中处理。"
        ),
        (Language::En, News::Granted { at }) => format!(
            "opcert: somebody lost access to account {account} and it will be given again at {at}. \
             If that was not you, log in and withdraw the request before then."
        ),
        (Language::Zh, News::Granted { at }) => format!(
            "opcert：商户 {account} 的访问恢复申请已获批准，将于 {at} 生效。如非本人申请，请在此之前登录并撤回。"
        ),
    })
}

/// Prepares a text with `news` for each administrator of an account; those who share a number get
/// one.
pub async fn to_administrators(
    tx: &mut Tx<'_>,
    texts: &Texts,
    account: &AccountId,
    news: &News,
    now: Timestamp,
) -> Result<Vec<Outgoing>, StoreError> {
    let mut outgoing: Vec<Outgoing> = Vec::new();
    for person in accounts::operators(tx, account).await? {
        let told = |text: &Outgoing| text.message.mobile == person.mobile;
        if !person.role.manages() || outgoing.iter().any(told) {
            continue;
        }
        let text = news_text(news, account, person.language);
        let until = now + NEWS_LIFETIME;
        outgoing.push(
            texts
                .prepare(tx, &person.mobile, "news", text, until)
                .await?,
        );
    }
    Ok(outgoing)
}

/// A text on its way.
#[derive(Debug)]
pub struct Outgoing {
    message: Message,
    text: SecretText,
    /// When it is of no more use.
    until: Timestamp,
}

/// Sends texts; cloning shares the gateway.
#[derive(Clone)]
pub struct Texts {
    store: Store,
    clock: Clock,
    gateway: Gateway,
}

impl Texts {
    /// Through `gateway`.
    pub fn new(store: Store, clock: Clock, gateway: Gateway) -> Self {
        Self {
            store,
            clock,
            gateway,
        }
    }

    /// Notes a text in the transaction that gives the reason for it; [`Texts::send`] follows once
    /// that is committed.
    pub async fn prepare(
        &self,
        tx: &mut Tx<'_>,
        mobile: &Mobile,
        purpose: &'static str,
        text: SecretText,
        until: Timestamp,
    ) -> Result<Outgoing, StoreError> {
        let message = Message {
            id: Jti::random().to_string(),
            mobile: mobile.clone(),
            purpose: purpose.to_owned(),
            created_at: self.clock.now(),
        };
        messages::insert(tx, &message).await?;
        Ok(Outgoing {
            message,
            text,
            until,
        })
    }

    /// Hands a text to the gateway. The webhook gateway works on after this returns.
    pub async fn send(&self, outgoing: Outgoing) -> Result<(), SmsError> {
        let line = SecretText::new(format!(
            "SMS to {}: {}",
            outgoing.message.mobile.as_str(),
            outgoing.text.expose()
        ));
        let result = match &self.gateway {
            Gateway::Console => {
                let mut out = std::io::stdout().lock();
                writeln!(out, "{}", line.expose())
                    .and_then(|()| out.flush())
                    .map_err(SmsError::from)
            }
            Gateway::Handset(handset) => handset.send(line).map_err(|_| SmsError::Handset),
            Gateway::Webhook(endpoint) => {
                let (texts, endpoint) = (self.clone(), endpoint.clone());
                tokio::spawn(async move { texts.deliver(&endpoint, outgoing).await });
                return Ok(());
            }
        };
        let error = result.as_ref().err().map(ToString::to_string);
        self.settle(&outgoing.message.id, 1, true, error).await;
        result
    }

    /// Sends all of them; failures are in their rows and in the log.
    pub async fn send_all(&self, outgoing: Vec<Outgoing>) {
        for text in outgoing {
            if let Err(error) = self.send(text).await {
                tracing::warn!(%error, "a text was not sent");
            }
        }
    }

    async fn deliver(&self, endpoint: &Endpoint, outgoing: Outgoing) {
        let message = &outgoing.message;
        let body = SecretText::new(
            json!({
                "id": message.id,
                "to": message.mobile.as_str(),
                "purpose": message.purpose,
                "text": outgoing.text.expose(),
                "expires_at": outgoing.until.to_string(),
            })
            .to_string(),
        );
        let mut attempt = 0;
        loop {
            attempt += 1;
            let now = self.clock.now();
            let Err(error) = endpoint.post(&message.id, body.expose(), now).await else {
                self.settle(&message.id, attempt, true, None).await;
                return;
            };
            let wait = doubling(attempt, FIRST_DELAY, LONGEST_DELAY);
            let over = self.clock.now() + wait >= outgoing.until;
            tracing::warn!(message = message.id, attempt, %error, "the gateway did not take a text");
            self.settle(&message.id, attempt, over, Some(error.to_string()))
                .await;
            if over {
                return;
            }
            // Back-off: the gateway tells nobody when it would take a text again.
            tokio::time::sleep(wait).await;
        }
    }

    async fn settle(&self, id: &str, attempts: i64, last: bool, error: Option<String>) {
        let state = match (last, &error) {
            (_, None) => "accepted",
            (true, Some(_)) => "failed",
            (false, Some(_)) => "sending",
        };
        let (now, error) = (self.clock.now(), error.as_deref());
        let settled: Result<(), StoreError> = self
            .store
            .transaction("settle text", move |tx| {
                Box::pin(messages::settle(tx, id, state, attempts, error, now))
            })
            .await;
        if let Err(error) = settled {
            tracing::error!(%error, "cannot note what became of a text");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_purpose_computer_and_account() {
        let install = CodeUse::Install {
            computer: "c-1".parse().unwrap(),
            computer_name: "demo".into(),
            token_serial: None,
        };
        let secret = CodeUse::SecretChange {
            subject: "apiv3".into(),
        };
        let say = |purpose: &CodeUse, language| {
            let code = SecretText::new("123456".into());
            code_text(&code, purpose, &"acme".parse().unwrap(), language, 5)
                .expose()
                .to_owned()
        };
        assert_eq!(
            say(&install, Language::En),
            "opcert code 123456. Install an operating certificate on computer \"demo\" for \
             account acme. Valid 5 minutes. Tell nobody."
        );
        assert_eq!(
            say(&install, Language::Zh),
            "opcert 验证码 123456。您正在电脑“demo”上为商户 acme 安装操作证书，5 分钟内有效，请勿告诉任何人。"
        );
        assert!(say(&secret, Language::En).contains("Change the APIv3 secret of account acme."));
        assert!(say(&secret, Language::Zh).contains("APIv3 密钥"));
    }
}
