//! Operations, challenges and approvals: hostile bytes in, typed values out.
//!
//! Parsing happens once. A [`Statement`] obeys the rules of its kind; a [`Challenge`] was signed
//! by a pinned key of the account service; an [`Approval`] verified against the issuing
//! authority. So what a person is shown and what is signed come from the same value.
//!
//! The rest of what is signed between daemon and account service is here too, by the same strict
//! reading: a [`Ticket`] for an enrolment, a [`KeySet`] that an older key vouches
//! for, a computer's [`SecretRequest`] and the [`SealedSecret`] that answers it.
//!
//! What never lives here: input or output, time (it is an argument), private keys, and whether
//! something may be signed (`policy`).

pub mod approval;
pub mod certified;
pub mod challenge;
pub mod key_set;
pub mod kinds;
pub mod money;
pub mod operation;
pub mod origin;
pub mod payees;
pub mod pinned;
pub mod sealed_secret;
pub mod secret_request;
pub mod strict;
pub mod text;
pub mod ticket;
pub mod verifier;

pub use approval::{
    Approval, ApprovalDraft, ApprovalError, ApprovalHeader, Consent, ConsentMethod, statement_in,
};
pub use challenge::{Challenge, ChallengeClaims};
pub use key_set::KeySet;
pub use money::Money;
pub use operation::{Facts, Kind, Language, Statement};
pub use origin::Origin;
pub use payees::{Payee, PayeeList, Payees, PayeesDigest};
pub use pinned::{NoKey, ServiceError};
pub use sealed_secret::{SealedSecret, SecretKind};
pub use secret_request::{SecretRequest, SecretRequestClaims, SecretRequestError};
pub use ticket::{Ticket, TicketClaims, TicketPurpose};
pub use verifier::{Verifier, VerifierError};
