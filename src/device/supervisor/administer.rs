//! The supervisor's part in making a token or setting a PIN: a worker of its own is started for it,
//! the PIN that changes is taken out of use meanwhile, and what came of it is recorded.
//!
//! Why it is done like this is told in `device::administer`, which asks for it.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::command::Command;
use super::view::{selects, token_id};
use super::{Leave, Supervisor};
use crate::base::pkcs11::{TokenId, TokenUri};
use crate::base::secret::Pin;
use crate::device::error::{DeviceError, call_error, unexpected};
use crate::device::frames::{
    Administer, AdministerRefusal as Refusal, Administered, Answer, Target, Verb, Whose, Work,
};
use crate::device::link::{CallError, Link};
use crate::device::pins::guard::{self, Settled};
use crate::device::tokens::TokenState;

/// Work for a supervisor.
pub struct Order {
    /// What to do.
    pub asked: Administer,
    /// Whose PIN changes; `None` for a token to be made.
    pub token: Option<TokenId>,
    /// The user's PIN afterwards.
    pub new: Option<Pin>,
    /// How long it may take.
    pub budget: Duration,
    /// Where the supervisor is told how it ended, whether or not somebody still waits.
    pub back: mpsc::Sender<Command>,
    /// Where whoever asked is told.
    pub done: oneshot::Sender<Result<TokenId, DeviceError>>,
}

impl Order {
    /// It cannot be done now.
    pub fn refuse(self, error: DeviceError) {
        let _gone = self.done.send(Err(error));
    }
}

/// How it stands with a PIN after the work.
pub struct PinSettled {
    pub token: TokenId,
    /// The one the machine may use from now on.
    pub pin: Option<Pin>,
    /// Where it is a new one: who is told once a worker that knows of it is up.
    pub renewed: Option<oneshot::Sender<()>>,
}

impl Supervisor {
    /// Has a worker of its own do the work, beside this task.
    pub async fn administer(&mut self, order: Order) {
        if let Some(token) = self.in_use(&order) {
            return order.refuse(DeviceError::TokenInUse {
                token,
                by: "this program; run `opcert token release` first",
            });
        }
        let mut other = match self.spawn().await {
            Ok((other, _)) => other,
            Err(error) => return order.refuse(error),
        };
        let Order {
            asked,
            token,
            new,
            budget,
            back,
            done,
        } = order;
        // Nobody may try the old PIN while it changes.
        let kept = token.as_ref().and_then(|token| self.pins.remove(token));
        let source = token.as_ref().and_then(|token| {
            let view = self.view.borrow().clone();
            let known = view.tokens.iter().find(|known| known.id == *token)?;
            guard::read_pin(&self.source_of(known)?).ok()
        });
        let (guard, name) = (self.guard.clone(), self.config.name.clone());
        tokio::spawn(async move {
            let function = asked.work.function();
            let subject = match (&token, &asked.target) {
                (Some(token), _) => token.to_string(),
                (None, Target::Blank) => format!("the blank token of module {name}"),
                (None, Target::Named { label, serial }) => TokenUri {
                    token: label.clone(),
                    serial: serial.clone(),
                    ..TokenUri::default()
                }
                .to_string(),
            };
            let turn = match &token {
                Some(token) => Some(guard.turn(token).await),
                None => None,
            };
            let attempt = match &token {
                Some(token) => match guard.begin(token, None).await {
                    Ok(attempt) => Some(attempt),
                    Err(error) => {
                        settle_pin(&back, token.clone(), kept, None).await;
                        let _gone = done.send(Err(error));
                        return other.retire().await;
                    }
                },
                None => None,
            };
            let verb = Verb::Administer(Box::new(asked));
            let (settled, result) = match other.link().call(verb, budget).await {
                Ok(Answer::Administered(outcome)) => {
                    judge(&name, &subject, outcome, new.as_ref(), source.as_ref())
                }
                Ok(_) => (None, Err(unexpected(&name))),
                // Whether it was done is not known: the entry stays.
                Err(error @ CallError::Ended(_)) => {
                    let error = call_error(&name, error, &subject, &subject, function, budget);
                    (None, Err(error))
                }
                Err(error) => {
                    let error = call_error(&name, error, &subject, &subject, function, budget);
                    (Some(Settled::NotTried), Err(error))
                }
            };
            let is_set = result.is_ok() && token.is_some();
            let pin = match &settled {
                Some(Settled::NotTried) => kept,
                _ if result.is_ok() => new,
                _ => None,
            };
            let recorded = match (settled, attempt) {
                (Some(settled), Some(attempt)) => guard.settle(attempt, settled).await,
                _ => Ok(()),
            };
            // Both may want the token for themselves.
            other.retire().await;
            let (renewed, up) = oneshot::channel();
            let renewed = is_set.then_some(renewed);
            match &token {
                Some(token) => settle_pin(&back, token.clone(), pin, renewed).await,
                // An error means that the devices are being shut down.
                None if result.is_ok() => {
                    let _stopped = back.send(Command::Renew).await.is_err();
                }
                None => {}
            }
            drop(turn);
            // An error means that there is nothing to wait for.
            let _at_once = up.await;
            let _gone = done.send(result.and_then(|token| recorded.map(|()| token)));
        });
    }

    /// The token to be made, if it is one that signs here now.
    fn in_use(&self, order: &Order) -> Option<String> {
        let Work::Init { .. } = order.asked.work else {
            return None;
        };
        let Target::Named { label, serial } = &order.asked.target else {
            return None;
        };
        let uri = TokenUri {
            token: label.clone(),
            serial: serial.clone(),
            ..TokenUri::default()
        };
        let view = self.view.borrow().clone();
        let mut ready = view
            .tokens
            .iter()
            .filter(|token| token.state == TokenState::Ready);
        ready
            .find(|token| {
                let found = token.found.as_ref();
                found.is_some_and(|info| selects(&uri, &self.config.name, info))
            })
            .and_then(|token| token.found.as_ref())
            .map(|info| token_id(&self.config.name, info).to_string())
    }

    /// Takes back what the machine may use of a PIN, and has somebody log in with it where nobody is:
    /// with a new one another worker, as a library may go by what it read of the old one at its start.
    pub async fn pin_settled(&mut self, link: &Link, settled: PinSettled) -> Option<Leave> {
        let PinSettled {
            token,
            pin,
            renewed,
        } = settled;
        // Without one that the machine knows, nobody could log in again.
        let pin = pin?;
        self.pins.insert(token.clone(), pin);
        if let Some(renewed) = renewed {
            self.looking.push(renewed);
            return Some(Leave::LookAgain);
        }
        let view = self.view.borrow().clone();
        let mut same = view.tokens.iter().filter(|known| known.id == token);
        let waits =
            same.any(|known| !matches!(known.state, TokenState::Ready | TokenState::Released));
        if waits {
            // What comes of it shows in the view.
            let _ended = self.look_and_log_in(link, &token).await;
        }
        None
    }
}

async fn settle_pin(
    back: &mpsc::Sender<Command>,
    token: TokenId,
    pin: Option<Pin>,
    renewed: Option<oneshot::Sender<()>>,
) {
    let settled = Command::PinSettled(PinSettled {
        token,
        pin,
        renewed,
    });
    // An error means that the devices are being shut down.
    let _stopped = back.send(settled).await.is_err();
}

/// What an outcome means for the guard, and for whoever asked.
fn judge(
    module: &str,
    subject: &str,
    outcome: Administered,
    new: Option<&Pin>,
    source: Option<&Pin>,
) -> (Option<Settled>, Result<TokenId, DeviceError>) {
    let token = subject.to_owned();
    match outcome {
        Administered::Done { label, serial } => {
            let settled = match (source, new) {
                (Some(source), Some(new)) if guard::same(source, new) => Settled::TakenFromSource,
                (Some(_), Some(_)) => Settled::TakenNotFromSource,
                _ => Settled::Taken,
            };
            let token = TokenId {
                module: module.to_owned(),
                label,
                serial,
            };
            (Some(settled), Ok(token))
        }
        Administered::Refused(refusal) => (
            Some(Settled::NotTried),
            Err(refused(module, token, refusal)),
        ),
        // It says nothing about the PIN that the machine may try.
        Administered::Wrong { whose, code } => {
            let error = match whose {
                Whose::User => DeviceError::PinWrong { token, code },
                Whose::SecurityOfficer => DeviceError::SoPinWrong { token, code },
            };
            (Some(Settled::NotTried), Err(error))
        }
        Administered::Failed {
            function,
            code,
            initialized: true,
        } => {
            let error = DeviceError::HalfMade {
                token,
                function,
                code: code.clone(),
            };
            (Some(Settled::Refused(code)), Err(error))
        }
        Administered::Failed {
            function,
            code,
            initialized: false,
        } => {
            let error = DeviceError::Pkcs11 {
                token,
                function,
                code: code.clone(),
            };
            (Some(Settled::Refused(code)), Err(error))
        }
    }
}

fn refused(module: &str, token: String, refusal: Refusal) -> DeviceError {
    match refusal {
        Refusal::Missing => DeviceError::TokenAbsent { token },
        Refusal::Several(count) => DeviceError::TokenAmbiguous {
            uri: format!("{token} (module {module})"),
            count: count.into(),
        },
        Refusal::HoldsKeys { seen, shown } => DeviceError::TokenHoldsKeys {
            token,
            seen,
            objects: shown,
        },
        Refusal::InUse => DeviceError::TokenInUse {
            token,
            by: "another program; end it first",
        },
        Refusal::PinLength { min, max } => DeviceError::PinUnfit { token, min, max },
        Refusal::Locked(Whose::User) => DeviceError::PinLocked { token },
        Refusal::Locked(Whose::SecurityOfficer) => DeviceError::SoPinLocked { token },
        Refusal::FinalTry(Whose::User) => DeviceError::PinFinalTry { token },
        Refusal::FinalTry(Whose::SecurityOfficer) => DeviceError::SoPinFinalTry { token },
        Refusal::WriteProtected => DeviceError::Unusable {
            token,
            reason: "it is write-protected".into(),
        },
        Refusal::PinMissing => DeviceError::PinNeeded { token },
    }
}
