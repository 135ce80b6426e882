//! What the commands print: text for people, one JSON value for programs.

use std::io::Write;

use comfy_table::{Table, TableStyle};
use serde_json::{Value, json};

use super::AdminError;

/// How results are printed.
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a result.
    pub(super) fn done(&self, text: &str, value: &Value) -> Result<(), AdminError> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{value}")?;
        } else {
            writeln!(out, "{}", text.trim_end())?;
        }
        out.flush()?;
        Ok(())
    }

    /// Prints a failure on standard error: what happened with all causes, then what to do.
    pub(super) fn error(&self, error: &AdminError) {
        let mut detail = error.to_string();
        let mut next = std::error::Error::source(error);
        while let Some(source) = next {
            let text = source.to_string();
            // The standard library adds a number to what the operating system said in words.
            let text = text.split(" (os error ").next().unwrap_or_default();
            if !detail.contains(text) {
                detail.push_str(": ");
                detail.push_str(text);
            }
            next = source.source();
        }
        let code = error.code().map(|code| code.as_str());
        let text = if self.json {
            json!({ "code": code, "detail": detail, "action": error.action() }).to_string()
        } else {
            let code = code.map(|code| format!(" [{code}]")).unwrap_or_default();
            format!("opcert-accountd: {detail}.\n{}{code}", error.action())
        };
        // With standard error gone there is nobody left to tell; the exit code still speaks.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// A table without lines.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_header(head.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}
