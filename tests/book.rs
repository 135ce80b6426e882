//! Every command that the pages show is run: here, against the demo's daemon and account service,
//! or where its block says. A block that says nothing fails the test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A fenced block of a page.
struct Block {
    page: String,
    line: usize,
    /// What stands behind the fence.
    mark: String,
    text: String,
}

/// Marks of blocks that hold no commands.
const QUIET: [&str; 12] = [
    "text", "toml", "json", "mermaid", "cedar", "go", "java", "php", "python", "js", "html", "ini",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<String> {
    let mut pages: Vec<String> = ["README.md", "SECURITY.md", "CHANGELOG.md"]
        .map(str::to_owned)
        .into();
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages.sort();
    pages
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in fs::read_to_string(root().join(page))
        .unwrap()
        .lines()
        .enumerate()
    {
        if let Some(mark) = line.trim_start().strip_prefix("```") {
            open = !open;
            if open {
                blocks.push(Block {
                    page: page.to_owned(),
                    line: number + 1,
                    mark: mark.trim().to_owned(),
                    text: String::new(),
                });
            }
        } else if open {
            let block = blocks.last_mut().unwrap();
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(!open, "{page}: a block has no end");
    blocks
}

/// The commands of a block: lines that end in a backslash go on.
fn commands(text: &str) -> Vec<String> {
    text.replace("\\\n", " ")
        .lines()
        .map(|line| line.split(" #").next().unwrap().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn every_block_says_where_it_is_run() {
    let inside = fs::read_to_string(root().join("tests/systemd/inside")).unwrap();
    let run = fs::read_to_string(root().join("tests/run")).unwrap();
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let (mut here, mut container) = (0, 0);
    for block in pages().iter().flat_map(|page| blocks(page)) {
        let at = format!("{}:{}", block.page, block.line);
        match block.mark.as_str() {
            "sh run" => here += 1,
            "sh container" => {
                container += 1;
                let calls = ["block", "block_text"]
                    .map(|function| format!("{function} {} {container}", block.page));
                assert!(
                    inside
                        .lines()
                        .any(|line| calls.iter().any(|call| line.contains(call))),
                    "{at}: tests/systemd/inside does not run `{}`",
                    calls[0]
                );
            }
            "sh ci" => {
                for command in commands(&block.text) {
                    let program = command.split_whitespace().next().unwrap();
                    assert!(
                        [&run, &ci].iter().any(|script| script.contains(program)),
                        "{at}: continuous integration does not start {program}"
                    );
                }
            }
            // A transcript, whose commands stand for those that other tests run with other names:
            // `what_is_named_is_there_and_started_by_tests` holds them to that.
            "console" => {}
            mark => assert!(QUIET.contains(&mark), "{at}: the block is marked {mark:?}"),
        }
    }
    assert!(here >= 8 && container >= 5, "{here} {container}");
}

/// Command lines of the programs that a page names: in its text, and behind the prompts of its
/// transcripts. With what stands for the reader's own names and values.
fn named(page: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let joined = text.replace("\\\n", " ");
    let prompted = joined.lines().filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "))
    });
    // Code in the text stands between single backquotes.
    let inline = text
        .split("```")
        .step_by(2)
        .flat_map(|prose| prose.split('`').skip(1).step_by(2));
    prompted
        .chain(inline)
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| line.starts_with("opcert ") || line.starts_with("opcert-accountd "))
        .collect()
}

/// The words of a command line up to a pipe or a redirection, quotes taken off.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            '|' | '>' | '<' | '#' | '\u{2026}' if !quoted => break,
            ' ' if !quoted => {
                words.extend(Some(std::mem::take(&mut word)).filter(|w| !w.is_empty()))
            }
            c => word.push(c),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

/// The subcommands that a command line names, or the word that its program does not take.
fn subcommands(line: &str) -> Result<Vec<String>, String> {
    let words = words(line);
    let mut command = match words[0].as_str() {
        "opcert" => opcert::cli::command(),
        _ => opcert::account::command(),
    };
    command.build();
    let (mut here, mut path) = (&command, Vec::new());
    let mut rest = words[1..].iter();
    while let Some(word) = rest.next() {
        if let Some(option) = word.strip_prefix("--") {
            let name = option.split('=').next().unwrap();
            let known = here
                .get_arguments()
                .find(|argument| argument.get_long() == Some(name))
                .ok_or_else(|| word.clone())?;
            if known.get_action().takes_values() && !option.contains('=') {
                rest.next();
            }
        } else if let Some(below) = here.find_subcommand(word) {
            path.push(word.clone());
            here = below;
        } else if here.get_positionals().next().is_none() {
            return Err(word.clone());
        }
    }
    Ok(path)
}

/// All that tests, the demo and the pages' own blocks start, one word behind the other.
fn started() -> String {
    fn below(folder: &Path, found: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            if path.is_dir() && name != "node_modules" {
                below(&path, found);
            } else if let Ok(text) = fs::read_to_string(&path) {
                found.push_str(&text);
            }
        }
    }
    let mut found = String::new();
    for folder in ["tests", "softhsm-config"] {
        below(&root().join(folder), &mut found);
    }
    for block in pages().iter().flat_map(|page| blocks(page)) {
        if block.mark == "sh run" || block.mark == "sh container" {
            found += &block.text;
        }
    }
    let separators = ['"', '\'', ',', '[', ']', '&', '\\'];
    found
        .replace(separators, " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        // The helper of tests/tokens.rs stands for two words; for some calls its arguments are made
        // before.
        .replace("token_command( daemon ", "opcert token ")
        .replace("arguments = vec! ", "opcert token ")
        .replace("arguments = ", "opcert token ")
}

#[test]
fn what_is_named_is_there_and_started_by_tests() {
    let started = started();
    let mut count = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        for line in named(&page) {
            count += 1;
            match subcommands(&line) {
                Err(word) => wrong.push(format!("{page}: `{line}`: there is no {word}")),
                Ok(path) if !started.contains(&path.join(" ")) => {
                    wrong.push(format!("{page}: `{line}`: no test starts it"));
                }
                Ok(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 80, "{count}");
}

/// The demo, which keeps serving until it is dropped.
struct Demo {
    process: Child,
    directory: PathBuf,
    service: String,
    native: String,
}

impl Demo {
    fn start() -> Self {
        let mut process = Command::new(root().join("softhsm-config/demo"))
            .arg("--serve")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        // Reads on to the end, so that the demo can always write.
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(600);
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => said.push(line),
                Err(_) => {
                    let _ = process.kill();
                    panic!("the demo does not serve:\n{}", said.join("\n"));
                }
            }
            if said.last().unwrap().starts_with("In the portal, alice") {
                break;
            }
        }
        let find = |start: &str| {
            let line = said.iter().find_map(|line| line.trim().strip_prefix(start));
            line.unwrap().split_whitespace().next().unwrap().to_owned()
        };
        Self {
            directory: find("export D=").into(),
            service: find("Account service"),
            native: find("Native door").replace("https://", ""),
            process,
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It stops what it started when it is told to end.
        let pid =
            rustix::process::Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

/// Stands before the real programs: adds what a page leaves to the reader's computer.
const WRAPPER: &str = r#"#!/usr/bin/env bash
set -euo pipefail
code() {
    until [ "$(grep -c 'opcert code' "$D/service/output.log")" -gt "$1" ]; do sleep 0.1; done
    grep -o 'opcert code [0-9]*' "$D/service/output.log" | tail -n 1 | grep -o '[0-9]*$'
}
ca=(--service-ca "$D/service/state/server-ca.pem")
case $(basename "$0") in
    opcertd) exec "$PROGRAMS/opcertd" --allow-root --config "$CONFIG" "$@" ;;
esac
case $1 in
    init)
        exec "$PROGRAMS/opcert" "$@" --config "$CONFIG" --state-directory "$PAGE/state" \
            --runtime-directory "$PAGE/run" \
            --pin-file "$PAGE/pin" --native 127.0.0.1:0
        ;;
    install)
        for _ in $(seq 300); do [ -S "$OPCERT_SOCKET" ] && break; sleep 0.1; done
        before=$(grep -c 'opcert code' "$D/service/output.log" || true)
        code "$before" | "$PROGRAMS/opcert" "$@" --config "$CONFIG" "${ca[@]}" \
            --computer-name "a page" --password-file "$D/password" --code-file -
        ;;
    token)
        for _ in $(seq 300); do [ -S "$OPCERT_SOCKET" ] && break; sleep 0.1; done
        pin=()
        [ "$2" != unlock ] || pin=(--pin-file "$PAGE/pin")
        exec "$PROGRAMS/opcert" "$@" --config "$CONFIG" "${pin[@]}"
        ;;
    operation | sync | renew) exec "$PROGRAMS/opcert" "$@" "${ca[@]}" ;;
    verify) exec "$PROGRAMS/opcert" "$@" ;;
    *) exec "$PROGRAMS/opcert" "$@" --config "$CONFIG" ;;
esac
"#;

/// A page's blocks, run one after the other in a directory of their own.
struct Page<'a> {
    demo: &'a Demo,
    directory: &'a Path,
    operator: &'a str,
    config: PathBuf,
    socket: PathBuf,
}

impl Page<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new("bash");
        let wrappers = self.directory.join("bin");
        let path = std::env::var("PATH").unwrap();
        command
            .current_dir(self.directory)
            .env("PATH", format!("{}:{path}", wrappers.display()))
            .env(
                "PROGRAMS",
                Path::new(env!("CARGO_BIN_EXE_opcert")).parent().unwrap(),
            )
            .env("D", &self.demo.directory)
            .env("PAGE", self.directory)
            .env("CONFIG", &self.config)
            .env("OPCERT_SOCKET", &self.socket)
            .env("SOFTHSM2_CONF", self.directory.join("softhsm2.conf"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `script`, which has to succeed.
    fn run(&self, script: &str, what: &str) {
        let port = self.demo.native.rsplit(':').next().unwrap();
        let script = script
            .replace("https://accounts.example", &self.demo.service)
            .replace("127.0.0.1:7443", &self.demo.native)
            .replace("localhost:7443", &format!("localhost:{port}"))
            .replace("--operator alice", &format!("--operator {}", self.operator))
            .replace("--key-file platform-key", "--key-file \"$D/platform-key\"");
        let output = self
            .command()
            .arg("-c")
            .arg(format!("set -euo pipefail\n{script}"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{what} ended with {}:\n{script}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn prepare(directory: &Path) {
    let wrappers = directory.join("bin");
    fs::create_dir(&wrappers).unwrap();
    for program in ["opcert", "opcertd"] {
        let path = wrappers.join(program);
        fs::write(&path, WRAPPER).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn every_command_of_the_pages_works_as_it_stands() {
    let demo = Demo::start();
    let computer = demo.directory.join("computer");
    for (number, page) in pages().iter().enumerate() {
        let shown: Vec<Block> = blocks(page)
            .into_iter()
            .filter(|block| block.mark == "sh run")
            .collect();
        if shown.is_empty() {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        // An operator for each page, as a number gets one text message a minute.
        let operator = format!("reader-{number}");
        let accountd = Command::new(env!("CARGO_BIN_EXE_opcert-accountd"))
            .args([
                "operator",
                "create",
                &operator,
                "--account",
                "acme",
                "--mobile",
            ])
            .arg(format!("+86138000001{number:02}"))
            .arg("--password-file")
            .arg(demo.directory.join("password"))
            .arg("--config")
            .arg(demo.directory.join("service/accountd.toml"))
            .output()
            .unwrap();
        assert!(accountd.status.success(), "{accountd:?}");
        let mut stage = Page {
            demo: &demo,
            directory: directory.path(),
            operator: &operator,
            config: computer.join("opcertd.toml"),
            socket: computer.join("run/control.sock"),
        };
        if page == "README.md" {
            // The reader's own computer, from nothing.
            stage.config = directory.path().join("opcertd.toml");
            stage.socket = directory.path().join("run/control.sock");
            stage.run(
                "mkdir tokens\necho \"directories.tokendir = $PAGE/tokens\" >softhsm2.conf\n\
                 (umask 077; printf 4711 >pin)\n\
                 softhsm2-util --init-token --free --label my-token --so-pin 12345678 --pin 4711",
                "the token",
            );
            let text: String = shown.iter().map(|block| block.text.as_str()).collect();
            stage.run(&format!("trap 'kill %1' EXIT\n{text}"), page);
            continue;
        }
        stage.run(
            "opcert sync --service https://accounts.example --save .\ncp -r \"$D/erp\" .",
            "the files",
        );
        if page != "docs/install.md" {
            stage.run(
                "opcert install --service https://accounts.example --account acme --operator alice",
                "the certificate",
            );
        }
        for block in &shown {
            let what = format!("{page}:{}", block.line);
            // Challenges last two minutes, so each block gets its own.
            let fresh = "rm -f challenge.jws approval.jws\n\
                opcert operation create --service https://accounts.example --key-file platform-key \
                --account acme --operator alice --kind withdrawal --amount 4200 --currency CNY \
                --payee 'Acme Ltd' --reference W-1 --out challenge.jws >made";
            stage.run(fresh, "a challenge");
            if block.text.contains("approval.jws") && !block.text.contains("opcert approve") {
                stage.run(
                    "opcert approve --challenge challenge.jws --native 127.0.0.1:7443 \
                     --client-cert erp/client.pem --client-key erp/client-key.pem \
                     --server-ca erp/server-ca.pem --out approval.jws",
                    "an approval",
                );
            }
            stage.run(&block.text, &what);
        }
    }
}
