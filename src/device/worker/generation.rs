//! Generating keys, and the proof that they cannot leave the token.
//!
//! Vendors differ in which attributes they take at generation: some refuse those they would set
//! anyway, some refuse to be told what a key may not do. So a template that is refused is tried
//! again with less in it. What is left to the token's defaults proves nothing; what is read back
//! from the key does, whichever template made it.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::Session;

use super::codes;
use super::objects::{self, abilities};
use crate::base::key::KeySpec;
use crate::device::config::Waiver;
use crate::device::frames::{Failure, KeyUse, PublicParts};
use crate::device::keys::public_key::{
    ED25519_CURVE_NAME, ED25519_PARAMETERS, P256_PARAMETERS, P384_PARAMETERS,
};

/// The key pair to be generated.
pub struct Wanted<'a> {
    /// What it is.
    pub spec: KeySpec,
    /// What it may do.
    pub r#use: KeyUse,
    /// `CKA_ID` of both halves.
    pub id: &'a [u8],
    /// `CKA_LABEL` of both halves, where the token takes one.
    pub label: &'a str,
    /// What the module is known to misreport.
    pub waived: &'a [Waiver],
}

/// How much a template says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Template {
    /// All that the key must be, what it may not do, and what tokens do by themselves.
    Full,
    /// What keeps the key in the token, and what it may do.
    Lean,
    /// What it may do, and its id: the rest is the token's to decide and ours to check.
    Minimal,
}

impl Template {
    const ALL: [Self; 3] = [Self::Full, Self::Lean, Self::Minimal];

    fn public(self, wanted: &Wanted<'_>, parameters: Vec<Attribute>) -> Vec<Attribute> {
        let verifies = wanted.r#use != KeyUse::Decrypt;
        let mut attributes = vec![Attribute::Token(true), Attribute::Id(wanted.id.to_vec())];
        if self != Self::Minimal {
            attributes.push(Attribute::Label(wanted.label.as_bytes().to_vec()));
        }
        if self == Self::Full {
            attributes.extend([Attribute::Private(false), Attribute::Verify(verifies)]);
        }
        attributes.extend(parameters);
        attributes
    }

    fn private(self, wanted: &Wanted<'_>) -> Vec<Attribute> {
        let mut attributes = vec![Attribute::Token(true), Attribute::Id(wanted.id.to_vec())];
        if self != Self::Minimal {
            attributes.extend([
                Attribute::Label(wanted.label.as_bytes().to_vec()),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
            ]);
        }
        if self == Self::Full {
            attributes.push(Attribute::Private(true));
        }
        let is_said = |ability: &Attribute| {
            self == Self::Full
                || matches!(ability, Attribute::Sign(true) | Attribute::Decrypt(true))
        };
        attributes.extend(abilities(wanted.r#use).into_iter().filter(is_said));
        attributes
    }
}

/// Generates a key pair, and reads back that the private key was made on the token and cannot
/// leave it. A key that does not prove it is destroyed. Returns what the key did not prove and was
/// waived.
pub fn generate(
    session: &Session,
    wanted: &Wanted<'_>,
) -> Result<(PublicParts, Vec<Waiver>), Failure> {
    if objects::find_private(session, wanted.id)?.is_some() {
        return Err(Failure::KeyExists);
    }
    let (public, private) = generate_pair(session, wanted)?;
    let proven = prove(session, private, wanted).and_then(|waived| {
        let parts = objects::parts_of(session, public)?;
        let parts = parts.ok_or_else(|| not_proven("the public key"))?;
        Ok((parts, waived))
    });
    if proven.is_err() {
        for handle in [private, public] {
            if let Err(error) = session.destroy_object(handle) {
                eprintln!("cannot destroy a key that is not proven: {error:?}");
            }
        }
    }
    proven
}

fn generate_pair(
    session: &Session,
    wanted: &Wanted<'_>,
) -> Result<(ObjectHandle, ObjectHandle), Failure> {
    let mut first = None;
    for template in Template::ALL {
        let private = template.private(wanted);
        let mut is_refused = false;
        for (mechanism, parameters) in forms(wanted.spec) {
            let public = template.public(wanted, parameters);
            match session.generate_key_pair(&mechanism, &public, &private) {
                Ok(pair) => return Ok(pair),
                Err(error) => {
                    is_refused |= is_of_template(&error);
                    first.get_or_insert(error);
                }
            }
        }
        if !is_refused {
            break;
        }
    }
    Err(first.map_or(
        Failure::Unsupported {
            what: format!("the generation of {}", wanted.spec),
        },
        |error| codes::failure(&error),
    ))
}

/// Whether a token refused the template rather than the work.
fn is_of_template(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(
            RvError::TemplateInconsistent
                | RvError::AttributeTypeInvalid
                | RvError::AttributeValueInvalid
                | RvError::AttributeReadOnly,
            _
        )
    )
}

/// The ways to say what kind of key is wanted, the best known first.
fn forms(spec: KeySpec) -> Vec<(Mechanism<'static>, Vec<Attribute>)> {
    let rsa = |bits: u64| {
        let parameters = vec![
            Attribute::ModulusBits(bits.into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
        ];
        vec![(Mechanism::RsaPkcsKeyPairGen, parameters)]
    };
    let curve = |mechanism, parameters: &[u8]| {
        let parameters = vec![Attribute::EcParams(parameters.to_vec())];
        (mechanism, parameters)
    };
    match spec {
        KeySpec::Rsa2048 => rsa(2048),
        KeySpec::Rsa3072 => rsa(3072),
        KeySpec::P256 => vec![curve(Mechanism::EccKeyPairGen, P256_PARAMETERS)],
        KeySpec::P384 => vec![curve(Mechanism::EccKeyPairGen, P384_PARAMETERS)],
        // The object identifier of RFC 8410 is what SoftHSM takes; the curve name of PKCS#11 v3.0
        // is the only form that some cards take.
        KeySpec::Ed25519 => [ED25519_PARAMETERS, ED25519_CURVE_NAME]
            .into_iter()
            .map(|parameters| curve(Mechanism::EccEdwardsKeyPairGen, parameters))
            .collect(),
    }
}

/// `CKA_LOCAL`, `CKA_SENSITIVE`, `CKA_ALWAYS_SENSITIVE`, `CKA_NEVER_EXTRACTABLE` and what the key is
/// for must read true and `CKA_EXTRACTABLE` false; one that cannot be read proves nothing. Returns
/// those that do not and were waived.
fn prove(
    session: &Session,
    private: ObjectHandle,
    wanted: &Wanted<'_>,
) -> Result<Vec<Waiver>, Failure> {
    let kinds = [
        AttributeType::Local,
        AttributeType::Sensitive,
        AttributeType::AlwaysSensitive,
        AttributeType::NeverExtractable,
        AttributeType::Extractable,
        AttributeType::Sign,
        AttributeType::Decrypt,
    ];
    let read = session
        .get_attributes(private, &kinds)
        .map_err(|error| codes::failure(&error))?;
    let must = [
        (Attribute::Extractable(false), "CKA_EXTRACTABLE"),
        (Attribute::Sign(true), "CKA_SIGN"),
        (Attribute::Decrypt(true), "CKA_DECRYPT"),
    ];
    let abilities = abilities(wanted.r#use);
    let is_wanted = |attribute: &Attribute| match attribute {
        Attribute::Sign(_) | Attribute::Decrypt(_) => abilities.contains(attribute),
        _ => true,
    };
    let lacking = |attribute: &Attribute| is_wanted(attribute) && !read.contains(attribute);
    if let Some((_, name)) = must.iter().find(|(attribute, _)| lacking(attribute)) {
        return Err(not_proven(name));
    }
    let mut waived = Vec::new();
    for (attribute, waiver) in [
        (Attribute::Local(true), Waiver::Local),
        (Attribute::Sensitive(true), Waiver::Sensitive),
        (Attribute::AlwaysSensitive(true), Waiver::AlwaysSensitive),
        (Attribute::NeverExtractable(true), Waiver::NeverExtractable),
    ] {
        if !lacking(&attribute) {
            continue;
        }
        if !wanted.waived.contains(&waiver) {
            return Err(not_proven(waiver.attribute()));
        }
        waived.push(waiver);
    }
    Ok(waived)
}

fn not_proven(attribute: &str) -> Failure {
    Failure::KeyNotProven {
        attribute: attribute.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_template_says_less_than_the_one_before() {
        for spec in KeySpec::ALL {
            for r#use in [KeyUse::Sign, KeyUse::SignAndDecrypt, KeyUse::Decrypt] {
                let wanted = Wanted {
                    spec,
                    r#use,
                    id: b"id",
                    label: "label",
                    waived: &[],
                };
                let said = Template::ALL.map(|template| {
                    let (_, parameters) = forms(spec).remove(0);
                    (
                        template.public(&wanted, parameters),
                        template.private(&wanted),
                    )
                });
                for pair in said.windows(2) {
                    let [(public, private), (less_public, less_private)] = pair else {
                        panic!("two");
                    };
                    assert!(less_public.iter().all(|one| public.contains(one)));
                    assert!(less_private.iter().all(|one| private.contains(one)));
                    assert!(less_public.len() + less_private.len() < public.len() + private.len());
                }
            }
        }
    }
}
