//! What a person or a script sees.
//!
//! Results go to standard output: tables and facts for people, one JSON value with `--json`.
//! Everything said on the way (progress, notes, errors) goes to standard error, so that output can
//! be piped. Colour is for terminals, unless `--color` says otherwise; `NO_COLOR` switches it off.
//! Sentences are broken between words where a terminal is too narrow for them; what goes elsewhere
//! keeps its lines.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, ContentArrangement, Table, TableStyle};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use super::error::Error;

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Who reads standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A person.
    Human,
    /// A script.
    Json,
}

/// The way out for one command.
#[derive(Debug)]
pub(super) struct Output {
    format: Format,
    color: bool,
    color_errors: bool,
    /// Columns of the terminal that results go to.
    width: Option<usize>,
    /// Columns of the terminal that the rest goes to.
    width_errors: Option<usize>,
}

/// How good or bad a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// As it should be.
    Good,
    /// Needs attention some day.
    Doubtful,
    /// Needs attention now.
    Bad,
    /// Less important than the rest.
    Dim,
}

impl Mood {
    const ALL: [Self; 4] = [Self::Good, Self::Doubtful, Self::Bad, Self::Dim];

    fn style(self) -> Style {
        match self {
            Self::Good => AnsiColor::Green.on_default(),
            Self::Doubtful => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Dim => Style::new().dimmed(),
        }
    }
}

impl Output {
    pub(super) fn new(format: Format, color: Color) -> Self {
        let wanted = |is_terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                is_terminal
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|value| value != "dumb")
            }
        };
        Self {
            format,
            color: format == Format::Human && wanted(io::stdout().is_terminal()),
            color_errors: format == Format::Human && wanted(io::stderr().is_terminal()),
            width: columns(io::stdout()),
            width_errors: columns(io::stderr()),
        }
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Prints a result: `value` for a script, `human` for a person.
    pub(super) fn result<T: Serialize>(
        &self,
        value: &T,
        human: impl FnOnce(&Self) -> String,
    ) -> Result<(), Error> {
        match self.format {
            Format::Human => self.print(&human(self)),
            Format::Json => {
                let json = serde_json::to_string_pretty(value).map_err(|error| Error::Stream {
                    stream: "standard output",
                    source: error.into(),
                })?;
                self.print(&json)
            }
        }
    }

    /// Prints text and a line end on standard output.
    pub(super) fn print(&self, text: &str) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        let text = text.strip_suffix('\n').unwrap_or(text);
        writeln!(stdout, "{text}")
            .and_then(|()| stdout.flush())
            .map_err(|source| Error::Stream {
                stream: "standard output",
                source,
            })
    }

    /// Tells a person something on the way; scripts do not hear it.
    pub(super) fn note(&self, text: &str) {
        if self.format == Format::Human {
            let text = match self.color_errors {
                true => text.to_owned(),
                false => plain_text(text),
            };
            say(&wrap(&text, 0, self.width_errors));
        }
    }

    /// Tells a person that a step is done.
    pub(super) fn done(&self, text: &str) {
        if self.format == Format::Human {
            let mark = paint("ok", Mood::Good, self.color_errors);
            say(&wrap(&format!("{mark} {text}"), 3, self.width_errors));
        }
    }

    /// Prints an error on standard error.
    pub(super) fn error(&self, error: &Error) {
        match self.format {
            Format::Human => {
                let mark = paint("error:", Mood::Bad, self.color_errors);
                let code = paint(&format!("[{}]", error.code()), Mood::Dim, self.color_errors);
                for line in [
                    format!("{mark} {} {code}", error.detail()),
                    format!("       {}", error.action()),
                ] {
                    say(&wrap(&line, 7, self.width_errors));
                }
            }
            Format::Json => {
                if let Ok(json) = serde_json::to_string(&error.report()) {
                    say(&json);
                }
            }
        }
    }

    /// Colours `text` where colours are on.
    pub(super) fn paint(&self, text: &str, mood: Mood) -> String {
        paint(text, mood, self.color)
    }

    /// Breaks the lines of a result that are too long for the terminal; what goes on begins at
    /// column `indent`.
    pub(super) fn wrap(&self, text: &str, indent: usize) -> String {
        wrap(text, indent, self.width)
    }

    /// A table with one header row; `empty` is said instead of a table without rows.
    pub(super) fn table(&self, header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
        if rows.is_empty() {
            return empty.to_owned();
        }
        let mut table = Table::new();
        table
            .load_style(TableStyle::new())
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(header.iter().map(|text| {
                let cell = Cell::new(text.to_uppercase());
                if self.color {
                    cell.add_attribute(comfy_table::Attribute::Bold)
                } else {
                    cell
                }
            }));
        if self.color {
            table.enforce_styling();
        }
        for row in rows {
            table.add_row(row.iter().map(|text| cell(text)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table.trim_fmt()
    }

    /// Names and values, one to a line, values aligned.
    pub(super) fn facts<N: AsRef<str>>(&self, facts: &[(N, String)]) -> String {
        let width = facts
            .iter()
            .map(|(name, _)| name.as_ref().chars().count())
            .max()
            .unwrap_or(0);
        let mut lines = Vec::with_capacity(facts.len());
        for (name, value) in facts {
            let name = name.as_ref();
            let blanks = " ".repeat(width - name.chars().count());
            let line = format!("{}{blanks}  {value}", self.paint(name, Mood::Dim));
            lines.push(self.wrap(&line, width + 2));
        }
        lines.join("\n")
    }

    /// Says once, on a terminal only, that a person may be asked now: pinentry may do that on this
    /// very terminal, and what moves would draw over its question.
    pub(super) fn awaiting(&self, text: &str) -> Progress {
        if self.format == Format::Human && io::stderr().is_terminal() {
            say(&wrap(&format!("{text} …"), 0, self.width_errors));
        }
        Progress(None)
    }

    /// Shows that something is under way, on a terminal only; dropping it takes the sign away.
    pub(super) fn progress(&self, text: &str) -> Progress {
        if self.format == Format::Json || !io::stderr().is_terminal() {
            return Progress(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress(Some(bar))
    }
}

/// A sign that something is under way.
#[must_use]
pub(super) struct Progress(Option<ProgressBar>);

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// A time as people read it: their own time zone, to the minute.
pub(super) fn local_time(at: Timestamp) -> String {
    at.to_zoned_datetime(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M %Z")
        .to_string()
}

/// A time that arrived as RFC 3339 text; other text stays as it is.
pub(super) fn time(text: &str) -> String {
    text.parse().map_or_else(|_| text.to_owned(), local_time)
}

fn paint(text: &str, mood: Mood, color: bool) -> String {
    if !color {
        return text.to_owned();
    }
    let style = mood.style();
    format!("{style}{text}{style:#}")
}

/// A cell of a table. Its colour is told apart from its text, whose width it would add to.
fn cell(painted: &str) -> Cell {
    for mood in Mood::ALL {
        let style = mood.style();
        let (begin, end) = (style.to_string(), format!("{style:#}"));
        let text = painted
            .strip_prefix(&begin)
            .and_then(|rest| rest.strip_suffix(&end));
        if let Some(text) = text {
            let cell = Cell::new(text);
            return match mood {
                Mood::Good => cell.fg(comfy_table::Color::DarkGreen),
                Mood::Doubtful => cell.fg(comfy_table::Color::DarkYellow),
                Mood::Bad => cell
                    .fg(comfy_table::Color::DarkRed)
                    .add_attribute(comfy_table::Attribute::Bold),
                Mood::Dim => cell.add_attribute(comfy_table::Attribute::Dim),
            };
        }
    }
    Cell::new(painted)
}

/// How many columns a stream shows; `None` where it is no terminal.
fn columns(stream: impl IsTerminal + std::os::fd::AsFd) -> Option<usize> {
    if !stream.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns >= 20)
}

/// Breaks lines between words. A command in backquotes stays in one piece where a line has room for
/// it, so that it can be copied.
fn wrap(text: &str, indent: usize, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| *width > indent) else {
        return text.to_owned();
    };
    let mut lines = Vec::new();
    for line in text.split('\n') {
        if columns_of(line) <= width {
            lines.push(line.to_owned());
            continue;
        }
        let mut pieces = pieces(line, width - indent).into_iter();
        let mut current = pieces.next().unwrap_or_default();
        for piece in pieces {
            let room = width.saturating_sub(columns_of(&current) + 1);
            // What has no room on any line gains nothing from the next.
            let fits_nowhere = columns_of(&piece) > width - indent;
            if current.trim().is_empty() || fits_nowhere || columns_of(&piece) <= room {
                current.push(' ');
                current.push_str(&piece);
            } else {
                lines.push(current.trim_end().to_owned());
                current = format!("{}{piece}", " ".repeat(indent));
            }
        }
        lines.push(current);
    }
    lines.join("\n")
}

/// What is not broken: words, and commands in backquotes of up to `most` columns.
fn pieces(line: &str, most: usize) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    let mut command: Vec<&str> = Vec::new();
    for word in line.split(' ') {
        let quotes = word.matches('`').count();
        if command.is_empty() && quotes.is_multiple_of(2) {
            pieces.push(word.to_owned());
            continue;
        }
        command.push(word);
        if command.len() > 1 && !quotes.is_multiple_of(2) {
            let whole = command.join(" ");
            if columns_of(&whole) <= most {
                pieces.push(whole);
            } else {
                pieces.extend(command.iter().map(|word| (*word).to_owned()));
            }
            command.clear();
        }
    }
    pieces.extend(command.iter().map(|word| (*word).to_owned()));
    pieces
}

/// The same without its colours.
fn plain_text(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    plain
}

/// How wide text is on a terminal: without its colours, Chinese and its kin two columns a letter.
fn columns_of(text: &str) -> usize {
    let mut colour = false;
    let mut columns = 0;
    for letter in text.chars() {
        match letter {
            '\x1b' => colour = true,
            'm' if colour => colour = false,
            _ if colour => {}
            '\u{1100}'..='\u{115f}'
            | '\u{2e80}'..='\u{a4cf}'
            | '\u{ac00}'..='\u{d7a3}'
            | '\u{f900}'..='\u{faff}'
            | '\u{fe30}'..='\u{fe6f}'
            | '\u{ff00}'..='\u{ff60}' => columns += 2,
            _ => columns += 1,
        }
    }
    columns
}

/// A line on standard error; there is nobody to tell if that fails.
fn say(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Output {
        Output::new(Format::Human, Color::Never)
    }

    #[test]
    fn facts_are_aligned() {
        let text = plain().facts(&[("Name", "a".into()), ("Longer", "b".into())]);
        assert_eq!(text, "Name    a\nLonger  b");
    }

    #[test]
    fn a_table_says_so_when_it_is_empty() {
        let output = plain();
        assert_eq!(
            output.table(&["name"], vec![], "nothing yet"),
            "nothing yet"
        );
        let table = output.table(
            &["name", "state"],
            vec![vec!["alpha".into(), "ready".into()]],
            "",
        );
        assert_eq!(table, "NAME   STATE\nalpha  ready");
    }

    #[test]
    fn colours_make_no_column_wider() {
        let loud = Output::new(Format::Human, Color::Always);
        let table = loud.table(
            &["state", "model"],
            vec![vec![loud.paint("ready", Mood::Good), "card".into()]],
            "",
        );
        assert!(table.contains("\x1b["), "{table}");
        let plain: Vec<String> = table
            .lines()
            .map(|line| {
                line.split('\x1b')
                    .map(|part| part.split_once('m').map_or(part, |(_, text)| text))
                    .collect::<String>()
            })
            .collect();
        assert_eq!(plain[0].trim_end(), "STATE  MODEL", "{table}");
        assert_eq!(plain[1].trim_end(), "ready  card", "{table}");
    }

    #[test]
    fn lines_are_broken_between_words() {
        let text = "error: It is not there; run `opcert token unlock`. [code]";
        assert_eq!(
            wrap(text, 7, Some(40)),
            "error: It is not there; run\n       `opcert token unlock`. [code]"
        );
        assert_eq!(wrap(text, 7, None), text);
        assert_eq!(wrap("       Look up.", 7, Some(15)), "       Look up.");
        assert_eq!(
            wrap("       Look further up.", 7, Some(20)),
            "       Look further\n       up."
        );
        assert_eq!(wrap("Name  a  b", 6, Some(9)), "Name  a\n      b");
        assert_eq!(wrap("提现 批准", 0, Some(8)), "提现\n批准");
        assert_eq!(wrap("Key  abcdefghijkl", 5, Some(12)), "Key  abcdefghijkl");
        let long = "`a command that is too long for any line`";
        assert_eq!(
            wrap(long, 0, Some(20)),
            "`a command that is\ntoo long for any\nline`"
        );
    }

    #[test]
    fn colours_can_be_taken_off() {
        let loud = Output::new(Format::Human, Color::Always);
        let text = loud.facts(&[("Amount", loud.paint("CNY 1.00", Mood::Good))]);
        assert_eq!(plain_text(&text), "Amount  CNY 1.00");
        assert_eq!(plain_text("no colour"), "no colour");
    }

    #[test]
    fn colour_is_for_those_who_asked() {
        assert_eq!(plain().paint("x", Mood::Bad), "x");
        let loud = Output::new(Format::Human, Color::Always);
        assert!(loud.paint("x", Mood::Bad).contains("\x1b["));
        let json = Output::new(Format::Json, Color::Always);
        assert_eq!(json.paint("x", Mood::Bad), "x");
    }
}
