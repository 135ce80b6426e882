//! The control file: which faults are on. The grammar is described in `lib.rs`.

use std::collections::HashMap;
use std::time::Duration;

use cryptoki_sys::{CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_RV, CK_ULONG, CKR_GENERAL_ERROR};

/// Everything that one version of the control file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Control {
    /// Faults of single calls, in the order of the file.
    pub calls: Vec<CallFault>,
    /// Labels of the tokens that are taken out.
    pub removed: Vec<String>,
    /// All tokens are taken out.
    pub all_removed: bool,
    /// How often the tokens were taken out and put back.
    pub inserted: u64,
    /// Slot ids change at each insertion.
    pub new_slots: bool,
    /// An object handle of before the last insertion means another object, rather than none.
    pub swapped: bool,
    /// How often all sessions were closed from outside.
    pub expired: u64,
    /// How often the user was logged out from outside.
    pub logged_out: u64,
    /// A session unused for so long is closed.
    pub idle: Option<Duration>,
    /// The most sessions that may be open.
    pub session_cap: Option<u64>,
    /// The cap is not told in `CK_TOKEN_INFO`.
    pub silent_cap: bool,
    /// How many wrong PINs lock the token.
    pub pin_tries: Option<u64>,
    /// How many of them are spent already, where no count was kept yet.
    pub pin_spent: u64,
    /// What a wrong PIN is answered with.
    pub wrong_pin: Option<CK_RV>,
    /// What a right PIN is answered with.
    pub right_pin: Option<CK_RV>,
    /// Mechanisms that the token denies having.
    pub hidden: Vec<CK_MECHANISM_TYPE>,
    /// Key sizes that the token admits to for a mechanism.
    pub sizes: Vec<(CK_MECHANISM_TYPE, CK_ULONG, CK_ULONG)>,
    /// The token has the ECDSA mechanisms that hash.
    pub hashes: bool,
    /// Attributes that no template for a key may have: any of this value, or any at all.
    pub refused: Vec<Refused>,
    /// CKA_EC_POINT comes without its OCTET STRING.
    pub bare_points: bool,
    /// CKA_EC_PARAMS of Ed25519 is the name of the curve, given and taken.
    pub edwards_by_name: bool,
    /// Attributes that are misreported, and as what.
    pub attributes: Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)>,
    /// The keys of which each use needs a login of its own.
    pub always_authenticate: Always,
    /// The token asks for the PIN itself, and this is what is typed on it.
    pub keypad: Option<Vec<u8>>,
    /// And this is typed where it asks for a new one.
    pub keypad_new: Vec<u8>,
    /// `C_WaitForSlotEvent` works.
    pub events: bool,
    /// It holds a lock meanwhile, so that all other calls hang.
    pub locks_while_it_waits: bool,
}

/// An attribute that C_GenerateKeyPair refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Its type.
    pub kind: CK_ATTRIBUTE_TYPE,
    /// Its value; `None` for any.
    pub value: Option<Vec<u8>>,
    /// What is returned.
    pub code: CK_RV,
}

/// Which keys are CKA_ALWAYS_AUTHENTICATE, beside those that really are.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Always {
    /// None.
    #[default]
    No,
    /// All.
    All,
    /// Those with one of these CKA_IDs.
    Ids(Vec<Vec<u8>>),
}

impl Always {
    /// Whether the key with this CKA_ID is one.
    pub fn covers(&self, id: &[u8]) -> bool {
        match self {
            Self::No => false,
            Self::All => true,
            Self::Ids(ids) => ids.iter().any(|one| one == id),
        }
    }
}

/// A fault of single calls.
#[derive(Debug, Clone, PartialEq)]
pub struct CallFault {
    /// The functions; `*` for all.
    pub on: Vec<String>,
    /// Names the fault in the count of its calls.
    pub id: String,
    /// So many calls pass first.
    pub skip: u64,
    /// So many calls are struck then; `None` for all.
    pub times: Option<u64>,
    /// What happens.
    pub action: Action,
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// It waits until the fault is gone from the control file.
    Hang,
    /// It takes longer.
    Slow(Duration),
    /// It returns this code without having done anything.
    Return(CK_RV),
    /// It does its work and returns this code all the same.
    ReturnAfter(CK_RV),
    /// The process dies of SIGSEGV.
    Segfault,
    /// The process dies of SIGABRT.
    Abort,
    /// The process ends by `exit`.
    Exit(i32),
    /// It writes to standard output.
    PrintOut(Vec<u8>),
    /// It writes to standard error.
    PrintError(Vec<u8>),
    /// It leaves so many descriptors open.
    Leak(u64),
    /// One bit of the signature is flipped.
    Flip(usize),
    /// It tries to reach something outside, and logs what came of it.
    Reach(Reach, String),
}

/// What a call tries to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reach {
    /// Read a file.
    Read,
    /// Create a file.
    Write,
    /// Connect to a Unix socket.
    Unix,
    /// Connect to a TCP address.
    Tcp,
    /// A socket that hears of devices.
    Netlink,
    /// Become another program.
    Exec,
    /// Start another program.
    Spawn,
    /// A system call, by its number, with zeros.
    Call,
}

impl CallFault {
    /// Whether calls of `function` are meant.
    pub fn is_on(&self, function: &str) -> bool {
        self.on.iter().any(|name| name == "*" || name == function)
    }
}

impl Control {
    /// Reads a control file. The error says which line is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut control = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            control
                .add(line)
                .map_err(|what| format!("line {}: {what}: {line}", number + 1))?;
        }
        Ok(control)
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split_ascii_whitespace();
        let fault = words.next().unwrap_or_default();
        let mut values = Values::read(words)?;
        match fault {
            "removed" => match values.text("token") {
                Some(label) => self.removed.push(utf8(label)?),
                None => self.all_removed = true,
            },
            "inserted" => {
                self.inserted = values.number("count")?;
                self.new_slots = values.choice("slots", "same", "new")?;
                self.swapped = values.choice("handles", "invalid", "swapped")?;
            }
            "expired" => self.expired = values.number("count")?,
            "logged-out" => self.logged_out = values.number("count")?,
            "idle" => self.idle = Some(Duration::from_millis(values.number("ms")?)),
            "sessions" => {
                self.session_cap = Some(values.number("max")?);
                self.silent_cap = values.choice("report", "yes", "no")?;
            }
            "pin" => {
                self.pin_tries = Some(values.number("tries")?);
                self.pin_spent = values.optional_number("spent")?.unwrap_or(0);
            }
            "lie" => {
                self.wrong_pin = values.optional_number("wrong")?.or(self.wrong_pin);
                self.right_pin = values.optional_number("right")?.or(self.right_pin);
            }
            "hide" => self.hidden.push(values.number("mechanism")?),
            "sizes" => {
                let (mechanism, min) = (values.number("mechanism")?, values.number("min")?);
                self.sizes.push((mechanism, min, values.number("max")?));
            }
            "hashes" => self.hashes = true,
            "refuse" => self.refused.push(Refused {
                kind: values.number("attribute")?,
                value: values.text("value"),
                code: values.number("code")?,
            }),
            "bare-points" => self.bare_points = true,
            "edwards-by-name" => self.edwards_by_name = true,
            "attribute" => {
                let value = values.text("value").ok_or("no value=")?;
                self.attributes.push((values.number("type")?, value));
            }
            "always-authenticate" => match (values.text("id"), &mut self.always_authenticate) {
                (None, always) => *always = Always::All,
                (Some(id), Always::Ids(ids)) => ids.push(id),
                (Some(_), Always::All) => {}
                (Some(id), always @ Always::No) => *always = Always::Ids(vec![id]),
            },
            "keypad" => {
                self.keypad = Some(values.text("pin").ok_or("no pin=")?);
                self.keypad_new = values.text("new").unwrap_or_default();
            }
            "events" => {
                self.events = true;
                self.locks_while_it_waits = values.choice("lock", "no", "yes")?;
            }
            _ => {
                let action = action(fault, &mut values)?;
                self.calls.push(CallFault {
                    on: utf8(values.text("on").ok_or("no on=")?)?
                        .split(',')
                        .map(str::to_owned)
                        .collect(),
                    id: utf8(values.text("id").unwrap_or_default())?,
                    skip: values.optional_number("skip")?.unwrap_or(0),
                    times: values.optional_number("times")?,
                    action,
                });
            }
        }
        values.all_used()
    }
}

fn action(fault: &str, values: &mut Values) -> Result<Action, String> {
    Ok(match fault {
        "hang" => Action::Hang,
        "slow" => Action::Slow(Duration::from_millis(values.number("ms")?)),
        "return" => {
            let code = values.optional_number("code")?.unwrap_or(CKR_GENERAL_ERROR);
            if values.choice("when", "before", "after")? {
                Action::ReturnAfter(code)
            } else {
                Action::Return(code)
            }
        }
        "crash" => {
            if values.choice("by", "segv", "abort")? {
                Action::Abort
            } else {
                Action::Segfault
            }
        }
        "exit" => {
            let status = values.optional_number("status")?.unwrap_or(0);
            Action::Exit(i32::try_from(status).map_err(|_| "status too large")?)
        }
        "print" => {
            let text = values.text("text").ok_or("no text=")?;
            if values.choice("to", "stdout", "stderr")? {
                Action::PrintError(text)
            } else {
                Action::PrintOut(text)
            }
        }
        "leak" => Action::Leak(values.optional_number("count")?.unwrap_or(1)),
        "reach" => {
            let what = match values.text("what").as_deref() {
                Some(b"read") => Reach::Read,
                Some(b"write") => Reach::Write,
                Some(b"unix") => Reach::Unix,
                Some(b"tcp") => Reach::Tcp,
                Some(b"netlink") => Reach::Netlink,
                Some(b"exec") => Reach::Exec,
                Some(b"spawn") => Reach::Spawn,
                Some(b"call") => Reach::Call,
                _ => return Err("no such what=".into()),
            };
            Action::Reach(what, utf8(values.text("at").ok_or("no at=")?)?)
        }
        "flip" => {
            let bit = values.optional_number("bit")?.unwrap_or(0);
            Action::Flip(usize::try_from(bit).map_err(|_| "bit too large")?)
        }
        _ => return Err("no such fault".into()),
    })
}

/// The `key=value` pairs of a line, each to be taken once.
struct Values(HashMap<String, Vec<u8>>);

impl Values {
    fn read<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut values = HashMap::new();
        for word in words {
            let (key, value) = word.split_once('=').ok_or("a word without =")?;
            if values.insert(key.to_owned(), bytes(value)?).is_some() {
                return Err(format!("{key}= twice"));
            }
        }
        Ok(Self(values))
    }

    fn text(&mut self, key: &str) -> Option<Vec<u8>> {
        self.0.remove(key)
    }

    fn optional_number(&mut self, key: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.text(key) else {
            return Ok(None);
        };
        let text = utf8(text)?;
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.map(Some).map_err(|_| format!("{key}= is no number"))
    }

    fn number(&mut self, key: &str) -> Result<u64, String> {
        self.optional_number(key)?
            .ok_or_else(|| format!("no {key}="))
    }

    /// `false` for the first word, also where the key is missing; `true` for the second.
    fn choice(&mut self, key: &str, first: &str, second: &str) -> Result<bool, String> {
        match self.text(key) {
            None => Ok(false),
            Some(word) if word == first.as_bytes() => Ok(false),
            Some(word) if word == second.as_bytes() => Ok(true),
            Some(_) => Err(format!("{key}= is neither {first} nor {second}")),
        }
    }

    fn all_used(&self) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!("{key}= means nothing here")),
        }
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|_| "a value that is not UTF-8".into())
}

/// A value with `%XX` resolved.
fn bytes(value: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.split_at_checked(2).ok_or("% without two digits")?;
        let text = std::str::from_utf8(digits.0).map_err(|_| "% without two digits")?;
        bytes.push(u8::from_str_radix(text, 16).map_err(|_| "% without two digits")?);
        rest = digits.1;
    }
    Ok(bytes)
}
