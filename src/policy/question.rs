//! A request in Cedar's terms.
//!
//! Entities are made from the request itself, never looked up: a client's attributes are those of
//! the registration that its door found, the certificate is the one that will sign.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use cedar_policy::{
    Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request,
    RestrictedExpression,
};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::rules::PolicySet;
use super::usage::Tally;
use super::{Caller, ClientPolicy, ConsentRule, WechatPayUse};
use crate::base::ids::{AccountId, ComputerId, OperatorId};
use crate::base::pkcs11::TokenId;
use crate::statement::{Kind, Payees};
use crate::wechatpay::MerchantId;

/// The facts that rules about an approval may read.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub kind: Kind,
    pub account: &'a AccountId,
    pub operator: &'a OperatorId,
    pub amount: Option<(i64, &'a str)>,
    pub payee: Option<&'a str>,
    pub payees: Option<&'a Payees>,
    pub count: Option<u32>,
    pub reference: Option<&'a str>,
    pub service: &'a str,
    pub origin: Option<&'a str>,
    pub token: &'a TokenId,
    pub certificate: &'a str,
    pub today: Tally,
}

/// A request that was put into Cedar's terms, all but the consent.
pub(super) struct Question {
    principal: EntityUid,
    action: EntityUid,
    resource: EntityUid,
    entities: Entities,
    context: Vec<(String, RestrictedExpression)>,
}

/// Why a request cannot be put into Cedar's terms.
#[derive(Debug)]
pub(super) struct Unfit(String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Unfit {
    /// What a program signs on its own account.
    pub fn no_rules() -> Self {
        Self("no rule is asked about what a program signs on its own account".into())
    }
}

fn unfit(error: impl fmt::Display) -> Unfit {
    Unfit(error.to_string())
}

/// What a set says to one question.
#[derive(Debug)]
pub(super) struct Verdict {
    /// Whether it is allowed. A rule that could not be evaluated refuses, whatever others say.
    pub allowed: bool,
    /// The rules that decided, in the order of their names.
    pub decided: Vec<String>,
    /// Rules that could not be evaluated, and why, in the order of their names.
    pub failed: Vec<(String, String)>,
}

impl Question {
    /// Whether `caller` may have an approval of what `view` shows.
    pub fn approval(
        set: &PolicySet,
        caller: &Caller,
        policy: Option<&ClientPolicy>,
        view: &View<'_>,
        now: Timestamp,
    ) -> Result<Self, Unfit> {
        let principal = principal(caller, policy)?;
        let account = uid("Account", view.account.as_str())?;
        let token = uid("Token", &view.token.to_string())?;
        let resource = uid("Certificate", view.certificate)?;
        let certificate = Entity::new(
            resource.clone(),
            HashMap::from([
                (
                    "account".to_owned(),
                    RestrictedExpression::new_entity_uid(account.clone()),
                ),
                ("operator".to_owned(), string(view.operator.as_str())),
                (
                    "token".to_owned(),
                    RestrictedExpression::new_entity_uid(token.clone()),
                ),
            ]),
            HashSet::from([account.clone(), token.clone()]),
        )
        .map_err(unfit)?;
        let token = token_entity(token, view.token)?;
        let account = Entity::new_no_attrs(account, HashSet::new());

        let mut context = Moment::at(now, &set.time_zone).context();
        let mut put = |name: &str, value| context.push((name.to_owned(), value));
        put(
            "kind",
            RestrictedExpression::new_entity_uid(uid("Kind", view.kind.name())?),
        );
        put("service", string(view.service));
        let today = [("count", view.today.count), ("sum", view.today.sum)];
        put(
            "today",
            RestrictedExpression::new_record(
                today.map(|(name, value)| (name.to_owned(), long(value))),
            )
            .map_err(unfit)?,
        );
        if let Some(origin) = view.origin {
            put("origin", string(origin));
        }
        if let Some((minor, currency)) = view.amount {
            put("amount", RestrictedExpression::new_long(minor));
            put("currency", string(currency));
        }
        if let Some(payee) = view.payee {
            put("payee", string(payee));
        }
        if let Some(payees) = view.payees {
            let payees = payees.iter().map(|(payee, _)| string(payee.as_str()));
            put("payees", RestrictedExpression::new_set(payees));
        }
        if let Some(count) = view.count {
            put("count", RestrictedExpression::new_long(count.into()));
        }
        if let Some(reference) = view.reference {
            put("reference", string(reference));
        }
        let action = uid("Action", view.kind.name())?;
        Ok(Self {
            principal: principal.uid(),
            entities: entities(set, &action, [principal, certificate, token, account])?,
            action,
            resource,
            context,
        })
    }

    /// Whether `caller` may use the key of a WeChat Pay merchant.
    pub fn merchant(
        set: &PolicySet,
        caller: &Caller,
        policy: Option<&ClientPolicy>,
        merchant: &MerchantId,
        r#use: WechatPayUse,
        token: &TokenId,
        now: Timestamp,
    ) -> Result<Self, Unfit> {
        let principal = principal(caller, policy)?;
        let resource = uid("Merchant", merchant.as_str())?;
        let token_uid = uid("Token", &token.to_string())?;
        let merchant = Entity::new(
            resource.clone(),
            HashMap::from([(
                "token".to_owned(),
                RestrictedExpression::new_entity_uid(token_uid.clone()),
            )]),
            HashSet::from([token_uid.clone()]),
        )
        .map_err(unfit)?;
        let action = uid("Action", r#use.action())?;
        let token = token_entity(token_uid, token)?;
        Ok(Self {
            principal: principal.uid(),
            entities: entities(set, &action, [principal, merchant, token])?,
            action,
            resource,
            context: Moment::at(now, &set.time_zone).context(),
        })
    }

    /// Whether `caller` may administer this computer's daemon by the action `name`.
    pub fn administration(
        set: &PolicySet,
        caller: &Caller,
        name: &str,
        computer: &ComputerId,
        now: Timestamp,
    ) -> Result<Self, Unfit> {
        let principal = principal(caller, None)?;
        let resource = uid("Computer", computer.as_str())?;
        let computer = Entity::new_no_attrs(resource.clone(), HashSet::new());
        let action = uid("Action", name)?;
        Ok(Self {
            principal: principal.uid(),
            entities: entities(set, &action, [principal, computer])?,
            action,
            resource,
            context: Moment::at(now, &set.time_zone).context(),
        })
    }

    /// The answer of `set`, were consent of this kind given.
    pub fn with_consent(&self, set: &PolicySet, consent: ConsentRule) -> Verdict {
        self.ask(set, &set.policies, Some(consent))
    }

    /// The answer of `set` where no consent is spoken of.
    pub fn plain(&self, set: &PolicySet) -> Verdict {
        self.ask(set, &set.policies, None)
    }

    /// The answer of these policies alone, in place of those of `set`; with what consent, where the
    /// question is one of consent.
    pub fn ask(
        &self,
        set: &PolicySet,
        policies: &cedar_policy::PolicySet,
        consent: Option<ConsentRule>,
    ) -> Verdict {
        let request = self.context(consent).and_then(|context| {
            Request::new(
                self.principal.clone(),
                self.action.clone(),
                self.resource.clone(),
                context,
                None,
            )
            .map_err(unfit)
        });
        let request = match request {
            Ok(request) => request,
            Err(error) => return Verdict::unfit(&error),
        };
        let response = set
            .authorizer
            .is_authorized(&request, policies, &self.entities);
        let mut decided: Vec<String> = response
            .diagnostics()
            .reason()
            .map(|id| AsRef::<str>::as_ref(id).to_owned())
            .collect();
        decided.sort_unstable();
        let mut failed: Vec<(String, String)> = response
            .diagnostics()
            .errors()
            .map(|error| match error {
                cedar_policy::AuthorizationError::PolicyEvaluationError(error) => (
                    AsRef::<str>::as_ref(error.policy_id()).to_owned(),
                    error.inner().to_string(),
                ),
            })
            .collect();
        failed.sort_unstable();
        Verdict {
            allowed: response.decision() == Decision::Allow && failed.is_empty(),
            decided,
            failed,
        }
    }

    fn context(&self, consent: Option<ConsentRule>) -> Result<Context, Unfit> {
        let consent = consent
            .map(|consent| uid("Consent", consent.name()))
            .transpose()?
            .map(|uid| {
                (
                    "consent".to_owned(),
                    RestrictedExpression::new_entity_uid(uid),
                )
            });
        Context::from_pairs(self.context.iter().cloned().chain(consent)).map_err(unfit)
    }

    /// The request and its entities in full, for a check against the schema.
    #[cfg(test)]
    pub fn conforms(self, schema: &cedar_policy::Schema, consent: Option<ConsentRule>) {
        let context = self.context(consent).unwrap();
        Request::new(
            self.principal,
            self.action,
            self.resource,
            context,
            Some(schema),
        )
        .unwrap();
        let own = self
            .entities
            .into_iter()
            .filter(|entity| entity.uid().type_name().to_string() != "Action");
        Entities::from_entities(own, Some(schema)).unwrap();
    }
}

impl Verdict {
    /// A request that Cedar cannot even be asked about is refused.
    fn unfit(error: &Unfit) -> Self {
        Self {
            allowed: false,
            decided: Vec::new(),
            failed: vec![("request".to_owned(), error.to_string())],
        }
    }
}

fn token_entity(uid: EntityUid, token: &TokenId) -> Result<Entity, Unfit> {
    Entity::new(
        uid,
        HashMap::from([
            ("module".to_owned(), string(&token.module)),
            ("label".to_owned(), string(&token.label)),
            ("serial".to_owned(), string(&token.serial)),
        ]),
        HashSet::new(),
    )
    .map_err(unfit)
}

/// The merchants a client was registered for, by use.
fn merchants(policy: &ClientPolicy) -> Result<RestrictedExpression, Unfit> {
    let mut uses = Vec::new();
    for (r#use, name) in WechatPayUse::ALL {
        let merchants = policy
            .wechatpay
            .iter()
            .filter(|rule| rule.uses.contains(&r#use))
            .map(|rule| {
                uid("Merchant", rule.merchant.as_str()).map(RestrictedExpression::new_entity_uid)
            })
            .collect::<Result<Vec<_>, _>>()?;
        uses.push((name.to_owned(), RestrictedExpression::new_set(merchants)));
    }
    RestrictedExpression::new_record(uses).map_err(unfit)
}

fn principal(caller: &Caller, policy: Option<&ClientPolicy>) -> Result<Entity, Unfit> {
    match caller {
        Caller::Client(name) => {
            let policy = policy.ok_or_else(|| Unfit(format!("{caller} is not registered")))?;
            let mut attributes = HashMap::from([
                ("name".to_owned(), string(name.as_str())),
                (
                    "consent".to_owned(),
                    RestrictedExpression::new_entity_uid(uid("Consent", policy.consent.name())?),
                ),
            ]);
            if !policy.wechatpay.is_empty() {
                attributes.insert("wechatpay".to_owned(), merchants(policy)?);
            }
            if let Some(kinds) = &policy.kinds {
                let kinds = kinds
                    .iter()
                    .map(|kind| uid("Kind", kind.name()).map(RestrictedExpression::new_entity_uid))
                    .collect::<Result<Vec<_>, _>>()?;
                attributes.insert("kinds".to_owned(), RestrictedExpression::new_set(kinds));
            }
            Entity::new(uid("Client", name.as_str())?, attributes, HashSet::new()).map_err(unfit)
        }
        Caller::Unix { uid: number } => Entity::new(
            uid("User", &format!("uid:{number}"))?,
            HashMap::from([(
                "uid".to_owned(),
                RestrictedExpression::new_long((*number).into()),
            )]),
            HashSet::new(),
        )
        .map_err(unfit),
        Caller::Itself => Err(Unfit("the program itself is no principal of rules".into())),
    }
}

/// When a request is decided, as rules see it.
pub(super) struct Moment {
    time: i64,
    date: i64,
    hour: i64,
    minute: i64,
    weekday: i64,
}

impl Moment {
    /// What rules call its parts.
    pub const NAMES: [&str; 5] = ["time", "date", "hour", "minute", "weekday"];

    /// `now`, in that time zone.
    pub fn at(now: Timestamp, time_zone: &TimeZone) -> Self {
        let local = time_zone.to_datetime(now);
        Self {
            time: now.as_second(),
            date: (i64::from(local.year()) * 100 + i64::from(local.month())) * 100
                + i64::from(local.day()),
            hour: local.hour().into(),
            minute: local.minute().into(),
            weekday: local.weekday().to_monday_one_offset().into(),
        }
    }

    /// Its parts by name.
    pub fn facts(&self) -> impl Iterator<Item = (&'static str, i64)> {
        let values = [self.time, self.date, self.hour, self.minute, self.weekday];
        Self::NAMES.into_iter().zip(values)
    }

    fn context(&self) -> Vec<(String, RestrictedExpression)> {
        self.facts()
            .map(|(name, value)| (name.to_owned(), RestrictedExpression::new_long(value)))
            .collect()
    }
}

/// The entities of one request: its own, and its action with the groups that it is in.
fn entities<const N: usize>(
    set: &PolicySet,
    action: &EntityUid,
    own: [Entity; N],
) -> Result<Entities, Unfit> {
    let action = set.actions.get(action).cloned();
    Entities::from_entities(own.into_iter().chain(action), None).map_err(unfit)
}

/// The types that requests speak of, parsed once.
static TYPES: LazyLock<HashMap<&str, EntityTypeName>> = LazyLock::new(|| {
    const NAMES: [&str; 10] = [
        "Account",
        "Action",
        "Certificate",
        "Client",
        "Computer",
        "Consent",
        "Kind",
        "Merchant",
        "Token",
        "User",
    ];
    let parse = |name| Some((name, EntityTypeName::from_str(name).ok()?));
    NAMES.into_iter().filter_map(parse).collect()
});

fn uid(of: &str, id: &str) -> Result<EntityUid, Unfit> {
    let name = match TYPES.get(of) {
        Some(name) => name.clone(),
        None => EntityTypeName::from_str(of).map_err(unfit)?,
    };
    Ok(EntityUid::from_type_name_and_id(name, EntityId::new(id)))
}

fn string(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

fn long(value: u64) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(value).unwrap_or(i64::MAX))
}
