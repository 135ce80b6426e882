//! What documents say about the package, held against the package.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn each_direct_dependency_has_its_line() {
    let manifest: toml::Table = toml::from_str(&read("Cargo.toml")).unwrap();
    let declared: BTreeSet<String> = ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(*section)?.as_table())
        .flat_map(|section| section.keys().cloned())
        .collect();
    let listed: BTreeSet<String> = read("docs/dependencies.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(declared, listed);
}

/// Every page, by its path in the package.
fn pages() -> Vec<String> {
    let mut pages = ["CHANGELOG.md", "README.md", "SECURITY.md"]
        .map(str::to_owned)
        .to_vec();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    assert!(pages.len() > 15, "{pages:?}");
    pages
}

#[test]
fn relative_links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in pages() {
        let text = read(&document);
        let folder = root.join(&document);
        let folder = folder.parent().unwrap();
        for (start, _) in text.match_indices("](") {
            // Up to its end, a title or a place within.
            let target = text[start + 2..].split([')', ' ', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(
                folder.join(target).exists(),
                "{document} links to {target}, which is not there"
            );
        }
    }
}

/// `systemd/package` refuses to make an archive that needs a newer one.
#[test]
fn the_glibc_that_the_page_promises_is_the_one_that_is_held() {
    let script = read("systemd/package");
    let glibc = script.lines().find_map(|line| line.strip_prefix("glibc="));
    let page = read("docs/deploy.md").replace('\n', " ");
    assert!(page.contains(&format!("need glibc {} or later", glibc.unwrap())));
}

#[test]
fn the_code_map_names_every_module() {
    let map = read("docs/architecture.md");
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(
                map.contains(&format!("`{name}`")),
                "docs/architecture.md does not say what src/{name} is"
            );
        }
    }
}

/// Write generated pages anew with this variable set, and review the difference.
const REFRESH: &str = "OPCERT_REFRESH_DOCS";

#[cfg(feature = "account")]
#[test]
fn the_reference_of_the_configuration_is_that_of_the_code() {
    use opcert::config::reference::reference;

    let page = format!(
        "# Configuration reference

Every key of the two configuration files. This page is written from the types that read them
(`{REFRESH}=1 cargo test --test documents`), so it is as current as the program.

The files are TOML. Unknown keys are refused. A file may be read by its group and written by its
owner only; the owner is root or the user that the program runs as. Beside `NAME.toml` there may be
a directory `NAME.toml.d`: its `*.toml` files are laid over the main one in the order of their
names. Tables are merged key by key; `[[tables]]` by their `name` or `uri`, new ones are added at the
end; anything else replaces what was there.

{}
{}",
        reference::<opcert::config::daemon::Config>(
            "opcertd.toml",
            "Of the daemon. Check it with `opcert config check`, see the values in force and who set \
             them with `opcert config show`. `systemctl reload opcertd` (SIGHUP) has it read again: \
             policy, modules and tokens, limits, consent, the audit trail, the control socket's group and the log \
             level change at once, and \
             `opcert status` names what needs a restart, or why a file was refused."
        ),
        reference::<opcert::account::config::Config>(
            "accountd.toml",
            "Of the account service. Check it with `opcert-accountd config check`, see the values in \
             force with `opcert-accountd config show`."
        ),
    );
    current("docs/configuration.md", &page);
}

/// Holds a generated page equal to what is committed.
fn current(path: &str, page: &str) {
    if std::env::var_os(REFRESH).is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(path), page).unwrap();
    }
    assert!(
        read(path) == page,
        "{path} is not current: run `{REFRESH}=1 cargo test --test documents` and commit it"
    );
}

#[test]
fn metrics_are_documented_and_the_dashboard_asks_for_none_that_is_not_there() {
    use opcert::telemetry::metrics::{ALL, Kind};

    let mut rows = String::from("| name | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for metric in ALL {
        let (kind, suffix) = match metric.kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
            Kind::Histogram => ("histogram", ""),
        };
        let labels: Vec<_> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let labels = labels.join(", ");
        let name = metric.name;
        rows += &format!(
            "| `{name}{suffix}` | {kind} | {labels} | {} |\n",
            metric.help
        );
    }
    let page = read("docs/metrics.md");
    let (before, rest) = page.split_once("<!-- names -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->\n").unwrap();
    current(
        "docs/metrics.md",
        &format!("{before}<!-- names -->\n{rows}<!-- end -->\n{after}"),
    );

    let known: BTreeSet<String> = ALL
        .iter()
        .flat_map(|metric| {
            let suffixes: &[&str] = match metric.kind {
                Kind::Counter => &["_total"],
                Kind::Gauge => &[""],
                Kind::Histogram => &["_bucket", "_sum", "_count"],
            };
            suffixes
                .iter()
                .map(|suffix| format!("{}{suffix}", metric.name))
        })
        .collect();
    let dashboard = read("docs/grafana-dashboard.json");
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() >= 10);
    for (file, text) in [
        ("docs/grafana-dashboard.json", &dashboard),
        ("docs/metrics.md", &before.to_owned()),
        ("docs/metrics.md", &after.to_owned()),
    ] {
        let mut found = 0;
        for (start, _) in text.match_indices("opcert_") {
            let name: String = text[start..]
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_' || c.is_ascii_digit())
                .collect();
            assert!(known.contains(&name), "{file} asks for {name}");
            found += 1;
        }
        assert!(found > 0 || file != "docs/grafana-dashboard.json");
    }
}

/// All of the package's code, tests included.
fn code() -> String {
    fn below(folder: &Path, found: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, found);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                found.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut found = String::new();
    for folder in ["src", "tests"] {
        below(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder),
            &mut found,
        );
    }
    found
}

/// Each row of the table names tests, or says why there is none.
#[test]
fn what_is_done_about_faults_has_the_tests_it_names() {
    let code = code();
    let page = read("docs/devices.md");
    let (_, page) = page
        .split_once("## What happens, and what is done about it")
        .unwrap();
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(2)
        .collect();
    assert!(rows.len() > 20, "{rows:?}");
    for row in rows {
        let tests = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        if tests.contains("no test: ") {
            continue;
        }
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{row}");
        for name in names {
            assert!(code.contains(&format!("fn {name}(")), "{name}");
        }
    }
}

#[test]
fn each_test_that_the_pages_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code = code();
    let page = read("docs/testing.md");
    let sections = page
        .split("\n## ")
        .filter(|part| part.starts_with("WeChat Pay\n") || part.starts_with("Devices\n"));
    let mut named = 0;
    for row in sections
        .flat_map(str::lines)
        .filter(|line| line.starts_with("| "))
    {
        let tests = row.rsplit('|').nth(1).unwrap();
        for name in tests.split('`').skip(1).step_by(2) {
            let there = match name.split_once('.') {
                Some(_) => root.join("tests/foreign/wechatpay").join(name).exists(),
                None => code.contains(&format!("fn {name}(")),
            };
            assert!(there, "{name}");
            named += 1;
        }
    }
    assert!(named > 90, "{named}");
}

#[test]
fn each_test_program_is_in_the_table() {
    let page = read("docs/testing.md");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut programs = 0;
    for entry in fs::read_dir(tests).unwrap() {
        let path = entry.unwrap().path();
        // Cargo takes a file, or a folder with a `main.rs`, as a test program.
        if path.extension().is_some_and(|kind| kind == "rs") || path.join("main.rs").exists() {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(page.contains(&format!("`{name}`")), "{name}");
            programs += 1;
        }
    }
    assert!(programs > 25, "{programs}");
}

/// Each row of the threat model's tables ends with the tests that hold it.
#[test]
fn what_the_threat_model_promises_has_the_tests_it_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code = code();
    let page = read("docs/threat-model.md");
    let (tables, _) = page.split_once("## What is not defended").unwrap();
    let mut rows = 0;
    for row in tables.lines().filter(|line| line.starts_with("| ")) {
        let tests = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        if tests.trim() == "tests" || tests.trim() == "---" {
            continue;
        }
        rows += 1;
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{row}");
        for name in names {
            let there = match name.contains('/') {
                true => root.join(name).exists(),
                false => code.contains(&format!("fn {name}(")),
            };
            assert!(there, "{name}");
        }
    }
    assert!(rows > 35, "{rows}");
}

/// Every "yes" and "partly" of ours in README's table leads to a page, or to the test that its link
/// is titled with.
#[test]
fn what_the_feature_table_says_of_us_is_shown() {
    let readme = read("README.md");
    let (_, table) = readme.split_once("## Beside comparable systems\n").unwrap();
    let mut expected = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let Ok(number) = cells[0].parse::<usize>() else {
            continue;
        };
        expected += 1;
        assert_eq!(number, expected, "{row}");
        assert_eq!(cells.len(), 11, "{row}");
        let ours = cells[2];
        if ours.starts_with("N:") {
            continue;
        }
        let link = ours
            .strip_prefix("[Y](")
            .or_else(|| ours.strip_prefix("[P]("))
            .unwrap_or_else(|| panic!("{row}"));
        let link = link.split(')').next().unwrap();
        if ours.starts_with("[P]") {
            assert!(ours.contains("): "), "what is missing? {row}");
        }
        match link.split_once(' ') {
            None => assert!(link.ends_with(".md") || link.ends_with(".mjs"), "{row}"),
            Some((file, title)) => {
                let name = title.trim_matches('"');
                let text = read(file);
                assert!(text.contains(&format!("fn {name}(")), "{row}");
            }
        }
    }
    assert_eq!(expected, 75);
}
