//! A person agrees, as far as the grant wants it; a PIN that they type for it is the token's.
//!
//! Whether anybody is asked never is decided here: the grant says so. What the window shows is made
//! by `consent`.

use super::{ApprovalRequest, Asked, Pipeline, SigningError};
use crate::base::pkcs11::TokenId;
use crate::consent::{self, ConsentError, OnToken, PinProblem, Prompt};
use crate::device::DeviceError;
use crate::enrol::Installed;
use crate::policy::{Consent, ConsentMethod, ConsentRule, Grant};

/// What a person agreed to, or policy in their place.
#[derive(Debug, Clone)]
pub struct Agreed {
    /// How, and when.
    pub consent: Consent,
    /// How much it is worth.
    pub given: ConsentRule,
}

/// How often a person may mistype a PIN in a row; each is tried once.
const PIN_TRIES: usize = 3;

impl Pipeline {
    /// Has a person agree, as far as the grant wants it.
    pub(super) async fn ask(
        &self,
        request: &ApprovalRequest,
        asked: &Asked,
        installed: &Installed,
        grant: &Grant,
    ) -> Result<Agreed, SigningError> {
        let given = grant.consent();
        let method = match given {
            ConsentRule::None => ConsentMethod::Policy,
            ConsentRule::Confirm | ConsentRule::ConfirmWithPin => {
                let answer = self.ask_person(request, asked, installed, given).await;
                match answer {
                    Err(SigningError::Consent(ConsentError::Denied)) => {
                        return Err(SigningError::Denied);
                    }
                    answer => answer?,
                }
            }
        };
        Ok(Agreed {
            consent: Consent {
                method,
                at: self.clock.now().as_second(),
            },
            given,
        })
    }

    async fn ask_person(
        &self,
        request: &ApprovalRequest,
        asked: &Asked,
        installed: &Installed,
        wanted: ConsentRule,
    ) -> Result<ConsentMethod, SigningError> {
        let token = &installed.key.token;
        let by_hand = self.devices.by_hand(token)?;
        let mut prompt = Prompt::of_statement(
            asked.challenge.statement(),
            asked.payees.as_ref(),
            request.asked_by.clone(),
            self.asker.language(),
        );
        if by_hand.touch {
            prompt.on_token = Some(OnToken::Touch {
                label: token.label.clone(),
            });
        }
        let turn = self.asker.turn().await?;
        if wanted == ConsentRule::Confirm {
            return Ok(turn.confirm(&prompt).await?);
        }
        if by_hand.protected_path {
            prompt.on_token = Some(OnToken::Pin {
                label: token.label.clone(),
            });
            turn.confirm(&prompt).await?;
            let patience = self.asker.patience();
            self.devices.check_pin(token, None, patience).await?;
            return Ok(ConsentMethod::ProtectedPath);
        }
        self.ask_pin(&turn, &prompt, token).await
    }

    /// Each PIN that a person types is tried once, and never the last try of the token.
    async fn ask_pin(
        &self,
        turn: &consent::Turn<'_>,
        prompt: &Prompt,
        token: &TokenId,
    ) -> Result<ConsentMethod, SigningError> {
        let mut again = None;
        let mut left = PIN_TRIES;
        loop {
            let pin = turn.pin(prompt, &token.label, again).await?;
            left -= 1;
            let patience = self.asker.patience();
            let checked = self.devices.check_pin(token, Some(pin), patience).await;
            again = match checked {
                Ok(()) => return Ok(ConsentMethod::Pinentry),
                Err(DeviceError::PinWrong { .. }) if left > 0 => Some(PinProblem::Wrong),
                Err(DeviceError::PinLength { .. }) if left > 0 => Some(PinProblem::Length),
                Err(error) => return Err(error.into()),
            };
        }
    }
}
