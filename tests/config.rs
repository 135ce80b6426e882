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
            &["opcertd.toml:2: native.addresses"],
        ),
        (
            "[native.limits]\nconnections = 0\n",
            &["opcertd.toml:2: native.limits.connections", "1 to 65536"],
        ),
        (
            "state-directory = \"var\"\n",
            &["opcertd.toml:1: state-directory", "absolute"],
        ),
        (
            "[native]\naddresses = 7\n",
            &["opcertd.toml:2: native.addresses"],
        ),
        (
            "[metrics]\naddress = \"0.0.0.0:9464\"\n",
            &["opcertd.toml:2: metrics.address", "loopback"],
        ),
        (
            "[[module]]\nname = \"a\"\n",
            &["opcertd.toml:1: module[0]", "missing field `path`"],
        ),
    ] {
        refused(&check(text, 0o600), "config-value", words);
    }
}

/// A configuration with drop-ins, by name and text.
struct Layered(tempfile::TempDir);

impl Layered {
    fn new(main: &str, drop_ins: &[(&str, &str)]) -> Self {
        let layered = Self(tempfile::tempdir().unwrap());
        let directory = layered.0.path().join("opcertd.toml.d");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        layered.write("opcertd.toml", main);
        for (name, text) in drop_ins {
            layered.write(&format!("opcertd.toml.d/{name}"), text);
        }
        layered
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn opcert(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_opcert"))
            .args(arguments)
            .arg("--config")
            .arg(self.0.path().join("opcertd.toml"))
            .output()
            .unwrap()
    }

    /// What `opcert config show` says of a key: its value, and what set it.
    #[track_caller]
    fn shown(&self, key: &str) -> (serde_json::Value, String) {
        let output = self.opcert(&["--json", "config", "show"]);
        assert!(output.status.success(), "{output:?}");
        let keys: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = keys
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["key"] == key)
            .unwrap_or_else(|| panic!("{key} is not shown: {keys}"));
        let source = match found["source"].as_str().unwrap() {
            "file" => {
                let file = std::path::Path::new(found["file"].as_str().unwrap());
                let name = file.file_name().unwrap().to_str().unwrap();
                format!("{name}:{}", found["line"])
            }
            other => other.to_owned(),
        };
        (found["value"].clone(), source)
    }
}

#[test]
fn drop_ins_are_laid_over_the_file_in_order_and_shown_with_their_lines() {
    let layered = Layered::new(
        "[log]\nlevel = \"warn\"\n\n[[module]]\nname = \"a\"\npath = \"/lib/a.so\"\n\
         [[module.token]]\nuri = \"pkcs11:token=one\"\n",
        &[
            ("20-second.toml", "[log]\nlevel = \"debug\"\n"),
            (
                "10-first.toml",
                "[log]\nlevel = \"info\"\nformat = \"json\"\n\n[[module]]\nname = \"a\"\n\
                 threads = 1\n[[module.token]]\nuri = \"pkcs11:token=two\"\n\n[[module]]\n\
                 name = \"b\"\npath = \"/lib/b.so\"\n",
            ),
            ("30-note.txt", "this is no configuration"),
        ],
    );
    for (key, value, source) in [
        ("log.level", "debug", "20-second.toml:2"),
        ("log.format", "json", "10-first.toml:3"),
        ("state-directory", "/var/lib/opcert", "default"),
        ("module[0].path", "/lib/a.so", "opcertd.toml:6"),
        (
            "module[0].token[0].uri",
            "pkcs11:token=one",
            "opcertd.toml:8",
        ),
        (
            "module[0].token[1].uri",
            "pkcs11:token=two",
            "10-first.toml:9",
        ),
        ("module[1].path", "/lib/b.so", "10-first.toml:13"),
    ] {
        assert_eq!(
            layered.shown(key),
            (value.into(), source.to_owned()),
            "{key}"
        );
    }
    assert_eq!(layered.shown("module[0].threads").0, 1);
    // A table that is set in part keeps its own defaults in the rest.
    let partly = Layered::new("[control.limits]\nheader-bytes = 2048\n", &[]);
    assert_eq!(
        partly.shown("control.limits.connections"),
        (64.into(), "default".into())
    );
    assert_eq!(
        partly.shown("control.limits.header-bytes").1,
        "opcertd.toml:2"
    );
    let said = layered.opcert(&["config", "show", "--changed"]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(
        text.contains("20-second.toml:2") && !text.contains("default"),
        "{text}"
    );
    let said = layered.opcert(&["config", "check"]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(
        text.starts_with("3 files and ") && text.contains("all sound"),
        "{text}"
    );
}

#[test]
fn a_fault_in_a_drop_in_is_told_with_its_file_and_line() {
    for (text, code, words) in [
        (
            "[log]\ncolour = 1\n",
            "config-unknown-key",
            &["50-x.toml:2:", "colour", "level"][..],
        ),
        (
            "[log]\nlevel = \"loud\"\n",
            "config-value",
            &["50-x.toml:2: log.level", "loud"],
        ),
        (
            "\n[native]\naddresses = [\"192.0.2.1:1\"]\n",
            "config-value",
            &["50-x.toml:3: native.addresses", "loopback"],
        ),
        ("[log\n", "config-syntax", &["50-x.toml:1:"]),
    ] {
        let layered = Layered::new("[log]\nlevel = \"info\"\n", &[("50-x.toml", text)]);
        let said = layered.opcert(&["config", "check"]);
        let error = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(78), "{error}");
        assert!(error.contains(&format!("[{code}]")), "{error}");
        for word in words {
            assert!(error.contains(word), "{word:?} in {error}");
        }
    }
}

#[test]
fn drop_ins_that_others_can_write_are_refused() {
    let layered = Layered::new("", &[("50-x.toml", "")]);
    let directory = layered.0.path().join("opcertd.toml.d");
    for (path, mode) in [
        (directory.join("50-x.toml"), 0o666),
        (directory.clone(), 0o777),
    ] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let said = layered.opcert(&["config", "check"]);
        assert_eq!(said.status.code(), Some(78), "{said:?}");
        let error = String::from_utf8(said.stderr).unwrap();
        assert!(error.contains("[config-permissions]"), "{error}");
    }
}
