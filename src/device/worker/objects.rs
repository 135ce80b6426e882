//! Keys and certificates on a token.
//!
//! Who is logged in is for the keeper to know.

use cryptoki::error::{Error, RvError};
use cryptoki::object::{
    Attribute, AttributeType, CertificateType, KeyType, ObjectClass, ObjectHandle,
};
use cryptoki::session::Session;
use zeroize::Zeroize;

use super::codes;
use super::module::text;
use crate::base::key::KeySpec;
use crate::device::frames::{
    CERTIFICATE_MAX, CertificateEntry, CertificateParts, Class, Failure, KeyEntry, KeyUse,
    PublicParts, RsaPrivateParts,
};
use crate::device::keys::public_key::{ec_spec, rsa_spec};

/// What a private key can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// RSA of any size.
    Rsa,
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

/// How many bits a key has, where that can be told; Ed25519 has one size, which modules name
/// differently.
pub fn bits(kind: Kind, parts: Option<&PublicParts>) -> Option<usize> {
    match (kind, parts) {
        (Kind::Rsa, Some(PublicParts::Rsa { modulus, .. })) => {
            let start = modulus.iter().position(|&byte| byte != 0)?;
            let first = modulus.get(start)?;
            Some((modulus.len() - start) * 8 - first.leading_zeros() as usize)
        }
        (Kind::P256, _) => Some(256),
        (Kind::P384, _) => Some(384),
        (Kind::Rsa | Kind::Ed25519, _) => None,
    }
}

fn failure(error: Error) -> Failure {
    codes::failure(&error)
}

/// The private key with this `CKA_ID`.
pub fn find_private(session: &Session, id: &[u8]) -> Result<Option<ObjectHandle>, Failure> {
    match find(session, ObjectClass::PRIVATE_KEY, id)?.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        [_, _, ..] => Err(Failure::KeyAmbiguous),
    }
}

fn find(session: &Session, class: ObjectClass, id: &[u8]) -> Result<Vec<ObjectHandle>, Failure> {
    let mut template = vec![Attribute::Class(class), Attribute::Id(id.to_vec())];
    if class == ObjectClass::CERTIFICATE {
        // ykcs11 shows a key's attestation under the key's CKA_ID as well, made when it is read:
        // no object of the token, and none to destroy or replace.
        template.push(Attribute::Token(true));
    }
    session.find_objects(&template).map_err(failure)
}

/// What the private key behind `handle` can do, and whether each use needs a login of its own.
pub fn kind(session: &Session, handle: ObjectHandle) -> Result<(Kind, bool), Failure> {
    let wanted = [
        AttributeType::KeyType,
        AttributeType::EcParams,
        AttributeType::AlwaysAuthenticate,
    ];
    let attributes = session.get_attributes(handle, &wanted).map_err(failure)?;
    let (mut is_rsa, mut spec, mut always_authenticate) = (false, None, false);
    for attribute in attributes {
        match attribute {
            Attribute::KeyType(KeyType::RSA) => is_rsa = true,
            Attribute::EcParams(parameters) => spec = ec_spec(&parameters),
            Attribute::AlwaysAuthenticate(is_set) => always_authenticate = is_set,
            _ => {}
        }
    }
    let kind = match spec {
        _ if is_rsa => Kind::Rsa,
        Some(KeySpec::P256) => Kind::P256,
        Some(KeySpec::P384) => Kind::P384,
        Some(KeySpec::Ed25519) => Kind::Ed25519,
        _ => return Err(Failure::KeyType),
    };
    Ok((kind, always_authenticate))
}

/// The public key with this `CKA_ID`: of the public key object, of the private one (RSA), or of a
/// certificate, whichever is there first. `KeyMissing` if there is none.
pub fn public_parts(session: &Session, id: &[u8]) -> Result<PublicParts, Failure> {
    for class in [ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY] {
        for handle in find(session, class, id)? {
            if let Some(parts) = parts_of(session, handle)? {
                return Ok(parts);
            }
        }
    }
    for handle in find(session, ObjectClass::CERTIFICATE, id)? {
        if let Some(der) = certificate_value(session, handle)? {
            return Ok(PublicParts::Certificate(der));
        }
    }
    Err(Failure::KeyMissing)
}

/// The public key that an object holds; `None` where it has not all of its parts.
pub fn parts_of(session: &Session, handle: ObjectHandle) -> Result<Option<PublicParts>, Failure> {
    let wanted = [
        AttributeType::Modulus,
        AttributeType::PublicExponent,
        AttributeType::EcParams,
        AttributeType::EcPoint,
    ];
    let (mut modulus, mut exponent, mut parameters, mut point) = (None, None, None, None);
    for attribute in session.get_attributes(handle, &wanted).map_err(failure)? {
        match attribute {
            Attribute::Modulus(value) => modulus = Some(value),
            Attribute::PublicExponent(value) => exponent = Some(value),
            Attribute::EcParams(value) => parameters = Some(value),
            Attribute::EcPoint(value) => point = Some(value),
            _ => {}
        }
    }
    let filled = |value: &Vec<u8>| !value.is_empty();
    Ok(match (modulus, exponent, parameters, point) {
        (Some(modulus), Some(exponent), _, _) if filled(&modulus) && filled(&exponent) => {
            Some(PublicParts::Rsa { modulus, exponent })
        }
        (_, _, Some(parameters), Some(point)) if filled(&parameters) && filled(&point) => {
            Some(PublicParts::Ec { parameters, point })
        }
        _ => None,
    })
}

/// What a private key may do, said both ways: a token's own default may be more.
pub fn abilities(r#use: KeyUse) -> [Attribute; 2] {
    let (sign, decrypt) = match r#use {
        KeyUse::Sign => (true, false),
        KeyUse::SignAndDecrypt => (true, true),
        KeyUse::Decrypt => (false, true),
    };
    [Attribute::Sign(sign), Attribute::Decrypt(decrypt)]
}

/// Stores an RSA key pair that was made elsewhere, and reads back that the private key cannot be
/// read or taken off the token from now on. What was done with it before nobody can prove.
pub fn import(
    session: &Session,
    key: &RsaPrivateParts,
    r#use: KeyUse,
    id: &[u8],
    label: &str,
) -> Result<PublicParts, Failure> {
    if !find(session, ObjectClass::PRIVATE_KEY, id)?.is_empty() {
        return Err(Failure::KeyExists);
    }
    let common = |class| {
        vec![
            Attribute::Class(class),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Token(true),
            Attribute::Id(id.to_vec()),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Modulus(key.modulus.clone()),
            Attribute::PublicExponent(key.public_exponent.clone()),
        ]
    };
    let mut private = common(ObjectClass::PRIVATE_KEY);
    private.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
    ]);
    private.extend(abilities(r#use));
    let [d, p, q, dp, dq, qinv] = key.secret.each_ref().map(|part| part.expose().to_vec());
    private.extend([
        Attribute::PrivateExponent(d),
        Attribute::Prime1(p),
        Attribute::Prime2(q),
        Attribute::Exponent1(dp),
        Attribute::Exponent2(dq),
        Attribute::Coefficient(qinv),
    ]);
    let created = session.create_object(&private).map_err(failure);
    wipe(&mut private);
    let private = created?;
    let mut public = common(ObjectClass::PUBLIC_KEY);
    public.extend([
        Attribute::Private(false),
        Attribute::Verify(r#use != KeyUse::Decrypt),
    ]);
    let stored = kept_in(session, private)
        .and_then(|()| session.create_object(&public).map_err(failure))
        .map(|_| PublicParts::Rsa {
            modulus: key.modulus.clone(),
            exponent: key.public_exponent.clone(),
        });
    if stored.is_err()
        && let Err(error) = session.destroy_object(private)
    {
        eprintln!("cannot destroy a key that was not imported whole: {error:?}");
    }
    stored
}

/// Wipes the numbers of a private key.
fn wipe(attributes: &mut [Attribute]) {
    for attribute in attributes {
        if let Attribute::PrivateExponent(number)
        | Attribute::Prime1(number)
        | Attribute::Prime2(number)
        | Attribute::Exponent1(number)
        | Attribute::Exponent2(number)
        | Attribute::Coefficient(number) = attribute
        {
            number.zeroize();
        }
    }
}

/// `CKA_SENSITIVE` must read true and `CKA_EXTRACTABLE` false.
fn kept_in(session: &Session, private: ObjectHandle) -> Result<(), Failure> {
    let wanted = [AttributeType::Sensitive, AttributeType::Extractable];
    let read = session.get_attributes(private, &wanted).map_err(failure)?;
    expect(
        &read,
        &[
            (Attribute::Sensitive(true), "CKA_SENSITIVE"),
            (Attribute::Extractable(false), "CKA_EXTRACTABLE"),
        ],
    )
}

fn expect(read: &[Attribute], expected: &[(Attribute, &str)]) -> Result<(), Failure> {
    match expected
        .iter()
        .find(|(attribute, _)| !read.contains(attribute))
    {
        None => Ok(()),
        Some((_, name)) => Err(Failure::KeyNotProven {
            attribute: (*name).into(),
        }),
    }
}

/// The handles of all objects of a class.
pub fn all(session: &Session, class: ObjectClass) -> Result<Vec<ObjectHandle>, Failure> {
    session
        .find_objects(&[Attribute::Class(class)])
        .map_err(failure)
}

/// A private key for a list; `None` if it is gone meanwhile.
pub fn key_entry(session: &Session, handle: ObjectHandle) -> Result<Option<KeyEntry>, Failure> {
    let wanted = [
        AttributeType::Id,
        AttributeType::Label,
        AttributeType::Modulus,
        AttributeType::EcParams,
        AttributeType::AlwaysAuthenticate,
    ];
    let Some(attributes) = attributes_or_gone(session, handle, &wanted)? else {
        return Ok(None);
    };
    let mut entry = KeyEntry {
        id: Vec::new(),
        label: String::new(),
        spec: None,
        always_authenticate: false,
    };
    for attribute in attributes {
        match attribute {
            Attribute::Id(id) => entry.id = id.into_iter().take(255).collect(),
            Attribute::Label(label) => entry.label = text(&String::from_utf8_lossy(&label)),
            Attribute::Modulus(modulus) => entry.spec = rsa_spec(&modulus),
            Attribute::EcParams(parameters) => entry.spec = ec_spec(&parameters),
            Attribute::AlwaysAuthenticate(is_set) => entry.always_authenticate = is_set,
            _ => {}
        }
    }
    Ok(Some(entry))
}

/// A certificate for a list; `None` if it is gone meanwhile, too large or of another type.
pub fn certificate_entry(
    session: &Session,
    handle: ObjectHandle,
) -> Result<Option<CertificateEntry>, Failure> {
    let Some(der) = certificate_value(session, handle)? else {
        return Ok(None);
    };
    let attributes = attributes_or_gone(session, handle, &[AttributeType::Id])?;
    let id = attributes
        .unwrap_or_default()
        .into_iter()
        .find_map(|attribute| match attribute {
            Attribute::Id(id) => Some(id.into_iter().take(255).collect()),
            _ => None,
        })
        .unwrap_or_default();
    Ok(Some(CertificateEntry { id, der }))
}

fn certificate_value(session: &Session, handle: ObjectHandle) -> Result<Option<Vec<u8>>, Failure> {
    let wanted = [AttributeType::CertificateType, AttributeType::Value];
    let attributes = attributes_or_gone(session, handle, &wanted)?.unwrap_or_default();
    let is_x509 = attributes.contains(&Attribute::CertificateType(CertificateType::X_509));
    let value = attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            Attribute::Value(value) => Some(value),
            _ => None,
        });
    Ok(value.filter(|der| is_x509 && !der.is_empty() && der.len() <= CERTIFICATE_MAX))
}

fn attributes_or_gone(
    session: &Session,
    handle: ObjectHandle,
    wanted: &[AttributeType],
) -> Result<Option<Vec<Attribute>>, Failure> {
    match session.get_attributes(handle, wanted).map_err(failure) {
        Ok(attributes) => Ok(Some(attributes)),
        Err(Failure::Pkcs11 {
            class: Class::Handle,
            ..
        }) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Stores a certificate, then removes those that had its `CKA_ID` before: a crash between leaves
/// one too many rather than none.
pub fn write_certificate(session: &Session, parts: CertificateParts) -> Result<(), Failure> {
    let before = find(session, ObjectClass::CERTIFICATE, &parts.id)?;
    let mut template = vec![
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::CertificateType(CertificateType::X_509),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Id(parts.id),
        Attribute::Subject(parts.subject),
        Attribute::Issuer(parts.issuer),
        Attribute::SerialNumber(parts.serial),
        Attribute::Value(parts.der),
        Attribute::Label(parts.label.into_bytes()),
    ];
    match session.create_object(&template) {
        Ok(_) => {}
        // NSS keeps a label for the certificates of one subject only.
        Err(Error::Pkcs11(RvError::AttributeValueInvalid, _)) => {
            template.pop();
            session.create_object(&template).map_err(failure)?;
        }
        Err(error) => return Err(failure(error)),
    }
    destroy(session, before)
}

/// Destroys everything with this `CKA_ID`, the private key first; `KeyMissing` if there is nothing.
pub fn delete(session: &Session, id: &[u8]) -> Result<(), Failure> {
    let mut handles = Vec::new();
    for class in [
        ObjectClass::PRIVATE_KEY,
        ObjectClass::PUBLIC_KEY,
        ObjectClass::CERTIFICATE,
    ] {
        handles.extend(find(session, class, id)?);
    }
    if handles.is_empty() {
        return Err(Failure::KeyMissing);
    }
    destroy(session, handles)
}

fn destroy(session: &Session, handles: Vec<ObjectHandle>) -> Result<(), Failure> {
    for handle in handles {
        session.destroy_object(handle).map_err(failure)?;
    }
    Ok(())
}
