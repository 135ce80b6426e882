use jiff::Timestamp;
use proptest::prelude::*;

use super::explain::{Explanation, Supposed, SupposedApproval, What, explain};
use super::*;
use crate::base::pkcs11::{KeyId, TokenId};
use crate::statement::{Facts, Kind};

fn key() -> KeyRef {
    KeyRef {
        token: TokenId {
            module: "m".into(),
            label: "demo".into(),
            serial: "s".into(),
        },
        id: KeyId::from_bytes(vec![1]).unwrap(),
    }
}

fn statement(kind: &str, minor: i64) -> Statement {
    use crate::statement::kinds::Presence;
    let kind: Kind = kind.parse().unwrap();
    let has = |presence| presence == Presence::Required;
    Statement::new(
        kind,
        "acme".parse().unwrap(),
        "alice".parse().unwrap(),
        Facts {
            payees: None,
            amount: has(kind.amount()).then(|| (minor, "CNY".into())),
            payee: has(kind.payee()).then(|| "Bank".into()),
            count: has(kind.count()).then_some(3),
            reference: has(kind.reference()).then(|| "W-1".into()),
            memo: None,
        },
    )
    .unwrap()
}

fn set(site: &[&str]) -> PolicySet {
    let sources: Vec<Source> = site
        .iter()
        .enumerate()
        .map(|(index, text)| Source {
            name: format!("{index}.cedar"),
            text: (*text).to_owned(),
        })
        .collect();
    PolicySet::load(&sources, Settings::default()).unwrap()
}

fn client(name: &str) -> Caller {
    Caller::Client(name.parse().unwrap())
}

struct Ask<'a> {
    set: &'a PolicySet,
    caller: Caller,
    policy: Option<ClientPolicy>,
    today: Tally,
    now: Timestamp,
}

impl<'a> Ask<'a> {
    fn new(set: &'a PolicySet) -> Self {
        Self {
            set,
            caller: client("till"),
            policy: Some(ClientPolicy::default()),
            today: Tally::default(),
            now: Timestamp::from_second(1_767_268_800).unwrap(),
        }
    }

    fn registered(mut self, consent: ConsentRule, kinds: Option<&[&str]>) -> Self {
        self.policy = Some(ClientPolicy {
            consent,
            kinds: kinds.map(|kinds| kinds.iter().map(|kind| kind.parse().unwrap()).collect()),
            wechatpay: Vec::new(),
        });
        self
    }

    fn decide(&self, statement: &Statement) -> Result<(ConsentRule, String), String> {
        let key = key();
        let service = "https://pay.example".parse().unwrap();
        let request = Request {
            caller: &self.caller,
            policy: self.policy.as_ref(),
            key: &key,
            action: Action::Approve(Approving {
                statement,
                payees: None,
                service: &service,
                origin: None,
                certificate: "ab12",
                today: self.today,
            }),
            now: self.now,
        };
        match decide(self.set, &request) {
            Decision::Granted(grant) => Ok((grant.consent(), grant.rule().to_owned())),
            Decision::Refused(refusal) => Err(refusal.rule.into_owned()),
        }
    }

    fn of(&self, minor: i64) -> Result<(ConsentRule, String), String> {
        self.decide(&statement("withdrawal", minor))
    }
}

fn ok(consent: ConsentRule, rule: &str) -> Result<(ConsentRule, String), String> {
    Ok((consent, rule.to_owned()))
}

fn merchant_rules() -> Vec<WechatPayRule> {
    vec![WechatPayRule {
        merchant: "1900007291".parse().unwrap(),
        uses: vec![WechatPayUse::Request, WechatPayUse::Start],
    }]
}

#[test]
fn a_merchants_key_is_used_by_rule_only() {
    let set = set(&[]);
    let (ours, theirs): (MerchantId, MerchantId) =
        ("1900007291".parse().unwrap(), "1900009191".parse().unwrap());
    let registered = ClientPolicy {
        wechatpay: merchant_rules(),
        ..ClientPolicy::default()
    };
    let nothing = ClientPolicy::default();
    let key = key();
    let ask = |caller: &Caller, policy, merchant, r#use| {
        let request = Request {
            caller,
            policy,
            key: &key,
            action: Action::WechatPay(merchant, r#use),
            now: Timestamp::UNIX_EPOCH,
        };
        match decide(&set, &request) {
            Decision::Granted(grant) => {
                assert_eq!(grant.consent(), ConsentRule::None);
                Ok(grant.purpose)
            }
            Decision::Refused(refusal) => Err(refusal.rule.into_owned()),
        }
    };
    let refused = || Err(NOT_ALLOWED.to_owned());
    use WechatPayUse::{Decrypt, Request as Ask, Start};
    for (policy, merchant, r#use, expected) in [
        (Some(&registered), &ours, Ask, Ok(Purpose::WechatPayRequest)),
        (Some(&registered), &ours, Start, Ok(Purpose::WechatPayStart)),
        (Some(&registered), &ours, Decrypt, refused()),
        (Some(&registered), &theirs, Ask, refused()),
        (Some(&nothing), &ours, Ask, refused()),
        (None, &ours, Ask, Err("client-unknown".to_owned())),
    ] {
        assert_eq!(ask(&client("till"), policy, merchant, r#use), expected);
    }
    let user = Caller::Unix { uid: 0 };
    assert_eq!(
        ask(&user, None, &ours, Decrypt),
        Ok(Purpose::WechatPayDecrypt)
    );
    assert!(ask(&Caller::Itself, None, &ours, Ask).is_err());
}

#[test]
fn every_request_conforms_to_the_schema() {
    let set = set(&[]);
    let (schema, _) = cedar_policy::Schema::from_cedarschema_str(&schema::text()).unwrap();
    let (key, service) = (key(), "https://pay.example".parse().unwrap());
    let origin = "https://shop.example".parse().unwrap();
    let registered = ClientPolicy {
        consent: ConsentRule::None,
        kinds: Some(Kind::all().collect()),
        wechatpay: merchant_rules(),
    };
    for kind in Kind::all() {
        let statement = statement(kind.name(), 5);
        for (caller, policy, origin) in [
            (client("till"), Some(&registered), Some(&origin)),
            (Caller::Unix { uid: 1000 }, None, None),
        ] {
            let approving = Approving {
                statement: &statement,
                payees: None,
                service: &service,
                origin,
                certificate: "ab12",
                today: Tally::default(),
            };
            let now = Timestamp::from_millisecond(1_767_268_800_123).unwrap();
            let view = approving.view(&key);
            Question::approval(&set, &caller, policy, &view, now)
                .unwrap_or_else(|error| panic!("{error}"))
                .conforms(&schema, Some(ConsentRule::Confirm));
        }
    }
    for (r#use, _) in WechatPayUse::ALL {
        let merchant = "1900007291".parse().unwrap();
        let (caller, now) = (client("till"), Timestamp::UNIX_EPOCH);
        let policy = Some(&registered);
        Question::merchant(&set, &caller, policy, &merchant, r#use, &key.token, now)
            .unwrap_or_else(|error| panic!("{error}"))
            .conforms(&schema, None);
    }
    for what in Administration::ALL {
        let caller = Caller::Unix { uid: 0 };
        let computer = "c".parse().unwrap();
        Question::administration(&set, &caller, what.name(), &computer, Timestamp::UNIX_EPOCH)
            .unwrap_or_else(|error| panic!("{error}"))
            .conforms(&schema, None);
        let allowed =
            decide_administration(&set, &caller, what, &computer, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(allowed, "control-socket");
        let refused = decide_administration(
            &set,
            &client("till"),
            what,
            &computer,
            Timestamp::UNIX_EPOCH,
        );
        assert!(refused.is_err());
    }
}

#[test]
fn a_client_gets_what_its_registration_says() {
    use ConsentRule::{Confirm, ConfirmWithPin, None as Nobody};
    let set = set(&[]);
    let ask = || Ask::new(&set);
    assert_eq!(ask().of(1), ok(Confirm, "ask-a-person"));
    assert_eq!(
        ask().registered(Nobody, None).of(1),
        ok(Nobody, "registered-without-consent")
    );
    let payroll = ask().registered(Nobody, Some(&["red-packet"]));
    assert_eq!(payroll.of(1), Err("registered-kinds".into()));
    assert_eq!(
        payroll.decide(&statement("red-packet", 1)),
        ok(Nobody, "registered-without-consent")
    );
    assert_eq!(
        ask().registered(ConfirmWithPin, None).of(1),
        ok(ConfirmWithPin, "ask-a-person")
    );
    let stranger = Ask {
        policy: None,
        ..ask()
    };
    assert_eq!(stranger.of(1), Err("client-unknown".into()));
    let user = Ask {
        caller: Caller::Unix { uid: 7 },
        policy: None,
        ..ask()
    };
    assert_eq!(user.of(1), ok(Confirm, "ask-a-person"));
    let itself = Ask {
        caller: Caller::Itself,
        ..ask()
    };
    assert_eq!(itself.of(1), Err("no-self-approval".into()));
}

#[test]
fn rules_read_every_part_of_a_request() {
    let ask = |rule: &str| {
        let set = set(&[&format!(
            "@id(\"no\") forbid (principal, action, resource) {rule};"
        )]);
        Ask {
            today: Tally { count: 3, sum: 900 },
            ..Ask::new(&set)
        }
        .of(500)
        .is_err()
    };
    for (condition, holds) in [
        (
            r#"action == Action::"withdrawal" && context.amount >= 500"#,
            true,
        ),
        (
            r#"action == Action::"withdrawal" && context.amount > 500"#,
            false,
        ),
        (
            r#"action in Action::"approve" && context has currency && context.currency == "CNY""#,
            true,
        ),
        (
            r#"action in Action::"approve" && resource in Account::"acme""#,
            true,
        ),
        (
            r#"action in Action::"approve" && resource in Account::"rival""#,
            false,
        ),
        (
            r#"action in Action::"approve" && resource in Token::"pkcs11:token=demo;serial=s""#,
            true,
        ),
        (
            r#"action in Action::"approve" && resource is Certificate && resource.token.label == "demo""#,
            true,
        ),
        (
            r#"action in Action::"approve" && resource is Certificate && resource.operator == "alice""#,
            true,
        ),
        (
            r#"action in Action::"approve" && principal == Client::"till""#,
            true,
        ),
        (
            r#"action in Action::"approve" && principal == User::"uid:1""#,
            false,
        ),
        (
            r#"action in Action::"approve" && context.service == "https://pay.example""#,
            true,
        ),
        (
            r#"action in Action::"approve" && context has origin"#,
            false,
        ),
        (
            r#"action in Action::"approve" && context.today.count >= 3 && context.today.sum >= 900"#,
            true,
        ),
        // 2026-01-01 was a Thursday.
        (
            r#"action in Action::"approve" && context.hour == 12 && context.weekday == 4"#,
            true,
        ),
        (
            r#"action in Action::"approve" && context.time == 1767268800 && context.date == 20260101 && context.minute == 0"#,
            true,
        ),
        (
            r#"action == Action::"withdrawal" && context.payee like "Ba*""#,
            true,
        ),
    ] {
        assert_eq!(
            ask(&format!("when {{ {condition} }}")),
            holds,
            "{condition}"
        );
    }
}

#[test]
fn a_rule_says_which_consent_is_enough() {
    let set = set(&[r#"
        @id("small")
        permit (principal == Client::"till", action == Action::"withdrawal", resource)
        when { context.amount <= 5000 && context.currency == "CNY" };

        @id("large")
        forbid (principal, action == Action::"withdrawal", resource)
        when { context.amount > 100000 }
        unless { context.consent == Consent::"confirm-with-pin" };
        "#]);
    let ask = Ask::new(&set);
    assert_eq!(ask.of(5_000), ok(ConsentRule::None, "small"));
    assert_eq!(ask.of(5_001), ok(ConsentRule::Confirm, "ask-a-person"));
    assert_eq!(
        ask.of(100_001),
        ok(ConsentRule::ConfirmWithPin, "ask-a-person")
    );
}

#[test]
fn a_rule_that_fails_refuses() {
    let set = set(&[r#"
        @id("overflow")
        forbid (principal, action == Action::"withdrawal", resource)
        when { context.amount + 9223372036854775807 > 5 };
    "#]);
    let ask = Ask::new(&set).registered(ConsentRule::None, None);
    assert_eq!(ask.of(1), Err("overflow".into()));
    assert!(ask.decide(&statement("password-reset", 1)).is_ok());
}

#[test]
fn without_the_shipped_rules_nothing_is_allowed() {
    let set = PolicySet::load(
        &[],
        Settings {
            defaults: Defaults::Omit,
            ..Settings::default()
        },
    )
    .unwrap();
    let ask = Ask::new(&set).registered(ConsentRule::None, None);
    assert_eq!(ask.of(1), Err(NOT_ALLOWED.into()));
}

#[test]
fn nobody_signs_an_approval_without_a_statement() {
    let rule = |caller, purpose| match decide_own(&caller, &key(), purpose) {
        Decision::Granted(grant) => grant.rule().to_owned(),
        Decision::Refused(refusal) => refusal.rule.into_owned(),
    };
    for caller in [Caller::Itself, Caller::Unix { uid: 0 }] {
        for purpose in [Purpose::Approval, Purpose::ApprovalCms] {
            assert_eq!(rule(caller.clone(), purpose), "approval-needs-statement");
        }
    }
    for purpose in [
        Purpose::WechatPayRequest,
        Purpose::WechatPayStart,
        Purpose::WechatPayDecrypt,
        Purpose::WechatPayCheck,
    ] {
        assert_eq!(rule(Caller::Itself, purpose), "wechatpay-needs-merchant");
    }
    let root = Caller::Unix { uid: 0 };
    assert_eq!(rule(root.clone(), Purpose::Certificate), "not-yours");
    assert_eq!(
        rule(root.clone(), Purpose::CertificateRequest),
        "administrator"
    );
    assert_eq!(rule(root, Purpose::TokenTest), "administrator");
    assert_eq!(rule(client("till"), Purpose::TokenTest), "not-yours");
    assert_eq!(rule(client("till"), Purpose::CertificateRequest), "page");
    let Decision::Granted(grant) = decide_own(&client("till"), &key(), Purpose::CertificateRequest)
    else {
        panic!("a page may ask a person");
    };
    assert_eq!(grant.permit(ConsentRule::None).unwrap_err().rule, "consent");
    assert_eq!(rule(Caller::Itself, Purpose::Crl), "own");
}

#[test]
fn consent_of_the_wrong_kind_makes_no_permit() {
    let grant = |consent| Grant {
        caller: Caller::Itself,
        key: key(),
        purpose: Purpose::Approval,
        consent,
        rule: "r".into(),
    };
    for (wanted, given) in ConsentRule::ALL
        .into_iter()
        .flat_map(|wanted| ConsentRule::ALL.map(|given| (wanted, given)))
    {
        let enough = given >= wanted;
        match grant(wanted).permit(given) {
            Ok(permit) => {
                assert!(enough);
                let (permit, cms) = permit.with_cms();
                assert_eq!(permit.purpose(), Purpose::Approval);
                assert_eq!(cms.unwrap().purpose(), Purpose::ApprovalCms);
            }
            Err(refusal) => assert!(!enough && refusal.rule == "consent"),
        }
    }
    for (method, worth) in [
        (ConsentMethod::Policy, ConsentRule::None),
        (ConsentMethod::Pinentry, ConsentRule::Confirm),
        (ConsentMethod::ProtectedPath, ConsentRule::ConfirmWithPin),
    ] {
        assert_eq!(ConsentRule::of_method(method), worth);
    }
}

#[test]
fn a_permit_is_for_who_asked_and_the_key_that_was_asked_about() {
    let set = set(&[]);
    let other = KeyRef {
        id: KeyId::from_bytes(vec![2]).unwrap(),
        ..key()
    };
    let (statement, service) = (
        statement("withdrawal", 1),
        "https://pay.example".parse().unwrap(),
    );
    let registered = ClientPolicy::default();
    let caller = client("till");
    // Twice, so that the second answer is one that is remembered.
    for key in [key(), other.clone()] {
        let request = Request {
            caller: &caller,
            policy: Some(&registered),
            key: &key,
            action: Action::Approve(Approving {
                statement: &statement,
                payees: None,
                service: &service,
                origin: None,
                certificate: "ab12",
                today: Tally::default(),
            }),
            now: Timestamp::UNIX_EPOCH,
        };
        let Decision::Granted(grant) = decide(&set, &request) else {
            panic!("a person may agree");
        };
        let permit = grant.permit(ConsentRule::Confirm).unwrap();
        assert_eq!((permit.caller(), permit.key()), (&caller, &key));
        let (permit, cms) = permit.with_cms();
        let cms = cms.unwrap();
        assert_eq!((cms.caller(), cms.key()), (permit.caller(), permit.key()));
    }
    let own = own(&other, Purpose::SelfTest).unwrap();
    assert_eq!((own.caller(), own.key()), (&Caller::Itself, &other));
    assert!(own.with_cms().1.is_none());
    assert!(super::own(&other, Purpose::Approval).is_err());
}

#[test]
fn a_refusal_carries_the_reason_of_its_rule() {
    let set = set(&[r#"
        @id("told")
        @reason("not on this till")
        forbid (principal == Client::"till", action in Action::"approve", resource);

        @id("untold")
        forbid (principal == Client::"other", action in Action::"approve", resource);
    "#]);
    let reason = |name: &str| {
        let mut supposed = suppose(1);
        supposed.caller = client(name);
        let explained = explain(&set, &Usage::default(), &supposed);
        assert!(!explained.allowed);
        explained.reason
    };
    assert_eq!(reason("till"), "not on this till");
    assert_eq!(reason("other"), "rule untold forbids this");
}

#[test]
fn names_in_registrations_and_rules_are_read_back_as_they_are_written() {
    for rule in ConsentRule::ALL {
        assert_eq!(rule.name().parse(), Ok(rule));
    }
    for (r#use, _) in WechatPayUse::ALL {
        assert_eq!(r#use.name().parse(), Ok(r#use));
        assert_eq!(r#use.action(), format!("wechatpay-{}", r#use.name()));
    }
    for what in Administration::ALL {
        assert_eq!(what.name().parse(), Ok(what));
    }
    assert!("".parse::<ConsentRule>().is_err());
    assert!("v2_sign".parse::<WechatPayUse>().is_err());
    assert!("Client".parse::<Administration>().is_err());
}

#[test]
fn a_set_that_is_replaced_keeps_what_was_used_and_tells_what_differs() {
    let limited = |most: u32| {
        let limits =
            vec![toml::from_str(&format!("name = \"few\"\ncount-per-day = {most}")).unwrap()];
        let settings = Settings {
            limits,
            ..Settings::default()
        };
        PolicySet::load(&[], settings).unwrap()
    };
    let policies = Policies::new(limited(1));
    let (caller, account) = (client("till"), "acme".parse().unwrap());
    let used = Use {
        caller: &caller,
        certificate: "ab12",
        account: &account,
        kind: "withdrawal".parse().unwrap(),
        amount: None,
    };
    let now = Timestamp::UNIX_EPOCH;
    let _ = policies.usage().reserve(&used, now).unwrap().keep();
    assert!(policies.usage().check(&used, now).is_err());
    let before = policies.current();
    let changes = policies.replace(limited(2));
    assert!(changes.limits_changed);
    assert_ne!(policies.current().digest(), before.digest());
    let _ = policies.usage().reserve(&used, now).unwrap().keep();
    assert!(policies.usage().check(&used, now).is_err());
}

fn suppose(minor: i64) -> Supposed {
    Supposed {
        caller: client("till"),
        policy: Some(ClientPolicy::default()),
        page: None,
        what: What::Approve(Box::new(SupposedApproval {
            statement: statement("withdrawal", minor),
            payees: None,
            service: "https://pay.example".parse().unwrap(),
            certificate: "ab12".into(),
            today: None,
        })),
        key: key(),
        now: Timestamp::from_second(1_767_268_800).unwrap(),
    }
}

#[test]
fn an_explanation_says_which_condition_does_not_hold() {
    let set = set(&[r#"
        @id("small")
        permit (principal == Client::"till", action == Action::"withdrawal", resource)
        when { context.currency == "CNY" && context.amount <= 5000 };

        @id("elsewhere")
        permit (principal == Client::"other", action == Action::"withdrawal", resource);

        @id("rival")
        forbid (principal, action in Action::"approve", resource in Account::"rival");
    "#]);
    let usage = Usage::default();
    let explanation = explain(&set, &usage, &suppose(5_001));
    let why = |explanation: &Explanation, id: &str| {
        explanation
            .rules
            .iter()
            .find(|one| one.rule.id == id)
            .unwrap()
            .why_not
            .clone()
    };
    assert!(explanation.allowed);
    assert_eq!(explanation.consent, Some(ConsentRule::Confirm));
    assert_eq!(explanation.rule, "ask-a-person");
    assert_eq!(explanation.levels.len(), 2);
    assert!(!explanation.levels[0].allowed);
    let small = why(&explanation, "small").unwrap();
    assert!(
        small.contains("amount") && small.contains("5000") && !small.contains("currency"),
        "{small}"
    );
    assert!(why(&explanation, "elsewhere").unwrap().contains("who asks"));
    assert!(why(&explanation, "rival").unwrap().contains("certificate"));
    assert_eq!(why(&explanation, "ask-a-person"), None);
    assert!(
        explanation
            .rules
            .iter()
            .all(|one| one.rule.id != "control-socket")
    );
    assert_eq!(
        explain(&set, &usage, &suppose(5_000)).consent,
        Some(ConsentRule::None)
    );
}

#[test]
fn an_explanation_agrees_with_the_limits() {
    let limits: Vec<Limit> =
        vec![toml::from_str("name = \"few\"\nsum-per-day = 1000\ncurrency = \"CNY\"").unwrap()];
    let set = PolicySet::load(
        &[],
        Settings {
            limits,
            ..Settings::default()
        },
    )
    .unwrap();
    assert!(set.reads_today());
    let usage = Usage::default();
    usage.set_limits(set.limits(), set.time_zone());
    assert!(explain(&set, &usage, &suppose(1_000)).allowed);
    let refused = explain(&set, &usage, &suppose(1_001));
    assert!(!refused.allowed);
    assert_eq!(refused.rule, "limit:few");
    assert_eq!(refused.consent, Some(ConsentRule::Confirm));
}

fn supposed(caller: Caller, policy: Option<ClientPolicy>, what: What) -> Supposed {
    Supposed {
        caller,
        policy,
        what,
        ..suppose(1)
    }
}

#[test]
fn messages_of_merchants_are_explained_as_they_are_decided() {
    let rules = r#"
        @id("night")
        @reason("nothing is signed at night")
        forbid (principal, action in Action::"wechatpay", resource == Merchant::"1900007291")
        when { context.hour < 6 };

        @id("withdrawals")
        forbid (principal, action == Action::"withdrawal", resource);
    "#;
    let source = Source {
        name: "site.cedar".to_owned(),
        text: rules.to_owned(),
    };
    let settings = Settings {
        time_zone: jiff::tz::TimeZone::UTC,
        ..Settings::default()
    };
    let set = PolicySet::load(&[source], settings).unwrap();
    let merchant: MerchantId = "1900007291".parse().unwrap();
    let registered = ClientPolicy {
        wechatpay: merchant_rules(),
        ..ClientPolicy::default()
    };
    // 2026-01-01, at three and at twelve.
    let hours = [3, 12].map(|hour| Timestamp::from_second(1_767_225_600 + hour * 3_600).unwrap());
    let callers = [
        (client("till"), Some(registered)),
        (client("till"), Some(ClientPolicy::default())),
        (client("till"), None),
        (Caller::Unix { uid: 7 }, None),
        (Caller::Itself, None),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (caller, policy) in callers {
        for (r#use, _) in WechatPayUse::ALL {
            for now in hours {
                let decision = decide(
                    &set,
                    &Request {
                        caller: &caller,
                        policy: policy.as_ref(),
                        key: &key(),
                        action: Action::WechatPay(&merchant, r#use),
                        now,
                    },
                );
                let (allowed, rule, reason) = match decision {
                    Decision::Granted(grant) => (true, grant.rule().to_owned(), None),
                    Decision::Refused(refusal) => {
                        (false, refusal.rule.into_owned(), Some(refusal.reason))
                    }
                };
                let explained = explain(
                    &set,
                    &Usage::default(),
                    &Supposed {
                        now,
                        ..supposed(
                            caller.clone(),
                            policy.clone(),
                            What::WechatPay(merchant.clone(), r#use),
                        )
                    },
                );
                assert_eq!((explained.allowed, &explained.rule), (allowed, &rule));
                assert_eq!(
                    explained.consent,
                    allowed.then_some(ConsentRule::None),
                    "{rule}"
                );
                if let Some(reason) = reason {
                    assert_eq!(explained.reason, reason);
                }
                // What is only about approvals is no news here.
                let names = explained.rules.iter().map(|one| one.rule.id.as_str());
                assert!(
                    names
                        .clone()
                        .all(|id| id != "withdrawals" && id != "ask-a-person")
                );
                seen.insert(rule);
            }
        }
    }
    for rule in [
        "night",
        "registered-merchants-request",
        "control-socket-merchants",
        NOT_ALLOWED,
        CLIENT_UNKNOWN,
        "wechatpay-needs-merchant",
    ] {
        assert!(seen.contains(rule), "{rule} {seen:?}");
    }
    // A page gets nothing of merchants.
    let by_page = Supposed {
        page: Some("https://pay.example".parse().unwrap()),
        ..supposed(
            client("till"),
            Some(ClientPolicy::default()),
            What::WechatPay(merchant, WechatPayUse::Check),
        )
    };
    assert_eq!(explain(&set, &Usage::default(), &by_page).rule, NO_PAGES);
}

#[test]
fn administration_is_explained_as_it_is_decided() {
    let set = set(&[r#"
        @id("frozen")
        @reason("clients are registered by the installer only")
        forbid (principal, action == Action::"client", resource) unless { principal.uid == 0 };
    "#]);
    let computer: ComputerId = "pc-1".parse().unwrap();
    let ask = |caller: Caller, what| {
        let registered = matches!(caller, Caller::Client(_)).then(ClientPolicy::default);
        explain(
            &set,
            &Usage::default(),
            &supposed(caller, registered, What::Administer(what, computer.clone())),
        )
    };
    for what in Administration::ALL {
        for uid in [0, 7] {
            let caller = Caller::Unix { uid };
            let explained = ask(caller.clone(), what);
            let now = suppose(1).now;
            match decide_administration(&set, &caller, what, &computer, now) {
                Ok(rule) => {
                    assert!(explained.allowed);
                    assert_eq!(explained.rule, rule);
                }
                Err(refusal) => {
                    assert!(!explained.allowed);
                    assert_eq!(explained.rule, refusal.rule);
                    assert_eq!(explained.reason, refusal.reason);
                }
            }
        }
        assert_eq!(ask(client("till"), what).rule, CONTROL_SOCKET_ONLY);
    }
    let frozen = ask(Caller::Unix { uid: 7 }, Administration::Client);
    assert_eq!(frozen.rule, "frozen");
    let spared = ask(Caller::Unix { uid: 0 }, Administration::Client);
    let why = spared.rules.iter().find(|one| one.rule.id == "frozen");
    let why = why.unwrap().why_not.as_deref().unwrap();
    assert_eq!(why, "unless { principal.uid == 0 } is so");
    // A page carries its own installation, and the person is asked.
    let page = Supposed {
        page: Some("https://pay.example".parse().unwrap()),
        ..supposed(
            client("browser"),
            Some(ClientPolicy::default()),
            What::Administer(Administration::Enrol, computer.clone()),
        )
    };
    let explained = explain(&set, &Usage::default(), &page);
    assert_eq!(
        (explained.consent, explained.rule.as_str()),
        (Some(ConsentRule::Confirm), "page")
    );
}

/// Rules of which some hold for a withdrawal of `amount` by `till` and some do not.
fn rules() -> impl Strategy<Value = Vec<(bool, bool, i64)>> {
    proptest::collection::vec((any::<bool>(), any::<bool>(), 1..100_i64), 0..8)
}

fn text(index: usize, (permits, silent, bound): (bool, bool, i64)) -> String {
    let effect = if permits { "permit" } else { "forbid" };
    let consent = if silent {
        "true"
    } else {
        "context.consent != Consent::\"none\""
    };
    format!(
        "@id(\"r{index}\") {effect} (principal, action == Action::\"withdrawal\", resource) when {{ context.amount <= {bound} && {consent} }};"
    )
}

/// Rule sets that read one thing each, and one that takes the context as a whole.
const READERS: [&str; 7] = [
    "context has amount && context.amount > 50",
    "context.hour >= 12",
    "context.today.count > 1",
    "context has payee && context.payee like \"B*\"",
    "context has reference",
    "context.service == \"https://pay.example\" && principal has kinds",
    "[context.today].contains({count: 2, sum: 0})",
];

#[test]
fn a_remembered_decision_is_the_one_that_would_be_made() {
    let registered = |consent, kinds: Option<&[&str]>| {
        let kinds = kinds.map(|kinds| kinds.iter().map(|kind| kind.parse().unwrap()).collect());
        let wechatpay = Vec::new();
        Some(ClientPolicy {
            consent,
            kinds,
            wechatpay,
        })
    };
    let clients = [
        registered(ConsentRule::None, None),
        registered(ConsentRule::Confirm, None),
        registered(ConsentRule::None, Some(&["withdrawal"])),
        None,
    ];
    let statements = [
        statement("withdrawal", 10),
        statement("withdrawal", 90),
        statement("password-reset", 0),
    ];
    for condition in READERS {
        let text = format!(
            "@id(\"r\") forbid (principal, action in Action::\"approve\", resource) when {{ {condition} }};"
        );
        let (asked_often, forgetful) = (set(&[&text]), set(&[&text]));
        // Twice, so that each question meets an answer of its own and those of all others.
        for _ in 0..2 {
            for policy in &clients {
                for (statement, count, hours) in statements
                    .iter()
                    .flat_map(|one| [(one, 0, 0), (one, 2, 0), (one, 2, 13)])
                {
                    let ask = |set| {
                        let mut ask = Ask::new(set);
                        ask.policy.clone_from(policy);
                        ask.today.count = count;
                        ask.now += jiff::SignedDuration::from_hours(hours);
                        ask.decide(statement)
                    };
                    forgetful.remembered.clear();
                    assert_eq!(ask(&asked_often), ask(&forgetful), "{condition}");
                }
            }
        }
    }
}

/// A withdrawal with all that rules may read of it.
struct Whole {
    caller: Caller,
    account: &'static str,
    operator: &'static str,
    amount: (i64, &'static str),
    payee: &'static str,
    reference: &'static str,
    service: &'static str,
    origin: Option<&'static str>,
    token: &'static str,
    certificate: &'static str,
    sum: u64,
}

impl Whole {
    fn is_granted(&self, set: &PolicySet) -> bool {
        let statement = Statement::new(
            "withdrawal".parse().unwrap(),
            self.account.parse().unwrap(),
            self.operator.parse().unwrap(),
            Facts {
                amount: Some((self.amount.0, self.amount.1.into())),
                payee: Some(self.payee.into()),
                reference: Some(self.reference.into()),
                ..Facts::default()
            },
        )
        .unwrap();
        let mut key = key();
        key.token.label = self.token.into();
        let (service, policy) = (self.service.parse().unwrap(), ClientPolicy::default());
        let origin = self.origin.map(|origin| origin.parse().unwrap());
        let request = Request {
            caller: &self.caller,
            policy: Some(&policy),
            key: &key,
            action: Action::Approve(Approving {
                statement: &statement,
                payees: None,
                service: &service,
                origin: origin.as_ref(),
                certificate: self.certificate,
                today: Tally {
                    count: 1,
                    sum: self.sum,
                },
            }),
            now: Timestamp::UNIX_EPOCH,
        };
        matches!(decide(set, &request), Decision::Granted(_))
    }
}

#[test]
fn what_was_decided_about_one_request_is_not_said_of_another() {
    type Change = fn(&mut Whole);
    let cases: [(&str, Change); 13] = [
        (r#"principal == Client::"till""#, |one| {
            one.caller = client("other")
        }),
        (r#"resource in Account::"acme""#, |one| {
            one.account = "rival"
        }),
        (r#"resource.operator == "alice""#, |one| {
            one.operator = "bob"
        }),
        (r#"resource == Certificate::"ab12""#, |one| {
            one.certificate = "cd34"
        }),
        (r#"resource.token.label == "demo""#, |one| {
            one.token = "spare"
        }),
        ("context has amount && context.amount == 5", |one| {
            one.amount.0 = 6
        }),
        (
            r#"context has currency && context.currency == "CNY""#,
            |one| one.amount.1 = "USD",
        ),
        (r#"context has payee && context.payee == "Bank""#, |one| {
            one.payee = "Bar"
        }),
        (
            r#"context has reference && context.reference == "W-1""#,
            |one| one.reference = "W-2",
        ),
        (r#"context.service == "https://pay.example""#, |one| {
            one.service = "https://b.example"
        }),
        (
            r#"context has origin && context.origin == "https://shop.example""#,
            |one| {
                one.origin = Some("https://b.example");
            },
        ),
        ("context has origin", |one| one.origin = None),
        ("context.today.sum == 9", |one| one.sum = 0),
    ];
    for (condition, change) in cases {
        let whole = || Whole {
            caller: client("till"),
            account: "acme",
            operator: "alice",
            amount: (5, "CNY"),
            payee: "Bank",
            reference: "W-1",
            service: "https://pay.example",
            origin: Some("https://shop.example"),
            token: "demo",
            certificate: "ab12",
            sum: 9,
        };
        let mut other = whole();
        change(&mut other);
        let rule = format!(
            "@id(\"no\") forbid (principal, action in Action::\"approve\", resource) when {{ {condition} }};"
        );
        // Whichever is asked about first.
        let (one_first, other_first) = (set(&[&rule]), set(&[&rule]));
        assert!(!whole().is_granted(&one_first), "{condition}");
        assert!(other.is_granted(&one_first), "{condition}");
        assert!(other.is_granted(&other_first), "{condition}");
        assert!(!whole().is_granted(&other_first), "{condition}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A grant needs a permit that holds, and no forbid that does, at the consent it asks for;
    /// and it asks for the least that will do.
    #[test]
    fn a_grant_is_what_the_rules_say(rules in rules(), amount in 1..100_i64) {
        let texts: Vec<String> = rules.iter().enumerate().map(|(i, rule)| text(i, *rule)).collect();
        let sources: Vec<Source> = texts
            .iter()
            .enumerate()
            .map(|(i, text)| Source { name: format!("{i}.cedar"), text: text.clone() })
            .collect();
        let settings = Settings { defaults: Defaults::Omit, ..Settings::default() };
        let set = PolicySet::load(&sources, settings.clone()).unwrap();
        let answer = Ask::new(&set).of(amount);
        let applies = |&(_, silent, bound): &(bool, bool, i64), asked: bool| amount <= bound && (silent || asked);
        let allowed = |asked: bool| {
            rules.iter().any(|rule| rule.0 && applies(rule, asked))
                && !rules.iter().any(|rule| !rule.0 && applies(rule, asked))
        };
        let expected = if allowed(false) {
            Some(ConsentRule::None)
        } else if allowed(true) {
            Some(ConsentRule::Confirm)
        } else {
            None
        };
        prop_assert_eq!(answer.as_ref().ok().map(|(consent, _)| *consent), expected);

        // The order of files, and which file a rule is in, means nothing.
        let mut reversed = sources;
        reversed.reverse();
        let other = PolicySet::load(&reversed, settings.clone()).unwrap();
        prop_assert_eq!(&answer, &Ask::new(&other).of(amount));
        prop_assert_eq!(set.digest(), other.digest());
        let one = Source { name: "all.cedar".into(), text: texts.join("\n") };
        let one = PolicySet::load(&[one], settings).unwrap();
        prop_assert_eq!(answer, Ask::new(&one).of(amount));
        prop_assert_eq!(set.digest(), one.digest());
    }

    /// No text makes the reader panic, and what it takes decides without one.
    #[test]
    fn any_text_is_read_or_refused(text in "[ -~\\n]{0,120}") {
        let source = Source { name: "x.cedar".into(), text };
        if let Ok(set) = PolicySet::load(&[source], Settings::default()) {
            let _ = Ask::new(&set).of(1);
        }
    }
}
