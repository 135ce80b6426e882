//! Each way a configuration can be wrong, as the daemon says it.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

fn check(text: &str, mode: u32) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("opcertd.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    Command::new(env!("CARGO_BIN_EXE_opcertd"))
        .arg("--check")
        .arg("--config")
        .arg(&path)
        .output()
        .unwrap()
}

/// Checks exit code, stable code, and that the text says `words`.
fn refused(output: &Output, code: &str, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(output.stdout.is_empty());
    assert!(text.trim_end().ends_with(&format!("[{code}]")), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} in {text}");
    }
}

#[test]
fn a_good_file_and_an_empty_one_pass_in_silence() {
    for text in [
        "",
        "state-directory = \"/var/lib/opcert\"\n[native]\naddresses = [\"127.0.0.1:0\", \"[::1]:0\"]\n\
         [native.limits]\nconnections = 10\n[control]\ngroup = \"opcert\"\n[audit]\nsegment-bytes = 1048576\n",
    ] {
        let output = check(text, 0o640);
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn a_missing_file_is_unreadable() {
    let output = Command::new(env!("CARGO_BIN_EXE_opcertd"))
        .args(["--check", "--config", "/nonexistent/opcertd.toml"])
        .output()
        .unwrap();
    refused(
        &output,
        "config-unreadable",
        &["/nonexistent/opcertd.toml", "No such file"],
    );
}

#[test]
fn a_file_that_others_can_read_or_write_is_refused() {
    for mode in [0o604, 0o602, 0o660, 0o644, 0o666] {
        refused(&check("", mode), "config-permissions", &["0600"]);
    }
}

#[test]
fn wrong_toml_names_its_line() {
    refused(
        &check("[native]\naddresses = [\n\"127.0.0.1:0\"\n", 0o600),
        "config-syntax",
        &["opcertd.toml:"],
    );
    refused(
        &check(
            "state-directory = \"/a\"\nstate-directory = \"/b\"\n",
            0o600,
        ),
        "config-syntax",
        &["opcertd.toml:2:"],
    );
}

#[test]
fn unknown_keys_are_named_with_their_line() {
    refused(
        &check("[native]\n\nadresses = []\n", 0o600),
        "config-unknown-key",
        &["opcertd.toml:3:", "adresses", "addresses"],
    );
    refused(
        &check("colour = \"red\"\n", 0o600),
        "config-unknown-key",
        &["opcertd.toml:1:", "colour"],
    );
}

#[test]
fn wrong_values_are_named_with_their_key() {
    for (text, words) in [
        (
            "[native]\naddresses = [\"0.0.0.0:7443\"]\n",
            &[
                "opcertd.toml:2: native.addresses",
                "0.0.0.0:7443",
                "loopback",
            ][..],
        ),
        (
            "[native]\naddresses = [\"192.0.2.1:7443\"]\n",
            &["192.0.2.1:7443"],
        ),
        (
            "[native]\naddresses = [\"localhost\"]\n",
            &["opcertd.toml:2: addresses"],
        ),
        (
            "[native.limits]\nconnections = 0\n",
            &["opcertd.toml:2: native.limits.connections", "1 to 65536"],
        ),
        (
            "state-directory = \"var\"\n",
            &["opcertd.toml:1: state-directory", "absolute"],
        ),
        ("[native]\naddresses = 7\n", &["opcertd.toml:2: addresses"]),
    ] {
        refused(&check(text, 0o600), "config-value", words);
    }
}
