//! The published interface changes only on purpose: `tests/openapi.json` is what it was.

use std::collections::BTreeSet;
use std::path::Path;

use opcert::api::problem::Code;
use opcert::api::routes::openapi::document;

/// Write the file anew with this variable set, and review the difference.
const REFRESH: &str = "OPCERT_REFRESH_OPENAPI";

#[test]
fn the_document_is_the_published_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi.json");
    let now = document().to_pretty_json().unwrap() + "\n";
    if std::env::var_os(REFRESH).is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap();
    assert!(
        now == published,
        "the interface has changed. If that is meant, run `{REFRESH}=1 cargo test --test openapi` \
         and commit {}",
        path.display()
    );
}

#[test]
fn it_is_openapi_3_1_and_lists_every_code() {
    let document: serde_json::Value = serde_json::from_str(&document().to_json().unwrap()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let listed: BTreeSet<&str> = document["components"]["schemas"]["Code"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .map(|code| code.as_str().unwrap())
        .collect();
    let known: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(listed, known);
    for (path, item) in document["paths"].as_object().unwrap() {
        assert!(path.starts_with("/v1/"), "{path}");
        for (method, operation) in item.as_object().unwrap() {
            let problem = &operation["responses"]["default"]["content"]["application/problem+json"];
            assert_eq!(
                problem["schema"]["$ref"], "#/components/schemas/ProblemDocument",
                "{method} {path}"
            );
            assert!(
                operation["summary"]
                    .as_str()
                    .is_some_and(|text| text.ends_with('.') && !text.contains('\n')),
                "{method} {path}"
            );
        }
    }
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name} is referred to and missing"
        );
    }
}
