//! `opcert policy …`: check rules before they are in force, reload them, ask why.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::client::kind;
use super::error::Error;
use super::input::Source;
use super::output::{Mood, Output};
use super::{Global, daemon};
use crate::api::types::{ExplainPolicy, Policy, PolicyExplained};
use crate::api::what_if::{Known, explained};
use crate::base::Clock;
use crate::base::ids::{AccountId, ClientName, OperatorId};
use crate::base::sysexits::EX_OK;
use crate::config::daemon::Config;
use crate::config::{self, ConfigError};
use crate::policy::rules::Rule;
use crate::policy::{
    Administration, ConsentRule, Finding, PolicySet, Settings, Usage, WechatPayUse, schema,
};
use crate::statement::Kind;
use crate::wechatpay::MerchantId;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Check rules without a daemon.
    #[command(
        long_about = "Parses rules and checks them against the schema, together with the shipped \
                      ones. Ends with 0 where they are sound, and with 1 and every fault where \
                      not. Without DIR, the policy of the daemon's configuration is checked, \
                      limits included.",
        after_help = "Example:\n  opcert policy check /etc/opcert/policy"
    )]
    Check {
        /// The directory of the rules, *.cedar.
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Say which rule would decide a request, and why not another.
    #[command(
        long_about = "Asks the daemon what it would decide, at each kind of consent, and lists \
                      every rule with the condition that keeps it from applying. Asked about are \
                      approvals (--kind), WeChat Pay messages (--use, --merchant), and \
                      administration (--administration), or what --request describes. With \
                      --policy, the rules of a directory are asked without a daemon.",
        after_help = "Examples:\n  \
            opcert policy explain --client till --kind withdrawal \\\n      \
            --amount 100000 --currency CNY\n  \
            opcert policy explain --client shop --use request --merchant 1900000001\n  \
            opcert policy explain --uid 1000 --administration client\n  \
            echo '{\"client\": \"browser\", \"administration\": \"enrol\"}' |\n      \
            opcert policy explain --request -\n  \
            opcert policy explain --policy /etc/opcert/policy --client till \\\n      \
            --consent none --kind withdrawal --amount 100000 --currency CNY \\\n      \
            --at 2026-10-01T03:00:00Z"
    )]
    Explain(Box<Explain>),
    /// Have the daemon read its policy anew.
    #[command(
        long_about = "Has the daemon read its policy anew and says what differs. A policy that is \
                      not sound changes nothing. What else has changed in the configuration waits \
                      for `systemctl reload opcertd`, or SIGHUP."
    )]
    Reload,
    /// Show the rules in force.
    Show,
    /// Print the schema that rules are checked against, for editors.
    Schema,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("subject").required(true).args(
    ["kind", "use", "administration", "request"]
)))]
pub(super) struct Explain {
    /// Ask the rules of this directory, not the daemon.
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// The request, as JSON in the form that POST /v1/policy/explain takes; `-` for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "part")]
    request: Option<Source>,
    #[command(flatten)]
    parts: Parts,
}

/// A request in parts.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("part").multiple(true).args([
    "client", "uid", "consent", "registered_kind", "kind", "amount", "currency", "payee", "count",
    "reference", "account", "operator", "service", "origin", "at", "count_today", "sum_today",
    "use", "merchant", "administration",
])))]
struct Parts {
    /// The client that would ask; the local user where it is left out.
    #[arg(long, value_name = "NAME", conflicts_with = "uid")]
    client: Option<ClientName>,
    /// The local user that would ask.
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// As if the client were registered with this consent.
    #[arg(long, value_name = "CONSENT", requires = "client")]
    consent: Option<ConsentRule>,
    /// As if it were registered for this kind only; may be repeated.
    #[arg(long, value_name = "KIND", value_parser = kind, requires = "client")]
    registered_kind: Vec<Kind>,
    /// The kind of operation that would be approved.
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Option<Kind>,
    /// What would be done for a WeChat Pay merchant: request, start, decrypt, check, notification,
    /// platform, v2-sign or v2-check.
    #[arg(long, value_name = "USE", requires = "merchant")]
    r#use: Option<WechatPayUse>,
    /// The merchant's number.
    #[arg(long, value_name = "MCHID", requires = "use")]
    merchant: Option<MerchantId>,
    /// What would be changed of the daemon: client, enrol, merchant, policy, service or token.
    #[arg(long, value_name = "WHAT")]
    administration: Option<Administration>,
    /// Amount in minor units.
    #[arg(long, value_name = "NUMBER", requires = "currency")]
    amount: Option<i64>,
    /// ISO 4217 code.
    #[arg(long, value_name = "CODE", requires = "amount")]
    currency: Option<String>,
    /// Who receives.
    #[arg(long, value_name = "TEXT")]
    payee: Option<String>,
    /// How many pieces.
    #[arg(long, value_name = "NUMBER")]
    count: Option<u32>,
    /// The merchant's own number.
    #[arg(long, value_name = "TEXT")]
    reference: Option<String>,
    /// The account; that of an installed certificate where it is left out.
    #[arg(long, value_name = "ID")]
    account: Option<AccountId>,
    /// The operator who would approve.
    #[arg(long, value_name = "ID")]
    operator: Option<OperatorId>,
    /// Origin of the account service.
    #[arg(long, value_name = "ORIGIN")]
    service: Option<String>,
    /// The page that would ask.
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// When, as RFC 3339. [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// As if so many had been approved today.
    #[arg(long, value_name = "NUMBER")]
    count_today: Option<u64>,
    /// As if so many minor units had been approved today.
    #[arg(long, value_name = "NUMBER")]
    sum_today: Option<u64>,
}

/// The largest request in a file, in bytes: a list of 1,000 payees fits.
const REQUEST_LIMIT: u64 = 1024 * 1024;

impl Explain {
    fn asked(&self) -> Result<ExplainPolicy, Error> {
        let Some(source) = &self.request else {
            return Ok(self.parts.asked());
        };
        let bytes = source.read(REQUEST_LIMIT)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Input {
            what: format!("the request cannot be read: {error}"),
            action: "Give an object in the form of ExplainPolicy in the OpenAPI document; docs/policy.md \
                     has examples."
                .into(),
        })
    }
}

impl Parts {
    fn asked(&self) -> ExplainPolicy {
        ExplainPolicy {
            client: self.client.clone(),
            uid: self.uid,
            consent: self.consent,
            kinds: (!self.registered_kind.is_empty()).then(|| self.registered_kind.clone()),
            wechatpay: None,
            kind: self.kind,
            amount: self.amount,
            currency: self.currency.clone(),
            payee: self.payee.clone(),
            payees: None,
            count: self.count,
            reference: self.reference.clone(),
            account: self.account.clone(),
            operator: self.operator.clone(),
            service: self.service.clone(),
            count_today: self.count_today,
            sum_today: self.sum_today,
            r#use: self.r#use,
            merchant: self.merchant.clone(),
            administration: self.administration,
            origin: self.origin.clone(),
            at: self.at.map(|at| at.to_string()),
        }
    }
}

/// What `check` found.
#[derive(Debug, Serialize)]
struct Checked {
    digest: String,
    rules: Vec<Rule>,
    limits: Vec<String>,
    warnings: Vec<Finding>,
}

pub(super) async fn run(command: &Command, global: &Global, output: &Output) -> Result<u8, Error> {
    match command {
        Command::Check { directory } => check(directory.as_deref(), global, output)?,
        Command::Explain(explain) => {
            let answer = match &explain.policy {
                Some(directory) => offline(explain, directory)?,
                None => {
                    let mut daemon = daemon::control(global).await?;
                    daemon.explain_policy(&explain.asked()?).await?
                }
            };
            output.result(&answer, |output| story(&answer, output))?;
        }
        Command::Reload => {
            let answer = daemon::control(global).await?.reload_policy().await?;
            output.result(&answer, |output| {
                let changes = &answer.changes;
                let mut lines = Vec::new();
                for (what, rules) in [
                    ("Added", &changes.added),
                    ("Removed", &changes.removed),
                    ("Changed", &changes.changed),
                ] {
                    if !rules.is_empty() {
                        lines.push((what, rules.join(", ")));
                    }
                }
                if changes.limits_changed {
                    lines.push(("Limits", list(&changes.limits)));
                }
                let said = if lines.is_empty() {
                    "Nothing differs in the policy.".to_owned()
                } else {
                    output.facts(&lines)
                };
                with_warnings(said, &answer.policy.warnings, output)
            })?;
        }
        Command::Show => {
            let policy = daemon::control(global).await?.policy().await?;
            output.result(&policy, |output| show(&policy, output))?;
        }
        Command::Schema => output.print(&schema::text())?,
    }
    Ok(EX_OK)
}

fn check(directory: Option<&Path>, global: &Global, output: &Output) -> Result<(), Error> {
    let set = match directory {
        Some(directory) => load(directory)?,
        None => Config::load(&global.config())
            .and_then(|config| config.policy.load())
            .map_err(unsound)?,
    };
    let checked = Checked {
        digest: set.digest().to_owned(),
        rules: set.rules().cloned().collect(),
        limits: set
            .limits()
            .iter()
            .map(|limit| limit.name.clone())
            .collect(),
        warnings: set.warnings().to_vec(),
    };
    output.result(&checked, |output| {
        let rules = match checked.rules.len() {
            1 => "1 rule".to_owned(),
            count => format!("{count} rules"),
        };
        let said = output.paint(&format!("{rules}, all sound."), Mood::Good);
        with_warnings(said, &checked.warnings, output)
    })
}

fn load(directory: &Path) -> Result<PolicySet, Error> {
    let site = config::policy::read(directory).map_err(unsound)?;
    PolicySet::load(&site, Settings::default())
        .map_err(|source| unsound(ConfigError::Policy { source }))
}

fn unsound(error: ConfigError) -> Error {
    match error {
        ConfigError::Unreadable { source } | ConfigError::Permissions { source } => {
            Error::File(source)
        }
        ConfigError::Policy { source } => Error::No {
            code: "policy-invalid",
            what: std::iter::once("The rules are not sound:".to_owned())
                .chain(source.findings.iter().map(ToString::to_string))
                .collect::<Vec<_>>()
                .join("\n  "),
            action: "Correct the lines that are named; `opcert policy schema` says what rules can \
                     speak about."
                .into(),
        },
        error => Error::Input {
            action: error.code().action().into(),
            what: error.to_string(),
        },
    }
}

fn offline(explain: &Explain, directory: &Path) -> Result<PolicyExplained, Error> {
    let set = load(directory)?;
    let mut asked = explain.asked()?;
    // Nobody is registered here: as if it were, with what a registration has by default.
    if asked.client.is_some() && asked.consent.is_none() && asked.wechatpay.is_none() {
        asked.consent = Some(ConsentRule::default());
    }
    let own = rustix::process::geteuid().as_raw();
    explained(
        &set,
        &Usage::default(),
        &asked,
        Known::default(),
        own,
        Clock::system().now(),
    )
    .map_err(|problem| Error::Usage {
        what: problem.detail().to_owned(),
        action: "Give what such a request needs; see `opcert policy explain --help`.".into(),
    })
}

fn story(answer: &PolicyExplained, output: &Output) -> String {
    let explanation = &answer.explanation;
    let verdict = match (explanation.allowed, explanation.consent) {
        (true, Some(ConsentRule::None)) => output.paint("Allowed; nobody is asked.", Mood::Good),
        (true, Some(ConsentRule::ConfirmWithPin)) => output.paint(
            "Allowed once a person confirms it with the token's PIN.",
            Mood::Good,
        ),
        (true, _) => output.paint("Allowed once a person confirms it.", Mood::Good),
        (false, _) => output.paint("Refused.", Mood::Bad),
    };
    let mut facts = vec![
        ("Rule", explanation.rule.clone()),
        ("Reason", explanation.reason.clone()),
        ("Asked by", answer.caller.clone()),
        ("Action", answer.action.clone()),
    ];
    if let (Some(account), Some(operator)) = (&answer.account, &answer.operator) {
        facts.push(("For", format!("account {account}, operator {operator}")));
    }
    if let Some(merchant) = &answer.merchant {
        facts.push(("Merchant", merchant.to_string()));
    }
    if let Some(computer) = &answer.computer {
        facts.push(("Computer", computer.to_string()));
    }
    if let Some(token) = &answer.token {
        facts.push(("Token", token.clone()));
    }
    let mut text = format!("{verdict}\n\n{}\n", output.facts(&facts));
    if explanation.levels.is_empty() {
        // Decided by the program itself; no rule was asked.
        return text.trim_end().to_owned();
    }
    let levels = explanation
        .levels
        .iter()
        .map(|level| {
            let deciding = if level.failed.is_empty() {
                match level.decided.as_slice() {
                    [] => "no rule allows it".to_owned(),
                    rules => rules.join(", "),
                }
            } else {
                format!("cannot be evaluated: {}", level.failed.join("; "))
            };
            let says = if level.allowed { "allowed" } else { "refused" };
            let consent = level.consent.map_or("-", ConsentRule::name);
            vec![consent.to_owned(), says.to_owned(), deciding]
        })
        .collect();
    text.push('\n');
    text.push_str(&output.table(&["with consent", "is", "by"], levels, ""));
    let rules = explanation
        .rules
        .iter()
        .map(|one| {
            vec![
                one.rule.id.clone(),
                one.rule.effect.to_string(),
                one.why_not.clone().unwrap_or_else(|| "applies".to_owned()),
                format!("{}:{}", one.rule.file, one.rule.line),
            ]
        })
        .collect();
    text.push_str("\n\n");
    text.push_str(&output.table(
        &["rule", "effect", "applies, or why not", "where"],
        rules,
        "There is no rule.",
    ));
    if !explanation.limits.is_empty() {
        let number = |left: Option<u64>| left.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let limits = explanation
            .limits
            .iter()
            .map(|left| {
                vec![
                    left.limit.clone(),
                    number(left.count),
                    number(left.sum),
                    left.reached.clone().unwrap_or_default(),
                ]
            })
            .collect();
        text.push_str("\n\n");
        text.push_str(&output.table(
            &["limit", "approvals left", "sum left", "reached"],
            limits,
            "",
        ));
    }
    text
}

fn show(policy: &Policy, output: &Output) -> String {
    let rules = policy
        .rules
        .iter()
        .map(|rule| {
            vec![
                rule.id.clone(),
                rule.effect.to_string(),
                rule.reason.clone().unwrap_or_default(),
                format!("{}:{}", rule.file, rule.line),
            ]
        })
        .collect();
    let table = output.table(
        &["rule", "effect", "reason", "where"],
        rules,
        "No rule is in force; everything is refused.",
    );
    let facts = output.facts(&[
        ("Limits", list(&policy.limits)),
        ("Digest", policy.digest.clone()),
    ]);
    with_warnings(format!("{table}\n\n{facts}"), &policy.warnings, output)
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn with_warnings(mut said: String, warnings: &[Finding], output: &Output) -> String {
    for warning in warnings {
        let mark = output.paint("doubtful:", Mood::Doubtful);
        said.push_str(&format!("\n{mark} {warning}"));
    }
    said
}
