//! The SMS gateway.

use std::io::Write;
use std::sync::mpsc;

use serde::{Deserialize, Serialize};

use super::store::accounts::Mobile;
use super::store::codes::Binding;
use crate::base::secret::SecretText;

/// The configured gateway.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayKind {
    /// One line on standard output: for a trial, not for people's money.
    #[default]
    Console,
}

/// How texts reach a mobile number.
#[derive(Debug, Clone)]
pub enum Gateway {
    /// See [`GatewayKind::Console`].
    Console,
    /// A handset in this process, which gets the line that [`Gateway::Console`] would print. No
    /// configuration leads here; a test holds the other end.
    Handset(mpsc::Sender<SecretText>),
}

impl From<GatewayKind> for Gateway {
    fn from(kind: GatewayKind) -> Self {
        match kind {
            GatewayKind::Console => Self::Console,
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

/// What a text says: purpose, computer, account, code, and never more.
pub fn text(code: &SecretText, binding: &Binding, minutes: u64) -> SecretText {
    SecretText::new(format!(
        "opcert code {}. Install an operating certificate on computer \"{}\" for account {}. \
         Valid {minutes} minutes. Tell nobody.",
        code.expose(),
        binding.computer_name,
        binding.account,
    ))
}

impl Gateway {
    /// Hands over a text.
    pub fn send(&self, mobile: &Mobile, text: &SecretText) -> Result<(), SmsError> {
        let line = SecretText::new(format!("SMS to {}: {}", mobile.as_str(), text.expose()));
        match self {
            Self::Console => {
                let mut out = std::io::stdout().lock();
                writeln!(out, "{}", line.expose())?;
                out.flush()?;
                Ok(())
            }
            Self::Handset(handset) => handset.send(line).map_err(|_| SmsError::Handset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_purpose_computer_and_account() {
        let binding = Binding {
            account: "acme".parse().unwrap(),
            operator: "alice".parse().unwrap(),
            computer: "c-1".parse().unwrap(),
            computer_name: "demo".into(),
        };
        let text = text(&SecretText::new("123456".into()), &binding, 5);
        assert_eq!(
            text.expose(),
            "opcert code 123456. Install an operating certificate on computer \"demo\" for \
             account acme. Valid 5 minutes. Tell nobody."
        );
    }
}
