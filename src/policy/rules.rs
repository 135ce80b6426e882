//! Rules as texts in, a checked [`PolicySet`] out.
//!
//! Every rule is parsed and checked against the schema in strict mode before any is used; one
//! fault refuses the whole set, with the file and line of each. Rules have names of their own
//! (`@id`), unique over all files, so that the order of files and of rules within a file means
//! nothing: Cedar weighs all of them, and any `forbid` beats every `permit`.
//!
//! Files are never read here: whoever has the texts gives them with their names.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use cedar_policy as cedar;
use jiff::tz::TimeZone;
use miette::Diagnostic;
use serde::{Deserialize, Serialize};

use super::limits::Limit;
use super::remembered::{Reads, Remembered};
use super::schema;
use crate::base::encoding::{hex, sha256};

/// The file name that the shipped rules go by.
pub const SHIPPED: &str = "default.cedar";
const SHIPPED_TEXT: &str = include_str!("default.cedar");

/// Most rules in one set. Each is weighed for each request, so a set without bound would be a
/// request without bound.
const MOST_RULES: usize = 1_000;

/// One file of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What findings call it.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What a set is made of besides site rules.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether the shipped rules are part of it.
    pub defaults: Defaults,
    /// Limits, checked by [`Limit::check`].
    pub limits: Vec<Limit>,
    /// Where days begin, and whose hours rules see.
    pub time_zone: TimeZone,
}

impl Default for Settings {
    /// The shipped rules, no limits, UTC.
    fn default() -> Self {
        Self {
            defaults: Defaults::Include,
            limits: Vec::new(),
            time_zone: TimeZone::UTC,
        }
    }
}

/// Whether the shipped rules are part of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defaults {
    /// They are.
    Include,
    /// Site rules only.
    Omit,
}

/// One rule, as people refer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rule {
    /// Its name: `@id`, or file and line where it has none.
    pub id: String,
    /// What it does where it applies.
    pub effect: Effect,
    /// Its file.
    pub file: String,
    /// The line it begins at, from 1.
    pub line: usize,
    /// Its `@reason`, a sentence for whoever it decides about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a rule does where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Allows, unless another rule forbids.
    Permit,
    /// Refuses.
    Forbid,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permit => "permit",
            Self::Forbid => "forbid",
        })
    }
}

/// Something wrong, or doubtful, about a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The rule, where one could be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What would be right, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if let Some(rule) = &self.rule {
            write!(f, "rule {rule}: ")?;
        }
        f.write_str(&self.problem)?;
        if let Some(help) = &self.help {
            write!(f, " ({help})")?;
        }
        Ok(())
    }
}

/// Rules that were refused, with every fault that was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.one_line())]
pub struct PolicyErrors {
    /// The faults; never empty.
    pub findings: Vec<Finding>,
}

impl PolicyErrors {
    fn one_line(&self) -> String {
        let all: Vec<String> = self.findings.iter().map(ToString::to_string).collect();
        all.join("; ")
    }
}

/// Checked rules, ready to decide. Reading one costs nothing; it is shared behind an `Arc`.
pub struct PolicySet {
    pub(super) policies: cedar::PolicySet,
    pub(super) actions: cedar::Entities,
    pub(super) authorizer: cedar::Authorizer,
    pub(super) limits: Vec<Limit>,
    pub(super) time_zone: TimeZone,
    pub(super) reads: Reads,
    pub(super) remembered: Remembered,
    rules: BTreeMap<String, Rule>,
    texts: BTreeMap<String, [u8; 32]>,
    warnings: Vec<Finding>,
    digest: String,
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicySet")
            .field("rules", &self.rules.len())
            .field("limits", &self.limits.len())
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl PolicySet {
    /// Parses and checks `site` together with what `settings` asks for.
    pub fn load(site: &[Source], settings: Settings) -> Result<Self, PolicyErrors> {
        let shipped = Source {
            name: SHIPPED.to_owned(),
            text: SHIPPED_TEXT.to_owned(),
        };
        let shipped = (settings.defaults == Defaults::Include).then_some(&shipped);
        let mut reader = Reader::default();
        for source in shipped.into_iter().chain(site) {
            reader.read(source);
        }
        let (schema, _) = cedar::Schema::from_cedarschema_str(&schema::text())
            .map_err(|error| internal("the schema", &error))?;
        reader.validate(&schema);
        let actions = schema
            .action_entities()
            .map_err(|error| internal("the actions", &error))?;
        if !reader.errors.is_empty() {
            reader.errors.sort_by(place);
            return Err(PolicyErrors {
                findings: reader.errors,
            });
        }
        reader.warnings.sort_by(place);
        let mut everything = Vec::new();
        for (id, text) in &reader.texts {
            everything.extend_from_slice(&sha256(id.as_bytes()));
            everything.extend_from_slice(text);
        }
        for limit in &settings.limits {
            everything.extend_from_slice(&sha256(format!("{limit:?}").as_bytes()));
        }
        Ok(Self {
            reads: reader.reads,
            remembered: Remembered::default(),
            policies: reader.policies,
            rules: reader.rules,
            texts: reader.texts,
            warnings: reader.warnings,
            limits: settings.limits,
            time_zone: settings.time_zone,
            authorizer: cedar::Authorizer::new(),
            actions,
            digest: hex(&sha256(&everything)),
        })
    }

    /// The shipped rules alone.
    pub fn shipped() -> Result<Self, PolicyErrors> {
        Self::load(&[], Settings::default())
    }

    /// Its rules, by name.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.values()
    }

    /// The rule of this name.
    pub fn rule(&self, id: &str) -> Option<&Rule> {
        self.rules.get(id)
    }

    /// Its limits.
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// Where days begin.
    pub fn time_zone(&self) -> &TimeZone {
        &self.time_zone
    }

    /// What is doubtful about its rules, though nothing is wrong.
    pub fn warnings(&self) -> &[Finding] {
        &self.warnings
    }

    /// Whether it asks what was approved before on the same day. If not, nobody has to read the
    /// day's records back before it can decide.
    pub fn reads_today(&self) -> bool {
        self.reads.has("today") || !self.limits.is_empty()
    }

    /// SHA-256 over its rules and limits, hexadecimal: the same for the same rules, in whatever
    /// order and files.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What is in `self` and was not in `before`, is gone, or has another text.
    pub fn changes_since(&self, before: &Self) -> Changes {
        let mut changes = Changes {
            limits: if self.limits == before.limits {
                Vec::new()
            } else {
                self.limits.iter().map(|limit| limit.name.clone()).collect()
            },
            limits_changed: self.limits != before.limits,
            ..Changes::default()
        };
        for (id, text) in &self.texts {
            match before.texts.get(id) {
                None => changes.added.push(id.clone()),
                Some(old) if old != text => changes.changed.push(id.clone()),
                Some(_) => {}
            }
        }
        changes.removed = before
            .texts
            .keys()
            .filter(|id| !self.texts.contains_key(*id))
            .cloned()
            .collect();
        changes
    }
}

/// How one set differs from another, by the names of rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Changes {
    /// New rules.
    pub added: Vec<String>,
    /// Rules that are gone.
    pub removed: Vec<String>,
    /// Rules with another text.
    pub changed: Vec<String>,
    /// Whether the limits differ.
    pub limits_changed: bool,
    /// The limits there are now, where they differ.
    pub limits: Vec<String>,
}

#[derive(Default)]
struct Reader {
    policies: cedar::PolicySet,
    rules: BTreeMap<String, Rule>,
    texts: BTreeMap<String, [u8; 32]>,
    sources: BTreeMap<String, String>,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
    reads: Reads,
}

impl Reader {
    fn read(&mut self, source: &Source) {
        let parsed: cedar::PolicySet = match source.text.parse() {
            Ok(parsed) => parsed,
            Err(errors) => {
                let errors: cedar::ParseErrors = errors;
                for error in errors.iter() {
                    let finding = finding(source, None, error, error.to_string());
                    self.errors.push(finding);
                }
                return;
            }
        };
        for template in parsed.templates() {
            self.errors.push(at(
                source,
                source.text.find(&template.to_string()).unwrap_or(0),
                None,
                "a rule with a slot (?principal, ?resource) is never filled in here".to_owned(),
            ));
        }
        let policies = parsed.policies().map(|one| (one, one.to_string()));
        for (offset, policy, text) in in_order(&source.text, policies.collect()) {
            self.add(source, policy, &text, offset);
        }
    }

    fn add(&mut self, source: &Source, policy: &cedar::Policy, text: &str, offset: usize) {
        let (line, _) = position(&source.text, offset);
        let id = match policy.annotation("id") {
            Some(id) => id.to_owned(),
            None => format!("{}:{line}", source.name),
        };
        let wrong = |problem: &str| at(source, offset, Some(id.clone()), problem.to_owned());
        if !is_name(&id) {
            self.errors.push(wrong(
                "its @id must be 1 to 128 letters, digits, and any of . _ : / -",
            ));
            return;
        }
        if let Some(other) = self.rules.get(&id) {
            let place = format!("{}:{}", other.file, other.line);
            self.errors
                .push(wrong(&format!("its name is taken by the rule at {place}")));
            return;
        }
        if self.rules.len() == MOST_RULES {
            self.errors
                .push(wrong(&format!("there are more than {MOST_RULES} rules")));
            return;
        }
        if policy.annotation("id").is_none() {
            self.warnings.push(wrong(
                "it has no @id; records would name it by a line that moves",
            ));
        }
        self.reads = self.reads.and(Reads::of(policy));
        self.rules.insert(
            id.clone(),
            Rule {
                id: id.clone(),
                effect: match policy.effect() {
                    cedar::Effect::Permit => Effect::Permit,
                    cedar::Effect::Forbid => Effect::Forbid,
                },
                file: source.name.clone(),
                line,
                reason: policy
                    .annotation("reason")
                    .filter(|reason| !reason.is_empty())
                    .map(str::to_owned),
            },
        );
        self.texts.insert(id.clone(), sha256(text.as_bytes()));
        self.sources
            .entry(source.name.clone())
            .or_insert_with(|| source.text.clone());
        let named = policy.new_id(cedar::PolicyId::new(&id));
        if let Err(error) = self.policies.add(named) {
            self.errors.push(wrong(&error.to_string()));
        }
    }

    fn validate(&mut self, schema: &cedar::Schema) {
        let result = cedar::Validator::new(schema.clone())
            .validate(&self.policies, cedar::ValidationMode::Strict);
        for error in result.validation_errors() {
            let finding = self.located(error.policy_id(), error);
            self.errors.push(finding);
        }
        for warning in result.validation_warnings() {
            let finding = self.located(warning.policy_id(), warning);
            self.warnings.push(finding);
        }
    }

    fn located<E: Diagnostic>(&self, policy: &cedar::PolicyId, error: &E) -> Finding {
        let id: &str = policy.as_ref();
        let rule = self.rules.get(id);
        let file = rule.map_or_else(String::new, |rule| rule.file.clone());
        let source = Source {
            text: self.sources.get(&file).cloned().unwrap_or_default(),
            name: file,
        };
        // Cedar's sentence begins with the policy's id, which the finding has beside it.
        let text = error.to_string();
        let text = text
            .strip_prefix(&format!("for policy `{id}`, "))
            .unwrap_or(&text)
            .to_owned();
        let mut finding = finding(&source, Some(id.to_owned()), error, text);
        if error
            .labels()
            .is_none_or(|mut labels| labels.next().is_none())
        {
            finding.line = rule.map_or(1, |rule| rule.line);
            finding.column = 1;
        }
        finding
    }
}

fn place(one: &Finding, other: &Finding) -> std::cmp::Ordering {
    (&one.file, one.line, one.column, &one.problem).cmp(&(
        &other.file,
        other.line,
        other.column,
        &other.problem,
    ))
}

fn finding(
    source: &Source,
    rule: Option<String>,
    error: &impl Diagnostic,
    problem: String,
) -> Finding {
    let offset = error
        .labels()
        .and_then(|mut labels| labels.next())
        .map_or(0, |label| label.offset());
    let mut finding = at(source, offset, rule, problem);
    finding.help = error.help().map(|help| help.to_string());
    finding
}

fn at(source: &Source, offset: usize, rule: Option<String>, problem: String) -> Finding {
    let (line, column) = position(&source.text, offset);
    Finding {
        file: source.name.clone(),
        line,
        column,
        rule,
        problem,
        help: None,
    }
}

fn internal(what: &str, error: &dyn fmt::Display) -> PolicyErrors {
    PolicyErrors {
        findings: vec![Finding {
            file: "opcert.cedarschema".to_owned(),
            line: 1,
            column: 1,
            rule: None,
            problem: format!("{what} of this program cannot be used: {error}"),
            help: None,
        }],
    }
}

/// Rules with where they begin, in the order of the file. The longest are found first, and none is
/// found within another: the same rule may stand twice, or once with a name and once without.
fn in_order<T>(file: &str, mut rules: Vec<(T, String)>) -> Vec<(usize, T, String)> {
    rules.sort_by_key(|(_, text)| std::cmp::Reverse(text.len()));
    let mut taken: Vec<Range<usize>> = Vec::with_capacity(rules.len());
    let mut found = Vec::with_capacity(rules.len());
    for (rule, text) in rules {
        let offset = file
            .match_indices(&text)
            .map(|(offset, _)| offset)
            .find(|offset| !taken.iter().any(|one| one.contains(offset)))
            .unwrap_or(0);
        taken.push(offset..offset + text.len());
        found.push((offset, rule, text));
    }
    found.sort_by_key(|(offset, ..)| *offset);
    found
}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.chars().rev().take_while(|&c| c != '\n').count();
    (line, column)
}

fn is_name(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source {
            name: "site.cedar".into(),
            text: text.into(),
        }
    }

    fn findings(text: &str) -> Vec<Finding> {
        PolicySet::load(&[source(text)], Settings::default())
            .unwrap_err()
            .findings
    }

    #[test]
    fn the_shipped_rules_are_sound_and_named() {
        let set = PolicySet::shipped().unwrap();
        assert_eq!(set.warnings(), []);
        assert!(!set.reads_today());
        assert!(set.rules().all(|rule| rule.reason.is_some()));
        assert_eq!(set.rule("ask-a-person").unwrap().effect, Effect::Permit);
    }

    #[test]
    fn a_fault_is_named_by_file_line_and_rule() {
        let found = findings("@id(\"x\")\npermit (principal, action, resource)\nwhen { 1 + };\n");
        assert_eq!((found[0].file.as_str(), found[0].line), ("site.cedar", 3));
        let found = findings(
            "// more\n@id(\"big\")\nforbid (principal, action == Action::\"withdrawal\", resource)\n\
             when { context.amonut > 5 };\n",
        );
        assert_eq!(found[0].line, 4, "{found:?}");
        assert_eq!(found[0].rule.as_deref(), Some("big"));
        assert!(found[0].problem.contains("amonut"), "{found:?}");
    }

    #[test]
    fn words_that_mean_nothing_are_faults() {
        for rule in [
            r#"permit (principal, action == Action::"theft", resource);"#,
            r#"permit (principal, action in Action::"approve", resource) when { context.consent == Consent::"nome" };"#,
            r#"permit (principal, action in Action::"approve", resource) when { context.kind == Kind::"theft" };"#,
            r#"permit (principal == Robot::"r2", action, resource);"#,
            r#"permit (principal, action in Action::"approve", resource) when { context.amount < 5 };"#,
            r#"permit (principal == ?principal, action, resource);"#,
            r#"@id("has blanks") permit (principal, action, resource);"#,
            r#"@id("ask-a-person") permit (principal, action, resource);"#,
        ] {
            assert!(!findings(rule).is_empty(), "{rule}");
        }
    }

    #[test]
    fn a_rule_that_can_never_apply_is_doubtful() {
        let text = "@id(\"never\")\npermit (principal, action in Action::\"approve\", resource)\n\
                    when { false };";
        let set = PolicySet::load(&[source(text)], Settings::default()).unwrap();
        assert_eq!(set.warnings().len(), 1, "{:?}", set.warnings());
        assert_eq!(set.warnings()[0].rule.as_deref(), Some("never"));
        let set = PolicySet::load(
            &[source(
                "forbid (principal, action, resource) when { 1 == 2 };",
            )],
            Settings::default(),
        )
        .unwrap();
        assert!(set.warnings().iter().any(|one| one.problem.contains("@id")));
    }

    #[test]
    fn what_was_approved_today_is_found_in_the_tree() {
        let text = r#"@id("few") forbid (principal, action in Action::"approve", resource)
            when { context["tod\u{61}y"].count >= 3 };"#;
        let set = PolicySet::load(&[source(text)], Settings::default()).unwrap();
        assert!(set.reads_today());
    }

    #[test]
    fn a_change_is_told_by_the_names_of_rules() {
        let load = |text: &str| PolicySet::load(&[source(text)], Settings::default()).unwrap();
        let one = load(
            r#"@id("a") forbid (principal, action, resource); @id("b") forbid (principal, action, resource);"#,
        );
        let two = load(
            r#"@id("c") forbid (principal, action, resource); @id("a") forbid (principal, action == Action::"withdrawal", resource);"#,
        );
        let changes = two.changes_since(&one);
        assert_eq!(changes.added, ["c"]);
        assert_eq!(changes.removed, ["b"]);
        assert_eq!(changes.changed, ["a"]);
        assert_ne!(one.digest(), two.digest());
        assert_eq!(two.changes_since(&two), Changes::default());
    }

    #[test]
    fn other_limits_are_a_change_and_another_digest() {
        let limit = |most: u32| -> Vec<Limit> {
            vec![toml::from_str(&format!("name = \"few\"\ncount-per-day = {most}")).unwrap()]
        };
        let load = |limits| {
            let settings = Settings {
                limits,
                ..Settings::default()
            };
            PolicySet::load(&[], settings).unwrap()
        };
        let (none, five, six) = (load(Vec::new()), load(limit(5)), load(limit(6)));
        for (before, now) in [(&none, &five), (&five, &six)] {
            let changes = now.changes_since(before);
            assert!(changes.limits_changed);
            assert_eq!(changes.limits, ["few"]);
            assert!(changes.changed.is_empty() && changes.added.is_empty());
            assert_ne!(now.digest(), before.digest());
        }
        let same = load(limit(5)).changes_since(&five);
        assert_eq!(same, Changes::default());
        assert_eq!(none.changes_since(&five).limits, [""; 0]);
        assert!(none.changes_since(&five).limits_changed);
    }

    #[test]
    fn names_and_numbers_of_rules_have_bounds() {
        let rule = |id: &str| {
            format!("@id(\"{id}\") forbid (principal, action == Action::\"client\", resource);")
        };
        let settings = || Settings {
            defaults: Defaults::Omit,
            ..Settings::default()
        };
        let longest = "x".repeat(128);
        for good in ["a", "a.b_c:d/e-9", &longest] {
            let set = PolicySet::load(&[source(&rule(good))], settings()).unwrap();
            assert_eq!(set.rule(good).unwrap().effect, Effect::Forbid);
        }
        for bad in ["", "a b", "名", &format!("{longest}x")] {
            assert!(!findings(&rule(bad)).is_empty(), "{bad}");
        }
        let many: String = (0..MOST_RULES).map(|n| rule(&n.to_string())).collect();
        let more = format!("{many}{}", rule("more"));
        let found = PolicySet::load(&[source(&more)], settings()).unwrap_err();
        assert_eq!(found.findings.len(), 1, "all but the last are taken");
        assert_eq!(found.findings[0].rule.as_deref(), Some("more"));
    }

    #[test]
    fn a_name_is_taken_once_over_all_files_and_the_other_place_is_told() {
        let file = |name: &str| Source {
            name: name.into(),
            text: "\n@id(\"x\")\nforbid (principal, action, resource);".into(),
        };
        let files = [file("a.cedar"), file("b.cedar")];
        let found = PolicySet::load(&files, Settings::default()).unwrap_err();
        assert_eq!(found.findings.len(), 1);
        assert_eq!(
            (&*found.findings[0].file, found.findings[0].line),
            ("b.cedar", 2)
        );
        assert!(found.findings[0].problem.contains("a.cedar:2"), "{found}");
    }

    #[test]
    fn a_rule_without_a_name_goes_by_its_place_and_an_empty_reason_is_none() {
        let text = "// first\n@reason(\"\")\nforbid (principal, action, resource);";
        let set = PolicySet::load(&[source(text)], Settings::default()).unwrap();
        let rule = set.rule("site.cedar:2").unwrap();
        assert_eq!((rule.line, rule.reason.as_deref()), (2, None));
    }

    #[test]
    fn a_rule_that_stands_twice_is_told_by_its_own_line() {
        let text = "@id(\"x\")\nforbid (principal, action, resource);\n\
                    @id(\"x\")\nforbid (principal, action, resource);\n";
        let found = findings(text);
        assert_eq!(found[0].line, 3, "{found:?}");
        assert!(found[0].problem.contains("site.cedar:1"), "{found:?}");
        // The second is the first without its name.
        let text = "@id(\"x\")\nforbid (principal, action, resource);\n\
                    forbid (principal, action, resource);\n";
        let set = PolicySet::load(&[source(text)], Settings::default()).unwrap();
        assert_eq!(set.rule("x").unwrap().line, 1);
        assert_eq!(set.rule("site.cedar:3").unwrap().line, 3);
    }

    #[test]
    fn all_faults_are_told_in_the_order_of_the_files() {
        let file = |name: &str, text: &str| Source {
            name: name.into(),
            text: text.into(),
        };
        let files = [
            file(
                "z.cedar",
                "forbid (principal, action, resource);\n\npermit (",
            ),
            file(
                "b.cedar",
                "@id(\"a\") permit (principal, action, resource);\n\
                 @id(\"a\") permit (principal, action, resource);\n\
                 @id(\"b b\") permit (principal, action, resource);",
            ),
        ];
        let found = PolicySet::load(&files, Settings::default()).unwrap_err();
        let places: Vec<(&str, usize)> = found
            .findings
            .iter()
            .map(|one| (&*one.file, one.line))
            .collect();
        assert_eq!(places, [("b.cedar", 2), ("b.cedar", 3), ("z.cedar", 3)]);
    }
}
