//! Names, and whom an operating certificate speaks for.

use const_oid::ObjectIdentifier;
use const_oid::db::rfc4519;
use der::asn1::{Any, Ia5String, Utf8StringRef};
use der::{Decode, Encode};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};

use super::{X509Error, build};
use crate::base::ids::{AccountId, ComputerId, OperatorId};

/// Whom an operating certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OperatingIdentity {
    /// The account.
    pub account: AccountId,
    /// The operator.
    pub operator: OperatorId,
    /// The computer.
    pub computer: ComputerId,
}

impl OperatingIdentity {
    /// The subject: organisation is the account, organisational unit the computer, common name
    /// the operator.
    pub fn subject(&self) -> Result<Name, X509Error> {
        name(&[
            (rfc4519::O, self.account.as_str()),
            (rfc4519::OU, self.computer.as_str()),
            (rfc4519::CN, self.operator.as_str()),
        ])
    }

    /// The same as URI for the subject alternative name.
    pub fn uri(&self) -> String {
        format!(
            "urn:opcert:account:{}:operator:{}:computer:{}",
            self.account, self.operator, self.computer
        )
    }

    /// The subject alternative name.
    pub fn alternative_name(&self) -> Result<GeneralName, X509Error> {
        Ok(GeneralName::UniformResourceIdentifier(
            Ia5String::new(&self.uri()).map_err(build)?,
        ))
    }

    pub(super) fn from_subject(subject: &Name) -> Option<Self> {
        let mut attributes = subject.iter();
        let mut next = |oid: ObjectIdentifier| -> Option<String> {
            let attribute = attributes.next().filter(|attribute| attribute.oid == oid)?;
            let text: Utf8StringRef<'_> = attribute.value.decode_as().ok()?;
            Some(text.as_str().to_owned())
        };
        let account = next(rfc4519::O)?.parse().ok()?;
        let computer = next(rfc4519::OU)?.parse().ok()?;
        let operator = next(rfc4519::CN)?.parse().ok()?;
        attributes.next().is_none().then_some(Self {
            account,
            operator,
            computer,
        })
    }
}

/// A distinguished name of UTF-8 attributes, one to an RDN, most general first.
pub fn name(attributes: &[(ObjectIdentifier, &str)]) -> Result<Name, X509Error> {
    let mut sequence = RdnSequence::default();
    for (oid, value) in attributes {
        let value = Any::encode_from(&Utf8StringRef::new(value).map_err(build)?).map_err(build)?;
        let attribute = AttributeTypeAndValue { oid: *oid, value };
        sequence.push(RelativeDistinguishedName::try_from(vec![attribute]).map_err(build)?);
    }
    Name::from_der(&sequence.to_der().map_err(build)?).map_err(build)
}

/// A name with only a common name.
pub fn common_name(text: &str) -> Result<Name, X509Error> {
    name(&[(rfc4519::CN, text)])
}
