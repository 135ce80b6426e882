//! Making tokens and setting PINs: what a worker of its own is asked, and what it answers.

use serde::{Deserialize, Serialize};

use super::{LastTry, PinBytes};

/// One piece of work on a token to which nobody else of ours has a session.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Administer {
    /// Which token.
    pub target: Target,
    /// What to do with it.
    pub work: Work,
    /// Whether the last try of the PIN that is asked for may be used.
    pub last_try: LastTry,
}

/// Which token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The one that is not initialized.
    Blank,
    /// The one that has what is given.
    Named {
        /// `label`.
        label: Option<String>,
        /// `serialNumber`.
        serial: Option<String>,
    },
}

/// What to do. A PIN is `None` where the token asks for it itself.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Work {
    /// `C_InitToken` and `C_InitPIN`: everything on the token is destroyed.
    Init {
        /// Its new label.
        label: String,
        /// The security officer's PIN: the one it has, or of a blank token the one it gets.
        so_pin: Option<PinBytes>,
        /// The user's PIN that it gets.
        user_pin: Option<PinBytes>,
        /// Whether it may hold keys.
        keys: HeldKeys,
    },
    /// `C_SetPIN` of the user.
    ChangePin {
        /// The PIN as it is.
        old: Option<PinBytes>,
        /// As it shall be.
        new: Option<PinBytes>,
    },
    /// `C_InitPIN` by the security officer.
    ResetPin {
        /// The security officer's PIN.
        so_pin: Option<PinBytes>,
        /// The user's PIN as it shall be.
        new: Option<PinBytes>,
    },
}

impl Work {
    /// The PKCS#11 function that a person would connect with it.
    pub fn function(&self) -> &'static str {
        match self {
            Self::Init { .. } => "C_InitToken",
            Self::ChangePin { .. } => "C_SetPIN",
            Self::ResetPin { .. } => "C_InitPIN",
        }
    }
}

/// What becomes of keys on a token that is initialized again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldKeys {
    /// A token that holds keys, or may hold some, is left as it is.
    Keep,
    /// A person said to destroy them.
    Destroy,
    /// Nothing is done: it is refused with what it holds.
    Tell,
}

/// A key or certificate that shows on a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HeldObject {
    /// `private key`, `public key`, `secret key` or `certificate`.
    pub kind: String,
    /// `CKA_LABEL`.
    pub label: String,
    /// `CKA_ID`, hexadecimal.
    pub id: String,
}

impl std::fmt::Display for HeldObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} (id {})", self.kind, self.label, self.id)
    }
}

/// The most objects that are named.
pub const HELD_MAX: usize = 32;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Administered {
    /// It is done.
    Done {
        /// The token's label now.
        label: String,
        /// Its serial number.
        serial: String,
    },
    /// Nothing was tried, and the token is as it was.
    Refused(AdministerRefusal),
    /// A PIN was refused: one try is spent.
    Wrong {
        /// Whose.
        whose: Whose,
        /// The CKR name.
        code: String,
    },
    /// It failed, and the token may be another than it was.
    Failed {
        /// The PKCS#11 function.
        function: String,
        /// The CKR name.
        code: String,
        /// Whether the token was initialized before that.
        initialized: bool,
    },
}

/// Whose PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// The user's.
    User,
    /// The security officer's.
    SecurityOfficer,
}

/// Why nothing was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdministerRefusal {
    /// No such token.
    Missing,
    /// Several fit.
    Several(u16),
    /// It holds keys, or what shows says nothing of it: some show only after a login.
    HoldsKeys {
        /// How many keys and certificates show.
        seen: u32,
        /// The first [`HELD_MAX`] of them.
        shown: Vec<HeldObject>,
    },
    /// Another program has sessions with it.
    InUse,
    /// Its PINs have other lengths.
    PinLength {
        /// The shortest, in bytes.
        min: u32,
        /// The longest.
        max: u32,
    },
    /// The PIN that is asked for is locked.
    Locked(Whose),
    /// One try of it is left.
    FinalTry(Whose),
    /// It cannot be written.
    WriteProtected,
    /// A PIN is missing, and the token does not ask for it itself.
    PinMissing,
}
