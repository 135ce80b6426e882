//! What a library prints: into the log, and its last lines kept as last words.
//!
//! It is the vendor's text: cut, scrubbed, and never taken for one of ours.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// The most bytes of a line of a library's output that are logged.
const LINE_MAX: usize = 1024;

/// How many lines of a library's output are kept as last words.
const LAST_WORDS: usize = 4;

/// The last lines of a worker's output.
pub type LastWords = Arc<Mutex<VecDeque<String>>>;

/// Logs what a library prints, line by line, and keeps the last lines.
pub async fn log_output(module: String, mut output: pipe::Receiver, words: LastWords) {
    let mut line = Vec::new();
    let mut buffer = [0; 1024];
    // An error ends the output just as its end does.
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        for &byte in &buffer[..length] {
            if byte == b'\n' {
                keep_line(&module, &mut line, &words);
            } else if line.len() < LINE_MAX {
                line.push(byte);
            }
        }
    }
    keep_line(&module, &mut line, &words);
}

fn keep_line(module: &str, line: &mut Vec<u8>, words: &Mutex<VecDeque<String>>) {
    let text = scrub(line);
    line.clear();
    if text.is_empty() {
        return;
    }
    tracing::info!(module, line = text, "library output");
    let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
    if words.len() == LAST_WORDS {
        words.pop_front();
    }
    words.push_back(text);
}

/// Vendor output as text that cannot move a cursor or fake a log line.
fn scrub(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .trim_end()
        .chars()
        .map(|letter| {
            if letter.is_control() {
                '\u{fffd}'
            } else {
                letter
            }
        })
        .collect()
}
#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn vendor_output_is_scrubbed() {
        assert_eq!(scrub(b"\x1b[2Jhello\r"), "\u{fffd}[2Jhello");
        assert_eq!(scrub(b"bad \xff utf-8"), "bad \u{fffd} utf-8");
    }

    #[tokio::test]
    async fn long_lines_are_cut_and_the_last_ones_kept() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let words = Arc::new(Mutex::new(VecDeque::new()));
        std::io::Write::write_all(&mut writer, format!("{}\n", "x".repeat(3000)).as_bytes())
            .unwrap();
        std::io::Write::write_all(&mut writer, b"a\nb\nc\n\nlast").unwrap();
        drop(writer);
        let output = pipe::Receiver::from_owned_fd(reader.into()).unwrap();
        log_output("m".into(), output, words.clone()).await;
        let words = words.lock().unwrap();
        assert_eq!(*words, ["a", "b", "c", "last"]);
    }
}
