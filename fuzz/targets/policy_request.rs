//! A request that somebody wonders about, as JSON: the explanation agrees with itself.
#![no_main]

use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use opcert::api::types::ExplainPolicy;
use opcert::api::what_if::{Known, explained};
use opcert::policy::{PolicySet, Settings, Source, Usage};

static RULES: LazyLock<PolicySet> = LazyLock::new(|| {
    let site = Source {
        name: "site.cedar".into(),
        text: r#"
            @id("small")
            permit (principal, action == Action::"withdrawal", resource)
            when { context.amount <= 100000 && context.currency == "CNY" };
            @id("night")
            forbid (principal, action in Action::"approve", resource)
            when { context.hour < 6 && context.today.count > 3 };
        "#
        .into(),
    };
    PolicySet::load(&[site], Settings::default()).unwrap()
});

fuzz_target!(|data: &[u8]| {
    let Ok(asked) = serde_json::from_slice::<ExplainPolicy>(data) else {
        return;
    };
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    if let Ok(answer) = explained(
        &RULES,
        &Usage::default(),
        &asked,
        Known::default(),
        1000,
        now,
    ) {
        let explanation = serde_json::to_value(&answer).unwrap();
        assert_eq!(
            explanation["allowed"] == true,
            explanation["consent"].is_string(),
            "{explanation}"
        );
        assert!(
            explanation["rule"]
                .as_str()
                .is_some_and(|rule| !rule.is_empty())
        );
    }
});
