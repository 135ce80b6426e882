//! What goes wrong on the command line, in two sentences: what happened, then what to do.

use std::io;

use serde::Serialize;

use crate::api::client::CallError;
use crate::api::problem::ProblemDocument;
use crate::base::files::FileError;
use crate::base::sysexits::{
    EX_CANTCREAT, EX_CONFIG, EX_DATAERR, EX_FAILED, EX_IOERR, EX_NOINPUT, EX_NOPERM, EX_TEMPFAIL,
    EX_UNAVAILABLE, EX_USAGE,
};
use crate::config::ConfigError;
use crate::http::ClientError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The daemon or the account service answered with a problem document.
    #[error("{detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The stable code.
        code: String,
        /// What happened.
        detail: String,
        /// What to do.
        action: String,
        /// The policy rule that refused, where one did.
        rule: Option<String>,
        /// The id under which the other side logged it.
        request_id: Option<String>,
    },
    /// No connection, or it broke.
    #[error("{who} cannot be reached")]
    Unreachable {
        /// The other side, as a person calls it.
        who: &'static str,
        /// What to do.
        action: String,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// The other side answered something this version does not understand.
    #[error("{who} gave an answer that makes no sense: {problem}")]
    Answer {
        /// The other side, as a person calls it.
        who: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A file is missing, unreadable, too open or cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The daemon's configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The content of a file or of an argument is not what it should be.
    #[error("{what}")]
    Input {
        /// What is wrong.
        what: String,
        /// What to do.
        action: String,
    },
    /// The arguments do not fit together or the situation.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to do.
        action: String,
    },
    /// The question was answered with "no".
    #[error("{what}")]
    No {
        /// The stable code.
        code: &'static str,
        /// Why.
        what: String,
        /// What to do.
        action: String,
    },
    /// Something is in the way that a person has to settle.
    #[error("{what}")]
    State {
        /// The stable code.
        code: &'static str,
        /// What is in the way.
        what: String,
        /// What to do.
        action: String,
    },
    /// Nobody is there to type a secret.
    #[error("{what} is needed and there is no terminal to type it on")]
    NoTerminal {
        /// The secret.
        what: &'static str,
        /// The option that takes it from a file.
        option: &'static str,
    },
    /// Standard output or input failed.
    #[error("cannot use {stream}")]
    Stream {
        /// Which.
        stream: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An [`Error`] as a script reads it.
#[derive(Serialize)]
pub(super) struct Report {
    code: String,
    detail: String,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    exit: u8,
}

impl Error {
    /// The exit code.
    pub(super) fn exit(&self) -> u8 {
        match self {
            Self::Refused { status, .. } => match status {
                401 | 403 => EX_NOPERM,
                408 | 429 | 503 => EX_TEMPFAIL,
                400..=499 => EX_DATAERR,
                _ => EX_UNAVAILABLE,
            },
            Self::Unreachable { .. } | Self::Answer { .. } => EX_UNAVAILABLE,
            Self::Config(_) => EX_CONFIG,
            Self::File(FileError::Unreadable { .. }) => EX_NOINPUT,
            Self::File(FileError::Permissions { .. }) => EX_NOPERM,
            Self::File(FileError::TooLarge { .. }) | Self::Input { .. } => EX_DATAERR,
            Self::File(FileError::Unwritable { .. }) => EX_CANTCREAT,
            Self::Usage { .. } | Self::NoTerminal { .. } => EX_USAGE,
            Self::No { .. } => EX_FAILED,
            Self::State { .. } => EX_TEMPFAIL,
            Self::Stream { .. } => EX_IOERR,
        }
    }

    /// The stable code.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Unreachable { .. } => "unreachable",
            Self::Answer { .. } => "bad-answer",
            Self::Config(error) => error.code().as_str(),
            Self::File(FileError::Unreadable { .. }) => "file-unreadable",
            Self::File(FileError::Permissions { .. }) => "file-permissions",
            Self::File(FileError::TooLarge { .. }) => "too-large",
            Self::File(FileError::Unwritable { .. }) => "file-unwritable",
            Self::Input { .. } => "malformed",
            Self::Usage { .. } => "usage",
            Self::No { code, .. } | Self::State { code, .. } => code,
            Self::NoTerminal { .. } => "no-terminal",
            Self::Stream { .. } => "stream",
        }
    }

    /// What to do next.
    pub(super) fn action(&self) -> String {
        match self {
            Self::Refused { action, .. }
            | Self::Unreachable { action, .. }
            | Self::Input { action, .. }
            | Self::Usage { action, .. }
            | Self::No { action, .. }
            | Self::State { action, .. } => action.clone(),
            Self::Config(error) => error.code().action().into(),
            Self::Answer { who, .. } => {
                format!("Check that {who} and this program are of the same version.")
            }
            Self::File(FileError::Unreadable { .. }) => {
                "Check the path, and run the command as a user who may read it.".into()
            }
            Self::File(FileError::Permissions { path, .. }) => {
                format!(
                    "Give a regular file of your own that is closed to others: `chmod go= {}`.",
                    path.display()
                )
            }
            Self::File(FileError::TooLarge { .. }) => "Check that it is the right file.".into(),
            Self::File(FileError::Unwritable { .. }) => {
                "Check the directory, its permissions and the free space.".into()
            }
            Self::NoTerminal { option, .. } => {
                format!("Run the command on a terminal, or name a file with {option}.")
            }
            Self::Stream { .. } => "Check where the output goes and the free space there.".into(),
        }
    }

    /// What happened, with every cause.
    pub(super) fn detail(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = without_number(&error.to_string());
            // Some errors have their cause in their own words already.
            if !text.contains(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = error.source();
        }
        sentence(&text)
    }

    pub(super) fn report(&self) -> Report {
        Report {
            code: self.code().to_owned(),
            detail: self.detail(),
            action: self.action(),
            rule: match self {
                Self::Refused { rule, .. } => rule.clone(),
                _ => None,
            },
            request_id: match self {
                Self::Refused { request_id, .. } => request_id.clone(),
                _ => None,
            },
            exit: self.exit(),
        }
    }

    /// Whether the reader of our output went away, as `| head` does: not worth a word.
    pub(super) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Stream { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// The standard library adds "(os error 2)" to what the operating system said in words.
fn without_number(text: &str) -> String {
    match text.rsplit_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text.to_owned(),
    }
}

impl From<ProblemDocument> for Error {
    fn from(problem: ProblemDocument) -> Self {
        // A person sees no headers.
        let action = match problem.retry_after {
            Some(seconds) => problem
                .action
                .replace("the time in `retry-after`", &format!("{seconds} s")),
            None => problem.action,
        };
        Self::Refused {
            status: problem.status,
            code: problem.code,
            detail: problem.detail,
            action,
            rule: problem.rule,
            request_id: Some(problem.request_id.to_string()),
        }
    }
}

/// Of a call to the daemon once the connection stands.
impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        const WHO: &str = "the daemon";
        match error {
            CallError::Transport(source) => Self::Unreachable {
                who: WHO,
                action: "Look at its log, and run `opcert doctor`.".into(),
                source,
            },
            CallError::Refused(problem) => (*problem).into(),
            CallError::Unexpected { status, source } => Self::Answer {
                who: WHO,
                problem: format!("status {status}, {source}"),
            },
            CallError::Request { source } => Self::Answer {
                who: WHO,
                problem: source.to_string(),
            },
            CallError::Path { path } => Self::Answer {
                who: WHO,
                problem: format!("{path} is no path"),
            },
        }
    }
}

/// Begins with a capital unless it begins with a name or path, ends with a full stop.
fn sentence(text: &str) -> String {
    let first_word = text.split_whitespace().next().unwrap_or_default();
    let is_word = first_word.chars().all(|c| c.is_ascii_lowercase());
    let mut sentence = String::with_capacity(text.len() + 1);
    let mut letters = text.chars();
    if let Some(first) = letters.next().filter(|_| is_word) {
        sentence.push(first.to_ascii_uppercase());
        sentence.push_str(letters.as_str());
    } else {
        sentence.push_str(text);
    }
    if !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_two_sentences_with_all_causes() {
        let error = Error::File(FileError::Unreadable {
            path: "/etc/opcert/pin".into(),
            source: io::Error::new(io::ErrorKind::NotFound, "no such file"),
        });
        assert_eq!(error.detail(), "Cannot read /etc/opcert/pin: no such file.");
        assert!(error.action().ends_with('.'));
        assert_eq!(error.exit(), EX_NOINPUT);
    }

    #[test]
    fn names_and_paths_keep_their_case() {
        assert_eq!(sentence("/a is gone"), "/a is gone.");
        assert_eq!(sentence("a PIN is needed"), "A PIN is needed.");
        assert_eq!(sentence("p11-kit said no."), "p11-kit said no.");
    }
}
