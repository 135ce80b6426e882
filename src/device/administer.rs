//! Making tokens, and setting their PINs.
//!
//! Vendor code for it runs in a worker of its own, which has no session yet, as `C_InitToken` wants
//! it, and is gone afterwards. The worker that signs is not disturbed by a new PIN: it stays logged
//! in. After a token was made it is replaced, as libraries see new tokens only then.
//!
//! A user's PIN that is asked for goes through the [`PinGuard`](super::pin_guard) like any other:
//! flags first, never the final try unless a person says so, one try, and a crash in the middle
//! blocks. A wrong one says nothing about the PIN that the machine may try on its own. While the
//! PIN changes, the supervisor does not have the old one: nothing can try it. Whether the new one
//! is also in the configured source is found out, and if not, the source is not tried any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::catalogue::{TokenState, selects, token_id};
use super::error::DeviceError;
use super::frames::{
    Administer, AdministerRefusal as Refusal, Administered, Answer, HeldKeys, HeldObject, LastTry,
    PinBytes, Target, Verb, Whose, Work,
};
use super::link::CallError;
use super::pin_guard::{self, Settled};
use super::supervisor::{BY_HAND, Command, Supervisor, call_error, unexpected};
use super::{Devices, Module, uri_of};
use crate::base::pkcs11::{TokenId, TokenUri};
use crate::base::secret::Pin;

/// The most bytes of a token's label (`CK_TOKEN_INFO`).
const TOKEN_LABEL_MAX: usize = 32;

/// A token to be made.
#[derive(Debug)]
pub struct NewToken {
    /// The configured module; may be left out where there is one.
    pub module: Option<String>,
    /// Which token is initialized again, and loses all it holds; without one it is the only token
    /// of the module that is not initialized.
    pub target: Option<TokenUri>,
    /// Its label, 1 to 32 bytes.
    pub label: String,
    /// The security officer's PIN: the one it has, or of a blank token the one it gets. `None` where
    /// the token asks for it itself, as for the next.
    pub so_pin: Option<Pin>,
    /// The user's PIN that it gets.
    pub user_pin: Option<Pin>,
    /// Whether a token that holds keys may lose them.
    pub keys: HeldKeys,
    /// Whether the last try of the security officer's PIN may be used.
    pub last_try: LastTry,
}

/// A token that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeToken {
    /// Its name.
    pub token: TokenId,
    /// Its state; `None` if the configuration selects it nowhere.
    pub state: Option<TokenState>,
}

/// Whose PIN allows a new one for the user.
#[derive(Debug)]
pub enum PinOf {
    /// The user's own, as it is; `None` where the token asks for it itself.
    User(Option<Pin>),
    /// The security officer's, where the user's is locked or forgotten.
    SecurityOfficer(Option<Pin>),
}

/// Work for a supervisor.
pub(super) struct Order {
    asked: Administer,
    /// Whose PIN changes; `None` for a token to be made.
    token: Option<TokenId>,
    /// The user's PIN afterwards.
    new: Option<Pin>,
    budget: Duration,
    /// Where the supervisor is told how it ended, whether or not somebody still waits.
    back: mpsc::Sender<Command>,
    done: oneshot::Sender<Result<TokenId, DeviceError>>,
}

impl Order {
    /// It cannot be done now.
    pub fn refuse(self, error: DeviceError) {
        let _gone = self.done.send(Err(error));
    }
}

/// How it stands with a PIN after the work.
pub(super) struct PinSettled {
    pub token: TokenId,
    /// The one the machine may use from now on.
    pub pin: Option<Pin>,
}

impl Devices {
    /// Makes a token: `C_InitToken`, then the user's PIN. Everything it held is destroyed.
    ///
    /// Refuses a token that is in use here, or that holds keys unless told. Where the configuration
    /// selects the new token it is unlocked with its new PIN.
    pub async fn init_token(&self, new: NewToken) -> Result<MadeToken, DeviceError> {
        let NewToken {
            module,
            target,
            label,
            so_pin,
            user_pin,
            keys,
            last_try,
        } = new;
        let fits = (1..=TOKEN_LABEL_MAX).contains(&label.len())
            && !label.chars().any(char::is_control)
            && label.trim() == label;
        if !fits {
            return Err(DeviceError::LabelUnfit {
                limit: TOKEN_LABEL_MAX,
            });
        }
        let name = module.map_or_else(|| self.only_module(), Ok)?;
        let module = self.part_for(&name, target.as_ref())?;
        let (so_pin, user_pin) = (checked(so_pin)?, checked(user_pin)?);
        let asked = Administer {
            target: match target {
                None => Target::Blank,
                Some(uri) => Target::Named {
                    label: uri.token,
                    serial: uri.serial,
                },
            },
            work: Work::Init {
                label,
                so_pin: bytes(&so_pin),
                user_pin: bytes(&user_pin),
                keys,
            },
            last_try,
        };
        let budget = budget(module.config.generate_timeout, &user_pin);
        let token = administer(&module, asked, None, user_pin.clone(), budget).await?;
        for other in self.parts(&name)? {
            // The worker of the part that made it is replaced by its own supervisor.
            if !Arc::ptr_eq(&other, &module) {
                other.command(Command::Renew).await?;
            }
        }
        // It is there now, and the worker that is being started sees it.
        let state = match self.select(&uri_of(&token)).await {
            Ok(found) if found == token => {
                // Where the token asks for it itself, a person unlocks it when they need it.
                if let Some(pin) = user_pin
                    && let Err(error) = self.unlock(&token, pin, LastTry::Keep).await
                {
                    tracing::warn!(%token, %error, "made, and not unlocked");
                }
                let list = self.tokens().await;
                let known = list.into_iter().find(|known| known.id == token);
                known.map(|known| known.state)
            }
            Ok(_) | Err(_) => None,
        };
        Ok(MadeToken { token, state })
    }

    /// The keys and certificates that a token shows without a login, at most 32, and how many there
    /// are; what [`Devices::init_token`] would destroy, beside what shows only after a login.
    /// Refuses a token that is in use here, as that does.
    pub async fn held_objects(
        &self,
        module: Option<&str>,
        target: &TokenUri,
    ) -> Result<(Vec<HeldObject>, u32), DeviceError> {
        let name = module.map_or_else(|| self.only_module(), |name| Ok(name.to_owned()))?;
        let module = self.part_for(&name, Some(target))?;
        let asked = Administer {
            target: Target::Named {
                label: target.token.clone(),
                serial: target.serial.clone(),
            },
            work: Work::Init {
                label: String::new(),
                so_pin: None,
                user_pin: None,
                keys: HeldKeys::Tell,
            },
            last_try: LastTry::Keep,
        };
        let budget = module.config.call_timeout;
        match administer(&module, asked, None, None, budget).await {
            Err(DeviceError::TokenHoldsKeys { seen, objects, .. }) => Ok((objects, seen)),
            Err(error) => Err(error),
            Ok(_) => Err(unexpected(&module.config.name)),
        }
    }

    /// Gives the user of a token a new PIN. One try of the PIN that allows it.
    pub async fn set_pin(
        &self,
        token: &TokenId,
        by: PinOf,
        new: Option<Pin>,
        last_try: LastTry,
    ) -> Result<(), DeviceError> {
        let new = checked(new)?;
        let work = match by {
            PinOf::User(old) => Work::ChangePin {
                old: bytes(&checked(old)?),
                new: bytes(&new),
            },
            PinOf::SecurityOfficer(so_pin) => Work::ResetPin {
                so_pin: bytes(&checked(so_pin)?),
                new: bytes(&new),
            },
        };
        let asked = Administer {
            target: Target::Named {
                label: Some(token.label.clone()),
                serial: Some(token.serial.clone()),
            },
            work,
            last_try,
        };
        let module = self.module_of(token)?;
        let budget = budget(module.config.call_timeout, &new);
        administer(&module, asked, Some(token.clone()), new, budget)
            .await
            .map(drop)
    }

    fn only_module(&self) -> Result<String, DeviceError> {
        let modules = self.0.modules.load();
        let mut names: Vec<&String> = modules.iter().map(|module| &module.config.name).collect();
        names.dedup();
        match names.as_slice() {
            [one] => Ok((*one).clone()),
            several => Err(DeviceError::ModuleAmbiguous {
                count: several.len(),
            }),
        }
    }

    /// The part of a module that uses a token, if one does; else any.
    fn part_for(&self, name: &str, target: Option<&TokenUri>) -> Result<Arc<Module>, DeviceError> {
        let mut parts = self.parts(name)?;
        let uses = |part: &Arc<Module>| {
            let view = part.view.borrow().clone();
            target.is_some_and(|target| {
                let mut found = view.tokens.iter().filter_map(|token| token.found.as_ref());
                found.any(|info| selects(target, name, info))
            })
        };
        let at = parts.iter().position(uses).unwrap_or(0);
        Ok(parts.swap_remove(at))
    }
}

fn checked(pin: Option<Pin>) -> Result<Option<Pin>, DeviceError> {
    pin.map(pin_guard::checked).transpose()
}

fn bytes(pin: &Option<Pin>) -> Option<PinBytes> {
    pin.as_ref().map(|pin| PinBytes::new(pin.expose()))
}

/// How long the token may take; a person who types two PINs on it takes longer.
fn budget(limit: Duration, typed: &Option<Pin>) -> Duration {
    match typed {
        Some(_) => limit,
        None => limit.max(BY_HAND * 2),
    }
}

async fn administer(
    module: &Module,
    asked: Administer,
    token: Option<TokenId>,
    new: Option<Pin>,
    budget: Duration,
) -> Result<TokenId, DeviceError> {
    let (done, result) = oneshot::channel();
    let order = Order {
        asked,
        token,
        new,
        budget,
        back: module.commands.clone(),
        done,
    };
    module.command(Command::Administer(Box::new(order))).await?;
    // Each step of it has a deadline; who asked may leave, and it is ended all the same.
    result.await.map_err(|_| DeviceError::Stopped)?
}

impl Supervisor {
    /// Has a worker of its own do the work, beside this task.
    pub(super) async fn administer(&mut self, order: Order) {
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
            pin_guard::read_pin(&self.source_of(known)?).ok()
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
                        settle_pin(&back, token.clone(), kept).await;
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
            let pin = match &settled {
                Some(Settled::NotTried) => kept,
                _ if result.is_ok() => new,
                _ => None,
            };
            let recorded = match (settled, attempt) {
                (Some(settled), Some(attempt)) => guard.settle(attempt, settled).await,
                _ => Ok(()),
            };
            match &token {
                Some(token) => settle_pin(&back, token.clone(), pin).await,
                // An error means that the devices are being shut down.
                None if result.is_ok() => {
                    let _stopped = back.send(Command::Renew).await.is_err();
                }
                None => {}
            }
            drop(turn);
            let _gone = done.send(result.and_then(|token| recorded.map(|()| token)));
            other.retire().await;
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

    /// Takes back what the machine may use of a PIN, and logs in with it where nobody is.
    pub(super) async fn pin_settled(&mut self, link: &super::link::Link, settled: PinSettled) {
        let PinSettled { token, pin } = settled;
        let Some(pin) = pin else {
            return;
        };
        self.pins.insert(token.clone(), pin);
        let view = self.view.borrow().clone();
        let mut same = view.tokens.iter().filter(|known| known.id == token);
        let waits =
            same.any(|known| !matches!(known.state, TokenState::Ready | TokenState::Released));
        if waits {
            // What comes of it shows in the view.
            let _ended = self.look_and_log_in(link, &token).await;
        }
    }
}

async fn settle_pin(back: &mpsc::Sender<Command>, token: TokenId, pin: Option<Pin>) {
    let settled = Command::PinSettled(PinSettled { token, pin });
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
                (Some(source), Some(new)) if pin_guard::same(source, new) => {
                    Settled::TakenFromSource
                }
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
