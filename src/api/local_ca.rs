//! The authority of this computer: it certifies the doors' own server key and the clients' keys.
//!
//! Programs, and browsers later, are told to trust `local-ca/ca.pem`, so what its key could be
//! misused for matters. The certificate is name-constrained (RFC 5280 section 4.2.1.10, critical)
//! to `localhost` and names below it, 127.0.0.1 and ::1, limited to TLS (extended key usage) and
//! to end entities (path length 0): whoever steals the key still cannot pass for any other
//! server. No directoryName constraint is used: rustls-webpki refuses certificates that have one.
//!
//! In the directory are `ca.pem`, `ca-key.pem`, `server.pem` and `server-key.pem`. Keys have mode
//! 0600. The authority is made once: the key first, then its certificate, so a crash in between
//! leaves a key that the next start certifies. The server certificate lives 90 days and is made
//! anew, with a new key, by whoever asks for it when less than a third of that is left: the daemon
//! asks at its start and every hour. The key is written first, and a pair that does not fit is made
//! anew too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use const_oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use der::asn1::{Ia5String, OctetString};
use der::flagset::FlagSet;
use jiff::{SignedDuration, Timestamp};
use x509_cert::ext::pkix::constraints::name::{GeneralSubtree, GeneralSubtrees, NameConstraints};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
};
use x509_cert::name::Name;

use super::software_key::{SoftwareKey, SoftwareKeyError};
use crate::base::encoding::hex;
use crate::base::files::{self, FileError, Readers};
use crate::base::ids::ClientName;
use crate::base::x509::{self, Certificate, CertificateFields, CertificateRequest, X509Error};
use crate::http::tls::{Identity, TlsError};

const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(24 * 3_650);
const SERVER_LIFE: SignedDuration = SignedDuration::from_hours(24 * 90);
const CLIENT_LIFE: SignedDuration = SignedDuration::from_hours(24 * 365);
const FILE_LIMIT: u64 = 64 * 1024;

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate exists without its key, or with another.
    #[error("{} does not belong to the key beside it", path.display())]
    Mismatch {
        /// The certificate.
        path: PathBuf,
    },
    /// The key in a file cannot be used.
    #[error("the key in {} cannot be used", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SoftwareKeyError,
    },
    /// A certificate cannot be read.
    #[error("the certificate in {} cannot be read", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: X509Error,
    },
    /// A certificate cannot be made.
    #[error("a certificate cannot be made")]
    Build {
        /// Why.
        #[source]
        source: SoftwareKeyError,
    },
    /// The name cannot stand in a client certificate.
    #[error("client name {name:?} is not 1 to 63 lower-case letters, digits and inner hyphens")]
    ClientName {
        /// As given.
        name: String,
    },
    /// TLS cannot use the server certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl From<X509Error> for LocalCaError {
    fn from(source: X509Error) -> Self {
        Self::Build {
            source: source.into(),
        }
    }
}

impl From<SoftwareKeyError> for LocalCaError {
    fn from(source: SoftwareKeyError) -> Self {
        Self::Build { source }
    }
}

/// The authority, ready to sign.
#[derive(Debug)]
pub struct LocalCa {
    directory: PathBuf,
    certificate: Certificate,
    key: SoftwareKey,
}

impl LocalCa {
    /// Opens the authority in `directory`, or makes one there.
    pub fn open(directory: &Path, now: Timestamp) -> Result<Self, LocalCaError> {
        files::private_directory(directory)?;
        let key_path = directory.join("ca-key.pem");
        let path = directory.join("ca.pem");
        let key = match read_key(&key_path)? {
            Some(key) => key,
            None if path.exists() => return Err(LocalCaError::Mismatch { path }),
            None => {
                let key = SoftwareKey::generate()?;
                files::write_new(&key_path, key.to_pem()?.as_bytes(), 0o600)?;
                key
            }
        };
        let certificate = match read_certificate(&path)? {
            Some(certificate) if certificate.public_key() == key.public() => certificate,
            Some(_) => return Err(LocalCaError::Mismatch { path }),
            None => {
                let certificate = authority_certificate(&key, now)?;
                files::write_atomic(&path, certificate.to_pem()?.as_bytes(), 0o644)?;
                certificate
            }
        };
        Ok(Self {
            directory: directory.to_owned(),
            certificate,
            key,
        })
    }

    /// The certificate that clients of the doors trust, and that the doors trust clients by.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Key and certificate of the doors, made anew where they are missing or soon to expire.
    pub fn server_identity(&self, now: Timestamp) -> Result<Identity, LocalCaError> {
        let path = self.directory.join("server.pem");
        let key_path = self.directory.join("server-key.pem");
        if let (Some(certificate), Some(key)) = (read_certificate(&path)?, read_key(&key_path)?) {
            let left = certificate.not_after().duration_since(now);
            let ours = certificate.public_key() == key.public()
                && certificate.issuer() == self.certificate.subject();
            if ours && left > SERVER_LIFE / 3 && certificate.not_before() <= now {
                return self.identity(&certificate, &key);
            }
        }
        let key = SoftwareKey::generate()?;
        let certificate = self.end_entity(
            x509::common_name("opcert daemon")?,
            vec![
                dns_name("localhost")?,
                GeneralName::from(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                GeneralName::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            ],
            ExtendedKeyUsage(vec![ID_KP_SERVER_AUTH]),
            &key,
            now,
        )?;
        files::write_atomic(&key_path, key.to_pem()?.as_bytes(), 0o600)?;
        files::write_atomic(&path, certificate.to_pem()?.as_bytes(), 0o644)?;
        self.identity(&certificate, &key)
    }

    /// A certificate for a client's own key, good for one year of being a TLS client.
    pub fn issue_client(
        &self,
        name: &ClientName,
        request: &CertificateRequest,
        now: Timestamp,
    ) -> Result<Certificate, LocalCaError> {
        check_client_name(name)?;
        let fields = CertificateFields {
            issuer: self.certificate.subject().clone(),
            issuer_key: self.key.public().clone(),
            subject: x509::common_name(name.as_str())?,
            subject_key: request.public_key().clone(),
            not_before: now,
            not_after: whole_seconds(now + CLIENT_LIFE).min(self.certificate.not_after()),
        };
        self.sign(
            fields,
            vec![dns_name(&format!("{name}.client.localhost"))?],
            ExtendedKeyUsage(vec![ID_KP_CLIENT_AUTH]),
        )
    }

    fn end_entity(
        &self,
        subject: Name,
        names: Vec<GeneralName>,
        usage: ExtendedKeyUsage,
        key: &SoftwareKey,
        now: Timestamp,
    ) -> Result<Certificate, LocalCaError> {
        let fields = CertificateFields {
            issuer: self.certificate.subject().clone(),
            issuer_key: self.key.public().clone(),
            subject,
            subject_key: key.public().clone(),
            not_before: now,
            not_after: whole_seconds(now + SERVER_LIFE).min(self.certificate.not_after()),
        };
        self.sign(fields, names, usage)
    }

    fn sign(
        &self,
        fields: CertificateFields,
        names: Vec<GeneralName>,
        usage: ExtendedKeyUsage,
    ) -> Result<Certificate, LocalCaError> {
        let mut builder = x509::certificate_builder(fields)?;
        builder
            .add_extension(&BasicConstraints {
                ca: false,
                path_len_constraint: None,
            })
            .and_then(|()| builder.add_extension(&KeyUsage(KeyUsages::DigitalSignature.into())))
            .and_then(|()| builder.add_extension(&usage))
            .and_then(|()| builder.add_extension(&SubjectAltName(names)))
            .map_err(encoding)?;
        Ok(Certificate::from_der(&self.key.sign(builder)?)?)
    }

    fn identity(
        &self,
        certificate: &Certificate,
        key: &SoftwareKey,
    ) -> Result<Identity, LocalCaError> {
        Ok(Identity::from_pem(
            certificate.to_pem()?.as_bytes(),
            key.to_pem()?.as_bytes(),
        )?)
    }
}

/// A client's name becomes a DNS label, and labels differ by more than case.
pub fn check_client_name(name: &ClientName) -> Result<(), LocalCaError> {
    let text = name.as_str();
    let clean = text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if clean && text.len() <= 63 && !text.starts_with('-') && !text.ends_with('-') {
        Ok(())
    } else {
        Err(LocalCaError::ClientName { name: text.into() })
    }
}

fn authority_certificate(key: &SoftwareKey, now: Timestamp) -> Result<Certificate, LocalCaError> {
    // The suffix tells authorities of several computers apart in a trust store.
    let suffix = hex(&key.public().fingerprint()[..4]);
    let subject = x509::common_name(&format!("opcert local authority {suffix}"))?;
    let fields = CertificateFields {
        issuer: subject.clone(),
        issuer_key: key.public().clone(),
        subject,
        subject_key: key.public().clone(),
        not_before: now,
        not_after: whole_seconds(now + AUTHORITY_LIFE),
    };
    let mut builder = x509::certificate_builder(fields)?;
    builder
        .add_extension(&BasicConstraints {
            ca: true,
            path_len_constraint: Some(0),
        })
        .and_then(|()| {
            let usages: FlagSet<KeyUsages> = KeyUsages::KeyCertSign.into();
            builder.add_extension(&KeyUsage(usages))
        })
        .and_then(|()| {
            builder.add_extension(&ExtendedKeyUsage(vec![
                ID_KP_SERVER_AUTH,
                ID_KP_CLIENT_AUTH,
            ]))
        })
        .and_then(|()| {
            builder.add_extension(&NameConstraints {
                permitted_subtrees: Some(permitted()?),
                excluded_subtrees: None,
            })
        })
        .map_err(encoding)?;
    Ok(Certificate::from_der(&key.sign(builder)?)?)
}

fn permitted() -> Result<GeneralSubtrees, der::Error> {
    // RFC 5280 section 4.2.1.10: an address constraint is the address and its mask.
    let host = |address: &[u8]| {
        let mut bytes = address.to_vec();
        bytes.resize(address.len() * 2, 0xff);
        OctetString::new(bytes).map(GeneralName::IpAddress)
    };
    Ok([
        GeneralName::DnsName(Ia5String::new("localhost")?),
        host(&Ipv4Addr::LOCALHOST.octets())?,
        host(&Ipv6Addr::LOCALHOST.octets())?,
    ]
    .into_iter()
    .map(|base| GeneralSubtree {
        base,
        minimum: 0,
        maximum: None,
    })
    .collect())
}

fn dns_name(name: &str) -> Result<GeneralName, LocalCaError> {
    Ia5String::new(name)
        .map(GeneralName::DnsName)
        .map_err(encoding)
}

fn encoding(error: der::Error) -> LocalCaError {
    X509Error::Build(error.to_string()).into()
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn read_key(path: &Path) -> Result<Option<SoftwareKey>, LocalCaError> {
    if !path.exists() {
        return Ok(None);
    }
    let mut pem = files::read_checked(path, Readers::Owner, FILE_LIMIT)?;
    let key = SoftwareKey::from_pem(&pem).map_err(|source| LocalCaError::Key {
        path: path.to_owned(),
        source,
    });
    crate::base::secret::wipe(&mut pem);
    key.map(Some)
}

fn read_certificate(path: &Path) -> Result<Option<Certificate>, LocalCaError> {
    if !path.exists() {
        return Ok(None);
    }
    let pem = files::read_checked(path, Readers::Anybody, FILE_LIMIT)?;
    Certificate::from_pem(&pem)
        .map(Some)
        .map_err(|source| LocalCaError::Certificate {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    fn now() -> Timestamp {
        whole_seconds(Timestamp::now())
    }

    /// What a thief of the key would sign.
    fn forge(ca: &LocalCa, common_name: &str, names: Vec<GeneralName>) -> Certificate {
        let key = SoftwareKey::generate().unwrap();
        let fields = CertificateFields {
            issuer: ca.certificate.subject().clone(),
            issuer_key: ca.key.public().clone(),
            subject: x509::common_name(common_name).unwrap(),
            subject_key: key.public().clone(),
            not_before: now(),
            not_after: now() + CLIENT_LIFE,
        };
        let mut builder = x509::certificate_builder(fields).unwrap();
        builder
            .add_extension(&ExtendedKeyUsage(vec![ID_KP_SERVER_AUTH]))
            .unwrap();
        if !names.is_empty() {
            builder.add_extension(&SubjectAltName(names)).unwrap();
        }
        Certificate::from_der(&ca.key.sign(builder).unwrap()).unwrap()
    }

    fn openssl_accepts(ca: &LocalCa, leaf: &Certificate, check: [&str; 2]) -> bool {
        let path = ca.directory.join("leaf.pem");
        std::fs::write(&path, leaf.to_pem().unwrap()).unwrap();
        Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslserver"])
            .args(check)
            .arg("-CAfile")
            .arg(ca.directory.join("ca.pem"))
            .arg(&path)
            .output()
            .unwrap()
            .status
            .success()
    }

    fn rustls_accepts(ca: &LocalCa, leaf: &Certificate, name: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(ca.certificate.der().to_vec()))
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let leaf = CertificateDer::from(leaf.der().to_vec());
        verifier
            .verify_server_cert(&leaf, &[], &name, &[], UnixTime::now())
            .is_ok()
    }

    #[test]
    fn the_authority_is_good_for_localhost_and_for_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let ca = LocalCa::open(directory.path(), now()).unwrap();
        let local = forge(&ca, "x", vec![dns_name("localhost").unwrap()]);
        assert!(openssl_accepts(
            &ca,
            &local,
            ["-verify_hostname", "localhost"]
        ));
        assert!(rustls_accepts(&ca, &local, "localhost"));

        let foreign = forge(&ca, "x", vec![dns_name("example.com").unwrap()]);
        assert!(!openssl_accepts(
            &ca,
            &foreign,
            ["-verify_hostname", "example.com"]
        ));
        assert!(!rustls_accepts(&ca, &foreign, "example.com"));

        let only_common_name = forge(&ca, "example.com", Vec::new());
        assert!(!openssl_accepts(
            &ca,
            &only_common_name,
            ["-verify_hostname", "example.com"]
        ));
        assert!(!rustls_accepts(&ca, &only_common_name, "example.com"));

        let address = "192.0.2.1".parse::<IpAddr>().unwrap();
        let foreign = forge(&ca, "x", vec![GeneralName::from(address)]);
        assert!(!openssl_accepts(&ca, &foreign, ["-verify_ip", "192.0.2.1"]));
        assert!(!rustls_accepts(&ca, &foreign, "192.0.2.1"));
    }

    #[test]
    fn the_server_certificate_names_every_loopback_and_is_renewed_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let ca = LocalCa::open(directory.path(), now()).unwrap();
        let first = ca.server_identity(now()).unwrap();
        let leaf = Certificate::from_der(&first.chain[0]).unwrap();
        for (flag, name) in [
            ("-verify_hostname", "localhost"),
            ("-verify_ip", "127.0.0.1"),
            ("-verify_ip", "::1"),
        ] {
            assert!(openssl_accepts(&ca, &leaf, [flag, name]), "{name}");
            assert!(rustls_accepts(&ca, &leaf, name), "{name}");
        }
        let again = LocalCa::open(directory.path(), now()).unwrap();
        assert_eq!(again.certificate.der(), ca.certificate.der());
        let kept = again.server_identity(now()).unwrap();
        assert_eq!(kept.chain, first.chain);
        let later = now() + SERVER_LIFE / 3 * 2 + SignedDuration::from_hours(1);
        let renewed = again.server_identity(later).unwrap();
        assert_ne!(renewed.chain, first.chain);
    }

    #[test]
    fn a_client_certificate_is_for_tls_clients_only() {
        let directory = tempfile::tempdir().unwrap();
        let ca = LocalCa::open(directory.path(), now()).unwrap();
        let key = SoftwareKey::generate().unwrap();
        let request = CertificateRequest::from_der(&key.request("anything").unwrap()).unwrap();
        let name: ClientName = "erp".parse().unwrap();
        let leaf = ca.issue_client(&name, &request, now()).unwrap();
        assert_eq!(leaf.public_key(), key.public());
        assert!(!openssl_accepts(
            &ca,
            &leaf,
            ["-verify_hostname", "erp.client.localhost"]
        ));
        assert!(!rustls_accepts(&ca, &leaf, "erp.client.localhost"));
        for bad in ["Erp", "a.b", "-a", "a-", "a_b", &"a".repeat(64)] {
            let name: ClientName = bad.parse().unwrap();
            assert!(
                matches!(
                    ca.issue_client(&name, &request, now()),
                    Err(LocalCaError::ClientName { .. })
                ),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_authority_without_its_key_is_not_replaced_silently() {
        let directory = tempfile::tempdir().unwrap();
        LocalCa::open(directory.path(), now()).unwrap();
        std::fs::remove_file(directory.path().join("ca-key.pem")).unwrap();
        assert!(matches!(
            LocalCa::open(directory.path(), now()),
            Err(LocalCaError::Mismatch { .. })
        ));
    }
}
