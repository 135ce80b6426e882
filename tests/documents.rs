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

#[test]
fn relative_links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in [
        "README.md",
        "docs/architecture.md",
        "docs/dependencies.md",
        "docs/deploy.md",
        "docs/policy.md",
        "docs/wechatpay.md",
    ] {
        let text = read(document);
        let folder = root.join(document);
        let folder = folder.parent().unwrap();
        for (start, _) in text.match_indices("](") {
            let target = text[start + 2..].split(')').next().unwrap();
            let target = target.split('#').next().unwrap();
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
