//! The layout of `src` as `docs/architecture.md` states it, held by reading the source text.
//!
//! Calls go down only; vendor code and `unsafe` have one place each; the deciding modules do no
//! input or output; nothing outside tests panics on a value it did not expect. A rule that the
//! compiler can hold is not repeated here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Top to bottom. A module may use those on lower lines, and its neighbours on the same line as
/// long as no circle comes of it.
const ORDER: &[&[&str]] = &[
    &["daemon", "cli", "account"],
    &["config"],
    &["api"],
    &["signing", "enrol", "merchants"],
    &["device", "consent", "audit"],
    &["policy", "statement", "wechatpay", "http"],
    &["telemetry"],
    &["base"],
];

#[test]
fn every_module_has_its_place_in_the_order() {
    let known: BTreeSet<&str> = ORDER.concat().into_iter().collect();
    for source in sources() {
        let top = &source.module[0];
        assert!(
            known.contains(top.as_str()) || ["bin", "lib"].contains(&top.as_str()),
            "{}: module {top} is not in the call order",
            source.path.display()
        );
    }
}

#[test]
fn calls_go_down_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(from) = level(&source.module[0]) else {
            continue;
        };
        for (line, target) in references(&source) {
            if level(&target).is_some_and(|to| to < from) {
                wrong.push(format!("{}: uses {target}", source.at(line)));
            }
        }
    }
    report("a lower module uses a higher one", &wrong);
}

#[test]
fn neighbours_use_each_other_without_circles() {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources() {
        let from = &source.module[0];
        for (_, target) in references(&source) {
            if target != *from && level(from).is_some() && level(from) == level(&target) {
                edges.entry(from.clone()).or_default().insert(target);
            }
        }
    }
    for start in edges.keys() {
        let mut seen = BTreeSet::new();
        let mut open = vec![start];
        while let Some(module) = open.pop() {
            for next in edges.get(module).into_iter().flatten() {
                assert!(
                    next != start,
                    "{start} uses itself by way of {module}: {edges:?}"
                );
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
    }
}

#[test]
fn vendor_code_is_reached_from_the_worker_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.is_under(&["device", "worker"]) {
            wrong.extend(source.find(&["tokio", "hyper", "hyper_util", "rustls", "tokio_rustls"]));
        } else {
            wrong.extend(source.find(&["cryptoki", "cryptoki_sys", "dlopen", "libloading"]));
        }
    }
    report("a crate on the wrong side of the worker's pipe", &wrong);
}

#[test]
fn deciding_modules_do_no_input_or_output() {
    let mut wrong = Vec::new();
    for source in sources() {
        if ["policy", "statement", "wechatpay"].contains(&source.module[0].as_str()) {
            wrong.extend(source.find(&[
                "std::fs",
                "TcpStream",
                "TcpListener",
                "UdpSocket",
                "ToSocketAddrs",
                "std::io",
                "std::env",
                "std::process",
                "std::thread",
                "tokio",
                "rustix",
                "Timestamp::now",
                "Zoned::now",
                "SystemTime",
                "Instant",
                "Clock",
                "tracing",
            ]));
        }
    }
    report(
        "a deciding module reaches for the world or the clock",
        &wrong,
    );
}

/// Connections are made by the command line and the account service, by way of the two clients; no
/// module of the daemon uses those or makes one itself. Names are not looked up there either.
#[test]
fn the_daemon_opens_no_connection() {
    let mut wrong = Vec::new();
    for source in sources() {
        let may = ["cli", "account", "lib"].contains(&source.module[0].as_str())
            || source.is_under(&["api", "client"])
            || source.is_under(&["http", "client"]);
        if !may {
            wrong.extend(source.find(&[
                "http::client",
                "http::Client",
                "api::client",
                "Client::connect",
                "TcpStream::connect",
                "TcpSocket",
                "UdpSocket",
                "TlsConnector",
                "ToSocketAddrs",
                "lookup_host",
            ]));
        }
    }
    report("a module of the daemon connects to somewhere", &wrong);
}

#[test]
fn time_comes_from_the_clock() {
    let mut wrong = Vec::new();
    for source in sources() {
        if !source.is_under(&["base", "clock"]) {
            wrong.extend(source.find(&["Timestamp::now", "Zoned::now", "SystemTime::now"]));
        }
    }
    report("wall-clock time not taken from a Clock", &wrong);
}

#[test]
fn unsafe_code_has_one_file() {
    let mut wrong = Vec::new();
    for source in sources() {
        if !source.is_under(&["device", "worker", "raw"]) {
            wrong.extend(source.find(&["unsafe"]));
        }
    }
    report("unsafe outside src/device/worker/raw.rs", &wrong);
}

#[test]
fn nothing_unwraps_outside_tests() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in source.code.lines().enumerate() {
            for call in [
                ".unwrap()",
                ".expect(",
                // Work left for later, and what prints for whoever was at work.
                "todo!(",
                "unimplemented!(",
                "dbg!(",
            ] {
                if line.contains(call) {
                    wrong.push(format!("{}: {}", source.at(number + 1), line.trim()));
                }
            }
        }
    }
    report("a panic waiting for its value", &wrong);
}

/// One file under `src`, without comments, string contents and test code.
struct Source {
    path: PathBuf,
    /// `src/device/worker/raw.rs` is `["device", "worker", "raw"]`; a `mod.rs` is its folder.
    module: Vec<String>,
    code: String,
}

impl Source {
    fn is_under(&self, module: &[&str]) -> bool {
        self.module.len() >= module.len() && self.module.iter().zip(module).all(|(a, b)| a == b)
    }

    fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    /// The lines that hold one of these paths as whole words.
    fn find(&self, words: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for (number, line) in self.code.lines().enumerate() {
            for word in words {
                if line
                    .match_indices(word)
                    .any(|(start, _)| is_word(line, start, word.len()))
                {
                    found.push(format!("{}: {}", self.at(number + 1), line.trim()));
                }
            }
        }
        found
    }
}

fn is_word(line: &str, start: usize, length: usize) -> bool {
    let part_of_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let before = line[..start].bytes().next_back();
    let after = line[start + length..].bytes().next();
    !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
}

fn level(module: &str) -> Option<usize> {
    ORDER.iter().position(|line| line.contains(&module))
}

fn report(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 10, "src was not found");
    files.sort();
    let mut sources: Vec<Source> = files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).unwrap().with_extension("");
            let mut module: Vec<String> = relative
                .iter()
                .map(|part| part.to_str().unwrap().to_owned())
                .collect();
            if module.last().is_some_and(|last| last == "mod") {
                module.pop();
            }
            let text = fs::read_to_string(&path).unwrap();
            Source {
                path,
                module,
                code: without_tests(&bare(&text)),
            }
        })
        .collect();
    // `#[cfg(test)] mod tests;` leaves its file as test code too.
    sources.retain(|source| {
        source
            .module
            .last()
            .is_none_or(|last| last != "tests" && last != "testing")
    });
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The top-level modules a file refers to, with the line: `crate::x`, `crate::{x, y::z}` and
/// chains of `super::` that climb to the root.
fn references(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let code = &source.code;
    let line_of = |at: usize| code[..at].matches('\n').count() + 1;
    for (start, _) in code.match_indices("crate::") {
        if is_word(code, start, "crate".len()) {
            for name in heads(&code[start + "crate::".len()..]) {
                found.push((line_of(start), name));
            }
        }
    }
    let climb = "super::".repeat(source.module.len());
    for (start, _) in code.match_indices(&climb) {
        for name in heads(&code[start + climb.len()..]) {
            found.push((line_of(start), name));
        }
    }
    found.retain(|(_, name)| level(name).is_some());
    found
}

/// The first segments of the path or the braced group that `text` begins with.
fn heads(text: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = text.trim_start().strip_prefix('{') else {
        return vec![name(text)];
    };
    let mut names = vec![name(group)];
    let mut depth = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(name(&group[at + 1..])),
            _ => {}
        }
    }
    names
}

/// The text with comments and the contents of string and character literals blanked; lines stay.
fn bare(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let end = if rest.starts_with(b"//") {
            at + rest
                .iter()
                .position(|&byte| byte == b'\n')
                .unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            at + text[at..].find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest).filter(|_| !in_name(bytes, at)) {
            at + length
        } else if rest[0] == b'"' {
            at + quoted(rest, b'"')
        } else if rest[0] == b'\'' && is_character(rest) {
            at + quoted(rest, b'\'')
        } else {
            at += 1;
            continue;
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).unwrap()
}

fn in_name(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

/// The length of the raw string literal (`r"…"`, `br#"…"#`) that `rest` begins with.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let start = if rest.starts_with(b"br") { 2 } else { 1 };
    if rest.first() != Some(&b'r') && start == 1 {
        return None;
    }
    let hashes = rest[start..]
        .iter()
        .take_while(|&&byte| byte == b'#')
        .count();
    if rest.get(start + hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = start + hashes + 1;
    let length = rest[body..]
        .windows(close.len())
        .position(|window| window == close)?;
    Some(body + length + close.len())
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// A character literal rather than a lifetime.
fn is_character(rest: &[u8]) -> bool {
    if rest.get(1) == Some(&b'\\') {
        return true;
    }
    let first = String::from_utf8_lossy(&rest[1..rest.len().min(5)])
        .chars()
        .next()
        .map_or(1, char::len_utf8);
    rest.get(1 + first) == Some(&b'\'')
}

/// The code without items marked `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    for (start, mark) in code.match_indices("#[cfg(test)]") {
        let mut depth = 0;
        for (at, byte) in code.bytes().enumerate().skip(start + mark.len()) {
            match byte {
                b'{' | b'(' | b'[' => depth += 1,
                b'}' | b')' | b']' => depth -= 1,
                _ => {}
            }
            if out[at] != b'\n' {
                out[at] = b' ';
            }
            if depth == 0 && matches!(byte, b'}' | b';') {
                break;
            }
        }
    }
    String::from_utf8(out).unwrap()
}

mod reading {
    use super::*;

    #[test]
    fn comments_and_strings_are_not_code() {
        let code = bare("a // unsafe\n\"unsafe\" 'u' r#\"un\"safe\"# &'a str /* x */ b'\\'' z");
        assert!(!code.contains("safe"), "{code}");
        assert!(code.contains("&'a str"), "{code}");
        assert!(code.ends_with('z'), "{code}");
    }

    #[test]
    fn test_code_is_left_out() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { x.unwrap() } }\nfn c() {}";
        let kept = without_tests(code);
        assert!(!kept.contains("unwrap") && kept.contains("fn c"), "{kept}");
    }

    #[test]
    fn groups_name_their_first_segments() {
        assert_eq!(
            heads("{base::{ids, key}, device::X, audit};"),
            ["base", "device", "audit"]
        );
        assert_eq!(heads("api::problem"), ["api"]);
    }
}
