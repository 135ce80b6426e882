//! What a person or a script sees.
//!
//! Results go to standard output: tables and facts for people, one JSON value with `--json`.
//! Everything said on the way (progress, notes, errors) goes to standard error, so that output can
//! be piped. Colour is for terminals, unless `--color` says otherwise; `NO_COLOR` switches it off.

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
            say(text);
        }
    }

    /// Tells a person that a step is done.
    pub(super) fn done(&self, text: &str) {
        if self.format == Format::Human {
            say(&format!(
                "{} {text}",
                paint("ok", Mood::Good, self.color_errors)
            ));
        }
    }

    /// Prints an error on standard error.
    pub(super) fn error(&self, error: &Error) {
        match self.format {
            Format::Human => {
                let mark = paint("error:", Mood::Bad, self.color_errors);
                let code = paint(&format!("[{}]", error.code()), Mood::Dim, self.color_errors);
                say(&format!("{mark} {} {code}", error.detail()));
                say(&format!("       {}", error.action()));
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
            table.add_row(row);
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
            lines.push(format!("{}{blanks}  {value}", self.paint(name, Mood::Dim)));
        }
        lines.join("\n")
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
    fn colour_is_for_those_who_asked() {
        assert_eq!(plain().paint("x", Mood::Bad), "x");
        let loud = Output::new(Format::Human, Color::Always);
        assert!(loud.paint("x", Mood::Bad).contains("\x1b["));
        let json = Output::new(Format::Json, Color::Always);
        assert_eq!(json.paint("x", Mood::Bad), "x");
    }
}
