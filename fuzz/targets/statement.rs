//! A statement object: what is accepted is written back as it was read, and shows nothing that
//! could mislead.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opcert::statement::strict::Object;
use opcert::statement::{Language, Statement};

fuzz_target!(|data: &[u8]| {
    let Ok(statement) = Object::parse(data).and_then(Statement::from_object) else {
        return;
    };
    let json = statement.to_json().to_string();
    let again = Object::parse(json.as_bytes()).and_then(Statement::from_object);
    assert_eq!(again.as_ref(), Ok(&statement), "{json}");
    for language in [Language::English, Language::Chinese] {
        for (label, value) in statement.lines(language) {
            assert!(
                !value.is_empty() && value.trim() == value,
                "{label}: {value:?}"
            );
            let misleads = |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{202e}');
            assert!(!value.chars().any(misleads), "{label}: {value:?}");
        }
    }
});
