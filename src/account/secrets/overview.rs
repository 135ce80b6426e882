//! What people see of secrets: when, by whom, where; never what they are.

use jiff::Timestamp;

use super::{SecretError, Secrets, administrator};
use crate::account::store::accounts::Operator;
use crate::account::store::certificates;
use crate::account::store::secrets::{self, Delivery, Recipient, RecipientState, Secret};
use crate::statement::SecretKind;

/// One kind of secret as people see it: never what it is.
#[derive(Debug, Clone)]
pub struct KindView {
    /// Which.
    pub kind: SecretKind,
    /// The current one.
    pub current: Option<Secret>,
    /// The one before, while it is still read.
    pub before: Option<Secret>,
    /// One that waits for approvals.
    pub waiting: Option<Secret>,
}

/// How far the current secret of a kind has come on its way to a computer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// There is none.
    None,
    /// The super administrator has not let the computer have it, or lets it no more.
    Withheld,
    /// The computer has not asked since.
    Pending,
    /// It was given to a courier.
    Sealed {
        /// When.
        at: Timestamp,
    },
    /// The computer has it.
    Held,
}

/// A computer's key as people see it.
#[derive(Debug, Clone)]
pub struct RecipientView {
    /// The key.
    pub recipient: Recipient,
    /// What its operators call the computer.
    pub computer_name: String,
    /// How far the API secret has come.
    pub api: Arrival,
    /// How far the APIv3 secret has come.
    pub apiv3: Arrival,
}

/// All about the secrets of an account.
#[derive(Debug, Clone)]
pub struct Overview {
    /// The API secret, then the APIv3 secret.
    pub kinds: [KindView; 2],
    /// Computers that ask for them.
    pub recipients: Vec<RecipientView>,
}

impl Secrets {
    /// All about the secrets of an account, for its administrators.
    pub async fn overview(&self, by: &Operator) -> Result<Overview, SecretError> {
        administrator(by)?;
        let (account, now) = (&by.account, self.clock.now());
        self.store
            .read("show secrets", move |tx| {
                Box::pin(async move {
                    let alive = secrets::alive(tx, account, now).await?;
                    let kinds =
                        [SecretKind::Api, SecretKind::ApiV3].map(|kind| KindView::of(kind, &alive));
                    let deliveries = secrets::deliveries(tx, account, None).await?;
                    let mut recipients = Vec::new();
                    for recipient in secrets::recipients(tx, account).await? {
                        let name =
                            certificates::computer_name(tx, account, &recipient.computer).await?;
                        let arrival = |kind: &KindView| kind.arrival(&recipient, &deliveries);
                        recipients.push(RecipientView {
                            api: arrival(&kinds[0]),
                            apiv3: arrival(&kinds[1]),
                            computer_name: name.unwrap_or_else(|| recipient.computer.to_string()),
                            recipient,
                        });
                    }
                    Ok::<_, SecretError>(Overview { kinds, recipients })
                })
            })
            .await
    }
}

impl KindView {
    fn of(kind: SecretKind, alive: &[Secret]) -> Self {
        let find = |wanted: fn(&Secret) -> bool| {
            let mut fitting = alive.iter().filter(|secret| secret.kind == kind);
            fitting.find(|secret| wanted(secret)).cloned()
        };
        Self {
            kind,
            current: find(|secret| secret.version.is_some() && secret.ends_at.is_none()),
            before: find(|secret| secret.version.is_some() && secret.ends_at.is_some()),
            waiting: find(|secret| secret.version.is_none()),
        }
    }

    fn arrival(&self, recipient: &Recipient, deliveries: &[Delivery]) -> Arrival {
        let Some(current) = &self.current else {
            return Arrival::None;
        };
        if current.version.unwrap_or_default() <= recipient.held.of(self.kind) {
            return Arrival::Held;
        }
        if recipient.state != RecipientState::Active {
            return Arrival::Withheld;
        }
        let made = deliveries
            .iter()
            .find(|delivery| delivery.kid == recipient.kid && delivery.secret == current.id);
        match made {
            Some(delivery) => Arrival::Sealed {
                at: delivery.sealed_at,
            },
            None => Arrival::Pending,
        }
    }
}
