//! What the window says.
//!
//! The first line is ours alone, each label begins a line, and a line on which a value goes on
//! begins with a mark: nothing a value holds can look like a line of ours. An indent would not do,
//! pinentry-curses drops it.

use super::{ConsentError, Prompt, assuan};
use crate::statement::Language;

/// Columns of the text; a terminal of 80 has room for it and a frame.
const COLUMNS: usize = 50;

/// Lines of the text; a terminal of 24 has room for it and the buttons.
const LINES: usize = 20;

/// Begins a line on which a value goes on.
const GOES_ON: &str = "| ";

/// A line is broken at a space if that is among its last columns, this many.
const RAGGED: usize = 15;

/// The text of a window, as the Assuan commands that set it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    commands: Vec<Vec<u8>>,
}

impl Question {
    /// Lays out a prompt. One that does not fit is [`ConsentError::Unavailable`].
    pub fn new(prompt: &Prompt) -> Result<Self, ConsentError> {
        let words = Words::of(prompt.language);
        let title = format!("opcert: {}", clean(&prompt.title));
        let description = description(prompt, words).ok_or_else(too_long)?;
        let commands = [
            ("SETTITLE", title.as_str()),
            ("SETDESC", &description),
            ("SETOK", words.approve),
            ("SETCANCEL", words.refuse),
        ]
        .into_iter()
        .map(|(name, argument)| assuan::command(name, argument))
        .collect::<Option<_>>()
        .ok_or_else(too_long)?;
        Ok(Self { commands })
    }

    /// The commands, in order.
    pub fn commands(&self) -> impl Iterator<Item = &[u8]> {
        self.commands.iter().map(Vec::as_slice)
    }
}

fn too_long() -> ConsentError {
    ConsentError::Unavailable {
        reason: "the operation's texts do not fit the window, and nothing is signed that was not \
                 shown in full. Create the operation again with a shorter payee, reference or memo"
            .into(),
    }
}

struct Words {
    question: &'static str,
    client: &'static str,
    approve: &'static str,
    refuse: &'static str,
}

impl Words {
    fn of(language: Language) -> &'static Self {
        match language {
            Language::English => &Self {
                question: "Do you approve this operation?",
                client: "Asked by",
                approve: "Approve",
                refuse: "Refuse",
            },
            Language::Chinese => &Self {
                question: "您是否批准此操作？",
                client: "请求方",
                approve: "批准",
                refuse: "拒绝",
            },
        }
    }
}

fn description(prompt: &Prompt, words: &Words) -> Option<String> {
    let mut text = String::from(words.question);
    text.push('\n');
    for (label, value) in &prompt.lines {
        push_line(&mut text, label, value);
    }
    push_line(&mut text, words.client, &prompt.client);
    (text.lines().count() <= LINES).then_some(text)
}

/// Appends `label: value`, wrapped at [`COLUMNS`].
fn push_line(text: &mut String, label: &str, value: &str) {
    let mut line = format!("{}: ", clean(label));
    let mut unbreakable = line.len();
    for c in clean(value).chars() {
        if columns(&line) + width(c) > COLUMNS {
            let rest = match line[unbreakable..].rfind(' ') {
                Some(space) if columns(&line[unbreakable + space + 1..]) <= RAGGED => {
                    line.split_off(unbreakable + space + 1)
                }
                _ => String::new(),
            };
            text.push('\n');
            text.push_str(&line);
            line = format!("{GOES_ON}{rest}");
            unbreakable = GOES_ON.len();
        }
        line.push(c);
    }
    text.push('\n');
    text.push_str(&line);
}

/// Statement texts hold no such characters; whatever else is shown must not either.
pub(super) fn clean(value: &str) -> String {
    let misleading = |c: char| {
        c.is_control()
            || matches!(c, '\u{061C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
    };
    value
        .chars()
        .map(|c| {
            if misleading(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

/// Columns of a character on a terminal: 2 for East Asian wide ones (UAX #11).
fn width(c: char) -> usize {
    match u32::from(c) {
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1FAFF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(lines: &[(&str, &str)]) -> Prompt {
        Prompt {
            title: "Withdrawal".into(),
            client: "shop".into(),
            lines: lines
                .iter()
                .map(|(label, value)| ((*label).into(), (*value).into()))
                .collect(),
            language: Language::English,
        }
    }

    fn shown(prompt: &Prompt) -> String {
        description(prompt, Words::of(prompt.language)).unwrap()
    }

    #[test]
    fn the_window_shows_every_line() {
        let text = shown(&prompt(&[("Account", "acme"), ("Amount", "CNY 1,000.00")]));
        assert_eq!(
            text,
            "Do you approve this operation?\n\nAccount: acme\nAmount: CNY 1,000.00\nAsked by: shop"
        );
    }

    #[test]
    fn no_value_can_look_like_a_line_of_ours() {
        let filler = "x".repeat(COLUMNS - "Memo: ".len());
        let text = shown(&prompt(&[("Memo", &format!("{filler}Amount: CNY 1.00"))]));
        assert!(text.contains("\n| Amount: CNY 1.00"), "{text}");
        let text = shown(&prompt(&[("Memo", "a\nAmount: 1\u{202e}")]));
        assert!(
            text.contains("\nMemo: a\u{fffd}Amount: 1\u{fffd}\n"),
            "{text}"
        );
    }

    #[test]
    fn a_line_is_broken_at_a_space_near_its_end_and_loses_nothing() {
        let memo = "For the order 4711 of 2 January, and something more to wrap";
        let text = shown(&prompt(&[("Memo", memo)]));
        let wrapped = "Memo: For the order 4711 of 2 January, and \n| something more to wrap";
        assert!(text.contains(wrapped), "{text}");
        let (short, long) = ("x ", "y".repeat(60));
        let text = shown(&prompt(&[("Memo", &format!("{short}{long}"))]));
        assert!(text.contains("\nMemo: x yyy"), "{text}");
    }

    #[test]
    fn chinese_is_wrapped_by_columns() {
        let text = shown(&prompt(&[("备注", &"汉".repeat(40))]));
        let widths: Vec<usize> = text.lines().map(columns).collect();
        assert!(widths.iter().all(|width| *width <= COLUMNS), "{widths:?}");
        assert_eq!(text.matches('汉').count(), 40);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = "汉".repeat(120);
        let refused = Question::new(&prompt(&[("A", &long), ("B", &long), ("C", &long)]));
        assert!(matches!(refused, Err(ConsentError::Unavailable { .. })));
        let many: Vec<_> = (0..20).map(|_| ("A", "b")).collect();
        assert!(Question::new(&prompt(&many)).is_err());
        assert!(Question::new(&prompt(&[("A", &long), ("B", &long)])).is_ok());
    }
}
